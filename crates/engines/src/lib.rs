//! One driver per kind of source, behind one trait.
//!
//! An engine knows its database and nothing of repositories: it opens a [`Capture`] (one consistent view), yields
//! [`Entry`]s (named files with content), and says at the end whether the capture counts, with a manifest. It restores
//! from [`SnapshotContents`], which the agent implements over a repository.
//!
//! Readers are blocking (`std::io::Read`) because the pipeline pulls them on its own threads; everything that talks to
//! a server is async.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use holdfast_model::health::HealthReport;
use holdfast_model::manifest::{Manifest, UnreadableItem};
use holdfast_model::restore::{Placement, RestorePreview, RestoreReport, RestoredTarget};
use holdfast_runtime::SharedClock;
use tokio_util::sync::CancellationToken;

pub mod file_gate;
pub mod files;
mod path_target;
pub mod postgres;
pub mod sqlite;
#[cfg(test)]
mod test_support;
#[cfg(feature = "test-util")]
pub mod testing;

/// What goes wrong in an engine goes wrong on its host: one error, with a stable code, causes and what to try.
pub use holdfast_host::HostError as EngineError;
pub use holdfast_host::{SecretResolver, tool};

/// What an engine is given besides its order: how to resolve secrets, where to put scratch files, when to stop,
/// whom to tell, what time it is.
#[derive(Clone)]
pub struct EngineContext {
    /// Resolves secret references on this host.
    pub secrets: Arc<dyn SecretResolver>,
    /// A folder of this run alone, mode 0700, removed after it.
    pub scratch: PathBuf,
    /// Fires when the run is cancelled or the process drains; every wait honours it.
    pub cancel: CancellationToken,
    /// The log of the run.
    pub log: Arc<dyn RunLog>,
    /// The time of manifests.
    pub clock: SharedClock,
}

/// The log of one run, kept by the controller and shown by `holdfast run logs`.
pub trait RunLog: Send + Sync {
    /// How something is done; kept only while somebody wants to know. Cheap when nobody does.
    fn debug(&self, line: fmt::Arguments<'_>);
    /// Something worth knowing.
    fn info(&self, line: &str);
    /// Something that may need attention; counts as a warning of the run.
    fn warn(&self, line: &str);
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProbeReport {
    /// Version of the server, library or system.
    pub version: String,
    /// Size of what would be captured, in bytes, as far as the engine can tell cheaply.
    pub logical_bytes: u64,
    /// What would be captured: databases, paths.
    pub parts: Vec<String>,
    /// Tools that would be used, with their versions.
    pub tools: BTreeMap<String, String>,
    /// Each step that was tried, in order, such as `connect` → `PostgreSQL 15.18 at 127.0.0.1:5432`.
    pub steps: Vec<(String, String)>,
    /// What works but deserves attention.
    pub warnings: Vec<String>,
}

/// A driver for one kind of source.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Reaches the source as a backup would, and changes nothing.
    ///
    /// # Errors
    /// With the code of the first step that fails.
    async fn probe(&self, context: &EngineContext) -> Result<ProbeReport, EngineError>;

    /// Asks the source how it is: whether it answers, and where its log stands. Costs little: it is asked every minute. How
    /// long it took is for the caller to add.
    ///
    /// # Errors
    /// When it does not answer.
    async fn health(&self, context: &EngineContext) -> Result<HealthReport, EngineError>;

    /// The databases of the server that the source is on, whether it captures them or not; none where there is no server.
    ///
    /// # Errors
    /// When the server does not answer.
    async fn databases(&self, _context: &EngineContext) -> Result<Vec<String>, EngineError> {
        Ok(Vec::new())
    }

    /// Opens one consistent view of the source.
    ///
    /// # Errors
    /// When the source cannot be reached, the login is refused, a tool is missing or too old.
    async fn open_capture(&self, context: &EngineContext) -> Result<Box<dyn Capture>, EngineError>;

    /// Finds out what a restore would do. Touches nothing.
    ///
    /// # Errors
    /// When that cannot be found out; a check that fails is part of the preview, not an error.
    async fn preview_restore(
        &self,
        order: &RestoreOrder,
        manifest: &Manifest,
        context: &EngineContext,
    ) -> Result<RestorePreview, EngineError>;

    /// Restores beside whatever exists, checks against the manifest, and reports. With [`Placement::InPlace`] it still
    /// restores aside: the swap is [`Engine::promote`]. With [`Placement::InPlaceDelta`] it changes the live tree, and
    /// leaves it partly restored after an error.
    ///
    /// # Errors
    /// What was made so far is removed before an error is returned, or named in it where that fails.
    async fn restore(
        &self,
        order: &RestoreOrder,
        contents: Arc<dyn SnapshotContents>,
        context: &EngineContext,
    ) -> Result<RestoreReport, EngineError>;

    /// Swaps what a restore made into the place of the live data by rename, keeping the old under
    /// `NAME_before_STAMP` (returned in `kept`). Either all targets are swapped or, after an error, none.
    ///
    /// # Errors
    /// When a target is in use or gone.
    async fn promote(
        &self,
        targets: &[RestoredTarget],
        stamp: &str,
        context: &EngineContext,
    ) -> Result<Vec<RestoredTarget>, EngineError>;

    /// What tells the restored data of each target from any other, whatever its name is later: written down before a
    /// promotion, so that [`Engine::settle`] can find out what became of it.
    ///
    /// # Errors
    /// When a target is gone.
    async fn marks(
        &self,
        targets: &[RestoredTarget],
        context: &EngineContext,
    ) -> Result<Vec<String>, EngineError>;

    /// Brings a promotion to an end whose process died: everything is swapped after it, or nothing. Returns the targets
    /// as [`Engine::promote`] would have, when they are swapped. May be repeated.
    ///
    /// # Errors
    /// When the source cannot be reached, or holds what no promotion leaves behind.
    async fn settle(
        &self,
        targets: &[RestoredTarget],
        marks: &[String],
        stamp: &str,
        context: &EngineContext,
    ) -> Result<Option<Vec<RestoredTarget>>, EngineError>;

    /// Removes what a restore made (`restored`, when it was not promoted) or what a promotion kept (`kept`). Nothing
    /// else, and never what is live.
    ///
    /// # Errors
    /// When a target is in use.
    async fn discard(&self, targets: &[RestoredTarget], context: &EngineContext) -> Result<(), EngineError>;
}

/// One consistent view of a source, yielding what belongs to it.
///
/// Dropping it before [`Capture::finish`] gives the view up and kills what it started.
#[async_trait]
pub trait Capture: Send {
    /// The next entry, or `None` after the last.
    ///
    /// Entries come depth first: a folder before what is in it, siblings in the order of their raw bytes, and every
    /// folder on the way is yielded. Blocking: call it from a thread that may block.
    ///
    /// # Errors
    /// Ends the capture; nothing of it counts.
    fn next_entry(&mut self) -> Result<Option<Entry>, EngineError>;

    /// Checks the end conditions – exit status, end marker, counts – after every entry was read to its end, and returns
    /// the manifest. Only then does the capture count.
    ///
    /// # Errors
    /// `HF-2007` when anything ended early, `HF-2008` when counts disagree.
    async fn finish(self: Box<Self>, stored: StoredSummary) -> Result<Manifest, EngineError>;
}

/// What the pipeline read, told to [`Capture::finish`] so that both sides can compare.
#[derive(Debug, Clone, Default)]
pub struct StoredSummary {
    /// Regular files taken, streams included.
    pub files: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes read from each stream, page streams included, by its path.
    pub streams: BTreeMap<Vec<u8>, u64>,
    /// Files that could not be read, at most [`holdfast_model::manifest::UNREADABLE_NAMED_MAX`].
    pub unreadable: Vec<UnreadableItem>,
    /// How many there were.
    pub unreadable_count: u64,
}

/// One item of a capture.
pub struct Entry {
    /// Path in the snapshot's tree: components separated by `/`, raw bytes, no leading `/`, no `.` or `..`.
    pub path: Vec<u8>,
    /// What the file system, or the engine, says of it.
    pub metadata: Metadata,
    /// Its content.
    pub content: Content,
}

/// Where the content of an entry comes from.
pub enum Content {
    /// None: folders, symbolic links, devices, sockets, pipes.
    None,
    /// A regular file on this host. The pipeline opens it, and need not when size, mtime, ctime and inode are those of
    /// the last snapshot. It opens it without following a symbolic link and without waiting for a pipe
    /// (`O_NOFOLLOW | O_NONBLOCK`), under a pass of [`file_gate::FILE_GATE`], and takes it as unreadable when device and
    /// inode are not those of the metadata any more.
    File(PathBuf),
    /// A regular file of fixed pages, cut at multiples of the page size. Always read.
    Pages {
        /// The file.
        path: PathBuf,
        /// Size of a page in bytes, a power of two.
        page_bytes: u32,
    },
    /// The pages of a database file as a stream, cut at multiples of the page size like [`Content::Pages`]. Always read,
    /// to its end; its length is [`Metadata::size`], and [`Capture::finish`] compares. Counts among
    /// [`StoredSummary::streams`].
    PageStream {
        /// The pages in order.
        reader: Box<dyn Read + Send>,
        /// Size of a page in bytes, a power of two.
        page_bytes: u32,
    },
    /// A stream of unknown length. Always read, to its end.
    Stream(Box<dyn Read + Send>),
}

/// The type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

/// A point in time as file systems keep it: seconds since 1970 and nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileTime {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanoseconds: u32,
}

/// What the file system says of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Its type.
    pub file_type: FileType,
    /// Unix permission bits with setuid, setgid and sticky: `st_mode & 0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Name of the owner, when known.
    pub user: Option<Arc<str>>,
    /// Name of the group, when known.
    pub group: Option<Arc<str>>,
    /// Size of a regular file in bytes; 0 for a stream.
    pub size: u64,
    /// Last change of content.
    pub mtime: FileTime,
    /// Last change of the inode.
    pub ctime: FileTime,
    /// Last access; engines give `mtime` here, so that reading a tree does not change its snapshot.
    pub atime: FileTime,
    /// Inode number, 0 when there is none.
    pub inode: u64,
    /// Number of the device it lies on.
    pub device_id: u64,
    /// Hard links.
    pub links: u64,
    /// Target of a symbolic link, raw bytes.
    pub link_target: Option<Vec<u8>>,
    /// `st_rdev` of a device.
    pub device: u64,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The error for a delta restore of something that is no tree of files.
pub(crate) fn no_delta(what: &str) -> EngineError {
    EngineError::new(
        holdfast_model::ErrorCode::Unsupported,
        format!("{what} is restored whole: a delta restore is for trees of files"),
    )
}

/// What a restore is to do.
#[derive(Debug, Clone)]
pub struct RestoreOrder {
    /// Where it goes.
    pub placement: Placement,
    /// Only these tables (`schema.table` or `database/schema.table`) or paths; empty: everything.
    pub only: Vec<String>,
    /// First eight digits of the snapshot's id, for names of targets beside the original.
    pub snapshot_short: String,
    /// Ends the names under which what a restore in place replaces is kept: letters, digits, `-` and `_`.
    pub stamp: String,
    /// Targets outside these folders are refused; from the agent's own configuration.
    pub allowed_paths: Vec<PathBuf>,
}

/// The content of one snapshot, as an engine sees it when it restores. Implemented by the agent over a repository.
pub trait SnapshotContents: Send + Sync {
    /// The manifest.
    fn manifest(&self) -> &Manifest;

    /// Size in bytes of a file of the tree.
    ///
    /// # Errors
    /// `HF-3016` when there is no such file.
    fn size(&self, path: &str) -> Result<u64, EngineError>;

    /// Opens one file of the tree for reading from its beginning; every byte was verified before it is given out.
    /// Blocking.
    ///
    /// # Errors
    /// `HF-3016` when there is no such file; damage shows as a read error whose source is an [`EngineError`].
    fn open(&self, path: &str) -> Result<Box<dyn Read + Send>, EngineError>;

    /// Writes a part of the tree to disk, many files at a time. Blocking.
    ///
    /// # Errors
    /// By kind: damage, no space, unsafe paths, target not empty.
    fn extract(&self, order: &ExtractOrder) -> Result<ExtractReport, EngineError>;
}

/// What to write to disk.
#[derive(Debug, Clone)]
pub struct ExtractOrder {
    /// Folder or file of the tree, as raw path; empty: the whole tree except `.holdfast`.
    pub from: Vec<u8>,
    /// Only these files or folders of the tree (with what is in them), as raw paths; empty: all.
    pub only: Vec<Vec<u8>>,
    /// Where `from` itself goes: this path becomes that folder or file.
    pub to: PathBuf,
    /// Make an existing folder equal to the snapshot (delta restore): what matches is left alone, what differs is
    /// restored, and what was there, or what the snapshot lacks, is moved to this folder, which does not exist yet and
    /// lies on the same file system. Without it the target must not exist or be an empty folder.
    pub delta: Option<PathBuf>,
    /// Restore owner and group; needs privileges.
    pub ownership: bool,
}

/// What was written.
#[derive(Debug, Clone, Default)]
pub struct ExtractReport {
    /// Files written.
    pub files: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes that matched already.
    pub bytes_unchanged: u64,
    /// What could not be restored exactly (an owner, an attribute), at most a hundred.
    pub warnings: Vec<String>,
}

/// Runs what blocks (file systems, SQLite) on a thread that may block, and waits for it.
async fn blocking<T, F>(work: F) -> Result<T, EngineError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, EngineError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => {
            Err(EngineError::new(holdfast_model::ErrorCode::AgentDraining, "the process is ending")
                .caused_by(error))
        }
    }
}
