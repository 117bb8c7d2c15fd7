//! Who is told of what, as declared: routes and silences.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::alert::{Alert, ObjectKind, Severity};
use crate::ids::ChannelName;
use crate::units::Span;

/// Routes and silences as declared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Routing {
    /// The first that fits an alert decides. Without any, every channel is told of what is critical or a warning.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Silences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silences: Vec<Silence>,
}

/// Which alerts go where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Which alerts; all without it.
    #[serde(default, rename = "match", skip_serializing_if = "Match::is_empty")]
    pub matches: Match,
    /// The channels that are told.
    pub to: Vec<ChannelName>,
    /// What alerts in one message have in common.
    #[serde(default = "by_reason")]
    pub group_by: Vec<GroupBy>,
    /// How long the first alert of a message waits for others.
    #[serde(default = "default_wait")]
    pub wait: Span,
    /// After which time a failure that nobody has acknowledged is told again.
    #[serde(default = "default_repeat")]
    pub repeat: Span,
    /// Who is told when nobody has acknowledged it for longer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub escalate: Vec<Escalation>,
}

fn by_reason() -> Vec<GroupBy> {
    vec![GroupBy::Reason]
}

fn default_wait() -> Span {
    Span::from_mins(1)
}

fn default_repeat() -> Span {
    Span::from_hours(12)
}

impl Route {
    /// The route that fits what is critical or a warning, to these channels.
    pub fn to_all(channels: Vec<ChannelName>) -> Self {
        Self {
            matches: Match { severity: vec![Severity::Critical, Severity::Warning], ..Match::default() },
            to: channels,
            group_by: by_reason(),
            wait: default_wait(),
            repeat: default_repeat(),
            escalate: Vec::new(),
        }
    }
}

/// What alerts in one message have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GroupBy {
    /// The reason.
    Reason,
    /// The severity.
    Severity,
    /// The source.
    Source,
    /// The repository.
    Repository,
    /// The agent.
    Agent,
}

/// A step of escalation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Escalation {
    /// How long after the first message.
    pub after: Span,
    /// The channels that are told then.
    pub to: Vec<ChannelName>,
}

/// Which alerts: all that is given must fit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// The id of one alert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert: Option<u64>,
    /// Name of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Name of the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Name of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// One of these severities.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "one_or_many",
        serialize_with = "many_or_one"
    )]
    #[schemars(with = "OneOrMany")]
    pub severity: Vec<Severity>,
    /// These labels of the object.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum OneOrMany {
    One(Severity),
    Many(Vec<Severity>),
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Severity>, D::Error> {
    struct Any;

    impl<'de> serde::de::Visitor<'de> for Any {
        type Value = Vec<Severity>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("critical, warning or info, or a list of them")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Severity::deserialize(serde::de::value::StrDeserializer::new(text)).map(|one| vec![one])
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut many = Vec::new();
            while let Some(one) = seq.next_element()? {
                many.push(one);
            }
            Ok(many)
        }
    }

    deserializer.deserialize_any(Any)
}

fn many_or_one<S: serde::Serializer>(many: &[Severity], serializer: S) -> Result<S::Ok, S::Error> {
    match many {
        [one] => one.serialize(serializer),
        many => many.serialize(serializer),
    }
}

impl Match {
    /// Whether it fits everything.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it fits this alert.
    pub fn fits(&self, alert: &Alert) -> bool {
        let object = &alert.key.object;
        let named = |wanted: &Option<String>, kind: ObjectKind| {
            wanted.as_ref().is_none_or(|name| {
                object.kind == kind && object.name == *name
                    || alert.needs.iter().any(|needed| needed.kind == kind && needed.name == *name)
            })
        };
        self.alert.is_none_or(|id| id == alert.id)
            && named(&self.source, ObjectKind::Source)
            && named(&self.repository, ObjectKind::Repository)
            && named(&self.agent, ObjectKind::Agent)
            && self.reason.as_ref().is_none_or(|reason| *reason == alert.key.reason)
            && (self.severity.is_empty() || self.severity.contains(&alert.severity))
            && self.labels.iter().all(|(name, value)| alert.labels.get(name) == Some(value))
    }
}

/// Nobody is told of failures that fit, until it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Silence {
    /// Of which alerts.
    #[serde(rename = "match")]
    pub matches: Match,
    /// Until when.
    pub until: Timestamp,
    /// Why.
    pub reason: String,
    /// By whom.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
}

impl Silence {
    /// Whether it keeps this alert quiet at this moment.
    pub fn covers(&self, alert: &Alert, now: Timestamp) -> bool {
        now < self.until && self.matches.fits(alert)
    }
}
