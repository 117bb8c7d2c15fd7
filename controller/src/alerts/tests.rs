use holdfast_model::alert::{AlertKey, AlertText, Object, ObjectKind, Observation, Seen, Severity, Words};
use holdfast_runtime::ManualClock;
use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::notify::outbox::Waiting;
use crate::{Controller, ControllerConfig};

fn observed(number: usize, why: &str) -> Observation {
    Observation {
        key: AlertKey {
            object: Object::new(ObjectKind::Source, format!("s{number}")),
            reason: "source-down".to_owned(),
        },
        severity: Severity::Critical,
        hold: SignedDuration::ZERO,
        since: None,
        text: AlertText { why: Some(Words::same(why)), ..AlertText::default() },
        labels: BTreeMap::new(),
        needs: Vec::new(),
        is_down: false,
        to: Vec::new(),
    }
}

#[tokio::test]
async fn however_much_is_wrong_at_once_it_is_stored_and_each_alert_with_what_tells_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let now: Timestamp = "2026-06-01T12:00:00Z".parse().unwrap();
    let clock = ManualClock::at(now);
    let controller =
        Controller::assemble(&ControllerConfig::new(folder.path()), &clock.shared()).await.unwrap();
    let core = &controller.core;
    let route = Route::to_all(["mail", "slack"].map(|name| name.parse().unwrap()).into());
    let config = Config { routes: vec![route], silences: Vec::new() };
    let why = "no route to host ".repeat(1 << 16);
    let seen = Seen { failing: (0..3000).map(|number| observed(number, &why)).collect(), ..Seen::default() };
    let mut inner = core.alerts.inner.lock().await;
    let before = core.records.store().sequence();
    let mut told = 0;
    for minute in 0..2 {
        let at = now + SignedDuration::from_mins(minute);
        let (book, messages) = step(inner.book.clone(), &seen, at, &config);
        told += messages.len();
        store(core, &mut inner, book.clone(), messages).await.unwrap();
        assert_eq!(inner.book, book);
    }
    assert!(told >= 60, "{told}");
    let commits = core.records.store().sequence() - before;
    assert!(commits > 4, "{commits}");

    let loaded = Alerts::load(core.records.clone()).await.unwrap().book().await;
    assert_eq!(loaded, inner.book);
    let head = core.records.get::<Head>(Kind::Alert, "head").await.unwrap().unwrap().version;
    let alerts = core.records.all::<Alert>(Kind::Alert, "alert/").await.unwrap();
    let versions: BTreeMap<u64, u64> = alerts.iter().map(|found| (found.value.id, found.version)).collect();
    let waiting = core.records.all::<Waiting>(Kind::Outbox, "").await.unwrap();
    assert_eq!(waiting.len(), told);
    for found in waiting {
        for alert in &found.value.message.alerts {
            assert_eq!(versions[&alert.id], found.version, "alert {}", alert.id);
        }
        assert!(found.version >= head, "the counters are stored first");
    }
    drop(inner);
    controller.close().await.unwrap();
}

#[test]
fn messages_that_have_an_alert_in_common_are_together() {
    let mut watched = Book::default();
    let seen = Seen { failing: (0..3).map(|number| observed(number, "x")).collect(), ..Seen::default() };
    let route = Route::to_all(vec!["mail".parse().unwrap()]);
    let config = Config { routes: vec![route], silences: Vec::new() };
    let mut now: Timestamp = "2026-06-01T12:00:00Z".parse().unwrap();
    let mut messages = Vec::new();
    while messages.is_empty() {
        (watched, messages) = step(watched, &seen, now, &config);
        now += SignedDuration::from_mins(1);
    }
    let of = |id: &str, alerts: &[usize]| Message {
        id: id.to_owned(),
        alerts: alerts.iter().map(|number| messages[0].alerts[*number].clone()).collect(),
        ..messages[0].clone()
    };
    let units = |messages: Vec<Message>| -> Vec<Vec<String>> {
        let ids = |unit: Vec<Message>| unit.into_iter().map(|message| message.id).collect();
        together(messages).into_iter().map(ids).collect()
    };
    let apart = vec![of("a", &[0]), of("b", &[1, 2]), of("c", &[0])];
    assert_eq!(units(apart), [vec!["a", "c"], vec!["b"]]);
    let joined = vec![of("a", &[0]), of("b", &[1]), of("c", &[2]), of("d", &[1, 0]), of("e", &[1])];
    assert_eq!(units(joined), [vec!["a", "b", "d", "e"], vec!["c"]]);
}
