//! A year of a controller that is stopped and started, and whose clock is set back and forth, at random.
//!
//! What is asked of every slot: it yields at most one run; the run begins in time, in the window and on no blackout
//! day; and a slot that the controller could have begun, seen from outside, has been taken.

use std::collections::BTreeSet;

use super::{at, schedule};
use crate::ids::SourceName;
use crate::random_numbers::Numbers;
use crate::run::SnapshotType;
use crate::schedule::{SECOND, Slot, SlotHistory, SourceState, Successes, Timetable};
use jiff::{SignedDuration, Timestamp};

const ZONES: &[&str] =
    &["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Shanghai"];

const SCHEDULES: &[&str] = &[
    "full: { cron: \"30 2 * * *\" }\nincremental: { cron: \"30 * * * *\" }\ncatch_up: 2h",
    "full: { cron: \"0 2 * * SUN\", jitter: 50m }\nincremental: { every: 1h, jitter: 20m }\nwindow: \"22:00-06:00\"\n\
     catch_up: 5h",
    "full: { cron: \"0 0 1 * *\" }\ndifferential: { cron: \"15 1-3 * * *\" }\nsnapshot: { every: 4h }\n\
     blackout: [\"2026-03-28..2026-03-30\", \"2026-10-25\", \"2026-12-24\"]\ncatch_up: 1d",
    "incremental: { cron: \"*/45 2,3 * * MON-FRI\", jitter: 3h }\nwindow: \"02:30-04:10\"\ncatch_up: 10m",
];

struct Year {
    table: Timetable,
    source: SourceName,
    history: SlotHistory,
    taken: BTreeSet<(SnapshotType, Timestamp)>,
    runs: usize,
    /// Stretches of the controller's clock in which it was up all the time.
    up: Vec<(Timestamp, Timestamp)>,
}

impl Year {
    const BEGIN: &str = "2026-01-01T00:00:00Z";

    fn new(yaml: &str) -> Self {
        Self {
            table: Timetable::new(schedule(yaml)),
            source: SourceName::new("carts").unwrap(),
            history: SlotHistory::since(at(Self::BEGIN)),
            taken: BTreeSet::new(),
            runs: 0,
            up: Vec::new(),
        }
    }

    /// One pass at this time of the controller's clock, until nothing more is to be done; says when to come again.
    fn pass(&mut self, clock: Timestamp) -> Option<Timestamp> {
        for _ in 0..10 {
            let successes = Successes::default();
            let state = SourceState {
                source: &self.source,
                history: &self.history,
                successes: &successes,
                hold: None,
            };
            let due = self.table.due(state, clock);
            self.table.settle(&mut self.history, &due);
            let Some(slot) = due.run else {
                assert!(
                    due.wake.is_none_or(|wake| wake > clock),
                    "asks to be woken at once: {due:?} at {clock}"
                );
                return due.wake;
            };
            self.check(slot, clock);
        }
        panic!("runs without end at {clock}");
    }

    fn check(&mut self, slot: Slot, clock: Timestamp) {
        assert!(
            self.taken.insert((slot.snapshot_type, slot.at)),
            "{slot:?} ran twice, the second time at {clock}"
        );
        self.runs += 1;
        let late = clock.duration_since(slot.begins);
        let catch_up = self.table.schedule.catch_up.duration();
        assert!(!late.is_negative() && late <= catch_up, "{slot:?} began at {clock}");
        assert!(self.table.opening().is_open(clock), "{slot:?} began at {clock}, which is closed");
    }

    /// Lives through the year; `seed` decides what goes wrong, and without one nothing does.
    fn live(&mut self, seed: Option<u64>) {
        let mut numbers = Numbers::new(seed.unwrap_or(0));
        let end = at("2027-01-01T00:00:00Z");
        let mut truth = at(Self::BEGIN);
        let mut ahead = SignedDuration::ZERO;
        while truth < end {
            // Up without a break until the next thing goes wrong.
            let up = if seed.is_some() { numbers.secs(60, 4 * 86_400) } else { end.duration_since(truth) };
            let (from, to) = (truth + ahead, truth + ahead + up);
            self.up.push((from, to));
            let mut clock = from;
            while let Some(wake) = self.pass(clock).filter(|wake| *wake <= to) {
                // Woken a little late, as by a busy machine.
                let delay = SignedDuration::from_millis(numbers.below(900) as i64);
                clock = wake + delay.min(to.duration_since(wake));
            }
            truth += up;
            let text = serde_json::to_string(&self.history).unwrap();
            self.history = serde_json::from_str(&text).unwrap();
            match numbers.below(4) {
                0 => truth += numbers.secs(1, 2 * 86_400),
                1 => ahead = numbers.secs(-3 * 86_400, 3 * 86_400),
                2 => ahead = SignedDuration::ZERO,
                _ => ahead += numbers.secs(-2, 3),
            }
        }
    }

    /// Every slot that could have begun has been taken.
    fn nothing_was_lost(&self) {
        let end = at("2027-01-01T00:00:00Z");
        let successes = Successes::default();
        let state =
            SourceState { source: &self.source, history: &self.history, successes: &successes, hold: None };
        for (snapshot_type, when) in self.table.schedule.by_type() {
            let moments = self.table.moments(when, state);
            let begins =
                |slot: Timestamp| slot + self.table.jitter(&self.source, snapshot_type, when, &moments, slot);
            let mut next = moments.next(at(Self::BEGIN));
            while let Some(slot) = next.filter(|slot| *slot < end) {
                next = moments.next(slot);
                let shared = self
                    .table
                    .schedule
                    .by_type()
                    .take_while(|(stronger, _)| *stronger != snapshot_type)
                    .any(|(_, when)| self.table.moments(when, state).newest(slot) == Some(slot));
                if shared || self.history.is_taken(snapshot_type, slot) {
                    continue;
                }
                let first = begins(slot);
                let deadline = first + self.table.schedule.catch_up.duration();
                let last = next.map_or(deadline, |next| deadline.min(begins(next) - SECOND));
                for (from, to) in self.up.iter().filter(|(from, to)| *from <= last && first <= *to) {
                    let could = self.table.opening().next_open(first.max(*from));
                    // A wake-up may be a second late; and a slot whose successor ran while the clock was ahead is over.
                    let could = could.filter(|could| {
                        let over =
                            |next: Timestamp| next <= *could && self.history.is_taken(snapshot_type, next);
                        *could < last.min(*to) - SECOND && !next.is_some_and(over)
                    });
                    assert_eq!(could, None, "{snapshot_type} of {slot} could have begun, and was lost");
                }
            }
        }
    }
}

#[test]
fn a_year_without_faults_runs_each_slot_once() {
    for zone in ZONES {
        for yaml in SCHEDULES {
            let mut year = Year::new(&format!("{yaml}\ntimezone: {zone}"));
            year.live(None);
            year.nothing_was_lost();
            assert!(year.runs > 200, "{} runs of {yaml} in {zone}", year.runs);
        }
    }
    // A daily schedule has a run on each day, also on those with 23 and 25 hours.
    for zone in ZONES {
        let mut year = Year::new(&format!("full: {{ cron: \"30 2 * * *\" }}\ntimezone: {zone}"));
        year.live(None);
        assert_eq!(year.runs, 365, "{zone}");
    }
}

#[test]
fn a_year_of_restarts_and_clock_jumps_doubles_nothing_and_loses_nothing() {
    for (number, zone) in ZONES.iter().enumerate() {
        for (variant, yaml) in SCHEDULES.iter().enumerate() {
            for round in 0..5 {
                let seed = (number * 1000 + variant * 100 + round) as u64;
                println!("seed {seed} in {zone}, schedule {variant}");
                let mut year = Year::new(&format!("{yaml}\ntimezone: {zone}"));
                year.live(Some(seed));
                year.nothing_was_lost();
                assert!(year.runs > 50, "{} runs", year.runs);
            }
        }
    }
}
