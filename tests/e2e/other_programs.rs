//! Another program cleans up a repository of ours while we use it: nothing that we then call a snapshot lacks anything.

use std::path::Path;
use std::sync::Arc;

use holdfast_model::secret::Secret;
use holdfast_proto::v1;
use holdfast_repository::Repository;
use holdfast_repository::lock::{HeldLock, LockMode, LockOwner};
use holdfast_repository::storage::fs::FsStore;
use holdfast_tests::packs::packs;
use holdfast_tests::process_fleet::{LONG_LEASE, Program};
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{Fleet, ProcessFleet, TreeSpec, assert_same_tree};

fn restored_is_the_same(restic: &holdfast_tests::Restic, folder: &Path, tree: &Path, snapshot: &str) {
    let restored = folder.join(format!("restored-{snapshot}"));
    restic.restore(snapshot, &restored);
    assert_same_tree(tree, &restored.join(tree.strip_prefix("/").unwrap()));
}

/// Locks a repository as a program of another host does that removes objects.
pub(crate) async fn locked_elsewhere(repository: &Path, password_file: &Path) -> HeldLock {
    let store = FsStore::new(repository);
    let password = Secret::new(std::fs::read_to_string(password_file).unwrap().trim_end());
    let repository = Repository::open(Arc::new(store), &password).await.unwrap();
    let owner = LockOwner {
        hostname: "elsewhere".to_owned(),
        username: "ops".to_owned(),
        pid: 4711,
        uid: 1000,
        gid: 1000,
    };
    let now = holdfast_runtime::Clock::now(&holdfast_runtime::SystemClock);
    HeldLock::acquire(&repository, owner, LockMode::Exclusive, now).await.unwrap()
}

fn index_objects(repository: &Path) -> usize {
    // The folder comes with the first.
    std::fs::read_dir(repository.join("index")).map_or(0, Iterator::count)
}

/// Removes what a program does that found no index object when it looked, and writes no other.
fn remove_unindexed(repository: &Path) {
    let found = packs(repository);
    assert!(!found.is_empty(), "packs were stored");
    found.iter().for_each(|pack| std::fs::remove_file(pack).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_index_object_names_what_another_program_removes_because_none_did() {
    let place = "agent-before-commit-snapshot";
    let fleet = ProcessFleet::start(LONG_LEASE, [place]).await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(10).make(&tree);
    fleet.declare_tree(&tree).await;
    let hold = fleet.hold(place);
    let run = fleet.start_backup("tree", "full").await.unwrap();
    fleet.is_held(&hold).await;
    let lock = locked_elsewhere(&fleet.repository(), &fleet.password_file()).await;
    // Somebody else's work would have the packs written into an index object that the other program does not know.
    let check = v1::StartCheck { repository: "main".to_owned(), read_data: false };
    let check = fleet.start_run(v1::start_request::What::Check(check)).await.unwrap();
    let refused = fleet.ended(&check).await.failure.unwrap();
    assert_eq!(refused.code, "HF-3007", "{refused:?}");
    assert_eq!(index_objects(&fleet.repository()), 0);
    remove_unindexed(&fleet.repository());
    lock.release().await.unwrap();
    drop(hold);

    let ended = fleet.ended(&run).await;
    assert_eq!((ended.phase.as_str(), ended.attempt), ("succeeded", 2), "{ended:?}");
    let log = fleet.log(&ended).await;
    assert!(log.contains("[HF-3023]"), "{log}");
    fleet.restic().check_all_data();
    restored_is_the_same(&fleet.restic(), fleet.path(), &tree, &ended.snapshot_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_object_that_came_after_another_program_had_looked_is_taken_back() {
    let place = "controller-after-index";
    let fleet = ProcessFleet::start(LONG_LEASE, [place]).await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(11).make(&tree);
    fleet.declare_tree(&tree).await;
    let hold = fleet.hold(place);
    let run = fleet.start_backup("tree", "full").await.unwrap();
    fleet.is_held(&hold).await;
    assert_eq!(index_objects(&fleet.repository()), 1);
    let lock = locked_elsewhere(&fleet.repository(), &fleet.password_file()).await;
    drop(hold);
    until_async("the commit to be refused", PATIENCE, async || {
        fleet.log(&run).await.contains("HF-3007").then_some(())
    })
    .await;
    fleet.runs().cancel(v1::CancelRunRequest { run_id: run.id.clone() }).await.unwrap();
    assert_eq!(fleet.ended(&run).await.phase, "cancelled");
    assert_eq!(index_objects(&fleet.repository()), 0);
    remove_unindexed(&fleet.repository());
    lock.release().await.unwrap();

    let next = fleet.backup_well("tree", "full").await;
    fleet.restic().check_all_data();
    restored_is_the_same(&fleet.restic(), fleet.path(), &tree, &next.snapshot_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_packs_are_pruned_by_restic_before_it_commits_stores_them_again() {
    let place = "agent-before-commit-snapshot";
    let fleet = ProcessFleet::start(LONG_LEASE, [place]).await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(7).make(&tree);
    fleet.declare_tree(&tree).await;
    let hold = fleet.hold(place);
    let run = fleet.start_backup("tree", "full").await.unwrap();
    fleet.is_held(&hold).await;
    let before = packs(&fleet.repository());
    assert!(!before.is_empty(), "the backup has stored its packs");
    fleet.restic().run(&["prune"]);
    assert!(before.iter().all(|pack| !pack.exists()), "they were garbage to restic");
    drop(hold);

    let ended = fleet.ended(&run).await;
    assert_eq!((ended.phase.as_str(), ended.attempt), ("succeeded", 2), "{ended:?}");
    let log = fleet.log(&ended).await;
    assert!(log.contains("[HF-3023]"), "{log}");
    fleet.restic().check_all_data();
    restored_is_the_same(&fleet.restic(), fleet.path(), &tree, &ended.snapshot_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_snapshot_that_restic_repacks_during_its_check_is_not_called_damaged() {
    let place = "check-before-look";
    let fleet = ProcessFleet::start(LONG_LEASE, [place]).await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("stays"), "what both snapshots have").unwrap();
    std::fs::write(tree.join("changes"), "once").unwrap();
    let yaml = format!(
        "policies:\n  p: {{ to: [main] }}\nsources:\n  tree: {{ engine: files, agent: a1, policy: p, paths: [{}] }}\n",
        tree.display()
    );
    fleet.apply(&yaml).await.unwrap();
    let first = fleet.backup_well("tree", "full").await.snapshot_id;
    let proofs = async || -> Vec<String> {
        fleet.snapshots_of("tree").await.into_iter().map(|one| one.proof).collect()
    };
    let checked = async || (proofs().await == ["checked"]).then_some(());
    until_async("the first to be checked", PATIENCE, checked).await;
    let of_first = packs(&fleet.repository());
    let hold = fleet.hold(place);
    std::fs::write(tree.join("changes"), "twice").unwrap();
    fleet.backup_well("tree", "incremental").await;
    fleet.is_held(&hold).await;
    fleet.restic().run(&["forget", &first, "--prune", "--max-unused", "0"]);
    assert!(of_first.iter().all(|pack| !pack.exists()), "half of what is in them is garbage");
    drop(hold);
    let noticed = async || {
        let log = fleet.log_of(Program::Controller);
        log.lines()
            .any(|line| line.contains("could not be checked") && line.contains("HF-3023"))
            .then_some(())
    };
    until_async("the check to notice", PATIENCE, noticed).await;
    // What wakes it sooner than its own clock.
    fleet.backup_well("tree", "incremental").await;
    let checked = async || {
        let proofs = proofs().await;
        assert!(proofs.iter().all(|proof| proof != "damaged"), "{proofs:?}");
        proofs.iter().all(|proof| proof == "checked").then_some(())
    };
    until_async("the others to be checked", PATIENCE, checked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_restic_forgot_and_pruned_between_two_backups_is_stored_again() {
    let fleet = Fleet::start().await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(8).make(&tree);
    let yaml = format!("sources:\n  tree: {{ engine: files, agent: a1, paths: [{}] }}\n", tree.display());
    fleet.apply(&yaml).await.unwrap();
    let first = fleet.backup_well("tree", "full").await.snapshot_id;
    // All of it goes, and comes back as it was: what the first snapshot had is known to us, and gone.
    let away = fleet.path().join("away");
    std::fs::rename(&tree, &away).unwrap();
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("other"), "something else").unwrap();
    let second = fleet.backup_well("tree", "full").await.snapshot_id;
    fleet.restic().run(&["forget", &first, "--prune"]);
    std::fs::remove_dir_all(&tree).unwrap();
    std::fs::rename(&away, &tree).unwrap();
    let third = fleet.backup_well("tree", "incremental").await.snapshot_id;
    fleet.restic().check_all_data();
    restored_is_the_same(&fleet.restic(), fleet.path(), &tree, &third);

    // Also when the base of an increment is what was forgotten.
    fleet.restic().run(&["forget", &second, &third, "--prune"]);
    let fourth = fleet.backup_well("tree", "incremental").await.snapshot_id;
    fleet.restic().check_all_data();
    restored_is_the_same(&fleet.restic(), fleet.path(), &tree, &fourth);
    let listed: Vec<String> = fleet.snapshots_of("tree").await.into_iter().map(|one| one.id).collect();
    assert_eq!(listed, [fourth], "the catalog has noticed");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_committed_while_another_program_may_be_removing() {
    let fleet = Fleet::start().await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(9).make(&tree);
    let yaml = format!("sources:\n  tree: {{ engine: files, agent: a1, paths: [{}] }}\n", tree.display());
    fleet.apply(&yaml).await.unwrap();
    let lock = locked_elsewhere(&fleet.repository(), &fleet.password_file()).await;
    let run = fleet.start_backup("tree", "full").await.unwrap();
    let refused = until_async("the commit to be refused", PATIENCE, async || {
        let log = fleet.log(&run).await;
        log.contains("HF-3007").then_some(log)
    })
    .await;
    assert!(refused.contains("elsewhere"), "{refused}");
    let waiting = until_async("the run to be back in the queue", PATIENCE, async || {
        let request = v1::GetRunRequest { run_id: run.id.clone() };
        let run = fleet.runs().get(request).await.unwrap().into_inner().run.unwrap();
        (run.phase == "queued").then_some(run)
    })
    .await;
    assert_eq!((waiting.phase.as_str(), waiting.attempt), ("queued", 1), "{waiting:?}");
    fleet.runs().cancel(v1::CancelRunRequest { run_id: run.id.clone() }).await.unwrap();
    assert_eq!(fleet.ended(&run).await.phase, "cancelled");
    assert!(fleet.snapshots_of("tree").await.is_empty());
    lock.release().await.unwrap();
    fleet.backup_well("tree", "full").await;
    fleet.restic().check_all_data();
    fleet.stop().await;
}
