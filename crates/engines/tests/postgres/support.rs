//! A pipeline and a repository in memory, and what every test of the engine needs.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use holdfast_engines::postgres::PostgresEngine;
use holdfast_engines::testing::postgres_cluster::PostgresCluster;
use holdfast_engines::{
    Capture, Content, Engine as _, EngineContext, EngineError, ExtractOrder, ExtractReport, FileType,
    RestoreOrder, RunLog, SnapshotContents, StoredSummary,
};
use holdfast_host::secrets::LocalSecretResolver;
use holdfast_model::ErrorCode;
use holdfast_model::manifest::Manifest;
use holdfast_model::restore::{CheckOutcome, Placement, RestoreReport};
use holdfast_model::source::PostgresConfig;
use holdfast_runtime::SystemClock;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Keeps what a run logs.
#[derive(Debug, Default)]
pub(crate) struct KeptLog {
    lines: Mutex<Vec<String>>,
}

impl KeptLog {
    pub(crate) fn text(&self) -> String {
        self.lines.lock().join("\n")
    }
}

impl RunLog for KeptLog {
    fn debug(&self, line: std::fmt::Arguments<'_>) {
        self.lines.lock().push(format!("debug {line}"));
    }

    fn info(&self, line: &str) {
        self.lines.lock().push(format!("info {line}"));
    }

    fn warn(&self, line: &str) {
        self.lines.lock().push(format!("warn {line}"));
    }
}

/// A run: its context and what must outlive it.
pub(crate) struct TestRun {
    pub(crate) context: EngineContext,
    pub(crate) log: Arc<KeptLog>,
    _scratch: TempDir,
}

impl TestRun {
    pub(crate) fn new() -> Self {
        Self::with_environment(&[])
    }

    pub(crate) fn with_environment(environment: &[(&str, &str)]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let log = Arc::new(KeptLog::default());
        let environment: Vec<_> =
            environment.iter().map(|&(name, value)| (name.into(), value.into())).collect();
        let context = EngineContext {
            secrets: Arc::new(LocalSecretResolver::with_environment(environment)),
            scratch: scratch.path().to_owned(),
            cancel: CancellationToken::new(),
            log: Arc::clone(&log) as Arc<dyn RunLog>,
            clock: SystemClock::shared(),
        };
        Self { context, log, _scratch: scratch }
    }

    /// How many files lie in the scratch folder.
    pub(crate) fn scratch_files(&self) -> usize {
        std::fs::read_dir(&self.context.scratch).unwrap().count()
    }
}

/// What a capture gave, kept in memory.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) manifest: Manifest,
}

/// Captures as the pipeline does: every entry in order, every stream to its end, then `finish`.
pub(crate) async fn capture(config: &PostgresConfig) -> Result<Snapshot, EngineError> {
    capture_in(config, &TestRun::new()).await
}

pub(crate) async fn capture_in(config: &PostgresConfig, run: &TestRun) -> Result<Snapshot, EngineError> {
    let capture = PostgresEngine::new(config.clone()).open_capture(&run.context).await?;
    finish(capture).await
}

pub(crate) async fn finish(capture: Box<dyn Capture>) -> Result<Snapshot, EngineError> {
    let (capture, files) = tokio::task::spawn_blocking(move || read_all(capture)).await.unwrap()?;
    let stored = StoredSummary {
        files: files.len() as u64,
        bytes: files.values().map(|bytes| bytes.len() as u64).sum(),
        streams: files.iter().map(|(path, bytes)| (path.clone().into_bytes(), bytes.len() as u64)).collect(),
        ..StoredSummary::default()
    };
    let manifest = capture.finish(stored).await?;
    Ok(Snapshot { files, manifest })
}

type Files = BTreeMap<String, Vec<u8>>;

fn read_all(mut capture: Box<dyn Capture>) -> Result<(Box<dyn Capture>, Files), EngineError> {
    let mut files = Files::new();
    let mut last: Option<String> = None;
    while let Some(entry) = capture.next_entry()? {
        let path = String::from_utf8(entry.path).unwrap();
        assert!(last.as_ref() < Some(&path), "{path} comes after {last:?}");
        match entry.content {
            Content::None => assert_eq!(entry.metadata.file_type, FileType::Directory),
            Content::Stream(mut stream) => {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).map_err(|error| {
                    error.downcast::<EngineError>().unwrap_or_else(|error| panic!("no engine error: {error}"))
                })?;
                files.insert(path.clone(), bytes);
            }
            _ => panic!("{path} is no stream"),
        }
        last = Some(path);
    }
    Ok((capture, files))
}

impl SnapshotContents for Snapshot {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn size(&self, path: &str) -> Result<u64, EngineError> {
        self.file(path).map(|bytes| bytes.len() as u64)
    }

    fn open(&self, path: &str) -> Result<Box<dyn Read + Send>, EngineError> {
        Ok(Box::new(std::io::Cursor::new(self.file(path)?.clone())))
    }

    fn extract(&self, _order: &ExtractOrder) -> Result<ExtractReport, EngineError> {
        panic!("this engine extracts nothing to disk")
    }
}

impl Snapshot {
    fn file(&self, path: &str) -> Result<&Vec<u8>, EngineError> {
        self.files
            .get(path)
            .ok_or_else(|| EngineError::new(ErrorCode::PathNotInSnapshot, format!("no file {path}")))
    }

    /// Rows of a table as the manifest says.
    pub(crate) fn rows(&self, database: &str, table: &str) -> Option<u64> {
        let database = self.manifest.databases.iter().find(|known| known.name == database)?;
        database.tables.get(table).map(|table| table.rows)
    }
}

pub(crate) fn order(placement: Placement, only: &[&str]) -> RestoreOrder {
    RestoreOrder {
        placement,
        only: only.iter().map(|&item| item.to_owned()).collect(),
        stamp: "20261121T120000Z".to_owned(),
        snapshot_short: "0123abcd".to_owned(),
        allowed_paths: Vec::new(),
    }
}

pub(crate) async fn restore(
    config: &PostgresConfig,
    snapshot: &Snapshot,
    placement: Placement,
    only: &[&str],
) -> Result<RestoreReport, EngineError> {
    let run = TestRun::new();
    let contents = Arc::new(snapshot.clone());
    let engine = PostgresEngine::new(config.clone());
    let report = engine.restore(&order(placement, only), contents, &run.context).await;
    assert_eq!(run.scratch_files(), 0, "a restore leaves no files");
    report
}

/// The checks that did not come out well, for a message.
pub(crate) fn doubts(report: &RestoreReport) -> Vec<String> {
    let doubtful = report.checks.iter().filter(|check| check.outcome != CheckOutcome::Ok);
    doubtful.map(|check| format!("{}: {}", check.name, check.detail)).collect()
}

/// A folder of tools that are those of the cluster, except one, which is this shell script. In the script `$REAL` is
/// the real tool; it must answer `--version` and `-V` itself.
pub(crate) fn tools_with(cluster: &PostgresCluster, name: &str, script: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for tool in ["pg_dump", "pg_dumpall", "pg_restore"] {
        let real = cluster.tools().join(tool);
        let script = if tool == name { script } else { "exec \"$REAL\" \"$@\"" };
        let text = format!("#!/bin/sh\nREAL='{}'\n{script}\n", real.display());
        write_script(&folder.path().join(tool), &text);
    }
    folder
}

/// The same, with a `pg_dump` that tells the truth about its version and then does this.
pub(crate) fn lying_pg_dump(cluster: &PostgresCluster, body: &str) -> TempDir {
    let script = format!("case \"$1\" in --version|-V) exec \"$REAL\" --version;; esac\n{body}");
    tools_with(cluster, "pg_dump", &script)
}

fn write_script(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Waits until a condition holds.
pub(crate) async fn until<F, Fut>(what: &str, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let begin = std::time::Instant::now();
    while !condition().await {
        assert!(begin.elapsed().as_secs() < 120, "waited too long: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
