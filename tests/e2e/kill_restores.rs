//! `kill -9` of an agent at every named place of a restore in place: the live data is the former or the restored, whole,
//! and what is left beside it can be discarded.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use holdfast_model::ErrorCode;
use holdfast_model::restore::RestoreReport;
use holdfast_proto::v1;
use holdfast_tests::process_fleet::{LONG_LEASE, Program, recovery_limit};
use holdfast_tests::wait::PATIENCE;
use holdfast_tests::{PostgresCluster, ProcessFleet, TreeSpec, assert_same_tree, run};

/// No run waits for the end of its lease: an agent that is back says what it lost.
const LEASE: Duration = LONG_LEASE;

const PLACES: [&str; 6] = [
    "agent-before-restore",
    "agent-after-restore",
    "agent-before-promote",
    "agent-after-promote",
    "agent-journal-write",
    "agent-journal-before-end",
];

/// What is expected of a restore whose agent died somewhere.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    /// The live data is what it was, and the run has failed.
    Untouched,
    /// The live data is the restored, and the run has succeeded.
    Replaced,
}

const WAYS: [(&[&str], Outcome); 7] = [
    (&["agent-before-restore"], Outcome::Untouched),
    (&["agent-after-restore"], Outcome::Untouched),
    (&["agent-after-restore", "agent-journal-write"], Outcome::Untouched),
    (&["agent-before-promote"], Outcome::Untouched),
    (&["agent-after-promote"], Outcome::Replaced),
    (&["agent-after-promote", "agent-journal-write"], Outcome::Replaced),
    (&["agent-journal-before-end"], Outcome::Replaced),
];

fn in_place(source: &str) -> v1::PlanRestoreRequest {
    v1::PlanRestoreRequest { in_place: true, ..beside(source) }
}

fn beside(source: &str) -> v1::PlanRestoreRequest {
    v1::PlanRestoreRequest {
        source: source.to_owned(),
        to: "latest".to_owned(),
        ..v1::PlanRestoreRequest::default()
    }
}

/// Begins a run, kills the agent at the end of the way that it takes, and waits for the end of the run.
async fn ended_after_kill(
    fleet: &mut ProcessFleet,
    way: &[&'static str],
    begin: impl AsyncFnOnce(&ProcessFleet) -> v1::Run,
) -> v1::Run {
    let (first, rest) = way.split_first().expect("a way has an end");
    let first = fleet.hold(first);
    let run = begin(fleet).await;
    let hold = fleet.lead(first, rest).await;
    fleet.kill(Program::Agent);
    drop(hold);
    fleet.restart(Program::Agent);
    let ended = tokio::time::timeout(recovery_limit(LEASE, Duration::ZERO), fleet.ended(&run)).await;
    ended.unwrap_or_else(|_| panic!("{way:?}: the run lasts longer than its lease and 30 s"))
}

async fn discard(fleet: &ProcessFleet, run: &v1::Run, source: &str) {
    let request = v1::DiscardRestoreRequest {
        run_id: run.id.clone(),
        confirm: source.to_owned(),
        ..v1::DiscardRestoreRequest::default()
    };
    let run = fleet.restores().discard(request).await.unwrap().into_inner().run.unwrap();
    let ended = fleet.ended(&run).await;
    assert_eq!(ended.phase, "succeeded", "{ended:?}\n{}", fleet.log(&ended).await);
}

fn kept(run: &v1::Run) -> String {
    let report: RestoreReport = serde_json::from_str(&run.restored_json).expect("a restore has a report");
    report.targets[0].kept.clone().expect("the former data is kept")
}

fn expect_outcome(run: &v1::Run, outcome: Outcome, way: &[&str]) {
    match outcome {
        Outcome::Untouched => {
            let failure = run.failure.as_ref().unwrap_or_else(|| panic!("{way:?}: {run:?}"));
            let expected = (ErrorCode::AgentLost.to_string(), "the agent fell silent and its lease ended");
            assert_eq!((failure.code.clone(), failure.message.as_str()), expected, "{way:?}");
        }
        Outcome::Replaced => assert_eq!(run.phase, "succeeded", "{way:?}: {run:?}"),
    }
}

fn copy(tree: &Path, to: &Path) {
    drop(run(Command::new("cp").arg("-a").arg(tree).arg(to), PATIENCE).expect_success());
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A fleet with a backup of `site/data`, and a copy of what was backed up.
async fn fleet_with_tree() -> (ProcessFleet, PathBuf, PathBuf) {
    let fleet = ProcessFleet::start(LEASE, PLACES).await;
    let tree = fleet.path().join("site/data");
    std::fs::create_dir_all(&tree).unwrap();
    TreeSpec { folders: 4, files: 20, ..TreeSpec::small(7) }.make(&tree);
    let original = fleet.path().join("original");
    copy(&tree, &original);
    fleet.declare_tree(&tree).await;
    fleet.backup_well("tree", "full").await;
    (fleet, tree, original)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_may_die_at_every_step_of_a_restore_in_place() {
    let (mut fleet, tree, original) = fleet_with_tree().await;
    for (round, (way, outcome)) in WAYS.into_iter().enumerate() {
        std::fs::write(tree.join("lost otherwise"), format!("of round {round}")).unwrap();
        let damaged = fleet.path().join(format!("damaged-{round}"));
        copy(&tree, &damaged);
        let begin = async |fleet: &ProcessFleet| fleet.start_restore(in_place("tree")).await.unwrap();
        let run = ended_after_kill(&mut fleet, way, begin).await;
        expect_outcome(&run, outcome, way);
        match outcome {
            Outcome::Untouched => assert_same_tree(&damaged, &tree),
            Outcome::Replaced => {
                assert_same_tree(&original, &tree);
                assert_same_tree(&damaged, Path::new(&kept(&run)));
            }
        }
        discard(&fleet, &run, "tree").await;
        assert_eq!(names(tree.parent().unwrap()), ["data"], "{way:?}: something was left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_may_die_at_every_step_of_a_promotion() {
    let (mut fleet, tree, original) = fleet_with_tree().await;
    let promotions = WAYS.into_iter().filter(|(way, _)| way[0] != "agent-before-restore");
    let promotions = promotions.filter(|(way, _)| way[0] != "agent-after-restore");
    for (way, outcome) in promotions {
        std::fs::write(tree.join("lost otherwise"), format!("{way:?}")).unwrap();
        let (restore, _) = fleet.restore_well(beside("tree")).await;
        let request = v1::PromoteRestoreRequest {
            run_id: restore.id.clone(),
            confirm: "tree".to_owned(),
            reason: "a test".to_owned(),
            ..v1::PromoteRestoreRequest::default()
        };
        let begin = async |fleet: &ProcessFleet| {
            fleet.restores().promote(request).await.unwrap().into_inner().run.unwrap()
        };
        let run = ended_after_kill(&mut fleet, way, begin).await;
        expect_outcome(&run, outcome, way);
        if outcome == Outcome::Replaced {
            assert_same_tree(&original, &tree);
            assert!(Path::new(&kept(&run)).join("lost otherwise").is_file());
            discard(&fleet, &run, "tree").await;
        } else {
            assert!(tree.join("lost otherwise").is_file());
            discard(&fleet, &restore, "tree").await;
        }
        assert_eq!(names(tree.parent().unwrap()), ["data"], "{way:?}: something was left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_the_former_or_the_restored_when_the_agent_dies_around_the_swap() {
    let cluster = PostgresCluster::start();
    cluster.psql("postgres", "CREATE DATABASE shop");
    cluster.psql("shop", "CREATE TABLE orders AS SELECT n AS id FROM generate_series(1, 500) n");
    let mut fleet = ProcessFleet::start(LEASE, PLACES).await;
    fleet.apply(&cluster.source(fleet.path(), "shop")).await.unwrap();
    fleet.backup_well("pg", "full").await;
    let rows = |database: &str| cluster.psql(database, "SELECT count(*) FROM orders");
    let databases = || cluster.psql("postgres", "SELECT datname FROM pg_database WHERE datname LIKE 'shop%'");
    for (way, outcome) in
        [(["agent-before-promote"], Outcome::Untouched), (["agent-after-promote"], Outcome::Replaced)]
    {
        cluster.psql("shop", "DELETE FROM orders WHERE id > 100");
        let begin = async |fleet: &ProcessFleet| fleet.start_restore(in_place("pg")).await.unwrap();
        let run = ended_after_kill(&mut fleet, &way, begin).await;
        expect_outcome(&run, outcome, &way);
        if outcome == Outcome::Replaced {
            assert_eq!((rows("shop").as_str(), rows(&kept(&run)).as_str()), ("500", "100"));
        } else {
            assert_eq!(rows("shop"), "100");
        }
        discard(&fleet, &run, "pg").await;
        assert_eq!(databases(), "shop", "{way:?}: something was left");
    }
}
