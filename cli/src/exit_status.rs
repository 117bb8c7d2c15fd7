//! The exit status is the verdict. One table for the whole command line.

use std::process::ExitCode;

use holdfast_model::Category;

/// How a command ended. Scripts treat a number they do not know as a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitStatus {
    /// Done; for `--check`: every objective is met.
    Ok = 0,
    /// It ran and failed.
    Failed = 1,
    /// Wrong flags, or a file that is not valid.
    Usage = 2,
    /// Finished, some items failed or were skipped.
    Partial = 3,
    /// No such source, snapshot, run.
    NotFound = 4,
    /// Not known to the controller, or not allowed.
    Denied = 5,
    /// Something else holds it, or it changed meanwhile.
    Conflict = 6,
    /// A controller, agent, database or repository cannot be reached.
    Unreachable = 7,
    /// The time to wait is over; the run may go on.
    Timeout = 8,
    /// Dangerous and not confirmed.
    NeedsConfirmation = 9,
    /// What is stored or restored is not what it should be.
    DataBad = 10,
    /// Restorable, but not as promised.
    ObjectiveBreached = 11,
    /// `diff` and `apply --dry-run`: something would change.
    ChangesPending = 20,
    /// Ctrl-C.
    Interrupted = 130,
}

impl ExitStatus {
    /// The number that the shell sees.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The status of several runs together: the same for all is the status of all; bad data outweighs everything;
    /// some done and some not is partial; otherwise the first failure speaks.
    pub fn of_all(statuses: &[ExitStatus]) -> ExitStatus {
        let Some(&first) = statuses.first() else { return ExitStatus::Ok };
        if statuses.iter().all(|&status| status == first) {
            return first;
        }
        if statuses.contains(&ExitStatus::DataBad) {
            return ExitStatus::DataBad;
        }
        if statuses.iter().any(|status| matches!(status, ExitStatus::Ok | ExitStatus::Partial)) {
            return ExitStatus::Partial;
        }
        first
    }
}

impl From<Category> for ExitStatus {
    fn from(category: Category) -> Self {
        match category {
            Category::Usage => ExitStatus::Usage,
            Category::Failed => ExitStatus::Failed,
            Category::Partial => ExitStatus::Partial,
            Category::NotFound => ExitStatus::NotFound,
            Category::Denied => ExitStatus::Denied,
            Category::Conflict => ExitStatus::Conflict,
            Category::Unreachable => ExitStatus::Unreachable,
            Category::Timeout => ExitStatus::Timeout,
            Category::NeedsConfirmation => ExitStatus::NeedsConfirmation,
            Category::DataBad => ExitStatus::DataBad,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        ExitCode::from(status.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_category_has_the_number_of_the_table() {
        let table = [
            (Category::Failed, 1),
            (Category::Usage, 2),
            (Category::Partial, 3),
            (Category::NotFound, 4),
            (Category::Denied, 5),
            (Category::Conflict, 6),
            (Category::Unreachable, 7),
            (Category::Timeout, 8),
            (Category::NeedsConfirmation, 9),
            (Category::DataBad, 10),
        ];
        for (category, number) in table {
            assert_eq!(ExitStatus::from(category).number(), number, "{category:?}");
        }
        assert_eq!(ExitStatus::ObjectiveBreached.number(), 11);
        assert_eq!(ExitStatus::ChangesPending.number(), 20);
        assert_eq!(ExitStatus::Interrupted.number(), 130);
    }

    #[test]
    fn some_done_and_some_failed_is_partial() {
        use ExitStatus::{DataBad, Failed, Ok, Partial, Unreachable};
        assert_eq!(ExitStatus::of_all(&[]), Ok);
        assert_eq!(ExitStatus::of_all(&[Ok, Ok]), Ok);
        assert_eq!(ExitStatus::of_all(&[Ok, Unreachable]), Partial);
        assert_eq!(ExitStatus::of_all(&[Unreachable, Failed]), Unreachable);
        assert_eq!(ExitStatus::of_all(&[Ok, DataBad]), DataBad);
    }
}
