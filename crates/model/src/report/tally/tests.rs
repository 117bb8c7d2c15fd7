use jiff::SignedDuration;

use super::*;
use crate::error_code::Failure;
use crate::ids::{Attempt, RepositoryName};
use crate::run::{RunSpec, SnapshotType};
use crate::run_state::{Intent, RunState};

const DAY: i64 = 86_400;

/// Seconds of a day that begins at 1970-01-02.
fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(DAY + seconds).unwrap()
}

fn period() -> Period {
    Period { from: at(0), until: at(DAY), timezone: "UTC".to_owned() }
}

/// A backup that began and ended at these seconds.
fn run(source: &str, began: i64, ended: Option<i64>, phase: Phase) -> Run {
    let millis = u64::try_from(at(began).as_millisecond()).unwrap();
    Run {
        id: RunId::at(millis, [1; 10]),
        spec: RunSpec::Backup {
            source: SourceName::new(source).unwrap(),
            repository: RepositoryName::new("main").unwrap(),
            snapshot_type: SnapshotType::Full,
            milestone: None,
        },
        agent: None,
        requested_by: "token:t".to_owned(),
        state: RunState { phase, intent: Intent::Finish, attempt: Attempt::FIRST },
        queued_at: at(began),
        assigned_at: None,
        started_at: Some(at(began)),
        ended_at: ended.map(at),
        waiting_for: None,
        snapshot: None,
        restored: None,
        findings: Vec::new(),
        progress: Default::default(),
        traceparent: None,
        retry_of: None,
        slot: None,
    }
}

fn failed(code: ErrorCode, message: &str) -> Phase {
    Phase::Failed(Failure::new(code, message))
}

const DONE: Phase = Phase::Succeeded { warnings: 0 };

#[test]
fn a_run_counts_in_the_period_in_which_it_ended() {
    // Began, ended, and whether it counts as ended, as begun, as under way.
    let table = [
        (-10, Some(-1), [0, 0, 0]),
        (-10, Some(0), [1, 0, 0]),
        (5, Some(10), [1, 1, 0]),
        (5, Some(DAY - 1), [1, 1, 0]),
        (5, Some(DAY), [0, 1, 1]),
        (5, None, [0, 1, 1]),
        (-5, None, [0, 0, 1]),
        (DAY, None, [0, 0, 0]),
        (DAY, Some(DAY + 1), [0, 0, 0]),
    ];
    for (began, ended, expected) in table {
        let mut tally = Tally::new(period(), None);
        tally.add(&run("a", began, ended, if ended.is_some() { DONE } else { Phase::Running }));
        let found = [tally.counts.ended, tally.started, tally.counts.under_way];
        assert_eq!(found, expected, "{began} {ended:?}");
        let source = tally.sources.values().next().cloned().unwrap_or_default().counts;
        assert_eq!([source.ended, source.under_way], [expected[0], expected[2]]);
    }
}

#[test]
fn every_end_is_counted_once_and_apart() {
    let mut tally = Tally::new(period(), None);
    let skipped = Phase::Skipped(Failure::new(ErrorCode::HostBusy, "busy"));
    let phases = [
        DONE,
        DONE,
        Phase::Succeeded { warnings: 2 },
        failed(ErrorCode::ToolFailed, "old"),
        Phase::Cancelled,
        skipped,
    ];
    for phase in phases {
        tally.add(&run("a", 10, Some(20), phase));
    }
    let expected =
        RunCounts { ended: 6, succeeded: 2, partial: 1, failed: 1, cancelled: 1, skipped: 1, under_way: 0 };
    assert_eq!(tally.counts, expected);
    assert_eq!(tally.kinds["backup"].counts, expected);
    // Of what succeeded.
    assert_eq!((tally.kinds["backup"].millis, tally.kinds["backup"].timed), (30_000, 3));
}

#[test]
fn errors_are_counted_by_code_and_the_newest_speaks() {
    let mut tally = Tally::new(period(), None);
    tally.add(&run("a", 10, Some(20), failed(ErrorCode::ToolFailed, "middle")));
    tally.add(&run("b", 30, Some(40), failed(ErrorCode::ToolFailed, "newest")));
    tally.add(&run("a", 1, Some(2), failed(ErrorCode::ToolFailed, "oldest")));
    tally.add(&run("a", 1, Some(2), failed(ErrorCode::SourceUnreachable, "away")));
    let found: Vec<_> =
        tally.errors.values().map(|error| (error.code, error.count, error.message.as_str())).collect();
    assert_eq!(found, [(ErrorCode::SourceUnreachable, 1, "away"), (ErrorCode::ToolFailed, 3, "newest")]);
}

#[test]
fn only_the_source_that_was_asked_for_is_counted() {
    let mut tally = Tally::new(period(), Some(SourceName::new("a").unwrap()));
    tally.add(&run("a", 1, Some(2), DONE));
    tally.add(&run("b", 1, Some(2), DONE));
    assert_eq!(tally.counts.ended, 1);
}

#[test]
fn the_longest_time_without_a_backup_counts_the_ends_of_the_period() {
    let hour = 3600;
    let longest = |ends: &[i64], since: i64| {
        let mut tally = Tally::new(period(), None);
        ends.iter().for_each(|end| tally.add(&run("a", end - 1, Some(*end), DONE)));
        let source = tally.sources.get(&SourceName::new("a").unwrap()).cloned().unwrap_or_default();
        source.longest_without_backup(&tally.period, at(since)) / hour
    };
    // Newest first, as they are read.
    assert_eq!(longest(&[20 * hour, 8 * hour, 4 * hour], -1), 12);
    assert_eq!(longest(&[23 * hour, 22 * hour, 10 * hour, 9 * hour], -1), 12);
    // To two repositories: what goes to the second is asked for with the first, and ends later.
    assert_eq!(longest(&[20 * hour, 8 * hour, 4 * hour, 14 * hour], -1), 6);
    assert_eq!(longest(&[4 * hour], -1), 20);
    assert_eq!(longest(&[20 * hour], -1), 20);
    assert_eq!(longest(&[], -1), 24);
    // Protection began in the period.
    assert_eq!(longest(&[20 * hour], 18 * hour), 4);
    assert_eq!(longest(&[], 18 * hour), 6);
    assert_eq!(longest(&[hour, 16 * hour], 18 * hour), 6);
    // Together within minutes.
    assert_eq!(longest(&[12 * hour, 12 * hour + 1, 12 * hour + 200], -1), 12);
}

#[test]
fn what_is_kept_does_not_grow_with_the_runs() {
    let mut tally = Tally::new(period(), None);
    for number in 0..100_000 {
        let phase = if number % 10 == 0 { failed(ErrorCode::ToolFailed, "no") } else { DONE };
        tally.add(&run(["a", "b"][number % 2], 10, Some(20), phase));
    }
    assert_eq!((tally.counts.ended, tally.counts.failed), (100_000, 10_000));
    assert_eq!((tally.kinds.len(), tally.errors.len(), tally.sources.len()), (1, 1, 2));
}

#[test]
fn days_of_a_report_are_those_of_its_zone() {
    use super::super::ReportKind;
    let zone = "Europe/Berlin".parse().unwrap();
    // The night in which the clocks go forward has 23 hours.
    let until: Timestamp = "2026-03-29T06:00:00Z".parse().unwrap();
    let hours = |kind| {
        let period = Period::ending(kind, 24, until, &zone);
        period.until.duration_since(period.from)
    };
    assert_eq!(hours(ReportKind::Daily), SignedDuration::from_hours(23));
    assert_eq!(hours(ReportKind::Weekly), SignedDuration::from_hours(7 * 24 - 1));
    assert_eq!(hours(ReportKind::Logs), SignedDuration::from_hours(24));
}
