//! The longest time between two runs that a schedule allows when nothing fails.

use jiff::civil::date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::Timetable;
use crate::policy::{Rule, When};
use crate::run::SnapshotType;
use crate::units::Span;

/// How many slots are looked at in each week; schedules that are denser repeat themselves sooner.
const SLOTS_PER_WEEK: usize = 400;
const WEEK: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Both changes of the clock, and every date but one.
const WEEKS: i32 = 54;
/// A date that comes once in four years, twice.
const WEEKS_MAX: i32 = 9 * 53;

/// The longest time between the beginnings of two runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// This long, jitter included.
    Longest(Span),
    /// Nothing in the schedule goes by the clock.
    NoClock,
    /// There are slots, but none can ever begin: all lie outside the window for too long.
    Never,
}

impl Timetable {
    /// The longest gap between runs of one type, or of all types together.
    pub fn longest_gap(&self, only: Option<SnapshotType>) -> Gap {
        let rules: Vec<&When> = self
            .schedule
            .by_type()
            .filter(|(snapshot_type, _)| only.is_none_or(|only| only == *snapshot_type))
            .map(|(_, when)| when)
            .filter(|when| !matches!(when.rule, Rule::After(_)))
            .collect();
        if rules.is_empty() {
            return Gap::NoClock;
        }
        let jitter = rules.iter().filter_map(|when| when.jitter).max();
        // Any year does for the rules; blackout days are of their own years.
        let year = date(2026, 1, 1).to_zoned(TimeZone::UTC).map(|at| at.timestamp()).unwrap_or_default();
        let mut longest = self.longest_from(&rules, year, WEEKS);
        for range in &self.schedule.blackout {
            let Ok(first) = range.first.to_zoned(TimeZone::UTC) else { continue };
            let days = range.first.duration_until(range.last).as_hours() / 24;
            let weeks = i32::try_from(days / 7).unwrap_or(WEEKS) + 4;
            longest = longest.max(self.longest_from(&rules, first.timestamp() - 2 * WEEK, weeks));
        }
        match longest {
            Some(gap) => Gap::Longest(Span::from_secs(
                // A jitter of one slot but not of the one before makes the gap longer.
                gap.as_secs() + jitter.map_or(0, |jitter| jitter.secs().min(gap.as_secs())),
            )),
            None => Gap::Never,
        }
    }

    fn longest_from(&self, rules: &[&When], from: Timestamp, weeks: i32) -> Option<SignedDuration> {
        let mut longest = None;
        let mut last: Option<Timestamp> = None;
        let mut opens: Option<Timestamp> = None;
        for week in 0..WEEKS_MAX {
            let end = from + WEEK * (week + 1);
            let mut at = from + WEEK * week;
            for seen in 0..=SLOTS_PER_WEEK {
                if seen == SLOTS_PER_WEEK {
                    // The rest of the week is as dense; what comes next follows its last slot.
                    let newest = rules.iter().filter_map(|when| self.newest_moment(when, end)).max();
                    last = newest.filter(|newest| self.opening.is_open(*newest));
                    break;
                }
                let next = rules.iter().filter_map(|when| self.next_moment(when, at)).min();
                let Some(slot) = next.filter(|slot| *slot <= end) else { break };
                at = slot;
                // Slots of the same closed hours have the same opening.
                if opens.is_none_or(|opens| opens < slot) {
                    opens = self.opening.next_open(slot);
                }
                let catch_up = self.schedule.catch_up.duration();
                let Some(begins) = opens.filter(|opens| opens.duration_since(slot) <= catch_up) else {
                    continue;
                };
                if let Some(last) = last {
                    longest = longest.max(Some(begins.duration_since(last)));
                }
                last = Some(begins);
                if week >= weeks && longest.is_some() {
                    // The first after the end: a pause may have begun before it.
                    return longest;
                }
            }
        }
        longest
    }

    fn newest_moment(&self, when: &When, at: Timestamp) -> Option<Timestamp> {
        match &when.rule {
            Rule::Cron(cron) => cron.newest(at, self.schedule.zone_of(when)),
            Rule::Every(every) => super::Moments::Every(every.secs()).newest(at),
            Rule::After(_) => None,
        }
    }

    fn next_moment(&self, when: &When, after: Timestamp) -> Option<Timestamp> {
        match &when.rule {
            Rule::Cron(cron) => cron.next(after, self.schedule.zone_of(when)),
            Rule::Every(every) => super::Moments::Every(every.secs()).next(after),
            Rule::After(_) => None,
        }
    }
}
