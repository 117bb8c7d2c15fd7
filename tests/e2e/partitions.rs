//! Networks that break during a backup: silence, resets, and connections of which one end is gone.

use std::time::{Duration, Instant};

use holdfast_proto::v1;
use holdfast_tests::process_fleet::{LONG_LEASE, SHORT_LEASE};
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{ProcessFleet, TreeSpec};

/// How much later than it could something may be noticed on a machine that is busy.
const DELAY: Duration = Duration::from_secs(60);

/// How long HTTP/2 lets a connection be silent, at most.
const KEEPALIVE: Duration = Duration::from_secs(30);

async fn fleet(lease: Duration) -> ProcessFleet {
    let fleet =
        ProcessFleet::start_apart(lease, ["agent-before-put-pack", "agent-before-commit-snapshot"]).await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(9).make(&tree);
    fleet.declare_tree(&tree).await;
    fleet
}

async fn now(fleet: &ProcessFleet, run: &v1::Run) -> v1::Run {
    let request = v1::GetRunRequest { run_id: run.id.clone() };
    fleet.runs().get(request).await.unwrap().into_inner().run.unwrap()
}

/// Exactly these runs committed, each once, and the repository is sound.
fn expect_committed(fleet: &ProcessFleet, runs: &[&v1::Run]) {
    let restic = fleet.restic();
    restic.check_all_data();
    let mut listed: Vec<String> =
        restic.snapshots().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
    let mut expected: Vec<String> = runs.iter().map(|run| run.snapshot_id.clone()).collect();
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_was_cut_off_can_not_commit_after_the_network_healed() {
    let fleet = fleet(SHORT_LEASE).await;
    let hold = fleet.hold("agent-before-commit-snapshot");
    let started = fleet.start_backup("tree", "full").await.unwrap();
    fleet.is_held(&hold).await;
    assert_eq!(now(&fleet, &started).await.attempt, 1);
    fleet.network().cut();
    let cut = Instant::now();
    // Now the agent asks to commit, and the request is on its way as long as the network is cut.
    drop(hold);
    let given_up = async || (now(&fleet, &started).await.attempt > 1).then_some(());
    until_async("the run to be given to another attempt", PATIENCE, given_up).await;
    let noticed = cut.elapsed();
    assert!(noticed <= SHORT_LEASE + DELAY, "noticed after {noticed:?}");
    assert!(fleet.snapshots_of("tree").await.is_empty(), "nothing is committed by anybody");
    fleet.network().heal();
    let ended = fleet.ended(&started).await;
    // On a machine that is very busy the second may be lost as the first was.
    assert_eq!(ended.phase, "succeeded", "{}", fleet.log(&ended).await);
    assert!(ended.attempt > 1, "{ended:?}");
    let next = fleet.backup_well("tree", "incremental").await;
    expect_committed(&fleet, &[&ended, &next]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_over_new_connections_when_all_are_reset() {
    let fleet = fleet(LONG_LEASE).await;
    let hold = fleet.hold("agent-before-put-pack");
    let started = fleet.start_backup("tree", "full").await.unwrap();
    fleet.is_held(&hold).await;
    fleet.network().reset();
    drop(hold);
    let ended = fleet.ended(&started).await;
    assert_eq!((ended.phase.as_str(), ended.attempt), ("succeeded", 1), "{}", fleet.log(&ended).await);
    let next = fleet.backup_well("tree", "incremental").await;
    expect_committed(&fleet, &[&ended, &next]);
}

// Half a minute: nothing but the keepalive can tell the agent that nobody listens.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_finds_a_half_open_connection_by_itself_and_comes_back() {
    let fleet = fleet(SHORT_LEASE).await;
    let hold = fleet.hold("agent-before-put-pack");
    let started = fleet.start_backup("tree", "full").await.unwrap();
    fleet.is_held(&hold).await;
    let halved = Instant::now();
    fleet.network().halve();
    drop(hold);
    let waits = "agent a1 to connect";
    let noticed = async || (now(&fleet, &started).await.waiting_for == waits).then_some(());
    until_async("the controller to miss the agent", PATIENCE, noticed).await;
    let noticed = halved.elapsed();
    assert!(noticed <= SHORT_LEASE + DELAY, "noticed after {noticed:?}");
    let ended = fleet.ended(&started).await;
    assert_eq!(ended.phase, "succeeded", "{}", fleet.log(&ended).await);
    assert!(ended.attempt > 1, "{ended:?}");
    let back = halved.elapsed();
    assert!(back <= SHORT_LEASE + KEEPALIVE + DELAY, "back after {back:?}");
    let next = fleet.backup_well("tree", "incremental").await;
    expect_committed(&fleet, &[&ended, &next]);
}
