//! What came of the runs that ended, as totals: stored together with the end of each run, so that they neither lose nor
//! repeat one over a restart, and are read without looking at the runs.

use std::collections::BTreeMap;

use holdfast_model::Failure;
use holdfast_model::run::{Outcome, Run, RunKind};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::records::{Batch, Records};
use crate::store::{Expect, Kind};

/// Upper ends of the buckets of durations, in seconds: 1 s to a day.
pub const DURATION_BUCKETS: [u32; 14] =
    [1, 2, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 10_800, 43_200, 86_400];

/// Whose runs are counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// Kind of run.
    pub kind: RunKind,
    /// The source, or nothing for runs about a repository.
    pub source: String,
    /// The repository, or nothing for runs that touch none.
    pub repository: String,
}

impl Subject {
    fn of(run: &Run) -> Self {
        let text = |name: Option<String>| name.unwrap_or_default();
        Self {
            kind: run.spec.kind(),
            source: text(run.spec.source().map(ToString::to_string)),
            repository: text(run.spec.repository().map(ToString::to_string)),
        }
    }

    fn key(&self) -> String {
        format!("{TOTALS}{}/{}/{}", self.kind, self.source, self.repository)
    }

    fn from_key(key: &str) -> Option<Self> {
        let mut parts = key.strip_prefix(TOTALS)?.split('/');
        let (kind, source, repository) = (parts.next()?, parts.next()?, parts.next()?);
        let kind = RunKind::ALL.into_iter().find(|known| known.as_str() == kind)?;
        Some(Self { kind, source: source.to_owned(), repository: repository.to_owned() })
    }
}

const TOTALS: &str = "totals/";
const DURATIONS: &str = "durations/";

/// What came of the runs of one subject.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Runs that succeeded without a warning.
    pub success: u64,
    /// Runs that succeeded with warnings.
    pub partial: u64,
    /// Runs that failed.
    pub failure: u64,
    /// Runs that were cancelled.
    pub cancelled: u64,
    /// Runs that did not begin, by a rule.
    pub skipped: u64,
    /// Runs that failed since the last that succeeded.
    pub consecutive_failures: u64,
    /// When one last ended.
    pub last_ended_at: Option<Timestamp>,
    /// When one last succeeded.
    pub last_success_at: Option<Timestamp>,
    /// Bytes read from the source, or written to the target of a restore.
    pub bytes_read: u64,
    /// Bytes sent to the repository.
    pub bytes_stored: u64,
}

impl Totals {
    /// How many ended so.
    pub fn of(&self, outcome: Outcome) -> u64 {
        match outcome {
            Outcome::Success => self.success,
            Outcome::Partial => self.partial,
            Outcome::Failure => self.failure,
            Outcome::Cancelled => self.cancelled,
            Outcome::Skipped => self.skipped,
        }
    }

    fn count(&mut self, run: &Run, outcome: Outcome) {
        let counted = match outcome {
            Outcome::Success => &mut self.success,
            Outcome::Partial => &mut self.partial,
            Outcome::Failure => &mut self.failure,
            Outcome::Cancelled => &mut self.cancelled,
            Outcome::Skipped => &mut self.skipped,
        };
        *counted += 1;
        match outcome {
            Outcome::Success | Outcome::Partial => {
                self.consecutive_failures = 0;
                self.last_success_at = self.last_success_at.max(run.ended_at);
            }
            Outcome::Failure => self.consecutive_failures += 1,
            // Somebody wanted it: neither good nor bad.
            Outcome::Cancelled | Outcome::Skipped => {}
        }
        self.last_ended_at = self.last_ended_at.max(run.ended_at);
        self.bytes_read = self.bytes_read.saturating_add(run.progress.bytes_read);
        self.bytes_stored = self.bytes_stored.saturating_add(run.progress.bytes_stored);
    }
}

/// How long runs of one kind took that ended alike.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Durations {
    /// How many there were.
    pub count: u64,
    /// How long they took together, in seconds.
    pub sum_seconds: f64,
    /// How many ended within each of [`DURATION_BUCKETS`], by its seconds, and in no smaller one.
    pub buckets: BTreeMap<u32, u64>,
}

impl Durations {
    fn count(&mut self, seconds: f64) {
        self.count += 1;
        self.sum_seconds += seconds;
        if let Some(bucket) = DURATION_BUCKETS.into_iter().find(|&end| seconds <= f64::from(end)) {
            *self.buckets.entry(bucket).or_default() += 1;
        }
    }
}

/// All totals at one moment.
#[derive(Debug, Default)]
pub struct AllTotals {
    /// By subject.
    pub runs: BTreeMap<Subject, Totals>,
    /// By kind of run and outcome.
    pub durations: BTreeMap<(RunKind, Outcome), Durations>,
}

impl AllTotals {
    /// Those of one kind and source, over all repositories.
    pub fn of_source<'a>(
        &'a self,
        kind: RunKind,
        source: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Totals)> {
        let runs =
            self.runs.iter().filter(move |(subject, _)| subject.kind == kind && subject.source == source);
        runs.map(|(subject, totals)| (subject.repository.as_str(), totals))
    }
}

/// Adds to the batch that stores the end of a run what counts it. Batches of two runs must not be made and committed at
/// the same time.
///
/// # Errors
/// When the state can not be read.
pub async fn count(records: &Records, batch: Batch, run: &Run) -> Result<Batch, Failure> {
    let Some(outcome) = Outcome::of(&run.state.phase) else { return Ok(batch) };
    let key = Subject::of(run).key();
    let mut totals = value::<Totals>(records, &key).await?;
    totals.count(run, outcome);
    let batch = batch.put(Kind::Run, key, &totals, Expect::Any);
    let (Some(began), Some(ended)) = (run.started_at, run.ended_at) else { return Ok(batch) };
    let key = format!("{DURATIONS}{}/{}", run.spec.kind(), outcome.as_str());
    let mut durations = value::<Durations>(records, &key).await?;
    durations.count(ended.duration_since(began).as_secs_f64().max(0.0));
    Ok(batch.put(Kind::Run, key, &durations, Expect::Any))
}

async fn value<T: Default + serde::de::DeserializeOwned>(records: &Records, key: &str) -> Result<T, Failure> {
    Ok(records.get::<T>(Kind::Run, key).await?.map(|found| found.value).unwrap_or_default())
}

/// Reads all totals: one small record for each subject that ever had a run.
///
/// # Errors
/// When the state can not be read.
pub async fn all(records: &Records) -> Result<AllTotals, Failure> {
    let mut all = AllTotals::default();
    for found in records.all::<Totals>(Kind::Run, TOTALS).await? {
        all.runs.extend(Subject::from_key(&found.key).map(|subject| (subject, found.value)));
    }
    for kind in RunKind::ALL {
        for outcome in Outcome::ALL {
            let key = format!("{DURATIONS}{kind}/{}", outcome.as_str());
            all.durations.insert((kind, outcome), value(records, &key).await?);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_reads_back_from_its_key() {
        for (source, repository) in [("shop", "main"), ("", "main"), ("shop", "")] {
            for kind in RunKind::ALL {
                let subject = Subject { kind, source: source.to_owned(), repository: repository.to_owned() };
                assert_eq!(Subject::from_key(&subject.key()), Some(subject));
            }
        }
    }

    #[test]
    fn a_duration_is_counted_in_the_smallest_bucket_that_holds_it() {
        let mut durations = Durations::default();
        for seconds in [0.0, 1.0, 1.1, 60.0, 86_400.0, 90_000.0] {
            durations.count(seconds);
        }
        assert_eq!(durations.buckets, BTreeMap::from([(1, 2), (2, 1), (60, 1), (86_400, 1)]));
        assert_eq!((durations.count, durations.sum_seconds), (6, 176_462.1));
    }
}
