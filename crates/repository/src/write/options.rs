//! What a writer is given, and what it gives back.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

use crate::chunker::Chunker;
use crate::crypto::Sealer;
use crate::error::RepositoryError;
use crate::id::BlobId;
use crate::sink::BlobSink;
use crate::tree::{NodeMetadata, Tree};

/// Most unreadable files that are named; all are counted.
pub const UNREADABLE_NAMED_MAX: usize = 1000;

/// How a writer works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteOptions {
    /// Level of zstd, 1–19.
    pub level: i32,
    /// Threads for processor work, at least 1.
    pub threads: usize,
    /// Open again and compare what was compressed and sealed, before it may be stored. Off only to measure its cost.
    pub verify_encoding: bool,
    /// Packs that may be on their way to the sink at a time, at least 1.
    pub packs_in_flight: usize,
    /// A pack is finished when it has this many bytes.
    pub pack_bytes_target: usize,
}

impl Default for WriteOptions {
    /// Level 3, a thread per core up to three, packs of 16 MiB, two of them on their way: about 210 MiB of memory.
    /// Each further thread takes about 35 MiB, each further pack 17 MiB.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            level: 3,
            threads: cores.min(3),
            verify_encoding: true,
            packs_in_flight: 2,
            pack_bytes_target: 16 << 20,
        }
    }
}

/// What a writer works with.
#[derive(Clone)]
pub struct WriterContext {
    /// The runtime on which the sink is called, from a thread of the writer's own.
    pub runtime: tokio::runtime::Handle,
    /// The keys.
    pub sealer: Arc<Sealer>,
    /// Where content is cut.
    pub chunker: Chunker,
    /// Where packs go.
    pub sink: Arc<dyn BlobSink>,
    /// What was done so far, for progress.
    pub counters: Arc<WriteCounters>,
    /// Stops everything within a second, except a read of a stream that blocks.
    pub cancel: CancellationToken,
    /// Asked before a file of this host is opened; without one every file may be.
    pub gate: Option<Arc<dyn FileGate>>,
    /// The file with the cache of the source's trees, in a folder that is there. It is used with a parent, and made
    /// anew by every backup; without one the parent's trees are read from the repository.
    pub tree_cache: Option<PathBuf>,
    /// Told of each file that is read although there is a parent, before it is.
    pub read_observer: Option<Arc<dyn ReadObserver>>,
}

/// Wants to know which files an incremental backup reads.
pub trait ReadObserver: Send + Sync {
    /// This file is read, for this reason. Must not wait.
    fn reads(&self, path: &[u8], why: WhyRead);
}

/// Why a file is read although there is a parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyRead {
    /// The parent has no file of this path.
    New,
    /// The parent could not read it.
    Unreadable,
    /// It has another size.
    Size,
    /// It was modified.
    ModificationTime,
    /// Its inode was changed: its content with its modification time set back, or its owner, mode or links alone.
    ChangeTime,
    /// It is another file under the same name, or the file system numbers its files anew.
    Inode,
}

impl std::fmt::Display for WhyRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            WhyRead::New => "it is new",
            WhyRead::Unreadable => "it could not be read before",
            WhyRead::Size => "its size differs",
            WhyRead::ModificationTime => "its modification time differs",
            WhyRead::ChangeTime => "its change time differs",
            WhyRead::Inode => "its inode differs",
        })
    }
}

/// Which file: device and inode, as the metadata of its entry say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    /// Number of its device.
    pub device_id: u64,
    /// Number of its inode.
    pub inode: u64,
}

/// Keeps a pass as long as the file is open.
pub type FilePass = Box<dyn std::any::Any + Send>;

/// Decides which files of this host may be opened now.
pub trait FileGate: Send + Sync {
    /// Leave to open this file until the pass is dropped, which is after the file is closed. Must not wait.
    ///
    /// # Errors
    /// Why it may not be opened; it then counts as unreadable.
    fn pass(&self, file: FileIdentity) -> Result<FilePass, String>;
}

/// One item of a snapshot.
pub struct WriteEntry {
    /// Path in the snapshot: components separated by `/`, raw bytes, no leading `/`.
    pub path: Vec<u8>,
    /// What is known of it. The size of a file is replaced by the number of bytes that were read.
    pub metadata: NodeMetadata,
    /// Its content.
    pub content: WriteContent,
}

/// Where the content of an entry comes from.
pub enum WriteContent {
    /// There is none: folders, links, devices, pipes, sockets.
    None,
    /// A regular file of this host. It is not read when the parent snapshot has it with the same size, mtime, ctime
    /// and inode.
    File(PathBuf),
    /// A file of database pages of this size, cut at fixed multiples of them. Always read.
    Pages {
        /// The file.
        path: PathBuf,
        /// Bytes of a page.
        page_bytes: u32,
    },
    /// A stream. Always read, on the thread that feeds the writer. An error of it ends the backup.
    Stream(Box<dyn Read + Send>),
    /// A stream of database pages of this size, cut at fixed multiples of them; the metadata say how long it will be.
    PageStream {
        /// The pages in order.
        reader: Box<dyn Read + Send>,
        /// Bytes of a page.
        page_bytes: u32,
    },
    /// Blobs that the repository has, such as the base of a page file.
    Known(StoredContent),
}

/// Content that the repository has already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredContent {
    /// Its blobs, in order.
    pub blobs: Vec<BlobId>,
    /// Its bytes.
    pub size: u64,
}

/// Gives trees of earlier snapshots.
pub trait TreeSource: Send + Sync {
    /// A tree. Blocking; called from the thread that feeds the writer.
    ///
    /// # Errors
    /// Are logged; the folder is then read as if it were new.
    fn tree(&self, id: &BlobId) -> Result<Tree, RepositoryError>;

    /// Says that these trees will be asked for soon, roughly in this order. For sources that are far away.
    fn will_need(&self, ids: &[BlobId]) {
        let _ = ids;
    }
}

/// The snapshot that an incremental one is compared with.
#[derive(Clone)]
pub struct Parent {
    /// Its root tree.
    pub root: BlobId,
    /// Gives its trees.
    pub trees: Arc<dyn TreeSource>,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a writer has done so far. Read at any time, from any thread.
        #[derive(Debug, Default)]
        pub struct WriteCounters {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        /// The values of [`WriteCounters`] at one moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct WriteTotals {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl WriteCounters {
            /// The values now.
            pub fn totals(&self) -> WriteTotals {
                WriteTotals { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Regular files in the snapshot, streams included.
    files,
    /// Of these, files that the parent had unchanged and that were not read.
    files_unchanged,
    /// Folders in the snapshot.
    folders,
    /// Of these, folders that are exactly as in the parent.
    folders_unchanged,
    /// Links, devices, pipes, sockets.
    others,
    /// Bytes of all files of the snapshot, read or not.
    bytes,
    /// Bytes read from files and streams.
    bytes_read,
    /// Data blobs that the repository did not have.
    data_blobs_new,
    /// Trees that the repository did not have.
    tree_blobs_new,
    /// Content of new blobs, in bytes before compression.
    bytes_new,
    /// Content of new blobs, in bytes as stored.
    bytes_stored,
    /// Packs that are durable.
    packs_stored,
    /// Files that could not be read.
    unreadable,
}

impl WriteCounters {
    pub(super) fn add(counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Ordering::Relaxed);
    }
}

/// A file that could not be read and is not in the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableFile {
    /// Its path in the snapshot.
    pub path: Vec<u8>,
    /// Why.
    pub reason: String,
}

/// What was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// The totals.
    pub totals: WriteTotals,
    /// Bytes read from each stream, by its path.
    pub streams: BTreeMap<Vec<u8>, u64>,
    /// Files that could not be read, the first [`UNREADABLE_NAMED_MAX`] of them.
    pub unreadable: Vec<UnreadableFile>,
}
