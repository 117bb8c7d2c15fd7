//! How people name snapshots and moments.

use std::str::FromStr;

use holdfast_model::ErrorCode;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _, Zoned};

use crate::error::{CliError, CliResult};
use crate::output::text::counted;
use crate::views::snapshot::SnapshotView;

/// A snapshot as it is named: an id, or a place in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SnapshotReference {
    /// An id, or a beginning of one; which it is, the controller knows.
    Id(String),
    /// `[SOURCE@]latest[~N][:TYPE]`
    Latest {
        /// Of this source; of any without it.
        source: Option<String>,
        /// How many to go back.
        back: usize,
        /// Only of this type.
        snapshot_type: Option<String>,
    },
}

/// The types a reference may name.
const TYPES: [&str; 4] = ["full", "incremental", "differential", "snapshot"];

impl FromStr for SnapshotReference {
    type Err = CliError;

    fn from_str(text: &str) -> CliResult<Self> {
        let wrong = |why: &str| {
            CliError::usage(format!("{text:?} names no snapshot"))
                .because(why.to_owned())
                .then("holdfast backup list")
        };
        let (source, rest) = match text.split_once('@') {
            Some((source, rest)) if !source.is_empty() => (Some(source.to_owned()), rest),
            Some(_) => return Err(wrong("there is no name before the @")),
            None => (None, text),
        };
        let Some(suffix) = rest.strip_prefix("latest") else {
            let is_id = (4..=64).contains(&rest.len()) && rest.bytes().all(|byte| byte.is_ascii_hexdigit());
            return match (source, is_id) {
                (None, true) => Ok(Self::Id(rest.to_ascii_lowercase())),
                (None, false) => Err(wrong(
                    "an id has 4 to 64 hexadecimal digits; or latest, latest~1, SOURCE@latest:full",
                )),
                (Some(_), _) => {
                    Err(wrong("after SOURCE@ only latest, latest~N and latest:TYPE are possible"))
                }
            };
        };
        let (back, snapshot_type) = match suffix.split_once(':') {
            Some((back, kind)) => (back, Some(kind)),
            None => (suffix, None),
        };
        if let Some(kind) = snapshot_type.filter(|kind| !TYPES.contains(kind)) {
            return Err(wrong(&format!("{kind:?} is not a type: {} are", TYPES.join(", "))));
        }
        let back = match back.strip_prefix('~') {
            Some(number) => number.parse().map_err(|_| wrong("after ~ a number is needed"))?,
            None if back.is_empty() => 0,
            None => return Err(wrong("after latest only ~N and :TYPE are possible")),
        };
        Ok(Self::Latest { source, back, snapshot_type: snapshot_type.map(str::to_owned) })
    }
}

/// Finds the snapshot of a reference to a place in the list. `snapshots` come newest first.
///
/// # Errors
/// `HF-3014` when there are not that many.
pub(crate) fn nth_latest<'a>(
    snapshots: &'a [SnapshotView],
    back: usize,
    snapshot_type: Option<&str>,
) -> CliResult<&'a SnapshotView> {
    let mut fitting = snapshots.iter().filter(|snapshot| {
        snapshot_type.is_none_or(|wanted| snapshot.snapshot_type.as_deref() == Some(wanted))
    });
    let mut seen = 0;
    let mut distinct: Option<&str> = None;
    loop {
        let Some(snapshot) = fitting.next() else {
            let kind = snapshot_type.map(|kind| format!(" of type {kind}")).unwrap_or_default();
            let message = match seen {
                0 => format!("there is no snapshot{kind}"),
                1 => format!("there is only 1 snapshot{kind}"),
                many => format!("there are only {}{kind}", counted(many as u64, "snapshot")),
            };
            return Err(CliError::new(ErrorCode::SnapshotUnknown, message).then("holdfast backup list"));
        };
        // One run to two repositories makes two snapshots of the same moment; they are one step back.
        let run = snapshot.run_id.as_deref().unwrap_or(&snapshot.id);
        if distinct == Some(run) {
            continue;
        }
        distinct = Some(run);
        if seen == back {
            return Ok(snapshot);
        }
        seen += 1;
    }
}

/// The target of a restore as it is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RecoveryTarget {
    /// A snapshot.
    Snapshot(SnapshotReference),
    /// The newest snapshot not after a moment.
    Moment(Timestamp),
}

/// Reads a recovery target: a snapshot, or a moment seen from `now`.
///
/// # Errors
/// `HF-1001` when it is neither, lies in the future, or names an hour that the zone has twice or never.
pub(crate) fn recovery_target(text: &str, now: &Zoned) -> CliResult<RecoveryTarget> {
    let text = text.trim();
    let is_id = text.len() >= 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if text.starts_with("latest") || text.contains("@latest") || is_id {
        return text.parse().map(RecoveryTarget::Snapshot);
    }
    let at = moment(text, now)?;
    if at > now.timestamp() {
        return Err(CliError::usage(format!("{text:?} lies in the future"))
            .because(format!("it was read as {}", crate::output::text::utc(at))));
    }
    Ok(RecoveryTarget::Moment(at))
}

/// Reads a moment: RFC 3339; a date, a time or both in the zone of `now`; `today`, `yesterday` with a time;
/// `10 minutes ago`.
///
/// # Errors
/// `HF-1001` when it is none of them, or the zone has that hour twice or never.
pub(crate) fn moment(text: &str, now: &Zoned) -> CliResult<Timestamp> {
    let lower = text.to_lowercase();
    if let Some(span) = lower.strip_suffix(" ago") {
        let length: SignedDuration = span.trim().parse().map_err(|_| not_a_moment(text))?;
        return now.timestamp().checked_sub(length.abs()).map_err(|_| not_a_moment(text));
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let today = now.date();
    let (date, rest) = match lower.split_once(' ') {
        Some(("today", rest)) => (Some(today), rest),
        Some(("yesterday", rest)) => (today.checked_sub(1.day()).ok(), rest),
        _ => (None, lower.as_str()),
    };
    let civil = if let Some(date) = date {
        Some(date.to_datetime(clock_time(rest).ok_or_else(|| not_a_moment(text))?))
    } else if let Some(time) = clock_time(text) {
        Some(today.to_datetime(time))
    } else if let Ok(at) = text.parse::<DateTime>() {
        Some(at)
    } else {
        text.parse::<Date>().ok().map(|date| date.to_datetime(Time::midnight()))
    };
    in_zone(text, civil.ok_or_else(|| not_a_moment(text))?, now.time_zone())
}

/// `13:41` or `13:41:07`.
fn clock_time(text: &str) -> Option<Time> {
    let text = text.trim();
    if !text.contains(':') || text.len() > 15 {
        return None;
    }
    Time::strptime("%H:%M:%S%.f", text).or_else(|_| Time::strptime("%H:%M", text)).ok()
}

fn in_zone(text: &str, at: DateTime, zone: &TimeZone) -> CliResult<Timestamp> {
    zone.to_ambiguous_timestamp(at).unambiguous().map_err(|_| {
        CliError::usage(format!("{text:?} is not one moment in the time zone of this machine"))
            .because("the clocks are changed there: that hour exists twice or not at all")
            .then(format!("--to {}Z    # or with the offset that is meant", at.strftime("%Y-%m-%dT%H:%M:%S")))
    })
}

fn not_a_moment(text: &str) -> CliError {
    CliError::usage(format!("{text:?} is neither a snapshot nor a time")).because(
        "possible are latest, latest~1, a snapshot id, 13:41, \"yesterday 22:00\", \"10 minutes ago\", \
         2026-11-21T13:41:00Z",
    )
}

#[cfg(test)]
mod tests;
