//! Introduces engines to the repository: entries of a capture become entries of a snapshot. Neither knows the other.

use std::sync::Arc;
use std::time::Duration;

use holdfast_engines::file_gate::{FILE_GATE, FileId};
use holdfast_engines::{
    Capture, Content, EngineError, Entry, FileTime, FileType, Metadata, RunLog as _, StoredSummary,
};
use holdfast_model::manifest::{MANIFEST_PATH, Manifest, UnreadableItem};
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::RepositoryError;
use holdfast_repository::id::BlobId;
use holdfast_repository::tree::{self, NodeMetadata, NodeType};
use holdfast_repository::write::{
    FileGate, FileIdentity, FilePass, OwnFile, ReadObserver, SnapshotWriter, WhyRead, WriteContent,
    WriteCounters, WriteEntry, Written,
};
use holdfast_runtime::task_group::TaskFailed;
use holdfast_runtime::{Clock, OnEnd, TaskGroup};

use crate::counters::Counters;
use crate::data_plane;
use crate::run_log::RunLogger;

/// How often the writer's counters are copied into those of the run.
const COPY_INTERVAL: Duration = Duration::from_millis(500);

/// A capture whose every entry has been read.
pub struct Fed {
    /// The capture, to be finished.
    pub capture: Box<dyn Capture>,
    /// The writer, to be finished.
    pub writer: SnapshotWriter,
    /// What was read.
    pub written: Written,
}

/// Reads every entry of a capture into a writer, on a thread that may block.
///
/// # Errors
/// The first of either side. Of a stream that broke the engine's own error, where it gave one.
pub async fn feed(
    mut capture: Box<dyn Capture>,
    mut writer: SnapshotWriter,
    tasks: &TaskGroup,
) -> Result<Fed, Failure> {
    let fed = tasks.spawn_blocking("pipeline", OnEnd::Isolated, move || {
        while let Some(entry) = capture.next_entry()? {
            writer.add(write_entry(entry)).map_err(|error| failure_of(&error))?;
        }
        let written = writer.settle().map_err(|error| failure_of(&error))?;
        Ok(Fed { capture, writer, written })
    });
    fed.join().await.map_err(|error| defect(&error))?
}

/// Adds the manifest, and waits until everything of the snapshot's tree is durable. Returns its root.
///
/// # Errors
/// Those of the writer and of the controller.
pub async fn store(
    writer: SnapshotWriter,
    manifest: &Manifest,
    tasks: &TaskGroup,
) -> Result<(BlobId, Written), Failure> {
    let name = MANIFEST_PATH.rsplit('/').next().unwrap_or(MANIFEST_PATH).to_owned();
    let mut bytes = serde_json::to_vec_pretty(manifest).map_err(|error| {
        Failure::new(ErrorCode::Internal, "the manifest cannot be written").because(error.to_string())
    })?;
    bytes.push(b'\n');
    let time = tree::FileTime {
        seconds: manifest.captured_at.as_second(),
        nanoseconds: u32::try_from(manifest.captured_at.subsec_nanosecond()).unwrap_or(0),
    };
    let stored = tasks.spawn_blocking("pipeline", OnEnd::Isolated, move || {
        writer.finish(vec![OwnFile { name, bytes }], time).map_err(|error| failure_of(&error))
    });
    stored.join().await.map_err(|error| defect(&error))?
}

/// What the engine is told of what was read, so that it can compare.
pub fn stored_summary(written: &Written) -> StoredSummary {
    let unreadable = written.unreadable.iter().map(|file| UnreadableItem {
        path: String::from_utf8_lossy(&file.path).into_owned(),
        reason: file.reason.clone(),
    });
    StoredSummary {
        files: written.totals.files,
        bytes: written.totals.bytes,
        streams: written.streams.clone(),
        unreadable: unreadable.collect(),
        unreadable_count: written.totals.unreadable,
    }
}

/// A task that panicked or was aborted, as the failure of its run.
pub fn defect(error: &TaskFailed) -> Failure {
    match error {
        TaskFailed::Aborted { .. } => Failure::new(ErrorCode::AgentDraining, "the agent is stopping"),
        TaskFailed::Panicked { .. } => {
            Failure::new(ErrorCode::Internal, "the run ended by a defect").because(error.to_string())
        }
    }
}

/// The failure behind an error of the writer: that of the engine whose stream broke, that of the controller, or its own.
fn failure_of(error: &RepositoryError) -> Failure {
    if let RepositoryError::StreamBroken { source, .. } = error
        && let Some(engine) = source.get_ref().and_then(|inner| inner.downcast_ref::<EngineError>())
    {
        return Failure::from_error(engine.code(), engine);
    }
    data_plane::failure_of(error)
}

fn write_entry(entry: Entry) -> WriteEntry {
    let content = match entry.content {
        Content::None => WriteContent::None,
        Content::File(path) => WriteContent::File(path),
        Content::Pages { path, page_bytes } => WriteContent::Pages { path, page_bytes },
        Content::PageStream { reader, page_bytes } => WriteContent::PageStream { reader, page_bytes },
        Content::Stream(reader) => WriteContent::Stream(reader),
    };
    WriteEntry { path: entry.path, metadata: node_metadata(entry.metadata), content }
}

fn node_metadata(metadata: Metadata) -> NodeMetadata {
    let node_type = match metadata.file_type {
        FileType::File => NodeType::File,
        FileType::Directory => NodeType::Directory,
        FileType::Symlink => NodeType::Symlink,
        FileType::BlockDevice => NodeType::BlockDevice,
        FileType::CharDevice => NodeType::CharDevice,
        FileType::Fifo => NodeType::Fifo,
        FileType::Socket => NodeType::Socket,
    };
    NodeMetadata {
        node_type,
        mode: metadata.mode,
        mtime: file_time(metadata.mtime),
        atime: file_time(metadata.atime),
        ctime: file_time(metadata.ctime),
        uid: metadata.uid,
        gid: metadata.gid,
        user: metadata.user,
        group: metadata.group,
        inode: metadata.inode,
        device_id: metadata.device_id,
        size: metadata.size,
        links: metadata.links,
        link_target: metadata.link_target,
        xattrs: metadata.xattrs,
        device: metadata.device,
    }
}

fn file_time(time: FileTime) -> tree::FileTime {
    tree::FileTime { seconds: time.seconds, nanoseconds: time.nanoseconds }
}

/// Files of sources, opened so that no lock of SQLite in this process is broken.
#[derive(Debug, Clone, Copy)]
pub struct SourceFiles;

impl FileGate for SourceFiles {
    fn pass(&self, file: FileIdentity) -> Result<FilePass, String> {
        let file = FileId { device_id: file.device_id, inode: file.inode };
        match FILE_GATE.read(file) {
            Ok(pass) => Ok(Box::new(pass)),
            Err(held) => Err(held.to_string()),
        }
    }
}

/// Writes the files that are read into the log of a run, at level debug.
pub struct ReadLog(pub RunLogger);

impl ReadObserver for ReadLog {
    fn reads(&self, path: &[u8], why: WhyRead) {
        let path = String::from_utf8_lossy(path);
        self.0.debug(format_args!("reads /{}: {why}", path.escape_debug()));
    }
}

/// Carries the writer's counters over into those of a run.
#[derive(Debug, Clone)]
pub struct CounterLink {
    from: Arc<WriteCounters>,
}

impl CounterLink {
    /// Carries over from these.
    pub fn new(from: Arc<WriteCounters>) -> Self {
        Self { from }
    }

    /// Copies what was counted so far.
    pub fn copy_to(&self, to: &Counters) {
        let totals = self.from.totals();
        to.bytes_done.set(totals.bytes);
        to.bytes_read.set(totals.bytes_read);
        to.files_done.set(totals.files);
        to.files_unchanged.set(totals.files_unchanged);
        to.blobs_new.set(totals.data_blobs_new + totals.tree_blobs_new);
        to.bytes_new.set(totals.bytes_new);
        to.unreadable.set(totals.unreadable);
    }

    /// Copies again and again while something is being done.
    pub async fn follow<T>(&self, to: &Counters, clock: &dyn Clock, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            let tick = clock.sleep(COPY_INTERVAL);
            tokio::select! {
                done = &mut work => {
                    self.copy_to(to);
                    return done;
                }
                () = tick => self.copy_to(to),
            }
        }
    }
}
