//! Collects what one step has to tell, and makes one message of what belongs together.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use jiff::Timestamp;

use super::book::{Alert, Config, Head};
use super::message::{Message, MessageKind, Told};
use super::route::{GroupBy, Route};
use super::{ObjectKind, Severity};
use crate::ids::ChannelName;

/// The most alerts in one message, and the most bytes of them as they are stored; more become further messages.
const ALERTS_MAX: usize = 100;
const BYTES_MAX: usize = 128 << 10;

/// What the alerts of one message have in common: their route, and what the route groups by.
type Group = (usize, Vec<String>);

/// An alert that has not been told yet: its route's channels, and how long they wait.
struct Waiting {
    since: i64,
    wait: i64,
    alerts: Vec<(u64, Vec<ChannelName>)>,
}

/// What one step has to tell.
#[derive(Default)]
pub(super) struct Outgoing {
    told: BTreeMap<(MessageKind, ChannelName, Group), Vec<Told>>,
    waiting: BTreeMap<Group, Waiting>,
}

/// The channels and the group of an alert whose wait is over.
pub(super) struct Waited {
    group: Group,
    to: Vec<ChannelName>,
}

fn route_of<'a>(alert: &Alert, config: &'a Config) -> Option<(usize, &'a Route)> {
    config.routes.iter().enumerate().find(|(_, route)| route.matches.fits(alert))
}

fn group_of(alert: &Alert, index: usize, route: &Route) -> Group {
    let named = |kind: ObjectKind| {
        let object =
            std::iter::once(&alert.key.object).chain(&alert.needs).find(|object| object.kind == kind);
        object.map_or(String::new(), |object| object.name.clone())
    };
    let part = |by: &GroupBy| match by {
        GroupBy::Reason => alert.key.reason.clone(),
        GroupBy::Severity => alert.severity.as_str().to_owned(),
        GroupBy::Source => named(ObjectKind::Source),
        GroupBy::Repository => named(ObjectKind::Repository),
        GroupBy::Agent => named(ObjectKind::Agent),
    };
    (index, route.group_by.iter().map(part).collect())
}

impl Outgoing {
    fn add(&mut self, kind: MessageKind, channel: &ChannelName, group: &Group, alert: &Alert) {
        self.told.entry((kind, channel.clone(), group.clone())).or_default().push(Told::from(alert));
    }

    /// Whoever was told of the failure is told of its end, silenced or not.
    pub(super) fn recovered(&mut self, alert: &Alert, config: &Config) {
        let group = route_of(alert, config)
            .map_or_else(|| (usize::MAX, Vec::new()), |(index, route)| group_of(alert, index, route));
        for channel in &alert.told {
            self.add(MessageKind::Recovered, channel, &group, alert);
        }
    }

    /// An alert that fails and is not to be kept quiet.
    pub(super) fn failing(&mut self, alert: &mut Alert, seconds: i64, config: &Config) {
        let Some((index, route)) = route_of(alert, config) else { return };
        let group = group_of(alert, index, route);
        let mut to = if alert.to.is_empty() { route.to.clone() } else { alert.to.clone() };
        // A channel that does not deliver is spoken of on the others.
        let object = &alert.key.object;
        to.retain(|channel| object.kind != ObjectKind::Channel || object.name != channel.as_str());
        let Some(told_first) = alert.times.told_first else {
            let since = *alert.times.waiting.get_or_insert(seconds);
            let wait = route.wait.secs();
            let waiting = self.waiting.entry(group).or_insert(Waiting { since, wait, alerts: Vec::new() });
            waiting.since = waiting.since.min(since);
            waiting.alerts.push((alert.id, to));
            return;
        };
        if alert.times.told_severity < Some(alert.severity) {
            alert.times.told_severity = Some(alert.severity);
            alert.times.told_last = seconds;
            for channel in to {
                let is_new = alert.told.insert(channel.clone());
                let kind = if is_new { MessageKind::Failing } else { MessageKind::Worsened };
                self.add(kind, &channel, &group, alert);
            }
            return;
        }
        if alert.ack.is_some() {
            return;
        }
        for (number, step) in route.escalate.iter().enumerate().skip(alert.times.escalated) {
            if seconds - told_first < step.after.secs() {
                break;
            }
            alert.times.escalated = number + 1;
            for channel in &step.to {
                alert.told.insert(channel.clone());
                self.add(MessageKind::Escalated, channel, &group, alert);
            }
        }
        if seconds - alert.times.told_last >= route.repeat.secs() {
            alert.times.told_last = seconds;
            for channel in to.iter().filter(|channel| alert.told.contains(*channel)) {
                self.add(MessageKind::Reminder, channel, &group, alert);
            }
        }
    }

    /// The alerts of the groups whose first one has waited long enough.
    pub(super) fn ready(&mut self, seconds: i64) -> Vec<(u64, Waited)> {
        let over = |group: &Waiting| seconds - group.since >= group.wait;
        let waiting = std::mem::take(&mut self.waiting).into_iter().filter(|(_, waiting)| over(waiting));
        waiting
            .flat_map(|(group, waiting)| {
                let with_group = move |(id, to)| (id, Waited { group: group.clone(), to });
                waiting.alerts.into_iter().map(with_group)
            })
            .collect()
    }

    /// The first word of a failure.
    pub(super) fn first_word(&mut self, alert: &mut Alert, seconds: i64, waited: &Waited) {
        alert.times.waiting = None;
        alert.times.told_first = Some(seconds);
        alert.times.told_last = seconds;
        alert.times.told_severity = Some(alert.severity);
        for channel in &waited.to {
            alert.told.insert(channel.clone());
            self.add(MessageKind::Failing, channel, &waited.group, alert);
        }
    }

    /// The messages, in an order that depends on nothing but what is in them. Those that have alerts in common are few, and
    /// tell of few alerts: they can be stored together, apart from the others.
    pub(super) fn messages(self, head: &mut Head, now: Timestamp) -> Vec<Message> {
        let parts = self.parts();
        let part_of = |alert: &Told| parts.get(&alert.id);
        let mut messages = Vec::new();
        for ((kind, channel, _), mut alerts) in self.told {
            alerts.sort_by_key(worst_first);
            for part in alerts.chunk_by(|one, other| part_of(one) == part_of(other)) {
                head.messages += 1;
                messages.push(Message {
                    id: message_id(head.messages, now),
                    channel: channel.clone(),
                    kind,
                    at: now,
                    alerts: part.to_vec(),
                    report: None,
                });
            }
        }
        messages
    }

    /// Which alerts are told together, by their ids; the same for every channel.
    fn parts(&self) -> BTreeMap<u64, usize> {
        let mut groups: BTreeMap<&Group, BTreeMap<(Reverse<Severity>, u64), &Told>> = BTreeMap::new();
        for ((_, _, group), alerts) in &self.told {
            groups.entry(group).or_default().extend(alerts.iter().map(|alert| (worst_first(alert), alert)));
        }
        let (mut parts, mut part) = (BTreeMap::new(), 0);
        for alerts in groups.values() {
            part += 1;
            let (mut count, mut bytes) = (0, 0);
            for alert in alerts.values() {
                let size = serde_json::to_vec(alert).map_or(0, |json| json.len());
                if count > 0 && (count == ALERTS_MAX || bytes + size > BYTES_MAX) {
                    (part, count, bytes) = (part + 1, 0, 0);
                }
                count += 1;
                bytes += size;
                parts.insert(alert.id, part);
            }
        }
        parts
    }
}

fn worst_first(alert: &Told) -> (Reverse<Severity>, u64) {
    (Reverse(alert.severity), alert.id)
}

/// Sorts by the number, which no clock moves, and after those of versions that sorted by the time. The time keeps it apart
/// from what was told before the state was lost and an older copy of it recovered.
fn message_id(number: u64, now: Timestamp) -> String {
    format!("m{number:012x}-{:012x}", now.as_millisecond())
}
