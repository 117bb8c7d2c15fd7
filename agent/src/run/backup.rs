//! A backup: hook, capture, hook, commit.

use std::sync::Arc;

use holdfast_engines::RunLog as _;
use holdfast_model::Failure;
use holdfast_model::ids::SourceName;
use holdfast_model::manifest::Manifest;
use holdfast_model::run::SnapshotType;
use holdfast_model::source::EngineConfig;
use holdfast_model::text::{counted, size};
use holdfast_proto::convert::document;
use holdfast_proto::v1;
use holdfast_repository::chunker::Chunker;
use holdfast_repository::id::BlobId;
use holdfast_repository::reader::BlobReader;
use holdfast_repository::write::{
    Parent, ParentTrees, SnapshotWriter, WriteCounters, WriteOptions, WriterContext, Written,
};
use tokio::runtime::Handle;

use super::{Job, OpenedRepository};
use crate::counters::Counters;
use crate::data_plane::{self, DataPlane, GrpcSink, GrpcSource};
use crate::executor::Outcome;
use crate::{host, pipeline};

/// Unreadable items that the log names; the manifest names more.
const UNREADABLE_LOGGED_MAX: usize = 100;

pub(super) async fn run(
    job: &Job<'_>,
    source: &SourceName,
    snapshot_type: SnapshotType,
) -> Result<Outcome, Failure> {
    let context = job.context;
    let hooks = job.hooks(source)?;
    context.enter("opening the repository");
    let plane = job.data_plane();
    let repository = OpenedRepository::read(plane.open_repository().await?)?;
    let writer = writer(job, &plane, &repository, source, snapshot_type).await?;

    // What the hook stopped is started again as soon as the view was read, before the rest is sent.
    let captured = job.between_hooks(&hooks, capture(job, writer)).await?;

    warn_of_unreadable(job, &captured.manifest);
    context.enter("uploading");
    let (root, written) = pipeline::store(captured.writer, &captured.manifest, &context.tasks).await?;
    captured.counters.copy_to(&context.counters);
    context.enter("committing");
    let snapshot =
        plane.commit_snapshot(commit_request(job, source, root, &written, &captured.manifest)).await?;
    context.log.info(&format!(
        "snapshot {} holds {} with {}, {} of which were read; {} were added",
        snapshot.short(),
        counted(written.totals.files, "file"),
        size(written.totals.bytes),
        size(written.totals.bytes_read),
        size(written.totals.bytes_stored),
    ));
    Ok(Outcome::default())
}

struct Captured {
    writer: SnapshotWriter,
    manifest: Manifest,
    counters: pipeline::CounterLink,
}

async fn capture(job: &Job<'_>, writer: (SnapshotWriter, Arc<WriteCounters>)) -> Result<Captured, Failure> {
    let context = job.context;
    let (writer, write_counters) = writer;
    let counters = pipeline::CounterLink::new(write_counters);
    context.enter("connecting");
    let engine_context = job.engine_context();
    let capture = job.engine().open_capture(&engine_context).await?;
    context.enter("capturing");
    let feeding = pipeline::feed(capture, writer, &context.tasks);
    let fed = counters.follow(&context.counters, &*job.worker.clock, feeding).await?;
    context.enter("checking");
    let manifest = fed.capture.finish(pipeline::stored_summary(&fed.written)).await?;
    Ok(Captured { writer: fed.writer, manifest, counters })
}

async fn writer(
    job: &Job<'_>,
    plane: &DataPlane,
    repository: &OpenedRepository,
    source: &SourceName,
    snapshot_type: SnapshotType,
) -> Result<(SnapshotWriter, Arc<WriteCounters>), Failure> {
    let counters = Arc::new(WriteCounters::default());
    let runtime = Handle::current();
    let parent = repository.tree.filter(|_| snapshot_type != SnapshotType::Full).map(|root| {
        // What is read of the parent is no progress of this run.
        let source = GrpcSource::new(plane, Arc::new(Counters::default()));
        let reader = BlobReader::new(Arc::new(source), repository.sealer.clone());
        Parent { root, trees: Arc::new(ParentTrees::new(reader, runtime.clone())) }
    });
    // Of trees of files; those of databases have a handful of entries.
    let has_tree = matches!(job.assignment.source.engine, EngineConfig::Files(_));
    let tree_cache = has_tree.then(|| job.worker.tree_caches.path(&repository.config.id, source));
    let context = WriterContext {
        runtime,
        sealer: repository.sealer.clone(),
        chunker: Chunker::of(&repository.config),
        sink: Arc::new(GrpcSink::new(plane, Arc::clone(&job.context.counters))),
        counters: Arc::clone(&counters),
        cancel: job.context.cancel.clone(),
        gate: Some(Arc::new(pipeline::SourceFiles)),
        tree_cache,
        read_observer: Some(Arc::new(pipeline::ReadLog(job.context.log.clone()))),
    };
    let defaults = WriteOptions::default();
    let options = WriteOptions {
        level: repository.compression_level,
        threads: job.config.work_threads.unwrap_or(defaults.threads),
        verify_encoding: job.config.verify_encoding,
        ..defaults
    };
    if !options.verify_encoding {
        job.context.log.info(
            "what is written is not compared with what was read: `verify_encoding` is off on this agent",
        );
    }
    // Loads the root of the parent, which blocks.
    let made = job.context.tasks.spawn_blocking("writer", holdfast_runtime::OnEnd::Isolated, move || {
        SnapshotWriter::new(context, options, parent)
    });
    let writer = made.join().await.map_err(|error| pipeline::defect(&error))?;
    Ok((writer.map_err(|error| data_plane::failure_of(&error))?, counters))
}

fn warn_of_unreadable(job: &Job<'_>, manifest: &Manifest) {
    for item in manifest.unreadable.iter().take(UNREADABLE_LOGGED_MAX) {
        job.context.log.warn(&format!("{} could not be read: {}", item.path, item.reason));
    }
    let named = manifest.unreadable.len().min(UNREADABLE_LOGGED_MAX) as u64;
    let more = manifest.unreadable_count.saturating_sub(named);
    if more > 0 {
        job.context.log.warn(&format!("{} could not be read", counted(more, "more item")));
    }
}

fn commit_request(
    job: &Job<'_>,
    source: &SourceName,
    root: BlobId,
    written: &Written,
    manifest: &Manifest,
) -> v1::CommitSnapshotRequest {
    let totals = &written.totals;
    v1::CommitSnapshotRequest {
        run: None,
        tree_id: root.as_bytes().to_vec(),
        hostname: host::hostname(),
        paths: paths(&job.assignment.source.engine, source),
        manifest_json: document(manifest),
        logical_bytes: totals.bytes,
        files: totals.files,
        directories: totals.folders,
        bytes_new: totals.bytes_new,
        bytes_stored: totals.bytes_stored,
        files_unchanged: totals.files_unchanged,
        blobs_new: totals.data_blobs_new + totals.tree_blobs_new,
        unreadable: manifest.unreadable_count.max(totals.unreadable),
    }
}

/// What the snapshot object names as its paths: the same for every snapshot of a source, so that they form a group.
fn paths(engine: &EngineConfig, source: &SourceName) -> Vec<String> {
    match engine {
        EngineConfig::Files(files) => files.paths.iter().map(|path| path.display().to_string()).collect(),
        EngineConfig::Sqlite(sqlite) => vec![sqlite.path.display().to_string()],
        EngineConfig::Postgres(_) => vec![format!("/{source}")],
    }
}
