//! Hours, days, weeks, months and years in a time zone.

use std::fmt;

use jiff::Timestamp;

use crate::policy::{Keep, Zone};
use crate::units::Count;

/// A period of the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A week from Monday, as in ISO 8601.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

/// One hour, day, … of a time zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    /// With the offset, so that the hour that comes twice is two.
    Hour(i16, i8, i8, i8, i32),
    Day(i16, i8, i8),
    Week(i16, i8),
    Month(i16, i8),
    Year(i16),
}

impl Period {
    /// The rules of `keep` that go by periods.
    pub(super) fn rules(keep: &Keep) -> impl Iterator<Item = (Period, Count)> {
        [
            (Period::Hour, keep.hourly),
            (Period::Day, keep.daily),
            (Period::Week, keep.weekly),
            (Period::Month, keep.monthly),
            (Period::Year, keep.yearly),
        ]
        .into_iter()
        .filter_map(|(period, count)| Some((period, count?)))
    }

    /// The one that a moment lies in.
    pub(super) fn key(self, at: Timestamp, zone: &Zone) -> Key {
        let offset = zone.time_zone().to_offset(at);
        let local = offset.to_datetime(at);
        let (year, month, day) = (local.year(), local.month(), local.day());
        match self {
            Period::Hour => Key::Hour(year, month, day, local.hour(), offset.seconds()),
            Period::Day => Key::Day(year, month, day),
            Period::Week => {
                let week = local.date().iso_week_date();
                Key::Week(week.year(), week.week())
            }
            Period::Month => Key::Month(year, month),
            Period::Year => Key::Year(year),
        }
    }

    /// The name of its rule.
    pub fn rule(self) -> &'static str {
        match self {
            Period::Hour => "hourly",
            Period::Day => "daily",
            Period::Week => "weekly",
            Period::Month => "monthly",
            Period::Year => "yearly",
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Hour(year, month, day, hour, _) => write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:00"),
            Key::Day(year, month, day) => write!(f, "{year:04}-{month:02}-{day:02}"),
            Key::Week(year, week) => write!(f, "{year:04}-W{week:02}"),
            Key::Month(year, month) => write!(f, "{year:04}-{month:02}"),
            Key::Year(year) => write!(f, "{year:04}"),
        }
    }
}
