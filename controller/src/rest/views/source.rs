//! How sources stand.

use holdfast_proto::v1;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::{RunView, filled, moment, seconds};

/// The state of one source.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SourceStatusView {
    /// Its name.
    source: String,
    /// Its engine and version.
    engine: String,
    /// Its agent.
    agent: String,
    /// Whether the agent is connected.
    agent_online: bool,
    /// protected, paused, at_risk or not_restorable.
    state: String,
    /// Why it is not protected.
    problem: Option<String>,
    /// A command against that.
    remedy: Option<String>,
    /// Newest moment that can be restored.
    recovery_point_at: Option<Timestamp>,
    /// What would be lost now; null: everything.
    loss_seconds: Option<u64>,
    /// How long the last restore took.
    restore_seconds: Option<f64>,
    /// When a restore was last proven.
    proven_at: Option<Timestamp>,
    /// Repositories that hold a snapshot of it.
    copies: u32,
    /// Its snapshots.
    snapshots: u64,
    /// Size of its newest snapshot.
    logical_bytes: u64,
    /// Its newest snapshot.
    snapshot_id: Option<String>,
    /// Highest proof of its newest snapshot.
    proof: Option<String>,
    /// Its active run.
    active_run: Option<RunView>,
    /// Its last ended backup.
    last_backup: Option<RunView>,
    /// The policy that it is under.
    policy: Option<String>,
    /// What is promised beside what is measured.
    objectives: Vec<ObjectiveView>,
    /// When the next backup begins by itself.
    next_run_at: Option<Timestamp>,
    /// Whether no backup begins by itself for now.
    paused: bool,
    /// Slots of its schedule that yielded no run.
    missed_slots: u64,
    /// When every byte of a snapshot was last read.
    verified_at: Option<Timestamp>,
    /// Whether the source itself answers.
    health: SourceHealthView,
    /// How it stands in each repository, in the order of their names.
    places: Vec<PlaceView>,
    /// Until when its runs write debug lines.
    debug_until: Option<Timestamp>,
}

/// How a source stands in one repository.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct PlaceView {
    /// The repository.
    repository: String,
    /// Its newest sound snapshot there.
    snapshot_id: Option<String>,
    /// The moment that it shows.
    captured_at: Option<Timestamp>,
    /// By how much that is older than the newest of all; null when there is none.
    behind_seconds: Option<i64>,
    /// Whether its policy has snapshots copied there.
    is_copy: bool,
    /// damaged, restored, read, checked or uploaded.
    proof: Option<String>,
    /// Why the last copy failed.
    problem: Option<String>,
}

impl From<v1::SourcePlace> for PlaceView {
    fn from(place: v1::SourcePlace) -> Self {
        Self {
            repository: place.repository,
            snapshot_id: filled(place.snapshot_id),
            captured_at: moment(place.captured_at),
            behind_seconds: place.behind_seconds,
            is_copy: place.is_copy,
            proof: filled(place.proof),
            problem: filled(place.problem),
        }
    }
}

/// Whether a source answers, and how fast.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SourceHealthView {
    /// ok, warning, critical or unknown.
    state: String,
    /// What is wrong.
    problem: Option<String>,
    /// How long its last answer took.
    response_seconds: Option<f64>,
    /// Bytes of log that it keeps.
    log_bytes: Option<u64>,
    /// When it was asked last.
    checked_at: Option<Timestamp>,
}

impl From<v1::SourceHealth> for SourceHealthView {
    fn from(health: v1::SourceHealth) -> Self {
        Self {
            state: health.state,
            problem: filled(health.problem),
            response_seconds: health.response_millis.map(seconds),
            log_bytes: health.log_bytes,
            checked_at: moment(health.checked_at),
        }
    }
}

/// A promise beside what is measured.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ObjectiveView {
    /// rpo, rto, drill_age, verify_age or copies.
    objective: String,
    /// What was promised: seconds, or a number of copies.
    target: Option<i64>,
    /// What is measured, in the same unit.
    actual: Option<i64>,
    /// met, at_risk, breached, not_set or unknown.
    state: String,
}

impl From<v1::Objective> for ObjectiveView {
    fn from(objective: v1::Objective) -> Self {
        Self {
            objective: objective.name,
            target: objective.target,
            actual: objective.actual,
            state: objective.state,
        }
    }
}

impl From<v1::SourceStatus> for SourceStatusView {
    fn from(status: v1::SourceStatus) -> Self {
        Self {
            source: status.source,
            engine: status.engine,
            agent: status.agent,
            agent_online: status.agent_online,
            state: status.state,
            problem: filled(status.problem),
            remedy: filled(status.remedy),
            recovery_point_at: moment(status.recovery_point),
            loss_seconds: u64::try_from(status.loss_seconds).ok(),
            restore_seconds: (status.restore_millis > 0).then(|| seconds(status.restore_millis)),
            proven_at: moment(status.proven_at),
            copies: status.copies,
            snapshots: status.snapshots,
            logical_bytes: status.logical_bytes,
            snapshot_id: filled(status.snapshot_id),
            proof: filled(status.proof),
            active_run: status.active_run.map(RunView::from),
            last_backup: status.last_backup.map(RunView::from),
            policy: filled(status.policy),
            objectives: status.objectives.into_iter().map(ObjectiveView::from).collect(),
            next_run_at: moment(status.next_run_at),
            paused: status.pause.is_some(),
            missed_slots: status.missed_slots,
            verified_at: moment(status.verified_at),
            health: status.health.unwrap_or_default().into(),
            places: status.places.into_iter().map(PlaceView::from).collect(),
            debug_until: moment(status.debug.and_then(|debug| debug.until)),
        }
    }
}
