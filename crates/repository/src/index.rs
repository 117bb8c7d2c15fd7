//! Index objects: where each blob is. And an index in memory.

mod json;
mod memory;

use async_trait::async_trait;

pub use json::{IndexPack, encode_index, visit_index};
pub use memory::{BlobLocation, MemoryIndex};

use crate::error::RepositoryError;
use crate::id::{BlobId, BlobType, PackId};
use crate::pack::PackEntry;

/// Knows where blobs are.
#[async_trait]
pub trait BlobLocations: Send + Sync {
    /// Where each of these blobs of one type is, in their order; `None` for one that is unknown. Of a blob in several
    /// packs, one that is relied on counts.
    ///
    /// # Errors
    /// When the index cannot be asked.
    async fn locate(
        &self,
        blob_type: BlobType,
        ids: &[BlobId],
    ) -> Result<Vec<Option<BlobLocation>>, RepositoryError>;
}

/// An index that is filled by one and for one piece of work: first entered, then asked.
#[async_trait]
pub trait WorkIndex: BlobLocations {
    /// Relies not on this pack. Called before the pack is entered.
    fn doubt(&self, pack: PackId);

    /// Enters packs with their blobs; a pack that was entered before is left as it is.
    ///
    /// # Errors
    /// When the index cannot be written.
    async fn enter(&self, packs: Vec<(PackId, Vec<PackEntry>)>) -> Result<(), RepositoryError>;
}

#[async_trait]
impl BlobLocations for MemoryIndex {
    async fn locate(
        &self,
        blob_type: BlobType,
        ids: &[BlobId],
    ) -> Result<Vec<Option<BlobLocation>>, RepositoryError> {
        Ok(ids.iter().map(|id| self.get(blob_type, id)).collect())
    }
}

#[async_trait]
impl BlobLocations for parking_lot::RwLock<MemoryIndex> {
    async fn locate(
        &self,
        blob_type: BlobType,
        ids: &[BlobId],
    ) -> Result<Vec<Option<BlobLocation>>, RepositoryError> {
        let index = self.read();
        Ok(ids.iter().map(|id| index.get(blob_type, id)).collect())
    }
}

#[async_trait]
impl WorkIndex for parking_lot::RwLock<MemoryIndex> {
    fn doubt(&self, pack: PackId) {
        self.write().doubt(pack);
    }

    async fn enter(&self, packs: Vec<(PackId, Vec<PackEntry>)>) -> Result<(), RepositoryError> {
        let mut index = self.write();
        packs.iter().for_each(|(pack, entries)| index.insert_pack(*pack, entries));
        Ok(())
    }
}
