//! Amounts as people write them: `5m`, `50GiB`, `80%`, `5%/day`, `50MiB/s`. What is written back reads as the same.

use std::fmt;
use std::str::FromStr;

use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// The text is not an amount of this kind; the message says what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} {reason}")]
pub struct InvalidAmount {
    text: String,
    reason: &'static str,
}

impl InvalidAmount {
    fn new(text: &str, reason: &'static str) -> Self {
        Self { text: text.chars().take(80).collect(), reason }
    }
}

/// The text form of a unit: read, written, and described to editors in one place.
macro_rules! text_form {
    ($name:ident, $pattern:literal, $description:literal) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": $pattern, "description": $description })
            }
        }
    };
}
pub(crate) use text_form;

const MINUTE: u32 = 60;
const HOUR: u32 = 60 * MINUTE;
const DAY: u32 = 24 * HOUR;
const WEEK: u32 = 7 * DAY;
const YEAR: u32 = 365 * DAY;

/// A length of time in whole seconds, more than none and at most a hundred years. A day has 24 hours, a year 365 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span(u32);

impl Span {
    /// The longest.
    pub const MAX: Span = Span(100 * YEAR);

    /// So many seconds, brought between one second and [`Span::MAX`].
    pub const fn from_secs(secs: i64) -> Self {
        match secs {
            ..=0 => Span(1),
            secs if secs > Self::MAX.0 as i64 => Self::MAX,
            secs => Span(secs as u32),
        }
    }

    /// So many minutes.
    pub const fn from_mins(minutes: i64) -> Self {
        Self::from_secs(minutes.saturating_mul(MINUTE as i64))
    }

    /// So many hours.
    pub const fn from_hours(hours: i64) -> Self {
        Self::from_secs(hours.saturating_mul(HOUR as i64))
    }

    /// So many days.
    pub const fn from_days(days: i64) -> Self {
        Self::from_secs(days.saturating_mul(DAY as i64))
    }

    /// Its seconds.
    pub const fn secs(self) -> i64 {
        self.0 as i64
    }

    /// For arithmetic with times.
    pub const fn duration(self) -> SignedDuration {
        SignedDuration::from_secs(self.0 as i64)
    }
}

const SPAN_RULE: &str = "is not a length of time: write it with units, as 30s, 5m, 6h, 7d, 2w, 1y or 1h30m";

impl FromStr for Span {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        let fail = |reason| Err(InvalidAmount::new(text, reason));
        let mut rest = text.trim();
        if rest.starts_with('-') {
            return fail("is negative: a length of time is more than none");
        }
        let mut secs: u64 = 0;
        let mut smallest = u64::MAX;
        while !rest.is_empty() {
            let Some((number, tail)) = digits(rest) else { return fail(SPAN_RULE) };
            let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
            let unit = u64::from(match &tail[..letters] {
                "s" => 1,
                "m" => MINUTE,
                "h" => HOUR,
                "d" => DAY,
                "w" => WEEK,
                "y" => YEAR,
                _ => return fail(SPAN_RULE),
            });
            if unit >= smallest {
                return fail(SPAN_RULE);
            }
            smallest = unit;
            secs = secs.saturating_add(number.saturating_mul(unit));
            rest = &tail[letters..];
        }
        if smallest == u64::MAX {
            return fail(SPAN_RULE);
        }
        match u32::try_from(secs) {
            Ok(0) => fail("is no time at all: at least 1s is needed"),
            Ok(secs) if secs <= Self::MAX.0 => Ok(Self(secs)),
            _ => fail("is too long: at most 100y is possible"),
        }
    }
}

/// Leading digits as a number, and what follows them.
fn digits(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    // More than 19 digits do not fit; they are too much of any unit.
    let number = if end == 0 { return None } else { text[..end].parse().unwrap_or(u64::MAX) };
    Some((number, &text[end..]))
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Weeks and years are for reading only: 30d says more than 4w2d.
        let mut rest = self.0;
        for (unit, letter) in [(DAY, 'd'), (HOUR, 'h'), (MINUTE, 'm'), (1, 's')] {
            if rest >= unit {
                write!(f, "{}{letter}", rest / unit)?;
                rest %= unit;
            }
        }
        Ok(())
    }
}

text_form!(Span, "^([0-9]+[ywdhms])+$", "A length of time, such as 30s, 5m, 6h, 7d or 1h30m.");

/// An amount of bytes, more than none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bytes(pub u64);

const BYTE_UNITS: [(&str, u64); 11] = [
    ("PiB", 1 << 50),
    ("PB", 1_000_000_000_000_000),
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1000),
    ("B", 1),
];

impl FromStr for Bytes {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        let rule = "is not an amount of bytes: write it with a unit, as 500MB, 64MiB or 50GiB";
        let fail = |reason| Err(InvalidAmount::new(text, reason));
        let Some((number, unit)) = digits(text.trim()) else { return fail(rule) };
        let Some((_, factor)) = BYTE_UNITS.iter().find(|(name, _)| *name == unit.trim_start()) else {
            return fail(rule);
        };
        match number.checked_mul(*factor) {
            Some(0) => fail("is nothing at all: at least 1B is needed"),
            Some(bytes) => Ok(Self(bytes)),
            None => fail("is too much: at most 16383PiB is possible"),
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = BYTE_UNITS.iter().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        let (unit, factor) = fits.unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

text_form!(Bytes, "^[0-9]+ ?([kMGTP]?B|[KMGTP]iB)$", "An amount of bytes, such as 500MB or 50GiB.");

/// Bytes in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rate(pub Bytes);

impl FromStr for Rate {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        let rate = text.trim().strip_suffix("/s").and_then(|bytes| bytes.parse().ok());
        rate.map(Self).ok_or_else(|| {
            InvalidAmount::new(text, "is not a rate: write bytes in a second, as 500kB/s or 50MiB/s")
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

text_form!(Rate, "^[0-9]+ ?([kMGTP]?B|[KMGTP]iB)/s$", "Bytes in a second, such as 50MiB/s.");

/// A share in whole percent, 1 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Percent(u8);

impl Percent {
    /// So many percent, brought between 1 and 100.
    pub const fn new(percent: u8) -> Self {
        match percent {
            0 => Percent(1),
            1..=100 => Percent(percent),
            _ => Percent(100),
        }
    }

    /// 1 to 100.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Above nothing, at most 1.
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl FromStr for Percent {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        let number = text.trim().strip_suffix('%').and_then(|number| digits(number.trim_end()));
        match number {
            Some((percent @ 1..=100, "")) => Ok(Self(percent as u8)),
            Some((_, "")) => Err(InvalidAmount::new(text, "is out of range: 1% to 100% are possible")),
            _ => Err(InvalidAmount::new(text, "is not a share: write whole percent, as 80%")),
        }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

text_form!(Percent, "^[0-9]{1,3} ?%$", "A share in whole percent, such as 80%.");

/// A share of the packs that is read each day or each week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SampleRate {
    /// How much.
    pub share: Percent,
    /// How often: a day or a week.
    pub per: Span,
}

impl FromStr for SampleRate {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        let rule = || InvalidAmount::new(text, "is not a sample: write percent a day or a week, as 5%/day");
        let (share, per) = text.split_once('/').ok_or_else(rule)?;
        let per = match per.trim() {
            "day" => Span(DAY),
            "week" => Span(WEEK),
            _ => return Err(rule()),
        };
        Ok(Self { share: share.parse()?, per })
    }
}

impl fmt::Display for SampleRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.share, if self.per.0 == DAY { "day" } else { "week" })
    }
}

text_form!(
    SampleRate,
    "^[0-9]{1,3} ?%/(day|week)$",
    "A share that is read each day or week, such as 5%/day."
);

/// How many, from 1 to a million. Written as a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, JsonSchema)]
#[schemars(transparent)]
pub struct Count(#[schemars(range(min = 1, max = 1_000_000))] u32);

impl Count {
    /// The most.
    pub const MAX: u32 = 1_000_000;

    /// So many, brought between 1 and [`Count::MAX`].
    pub const fn new(count: u32) -> Self {
        match count {
            0 => Count(1),
            1..=Self::MAX => Count(count),
            _ => Count(Self::MAX),
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The number, for indexing.
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Plain;

        // Only a number is one: text with digits in it may be a slip.
        impl serde::de::Visitor<'_> for Plain {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number from 1 to {}", Count::MAX)
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Count, E> {
                match number {
                    0 => Err(E::custom("0 is not a count: leave the key out where there is to be none")),
                    1..=1_000_000 => Ok(Count(number as u32)),
                    _ => Err(E::custom(format_args!(
                        "{number} is out of range: 1 to {} are possible",
                        Count::MAX
                    ))),
                }
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Count, E> {
                self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
            }
        }

        deserializer.deserialize_any(Plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(text: &str) -> Result<Span, String> {
        text.parse().map_err(|error: InvalidAmount| error.to_string())
    }

    #[test]
    fn lengths_of_time_read_with_their_units_and_write_back_the_same() {
        for (text, secs, written) in [
            ("30s", 30, "30s"),
            ("5m", 300, "5m"),
            ("90m", 5400, "1h30m"),
            ("1h30m", 5400, "1h30m"),
            ("30d", 2_592_000, "30d"),
            ("2w", 1_209_600, "14d"),
            ("1y", 31_536_000, "365d"),
        ] {
            let read = span(text).unwrap();
            assert_eq!((read.secs(), read.to_string().as_str()), (secs, written));
            assert_eq!(span(written), Ok(read));
        }
    }

    #[test]
    fn what_is_no_length_of_time_is_refused_with_the_reason() {
        for text in ["", "5", "m", "5 m", "5min", "1m1h", "1h1h", "5m ago", "1e3s", "٣s", "5µ"] {
            assert!(span(text).unwrap_err().contains("is not a length of time"), "{text:?}");
        }
        assert_eq!(span("0s").unwrap_err(), "\"0s\" is no time at all: at least 1s is needed");
        assert_eq!(span("-1h").unwrap_err(), "\"-1h\" is negative: a length of time is more than none");
        for text in ["9999999999h", "101y", "99999999999999999999999s", "18446744073709551615y"] {
            assert!(span(text).unwrap_err().ends_with("is too long: at most 100y is possible"), "{text}");
        }
    }

    #[test]
    fn bytes_and_rates_read_with_decimal_and_binary_units() {
        for (text, bytes, written) in [
            ("50GiB", 50 << 30, "50GiB"),
            ("500MB", 500_000_000, "500MB"),
            ("1024MiB", 1 << 30, "1GiB"),
            ("7 kB", 7000, "7kB"),
            ("1025B", 1025, "1025B"),
        ] {
            let read: Bytes = text.parse().unwrap();
            assert_eq!((read.0, read.to_string().as_str()), (bytes, written));
            assert_eq!(written.parse(), Ok(read));
        }
        for text in ["50", "50G", "GiB", "-1GiB", "1.5GiB", "1e9B", ""] {
            let error = text.parse::<Bytes>().unwrap_err().to_string();
            assert!(error.contains("is not an amount of bytes"), "{error}");
        }
        assert!("99999999999PiB".parse::<Bytes>().unwrap_err().to_string().contains("is too much"));
        assert_eq!("50MiB/s".parse::<Rate>().unwrap().to_string(), "50MiB/s");
        assert!("50MiB".parse::<Rate>().is_err() && "0B/s".parse::<Rate>().is_err());
    }

    #[test]
    fn shares_are_whole_percent() {
        assert_eq!("80%".parse(), Ok(Percent(80)));
        assert_eq!("80 %".parse(), Ok(Percent(80)));
        assert_eq!("5%/day".parse::<SampleRate>().unwrap().to_string(), "5%/day");
        for text in ["0%", "101%", "400%"] {
            assert!(text.parse::<Percent>().unwrap_err().to_string().contains("out of range"), "{text}");
        }
        for text in ["80", "%", "0.8", "8.5%", "-5%"] {
            assert!(text.parse::<Percent>().unwrap_err().to_string().contains("is not a share"), "{text}");
        }
        for text in ["5%", "5%/month", "5/day", "5%/"] {
            assert!(text.parse::<SampleRate>().is_err(), "{text}");
        }
    }
}
