//! The report of the runs of some hours: how many began, how they ended, how long they took, and why they failed.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fleet::runs_sentence;
use super::tally::{RunCounts, Tally};
use super::{Period, TEXT_CHARS_MAX, Verdict, VerdictState};
use crate::alert::Language;
use crate::text::cut_chars;

/// What came of the runs of some hours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LogReport {
    /// What it covers.
    pub period: Period,
    /// When it was made.
    pub generated_at: Timestamp,
    /// The environment; empty when none is declared.
    pub environment: String,
    /// How it was.
    pub verdict: Verdict,
    /// Only runs of this source, and of all without it.
    pub source: Option<String>,
    /// Runs that began in the period.
    pub started: u64,
    /// How those ended that ended in the period.
    pub runs: RunCounts,
    /// How long those took on average that succeeded; null without any.
    pub mean_duration_seconds: Option<f64>,
    /// The share of those that succeeded among those that succeeded or failed; null without any.
    pub success_rate: Option<f64>,
    /// By kind of run.
    pub kinds: Vec<KindReport>,
    /// By kind of error, the most frequent first.
    pub errors: Vec<ErrorReport>,
}

/// What came of the runs of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KindReport {
    /// backup, restore, promote, discard, verify, check or prune.
    pub kind: String,
    /// How they ended.
    pub runs: RunCounts,
    /// How long those took on average that succeeded; null without any.
    pub mean_duration_seconds: Option<f64>,
}

/// Failures of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorReport {
    /// The code.
    pub code: String,
    /// What it stands for.
    pub title: String,
    /// How many there were.
    pub count: u64,
    /// When the newest of them ended.
    pub newest_at: Timestamp,
    /// What it said.
    pub newest_message: String,
    /// Which run that was.
    pub newest_run: String,
}

/// The document that follows from a count.
pub fn build(tally: Tally, generated_at: Timestamp, environment: String) -> LogReport {
    let (millis, timed) =
        tally.kinds.values().fold((0, 0), |(millis, timed), kind| (millis + kind.millis, timed + kind.timed));
    let kinds = tally.kinds.iter().map(|(kind, found)| KindReport {
        kind: (*kind).to_owned(),
        runs: found.counts.clone(),
        mean_duration_seconds: mean(found.millis, found.timed),
    });
    let mut errors: Vec<ErrorReport> = tally
        .errors
        .values()
        .map(|error| ErrorReport {
            code: error.code.to_string(),
            title: error.code.title().to_owned(),
            count: error.count,
            newest_at: error.newest_at,
            newest_message: cut_chars(&error.message, TEXT_CHARS_MAX),
            newest_run: error.run.to_string(),
        })
        .collect();
    errors.sort_by_key(|error| std::cmp::Reverse(error.count));
    let mut report = LogReport {
        source: tally.source.as_ref().map(ToString::to_string),
        started: tally.started,
        mean_duration_seconds: mean(millis, timed),
        success_rate: ratio(tally.counts.done(), tally.counts.done() + tally.counts.failed),
        kinds: kinds.collect(),
        errors,
        generated_at,
        environment,
        verdict: Verdict { state: judge(&tally.counts), sentence: String::new() },
        runs: tally.counts,
        period: tally.period,
    };
    report.verdict.sentence = report.sentence(Language::English);
    report
}

fn judge(runs: &RunCounts) -> VerdictState {
    if runs.ended == 0 {
        VerdictState::Unknown
    } else if runs.failed > 0 {
        VerdictState::Bad
    } else if runs.partial > 0 {
        VerdictState::Attention
    } else {
        VerdictState::Good
    }
}

impl LogReport {
    /// The verdict in one sentence.
    pub fn sentence(&self, language: Language) -> String {
        runs_sentence(&self.runs).get(language).to_owned()
    }
}

#[expect(clippy::cast_precision_loss, reason = "beyond 9 × 10¹⁵ the last digits do not matter")]
fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn mean(millis: u64, count: u64) -> Option<f64> {
    // To a thousandth, as it was measured.
    ratio(millis, count).map(|mean| mean.round() / 1000.0)
}
