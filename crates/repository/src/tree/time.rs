//! Times as the format keeps them: RFC 3339 with up to nine digits of a second, trailing zeros left out.

/// A point in time as file systems keep it: seconds since 1970 and nanoseconds within the second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileTime {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanoseconds: u32,
}

const DAY_SECONDS: i64 = 86_400;
/// 0000-01-01T00:00:00Z
const SECONDS_MIN: i64 = -62_167_219_200;
/// 9999-12-31T23:59:59Z
const SECONDS_MAX: i64 = 253_402_300_799;

impl FileTime {
    /// The time at this many seconds and nanoseconds.
    pub fn new(seconds: i64, nanoseconds: u32) -> Self {
        Self { seconds, nanoseconds: nanoseconds.min(999_999_999) }
    }

    /// Appends the time in UTC. Years outside 0–9999 cannot be written and become the nearest that can.
    pub fn format_into(self, out: &mut Vec<u8>) {
        let seconds = self.seconds.clamp(SECONDS_MIN, SECONDS_MAX);
        let (year, month, day) = civil_from_days(seconds.div_euclid(DAY_SECONDS));
        let second_of_day = seconds.rem_euclid(DAY_SECONDS) as u32;
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        put_digits(&mut text[0..4], year);
        put_digits(&mut text[5..7], month);
        put_digits(&mut text[8..10], day);
        put_digits(&mut text[11..13], second_of_day / 3600);
        put_digits(&mut text[14..16], second_of_day / 60 % 60);
        put_digits(&mut text[17..19], second_of_day % 60);
        put_digits(&mut text[20..29], self.nanoseconds);
        let mut end = 29;
        while text[end - 1] == b'0' && end > 20 {
            end -= 1;
        }
        if end == 20 {
            end = 19;
        }
        out.extend_from_slice(&text[..end]);
        out.push(b'Z');
    }

    /// Reads a time with any offset from UTC; `None` when the text is none.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let (date, rest) = bytes.split_first_chunk::<19>()?;
        let separators =
            date[4] == b'-' && date[7] == b'-' && date[10] == b'T' && date[13] == b':' && date[16] == b':';
        let year = digits(&date[0..4])?;
        let (month, day) = (digits(&date[5..7])?, digits(&date[8..10])?);
        let (hour, minute, second) = (digits(&date[11..13])?, digits(&date[14..16])?, digits(&date[17..19])?);
        let valid =
            (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 60;
        if !separators || !valid {
            return None;
        }
        let (nanoseconds, zone) = parse_fraction(rest)?;
        let offset = parse_zone(zone)?;
        let days = days_from_civil(year, month, day);
        let seconds = days * DAY_SECONDS + i64::from(hour * 3600 + minute * 60 + second) - offset;
        Some(Self { seconds, nanoseconds })
    }
}

fn parse_fraction(rest: &[u8]) -> Option<(u32, &[u8])> {
    let Some((b'.', fraction)) = rest.split_first() else { return Some((0, rest)) };
    let count = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if count == 0 {
        return None;
    }
    // Digits beyond nanoseconds are cut off.
    let kept = count.min(9);
    let nanoseconds = digits(&fraction[..kept])? * 10u32.pow(9 - kept as u32);
    Some((nanoseconds, &fraction[count..]))
}

fn parse_zone(zone: &[u8]) -> Option<i64> {
    match zone {
        b"Z" => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (digits(&[*h1, *h2])?, digits(&[*m1, *m2])?);
            let offset = i64::from(hours * 3600 + minutes * 60);
            (hours < 24 && minutes < 60).then_some(if *sign == b'-' { -offset } else { offset })
        }
        _ => None,
    }
}

fn put_digits(place: &mut [u8], mut number: u32) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

fn digits(text: &[u8]) -> Option<u32> {
    text.iter()
        .try_fold(0u32, |number, byte| byte.is_ascii_digit().then(|| number * 10 + u32::from(byte - b'0')))
}

/// Days since 1970-01-01 to a date of the proleptic Gregorian calendar. Years begin in March here, so that the leap
/// day is their last; an era has 400 of them.
fn civil_from_days(days: i64) -> (u32, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year.max(0) as u32, month as u32, day as u32)
}

fn days_from_civil(year: u32, month: u32, day: u32) -> i64 {
    let (month, day) = (i64::from(month), i64::from(day));
    let shifted_year = i64::from(year) - i64::from(month <= 2);
    let era = shifted_year.div_euclid(400);
    let year_of_era = shifted_year.rem_euclid(400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn format(time: FileTime) -> String {
        let mut out = Vec::new();
        time.format_into(&mut out);
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn every_time_reads_back(seconds in SECONDS_MIN..=SECONDS_MAX, nanoseconds in 0u32..1_000_000_000) {
            let time = FileTime { seconds, nanoseconds };
            prop_assert_eq!(FileTime::parse(&format(time)), Some(time));
        }

        #[test]
        fn another_calendar_agrees(seconds in -377_705_116_800i64..=253_402_207_200, nanoseconds in 0u32..1_000_000_000) {
            let seconds = seconds.max(SECONDS_MIN);
            let known = jiff::Timestamp::new(seconds, 0).unwrap().to_string();
            prop_assert_eq!(format(FileTime { seconds, nanoseconds: 0 }), known);
            let _ = nanoseconds;
        }

        #[test]
        fn any_text_is_a_time_or_not_and_never_a_panic(text in "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.+Z-]{0,30}|.*") {
            let _ = FileTime::parse(&text);
        }
    }

    #[test]
    fn times_of_restic_are_read() {
        for (text, seconds, nanoseconds) in [
            ("2014-12-22T14:47:59.912418701+01:00", 1_419_256_079, 912_418_701),
            ("2026-11-21T08:21:39.75974276Z", 1_795_249_299, 759_742_760),
            ("1970-01-01T00:00:00Z", 0, 0),
            ("1969-12-31T19:00:00-05:00", 0, 0),
            ("0001-01-01T00:00:00Z", -62_135_596_800, 0),
        ] {
            assert_eq!(FileTime::parse(text), Some(FileTime { seconds, nanoseconds }), "{text}");
        }
        for text in [
            "",
            "2014",
            "2014-13-01T00:00:00Z",
            "2014-12-22 14:47:59Z",
            "2014-12-22T14:47:59",
            "2014-12-22T14:47:59.Z",
        ] {
            assert_eq!(FileTime::parse(text), None, "{text}");
        }
    }

    #[test]
    fn trailing_zeros_are_left_out_and_far_years_are_drawn_in() {
        assert_eq!(format(FileTime::new(0, 120_000_000)), "1970-01-01T00:00:00.12Z");
        assert_eq!(format(FileTime::new(-1, 1)), "1969-12-31T23:59:59.000000001Z");
        assert_eq!(format(FileTime::new(i64::MAX, 0)), "9999-12-31T23:59:59Z");
        assert_eq!(format(FileTime::new(i64::MIN, 0)), "0000-01-01T00:00:00Z");
    }
}
