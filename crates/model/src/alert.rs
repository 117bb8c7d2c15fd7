//! Alerts: conditions that hold or do not, and who is told what of them. Pure: observations in, messages out.
//!
//! The unit is a condition of an object for a reason, not a run: `ok → pending → failing → recovered`. Whoever is told
//! of a failure is told of its end, once each, whatever restarts happen in between.

use std::collections::BTreeMap;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub mod book;
pub mod channel;
pub mod expression;
mod groups;
pub mod message;
pub mod render;
pub mod route;
pub mod rule;

pub use book::{Alert, Book, Config, Seen, step};
pub use channel::{Channel, Way};
pub use message::{Message, MessageKind};
pub use route::{Match, Route, Routing, Silence};
pub use rule::AlertRule;

/// What kind of thing an alert is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    /// A source.
    Source,
    /// A repository.
    Repository,
    /// An agent.
    Agent,
    /// A channel of notifications.
    Channel,
    /// The controller itself, or the fleet as a whole.
    Controller,
}

impl ObjectKind {
    /// The word used in output and keys.
    pub fn as_str(self) -> &'static str {
        match self {
            ObjectKind::Source => "source",
            ObjectKind::Repository => "repository",
            ObjectKind::Agent => "agent",
            ObjectKind::Channel => "channel",
            ObjectKind::Controller => "controller",
        }
    }
}

/// What an alert is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Object {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its name.
    pub name: String,
}

impl Object {
    /// An object of this kind and name.
    pub fn new(kind: ObjectKind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into() }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.as_str(), self.name)
    }
}

/// What tells one condition from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AlertKey {
    /// What it is about.
    pub object: Object,
    /// The name of the rule, such as `rpo-breached`.
    pub reason: String,
}

impl fmt::Display for AlertKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.object, self.reason)
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Needs attention within days.
    Warning,
    /// Needs attention now.
    Critical,
}

impl Severity {
    /// The word used in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// The language of a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Language {
    /// English.
    #[default]
    #[serde(rename = "en")]
    English,
    /// Simplified Chinese.
    #[serde(rename = "zh-CN")]
    Chinese,
}

/// One sentence in every language.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Words {
    /// English.
    pub en: String,
    /// Simplified Chinese.
    pub zh: String,
}

impl Words {
    /// A sentence in both languages.
    pub fn new(en: impl Into<String>, zh: impl Into<String>) -> Self {
        Self { en: en.into(), zh: zh.into() }
    }

    /// The same in both: what somebody else has written.
    pub fn same(text: impl Into<String>) -> Self {
        let text = text.into();
        Self { en: text.clone(), zh: text }
    }

    /// In this language.
    pub fn get(&self, language: Language) -> &str {
        match language {
            Language::English => &self.en,
            Language::Chinese => &self.zh,
        }
    }
}

/// The longest sentence of an alert, in bytes. What is shown of one is shorter still.
const TEXT_BYTES_MAX: usize = 2048;

/// The most commands of an alert.
const COMMANDS_MAX: usize = 8;

/// What is said of a condition. Continues the name of the object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertText {
    /// What is at stake: `would lose 41 min (RPO 5 min)`.
    pub summary: Words,
    /// What is said when it is over: `is within its RPO again`.
    pub recovered: Words,
    /// Why it is so, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Words>,
    /// What is safe nevertheless, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safe: Option<Words>,
    /// Commands that work when pasted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next: Vec<String>,
}

impl AlertText {
    /// Of a length that many alerts can have at once, whatever a tool has to say of its error.
    #[must_use]
    pub fn cut(&self) -> Self {
        let cut = |text: &String| crate::text::cut(text, TEXT_BYTES_MAX);
        let words = |words: &Words| Words { en: cut(&words.en), zh: cut(&words.zh) };
        Self {
            summary: words(&self.summary),
            recovered: words(&self.recovered),
            why: self.why.as_ref().map(words),
            safe: self.safe.as_ref().map(words),
            next: self.next.iter().take(COMMANDS_MAX).map(cut).collect(),
        }
    }
}

/// A condition that holds at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// Which.
    pub key: AlertKey,
    /// How bad it is now.
    pub severity: Severity,
    /// How long it must hold before it is failing.
    pub hold: SignedDuration,
    /// Since when it holds, when that is known.
    pub since: Option<Timestamp>,
    /// What is said of it.
    pub text: AlertText,
    /// Labels of the object.
    pub labels: BTreeMap<String, String>,
    /// What the object needs: while one of these is down, this condition follows from it and is not told by itself.
    pub needs: Vec<Object>,
    /// Whether the object is down, so that conditions of what needs it follow from this one.
    pub is_down: bool,
    /// Channels that are told instead of those of the route.
    pub to: Vec<crate::ids::ChannelName>,
}

/// Where a condition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertState {
    /// It holds, but not for long enough yet.
    Pending,
    /// It holds.
    Failing,
    /// It is over.
    Recovered,
}

impl AlertState {
    /// The word used in output.
    pub fn as_str(self) -> &'static str {
        match self {
            AlertState::Pending => "pending",
            AlertState::Failing => "failing",
            AlertState::Recovered => "recovered",
        }
    }
}

/// That somebody has seen an alert: it is not repeated and not escalated any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// What was said.
    pub reason: String,
}
