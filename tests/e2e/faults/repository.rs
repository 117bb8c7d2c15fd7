//! A repository whose password is another, or whose objects are damaged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use holdfast_model::ErrorCode;
use holdfast_proto::v1;
use holdfast_tests::fleet::REPOSITORY_PASSWORD;
use holdfast_tests::packs::largest_pack;
use holdfast_tests::{Fleet, assert_same_tree};
use sha2::{Digest as _, Sha256};

use super::{add_tree, assert_failed, assert_work_goes_on, check, latest};

async fn fleet_with_backup() -> (Fleet, PathBuf, v1::Run) {
    let fleet = Fleet::start().await;
    let tree = add_tree(&fleet, "a1").await;
    let run = fleet.backup_well("tree", "full").await;
    (fleet, tree, run)
}

/// Every object of a repository, by its path.
fn objects(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(objects(&path));
        } else {
            found.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    found
}

/// The only object in a folder of the repository.
fn only_object(fleet: &Fleet, folder: &str) -> PathBuf {
    let mut found = objects(&fleet.repository().join(folder)).into_keys();
    let only = found.next().expect("there is one");
    assert_eq!(found.next(), None);
    only
}

/// The name of an object in messages.
fn name_of(fleet: &Fleet, object: &Path) -> String {
    object.strip_prefix(fleet.repository()).unwrap().display().to_string()
}

/// An object that was harmed, with what puts it back.
struct Harmed {
    path: PathBuf,
    whole: Vec<u8>,
}

impl Harmed {
    fn delete(path: PathBuf) -> Self {
        let whole = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        Self { path, whole }
    }

    fn flip(path: PathBuf) -> Self {
        Self::change(path, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        })
    }

    fn change(path: PathBuf, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let whole = std::fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        change(&mut bytes);
        write_object(&path, &bytes);
        Self { path, whole }
    }

    /// What is said of an object whose bytes do not have the hash that its name says.
    fn wrong_hash(&self) -> String {
        let bytes = std::fs::read(&self.path).unwrap();
        format!("the SHA-256 of its {} bytes is {}", bytes.len(), hex::encode(Sha256::digest(&bytes)))
    }

    fn put_back(self) {
        write_object(&self.path, &self.whole);
    }
}

/// Objects are not writable by anybody; a new file in their place needs no right to change them.
fn write_object(path: &Path, bytes: &[u8]) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, bytes).unwrap();
    std::fs::rename(beside, path).unwrap();
}

/// Check, backup and restore all fail so, write nothing into the repository, and leave nothing beside the source.
async fn assert_all_fail(fleet: &Fleet, code: ErrorCode, message: &str) {
    let names = || {
        let entries = std::fs::read_dir(fleet.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = entries.collect();
        names.sort();
        names
    };
    let before = (objects(&fleet.repository()), names());
    assert_failed(&check(fleet, false).await, code, message);
    assert_failed(&fleet.backup("tree", "full").await, code, message);
    assert_failed(&fleet.restore(latest("tree")).await.unwrap(), code, message);
    assert!((objects(&fleet.repository()), names()) == before, "something was written");
    assert_eq!(fleet.snapshots_of("tree").await.len(), 1);
}

async fn state(fleet: &Fleet) -> String {
    let listed = fleet.repositories().list(v1::ListRepositoriesRequest {}).await.unwrap().into_inner();
    listed.repositories[0].state.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_opens_nothing_until_the_right_one_is_back() {
    let (mut fleet, tree, _) = fleet_with_backup().await;
    fleet.stop_controller().await;
    std::fs::write(fleet.password_file(), "the password of another repository").unwrap();
    fleet.start_controller().await;
    let message = "the password opens none of the 1 keys of the repository";
    assert_all_fail(&fleet, ErrorCode::RepositoryWrongPassword, message).await;
    assert_eq!(state(&fleet).await, "locked-out");
    std::fs::write(fleet.password_file(), REPOSITORY_PASSWORD).unwrap();
    assert_work_goes_on(&fleet, &tree).await;
    assert_eq!(state(&fleet).await, "open");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_missing_key_opens_nothing_until_it_is_back() {
    let (mut fleet, tree, _) = fleet_with_backup().await;
    fleet.stop_controller().await;
    let key = only_object(&fleet, "keys");
    let harmed = Harmed::flip(key.clone());
    fleet.start_controller().await;
    let message = format!("{} is damaged: {}", name_of(&fleet, &key), harmed.wrong_hash());
    assert_all_fail(&fleet, ErrorCode::ObjectDamaged, &message).await;
    harmed.put_back();
    let harmed = Harmed::delete(key);
    let message = "the repository has no key object";
    assert_all_fail(&fleet, ErrorCode::ObjectMissing, message).await;
    assert_eq!(state(&fleet).await, "damaged");
    harmed.put_back();
    assert_work_goes_on(&fleet, &tree).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_missing_config_opens_nothing_until_it_is_back() {
    let (mut fleet, tree, _) = fleet_with_backup().await;
    fleet.stop_controller().await;
    let config = fleet.repository().join("config");
    let harmed = Harmed::flip(config.clone());
    fleet.start_controller().await;
    let message = "config is damaged: it does not open with the key of the repository";
    assert_all_fail(&fleet, ErrorCode::ObjectDamaged, message).await;
    harmed.put_back();
    let harmed = Harmed::delete(config);
    let message = "there is no repository at this place: it has no config object";
    assert_all_fail(&fleet, ErrorCode::RepositoryMissing, message).await;
    harmed.put_back();
    assert_work_goes_on(&fleet, &tree).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_object_that_the_controller_has_to_read_opens_nothing_until_it_is_back() {
    let (mut fleet, tree, _) = fleet_with_backup().await;
    fleet.stop_controller().await;
    std::fs::remove_dir_all(fleet.path().join("controller/blobs")).unwrap();
    let index = only_object(&fleet, "index");
    let harmed = Harmed::flip(index.clone());
    fleet.start_controller().await;
    let message = format!("{} is damaged: {}", name_of(&fleet, &index), harmed.wrong_hash());
    assert_all_fail(&fleet, ErrorCode::ObjectDamaged, &message).await;
    harmed.put_back();
    assert_work_goes_on(&fleet, &tree).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_gone_is_made_again_from_the_packs() {
    let (mut fleet, tree, run) = fleet_with_backup().await;
    fleet.stop_controller().await;
    std::fs::remove_file(only_object(&fleet, "index")).unwrap();
    fleet.start_controller().await;
    assert_work_goes_on(&fleet, &tree).await;
    fleet.restic().restore(&run.snapshot_id, &fleet.path().join("by-restic"));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_damaged_pack_held_is_stored_again_by_the_next_backup() {
    let (mut fleet, tree, run) = fleet_with_backup().await;
    for harm in [|path| Harmed::change(path, |bytes| bytes[100] ^= 1), Harmed::delete] {
        let pack = largest_pack(&fleet.repository());
        let harmed = harm(pack.clone());
        assert_eq!(check(&fleet, true).await.phase, "failed");
        // A restart forgets nothing of it.
        fleet.stop_controller().await;
        fleet.start_controller().await;
        let next = fleet.backup_well("tree", "incremental").await;
        let (_, report) = fleet.restore_well(latest("tree")).await;
        assert_same_tree(&tree, report.targets[0].restored.as_ref());
        // The pack is still damaged; the new snapshot does not need it.
        assert_eq!(check(&fleet, true).await.phase, "failed");
        let newest = &fleet.snapshots_of("tree").await[0];
        assert_eq!((&newest.id, &*newest.proof), (&next.snapshot_id, "restored"));
        harmed.put_back();
        assert_eq!(check(&fleet, true).await.phase, "succeeded");
    }
    fleet.restic().check_all_data();
    fleet.restic().restore(&run.snapshot_id, &fleet.path().join("by-restic"));
    fleet.stop().await;
}

async fn verified(fleet: &Fleet, run: &v1::Run) -> v1::Run {
    let verify = v1::StartVerify { snapshot: run.snapshot_id.clone() };
    let verify = fleet.start_run(v1::start_request::What::Verify(verify)).await.unwrap();
    fleet.ended(&verify).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_verification_found_damaged_is_stored_again_by_the_next_backup() {
    let (mut fleet, tree, first) = fleet_with_backup().await;
    let packs = objects(&fleet.repository().join("data"));
    let of_folders = packs.into_iter().min_by_key(|(_, bytes)| bytes.len()).unwrap().0;
    let mut newest = first;
    for pack in [largest_pack(&fleet.repository()), of_folders] {
        Harmed::change(pack, |bytes| bytes[20] ^= 1);
        assert_eq!(verified(&fleet, &newest).await.phase, "failed");
        // A restart forgets nothing of it.
        fleet.stop_controller().await;
        fleet.start_controller().await;
        newest = fleet.backup_well("tree", "incremental").await;
        assert_eq!(verified(&fleet, &newest).await.phase, "succeeded");
        let (_, report) = fleet.restore_well(latest("tree")).await;
        assert_same_tree(&tree, report.targets[0].restored.as_ref());
        let after = fleet.backup_well("tree", "incremental").await;
        let progress = after.progress.expect("a backup has counters");
        assert_eq!(progress.files_unchanged, progress.files_done, "{progress:?}");
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_pack_held_is_stored_again_though_nobody_checked() {
    let (mut fleet, tree, _) = fleet_with_backup().await;
    fleet.stop_controller().await;
    Harmed::delete(largest_pack(&fleet.repository()));
    fleet.start_controller().await;
    fleet.backup_well("tree", "incremental").await;
    let (_, report) = fleet.restore_well(latest("tree")).await;
    assert_same_tree(&tree, report.targets[0].restored.as_ref());
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_what_is_held_open_is_found_by_the_next_check() {
    let (fleet, tree, run) = fleet_with_backup().await;
    let [key, index] = ["keys", "index"].map(|folder| only_object(&fleet, folder));
    let found = async |finding: String| {
        let message = format!("1 thing is not as stored; the first: {finding}");
        assert_failed(&check(&fleet, false).await, ErrorCode::ObjectDamaged, &message);
    };
    let harmed = Harmed::flip(key.clone());
    let name = name_of(&fleet, &key);
    found(format!("key {name} is damaged: {}", harmed.wrong_hash())).await;
    harmed.put_back();
    let harmed = Harmed::delete(key);
    found("every key is missing: no password opens the repository any more".to_owned()).await;
    harmed.put_back();
    let harmed = Harmed::flip(fleet.repository().join("config"));
    found("config config is damaged: it does not open with the key of the repository".to_owned()).await;
    harmed.put_back();
    let harmed = Harmed::flip(only_object(&fleet, "snapshots"));
    let snapshot = &run.snapshot_id;
    let touched = format!("{} (touches snapshot {})", harmed.wrong_hash(), &snapshot[..8]);
    found(format!("snapshot snapshots/{snapshot} is damaged: {touched}")).await;
    assert_eq!(fleet.snapshots_of("tree").await[0].proof, "damaged");
    harmed.put_back();
    let harmed = Harmed::flip(index.clone());
    let damaged = check(&fleet, false).await;
    let first = format!("index {} is damaged: {}", name_of(&fleet, &index), harmed.wrong_hash());
    assert_eq!(damaged.findings[0], first);
    harmed.put_back();
    assert_eq!(check(&fleet, true).await.phase, "succeeded");
    assert_eq!(fleet.snapshots_of("tree").await[0].proof, "read");
    assert_work_goes_on(&fleet, &tree).await;
    fleet.stop().await;
}

/// A restore failed for the content of some files, with a cause like this.
#[track_caller]
fn assert_restore_failed(run: &v1::Run, code: ErrorCode, is_cause: impl Fn(&str) -> bool) {
    assert_eq!(run.phase, "failed", "{run:?}");
    let failure = run.failure.as_ref().expect("a run that failed says why");
    assert_eq!(failure.code, code.to_string(), "{failure:?}");
    assert!(failure.message.starts_with("the content of \"data/"), "{failure:?}");
    assert!(failure.message.ends_with(" cannot be restored"), "{failure:?}");
    assert!(failure.why.iter().any(|why| is_cause(why)), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pack_is_never_restored_as_if_it_were_whole() {
    let (fleet, tree, _) = fleet_with_backup().await;
    let pack = largest_pack(&fleet.repository());
    let name = name_of(&fleet, &pack);
    let size = std::fs::metadata(&pack).unwrap().len();

    let harmed = Harmed::delete(pack.clone());
    let gone = fleet.restore(latest("tree")).await.unwrap();
    let cause = format!("object {name}: not found");
    assert_restore_failed(&gone, ErrorCode::ObjectMissing, |why| why.starts_with(&cause));
    harmed.put_back();

    let harmed = Harmed::change(pack.clone(), |bytes| bytes.truncate(8));
    let short = fleet.restore(latest("tree")).await.unwrap();
    let cause = format!("object {name}: it is damaged, it has 8 bytes, ");
    assert_restore_failed(&short, ErrorCode::ObjectDamaged, |why| why.starts_with(&cause));
    harmed.put_back();

    let harmed = Harmed::change(pack.clone(), |bytes| bytes[100] ^= 1);
    let flipped = fleet.restore(latest("tree")).await.unwrap();
    let cause = format!(" in {name} is damaged: its authentication tag does not fit");
    assert_restore_failed(&flipped, ErrorCode::ObjectDamaged, |why| why.ends_with(&cause));
    harmed.put_back();

    let harmed = Harmed::change(pack.clone(), |bytes| bytes.truncate(8));
    let found = check(&fleet, false).await;
    let message = format!("pack {name} is damaged: it has 8 bytes, by the index it must have {size}");
    assert!(found.findings.iter().any(|finding| finding.starts_with(&message)), "{found:?}");
    let refused = fleet.restore(latest("tree")).await.unwrap_err();
    let message = "source tree has no snapshot that can be restored";
    assert_eq!((refused.code, &*refused.message), (ErrorCode::SnapshotUnknown, message));
    harmed.put_back();

    for run in [gone, short, flipped] {
        assert_eq!(run.restored_json, "", "nothing is said to be restored");
    }
    assert_eq!(check(&fleet, true).await.phase, "succeeded");
    assert_work_goes_on(&fleet, &tree).await;
    fleet.stop().await;
}
