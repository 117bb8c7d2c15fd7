//! What a check of a repository proves of the snapshots in the catalog: of those that it looked at and of no other, as of
//! when it began.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_model::Failure;
use holdfast_model::ids::{RepositoryName, SnapshotId};
use holdfast_model::snapshot::{Proof, SnapshotRecord};
use holdfast_repository::check::CheckReport;
use jiff::Timestamp;

use crate::catalog::Catalog;
use crate::records::Records;

/// What is said of a snapshot that only findings touch which were not kept.
const UNTOLD: &str = "something that it needs is damaged or missing; there were too many findings to name it";

/// What is known of the snapshots of a repository when a check begins.
pub(crate) struct CheckProof {
    began: Timestamp,
    /// Whether it reads everything.
    reads_all: bool,
    /// What was damaged then, and how.
    damaged: BTreeMap<SnapshotId, String>,
}

impl CheckProof {
    /// Looks at the catalog before a check begins.
    ///
    /// # Errors
    /// When the state can not be read.
    pub(crate) async fn begin(
        records: &Records,
        repository: &RepositoryName,
        began: Timestamp,
        reads_all: bool,
    ) -> Result<Self, Failure> {
        let mut damaged = BTreeMap::new();
        let mut before: Option<String> = None;
        while let Some(page) = page(records, repository, &mut before).await? {
            let found = page.into_iter().filter_map(|record| Some((record.id, record.proof.damage?)));
            damaged.extend(found);
        }
        Ok(Self { began, reads_all, damaged })
    }

    /// Enters what the check proved. Says whether it is known of every snapshot which of the damaged packs touch it: the
    /// check looked at it, or it was made without relying on them.
    ///
    /// # Errors
    /// When the state can not be read or written.
    pub(crate) async fn enter(
        self,
        (records, catalog): (&Records, &Catalog),
        repository: &RepositoryName,
        report: &CheckReport,
        is_relied_on: impl Fn(&SnapshotRecord) -> bool,
    ) -> Result<bool, Failure> {
        let id = |id: &holdfast_repository::id::SnapshotId| SnapshotId(*id.as_bytes());
        let sound: BTreeSet<SnapshotId> = report.sound_snapshots.iter().map(id).collect();
        let mut touched: BTreeMap<SnapshotId, String> =
            report.touched_snapshots.iter().map(|of| (id(of), UNTOLD.to_owned())).collect();
        for finding in report.findings.iter().rev().filter(|finding| finding.kind.is_harmful()) {
            touched.extend(finding.snapshots.iter().map(|of| (id(of), finding.to_string())));
        }
        let mut is_all_known = true;
        let mut before: Option<String> = None;
        while let Some(page) = page(records, repository, &mut before).await? {
            for record in page {
                let prove = |proof: &mut Proof| match touched.get(&record.id) {
                    Some(damage) => proof.damage = Some(damage.clone()),
                    None => self.prove(record.id, proof),
                };
                if touched.contains_key(&record.id) || sound.contains(&record.id) {
                    catalog.prove(record.id, "snapshot.checked", prove).await?;
                } else {
                    is_all_known &= is_relied_on(&record);
                }
            }
        }
        Ok(is_all_known)
    }

    /// All of it is there; every byte of it was read when the check read everything.
    fn prove(&self, id: SnapshotId, proof: &mut Proof) {
        if proof.damage.is_some() && proof.damage.as_ref() != self.damaged.get(&id) {
            // Found by somebody else since this check began: it may have looked before that.
            return;
        }
        proof.checked_at = Some(self.began);
        if self.reads_all {
            proof.read_at = Some(self.began);
            proof.damage = None;
        }
    }
}

/// The next snapshots of a repository, newest first, those of other programs too; none when there are no more.
async fn page(
    records: &Records,
    repository: &RepositoryName,
    before: &mut Option<String>,
) -> Result<Option<Vec<SnapshotRecord>>, Failure> {
    let page = records.snapshots_before(None, before.as_deref(), 500).await?;
    let Some((_, last)) = page.last() else { return Ok(None) };
    *before = Some(last.clone());
    let records = page.into_iter().map(|(record, _)| record);
    Ok(Some(records.filter(|record| record.repository == *repository).collect()))
}

#[cfg(test)]
mod tests {
    use holdfast_repository::check::{Finding, FindingKind, FindingObject};
    use holdfast_runtime::{Clock as _, ManualClock, Shutdown, TaskGroup};
    use jiff::SignedDuration;

    use super::*;
    use crate::catalog::describe;
    use crate::records::Batch;
    use crate::store::{EmbeddedStore, StoreSettings};

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    struct Checked {
        _folder: tempfile::TempDir,
        records: Records,
        catalog: Catalog,
        clock: ManualClock,
    }

    impl Checked {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let tasks = TaskGroup::new(&Shutdown::new());
            let clock = ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap());
            let settings = StoreSettings::new(folder.path());
            let records = Records::new(EmbeddedStore::open(settings, clock.shared(), &tasks).unwrap());
            let catalog = Catalog::new(records.clone(), clock.shared());
            Self { _folder: folder, records, catalog, clock }
        }

        fn main() -> RepositoryName {
            "main".parse().unwrap()
        }

        async fn snapshot(&self, number: u8, damage: Option<&str>) {
            let object = serde_json::json!({
                "time": self.clock.now(), "tree": "00".repeat(32), "paths": ["/srv"], "hostname": "db1"
            });
            let object = serde_json::from_value(object).unwrap();
            let mut record = describe(SnapshotId([number; 32]), &Self::main(), &object, None);
            record.proof.damage = damage.map(str::to_owned);
            self.records.commit(Batch::new("test", "test", "test").put_snapshot(&record)).await.unwrap();
        }

        async fn damage(&self, number: u8, damage: &str) {
            let damage = |proof: &mut Proof| proof.damage = Some(damage.to_owned());
            self.catalog.prove(SnapshotId([number; 32]), "test", damage).await.unwrap();
        }

        async fn begin(&self, reads_all: bool) -> CheckProof {
            let began = self.clock.now();
            let proof = CheckProof::begin(&self.records, &Self::main(), began, reads_all).await.unwrap();
            self.clock.advance(std::time::Duration::from_secs(3600));
            proof
        }

        async fn enter(&self, proof: CheckProof, report: &CheckReport, relied_on: u8) -> bool {
            let is_relied_on = |record: &SnapshotRecord| record.id.0[0] == relied_on;
            let to = (&self.records, &self.catalog);
            proof.enter(to, &Self::main(), report, is_relied_on).await.unwrap()
        }

        async fn proof(&self, number: u8) -> Proof {
            self.records.snapshot(SnapshotId([number; 32])).await.unwrap().unwrap().proof
        }
    }

    fn report(sound: &[u8], touched: &[u8]) -> CheckReport {
        let ids = |numbers: &[u8]| {
            numbers
                .iter()
                .map(|number| holdfast_repository::id::SnapshotId::from_bytes([*number; 32]))
                .collect()
        };
        CheckReport { sound_snapshots: ids(sound), touched_snapshots: ids(touched), ..CheckReport::default() }
    }

    #[tokio::test]
    async fn a_check_proves_what_it_looked_at_as_of_its_beginning_and_nothing_else() {
        let checked = Checked::new();
        checked.snapshot(1, None).await;
        checked.snapshot(2, Some("of old")).await;
        checked.snapshot(3, None).await;
        let began = checked.clock.now();
        let proof = checked.begin(true).await;
        checked.snapshot(4, None).await;
        checked.damage(3, "found meanwhile").await;
        assert!(!checked.enter(proof, &report(&[1, 2, 3], &[]), 0).await, "nobody looked at the new one");
        let read = Proof { checked_at: Some(began), read_at: Some(began), ..Proof::default() };
        assert_eq!((checked.proof(1).await, checked.proof(2).await), (read.clone(), read));
        let damaged = Proof { damage: Some("found meanwhile".to_owned()), ..Proof::default() };
        assert_eq!((checked.proof(3).await, checked.proof(4).await), (damaged, Proof::default()));
        assert!(checked.clock.now() - HOUR == began);
    }

    #[tokio::test]
    async fn a_check_that_does_not_read_everything_takes_no_damage_back() {
        let checked = Checked::new();
        checked.snapshot(1, Some("of old")).await;
        let proof = checked.begin(false).await;
        checked.snapshot(2, None).await;
        assert!(checked.enter(proof, &report(&[1], &[]), 2).await, "the new one relies on nothing damaged");
        let found = checked.proof(1).await;
        assert_eq!((found.damage.as_deref(), found.read_at), (Some("of old"), None));
    }

    #[tokio::test]
    async fn what_no_kept_finding_names_is_damaged_too() {
        let checked = Checked::new();
        checked.snapshot(1, None).await;
        checked.snapshot(2, None).await;
        let mut report = report(&[], &[1, 2]);
        report.findings.push(Finding {
            kind: FindingKind::Damaged,
            object: FindingObject::Keys,
            detail: "broken".to_owned(),
            snapshots: vec![report.touched_snapshots[0]],
        });
        let proof = checked.begin(true).await;
        assert!(checked.enter(proof, &report, 0).await);
        let damage = async |number| checked.proof(number).await.damage.unwrap();
        assert!(damage(1).await.starts_with("every key is damaged: broken"), "{}", damage(1).await);
        assert_eq!(damage(2).await, UNTOLD);
        assert_eq!(checked.proof(2).await.read_at, None);
    }
}
