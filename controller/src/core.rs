//! What the parts of the controller share, and the few decisions that need several of them.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::ids::{RepositoryName, SnapshotId, SourceName};
use holdfast_model::restore::CheckOutcome;
use holdfast_model::run::{LogLevel, LogLine, Run, RunSpec, SnapshotType};
use holdfast_model::run_state::{Phase, RunEvent};
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::{OnEnd, SharedClock, TaskGroup};

use crate::agents::Agents;
use crate::alerts::Alerts;
use crate::catalog::Catalog;
use crate::copy_schedule::Copies;
use crate::debug_logging::DebugBook;
use crate::definitions::Definitions;
use crate::discovery::DiscoveryBook;
use crate::fleet_folder::FolderState;
use crate::health::HealthBook;
use crate::maintenance;
use crate::metrics::MetricsCache;
use crate::notify::Notifier;
use crate::notify::liveness::Liveness;
use crate::notify::outbox::Outbox;
use crate::pki::Authority;
use crate::records::Records;
use crate::refusals::RefusalBook;
use crate::reload::InForce;
use crate::repositories::{OpenRepository, Repositories};
use crate::run_lifecycle::{RunLifecycle, retry};
use crate::run_logs::RunLogs;
use crate::schedules::Schedules;
use crate::session_registry::SessionRegistry;
use crate::source_queue::SourceQueue;
use crate::source_status::SnapshotCache;

/// What the failure of an attempt means for its run.
#[derive(Debug)]
pub struct FailedAttempt {
    /// What happens to the run.
    pub event: RunEvent,
    /// The snapshot that it committed nevertheless.
    pub snapshot: Option<SnapshotId>,
    /// How long it waits for its next attempt; the usual pause without it.
    pub rest: Option<Duration>,
}

/// Everything that the parts share.
pub struct Core {
    /// Time.
    pub clock: SharedClock,
    /// The tasks of the controller.
    pub tasks: TaskGroup,
    /// The configuration in force.
    pub config: InForce,
    /// The durable state.
    pub records: Records,
    /// The life of runs.
    pub runs: RunLifecycle,
    /// Their logs.
    pub logs: RunLogs,
    /// Connected agents.
    pub sessions: SessionRegistry,
    /// Enrolled agents.
    pub agents: Agents,
    /// What is declared.
    pub definitions: Definitions,
    /// When backups begin by themselves.
    pub schedules: Schedules,
    /// Whose runs write debug lines.
    pub debug: DebugBook,
    /// What is known of snapshots.
    pub catalog: Catalog,
    /// Open repositories.
    pub repositories: Repositories,
    /// Which parts do their work.
    pub liveness: Liveness,
    /// What is wrong, and who was told.
    pub alerts: Alerts,
    /// What is still to be told.
    pub outbox: Outbox,
    /// Tells it.
    pub notifier: Notifier,
    /// Sources whose snapshots may be more than their policies keep.
    pub retention: SourceQueue,
    /// Copies that policies ask for.
    pub copies: Copies,
    /// Sources that have snapshots which are to be checked.
    pub new_snapshots: SourceQueue,
    /// Orders the placing of holds and the forgetting of snapshots.
    pub holds: tokio::sync::Mutex<()>,
    /// What retention has planned is carried out before anybody plans anew.
    pub cleanups: tokio::sync::Mutex<()>,
    /// The certificate authority.
    pub authority: Authority,
    /// What is kept between two collections of metrics.
    pub metrics: MetricsCache,
    /// Where the controller keeps its state.
    pub data_dir: std::path::PathBuf,
    /// The snapshots that the state of sources follows from.
    pub snapshots: SnapshotCache,
    /// Whether sources answer.
    pub health: HealthBook,
    /// Which databases the agents see.
    pub discovery: DiscoveryBook,
    /// How the folder that declares the fleet stands.
    pub fleet_folder: FolderState,
    /// Who was refused a call lately.
    pub refusals: RefusalBook,
}

impl Core {
    /// The snapshot that a run compares with, or reads.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn base_of(
        &self,
        spec: &RunSpec,
        repository: &RepositoryName,
    ) -> Result<Option<SnapshotRecord>, Failure> {
        match spec {
            RunSpec::Backup { source, snapshot_type, .. } => match snapshot_type {
                SnapshotType::Full => Ok(None),
                SnapshotType::Incremental | SnapshotType::Snapshot => {
                    let sound = self.repositories.relies_on(repository).await?;
                    self.catalog.latest(source, Some(repository), sound).await
                }
                SnapshotType::Differential => {
                    let sound = self.repositories.relies_on(repository).await?;
                    let full = |record: &SnapshotRecord| {
                        record.snapshot_type == Some(SnapshotType::Full) && sound(record)
                    };
                    self.catalog.latest(source, Some(repository), full).await
                }
            },
            RunSpec::Restore { snapshot, .. } => self.records.snapshot(*snapshot).await,
            _ => Ok(None),
        }
    }

    /// The open repository that a run or request names.
    ///
    /// # Errors
    /// When it is not declared or can not be opened.
    pub async fn repository(
        &self,
        name: &holdfast_model::ids::RepositoryName,
    ) -> Result<Arc<OpenRepository>, Failure> {
        let spec = self.definitions.repository(name)?;
        self.repositories.get(name, &spec).await
    }

    /// Gives a run up whose agent is silent or lost it. When it was committing, the repository is asked whether it did.
    ///
    /// # Errors
    /// When the state can not be written.
    pub async fn give_up(&self, run: &Run, only_if_expired: bool) -> Result<(), Failure> {
        let committed = self.committed(run).await?;
        self.runs.lease_lost(run.id, run.state.attempt, committed, only_if_expired).await
    }

    /// The snapshot that a run has committed, as far as its own record or its repository know.
    async fn committed(&self, run: &Run) -> Result<Option<SnapshotId>, Failure> {
        match run.spec.repository() {
            Some(name) if run.state.phase == Phase::Committing && run.snapshot.is_none() => {
                let repository = self.repository(name).await?;
                let found = self.catalog.committed_by(&repository, run).await?;
                Ok(found.map(|record| record.id))
            }
            _ => Ok(run.snapshot),
        }
    }

    /// What an agent's report that its attempt failed means.
    ///
    /// # Errors
    /// When it is unknown whether the run was committing in vain: its repository or the state can not be read.
    pub async fn attempt_failed(&self, run: &Run, failure: Failure) -> Result<FailedAttempt, Failure> {
        let failure = self.name_copies(run, failure).await?;
        let (attempt, code) = (run.state.attempt, failure.code);
        let is_interruption = retry::is_interruption(failure.code);
        let rest = self.rest_after(run, failure.code);
        if !is_interruption && rest.is_none() {
            return Ok(FailedAttempt { event: RunEvent::Failed(attempt, failure), snapshot: None, rest });
        }
        let snapshot = self.committed(run).await?;
        let may_retry = rest.is_some() || retry::may_retry(run.spec.kind(), attempt);
        let committed = snapshot.is_some();
        let rest = match is_interruption {
            true => retry::long_pause_after(code, attempt),
            false => rest,
        };
        Ok(FailedAttempt {
            event: RunEvent::Interrupted { attempt, failure, committed, may_retry },
            snapshot,
            rest,
        })
    }

    /// Says of a restore that failed for its repository which copy can be restored instead.
    async fn name_copies(&self, run: &Run, mut failure: Failure) -> Result<Failure, Failure> {
        let RunSpec::Restore { source, repository, snapshot, .. } = &run.spec else { return Ok(failure) };
        // Codes 3xxx are those of repository and storage.
        if failure.code.number() / 1000 != 3 {
            return Ok(failure);
        }
        let Some(record) = self.records.snapshot(*snapshot).await? else { return Ok(failure) };
        for copy in self.records.copies(&record).await? {
            if copy.repository != *repository && copy.proof.damage.is_none() {
                let (id, of) = (copy.id.short(), &copy.repository);
                failure =
                    failure.then(format!("holdfast restore plan {source} --to {id}   # its copy in {of}"));
            }
        }
        Ok(failure)
    }

    /// How long after a failure the policy has a run tried again that its schedule began. What somebody asked for fails
    /// at once: they are there to decide.
    fn rest_after(&self, run: &Run, code: ErrorCode) -> Option<Duration> {
        run.slot.as_ref()?;
        let name = run.spec.source()?;
        let source = self.definitions.source(name).ok()?;
        let (_, policy) = self.definitions.policy_of(&source)?;
        let rest = retry::after_failure(&policy.retry, code, run.state.attempt)?;
        let now = self.clock.now();
        let upcoming = self.schedules.upcoming(name, now, 1).unwrap_or_default();
        let next_slot = upcoming.first().map(|(at, _)| at.duration_since(now));
        Some(retry::no_later_than(rest, next_slot))
    }

    /// What follows from the change of a run.
    ///
    /// # Errors
    /// When the state can not be written.
    pub async fn after_change(&self, run: &Run) -> Result<(), Failure> {
        let succeeded = matches!(run.state.phase, Phase::Succeeded { .. });
        if let (true, RunSpec::Restore { snapshot, .. }, Some(report)) = (succeeded, &run.spec, &run.restored)
        {
            let well = report.checks.iter().all(|check| check.outcome < CheckOutcome::Failed);
            let whole = report.rows == report.rows_expected;
            if well && whole {
                let at = run.ended_at.unwrap_or_else(|| self.clock.now());
                let began = run.started_at.unwrap_or(at);
                let millis = u64::try_from(at.as_millisecond() - began.as_millisecond()).unwrap_or(0);
                self.catalog
                    .prove(*snapshot, "snapshot.restored", |proof| {
                        proof.restored_at = Some(at);
                        proof.restore_millis = Some(millis);
                    })
                    .await?;
            }
        }
        Ok(())
    }

    /// The snapshots of a source are not what they were: some came, some are held no more.
    pub fn snapshots_changed(&self, source: &SourceName) {
        self.retention.wake(source);
        self.copies.queue.wake(source);
        self.new_snapshots.wake(source);
    }

    /// Appends lines of the controller's own to the log of a run.
    pub async fn log(self: &Arc<Self>, run: &Run, level: LogLevel, lines: Vec<String>) {
        if lines.is_empty() {
            return;
        }
        let (at, attempt) = (self.clock.now(), run.state.attempt);
        let lines: Vec<LogLine> =
            lines.into_iter().map(|text| LogLine { at, attempt, level, text }).collect();
        let (logs, id) = (self.logs.clone(), run.id);
        if let Err(failure) = self.blocking("append to a log", move || logs.append(id, &lines)).await {
            tracing::warn!(run = %run.id, %failure, "its log could not be written");
        }
    }

    /// Begins a run that the controller does itself.
    pub fn maintain(self: &Arc<Self>, run: Run) {
        let core = self.clone();
        self.tasks.spawn(
            format!("{} {}", run.spec.kind(), run.id.short()),
            OnEnd::Isolated,
            maintenance::perform(core, run),
        );
    }

    /// Does something that blocks on a thread that may.
    ///
    /// # Errors
    /// What the work returns; `HF-4017` when it panicked.
    pub async fn blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        match self.tasks.spawn_blocking(name, OnEnd::Isolated, work).join().await {
            Ok(result) => result,
            Err(error) => Err(Failure::from_error(ErrorCode::Internal, &error)),
        }
    }
}
