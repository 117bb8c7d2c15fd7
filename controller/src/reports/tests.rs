use holdfast_model::fleet::FleetFile;
use holdfast_model::report::fleet::Problem;
use holdfast_runtime::{Clock as _, ManualClock};

use super::*;
use crate::fleet_changes::{self, Authorship, Confirmed};
use crate::notify::outbox::Waiting;
use crate::{Assembled, Controller, ControllerConfig};

/// A controller at this moment, with a report each morning at eight.
async fn controller(folder: &std::path::Path, clock: &ManualClock) -> Assembled {
    let controller = Controller::assemble(&ControllerConfig::new(folder), &clock.shared()).await.unwrap();
    let text = "api: holdfast/v1
notifications:
  channels:
    a: { type: log }
    b: { type: log }
reports:
  morning: { report: daily, cron: \"0 8 * * *\", to: [a, b] }
";
    let core = &controller.core;
    let files = [FleetFile { name: "fleet.yaml".to_owned(), text: text.to_owned() }];
    let authorship = Authorship { owner: None, prune: false, take_over: false };
    let plan = fleet_changes::plan(&core.definitions.current(), &files, &authorship).unwrap();
    let confirmed = Confirmed::default();
    fleet_changes::apply(core, "test", &plan, &authorship, &confirmed, |batch, _| batch).await.unwrap();
    controller
}

async fn waiting(core: &Core) -> Vec<Message> {
    let all = core.records.all::<Waiting>(Kind::Outbox, "").await.unwrap();
    all.into_iter().map(|found| found.value.message).collect()
}

fn clock() -> ManualClock {
    ManualClock::at("2026-06-01T07:00:00Z".parse().unwrap())
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_report_that_is_too_long_is_sent_without_its_lists_and_once() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), clock());
    let controller = controller(folder.path(), &clock).await;
    let core = &controller.core;
    send_due(core).await.unwrap();
    clock.advance(HOUR);

    let name: ReportName = "morning".parse().unwrap();
    let schedule = core.definitions.current().fleet.reports[&name].clone();
    let slots = Slots { rule: schedule.rule(), after: clock.now() };
    let asked =
        Asked { kind: ReportKind::Daily, hours: 0, source: None, zone: Zone::default(), until: clock.now() };
    let Report::Daily(mut report) = make(core, &asked).await.unwrap() else { panic!("another report") };
    let problem = Problem {
        object_kind: "source".to_owned(),
        object: "pg".to_owned(),
        problem: "x".repeat(5 << 20),
        next: None,
    };
    report.problems = vec![problem];
    let version = core.records.get::<Slots>(Kind::Report, "slot/morning").await.unwrap().unwrap().version;
    let whole = Report::Daily(report);
    hand_over(core, &name, &schedule, &slots, whole.clone(), version).await.unwrap();
    let sent = waiting(core).await;
    assert_eq!(sent.len(), 2);
    for message in sent {
        assert_eq!(message.report, Some(whole.clone().without_lists()));
    }
    send_due(core).await.unwrap();
    assert_eq!(waiting(core).await.len(), 2, "its moment is over");
    controller.close().await.unwrap();
}

#[tokio::test]
async fn a_clock_that_was_wrong_for_a_while_stops_no_report() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), clock());
    let controller = controller(folder.path(), &clock).await;
    let core = &controller.core;
    send_due(core).await.unwrap();
    let days = |core: &Arc<Core>| {
        let core = core.clone();
        async move {
            let until = |message: &Message| {
                let until = message.report.as_ref().unwrap().period().until;
                until.to_string()
            };
            waiting(&core).await.iter().map(until).collect::<BTreeSet<String>>()
        }
    };
    let wall = clock.now();
    clock.jump_wall_to(wall + SignedDuration::from_hours(24 * 400));
    send_due(core).await.unwrap();
    assert_eq!(days(core).await.len(), 1);
    // The clock is right again: the next morning is not skipped.
    clock.jump_wall_to(wall);
    send_due(core).await.unwrap();
    assert_eq!(days(core).await.len(), 1);
    clock.advance(HOUR);
    send_due(core).await.unwrap();
    assert!(days(core).await.contains("2026-06-01T08:00:00Z"), "{:?}", days(core).await);

    // A few minutes back, as a time server does it: what was sent is not sent again.
    let sent = core.records.store().sequence();
    clock.jump_wall_to(clock.now() - SignedDuration::from_mins(5));
    for _ in 0..10 {
        send_due(core).await.unwrap();
        clock.advance(Duration::from_secs(60));
    }
    assert_eq!(core.records.store().sequence(), sent);
    controller.close().await.unwrap();
}
