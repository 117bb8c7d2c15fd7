//! Rules: what is built in and how it is changed, and rules of one's own over the metrics.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Severity;
use super::expression::{Expression, ExpressionError};
use crate::ids::{ChannelName, RuleName};
use crate::text::nearest;
use crate::units::Span;

/// A rule that is built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuiltIn {
    /// Its name.
    pub name: &'static str,
    /// How bad it is, unless the rule says otherwise of one condition.
    pub severity: Severity,
    /// For how many seconds it must hold.
    pub hold_seconds: i64,
    /// One sentence.
    pub about: &'static str,
}

const MINUTE: i64 = 60;
const HOUR: i64 = 3600;

const fn rule(name: &'static str, severity: Severity, hold_seconds: i64, about: &'static str) -> BuiltIn {
    BuiltIn { name, severity, hold_seconds, about }
}

use Severity::{Critical, Warning};

/// All that is built in.
pub const BUILT_IN: &[BuiltIn] = &[
    rule("agent-down", Warning, 10 * MINUTE, "an agent is not connected"),
    rule("backup-failing", Warning, 0, "the last backup of a source failed; three in a row are critical"),
    rule("certificate-expiring", Warning, 0, "the certificate of an agent ends within four hours"),
    rule("corruption", Critical, 0, "a repository holds damaged objects"),
    rule("data-anomaly", Critical, 0, "the newest snapshot of a source looks wrong beside the one before"),
    rule("drill-overdue", Warning, HOUR, "a source has no recent proof that it can be restored"),
    rule("not-restorable", Critical, HOUR, "a source has nothing to restore"),
    rule("notifications-failing", Warning, 15 * MINUTE, "a channel does not deliver"),
    rule("repository-down", Critical, 10 * MINUTE, "a repository can not be reached"),
    rule("rpo-breached", Critical, 2 * MINUTE, "a source would lose more than was promised"),
    rule("rto-breached", Warning, 0, "the last restore of a source took longer than was promised"),
    rule("snapshot-damaged", Critical, 0, "the newest snapshot of a source is damaged"),
    rule("source-down", Critical, 0, "a source did not answer three times in a row"),
    rule("source-slow", Warning, 5 * MINUTE, "a source takes long to answer"),
    rule("state-not-copied", Critical, HOUR, "the controller's own state has no fresh copy"),
    rule("too-few-copies", Warning, 6 * HOUR, "a source has fewer copies than were promised"),
    rule("verify-overdue", Warning, HOUR, "a source was not read again in time"),
];

/// The built-in rule of this name.
pub fn built_in(name: &str) -> Option<&'static BuiltIn> {
    BUILT_IN.iter().find(|rule| rule.name == name)
}

/// A rule as declared: a change of one that is built in, or, with `expr`, one of one's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlertRule {
    /// What must hold, over the metrics: `holdfast_potential_loss_seconds{source="pg-main"} > 600`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expr: Option<String>,
    /// How long it must hold.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub hold: Option<Span>,
    /// How bad it is; a rule of one's own is a warning without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// What is said; `{{ value }}` and `{{ LABEL }}` stand for the value and a label of the sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The channels that are told, instead of those of the route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<ChannelName>,
    /// `certificate-expiring`: how long before the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<Span>,
    /// Whether it is judged at all.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub enabled: bool,
}

fn yes() -> bool {
    true
}

fn is_yes(enabled: &bool) -> bool {
    *enabled
}

/// What is wrong with a rule, and with which key of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleProblem {
    /// The key; empty for the rule as a whole.
    pub key: &'static str,
    /// What is wrong.
    pub message: String,
}

impl AlertRule {
    /// What is wrong with it.
    pub fn problems(&self, name: &RuleName) -> Vec<RuleProblem> {
        let mut problems = Vec::new();
        let mut wrong = |key, message: String| problems.push(RuleProblem { key, message });
        let known = built_in(name.as_str());
        match (&self.expr, known) {
            (Some(_), Some(_)) => {
                wrong("expr", format!("rule {name} is built in: give your own another name"))
            }
            (None, None) => {
                let names = BUILT_IN.iter().map(|rule| rule.name);
                let hint = nearest(name.as_str(), names)
                    .map_or(String::new(), |near| format!("; did you mean {near}?"));
                wrong("", format!("there is no built-in rule {name}, and it has no `expr` of its own{hint}"));
            }
            (Some(text), None) => match Expression::parse(text) {
                Err(error) => wrong("expr", in_expression(text, &error)),
                Ok(expression) if expression.hold().is_some() && self.hold.is_some() => {
                    wrong("for", "is given in `expr` already".to_owned());
                }
                Ok(_) => {}
            },
            (None, Some(_)) => {}
        }
        if self.message.is_some() && known.is_some() {
            wrong("message", format!("rule {name} is built in and has its own words"));
        }
        if self.message.as_ref().is_some_and(|text| !(1..=500).contains(&text.len())) {
            wrong("message", "1 to 500 bytes are possible".to_owned());
        }
        if self.within.is_some() && name.as_str() != "certificate-expiring" {
            wrong("within", "applies to rule certificate-expiring only".to_owned());
        }
        problems
    }
}

fn in_expression(text: &str, error: &ExpressionError) -> String {
    let shown: String = text.chars().take(120).collect();
    format!("{shown:?} at character {}: {}", error.at + 1, error.message)
}
