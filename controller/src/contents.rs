//! What is in a snapshot: its manifest and its tree, read straight from the repository.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_model::manifest::{MANIFEST_PATH, Manifest};
use holdfast_repository::RepositoryError;
use holdfast_repository::format::ObjectName;
use holdfast_repository::id::{BlobId, BlobType, PackId};
use holdfast_repository::reader::{BlobPlace, BlobReader, BlobSource};
use holdfast_repository::snapshot::SnapshotObject;

use crate::repositories::OpenRepository;

/// The largest manifest that is read, in bytes.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// Reads blobs of an open repository.
struct OpenSource(Arc<OpenRepository>);

#[async_trait]
impl BlobSource for OpenSource {
    async fn locate(
        &self,
        blob_type: BlobType,
        ids: &[BlobId],
    ) -> Result<Vec<Option<BlobPlace>>, RepositoryError> {
        let places = self.0.locate(blob_type, ids).await;
        let places = places.map_err(|failure| RepositoryError::sink(failure.code, failure))?;
        Ok(places.into_iter().map(|place| place.map(Into::into)).collect())
    }

    async fn read(&self, pack: PackId, offset: u32, length: u32) -> Result<Bytes, RepositoryError> {
        Ok(self.0.store().get_range(&ObjectName::Pack(pack), u64::from(offset), u64::from(length)).await?)
    }
}

/// A reader of the blobs of an open repository.
pub fn reader(repository: &Arc<OpenRepository>) -> BlobReader {
    BlobReader::new(Arc::new(OpenSource(repository.clone())), repository.repository().sealer().clone())
}

/// The manifest of a snapshot; none when another program wrote it, or it is damaged, which is logged.
pub async fn load_manifest(repository: &Arc<OpenRepository>, object: &SnapshotObject) -> Option<Manifest> {
    match try_load_manifest(repository, object.tree).await {
        Ok(manifest) => manifest,
        Err(error) => {
            tracing::warn!(repository = %repository.name, tree = %object.tree, %error, "a manifest is not readable");
            None
        }
    }
}

async fn try_load_manifest(
    repository: &Arc<OpenRepository>,
    tree: BlobId,
) -> Result<Option<Manifest>, RepositoryError> {
    let reader = reader(repository);
    let node = match reader.find(tree, MANIFEST_PATH.as_bytes()).await {
        Ok(node) => node,
        Err(RepositoryError::PathNotInSnapshot { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    if node.metadata.size > MANIFEST_BYTES_MAX {
        return Ok(None);
    }
    let mut text = Vec::new();
    for blob in node.content {
        text.extend(reader.load(blob, BlobType::Data).await?);
    }
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| RepositoryError::damaged(format!("manifest in tree {tree}"), error.to_string()))
}
