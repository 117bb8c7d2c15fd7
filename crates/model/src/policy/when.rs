//! Rules for times: when runs of a type are due, and how a log is archived.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::{Cron, Zone};
use crate::ids::SourceName;
use crate::run::SnapshotType;
use crate::units::Span;

/// When runs of one type are due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WhenDocument", into = "WhenDocument")]
pub struct When {
    /// The rule.
    pub rule: Rule,
    /// Time zone of a cron rule, where it is not the schedule's.
    pub timezone: Option<Zone>,
    /// Spreads the runs of many sources: each begins up to this much later, always the same for the same slot.
    pub jitter: Option<Span>,
}

/// A rule for times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// At the times of a cron pattern.
    Cron(Cron),
    /// At the multiples of a length of time since 1970-01-01 00:00 UTC.
    Every(Span),
    /// When another backup has succeeded.
    After(After),
}

/// Which backup a run follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// One of this type, of the same source.
    Type(SnapshotType),
    /// Any of another source.
    Source(SourceName),
}

/// A rule as it is written: exactly one of `cron`, `every` and `after`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "When")]
struct WhenDocument {
    /// A cron pattern of five fields: minute, hour, day of month, month, day of week; or `@daily` and its like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cron: Option<Cron>,
    /// A length of time, counted from 1970-01-01 00:00 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    every: Option<Span>,
    /// Follows another backup: a type (`full`) of the same source, or the name of another source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    /// cron: its time zone, where it is not the schedule's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timezone: Option<Zone>,
    /// Each run begins up to this much later, always the same for the same source and slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    jitter: Option<Span>,
}

/// Why a rule does not make sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum InvalidWhen {
    #[error("exactly one of `cron`, `every` and `after` is needed, {0} are given")]
    NotOne(usize),
    #[error("`timezone` belongs to `cron` only")]
    StrayZone,
    #[error("`after` is {0:?}: a type of snapshot or the name of a source is needed")]
    After(String),
}

impl TryFrom<WhenDocument> for When {
    type Error = InvalidWhen;

    fn try_from(document: WhenDocument) -> Result<Self, InvalidWhen> {
        let WhenDocument { cron, every, after, timezone, jitter } = document;
        if timezone.is_some() && cron.is_none() {
            return Err(InvalidWhen::StrayZone);
        }
        let rule = match (cron, every, after) {
            (Some(cron), None, None) => Rule::Cron(cron),
            (None, Some(every), None) => Rule::Every(every),
            (None, None, Some(after)) => Rule::After(match SnapshotType::parse(&after) {
                Some(snapshot_type) => After::Type(snapshot_type),
                None => After::Source(after.parse().map_err(|_| InvalidWhen::After(after))?),
            }),
            (cron, every, after) => {
                let given = [cron.is_some(), every.is_some(), after.is_some()];
                return Err(InvalidWhen::NotOne(given.into_iter().filter(|given| *given).count()));
            }
        };
        Ok(When { rule, timezone, jitter })
    }
}

impl From<When> for WhenDocument {
    fn from(when: When) -> Self {
        let mut document = WhenDocument {
            cron: None,
            every: None,
            after: None,
            timezone: when.timezone,
            jitter: when.jitter,
        };
        match when.rule {
            Rule::Cron(cron) => document.cron = Some(cron),
            Rule::Every(every) => document.every = Some(every),
            Rule::After(After::Type(snapshot_type)) => document.after = Some(snapshot_type.to_string()),
            Rule::After(After::Source(source)) => document.after = Some(source.to_string()),
        }
        document
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rule {
            Rule::Cron(cron) => write!(f, "at {cron}"),
            Rule::Every(every) => write!(f, "every {every}"),
            Rule::After(After::Type(snapshot_type)) => write!(f, "after {snapshot_type}"),
            Rule::After(After::Source(source)) => write!(f, "after {source}"),
        }
    }
}

impl JsonSchema for When {
    fn schema_name() -> Cow<'static, str> {
        WhenDocument::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        WhenDocument::json_schema(generator)
    }
}

/// How the log of a database is archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[serde(try_from = "LogDocument", into = "LogDocument")]
#[schemars(with = "LogDocument")]
pub enum LogArchiving {
    /// All the time, as it is written.
    Stream,
    /// What there is, as often as this.
    Every(Span),
}

impl LogArchiving {
    /// How much of the log may be lost with the host.
    pub fn worst_loss(self) -> Span {
        match self {
            // A stream that is idle is cut and sent at least once a minute.
            LogArchiving::Stream => Span::from_mins(1),
            LogArchiving::Every(every) => every,
        }
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "LogArchiving")]
enum LogDocument {
    Word(LogWord),
    Every(LogEvery),
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum LogWord {
    /// All the time, as it is written.
    Stream,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LogEvery {
    /// What there is, as often as this.
    every: Span,
}

impl From<LogDocument> for LogArchiving {
    fn from(document: LogDocument) -> Self {
        match document {
            LogDocument::Word(LogWord::Stream) => LogArchiving::Stream,
            LogDocument::Every(LogEvery { every }) => LogArchiving::Every(every),
        }
    }
}

impl From<LogArchiving> for LogDocument {
    fn from(log: LogArchiving) -> Self {
        match log {
            LogArchiving::Stream => LogDocument::Word(LogWord::Stream),
            LogArchiving::Every(every) => LogDocument::Every(LogEvery { every }),
        }
    }
}
