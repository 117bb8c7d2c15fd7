//! Runs, counted as they come, in any order. What is kept grows with what is declared, not with how many runs there were.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Period;
use crate::error_code::ErrorCode;
use crate::ids::{RunId, SourceName};
use crate::run::{Outcome, Run, RunKind};
use crate::run_state::Phase;

/// What came of runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunCounts {
    /// Those that ended in the period, however they did.
    pub ended: u64,
    /// Those of them that succeeded without a warning.
    pub succeeded: u64,
    /// Those that succeeded with warnings.
    pub partial: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that were given up on request.
    pub cancelled: u64,
    /// Those that did not begin, by a rule.
    pub skipped: u64,
    /// Those that were asked for before the end of the period and had not ended by then.
    pub under_way: u64,
}

impl RunCounts {
    /// Those that succeeded, with or without warnings.
    pub fn done(&self) -> u64 {
        self.succeeded + self.partial
    }

    fn count(&mut self, outcome: Outcome) {
        self.ended += 1;
        let counted = match outcome {
            Outcome::Success => &mut self.succeeded,
            Outcome::Partial => &mut self.partial,
            Outcome::Failure => &mut self.failed,
            Outcome::Cancelled => &mut self.cancelled,
            Outcome::Skipped => &mut self.skipped,
        };
        *counted += 1;
    }
}

/// What came of the runs of one kind.
#[derive(Debug, Clone, Default)]
pub struct KindTally {
    /// How they ended.
    pub counts: RunCounts,
    /// How long those took together that succeeded, in milliseconds.
    pub millis: u64,
    /// How many those are.
    pub timed: u64,
}

/// Failures of one kind.
#[derive(Debug, Clone)]
pub struct ErrorTally {
    /// The code.
    pub code: ErrorCode,
    /// How many there were.
    pub count: u64,
    /// When the newest of them ended.
    pub newest_at: Timestamp,
    /// Which run that was.
    pub run: RunId,
    /// What it said.
    pub message: String,
}

/// What came of the runs of one source.
#[derive(Debug, Clone, Default)]
pub struct SourceTally {
    /// How they ended.
    pub counts: RunCounts,
    /// Restores that succeeded.
    pub restores: u64,
    /// Ends of backups that succeeded, within the period.
    backups: Gaps,
}

/// The time in which the first and the last moment are kept, in seconds: no gap that is longer is missed.
const GAP_SECS_MIN: i64 = 300;

/// Moments, and how long there was none. They come in any order, as one source may go to several repositories; what is kept
/// is bounded by the length of the period.
#[derive(Debug, Clone, Default)]
struct Gaps(BTreeMap<i64, (Timestamp, Timestamp)>);

impl Gaps {
    fn add(&mut self, at: Timestamp) {
        let (first, last) = self.0.entry(at.as_second().div_euclid(GAP_SECS_MIN)).or_insert((at, at));
        *first = at.min(*first);
        *last = at.max(*last);
    }

    /// The longest time without one, in seconds.
    fn longest(&self, from: Timestamp, until: Timestamp) -> i64 {
        let (mut longest, mut before) = (0, from);
        for (first, last) in self.0.values().filter(|(_, last)| *last >= from) {
            longest = longest.max(first.duration_since(before).as_secs());
            before = *last;
        }
        longest.max(until.duration_since(before).as_secs())
    }
}

impl SourceTally {
    /// The longest time without a backup that succeeded, in seconds; the beginning is that of the period or, when it is
    /// later, that of the protection.
    pub fn longest_without_backup(&self, period: &Period, since: Timestamp) -> i64 {
        let from = period.from.max(since).min(period.until);
        self.backups.longest(from, period.until)
    }
}

/// The count of the runs of a period.
#[derive(Debug, Clone)]
pub struct Tally {
    /// What it covers.
    pub period: Period,
    /// Only runs of this source, and of all without it.
    pub source: Option<SourceName>,
    /// Runs that began in the period.
    pub started: u64,
    /// All runs.
    pub counts: RunCounts,
    /// By kind of run.
    pub kinds: BTreeMap<&'static str, KindTally>,
    /// By kind of error, which is the number of its code.
    pub errors: BTreeMap<u16, ErrorTally>,
    /// By source; runs about a repository have none.
    pub sources: BTreeMap<SourceName, SourceTally>,
}

impl Tally {
    /// Nothing counted yet.
    pub fn new(period: Period, source: Option<SourceName>) -> Self {
        Self {
            period,
            source,
            started: 0,
            counts: RunCounts::default(),
            kinds: BTreeMap::new(),
            errors: BTreeMap::new(),
            sources: BTreeMap::new(),
        }
    }

    /// Counts a run, as far as the period has to do with it.
    pub fn add(&mut self, run: &Run) {
        let source = run.spec.source();
        if self.source.is_some() && self.source.as_ref() != source {
            return;
        }
        if run.started_at.is_some_and(|at| self.period.contains(at)) {
            self.started += 1;
        }
        let outcome = Outcome::of(&run.state.phase).zip(run.ended_at);
        match outcome {
            Some((outcome, at)) if self.period.contains(at) => self.end(run, outcome, at),
            Some((_, at)) if at < self.period.until => {}
            _ if run.queued_at < self.period.until => {
                self.counts.under_way += 1;
                self.kinds.entry(run.spec.kind().as_str()).or_default().counts.under_way += 1;
                if let Some(source) = source {
                    self.sources.entry(source.clone()).or_default().counts.under_way += 1;
                }
            }
            _ => {}
        }
    }

    fn end(&mut self, run: &Run, outcome: Outcome, at: Timestamp) {
        self.counts.count(outcome);
        let kind = self.kinds.entry(run.spec.kind().as_str()).or_default();
        kind.counts.count(outcome);
        let is_done = matches!(outcome, Outcome::Success | Outcome::Partial);
        if let Some(began) = run.started_at.filter(|_| is_done) {
            kind.timed += 1;
            kind.millis += u64::try_from(at.duration_since(began).as_millis()).unwrap_or(0);
        }
        if let Phase::Failed(failure) = &run.state.phase {
            let message = failure.message.clone();
            let newest = ErrorTally { code: failure.code, count: 0, newest_at: at, run: run.id, message };
            let error = self.errors.entry(failure.code.number()).or_insert_with(|| newest.clone());
            let count = error.count + 1;
            if at > error.newest_at {
                *error = newest;
            }
            error.count = count;
        }
        let Some(source) = run.spec.source() else { return };
        let tally = self.sources.entry(source.clone()).or_default();
        tally.counts.count(outcome);
        match run.spec.kind() {
            RunKind::Backup if is_done => tally.backups.add(at),
            RunKind::Restore if is_done => tally.restores += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
