use super::*;
use crate::alert::route::Escalation;
use crate::alert::{AlertState, MessageKind, ObjectKind, Words};
use crate::random_numbers::Numbers;
use crate::units::Span;

mod random_histories;

const MINUTE: SignedDuration = SignedDuration::from_mins(1);

fn start() -> Timestamp {
    "2026-06-01T12:00:00Z".parse().unwrap()
}

fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

fn object(kind: ObjectKind, name: &str) -> Object {
    Object::new(kind, name)
}

fn observed(name: &str, reason: &str) -> Observation {
    Observation {
        key: AlertKey { object: object(ObjectKind::Source, name), reason: reason.to_owned() },
        severity: Severity::Critical,
        hold: SignedDuration::ZERO,
        since: None,
        text: AlertText { summary: Words::same("is bad"), ..AlertText::default() },
        labels: BTreeMap::new(),
        needs: vec![object(ObjectKind::Agent, "db1")],
        is_down: false,
        to: Vec::new(),
    }
}

fn agent_down() -> Observation {
    Observation {
        key: AlertKey { object: object(ObjectKind::Agent, "db1"), reason: "agent-down".to_owned() },
        severity: Severity::Warning,
        hold: MINUTE * 10,
        needs: Vec::new(),
        is_down: true,
        ..observed("unused", "unused")
    }
}

fn config() -> Config {
    let route = Route {
        escalate: vec![Escalation { after: Span::from_mins(30), to: vec![channel("mail")] }],
        repeat: Span::from_hours(1),
        ..Route::to_all(vec![channel("ding"), channel("slack")])
    };
    Config { routes: vec![route], silences: Vec::new() }
}

/// A book that is looked at once a minute.
struct Watch {
    book: Book,
    now: Timestamp,
    config: Config,
}

impl Watch {
    fn new() -> Self {
        Self { book: Book::default(), now: start(), config: config() }
    }

    fn see(&mut self, failing: &[Observation]) -> Vec<Message> {
        self.see_but(failing, &[])
    }

    fn see_but(&mut self, failing: &[Observation], unknown: &[AlertKey]) -> Vec<Message> {
        self.now += MINUTE;
        let seen = Seen { failing: failing.to_vec(), unknown: unknown.iter().cloned().collect() };
        let (book, messages) = step(std::mem::take(&mut self.book), &seen, self.now, &self.config);
        self.book = book;
        messages
    }

    fn see_for(&mut self, minutes: usize, failing: &[Observation]) -> Vec<Message> {
        (0..minutes).flat_map(|_| self.see(failing)).collect()
    }

    fn only(&self) -> &Alert {
        assert_eq!(self.book.alerts.len(), 1, "{:?}", self.book.alerts);
        self.book.alerts.values().next().unwrap()
    }
}

fn told(messages: &[Message]) -> Vec<(&str, MessageKind, usize)> {
    messages.iter().map(|message| (message.channel.as_str(), message.kind, message.alerts.len())).collect()
}

use MessageKind::{Escalated, Failing, Recovered, Reminder, Worsened};

#[test]
fn a_failure_and_its_end_are_told_once_to_each_channel() {
    let mut watch = Watch::new();
    let bad = [observed("pg", "rpo-breached")];
    assert_eq!(watch.see(&bad), [], "others may follow within the minute");
    assert_eq!(told(&watch.see(&bad)), [("ding", Failing, 1), ("slack", Failing, 1)]);
    assert_eq!(watch.see_for(5, &bad), []);
    assert_eq!(told(&watch.see(&[])), [("ding", Recovered, 1), ("slack", Recovered, 1)]);
    assert_eq!(watch.see_for(100, &[]), []);
}

#[test]
fn what_does_not_hold_for_long_enough_is_not_told() {
    let mut watch = Watch::new();
    let slow = [Observation { hold: MINUTE * 5, ..observed("pg", "rpo-breached") }];
    assert_eq!(watch.see_for(5, &slow), []);
    assert_eq!(watch.only().state, AlertState::Pending);
    assert_eq!(watch.see(&[]), []);
    assert_eq!(watch.book.alerts.len(), 0);
    assert_eq!(watch.see_for(6, &slow), []);
    assert_eq!(watch.only().state, AlertState::Failing);
    assert_eq!(watch.see(&slow).len(), 2);
}

#[test]
fn sources_that_fail_together_are_one_message() {
    let mut watch = Watch::new();
    let mut bad = vec![observed("a", "rpo-breached")];
    watch.see(&bad);
    bad.push(observed("b", "rpo-breached"));
    bad.push(observed("c", "backup-failing"));
    assert_eq!(told(&watch.see(&bad)), [("ding", Failing, 2), ("slack", Failing, 2)]);
    assert_eq!(told(&watch.see(&bad)), [("ding", Failing, 1), ("slack", Failing, 1)]);
    let ended = watch.see(&[]);
    assert_eq!(
        told(&ended),
        [("ding", Recovered, 1), ("ding", Recovered, 2), ("slack", Recovered, 1), ("slack", Recovered, 2)]
    );
}

#[test]
fn what_follows_from_an_agent_that_is_down_is_told_with_it() {
    let mut watch = Watch::new();
    let both = [agent_down(), observed("a", "rpo-breached"), observed("b", "rpo-breached")];
    assert_eq!(watch.see_for(11, &both), [], "until it is known whether the agent comes back");
    let messages = watch.see(&both);
    assert_eq!(told(&messages), [("ding", Failing, 1), ("slack", Failing, 1)]);
    let alert = &messages[0].alerts[0];
    assert_eq!((alert.reason.as_str(), alert.affected), ("agent-down", 2));
    assert_eq!(alert.severity, Severity::Critical, "as bad as what follows from it");
    assert_eq!(watch.see_for(50, &both)[0].kind, Escalated);
    // The agent is back, one of the sources is not.
    let left = [observed("b", "rpo-breached")];
    let kinds = |messages: &[Message]| messages.iter().map(|message| message.kind).collect::<BTreeSet<_>>();
    assert_eq!(kinds(&watch.see(&left)), BTreeSet::from([Recovered]));
    let messages = watch.see_for(2, &left);
    assert_eq!(told(&messages), [("ding", Failing, 1), ("slack", Failing, 1)]);
    assert_eq!(messages[0].alerts[0].object.name, "b");
}

#[test]
fn what_nobody_acknowledges_is_repeated_and_escalated() {
    let mut watch = Watch::new();
    let bad = [observed("pg", "rpo-breached")];
    watch.see_for(2, &bad);
    assert_eq!(watch.see_for(29, &bad), []);
    assert_eq!(told(&watch.see(&bad)), [("mail", Escalated, 1)]);
    assert_eq!(watch.see_for(29, &bad), []);
    assert_eq!(told(&watch.see(&bad)), [("ding", Reminder, 1), ("slack", Reminder, 1)]);
    let id = watch.only().id;
    let ack = Ack { by: "li.wei".to_owned(), at: watch.now, reason: String::new() };
    assert!(watch.book.acknowledge(id, ack.clone()).is_some());
    assert_eq!(watch.see_for(500, &bad), []);
    let ended = watch.see(&[]);
    assert_eq!(told(&ended), [("ding", Recovered, 1), ("mail", Recovered, 1), ("slack", Recovered, 1)]);
    assert!(watch.book.acknowledge(id, ack).is_none(), "it is over");
}

#[test]
fn what_becomes_worse_is_told_again() {
    let mut watch = Watch::new();
    let mild = [Observation { severity: Severity::Warning, ..observed("pg", "backup-failing") }];
    let worse = [observed("pg", "backup-failing")];
    watch.see_for(2, &mild);
    assert_eq!(told(&watch.see(&worse)), [("ding", Worsened, 1), ("slack", Worsened, 1)]);
    assert_eq!(watch.see_for(10, &mild), []);
    assert_eq!(watch.see_for(10, &worse), [], "that was said");
}

#[test]
fn a_silence_is_kept_until_it_ends_and_does_not_swallow_a_recovery() {
    let mut watch = Watch::new();
    let bad = [observed("pg", "rpo-breached")];
    let silence = |watch: &Watch, minutes: i32| Silence {
        matches: Match { source: Some("pg".to_owned()), ..Match::default() },
        until: watch.now + MINUTE * minutes,
        reason: "migration".to_owned(),
        by: "li.wei".to_owned(),
    };
    watch.book.silence(silence(&watch, 20));
    assert_eq!(watch.see_for(10, &bad), []);
    assert_eq!(watch.see(&[]), [], "it was never told");
    assert_eq!(watch.see_for(9, &bad), []);
    assert_eq!(told(&watch.see_for(2, &bad)), [("ding", Failing, 1), ("slack", Failing, 1)], "it has ended");
    watch.config.silences.push(silence(&watch, 100));
    assert_eq!(watch.see_for(70, &bad), [], "neither escalated nor repeated");
    assert_eq!(told(&watch.see(&[])), [("ding", Recovered, 1), ("slack", Recovered, 1)]);
}

#[test]
fn what_is_not_known_stays_as_it_is() {
    let mut watch = Watch::new();
    let bad = [observed("pg", "rpo-breached")];
    watch.see_for(2, &bad);
    let key = [bad[0].key.clone()];
    assert_eq!((0..10).flat_map(|_| watch.see_but(&[], &key)).collect::<Vec<_>>(), []);
    assert_eq!(watch.only().state, AlertState::Failing);
    assert_eq!(watch.see(&[]).len(), 2);
}

#[test]
fn a_clock_that_jumps_makes_nothing_fail() {
    let mut watch = Watch::new();
    let slow = [Observation { hold: MINUTE * 10, ..observed("pg", "rpo-breached") }];
    watch.see(&slow);
    watch.now += SignedDuration::from_hours(24 * 365);
    assert_eq!(watch.see(&slow), []);
    assert_eq!(watch.only().state, AlertState::Pending);
    watch.now -= SignedDuration::from_hours(24 * 400);
    watch.see(&slow);
    assert_eq!(watch.only().state, AlertState::Pending);
    watch.see_for(5, &slow);
    assert_eq!(watch.only().state, AlertState::Failing, "the minutes that were looked at count");
}

#[test]
fn without_a_route_that_fits_nobody_is_told() {
    let mut watch = Watch::new();
    let info = [Observation { severity: Severity::Info, ..observed("pg", "unprotected") }];
    assert_eq!(watch.see_for(100, &info), []);
    assert_eq!(watch.only().state, AlertState::Failing);
    assert_eq!(watch.see(&[]), []);
    assert_eq!(watch.only().state, AlertState::Recovered);
    watch.now += RECOVERED_KEPT;
    watch.see(&[]);
    assert_eq!(watch.book.alerts.len(), 0);
}

#[test]
fn messages_that_have_alerts_in_common_tell_of_few() {
    let mut watch = Watch::new();
    // Every third is told by one channel only, and every fifth has much to say.
    let bad: Vec<Observation> = (0..1000)
        .map(|number| {
            let mut bad = observed(&format!("s{number}"), "rpo-breached");
            if number % 3 == 0 {
                bad.to = vec![channel("slack")];
            }
            if number % 5 == 0 {
                bad.text.why = Some(Words::same("\u{1}".repeat(1 << 20)));
            }
            bad
        })
        .collect();
    let messages = watch.see_for(2, &bad);
    let mut parts: BTreeMap<u64, usize> = BTreeMap::new();
    let mut owners: Vec<BTreeSet<u64>> = Vec::new();
    for message in &messages {
        assert!(message.alerts.len() <= 100, "{}", message.alerts.len());
        let bytes = serde_json::to_vec(message).unwrap().len();
        assert!(bytes < 200 << 10, "{bytes}");
        let ids: BTreeSet<u64> = message.alerts.iter().map(|alert| alert.id).collect();
        let part = ids.iter().find_map(|id| parts.get(id).copied()).unwrap_or_else(|| {
            owners.push(BTreeSet::new());
            owners.len() - 1
        });
        for id in &ids {
            assert_eq!(*parts.entry(*id).or_insert(part), part, "alert {id} is in two parts");
        }
        owners[part].extend(ids);
    }
    assert_eq!(parts.len(), 1000);
    assert!(owners.iter().all(|ids| ids.len() <= 100));
    let told = |name: &str| -> usize {
        messages.iter().filter(|message| message.channel == channel(name)).map(|m| m.alerts.len()).sum()
    };
    assert_eq!((told("slack"), told("ding")), (1000, 666));
}

#[test]
fn a_message_sorts_after_those_before_it_wherever_the_clock_goes() {
    let mut watch = Watch::new();
    let bad = [observed("pg", "rpo-breached")];
    let failing = watch.see_for(2, &bad);
    watch.now -= SignedDuration::from_hours(24 * 400);
    let recovered = watch.see(&[]);
    let kinds = |messages: &[Message]| messages.iter().map(|message| message.kind).collect::<BTreeSet<_>>();
    assert_eq!(
        (kinds(&failing), kinds(&recovered)),
        (BTreeSet::from([Failing]), BTreeSet::from([Recovered]))
    );
    let last = failing.iter().map(|message| &message.id).max();
    assert!(last < recovered.iter().map(|message| &message.id).min(), "{failing:?} {recovered:?}");
    // What waits since an earlier version is older, too.
    assert!("019ff0000000-00000042" < failing[0].id.as_str());
}

#[test]
fn what_others_have_to_say_of_an_error_is_cut() {
    let mut watch = Watch::new();
    let mut bad = observed("pg", "source-down");
    bad.text.why = Some(Words::same("ü".repeat(1 << 20)));
    bad.text.next = vec!["x".repeat(1 << 20); 1000];
    watch.see(&[bad.clone()]);
    let said = |watch: &Watch| {
        let text = &watch.only().text;
        let why = text.why.clone().unwrap().zh;
        (why.len(), why.ends_with("ü…"), text.next.len(), text.next[0].len())
    };
    assert_eq!(said(&watch), (2047, true, 8, 2048));
    watch.see(&[bad]);
    assert_eq!(said(&watch), (2047, true, 8, 2048), "when it is seen again, too");
}

#[test]
fn a_rule_may_name_its_own_channels() {
    let mut watch = Watch::new();
    let own = [Observation { to: vec![channel("mail")], ..observed("pg", "disk") }];
    assert_eq!(told(&watch.see_for(2, &own)), [("mail", Failing, 1)]);
    assert_eq!(told(&watch.see(&[])), [("mail", Recovered, 1)]);
}

#[test]
fn a_channel_that_does_not_deliver_is_spoken_of_on_the_others() {
    let mut watch = Watch::new();
    let key =
        AlertKey { object: object(ObjectKind::Channel, "ding"), reason: "notifications-failing".to_owned() };
    let bad = [Observation { key, ..observed("unused", "unused") }];
    assert_eq!(told(&watch.see_for(2, &bad)), [("slack", Failing, 1)]);
    assert_eq!(told(&watch.see(&[])), [("slack", Recovered, 1)]);
}
