//! Copies by programs that are killed, held up and cancelled, and prunes beside them.

use std::path::PathBuf;
use std::time::Duration;

use holdfast_model::ErrorCode;
use holdfast_proto::v1;
use holdfast_tests::ProcessFleet;
use holdfast_tests::fleet::Operator;
use holdfast_tests::packs::packs;
use holdfast_tests::process_fleet::{LONG_LEASE, Program, SHORT_LEASE, recovery_limit};
use holdfast_tests::wait::{PATIENCE, until_async};

use super::{
    FILES, assert_restic_restores, change, checked, copied_to_offsite, copy_well, damage, declare,
    offsite_url, request, restic_of, snapshots_in, start,
};
use crate::other_programs::locked_elsewhere;

/// A fleet of processes with a second repository, and a source that was backed up.
async fn processes(
    lease: Duration,
    places: impl IntoIterator<Item = &'static str>,
) -> (ProcessFleet, PathBuf, Vec<String>) {
    let fleet = ProcessFleet::start(lease, places).await;
    let yaml = format!(
        "repositories:\n  offsite: {{ url: \"{}\", encryption: {{ key: {{ file: {} }} }}, prune: {{ grace: 1s, approve_above: 100% }} }}\n",
        offsite_url(fleet.path()),
        fleet.password_file().display()
    );
    fleet.apply(&yaml).await.unwrap();
    let init = v1::InitRepositoryRequest { name: "offsite".to_owned() };
    fleet.repositories().init(init).await.unwrap();
    let tree = fleet.path().join("data");
    change(&tree, 0..FILES, 1);
    declare(&fleet, &tree, "").await;
    let mut made = vec![fleet.backup_well("tree", "full").await.snapshot_id];
    change(&tree, 0..2, 2);
    made.push(fleet.backup_well("tree", "incremental").await.snapshot_id);
    (fleet, tree, made)
}

/// Kills the controller during a copy at each of these places in turn.
async fn die_at(places: &[&'static str]) {
    let (mut fleet, tree, made) = processes(SHORT_LEASE, places.iter().copied()).await;
    let mut newest = made[1].clone();
    for (round, &place) in places.iter().enumerate() {
        let hold = fleet.hold(place);
        let key =
            v1::CopySnapshotsRequest { idempotency_key: place.to_owned(), ..request("main", "offsite") };
        let first = start(&fleet, key.clone()).await.unwrap();
        fleet.is_held(&hold).await;
        fleet.kill(Program::Controller);
        drop(hold);
        fleet.restart(Program::Controller);
        let limit = recovery_limit(SHORT_LEASE, Duration::from_secs(1));
        let found =
            until_async("the request to be answered", limit, async || start(&fleet, key.clone()).await.ok())
                .await;
        assert_eq!(found.id, first.id, "{place}: the same key gave another run");
        let ended = fleet.ended(&found).await;
        assert_eq!(ended.phase, "succeeded", "{place}: {ended:?}\n{}", fleet.log(&ended).await);
        let copies = snapshots_in(&fleet, "offsite").await;
        assert_eq!(copies.len(), round + 2, "{place}: {copies:?}");
        assert_eq!(copies[0].copy_of, newest, "{place}");
        if place == "copy-after-pack" || place == "copy-after-snapshot" {
            let sent = ended.progress.unwrap().bytes_stored;
            assert!(sent < 100_000, "{place}: {sent} bytes were sent again");
        }
        change(&tree, round % FILES..round % FILES + 1, 100 + round as u64);
        newest = fleet.backup_well("tree", "incremental").await.snapshot_id;
    }
    copy_well(&fleet, "main", "offsite").await;
    let restic = restic_of(fleet.path(), fleet.password_file());
    restic.check_all_data();
    let copy = snapshots_in(&fleet, "offsite").await.remove(0);
    assert_eq!(copy.copy_of, newest);
    assert_restic_restores(&restic, &copy.id, &tree, &fleet.path().join("by-restic"));
    fleet.restic().check_all_data();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_may_die_while_it_stores_a_pack_and_sends_nothing_twice() {
    die_at(&["copy-before-pack", "copy-after-pack"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_may_die_while_it_stores_the_index_and_sends_nothing_twice() {
    die_at(&["controller-before-index", "controller-after-index"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_may_die_while_it_publishes_and_sends_nothing_twice() {
    die_at(&["copy-before-snapshot", "copy-after-snapshot", "copy-after-catalog"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_cancelled_leaves_no_snapshot_and_the_next_goes_on() {
    let (fleet, _, _) = processes(LONG_LEASE, ["copy-after-pack"]).await;
    let hold = fleet.hold("copy-after-pack");
    let run = start(&fleet, request("main", "offsite")).await.unwrap();
    fleet.is_held(&hold).await;
    let second = start(&fleet, request("main", "offsite")).await.unwrap_err();
    assert_eq!(second.code, ErrorCode::RunAlreadyActive);
    fleet.runs().cancel(v1::CancelRunRequest { run_id: run.id.clone() }).await.unwrap();
    // As it is now, then two signs of life: between those it saw that it shall stop.
    let watch = v1::WatchRunRequest { run_id: run.id.clone() };
    let mut changes = fleet.runs().watch(watch).await.unwrap().into_inner();
    for _ in 0..3 {
        let change = tokio::time::timeout(PATIENCE, changes.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(change.run.unwrap().intent, "cancel");
    }
    drop(hold);
    let ended = fleet.ended(&run).await;
    assert_eq!(ended.phase, "cancelled", "{ended:?}");
    assert_eq!(snapshots_in(&fleet, "offsite").await.len(), 0);
    copy_well(&fleet, "main", "offsite").await;
    assert_eq!(snapshots_in(&fleet, "offsite").await.len(), 2);
    restic_of(fleet.path(), fleet.password_file()).check_all_data();
}

async fn start_prune(operator: &Operator, name: &str) -> v1::Run {
    let request = v1::PruneRepositoryRequest {
        name: name.to_owned(),
        confirm: name.to_owned(),
        reason: "a test".to_owned(),
        ..Default::default()
    };
    operator.repositories().prune(request).await.unwrap().into_inner().run.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn prunes_of_both_repositories_wait_for_a_copy_that_began_before() {
    let (fleet, tree, made) = processes(LONG_LEASE, ["copy-before-pack"]).await;
    let hold = fleet.hold("copy-before-pack");
    let only = v1::CopySnapshotsRequest { snapshots: vec![made[0].clone()], ..request("main", "offsite") };
    let copying = start(&fleet, only).await.unwrap();
    fleet.is_held(&hold).await;
    // What is copied is forgotten, and would go with the next prune.
    let forget = v1::ForgetSnapshotsRequest {
        ids: vec![made[0].clone()],
        confirm: vec!["tree".to_owned()],
        reason: "a test".to_owned(),
        dry_run: false,
    };
    fleet.snapshots().forget(forget).await.unwrap();
    let pruning = start_prune(&fleet, "main").await;
    let waits = async || {
        let found = fleet.runs().get(v1::GetRunRequest { run_id: pruning.id.clone() }).await.unwrap();
        let stage = found.into_inner().run.unwrap().progress.unwrap().stage;
        (stage == "waiting for 1 run that began before").then_some(())
    };
    until_async("the prune to wait", PATIENCE, waits).await;
    drop(hold);
    assert_eq!(fleet.ended(&copying).await.phase, "succeeded");
    assert_eq!(fleet.ended(&pruning).await.phase, "succeeded");
    assert_eq!(copied_to_offsite(&fleet).await, [made[0].clone()]);
    let pruned = start_prune(&fleet, "offsite").await;
    assert_eq!(fleet.ended(&pruned).await.phase, "succeeded");
    for restic in [restic_of(fleet.path(), fleet.password_file()), fleet.restic()] {
        restic.check_all_data();
    }
    copy_well(&fleet, "main", "offsite").await;
    let copies = snapshots_in(&fleet, "offsite").await;
    let restic = restic_of(fleet.path(), fleet.password_file());
    assert_restic_restores(&restic, &copies[0].id, &tree, &fleet.path().join("by-restic"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_published_any_more_once_another_program_may_be_removing() {
    let (fleet, _, made) = processes(LONG_LEASE, ["copy-after-catalog"]).await;
    let hold = fleet.hold("copy-after-catalog");
    let run = start(&fleet, request("main", "offsite")).await.unwrap();
    fleet.is_held(&hold).await;
    let lock = locked_elsewhere(&fleet.path().join("offsite"), &fleet.password_file()).await;
    drop(hold);
    let failure = fleet.ended(&run).await.failure.unwrap();
    assert_eq!(failure.code, ErrorCode::RepositoryLocked.to_string(), "{failure:?}");
    // The oldest came first.
    assert_eq!(copied_to_offsite(&fleet).await, [made[0].clone()]);
    lock.release().await.unwrap();
    let next = copy_well(&fleet, "main", "offsite").await;
    assert!(fleet.log(&next).await.contains("1 snapshot copied, 1 were there"));
    assert_eq!(copied_to_offsite(&fleet).await, [made[1].clone(), made[0].clone()]);
    restic_of(fleet.path(), fleet.password_file()).check_all_data();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_program_moves_in_the_first_repository_is_not_called_damaged() {
    let (fleet, tree, made) = processes(LONG_LEASE, ["copy-before-read"]).await;
    let hold = fleet.hold("copy-before-read");
    let run = start(&fleet, request("main", "offsite")).await.unwrap();
    fleet.is_held(&hold).await;
    fleet.restic().run(&["forget", &made[0], "--prune", "--max-unused", "0"]);
    drop(hold);
    let ended = fleet.ended(&run).await;
    let failure = ended.failure.clone().unwrap_or_else(|| panic!("{ended:?}"));
    assert_eq!(failure.code, ErrorCode::RepositoryDisturbed.to_string(), "{failure:?}");
    let message = "another program took something away from repository main meanwhile";
    assert_eq!((&*failure.message, ended.findings.len()), (message, 0));
    let in_main = snapshots_in(&fleet, "main").await;
    assert!(in_main.iter().all(|snapshot| snapshot.proof != "damaged"), "{in_main:?}");
    copy_well(&fleet, "main", "offsite").await;
    let copies = snapshots_in(&fleet, "offsite").await;
    assert_eq!(copies.iter().map(|copy| &copy.copy_of).collect::<Vec<_>>(), [&made[1]]);
    let restic = restic_of(fleet.path(), fleet.password_file());
    restic.check_all_data();
    assert_restic_restores(&restic, &copies[0].id, &tree, &fleet.path().join("by-restic"));
    let clean = checked(&fleet, "main").await;
    assert_eq!((&*clean.phase, clean.findings.len()), ("succeeded", 0), "{clean:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_copies_into_one_repository_make_one_copy_of_each_snapshot() {
    let (fleet, _, made) = processes(LONG_LEASE, ["copy-before-snapshot"]).await;
    let hold = fleet.hold("copy-before-snapshot");
    let first = start(&fleet, request("main", "offsite")).await.unwrap();
    fleet.is_held(&hold).await;
    let of_source = v1::CopySnapshotsRequest { source: "tree".to_owned(), ..request("main", "offsite") };
    let second = start(&fleet, of_source).await.unwrap();
    let publishes = async || {
        let found = fleet.runs().get(v1::GetRunRequest { run_id: second.id.clone() }).await.unwrap();
        let stage = found.into_inner().run.unwrap().progress.map(|progress| progress.stage);
        (stage.as_deref() == Some("publishing")).then_some(())
    };
    until_async("the second to have sent everything", PATIENCE, publishes).await;
    drop(hold);
    for run in [&first, &second] {
        let ended = fleet.ended(run).await;
        assert_eq!(ended.phase, "succeeded", "{ended:?}");
    }
    assert!(fleet.log(&second).await.contains("was copied meanwhile"));
    assert_eq!(copied_to_offsite(&fleet).await, [made[1].clone(), made[0].clone()]);
    restic_of(fleet.path(), fleet.password_file()).check_all_data();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_is_found_during_a_heal_is_healed_too_before_anything_is_called_whole() {
    let (fleet, tree, made) = processes(LONG_LEASE, ["copy-before-pack"]).await;
    copy_well(&fleet, "main", "offsite").await;
    let contents = |pack: &PathBuf| pack.metadata().unwrap().len() > 200_000;
    let packs: Vec<_> = packs(&fleet.repository()).into_iter().filter(contents).collect();
    assert_eq!(packs.len(), 2, "each backup stored one");
    damage(&packs[0]);
    assert_eq!(checked(&fleet, "main").await.phase, "failed");
    let hold = fleet.hold("copy-before-pack");
    let heal = v1::CopySnapshotsRequest { heal: true, ..request("offsite", "main") };
    let run = start(&fleet, heal).await.unwrap();
    fleet.is_held(&hold).await;
    damage(&packs[1]);
    assert_eq!(checked(&fleet, "main").await.phase, "failed");
    drop(hold);
    let ended = fleet.ended(&run).await;
    let log = fleet.log(&ended).await;
    assert_eq!(ended.phase, "succeeded", "{ended:?}\n{log}");
    assert!(log.contains("left until the next prune: 2 damaged packs"), "{log}");
    let pruned = start_prune(&fleet, "main").await;
    assert_eq!(fleet.ended(&pruned).await.phase, "succeeded");
    let clean = checked(&fleet, "main").await;
    assert_eq!((&*clean.phase, clean.findings.len()), ("succeeded", 0), "{clean:?}");
    fleet.restic().check_all_data();
    assert_restic_restores(&fleet.restic(), &made[1], &tree, &fleet.path().join("by-restic"));
}
