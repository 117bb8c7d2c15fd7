//! Names that break what is careless with them: of databases, tables, files, and in fleet files.

use std::collections::BTreeMap;

use holdfast_model::ErrorCode;
use holdfast_proto::v1::PlanRestoreRequest;
use holdfast_tests::{Fleet, PostgresCluster};
use rusqlite::Connection;

use super::latest;

/// Names of databases and tables; all of them are names of files too.
const NAMES: &[&str] = &[
    "with space",
    "quo\"te's",
    "line\nbreak",
    "-rf",
    "--help",
    "..",
    "host=evil dbname=x",
    "ünïcode 日本 🗄",
    "$(id) `id` %s",
    "a'; DROP TABLE x; --",
];

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as YAML takes it in whatever place.
fn yaml(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_databases_and_tables_of_any_name_come_back() {
    let cluster = PostgresCluster::start();
    let mut expected = BTreeMap::new();
    for (number, name) in NAMES.iter().enumerate() {
        cluster.psql("postgres", &format!("CREATE DATABASE {}", quoted(name)));
        let rows = number + 1;
        let table = quoted(name);
        cluster.psql_exactly(
            name,
            &format!("CREATE TABLE {table} AS SELECT n FROM generate_series(1, {rows}) n"),
        );
        expected.insert(*name, rows.to_string());
    }
    let fleet = Fleet::start().await;
    let databases: Vec<String> = NAMES.iter().map(|name| yaml(name)).collect();
    fleet.apply(&cluster.source(fleet.path(), &databases.join(", "))).await.unwrap();
    fleet.backup_well("pg", "full").await;
    fleet.restic().check_all_data();
    let (_, report) = fleet.restore_well(latest("pg")).await;
    assert_eq!(report.rows, report.rows_expected);
    assert_eq!(report.targets.len(), NAMES.len());
    for target in &report.targets {
        let name = target.live.as_str();
        assert_ne!(target.restored, target.live);
        let rows = cluster.psql_exactly(&target.restored, &format!("SELECT count(*) FROM {}", quoted(name)));
        assert_eq!(Some(&rows), expected.get(name), "{name:?}");
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_files_and_tables_of_any_name_come_back() {
    let fleet = Fleet::start().await;
    let mut yaml_sources = "sources:\n".to_owned();
    for (number, name) in NAMES.iter().enumerate() {
        let folder = fleet.path().join(format!("in {number} {name}"));
        std::fs::create_dir(&folder).unwrap();
        let file = folder.join(if *name == ".." { "..." } else { name });
        let made = Connection::open(&file).unwrap();
        let table = quoted(name);
        made.execute_batch(&format!("CREATE TABLE {table} (n); INSERT INTO {table} VALUES ({number}), (7)"))
            .unwrap();
        let path = yaml(file.to_str().unwrap());
        yaml_sources.push_str(&format!("  s{number}: {{ engine: sqlite, agent: a1, path: {path} }}\n"));
    }
    fleet.apply(&yaml_sources).await.unwrap();
    for (number, name) in NAMES.iter().enumerate() {
        let source = format!("s{number}");
        fleet.backup_well(&source, "full").await;
        let (_, report) = fleet.restore_well(latest(&source)).await;
        assert_eq!((report.rows, report.rows_expected), (Some(2), Some(2)), "{name:?}");
        let restored = Connection::open(&report.targets[0].restored).unwrap();
        let sql = format!("SELECT sum(n) FROM {}", quoted(name));
        let sum: i64 = restored.query_row(&sql, [], |row| row.get(0)).unwrap();
        assert_eq!(sum, number as i64 + 7, "{name:?}");
    }
    fleet.restic().check_all_data();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_restored_under_an_odd_name_that_was_asked_for() {
    let cluster = PostgresCluster::start();
    cluster.psql("postgres", "CREATE DATABASE shop");
    cluster.psql("shop", "CREATE TABLE orders AS SELECT n FROM generate_series(1, 3) n");
    let fleet = Fleet::start().await;
    fleet.apply(&cluster.source(fleet.path(), "shop")).await.unwrap();
    fleet.backup_well("pg", "full").await;
    let into = "-it's \"odd\"\n../";
    fleet.restore_well(PlanRestoreRequest { into: into.to_owned(), ..latest("pg") }).await;
    assert_eq!(cluster.psql_exactly(into, "SELECT count(*) FROM orders"), "3");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_a_fleet_file_that_would_need_quoting_is_refused() {
    let fleet = Fleet::start().await;
    for name in
        ["with space", "quo\"te", "line\nbreak", "-rf", "--help", "..", "../up", "ünïcode", "\u{202e}x"]
    {
        for kind in ["sources", "repositories", "agents"] {
            let what = match kind {
                "sources" => "{ engine: files, agent: a1, paths: [/srv] }",
                "repositories" => "{ url: \"file:///srv\", encryption: { key: { file: /srv/key } } }",
                _ => "{ labels: { zone: a } }",
            };
            let refused = fleet.apply(&format!("{kind}:\n  {}: {what}\n", yaml(name))).await.unwrap_err();
            assert_eq!(refused.code, ErrorCode::FileInvalid, "{refused}");
            let singular = if kind == "repositories" { "repository" } else { kind.trim_end_matches('s') };
            let what = format!("test.yaml:3:3: {singular} name {name:?} is not valid: ");
            assert!(refused.message.starts_with(&what), "{refused}");
        }
    }
    let file =
        fleet.fleet().export(holdfast_proto::v1::ExportRequest::default()).await.unwrap().into_inner().yaml;
    assert!(!file.contains("/srv"), "nothing of it was taken: {file}");
    fleet.stop().await;
}
