//! The few snapshots of each source that its state follows from, kept until one of them changes: status, metrics and alerts
//! ask for them all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holdfast_model::Failure;
use holdfast_model::ids::{RepositoryName, SourceName};
use holdfast_model::run::SnapshotType;
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::source::Source;
use parking_lot::Mutex;

use crate::records::Records;

/// Snapshots of a source looked at for its state.
const LOOKED_AT: usize = 200;

/// The telling snapshots of the sources that were asked for.
#[derive(Default)]
pub struct SnapshotCache(Mutex<BTreeMap<SourceName, (u64, Arc<TellingSnapshots>)>>);

/// Of the newest snapshots of a source, those that say all that is asked.
#[derive(Debug, Default)]
pub(super) struct TellingSnapshots {
    /// Newest first. Their manifests say nothing of tables.
    pub(super) records: Vec<SnapshotRecord>,
    /// How many were looked at.
    pub(super) count: u64,
}

impl SnapshotCache {
    pub(super) async fn get(
        &self,
        records: &Records,
        name: &SourceName,
    ) -> Result<Arc<TellingSnapshots>, Failure> {
        let mark = records.snapshots_mark(name, LOOKED_AT).await?;
        if let Some((_, known)) = self.0.lock().get(name).filter(|(known, _)| *known == mark) {
            return Ok(known.clone());
        }
        let snapshots = records.snapshots_before(Some(name.as_str()), None, LOOKED_AT).await?;
        let telling = Arc::new(telling(snapshots.into_iter().map(|(record, _)| record).collect()));
        self.0.lock().insert(name.clone(), (mark, telling.clone()));
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
    let read = snapshots.iter().filter(|record| record.proof.read_at.is_some());
    let read = read.max_by_key(|record| record.proof.read_at).map(|record| record.id);
    let keep = |(index, record): &(usize, SnapshotRecord)| {
        let is_newest_sound = record.proof.damage.is_none() && repositories.insert(record.repository.clone());
        let is_newest_of_type = record.snapshot_type.is_some_and(|kind| types.insert(kind));
        let is_proof = [restored, read].contains(&Some(record.id));
        *index == 0 || is_newest_sound || is_newest_of_type || is_proof
    };
    let mut records: Vec<_> =
        snapshots.into_iter().enumerate().filter(keep).map(|(_, record)| record).collect();
    for manifest in records.iter_mut().filter_map(|record| record.manifest.as_mut()) {
        // The rows of every table are not asked for.
        manifest.databases = Vec::new();
        manifest.unreadable = Vec::new();
    }
    TellingSnapshots { records, count }
}
