//! What is told: one or several alerts of one group to one channel, or a report.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::alert::{Alert, AlertText, Object, Severity};
use crate::ids::ChannelName;
use crate::report::Report;

/// Why a message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageKind {
    /// Something fails: the first word of it.
    Failing,
    /// What is known to fail has become more severe.
    Worsened,
    /// Nobody has acknowledged it, the next in line is told.
    Escalated,
    /// It still fails.
    Reminder,
    /// It is over.
    Recovered,
    /// Nothing is wrong: somebody tests the channel.
    Test,
    /// A report.
    Report,
}

impl MessageKind {
    /// The word used in output.
    pub fn as_str(self) -> &'static str {
        match self {
            MessageKind::Failing => "failing",
            MessageKind::Worsened => "worsened",
            MessageKind::Escalated => "escalated",
            MessageKind::Reminder => "reminder",
            MessageKind::Recovered => "recovered",
            MessageKind::Test => "test",
            MessageKind::Report => "report",
        }
    }
}

/// An alert as a message has it: what was known when it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Id of the alert.
    pub id: u64,
    /// What it is about.
    pub object: Object,
    /// The rule.
    pub reason: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is said of it.
    pub text: AlertText,
    /// Labels of the object.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub labels: std::collections::BTreeMap<String, String>,
    /// Since when it holds.
    pub since: Timestamp,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered_at: Option<Timestamp>,
    /// How many other alerts follow from it and are not told by themselves.
    #[serde(default)]
    pub affected: u32,
}

impl From<&Alert> for Told {
    fn from(alert: &Alert) -> Self {
        Self {
            id: alert.id,
            object: alert.key.object.clone(),
            reason: alert.key.reason.clone(),
            severity: alert.severity,
            text: alert.text.clone(),
            labels: alert.labels.clone(),
            since: alert.since,
            recovered_at: alert.recovered_at,
            affected: alert.affected,
        }
    }
}

/// A message to one channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Never used twice; the same however often delivery is tried.
    pub id: String,
    /// To whom.
    pub channel: ChannelName,
    /// Why.
    pub kind: MessageKind,
    /// When it was written.
    pub at: Timestamp,
    /// The alerts, worst first; at least one, but none in a report.
    pub alerts: Vec<Told>,
    /// The report, when it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
}

impl Message {
    /// The worst of its alerts.
    pub fn severity(&self) -> Severity {
        self.alerts.iter().map(|alert| alert.severity).max().unwrap_or(Severity::Info)
    }
}
