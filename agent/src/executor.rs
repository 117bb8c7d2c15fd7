//! Runs on this host: a limited number at once, each one owned task with a token, a deadline and an end that is told.
//!
//! ```text
//! assign ─▶ wait for a slot ─▶ journal ─▶ fact Started ─▶ work ─▶ fact Finished | Failed | Cancelled ─▶ journal
//! ```
//!
//! A run is in hand from its assignment until the controller has acknowledged its last fact. Assigning it again
//! changes nothing; a newer attempt ends the older one, whose reports would be refused.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_engines::RunLog as _;
use holdfast_model::Failure;
use holdfast_model::ids::{Attempt, RunId, SourceName};
use holdfast_model::progress::Progress;
use holdfast_model::restore::RestoreReport;
use holdfast_runtime::{OnEnd, SharedClock, TaskGroup};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

mod assignment;
mod attempt;
mod ending;
#[cfg(test)]
mod tests;

pub use assignment::Assignment;
pub use ending::StopReason;

use crate::counters::Counters;
use crate::journal::Journal;
use crate::outbox::Outbox;
use crate::run_log::RunLogger;
use attempt::AttemptTask;
use ending::Stopper;

/// Assignments that may wait for a slot; the controller knows the slots and sends no more than fit, but for a race.
const WAITING_MAX: usize = 8;
/// Ended attempts that are remembered, so that a late repetition of their assignment is not taken for a new one.
const ENDED_REMEMBERED: usize = 1024;

/// What a worker is given besides its assignment.
#[derive(Clone)]
pub struct RunContext {
    /// The run.
    pub run: RunId,
    /// Its attempt.
    pub attempt: Attempt,
    /// Fires when the work shall stop; it then returns an error soon.
    pub cancel: CancellationToken,
    /// The log of the run.
    pub log: RunLogger,
    /// Counters that are reported as progress.
    pub counters: Arc<Counters>,
    /// A folder of this attempt alone, removed after it.
    pub scratch: PathBuf,
    /// Owner of tasks of this attempt.
    pub tasks: TaskGroup,
}

impl RunContext {
    /// Goes on to the next part of the work.
    pub fn enter(&self, stage: &'static str) {
        self.counters.enter(stage);
        self.log.debug(format_args!("{stage}"));
    }
}

/// What finished work has to tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What a restore, promotion or discard did.
    pub restored: Option<RestoreReport>,
}

/// Does the work of runs.
#[async_trait]
pub trait Worker: Send + Sync + 'static {
    /// Does one run. Stops soon after the token fired.
    ///
    /// # Errors
    /// What ended it.
    async fn work(&self, assignment: &Assignment, context: &RunContext) -> Result<Outcome, Failure>;
}

/// What the executor works with.
#[derive(Clone)]
pub struct ExecutorParts {
    /// How many runs it takes at once.
    pub slots: u32,
    /// How long one may take.
    pub deadline: Duration,
    /// Folder for scratch files.
    pub scratch: PathBuf,
    /// Where facts go.
    pub outbox: Outbox,
    /// What is under way.
    pub journal: Journal,
    /// Who does the work.
    pub worker: Arc<dyn Worker>,
    /// The time.
    pub clock: SharedClock,
    /// Owner of the tasks.
    pub tasks: TaskGroup,
}

/// Runs on this host. Clones share it.
#[derive(Clone)]
pub struct Executor {
    inner: Arc<Inner>,
}

struct Inner {
    parts: ExecutorParts,
    slots: Arc<Semaphore>,
    state: Mutex<State>,
    held: watch::Sender<usize>,
    draining: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    runs: BTreeMap<RunId, Held>,
    ended: VecDeque<(RunId, Attempt)>,
}

/// A run that has not ended.
struct Held {
    attempt: Attempt,
    source: Option<SourceName>,
    log: RunLogger,
    stopper: Stopper,
    counters: Arc<Counters>,
    /// Cancelled when its task has ended.
    ended: CancellationToken,
    began: bool,
}

impl Executor {
    /// An executor without runs.
    pub fn new(parts: ExecutorParts) -> Self {
        let slots = Arc::new(Semaphore::new(parts.slots as usize));
        let (held, draining) = (watch::Sender::new(0), watch::Sender::new(false));
        Self { inner: Arc::new(Inner { parts, slots, state: Mutex::default(), held, draining }) }
    }

    /// Takes an assignment. Does not wait: what cannot be taken is answered by a fact.
    pub fn assign(&self, assignment: Assignment) {
        let (run, attempt) = (assignment.run, assignment.attempt);
        let mut state = self.inner.state.lock();
        let predecessor = match state.runs.get(&run) {
            Some(held) if held.attempt >= attempt => return,
            Some(held) => {
                held.stopper.stop(StopReason::Abandoned);
                Some(held.ended.clone())
            }
            None => None,
        };
        if state.ended.contains(&(run, attempt))
            || self.inner.parts.outbox.ended_runs().contains(&(run, attempt))
        {
            return;
        }
        let stopper = Stopper::new();
        let refused = if *self.inner.draining.borrow() {
            stopper.stop(StopReason::Drained)
        } else {
            state.runs.len() >= self.inner.parts.slots as usize + WAITING_MAX
                && stopper.stop(StopReason::Busy)
        };
        tracing::info!(%run, %attempt, kind = %assignment.spec.kind(), refused, "assigned");
        let (counters, ended) = (Arc::new(Counters::default()), CancellationToken::new());
        let log = RunLogger::new(run, attempt, self.inner.parts.clock.clone());
        log.debug_for(assignment.debug);
        let held = Held {
            attempt,
            source: assignment.spec.source().cloned(),
            log: log.clone(),
            stopper: stopper.clone(),
            counters: counters.clone(),
            ended: ended.clone(),
            began: false,
        };
        state.runs.insert(run, held);
        self.inner.held.send_replace(state.runs.len());
        drop(state);
        let task =
            AttemptTask { executor: self.inner.clone(), assignment, stopper, counters, log, predecessor };
        let span = task.span();
        let future = async move {
            // Also when the task is aborted: whoever waits for this attempt must not wait for ever.
            let _ended = ended.drop_guard();
            task.execute().await;
        };
        let name = format!("run {}", run.short());
        drop(span.in_scope(|| self.inner.parts.tasks.spawn(name, OnEnd::Isolated, future)));
    }

    /// Stops a run on request.
    pub fn cancel(&self, run: RunId, attempt: Attempt) {
        self.stop(run, attempt, StopReason::CancelAsked);
    }

    /// Stops a run that is not this agent's any more; nothing of it is reported.
    pub fn abandon(&self, run: RunId, attempt: Attempt) {
        self.stop(run, attempt, StopReason::Abandoned);
    }

    /// Has the runs of a source that have not ended write debug lines for so long; nothing: no more.
    pub fn debug(&self, source: &SourceName, length: Duration) {
        let state = self.inner.state.lock();
        state.runs.values().filter(|held| held.source.as_ref() == Some(source)).for_each(|held| {
            held.log.debug_for(length);
        });
    }

    fn stop(&self, run: RunId, attempt: Attempt, reason: StopReason) {
        let state = self.inner.state.lock();
        if let Some(held) = state.runs.get(&run).filter(|held| held.attempt == attempt) {
            tracing::info!(%run, %attempt, ?reason, "stopping");
            held.stopper.stop(reason);
        }
    }

    /// Takes nothing new from now on. What has not begun yet is given back.
    pub fn drain(&self) {
        self.inner.draining.send_replace(true);
        let state = self.inner.state.lock();
        state.runs.values().filter(|held| !held.began).for_each(|held| {
            held.stopper.stop(StopReason::Drained);
        });
    }

    /// Stops everything, since there is no time left to finish.
    pub fn stop_all(&self) {
        let state = self.inner.state.lock();
        state.runs.values().for_each(|held| {
            held.stopper.stop(StopReason::Drained);
        });
    }

    /// Tells whether nothing new is taken.
    pub fn watch_draining(&self) -> watch::Receiver<bool> {
        self.inner.draining.subscribe()
    }

    /// Tells how many runs have not ended.
    pub fn watch_held(&self) -> watch::Receiver<usize> {
        self.inner.held.subscribe()
    }

    /// The runs in hand: those that have not ended, and those whose end the controller does not know yet.
    pub fn in_hand(&self) -> Vec<(RunId, Attempt)> {
        let state = self.inner.state.lock();
        let mut runs: Vec<_> = state.runs.iter().map(|(run, held)| (*run, held.attempt)).collect();
        drop(state);
        for ended in self.inner.parts.outbox.ended_runs() {
            if !runs.iter().any(|(run, _)| *run == ended.0) {
                runs.push(ended);
            }
        }
        runs
    }

    /// The counters of every run that has begun.
    pub fn progress(&self) -> Vec<(RunId, Attempt, Progress)> {
        let state = self.inner.state.lock();
        let began = state.runs.iter().filter(|(_, held)| held.began);
        began.map(|(run, held)| (*run, held.attempt, held.counters.snapshot())).collect()
    }
}

impl Inner {
    /// Marks an attempt as begun; false when it is not the one in hand any more.
    fn begin(&self, run: RunId, attempt: Attempt) -> bool {
        let mut state = self.state.lock();
        let held = state.runs.get_mut(&run).filter(|held| held.attempt == attempt);
        held.map(|held| held.began = true).is_some()
    }

    /// Takes an attempt out of the list.
    fn end(&self, run: RunId, attempt: Attempt) {
        let mut state = self.state.lock();
        if state.runs.get(&run).is_some_and(|held| held.attempt == attempt) {
            state.runs.remove(&run);
        }
        state.ended.push_back((run, attempt));
        if state.ended.len() > ENDED_REMEMBERED {
            state.ended.pop_front();
        }
        self.held.send_replace(state.runs.len());
    }
}
