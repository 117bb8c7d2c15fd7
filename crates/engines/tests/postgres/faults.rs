//! Servers that die, tools that lie, captures that are given up: nothing of them counts.

use std::io::Read as _;
use std::path::Path;

use holdfast_engines::postgres::PostgresEngine;
use holdfast_engines::testing::postgres_cluster::PostgresCluster;
use holdfast_engines::{Capture, Content, Engine as _, EngineError, StoredSummary};
use holdfast_model::ErrorCode;

use crate::support::{TestRun, capture, capture_in, finish, lying_pg_dump, tools_with, until};

/// About 40 MB of rows: far more than pipes and sockets hold.
const LARGE: &str = "CREATE TABLE large AS SELECT n AS id, repeat('x', 180) AS t FROM generate_series(1, 200000) n; \
                     CREATE TABLE small AS SELECT n AS id FROM generate_series(1, 10) n";

async fn cluster_with(sql: &str) -> PostgresCluster {
    let cluster = PostgresCluster::start();
    cluster.create_database("shop").await;
    cluster.execute("shop", sql).await;
    cluster
}

/// Captures with a `pg_dump` that does this, and gives the error.
async fn error_of_lie(cluster: &PostgresCluster, body: &str) -> EngineError {
    let tools = lying_pg_dump(cluster, body);
    let mut source = cluster.source(&["shop"]);
    source.tools = Some(tools.path().to_owned());
    let run = TestRun::new();
    let error = capture_in(&source, &run).await.unwrap_err();
    assert_eq!(run.scratch_files(), 0);
    error
}

fn causes(error: &EngineError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_ends_well_after_half_its_output_commits_nothing() {
    let cluster = cluster_with(LARGE).await;
    // A cut within the data, one within the table of contents, nothing at all.
    for (bytes, within) in [
        (1_000_000, "within the data of a table"),
        (700, "within the table of contents"),
        (0, "within the header"),
    ] {
        let error = error_of_lie(&cluster, &format!("\"$REAL\" \"$@\" | head -c {bytes}; exit 0")).await;
        assert_eq!(error.code(), ErrorCode::CaptureIncomplete);
        assert!(causes(&error).contains(within), "{}", causes(&error));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_leaves_out_the_last_table_commits_nothing() {
    let cluster = cluster_with("CREATE TABLE a AS SELECT 1 AS x; CREATE TABLE b AS SELECT 2 AS x").await;
    // The block of table b: kind, number (5), length (5), `2\n`, length (5), `\.\n\n\n`, end (5).
    let error = error_of_lie(&cluster, "\"$REAL\" \"$@\" | head -c -28; exit 0").await;
    assert_eq!(error.code(), ErrorCode::CaptureIncomplete);
    assert!(causes(&error).contains("lacks the data of 1 entries"), "{}", causes(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_something_else_commits_nothing() {
    let cluster = cluster_with(LARGE).await;
    for (body, code, said) in [
        (
            "echo 'pg_dump: no, thanks'; exit 0",
            ErrorCode::CaptureIncomplete,
            "does not begin as a pg_dump archive",
        ),
        (
            "exec \"$REAL\" \"$@\" --exclude-table=small",
            ErrorCode::CaptureInconsistent,
            "lacks table public.small",
        ),
        (
            "exec \"$REAL\" \"$@\" --exclude-table-data=small",
            ErrorCode::CaptureInconsistent,
            "lacks table public.small",
        ),
        (
            "exec \"$REAL\" \"$@\" --format=plain",
            ErrorCode::CaptureIncomplete,
            "does not begin as a pg_dump archive",
        ),
        ("exec \"$REAL\" \"$@\" --compress=1", ErrorCode::CaptureIncomplete, "is compressed"),
    ] {
        let error = error_of_lie(&cluster, body).await;
        assert_eq!(error.code(), code, "{body}");
        assert!(causes(&error).contains(said), "{body}: {}", causes(&error));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_of_another_moment_commits_nothing() {
    let cluster = cluster_with("CREATE TABLE t AS SELECT generate_series(1, 10) AS a").await;
    let psql = cluster.tools().join("psql");
    let body = format!(
        "'{}' -q -h '{}' -p {} -U postgres -d shop -c 'INSERT INTO t VALUES (11)'\n\
         for a do shift; case \"$a\" in --snapshot=*) ;; *) set -- \"$@\" \"$a\";; esac; done\n\
         exec \"$REAL\" \"$@\"",
        psql.display(),
        cluster.socket_folder().display(),
        cluster.port()
    );
    let error = error_of_lie(&cluster, &body).await;
    assert_eq!(error.code(), ErrorCode::CaptureInconsistent);
    assert_eq!(error.to_string(), "table public.t of database shop has 10 rows, its dump 11");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_fails_after_all_its_output_commits_nothing() {
    let cluster = cluster_with(LARGE).await;
    let error =
        error_of_lie(&cluster, "\"$REAL\" \"$@\"; echo 'pg_dump: error: disk on fire' >&2; exit 1").await;
    assert_eq!(error.code(), ErrorCode::ToolFailed);
    assert!(causes(&error).contains("exit status 1: pg_dump: error: disk on fire"), "{}", causes(&error));
    let error = error_of_lie(&cluster, "\"$REAL\" \"$@\"; kill -9 $$").await;
    assert_eq!(error.code(), ErrorCode::CaptureIncomplete);
    assert!(causes(&error).contains("killed by signal 9"), "{}", causes(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn warnings_of_a_tool_are_logged() {
    let cluster = cluster_with("CREATE TABLE t (a int)").await;
    let tools =
        lying_pg_dump(&cluster, "echo 'pg_dump: warning: circular foreign keys' >&2; exec \"$REAL\" \"$@\"");
    let mut source = cluster.source(&["shop"]);
    source.tools = Some(tools.path().to_owned());
    let run = TestRun::new();
    capture_in(&source, &run).await.unwrap();
    assert!(
        run.log
            .text()
            .contains("warn pg_dump of database shop said: pg_dump: warning: circular foreign keys")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_roles_that_ends_early_commits_nothing() {
    let cluster = cluster_with("CREATE TABLE t (a int)").await;
    let script =
        "case \"$1\" in --version|-V) exec \"$REAL\" --version;; esac\n\"$REAL\" \"$@\" | head -c 300";
    let tools = tools_with(&cluster, "pg_dumpall", script);
    let mut source = cluster.source(&["shop"]);
    source.tools = Some(tools.path().to_owned());
    assert_eq!(capture(&source).await.unwrap_err().code(), ErrorCode::CaptureIncomplete);
}

/// Opens a capture of `shop` and reads the first megabyte of its dump.
async fn begun(
    cluster: &PostgresCluster,
    run: &TestRun,
) -> (Box<dyn Capture>, Box<dyn std::io::Read + Send>) {
    let engine = PostgresEngine::new(cluster.source(&["shop"]));
    let mut capture = engine.open_capture(&run.context).await.unwrap();
    tokio::task::spawn_blocking(move || {
        capture.next_entry().unwrap().unwrap();
        let entry = capture.next_entry().unwrap().unwrap();
        let Content::Stream(mut stream) = entry.content else { panic!("a dump is a stream") };
        stream.read_exact(&mut vec![0; 1 << 20]).unwrap();
        (capture, stream)
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_in_the_middle_commits_nothing() {
    let mut cluster = cluster_with(LARGE).await;
    let run = TestRun::new();
    let (capture, mut stream) = begun(&cluster, &run).await;
    cluster.stop_immediately();
    let (error, capture) = tokio::task::spawn_blocking(move || {
        let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
        (error.downcast::<EngineError>().unwrap(), capture)
    })
    .await
    .unwrap();
    assert_eq!(error.code(), ErrorCode::CaptureIncomplete, "{}", causes(&error));
    let error = capture.finish(StoredSummary::default()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::CaptureIncomplete);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_before_the_dump_commits_nothing() {
    let mut cluster = cluster_with(LARGE).await;
    let run = TestRun::new();
    let engine = PostgresEngine::new(cluster.source(&["shop"]));
    let capture = engine.open_capture(&run.context).await.unwrap();
    cluster.stop_immediately();
    let error = finish(capture).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::CaptureIncomplete, "{}", causes(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_ended_commits_nothing() {
    let cluster = cluster_with(LARGE).await;
    let run = TestRun::new();
    let (capture, mut stream) = begun(&cluster, &run).await;
    let ended = cluster
        .query("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY %'")
        .await;
    assert_eq!(ended, ["t"]);
    let error =
        tokio::task::spawn_blocking(move || stream.read_to_end(&mut Vec::new()).unwrap_err()).await.unwrap();
    let error = error.downcast::<EngineError>().unwrap();
    assert_eq!(error.code(), ErrorCode::CaptureIncomplete, "{}", causes(&error));
    drop(capture);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_not_read_to_its_end_does_not_count() {
    let cluster = cluster_with(LARGE).await;
    let run = TestRun::new();
    let (mut capture, stream) = begun(&cluster, &run).await;
    drop(stream);
    assert_eq!(capture.next_entry().err().unwrap().code(), ErrorCode::CaptureIncomplete);
    let error = capture.finish(StoredSummary::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "the dump of database shop was not read to its end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_pipeline_stored_must_be_what_was_given() {
    let cluster = cluster_with("CREATE TABLE t (a int)").await;
    let run = TestRun::new();
    let engine = PostgresEngine::new(cluster.source(&["shop"]));
    let mut capture = engine.open_capture(&run.context).await.unwrap();
    let capture = tokio::task::spawn_blocking(move || {
        while let Some(entry) = capture.next_entry().unwrap() {
            if let Content::Stream(mut stream) = entry.content {
                stream.read_to_end(&mut Vec::new()).unwrap();
            }
        }
        capture
    })
    .await
    .unwrap();
    let error = capture.finish(StoredSummary::default()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::CaptureIncomplete);
    assert!(error.to_string().ends_with("bytes of databases/shop.dump were given, 0 were stored"), "{error}");
}

/// Processes of this machine whose arguments name the cluster's folder, except the server's own.
fn clients_of(cluster: &PostgresCluster) -> usize {
    let folder = cluster.socket_folder().display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let of_cluster = processes.filter(|entry| {
        let arguments = std::fs::read(Path::new(&entry.path()).join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        arguments.contains(&folder) && arguments.contains("pg_dump")
    });
    of_cluster.count()
}

async fn server_sessions(cluster: &PostgresCluster) -> String {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop'";
    cluster.query("postgres", sql).await.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn giving_a_capture_up_ends_its_tool_and_its_sessions() {
    let cluster = cluster_with(LARGE).await;
    let run = TestRun::new();
    let (capture, stream) = begun(&cluster, &run).await;
    assert_eq!(clients_of(&cluster), 1);
    drop(stream);
    drop(capture);
    until("pg_dump is gone", async || clients_of(&cluster) == 0).await;
    until("no session is left", async || server_sessions(&cluster).await == "0").await;
    assert_eq!(run.scratch_files(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_ends_the_stream_with_its_own_code() {
    let cluster = cluster_with(LARGE).await;
    let run = TestRun::new();
    let (capture, mut stream) = begun(&cluster, &run).await;
    run.context.cancel.cancel();
    let error =
        tokio::task::spawn_blocking(move || stream.read_to_end(&mut Vec::new()).unwrap_err()).await.unwrap();
    assert_eq!(error.downcast::<EngineError>().unwrap().code(), ErrorCode::RunCancelled);
    drop(capture);
    until("no session is left", async || server_sessions(&cluster).await == "0").await;
    let engine = PostgresEngine::new(cluster.source(&["shop"]));
    assert_eq!(engine.open_capture(&run.context).await.err().unwrap().code(), ErrorCode::RunCancelled);
}
