//! What a source test reports, and the exact errors of what cannot be reached, opened or read.

use holdfast_engines::postgres::PostgresEngine;
use holdfast_engines::testing::postgres_cluster::{PostgresCluster, installed_tools};
use holdfast_engines::{Engine as _, EngineError, ProbeReport};
use holdfast_model::secret::SecretRef;
use holdfast_model::source::PostgresConfig;
use holdfast_model::{ErrorCode, Failure};

use crate::support::{TestRun, capture, capture_in, lying_pg_dump, restore, tools_with};

async fn probe_in(config: &PostgresConfig, run: &TestRun) -> Result<ProbeReport, EngineError> {
    PostgresEngine::new(config.clone()).probe(&run.context).await
}

async fn probe(config: &PostgresConfig) -> Result<ProbeReport, EngineError> {
    probe_in(config, &TestRun::new()).await
}

/// Over TCP, where a password is asked for.
fn over_tcp(cluster: &PostgresCluster, user: &str) -> PostgresConfig {
    let mut source = cluster.source(&[]);
    source.connect.host = "127.0.0.1".to_owned();
    source.connect.user = user.to_owned();
    source.connect.password = Some(SecretRef::Env("PASSWORD".to_owned()));
    source
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_is_reported() {
    let cluster = PostgresCluster::start();
    cluster.create_database("shop").await;
    cluster.execute("shop", "CREATE TABLE t (a int)").await;
    let report = probe(&cluster.source(&[])).await.unwrap();
    let names: Vec<_> = report.steps.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["connect", "login", "databases", "permissions", "tools"]);
    assert_eq!(report.parts, ["postgres", "shop"]);
    assert_eq!(report.tools.keys().collect::<Vec<_>>(), ["pg_dump", "pg_dumpall", "pg_restore"]);
    assert!(report.logical_bytes > 1_000_000);
    assert!(report.steps[0].1.contains(&report.version) && report.steps[0].1.ends_with("primary"));
    assert_eq!(report.warnings, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_folder_of_tools_installed_ones_are_found() {
    let cluster = PostgresCluster::start_from(&installed_tools());
    let mut source = cluster.source(&["postgres"]);
    source.tools = None;
    let report = probe(&source).await.unwrap();
    assert!(report.steps.last().unwrap().1.contains("/bin"), "{:?}", report.steps);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_unreachable() {
    let cluster = PostgresCluster::start();
    let mut source = cluster.source(&[]);
    drop(cluster);
    let error = probe(&source).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SourceUnreachable);
    source.connect.host = "127.0.0.1".to_owned();
    let error = capture(&source).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SourceUnreachable);
    assert_eq!(
        error.to_string(),
        format!("PostgreSQL at 127.0.0.1:{} cannot be reached", source.connect.port)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_refused_with_its_state_and_shows_nowhere() {
    let cluster = PostgresCluster::start();
    let run = TestRun::with_environment(&[("PASSWORD", "canary-5f2e")]);
    let error = probe_in(&over_tcp(&cluster, "postgres"), &run).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SourceLoginRefused);
    assert!(error.to_string().contains("(SQLSTATE 28P01)"), "{error}");
    let failure = Failure::from(error);
    assert!(!format!("{failure:?}").contains("canary") && !run.log.text().contains("canary"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_password_is_said() {
    let cluster = PostgresCluster::start();
    let mut source = over_tcp(&cluster, "postgres");
    source.connect.password = None;
    let error = probe(&source).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SourceLoginRefused);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_password_reaches_the_tools_by_file_only() {
    let cluster = PostgresCluster::start();
    cluster.create_database("shop").await;
    cluster.execute("shop", "CREATE TABLE t AS SELECT 1 AS a").await;
    cluster.execute("postgres", r"ALTER USER postgres PASSWORD 'ca:na\ry'").await;
    let seen = tempfile::tempdir().unwrap();
    let look = format!(
        "{{ tr '\\0' '\\n' < /proc/$$/environ; tr '\\0' '\\n' < /proc/$$/cmdline; }} >> {}/$$; exec \"$REAL\" \"$@\"",
        seen.path().display()
    );
    let tools = tools_with(&cluster, "pg_dump", &look);
    let mut source = over_tcp(&cluster, "postgres");
    source.databases = vec!["shop".to_owned()];
    source.tools = Some(tools.path().to_owned());
    let run = TestRun::with_environment(&[("PASSWORD", r"ca:na\ry")]);
    let snapshot = capture_in(&source, &run).await.unwrap();
    assert_eq!(snapshot.rows("shop", "public.t"), Some(1));
    assert_eq!(run.scratch_files(), 0, "the password file is gone");
    let mut texts = String::new();
    for entry in std::fs::read_dir(seen.path()).unwrap() {
        texts.push_str(&String::from_utf8_lossy(&std::fs::read(entry.unwrap().path()).unwrap()));
    }
    assert!(texts.contains("PGPASSFILE=") && texts.contains("--snapshot="), "{texts}");
    assert!(!texts.contains("na\\ry"), "{texts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_with_a_line_break_is_refused_before_a_tool_runs() {
    let cluster = PostgresCluster::start();
    cluster.execute("postgres", "ALTER USER postgres PASSWORD E'two\\nlines'").await;
    let run = TestRun::with_environment(&[("PASSWORD", "two\nlines")]);
    let error = capture_in(&over_tcp(&cluster, "postgres"), &run).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SecretUnresolvable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_read_is_named_by_probe_and_capture() {
    let cluster = PostgresCluster::start();
    cluster.create_database("shop").await;
    cluster
        .execute(
            "shop",
            "CREATE ROLE backup LOGIN; CREATE TABLE open (a int); CREATE TABLE \"closed one\" (a int); \
             GRANT SELECT ON open TO backup",
        )
        .await;
    let mut source = cluster.source(&["shop"]);
    source.connect.user = "backup".to_owned();
    for error in [probe(&source).await.unwrap_err(), capture(&source).await.unwrap_err()] {
        assert_eq!(error.code(), ErrorCode::SourcePermissionMissing);
        assert_eq!(error.to_string(), "backup cannot read public.\"closed one\" of database shop");
    }
    cluster
        .execute("shop", "GRANT pg_read_all_data TO backup; ALTER TABLE open ENABLE ROW LEVEL SECURITY")
        .await;
    let error = probe(&source).await.unwrap_err();
    assert_eq!(error.to_string(), "backup cannot read public.open of database shop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_without_other_rights_captures_all_but_password_hashes() {
    let cluster = PostgresCluster::start();
    cluster.create_database("shop").await;
    cluster
        .execute(
            "shop",
            "CREATE ROLE backup LOGIN PASSWORD 'x'; GRANT pg_read_all_data TO backup; \
             CREATE TABLE t AS SELECT generate_series(1, 7) a; CREATE SEQUENCE s; SELECT nextval('s')",
        )
        .await;
    let mut source = cluster.source(&["shop"]);
    source.connect.user = "backup".to_owned();
    let report = probe(&source).await.unwrap();
    assert_eq!(report.warnings.len(), 1);
    let run = TestRun::new();
    let snapshot = capture_in(&source, &run).await.unwrap();
    assert_eq!(snapshot.rows("shop", "public.t"), Some(7));
    assert!(run.log.text().contains("info globals.sql holds roles without their passwords"));
    let globals = String::from_utf8(snapshot.files["globals.sql"].clone()).unwrap();
    assert!(globals.contains("CREATE ROLE backup;") && !globals.contains("SCRAM"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_exist_is_named() {
    let cluster = PostgresCluster::start();
    for error in [
        probe(&cluster.source(&["postgres", "ab\nsent"])).await.unwrap_err(),
        capture(&cluster.source(&["ab\nsent"])).await.unwrap_err(),
    ] {
        assert_eq!(error.code(), ErrorCode::SourceMissing);
        assert!(error.to_string().ends_with("has no database ab\\nsent"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_older_than_the_server_is_refused_with_both_versions() {
    let cluster = PostgresCluster::start();
    let tools = tools_with(&cluster, "pg_dump", "echo 'pg_dump (PostgreSQL) 9.6.24'");
    let mut source = cluster.source(&[]);
    source.tools = Some(tools.path().to_owned());
    for error in [probe(&source).await.unwrap_err(), capture(&source).await.unwrap_err()] {
        assert_eq!(error.code(), ErrorCode::ToolTooOld);
        assert!(
            error.to_string().starts_with("pg_dump 9.6.24 is older than the server, which has version "),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_tool_is_named() {
    let cluster = PostgresCluster::start();
    let empty = tempfile::tempdir().unwrap();
    let mut source = cluster.source(&[]);
    source.tools = Some(empty.path().to_owned());
    let error = probe(&source).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::ToolMissing);
    assert_eq!(error.to_string(), format!("there is no tool {}/pg_dump", empty.path().display()));
    let tools = lying_pg_dump(&cluster, "exec \"$REAL\" \"$@\"");
    std::fs::remove_file(tools.path().join("pg_restore")).unwrap();
    source.tools = Some(tools.path().to_owned());
    assert_eq!(probe(&source).await.unwrap_err().code(), ErrorCode::ToolMissing);
    let snapshot = capture(&cluster.source(&["postgres"])).await.unwrap();
    let placement = holdfast_model::restore::Placement::Beside;
    assert_eq!(restore(&source, &snapshot, placement, &[]).await.unwrap_err().code(), ErrorCode::ToolMissing);
}
