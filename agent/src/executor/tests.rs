use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_model::ids::{Attempt, RunId};
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::v1::fact::Event;
use holdfast_runtime::{Clock as _, ManualClock, Shutdown, TaskGroup};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::{Notify, watch};

use super::{Assignment, Executor, ExecutorParts, Outcome, RunContext, Worker};
use crate::journal::Journal;
use crate::outbox::Outbox;

/// Work that ends when the test says so, or when it is cancelled.
#[derive(Default)]
struct FakeWorker {
    began: watch::Sender<Vec<(RunId, Attempt)>>,
    finish: Mutex<BTreeMap<RunId, Arc<Notify>>>,
    panics: bool,
}

impl FakeWorker {
    fn finish(&self, run: RunId) -> Arc<Notify> {
        self.finish.lock().entry(run).or_default().clone()
    }

    async fn until_began(&self, run: RunId, attempt: u32) {
        let mut began = self.began.subscribe();
        began.wait_for(|began| began.contains(&(run, Attempt(attempt)))).await.unwrap();
    }
}

#[async_trait]
impl Worker for FakeWorker {
    async fn work(&self, assignment: &Assignment, context: &RunContext) -> Result<Outcome, Failure> {
        assert!(context.scratch.is_dir());
        let finish = self.finish(assignment.run);
        self.began.send_modify(|began| began.push((assignment.run, assignment.attempt)));
        assert!(!self.panics, "an engine has a defect");
        tokio::select! {
            () = finish.notified() => Ok(Outcome::default()),
            () = context.cancel.cancelled() => Err(Failure::new(ErrorCode::ToolFailed, "pg_dump was killed")),
        }
    }
}

struct Fixture {
    _folder: TempDir,
    clock: ManualClock,
    worker: Arc<FakeWorker>,
    outbox: Outbox,
    journal: Journal,
    executor: Executor,
}

fn fixture(slots: u32) -> Fixture {
    fixture_with(slots, FakeWorker::default())
}

fn fixture_with(slots: u32, worker: FakeWorker) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let tasks = TaskGroup::new(&Shutdown::new());
    let clock = ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap());
    let outbox = Outbox::open(folder.path(), &tasks).unwrap();
    let journal = Journal::open(folder.path(), &tasks).unwrap();
    let worker = Arc::new(worker);
    let executor = Executor::new(ExecutorParts {
        slots,
        deadline: Duration::from_secs(3600),
        scratch: folder.path().join("scratch"),
        outbox: outbox.clone(),
        journal: journal.clone(),
        worker: worker.clone(),
        clock: clock.shared(),
        tasks,
    });
    Fixture { _folder: folder, clock, worker, outbox, journal, executor }
}

fn run(n: u8) -> RunId {
    RunId::at(1_000 + u64::from(n), [n; 10])
}

fn assignment(n: u8, attempt: u32) -> Assignment {
    let spec = serde_json::json!({
        "kind": "backup", "source": "shop", "repository": "main", "snapshot_type": "full", "milestone": null
    });
    let source = serde_json::json!({ "engine": "files", "agent": "a", "paths": ["/srv"] });
    Assignment {
        run: run(n),
        attempt: Attempt(attempt),
        spec: serde_json::from_value(spec).unwrap(),
        source: serde_json::from_value(source).unwrap(),
        manifest: None,
        traceparent: String::new(),
        timeout: None,
        pace: None,
        debug: Duration::ZERO,
    }
}

impl Fixture {
    async fn until_held(&self, count: usize) {
        self.executor.watch_held().wait_for(|&held| held == count).await.unwrap();
    }

    /// The facts of a run, as words.
    async fn facts(&self, n: u8) -> Vec<String> {
        let facts = self.outbox.read_after(0, 1000).await.unwrap();
        let of_run = facts.into_iter().filter(|fact| fact.run_id == run(n).to_string());
        of_run
            .map(|fact| match fact.event.unwrap() {
                Event::Started(_) => format!("{} started", fact.attempt),
                Event::Log(_) => format!("{} log", fact.attempt),
                Event::Finished(_) => format!("{} finished", fact.attempt),
                Event::Failed(failure) => format!("{} failed {}", fact.attempt, failure.code),
                Event::Cancelled(_) => format!("{} cancelled", fact.attempt),
            })
            .collect()
    }
}

#[tokio::test]
async fn a_run_is_started_worked_on_and_finished_and_leaves_nothing_behind() {
    let fixture = fixture(1);
    fixture.executor.assign(assignment(1, 1));
    fixture.worker.until_began(run(1), 1).await;
    assert_eq!(fixture.journal.runs().len(), 1);
    assert_eq!(fixture.executor.in_hand(), [(run(1), Attempt(1))]);
    fixture.worker.finish(run(1)).notify_one();
    fixture.until_held(0).await;
    assert_eq!(fixture.facts(1).await, ["1 started", "1 finished"]);
    assert!(fixture.journal.runs().is_empty());
    assert_eq!(std::fs::read_dir(fixture._folder.path().join("scratch")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_run_stays_in_hand_until_its_last_fact_is_acknowledged() {
    let fixture = fixture(1);
    fixture.executor.assign(assignment(1, 1));
    fixture.worker.finish(run(1)).notify_one();
    fixture.worker.until_began(run(1), 1).await;
    fixture.until_held(0).await;
    assert_eq!(fixture.executor.in_hand(), [(run(1), Attempt(1))]);
    fixture.outbox.acknowledge(2).await.unwrap();
    assert_eq!(fixture.executor.in_hand(), []);
}

#[tokio::test]
async fn no_more_runs_than_slots_work_at_once() {
    let fixture = fixture(2);
    for n in 1..=3 {
        fixture.executor.assign(assignment(n, 1));
    }
    fixture.worker.until_began(run(1), 1).await;
    fixture.worker.until_began(run(2), 1).await;
    assert_eq!(fixture.executor.in_hand().len(), 3);
    assert_eq!(fixture.executor.progress().len(), 2, "the third waits");
    assert!(fixture.facts(3).await.is_empty());
    fixture.worker.finish(run(1)).notify_one();
    fixture.worker.until_began(run(3), 1).await;
}

#[tokio::test]
async fn an_assignment_that_comes_again_changes_nothing() {
    let fixture = fixture(1);
    fixture.executor.assign(assignment(1, 1));
    fixture.executor.assign(assignment(1, 1));
    fixture.worker.finish(run(1)).notify_one();
    fixture.worker.until_began(run(1), 1).await;
    fixture.until_held(0).await;
    fixture.executor.assign(assignment(1, 1));
    fixture.outbox.acknowledge(2).await.unwrap();
    fixture.executor.assign(assignment(1, 1));
    assert_eq!(*fixture.executor.watch_held().borrow(), 0);
    assert_eq!(fixture.worker.began.borrow().len(), 1);
}

#[tokio::test]
async fn a_newer_attempt_ends_the_older_one_which_says_nothing_more() {
    let fixture = fixture(1);
    fixture.executor.assign(assignment(1, 1));
    fixture.worker.until_began(run(1), 1).await;
    fixture.executor.assign(assignment(1, 2));
    fixture.worker.until_began(run(1), 2).await;
    fixture.executor.assign(assignment(1, 1));
    fixture.worker.finish(run(1)).notify_one();
    fixture.until_held(0).await;
    assert_eq!(fixture.facts(1).await, ["1 started", "2 started", "2 finished"]);
}

#[tokio::test]
async fn a_cancelled_run_confirms_it() {
    let fixture = fixture(1);
    fixture.executor.assign(assignment(1, 1));
    fixture.executor.assign(assignment(2, 1));
    fixture.worker.until_began(run(1), 1).await;
    // Also one that waits for a slot.
    fixture.executor.cancel(run(2), Attempt(1));
    fixture.until_held(1).await;
    fixture.executor.cancel(run(1), Attempt(7));
    fixture.executor.cancel(run(1), Attempt(1));
    fixture.until_held(0).await;
    assert_eq!(fixture.facts(1).await, ["1 started", "1 log", "1 cancelled"]);
    assert_eq!(fixture.facts(2).await.last().unwrap(), "1 cancelled");
}

#[tokio::test]
async fn an_abandoned_run_stops_and_is_silent() {
    let fixture = fixture(1);
    fixture.executor.assign(assignment(1, 1));
    fixture.worker.until_began(run(1), 1).await;
    fixture.executor.abandon(run(1), Attempt(1));
    fixture.until_held(0).await;
    assert_eq!(fixture.facts(1).await, ["1 started"]);
    assert!(fixture.journal.runs().is_empty());
}

#[tokio::test]
async fn a_run_that_takes_too_long_fails() {
    let fixture = fixture(1);
    fixture.executor.assign(assignment(1, 1));
    fixture.worker.until_began(run(1), 1).await;
    fixture.clock.until_sleepers(1).await;
    fixture.clock.advance(Duration::from_secs(3601));
    fixture.until_held(0).await;
    assert_eq!(fixture.facts(1).await.last().unwrap(), "1 failed HF-4011");
    assert_eq!(fixture.clock.now().to_string(), "2026-11-21T13:00:01Z");
}

#[tokio::test]
async fn a_draining_agent_finishes_what_began_and_gives_the_rest_back() {
    let fixture = fixture(1);
    fixture.executor.assign(assignment(1, 1));
    fixture.executor.assign(assignment(2, 1));
    fixture.worker.until_began(run(1), 1).await;
    fixture.executor.drain();
    fixture.executor.assign(assignment(3, 1));
    fixture.until_held(1).await;
    assert_eq!(fixture.facts(2).await.last().unwrap(), "1 failed HF-5005");
    assert_eq!(fixture.facts(3).await.last().unwrap(), "1 failed HF-5005");
    fixture.worker.finish(run(1)).notify_one();
    fixture.until_held(0).await;
    assert_eq!(fixture.facts(1).await, ["1 started", "1 finished"]);
}

#[tokio::test]
async fn more_assignments_than_can_wait_are_refused() {
    let fixture = fixture(1);
    for n in 1..=10 {
        fixture.executor.assign(assignment(n, 1));
    }
    fixture.until_held(9).await;
    assert_eq!(fixture.facts(10).await.last().unwrap(), "1 failed HF-4021");
}

#[tokio::test]
async fn a_defect_of_an_engine_fails_its_run_and_nothing_else() {
    let fixture = fixture_with(1, FakeWorker { panics: true, ..FakeWorker::default() });
    fixture.executor.assign(assignment(1, 1));
    fixture.worker.until_began(run(1), 1).await;
    fixture.until_held(0).await;
    assert_eq!(fixture.facts(1).await.last().unwrap(), "1 failed HF-4017");
    assert!(!fixture.executor.inner.parts.tasks.shutdown().is_requested());
}
