//! Restores a snapshot of a local repository, and checks the repository, with timings.
//!
//! ```text
//! RESTIC_PASSWORD=… extract_tree REPOSITORY restore SNAPSHOT|latest TARGET [--delta] [--owner] [--no-sync]
//! RESTIC_PASSWORD=… extract_tree REPOSITORY check [--read-data]
//! ```
#![expect(clippy::print_stdout, reason = "an example says what it found")]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use holdfast_model::secret::Secret;
use holdfast_repository::Repository;
use holdfast_repository::check::{CheckOptions, CheckReport};
use holdfast_repository::extract::{ExtractOptions, ExtractProgress, extract_tree};
use holdfast_repository::id::SnapshotId;
use holdfast_repository::index::MemoryIndex;
use holdfast_repository::reader::{BlobReader, LocalSource};
use holdfast_repository::storage::fs::FsStore;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

type AnyError = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments).await {
        Ok(code) => code,
        Err(error) => {
            let mut cause: Option<&dyn std::error::Error> = Some(error.as_ref());
            while let Some(error) = cause {
                println!("error: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &[String]) -> Result<ExitCode, AnyError> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (flags, words): (Vec<&str>, Vec<&str>) = words.into_iter().partition(|word| word.starts_with("--"));
    let [repository, verb, rest @ ..] = words.as_slice() else {
        return Err("usage: extract_tree REPOSITORY restore SNAPSHOT TARGET | REPOSITORY check".into());
    };
    let started = Instant::now();
    let password = Secret::new(std::env::var("RESTIC_PASSWORD")?);
    let repository = Repository::open(Arc::new(FsStore::new(Path::new(repository))), &password).await?;
    println!("opened in {:.3} s", started.elapsed().as_secs_f64());
    match (*verb, rest) {
        ("restore", [snapshot, target]) => restore(&repository, snapshot, target, &flags).await,
        ("check", []) => check(&repository, &flags).await,
        _ => Err("restore takes a snapshot and a target, check takes nothing".into()),
    }
}

async fn restore(
    repository: &Repository,
    snapshot: &str,
    target: &str,
    flags: &[&str],
) -> Result<ExitCode, AnyError> {
    let started = Instant::now();
    let id = find(repository, snapshot).await?;
    let tree = repository.snapshot(id).await?.tree;
    let index = Arc::new(repository.load_index().await?);
    println!("loaded the index of {} blobs in {:.3} s", index.len(), started.elapsed().as_secs_f64());
    let source = LocalSource::new(Arc::clone(repository.store()), index);
    let reader = BlobReader::new(Arc::new(source), Arc::clone(repository.sealer()));
    let options = ExtractOptions {
        delta: flags.contains(&"--delta").then_some(holdfast_repository::extract::Delta::Remove),
        owner: flags.contains(&"--owner"),
        sync: !flags.contains(&"--no-sync"),
        ..ExtractOptions::default()
    };
    let progress = Arc::new(ExtractProgress::default());
    let token = CancellationToken::new();
    let report = extract_tree(&reader, tree, Path::new(target), &options, progress, &token).await?;
    println!("{report:#?}");
    println!("restored in {:.3} s", started.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

async fn find(repository: &Repository, text: &str) -> Result<SnapshotId, AnyError> {
    if text != "latest" {
        return Ok(repository.find_snapshot(text).await?);
    }
    let mut newest = None;
    for id in repository.snapshot_ids().await? {
        let time: jiff::Timestamp = repository.snapshot(id).await?.time.parse()?;
        newest = newest.max(Some((time, id)));
    }
    newest.map(|(_, id)| id).ok_or_else(|| "the repository has no snapshot".into())
}

async fn check(repository: &Repository, flags: &[&str]) -> Result<ExitCode, AnyError> {
    let started = Instant::now();
    let options = CheckOptions { read_data: flags.contains(&"--read-data"), ..CheckOptions::default() };
    let report = holdfast_repository::check::check(
        repository,
        Arc::new(RwLock::new(MemoryIndex::new())),
        options,
        Arc::default(),
        &CancellationToken::new(),
    )
    .await?;
    for finding in &report.findings {
        println!("{finding}");
    }
    println!("{:#?}", CheckReport { findings: Vec::new(), ..report.clone() });
    println!("checked in {:.3} s", started.elapsed().as_secs_f64());
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
