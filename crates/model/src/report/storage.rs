//! How a repository grows, and when its storage will be full: a straight line through the sizes that were seen.

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How often the size of a repository is remembered.
pub const SAMPLED_EVERY: SignedDuration = SignedDuration::from_hours(6);

/// For how long a size is remembered.
pub const SAMPLES_KEPT: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How long the sizes must reach back, and how many there must be, before anything follows from them.
pub const SPAN_MIN: SignedDuration = SignedDuration::from_hours(48);
/// See [`SPAN_MIN`].
pub const SAMPLES_MIN: usize = 3;

/// Nobody knows what is in ten years.
const HORIZON_SECS: f64 = 3650.0 * DAY_SECS;
const DAY_SECS: f64 = 86_400.0;

/// The size of a repository at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeSample {
    /// When.
    pub at: Timestamp,
    /// Bytes in it.
    pub stored_bytes: u64,
}

/// The sizes of a repository that are remembered, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SizeHistory(pub Vec<SizeSample>);

impl SizeHistory {
    /// Whether it is time to remember the size again.
    pub fn is_due(&self, now: Timestamp) -> bool {
        // Also when the clock was set back.
        self.0.last().is_none_or(|last| now.duration_since(last.at).abs() >= SAMPLED_EVERY)
    }

    /// Remembers a size, and forgets those that are too old.
    pub fn add(&mut self, sample: SizeSample) {
        self.0.retain(|old| old.at < sample.at && sample.at.duration_since(old.at) <= SAMPLES_KEPT);
        self.0.push(sample);
    }
}

/// What follows from the history of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ForecastState {
    /// It becomes full.
    FillsUp,
    /// It does not grow, or so slowly that it is not full within ten years.
    NotSoon,
    /// Its sizes are not known for long enough.
    UnknownHistory,
    /// Its storage does not say how much is free.
    UnknownFree,
}

/// When a storage will be full, and what that rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Forecast {
    /// What is known.
    pub state: ForecastState,
    /// What it grows by in a day; negative when it shrinks.
    pub growth_bytes_per_day: Option<i64>,
    /// When it is full, if it goes on like this.
    pub full_at: Option<Timestamp>,
    /// Sizes that it rests on.
    pub samples: u64,
    /// How far they reach back.
    pub span_seconds: i64,
}

/// Draws a straight line through the history, with the least squares of its distances.
pub fn forecast(history: &SizeHistory, free_bytes: Option<u64>, now: Timestamp) -> Forecast {
    let samples: Vec<&SizeSample> =
        history.0.iter().filter(|sample| now.duration_since(sample.at) <= SAMPLES_KEPT).collect();
    let span = match (samples.first(), samples.last()) {
        (Some(first), Some(last)) => last.at.duration_since(first.at),
        _ => SignedDuration::ZERO,
    };
    let mut forecast = Forecast {
        state: ForecastState::UnknownHistory,
        growth_bytes_per_day: None,
        full_at: None,
        samples: samples.len() as u64,
        span_seconds: span.as_secs(),
    };
    if samples.len() < SAMPLES_MIN || span < SPAN_MIN {
        return forecast;
    }
    let slope = slope(&samples, now);
    forecast.growth_bytes_per_day = Some(whole(slope * DAY_SECS));
    let Some(free) = free_bytes else {
        forecast.state = ForecastState::UnknownFree;
        return forecast;
    };
    let seconds = if slope > 0.0 { number(free) / slope } else { f64::INFINITY };
    if seconds > HORIZON_SECS {
        forecast.state = ForecastState::NotSoon;
        return forecast;
    }
    forecast.state = ForecastState::FillsUp;
    forecast.full_at = now.checked_add(SignedDuration::from_secs(whole(seconds))).ok();
    forecast
}

/// Bytes a second.
fn slope(samples: &[&SizeSample], now: Timestamp) -> f64 {
    let points = samples
        .iter()
        .map(|sample| (sample.at.duration_since(now).as_secs_f64(), number(sample.stored_bytes)));
    let count = number(samples.len() as u64);
    let (x, y) = points.clone().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let (x, y) = (x / count, y / count);
    let (above, below) = points.fold((0.0, 0.0), |(above, below), point| {
        let distance = point.0 - x;
        (above + distance * (point.1 - y), below + distance * distance)
    });
    if below > 0.0 { above / below } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "beyond 9 × 10¹⁵ the last digits do not matter")]
fn number(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_possible_truncation, reason = "what is too large becomes the largest there is")]
fn whole(value: f64) -> i64 {
    value.round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(sizes: &[(i64, u64)]) -> SizeHistory {
        let sample = |&(hours, stored_bytes): &(i64, u64)| SizeSample {
            at: Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours),
            stored_bytes,
        };
        SizeHistory(sizes.iter().map(sample).collect())
    }

    fn judge(sizes: &[(i64, u64)], free: Option<u64>) -> Forecast {
        let now = sizes.last().map_or(0, |last| last.0);
        forecast(&history(sizes), free, Timestamp::UNIX_EPOCH + SignedDuration::from_hours(now))
    }

    #[test]
    fn without_two_days_of_history_nothing_is_forecast() {
        for sizes in [&[][..], &[(0, 5)], &[(0, 5), (48, 9)], &[(0, 5), (20, 6), (47, 9)]] {
            let found = judge(sizes, Some(1000));
            assert_eq!((found.state, found.growth_bytes_per_day), (ForecastState::UnknownHistory, None));
            assert_eq!(found.samples, sizes.len() as u64);
        }
    }

    #[test]
    fn a_straight_line_says_when_it_is_full() {
        let found = judge(&[(0, 1000), (24, 1100), (48, 1200), (72, 1300)], Some(500));
        assert_eq!((found.state, found.growth_bytes_per_day), (ForecastState::FillsUp, Some(100)));
        assert_eq!(found.full_at, Some(Timestamp::UNIX_EPOCH + SignedDuration::from_hours(72 + 5 * 24)));
        assert_eq!((found.samples, found.span_seconds), (4, 72 * 3600));
    }

    #[test]
    fn what_shrinks_stands_or_creeps_does_not_fill_up() {
        for sizes in [[(0, 9), (24, 8), (48, 7)], [(0, 9), (24, 9), (48, 9)], [(0, 9), (24, 10), (48, 11)]] {
            assert_eq!(judge(&sizes, Some(1 << 40)).state, ForecastState::NotSoon, "{sizes:?}");
        }
    }

    #[test]
    fn a_storage_that_does_not_say_what_is_free_is_never_forecast() {
        let found = judge(&[(0, 1000), (24, 1100), (48, 1200)], None);
        assert_eq!((found.state, found.growth_bytes_per_day), (ForecastState::UnknownFree, Some(100)));
        assert_eq!(found.full_at, None);
    }

    #[test]
    fn sizes_are_remembered_every_six_hours_for_thirty_days() {
        let mut history = SizeHistory::default();
        for hour in 0..24 * 60 {
            let at = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hour);
            if history.is_due(at) {
                history.add(SizeSample { at, stored_bytes: 1 });
            }
        }
        assert_eq!(history.0.len(), 30 * 4 + 1);
        // A clock that was set back makes what lies ahead of it unknown.
        let at = Timestamp::UNIX_EPOCH;
        assert!(history.is_due(at));
        history.add(SizeSample { at, stored_bytes: 1 });
        assert_eq!(history.0.len(), 1);
    }
}
