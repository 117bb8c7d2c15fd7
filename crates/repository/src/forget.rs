//! Forgetting a snapshot: its object goes, and nothing else. What only it needed is garbage until prune removes it.

use holdfast_runtime::fail_point;

use crate::error::RepositoryError;
use crate::format::ObjectName;
use crate::id::SnapshotId;
use crate::repository::Repository;
use crate::storage::StorageErrorKind;

/// Removes a snapshot. One that is not there is forgotten already.
///
/// # Errors
/// Those of the storage.
pub async fn forget_snapshot(repository: &Repository, id: SnapshotId) -> Result<(), RepositoryError> {
    fail_point::hit("forget-before-delete");
    match repository.store().delete(&ObjectName::Snapshot(id)).await {
        Err(error) if error.kind() != StorageErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    fail_point::hit("forget-after-delete");
    Ok(())
}
