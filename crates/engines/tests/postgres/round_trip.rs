//! What is captured comes back, whatever it is called and however it is made.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use holdfast_engines::postgres::PostgresEngine;
use holdfast_engines::testing::postgres_cluster::PostgresCluster;
use holdfast_engines::{Content, Engine as _, StoredSummary};
use holdfast_model::ErrorCode;
use holdfast_model::manifest::TableManifest;
use holdfast_model::restore::Placement;

use crate::support::{TestRun, capture, doubts, finish, restore, until};

/// Names that break what quotes badly.
const ODD_NAMES: [&str; 10] = [
    "with space",
    "quo\"te's",
    "line\nbreak",
    "-rf",
    "--help",
    "host=evil dbname=x",
    "postgres://evil/x?y",
    "ünïcode 日本",
    "../up",
    "a'; DROP DATABASE postgres; --",
];

/// Everything a schema may hold that a dump could lose.
const RICH: &str = r#"
CREATE EXTENSION hstore;
CREATE EXTENSION pg_trgm;
CREATE SCHEMA "odd schema";
CREATE TYPE "odd schema".mood AS ENUM ('sad', 'ok', 'it''s fine');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE "odd schema"."ta
ble ""x""" (id serial PRIMARY KEY, m "odd schema".mood DEFAULT 'ok', p positive, h hstore);
INSERT INTO "odd schema"."ta
ble ""x""" (p, h) SELECT n, hstore('k', n::text) FROM generate_series(1, 100) n;
CREATE TABLE plain (id bigint GENERATED ALWAYS AS IDENTITY, a int, b int GENERATED ALWAYS AS (a * 2) STORED,
    c varchar CHECK (c IN ('a', 'b')), t text, dropped int);
ALTER TABLE plain DROP COLUMN dropped;
INSERT INTO plain (a, c, t) SELECT n, 'a', E'tab\t line\n end \\. back\\slash ' || n FROM generate_series(1, 500) n;
INSERT INTO plain (t) VALUES (E'\\.'), (NULL), ('');
CREATE INDEX plain_trgm ON plain USING gin (t gin_trgm_ops);
CREATE TABLE bars (day date NOT NULL, symbol text, price numeric) PARTITION BY RANGE (day);
CREATE TABLE bars_2025 PARTITION OF bars FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY LIST (symbol);
CREATE TABLE bars_2025_a PARTITION OF bars_2025 FOR VALUES IN ('A');
CREATE TABLE bars_2025_rest PARTITION OF bars_2025 DEFAULT;
CREATE TABLE bars_2026 PARTITION OF bars FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE INDEX ON bars (symbol);
INSERT INTO bars SELECT '2025-06-01'::date + n, CASE n % 2 WHEN 0 THEN 'A' ELSE 'B' END, n FROM generate_series(1, 300) n;
CREATE TABLE parent (a int);
CREATE TABLE child (b int) INHERITS (parent);
INSERT INTO parent VALUES (1);
INSERT INTO child VALUES (1, 2), (3, 4);
CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES;
INSERT INTO no_columns DEFAULT VALUES;
CREATE UNLOGGED TABLE fleeting AS SELECT 1 AS a;
CREATE SEQUENCE lonely START 5 INCREMENT -3 MINVALUE -1000 MAXVALUE 5;
SELECT nextval('lonely'), nextval('lonely');
CREATE SEQUENCE unused;
CREATE VIEW v AS SELECT a, b FROM plain WHERE a > 10;
CREATE MATERIALIZED VIEW mv AS SELECT symbol, count(*) FROM bars GROUP BY symbol;
CREATE MATERIALIZED VIEW mv_empty AS SELECT 1 AS x WITH NO DATA;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.a := NEW.a + 1; RETURN NEW; END $$;
CREATE TRIGGER touch BEFORE UPDATE ON plain FOR EACH ROW WHEN (OLD.a IS DISTINCT FROM NEW.a) EXECUTE FUNCTION touch();
CREATE PROCEDURE p() LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM plain; END;
CREATE AGGREGATE total (int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE RULE guard AS ON DELETE TO child DO INSTEAD NOTHING;
ALTER TABLE parent ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON parent USING (a > 0);
CREATE STATISTICS st ON a, b FROM plain;
CREATE TABLE refers (id bigint, plain_id int REFERENCES "odd schema"."ta
ble ""x""" (id));
INSERT INTO refers VALUES (1, 1), (2, 2);
SELECT lo_from_bytea(0, 'first'), lo_from_bytea(0, decode(repeat('00ff', 5000), 'hex')), lo_from_bytea(0, '');
COMMENT ON TABLE plain IS 'it''s plain';
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_rich_database_comes_back_whole_with_equal_definitions() {
    let cluster = PostgresCluster::start();
    cluster.create_database("rich").await;
    cluster.execute("rich", RICH).await;
    cluster
        .execute("postgres", "CREATE ROLE app; ALTER DATABASE rich SET search_path = \"odd schema\", public; \
             ALTER ROLE app IN DATABASE rich SET work_mem = '1MB'; REVOKE CONNECT ON DATABASE rich FROM public; \
             GRANT CONNECT ON DATABASE rich TO app; ALTER DATABASE rich CONNECTION LIMIT 17")
        .await;
    cluster.execute("rich", "GRANT SELECT ON plain TO app; ALTER TABLE parent OWNER TO app").await;
    let source = cluster.source(&["rich"]);
    let snapshot = capture(&source).await.unwrap();

    let database = &snapshot.manifest.databases[0];
    assert_eq!(snapshot.rows("rich", "public.plain"), Some(503));
    assert_eq!(snapshot.rows("rich", "public.parent"), Some(1));
    assert_eq!(snapshot.rows("rich", "public.bars"), None);
    assert_eq!(snapshot.rows("rich", "public.no_columns"), Some(2));
    assert_eq!(snapshot.rows("rich", "\"odd schema\".\"ta\nble \"\"x\"\"\""), Some(100));
    assert_eq!(database.tables.get("public.mv"), Some(&TableManifest { rows: 2 }));
    assert_eq!(database.tables.get("public.mv_empty"), None);
    assert_eq!(database.large_objects, 3);
    assert_eq!(database.sequences.get("public.lonely"), Some(&Some(2)));
    assert_eq!(database.sequences.get("public.unused"), Some(&None));
    assert_eq!(database.roles, ["app", "postgres"]);
    assert!(database.extensions.contains_key("hstore") && database.extensions.contains_key("plpgsql"));
    assert!(snapshot.manifest.system_id.is_some() && snapshot.manifest.log_position.is_some());
    let globals = String::from_utf8(snapshot.files["globals.sql"].clone()).unwrap();
    assert!(globals.contains("CREATE ROLE app;") && globals.contains("SCRAM-SHA-256$"));

    let report = restore(&source, &snapshot, Placement::Beside, &[]).await.unwrap();
    assert_eq!(doubts(&report), Vec::<String>::new());
    assert_eq!(report.rows, report.rows_expected);
    let restored = &report.targets[0].restored;
    assert_eq!(restored, "rich_restored_0123abcd");
    for sql in [
        "SELECT md5(string_agg(p::text, '' ORDER BY id)) FROM public.plain p",
        "SELECT md5(string_agg(b::text, '' ORDER BY b)) FROM public.bars b",
        "SELECT md5(string_agg(data, '' ORDER BY loid, pageno)) FROM pg_largeobject",
        "SELECT last_value, is_called FROM public.lonely",
        "SELECT obj_description('public.plain'::regclass), has_table_privilege('app', 'public.plain', 'SELECT')",
        "SELECT relowner::regrole FROM pg_class WHERE relname = 'parent'",
        "SHOW search_path",
        "SELECT datconnlimit, datcollate, ARRAY(SELECT a::text FROM unnest(datacl) a ORDER BY 1) FROM pg_database \
         WHERE datname = current_database()",
        "SELECT s.setrole::regrole, s.setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase \
         WHERE d.datname = current_database() ORDER BY 1",
    ] {
        assert_eq!(cluster.query(restored, sql).await, cluster.query("rich", sql).await, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_and_tables_of_any_name_come_back_in_one_snapshot() {
    let mut cluster = PostgresCluster::start();
    for (number, name) in ODD_NAMES.iter().enumerate() {
        cluster.create_database(name).await;
        let table = name.replace('"', "\"\"");
        let sql = format!("CREATE TABLE \"{table}\" AS SELECT * FROM generate_series(1, {number})");
        cluster.execute(name, &sql).await;
    }
    let source = cluster.source(&[]);
    let snapshot = capture(&source).await.unwrap();
    // Those and `postgres`, which is empty.
    assert_eq!(snapshot.manifest.databases.len(), ODD_NAMES.len() + 1);
    assert_eq!(snapshot.manifest.rows(), (0..ODD_NAMES.len() as u64).sum::<u64>());
    assert!(snapshot.files.keys().all(|path| path.split('/').count() <= 2), "{:?}", snapshot.files.keys());

    let report = restore(&source, &snapshot, Placement::Beside, &[]).await.unwrap();
    assert_eq!(doubts(&report), Vec::<String>::new());
    assert_eq!(report.items, ODD_NAMES.len() as u64 + 1);
    for (number, name) in ODD_NAMES.iter().enumerate() {
        let target = report.targets.iter().find(|target| target.part == *name).unwrap();
        let sql = format!("SELECT count(*) FROM \"{}\"", name.replace('"', "\"\""));
        assert_eq!(cluster.query(&target.restored, &sql).await, [number.to_string()]);
    }
    assert!(!cluster.log().contains("syntax error"), "{}", cluster.log());
    cluster.stop_immediately();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_looks_like_an_address_can_be_connected_to_first() {
    let cluster = PostgresCluster::start();
    let name = "dbname=postgres host=/nowhere";
    cluster.create_database(name).await;
    let mut source = cluster.source(&[name]);
    source.connect.database = name.to_owned();
    let snapshot = capture(&source).await.unwrap();
    assert_eq!(snapshot.manifest.databases[0].name, name);
    restore(&source, &snapshot, Placement::Into("back".to_owned()), &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_those_of_the_dump_while_others_write() {
    let cluster = PostgresCluster::start();
    cluster.create_database("busy").await;
    cluster
        .execute(
            "busy",
            "CREATE TABLE accounts AS SELECT n AS id, 0 AS balance FROM generate_series(1, 20000) n; \
             CREATE TABLE history (id bigserial, account int, delta int)",
        )
        .await;
    let (stop, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..3 {
        let client = cluster.client("busy").await;
        let (stop, commits) = (Arc::clone(&stop), Arc::clone(&commits));
        writers.spawn(async move {
            let mut written = 0u32;
            while !stop.load(Ordering::Relaxed) {
                let sql = format!(
                    "BEGIN; UPDATE accounts SET balance = balance + 1 WHERE id = {0}; \
                     INSERT INTO history (account, delta) VALUES ({0}, 1); \
                     DELETE FROM history WHERE id % 7 = {writer} AND id < {written}; COMMIT",
                    written % 20_000 + 1
                );
                client.batch_execute(&sql).await.unwrap();
                written += 1;
                commits.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let source = cluster.source(&["busy"]);
    for round in 0..4 {
        let before = commits.load(Ordering::Relaxed);
        until("the writers write", async || commits.load(Ordering::Relaxed) > before).await;
        let snapshot = capture(&source).await.unwrap();
        let report =
            restore(&source, &snapshot, Placement::Into(format!("round {round}")), &[]).await.unwrap();
        assert_eq!(report.rows, Some(snapshot.manifest.rows()));
        let balance = cluster.query(&format!("round {round}"), "SELECT sum(balance) FROM accounts").await;
        assert!(snapshot.rows("busy", "public.history").unwrap() <= balance[0].parse().unwrap());
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(written) = writers.join_next().await {
        written.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_in_another_encoding_comes_back() {
    let cluster = PostgresCluster::start();
    cluster
        .execute("postgres", "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
        .await;
    cluster
        .execute("latin", "CREATE TABLE \"größe\" (t text); INSERT INTO \"größe\" VALUES ('ä'), ('ö')")
        .await;
    let source = cluster.source(&["latin"]);
    let snapshot = capture(&source).await.unwrap();
    assert_eq!(snapshot.rows("latin", "public.\"größe\""), Some(2));
    assert_eq!(snapshot.manifest.databases[0].encoding.as_deref(), Some("LATIN1"));
    let report = restore(&source, &snapshot, Placement::Into("latin2".to_owned()), &[]).await.unwrap();
    assert_eq!(doubts(&report), Vec::<String>::new());
    let encoding = "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'latin2'";
    assert_eq!(cluster.query("postgres", encoding).await, ["LATIN1"]);
    let report =
        restore(&source, &snapshot, Placement::Into("one".to_owned()), &["public.größe"]).await.unwrap();
    assert_eq!(report.rows, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_database_is_a_snapshot_too() {
    let cluster = PostgresCluster::start();
    let source = cluster.source(&["postgres"]);
    let snapshot = capture(&source).await.unwrap();
    assert_eq!(snapshot.manifest.tables(), 0);
    let position = snapshot.manifest.log_position.clone().unwrap();
    assert!(position.contains('/'), "{position}");
    let report = restore(&source, &snapshot, Placement::Into("empty".to_owned()), &[]).await.unwrap();
    assert_eq!((report.rows, report.items), (Some(0), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_encoding_may_hold_any_bytes() {
    let cluster = PostgresCluster::start();
    cluster
        .execute("postgres", "CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
        .await;
    // The escapes are read by the server: the bytes are no UTF-8.
    let sql = r"CREATE TABLE t (a text); INSERT INTO t VALUES (E'\xfe'), (E'line\n\xff\\');
        CREATE VIEW v AS SELECT E'\xfc' AS x;";
    cluster.execute("ascii", sql).await;
    let source = cluster.source(&["ascii"]);
    let snapshot = capture(&source).await.unwrap();
    assert_eq!(snapshot.rows("ascii", "public.t"), Some(2));
    let report = restore(&source, &snapshot, Placement::Into("ascii2".to_owned()), &[]).await.unwrap();
    assert_eq!(doubts(&report), Vec::<String>::new());
    let sum = "SELECT md5(string_agg(convert_to(a, 'SQL_ASCII'), ''::bytea ORDER BY a)) FROM t";
    assert_eq!(cluster.query("ascii", sum).await, cluster.query("ascii2", sum).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_captured_as_its_primary_would_be() {
    let primary = PostgresCluster::start();
    primary.create_database("shop").await;
    let sql = "CREATE TABLE t AS SELECT generate_series(1, 1000) AS a; CREATE UNLOGGED TABLE fleeting (a int); \
               CREATE SEQUENCE s; SELECT nextval('s')";
    primary.execute("shop", sql).await;
    let standby = primary.start_standby();
    let snapshot = capture(&standby.source(&["shop"])).await.unwrap();
    assert_eq!(snapshot.rows("shop", "public.t"), Some(1000));
    assert_eq!(snapshot.rows("shop", "public.fleeting"), None);
    assert!(snapshot.manifest.log_position.as_ref().unwrap().contains('/'));
    let on_primary = capture(&primary.source(&["shop"])).await.unwrap();
    assert_eq!(snapshot.manifest.system_id, on_primary.manifest.system_id);
    let (there, here) = (&on_primary.manifest.databases[0], &snapshot.manifest.databases[0]);
    assert_eq!(there.schema_hash, here.schema_hash);
    let report = restore(&primary.source(&[]), &snapshot, Placement::Beside, &["public.t"]).await.unwrap();
    assert_eq!(report.rows, Some(1000));
    let error = restore(&standby.source(&[]), &snapshot, Placement::Beside, &[]).await.unwrap_err();
    assert_eq!(error.to_string(), "the server is a standby, which takes no changes");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_tables_wait_for_the_dump_and_do_not_spoil_it() {
    let cluster = PostgresCluster::start();
    cluster.create_database("shop").await;
    let sql = "CREATE TABLE a AS SELECT n, repeat('x', 300) t FROM generate_series(1, 50000) n; \
               CREATE TABLE b AS SELECT generate_series(1, 10) AS x; CREATE TABLE c AS SELECT 1 AS x";
    cluster.execute("shop", sql).await;
    let source = cluster.source(&["shop"]);
    let run = TestRun::new();
    let mut open = PostgresEngine::new(source.clone()).open_capture(&run.context).await.unwrap();
    let (open, mut stream) = tokio::task::spawn_blocking(move || {
        open.next_entry().unwrap().unwrap();
        let Content::Stream(mut stream) = open.next_entry().unwrap().unwrap().content else {
            panic!("no stream")
        };
        stream.read_exact(&mut vec![0; 1 << 16]).unwrap();
        (open, stream)
    })
    .await
    .unwrap();
    let mut changes = tokio::task::JoinSet::new();
    for sql in ["ALTER TABLE a ALTER n TYPE bigint", "TRUNCATE b", "DROP TABLE c"] {
        let client = cluster.client("shop").await;
        changes.spawn(async move { client.batch_execute(sql).await.unwrap() });
    }
    until("the changes wait", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = 'shop'";
        cluster.query("postgres", sql).await[0].parse::<u32>().unwrap() >= 3
    })
    .await;
    let (mut open, bytes) = tokio::task::spawn_blocking(move || {
        let rest = std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
        (open, rest + (1 << 16))
    })
    .await
    .unwrap();
    while changes.join_next().await.is_some() {}
    let mut stored = StoredSummary::default();
    stored.streams.insert(b"databases/shop.dump".to_vec(), bytes);
    let open = tokio::task::spawn_blocking(move || {
        let Content::Stream(mut globals) = open.next_entry().unwrap().unwrap().content else {
            panic!("no stream")
        };
        let bytes = std::io::copy(&mut globals, &mut std::io::sink()).unwrap();
        stored.streams.insert(b"globals.sql".to_vec(), bytes);
        (open, stored)
    });
    let (open, stored) = open.await.unwrap();
    let manifest = open.finish(stored).await.unwrap();
    let rows: Vec<_> = manifest.databases[0].tables.values().map(|table| table.rows).collect();
    assert_eq!(rows, [50_000, 10, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_truncated_between_snapshot_and_dump_is_no_capture() {
    let cluster = PostgresCluster::start();
    cluster.create_database("shop").await;
    for change in ["TRUNCATE t", "ALTER TABLE t RENAME TO u", "ALTER TABLE t ALTER a TYPE bigint"] {
        cluster
            .execute("shop", "DROP TABLE IF EXISTS t, u; CREATE TABLE t AS SELECT generate_series(1, 9) AS a")
            .await;
        let run = TestRun::new();
        let engine = PostgresEngine::new(cluster.source(&["shop"]));
        let open = engine.open_capture(&run.context).await.unwrap();
        cluster.execute("shop", change).await;
        let error = finish(open).await.unwrap_err();
        // A renamed table is missed by pg_dump itself.
        let codes = [ErrorCode::CaptureIncomplete, ErrorCode::ToolFailed];
        assert!(codes.contains(&error.code()), "{change}: {error}");
    }
}
