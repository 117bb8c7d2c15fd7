//! Alerts and silences.

use std::collections::BTreeMap;

use holdfast_proto::v1;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{filled, moment};

/// One alert.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct AlertView {
    /// Its number.
    id: u64,
    /// source, repository, agent, channel or controller.
    object_kind: String,
    /// The name of the object.
    object: String,
    /// The rule.
    rule: String,
    /// info, warning or critical.
    severity: String,
    /// pending, failing or recovered.
    state: String,
    /// What is at stake.
    summary: String,
    /// Why, when known.
    why: Option<String>,
    /// What is safe nevertheless, when known.
    safe: Option<String>,
    /// Commands that work when pasted.
    next: Vec<String>,
    /// Since when it holds.
    since_at: Option<Timestamp>,
    /// When it was first seen.
    first_seen_at: Option<Timestamp>,
    /// When it was over.
    recovered_at: Option<Timestamp>,
    /// Who has acknowledged it.
    acknowledged_by: Option<String>,
    /// When.
    acknowledged_at: Option<Timestamp>,
    /// What was said.
    acknowledged_reason: Option<String>,
    /// The alert that it follows from.
    follows: Option<u64>,
    /// How many alerts follow from it.
    affected: u32,
    /// Channels that were told.
    told: Vec<String>,
    /// Until when it is silenced.
    silenced_until_at: Option<Timestamp>,
    /// Labels of the object.
    labels: BTreeMap<String, String>,
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
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SilenceView {
    /// Its number; null for one that is declared in a fleet file.
    id: Option<u64>,
    /// Which alerts, as in a fleet file.
    #[serde(rename = "match")]
    matches: Value,
    /// Until when.
    until_at: Option<Timestamp>,
    /// Why.
    reason: String,
    /// By whom.
    by: Option<String>,
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
