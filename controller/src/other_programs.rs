//! Other programs that work on our repositories, as `restic` does: its format is ours.
//!
//! One that adds does no harm. One that removes what no snapshot needs (`restic prune`) takes for garbage what a running
//! backup has stored and not committed yet, and what an earlier index of ours still calls known. We do not keep it out: a
//! lock held by every backup would make each `restic check` of a live fleet fail. We notice instead. A run begins with
//! the index as it is in the repository, and commits only when nothing was taken away since then and nobody is removing
//! now; else it is started over. Between the last look and the snapshot object lie milliseconds, while whoever removes
//! waits a fifth of a second after its lock and then reads the index before it looks at the snapshots.

use std::sync::Arc;

use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::lock;
use jiff::Timestamp;

use crate::prune::lock_owner;
use crate::repositories::{OpenRepository, repository_failure};

/// Makes sure that what a run stored, and what it relied on since the repository had been disturbed so often, is indexed and
/// there, and that nobody is taking it away.
///
/// # Errors
/// `HF-3023` when something was taken away, `HF-3007` while somebody may be doing so, and those of the repository.
pub async fn make_sure(
    repository: &Arc<OpenRepository>,
    relied_since: u64,
    now: Timestamp,
) -> Result<(), Failure> {
    repository.flush_index().await?;
    let nobody_removes = lock::refuse_exclusive(repository.repository(), &lock_owner(), now).await;
    nobody_removes.map_err(|error| repository_failure(&repository.name, &error))?;
    is_undisturbed(repository, relied_since).await
}

/// Makes sure that nothing that was relied on since the repository had been disturbed so often was taken away.
///
/// # Errors
/// `HF-3023` when something was, and those of the repository.
pub async fn is_undisturbed(repository: &Arc<OpenRepository>, relied_since: u64) -> Result<(), Failure> {
    repository.update_index().await?;
    if repository.index().uses.disturbances() == relied_since {
        return Ok(());
    }
    let message =
        format!("another program took something away from repository {} meanwhile", repository.name);
    Err(Failure::new(ErrorCode::RepositoryDisturbed, message).at_stake("nothing was committed"))
}
