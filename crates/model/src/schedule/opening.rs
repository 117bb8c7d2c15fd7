//! The hours and days in which runs may begin.

use jiff::civil::Date;
use jiff::{Timestamp, ToSpan};

use crate::policy::{DateRange, TimeWindow, Zone};

/// How many days without an opening are searched: more than the longest range of blackout days.
const DAYS_MAX: usize = 2 * 366;

/// A window and blackout days, in a time zone.
#[derive(Debug, Clone)]
pub struct Opening {
    zone: Zone,
    window: Option<TimeWindow>,
    blackout: Vec<DateRange>,
}

impl Opening {
    /// Of a window, if any, and blackout days.
    pub fn new(zone: Zone, window: Option<TimeWindow>, blackout: Vec<DateRange>) -> Self {
        Self { zone, window, blackout }
    }

    /// Whether a run may begin.
    pub fn is_open(&self, at: Timestamp) -> bool {
        if self.window.is_none() && self.blackout.is_empty() {
            return true;
        }
        let local = self.zone.time_zone().to_datetime(at);
        self.window.is_none_or(|window| window.contains(local.time())) && !self.is_blackout(local.date())
    }

    fn is_blackout(&self, day: Date) -> bool {
        self.blackout.iter().any(|range| range.contains(day))
    }

    /// The first whole second from `at` on at which a run may begin; none within two years.
    pub fn next_open(&self, at: Timestamp) -> Option<Timestamp> {
        if self.is_open(at) {
            return Some(at);
        }
        let zone = self.zone.time_zone();
        let mut day = zone.to_datetime(at).date();
        for _ in 0..DAYS_MAX {
            if !self.is_blackout(day) {
                // It may open at midnight, with the window, and whenever the clock is changed.
                let mut candidates = Vec::with_capacity(4);
                let midnight = zone.to_ambiguous_timestamp(day.at(0, 0, 0, 0));
                candidates.extend(midnight.compatible().ok());
                if let Some(window) = self.window {
                    let opens = zone.to_ambiguous_timestamp(day.to_datetime(window.from));
                    candidates.extend(opens.earlier().ok());
                    candidates.extend(opens.later().ok());
                }
                let noon = zone.to_ambiguous_timestamp(day.at(12, 0, 0, 0)).compatible().ok()?;
                let changes = [zone.preceding(noon).next(), zone.following(noon).next()];
                candidates.extend(changes.into_iter().flatten().map(|change| change.timestamp()));
                let opens = candidates
                    .into_iter()
                    .filter(|&candidate| candidate > at && self.is_open(candidate))
                    .min();
                // A change of the clock may lie on a later day.
                if let Some(opens) = opens.filter(|opens| zone.to_datetime(*opens).date() == day) {
                    return Some(opens);
                }
            }
            day = day.checked_add(1.day()).ok()?;
        }
        None
    }
}
