//! Random histories of conditions, restarts, jumps of the clock, silences and acknowledgements.

use super::*;

const HISTORIES: u64 = 3_000;
const STEPS: u64 = 80;

/// What one channel was told of one alert.
#[derive(Default)]
struct Heard {
    failures: u32,
    recoveries: u32,
    last: Option<MessageKind>,
}

fn random_observation(numbers: &mut Numbers, name: &str) -> Observation {
    if name == "agent" {
        return agent_down();
    }
    let severities = [Severity::Info, Severity::Warning, Severity::Critical];
    Observation {
        severity: severities[numbers.below(3) as usize],
        hold: MINUTE * numbers.below(4) as i32,
        ..observed(name, "rpo-breached")
    }
}

fn disturb(watch: &mut Watch, numbers: &mut Numbers) {
    if numbers.one_in(6) {
        // A restart: all that goes on is what was stored.
        let stored = serde_json::to_string(&watch.book).unwrap();
        let read: Book = serde_json::from_str(&stored).unwrap();
        assert_eq!(read, watch.book);
        watch.book = read;
    }
    if numbers.one_in(10) {
        watch.now += numbers.secs(-90_000, 90_000);
    }
    if numbers.one_in(10) {
        let until = watch.now + numbers.secs(1, 4000);
        let matches = Match { source: numbers.one_in(2).then(|| "a".to_owned()), ..Match::default() };
        watch.book.silence(Silence { matches, until, reason: "r".to_owned(), by: String::new() });
    }
    let first = watch.book.active().next().map(|alert| alert.id);
    if numbers.one_in(8)
        && let Some(id) = first
    {
        let ack = Ack { by: "x".to_owned(), at: watch.now, reason: String::new() };
        assert!(watch.book.acknowledge(id, ack).is_some());
    }
}

fn hear(heard: &mut BTreeMap<(ChannelName, u64), Heard>, messages: &[Message]) {
    for message in messages {
        for alert in &message.alerts {
            let heard = heard.entry((message.channel.clone(), alert.id)).or_default();
            assert_ne!(heard.last, Some(Recovered), "{} is over: {message:?}", alert.id);
            match message.kind {
                Failing => heard.failures += 1,
                Recovered => heard.recoveries += 1,
                Escalated if heard.last.is_none() => heard.failures += 1,
                _ => assert!(heard.last.is_some(), "not the first word: {message:?}"),
            }
            heard.last = Some(message.kind);
        }
    }
}

#[test]
fn every_failure_that_is_told_is_told_once_and_so_is_its_end() {
    let (mut failures, mut ids) = (0, BTreeSet::new());
    for seed in 0..HISTORIES {
        let mut numbers = Numbers::new(seed);
        let mut watch = Watch::new();
        let mut heard = BTreeMap::new();
        let mut holds = BTreeSet::new();
        ids.clear();
        for _ in 0..STEPS {
            for name in ["a", "b", "agent"] {
                if numbers.one_in(9) && !holds.remove(name) {
                    holds.insert(name);
                }
            }
            let failing: Vec<Observation> =
                holds.iter().map(|name| random_observation(&mut numbers, name)).collect();
            let messages = watch.see(&failing);
            let new = messages.iter().all(|message| ids.insert(message.id.clone()));
            assert!(new, "an id is used twice in history {seed}");
            hear(&mut heard, &messages);
            disturb(&mut watch, &mut numbers);
        }
        hear(&mut heard, &watch.see(&[]));
        for ((channel, id), heard) in &heard {
            let told = (heard.failures, heard.recoveries);
            assert_eq!(told, (1, 1), "{channel} of alert {id} in history {seed}");
        }
        failures += heard.len();
        assert_eq!(watch.book.active().count(), 0);
        assert_eq!(watch.see_for(3, &[]), []);
    }
    assert!(failures > 1000, "only {failures} failures were told at all");
}

#[test]
fn the_same_observations_give_the_same_messages() {
    let run = || {
        let mut numbers = Numbers::new(7);
        let mut watch = Watch::new();
        (0..200)
            .flat_map(|_| {
                let failing = [random_observation(&mut numbers, "a"), random_observation(&mut numbers, "b")];
                watch.see(&failing[..numbers.below(3) as usize])
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}
