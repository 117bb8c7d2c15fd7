//! Where each blob of a repository is: a cache of the repository's index objects, one per repository.
//!
//! It is not in the journal: it can be rebuilt from the repository at any time, and must be after a loss of power
//! ([`BlobIndex::is_complete`]). It is asked for every chunk of every backup, so it is made for that question: sorted
//! files of fixed-size slots in blocks with checksums, a filter and one key per block in memory, merged in the
//! background (`docs/adr/0010-blob-index-in-sorted-files.md` has the numbers, and why sled does not do here).
//!
//! In reading order: [`slot`] (one entry), [`segment`] (a sorted file), [`filter`], [`recent`] (what is not in a file
//! yet), [`packs`] (numbers for packs), [`disk`] (all together), [`entered`] (which
//! index objects are in it).

pub mod disk;
pub mod entered;
mod files;
pub mod filter;
mod merge;
pub mod packs;
pub mod recent;
pub mod segment;
pub mod slot;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use holdfast_model::ErrorCode;
use holdfast_repository::id::{BlobId, BlobType, PackId};
use holdfast_repository::index::BlobLocation;
use holdfast_repository::pack::PackEntry;

pub use disk::{BlobIndexSettings, DiskBlobIndex};
pub use entered::EnteredIndexes;

/// The blobs of one repository. All calls take many at a time: one question for each blob would cost more than its
/// answer.
#[async_trait]
pub trait BlobIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Where each blob of one type is, in the order of the question; nothing for those that are unknown.
    ///
    /// # Errors
    /// The index cannot be read, or is damaged: then it is no longer complete.
    async fn lookup(
        &self,
        blob_type: BlobType,
        ids: Vec<BlobId>,
    ) -> Result<Vec<Option<BlobLocation>>, BlobIndexError>;

    /// Which of the blobs of one type are known, in the order of the question; cheaper than [`BlobIndex::lookup`].
    ///
    /// # Errors
    /// As for [`BlobIndex::lookup`].
    async fn contains(&self, blob_type: BlobType, ids: Vec<BlobId>) -> Result<Vec<bool>, BlobIndexError>;

    /// Enters packs with their blobs; a pack that was entered before is left as it is. Visible when it returns, and
    /// kept unless the machine loses its power. Waits while earlier entries are still being written out.
    ///
    /// # Errors
    /// The index cannot be written.
    async fn insert(&self, packs: Vec<(PackId, Vec<PackEntry>)>) -> Result<(), BlobIndexError>;

    /// The packs that were entered and not forgotten since. From memory.
    fn packs(&self) -> Vec<PackId>;

    /// Relies on every entered pack but these, until it is said anew: not kept over a restart. Their blobs are not
    /// contained, and looked up there only where they are in no other pack. From memory.
    fn doubt_only(&self, packs: &[PackId]);

    /// Whether a pack was entered and not forgotten since. From memory.
    fn contains_pack(&self, pack: &PackId) -> bool;

    /// How many packs there are, and how many blobs, counted once for each pack that they are in. From memory.
    fn counts(&self) -> (usize, u64);

    /// Forgets packs: their blobs are unknown from now on, unless they are in other packs too.
    ///
    /// # Errors
    /// The index cannot be written.
    async fn remove_packs(&self, packs: Vec<PackId>) -> Result<(), BlobIndexError>;

    /// Forgets everything, failures too; from now on the index is not complete.
    ///
    /// # Errors
    /// The index cannot be written.
    async fn begin_rebuild(&self) -> Result<(), BlobIndexError>;

    /// Says that everything in the repository's index objects was entered since [`BlobIndex::begin_rebuild`].
    ///
    /// # Errors
    /// The index cannot be written.
    async fn finish_rebuild(&self) -> Result<(), BlobIndexError>;

    /// Whether unknown means absent. Otherwise it may be that it is not known yet: enough to avoid sending a blob
    /// twice, not enough to restore or to remove anything.
    fn is_complete(&self) -> bool;
}

/// What can go wrong with the index of blobs.
#[derive(Debug, thiserror::Error)]
pub enum BlobIndexError {
    /// The file system refused.
    #[error("{what} failed at {}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file is not what was written; the index must be rebuilt.
    #[error("the blob index is damaged: {}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A failure to write, this one or an earlier one; nothing more is taken until the index is rebuilt.
    #[error("the blob index can not be written")]
    Failed(#[source] Arc<BlobIndexError>),
    /// There are too many packs.
    #[error("the blob index cannot hold more than 2^31 packs")]
    Full,
    /// It was closed.
    #[error("the blob index is closed")]
    Closed,
}

impl BlobIndexError {
    /// Its stable code.
    pub fn code(&self) -> ErrorCode {
        match self {
            BlobIndexError::Damaged { .. } => ErrorCode::StateDamaged,
            _ => ErrorCode::StateUnavailable,
        }
    }

    fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| BlobIndexError::Io { what, path, source }
    }
}

#[cfg(test)]
mod tests;
