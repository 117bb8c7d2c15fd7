//! Policies: standing rules about when sources are backed up, what is promised of them and what is kept.
//!
//! Everything here is as it is written in the fleet files; a key that is left out has the default that is written out
//! by `export`. What the rules mean over time is in [`crate::schedule`], [`crate::retention`] and
//! [`crate::objectives`].

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::RepositoryName;
use crate::run::SnapshotType;
use crate::source::Hooks;
use crate::units::{Bytes, Count, Percent, Rate, SampleRate, Span};

mod calendar;
mod check;
mod watch;
mod when;

pub use calendar::{Cron, DateRange, InvalidCalendar, TimeWindow, Zone};
pub use check::PolicyProblem;
pub use watch::{HealthLimits, TableWatch, Watch, WatchLimits};
pub use when::{After, LogArchiving, Rule, When};

/// One policy, as declared in the fleet files. Its name is its key there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// What is promised.
    #[serde(skip_serializing_if = "is_default")]
    pub objectives: Objectives,
    /// When backups are made.
    #[serde(skip_serializing_if = "is_default")]
    pub schedule: Schedule,
    /// Which snapshots are kept; without it, all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// How long a snapshot is kept at least, by its type.
    #[serde(skip_serializing_if = "is_default")]
    pub keep_by_type: KeepByType,
    /// Repositories that sources of this policy are backed up to; what a source says itself comes first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<RepositoryName>,
    /// Repositories that each snapshot is copied to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub copy_to: Vec<RepositoryName>,
    /// How what is stored is proven to be readable.
    pub verify: Verify,
    /// What is done after a failure that may pass.
    pub retry: Retry,
    /// Which runs come first when not all can: `high`, `medium`, `low` or 1 to 100.
    pub priority: Priority,
    /// How busy the host of the source may be when a run begins.
    #[serde(skip_serializing_if = "is_default")]
    pub resources: Resources,
    /// Hooks of the agent's configuration that run around a backup; what a source says itself comes first.
    #[serde(skip_serializing_if = "Hooks::is_empty")]
    pub hooks: Hooks,
    /// How much may happen at the same time.
    #[serde(skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// How much the data may change between two snapshots without a word.
    #[serde(skip_serializing_if = "is_default")]
    pub watch: Watch,
    /// How often a source is asked whether it is well, and how slow its answers may be.
    #[serde(skip_serializing_if = "is_default")]
    pub health: HealthLimits,
    /// How long a run may take.
    pub timeout: Timeout,
    /// How fast an agent may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
}

impl Policy {
    /// The policy as a document with every default written out.
    pub fn effective(&self) -> serde_json::Value {
        let mut document = serde_json::to_value(self).unwrap_or_default();
        if let Some(keys) = document.as_object_mut() {
            let mut write_out = |key: &str, section: Result<serde_json::Value, _>| {
                keys.entry(key)
                    .or_insert_with(|| section.unwrap_or_else(|_: serde_json::Error| serde_json::json!({})));
            };
            write_out("schedule", serde_json::to_value(&self.schedule));
            write_out("resources", serde_json::to_value(&self.resources));
            write_out("watch", serde_json::to_value(&self.watch));
            write_out("health", serde_json::to_value(self.health));
            if self.keep.is_some() && self.keep_by_type.snapshot.is_none() {
                let stays =
                    KeepByType { snapshot: Some(KeepByType::SNAPSHOT_DEFAULT), ..self.keep_by_type.clone() };
                keys.insert("keep_by_type".to_owned(), serde_json::to_value(stays).unwrap_or_default());
            }
        }
        document
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What is promised of each source; each is shown beside what is measured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Objectives {
    /// How much work may be lost at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpo: Option<Span>,
    /// How long a restore may take at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rto: Option<Span>,
    /// How old the last drill may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drill_every: Option<Span>,
    /// How old the last verification may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify_every: Option<Span>,
    /// In how many repositories the newest snapshot is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copies: Option<Count>,
}

/// When backups are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Backups that re-read everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full: Option<When>,
    /// Backups that skip what is unchanged since the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incremental: Option<When>,
    /// Backups that skip what is unchanged since the last full one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differential: Option<When>,
    /// Short-lived backups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<When>,
    /// How the log of the database is archived: `stream`, or `{ every: 30s }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<LogArchiving>,
    /// Time zone of the window, the blackout dates, the buckets of `keep`, and of each cron rule that names none.
    pub timezone: Zone,
    /// Hours in which runs may begin, such as `22:00-06:00`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<TimeWindow>,
    /// Days on which no run begins, such as `2026-12-24` or `2026-12-30..2027-01-02`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blackout: Vec<DateRange>,
    /// How late a run may still begin. Of several that were missed only the newest is made up for.
    pub catch_up: Span,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            full: None,
            incremental: None,
            differential: None,
            snapshot: None,
            log: None,
            timezone: Zone::default(),
            window: None,
            blackout: Vec::new(),
            catch_up: Span::from_hours(6),
        }
    }
}

impl Schedule {
    /// The rules by the type of snapshot they make, the strongest type first.
    pub fn by_type(&self) -> impl Iterator<Item = (SnapshotType, &When)> {
        [
            (SnapshotType::Full, &self.full),
            (SnapshotType::Differential, &self.differential),
            (SnapshotType::Incremental, &self.incremental),
            (SnapshotType::Snapshot, &self.snapshot),
        ]
        .into_iter()
        .filter_map(|(snapshot_type, when)| Some((snapshot_type, when.as_ref()?)))
    }

    /// The zone that a rule is read in.
    pub fn zone_of<'a>(&'a self, when: &'a When) -> &'a Zone {
        when.timezone.as_ref().unwrap_or(&self.timezone)
    }
}

/// Which snapshots are kept: those that any of the rules keeps. With limits and no rule, all up to the limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Keep {
    /// The newest so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Count>,
    /// The newest of each of the last so many hours that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hourly: Option<Count>,
    /// The newest of each of the last so many days that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daily: Option<Count>,
    /// The newest of each of the last so many weeks that have one; weeks begin on Monday.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weekly: Option<Count>,
    /// The newest of each of the last so many months that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly: Option<Count>,
    /// The newest of each of the last so many years that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub yearly: Option<Count>,
    /// All that are not older than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<Span>,
    /// What is needed to return to any moment of this time; needs `schedule.log`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pitr: Option<Span>,
    /// Never more than so many; the oldest go first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_count: Option<Count>,
    /// Never more than this added to the repository; the oldest go first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_total_size: Option<Bytes>,
    /// Removes more while the storage is fuller than a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cleanup: Option<Cleanup>,
}

impl Keep {
    /// The rules that count or have periods or an age; not the limits.
    pub fn has_rules(&self) -> bool {
        let counts = [self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly];
        counts.iter().any(Option::is_some) || self.within.is_some() || self.pitr.is_some()
    }
}

/// Removes the oldest snapshots while the storage is fuller than a limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cleanup {
    /// Use of the storage, or bytes in the repository, above which it begins.
    pub above: Threshold,
    /// How many of the newest stay in any case.
    #[serde(default = "default_newest")]
    pub newest: Count,
}

fn default_newest() -> Count {
    Count::new(3)
}

/// A limit for the use of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threshold {
    /// Of its room.
    Share(Percent),
    /// Of the repository's bytes.
    Size(Bytes),
}

impl std::str::FromStr for Threshold {
    type Err = crate::units::InvalidAmount;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim_end().ends_with('%') {
            text.parse().map(Threshold::Share)
        } else {
            text.parse().map(Threshold::Size)
        }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Threshold::Share(share) => share.fmt(f),
            Threshold::Size(size) => size.fmt(f),
        }
    }
}

crate::units::text_form!(
    Threshold,
    "^[0-9]+ ?(%|[kMGTP]?B|[KMGTP]iB)$",
    "A share of the storage's room such as 85%, or bytes such as 500GiB."
);

/// How long a snapshot is kept at least, by its type.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeepByType {
    /// Full ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full: Option<Span>,
    /// Incremental ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incremental: Option<Span>,
    /// Differential ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differential: Option<Span>,
    /// Ad hoc ones; where anything is removed at all, they stay a day without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Span>,
}

impl KeepByType {
    /// How long ad hoc snapshots stay where nothing else is said.
    pub const SNAPSHOT_DEFAULT: Span = Span::from_days(1);

    /// The time of a type, as written.
    pub fn of(&self, snapshot_type: SnapshotType) -> Option<Span> {
        match snapshot_type {
            SnapshotType::Full => self.full,
            SnapshotType::Incremental => self.incremental,
            SnapshotType::Differential => self.differential,
            SnapshotType::Snapshot => self.snapshot,
        }
    }
}

/// How what is stored is proven to be readable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Verify {
    /// Each new snapshot is checked when it is committed.
    pub after_backup: bool,
    /// A share of the packs is read each day or week.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<SampleRate>,
    /// Every pack is read within this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full: Option<Span>,
}

impl Default for Verify {
    fn default() -> Self {
        Self { after_backup: true, sample: None, full: None }
    }
}

impl Verify {
    /// Within which time every byte is read; none when nothing makes sure of it.
    pub fn reads_all_within(&self) -> Option<Span> {
        let sampled = self.sample.map(|sample| {
            let rounds = 100_u32.div_ceil(u32::from(sample.share.get()));
            Span::from_secs(sample.per.secs() * i64::from(rounds))
        });
        self.full.into_iter().chain(sampled).min()
    }
}

/// What is done after a failure that may pass by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// How often a run is tried, the first time included.
    pub attempts: Count,
    /// How long to wait before the second attempt; each wait after it is twice as long.
    pub backoff: Span,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: Count::new(3), backoff: Span::from_mins(5) }
    }
}

/// Which runs come first when not all can; 1 to 100, more comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(u8);

impl Priority {
    /// `high`
    pub const HIGH: Priority = Priority(75);
    /// `medium`
    pub const MEDIUM: Priority = Priority(50);
    /// `low`
    pub const LOW: Priority = Priority(25);

    const WORDS: [(&'static str, Priority); 3] =
        [("high", Self::HIGH), ("medium", Self::MEDIUM), ("low", Self::LOW)];

    /// 1 to 100.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::MEDIUM
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::WORDS.iter().find(|(_, priority)| priority == self) {
            Some((word, _)) => f.write_str(word),
            None => self.0.fmt(f),
        }
    }
}

impl Serialize for Priority {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match Self::WORDS.iter().find(|(_, priority)| priority == self) {
            Some((word, _)) => serializer.serialize_str(word),
            None => serializer.serialize_u8(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Priority {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;

        impl serde::de::Visitor<'_> for Words {
            type Value = Priority;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a priority: high, medium, low, or a number from 1 to 100")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Priority, E> {
                match u8::try_from(number) {
                    Ok(number @ 1..=100) => Ok(Priority(number)),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Unsigned(number), &self)),
                }
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Priority, E> {
                let known = Priority::WORDS.iter().find(|(word, _)| *word == text);
                known
                    .map(|(_, priority)| *priority)
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(Words)
    }
}

impl JsonSchema for Priority {
    fn schema_name() -> Cow<'static, str> {
        "Priority".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [{ "enum": ["high", "medium", "low"] }, { "type": "integer", "minimum": 1, "maximum": 100 }],
            "description": "Which runs come first when not all can; more comes first, medium is 50."
        })
    }
}

/// How busy the host of the source may be when a run begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Memory in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Percent>,
    /// Processors in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Percent>,
    /// Room in use on the disk of the agent's data folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Percent>,
    /// How long a run waits for the host to become less busy.
    pub wait: Span,
    /// What is done when the wait is over.
    pub then: WhenBusy,
}

impl Default for Resources {
    fn default() -> Self {
        Self { memory: None, cpu: None, disk: None, wait: Span::from_mins(5), then: WhenBusy::default() }
    }
}

/// What is done with a run whose host stays too busy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenBusy {
    /// It is left out, with a warning.
    #[default]
    Skip,
    /// It fails.
    Fail,
    /// It begins all the same.
    Run,
}

/// How much may happen at the same time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Runs of all sources of this policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs: Option<Count>,
    /// Runs of this policy on one agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs_per_agent: Option<Count>,
    /// Runs of this policy into one repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs_per_repository: Option<Count>,
}

/// How long a run may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Timeout(pub Span);

impl Default for Timeout {
    fn default() -> Self {
        Self(Span::from_days(1))
    }
}

/// How fast an agent may send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    /// At any time that `hours` says nothing of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Rate>,
    /// By time of day, in the schedule's time zone; the first that fits counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hours: Vec<BandwidthHours>,
}

/// How fast an agent may send in some hours of each day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BandwidthHours {
    /// Which hours.
    pub window: TimeWindow,
    /// How fast.
    pub limit: Rate,
}

/// How fast one run may send: what its policy says, with the zone of its hours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// What the policy says.
    pub bandwidth: Bandwidth,
    /// Time zone of its hours.
    pub timezone: Zone,
}

impl Pace {
    /// The rate at a moment; none when there is no limit then.
    pub fn rate_at(&self, now: Timestamp) -> Option<Rate> {
        let time = self.timezone.time_zone().to_datetime(now).time();
        let hours = self.bandwidth.hours.iter().find(|hours| hours.window.contains(time));
        hours.map(|hours| hours.limit).or(self.bandwidth.limit)
    }
}

#[cfg(test)]
mod tests;
