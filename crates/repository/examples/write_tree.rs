//! Backs up a folder into a repository on disk, with timing: the write path alone, without controller and agent.
//!
//! `write_tree FOLDER REPOSITORY [--threads N] [--level N] [--no-verify] [--parent] [--packs-in-flight N]`
//!
//! The repository is created when it is not there. Its password is in `RESTIC_PASSWORD`, so that restic opens it too.

#![expect(clippy::print_stdout, reason = "it is a program that prints")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use holdfast_model::secret::Secret;
use holdfast_repository::chunker::Chunker;
use holdfast_repository::key_slot::{KeyOrigin, ScryptCost};
use holdfast_repository::reader::{BlobReader, LocalSource};
use holdfast_repository::sink::LocalSink;
use holdfast_repository::snapshot::SnapshotObject;
use holdfast_repository::storage::ObjectStore;
use holdfast_repository::storage::fs::FsStore;
use holdfast_repository::tree::FileTime;
use holdfast_repository::write::{OwnFile, Parent, ParentTrees, SnapshotWriter, WriteOptions, WriterContext};
use holdfast_repository::{CreateOptions, Repository, RepositoryError};

#[path = "../tests/support/walk.rs"]
mod walk;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| arguments.iter().any(|argument| argument == name);
    let number = |name: &str| {
        let position = arguments.iter().position(|argument| argument == name)?;
        arguments.get(position + 1)?.parse::<usize>().ok()
    };
    let [folder, place, ..] = arguments.as_slice() else {
        return Err(
            "usage: write_tree FOLDER REPOSITORY [--threads N] [--level N] [--no-verify] [--parent]".into()
        );
    };
    let mut options = WriteOptions { verify_encoding: !flag("--no-verify"), ..WriteOptions::default() };
    options.threads = number("--threads").unwrap_or(options.threads);
    options.packs_in_flight = number("--packs-in-flight").unwrap_or(options.packs_in_flight);
    if let Some(level) = number("--level") {
        options.level = i32::try_from(level)?;
    }
    let password = Secret::new(std::env::var("RESTIC_PASSWORD")?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let repository = runtime.block_on(open_or_create(place, &password))?;

    let began = Instant::now();
    let sink = runtime.block_on(LocalSink::open(repository.clone()))?;
    let parent = if flag("--parent") { runtime.block_on(newest(&repository))? } else { None };
    let context = WriterContext {
        runtime: runtime.handle().clone(),
        sealer: Arc::clone(repository.sealer()),
        chunker: Chunker::of(repository.config()),
        sink: Arc::clone(&sink) as _,
        counters: Arc::default(),
        cancel: tokio_util::sync::CancellationToken::new(),
        gate: None,
        tree_cache: None,
        read_observer: None,
    };
    let opened = began.elapsed();
    let parent = match parent {
        None => None,
        Some(root) => {
            let index = Arc::new(runtime.block_on(repository.load_index())?);
            let source = Arc::new(LocalSource::new(Arc::clone(repository.store()), index));
            let reader = BlobReader::new(source, Arc::clone(repository.sealer()));
            let trees = Arc::new(ParentTrees::new(reader, runtime.handle().clone()));
            Some(Parent { root, trees })
        }
    };
    let mut writer = SnapshotWriter::new(context, options, parent)?;
    let mut failed = None;
    walk::walk(Path::new(folder), |entry| {
        if failed.is_none() {
            failed = writer.add(entry).err();
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let walked = began.elapsed();
    writer.settle()?;
    let settled = began.elapsed();
    let own = OwnFile { name: "manifest.json".to_owned(), bytes: b"{}\n".to_vec() };
    let (tree, written) = writer.finish(vec![own], FileTime::default())?;
    let snapshot = SnapshotObject {
        time: "2026-11-21T12:00:00Z".to_owned(),
        parent: None,
        tree,
        paths: vec![folder.clone()],
        hostname: "example".to_owned(),
        username: String::new(),
        uid: 0,
        gid: 0,
        tags: vec!["holdfast".to_owned()],
        original: None,
        program_version: String::new(),
        summary: None,
    };
    runtime.block_on(async {
        sink.save_index().await?;
        repository.save_snapshot(&snapshot).await
    })?;
    println!(
        "index {:.2} s, walk {:.2} s, settle {:.2} s, total {:.2} s",
        opened.as_secs_f64(),
        walked.as_secs_f64(),
        settled.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    println!("{:#?}", written.totals);
    Ok(())
}

async fn open_or_create(place: &str, password: &Secret) -> Result<Repository, RepositoryError> {
    let store: Arc<dyn ObjectStore> = Arc::new(FsStore::create(place).await?);
    match Repository::open(Arc::clone(&store), password).await {
        Err(RepositoryError::Missing) => {
            let origin = KeyOrigin {
                created: "2026-11-21T12:00:00Z".parse().expect("it is a time"),
                hostname: "example".to_owned(),
                username: "example".to_owned(),
            };
            Repository::create(store, password, CreateOptions { cost: ScryptCost::default(), origin }).await
        }
        other => other,
    }
}

async fn newest(repository: &Repository) -> Result<Option<holdfast_repository::id::BlobId>, RepositoryError> {
    let mut newest: Option<SnapshotObject> = None;
    for id in repository.snapshot_ids().await? {
        let snapshot = repository.snapshot(id).await?;
        if newest.as_ref().is_none_or(|other| other.time <= snapshot.time) {
            newest = Some(snapshot);
        }
    }
    Ok(newest.map(|snapshot| snapshot.tree))
}
