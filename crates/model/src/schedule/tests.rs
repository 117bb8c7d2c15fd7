use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::policy::{Cron, Zone};
use crate::units::Span;

mod simulated_year;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A schedule as it is written in the fleet files.
pub(super) fn schedule(yaml: &str) -> Schedule {
    crate::fleet::read_yaml("schedule.yaml", yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"))
}

fn source() -> SourceName {
    SourceName::new("carts").unwrap()
}

/// One source under a schedule, asked at times of the test's choice.
struct Asked {
    table: Timetable,
    source: SourceName,
    history: SlotHistory,
    successes: Successes,
    hold: Option<Hold>,
}

impl Asked {
    fn new(yaml: &str, since: &str) -> Self {
        Self {
            table: Timetable::new(schedule(yaml)),
            source: source(),
            history: SlotHistory::since(at(since)),
            successes: Successes::default(),
            hold: None,
        }
    }

    fn due(&mut self, now: &str) -> Due {
        let state = SourceState {
            source: &self.source,
            history: &self.history,
            successes: &self.successes,
            hold: self.hold,
        };
        let due = self.table.due(state, at(now));
        self.table.settle(&mut self.history, &due);
        due
    }

    fn run(&mut self, now: &str) -> Option<(SnapshotType, String)> {
        self.due(now).run.map(|slot| (slot.snapshot_type, slot.at.to_string()))
    }
}

fn full(at: &str) -> Option<(SnapshotType, String)> {
    Some((SnapshotType::Full, at.to_owned()))
}

#[test]
fn a_slot_runs_once_and_the_next_is_awaited() {
    let mut asked =
        Asked::new("full: { cron: \"0 2 * * *\", timezone: Europe/Berlin }", "2026-06-01T00:00:00Z");
    // 02:00 in Berlin is midnight UTC in summer; the policy came at that moment, so its first slot is tomorrow's.
    let due = asked.due("2026-06-01T00:00:00Z");
    assert_eq!((due.run, due.wake), (None, Some(at("2026-06-02T00:00:00Z"))));
    assert_eq!(asked.run("2026-06-02T00:00:03Z"), full("2026-06-02T00:00:00Z"));
    let due = asked.due("2026-06-02T00:00:04Z");
    assert_eq!((due.run, due.wake), (None, Some(at("2026-06-03T00:00:00Z"))));
}

#[test]
fn intervals_are_counted_from_the_epoch() {
    let mut asked = Asked::new("full: { every: 6h }", "2026-06-01T01:23:45Z");
    assert_eq!(asked.due("2026-06-01T01:23:45Z").wake, Some(at("2026-06-01T06:00:00Z")));
    assert_eq!(asked.run("2026-06-01T06:00:00Z"), full("2026-06-01T06:00:00Z"));
    assert_eq!(asked.run("2026-06-01T11:59:59Z"), None);
}

#[test]
fn of_what_was_missed_only_the_newest_is_made_up_for_and_the_rest_is_said_once() {
    let mut asked = Asked::new("full: { every: 1h }\ncatch_up: 6h", "2026-06-01T00:00:00Z");
    let due = asked.due("2026-06-01T09:30:00Z");
    assert_eq!(due.run.unwrap().at, at("2026-06-01T09:00:00Z"));
    assert_eq!(
        due.skipped,
        [Skipped {
            snapshot_type: SnapshotType::Full,
            first: at("2026-06-01T01:00:00Z"),
            last: at("2026-06-01T08:00:00Z"),
            reason: SkipReason::Superseded { by: at("2026-06-01T09:00:00Z") },
        }]
    );
    assert_eq!(asked.due("2026-06-01T09:31:00Z").skipped, []);
}

#[test]
fn what_is_too_late_to_catch_up_is_skipped_and_said_once() {
    let mut asked = Asked::new("full: { cron: \"0 2 * * *\" }\ncatch_up: 6h", "2026-06-01T00:00:00Z");
    let due = asked.due("2026-06-03T08:00:01Z");
    assert_eq!(due.run, None);
    assert_eq!(due.wake, Some(at("2026-06-04T02:00:00Z")));
    assert_eq!(
        due.skipped,
        [Skipped {
            snapshot_type: SnapshotType::Full,
            first: at("2026-06-01T02:00:00Z"),
            last: at("2026-06-03T02:00:00Z"),
            reason: SkipReason::TooLate,
        }]
    );
    assert_eq!(asked.due("2026-06-03T08:00:02Z").skipped, []);
    // The limit itself is still in time.
    assert_eq!(asked.run("2026-06-04T08:00:00Z"), full("2026-06-04T02:00:00Z"));
}

#[test]
fn a_window_over_midnight_is_waited_for_in_its_time_zone() {
    let mut asked = Asked::new(
        "full: { every: 1h }\nwindow: \"22:00-06:00\"\ntimezone: Europe/Berlin\ncatch_up: 3h",
        "2026-06-01T00:00:00Z",
    );
    // 06:00 in Berlin is 04:00 UTC: the window is over.
    assert_eq!(asked.run("2026-06-01T03:59:59Z"), full("2026-06-01T03:00:00Z"));
    let due = asked.due("2026-06-01T04:00:00Z");
    assert_eq!((due.run, due.wake), (None, Some(at("2026-06-01T20:00:00Z"))));
    let due = asked.due("2026-06-01T20:00:00Z");
    assert_eq!(due.run.unwrap().at, at("2026-06-01T20:00:00Z"));
    assert_eq!(due.skipped[0].first, at("2026-06-01T04:00:00Z"));

    let mut asked = Asked::new(
        "full: { cron: \"0 12 * * *\" }\nwindow: \"22:00-06:00\"\ncatch_up: 3h",
        "2026-06-01T00:00:00Z",
    );
    assert_eq!(asked.due("2026-06-01T22:00:00Z").skipped[0].reason, SkipReason::Closed);
}

#[test]
fn no_run_begins_on_a_blackout_day() {
    let yaml =
        "full: { every: 6h }\nblackout: [\"2026-12-24..2026-12-26\"]\ntimezone: Asia/Shanghai\ncatch_up: 8h";
    let mut asked = Asked::new(yaml, "2026-12-23T00:00:00Z");
    assert_eq!(asked.run("2026-12-23T15:59:59Z"), full("2026-12-23T12:00:00Z"));
    let due = asked.due("2026-12-23T18:00:00Z");
    assert_eq!((due.run, due.wake), (None, Some(at("2026-12-26T16:00:00Z"))));
    assert_eq!(asked.run("2026-12-26T15:59:59Z"), None);
    assert_eq!(asked.run("2026-12-26T16:00:00Z"), full("2026-12-26T12:00:00Z"));
}

#[test]
fn blackout_days_without_an_end_in_sight_do_not_put_a_source_to_sleep_for_ever() {
    let years: Vec<String> = (2026..2031).map(|year| format!("\"{year}-01-01..{year}-12-31\"")).collect();
    let mut asked = Asked::new(
        &format!("full: {{ every: 1h }}\nblackout: [{}]", years.join(", ")),
        "2026-06-01T00:00:00Z",
    );
    assert_eq!(asked.due("2026-06-01T01:00:00Z").wake, Some(at("2026-06-02T01:00:00Z")));
}

#[test]
fn a_window_opens_when_the_clock_goes_on_past_its_beginning() {
    let zone: Zone = "Europe/Berlin".parse().unwrap();
    let opening = Opening::new(zone, Some("02:30-05:00".parse().unwrap()), Vec::new());
    // 2026-03-29: 02:00 to 03:00 is left out, so 02:30 never comes and 03:00 is in the window already.
    assert_eq!(opening.next_open(at("2026-03-29T00:10:00Z")), Some(at("2026-03-29T01:00:00Z")));
    // 2026-10-25: 02:00 to 03:00 comes twice; a short window opens twice.
    let zone: Zone = "Europe/Berlin".parse().unwrap();
    let opening = Opening::new(zone, Some("02:00-02:30".parse().unwrap()), Vec::new());
    assert_eq!(opening.next_open(at("2026-10-24T23:00:00Z")), Some(at("2026-10-25T00:00:00Z")));
    assert_eq!(opening.next_open(at("2026-10-25T00:30:00Z")), Some(at("2026-10-25T01:00:00Z")));
}

#[test]
fn when_several_types_are_due_together_the_strongest_runs_and_covers_the_others() {
    let yaml = "full: { every: 1d }\ndifferential: { every: 6h }\nincremental: { every: 1h }";
    let mut asked = Asked::new(yaml, "2026-06-01T12:30:00Z");
    let due = asked.due("2026-06-02T00:00:00Z");
    assert_eq!(due.run.unwrap().snapshot_type, SnapshotType::Full);
    let covered: Vec<_> = due.skipped.iter().map(|skipped| (skipped.snapshot_type, skipped.reason)).collect();
    let by = SkipReason::Covered { by: SnapshotType::Full };
    assert_eq!(covered, [(SnapshotType::Differential, by), (SnapshotType::Incremental, by)]);
    let due = asked.due("2026-06-02T00:00:01Z");
    assert_eq!((due.run, due.wake), (None, Some(at("2026-06-02T01:00:00Z"))));
    assert_eq!(asked.due("2026-06-02T06:00:00Z").run.unwrap().snapshot_type, SnapshotType::Differential);
    assert_eq!(asked.due("2026-06-02T07:00:00Z").run.unwrap().snapshot_type, SnapshotType::Incremental);
}

#[test]
fn a_weaker_slot_waits_for_the_jitter_of_a_stronger_one_of_the_same_moment() {
    for (stronger, weaker) in [("30m", "1s"), ("1s", "30m")] {
        let yaml = format!(
            "full: {{ every: 1d, jitter: {stronger} }}\nincremental: {{ every: 1h, jitter: {weaker} }}"
        );
        let mut asked = Asked::new(&yaml, "2026-06-01T23:30:00Z");
        let mut runs = Vec::new();
        let mut now = at("2026-06-02T00:00:00Z");
        while now < at("2026-06-02T01:00:00Z") {
            runs.extend(asked.run(&now.to_string()).map(|(snapshot_type, _)| snapshot_type));
            now += SECOND;
        }
        assert_eq!(runs, [SnapshotType::Full], "jitter {stronger} and {weaker}");
    }
}

#[test]
fn a_run_follows_another_type_and_another_source() {
    let yaml = "full: { every: 1d }\nsnapshot: { after: full }\nincremental: { after: pg-main }";
    let mut asked = Asked::new(yaml, "2026-06-01T12:00:00Z");
    assert_eq!(asked.due("2026-06-02T00:00:00Z").run.unwrap().snapshot_type, SnapshotType::Full);
    assert_eq!(asked.run("2026-06-02T00:10:00Z"), None);
    asked.successes.by_type.insert(SnapshotType::Full, at("2026-06-02T00:20:00Z"));
    let follows = Some((SnapshotType::Snapshot, "2026-06-02T00:20:00Z".to_owned()));
    assert_eq!(asked.run("2026-06-02T00:20:01Z"), follows);
    assert_eq!(asked.run("2026-06-02T00:20:02Z"), None);
    asked.successes.by_source.insert("pg-main".parse().unwrap(), at("2026-06-02T03:00:00Z"));
    let follows = Some((SnapshotType::Incremental, "2026-06-02T03:00:00Z".to_owned()));
    assert_eq!(asked.run("2026-06-02T03:00:00Z"), follows);
    assert_eq!(asked.run("2026-06-02T03:00:01Z"), None);
}

#[test]
fn a_paused_or_busy_source_begins_nothing_and_makes_up_for_the_newest_afterwards() {
    let mut asked = Asked::new("full: { every: 1h }", "2026-06-01T00:00:00Z");
    asked.hold = Some(Hold::Paused { until: Some(at("2026-06-01T04:30:00Z")) });
    let due = asked.due("2026-06-01T02:00:00Z");
    assert_eq!((due.run, due.wake), (None, Some(at("2026-06-01T04:30:00Z"))));
    assert_eq!(asked.run("2026-06-01T04:30:00Z"), full("2026-06-01T04:00:00Z"));
    asked.hold = Some(Hold::Paused { until: None });
    assert_eq!(asked.due("2026-06-01T05:00:00Z"), Due::default());
    asked.hold = Some(Hold::Busy);
    assert_eq!(asked.due("2026-06-01T06:00:00Z"), Due::default());
    asked.hold = None;
    assert_eq!(asked.run("2026-06-01T06:10:00Z"), full("2026-06-01T06:00:00Z"));
}

#[test]
fn jitter_is_stable_spreads_the_sources_and_never_reaches_the_next_slot() {
    let table = Timetable::new(schedule("full: { every: 1h, jitter: 10m }"));
    let history = SlotHistory::since(at("2026-06-01T00:00:00Z"));
    let successes = Successes::default();
    let begins = |name: &str| {
        let source = SourceName::new(name).unwrap();
        let state = SourceState { source: &source, history: &history, successes: &successes, hold: None };
        table.due(state, at("2026-06-01T00:30:00Z")).wake.unwrap()
    };
    let all: BTreeSet<Timestamp> = (0..600).map(|number| begins(&format!("source-{number}"))).collect();
    assert!(all.len() > 300, "600 sources begin at {} different seconds", all.len());
    assert!(
        *all.first().unwrap() < at("2026-06-01T01:01:00Z")
            && *all.last().unwrap() > at("2026-06-01T01:09:00Z")
    );
    assert!(*all.last().unwrap() <= at("2026-06-01T01:10:00Z"));
    // These are part of the contract: a changed hash would move every run of a fleet at an upgrade.
    assert_eq!(begins("carts"), begins("carts"));
    assert_eq!(begins("carts"), at("2026-06-01T01:01:21Z"));

    let table = Timetable::new(schedule("full: { every: 5m, jitter: 2h }"));
    let upcoming = table.upcoming(&source(), &history, at("2026-06-01T00:00:00Z"), 100);
    assert_eq!(upcoming.len(), 100);
    for (index, (begins, slot)) in upcoming.iter().enumerate() {
        let nominal = at("2026-06-01T00:05:00Z") + SignedDuration::from_mins(5) * index as i32;
        assert_eq!(slot.at, nominal);
        assert!(*begins >= nominal && *begins < nominal + SignedDuration::from_mins(5));
    }
}

#[test]
fn a_clock_that_was_ahead_neither_doubles_a_run_nor_leaves_one_out() {
    let mut asked = Asked::new("full: { every: 1d }\ncatch_up: 6h", "2026-06-01T12:00:00Z");
    assert_eq!(asked.run("2026-06-02T00:00:00Z"), full("2026-06-02T00:00:00Z"));
    // Three days ahead for a moment.
    assert_eq!(asked.run("2026-06-05T00:10:00Z"), full("2026-06-05T00:00:00Z"));
    assert_eq!(asked.run("2026-06-02T00:20:00Z"), None);
    let due = asked.due("2026-06-02T00:20:00Z");
    assert_eq!(due.wake, Some(at("2026-06-03T00:00:00Z")));
    for day in ["2026-06-03T00:00:00Z", "2026-06-04T00:00:00Z"] {
        assert_eq!(asked.run(day), full(day));
        assert_eq!(asked.run(day), None);
    }
    assert_eq!(asked.due("2026-06-04T00:00:01Z").wake, Some(at("2026-06-06T00:00:00Z")));
    assert_eq!(asked.run("2026-06-05T00:10:00Z"), None, "this slot had its run while the clock was ahead");
    assert_eq!(asked.run("2026-06-06T00:00:00Z"), full("2026-06-06T00:00:00Z"));
}

#[test]
fn a_clock_that_goes_back_runs_nothing_twice() {
    let mut asked = Asked::new("full: { every: 1h }", "2026-06-01T00:00:00Z");
    for hour in 1..=5 {
        assert!(asked.run(&format!("2026-06-01T0{hour}:00:00Z")).is_some());
    }
    for hour in 1..=5 {
        assert_eq!(asked.run(&format!("2026-06-01T0{hour}:00:01Z")), None);
    }
    assert!(asked.run("2026-06-01T06:00:00Z").is_some());
}

#[test]
fn the_history_survives_the_store_and_stays_small() {
    let mut asked = Asked::new("full: { every: 1h }\ncatch_up: 30m", "2026-01-01T00:00:00Z");
    let mut now = at("2026-01-01T00:00:00Z");
    for step in 0..5000_i64 {
        now += SignedDuration::from_mins(if step % 7 == 0 { 211 } else { 23 });
        asked.run(&now.to_string());
        let text = serde_json::to_string(&asked.history).unwrap();
        asked.history = serde_json::from_str(&text).unwrap();
        assert!(text.len() < 2000, "{} bytes after {step} steps", text.len());
    }
}

#[test]
fn daylight_saving_leaves_out_no_day_and_doubles_none() {
    let berlin: Zone = "Europe/Berlin".parse().unwrap();
    let daily: Cron = "30 2 * * *".parse().unwrap();
    let spring = daily.next(at("2026-03-28T12:00:00Z"), &berlin).unwrap();
    assert_eq!(spring, at("2026-03-29T01:00:00Z"), "02:30 is left out, so it comes at 03:00");
    let autumn = daily.next(at("2026-10-24T12:00:00Z"), &berlin).unwrap();
    assert_eq!(autumn, at("2026-10-25T00:30:00Z"), "02:30 comes twice and counts once");
    assert_eq!(daily.next(autumn, &berlin), Some(at("2026-10-26T01:30:00Z")));
    let often: Cron = "*/30 * * * *".parse().unwrap();
    assert_eq!(often.next(at("2026-10-25T00:30:00Z"), &berlin), Some(at("2026-10-25T01:00:00Z")));
}

#[test]
fn a_slot_id_reads_as_what_it_is() {
    let slot = SlotId {
        policy: "gold".parse().unwrap(),
        source: source(),
        snapshot_type: SnapshotType::Full,
        at: at("2026-06-01T00:00:00Z"),
    };
    assert_eq!(slot.to_string(), "carts/gold/full/2026-06-01T00:00:00Z");
}

#[test]
fn the_queue_gives_what_is_due_in_its_order_and_nothing_twice() {
    let mut queue = WakeQueue::default();
    let name = |number: u32| SourceName::new(format!("s{number}")).unwrap();
    let noon = at("2026-06-01T12:00:00Z");
    for number in 0..10 {
        queue.set(&name(number), Some(noon + SECOND * (10 - number as i32)));
    }
    queue.set(&name(3), Some(noon + SECOND));
    queue.set(&name(4), None);
    queue.remove(&name(5));
    assert_eq!((queue.len(), queue.next_wake()), (9, Some(noon + SECOND)));
    let taken: Vec<_> = queue.take_due(noon + SECOND * 4, 100).iter().map(ToString::to_string).collect();
    assert_eq!(taken, ["s3", "s9", "s8", "s7", "s6"]);
    assert!(queue.take_due(noon + SECOND * 4, 100).is_empty());
    assert_eq!(queue.take_due(noon + SECOND * 100, 2).len(), 2, "no more than was asked for");
    // A clock that went back makes everything due, also what waited for a word.
    let again: BTreeMap<_, _> =
        queue.take_due(noon - SECOND, 100).into_iter().map(|name| (name, ())).collect();
    assert_eq!(again.len(), 9);
}

#[test]
fn a_pass_over_a_hundred_thousand_sources_costs_what_is_due() {
    let table =
        Timetable::new(schedule("full: { cron: \"0 2 * * SUN\", jitter: 10m }\nincremental: { every: 1h }"));
    let now = at("2026-06-01T00:30:00Z");
    let mut queue = WakeQueue::default();
    let mut histories = BTreeMap::new();
    for number in 0..100_000 {
        let source = SourceName::new(format!("source-{number}")).unwrap();
        // Ten are due in each of three passes.
        let wake = match number % 10_000 {
            pass @ 0..=2 => now + SECOND * pass,
            _ => now + SignedDuration::from_mins(30),
        };
        queue.set(&source, Some(wake));
        histories.insert(source, SlotHistory::since(at("2026-05-31T23:30:00Z")));
    }
    let successes = Successes::default();
    let passes = (0..3).map(|pass| {
        let now = now + SECOND * pass;
        let began = std::time::Instant::now();
        let mut runs = 0;
        for source in queue.take_due(now, 1000) {
            let history = histories.get_mut(&*source).unwrap();
            let state = SourceState { source: &source, history, successes: &successes, hold: None };
            let due = table.due(state, now);
            runs += usize::from(due.run.is_some());
            table.settle(history, &due);
            queue.set(&source, due.wake);
        }
        assert_eq!(runs, 10);
        began.elapsed()
    });
    // One that the machine interrupted says nothing.
    let fastest = passes.min().unwrap();
    assert!(fastest < std::time::Duration::from_millis(50), "a pass took {fastest:?}");
}

#[test]
fn the_longest_gap_is_found() {
    for (yaml, gap) in [
        ("full: { every: 1d }", Gap::Longest(Span::from_days(1))),
        ("full: { cron: \"* * * * *\" }", Gap::Longest(Span::from_mins(1))),
        ("full: { after: pg-main }", Gap::NoClock),
        ("full: { cron: \"0 12 * * *\" }\nwindow: \"13:00-14:00\"\ncatch_up: 30m", Gap::Never),
    ] {
        assert_eq!(Timetable::new(schedule(yaml)).longest_gap(None), gap, "{yaml}");
    }
}
