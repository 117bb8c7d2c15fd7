//! `kill -9` of agent and controller in every phase of backups: what was acknowledged is there, and sound.
//!
//! `HOLDFAST_KILLS=40` (as `make kills` sets it) makes the campaign longer; a short one runs with the other tests.
//! `HOLDFAST_SEED` repeats one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use holdfast_tests::process_fleet::{Program, SHORT_LEASE, recovery_limit};
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{ProcessFleet, TreeSpec, assert_same_tree, note};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

/// The phases of a backup in their order, and the place at which each begins.
const PHASES: [(&str, &str); 9] = [
    ("queued", "controller-before-assign"),
    ("assigned", "controller-after-assign"),
    ("running: connecting", "agent-journal-after-begin"),
    ("running: uploading", "agent-before-put-pack"),
    ("committing: index", "agent-before-commit-snapshot"),
    ("committing: snapshot", "controller-before-snapshot"),
    ("committing: state", "controller-after-snapshot"),
    ("committed", "agent-after-commit-snapshot"),
    ("finished", "agent-journal-before-end"),
];

fn change(tree: &Path, round: usize, random: &mut StdRng) {
    for file in 0..40 {
        let mut bytes = vec![0u8; random.random_range(1..300_000)];
        random.fill(bytes.as_mut_slice());
        std::fs::write(tree.join(format!("round {round} file {file}")), bytes).unwrap();
    }
}

/// The last phase that began since these counts were taken.
fn phase(fleet: &ProcessFleet, before: &[usize]) -> usize {
    (0..PHASES.len()).rfind(|&phase| fleet.times_at(PHASES[phase].1) > before[phase]).unwrap_or(0)
}

/// The order in which phases are aimed at: each once, before any comes again.
fn aims(kills: usize, random: &mut StdRng) -> Vec<usize> {
    let mut aims = Vec::new();
    while aims.len() < kills {
        let mut all: Vec<usize> = (0..PHASES.len()).collect();
        all.shuffle(random);
        aims.extend(all);
    }
    aims.truncate(kills);
    aims
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_agent_and_controller_lose_nothing_that_was_acknowledged() {
    let kills: usize = std::env::var("HOLDFAST_KILLS").map_or(PHASES.len(), |text| text.parse().unwrap());
    let seed: u64 =
        std::env::var("HOLDFAST_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    note(&format!("{kills} kills, HOLDFAST_SEED={seed}"));
    let mut random = StdRng::seed_from_u64(seed);
    let mut fleet = ProcessFleet::start(SHORT_LEASE, PHASES.map(|(_, place)| place)).await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(seed).make(&tree);
    fleet.declare_tree(&tree).await;
    // How long a phase takes at most; the kills of a long campaign are spread over that.
    let began = std::time::Instant::now();
    let first = fleet.backup_well("tree", "full").await;
    let usual = began.elapsed();
    let mut acknowledged = vec![first.snapshot_id];
    let mut landed = [0; PHASES.len()];
    for (round, aim) in aims(kills, &mut random).into_iter().enumerate() {
        change(&tree, round, &mut random);
        let before = PHASES.map(|(_, place)| fleet.times_at(place));
        let hold = fleet.hold(PHASES[aim].1);
        let started = until_async("a backup to be queued", PATIENCE, async || {
            fleet.start_backup("tree", "incremental").await.ok()
        })
        .await;
        fleet.is_held(&hold).await;
        // The first kill of each phase falls on its first moment, so that the shortest is not missed; the others fall
        // on any later one, which is what is tested here: a share of the usual time, drawn from the seed.
        let mut hold = Some(hold);
        if round >= PHASES.len() {
            hold.take();
            // Most phases are short, a few are not.
            let share: f64 = random.random_range(0.0..1.0);
            tokio::time::sleep(usual.mul_f64(share.powi(4) / 2.0)).await;
        }
        landed[phase(&fleet, &before)] += 1;
        let victims: &[Program] = match random.random_range(0..5) {
            0 | 1 => &[Program::Agent],
            2 | 3 => &[Program::Controller],
            _ => &[Program::Controller, Program::Agent],
        };
        victims.iter().for_each(|&victim| fleet.kill(victim));
        drop(hold);
        victims.iter().for_each(|&victim| fleet.restart(victim));
        let ended = tokio::time::timeout(recovery_limit(SHORT_LEASE, usual), fleet.ended(&started)).await;
        let ended = ended.unwrap_or_else(|_| panic!("{} lasts longer than its lease and 30 s", started.id));
        assert_eq!(ended.phase, "succeeded", "{victims:?} killed, {ended:?}\n{}", fleet.log(&ended).await);
        acknowledged.push(ended.snapshot_id);
    }
    for ((name, _), count) in PHASES.iter().zip(landed) {
        note(&format!("{count:>4} kills in phase {name}"));
        assert!(count > 0 || kills < PHASES.len(), "no kill fell into phase {name}: this was no campaign");
    }
    let restic = fleet.restic();
    restic.check_all_data();
    let listed = restic.snapshots();
    let ids: BTreeSet<&str> = listed.iter().map(|snapshot| snapshot["id"].as_str().unwrap()).collect();
    for id in &acknowledged {
        assert!(ids.contains(id.as_str()), "snapshot {id} was acknowledged and is gone");
    }
    let runs: Vec<&str> = listed
        .iter()
        .flat_map(|snapshot| snapshot["tags"].as_array().unwrap())
        .filter_map(|tag| tag.as_str().unwrap().strip_prefix("run:"))
        .collect();
    let different: BTreeSet<&&str> = runs.iter().collect();
    assert_eq!(different.len(), runs.len(), "a run committed twice");
    assert_eq!(runs.len(), acknowledged.len(), "every run committed once, and nothing else was committed");
    let restored: PathBuf = fleet.path().join("restored");
    restic.restore(acknowledged.last().unwrap(), &restored);
    assert_same_tree(&tree, &restored.join(tree.strip_prefix("/").unwrap()));
}
