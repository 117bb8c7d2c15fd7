//! What answers hold. Fields and kinds are those of the command line's `-o json`: added, never renamed or removed.
//!
//! Sizes end in `_bytes`, lengths of time in `_seconds`, moments in `_at` (RFC 3339, UTC). What is not known is `null`.

mod alert;
mod removal;
mod source;

use std::collections::BTreeMap;

use holdfast_model::Failure;
use holdfast_model::run::RunSpec;
use holdfast_proto::{convert, v1};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

pub(crate) use self::alert::{AlertView, SilenceView};
pub(crate) use self::removal::{PrunePlanView, RetentionView};
pub(crate) use self::source::SourceStatusView;
use crate::fleet_health::Health;

fn moment(at: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    at.and_then(|at| convert::from_timestamp("at", &at).ok())
}

fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

#[expect(clippy::cast_precision_loss, reason = "a run takes less than 285,000 years")]
fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

/// One snapshot.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SnapshotView {
    /// Its id.
    id: String,
    /// Where it is.
    repository: String,
    /// The snapshot that it is a copy of, which may be gone.
    copy_of: Option<String>,
    /// Whose it is; null when another program wrote it.
    source: Option<String>,
    /// Which agent wrote it.
    agent: Option<String>,
    /// The engine.
    engine: Option<String>,
    /// full, incremental, differential or snapshot.
    snapshot_type: Option<String>,
    /// Its name, when it is a milestone.
    milestone: Option<String>,
    /// The moment that it shows.
    captured_at: Option<Timestamp>,
    /// When it was committed.
    committed_at: Option<Timestamp>,
    /// The run that made it.
    run_id: Option<String>,
    /// Size of its files.
    logical_bytes: u64,
    /// What it added to the repository.
    stored_bytes: u64,
    /// Its files.
    files: u64,
    /// Its rows.
    rows: u64,
    /// Its tables.
    tables: u64,
    /// How long the run took.
    duration_seconds: f64,
    /// Items that could not be read.
    unreadable: u64,
    /// damaged, restored, read, checked or uploaded.
    proof: String,
    /// When that was proven.
    proven_at: Option<Timestamp>,
    /// When its structure was checked.
    checked_at: Option<Timestamp>,
    /// Since when every byte of it was read and opened, in whichever pieces.
    read_at: Option<Timestamp>,
    /// When it was restored and agreed with its manifest.
    restored_at: Option<Timestamp>,
    /// What is damaged.
    damage: Option<String>,
    /// What looks wrong about it beside the snapshot before, the worst first.
    anomalies: Vec<AnomalyView>,
    /// Why it is held.
    held_because: Option<String>,
    /// Root of its tree.
    tree_id: String,
    /// Host that it names.
    hostname: String,
    /// Paths that it names.
    paths: Vec<String>,
    /// What the engine knew at capture; only where one snapshot is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) manifest: Option<Value>,
    /// The same snapshot in every repository that has it, the first of them first; only where one snapshot is shown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) copies: Vec<CopyView>,
}

/// Something that looks wrong about the data.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct AnomalyView {
    /// warning or critical.
    severity: String,
    /// rows, table_gone, size or rewrite.
    kind: String,
    /// What it is, in words.
    message: String,
}

impl From<v1::Anomaly> for AnomalyView {
    fn from(anomaly: v1::Anomaly) -> Self {
        Self { severity: anomaly.severity, kind: anomaly.kind, message: anomaly.message }
    }
}

impl From<v1::Snapshot> for SnapshotView {
    fn from(snapshot: v1::Snapshot) -> Self {
        Self {
            id: snapshot.id,
            repository: snapshot.repository,
            copy_of: filled(snapshot.copy_of),
            source: filled(snapshot.source),
            agent: filled(snapshot.agent),
            engine: filled(snapshot.engine),
            snapshot_type: filled(snapshot.snapshot_type),
            milestone: filled(snapshot.milestone),
            captured_at: moment(snapshot.captured_at),
            committed_at: moment(snapshot.committed_at),
            run_id: filled(snapshot.run_id),
            logical_bytes: snapshot.logical_bytes,
            stored_bytes: snapshot.stored_bytes,
            files: snapshot.files,
            rows: snapshot.rows,
            tables: snapshot.tables,
            duration_seconds: seconds(snapshot.duration_millis),
            unreadable: snapshot.unreadable,
            proof: snapshot.proof,
            proven_at: moment(snapshot.proven_at),
            checked_at: moment(snapshot.checked_at),
            read_at: moment(snapshot.read_at),
            restored_at: moment(snapshot.restored_at),
            damage: filled(snapshot.damage),
            anomalies: snapshot.anomalies.into_iter().map(AnomalyView::from).collect(),
            held_because: filled(snapshot.held_because),
            tree_id: snapshot.tree_id,
            hostname: snapshot.hostname,
            paths: snapshot.paths,
            manifest: None,
            copies: Vec::new(),
        }
    }
}

/// A snapshot in one of the repositories that have it.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct CopyView {
    /// The repository.
    repository: String,
    /// Its id there.
    id: String,
    /// damaged, restored, read, checked or uploaded.
    proof: String,
    /// When that was proven.
    proven_at: Option<Timestamp>,
    /// What is damaged.
    damage: Option<String>,
    /// Why it is held there.
    held_because: Option<String>,
}

impl From<v1::Snapshot> for CopyView {
    fn from(snapshot: v1::Snapshot) -> Self {
        Self {
            repository: snapshot.repository,
            id: snapshot.id,
            proof: snapshot.proof,
            proven_at: moment(snapshot.proven_at),
            damage: filled(snapshot.damage),
            held_because: filled(snapshot.held_because),
        }
    }
}

/// One run.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RunView {
    /// Its id.
    id: String,
    /// backup, restore, promote, discard, verify, check, prune or copy.
    kind: String,
    /// queued, assigned, running, committing, succeeded, failed, cancelled or skipped.
    phase: String,
    /// Whether somebody asked it to stop.
    cancel_requested: bool,
    /// What a backup re-reads: full, incremental, differential or snapshot.
    snapshot_type: Option<String>,
    /// The source.
    source: Option<String>,
    /// The repository.
    repository: Option<String>,
    /// The agent.
    agent: Option<String>,
    /// The number of its latest assignment.
    attempt: u32,
    /// Who asked for it.
    requested_by: String,
    /// Since when it is queued.
    queued_at: Option<Timestamp>,
    /// When the current attempt began.
    started_at: Option<Timestamp>,
    /// When it ended.
    ended_at: Option<Timestamp>,
    /// From start to end.
    duration_seconds: Option<f64>,
    /// Why it waits.
    waiting_for: Option<String>,
    /// The snapshot that it committed.
    snapshot_id: Option<String>,
    /// Warnings in its log.
    warnings: u32,
    /// Why it failed: code, message, why, now, next.
    #[schemars(with = "Option<BTreeMap<String, Value>>")]
    failure: Option<Failure>,
    /// Its last counters.
    progress: ProgressView,
    /// What a restore did.
    restored: Option<Value>,
    /// What a check or verification found.
    findings: Vec<String>,
    /// The run that it repeats.
    retry_of: Option<String>,
    /// Its trace.
    trace_id: Option<String>,
    /// The moment of the schedule's slot that it is the run of.
    slot_at: Option<Timestamp>,
}

/// Counters of a run.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ProgressView {
    /// What is being done.
    stage: String,
    /// Expected in all; 0 when not known.
    total_bytes: u64,
    /// Dealt with.
    done_bytes: u64,
    /// Read from the source, or written to the target.
    read_bytes: u64,
    /// New to the repository, before compression.
    new_bytes: u64,
    /// Sent to the repository.
    stored_bytes: u64,
    /// Expected in all; 0 when not known.
    total_files: u64,
    /// Dealt with.
    done_files: u64,
    /// Not read since they are unchanged.
    unchanged_files: u64,
    /// Blobs that the repository did not have.
    new_blobs: u64,
    /// Items that could not be read.
    unreadable: u64,
}

impl From<v1::Progress> for ProgressView {
    fn from(progress: v1::Progress) -> Self {
        Self {
            stage: progress.stage,
            total_bytes: progress.bytes_total,
            done_bytes: progress.bytes_done,
            read_bytes: progress.bytes_read,
            new_bytes: progress.bytes_new,
            stored_bytes: progress.bytes_stored,
            total_files: progress.files_total,
            done_files: progress.files_done,
            unchanged_files: progress.files_unchanged,
            new_blobs: progress.blobs_new,
            unreadable: progress.unreadable,
        }
    }
}

impl From<v1::Run> for RunView {
    fn from(run: v1::Run) -> Self {
        let (started_at, ended_at) = (moment(run.started_at), moment(run.ended_at));
        let length =
            started_at.zip(ended_at).map(|(start, end)| end.duration_since(start).as_secs_f64().max(0.0));
        let snapshot_type = match serde_json::from_str::<RunSpec>(&run.spec_json) {
            Ok(RunSpec::Backup { snapshot_type, .. }) => Some(snapshot_type.to_string()),
            _ => None,
        };
        Self {
            id: run.id,
            kind: run.kind,
            phase: run.phase,
            cancel_requested: run.intent == "cancel",
            snapshot_type,
            source: filled(run.source),
            repository: filled(run.repository),
            agent: filled(run.agent),
            attempt: run.attempt,
            requested_by: run.requested_by,
            queued_at: moment(run.queued_at),
            started_at,
            ended_at,
            duration_seconds: length,
            waiting_for: filled(run.waiting_for),
            snapshot_id: filled(run.snapshot_id),
            warnings: run.warnings,
            failure: run.failure.map(Failure::from),
            progress: run.progress.unwrap_or_default().into(),
            restored: serde_json::from_str(&run.restored_json).ok(),
            findings: run.findings,
            retry_of: filled(run.retry_of),
            trace_id: filled(run.trace_id),
            slot_at: moment(run.slot_at),
        }
    }
}

/// What is declared and configured.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ConfigView {
    /// As in controller.yaml, with every default.
    pub controller: Value,
    /// As in the fleet files.
    pub fleet: Value,
}

/// Agents.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct AgentCounts {
    /// Those that are connected.
    pub online: u64,
    /// Those that are enrolled.
    pub total: u64,
}

/// A repository.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RepositorySize {
    /// Its name.
    pub name: String,
    /// Whether it can be reached.
    pub up: bool,
    /// Bytes of its packs.
    pub stored_bytes: Option<u64>,
    /// Bytes that its storage can still take, where it says so.
    pub free_bytes: Option<u64>,
}

/// Counts.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct StatsView {
    /// Sources by state.
    pub sources: BTreeMap<String, u64>,
    /// Agents.
    pub agents: AgentCounts,
    /// Runs that ended, by kind and outcome.
    pub runs: BTreeMap<String, BTreeMap<String, u64>>,
    /// Runs under way, by kind.
    pub running: BTreeMap<String, u64>,
    /// Runs that wait, by kind.
    pub queued: BTreeMap<String, u64>,
    /// Repositories.
    pub repositories: Vec<RepositorySize>,
    /// Version of the controller.
    pub controller_version: String,
}

/// The state of all in a few numbers.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct QuickView {
    /// healthy, degraded, critical or unknown.
    pub status: String,
    /// 1 when nothing is wrong, 0 when nothing is right.
    pub health_score: f64,
    /// Sources by state.
    pub sources: BTreeMap<String, u64>,
    /// Agents.
    pub agents: AgentCounts,
    /// Runs under way.
    pub running: u64,
    /// Runs that wait.
    pub queued: u64,
}

/// How runs of one kind go.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct KindPerformance {
    /// backup, restore, promote, discard, verify or check.
    pub kind: String,
    /// How long they took on average; null before the first.
    pub duration_mean_seconds: Option<f64>,
    /// The share that succeeded of those that were not cancelled; null before the first.
    pub success_ratio: Option<f64>,
    /// How many succeeded.
    pub succeeded: u64,
    /// How many failed.
    pub failed: u64,
}

/// How runs go.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct PerformanceView {
    /// By kind.
    pub kinds: Vec<KindPerformance>,
    /// What waits or is under way.
    pub active_runs: Vec<RunView>,
    /// How late the scheduled run began that began last.
    pub scheduler_lag_seconds: f64,
}

/// Everything together.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct OverviewView {
    /// How the fleet is.
    pub health: Health,
    /// Counts.
    pub stats: StatsView,
    /// Each source.
    pub sources: Vec<SourceStatusView>,
}
