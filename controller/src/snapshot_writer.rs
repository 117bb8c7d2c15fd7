//! Snapshots that the controller writes itself: imports, and copies of its own state.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_model::Failure;
use holdfast_model::ids::SnapshotId;
use holdfast_repository::RepositoryError;
use holdfast_repository::chunker::Chunker;
use holdfast_repository::id::{BlobId, BlobType};
use holdfast_repository::pack::SealedPack;
use holdfast_repository::sink::BlobSink;
use holdfast_repository::snapshot::{SnapshotObject, SnapshotSummary};
use holdfast_repository::write::{SnapshotWriter, WriteOptions, WriterContext, Written};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::catalog::Tags;
use crate::other_programs;
use crate::repositories::{OpenRepository, repository_failure};
use crate::repository_uses::RepositoryUse;

/// What is written and durable, and not a snapshot yet.
pub struct Unpublished {
    /// The root of its tree.
    pub tree: BlobId,
    /// What was written.
    pub written: Written,
    /// Paths that the snapshot object names.
    pub paths: Vec<String>,
    /// Host that it names.
    pub hostname: String,
    /// Its tags.
    pub tags: Tags,
}

/// A writer of one snapshot into an open repository. To be used on a thread that may block. From before until the snapshot
/// is published a [use](crate::repository_uses) of the repository must be under way: nothing that was found in it may go.
///
/// # Errors
/// When its threads can not be started.
pub fn open(repository: &Arc<OpenRepository>, cancel: CancellationToken) -> Result<SnapshotWriter, Failure> {
    let config = repository.repository().config();
    let context = WriterContext {
        runtime: tokio::runtime::Handle::current(),
        sealer: repository.repository().sealer().clone(),
        chunker: Chunker::of(config),
        sink: Arc::new(OpenSink(repository.clone())),
        counters: Arc::default(),
        cancel,
        gate: None,
        tree_cache: None,
        read_observer: None,
    };
    let level = i32::from(repository.spec.compression_level);
    let options = WriteOptions { level, ..WriteOptions::default() };
    SnapshotWriter::new(context, options, None).map_err(|error| repository_failure(&repository.name, &error))
}

/// Makes a snapshot of what was written, index first, under the use that began before the writing.
///
/// # Errors
/// Those of [`other_programs::make_sure`] and of the repository. Without an answer of its storage the snapshot may exist nevertheless.
pub async fn publish(
    repository: &Arc<OpenRepository>,
    in_use: &RepositoryUse,
    what: Unpublished,
    now: Timestamp,
) -> Result<(SnapshotId, SnapshotObject), Failure> {
    other_programs::make_sure(repository, in_use.relied_since(), now).await?;
    let totals = what.written.totals;
    let object = SnapshotObject {
        time: now.to_string(),
        parent: None,
        tree: what.tree,
        paths: what.paths,
        hostname: what.hostname,
        username: "holdfast".to_owned(),
        uid: 0,
        gid: 0,
        tags: what.tags.write(),
        original: None,
        program_version: format!("holdfast {}", crate::VERSION),
        summary: Some(SnapshotSummary {
            backup_start: now.to_string(),
            backup_end: now.to_string(),
            files_new: totals.files,
            dirs_new: totals.folders,
            data_blobs: totals.data_blobs_new,
            tree_blobs: totals.tree_blobs_new,
            data_added: totals.bytes_new,
            data_added_packed: totals.bytes_stored,
            total_files_processed: totals.files,
            total_bytes_processed: totals.bytes,
            ..SnapshotSummary::default()
        }),
    };
    let saved = repository.repository().save_snapshot(&object).await;
    let id = SnapshotId(*saved.map_err(|error| repository_failure(&repository.name, &error))?.as_bytes());
    Ok((id, object))
}

/// Puts packs into an open repository.
pub(crate) struct OpenSink(pub(crate) Arc<OpenRepository>);

#[async_trait]
impl BlobSink for OpenSink {
    async fn known(&self, blob_type: BlobType, ids: &[BlobId]) -> Result<Vec<bool>, RepositoryError> {
        self.0.known(blob_type, ids).await.map_err(|failure| RepositoryError::sink(failure.code, failure))
    }

    async fn put_pack(&self, pack: SealedPack) -> Result<(), RepositoryError> {
        let failed = |failure: Failure| RepositoryError::sink(failure.code, failure);
        if let Some(mut upload) = self.0.begin_pack(pack.id, pack.bytes.len() as u64).await.map_err(failed)? {
            upload.write(&self.0.name, pack.bytes).await.map_err(failed)?;
            upload.finish(&self.0.name, pack.id).await.map_err(failed)?;
        }
        self.0.pack_is_durable(pack.id, pack.entries).await.map_err(failed)
    }
}
