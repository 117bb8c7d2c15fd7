//! An index of blobs for one piece of work, such as a check: on disk, filled from the repository's index objects alone,
//! and removed at the end. So the work finds out what a cache would hide, and takes no memory for each blob.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::RepositoryError;
use holdfast_repository::id::{BlobId, BlobType, IdSet, PackId};
use holdfast_repository::index::{BlobLocation, BlobLocations, WorkIndex};
use holdfast_repository::pack::PackEntry;
use holdfast_runtime::TaskGroup;
use parking_lot::Mutex;

use crate::store::blob_index::{BlobIndex as _, BlobIndexError, BlobIndexSettings, DiskBlobIndex};

/// Memory for the filters of the index: it is asked for what is in it.
const FILTERS_BYTES: u64 = 8 << 20;

/// Where these indexes are in the state of a controller.
pub fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("work")
}

/// Removes what a process that ended early has left. Called when none is open. Blocks.
///
/// # Errors
/// `HF-4004`.
pub fn remove_left_over(folder: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::from_error(ErrorCode::StateUnavailable, &error))
        }
        _ => Ok(()),
    }
}

/// The index. 51 bytes on disk for each blob; in memory 55 bytes for each pack, and at most 30 MiB.
#[derive(Debug)]
pub struct DiskWorkIndex {
    /// Closed before the folder is removed.
    blobs: Option<DiskBlobIndex>,
    folder: PathBuf,
    doubted: Mutex<IdSet<PackId>>,
    /// The doubts are not told to the index yet.
    untold: AtomicBool,
}

impl DiskWorkIndex {
    /// Begins an empty index in a folder that is not there yet. Blocks for moments.
    ///
    /// # Errors
    /// `HF-4004`.
    pub fn begin(folder: PathBuf, tasks: &TaskGroup) -> Result<Self, Failure> {
        let settings =
            BlobIndexSettings { filters_bytes: FILTERS_BYTES, ..BlobIndexSettings::new(&folder, None) };
        let blobs = DiskBlobIndex::open(settings, tasks)
            .map_err(|error| Failure::from_error(error.code(), &error))?;
        Ok(Self { blobs: Some(blobs), folder, doubted: Mutex::default(), untold: AtomicBool::default() })
    }

    fn blobs(&self) -> Result<&DiskBlobIndex, RepositoryError> {
        self.blobs.as_ref().ok_or_else(|| failed(BlobIndexError::Closed))
    }
}

fn failed(error: BlobIndexError) -> RepositoryError {
    RepositoryError::sink(error.code(), error)
}

#[async_trait]
impl BlobLocations for DiskWorkIndex {
    async fn locate(
        &self,
        blob_type: BlobType,
        ids: &[BlobId],
    ) -> Result<Vec<Option<BlobLocation>>, RepositoryError> {
        let blobs = self.blobs()?;
        if self.untold.swap(false, Ordering::AcqRel) {
            // Packs have numbers once they are entered, so it is told after.
            blobs.doubt_only(&self.doubted.lock().iter().copied().collect::<Vec<_>>());
        }
        blobs.lookup(blob_type, ids.to_vec()).await.map_err(failed)
    }
}

#[async_trait]
impl WorkIndex for DiskWorkIndex {
    fn doubt(&self, pack: PackId) {
        self.doubted.lock().insert(pack);
        self.untold.store(true, Ordering::Release);
    }

    async fn enter(&self, packs: Vec<(PackId, Vec<PackEntry>)>) -> Result<(), RepositoryError> {
        self.untold.store(true, Ordering::Release);
        self.blobs()?.insert(packs).await.map_err(failed)
    }
}

impl Drop for DiskWorkIndex {
    /// Blocks for moments.
    fn drop(&mut self) {
        drop(self.blobs.take());
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "the index of a piece of work was not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_repository::id::BlobType;
    use holdfast_runtime::Shutdown;

    use super::*;

    fn entry(name: &str) -> PackEntry {
        PackEntry {
            id: BlobId::of(name.as_bytes()),
            blob_type: BlobType::Data,
            offset: 0,
            length: 100,
            uncompressed_length: None,
        }
    }

    #[tokio::test]
    async fn a_pack_that_is_relied_on_is_preferred_and_nothing_is_left_behind() {
        let state = tempfile::tempdir().unwrap();
        let folder = folder(state.path()).join("a run");
        let index = DiskWorkIndex::begin(folder.clone(), &TaskGroup::new(&Shutdown::new())).unwrap();
        let [bad, good] = ["bad", "good"].map(|name| PackId::of(name.as_bytes()));
        index.doubt(bad);
        index.enter(vec![(bad, vec![entry("in both"), entry("in the bad one")])]).await.unwrap();
        index.enter(vec![(good, vec![entry("in both")])]).await.unwrap();
        let ids = ["in both", "in the bad one", "in none"].map(|name| entry(name).id);
        let found = index.locate(BlobType::Data, &ids).await.unwrap();
        let packs: Vec<_> = found.iter().map(|location| location.map(|location| location.pack)).collect();
        assert_eq!(packs, [Some(good), Some(bad), None]);
        assert!(folder.is_dir());
        drop(index);
        assert!(!folder.exists());
    }
}
