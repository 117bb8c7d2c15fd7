//! Why a snapshot stays or goes, in plain words.

use std::fmt;

use jiff::{SignedDuration, Timestamp};

use super::Period;
use crate::policy::Threshold;
use crate::run::SnapshotType;
use crate::units::{Bytes, Count, Span};

/// Why a snapshot stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeepReason {
    /// The policy removes nothing.
    Everything,
    /// Nothing is removed now.
    Frozen(Freeze),
    /// It is the newest good one.
    LastGood,
    /// It is the newest good one that has every item of its source.
    LastComplete,
    /// It is the newest good one of which every byte was read.
    LastVerified,
    /// It is held, or a milestone.
    Held(String),
    /// The log archive begins with it.
    LogBase {
        /// From when on the log is kept.
        from: Timestamp,
    },
    /// It is one of the newest.
    Last {
        /// Which of them, from 1.
        number: usize,
        /// Of how many.
        of: Count,
    },
    /// It is the newest of a period.
    Newest {
        /// Which kind of period.
        period: Period,
        /// The period, as text.
        of: String,
        /// Which of the periods with a snapshot, from 1.
        number: u32,
        /// Of how many.
        count: Count,
    },
    /// It is young enough.
    Within(Span),
    /// It is young enough for its type.
    OfType {
        /// The type.
        snapshot_type: SnapshotType,
        /// How long it stays.
        span: Span,
    },
    /// There are limits and no rules, and it is within the limits.
    WithinLimits,
}

impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeepReason::Everything => f.write_str("the policy keeps everything"),
            KeepReason::Frozen(freeze) => write!(f, "nothing is removed: {freeze}"),
            KeepReason::LastGood => f.write_str("the last good one"),
            KeepReason::LastComplete => f.write_str("the last complete one"),
            KeepReason::LastVerified => f.write_str("the last verified one"),
            KeepReason::Held(reason) => write!(f, "held: {reason}"),
            KeepReason::LogBase { from } => write!(f, "base of the log from {from}"),
            KeepReason::Last { number, of } => write!(f, "last {number} of {of}"),
            KeepReason::Newest { period, of, number, count } => {
                write!(f, "{} {number} of {count}, newest of {of}", period.rule())
            }
            KeepReason::Within(span) => write!(f, "within {span}"),
            KeepReason::OfType { snapshot_type, span } => write!(f, "{snapshot_type} within {span}"),
            KeepReason::WithinLimits => f.write_str("within the limits"),
        }
    }
}

/// Why nothing is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freeze {
    /// No snapshot is good.
    NoneGood,
    /// The newest good one is older than the schedule promises.
    BackupsFail {
        /// How old it is.
        age: Span,
        /// How old it may be.
        promised: Span,
    },
    /// A snapshot has a time to come.
    FromTheFuture {
        /// Which time.
        at: Timestamp,
    },
    /// The controller's clock disagrees with another.
    ClockDisagrees {
        /// By how much.
        by: SignedDuration,
    },
}

impl fmt::Display for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Freeze::NoneGood => f.write_str("no snapshot is good"),
            Freeze::BackupsFail { age, promised } => {
                write!(f, "the newest good one is {age} old, the schedule promises one every {promised}")
            }
            Freeze::FromTheFuture { at } => write!(f, "one has a time in the future, {at}"),
            Freeze::ClockDisagrees { by } => {
                write!(f, "the controller's clock is off by {}", Span::from_secs(by.as_secs()))
            }
        }
    }
}

/// Why a snapshot goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForgetReason {
    /// No rule keeps it.
    NoRule,
    /// There would be more than so many.
    MaxCount(Count),
    /// They would be larger than this.
    MaxTotalSize(Bytes),
    /// The storage is too full.
    Cleanup(Threshold),
}

impl fmt::Display for ForgetReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ForgetReason::NoRule => f.write_str("no rule keeps it"),
            ForgetReason::MaxCount(max) => write!(f, "more than {max} (max_count)"),
            ForgetReason::MaxTotalSize(max) => write!(f, "more than {max} (max_total_size)"),
            ForgetReason::Cleanup(above) => write!(f, "the storage is fuller than {above} (cleanup)"),
        }
    }
}
