//! The last step of a copy: snapshots of which everything was sent become snapshots of the second repository.

use holdfast_model::ids::{RepositoryName, SnapshotId};
use holdfast_model::run::{LogLevel, Run};
use holdfast_model::snapshot::{Proof, SnapshotRecord};
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::copy::{Sent, copied_snapshot};
use holdfast_repository::format::ObjectKind;
use holdfast_repository::snapshot::SnapshotObject;
use holdfast_runtime::fail_point;
use jiff::Timestamp;

use super::Job;
use crate::catalog::describe;
use crate::other_programs;
use crate::records::Batch;
use crate::repositories::repository_failure;
use crate::verify::object_damage;

/// What the catalog is to know of a new copy: all it needs is indexed by now.
fn described(
    id: SnapshotId,
    repository: &RepositoryName,
    object: &SnapshotObject,
    origin: SnapshotRecord,
    now: Timestamp,
) -> SnapshotRecord {
    SnapshotRecord {
        anomalies: origin.anomalies,
        entered_at: Some(now),
        ..describe(id, repository, object, origin.manifest)
    }
}

/// A snapshot of which everything was sent.
pub(super) struct Pending {
    pub(super) record: SnapshotRecord,
    /// The text of its object.
    pub(super) text: Vec<u8>,
    pub(super) sent: Sent,
    /// Its copy that was damaged before everything was looked at, and how often more had been found damaged by then.
    pub(super) damaged: Option<(SnapshotRecord, u64)>,
}

impl Job<'_> {
    /// Publishes snapshots that are given newest first, the oldest first: a check of the new ones goes on from those before.
    pub(super) async fn publish_all(&self, run: &Run, pending: Vec<Pending>) -> Result<u64, Failure> {
        let mut made = 0;
        for pending in pending.into_iter().rev() {
            let source = pending.record.source.clone();
            let (line, is_new) = self.publish_one(run, pending).await?;
            made += u64::from(is_new);
            self.core.log(run, LogLevel::Info, vec![line]).await;
            source.iter().for_each(|source| self.core.snapshots_changed(source));
        }
        Ok(made)
    }

    /// Says what became of a snapshot, and whether there is a new copy.
    async fn publish_one(&self, run: &Run, pending: Pending) -> Result<(String, bool), Failure> {
        // Another run may copy the same into the same repository.
        let _turn = self.to.index().copying.lock().await;
        self.fence(run)?;
        // What was made sure before the last one was published may be otherwise by now.
        other_programs::make_sure(&self.to, self.relied_since, self.core.clock.now()).await?;
        let short = pending.record.id.short();
        let there = self.copy_of(&pending.record).await?;
        if let Some(copy) = there.filter(|copy| copy.proof.damage.is_none()) {
            return Ok((format!("snapshot {short} was copied meanwhile: {}", copy.id.short()), false));
        }
        if let Some((copy, times_worse)) = &pending.damaged
            && object_damage(&self.to, copy).await?.is_none()
        {
            let copy_short = copy.id.short();
            return Ok(match self.take_back(copy, *times_worse).await? {
                true => (format!("the copy {copy_short} of snapshot {short} is whole again"), false),
                false => {
                    (format!("more was found damaged in the copy {copy_short} of snapshot {short}"), false)
                }
            });
        }
        let copy = self.publish(pending).await?;
        Ok((format!("snapshot {short} is copied: {}", copy.short()), true))
    }

    /// A later attempt may be under way when this process was stopped for long.
    pub(super) fn fence(&self, run: &Run) -> Result<(), Failure> {
        let now = self.core.runs.active_run(run.id).map(|now| now.state);
        if now.is_some_and(|now| now.attempt == run.state.attempt && now.phase.is_with_agent()) {
            return Ok(());
        }
        let message = format!("attempt {} of run {} is over", run.state.attempt, run.id.short());
        Err(Failure::new(ErrorCode::StaleAttempt, message))
    }

    /// Makes the copy of a snapshot exist; all of it is durable and indexed.
    async fn publish(&self, pending: Pending) -> Result<SnapshotId, Failure> {
        let Pending { record, text, sent, .. } = pending;
        let origin = holdfast_repository::id::SnapshotId::from_bytes(record.id.0);
        let text = copied_snapshot(origin, &text, &sent)
            .map_err(|error| repository_failure(&self.order.from, &error))?;
        let object: SnapshotObject = serde_json::from_slice(&text)
            .map_err(|error| Failure::from_error(ErrorCode::Internal, &error))?;
        let repository = self.to.repository();
        fail_point::hit("copy-before-snapshot");
        let saved = repository.save_unpacked(ObjectKind::Snapshot, &text).await;
        let name = saved.map_err(|error| repository_failure(&self.order.to, &error))?;
        fail_point::hit("copy-after-snapshot");
        let id = name.content_hash().map(|hash| SnapshotId(*hash));
        let id = id.ok_or_else(|| Failure::new(ErrorCode::Internal, "a snapshot has no hash"))?;
        let copy = described(id, &self.order.to, &object, record.clone(), self.core.clock.now());
        // So that no hold is placed or released between the question and the deed.
        let _turn = self.core.holds.lock().await;
        let target = format!("snapshot/{id}: copy of {} in {}", record.id, self.order.from);
        let batch = Batch::new("controller", "snapshot.copy", target).put_snapshot(&copy);
        let batch = self.core.catalog.inherit_hold(batch, &copy, record.id).await?;
        self.core.records.commit(batch).await?;
        fail_point::hit("copy-after-catalog");
        Ok(id)
    }

    /// Calls a snapshot whole again after all that it needs was found, or stored again, in packs that are relied on. Not
    /// when more was found damaged since that was begun. Says whether it is whole.
    pub(super) async fn take_back(&self, before: &SnapshotRecord, times_worse: u64) -> Result<bool, Failure> {
        let index = self.to.index();
        let now = self.core.clock.now();
        let prove = |proof: &mut Proof| {
            if proof.damage == before.proof.damage && index.times_worse() == times_worse {
                proof.damage = None;
                proof.checked_at = Some(now);
            }
        };
        self.core.catalog.prove(before.id, "snapshot.healed", prove).await?;
        let after = self.core.records.snapshot(before.id).await?;
        Ok(after.is_some_and(|after| after.proof.damage.is_none()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::snapshot;

    #[test]
    fn a_copy_is_proven_by_what_is_read_after_it_came() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let origin = snapshot(1, None, Timestamp::UNIX_EPOCH);
        let object =
            serde_json::json!({ "time": origin.committed_at, "tree": origin.tree, "original": origin.id });
        let object: SnapshotObject = serde_json::from_value(object).unwrap();
        let copy = described(SnapshotId([2; 32]), &"offsite".parse().unwrap(), &object, origin.clone(), now);
        assert_eq!((copy.committed_at, copy.entered_at), (origin.committed_at, Some(now)));
        assert_eq!((copy.original, copy.proof), (Some(origin.id), Proof::default()));
    }
}
