//! Reports that are sent by themselves, as declared in the fleet files.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{HOURS_DEFAULT, HOURS_MAX, ReportKind};
use crate::ids::{ChannelName, SourceName};
use crate::policy::{Cron, Zone};
use crate::units::Span;

/// Channels that one report is sent to, at most.
const CHANNELS_MAX: usize = 20;

/// A report that is sent by itself. Its name is its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReportSchedule {
    /// Which one.
    pub report: ReportKind,
    /// When: minute, hour, day of month, month, day of week; or `@daily`, `@weekly`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<Cron>,
    /// Or how often, counted from 1970-01-01 00:00 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,
    /// The time zone of `cron`, of the days that are covered, and of the times in the report.
    #[serde(default, skip_serializing_if = "is_utc")]
    pub timezone: Zone,
    /// logs: how many hours are covered; 24 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<u32>,
    /// logs: only the runs of this source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceName>,
    /// The channels that it is sent to.
    pub to: Vec<ChannelName>,
}

fn is_utc(zone: &Zone) -> bool {
    zone.as_str() == Zone::default().as_str()
}

impl ReportSchedule {
    /// How many hours a report of the runs covers.
    pub fn hours(&self) -> u32 {
        self.hours.unwrap_or(HOURS_DEFAULT)
    }

    /// The newest moment at which it was due and that lies after `after`. Of several that were missed, only the newest
    /// counts: the others would say what is past.
    pub fn due(&self, after: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let slot = match (&self.cron, self.every) {
            (Some(cron), _) => cron.newest(now, &self.timezone),
            (None, Some(every)) => {
                let seconds = now.as_second();
                Timestamp::from_second(seconds - seconds.rem_euclid(every.secs())).ok()
            }
            (None, None) => None,
        };
        slot.filter(|slot| *slot > after)
    }

    /// What its moments follow from, as text: two that are alike have the same moments.
    pub fn rule(&self) -> String {
        match (&self.cron, self.every) {
            (Some(cron), _) => format!("{cron} {}", self.timezone.as_str()),
            (None, every) => every.map_or_else(String::new, |every| every.to_string()),
        }
    }

    /// What does not make sense: the key, and why.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.cron.is_some() == self.every.is_some() {
            problems.push(("cron", "exactly one of `cron` and `every` is needed".to_owned()));
        }
        if self.to.is_empty() {
            problems.push(("to", "`to` names no channel".to_owned()));
        }
        if self.to.len() > CHANNELS_MAX {
            problems.push(("to", format!("`to` names more than {CHANNELS_MAX} channels")));
        }
        for (key, is_given) in [("hours", self.hours.is_some()), ("source", self.source.is_some())] {
            if is_given && self.report != ReportKind::Logs {
                problems.push((key, format!("`{key}` belongs to `report: logs` only")));
            }
        }
        if let Some(hours) = self.hours
            && !(1..=HOURS_MAX).contains(&hours)
        {
            problems.push(("hours", format!("`hours` is {hours}, 1 to {HOURS_MAX} are possible")));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(yaml: &str) -> ReportSchedule {
        crate::fleet::read_yaml("report", yaml).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn of_the_moments_that_were_missed_only_the_newest_is_due() {
        let monday = "{ report: weekly, cron: \"0 8 * * MON\", timezone: Asia/Shanghai, to: [mail] }";
        let monday = schedule(monday);
        let declared = at("2026-06-01T00:30:00Z");
        assert_eq!(monday.due(declared, at("2026-06-07T23:59:59Z")), None);
        // 08:00 in Shanghai is midnight in UTC.
        let first = at("2026-06-08T00:00:00Z");
        assert_eq!(monday.due(declared, first), Some(first));
        assert_eq!(monday.due(first, at("2026-06-09T12:00:00Z")), None);
        assert_eq!(monday.due(first, at("2026-06-24T12:00:00Z")), Some(at("2026-06-22T00:00:00Z")));
        let often = schedule("{ report: logs, every: 2h, to: [mail] }");
        assert_eq!(often.due(declared, at("2026-06-01T01:59:59Z")), None);
        assert_eq!(often.due(declared, at("2026-06-01T05:00:00Z")), Some(at("2026-06-01T04:00:00Z")));
    }

    #[test]
    fn what_does_not_make_sense_is_said() {
        let table = [
            ("{ report: daily, cron: \"@daily\", to: [] }", "`to` names no channel"),
            ("{ report: daily, to: [a] }", "exactly one of `cron` and `every` is needed"),
            (
                "{ report: daily, cron: \"@daily\", every: 1d, to: [a] }",
                "exactly one of `cron` and `every` is needed",
            ),
            (
                "{ report: daily, cron: \"@daily\", hours: 5, to: [a] }",
                "`hours` belongs to `report: logs` only",
            ),
            (
                "{ report: weekly, cron: \"@daily\", source: a, to: [a] }",
                "`source` belongs to `report: logs` only",
            ),
            ("{ report: logs, every: 1h, hours: 745, to: [a] }", "`hours` is 745, 1 to 744 are possible"),
        ];
        for (yaml, message) in table {
            let problems: Vec<String> =
                schedule(yaml).problems().into_iter().map(|(_, message)| message).collect();
            assert_eq!(problems, [message], "{yaml}");
        }
    }
}
