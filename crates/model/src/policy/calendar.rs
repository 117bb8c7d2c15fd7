//! Times as people write them: cron patterns, time zones, hours of the day, dates.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::{Date, Time, date};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, ToSpan};

use crate::units::text_form;

/// The text does not name a time; the message says what would.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} {reason}")]
pub struct InvalidCalendar {
    text: String,
    reason: String,
}

impl InvalidCalendar {
    fn new(text: &str, reason: impl Into<String>) -> Self {
        Self { text: text.chars().take(80).collect(), reason: reason.into() }
    }
}

/// A cron pattern of five fields, or one of `@hourly`, `@daily`, `@weekly`, `@monthly` and `@yearly`.
///
/// With a day of the month and a day of the week, either is enough, as in cron. A time that the change to summer time
/// leaves out comes when the clock goes on; one that comes twice in autumn counts once, unless the pattern is for many
/// times of the day, which go on at their pace.
#[derive(Clone)]
pub struct Cron {
    text: String,
    pattern: Arc<croner::Cron>,
}

impl Cron {
    /// The first time of the pattern after `after`; none within thousands of years.
    pub fn next(&self, after: Timestamp, zone: &Zone) -> Option<Timestamp> {
        let after = after.to_zoned(zone.zone.clone());
        self.pattern.find_next_occurrence(&after, false).ok().map(|next| next.timestamp())
    }

    /// The last time of the pattern at or before `at`.
    pub fn newest(&self, at: Timestamp, zone: &Zone) -> Option<Timestamp> {
        let at = at.to_zoned(zone.zone.clone());
        self.pattern.find_previous_occurrence(&at, true).ok().map(|newest| newest.timestamp())
    }
}

impl FromStr for Cron {
    type Err = InvalidCalendar;

    fn from_str(text: &str) -> Result<Self, InvalidCalendar> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let pattern = parser.parse(text).map_err(|error| {
            let fields = text.split_whitespace().count();
            let reason = match fields {
                5 => format!("is not a cron pattern: {}", plain_reason(&error.to_string())),
                1 if text.trim_start().starts_with('@') => {
                    "is not known: @hourly, @daily, @weekly, @monthly and @yearly are".to_owned()
                }
                _ => format!(
                    "is not a cron pattern: it has {fields} fields, five are needed: minute, hour, day of month, \
                     month, day of week"
                ),
            };
            InvalidCalendar::new(text, reason)
        })?;
        // Some dates never come, such as 30 February; searching for them again and again costs time.
        let found = pattern.find_next_occurrence(&date(2026, 1, 1).at(0, 0, 0, 0), true);
        if found.is_err() {
            return Err(InvalidCalendar::new(text, "is a cron pattern for a date that never comes"));
        }
        Ok(Self { text: text.split_whitespace().collect::<Vec<_>>().join(" "), pattern: Arc::new(pattern) })
    }
}

/// What the parser says, without its own names.
fn plain_reason(message: &str) -> String {
    let reason = message.split_once(": ").map_or(message, |(_, reason)| reason);
    let mut letters = reason.trim_end_matches('.').replace("CronPattern", "the pattern");
    if let Some(first) = letters.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    letters
}

impl PartialEq for Cron {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Cron {}

impl fmt::Debug for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cron({})", self.text)
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

text_form!(
    Cron,
    "^(@(hourly|daily|weekly|monthly|yearly|annually|midnight)|\\S+( +\\S+){4})$",
    "Minute, hour, day of month, month, day of week; or @hourly, @daily, @weekly, @monthly, @yearly."
);

/// A time zone by its name, such as `Europe/Berlin`; `UTC` when none is given.
#[derive(Clone)]
pub struct Zone {
    name: String,
    zone: TimeZone,
}

impl Zone {
    /// For conversions.
    pub fn time_zone(&self) -> &TimeZone {
        &self.zone
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.name
    }
}

impl Default for Zone {
    fn default() -> Self {
        Self { name: "UTC".to_owned(), zone: TimeZone::UTC }
    }
}

impl FromStr for Zone {
    type Err = InvalidCalendar;

    fn from_str(text: &str) -> Result<Self, InvalidCalendar> {
        if text.eq_ignore_ascii_case("utc") {
            return Ok(Self::default());
        }
        let zones = TimeZoneDatabase::bundled();
        match zones.get(text) {
            Ok(zone) => {
                let name = zone.iana_name().unwrap_or(text).to_owned();
                Ok(Self { name, zone })
            }
            Err(_) => {
                let wanted = text.trim().replace(' ', "_").to_ascii_lowercase();
                let meant = zones.available().map(|name| name.to_string()).find(|name| {
                    name.rsplit_once('/').is_some_and(|(_, city)| city.to_ascii_lowercase() == wanted)
                });
                let hint = meant.unwrap_or_else(|| "Europe/Berlin".to_owned());
                Err(InvalidCalendar::new(text, format!("is not a time zone: write its name, as {hint}")))
            }
        }
    }
}

impl PartialEq for Zone {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Zone {}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Zone({})", self.name)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

text_form!(Zone, "^[A-Za-z][A-Za-z0-9_+/-]*$", "A time zone by its name, such as Europe/Berlin.");

/// Hours of the day, the end not included; over midnight when the end is before the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeWindow {
    /// When it opens.
    pub from: Time,
    /// When it closes.
    pub to: Time,
}

impl TimeWindow {
    /// Whether a time of day lies in it.
    pub fn contains(&self, time: Time) -> bool {
        if self.from < self.to {
            self.from <= time && time < self.to
        } else {
            self.from <= time || time < self.to
        }
    }
}

impl FromStr for TimeWindow {
    type Err = InvalidCalendar;

    fn from_str(text: &str) -> Result<Self, InvalidCalendar> {
        let fail = |reason: &str| InvalidCalendar::new(text, reason);
        let rule = "is not a window: write two times of the day, as 22:00-06:00";
        let (from, to) = text.split_once('-').ok_or_else(|| fail(rule))?;
        let time = |text: &str| {
            let (hour, minute) = text.trim().split_once(':')?;
            let number = |text: &str| {
                let plain = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
                if plain { text.parse().ok() } else { None }
            };
            // A day may end at 24:00, which is the 00:00 of the next.
            match (number(hour)?, number(minute)?) {
                (24, 0) => Some(Time::midnight()),
                (hour, minute) => Time::new(hour, minute, 0, 0).ok(),
            }
        };
        let from = time(from).ok_or_else(|| fail(rule))?;
        let to = time(to).ok_or_else(|| fail(rule))?;
        if from == to {
            return Err(fail("ends when it begins: leave `window` out for the whole day"));
        }
        Ok(Self { from, to })
    }
}

impl fmt::Display for TimeWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TimeWindow { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from.hour(), from.minute(), to.hour(), to.minute())
    }
}

text_form!(
    TimeWindow,
    "^[0-2][0-9]:[0-5][0-9] *- *[0-2][0-9]:[0-5][0-9]$",
    "Hours of the day, such as 22:00-06:00; over midnight when the end is before the beginning."
);

/// Whole days, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateRange {
    /// The first day.
    pub first: Date,
    /// The last day.
    pub last: Date,
}

impl DateRange {
    /// Whether a day lies in it.
    pub fn contains(&self, day: Date) -> bool {
        self.first <= day && day <= self.last
    }
}

impl FromStr for DateRange {
    type Err = InvalidCalendar;

    fn from_str(text: &str) -> Result<Self, InvalidCalendar> {
        let fail = |reason: &str| InvalidCalendar::new(text, reason);
        let rule = "is not a date: write 2026-12-24, or 2026-12-24..2027-01-02 for a range";
        let day = |text: &str| {
            let text = text.trim();
            if text.len() == 10 { text.parse::<Date>().map_err(|_| fail(rule)) } else { Err(fail(rule)) }
        };
        let (first, last) = match text.split_once("..") {
            Some((first, last)) => (day(first)?, day(last)?),
            None => (day(text)?, day(text)?),
        };
        if last < first {
            return Err(fail("ends before it begins"));
        }
        // Schedules are searched day by day across the days without runs.
        if first.checked_add(1.year()).is_ok_and(|limit| limit < last) {
            return Err(fail("is too long: a range has at most one year"));
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for DateRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}..{}", self.first, self.last) }
    }
}

text_form!(
    DateRange,
    "^[0-9]{4}-[0-9]{2}-[0-9]{2}( *\\.\\. *[0-9]{4}-[0-9]{2}-[0-9]{2})?$",
    "A date such as 2026-12-24, or a range with both ends such as 2026-12-24..2027-01-02."
);
