use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use holdfast_model::ids::SnapshotId;
use holdfast_runtime::{ManualClock, Shutdown, TaskGroup};

use super::*;
use crate::catalog::describe;
use crate::records::Records;
use crate::secrets::Secrets;
use crate::store::{EmbeddedStore, StoreSettings};

struct Opened {
    _folder: tempfile::TempDir,
    repositories: Repositories,
    repository: Arc<OpenRepository>,
}

impl Opened {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tasks = TaskGroup::new(&Shutdown::new());
        let clock = ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap());
        let settings = StoreSettings::new(folder.path().join("state"));
        let records = Records::new(EmbeddedStore::open(settings, clock.shared(), &tasks).unwrap());
        let key = folder.path().join("key");
        std::fs::write(&key, "a password of tests").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let spec = serde_json::json!({
            "url": format!("file://{}", folder.path().join("repository").display()),
            "encryption": { "key": { "file": key } }
        });
        let blobs = folder.path().join("blobs");
        let repositories = Repositories::new(Secrets::from_process(), clock.shared(), records, blobs, tasks);
        let spec = serde_json::from_value(spec).unwrap();
        let (repository, _) = repositories.init(&"main".parse().unwrap(), &spec).await.unwrap();
        Self { _folder: folder, repositories, repository }
    }

    /// What is doubted, in memory and as it is stored.
    async fn doubted(&self) -> BTreeSet<PackId> {
        let stored = self.repositories.damaged_packs(&self.repository.name).await.unwrap().packs;
        assert_eq!(self.repository.doubted().into_iter().collect::<BTreeSet<_>>(), stored);
        stored
    }
}

fn pack(number: usize) -> PackId {
    PackId::of(&number.to_le_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_doubt_packs_at_once_none_is_lost() {
    let opened = Opened::new().await;
    let (repositories, repository) = (&opened.repositories, &opened.repository);
    repositories.doubt(repository, &[pack(100), pack(101)]).await.unwrap();
    let doubts = (0..40).map(|number| async move {
        let own = [pack(number)];
        repositories.doubt(repository, &own).await.unwrap();
        repositories.doubt(repository, &[]).await.unwrap();
        repositories.touched_are_named(&repository.name, &own).await.unwrap();
    });
    let gone = IdSet::from_iter([pack(101)]);
    let prune = repositories.doubt_no_more(repository, &gone);
    let (_, pruned) = futures::join!(futures::future::join_all(doubts), prune);
    pruned.unwrap();
    let all: BTreeSet<PackId> = (0..40).chain([100]).map(pack).collect();
    assert_eq!(opened.doubted().await, all);
    let named: BTreeSet<PackId> = repositories.named(repository).await.unwrap().into_iter().collect();
    assert_eq!(named, (0..40).map(pack).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_read_everything_settles_only_what_was_doubted_before_it() {
    let opened = Opened::new().await;
    let (repositories, repository) = (&opened.repositories, &opened.repository);
    repositories.doubt(repository, &[pack(1), pack(2)]).await.unwrap();
    let before = repository.doubted();
    repositories.doubt(repository, &[pack(3)]).await.unwrap();
    repositories.doubt_after_check(repository, &[pack(2), pack(4)], &before).await.unwrap();
    assert_eq!(opened.doubted().await, BTreeSet::from([pack(2), pack(3), pack(4)]));
}

#[test]
fn packs_beyond_those_that_are_remembered_count_as_looked_into() {
    let mut damaged = DamagedPacks { packs: (0..10).map(pack).collect(), ..DamagedPacks::default() };
    damaged.named.insert(pack(3));
    let doubted: Vec<PackId> = (0..DAMAGED_PACKS_KEPT_MAX + 1).map(pack).collect();
    assert_eq!(damaged.named(&doubted), IdSet::from_iter([pack(3)]), "it may be another's");
    damaged.packs = doubted.iter().copied().take(DAMAGED_PACKS_KEPT_MAX).collect();
    assert_eq!(damaged.named(&doubted), IdSet::from_iter([pack(3), pack(DAMAGED_PACKS_KEPT_MAX)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_made_while_damage_was_found_is_to_be_checked_again() {
    let opened = Opened::new().await;
    let (repositories, repository) = (&opened.repositories, &opened.repository);
    let noon: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
    // Minutes from when the damage is found.
    let record = |begun: i64, entered: Option<i64>, checked: Option<i64>| {
        let at = |minutes: i64| noon + SignedDuration::from_mins(minutes);
        let object = serde_json::json!({
            "time": at(begun), "tree": "00".repeat(32), "paths": ["/srv"], "hostname": "db1"
        });
        let object = serde_json::from_value(object).unwrap();
        let mut record = describe(SnapshotId([1; 32]), &repository.name, &object, None);
        record.entered_at = entered.map(at);
        record.proof.checked_at = checked.map(at);
        record
    };
    let is_checked = repositories.is_checked(&repository.name).await.unwrap();
    assert!(is_checked(&record(-5, Some(5), Some(-1))) && !is_checked(&record(-5, Some(5), None)));
    repositories.doubt(repository, &[pack(1)]).await.unwrap();
    let is_checked = repositories.is_checked(&repository.name).await.unwrap();
    assert!(
        is_checked(&record(-5, Some(-3), Some(-1))),
        "what it relied on was not doubted: it was looked at"
    );
    assert!(!is_checked(&record(-5, Some(5), Some(0))) && is_checked(&record(-5, Some(5), Some(6))));
    assert!(!is_checked(&record(-5, None, Some(-1))) && is_checked(&record(1, Some(5), Some(-9))));
}
