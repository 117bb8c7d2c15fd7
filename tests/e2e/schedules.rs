//! Backups that begin by themselves: each slot once, whatever is killed; pauses, and what follows what.

use std::collections::BTreeSet;

use holdfast_model::ErrorCode;
use holdfast_proto::status::from_status;
use holdfast_proto::v1;
use holdfast_tests::fleet::Operator;
use holdfast_tests::process_fleet::{LONG_LEASE, Program};
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{Fleet, ProcessFleet, SkewedClock, TreeSpec};
use jiff::{SignedDuration, Timestamp};

/// A moment from the wire, which has to be there.
macro_rules! moment {
    ($at:expr) => {{
        let at = $at.as_ref().unwrap();
        Timestamp::new(at.seconds, at.nanos).unwrap()
    }};
}

/// The runs of the schedule, oldest first; those that somebody asked for are left out.
async fn scheduled(operator: &Operator) -> Vec<v1::Run> {
    let request = v1::ListRunsRequest { page_size: 1000, ..v1::ListRunsRequest::default() };
    let mut runs = operator.runs().list(request).await.unwrap().into_inner().runs;
    runs.retain(|run| run.slot_at.is_some());
    runs.reverse();
    runs
}

async fn next(
    operator: &Operator,
    source: &str,
    count: u32,
) -> Result<v1::SourceSchedule, holdfast_model::Failure> {
    let request = v1::NextRunsRequest { source: source.to_owned(), count, ..v1::NextRunsRequest::default() };
    let reply = operator.policies().next(request).await.map_err(|status| from_status(&status))?;
    Ok(reply.into_inner().sources.remove(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_slot_has_one_run_whatever_is_killed_around_its_beginning() {
    let places = ["controller-before-slot", "controller-after-slot", "controller-before-assign"];
    let mut fleet = ProcessFleet::start(LONG_LEASE, places).await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(5).make(&tree);
    let yaml = format!(
        "policies:\n  often: {{ schedule: {{ incremental: {{ every: 1s }} }} }}\nsources:\n  tree: {{ engine: files, agent: a1, paths: [{}], policy: often }}\n",
        tree.display()
    );
    let hold = fleet.hold(places[0]);
    fleet.apply(&yaml).await.unwrap();
    fleet.is_held(&hold).await;
    let mut hold = Some(hold);
    for place in [places[1], places[0], places[2], places[1]] {
        // The next place is held before the program that would come to it exists.
        let next = fleet.hold(place);
        fleet.kill(Program::Controller);
        drop(hold.replace(next));
        fleet.restart(Program::Controller);
        fleet.is_held(hold.as_ref().unwrap()).await;
    }
    fleet.kill(Program::Agent);
    fleet.kill(Program::Controller);
    drop(hold);
    fleet.restart(Program::Controller);
    fleet.restart(Program::Agent);
    let ended = until_async("three more runs of the schedule to succeed", PATIENCE, async || {
        let request = v1::ListRunsRequest { phase: "succeeded".to_owned(), ..v1::ListRunsRequest::default() };
        let runs = fleet.runs().list(request).await.ok()?.into_inner().runs;
        (runs.len() >= 5).then_some(runs.len())
    });
    assert!(ended.await >= 5);
    let runs = scheduled(&fleet).await;
    let slots: Vec<Timestamp> = runs.iter().map(|run| moment!(run.slot_at)).collect();
    let different: BTreeSet<&Timestamp> = slots.iter().collect();
    assert_eq!(different.len(), slots.len(), "a slot has two runs: {slots:?}");
    assert!(slots.is_sorted(), "a later run is of an earlier slot: {slots:?}");
    assert!(slots.iter().all(|slot| slot.subsec_nanosecond() == 0), "{slots:?}");
    for run in &runs {
        assert_eq!((run.requested_by.as_str(), run.kind.as_str()), ("policy:often", "backup"));
        assert!(
            ["succeeded", "queued", "assigned", "running", "committing"].contains(&run.phase.as_str()),
            "{run:?}"
        );
    }
    fleet.kill(Program::Controller);
    fleet.restic().check_all_data();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_source_waits_and_then_makes_up_for_the_newest_slot() {
    let clock = SkewedClock::default();
    let mut fleet = Fleet::controller_at(clock.shared()).await;
    fleet.add_agent("a1").await;
    fleet.add_repository("main", &format!("file://{}", fleet.repository().display()), "").await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(6).make(&tree);
    let source = |name: &str, more: &str| {
        format!("  {name}: {{ engine: files, agent: a1, paths: [{}]{more} }}\n", tree.display())
    };
    let yaml = format!(
        "policies:\n  daily: {{ schedule: {{ full: {{ cron: \"0 2 * * *\" }} }}, to: [main] }}\n  following: {{ schedule: {{ snapshot: {{ after: tree }} }} }}\nsources:\n{}{}{}",
        source("tree", ", policy: daily"),
        source("copy", ", policy: following"),
        source("by-hand", ""),
    );
    fleet.apply(&yaml).await.unwrap();

    let unscheduled = next(&fleet, "by-hand", 1).await.unwrap_err();
    assert_eq!(unscheduled.code, ErrorCode::NotScheduled);
    assert_eq!(unscheduled.message, "source by-hand is under no policy");
    let upcoming =
        until_async("the schedule to be taken over", PATIENCE, async || next(&fleet, "tree", 3).await.ok())
            .await
            .upcoming;
    let begins: Vec<Timestamp> = upcoming.iter().map(|run| moment!(run.begins_at)).collect();
    assert_eq!(begins.len(), 3);
    assert!(begins.windows(2).all(|pair| pair[1].duration_since(pair[0]) == SignedDuration::from_hours(24)));
    assert!(next(&fleet, "copy", 3).await.unwrap().upcoming.is_empty(), "nothing of it comes by the clock");

    let pause = v1::PauseSourceRequest { source: "tree".to_owned(), ..v1::PauseSourceRequest::default() };
    let refused = from_status(&fleet.policies().pause(pause.clone()).await.unwrap_err());
    assert_eq!(refused.code, ErrorCode::UsageInvalid);
    assert_eq!(refused.message, "field reason: is missing: the next person wants to know");
    let pause = v1::PauseSourceRequest { reason: "the host moves".to_owned(), ..pause };
    fleet.policies().pause(pause).await.unwrap();
    assert!(next(&fleet, "tree", 3).await.unwrap().upcoming.is_empty(), "a pause without an end");
    // Two slots pass; and a pause outlives a restart.
    clock.jump(begins[1].duration_since(holdfast_runtime::Clock::now(&clock)) + SignedDuration::from_mins(1));
    fleet.stop_controller().await;
    fleet.start_controller().await;
    fleet.until_connected("a1").await;
    let paused = next(&fleet, "tree", 1).await.unwrap().pause.unwrap();
    assert_eq!((paused.reason.as_str(), paused.by.as_str()), ("the host moves", "token:admin"));
    fleet.backup_well("by-hand", "full").await;
    assert!(scheduled(&fleet).await.is_empty(), "nothing began while it was paused");

    let resume = v1::ResumeSourceRequest { source: "tree".to_owned() };
    assert!(fleet.policies().resume(resume.clone()).await.unwrap().into_inner().was_paused);
    assert!(!fleet.policies().resume(resume).await.unwrap().into_inner().was_paused);
    let runs = until_async("both runs to succeed", PATIENCE, async || {
        let runs = scheduled(&fleet).await;
        (runs.len() == 2 && runs.iter().all(|run| run.phase == "succeeded")).then_some(runs)
    })
    .await;
    assert_eq!(moment!(runs[0].slot_at), begins[1], "of the two that passed, the newest");
    let sources: Vec<&str> = runs.iter().map(|run| run.source.as_str()).collect();
    assert_eq!(sources, ["tree", "copy"], "one followed the other");
    assert_eq!(fleet.snapshots_of("copy").await[0].snapshot_type, "snapshot");
    fleet.stop().await;
}
