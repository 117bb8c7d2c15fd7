//! The life of runs: the only place that changes and stores their state.
//!
//! Every change goes through [`RunState::apply`], is durable before anybody hears of it, and is published to watchers
//! after. Runs that have not ended are held in memory; what locks what: each active run has a `turn` (an async mutex)
//! that orders its changes, and the map of active runs is locked only for moments, never across a wait.

pub mod retry;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use holdfast_model::ids::{AgentName, Attempt, RunId, SnapshotId, SourceName};
use holdfast_model::progress::Progress;
use holdfast_model::restore::RestoreReport;
use holdfast_model::run::{Run, RunKind, RunSpec};
use holdfast_model::run_state::{IllegalTransition, Intent, Phase, RunEvent, RunState};
use holdfast_model::schedule::SlotId;
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::SharedClock;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedMutexGuard, watch};

use crate::records::{Batch, OutboxPosition, Records};
use crate::run_totals;

/// The life of runs. Clones share it.
#[derive(Clone)]
pub struct RunLifecycle {
    inner: Arc<Inner>,
}

struct Inner {
    records: Records,
    clock: SharedClock,
    lease: Duration,
    active_max: AtomicUsize,
    active: Mutex<BTreeMap<RunId, ActiveRun>>,
    /// Orders the queueing of runs, so that two requests do not both find a source free.
    queueing: tokio::sync::Mutex<()>,
    /// Orders the ends of runs, so that each is counted.
    ending: tokio::sync::Mutex<()>,
    changed: Notify,
    /// Sources of which a backup ended since this was last taken.
    ended_backups: Mutex<BTreeSet<SourceName>>,
}

struct ActiveRun {
    run: Run,
    version: u64,
    published: watch::Sender<Arc<Run>>,
    turn: Arc<tokio::sync::Mutex<()>>,
    /// When its lease ends; none while it is queued.
    lease_ends: Option<Instant>,
    /// Bytes and files that it is expected to deal with.
    expected: (u64, u64),
    /// When its next attempt may begin, after one that was interrupted.
    rests_until: Option<Instant>,
    /// Since when its host is too busy for it.
    held_since: Option<Instant>,
    /// The attempt that uses its repository, and how often that had been disturbed when it began to.
    relies_since: Option<(Attempt, u64)>,
}

/// What a run is asked to be.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// What it is to do.
    pub spec: RunSpec,
    /// Which agent does it.
    pub agent: Option<AgentName>,
    /// Who asks.
    pub requested_by: String,
    /// Trace context of the request.
    pub traceparent: Option<String>,
    /// The run that it repeats.
    pub retry_of: Option<RunId>,
    /// The slot that it is the run of.
    pub slot: Option<SlotId>,
}

impl NewRun {
    /// A run that is neither a repetition nor of a slot, for no agent in particular.
    pub fn new(spec: RunSpec, requested_by: impl Into<String>) -> Self {
        let requested_by = requested_by.into();
        Self { spec, agent: None, requested_by, traceparent: None, retry_of: None, slot: None }
    }
}

/// What is recorded together with an event.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The snapshot that was committed.
    pub snapshot: Option<SnapshotId>,
    /// What a restore did.
    pub restored: Option<RestoreReport>,
    /// What a check found.
    pub findings: Vec<String>,
    /// Last counters.
    pub progress: Option<Progress>,
    /// The fact that brought the event, so that both are durable together.
    pub outbox: Option<OutboxPosition>,
    /// How long it waits when it goes back to the queue; the usual pause without it.
    pub rest: Option<Duration>,
}

impl RunLifecycle {
    /// Loads the runs that have not ended. Their leases begin anew: their agents get the time of one lease to come back.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn load(
        records: Records,
        clock: SharedClock,
        lease: Duration,
        active_max: usize,
    ) -> Result<Self, Failure> {
        let mut active = BTreeMap::new();
        for (run, version) in records.active_runs().await? {
            let lease_ends = run.state.phase.is_with_agent().then(|| clock.monotonic() + lease);
            active.insert(run.id, ActiveRun::new(run, version, lease_ends));
        }
        let inner = Inner {
            records,
            clock,
            lease,
            active_max: AtomicUsize::new(active_max),
            active: Mutex::new(active),
            queueing: tokio::sync::Mutex::default(),
            ending: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            ended_backups: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Changes how many runs may wait or run in all. Those that do stay.
    pub fn limit_active(&self, most: usize) {
        self.inner.active_max.store(most, Ordering::Relaxed);
    }

    /// Stores runs as queued, all or none, together with what else belongs to the request: `remember` adds it to the
    /// batch once the runs have their ids. Returns the number of the commit with them.
    ///
    /// # Errors
    /// `HF-4005` when a run of the same kind and source is active, `HF-4021` when too many wait.
    pub async fn queue(
        &self,
        new: Vec<NewRun>,
        mut batch: Batch,
        remember: impl FnOnce(Batch, &[Run]) -> Batch,
    ) -> Result<(Vec<Run>, u64), Failure> {
        let _turn = self.inner.queueing.lock().await;
        let mut runs = Vec::with_capacity(new.len());
        for new in new {
            self.refuse_second(&new.spec)?;
            let now = self.inner.clock.now();
            let id = RunId::at(u64::try_from(now.as_millisecond()).unwrap_or(0), rand::random());
            let run = Run {
                agent: new.agent,
                traceparent: new.traceparent,
                retry_of: new.retry_of,
                slot: new.slot,
                ..Run::queued(id, new.spec, new.requested_by, now)
            };
            batch = batch.put_new_run(&run);
            runs.push(run);
        }
        let active_max = self.inner.active_max.load(Ordering::Relaxed);
        if self.inner.active.lock().len() + runs.len() > active_max {
            return Err(Failure::new(ErrorCode::QueueFull, format!("{active_max} runs are active"))
                .then("holdfast run list --phase queued"));
        }
        let version = self.inner.records.commit(remember(batch, &runs)).await?;
        let mut active = self.inner.active.lock();
        for run in &runs {
            tracing::info!(run = %run.id, kind = %run.spec.kind(), "queued");
            active.insert(run.id, ActiveRun::new(run.clone(), version, None));
        }
        drop(active);
        self.inner.changed.notify_waiters();
        Ok((runs, version))
    }

    /// One active run per kind, source and repository: two captures of one source at a time help nobody.
    ///
    /// # Errors
    /// `HF-4005`.
    pub fn refuse_second(&self, spec: &RunSpec) -> Result<(), Failure> {
        let active = self.inner.active.lock();
        let same = active.values().map(|active| &active.run).find(|run| {
            run.spec.kind() == spec.kind()
                && run.spec.source() == spec.source()
                && run.spec.repository() == spec.repository()
                && (spec.source().is_some() || spec.kind() == RunKind::Prune || run.spec == *spec)
        });
        let Some(run) = same else { return Ok(()) };
        let what = spec.source().map_or_else(|| "the repository".to_owned(), ToString::to_string);
        Err(Failure::new(
            ErrorCode::RunAlreadyActive,
            format!(
                "{what} has a {} run that is {}: {}",
                spec.kind(),
                run.state.phase.as_str(),
                run.id.short()
            ),
        )
        .then(format!("holdfast run watch {}", run.id.short())))
    }

    /// Applies an event, stores the result, publishes it.
    ///
    /// # Errors
    /// `HF-4007` for a report of an older attempt, `HF-4006` for a cancel that comes too late, `HF-4001` for a run that
    /// does not exist or has ended.
    pub async fn apply(
        &self,
        id: RunId,
        actor: &str,
        event: RunEvent,
        outcome: Outcome,
    ) -> Result<Run, Failure> {
        let _turn = self.turn(id).await?;
        self.apply_in_turn(id, actor, event, outcome).await
    }

    async fn apply_in_turn(
        &self,
        id: RunId,
        actor: &str,
        event: RunEvent,
        outcome: Outcome,
    ) -> Result<Run, Failure> {
        let (mut run, version) = {
            let active = self.inner.active.lock();
            let entry = active.get(&id).ok_or_else(|| not_active(id))?;
            (entry.run.clone(), entry.version)
        };
        let before = run.state.clone();
        let state = run.state.apply(event).map_err(|refused| illegal(id, &refused))?;
        let (outbox, rest) = (outcome.outbox.clone(), outcome.rest);
        self.stamp(&mut run, state, outcome);
        let mut batch = Batch::new(actor, format!("run.{}", run.state.phase.as_str()), run.id.to_string());
        if run.state == before && outbox.is_none() {
            return Ok(run);
        }
        batch = batch.put_run(&run, version);
        if let Some(position) = outbox {
            batch = batch.put_outbox(&position);
        }
        let mut _ending = None;
        if run.state.phase.is_terminal() {
            _ending = Some(self.inner.ending.lock().await);
            batch = run_totals::count(&self.inner.records, batch, &run).await?;
        }
        let version = self.inner.records.commit(batch).await?;
        self.publish(&run, version, rest);
        Ok(run)
    }

    /// Sets the times and results that go with a new state.
    fn stamp(&self, run: &mut Run, state: RunState, outcome: Outcome) {
        let now = self.inner.clock.now();
        if state.attempt != run.state.attempt {
            run.assigned_at = Some(now);
            run.started_at = None;
            run.progress = Progress::default();
        }
        if matches!(state.phase, Phase::Running | Phase::Committing) && run.started_at.is_none() {
            run.started_at = Some(now);
        }
        if state.phase.is_terminal() && run.ended_at.is_none() {
            run.ended_at = Some(now);
        }
        if state.phase != Phase::Queued {
            run.waiting_for = None;
        }
        run.state = state;
        run.snapshot = outcome.snapshot.or(run.snapshot);
        run.restored = outcome.restored.or(run.restored.take());
        if !outcome.findings.is_empty() {
            run.findings = outcome.findings;
        }
        if let Some(progress) = outcome.progress {
            run.progress = progress;
        }
    }

    fn publish(&self, run: &Run, version: u64, rest: Option<Duration>) {
        tracing::info!(run = %run.id, attempt = run.state.attempt.0, phase = run.state.phase.as_str(), "run changed");
        let mut active = self.inner.active.lock();
        if let Some(entry) = active.get_mut(&run.id) {
            entry.run = run.clone();
            entry.version = version;
            entry.lease_ends =
                run.state.phase.is_with_agent().then(|| self.inner.clock.monotonic() + self.inner.lease);
            let goes_back = run.state.phase == Phase::Queued;
            let rest = rest.unwrap_or_else(|| retry::pause_after(run.state.attempt));
            entry.rests_until = goes_back.then(|| self.inner.clock.monotonic() + rest);
            entry.held_since = None;
            entry.published.send_replace(Arc::new(run.clone()));
        }
        if run.state.phase.is_terminal() {
            active.remove(&run.id);
            if let RunSpec::Backup { source, .. } = &run.spec {
                self.inner.ended_backups.lock().insert(source.clone());
            }
        }
        drop(active);
        self.inner.changed.notify_waiters();
    }

    async fn turn(&self, id: RunId) -> Result<OwnedMutexGuard<()>, Failure> {
        let turn = self.inner.active.lock().get(&id).map(|entry| entry.turn.clone());
        Ok(turn.ok_or_else(|| not_active(id))?.lock_owned().await)
    }

    /// Begins the commit of a run and keeps everybody else from changing it until the guard is finished or dropped.
    ///
    /// # Errors
    /// Like [`RunLifecycle::apply`].
    pub async fn begin_commit(
        &self,
        id: RunId,
        actor: &str,
        attempt: Attempt,
    ) -> Result<CommitGuard, Failure> {
        let turn = self.turn(id).await?;
        let began_before = self.active_run(id).is_some_and(|run| run.state.phase == Phase::Committing);
        let run = self.apply_in_turn(id, actor, RunEvent::CommitStarted(attempt), Outcome::default()).await?;
        let may_be_made = began_before || attempt.0 > 1;
        Ok(CommitGuard { lifecycle: self.clone(), run, may_be_made, _turn: turn })
    }

    /// The run, when it is in the hands of this agent with this attempt. Renews its lease.
    ///
    /// # Errors
    /// `HF-4007` otherwise, the same for a run that does not exist, is another's, or has a newer attempt.
    pub fn fence(&self, id: RunId, attempt: Attempt, agent: &AgentName) -> Result<Run, Failure> {
        let mut active = self.inner.active.lock();
        let entry = active.get_mut(&id).filter(|entry| {
            entry.run.agent.as_ref() == Some(agent)
                && entry.run.state.attempt == attempt
                && entry.run.state.phase.is_with_agent()
        });
        let entry = entry.ok_or_else(|| {
            Failure::new(
                ErrorCode::StaleAttempt,
                format!("run {} attempt {attempt} is not in the hands of agent {agent}", id.short()),
            )
        })?;
        entry.lease_ends = Some(self.inner.clock.monotonic() + self.inner.lease);
        Ok(entry.run.clone())
    }

    /// How many bytes and files a run is expected to deal with, for progress that says nothing of it. Not durable.
    pub fn expect(&self, id: RunId, bytes: u64, files: u64) {
        if let Some(entry) = self.inner.active.lock().get_mut(&id) {
            entry.expected = (bytes, files);
        }
    }

    /// Takes lossy counters; wrong ones are dropped without a word.
    pub fn progress(&self, id: RunId, attempt: Attempt, agent: &AgentName, mut progress: Progress) {
        let mut active = self.inner.active.lock();
        if let Some(entry) = active.get_mut(&id)
            && entry.run.agent.as_ref() == Some(agent)
            && entry.run.state.attempt == attempt
        {
            let (bytes, files) = entry.expected;
            if progress.bytes_total == 0 && bytes > 0 {
                // An expectation that turns out to be too low grows with what is done.
                progress.bytes_total = bytes.max(progress.bytes_done);
                progress.files_total = files.max(progress.files_done);
            }
            entry.run.progress = progress;
            entry.published.send_replace(Arc::new(entry.run.clone()));
        }
    }

    /// A sign of life of a run that the controller does itself, with its counters.
    pub fn pulse(&self, id: RunId, attempt: Attempt, progress: Progress) {
        let mut active = self.inner.active.lock();
        if let Some(entry) = active.get_mut(&id)
            && entry.run.agent.is_none()
            && entry.run.state.attempt == attempt
        {
            entry.lease_ends = Some(self.inner.clock.monotonic() + self.inner.lease);
            entry.run.progress = progress;
            entry.published.send_replace(Arc::new(entry.run.clone()));
        }
    }

    /// Says why a queued run waits. Not durable: it is found out again at each pass.
    pub fn waits_for(&self, id: RunId, reason: Option<String>) {
        let mut active = self.inner.active.lock();
        if let Some(entry) = active.get_mut(&id)
            && entry.run.state.phase == Phase::Queued
            && entry.run.waiting_for != reason
        {
            entry.run.waiting_for = reason;
            entry.published.send_replace(Arc::new(entry.run.clone()));
        }
    }

    /// A run, active or ended.
    ///
    /// # Errors
    /// `HF-4001` when there is none.
    pub async fn get(&self, id: RunId) -> Result<Run, Failure> {
        if let Some(run) = self.active_run(id) {
            return Ok(run);
        }
        self.inner.records.run(id).await?.map(|(run, _)| run).ok_or_else(|| not_active(id))
    }

    /// A run that has not ended.
    pub fn active_run(&self, id: RunId) -> Option<Run> {
        self.inner.active.lock().get(&id).map(|entry| entry.run.clone())
    }

    /// The runs that have not ended, oldest first.
    pub fn active(&self) -> Vec<Run> {
        self.inner.active.lock().values().map(|entry| entry.run.clone()).collect()
    }

    /// Whether a backup of a source waits or is under way.
    pub fn is_backed_up_now(&self, source: &SourceName) -> bool {
        let active = self.inner.active.lock();
        let mut runs = active.values().map(|entry| &entry.run.spec);
        runs.any(|spec| spec.kind() == RunKind::Backup && spec.source() == Some(source))
    }

    /// The sources of which a backup ended since this was last asked.
    pub fn take_ended_backups(&self) -> BTreeSet<SourceName> {
        std::mem::take(&mut self.inner.ended_backups.lock())
    }

    /// Changes of a run from now on; none when it has ended.
    pub fn watch(&self, id: RunId) -> Option<watch::Receiver<Arc<Run>>> {
        self.inner.active.lock().get(&id).map(|entry| entry.published.subscribe())
    }

    /// Completes at the next change of any run. Create it before looking at the runs, so that no change is missed.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + '_ {
        self.inner.changed.notified()
    }

    /// Runs whose lease has ended by now.
    pub fn expired(&self) -> Vec<Run> {
        let now = self.inner.clock.monotonic();
        let active = self.inner.active.lock();
        active
            .values()
            .filter(|entry| entry.lease_ends.is_some_and(|ends| ends <= now))
            .map(|entry| entry.run.clone())
            .collect()
    }

    /// Gives a run up that its agent lost: back to the queue, or ended. `committed` is the snapshot that the repository
    /// has of it, if any. Only when its attempt is still this one, and, with `only_if_expired`, its lease is over.
    ///
    /// # Errors
    /// When the change can not be stored.
    pub async fn lease_lost(
        &self,
        id: RunId,
        attempt: Attempt,
        committed: Option<SnapshotId>,
        only_if_expired: bool,
    ) -> Result<(), Failure> {
        let Ok(_turn) = self.turn(id).await else { return Ok(()) };
        let now = self.inner.clock.monotonic();
        let still = {
            let active = self.inner.active.lock();
            active.get(&id).is_some_and(|entry| {
                entry.run.state.attempt == attempt
                    && entry.run.state.phase.is_with_agent()
                    && (!only_if_expired || entry.lease_ends.is_some_and(|ends| ends <= now))
            })
        };
        let Some(run) = self.active_run(id).filter(|_| still) else { return Ok(()) };
        let event = RunEvent::LeaseLost {
            committed: committed.or(run.snapshot).is_some(),
            may_retry: retry::may_retry(run.spec.kind(), attempt),
        };
        let outcome = Outcome { snapshot: committed, ..Outcome::default() };
        self.apply_in_turn(id, "controller", event, outcome).await?;
        Ok(())
    }

    /// Notes how often the repository of a run had been disturbed when this attempt began to rely on it.
    pub fn relies_since(&self, id: RunId, attempt: Attempt, disturbances: u64) {
        if let Some(entry) = self.inner.active.lock().get_mut(&id) {
            entry.relies_since = Some((attempt, disturbances));
        }
    }

    /// What was noted of this attempt; nought when nothing was, as after a restart of the controller.
    pub fn relied_since(&self, id: RunId, attempt: Attempt) -> u64 {
        let noted = self.inner.active.lock().get(&id).and_then(|entry| entry.relies_since);
        noted.filter(|(of, _)| *of == attempt).map_or(0, |(_, disturbances)| disturbances)
    }

    /// How long a queued run has to wait before its next attempt; none when it need not.
    pub fn rest(&self, id: RunId) -> Option<Duration> {
        let now = self.inner.clock.monotonic();
        let until = self.inner.active.lock().get(&id)?.rests_until?;
        Some(until.saturating_duration_since(now)).filter(|rest| !rest.is_zero())
    }

    /// For how long the host of a queued run has been too busy for it, when it `is_held`; otherwise that counts anew.
    pub fn held_for(&self, id: RunId, is_held: bool) -> Duration {
        let now = self.inner.clock.monotonic();
        let mut active = self.inner.active.lock();
        let Some(entry) = active.get_mut(&id) else { return Duration::ZERO };
        if !is_held {
            entry.held_since = None;
            return Duration::ZERO;
        }
        now.saturating_duration_since(*entry.held_since.get_or_insert(now))
    }

    /// Whether somebody wants this run to stop.
    pub fn is_cancel_wanted(&self, id: RunId) -> bool {
        self.inner.active.lock().get(&id).is_some_and(|entry| entry.run.state.intent == Intent::Cancel)
    }
}

/// The exclusive right to publish the snapshot of one run.
pub struct CommitGuard {
    lifecycle: RunLifecycle,
    run: Run,
    may_be_made: bool,
    _turn: OwnedMutexGuard<()>,
}

impl CommitGuard {
    /// The run.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Whether the repository may hold the snapshot already, made by an earlier request that did not come to its end.
    pub fn may_be_made(&self) -> bool {
        self.may_be_made
    }

    /// Records the snapshot, with what else the batch holds.
    ///
    /// # Errors
    /// When it can not be stored; the snapshot exists nevertheless, and is found in the repository again.
    pub async fn finish(self, snapshot: SnapshotId, batch: Batch) -> Result<(), Failure> {
        let mut run = self.run;
        let version = {
            let active = self.lifecycle.inner.active.lock();
            active.get(&run.id).map(|entry| entry.version).ok_or_else(|| not_active(run.id))?
        };
        run.snapshot = Some(snapshot);
        let version = self.lifecycle.inner.records.commit(batch.put_run(&run, version)).await?;
        self.lifecycle.publish(&run, version, None);
        Ok(())
    }
}

impl ActiveRun {
    fn new(run: Run, version: u64, lease_ends: Option<Instant>) -> Self {
        let published = watch::Sender::new(Arc::new(run.clone()));
        Self {
            run,
            version,
            published,
            turn: Arc::default(),
            lease_ends,
            expected: (0, 0),
            rests_until: None,
            held_since: None,
            relies_since: None,
        }
    }
}

fn not_active(id: RunId) -> Failure {
    Failure::new(ErrorCode::NotFound, format!("run {} does not exist or has ended", id.short()))
        .then("holdfast run list")
}

fn illegal(id: RunId, refused: &IllegalTransition) -> Failure {
    Failure::new(refused.code(), format!("run {}: {refused}", id.short()))
}
