//! A fleet that nobody looks after, while its agent and its controller are killed at random: every slot has one run, and
//! what is kept is what the policy says.
//!
//! `HOLDFAST_UNATTENDED=600` (as `make unattended` sets it) makes it last that many seconds; a short one runs with the other
//! tests. `HOLDFAST_SEED` repeats the order of the kills.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use holdfast_proto::v1;
use holdfast_tests::process_fleet::{Program, SHORT_LEASE};
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{ProcessFleet, TreeSpec, note};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_nobody_looks_after_keeps_its_schedule_and_what_its_policy_keeps() {
    let seconds: u64 = std::env::var("HOLDFAST_UNATTENDED").map_or(15, |text| text.parse().unwrap());
    let seed: u64 =
        std::env::var("HOLDFAST_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    note(&format!("{seconds} s unattended, HOLDFAST_SEED={seed}"));
    let mut random = StdRng::seed_from_u64(seed);
    let mut fleet = ProcessFleet::start(SHORT_LEASE, ["controller-after-slot"]).await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(seed).make(&tree);
    let every = if seconds > 60 { "5s" } else { "1s" };
    let yaml = format!(
        "policies:\n  often: {{ schedule: {{ incremental: {{ every: {every} }} }}, keep: {{ last: 4 }} }}\nsources:\n  tree: {{ engine: files, agent: a1, paths: [{}], policy: often }}\n",
        tree.display()
    );
    fleet.apply(&yaml).await.unwrap();
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut kills = 0;
    while Instant::now() < until {
        std::fs::write(tree.join("changing"), format!("after {kills} kills").repeat(5000)).unwrap();
        // The moments of the kills are what is tested, and are drawn from the seed.
        tokio::time::sleep(Duration::from_millis(random.random_range(200..4000))).await;
        let victim = if random.random_bool(0.5) { Program::Agent } else { Program::Controller };
        fleet.kill(victim);
        fleet.restart(victim);
        kills += 1;
    }
    let pause =
        v1::PauseSourceRequest { source: "tree".to_owned(), reason: "the end".to_owned(), for_seconds: 0 };
    until_async("the source to be paused", PATIENCE, async || {
        fleet.policies().pause(pause.clone()).await.ok()
    })
    .await;
    let runs = until_async("every run to end", PATIENCE, async || {
        let request =
            v1::ListRunsRequest { kind: "backup".to_owned(), page_size: 1000, ..Default::default() };
        let runs = fleet.runs().list(request).await.ok()?.into_inner().runs;
        let ended = |run: &v1::Run| ["succeeded", "failed"].contains(&run.phase.as_str());
        (!runs.is_empty() && runs.iter().all(ended)).then_some(runs)
    })
    .await;
    let slots: Vec<i64> = runs.iter().map(|run| run.slot_at.as_ref().unwrap().seconds).collect();
    let different: BTreeSet<&i64> = slots.iter().collect();
    assert_eq!(different.len(), slots.len(), "a slot has two runs: {slots:?}");
    let succeeded = runs.iter().filter(|run| run.phase == "succeeded").count();
    note(&format!("{kills} kills, {} runs, {succeeded} succeeded", runs.len()));
    assert!(succeeded > 4, "there was something to keep and something to remove: {runs:?}");

    // What is left is what a simulation keeps, and it removes nothing more.
    let kept = until_async("retention to have settled", PATIENCE, async || {
        let request = v1::SimulateRequest { name: "tree".to_owned(), policy_file: None };
        let plans = fleet.policies().simulate(request).await.ok()?.into_inner().plans;
        let decisions = &plans.first()?.decisions;
        let kept: Vec<String> = decisions.iter().map(|decision| decision.snapshot_id.clone()).collect();
        (kept.len() == 4 && decisions.iter().all(|decision| decision.keep)).then_some(kept)
    })
    .await;
    let listed: Vec<String> =
        fleet.snapshots_of("tree").await.into_iter().map(|snapshot| snapshot.id).collect();
    assert_eq!(listed, kept);
    let prune = v1::PruneRepositoryRequest {
        name: "main".to_owned(),
        confirm: "main".to_owned(),
        reason: "the end".to_owned(),
        ..Default::default()
    };
    let pruned = fleet.repositories().prune(prune).await.unwrap().into_inner().run.unwrap();
    assert_eq!(fleet.ended(&pruned).await.phase, "succeeded");
    let restic = fleet.restic();
    restic.check_all_data();
    let present: BTreeSet<String> =
        restic.snapshots().iter().map(|snapshot| snapshot["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(present, kept.into_iter().collect(), "and nothing else is in the repository");
}
