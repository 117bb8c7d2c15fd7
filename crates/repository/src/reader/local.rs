//! A source of blobs in this process: a storage and an index.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{BlobPlace, BlobSource};
use crate::error::RepositoryError;
use crate::format::ObjectName;
use crate::id::{BlobId, BlobType, PackId};
use crate::index::BlobLocations;
use crate::storage::ObjectStore;

/// A storage and an index.
#[derive(Clone)]
pub struct LocalSource {
    store: Arc<dyn ObjectStore>,
    index: Arc<dyn BlobLocations>,
}

impl LocalSource {
    /// Blobs of the packs in this storage, found by this index.
    pub fn new(store: Arc<dyn ObjectStore>, index: Arc<dyn BlobLocations>) -> Self {
        Self { store, index }
    }
}

#[async_trait]
impl BlobSource for LocalSource {
    async fn locate(
        &self,
        blob_type: BlobType,
        ids: &[BlobId],
    ) -> Result<Vec<Option<BlobPlace>>, RepositoryError> {
        let found = self.index.locate(blob_type, ids).await?;
        Ok(found.into_iter().map(|location| location.map(BlobPlace::from)).collect())
    }

    async fn read(&self, pack: PackId, offset: u32, length: u32) -> Result<Bytes, RepositoryError> {
        let name = ObjectName::Pack(pack);
        Ok(self.store.get_range(&name, u64::from(offset), u64::from(length)).await?)
    }
}
