//! Progress on its way to the controller: at most one report of a run each second, only what changed, dropped without
//! regret where the connection is busy.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_model::ids::{Attempt, RunId};
use holdfast_model::progress::Progress;
use holdfast_proto::v1;

/// How often progress is reported.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// Remembers what was reported last.
#[derive(Debug, Default)]
pub struct ProgressReporter {
    reported: BTreeMap<(RunId, Attempt), Progress>,
}

impl ProgressReporter {
    /// The reports of what changed since the last call.
    pub fn changed(&mut self, now: Vec<(RunId, Attempt, Progress)>) -> Vec<v1::ProgressReport> {
        let mut reports = Vec::new();
        let mut reported = BTreeMap::new();
        for (run, attempt, progress) in now {
            if self.reported.get(&(run, attempt)) != Some(&progress) {
                reports.push(v1::ProgressReport {
                    run_id: run.to_string(),
                    attempt: attempt.0,
                    progress: Some((&progress).into()),
                });
            }
            reported.insert((run, attempt), progress);
        }
        self.reported = reported;
        reports
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_reported() {
        let (one, two) = (RunId::at(1, [1; 10]), RunId::at(2, [2; 10]));
        let progress = |bytes_done| Progress { bytes_done, ..Progress::default() };
        let mut reporter = ProgressReporter::default();
        let first = reporter.changed(vec![(one, Attempt(1), progress(1)), (two, Attempt(1), progress(1))]);
        assert_eq!(first.len(), 2);
        let second = reporter.changed(vec![(one, Attempt(1), progress(1)), (two, Attempt(1), progress(2))]);
        assert_eq!(second.len(), 1);
        assert_eq!(second[0].run_id, two.to_string());
        assert!(reporter.changed(Vec::new()).is_empty());
        assert_eq!(reporter.changed(vec![(two, Attempt(1), progress(2))]).len(), 1);
    }
}
