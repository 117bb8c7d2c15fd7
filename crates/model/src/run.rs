//! Runs: one execution of a backup, restore, verification, check, prune or copy.

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{AgentName, MilestoneName, RepositoryName, RunId, SnapshotId, SourceName};
use crate::progress::Progress;
use crate::restore::{Placement, RestoreReport, RestoredTarget};
use crate::run_state::{Phase, RunState};
use crate::schedule::SlotId;

/// How many times the machine itself starts a run over after a lost lease.
pub const ATTEMPTS_MAX: u32 = 5;

/// What a backup re-reads.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotType {
    /// Re-reads everything.
    Full,
    /// Skips what is unchanged since the last snapshot.
    #[default]
    Incremental,
    /// Skips what is unchanged since the last full one.
    Differential,
    /// Ad hoc and short-lived; reads like an incremental one.
    Snapshot,
}

impl SnapshotType {
    /// All types.
    pub const ALL: [SnapshotType; 4] =
        [SnapshotType::Full, SnapshotType::Incremental, SnapshotType::Differential, SnapshotType::Snapshot];

    /// The word used in files, tags and output.
    pub fn as_str(self) -> &'static str {
        match self {
            SnapshotType::Full => "full",
            SnapshotType::Incremental => "incremental",
            SnapshotType::Differential => "differential",
            SnapshotType::Snapshot => "snapshot",
        }
    }

    /// The type of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

impl fmt::Display for SnapshotType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a run is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RunSpec {
    /// Capture a source into a repository.
    Backup {
        /// Which source.
        source: SourceName,
        /// Into which repository.
        repository: RepositoryName,
        /// What is re-read.
        snapshot_type: SnapshotType,
        /// Makes the snapshot a milestone: named, and held.
        milestone: Option<MilestoneName>,
    },
    /// Restore a snapshot.
    Restore {
        /// Whose snapshot.
        source: SourceName,
        /// From which repository.
        repository: RepositoryName,
        /// Which snapshot.
        snapshot: SnapshotId,
        /// On which agent; the one of the source unless another was asked for.
        agent: AgentName,
        /// Where it goes.
        placement: Placement,
        /// Only these tables or paths.
        only: Vec<String>,
    },
    /// Swap what a restore made into the place of the live data.
    Promote {
        /// Whose data.
        source: SourceName,
        /// On which agent.
        agent: AgentName,
        /// The restore whose targets are promoted.
        restore: RunId,
        /// What is swapped.
        targets: Vec<RestoredTarget>,
    },
    /// Remove what a restore made, or what a promotion kept.
    Discard {
        /// Whose data.
        source: SourceName,
        /// On which agent.
        agent: AgentName,
        /// The restore whose targets are discarded.
        restore: RunId,
        /// What is removed; empty: all that the agent remembers of the restore, for one that did not succeed.
        targets: Vec<RestoredTarget>,
    },
    /// Read and open every byte of one snapshot. Done by the controller.
    Verify {
        /// In which repository.
        repository: RepositoryName,
        /// Which snapshot.
        snapshot: SnapshotId,
    },
    /// Check the structure of a repository, or all its data. Done by the controller.
    Check {
        /// Which repository.
        repository: RepositoryName,
        /// Read and open every pack as well.
        read_data: bool,
        /// Of the packs, only those that the policies have read again now; nothing else is checked then, unless one of
        /// them turns out to be damaged.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        only_due: bool,
    },
    /// Remove what no snapshot needs any more from a repository. Done by the controller.
    Prune {
        /// Which repository.
        repository: RepositoryName,
        /// A person has seen how much goes.
        approved: bool,
    },
    /// Copy snapshots into another repository. Done by the controller.
    Copy {
        /// Whose snapshots; those of all without it.
        source: Option<SourceName>,
        /// The repository that has them; it is only read.
        from: RepositoryName,
        /// The repository that gets them.
        to: RepositoryName,
        /// Only these; without any, all of the source.
        snapshots: Vec<SnapshotId>,
        /// Copy nothing: store again what snapshots of the second repository lack and the first has.
        heal: bool,
    },
}

impl RunSpec {
    /// The kind of run, as a word.
    pub fn kind(&self) -> RunKind {
        match self {
            RunSpec::Backup { .. } => RunKind::Backup,
            RunSpec::Restore { .. } => RunKind::Restore,
            RunSpec::Promote { .. } => RunKind::Promote,
            RunSpec::Discard { .. } => RunKind::Discard,
            RunSpec::Verify { .. } => RunKind::Verify,
            RunSpec::Check { .. } => RunKind::Check,
            RunSpec::Prune { .. } => RunKind::Prune,
            RunSpec::Copy { .. } => RunKind::Copy,
        }
    }

    /// The source it concerns.
    pub fn source(&self) -> Option<&SourceName> {
        match self {
            RunSpec::Backup { source, .. }
            | RunSpec::Restore { source, .. }
            | RunSpec::Promote { source, .. }
            | RunSpec::Discard { source, .. } => Some(source),
            RunSpec::Copy { source, .. } => source.as_ref(),
            RunSpec::Verify { .. } | RunSpec::Check { .. } | RunSpec::Prune { .. } => None,
        }
    }

    /// The repository it reads or writes; of a copy the one that is written.
    pub fn repository(&self) -> Option<&RepositoryName> {
        match self {
            RunSpec::Backup { repository, .. }
            | RunSpec::Restore { repository, .. }
            | RunSpec::Verify { repository, .. }
            | RunSpec::Check { repository, .. }
            | RunSpec::Prune { repository, .. } => Some(repository),
            RunSpec::Copy { to, .. } => Some(to),
            RunSpec::Promote { .. } | RunSpec::Discard { .. } => None,
        }
    }

    /// Whether it reads or writes this repository.
    pub fn uses(&self, repository: &RepositoryName) -> bool {
        let reads = matches!(self, RunSpec::Copy { from, .. } if from == repository);
        reads || self.repository() == Some(repository)
    }
}

/// The kinds of run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunKind {
    /// Capture a source.
    Backup,
    /// Restore a snapshot.
    Restore,
    /// Swap a restore into place.
    Promote,
    /// Remove what a restore made or kept.
    Discard,
    /// Read every byte of a snapshot.
    Verify,
    /// Check a repository.
    Check,
    /// Remove what no snapshot needs any more.
    Prune,
    /// Copy snapshots into another repository.
    Copy,
}

impl RunKind {
    /// All kinds.
    pub const ALL: [RunKind; 8] = [
        RunKind::Backup,
        RunKind::Restore,
        RunKind::Promote,
        RunKind::Discard,
        RunKind::Verify,
        RunKind::Check,
        RunKind::Prune,
        RunKind::Copy,
    ];

    /// The word used in output and filters.
    pub fn as_str(self) -> &'static str {
        match self {
            RunKind::Backup => "backup",
            RunKind::Restore => "restore",
            RunKind::Promote => "promote",
            RunKind::Discard => "discard",
            RunKind::Verify => "verify",
            RunKind::Check => "check",
            RunKind::Prune => "prune",
            RunKind::Copy => "copy",
        }
    }

    /// Whether an agent does it; the controller does the others itself.
    pub fn is_for_agent(self) -> bool {
        !matches!(self, RunKind::Verify | RunKind::Check | RunKind::Prune | RunKind::Copy)
    }

    /// Whether the machine may start it over by itself after a lost lease. A restore touches databases: only a person
    /// starts it over.
    pub fn may_restart_itself(self) -> bool {
        !matches!(self, RunKind::Restore | RunKind::Promote | RunKind::Discard)
    }
}

impl fmt::Display for RunKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One execution, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// What it is to do.
    pub spec: RunSpec,
    /// The agent that does it; none for what the controller does itself.
    pub agent: Option<AgentName>,
    /// Who asked for it.
    pub requested_by: String,
    /// Its changing part.
    pub state: RunState,
    /// Since when it is queued.
    pub queued_at: Timestamp,
    /// When the current attempt was handed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assigned_at: Option<Timestamp>,
    /// When the current attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Why it waits, while it is queued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
    /// The snapshot it committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotId>,
    /// What a restore, promotion or discard did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<RestoreReport>,
    /// What a check or a verification found, one line each; empty when all is well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
    /// The last counters of the last attempt.
    #[serde(default)]
    pub progress: Progress,
    /// W3C trace context of the request that started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The run that this one repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<RunId>,
    /// The slot of a schedule that this is the run of; none for what somebody asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<SlotId>,
}

impl Run {
    /// A run that nothing has happened to yet.
    pub fn queued(id: RunId, spec: RunSpec, requested_by: impl Into<String>, queued_at: Timestamp) -> Self {
        Self {
            id,
            spec,
            agent: None,
            requested_by: requested_by.into(),
            state: RunState::default(),
            queued_at,
            assigned_at: None,
            started_at: None,
            ended_at: None,
            waiting_for: None,
            snapshot: None,
            restored: None,
            findings: Vec::new(),
            progress: Progress::default(),
            traceparent: None,
            retry_of: None,
            slot: None,
        }
    }
}

/// How a run ended, as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It succeeded without a warning.
    Success,
    /// It succeeded with warnings.
    Partial,
    /// It failed.
    Failure,
    /// It was given up on request.
    Cancelled,
    /// It did not begin, by a rule.
    Skipped,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Outcome; 5] =
        [Outcome::Success, Outcome::Partial, Outcome::Failure, Outcome::Cancelled, Outcome::Skipped];

    /// The word used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Success => "success",
            Outcome::Partial => "partial",
            Outcome::Failure => "failure",
            Outcome::Cancelled => "cancelled",
            Outcome::Skipped => "skipped",
        }
    }

    /// How a run of this phase ended; nothing while it has not.
    pub fn of(phase: &Phase) -> Option<Self> {
        match phase {
            Phase::Succeeded { warnings: 0 } => Some(Outcome::Success),
            Phase::Succeeded { .. } => Some(Outcome::Partial),
            Phase::Failed(_) => Some(Outcome::Failure),
            Phase::Cancelled => Some(Outcome::Cancelled),
            Phase::Skipped(_) => Some(Outcome::Skipped),
            _ => None,
        }
    }
}

impl Run {
    /// Whether a check or verification ended and found nothing.
    pub fn is_clean(&self) -> bool {
        matches!(self.state.phase, Phase::Succeeded { .. }) && self.findings.is_empty()
    }
}

/// One line of a run's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When, by the clock of the agent.
    pub at: Timestamp,
    /// The attempt that wrote it.
    pub attempt: crate::ids::Attempt,
    /// How serious it is.
    pub level: LogLevel,
    /// The text, one line.
    pub text: String,
}

/// How serious a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// How something was done; written only while the debug logging of the source is on.
    Debug,
    /// Worth knowing.
    Info,
    /// May need attention.
    Warning,
    /// Ended the run.
    Error,
}
