//! Policies, and the runs that they will begin.

use holdfast_model::policy::{Policy, Schedule};
use holdfast_proto::v1;
pub(crate) use holdfast_proto::views::RetentionView;
use jiff::Timestamp;
use serde::Serialize;

use super::{dash, filled, moment};
use crate::output::text::{short_snapshot, size};
use crate::output::{Column, Record, Tone};

/// One policy as declared.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PolicyView {
    /// Its name.
    pub name: String,
    /// Its definition, as in a fleet file.
    pub definition: serde_json::Value,
    /// Sources under it.
    pub sources: Vec<String>,
    /// Changes with every update.
    pub version: u64,
    /// When it was changed.
    pub updated_at: Option<Timestamp>,
    /// By whom.
    pub updated_by: String,
    /// Who manages it; null: it is changed by hand.
    pub owner: Option<String>,
    #[serde(skip)]
    policy: Option<Policy>,
}

impl From<v1::Definition> for PolicyView {
    fn from(definition: v1::Definition) -> Self {
        Self {
            name: definition.name,
            definition: serde_json::from_str(&definition.spec_json).unwrap_or_default(),
            sources: Vec::new(),
            version: definition.version,
            updated_at: moment(definition.updated_at),
            updated_by: definition.updated_by,
            owner: filled(definition.owner),
            policy: serde_json::from_str(&definition.spec_json).ok(),
        }
    }
}

impl PolicyView {
    /// The definition, when this version understands it.
    pub(crate) fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    fn of(&self, text: impl Fn(&Policy) -> String) -> String {
        self.policy.as_ref().map_or_else(|| "-".to_owned(), text)
    }
}

/// The rules in a few words: `full 0 2 * * SUN, incremental every 1h`.
fn rules(schedule: &Schedule) -> String {
    let rules: Vec<String> =
        schedule.by_type().map(|(snapshot_type, when)| format!("{snapshot_type} {when}")).collect();
    dash(Some(&rules.join(", ")))
}

fn promise(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

impl Record for PolicyView {
    const KIND: &'static str = "Policy";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("POLICY", |view, _| view.name.clone()),
            Column::<Self>::left("SCHEDULE", |view, _| view.of(|policy| rules(&policy.schedule))),
            Column::<Self>::right("RPO", |view, _| view.of(|policy| promise(policy.objectives.rpo))),
            Column::<Self>::right("RTO", |view, _| view.of(|policy| promise(policy.objectives.rto))),
            Column::<Self>::left("KEEP", |view, _| {
                view.of(|policy| if policy.keep.is_some() { "as ruled" } else { "all" }.to_owned())
            }),
            Column::<Self>::left("SOURCES", |view, _| dash(Some(&view.sources.join(" ")))),
            Column::<Self>::left("CHANGED", |view, look| look.time_or(view.updated_at, "-")).only_wide(),
            Column::<Self>::left("BY", |view, _| view.updated_by.clone()).only_wide(),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// A run to come, or that none does.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct UpcomingView {
    /// The source.
    pub source: String,
    /// The policy that it is under.
    pub policy: String,
    /// When it begins; null: nothing comes by the clock.
    pub begins_at: Option<Timestamp>,
    /// The moment of the rule, without jitter.
    pub slot_at: Option<Timestamp>,
    /// full, incremental, differential or snapshot.
    pub snapshot_type: Option<String>,
    /// Whether the source is paused now.
    pub paused: bool,
    /// When the pause ends by itself.
    pub paused_until: Option<Timestamp>,
    /// Why it is paused.
    pub pause_reason: Option<String>,
}

impl UpcomingView {
    /// One line per run to come, and one for a source without any.
    pub(crate) fn of(schedule: v1::SourceSchedule) -> Vec<Self> {
        let pause = schedule.pause;
        let line = |run: Option<&v1::UpcomingRun>| Self {
            source: schedule.source.clone(),
            policy: schedule.policy.clone(),
            begins_at: run.and_then(|run| moment(run.begins_at)),
            slot_at: run.and_then(|run| moment(run.slot_at)),
            snapshot_type: run.and_then(|run| filled(run.snapshot_type.clone())),
            paused: pause.is_some(),
            paused_until: pause.as_ref().and_then(|pause| moment(pause.until)),
            pause_reason: pause.as_ref().and_then(|pause| filled(pause.reason.clone())),
        };
        if schedule.upcoming.is_empty() {
            return vec![line(None)];
        }
        schedule.upcoming.iter().map(|run| line(Some(run))).collect()
    }
}

impl Record for UpcomingView {
    const KIND: &'static str = "UpcomingRun";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("BEGINS", |run, look| match run.begins_at {
                Some(at) => look.time(at),
                None if run.paused => "paused".to_owned(),
                None => "not by the clock".to_owned(),
            })
            .toned(|run| if run.begins_at.is_none() { Tone::Warning } else { Tone::Plain }),
            Column::<Self>::left("SOURCE", |run, _| run.source.clone()),
            Column::<Self>::left("TYPE", |run, _| dash(run.snapshot_type.as_deref())),
            Column::<Self>::left("POLICY", |run, _| run.policy.clone()),
            Column::<Self>::left("PAUSED", |run, look| match (run.paused, run.paused_until) {
                (false, _) => "-".to_owned(),
                (true, until) => {
                    let reason = run.pause_reason.as_deref().unwrap_or("-");
                    format!("{}: {reason}", until.map_or("until resumed".to_owned(), |at| look.time(at)))
                }
            }),
            Column::<Self>::left("SLOT", |run, look| look.time_or(run.slot_at, "-")).only_wide(),
        ]
    }

    fn name(&self) -> String {
        self.source.clone()
    }
}

impl Record for RetentionView {
    const KIND: &'static str = "RetentionDecision";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("SOURCE", |view, _| view.source.clone()),
            Column::<Self>::left("REPOSITORY", |view, _| view.repository.clone()),
            Column::<Self>::left("SNAPSHOT", |view, _| short_snapshot(&view.snapshot_id).to_owned()),
            Column::<Self>::left("COMMITTED", |view, look| look.time_or(view.committed_at, "-")),
            Column::<Self>::left("TYPE", |view, _| dash(view.snapshot_type.as_deref())),
            Column::<Self>::left("VERDICT", |view, _| if view.keep { "keep" } else { "remove" }.to_owned())
                .toned(|view| if view.keep { Tone::Plain } else { Tone::Warning }),
            Column::<Self>::left("WHY", |view, _| view.reason.clone()),
            Column::<Self>::right("ADDED", |view, _| size(view.stored_bytes)).only_wide(),
        ]
    }

    fn name(&self) -> String {
        self.snapshot_id.clone()
    }
}
