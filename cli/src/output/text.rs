//! Sizes, counts, durations and times as people read them; texts of others made harmless.

use std::time::Duration;

pub use holdfast_model::text::{count, counted, shell_word, size};
use jiff::Timestamp;

/// A length of time in its two largest units: `0.4s`, `41s`, `11m42s`, `3h 10m`, `13d 23h`.
pub fn duration(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..10 => format!("{:.1}s", length.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A length of time in its largest unit: `6s`, `41m`, `9h`, `31d`.
pub fn rough(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A moment seen from another: `6s ago`, `in 15m`.
pub fn relative(now: Timestamp, at: Timestamp) -> String {
    let distance = now.duration_since(at);
    if distance.as_secs() == 0 {
        "now".to_owned()
    } else if distance.is_negative() {
        format!("in {}", rough(distance.unsigned_abs()))
    } else {
        format!("{} ago", rough(distance.unsigned_abs()))
    }
}

/// A moment in RFC 3339, UTC, to the second.
pub fn utc(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Bytes per second.
pub fn rate(bytes: u64, length: Duration) -> String {
    let seconds = length.as_secs_f64();
    if seconds <= 0.0 {
        return "-".to_owned();
    }
    format!("{}/s", size((bytes as f64 / seconds) as u64))
}

/// A text on one line that cannot steer a terminal or reorder what is around it: control characters and marks of
/// direction become escapes.
pub fn plain(text: &str) -> String {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
    };
    if !text.contains(harmful) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if harmful(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// The short form of an id, as lists print it: the beginning of a snapshot's.
pub fn short_snapshot(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// The short form of an id, as lists print it: the end of a run's.
pub fn short_run(id: &str) -> &str {
    id.len().checked_sub(8).and_then(|start| id.get(start..)).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_show_two_units() {
        let millis = [0, 400, 9_949, 41_000, 702_000, 11_400_000, 1_206_000_000];
        assert_eq!(
            millis.map(|millis| duration(Duration::from_millis(millis))),
            ["0.0s", "0.4s", "9.9s", "41s", "11m42s", "3h 10m", "13d 23h"]
        );
    }

    #[test]
    fn moments_are_seen_from_now() {
        let now: Timestamp = "2026-11-21T13:41:07Z".parse().unwrap();
        let at = |text: &str| relative(now, text.parse().unwrap());
        assert_eq!(at("2026-11-21T13:41:01Z"), "6s ago");
        assert_eq!(at("2026-10-21T13:41:01Z"), "31d ago");
        assert_eq!(at("2026-11-21T13:56:07Z"), "in 15m");
        assert_eq!(at("2026-11-21T13:41:07.9Z"), "now");
        assert_eq!(utc("2026-11-21T13:41:07.123Z".parse().unwrap()), "2026-11-21T13:41:07Z");
    }

    #[test]
    fn texts_cannot_steer_the_terminal() {
        assert_eq!(plain("a\nb\u{1b}[2J\u{202e}ü 木"), r"a\nb\u{1b}[2J\u{202e}ü 木");
    }

    #[test]
    fn short_ids_of_anything_do_not_panic() {
        assert_eq!(short_snapshot("3f2a91bc00"), "3f2a91bc");
        assert_eq!(short_run("018f0000deadbeef"), "deadbeef");
        assert_eq!(short_run("ü"), "ü");
    }
}
