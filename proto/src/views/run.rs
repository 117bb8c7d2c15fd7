//! Runs.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_model::Failure;
use holdfast_model::restore::RestoreReport;
use holdfast_model::run::RunSpec;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{filled, moment};
use crate::v1;

/// One run.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct RunView {
    /// Its id.
    pub id: String,
    /// backup, restore, promote, discard, verify, check, prune or copy.
    pub kind: String,
    /// queued, assigned, running, committing, succeeded, failed, cancelled or skipped.
    pub phase: String,
    /// Whether somebody asked it to stop.
    pub cancel_requested: bool,
    /// What a backup re-reads: full, incremental, differential or snapshot.
    pub snapshot_type: Option<String>,
    /// The source.
    pub source: Option<String>,
    /// The repository.
    pub repository: Option<String>,
    /// The agent.
    pub agent: Option<String>,
    /// The number of its latest assignment.
    pub attempt: u32,
    /// Who asked for it.
    pub requested_by: String,
    /// Since when it is queued.
    pub queued_at: Option<Timestamp>,
    /// When the current attempt began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// From start to end.
    pub duration_seconds: Option<f64>,
    /// Why it waits.
    pub waiting_for: Option<String>,
    /// The snapshot that it committed.
    pub snapshot_id: Option<String>,
    /// Warnings in its log.
    pub warnings: u32,
    /// Why it failed: code, message, why, now, next.
    #[schemars(with = "Option<BTreeMap<String, Value>>")]
    pub failure: Option<Failure>,
    /// Its last counters.
    pub progress: ProgressView,
    /// What a restore did.
    #[schemars(with = "Option<BTreeMap<String, Value>>")]
    pub restored: Option<RestoreReport>,
    /// What a check or verification found.
    pub findings: Vec<String>,
    /// The run that it repeats.
    pub retry_of: Option<String>,
    /// Its trace.
    pub trace_id: Option<String>,
    /// The moment of the schedule that it is the run of; null when somebody asked for it.
    pub slot_at: Option<Timestamp>,
}

/// Counters of a run.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct ProgressView {
    /// What is being done.
    pub stage: String,
    /// Expected in all; 0 when not known.
    pub total_bytes: u64,
    /// Dealt with.
    pub done_bytes: u64,
    /// Read from the source, or written to the target.
    pub read_bytes: u64,
    /// New to the repository, before compression.
    pub new_bytes: u64,
    /// Sent to the repository.
    pub stored_bytes: u64,
    /// Expected in all; 0 when not known.
    pub total_files: u64,
    /// Dealt with.
    pub done_files: u64,
    /// Not read since they are unchanged.
    pub unchanged_files: u64,
    /// Blobs that the repository did not have.
    pub new_blobs: u64,
    /// Items that could not be read.
    pub unreadable: u64,
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
            snapshot_type,
            cancel_requested: run.intent == "cancel",
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

impl RunView {
    /// Whether nothing can follow.
    pub fn is_ended(&self) -> bool {
        matches!(self.phase.as_str(), "succeeded" | "failed" | "cancelled" | "skipped")
    }

    /// How long it took.
    pub fn duration(&self) -> Option<Duration> {
        self.duration_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    }
}
