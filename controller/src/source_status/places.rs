//! Where the newest snapshot of a source is: in the repositories that it goes to, and in those that have copies.

use holdfast_model::Failure;
use holdfast_model::ids::RepositoryName;
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_proto::convert::timestamp;
use holdfast_proto::v1;
use jiff::Timestamp;

/// A repository that a policy has snapshots of a source copied to.
#[derive(Debug, Clone)]
pub struct CopyTarget {
    /// The repository.
    pub repository: RepositoryName,
    /// Why the last copy failed; none after one that did not.
    pub problem: Option<Failure>,
}

/// How a source stands in one repository.
#[derive(Debug, Clone)]
pub struct Place {
    /// The repository.
    pub repository: RepositoryName,
    /// Its newest sound snapshot there.
    pub newest: Option<SnapshotRecord>,
    /// By how much that is older than the newest of all, in seconds; none when there is none.
    pub behind_seconds: Option<i64>,
    /// Whether it gets copies by its policy.
    pub is_copy: bool,
    /// Why the last copy failed.
    pub problem: Option<Failure>,
}

/// The places of a source, in the order of their names. `snapshots` are the newest first.
pub(super) fn places(
    snapshots: &[SnapshotRecord],
    targets: &[CopyTarget],
    newest_at: Option<Timestamp>,
) -> Vec<Place> {
    let mut names: Vec<&RepositoryName> = snapshots.iter().map(|record| &record.repository).collect();
    names.extend(targets.iter().map(|target| &target.repository));
    names.sort_unstable();
    names.dedup();
    let place = |name: &RepositoryName| {
        let sound = |record: &&SnapshotRecord| record.repository == *name && record.proof.damage.is_none();
        let newest = snapshots.iter().find(sound);
        let behind = newest.zip(newest_at).map(|(newest, all)| all.duration_since(newest.captured_at()));
        let target = targets.iter().find(|target| target.repository == *name);
        Place {
            repository: name.clone(),
            newest: newest.cloned(),
            behind_seconds: behind.map(|behind| behind.as_secs()),
            is_copy: target.is_some(),
            problem: target.and_then(|target| target.problem.clone()),
        }
    };
    names.into_iter().map(place).collect()
}

impl Place {
    /// As it travels.
    pub(super) fn wire(&self) -> v1::SourcePlace {
        let newest = self.newest.as_ref();
        v1::SourcePlace {
            repository: self.repository.to_string(),
            snapshot_id: newest.map(|record| record.id.to_string()).unwrap_or_default(),
            captured_at: newest.map(|record| timestamp(record.captured_at())),
            behind_seconds: self.behind_seconds,
            is_copy: self.is_copy,
            proof: newest.map(|record| record.proof.level().to_owned()).unwrap_or_default(),
            problem: self.problem.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}
