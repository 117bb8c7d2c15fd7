//! What is at stake, what is wrong, who did what.

use std::time::Duration;

use holdfast_proto::v1;
use holdfast_proto::views::SourceHealthView;
pub(crate) use holdfast_proto::views::{ObjectiveView, PlaceView, SourceStatusView};
use jiff::Timestamp;
use serde::Serialize;

use super::{dash, filled, moment};
use crate::output::text::{count, duration, rough, size};
use crate::output::{Column, Record, Tone};

/// In a line; empty when nothing is known.
pub(crate) fn health_line(health: &SourceHealthView) -> String {
    match (&health.problem, health.response_seconds) {
        (Some(problem), _) => problem.clone(),
        (None, None) => String::new(),
        (None, Some(took)) => {
            let log = health.log_bytes.map(|bytes| format!(", keeps {} of log", size(bytes)));
            format!("answers in {:.0} ms{}", took * 1000.0, log.unwrap_or_default())
        }
    }
}

/// Its name, a sign, and the measure beside the promise: `4m of 5m`.
pub(crate) fn objective_cells(objective: &ObjectiveView) -> Vec<(String, Tone)> {
    let label = match objective.objective.as_str() {
        "rpo" => "loss if now",
        "rto" => "restore takes",
        "drill_age" => "restore proven",
        "verify_age" => "read in full",
        other => other,
    };
    let amount = |value: Option<i64>| match (value, objective.objective.as_str()) {
        (None, "rpo") => "ALL".to_owned(),
        (None, "rto") => "not known".to_owned(),
        (None, _) => "never".to_owned(),
        (Some(number), "copies") => number.to_string(),
        (Some(seconds), "drill_age" | "verify_age") => format!("{} ago", span(seconds)),
        (Some(seconds), _) => span(seconds),
    };
    let promised = match (objective.target, objective.objective.as_str()) {
        (None, _) => String::new(),
        (Some(number), "copies") => format!("{number} promised"),
        (Some(seconds), "drill_age" | "verify_age") => format!("every {} promised", span(seconds)),
        (Some(seconds), _) => format!("{} promised", span(seconds)),
    };
    let (sign, tone) = match objective.state.as_str() {
        "met" => ("ok", Tone::Good),
        "at_risk" => ("!! at risk", Tone::Warning),
        "breached" => ("XX breached", Tone::Bad),
        "unknown" => ("?? not known yet", Tone::Warning),
        _ => ("not promised", Tone::Plain),
    };
    vec![
        (format!("  {label}"), Tone::Plain),
        (amount(objective.actual), Tone::Plain),
        (promised, Tone::Plain),
        (sign.to_owned(), tone),
    ]
}

fn span(seconds: i64) -> String {
    rough(Duration::from_secs(seconds.unsigned_abs()))
}

/// Objectives that were promised, for a list: `ok`, or those that do not hold.
fn promises(status: &SourceStatusView) -> String {
    let named = |state: &str| {
        let names = status.objectives.iter().filter(|objective| objective.state == state);
        names.map(|objective| objective.objective.as_str()).collect::<Vec<_>>().join(",")
    };
    let (breached, at_risk) = (named("breached"), named("at_risk"));
    match (breached.as_str(), at_risk.as_str()) {
        ("", "") if status.objectives.iter().all(|objective| objective.state == "not_set") => "-".to_owned(),
        ("", "") => "kept".to_owned(),
        ("", at_risk) => format!("!! {at_risk}"),
        (breached, _) => format!("XX {breached}"),
    }
}

/// What would be lost now, in a word.
pub(crate) fn loss(status: &SourceStatusView) -> String {
    status.loss_seconds.map_or_else(|| "ALL".to_owned(), |seconds| rough(Duration::from_secs(seconds)))
}

/// How long a restore takes, in a word.
pub(crate) fn restore_time(status: &SourceStatusView) -> String {
    status
        .restore_seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .map_or_else(|| "-".to_owned(), duration)
}

/// The state as a sign and a word.
pub(crate) fn state_text(status: &SourceStatusView) -> String {
    match status.state.as_str() {
        "protected" if status.is_damaged() => "XX damaged".to_owned(),
        "protected" => "ok".to_owned(),
        "paused" => "|| paused".to_owned(),
        "at_risk" => "!! at risk".to_owned(),
        "not_restorable" => "XX not restorable".to_owned(),
        other => other.to_owned(),
    }
}

/// What the state means.
pub(crate) fn tone(status: &SourceStatusView) -> Tone {
    match status.state.as_str() {
        "protected" if !status.is_damaged() => Tone::Good,
        "at_risk" | "paused" => Tone::Warning,
        _ => Tone::Bad,
    }
}

impl Record for SourceStatusView {
    const KIND: &'static str = "SourceStatus";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("SOURCE", |status, _| status.source.clone()),
            Column::<Self>::left("ENGINE", |status, _| dash(Some(&status.engine))),
            Column::<Self>::left("RESTORABLE TO", |status, look| look.time_or(status.recovery_point_at, "-")),
            Column::<Self>::right("LOSS IF NOW", |status, _| loss(status))
                .toned(|status| if status.loss_seconds.is_none() { Tone::Bad } else { Tone::Plain }),
            Column::<Self>::right("RESTORE TAKES", |status, _| restore_time(status)),
            Column::<Self>::left("RESTORE PROVEN", |status, look| look.time_or(status.proven_at, "never")),
            Column::<Self>::right("COPIES", |status, _| status.copies.to_string()),
            Column::<Self>::left("PROMISES", |status, _| promises(status)),
            Column::<Self>::left("NEXT RUN", |status, look| look.time_or(status.next_run_at, "-")),
            Column::<Self>::left("POLICY", |status, _| dash(status.policy.as_deref())).only_wide(),
            Column::<Self>::right("SNAPSHOTS", |status, _| count(status.snapshots)).only_wide(),
            Column::<Self>::right("SIZE", |status, _| size(status.logical_bytes)).only_wide(),
            Column::<Self>::left("AGENT", |status, _| {
                format!("{}{}", status.agent, if status.agent_online { "" } else { " (offline)" })
            })
            .only_wide(),
            Column::<Self>::left("STATE", |status, _| state_text(status)).toned(tone),
        ]
    }

    fn name(&self) -> String {
        self.source.clone()
    }
}

/// One finding of the doctor.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FindingView {
    /// cli, controller, repository, agent, source, key or time.
    pub area: String,
    /// What of it.
    pub object: Option<String>,
    /// ok, warning, failed or not_set.
    pub outcome: String,
    /// What was found.
    pub message: String,
    /// A command that helps.
    pub remedy: Option<String>,
}

impl From<v1::Finding> for FindingView {
    fn from(finding: v1::Finding) -> Self {
        Self {
            area: finding.area,
            object: filled(finding.object),
            outcome: finding.outcome,
            message: finding.message,
            remedy: filled(finding.remedy),
        }
    }
}

impl FindingView {
    /// The outcome as it is printed.
    pub(crate) fn sign(&self) -> &'static str {
        match self.outcome.as_str() {
            "ok" => "ok",
            "warning" => "!!",
            "failed" => "XX",
            _ => "not set",
        }
    }

    /// What the outcome means.
    pub(crate) fn tone(&self) -> Tone {
        match self.outcome.as_str() {
            "ok" => Tone::Good,
            "failed" => Tone::Bad,
            _ => Tone::Warning,
        }
    }
}

impl Record for FindingView {
    const KIND: &'static str = "Finding";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("AREA", |finding, _| finding.area.clone()),
            Column::<Self>::left("", |finding, _| finding.sign().to_owned()).toned(FindingView::tone),
            Column::<Self>::left("FINDING", |finding, _| match &finding.object {
                Some(object) => format!("{object}: {}", finding.message),
                None => finding.message.clone(),
            }),
            Column::<Self>::left("FIX", |finding, _| finding.remedy.clone().unwrap_or_default()),
        ]
    }

    fn name(&self) -> String {
        format!("{}/{}", self.area, self.object.as_deref().unwrap_or_default())
    }
}

/// One entry of the audit log.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AuditView {
    /// Its number.
    pub seq: u64,
    /// When.
    pub at: Option<Timestamp>,
    /// Who.
    pub actor: String,
    /// What.
    pub action: String,
    /// On what.
    pub target: String,
    /// Particulars.
    pub detail: String,
    /// Hash of its frame in the journal.
    pub hash: String,
}

impl From<v1::AuditEntry> for AuditView {
    fn from(entry: v1::AuditEntry) -> Self {
        Self {
            seq: entry.seq,
            at: moment(entry.at),
            actor: entry.actor,
            action: entry.action,
            target: entry.target,
            detail: entry.detail,
            hash: entry.hash,
        }
    }
}

impl Record for AuditView {
    const KIND: &'static str = "AuditEntry";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::right("SEQ", |entry, _| entry.seq.to_string()),
            Column::<Self>::left("TIME", |entry, look| look.time_or(entry.at, "-")),
            Column::<Self>::left("ACTOR", |entry, _| entry.actor.clone()),
            Column::<Self>::left("ACTION", |entry, _| entry.action.clone()),
            Column::<Self>::left("TARGET", |entry, _| dash(Some(&entry.target))),
            Column::<Self>::left("DETAIL", |entry, _| dash(Some(&entry.detail))),
            Column::<Self>::left("HASH", |entry, _| entry.hash.clone()).only_wide(),
        ]
    }

    fn name(&self) -> String {
        self.seq.to_string()
    }
}
