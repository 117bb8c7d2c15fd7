//! Whether a source answers, and how fast: asked every minute or so, between backups. Pure: observations in, health out.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::alert::Severity;
use crate::error_code::Failure;
use crate::policy::HealthLimits;

/// Failures in a row after which a source is taken for down.
pub const FAILURES_CRITICAL: u32 = 3;

/// What a source says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReport {
    /// How long it took to answer, in milliseconds.
    pub response_millis: u64,
    /// Bytes of log that the server keeps (PostgreSQL: its WAL folder), if it has one and says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_bytes: Option<u64>,
    /// Where its log stands, as a manifest names the position of a capture: equal when nothing was written since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_position: Option<String>,
}

/// The health of a source, from the last times that it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// When it was asked last.
    pub checked_at: Timestamp,
    /// What it said when it answered last.
    pub report: Option<HealthReport>,
    /// Why it did not answer, when it did not.
    pub failure: Option<Failure>,
    /// How often in a row it has not.
    pub failures: u32,
    /// Since when it does not.
    pub failing_since: Option<Timestamp>,
}

impl Health {
    /// The health after another observation.
    pub fn observe(before: Option<&Health>, found: Result<HealthReport, Failure>, now: Timestamp) -> Self {
        match found {
            Ok(report) => Self {
                checked_at: now,
                report: Some(report),
                failure: None,
                failures: 0,
                failing_since: None,
            },
            Err(failure) => Self {
                checked_at: now,
                report: before.and_then(|before| before.report.clone()),
                failure: Some(failure),
                failures: before.map_or(0, |before| before.failures).saturating_add(1),
                failing_since: before.and_then(|before| before.failing_since).or(Some(now)),
            },
        }
    }

    /// What is wrong with it, if anything, and how serious that is: one failure is a warning, three in a row are
    /// critical, and so are slow answers beyond the limits.
    pub fn problem(&self, limits: &HealthLimits) -> Option<(Severity, String)> {
        if let Some(failure) = &self.failure {
            let severity =
                if self.failures >= FAILURES_CRITICAL { Severity::Critical } else { Severity::Warning };
            let since = self.failing_since.map_or_else(String::new, |at| format!(" since {at}"));
            return Some((severity, format!("does not answer{since}: {failure}")));
        }
        let millis = self.report.as_ref()?.response_millis;
        let over = |limit: crate::units::Span| {
            u64::try_from(limit.secs()).is_ok_and(|secs| millis > secs.saturating_mul(1000))
        };
        let severity = match (over(limits.critical), over(limits.warning)) {
            (true, _) => Severity::Critical,
            (false, true) => Severity::Warning,
            (false, false) => return None,
        };
        Some((severity, format!("took {:.1} s to answer", millis as f64 / 1000.0)))
    }

    /// When it was last seen to be as it was at a capture with this log position; nothing when it has changed since.
    pub fn unchanged_since(&self, log_position: Option<&str>) -> Option<Timestamp> {
        let now = self.report.as_ref()?.log_position.as_deref()?;
        (self.failure.is_none() && log_position == Some(now)).then_some(self.checked_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_code::ErrorCode;

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(minute * 60).unwrap()
    }

    fn report(response_millis: u64) -> HealthReport {
        HealthReport { response_millis, log_position: Some("0/15".to_owned()), ..HealthReport::default() }
    }

    fn down() -> Result<HealthReport, Failure> {
        Err(Failure::new(ErrorCode::SourceUnreachable, "connection refused"))
    }

    fn severity(health: &Health) -> Option<Severity> {
        health.problem(&HealthLimits::default()).map(|(severity, _)| severity)
    }

    #[test]
    fn one_failure_warns_and_three_in_a_row_are_critical() {
        let mut health = Health::observe(None, Ok(report(3)), at(0));
        assert_eq!(severity(&health), None);
        for (minute, expected) in [(1, Severity::Warning), (2, Severity::Warning), (3, Severity::Critical)] {
            health = Health::observe(Some(&health), down(), at(minute));
            assert_eq!(severity(&health), Some(expected), "minute {minute}");
            assert_eq!(health.failing_since, Some(at(1)));
        }
        let (_, text) = health.problem(&HealthLimits::default()).unwrap();
        assert_eq!(text, "does not answer since 1970-01-01T00:01:00Z: [HF-2001] connection refused");
        health = Health::observe(Some(&health), Ok(report(3)), at(4));
        assert_eq!((severity(&health), health.failures, health.failing_since), (None, 0, None));
    }

    #[test]
    fn slow_answers_count_beyond_the_limits() {
        let of = |millis| severity(&Health::observe(None, Ok(report(millis)), at(0)));
        assert_eq!(
            [of(2000), of(2001), of(5000), of(5001)],
            [None, Some(Severity::Warning), Some(Severity::Warning), Some(Severity::Critical)]
        );
    }

    #[test]
    fn a_source_is_unchanged_while_its_log_stands_where_it_stood() {
        let health = Health::observe(None, Ok(report(1)), at(5));
        assert_eq!(health.unchanged_since(Some("0/15")), Some(at(5)));
        assert_eq!(health.unchanged_since(Some("0/14")), None);
        assert_eq!(health.unchanged_since(None), None);
        let silent = Health::observe(Some(&health), down(), at(6));
        assert_eq!(silent.unchanged_since(Some("0/15")), None, "it did not say so");
    }
}
