//! Where a writer's packs go. The agent sends them to the controller; [`LocalSink`] puts them into a repository.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::error::RepositoryError;
use crate::format::ObjectName;
use crate::id::{BlobId, BlobType, IndexId};
use crate::index::{IndexPack, MemoryIndex};
use crate::pack::SealedPack;
use crate::repository::Repository;
use crate::storage::StorageErrorKind;

/// Where packs go. Both methods may be called concurrently, and several calls are in flight at a time.
#[async_trait]
pub trait BlobSink: Send + Sync {
    /// Which of these blobs of one type the repository has already, in their order.
    ///
    /// "Yes" must stay true until the snapshot is committed. "No" costs a needless blob at worst.
    ///
    /// # Errors
    /// End the backup.
    async fn known(&self, blob_type: BlobType, ids: &[BlobId]) -> Result<Vec<bool>, RepositoryError>;

    /// Stores a pack. When it returns `Ok` the pack is durable, and [`Self::known`] says so of its blobs.
    ///
    /// # Errors
    /// End the backup.
    async fn put_pack(&self, pack: SealedPack) -> Result<(), RepositoryError>;
}

/// Puts packs straight into a repository, with an index in memory.
pub struct LocalSink {
    repository: Repository,
    state: Mutex<State>,
}

struct State {
    index: MemoryIndex,
    unsaved: Vec<IndexPack>,
}

impl LocalSink {
    /// Loads the index of the repository.
    ///
    /// # Errors
    /// When the index cannot be loaded.
    pub async fn open(repository: Repository) -> Result<Arc<Self>, RepositoryError> {
        let index = repository.load_index().await?;
        Ok(Arc::new(Self { repository, state: Mutex::new(State { index, unsaved: Vec::new() }) }))
    }

    /// Stores the index of every pack that came since the last call. Call it before the snapshot is saved.
    ///
    /// # Errors
    /// Those of the storage; the packs stay to be indexed by the next call.
    pub async fn save_index(&self) -> Result<Vec<IndexId>, RepositoryError> {
        let packs = std::mem::take(&mut self.state.lock().unsaved);
        match self.repository.save_index(&packs).await {
            Ok(saved) => Ok(saved),
            Err(error) => {
                self.state.lock().unsaved.extend(packs);
                Err(error)
            }
        }
    }
}

#[async_trait]
impl BlobSink for LocalSink {
    async fn known(&self, blob_type: BlobType, ids: &[BlobId]) -> Result<Vec<bool>, RepositoryError> {
        let state = self.state.lock();
        Ok(ids.iter().map(|id| state.index.contains(blob_type, id)).collect())
    }

    async fn put_pack(&self, pack: SealedPack) -> Result<(), RepositoryError> {
        match self.repository.store().put(&ObjectName::Pack(pack.id), pack.bytes).await {
            // The name is the hash of the bytes: whoever stored it stored the same.
            Err(error) if error.kind() == StorageErrorKind::AlreadyExists => {}
            other => other?,
        }
        let mut state = self.state.lock();
        state.index.insert_pack(pack.id, &pack.entries);
        state.unsaved.push(IndexPack { id: pack.id, entries: pack.entries });
        Ok(())
    }
}
