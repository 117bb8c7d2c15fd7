//! Restores beside, under a new name, of some tables only; what is checked before and after; what a failure leaves.

use std::io::Read;
use std::sync::Arc;

use holdfast_engines::postgres::PostgresEngine;
use holdfast_engines::testing::postgres_cluster::PostgresCluster;
use holdfast_engines::{Engine as _, EngineError, ExtractOrder, ExtractReport, SnapshotContents};
use holdfast_model::ErrorCode;
use holdfast_model::manifest::{Manifest, TableManifest};
use holdfast_model::restore::{CheckOutcome, Placement, RestorePreview};
use holdfast_model::source::PostgresConfig;

use crate::support::{Snapshot, TestRun, capture, doubts, order, restore, tools_with};

const SHOP: &str = "CREATE SCHEMA sales; CREATE EXTENSION hstore; CREATE TYPE sales.state AS ENUM ('new', 'paid'); \
    CREATE TABLE sales.customers (id int PRIMARY KEY, name text); \
    CREATE TABLE sales.orders (id serial PRIMARY KEY, customer int REFERENCES sales.customers, s sales.state, h hstore); \
    CREATE FUNCTION public.touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$; \
    CREATE TRIGGER t BEFORE UPDATE ON sales.orders FOR EACH ROW EXECUTE FUNCTION public.touch(); \
    CREATE TABLE sales.bars (day date, price int) PARTITION BY RANGE (day); \
    CREATE TABLE sales.bars_1 PARTITION OF sales.bars FOR VALUES FROM ('2026-01-01') TO ('2026-02-01'); \
    CREATE TABLE sales.bars_2 PARTITION OF sales.bars DEFAULT; \
    CREATE INDEX ON sales.bars (price); \
    INSERT INTO sales.bars SELECT '2026-01-15'::date + n, n FROM generate_series(1, 40) n; \
    INSERT INTO sales.customers SELECT n, 'c' || n FROM generate_series(1, 50) n; \
    INSERT INTO sales.orders (customer, s, h) SELECT n % 50 + 1, 'paid', 'a=>1' FROM generate_series(1, 200) n; \
    CREATE VIEW sales.v AS SELECT count(*) FROM sales.orders";

async fn shop() -> (PostgresCluster, PostgresConfig, Snapshot) {
    let cluster = PostgresCluster::start();
    cluster.create_database("shop").await;
    cluster.execute("shop", SHOP).await;
    let source = cluster.source(&["shop"]);
    let snapshot = capture(&source).await.unwrap();
    (cluster, source, snapshot)
}

async fn databases(cluster: &PostgresCluster) -> Vec<String> {
    cluster.query("postgres", "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1").await
}

async fn preview(config: &PostgresConfig, snapshot: &Snapshot, placement: Placement) -> RestorePreview {
    let engine = PostgresEngine::new(config.clone());
    let run = TestRun::new();
    engine.preview_restore(&order(placement, &[]), &snapshot.manifest, &run.context).await.unwrap()
}

fn outcome(preview: &RestorePreview, name: &str) -> (CheckOutcome, String) {
    let check =
        preview.checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no check {name}"));
    (check.outcome, check.detail.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_table_comes_with_its_type_sequence_trigger_and_without_the_rest() {
    let (cluster, source, snapshot) = shop().await;
    let report = restore(&source, &snapshot, Placement::Beside, &["sales.orders"]).await.unwrap();
    assert_eq!(doubts(&report), Vec::<String>::new());
    assert_eq!((report.rows, report.rows_expected), (Some(200), Some(200)));
    let target = &report.targets[0];
    assert_eq!((target.restored.as_str(), target.live.as_str()), ("shop_restored_0123abcd", ""));
    let tables = "SELECT relname FROM pg_class WHERE relnamespace = 'sales'::regnamespace AND relkind IN ('r','v','p')";
    assert_eq!(cluster.query(&target.restored, tables).await, ["orders"]);
    let next = "INSERT INTO sales.orders (s) VALUES ('new') RETURNING id";
    assert_eq!(cluster.query(&target.restored, next).await, ["201"]);
    let parts = "SELECT (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal), \
                 (SELECT count(*) FROM pg_constraint WHERE conrelid = 'sales.orders'::regclass AND contype = 'p')";
    assert_eq!(cluster.query(&target.restored, parts).await, ["1|1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_comes_with_its_partitions_and_several_tables_with_their_keys() {
    let (cluster, source, snapshot) = shop().await;
    let into = |name: &str| Placement::Into(name.to_owned());
    let report = restore(&source, &snapshot, into("bars"), &["shop/sales.bars"]).await.unwrap();
    assert_eq!(report.rows, Some(40));
    assert_eq!(cluster.query("bars", "SELECT count(*) FROM sales.bars").await, ["40"]);
    let indexes =
        "SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE c.relkind = 'i'";
    assert_eq!(cluster.query("bars", indexes).await, ["2"]);
    let both = ["sales.orders", "sales.customers"];
    let report = restore(&source, &snapshot, into("both"), &both).await.unwrap();
    assert_eq!(report.rows, Some(250));
    let keys = "SELECT count(*) FROM pg_constraint WHERE contype = 'f'";
    assert_eq!(cluster.query("both", keys).await, ["1"]);
    let error = restore(&source, &snapshot, into("none"), &["sales.absent"]).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::PathNotInSnapshot);
    assert_eq!(databases(&cluster).await, ["bars", "both", "postgres", "shop"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_exists_is_left_alone() {
    let (cluster, source, snapshot) = shop().await;
    cluster.create_database("mine").await;
    let error = restore(&source, &snapshot, Placement::Into("mine".to_owned()), &[]).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TargetExists);
    assert_eq!(error.to_string(), "database mine exists already");
    assert_eq!(databases(&cluster).await, ["mine", "postgres", "shop"]);
    let (outcome, detail) =
        outcome(&preview(&source, &snapshot, Placement::Into("mine".to_owned())).await, "target");
    assert_eq!((outcome, detail.as_str()), (CheckOutcome::Failed, "database mine exists already"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_differ_from_the_manifest_drop_what_was_restored() {
    let (cluster, source, mut snapshot) = shop().await;
    snapshot.manifest.databases[0].tables.insert("sales.orders".to_owned(), TableManifest { rows: 201 });
    let error = restore(&source, &snapshot, Placement::Beside, &[]).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RestoreMismatch);
    assert_eq!(error.to_string(), "shop: sales.orders has 200 rows instead of 201");
    assert_eq!(databases(&cluster).await, ["postgres", "shop"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_definitions_are_a_warning() {
    let (_cluster, source, mut snapshot) = shop().await;
    snapshot.manifest.databases[0].schema_hash = "0".repeat(64);
    let report = restore(&source, &snapshot, Placement::Beside, &[]).await.unwrap();
    assert_eq!(doubts(&report), ["schema: shop: some definitions differ from those captured"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_fails_or_lies_leaves_no_database() {
    let (cluster, mut source, snapshot) = shop().await;
    let version = "case \"$1\" in --version|-V) exec \"$REAL\" --version;; esac\n";
    for (body, code, said) in [
        (
            "\"$REAL\" \"$@\"; echo 'pg_restore: error: alas' >&2; exit 1",
            ErrorCode::RestoreFailed,
            "pg_restore could not restore database shop",
        ),
        ("cat >/dev/null; exit 0", ErrorCode::RestoreMismatch, "shop: "),
        ("exit 0", ErrorCode::RestoreMismatch, "shop: "),
        ("exec \"$REAL\" \"$@\" --schema-only", ErrorCode::RestoreMismatch, "rows instead of"),
        (
            "echo 'could not extend file: No space left on device' >&2; exit 1",
            ErrorCode::TargetNoSpace,
            "no space left for database shop",
        ),
        ("kill -9 $$", ErrorCode::RestoreFailed, "could not restore database shop"),
    ] {
        let tools = tools_with(&cluster, "pg_restore", &format!("{version}{body}"));
        source.tools = Some(tools.path().to_owned());
        let error = restore(&source, &snapshot, Placement::Beside, &[]).await.unwrap_err();
        assert_eq!(error.code(), code, "{body}: {error}");
        assert!(error.to_string().contains(said), "{body}: {error}");
        assert_eq!(databases(&cluster).await, ["postgres", "shop"], "{body}");
    }
}

/// A snapshot whose archives end in an error of the repository after some bytes.
struct Damaged(Snapshot);

impl SnapshotContents for Damaged {
    fn manifest(&self) -> &Manifest {
        &self.0.manifest
    }

    fn size(&self, path: &str) -> Result<u64, EngineError> {
        self.0.size(path)
    }

    fn open(&self, path: &str) -> Result<Box<dyn Read + Send>, EngineError> {
        let half = self.size(path)? - 100;
        Ok(Box::new(self.0.open(path)?.take(half).chain(BadBlob)))
    }

    fn extract(&self, _order: &ExtractOrder) -> Result<ExtractReport, EngineError> {
        panic!("this engine extracts nothing to disk")
    }
}

struct BadBlob;

impl Read for BadBlob {
    fn read(&mut self, _buffer: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other(EngineError::new(ErrorCode::ObjectDamaged, "pack 0123 is damaged")))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_repository_is_the_error_and_leaves_no_database() {
    let (cluster, source, snapshot) = shop().await;
    let run = TestRun::new();
    let engine = PostgresEngine::new(source);
    let contents = Arc::new(Damaged(snapshot));
    let error = engine.restore(&order(Placement::Beside, &[]), contents, &run.context).await.unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        (ErrorCode::ObjectDamaged, "pack 0123 is damaged")
    );
    assert_eq!(databases(&cluster).await, ["postgres", "shop"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_restore_leaves_no_database() {
    let (cluster, mut source, snapshot) = shop().await;
    let version = "case \"$1\" in --version|-V) exec \"$REAL\" --version;; esac\n";
    let tools = tools_with(&cluster, "pg_restore", &format!("{version}exec sleep 100"));
    source.tools = Some(tools.path().to_owned());
    let run = TestRun::new();
    let engine = PostgresEngine::new(source);
    let order = order(Placement::Beside, &[]);
    let restoring = engine.restore(&order, Arc::new(snapshot), &run.context);
    let cancelling = async {
        crate::support::until("the database is there", async || databases(&cluster).await.len() == 3).await;
        run.context.cancel.cancel();
    };
    let (result, ()) = tokio::join!(restoring, cancelling);
    assert_eq!(result.unwrap_err().code(), ErrorCode::RunCancelled);
    assert_eq!(databases(&cluster).await, ["postgres", "shop"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_that_are_missing_are_a_warning_with_the_remedy() {
    let cluster = PostgresCluster::start();
    cluster.create_database("shop").await;
    cluster
        .execute("shop", "CREATE ROLE seller; CREATE TABLE t AS SELECT 1 AS a; ALTER TABLE t OWNER TO seller")
        .await;
    let source = cluster.source(&["shop"]);
    let snapshot = capture(&source).await.unwrap();
    cluster.execute("shop", "ALTER TABLE t OWNER TO postgres; DROP ROLE seller").await;
    let before = preview(&source, &snapshot, Placement::Beside).await;
    let (outcome, detail) = outcome(&before, "roles");
    assert_eq!(outcome, CheckOutcome::Warning);
    assert!(detail.contains("CREATE ROLE \"seller\";"), "{detail}");
    let report = restore(&source, &snapshot, Placement::Beside, &[]).await.unwrap();
    assert_eq!(report.rows, Some(1));
    assert!(
        doubts(&report)[0].starts_with("roles: shop: roles seller do not exist here"),
        "{:?}",
        doubts(&report)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_says_what_would_happen_and_touches_nothing() {
    let (cluster, source, snapshot) = shop().await;
    let open = cluster.client("shop").await;
    let found = preview(&source, &snapshot, Placement::InPlace).await;
    drop(open);
    assert!(found.replaces);
    assert_eq!(found.targets[0].live, "shop");
    assert!(found.bytes_free.is_some(), "{:?}", found.checks);
    for (name, expected) in [
        ("version", CheckOutcome::Ok),
        ("tools", CheckOutcome::Ok),
        ("permission", CheckOutcome::Ok),
        ("space", CheckOutcome::Ok),
        ("target", CheckOutcome::Ok),
        ("roles", CheckOutcome::Ok),
        ("extensions", CheckOutcome::Ok),
        ("sessions", CheckOutcome::Warning),
    ] {
        assert_eq!(outcome(&found, name).0, expected, "{name}");
    }
    assert!(found.steps.last().unwrap().contains("globals.sql"));
    assert_eq!(databases(&cluster).await, ["postgres", "shop"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_server_and_missing_extensions_stop_a_preview() {
    let (_cluster, source, mut snapshot) = shop().await;
    snapshot.manifest.engine_version = "99.1".to_owned();
    snapshot.manifest.databases[0].extensions.insert("no_such_thing".to_owned(), "1.0".to_owned());
    let found = preview(&source, &snapshot, Placement::Beside).await;
    assert_eq!(outcome(&found, "version").0, CheckOutcome::Failed);
    let (outcome, detail) = outcome(&found, "extensions");
    assert_eq!(
        (outcome, detail.as_str()),
        (CheckOutcome::Failed, "shop: not installed on the server: no_such_thing")
    );
    let error = restore(&source, &snapshot, Placement::Beside, &[]).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RestoreFailed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_without_the_right_to_make_databases_is_told_so() {
    let (cluster, mut source, snapshot) = shop().await;
    cluster.execute("postgres", "CREATE ROLE reader LOGIN").await;
    source.connect.user = "reader".to_owned();
    assert_eq!(
        outcome(&preview(&source, &snapshot, Placement::Beside).await, "permission").0,
        CheckOutcome::Failed
    );
    let error = restore(&source, &snapshot, Placement::Beside, &[]).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SourcePermissionMissing);
    cluster.execute("postgres", "ALTER ROLE reader CREATEDB").await;
    let report =
        restore(&source, &snapshot, Placement::Into("plain".to_owned()), &["sales.customers"]).await.unwrap();
    assert_eq!(report.rows, Some(50));
    assert!(doubts(&report)[0].contains("owners are left out"), "{:?}", doubts(&report));
}
