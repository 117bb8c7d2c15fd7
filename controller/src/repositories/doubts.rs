//! Which packs of repositories are not relied on, and what that says of snapshots.

use std::collections::BTreeSet;

use holdfast_model::Failure;
use holdfast_model::ids::RepositoryName;
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_repository::id::{IdSet, PackId};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{OpenRepository, Repositories};
use crate::records::Batch;
use crate::store::{Expect, Kind};

/// Damaged packs that are remembered over a restart.
const DAMAGED_PACKS_KEPT_MAX: usize = 50_000;

/// Packs of a repository that are not relied on, as they are stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DamagedPacks {
    pub(super) packs: BTreeSet<PackId>,
    /// Those of them of which the snapshots that they touch were named.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    named: BTreeSet<PackId>,
    /// When the last of them was found, or the newest snapshot was made, whichever is later.
    found_at: Option<Timestamp>,
}

impl DamagedPacks {
    /// Those of the `doubted` packs of which it is known which snapshots they touch. Of more than are remembered nobody
    /// could note it: they count as looked into, or that would never end.
    fn named(&self, doubted: &[PackId]) -> IdSet<PackId> {
        let is_full = self.packs.len() >= DAMAGED_PACKS_KEPT_MAX;
        let beyond = doubted.iter().filter(|pack| is_full && !self.packs.contains(pack));
        self.named.iter().chain(beyond).copied().collect()
    }
}

/// When the run began that made a snapshot.
fn begun_at(record: &SnapshotRecord) -> Timestamp {
    let took = SignedDuration::from_millis(record.duration_millis.try_into().unwrap_or(i64::MAX));
    record.committed_at.saturating_sub(took).unwrap_or(Timestamp::MIN)
}

impl Repositories {
    pub(super) async fn damaged_packs(&self, name: &RepositoryName) -> Result<DamagedPacks, Failure> {
        let found = self.records.get::<DamagedPacks>(Kind::DamagedPacks, name.as_str()).await?;
        Ok(found.map(|found| found.value).unwrap_or_default())
    }

    /// How many packs of a repository are known to be damaged or gone.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn damaged_count(&self, name: &RepositoryName) -> Result<usize, Failure> {
        Ok(self.damaged_packs(name).await?.packs.len())
    }

    /// Whether all that a snapshot has in its repository is relied on: no pack was found damaged since its run began. One
    /// that is not must not spare the next backup the reading of anything.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn relies_on(
        &self,
        name: &RepositoryName,
    ) -> Result<impl Fn(&SnapshotRecord) -> bool, Failure> {
        let damaged = self.damaged_packs(name).await?;
        let found_at = damaged.found_at.filter(|_| !damaged.packs.is_empty());
        Ok(move |record: &SnapshotRecord| {
            record.proof.damage.is_none() && found_at.is_none_or(|found_at| begun_at(record) > found_at)
        })
    }

    /// Whether the structure of a snapshot was checked; after packs were found damaged while it was made, since then: it may
    /// have relied on them.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn is_checked(
        &self,
        name: &RepositoryName,
    ) -> Result<impl Fn(&SnapshotRecord) -> bool, Failure> {
        let damaged = self.damaged_packs(name).await?;
        let found_at = damaged.found_at.filter(|_| !damaged.packs.is_empty());
        Ok(move |record: &SnapshotRecord| {
            let Some(checked_at) = record.proof.checked_at else { return false };
            let is_during = |found_at: Timestamp| {
                begun_at(record) <= found_at && record.entered_at.is_none_or(|entered| entered > found_at)
            };
            !found_at.is_some_and(|found_at| is_during(found_at) && checked_at <= found_at)
        })
    }

    /// Relies no more on packs that were found damaged or gone, also after a restart: what they hold is stored again by
    /// the next backup that needs it.
    ///
    /// # Errors
    /// When the state can not be read or written.
    pub async fn doubt(&self, repository: &OpenRepository, found: &[PackId]) -> Result<(), Failure> {
        self.doubt_after_check(repository, found, &[]).await
    }

    /// As [`Repositories::doubt`]; relies again on the packs in `settled` that were not found.
    ///
    /// # Errors
    /// When the state can not be read or written.
    pub async fn doubt_after_check(
        &self,
        repository: &OpenRepository,
        found: &[PackId],
        settled: &[PackId],
    ) -> Result<(), Failure> {
        if found.is_empty() && settled.is_empty() {
            return Ok(());
        }
        let name = &repository.name;
        let _turn = self.doubting.lock().await;
        let known = self.damaged_packs(name).await?;
        let is_worse = found.iter().any(|pack| !known.packs.contains(pack));
        let settled: IdSet<PackId> = settled.iter().copied().collect();
        let mut packs = known.packs.clone();
        packs.retain(|pack| !settled.contains(pack));
        packs.extend(found);
        repository.index.change_doubts(&settled, found);
        if packs == known.packs {
            return Ok(());
        }
        let found_at = if is_worse { Some(self.latest_moment(name).await?) } else { known.found_at };
        let packs: BTreeSet<PackId> = packs.into_iter().take(DAMAGED_PACKS_KEPT_MAX).collect();
        let named = known.named.intersection(&packs).copied().collect();
        self.put_damaged(name, &DamagedPacks { packs, named, found_at }).await
    }

    async fn put_damaged(&self, name: &RepositoryName, damaged: &DamagedPacks) -> Result<(), Failure> {
        let batch = Batch::new("controller", "repository.damaged_packs", format!("repository/{name}"));
        self.records.commit(batch.put(Kind::DamagedPacks, name.as_str(), damaged, Expect::Any)).await?;
        Ok(())
    }

    /// Notes of packs that are not relied on that it was found out which snapshots they touch, if any.
    ///
    /// # Errors
    /// When the state can not be read or written.
    pub async fn touched_are_named(&self, name: &RepositoryName, packs: &[PackId]) -> Result<(), Failure> {
        if packs.is_empty() {
            return Ok(());
        }
        let _turn = self.doubting.lock().await;
        let mut damaged = self.damaged_packs(name).await?;
        let before = damaged.named.len();
        let known = packs.iter().filter(|pack| damaged.packs.contains(pack)).copied();
        damaged.named.extend(known);
        if damaged.named.len() > before { self.put_damaged(name, &damaged).await } else { Ok(()) }
    }

    /// The packs of which it is known which snapshots they touch.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn named(&self, repository: &OpenRepository) -> Result<IdSet<PackId>, Failure> {
        Ok(self.damaged_packs(&repository.name).await?.named(&repository.doubted()))
    }

    /// Doubts packs no more that are gone in order: a prune took them away.
    ///
    /// # Errors
    /// When the state can not be read or written.
    pub async fn doubt_no_more(
        &self,
        repository: &OpenRepository,
        gone: &IdSet<PackId>,
    ) -> Result<(), Failure> {
        let name = &repository.name;
        let _turn = self.doubting.lock().await;
        let mut known = self.damaged_packs(name).await?;
        let before = known.packs.len();
        known.packs.retain(|pack| !gone.contains(pack));
        known.named.retain(|pack| !gone.contains(pack));
        if known.packs.len() < before {
            self.put_damaged(name, &known).await?;
        }
        repository.index.change_doubts(gone, &[]);
        Ok(())
    }

    /// Now, or when the newest snapshot of a repository was committed if the clock was set back since.
    async fn latest_moment(&self, name: &RepositoryName) -> Result<Timestamp, Failure> {
        let mut moment = self.clock.now();
        let mut before: Option<String> = None;
        loop {
            let page = self.records.snapshots_before(None, before.as_deref(), 100).await?;
            let Some((_, last)) = page.last() else { return Ok(moment) };
            before = Some(last.clone());
            let newest = page.iter().map(|(record, _)| record).find(|record| record.repository == *name);
            if let Some(newest) = newest {
                moment = moment.max(newest.committed_at);
                return Ok(moment);
            }
        }
    }
}

#[cfg(test)]
mod tests;
