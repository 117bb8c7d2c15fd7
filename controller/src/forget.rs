//! Forgetting snapshots: the object goes from its repository, then the record from the catalog. A crash between the two is
//! repaired when the catalog is synced. What only the snapshot needed stays until the repository is pruned.

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_model::ids::{RepositoryName, SourceName};
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::text::counted;
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::forget::forget_snapshot;
use holdfast_repository::id::SnapshotId;
use tokio::sync::OwnedRwLockReadGuard;

use crate::core::Core;
use crate::records::Batch;
use crate::reports::removals;
use crate::repositories::{OpenRepository, repository_failure};

/// Who forgets what the policies do not keep.
pub const RETENTION: &str = "controller";

/// The right to forget snapshots of a repository: nobody prunes it meanwhile.
pub struct Forgetting {
    repository: Arc<OpenRepository>,
    _no_prune: OwnedRwLockReadGuard<()>,
}

impl Forgetting {
    /// Takes it.
    ///
    /// # Errors
    /// `HF-4005` while the repository is pruned; when it can not be opened.
    pub async fn begin(core: &Core, name: &RepositoryName) -> Result<Self, Failure> {
        let repository = core.repository(name).await?;
        let no_prune = repository.index().removing.clone().try_read_owned().map_err(|_| {
            Failure::new(ErrorCode::RunAlreadyActive, format!("repository {name} is pruned now"))
                .then("holdfast run list --kind prune")
        })?;
        Ok(Self { repository, _no_prune: no_prune })
    }

    /// Forgets a snapshot of this repository.
    ///
    /// # Errors
    /// `HF-4012` when it is held; those of the storage and the state.
    pub async fn forget(
        &self,
        core: &Core,
        record: &SnapshotRecord,
        actor: &str,
        why: &str,
    ) -> Result<(), Failure> {
        // So that no hold comes between the question and the deed.
        let _turn = core.holds.lock().await;
        refuse_held(core, record).await?;
        let of = record.source.as_ref().map_or("another program", |source| source.as_str());
        let target = format!("snapshot/{} of {of} in {}: {why}", record.id, record.repository);
        core.records.commit(Batch::new(actor, "snapshot.forget", target)).await?;
        let id = SnapshotId::from_bytes(record.id.0);
        let forgotten = forget_snapshot(self.repository.repository(), id).await;
        forgotten.map_err(|error| repository_failure(&self.repository.name, &error))?;
        let batch = Batch::new(actor, "catalog.remove", format!("snapshot/{}", record.id));
        let by_retention = actor == RETENTION;
        let batch =
            removals::count(&core.records, batch, &record.repository, by_retention, core.clock.now()).await?;
        core.records.commit(batch.delete_snapshot(record)).await?;
        tracing::info!(snapshot = %record.id, repository = %record.repository, source = of, why, "forgotten");
        Ok(())
    }
}

async fn refuse_held(core: &Core, record: &SnapshotRecord) -> Result<(), Failure> {
    let Some(hold) = core.records.hold(record.id).await? else { return Ok(()) };
    let short = record.id.short();
    let message = format!("snapshot {short} is held for: {}", hold.value.reason);
    Err(Failure::new(ErrorCode::SnapshotHeld, message)
        .at_stake("nothing was removed")
        .then(format!("holdfast backup release {short}")))
}

/// Snapshots that a person wants to be forgotten, and what has to be confirmed for that.
pub struct Deletion {
    /// The snapshots, each with what else is lost with it.
    pub snapshots: Vec<(SnapshotRecord, Option<String>)>,
    /// Names that have to be typed.
    pub confirm_with: Vec<String>,
}

/// Plans the deletion of snapshots, given by unique beginnings of their ids.
///
/// # Errors
/// `HF-3014` and `HF-3015` when there is none or more than one of an id, `HF-4012` when one is held.
pub async fn plan(core: &Core, ids: &[String]) -> Result<Deletion, Failure> {
    let mut records: Vec<SnapshotRecord> = Vec::new();
    for id in ids {
        let record = core.records.snapshot_by_prefix(id).await?;
        refuse_held(core, &record).await?;
        if records.iter().all(|known| known.id != record.id) {
            records.push(record);
        }
    }
    let mut names = BTreeSet::new();
    let mut last = Vec::new();
    let mut snapshots = Vec::new();
    for record in records {
        let Some(source) = record.source.clone() else {
            names.insert(record.repository.to_string());
            snapshots.push((record, None));
            continue;
        };
        names.insert(source.to_string());
        let mut lost = None;
        if is_last_good(core, &source, &record).await? {
            last.push(record.id.short());
            lost = Some(format!("it is the last good one of {source} in {}", record.repository));
        }
        snapshots.push((record, lost));
    }
    Ok(Deletion { snapshots, confirm_with: names.into_iter().chain(last).collect() })
}

async fn is_last_good(core: &Core, source: &SourceName, record: &SnapshotRecord) -> Result<bool, Failure> {
    let good = |record: &SnapshotRecord| record.proof.damage.is_none();
    let newest = core.catalog.latest(source, Some(&record.repository), good).await?;
    Ok(newest.is_some_and(|newest| newest.id == record.id))
}

/// Forgets the snapshots of a deletion.
///
/// # Errors
/// `HF-1009` when not everything is confirmed or no reason is given; then nothing was removed. Those of
/// [`Forgetting`]; then the first ones may be gone.
pub async fn delete(
    core: &Core,
    deletion: &Deletion,
    actor: &str,
    confirm: &[String],
    reason: &str,
) -> Result<(), Failure> {
    let missing: Vec<&String> = deletion.confirm_with.iter().filter(|name| !confirm.contains(name)).collect();
    if !missing.is_empty() || reason.trim().is_empty() {
        let flags: String = deletion.confirm_with.iter().map(|name| format!(" --confirm {name}")).collect();
        let mut failure = Failure::new(
            ErrorCode::NeedsConfirmation,
            format!("{} would be gone for good", counted(deletion.snapshots.len() as u64, "snapshot")),
        );
        for (record, lost) in &deletion.snapshots {
            if let Some(lost) = lost {
                failure = failure.because(format!("snapshot {}: {lost}", record.id.short()));
            }
        }
        return Err(failure.at_stake("nothing was removed").then(format!("add:{flags} --reason TEXT")));
    }
    let repositories: BTreeSet<&RepositoryName> =
        deletion.snapshots.iter().map(|(record, _)| &record.repository).collect();
    let why: String = reason.chars().take(500).collect();
    for name in repositories {
        let forgetting = Forgetting::begin(core, name).await?;
        for (record, _) in deletion.snapshots.iter().filter(|(record, _)| record.repository == *name) {
            forgetting.forget(core, record, actor, &why).await?;
        }
    }
    Ok(())
}
