use holdfast_model::alert::message::Told;
use holdfast_model::alert::{AlertText, MessageKind, Object, ObjectKind, Severity, Words};
use holdfast_runtime::ManualClock;

use super::*;
use crate::{Assembled, Controller, ControllerConfig};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn start() -> Timestamp {
    at("2026-06-01T12:00:00Z")
}

async fn controller(folder: &std::path::Path) -> Assembled {
    Controller::assemble(&ControllerConfig::new(folder), &ManualClock::at(start()).shared()).await.unwrap()
}

fn message(id: &str, why: &str) -> Message {
    let told = Told {
        id: 1,
        object: Object::new(ObjectKind::Source, "pg"),
        reason: "source-down".to_owned(),
        severity: Severity::Critical,
        text: AlertText { why: Some(Words::same(why)), ..AlertText::default() },
        labels: Default::default(),
        since: start(),
        recovered_at: None,
        affected: 0,
    };
    Message {
        id: id.to_owned(),
        channel: "ding".parse().unwrap(),
        kind: MessageKind::Failing,
        at: start(),
        alerts: vec![told; 10],
        report: None,
    }
}

fn ids(waiting: &[Waiting]) -> Vec<&str> {
    waiting.iter().map(|waiting| waiting.message.id.as_str()).collect()
}

#[tokio::test]
async fn what_was_cut_out_of_a_text_is_not_taken_as_delivered() {
    let folder = tempfile::tempdir().unwrap();
    let controller = controller(folder.path()).await;
    let core = &controller.core;
    let name: ChannelName = "ding".parse().unwrap();
    let yaml = "{ type: dingtalk, webhook: { env: X } }";
    let channel: Channel = holdfast_model::fleet::read_yaml("channel", yaml).unwrap();
    // Each takes more than a third of what one text takes.
    let messages: Vec<Message> =
        ["1", "2", "3", "4", "5", "6", "7"].map(|id| message(id, &"x".repeat(600))).into();
    let batch = Batch::new("test", "alert.change", "alerts");
    core.records.commit(core.outbox.add(batch, &messages)).await.unwrap();
    core.outbox.stored(messages);

    let moment = core.clock.monotonic();
    let due = core.outbox.next(&name, &channel, &core.notifier, start(), moment);
    assert_eq!(ids(&due), ["1", "2"]);
    settle(core, &channel, due, Ok("HTTP 200".to_owned())).await.unwrap();
    let history = core.outbox.history(None, 10).await.unwrap();
    let delivered: Vec<&str> = history.iter().rev().map(|delivery| delivery.message.as_str()).collect();
    assert_eq!(delivered, ["1", "2"]);
    let stored: Vec<Waiting> =
        core.records.all::<Waiting>(Kind::Outbox, "").await.unwrap().into_iter().map(|it| it.value).collect();
    assert_eq!(ids(&stored), ["3", "4", "5", "6", "7"]);
    assert_eq!(ids(&core.outbox.next(&name, &channel, &core.notifier, start(), moment)), ["3", "4"]);
    controller.close().await.unwrap();
}

#[test]
fn what_waits_is_tried_however_far_a_clock_was_set_back() {
    let minutes = |minutes: i64| start() + SignedDuration::from_mins(minutes);
    let new = Waiting::new(message("1", "x"));
    assert!(new.is_due(start() - SignedDuration::from_hours(24 * 365)), "nothing was set at all");
    let error = DeliveryError::Unreachable("no connection".to_owned());
    let again = after_failure(&Waiting { attempts: 100, ..new }, &error, start()).unwrap();
    assert!(!again.is_due(start()) && again.is_due(minutes(12)), "{:?}", again.not_before);
    assert!(!again.is_due(start() - SignedDuration::from_secs(1)));
    assert!(again.is_due(start() - SignedDuration::from_hours(3)), "{:?}", again.not_before);
}
