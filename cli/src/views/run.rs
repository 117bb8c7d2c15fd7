//! Runs and their log lines.

use holdfast_model::Failure;
use holdfast_proto::v1;
pub(crate) use holdfast_proto::views::{ProgressView, RunView};
use jiff::Timestamp;
use serde::Serialize;

use super::{dash, moment};
use crate::error::CliError;
use crate::exit_status::ExitStatus;
use crate::output::text::{counted, duration, short_run, short_snapshot, size};
use crate::output::{Column, Record, Tone};

/// The verdict of a run that has ended; of one that has not, that it was taken on.
pub(crate) fn exit_status(run: &RunView) -> ExitStatus {
    match run.phase.as_str() {
        "succeeded" if !run.findings.is_empty() => ExitStatus::DataBad,
        "succeeded" if run.warnings > 0 => ExitStatus::Partial,
        "failed" | "skipped" => {
            run.failure.as_ref().map_or(ExitStatus::Failed, |failure| failure.code.category().into())
        }
        "cancelled" => ExitStatus::Failed,
        _ => ExitStatus::Ok,
    }
}

/// The error of a run that did not do its work.
pub(crate) fn error_of(run: &RunView) -> Option<CliError> {
    let failure = match run.phase.as_str() {
        "failed" | "skipped" => run.failure.clone().unwrap_or_else(|| {
            Failure::new(holdfast_model::ErrorCode::Internal, format!("the {} failed", run.kind))
        }),
        "cancelled" => {
            Failure::new(holdfast_model::ErrorCode::RunCancelled, format!("the {} was cancelled", run.kind))
                .then(format!("holdfast run retry {}", short_run(&run.id)))
        }
        _ => return None,
    };
    let mut error = CliError::from(failure).of_run(short_run(&run.id)).of_trace(run.trace_id.clone());
    if error.failure().next.is_empty() {
        error = error.then(format!("holdfast run logs {}", short_run(&run.id)));
    }
    Some(error)
}

fn outcome(run: &RunView) -> String {
    match run.phase.as_str() {
        "succeeded" if run.warnings > 0 => {
            format!("succeeded, {}", counted(run.warnings.into(), "warning"))
        }
        "failed" => match &run.failure {
            Some(failure) => format!("failed {}", failure.code),
            None => "failed".to_owned(),
        },
        "skipped" => match &run.failure {
            Some(failure) => format!("skipped {}", failure.code),
            None => "skipped".to_owned(),
        },
        "running" | "assigned" if run.cancel_requested => "cancelling".to_owned(),
        phase => phase.to_owned(),
    }
}

fn tone(run: &RunView) -> Tone {
    match exit_status(run) {
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
            Column::<Self>::left("OUTCOME", |run, _| outcome(run)).toned(tone),
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
        assert_eq!(exit_status(&run("succeeded")), ExitStatus::Ok);
        assert_eq!(exit_status(&RunView { warnings: 2, ..run("succeeded") }), ExitStatus::Partial);
        let damaged = RunView { findings: vec!["pack 3f is missing".to_owned()], ..run("succeeded") };
        assert_eq!(exit_status(&damaged), ExitStatus::DataBad);
        let mismatch = Failure::new(ErrorCode::RestoreMismatch, "orders: 5 rows, 6 in the manifest");
        assert_eq!(exit_status(&RunView { failure: Some(mismatch), ..run("failed") }), ExitStatus::DataBad);
        assert_eq!(exit_status(&run("cancelled")), ExitStatus::Failed);
    }

    #[test]
    fn the_error_of_a_run_names_the_run_and_a_command() {
        let failure = Failure::new(ErrorCode::ToolFailed, "pg_dump ended with exit status 1");
        let found = error_of(&RunView { failure: Some(failure), ..run("failed") }).unwrap();
        assert_eq!(found.run(), Some("deadbeef"));
        assert_eq!(found.failure().next, ["holdfast run logs deadbeef"]);
        assert!(error_of(&run("succeeded")).is_none());
    }
}
