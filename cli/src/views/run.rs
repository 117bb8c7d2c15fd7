//! Runs and their log lines.

use std::time::Duration;

use holdfast_model::Failure;
use holdfast_model::restore::RestoreReport;
use holdfast_model::run::RunSpec;
use holdfast_proto::v1;
use jiff::Timestamp;
use serde::Serialize;

use super::{dash, filled, moment};
use crate::error::CliError;
use crate::exit_status::ExitStatus;
use crate::output::text::{counted, duration, short_run, short_snapshot, size};
use crate::output::{Column, Record, Tone};

/// One run.
#[derive(Debug, Clone, Default, Serialize)]
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
    /// Why it failed.
    pub failure: Option<Failure>,
    /// Its last counters.
    pub progress: ProgressView,
    /// What a restore did.
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
#[derive(Debug, Clone, Default, Serialize)]
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

    /// The verdict of a run that has ended; of one that has not, that it was taken on.
    pub fn exit_status(&self) -> ExitStatus {
        match self.phase.as_str() {
            "succeeded" if !self.findings.is_empty() => ExitStatus::DataBad,
            "succeeded" if self.warnings > 0 => ExitStatus::Partial,
            "failed" | "skipped" => {
                self.failure.as_ref().map_or(ExitStatus::Failed, |failure| failure.code.category().into())
            }
            "cancelled" => ExitStatus::Failed,
            _ => ExitStatus::Ok,
        }
    }

    /// The error of a run that did not do its work.
    pub fn error(&self) -> Option<CliError> {
        let failure = match self.phase.as_str() {
            "failed" | "skipped" => self.failure.clone().unwrap_or_else(|| {
                Failure::new(holdfast_model::ErrorCode::Internal, format!("the {} failed", self.kind))
            }),
            "cancelled" => Failure::new(
                holdfast_model::ErrorCode::RunCancelled,
                format!("the {} was cancelled", self.kind),
            )
            .then(format!("holdfast run retry {}", short_run(&self.id))),
            _ => return None,
        };
        let mut error = CliError::from(failure).of_run(short_run(&self.id)).of_trace(self.trace_id.clone());
        if error.failure().next.is_empty() {
            error = error.then(format!("holdfast run logs {}", short_run(&self.id)));
        }
        Some(error)
    }

    /// How long it took.
    pub fn duration(&self) -> Option<Duration> {
        self.duration_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    }

    fn outcome(&self) -> String {
        match self.phase.as_str() {
            "succeeded" if self.warnings > 0 => {
                format!("succeeded, {}", counted(self.warnings.into(), "warning"))
            }
            "failed" => match &self.failure {
                Some(failure) => format!("failed {}", failure.code),
                None => "failed".to_owned(),
            },
            "skipped" => match &self.failure {
                Some(failure) => format!("skipped {}", failure.code),
                None => "skipped".to_owned(),
            },
            "running" | "assigned" if self.cancel_requested => "cancelling".to_owned(),
            phase => phase.to_owned(),
        }
    }
}

fn tone(run: &RunView) -> Tone {
    match run.exit_status() {
        ExitStatus::Ok if run.phase == "succeeded" => Tone::Good,
        ExitStatus::Ok => Tone::Plain,
        ExitStatus::Partial => Tone::Warning,
        _ => Tone::Bad,
    }
}

impl Record for RunView {
    const KIND: &'static str = "Run";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("RUN", |run, _| short_run(&run.id).to_owned()),
            Column::<Self>::left("KIND", |run, _| run.kind.clone()),
            Column::<Self>::left("SOURCE", |run, _| dash(run.source.as_deref())),
            Column::<Self>::left("REPOSITORY", |run, _| dash(run.repository.as_deref())),
            Column::<Self>::left("AGENT", |run, _| dash(run.agent.as_deref())).only_wide(),
            Column::<Self>::left("OUTCOME", |run, _| run.outcome()).toned(tone),
            Column::<Self>::left("QUEUED", |run, look| look.time_or(run.queued_at, "-")),
            Column::<Self>::right("TOOK", |run, _| run.duration().map_or_else(|| "-".to_owned(), duration)),
            Column::<Self>::right("READ", |run, _| size(run.progress.read_bytes)),
            Column::<Self>::right("STORED", |run, _| size(run.progress.stored_bytes)),
            Column::<Self>::left("SNAPSHOT", |run, _| dash(run.snapshot_id.as_deref().map(short_snapshot))),
            Column::<Self>::right("ATTEMPT", |run, _| run.attempt.to_string()).only_wide(),
            Column::<Self>::left("BY", |run, _| run.requested_by.clone()).only_wide(),
        ]
    }

    fn name(&self) -> String {
        self.id.clone()
    }
}

/// One line of a log.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LogLineView {
    /// When, by the clock of the agent.
    pub at: Option<Timestamp>,
    /// The attempt that wrote it.
    pub attempt: u32,
    /// debug, info, warning or error.
    pub level: &'static str,
    /// The text.
    pub text: String,
}

impl From<v1::LogLine> for LogLineView {
    fn from(line: v1::LogLine) -> Self {
        let level = match line.level() {
            v1::LogLevel::Error => "error",
            v1::LogLevel::Warning => "warning",
            v1::LogLevel::Debug => "debug",
            v1::LogLevel::Info | v1::LogLevel::Unspecified => "info",
        };
        Self { at: moment(line.at), attempt: line.attempt, level, text: line.text }
    }
}

impl Record for LogLineView {
    const KIND: &'static str = "LogLine";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("TIME", |line, look| look.time_or(line.at, "-")),
            Column::<Self>::left("LEVEL", |line, _| line.level.to_owned()).toned(|line| match line.level {
                "error" => Tone::Bad,
                "warning" => Tone::Warning,
                _ => Tone::Plain,
            }),
            Column::<Self>::right("ATTEMPT", |line, _| line.attempt.to_string()).only_wide(),
            Column::<Self>::left("TEXT", |line, _| line.text.clone()),
        ]
    }

    fn name(&self) -> String {
        self.text.clone()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_model::ErrorCode;

    use super::*;

    fn run(phase: &str) -> RunView {
        RunView {
            id: "018f00000000700080000000deadbeef".to_owned(),
            phase: phase.to_owned(),
            ..RunView::default()
        }
    }

    #[test]
    fn the_exit_status_is_the_verdict_of_the_run() {
        assert_eq!(run("succeeded").exit_status(), ExitStatus::Ok);
        assert_eq!(RunView { warnings: 2, ..run("succeeded") }.exit_status(), ExitStatus::Partial);
        let damaged = RunView { findings: vec!["pack 3f is missing".to_owned()], ..run("succeeded") };
        assert_eq!(damaged.exit_status(), ExitStatus::DataBad);
        let mismatch = Failure::new(ErrorCode::RestoreMismatch, "orders: 5 rows, 6 in the manifest");
        assert_eq!(RunView { failure: Some(mismatch), ..run("failed") }.exit_status(), ExitStatus::DataBad);
        assert_eq!(run("cancelled").exit_status(), ExitStatus::Failed);
    }

    #[test]
    fn the_error_of_a_run_names_the_run_and_a_command() {
        let failure = Failure::new(ErrorCode::ToolFailed, "pg_dump ended with exit status 1");
        let error = RunView { failure: Some(failure), ..run("failed") }.error().unwrap();
        assert_eq!(error.run(), Some("deadbeef"));
        assert_eq!(error.failure().next, ["holdfast run logs deadbeef"]);
        assert!(run("succeeded").error().is_none());
    }
}
