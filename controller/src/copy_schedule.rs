//! Copies snapshots to where the policies say. A reconciler: woken by new snapshots, ended copies and changed definitions,
//! and every hour; each time it reads the facts again.
//!
//! Of the snapshots of a source, those are copied that the keep rules of its policy would keep if they were there, the
//! newest first. Under limits of size, which depend on what a copy adds, only those that are newer than the newest
//! copy, and held ones: what such a limit removed is not brought back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_model::ids::{RepositoryName, RunId, SnapshotId, SourceName};
use holdfast_model::policy::Policy;
use holdfast_model::retention::Verdict;
use holdfast_model::run_state::Phase;
use holdfast_model::snapshot::{Proof, SnapshotRecord};
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::backoff::BackoffPolicy;
use parking_lot::Mutex;

use crate::copy::CopyOrder;
use crate::core::Core;
use crate::records::Batch;
use crate::retention;
use crate::run_lifecycle::NewRun;
use crate::source_queue::SourceQueue;
use crate::source_status::CopyTarget;

/// How often it looks at every source.
const PERIOD: Duration = Duration::from_secs(3600);
/// How soon it comes back to a source that somebody else copies just then.
const AGAIN: Duration = Duration::from_secs(10);
/// When it tries again after a failure.
const BACKOFF: BackoffPolicy =
    BackoffPolicy { initial: Duration::from_secs(5), max: PERIOD, factor: 2.0, jitter: 0.2 };
/// Snapshots that one run copies at most.
const SNAPSHOTS_MAX: usize = 50;

/// What is under way, and what went wrong. Clones share it.
#[derive(Clone, Default)]
pub struct Copies {
    /// The sources to look at.
    pub queue: SourceQueue,
    ways: Arc<Mutex<BTreeMap<(SourceName, RepositoryName), Way>>>,
}

/// From a source into a repository.
#[derive(Debug, Clone, Default)]
struct Way {
    run: Option<RunId>,
    /// The newest snapshot that the last run was to copy.
    asked: Option<SnapshotId>,
    failures: u32,
    rests_until: Option<Instant>,
    problem: Option<Failure>,
}

impl Way {
    fn fail(&mut self, failure: Failure, now: Instant) {
        self.run = None;
        self.asked = None;
        self.failures = self.failures.saturating_add(1);
        self.rests_until = Some(now + BACKOFF.delay(self.failures, rand::random()));
        self.problem = Some(failure);
    }
}

impl Copies {
    /// Why the last copy of snapshots of a source into a repository failed; none after one that did not.
    pub fn problem(&self, source: &SourceName, to: &RepositoryName) -> Option<Failure> {
        self.ways.lock().get(&(source.clone(), to.clone())).and_then(|way| way.problem.clone())
    }

    fn change<T>(&self, source: &SourceName, to: &RepositoryName, change: impl FnOnce(&mut Way) -> T) -> T {
        change(self.ways.lock().entry((source.clone(), to.clone())).or_default())
    }

    /// The runs that are awaited, with their sources.
    fn awaited(&self) -> Vec<(RunId, SourceName)> {
        let ways = self.ways.lock();
        ways.iter().filter_map(|((source, _), way)| Some((way.run?, source.clone()))).collect()
    }

    /// The sources whose rest is over, and when the next is.
    fn rested(&self, now: Instant) -> (BTreeSet<SourceName>, Option<Instant>) {
        let ways = self.ways.lock();
        let rests = || ways.iter().filter_map(|((source, _), way)| Some((source, way.rests_until?)));
        let over = rests().filter(|(_, until)| *until <= now).map(|(source, _)| source.clone()).collect();
        (over, rests().map(|(_, until)| until).filter(|until| *until > now).min())
    }
}

/// The repositories that snapshots of a source are copied to: those of its policy that it does not go to by itself.
pub fn targets(core: &Core, source: &SourceName) -> Option<(Policy, Vec<RepositoryName>)> {
    let definition = core.definitions.source(source).ok()?;
    let (_, policy) = core.definitions.policy_of(&definition)?;
    let own = core.definitions.repositories_of(source, &definition).unwrap_or_default();
    let targets = policy.copy_to.iter().filter(|to| !own.contains(to)).cloned().collect();
    Some((policy, targets))
}

/// Where a policy has snapshots of a source copied to, and how that went last.
pub fn standing(core: &Core, source: &SourceName) -> Vec<CopyTarget> {
    let targets = targets(core, source).map(|(_, targets)| targets).unwrap_or_default();
    let of = |repository: RepositoryName| CopyTarget {
        problem: core.copies.problem(source, &repository),
        repository,
    };
    targets.into_iter().map(of).collect()
}

/// Runs until the controller stops.
pub async fn run(core: Arc<Core>) {
    let stop = core.tasks.token().clone();
    let copies = core.copies.clone();
    let mut all_due = true;
    let mut next_all = core.clock.monotonic();
    loop {
        let definitions_changed = core.definitions.changed();
        let run_changed = core.runs.changed();
        if all_due {
            core.definitions.current().fleet.sources.keys().for_each(|source| copies.queue.wake(source));
            next_all = core.clock.monotonic() + PERIOD;
        }
        for (run, source) in copies.awaited() {
            if core.runs.active_run(run).is_none() {
                copies.queue.wake(&source);
            }
        }
        copies.rested(core.clock.monotonic()).0.iter().for_each(|source| copies.queue.wake(source));
        for source in copies.queue.take() {
            if stop.is_cancelled() {
                return;
            }
            if let Err(failure) = look_at(&core, &source).await {
                tracing::warn!(%source, %failure, "it is unknown what has to be copied");
            }
        }
        let now = core.clock.monotonic();
        let next = copies.rested(now).1.unwrap_or(next_all).min(next_all);
        let wait = next.saturating_duration_since(now);
        all_due = tokio::select! {
            () = stop.cancelled() => return,
            () = definitions_changed => true,
            () = copies.queue.changed() => false,
            () = run_changed => false,
            () = core.clock.sleep(wait) => core.clock.monotonic() >= next_all,
        };
    }
}

async fn look_at(core: &Arc<Core>, source: &SourceName) -> Result<(), Failure> {
    let Some((policy, targets)) = targets(core, source) else { return Ok(()) };
    core.copies.ways.lock().retain(|(of, to), _| of != source || targets.contains(to));
    for to in &targets {
        if may_begin(core, source, to).await?
            && let Err(failure) = begin(core, source, &policy, to).await
        {
            tracing::warn!(%source, %to, %failure, "it is unknown what has to be copied");
            let now = core.clock.monotonic();
            core.copies.change(source, to, |way| way.fail(failure, now));
        }
    }
    Ok(())
}

/// Takes in how the last copy ended. Whether another one may begin now.
async fn may_begin(core: &Core, source: &SourceName, to: &RepositoryName) -> Result<bool, Failure> {
    let now = core.clock.monotonic();
    let run = core.copies.change(source, to, |way| way.run);
    if let Some(id) = run {
        let run = core.runs.get(id).await?;
        if !run.state.phase.is_terminal() {
            return Ok(false);
        }
        let cancelled = || Failure::new(ErrorCode::RunCancelled, "the last copy was cancelled");
        core.copies.change(source, to, |way| match run.state.phase {
            Phase::Failed(failure) => way.fail(failure, now),
            Phase::Cancelled => way.fail(cancelled(), now),
            _ => *way = Way { asked: way.asked, ..Way::default() },
        });
    }
    Ok(core.copies.change(source, to, |way| way.rests_until.is_none_or(|until| until <= now)))
}

/// Queues the copy of what is missing.
async fn begin(
    core: &Arc<Core>,
    source: &SourceName,
    policy: &Policy,
    to: &RepositoryName,
) -> Result<(), Failure> {
    let missing = missing(core, source, policy, to).await?;
    core.copies.change(source, to, |way| way.rests_until = None);
    let Some(first) = missing.first() else {
        core.copies.change(source, to, |way| *way = Way::default());
        return Ok(());
    };
    let now = core.clock.monotonic();
    if core.copies.change(source, to, |way| way.asked == Some(first.id)) {
        // A run that succeeded found nothing to do for it, as where one repository is a copy of the other's folder.
        return Ok(());
    }
    let from = first.repository.clone();
    let here = missing.iter().filter(|record| record.repository == from);
    let snapshots: Vec<SnapshotId> = here.map(|record| record.id).take(SNAPSHOTS_MAX).collect();
    let target = format!("source/{source}: copy of {} from {from} to {to}", snapshots.len());
    let order = CopyOrder { from, to: to.clone(), source: Some(source.clone()), snapshots, heal: false };
    let new = NewRun::new(order.spec(), "controller");
    let batch = Batch::new("controller", "run.start", target);
    let queued = core.runs.queue(vec![new], batch, |batch, _| batch).await;
    match queued {
        Ok((runs, _)) => {
            core.copies.change(source, to, |way| {
                way.run = runs.first().map(|run| run.id);
                way.asked = Some(first.id);
            });
            Ok(())
        }
        Err(failure) if matches!(failure.code, ErrorCode::RunAlreadyActive | ErrorCode::QueueFull) => {
            core.copies.change(source, to, |way| way.rests_until = Some(now + AGAIN));
            Ok(())
        }
        Err(failure) => Err(failure),
    }
}

/// The snapshots that have to be copied into a repository, newest first: of each the sound one that is no copy, or else
/// a sound copy in a third repository.
///
/// # Errors
/// When the state can not be read, or a storage whose use decides can not be asked.
pub async fn missing(
    core: &Core,
    source: &SourceName,
    policy: &Policy,
    to: &RepositoryName,
) -> Result<Vec<SnapshotRecord>, Failure> {
    let mut by_repository = retention::snapshots(core, source).await?;
    let there = by_repository.remove(to).unwrap_or_default();
    let is_sound = |record: &&SnapshotRecord| record.proof.damage.is_none();
    let copied: BTreeSet<SnapshotId> = there.iter().filter(is_sound).map(SnapshotRecord::origin).collect();
    let mut absent: BTreeMap<SnapshotId, SnapshotRecord> = BTreeMap::new();
    for record in by_repository.into_values().flatten().filter(|record| is_sound(&record)) {
        let origin = record.origin();
        if !copied.contains(&origin) && (record.original.is_none() || !absent.contains_key(&origin)) {
            absent.insert(origin, record);
        }
    }
    if absent.is_empty() {
        return Ok(Vec::new());
    }
    let newest_there = there.iter().filter(is_sound).map(|record| record.committed_at).max();
    let limited =
        policy.keep.as_ref().is_some_and(|keep| keep.cleanup.is_some() || keep.max_total_size.is_some());
    // As they would be there: nothing is proven of a new copy.
    let as_copied =
        absent.values().map(|record| SnapshotRecord { proof: Proof::default(), ..record.clone() });
    let together: Vec<SnapshotRecord> = there.iter().cloned().chain(as_copied).collect();
    let planned = retention::plan_one(core, policy, to.clone(), together).await?;
    let kept: BTreeSet<SnapshotId> = planned
        .plan
        .decisions
        .iter()
        .filter(|decision| matches!(decision.verdict, Verdict::Keep(_)))
        .map(|decision| decision.id)
        .collect();
    let mut missing = Vec::new();
    for record in absent.into_values().filter(|record| kept.contains(&record.id)) {
        let is_newer = newest_there.is_none_or(|newest| record.committed_at > newest);
        if !limited || is_newer || record.milestone.is_some() || core.records.hold(record.id).await?.is_some()
        {
            missing.push(record);
        }
    }
    missing.sort_by_key(|record| std::cmp::Reverse((record.committed_at, record.id)));
    Ok(missing)
}
