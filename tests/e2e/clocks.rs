//! Wall clocks that jump, or are off: leases are held by another clock, and what a clock breaks is said.

use std::path::PathBuf;

use holdfast_agent::config::Hook;
use holdfast_proto::v1;
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{Fleet, Process, SkewedClock, TreeSpec};
use jiff::{SignedDuration, Timestamp};

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// A fleet whose controller has this clock, and whose backups of `tree` wait as long as the file exists.
async fn fleet(clock: &SkewedClock) -> (Fleet, PathBuf) {
    let mut fleet = Fleet::controller_at(clock.shared()).await;
    let file = fleet.path().join("wait");
    fleet.enroll_agent("a1").await;
    let script = format!("while [ -e {} ]; do sleep 0.01; done", file.display());
    let hook = Hook { command: ["sh", "-c", &script].map(str::to_owned).to_vec(), timeout: 5 * PATIENCE };
    fleet.configure_agent("a1", |config| drop(config.hooks.insert("wait".parse().unwrap(), hook)));
    fleet.start_agent("a1").await;
    fleet.add_repository("main", &format!("file://{}", fleet.repository().display()), "").await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(13).make(&tree);
    let yaml = format!(
        "sources:\n  tree: {{ engine: files, agent: a1, paths: [{}], hooks: {{ before: wait }} }}\n",
        tree.display()
    );
    fleet.apply(&yaml).await.unwrap();
    (fleet, file)
}

async fn now(fleet: &Fleet, run: &v1::Run) -> v1::Run {
    let request = v1::GetRunRequest { run_id: run.id.clone() };
    fleet.runs().get(request).await.unwrap().into_inner().run.unwrap()
}

async fn heartbeats(fleet: &Fleet) -> Timestamp {
    let agents = fleet.fleet().list_agents(v1::ListAgentsRequest {}).await.unwrap().into_inner().agents;
    let seen = agents[0].last_seen_at.unwrap();
    Timestamp::new(seen.seconds, seen.nanos).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jump_of_the_controllers_clock_loses_no_run_and_commits_none_twice() {
    let clock = SkewedClock::default();
    let (mut fleet, file) = fleet(&clock).await;
    let mut runs = Vec::new();
    for jump in [DAY, -DAY - DAY] {
        std::fs::write(&file, b"").unwrap();
        // One run is at work when the clock jumps, one waits for its agent.
        let working = fleet.start_backup("tree", "incremental").await.unwrap();
        let running = async || (now(&fleet, &working).await.phase == "running").then_some(());
        until_async("the run to be at work", PATIENCE, running).await;
        clock.jump(jump);
        let jumped_at = holdfast_runtime::Clock::now(&clock);
        // The reaper has looked in between, and every lease was renewed after the jump.
        let renewed = async || {
            let seen = heartbeats(&fleet).await;
            (seen >= jumped_at && seen < jumped_at + DAY).then_some(())
        };
        until_async("a sign of life after the jump", PATIENCE, renewed).await;
        std::fs::remove_file(&file).unwrap();
        let ended = fleet.ended(&working).await;
        assert_eq!((ended.phase.as_str(), ended.attempt), ("succeeded", 1), "{ended:?}");
        runs.push(ended);

        fleet.stop_agent("a1").await;
        let waiting = fleet.start_backup("tree", "incremental").await.unwrap();
        clock.jump(-jump);
        fleet.start_agent("a1").await;
        let ended = fleet.ended(&waiting).await;
        assert_eq!((ended.phase.as_str(), ended.attempt), ("succeeded", 1), "{ended:?}");
        runs.push(ended);
        clock.jump(jump);
    }
    let snapshots = fleet.snapshots_of("tree").await;
    assert_eq!(snapshots.len(), runs.len(), "each run committed once");
    for run in &runs {
        let snapshot = snapshots.iter().find(|snapshot| snapshot.id == run.snapshot_id).unwrap();
        // The time of what a snapshot holds is the agent's, whose clock did not jump.
        let captured = snapshot.captured_at.unwrap();
        let captured = Timestamp::new(captured.seconds, captured.nanos).unwrap();
        let off = holdfast_runtime::Clock::now(&SkewedClock::default()).duration_since(captured);
        assert!(off.abs() < SignedDuration::from_mins(5), "captured {off:?} from now");
    }
    fleet.restic().check_all_data();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_an_agent_whose_clock_is_off() {
    let (mut fleet, _) = fleet(&SkewedClock::default()).await;
    fleet.stop_agent("a1").await;
    let ahead = SkewedClock::default();
    ahead.jump(SignedDuration::from_mins(10));
    fleet.start_agent_at("a1", ahead.shared()).await;
    let doctor = until_async("doctor to see the clock", PATIENCE, async || {
        let findings = fleet.status().doctor(v1::DoctorRequest {}).await.unwrap().into_inner().findings;
        findings.into_iter().find(|finding| finding.area == "time")
    });
    let found = doctor.await;
    assert_eq!((found.object.as_str(), found.outcome.as_str()), ("a1", "warning"));
    assert!(found.message.starts_with("its clock is ") && found.message.ends_with(" ms off"), "{found:?}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_certificate_is_of_another_time_says_so() {
    let clock = SkewedClock::default();
    clock.jump(-DAY * 3);
    let mut fleet = Fleet::controller_at(clock.shared()).await;
    fleet.enroll_agent("a1").await;
    let mut agent = Process::start("agent", &mut fleet.agent_program("a1"), fleet.path());
    let said = agent.wait_until("the reason", PATIENCE, |log| {
        log.lines().find(|line| line.contains("no session with the controller")).map(str::to_owned)
    });
    assert!(said.contains("[HF-6002] the certificate of this agent is valid from "), "{said}");
    assert!(said.contains(", and it is ") && said.contains(" here: the controller https://"), "{said}");
    fleet.stop().await;
}
