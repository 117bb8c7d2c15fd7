//! Reports: what a period brought, and how things stand at its end. Pure: facts in, a document out.
//!
//! In reading order: this module (the document, which is also its JSON), [`tally`] (runs are counted one by one, in
//! constant memory), [`storage`] (how fast a repository grows), [`fleet`] and [`logs`] (facts become a document),
//! [`page`] (a document in words), [`form`] (words as text, Markdown and HTML), [`schedule`] (what is declared).

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub mod fleet;
pub mod form;
pub mod logs;
pub mod page;
pub mod schedule;
pub mod storage;
pub mod tally;

pub use fleet::FleetReport;
pub use logs::LogReport;
pub use schedule::ReportSchedule;
pub use tally::{RunCounts, Tally};

use crate::policy::Zone;
use crate::text::cut_chars;

/// Which report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReportKind {
    /// What a day brought, and how the fleet stands.
    Daily,
    /// What a week brought, and how the fleet stands.
    Weekly,
    /// What came of the runs of some hours.
    Logs,
}

impl ReportKind {
    /// All kinds.
    pub const ALL: [ReportKind; 3] = [ReportKind::Daily, ReportKind::Weekly, ReportKind::Logs];

    /// The word used in files, paths and output.
    pub fn as_str(self) -> &'static str {
        match self {
            ReportKind::Daily => "daily",
            ReportKind::Weekly => "weekly",
            ReportKind::Logs => "logs",
        }
    }

    /// The kind of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

impl fmt::Display for ReportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The hours that a report of the runs covers unless others were asked for, and at most.
pub const HOURS_DEFAULT: u32 = 24;
/// See [`HOURS_DEFAULT`].
pub const HOURS_MAX: u32 = 31 * 24;

/// The longest name or sentence of others in a report, in characters.
const TEXT_CHARS_MAX: usize = 300;

fn shorten(text: &mut String) {
    *text = cut_chars(text, TEXT_CHARS_MAX);
}

/// What a report covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Period {
    /// Its beginning; what ended at this moment belongs to it.
    pub from: Timestamp,
    /// Its end; what ended at this moment belongs to the next.
    pub until: Timestamp,
    /// The time zone of the days in it, and of the times that people read.
    pub timezone: String,
}

impl Period {
    /// The period of a report that ends at `until`: a day or a week of the calendar, or some hours.
    pub fn ending(kind: ReportKind, hours: u32, until: Timestamp, zone: &Zone) -> Self {
        let days = |days: i64| {
            let end = until.to_zoned(zone.time_zone().clone());
            end.checked_sub(jiff::Span::new().days(days)).map(|from| from.timestamp())
        };
        let from = match kind {
            ReportKind::Daily => days(1),
            ReportKind::Weekly => days(7),
            ReportKind::Logs => until.checked_sub(jiff::SignedDuration::from_hours(i64::from(hours))),
        };
        Self { from: from.unwrap_or(Timestamp::MIN), until, timezone: zone.as_str().to_owned() }
    }

    /// Whether a moment belongs to it.
    pub fn contains(&self, at: Timestamp) -> bool {
        (self.from..self.until).contains(&at)
    }
}

/// What a report says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// How the period was.
    pub state: VerdictState,
    /// That in one sentence.
    pub sentence: String,
}

/// How a period was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VerdictState {
    /// Nothing failed, and there is evidence of it.
    Good,
    /// Something failed, or is not proven.
    Attention,
    /// Something is wrong now.
    Bad,
    /// There is no evidence of anything.
    Unknown,
}

impl VerdictState {
    /// The word used in output.
    pub fn as_str(self) -> &'static str {
        match self {
            VerdictState::Good => "good",
            VerdictState::Attention => "attention",
            VerdictState::Bad => "bad",
            VerdictState::Unknown => "unknown",
        }
    }
}

/// A report as a document. Sizes end in `_bytes`, lengths of time in `_seconds`; what is not known is `null`. Fields are
/// added, never renamed or removed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// What a day brought.
    Daily(Box<FleetReport>),
    /// What a week brought.
    Weekly(Box<FleetReport>),
    /// What came of the runs of some hours.
    Logs(Box<LogReport>),
}

impl Report {
    /// Which one it is.
    pub fn kind(&self) -> ReportKind {
        match self {
            Report::Daily(_) => ReportKind::Daily,
            Report::Weekly(_) => ReportKind::Weekly,
            Report::Logs(_) => ReportKind::Logs,
        }
    }

    /// What it covers.
    pub fn period(&self) -> &Period {
        match self {
            Report::Daily(report) | Report::Weekly(report) => &report.period,
            Report::Logs(report) => &report.period,
        }
    }

    /// The same without its lists, whose lengths are said: what can be sent however much there is to say.
    #[must_use]
    pub fn without_lists(mut self) -> Self {
        match &mut self {
            Report::Daily(report) | Report::Weekly(report) => report.leave_out_lists(),
            // As long as there are codes of errors.
            Report::Logs(_) => {}
        }
        self
    }

    /// What it says first.
    pub fn verdict(&self) -> &Verdict {
        match self {
            Report::Daily(report) | Report::Weekly(report) => &report.verdict,
            Report::Logs(report) => &report.verdict,
        }
    }
}
