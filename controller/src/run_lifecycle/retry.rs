//! When the machine itself starts a run over, and when not.

use std::time::Duration;

use holdfast_model::ErrorCode;
use holdfast_model::error_code::Retry;
use holdfast_model::ids::Attempt;
use holdfast_model::policy;
use holdfast_model::run::{ATTEMPTS_MAX, RunKind};
use jiff::SignedDuration;

/// The longest pause before another attempt.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The longest pause that a policy's backoff grows to.
const BACKOFF_MAX: Duration = Duration::from_secs(6 * 3600);

/// Whether the kind of run, and the number of attempts so far, allow another one.
pub fn may_retry(kind: RunKind, attempt: Attempt) -> bool {
    kind.may_restart_itself() && attempt.0 < ATTEMPTS_MAX
}

/// Whether a failure only says that the attempt was cut short, and nothing of its work: the agent is stopping or has no
/// room, the way between it and the controller was gone, or another program had the repository. Other failures that may pass are left to whoever asked for
/// the run: a database that ends `pg_dump` once is likely to do it again.
pub fn is_interruption(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::AgentDraining
            | ErrorCode::QueueFull
            | ErrorCode::ControllerUnreachable
            | ErrorCode::SessionReplaced
            | ErrorCode::AgentOffline
            | ErrorCode::RepositoryDisturbed
            | ErrorCode::RepositoryLocked
    )
}

/// How long a run waits before its next attempt that was interrupted so, when that is not the usual pause: whoever has the
/// repository is not done in a second.
pub fn long_pause_after(code: ErrorCode, attempt: Attempt) -> Option<Duration> {
    (code == ErrorCode::RepositoryLocked).then(|| pause_after(attempt) * 30)
}

/// How long an interrupted run waits before its next attempt.
pub fn pause_after(attempt: Attempt) -> Duration {
    let seconds = 1u64.checked_shl(attempt.0.saturating_sub(1)).unwrap_or(u64::MAX);
    Duration::from_secs(seconds).min(PAUSE_MAX)
}

/// Whether a policy has a run tried again after a failure, and how long after. What may pass by itself is; what a person
/// or another input is needed for is not.
pub fn after_failure(policy: &policy::Retry, code: ErrorCode, attempt: Attempt) -> Option<Duration> {
    if code.retry() != Retry::Transient || attempt.0 >= policy.attempts.get() {
        return None;
    }
    let doubled = 1u64.checked_shl(attempt.0.saturating_sub(1)).unwrap_or(u64::MAX);
    let first = u64::try_from(policy.backoff.secs()).unwrap_or(0);
    Some(Duration::from_secs(first.saturating_mul(doubled)).min(BACKOFF_MAX))
}

/// A pause that ends when the next slot of the source's schedule comes: without the failure there would be a run then, and a
/// run that rests must not keep it away.
pub fn no_later_than(rest: Duration, next_slot: Option<SignedDuration>) -> Duration {
    let Some(next) = next_slot else { return rest };
    rest.min(Duration::try_from(next).unwrap_or_default()).max(pause_after(Attempt::FIRST))
}

#[cfg(test)]
mod tests {
    use holdfast_model::units::{Count, Span};

    use super::*;

    #[test]
    fn a_restore_is_never_started_over_and_a_backup_not_for_ever() {
        assert!(may_retry(RunKind::Backup, Attempt(ATTEMPTS_MAX - 1)));
        assert!(!may_retry(RunKind::Backup, Attempt(ATTEMPTS_MAX)));
        assert!(!may_retry(RunKind::Restore, Attempt::FIRST));
    }

    #[test]
    fn what_says_something_of_the_work_is_no_interruption() {
        let interruptions: Vec<String> = ErrorCode::ALL
            .iter()
            .filter(|code| is_interruption(**code))
            .map(|code| {
                assert_eq!(code.retry(), holdfast_model::error_code::Retry::Transient, "{code}");
                code.to_string()
            })
            .collect();
        assert_eq!(
            interruptions,
            ["HF-3007", "HF-3023", "HF-4008", "HF-4015", "HF-4019", "HF-4021", "HF-5005"]
        );
    }

    #[test]
    fn a_policy_has_only_that_tried_again_which_may_pass() {
        let policy = policy::Retry { attempts: Count::new(3), backoff: Span::from_mins(5) };
        let pause =
            |code, attempt| after_failure(&policy, code, Attempt(attempt)).map(|pause| pause.as_secs());
        assert_eq!(pause(ErrorCode::SourceUnreachable, 1), Some(300));
        assert_eq!(pause(ErrorCode::StorageFailed, 2), Some(600));
        assert_eq!(pause(ErrorCode::SourceUnreachable, 3), None, "three attempts in all");
        assert_eq!(pause(ErrorCode::SourceLoginRefused, 1), None, "a person is needed");
        assert_eq!(pause(ErrorCode::SourceMissing, 1), None, "the input is wrong");
        let patient = policy::Retry { attempts: Count::new(100), backoff: Span::from_hours(1) };
        let longest = after_failure(&patient, ErrorCode::ToolFailed, Attempt(90));
        assert_eq!(longest, Some(BACKOFF_MAX));
    }

    #[test]
    fn a_run_that_rests_does_not_keep_the_next_slot_away() {
        let rest = |seconds, next: Option<i64>| {
            no_later_than(Duration::from_secs(seconds), next.map(SignedDuration::from_secs)).as_secs()
        };
        assert_eq!(rest(300, Some(5)), 5);
        assert_eq!(rest(300, Some(3600)), 300);
        assert_eq!(rest(300, None), 300);
        assert_eq!(rest(300, Some(0)), 1, "not at once");
        assert_eq!(rest(300, Some(-9)), 1, "a slot that is due already");
    }

    #[test]
    fn pauses_grow_to_a_minute() {
        let pauses: Vec<u64> = (1..=8).map(|number| pause_after(Attempt(number)).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pause_after(Attempt(u32::MAX)), PAUSE_MAX);
    }
}
