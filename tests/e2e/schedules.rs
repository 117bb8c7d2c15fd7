//! Backups that begin by themselves: each slot once, whatever is killed; pauses, and what follows what.

use std::collections::BTreeSet;

use holdfast_agent::config::Hook;
use holdfast_model::ErrorCode;
use holdfast_proto::status::from_status;
use holdfast_proto::v1;
use holdfast_tests::fleet::Operator;
use holdfast_tests::process_fleet::{LONG_LEASE, Program};
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{Fleet, PostgresCluster, ProcessFleet, SkewedClock, TreeSpec};
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

/// A hook that waits for as long as a file exists.
fn waiting_hook(file: &std::path::Path) -> Hook {
    let script = format!("while [ -e {} ]; do sleep 0.01; done", file.display());
    Hook { command: ["sh", "-c", &script].map(str::to_owned).to_vec(), timeout: 5 * PATIENCE }
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_hosts_limits_and_time_are_as_the_policy_says() {
    let mut fleet = Fleet::controller_alone().await;
    let file = fleet.path().join("wait");
    std::fs::write(&file, b"").unwrap();
    fleet.enroll_agent("a1").await;
    fleet.configure_agent("a1", |config| {
        drop(config.hooks.insert("wait".parse().unwrap(), waiting_hook(&file)))
    });
    fleet.start_agent("a1").await;
    fleet.add_repository("main", &format!("file://{}", fleet.repository().display()), "").await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(7).make(&tree);
    let policy = |name: &str, more: &str| {
        format!("  {name}: {{ schedule: {{ full: {{ cron: \"0 2 1 1 *\" }} }}, {more} }}\n")
    };
    let source = |name: &str, policy: &str| {
        format!("  {name}: {{ engine: files, agent: a1, paths: [{}], policy: {policy} }}\n", tree.display())
    };
    let yaml = format!(
        "policies:\n{}{}{}{}sources:\n{}{}{}{}{}",
        policy("polite", "resources: { memory: 1%, wait: 1s, then: skip }"),
        policy("insistent", "resources: { memory: 1%, wait: 1s, then: run }"),
        policy("short", "timeout: 1s, hooks: { before: wait }"),
        policy("one-by-one", "limits: { runs: 1 }, hooks: { before: wait }"),
        source("skipped", "polite"),
        source("forced", "insistent"),
        source("late", "short"),
        source("first", "one-by-one"),
        source("second", "one-by-one"),
    );
    fleet.apply(&yaml).await.unwrap();

    let skipped = fleet.start_backup("skipped", "full").await.unwrap();
    let forced = fleet.start_backup("forced", "full").await.unwrap();
    let late = fleet.start_backup("late", "full").await.unwrap();
    let waits = until_async("the reason why a run waits", PATIENCE, async || {
        let request = v1::GetRunRequest { run_id: skipped.id.clone() };
        let run = fleet.runs().get(request).await.unwrap().into_inner().run.unwrap();
        Some(run.waiting_for).filter(|reason| reason.starts_with("its host"))
    })
    .await;
    assert!(
        waits.starts_with("its host: memory ") && waits.ends_with("% in use, at most 1% is allowed"),
        "{waits}"
    );
    let skipped = fleet.ended(&skipped).await;
    let failure = skipped.failure.unwrap();
    assert_eq!((skipped.phase.as_str(), failure.code.as_str()), ("skipped", "HF-4031"));
    assert_eq!(failure.message, "the host was too busy for 1s");
    assert_eq!(fleet.ended(&forced).await.phase, "succeeded");
    let late = fleet.ended(&late).await;
    let failure = late.failure.unwrap();
    assert_eq!((late.phase.as_str(), failure.code.as_str()), ("failed", "HF-4011"));
    assert_eq!(failure.message, "the run was not done after 1 s, the most that its policy allows");

    let first = fleet.start_backup("first", "full").await.unwrap();
    let second = fleet.start_backup("second", "full").await.unwrap();
    let waits = until_async("the second run to wait for the first", PATIENCE, async || {
        let request = v1::GetRunRequest { run_id: second.id.clone() };
        let run = fleet.runs().get(request).await.unwrap().into_inner().run.unwrap();
        Some(run.waiting_for).filter(|reason| !reason.is_empty())
    })
    .await;
    assert_eq!(waits, "policy one-by-one (1 run under way)");
    std::fs::remove_file(&file).unwrap();
    for run in [first, second] {
        assert_eq!(fleet.ended(&run).await.phase, "succeeded");
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_backup_is_tried_again_after_what_may_pass_and_one_asked_for_is_not() {
    let mut fleet = Fleet::start().await;
    let mut cluster = PostgresCluster::start();
    cluster.psql("postgres", "CREATE DATABASE shop");
    let source = cluster.source(fleet.path(), "shop").replace("agent: a1", "agent: a1, policy: often");
    cluster.stop_immediately();
    // The next slot comes long before the pause of the policy is over.
    let policy =
        "policies:\n  often: { schedule: { full: { every: 1s } }, retry: { attempts: 50, backoff: 1h } }\n";
    fleet.apply(&format!("{policy}{source}")).await.unwrap();
    let tried = until_async("a second attempt", PATIENCE, async || {
        scheduled(&fleet).await.into_iter().find(|run| run.attempt >= 2)
    })
    .await;
    cluster.restart();
    let ended = fleet.ended(&tried).await;
    assert_eq!(ended.phase, "succeeded", "{ended:?}");
    let log = fleet.log(&ended).await;
    assert!(log.contains("the attempt failed and is tried again in 1 s: [HF-2001]"), "{log}");
    let all = scheduled(&fleet).await;
    assert_eq!(all.iter().filter(|run| run.phase == "failed").count(), 0, "{all:?}");
    fleet.stop_controller().await;
}
