//! The state machine of a run: the only place that says which change may follow which.
//!
//! ```text
//!  Queued ─▶ Assigned ─▶ Running ─▶ Committing ─▶ Succeeded{warnings}
//!    ▲  │        │           │           │
//!    │  └────────┴───────────┴───────────┴────▶ Failed | Cancelled | Skipped, from Queued alone
//!    └── lease lost or interrupted: back to Queued, the next assignment has attempt + 1
//! ```
//!
//! What a person wants ([`Intent`]) and what an agent reported ([`Phase`]) are separate. Asking to cancel changes the
//! intent only, and is refused while committing: the snapshot may exist already.

use serde::{Deserialize, Serialize};

use crate::error_code::{ErrorCode, Failure};
use crate::ids::Attempt;

/// How far a run is, as observed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Stored, waiting for its agent and a free slot.
    Queued,
    /// Handed to an agent, which has not begun yet.
    Assigned,
    /// The agent is at work.
    Running,
    /// The snapshot is being published; or it is, and the agent's last word is awaited.
    Committing,
    /// Done. A run with warnings is partial.
    Succeeded {
        /// How many warnings its log holds.
        warnings: u32,
    },
    /// Ended without its result.
    Failed(Failure),
    /// Given up on request.
    Cancelled,
    /// Left out by a rule of its policy, which says so.
    Skipped(Failure),
}

impl Phase {
    /// Whether nothing can follow.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Phase::Succeeded { .. } | Phase::Failed(_) | Phase::Cancelled | Phase::Skipped(_))
    }

    /// Whether an agent holds it.
    pub fn is_with_agent(&self) -> bool {
        matches!(self, Phase::Assigned | Phase::Running | Phase::Committing)
    }

    /// The word used in output and filters.
    pub fn as_str(&self) -> &'static str {
        match self {
            Phase::Queued => "queued",
            Phase::Assigned => "assigned",
            Phase::Running => "running",
            Phase::Committing => "committing",
            Phase::Succeeded { .. } => "succeeded",
            Phase::Failed(_) => "failed",
            Phase::Cancelled => "cancelled",
            Phase::Skipped(_) => "skipped",
        }
    }
}

/// What is wanted of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// Go on to the end.
    #[default]
    Finish,
    /// Stop as soon as it is safe.
    Cancel,
}

/// The changing part of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunState {
    /// How far it is.
    pub phase: Phase,
    /// What is wanted.
    pub intent: Intent,
    /// The number of the latest assignment; 0 before the first.
    pub attempt: Attempt,
}

/// Something that happened to a run. Those that come from an agent carry the attempt they speak of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEvent {
    /// The dispatcher hands it to an agent.
    Assigned,
    /// The agent began.
    Started(Attempt),
    /// The agent asks to publish its snapshot.
    CommitStarted(Attempt),
    /// The agent reports the end of all its work.
    Finished {
        /// Of which attempt.
        attempt: Attempt,
        /// How many warnings the log holds.
        warnings: u32,
    },
    /// The agent reports that it could not.
    Failed(Attempt, Failure),
    /// The agent reports that its attempt was cut short by something that is not of the run's own work.
    Interrupted {
        /// Of which attempt.
        attempt: Attempt,
        /// By what.
        failure: Failure,
        /// The snapshot of this run is in the repository.
        committed: bool,
        /// The kind of run, and the number of attempts so far, allow another attempt.
        may_retry: bool,
    },
    /// The agent confirms that it stopped on request.
    CancelConfirmed(Attempt),
    /// Somebody wants it stopped.
    CancelAsked,
    /// The agent was silent until its lease ended, or says after a restart that it does not have the run.
    LeaseLost {
        /// The snapshot of this run is in the repository.
        committed: bool,
        /// The kind of run, and the number of attempts so far, allow another attempt.
        may_retry: bool,
    },
    /// It can not be started at all, or was taken from the queue by a rule.
    Refused(Failure),
    /// A rule of its policy leaves it out.
    Skipped(Failure),
}

/// Why an event was not applied. The state is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IllegalTransition {
    /// The report is of another attempt than the current one.
    #[error("the report is of attempt {reported}, the current attempt is {current}")]
    StaleAttempt {
        /// What the report says.
        reported: Attempt,
        /// What is true.
        current: Attempt,
    },
    /// The run is committing or has ended.
    #[error("a run that is {0} can not be cancelled")]
    NotCancellable(&'static str),
    /// The event does not follow this phase.
    #[error("{event} can not follow {phase}")]
    OutOfOrder {
        /// The current phase.
        phase: &'static str,
        /// What was reported.
        event: &'static str,
    },
}

impl IllegalTransition {
    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        match self {
            IllegalTransition::StaleAttempt { .. } => ErrorCode::StaleAttempt,
            IllegalTransition::NotCancellable(_) => ErrorCode::RunNotCancellable,
            IllegalTransition::OutOfOrder { .. } => ErrorCode::Internal,
        }
    }
}

impl Default for RunState {
    fn default() -> Self {
        Self { phase: Phase::Queued, intent: Intent::Finish, attempt: Attempt(0) }
    }
}

impl RunState {
    /// The state after an event.
    ///
    /// Repeating the report of a change that was made already gives the same state, so that a fact may be delivered
    /// more than once.
    ///
    /// # Errors
    /// [`IllegalTransition`] says why the event does not apply.
    pub fn apply(&self, event: RunEvent) -> Result<RunState, IllegalTransition> {
        if let Some(reported) = event.attempt()
            && reported != self.attempt
        {
            return Err(IllegalTransition::StaleAttempt { reported, current: self.attempt });
        }
        let phase = match (&self.phase, &event) {
            (Phase::Queued, RunEvent::Assigned) => {
                return Ok(RunState {
                    phase: Phase::Assigned,
                    intent: self.intent,
                    attempt: self.attempt.next(),
                });
            }
            (Phase::Queued, RunEvent::CancelAsked) => Phase::Cancelled,
            (Phase::Assigned | Phase::Running, RunEvent::CancelAsked) => {
                return Ok(RunState { intent: Intent::Cancel, ..self.clone() });
            }
            (phase, RunEvent::CancelAsked) => {
                return Err(IllegalTransition::NotCancellable(phase.as_str()));
            }
            (Phase::Queued | Phase::Assigned, RunEvent::Refused(failure)) => Phase::Failed(failure.clone()),
            (Phase::Queued, RunEvent::Skipped(failure)) => Phase::Skipped(failure.clone()),
            (Phase::Assigned | Phase::Running, RunEvent::Started(_)) => Phase::Running,
            // That it began, and that it commits, are told on different ways: the first may arrive last.
            (Phase::Assigned | Phase::Running | Phase::Committing, RunEvent::CommitStarted(_)) => {
                Phase::Committing
            }
            (Phase::Committing, RunEvent::Started(_)) => Phase::Committing,
            (Phase::Running | Phase::Committing, RunEvent::Finished { warnings, .. }) => {
                Phase::Succeeded { warnings: *warnings }
            }
            (Phase::Assigned | Phase::Running | Phase::Committing, RunEvent::Failed(_, failure)) => {
                Phase::Failed(failure.clone())
            }
            (Phase::Assigned | Phase::Running, RunEvent::CancelConfirmed(_)) => Phase::Cancelled,
            (
                Phase::Assigned | Phase::Running | Phase::Committing,
                RunEvent::LeaseLost { committed, may_retry },
            ) => self.after_attempt(*committed, *may_retry, || {
                Failure::new(ErrorCode::AgentLost, "the agent fell silent and its lease ended")
                    .at_stake("nothing of this run was committed")
            }),
            (
                Phase::Assigned | Phase::Running | Phase::Committing,
                RunEvent::Interrupted { failure, committed, may_retry, .. },
            ) => self.after_attempt(*committed, *may_retry, || failure.clone()),
            // A report that was delivered before.
            (phase @ Phase::Succeeded { .. }, RunEvent::Finished { .. } | RunEvent::Started(_))
            | (
                phase @ Phase::Failed(_),
                RunEvent::Failed(..) | RunEvent::Interrupted { .. } | RunEvent::Started(_),
            )
            | (phase @ Phase::Queued, RunEvent::Interrupted { .. })
            | (phase @ Phase::Cancelled, RunEvent::CancelConfirmed(_) | RunEvent::Started(_)) => {
                phase.clone()
            }
            (phase, event) => {
                return Err(IllegalTransition::OutOfOrder { phase: phase.as_str(), event: event.name() });
            }
        };
        Ok(RunState { phase, ..self.clone() })
    }

    /// After an attempt that neither ended its work nor failed at it.
    fn after_attempt(&self, committed: bool, may_retry: bool, failure: impl FnOnce() -> Failure) -> Phase {
        if committed {
            // The data is safe; what is unknown is only what the agent did after it, such as its hooks.
            return Phase::Succeeded { warnings: 1 };
        }
        match (self.intent, may_retry) {
            (Intent::Cancel, _) => Phase::Cancelled,
            (Intent::Finish, true) => Phase::Queued,
            (Intent::Finish, false) => Phase::Failed(failure()),
        }
    }
}

impl RunEvent {
    fn attempt(&self) -> Option<Attempt> {
        match self {
            RunEvent::Started(attempt)
            | RunEvent::CommitStarted(attempt)
            | RunEvent::Finished { attempt, .. }
            | RunEvent::Interrupted { attempt, .. }
            | RunEvent::Failed(attempt, _)
            | RunEvent::CancelConfirmed(attempt) => Some(*attempt),
            RunEvent::Assigned
            | RunEvent::CancelAsked
            | RunEvent::LeaseLost { .. }
            | RunEvent::Refused(_)
            | RunEvent::Skipped(_) => None,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            RunEvent::Assigned => "assigned",
            RunEvent::Started(_) => "started",
            RunEvent::CommitStarted(_) => "commit started",
            RunEvent::Finished { .. } => "finished",
            RunEvent::Failed(..) => "failed",
            RunEvent::Interrupted { .. } => "interrupted",
            RunEvent::CancelConfirmed(_) => "cancel confirmed",
            RunEvent::CancelAsked => "cancel asked",
            RunEvent::LeaseLost { .. } => "lease lost",
            RunEvent::Refused(_) => "refused",
            RunEvent::Skipped(_) => "skipped",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Attempt = Attempt(2);

    fn failure() -> Failure {
        Failure::new(ErrorCode::ToolFailed, "pg_dump ended with exit status 1")
    }

    fn interrupted(committed: bool, may_retry: bool) -> RunEvent {
        let failure = Failure::new(ErrorCode::AgentDraining, "the agent is stopping");
        RunEvent::Interrupted { attempt: NOW, failure, committed, may_retry }
    }

    fn phases() -> Vec<Phase> {
        vec![
            Phase::Queued,
            Phase::Assigned,
            Phase::Running,
            Phase::Committing,
            Phase::Succeeded { warnings: 0 },
            Phase::Failed(failure()),
            Phase::Cancelled,
            Phase::Skipped(failure()),
        ]
    }

    fn events() -> Vec<RunEvent> {
        vec![
            RunEvent::Assigned,
            RunEvent::Started(NOW),
            RunEvent::CommitStarted(NOW),
            RunEvent::Finished { attempt: NOW, warnings: 0 },
            RunEvent::Failed(NOW, failure()),
            interrupted(false, true),
            RunEvent::CancelConfirmed(NOW),
            RunEvent::CancelAsked,
            RunEvent::LeaseLost { committed: false, may_retry: true },
            RunEvent::Refused(failure()),
            RunEvent::Skipped(failure()),
        ]
    }

    /// One letter per cell: the phase that follows, `c` for a changed intent, `-` for refused.
    fn walk() -> Vec<String> {
        phases()
            .into_iter()
            .map(|phase| {
                let state = RunState { phase, intent: Intent::Finish, attempt: NOW };
                let row: String = events()
                    .into_iter()
                    .map(|event| match state.apply(event) {
                        Err(_) => '-',
                        Ok(next) if next.intent == Intent::Cancel => 'c',
                        Ok(next) => match next.phase {
                            Phase::Queued => 'Q',
                            Phase::Assigned => 'A',
                            Phase::Running => 'R',
                            Phase::Committing => 'C',
                            Phase::Succeeded { .. } => 'S',
                            Phase::Failed(_) => 'F',
                            Phase::Cancelled => 'X',
                            Phase::Skipped(_) => 'K',
                        },
                    })
                    .collect();
                format!("{:<10} {row}", state.phase.as_str())
            })
            .collect()
    }

    #[test]
    fn every_cell_of_the_table_is_as_designed() {
        // Columns: assigned, started, commit started, finished, failed, interrupted, cancel confirmed, cancel asked,
        // lease lost, refused, skipped.
        assert_eq!(
            walk(),
            [
                "queued     A----Q-X-FK",
                "assigned   -RC-FQXcQF-",
                "running    -RCSFQXcQ--",
                "committing -CCSFQ--Q--",
                "succeeded  -S-S-------",
                "failed     -F--FF-----",
                "cancelled  -X----X----",
                "skipped    -----------",
            ]
        );
    }

    #[test]
    fn a_report_of_an_older_or_newer_attempt_is_refused_in_every_phase() {
        for phase in phases() {
            let state = RunState { phase, intent: Intent::Finish, attempt: NOW };
            for other in [Attempt(0), Attempt(1), Attempt(3), Attempt(u32::MAX)] {
                for event in [RunEvent::Started(other), RunEvent::Finished { attempt: other, warnings: 0 }] {
                    let refused = state.apply(event).unwrap_err();
                    assert_eq!(refused, IllegalTransition::StaleAttempt { reported: other, current: NOW });
                }
            }
        }
    }

    #[test]
    fn each_assignment_has_a_higher_attempt() {
        let first = RunState::default().apply(RunEvent::Assigned).unwrap();
        assert_eq!(first.attempt, Attempt::FIRST);
        let lost = first.apply(RunEvent::LeaseLost { committed: false, may_retry: true }).unwrap();
        assert_eq!(lost.phase, Phase::Queued);
        assert_eq!(lost.apply(RunEvent::Assigned).unwrap().attempt, Attempt(2));
    }

    #[test]
    fn a_lost_lease_after_the_commit_is_a_success_with_a_warning() {
        let state = RunState { phase: Phase::Committing, intent: Intent::Finish, attempt: NOW };
        let next = state.apply(RunEvent::LeaseLost { committed: true, may_retry: true }).unwrap();
        assert_eq!(next.phase, Phase::Succeeded { warnings: 1 });
    }

    #[test]
    fn a_lost_lease_of_a_run_to_be_cancelled_cancels_it() {
        let state = RunState { phase: Phase::Running, intent: Intent::Cancel, attempt: NOW };
        let next = state.apply(RunEvent::LeaseLost { committed: false, may_retry: true }).unwrap();
        assert_eq!(next.phase, Phase::Cancelled);
    }

    #[test]
    fn an_interruption_after_the_commit_is_a_success_and_without_attempts_left_the_failure_it_is() {
        let state = |intent| RunState { phase: Phase::Committing, intent, attempt: NOW };
        let after = |intent, event| state(intent).apply(event).unwrap().phase;
        assert_eq!(after(Intent::Finish, interrupted(true, true)), Phase::Succeeded { warnings: 1 });
        assert_eq!(after(Intent::Finish, interrupted(false, true)), Phase::Queued);
        assert_eq!(after(Intent::Cancel, interrupted(false, true)), Phase::Cancelled);
        let Phase::Failed(failure) = after(Intent::Finish, interrupted(false, false)) else { panic!() };
        assert_eq!(failure.to_string(), "[HF-5005] the agent is stopping");
    }

    #[test]
    fn a_committing_run_can_not_be_cancelled() {
        let state = RunState { phase: Phase::Committing, intent: Intent::Finish, attempt: NOW };
        let refused = state.apply(RunEvent::CancelAsked).unwrap_err();
        assert_eq!(refused.to_string(), "a run that is committing can not be cancelled");
        assert_eq!(refused.code(), ErrorCode::RunNotCancellable);
    }
}
