//! Measures captures without a repository: `measure files FOLDER` or `measure sqlite DATABASE`, three rounds each.
//!
//! Build it with `--release`, and take the CPU time from `time`.

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use holdfast_engines::files::FilesEngine;
use holdfast_engines::sqlite::SqliteEngine;
use holdfast_engines::{Content, Engine, EngineContext, EngineError, FileType, RunLog, StoredSummary};
use holdfast_host::secrets::LocalSecretResolver;
use holdfast_model::manifest::Manifest;
use holdfast_model::source::{FilesConfig, SqliteConfig};
use holdfast_runtime::SystemClock;
use tokio_util::sync::CancellationToken;

struct Stderr;

#[expect(clippy::print_stderr, reason = "an example speaks to the person who runs it")]
impl RunLog for Stderr {
    fn debug(&self, line: std::fmt::Arguments<'_>) {
        eprintln!("debug: {line}");
    }

    fn info(&self, line: &str) {
        eprintln!("info: {line}");
    }

    fn warn(&self, line: &str) {
        eprintln!("warn: {line}");
    }
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example speaks to the person who runs it")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (kind, path) = (arguments.next(), arguments.next().map(PathBuf::from));
    let engine: Arc<dyn Engine> = match (kind.as_deref().and_then(|kind| kind.to_str()), path) {
        (Some("files"), Some(path)) => Arc::new(FilesEngine::new(FilesConfig {
            paths: vec![path],
            exclude: Vec::new(),
            include: Vec::new(),
            one_file_system: false,
        })),
        (Some("sqlite"), Some(path)) => Arc::new(SqliteEngine::new(SqliteConfig { path })),
        _ => return Err("usage: measure files FOLDER | measure sqlite DATABASE".into()),
    };
    for _ in 0..3 {
        let scratch = tempfile::tempdir()?;
        let context = EngineContext {
            secrets: Arc::new(LocalSecretResolver::with_environment([])),
            scratch: scratch.path().to_owned(),
            cancel: CancellationToken::new(),
            log: Arc::new(Stderr),
            clock: SystemClock::shared(),
        };
        let started = Instant::now();
        let (entries, manifest) = take(engine.as_ref(), &context).await?;
        let seconds = started.elapsed().as_secs_f64();
        println!("{entries} entries, {} bytes in {seconds:.3} s", manifest.logical_bytes);
    }
    Ok(())
}

/// Reads streams and looks at nothing else, as a pipeline does that finds every file unchanged.
async fn take(engine: &dyn Engine, context: &EngineContext) -> Result<(u64, Manifest), EngineError> {
    let mut capture = engine.open_capture(context).await?;
    let (mut entries, mut stored) = (0, StoredSummary::default());
    let mut buffer = vec![0; 1024 * 1024];
    while let Some(entry) = capture.next_entry()? {
        entries += 1;
        if entry.metadata.file_type == FileType::File {
            stored.files += 1;
            stored.bytes += entry.metadata.size;
        }
        if let Content::PageStream { mut reader, .. } | Content::Stream(mut reader) = entry.content {
            let mut bytes = 0;
            loop {
                match reader.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => bytes += count as u64,
                    Err(error) => {
                        let code = holdfast_model::ErrorCode::CaptureIncomplete;
                        return Err(EngineError::new(code, "the stream broke").caused_by(error));
                    }
                }
            }
            stored.streams.insert(entry.path, bytes);
        }
    }
    Ok((entries, capture.finish(stored).await?))
}
