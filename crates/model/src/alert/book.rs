//! The book of alerts, and the one function that turns its pages.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::groups::Outgoing;
use super::message::Message;
use super::route::{Match, Route, Silence};
use super::{Ack, AlertKey, AlertState, AlertText, Object, Observation, Severity};
use crate::ids::ChannelName;

/// The most time that passes between two steps, in seconds: a clock that jumps, or a controller that was down, does not
/// make anything fail that nobody was looking at.
pub const STEP_SECS_MAX: i64 = 300;

/// How long an alert that is over is kept.
pub const RECOVERED_KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);

/// How many alerts that are over are kept.
pub const RECOVERED_MAX: usize = 500;

/// An alert: one episode of a condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Its number; never used twice.
    pub id: u64,
    /// What it is about.
    pub key: AlertKey,
    /// Where it stands.
    pub state: AlertState,
    /// How bad it is now; of what is down, as bad as the worst that follows from it.
    pub severity: Severity,
    /// What is said of it.
    pub text: AlertText,
    /// Labels of the object.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What the object needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<Object>,
    /// Whether the object is down.
    #[serde(default)]
    pub is_down: bool,
    /// Since when it holds.
    pub since: Timestamp,
    /// When it was first seen.
    pub first_seen: Timestamp,
    /// When it began to count as failing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_at: Option<Timestamp>,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered_at: Option<Timestamp>,
    /// Who has acknowledged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<Ack>,
    /// The alert that it follows from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<u64>,
    /// How many alerts follow from it.
    #[serde(default)]
    pub affected: u32,
    /// Channels that were told of the failure.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub told: BTreeSet<ChannelName>,
    /// Channels that are told instead of those of the route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<ChannelName>,
    /// What has happened to it, in seconds of the book.
    pub(super) times: Times,
}

/// Moments in the life of an alert, in seconds of the book: not moved by jumps of the clock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Times {
    pub(super) first_seen: i64,
    /// Since when it waits to be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) waiting: Option<i64>,
    /// When it was told first and last, and how bad it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) told_first: Option<i64>,
    #[serde(default)]
    pub(super) told_last: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) told_severity: Option<Severity>,
    /// Steps of the escalation that were taken.
    #[serde(default)]
    pub(super) escalated: usize,
}

/// What counts, beside the alerts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Seconds that somebody was looking.
    pub seconds: i64,
    /// When that was last.
    pub looked_at: Option<Timestamp>,
    pub(super) alerts: u64,
    pub(super) silences: u64,
    pub(super) messages: u64,
}

/// All alerts: those that hold, and those that were over not long ago.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    /// What counts.
    pub head: Head,
    /// By id.
    pub alerts: BTreeMap<u64, Alert>,
    /// Silences that were placed by hand, by id.
    pub silences: BTreeMap<u64, Silence>,
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Conditions that hold.
    pub failing: Vec<Observation>,
    /// Conditions of which it is not known whether they hold: they stay as they are.
    pub unknown: BTreeSet<AlertKey>,
}

/// Who is told of what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The first that fits decides.
    pub routes: Vec<Route>,
    /// Silences that are declared.
    pub silences: Vec<Silence>,
}

/// Takes what was seen into the book, and says what is to be told. The book and the messages belong together: they are
/// stored as one, or neither has happened.
pub fn step(mut book: Book, seen: &Seen, now: Timestamp, config: &Config) -> (Book, Vec<Message>) {
    book.pass_time(now);
    book.observe(&seen.failing, now);
    let mut out = Outgoing::default();
    book.recover(seen, now, config, &mut out);
    book.follow();
    book.tell(now, config, &mut out);
    book.forget(now);
    let messages = out.messages(&mut book.head, now);
    (book, messages)
}

impl Book {
    /// The alerts that hold.
    pub fn active(&self) -> impl Iterator<Item = &Alert> {
        self.alerts.values().filter(|alert| alert.state != AlertState::Recovered)
    }

    /// Acknowledges an alert that holds. Gives nothing when there is none of this id.
    pub fn acknowledge(&mut self, id: u64, ack: Ack) -> Option<&Alert> {
        let alert = self.alerts.get_mut(&id).filter(|alert| alert.state != AlertState::Recovered)?;
        alert.ack = Some(ack);
        Some(alert)
    }

    /// Places a silence and gives its id.
    pub fn silence(&mut self, silence: Silence) -> u64 {
        self.head.silences += 1;
        self.silences.insert(self.head.silences, silence);
        self.head.silences
    }

    /// The silence that keeps an alert quiet, if there is one.
    pub fn silenced<'a>(
        &'a self,
        alert: &Alert,
        declared: &'a [Silence],
        now: Timestamp,
    ) -> Option<&'a Silence> {
        self.silences.values().chain(declared).find(|silence| silence.covers(alert, now))
    }

    fn pass_time(&mut self, now: Timestamp) {
        let passed = self.head.looked_at.map_or(0, |last| now.duration_since(last).as_secs());
        self.head.seconds += passed.clamp(0, STEP_SECS_MAX);
        self.head.looked_at = Some(now);
    }

    fn observe(&mut self, failing: &[Observation], now: Timestamp) {
        let mut known: BTreeMap<AlertKey, u64> =
            self.active().map(|alert| (alert.key.clone(), alert.id)).collect();
        let mut seen: BTreeMap<&AlertKey, Severity> = BTreeMap::new();
        for observed in failing {
            // Of two that are the same, the worse counts.
            if seen.get(&observed.key).is_some_and(|severity| *severity >= observed.severity) {
                continue;
            }
            seen.insert(&observed.key, observed.severity);
            let id = *known.entry(observed.key.clone()).or_insert_with(|| {
                self.head.alerts += 1;
                self.head.alerts
            });
            let seconds = self.head.seconds;
            let alert = self.alerts.entry(id).or_insert_with(|| new_alert(id, observed, seconds, now));
            alert.severity = observed.severity;
            alert.text = observed.text.cut();
            alert.labels = observed.labels.clone();
            alert.needs = observed.needs.clone();
            alert.is_down = observed.is_down;
            alert.to = observed.to.clone();
            let held = self.head.seconds - alert.times.first_seen;
            if alert.state == AlertState::Pending && held >= observed.hold.as_secs() {
                alert.state = AlertState::Failing;
                alert.failing_at = Some(now);
            }
        }
    }

    fn recover(&mut self, seen: &Seen, now: Timestamp, config: &Config, out: &mut Outgoing) {
        let holds: BTreeSet<&AlertKey> =
            seen.failing.iter().map(|observed| &observed.key).chain(&seen.unknown).collect();
        self.alerts.retain(|_, alert| alert.state != AlertState::Pending || holds.contains(&alert.key));
        let over = |alert: &&mut Alert| alert.state == AlertState::Failing && !holds.contains(&alert.key);
        for alert in self.alerts.values_mut().filter(over) {
            alert.state = AlertState::Recovered;
            alert.recovered_at = Some(now);
            alert.follows = None;
            out.recovered(alert, config);
        }
    }

    /// Finds which alerts follow from an object that is down, and makes that one as severe as they are.
    fn follow(&mut self) {
        let down: BTreeMap<Object, u64> = self
            .active()
            .filter(|alert| alert.is_down)
            .map(|alert| (alert.key.object.clone(), alert.id))
            .collect();
        let mut followers: BTreeMap<u64, (u32, Severity)> = BTreeMap::new();
        for alert in self.alerts.values_mut().filter(|alert| alert.state != AlertState::Recovered) {
            alert.affected = 0;
            let cause = alert.needs.iter().find_map(|object| down.get(object)).copied();
            alert.follows = cause.filter(|cause| *cause != alert.id);
            if let Some(cause) = alert.follows {
                let (count, worst) = followers.entry(cause).or_insert((0, Severity::Info));
                *count += 1;
                *worst = (*worst).max(alert.severity);
            }
        }
        for (cause, (count, worst)) in followers {
            if let Some(cause) = self.alerts.get_mut(&cause) {
                cause.affected = count;
                cause.severity = cause.severity.max(worst);
            }
        }
    }

    fn tell(&mut self, now: Timestamp, config: &Config, out: &mut Outgoing) {
        let quiet: BTreeSet<u64> = self
            .active()
            .filter(|alert| self.silenced(alert, &config.silences, now).is_some() || alert.follows.is_some())
            .map(|alert| alert.id)
            .collect();
        for alert in self.alerts.values_mut().filter(|alert| alert.state == AlertState::Failing) {
            if quiet.contains(&alert.id) {
                alert.times.waiting = None;
                continue;
            }
            out.failing(alert, self.head.seconds, config);
        }
        for (id, waited) in out.ready(self.head.seconds) {
            if let Some(alert) = self.alerts.get_mut(&id) {
                out.first_word(alert, self.head.seconds, &waited);
            }
        }
    }

    fn forget(&mut self, now: Timestamp) {
        self.silences.retain(|_, silence| now < silence.until);
        let over = |alert: &Alert| alert.recovered_at;
        self.alerts.retain(|_, alert| over(alert).is_none_or(|at| now.duration_since(at) < RECOVERED_KEPT));
        let mut ended: Vec<u64> =
            self.alerts.values().filter(|alert| over(alert).is_some()).map(|alert| alert.id).collect();
        let surplus = ended.len().saturating_sub(RECOVERED_MAX);
        ended.truncate(surplus);
        for id in ended {
            self.alerts.remove(&id);
        }
    }
}

fn new_alert(id: u64, observed: &Observation, seconds: i64, now: Timestamp) -> Alert {
    Alert {
        id,
        key: observed.key.clone(),
        state: AlertState::Pending,
        severity: observed.severity,
        text: observed.text.cut(),
        labels: observed.labels.clone(),
        needs: observed.needs.clone(),
        is_down: observed.is_down,
        since: observed.since.unwrap_or(now).min(now),
        first_seen: now,
        failing_at: None,
        recovered_at: None,
        ack: None,
        follows: None,
        affected: 0,
        told: BTreeSet::new(),
        to: observed.to.clone(),
        times: Times { first_seen: seconds, ..Times::default() },
    }
}

/// The silence of one alert.
pub fn silence_of(alert: u64) -> Match {
    Match { alert: Some(alert), ..Match::default() }
}

#[cfg(test)]
mod tests;
