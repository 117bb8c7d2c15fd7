//! Why a run is stopped, and what is told of its end. Pure but for the token.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use holdfast_model::progress::Progress;
use holdfast_model::restore::{CheckOutcome, RestoreCheck, RestoreReport};
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::document;
use holdfast_proto::v1;
use tokio_util::sync::CancellationToken;

use super::Outcome;

/// The longest report of a restore, in bytes of its document.
const REPORT_BYTES_MAX: usize = 1 << 20;
/// Checks that a report of very many keeps.
const CHECKS_KEPT_MAX: usize = 1000;

/// Why a run is stopped before it finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// Somebody asked for it.
    CancelAsked,
    /// The controller gave the run to another attempt: nothing that this one says counts.
    Abandoned,
    /// The agent stops.
    Drained,
    /// More was assigned than this agent takes.
    Busy,
    /// It took longer than allowed.
    Deadline(TimeLimit),
    /// The agent cannot keep what the run has to tell.
    Unrecordable(Failure),
}

/// How long a run may take, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeLimit {
    /// The configuration of the agent.
    OfAgent(Duration),
    /// The policy of the source.
    OfPolicy(Duration),
}

impl TimeLimit {
    /// How long.
    pub fn length(self) -> Duration {
        match self {
            TimeLimit::OfAgent(length) | TimeLimit::OfPolicy(length) => length,
        }
    }
}

/// Stops one attempt, once. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Stopper {
    token: CancellationToken,
    reason: Arc<OnceLock<StopReason>>,
}

impl Stopper {
    pub(super) fn new() -> Self {
        Self { token: CancellationToken::new(), reason: Arc::default() }
    }

    /// Stops it, for this reason unless there was one before. To be abandoned outweighs all else only while nothing
    /// else was said: then the end that was told is refused as one of an old attempt. Always true.
    pub(super) fn stop(&self, reason: StopReason) -> bool {
        let _ = self.reason.set(reason);
        self.token.cancel();
        true
    }

    pub(super) fn token(&self) -> &CancellationToken {
        &self.token
    }

    pub(super) fn reason(&self) -> Option<&StopReason> {
        self.reason.get()
    }
}

/// The fact that tells the end of an attempt; none for one that was abandoned.
pub(super) fn end_event(
    result: &Result<Outcome, Failure>,
    reason: Option<&StopReason>,
    warnings: u32,
    progress: &Progress,
) -> Option<v1::fact::Event> {
    use v1::fact::Event;
    if reason == Some(&StopReason::Abandoned) {
        return None;
    }
    let failure = match result {
        // What is done is done, even when somebody asked to stop it meanwhile.
        Ok(outcome) => {
            return Some(Event::Finished(v1::Finished {
                warnings,
                restored_json: outcome.restored.as_ref().map(bounded).unwrap_or_default(),
                progress: Some(progress.into()),
            }));
        }
        Err(failure) => failure,
    };
    let failure = match reason {
        Some(StopReason::CancelAsked) => return Some(Event::Cancelled(v1::Cancelled {})),
        Some(StopReason::Drained) => {
            Failure::new(ErrorCode::AgentDraining, "the agent is stopping and does not finish the run")
        }
        Some(StopReason::Busy) => {
            Failure::new(ErrorCode::QueueFull, "the agent has more assignments than it takes at once")
        }
        Some(StopReason::Deadline(limit)) => Failure::new(
            ErrorCode::RunDeadline,
            format!(
                "the run was not done after {} s, the most that {} allows",
                limit.length().as_secs(),
                match limit {
                    TimeLimit::OfAgent(_) => "the agent's configuration",
                    TimeLimit::OfPolicy(_) => "its policy",
                }
            ),
        ),
        Some(StopReason::Unrecordable(failure)) => failure.clone(),
        Some(StopReason::Abandoned) | None => failure.clone(),
    };
    Some(Event::Failed((&failure).into()))
}

/// A report as a document that fits into a fact. Of very many checks only those that are not well are kept.
fn bounded(report: &RestoreReport) -> String {
    let text = document(report);
    if text.len() <= REPORT_BYTES_MAX {
        return text;
    }
    let mut report = report.clone();
    let all = report.checks.len();
    report.checks.retain(|check| check.outcome != CheckOutcome::Ok);
    report.checks.truncate(CHECKS_KEPT_MAX);
    let left_out = all - report.checks.len();
    report.checks.push(RestoreCheck {
        name: "report".to_owned(),
        outcome: CheckOutcome::Warning,
        detail: format!("{left_out} of {all} checks are left out for their number"),
    });
    document(&report)
}

#[cfg(test)]
mod tests {
    use holdfast_proto::v1::fact::Event;

    use super::*;

    fn event(result: Result<Outcome, Failure>, reason: Option<StopReason>) -> Option<Event> {
        end_event(&result, reason.as_ref(), 3, &Progress::default())
    }

    fn failed() -> Result<Outcome, Failure> {
        Err(Failure::new(ErrorCode::ToolFailed, "pg_dump ended with exit status 1"))
    }

    fn code(event: Option<Event>) -> String {
        match event {
            Some(Event::Failed(failure)) => failure.code,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn what_is_done_is_finished_even_when_it_was_to_be_cancelled() {
        for reason in [None, Some(StopReason::CancelAsked), Some(StopReason::Drained)] {
            let Some(Event::Finished(finished)) = event(Ok(Outcome::default()), reason) else { panic!() };
            assert_eq!(finished.warnings, 3);
        }
    }

    #[test]
    fn the_reason_of_the_stop_outweighs_the_error_that_it_caused() {
        assert!(matches!(event(failed(), Some(StopReason::CancelAsked)), Some(Event::Cancelled(_))));
        assert_eq!(code(event(failed(), Some(StopReason::Drained))), "HF-5005");
        assert_eq!(code(event(failed(), Some(StopReason::Busy))), "HF-4021");
        assert_eq!(
            code(event(failed(), Some(StopReason::Deadline(TimeLimit::OfPolicy(Duration::from_secs(5)))))),
            "HF-4011"
        );
        assert_eq!(code(event(failed(), None)), "HF-2006");
    }

    #[test]
    fn a_report_of_very_many_checks_fits_into_a_fact() {
        let check = |n: usize| RestoreCheck {
            name: format!("rows of table {n}"),
            outcome: if n == 77 { CheckOutcome::Failed } else { CheckOutcome::Ok },
            detail: "x".repeat(100),
        };
        let report = RestoreReport { checks: (0..50_000).map(check).collect(), ..RestoreReport::default() };
        let text = bounded(&report);
        assert!(text.len() < REPORT_BYTES_MAX);
        let kept: RestoreReport = serde_json::from_str(&text).unwrap();
        assert_eq!(kept.checks[0], check(77));
        assert_eq!(kept.checks[1].detail, "49999 of 50000 checks are left out for their number");
    }

    #[test]
    fn nothing_is_told_of_an_abandoned_attempt() {
        assert_eq!(event(failed(), Some(StopReason::Abandoned)), None);
        assert_eq!(event(Ok(Outcome::default()), Some(StopReason::Abandoned)), None);
    }
}
