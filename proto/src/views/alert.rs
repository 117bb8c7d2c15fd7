//! Alerts and silences.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{filled, moment};
use crate::v1;

/// One alert.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct AlertView {
    /// Its number.
    pub id: u64,
    /// source, repository, agent, channel or controller.
    pub object_kind: String,
    /// The name of the object.
    pub object: String,
    /// The rule.
    pub rule: String,
    /// info, warning or critical.
    pub severity: String,
    /// pending, failing or recovered.
    pub state: String,
    /// What is at stake.
    pub summary: String,
    /// Why, when known.
    pub why: Option<String>,
    /// What is safe nevertheless, when known.
    pub safe: Option<String>,
    /// Commands that work when pasted.
    pub next: Vec<String>,
    /// Since when it holds.
    pub since_at: Option<Timestamp>,
    /// When it was first seen.
    pub first_seen_at: Option<Timestamp>,
    /// When it was over.
    pub recovered_at: Option<Timestamp>,
    /// Who has acknowledged it.
    pub acknowledged_by: Option<String>,
    /// When.
    pub acknowledged_at: Option<Timestamp>,
    /// What was said.
    pub acknowledged_reason: Option<String>,
    /// The alert that it follows from.
    pub follows: Option<u64>,
    /// How many alerts follow from it.
    pub affected: u32,
    /// Channels that were told.
    pub told: Vec<String>,
    /// Until when it is silenced.
    pub silenced_until_at: Option<Timestamp>,
    /// Labels of the object.
    pub labels: BTreeMap<String, String>,
}

impl From<v1::Alert> for AlertView {
    fn from(alert: v1::Alert) -> Self {
        Self {
            id: alert.id,
            object_kind: alert.object_kind,
            object: alert.object,
            rule: alert.reason,
            severity: alert.severity,
            state: alert.state,
            summary: alert.summary,
            why: filled(alert.why),
            safe: filled(alert.safe),
            next: alert.next,
            since_at: moment(alert.since),
            first_seen_at: moment(alert.first_seen_at),
            recovered_at: moment(alert.recovered_at),
            acknowledged_by: filled(alert.acknowledged_by),
            acknowledged_at: moment(alert.acknowledged_at),
            acknowledged_reason: filled(alert.acknowledged_reason),
            follows: Some(alert.follows).filter(|id| *id != 0),
            affected: alert.affected,
            told: alert.told,
            silenced_until_at: moment(alert.silenced_until),
            labels: alert.labels.into_iter().collect(),
        }
    }
}

/// One silence.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct SilenceView {
    /// Its number; null for one that is declared in a fleet file.
    pub id: Option<u64>,
    /// Which alerts, as in a fleet file.
    #[serde(rename = "match")]
    pub matches: Value,
    /// Until when.
    pub until_at: Option<Timestamp>,
    /// Why.
    pub reason: String,
    /// By whom.
    pub by: Option<String>,
}

impl From<v1::Silence> for SilenceView {
    fn from(silence: v1::Silence) -> Self {
        Self {
            id: Some(silence.id).filter(|id| *id != 0),
            matches: serde_json::from_str(&silence.match_json).unwrap_or_default(),
            until_at: moment(silence.until),
            reason: silence.reason,
            by: filled(silence.by),
        }
    }
}
