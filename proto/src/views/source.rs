//! How sources stand.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::{RunView, filled, moment, seconds};
use crate::v1;

/// The state of one source.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct SourceStatusView {
    /// Its name.
    pub source: String,
    /// Its engine and version.
    pub engine: String,
    /// Its agent.
    pub agent: String,
    /// Whether the agent is connected.
    pub agent_online: bool,
    /// protected, paused, at_risk or not_restorable.
    pub state: String,
    /// Why it is not protected.
    pub problem: Option<String>,
    /// A command against that.
    pub remedy: Option<String>,
    /// Newest moment that can be restored.
    pub recovery_point_at: Option<Timestamp>,
    /// What would be lost now; null: everything.
    pub loss_seconds: Option<u64>,
    /// How long the last restore took.
    pub restore_seconds: Option<f64>,
    /// When a restore was last proven.
    pub proven_at: Option<Timestamp>,
    /// Repositories that hold a snapshot of it.
    pub copies: u32,
    /// Its snapshots.
    pub snapshots: u64,
    /// Size of its newest snapshot.
    pub logical_bytes: u64,
    /// Its newest snapshot.
    pub snapshot_id: Option<String>,
    /// Highest proof of its newest snapshot.
    pub proof: Option<String>,
    /// Its active run.
    pub active_run: Option<RunView>,
    /// Its last ended backup.
    pub last_backup: Option<RunView>,
    /// The policy that it is under.
    pub policy: Option<String>,
    /// What is promised beside what is measured.
    pub objectives: Vec<ObjectiveView>,
    /// When the next backup begins by itself.
    pub next_run_at: Option<Timestamp>,
    /// Whether no backup begins by itself for now.
    pub paused: bool,
    /// Slots of its schedule that yielded no run.
    pub missed_slots: u64,
    /// When every byte of a snapshot was last read.
    pub verified_at: Option<Timestamp>,
    /// Whether the source itself answers.
    pub health: SourceHealthView,
    /// How it stands in each repository, in the order of their names.
    pub places: Vec<PlaceView>,
    /// Until when its runs write debug lines.
    pub debug_until: Option<Timestamp>,
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

impl SourceStatusView {
    /// Whether its newest snapshot is known to be damaged.
    pub fn is_damaged(&self) -> bool {
        self.proof.as_deref() == Some("damaged")
    }

    /// Whether nothing needs attention.
    pub fn is_protected(&self) -> bool {
        matches!(self.state.as_str(), "protected" | "paused") && !self.is_damaged()
    }
}

/// How a source stands in one repository.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct PlaceView {
    /// The repository.
    pub repository: String,
    /// Its newest sound snapshot there.
    pub snapshot_id: Option<String>,
    /// The moment that it shows.
    pub captured_at: Option<Timestamp>,
    /// By how much that is older than the newest of all; null when there is none.
    pub behind_seconds: Option<i64>,
    /// Whether its policy has snapshots copied there.
    pub is_copy: bool,
    /// damaged, restored, read, checked or uploaded.
    pub proof: Option<String>,
    /// Why the last copy failed.
    pub problem: Option<String>,
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
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct SourceHealthView {
    /// ok, warning, critical or unknown.
    pub state: String,
    /// What is wrong.
    pub problem: Option<String>,
    /// How long its last answer took.
    pub response_seconds: Option<f64>,
    /// Bytes of log that it keeps.
    pub log_bytes: Option<u64>,
    /// When it was asked last.
    pub checked_at: Option<Timestamp>,
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
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct ObjectiveView {
    /// rpo, rto, drill_age, verify_age or copies.
    pub objective: String,
    /// What was promised: seconds, or a number of copies.
    pub target: Option<i64>,
    /// What is measured, in the same unit.
    pub actual: Option<i64>,
    /// met, at_risk, breached, not_set or unknown.
    pub state: String,
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
