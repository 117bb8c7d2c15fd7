//! The rules: what is wrong now, from what the parts of the controller know and from the metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::alert::expression::{self, Expression};
use holdfast_model::alert::rule::built_in;
use holdfast_model::alert::{
    AlertKey, AlertRule, AlertText, Book, Object, ObjectKind, Observation, Seen, Severity, Words,
};
use holdfast_model::fleet::Fleet;
use holdfast_model::ids::{AgentName, RuleName, SourceName};
use holdfast_model::metrics::MetricFamily;
use holdfast_model::objectives::ObjectiveState;
use holdfast_model::run_state::Phase;
use holdfast_model::source::Source;
use holdfast_model::{ErrorCode, Failure};
use jiff::{SignedDuration, Timestamp};

use super::words;
use crate::agents::AgentRecord;
use crate::core::Core;
use crate::metrics;
use crate::self_backup;
use crate::source_status::{self, Safety, SourceStanding};

/// How long agents have to come back after a start of the controller before they are missed.
const RETURN_TIME: Duration = Duration::from_secs(30);

/// How long before its end a certificate is spoken of, in seconds: it lives a day, and is renewed eight hours before.
const CERTIFICATE_WITHIN: i64 = 4 * 3600;

/// Times that a source does not answer until it is down.
const FAILURES_CRITICAL_IN_A_ROW: u32 = holdfast_model::health::FAILURES_CRITICAL;

/// Backups that fail in a row until it is critical.
const FAILURES_CRITICAL: u64 = 3;

/// What one pass looks at.
struct View<'a> {
    fleet: &'a Fleet,
    now: Timestamp,
    sources: Vec<(SourceName, Source, SourceStanding)>,
    agents: Vec<AgentRecord>,
    connected: BTreeSet<String>,
    /// Whether agents have had the time to come back.
    is_settled: bool,
    families: Vec<MetricFamily>,
    /// When the controller's own state was last copied; nothing where it has nowhere to go.
    last_copy: Option<Option<Timestamp>>,
}

/// Whether somebody was told of this already.
fn is_active(book: &Book, source: &SourceName, reason: &str) -> bool {
    book.active().any(|alert| {
        alert.key.reason == reason
            && alert.key.object.kind == ObjectKind::Source
            && alert.key.object.name == source.as_str()
    })
}

/// What is wrong now.
///
/// # Errors
/// When the state can not be read.
pub(super) async fn see(core: &Arc<Core>, fleet: &Fleet, before: &Book) -> Result<Seen, Failure> {
    let view = View {
        fleet,
        now: core.clock.now(),
        sources: source_status::of_all(core).await?,
        agents: core.agents.all().await?.into_iter().filter(|agent| agent.revoked_at.is_none()).collect(),
        connected: core.sessions.states().keys().map(ToString::to_string).collect(),
        is_settled: core.liveness.uptime() >= RETURN_TIME,
        families: metrics::collect(core).await?,
        last_copy: match self_backup::destination(core) {
            Ok(Some(_)) => Some(self_backup::last_copy(core).await?.map(|copy| copy.at)),
            // Where it is to go is for the doctor to ask.
            Ok(None) | Err(_) => None,
        },
    };
    let mut seen = Seen::default();
    view.judge_sources(before, &mut seen);
    view.judge_state(&mut seen);
    view.judge_agents(&mut seen);
    view.judge_repositories(&mut seen);
    view.judge_channels(core, &mut seen);
    view.judge_own(before, &mut seen);
    Ok(seen)
}

impl View<'_> {
    /// Enters a condition of a built-in rule, as the rule is declared; nothing when it is turned off.
    fn add(
        &self,
        seen: &mut Seen,
        rule: &str,
        object: Object,
        severity: Option<Severity>,
        since: Option<Timestamp>,
        text: AlertText,
    ) {
        let Some(known) = built_in(rule) else { return };
        let declared = self.declared(rule);
        if declared.is_some_and(|declared| !declared.enabled) {
            return;
        }
        let hold = declared.and_then(|declared| declared.hold);
        let (labels, needs) = self.about(&object);
        seen.failing.push(Observation {
            is_down: matches!(rule, "agent-down" | "repository-down"),
            key: AlertKey { object, reason: rule.to_owned() },
            severity: declared.and_then(|declared| declared.severity).or(severity).unwrap_or(known.severity),
            hold: hold.map_or(SignedDuration::from_secs(known.hold_seconds), |hold| hold.duration()),
            since,
            text,
            labels,
            needs,
            to: declared.map(|declared| declared.to.clone()).unwrap_or_default(),
        });
    }

    fn declared(&self, rule: &str) -> Option<&AlertRule> {
        self.fleet.alerts.get(&RuleName::new(rule).ok()?)
    }

    /// The labels of an object, and what it needs.
    fn about(&self, object: &Object) -> (BTreeMap<String, String>, Vec<Object>) {
        match object.kind {
            ObjectKind::Source => {
                // They are in the order of their names.
                let found = self.sources.binary_search_by(|(name, _, _)| name.as_str().cmp(&object.name));
                let Ok(index) = found else { return Default::default() };
                let (_, source, _) = &self.sources[index];
                let mut needs = vec![Object::new(ObjectKind::Agent, source.agent.as_str())];
                let repositories = self.repositories_of(source);
                needs.extend(repositories.map(|name| Object::new(ObjectKind::Repository, name)));
                (source.labels.clone(), needs)
            }
            ObjectKind::Agent => {
                let name = object.name.parse().ok();
                let agent = name.and_then(|name: AgentName| self.fleet.agents.get(&name));
                (agent.map(|agent| agent.labels.clone()).unwrap_or_default(), Vec::new())
            }
            _ => Default::default(),
        }
    }

    /// The repositories that a source is backed up to.
    fn repositories_of(&self, source: &Source) -> impl Iterator<Item = String> + use<> {
        let by_policy = self.fleet.policy_of(source).map(|(_, policy)| policy);
        let named = match (source.to.is_empty(), by_policy) {
            (false, _) => source.to.clone(),
            (true, Some(policy)) if !policy.to.is_empty() => policy.to.clone(),
            (true, _) => self.fleet.repositories.keys().cloned().collect(),
        };
        named.into_iter().map(|name| name.to_string())
    }

    /// The value of a metric by one of its labels.
    fn metric(&self, name: &str, label: &str) -> BTreeMap<&str, f64> {
        let samples =
            self.families.iter().filter(|family| family.name == name).flat_map(|family| &family.samples);
        samples
            .filter_map(|sample| {
                let (_, value) = sample.labels.iter().find(|(found, _)| *found == label)?;
                Some((value.as_str(), sample.value))
            })
            .collect()
    }

    fn judge_sources(&self, before: &Book, seen: &mut Seen) {
        let failures = self.metric("holdfast_backup_consecutive_failures", "source");
        let corrupt = self.metric("holdfast_corrupt_objects", "repository");
        for (name, _, standing) in &self.sources {
            let object = || Object::new(ObjectKind::Source, name.as_str());
            let is = |state: ObjectiveState| state == ObjectiveState::Breached;
            let promised = &standing.objectives;
            let is_breached = is(promised.rpo.state);
            if is_breached {
                let over = promised.rpo.objective.unwrap_or(0);
                let since = standing.recovery_point.map(|point| point + SignedDuration::from_secs(over));
                self.add(seen, "rpo-breached", object(), None, since, words::rpo(name, standing));
            }
            // Where no backup was ever asked for, there is nothing to miss.
            let is_protected = standing.facts.schedule.is_some() || standing.facts.last_backup.is_some();
            if standing.safety == Safety::NotRestorable && is_protected && !is_breached {
                self.add(seen, "not-restorable", object(), None, None, words::not_restorable(name, standing));
            }
            if is(promised.rto.state) {
                self.add(seen, "rto-breached", object(), None, None, words::rto(name, standing));
            }
            if is(promised.drill_age.state) {
                self.add(seen, "drill-overdue", object(), None, None, words::drill_overdue(name, standing));
            }
            if is(promised.verify_age.state) {
                self.add(seen, "verify-overdue", object(), None, None, words::verify_overdue(name, standing));
            }
            if is(promised.copies.state) {
                self.add(seen, "too-few-copies", object(), None, None, words::too_few_copies(name, standing));
            }
            if let Some(found) = standing.facts.snapshots.first().and_then(|record| record.anomalies.first())
                && found.severity == Severity::Critical
            {
                let text = words::data_anomaly(name, standing, &found.kind.to_string());
                self.add(seen, "data-anomaly", object(), None, None, text);
            }
            // Where a repository holds damaged objects, that is told once for all that need them.
            if let Some(newest) = standing.facts.snapshots.first()
                && let Some(damage) = &newest.proof.damage
                && corrupt.get(newest.repository.as_str()).is_none_or(|objects| *objects == 0.0)
            {
                let text = words::snapshot_damaged(name, standing, damage);
                self.add(seen, "snapshot-damaged", object(), None, None, text);
            }
            let failed = failures.get(name.as_str()).map_or(0, |failed| *failed as u64);
            self.judge_answers(seen, before, name, standing, failed > 0);
            if failed > 0 && !self.is_answered_for(before, name, standing) {
                let severity =
                    if failed >= FAILURES_CRITICAL { Severity::Critical } else { Severity::Warning };
                let since = standing.facts.last_backup.as_ref().and_then(|run| run.ended_at);
                let text = words::backup_failing(name, standing, failed);
                self.add(seen, "backup-failing", object(), Some(severity), since, text);
            }
        }
    }

    /// Whether a source answers. A source that is down is one alert: of the backup that found it out, or of this.
    fn judge_answers(
        &self,
        seen: &mut Seen,
        before: &Book,
        name: &SourceName,
        standing: &SourceStanding,
        backup_fails: bool,
    ) {
        let object = Object::new(ObjectKind::Source, name.as_str());
        let Some((health, limits)) = &standing.facts.health else {
            // Its agent is away: nobody knows.
            let reason = "source-down".to_owned();
            seen.unknown.insert(AlertKey { object, reason });
            return;
        };
        let is_told = backup_fails && is_active(before, name, "backup-failing");
        if health.failures >= FAILURES_CRITICAL_IN_A_ROW && !is_told {
            let text = words::source_down(name, standing, health.failure.as_ref());
            self.add(seen, "source-down", object, None, health.failing_since, text);
        } else if health.failure.is_none()
            && let Some((severity, problem)) = health.problem(limits)
        {
            let text = words::source_slow(name, standing, &problem);
            self.add(seen, "source-slow", object, Some(severity), None, text);
        }
    }

    /// Whether the failure of the last backup says no more than what is known of its source: that it did not answer, which
    /// is told already, or is over.
    fn is_answered_for(&self, before: &Book, name: &SourceName, standing: &SourceStanding) -> bool {
        let last = standing.facts.last_backup.as_ref();
        let Some(Phase::Failed(failure)) = last.map(|run| &run.state.phase) else { return false };
        if failure.code != ErrorCode::SourceUnreachable || is_active(before, name, "backup-failing") {
            return false;
        }
        let is_down = is_active(before, name, "source-down");
        let ended_at = last.and_then(|run| run.ended_at);
        let answers = standing
            .facts
            .health
            .as_ref()
            .is_some_and(|(health, _)| health.failure.is_none() && Some(health.checked_at) > ended_at);
        is_down || answers
    }

    /// The controller's own state.
    fn judge_state(&self, seen: &mut Seen) {
        let Some(last) = &self.last_copy else { return };
        let is_fresh = last.is_some_and(|at| self.now.duration_since(at) <= self_backup::AGE_MAX);
        if !is_fresh {
            let object = Object::new(ObjectKind::Controller, "state");
            self.add(seen, "state-not-copied", object, None, *last, words::state_not_copied(*last));
        }
    }

    fn judge_agents(&self, seen: &mut Seen) {
        let within = self.declared("certificate-expiring").and_then(|rule| rule.within);
        let within = within.map_or(CERTIFICATE_WITHIN, |within| within.secs());
        let mut sources: BTreeMap<&AgentName, usize> = BTreeMap::new();
        for (_, source, _) in &self.sources {
            *sources.entry(&source.agent).or_default() += 1;
        }
        for agent in &self.agents {
            let object = Object::new(ObjectKind::Agent, agent.name.as_str());
            if !self.connected.contains(agent.name.as_str()) {
                if self.is_settled {
                    let sources = sources.get(&agent.name).copied().unwrap_or(0);
                    let text = words::agent_down(&agent.name, agent.last_session_at, sources);
                    self.add(seen, "agent-down", object.clone(), None, None, text);
                } else {
                    let reason = "agent-down".to_owned();
                    seen.unknown.insert(AlertKey { object: object.clone(), reason });
                }
            }
            let ends = agent.certificates.iter().map(|certificate| certificate.not_after).max();
            if let Some(ends) = ends.filter(|ends| ends.duration_since(self.now).as_secs() < within) {
                let text = words::certificate(&agent.name, ends, self.now);
                self.add(seen, "certificate-expiring", object, None, None, text);
            }
        }
    }

    fn judge_repositories(&self, seen: &mut Seen) {
        let up = self.metric("holdfast_repository_up", "repository");
        let damaged = self.metric("holdfast_corrupt_objects", "repository");
        for name in self.fleet.repositories.keys() {
            let object = || Object::new(ObjectKind::Repository, name.as_str());
            if up.get(name.as_str()) == Some(&0.0) {
                let sources = self.sources.iter().filter(|(_, source, _)| {
                    self.repositories_of(source).any(|repository| repository == name.as_str())
                });
                let text = words::repository_down(sources.count());
                self.add(seen, "repository-down", object(), None, None, text);
            }
            let objects = damaged.get(name.as_str()).map_or(0, |objects| *objects as u64);
            if objects > 0 {
                self.add(seen, "corruption", object(), None, None, words::corruption(name, objects));
            }
        }
    }

    fn judge_channels(&self, core: &Core, seen: &mut Seen) {
        for (name, state) in core.outbox.states() {
            if state.failing_since.is_some() && self.fleet.channels.contains_key(&name) {
                let object = Object::new(ObjectKind::Channel, name.as_str());
                let text = words::notifications_failing(name.as_str(), state.last_error.as_deref());
                self.add(seen, "notifications-failing", object, None, state.failing_since, text);
            }
        }
    }

    /// Rules of the fleet's own, over the metrics.
    fn judge_own(&self, before: &Book, seen: &mut Seen) {
        let time = self.now.as_duration().as_secs_f64();
        for (name, rule) in &self.fleet.alerts {
            let Some(text) = rule.expr.as_ref().filter(|_| rule.enabled) else { continue };
            match Expression::parse(text) {
                Ok(expression) => {
                    for found in expression.matches(&self.families, time) {
                        seen.failing.push(self.own(name, rule, &expression, &found));
                    }
                }
                // Of an earlier version, with metrics that are gone: what it spoke of stays as it is.
                Err(error) => {
                    tracing::warn!(rule = %name, %error, "the rule is not understood");
                    let of_rule = before.active().filter(|alert| alert.key.reason == name.as_str());
                    seen.unknown.extend(of_rule.map(|alert| alert.key.clone()));
                }
            }
        }
    }

    fn own(
        &self,
        name: &RuleName,
        rule: &AlertRule,
        expression: &Expression,
        found: &expression::Match,
    ) -> Observation {
        let label = |label: &str| found.labels.get(label).filter(|value| !value.is_empty());
        let of = [
            ("source", ObjectKind::Source),
            ("repository", ObjectKind::Repository),
            ("agent", ObjectKind::Agent),
        ];
        let object = of.into_iter().find_map(|(key, kind)| label(key).map(|value| Object::new(kind, value)));
        let object = object.unwrap_or_else(|| Object::new(ObjectKind::Controller, "fleet"));
        let said = match &rule.message {
            Some(message) => fill(message, found),
            None => format!("is {} in rule {name}", value(found.value)),
        };
        let (mut labels, needs) = self.about(&object);
        labels.extend(found.labels.clone());
        let hold = rule.hold.or(expression.hold()).map_or(SignedDuration::ZERO, |hold| hold.duration());
        Observation {
            key: AlertKey { object, reason: name.to_string() },
            severity: rule.severity.unwrap_or(Severity::Warning),
            hold,
            since: None,
            text: AlertText {
                summary: Words::same(said),
                recovered: Words::new(
                    format!("is well again by rule {name}"),
                    format!("已恢复正常（规则 {name}）"),
                ),
                why: rule.expr.as_ref().map(|expr| Words::same(format!("{expr}: {}", value(found.value)))),
                safe: None,
                next: vec!["holdfast status".to_owned()],
            },
            labels,
            needs,
            is_down: false,
            to: rule.to.clone(),
        }
    }
}

/// A value without a tail of digits that nobody reads.
fn value(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 { format!("{value:.0}") } else { format!("{value:.3}") }
}

/// The message with the value and the labels in their places.
fn fill(message: &str, found: &expression::Match) -> String {
    let mut text = String::new();
    let mut rest = message;
    while let Some((before, after)) = rest.split_once("{{") {
        text.push_str(before);
        let Some((name, behind)) = after.split_once("}}") else {
            text.push_str("{{");
            rest = after;
            break;
        };
        match name.trim() {
            "value" => text.push_str(&value(found.value)),
            name => text.push_str(found.labels.get(name).map_or("", String::as_str)),
        }
        rest = behind;
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_value_and_the_labels_in_their_places() {
        let labels = BTreeMap::from([("source".to_owned(), "pg".to_owned())]);
        let found = expression::Match { labels, value: 700.0 };
        for (message, expected) in [
            ("{{ source }} loses {{value}} s", "pg loses 700 s"),
            ("{{ nothing }}.", "."),
            ("no end {{ value", "no end {{ value"),
            ("{{ source }}{{ source }}", "pgpg"),
        ] {
            assert_eq!(fill(message, &found), expected);
        }
        assert_eq!([700.0, 0.5, f64::INFINITY].map(value), ["700", "0.500", "inf"]);
    }
}
