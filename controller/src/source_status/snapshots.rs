//! The few snapshots of each source that its state follows from, kept until one of them changes: status, metrics and alerts
//! ask for them all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_model::Failure;
use holdfast_model::ids::{RepositoryName, SourceName};
use holdfast_model::run::SnapshotType;
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::source::Source;
use parking_lot::Mutex;

use crate::catalog::Catalog;
use crate::copy_schedule;
use crate::core::Core;

/// Snapshots of a source looked at for its state.
const LOOKED_AT: usize = 200;
/// How long it is relied on what was found among those that are older: no mark tells when they change.
const OLDER_KNOWN_FOR: Duration = Duration::from_secs(60);

/// The telling snapshots of the sources that were asked for.
#[derive(Default)]
pub struct SnapshotCache(Mutex<BTreeMap<SourceName, Known>>);

/// What is known of one source.
struct Known {
    /// Of the newest, while this is their mark.
    mark: u64,
    /// And until then, when older ones were looked at.
    until: Option<Instant>,
    telling: Arc<TellingSnapshots>,
}

/// Of the newest snapshots of a source, those that say all that is asked, and of a repository that has none among them the
/// newest sound one.
#[derive(Debug, Default)]
pub(super) struct TellingSnapshots {
    /// Newest first. Their manifests say nothing of tables.
    pub(super) records: Vec<SnapshotRecord>,
    /// How many were looked at.
    pub(super) count: u64,
}

impl SnapshotCache {
    pub(super) async fn get(&self, core: &Core, name: &SourceName) -> Result<Arc<TellingSnapshots>, Failure> {
        let (records, now) = (&core.records, core.clock.monotonic());
        let mark = records.snapshots_mark(name, LOOKED_AT).await?;
        let is_fresh = |known: &&Known| known.mark == mark && known.until.is_none_or(|until| now < until);
        if let Some(known) = self.0.lock().get(name).filter(is_fresh) {
            return Ok(known.telling.clone());
        }
        let snapshots = records.snapshots_before(Some(name.as_str()), None, LOOKED_AT).await?;
        let mut telling = telling(snapshots.into_iter().map(|(record, _)| record).collect());
        let mut until = None;
        if telling.count == LOOKED_AT as u64 {
            let older = older(&core.catalog, name, repositories_of(core, name), &telling.records).await?;
            telling.records.extend(older);
            until = Some(now + OLDER_KNOWN_FOR);
        }
        let telling = Arc::new(telling);
        self.0.lock().insert(name.clone(), Known { mark, until, telling: telling.clone() });
        Ok(telling)
    }

    pub(super) fn forget_all_but(&self, names: &BTreeMap<SourceName, Source>) {
        self.0.lock().retain(|name, _| names.contains_key(name));
    }
}

/// Of the snapshots of a source, newest first, those that its state, recovery points and last values follow from.
fn telling(snapshots: Vec<SnapshotRecord>) -> TellingSnapshots {
    let count = snapshots.len() as u64;
    let mut repositories: BTreeSet<RepositoryName> = BTreeSet::new();
    let mut types: BTreeSet<SnapshotType> = BTreeSet::new();
    let restored = snapshots.iter().filter(|record| record.proof.restored_at.is_some());
    let restored = restored.max_by_key(|record| record.proof.restored_at).map(|record| record.id);
    let is_read = |record: &&SnapshotRecord| record.proof.read_at.is_some() && record.proof.damage.is_none();
    let read = snapshots.iter().filter(is_read);
    let read = read.max_by_key(|record| record.proof.read_at).map(|record| record.id);
    let keep = |(index, record): &(usize, SnapshotRecord)| {
        let is_newest_sound = record.proof.damage.is_none() && repositories.insert(record.repository.clone());
        let is_newest_of_type = record.snapshot_type.is_some_and(|kind| types.insert(kind));
        let is_proof = [restored, read].contains(&Some(record.id));
        *index == 0 || is_newest_sound || is_newest_of_type || is_proof
    };
    let mut records: Vec<_> =
        snapshots.into_iter().enumerate().filter(keep).map(|(_, record)| record).collect();
    records.iter_mut().for_each(drop_tables);
    TellingSnapshots { records, count }
}

/// The rows of every table are not asked for.
fn drop_tables(record: &mut SnapshotRecord) {
    if let Some(manifest) = record.manifest.as_mut() {
        manifest.databases = Vec::new();
        manifest.unreadable = Vec::new();
    }
}

/// The repositories that a source goes to, by itself or as copies.
fn repositories_of(core: &Core, name: &SourceName) -> BTreeSet<RepositoryName> {
    let own =
        core.definitions.source(name).and_then(|source| core.definitions.repositories_of(name, &source));
    let targets = copy_schedule::targets(core, name).map(|(_, targets)| targets);
    own.unwrap_or_default().into_iter().chain(targets.unwrap_or_default()).collect()
}

/// The newest sound snapshots of a source in those of the repositories that have none among the known, newest first.
async fn older(
    catalog: &Catalog,
    name: &SourceName,
    mut repositories: BTreeSet<RepositoryName>,
    known: &[SnapshotRecord],
) -> Result<Vec<SnapshotRecord>, Failure> {
    let is_sound = |record: &SnapshotRecord| record.proof.damage.is_none();
    for record in known.iter().filter(|record| is_sound(record)) {
        repositories.remove(&record.repository);
    }
    let mut older = Vec::new();
    for repository in &repositories {
        older.extend(catalog.latest(name, Some(repository), is_sound).await?);
    }
    older.iter_mut().for_each(drop_tables);
    older.sort_by_key(|record| std::cmp::Reverse((record.committed_at, record.id)));
    Ok(older)
}

#[cfg(test)]
mod tests {
    use holdfast_runtime::{Clock as _, ManualClock, Shutdown, TaskGroup};
    use jiff::SignedDuration;

    use super::*;
    use crate::catalog::tests::snapshot;
    use crate::records::{Batch, Records};
    use crate::store::{EmbeddedStore, StoreSettings};

    #[tokio::test]
    async fn a_repository_that_is_far_behind_is_known_by_its_newest_sound_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap());
        let tasks = TaskGroup::new(&Shutdown::new());
        let store = EmbeddedStore::open(StoreSettings::new(folder.path()), clock.shared(), &tasks);
        let records = Records::new(store.unwrap());
        let source: SourceName = "shop".parse().unwrap();
        let snapshot = |number: u16, repository: &str| SnapshotRecord {
            repository: repository.parse().unwrap(),
            ..snapshot(number, None, clock.now() + SignedDuration::from_secs(number.into()))
        };
        let mut batch = Batch::new("test", "test", "test");
        let sound = snapshot(2, "offsite");
        let mut damaged = snapshot(3, "offsite");
        damaged.proof.damage = Some("a pack is damaged".to_owned());
        for record in [&snapshot(1, "offsite"), &sound, &damaged] {
            batch = batch.put_snapshot(record);
        }
        for number in 10..10 + u16::try_from(LOOKED_AT).unwrap() {
            batch = batch.put_snapshot(&snapshot(number, "main"));
        }
        records.commit(batch).await.unwrap();
        let newest = records.snapshots_before(Some("shop"), None, LOOKED_AT).await.unwrap();
        let telling = telling(newest.into_iter().map(|(record, _)| record).collect());
        assert!(telling.records.iter().all(|record| record.repository.as_str() == "main"));
        let repositories = ["main", "offsite", "vault"].map(|name| name.parse().unwrap());
        let catalog = Catalog::new(records, clock.shared());
        let found = older(&catalog, &source, repositories.into(), &telling.records).await.unwrap();
        assert_eq!(found, [sound]);
    }

    #[test]
    fn a_damaged_snapshot_is_not_the_one_that_was_read_last() {
        let now: jiff::Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let read = |number: u16, hours: i64, damage: Option<&str>| {
            let mut record = snapshot(number, None, now - SignedDuration::from_hours(i64::from(number)));
            record.proof.read_at = Some(now - SignedDuration::from_hours(hours));
            record.proof.damage = damage.map(str::to_owned);
            record
        };
        let snapshots =
            vec![read(1, 9, None), read(2, 1, Some("broken")), read(3, 2, None), read(4, 5, None)];
        let told: Vec<u8> = telling(snapshots).records.iter().map(|record| record.id.0[1]).collect();
        assert_eq!(told, [1, 3]);
    }
}
