//! What is at stake, what is wrong, who did what.

use std::time::Duration;

use holdfast_proto::v1;
use jiff::Timestamp;
use serde::Serialize;

use super::run::RunView;
use super::{dash, filled, moment, seconds};
use crate::output::text::{count, duration, rough, size};
use crate::output::{Column, Record, Tone};

/// The state of one source.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct SourceStatusView {
    /// Its name.
    pub source: String,
    /// Its engine and version.
    pub engine: String,
    /// Its agent.
    pub agent: String,
    /// Whether the agent is connected.
    pub agent_online: bool,
    /// protected, paused, at_risk or not_restorable.
    pub state: String,
    /// Why it is not protected.
    pub problem: Option<String>,
    /// A command against that.
    pub remedy: Option<String>,
    /// Newest moment that can be restored.
    pub recovery_point_at: Option<Timestamp>,
    /// What would be lost now; null: everything.
    pub loss_seconds: Option<u64>,
    /// How long the last restore took.
    pub restore_seconds: Option<f64>,
    /// When a restore was last proven.
    pub proven_at: Option<Timestamp>,
    /// Repositories that hold a snapshot of it.
    pub copies: u32,
    /// Its snapshots.
    pub snapshots: u64,
    /// Size of its newest snapshot.
    pub logical_bytes: u64,
    /// Its newest snapshot.
    pub snapshot_id: Option<String>,
    /// Highest proof of its newest snapshot.
    pub proof: Option<String>,
    /// Its active run.
    pub active_run: Option<RunView>,
    /// Its last ended backup.
    pub last_backup: Option<RunView>,
    /// The policy that it is under.
    pub policy: Option<String>,
    /// What is promised beside what is measured.
    pub objectives: Vec<ObjectiveView>,
    /// When the next backup begins by itself.
    pub next_run_at: Option<Timestamp>,
    /// Whether no backup begins by itself for now.
    pub paused: bool,
    /// Slots of its schedule that yielded no run.
    pub missed_slots: u64,
    /// When every byte of a snapshot was last read.
    pub verified_at: Option<Timestamp>,
    /// Whether the source itself answers.
    pub health: HealthView,
    /// How it stands in each repository, in the order of their names.
    pub places: Vec<PlaceView>,
    /// Until when its runs write debug lines.
    pub debug_until: Option<Timestamp>,
}

/// How a source stands in one repository.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct PlaceView {
    /// The repository.
    pub repository: String,
    /// Its newest sound snapshot there.
    pub snapshot_id: Option<String>,
    /// The moment that it shows.
    pub captured_at: Option<Timestamp>,
    /// By how much that is older than the newest of all; null when there is none.
    pub behind_seconds: Option<i64>,
    /// Whether its policy has snapshots copied there.
    pub is_copy: bool,
    /// damaged, restored, read, checked or uploaded.
    pub proof: Option<String>,
    /// Why the last copy failed.
    pub problem: Option<String>,
}

impl From<v1::SourcePlace> for PlaceView {
    fn from(place: v1::SourcePlace) -> Self {
        Self {
            repository: place.repository,
            snapshot_id: filled(place.snapshot_id),
            captured_at: moment(place.captured_at),
            behind_seconds: place.behind_seconds,
            is_copy: place.is_copy,
            proof: filled(place.proof),
            problem: filled(place.problem),
        }
    }
}

/// Whether a source answers, and how fast.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct HealthView {
    /// ok, warning, critical or unknown.
    pub state: String,
    /// What is wrong.
    pub problem: Option<String>,
    /// How long its last answer took.
    pub response_seconds: Option<f64>,
    /// Bytes of log that it keeps.
    pub log_bytes: Option<u64>,
    /// When it was asked last.
    pub checked_at: Option<Timestamp>,
}

impl From<v1::SourceHealth> for HealthView {
    fn from(health: v1::SourceHealth) -> Self {
        Self {
            state: health.state,
            problem: filled(health.problem),
            response_seconds: health.response_millis.map(seconds),
            log_bytes: health.log_bytes,
            checked_at: moment(health.checked_at),
        }
    }
}

impl HealthView {
    /// In a line; empty when nothing is known.
    pub(crate) fn line(&self) -> String {
        match (&self.problem, self.response_seconds) {
            (Some(problem), _) => problem.clone(),
            (None, None) => String::new(),
            (None, Some(took)) => {
                let log = self.log_bytes.map(|bytes| format!(", keeps {} of log", size(bytes)));
                format!("answers in {:.0} ms{}", took * 1000.0, log.unwrap_or_default())
            }
        }
    }
}

/// A promise beside what is measured.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct ObjectiveView {
    /// rpo, rto, drill_age, verify_age or copies.
    pub objective: String,
    /// What was promised: seconds, or a number of copies.
    pub target: Option<i64>,
    /// What is measured, in the same unit.
    pub actual: Option<i64>,
    /// met, at_risk, breached, not_set or unknown.
    pub state: String,
}

impl From<v1::Objective> for ObjectiveView {
    fn from(objective: v1::Objective) -> Self {
        Self {
            objective: objective.name,
            target: objective.target,
            actual: objective.actual,
            state: objective.state,
        }
    }
}

impl ObjectiveView {
    /// Its name, a sign, and the measure beside the promise: `4m of 5m`.
    pub(crate) fn cells(&self) -> Vec<(String, Tone)> {
        let label = match self.objective.as_str() {
            "rpo" => "loss if now",
            "rto" => "restore takes",
            "drill_age" => "restore proven",
            "verify_age" => "read in full",
            other => other,
        };
        let amount = |value: Option<i64>| match (value, self.objective.as_str()) {
            (None, "rpo") => "ALL".to_owned(),
            (None, "rto") => "not known".to_owned(),
            (None, _) => "never".to_owned(),
            (Some(number), "copies") => number.to_string(),
            (Some(seconds), "drill_age" | "verify_age") => format!("{} ago", span(seconds)),
            (Some(seconds), _) => span(seconds),
        };
        let promised = match (self.target, self.objective.as_str()) {
            (None, _) => String::new(),
            (Some(number), "copies") => format!("{number} promised"),
            (Some(seconds), "drill_age" | "verify_age") => format!("every {} promised", span(seconds)),
            (Some(seconds), _) => format!("{} promised", span(seconds)),
        };
        let (sign, tone) = match self.state.as_str() {
            "met" => ("ok", Tone::Good),
            "at_risk" => ("!! at risk", Tone::Warning),
            "breached" => ("XX breached", Tone::Bad),
            "unknown" => ("?? not known yet", Tone::Warning),
            _ => ("not promised", Tone::Plain),
        };
        vec![
            (format!("  {label}"), Tone::Plain),
            (amount(self.actual), Tone::Plain),
            (promised, Tone::Plain),
            (sign.to_owned(), tone),
        ]
    }
}

fn span(seconds: i64) -> String {
    rough(Duration::from_secs(seconds.unsigned_abs()))
}

impl From<v1::SourceStatus> for SourceStatusView {
    fn from(status: v1::SourceStatus) -> Self {
        Self {
            source: status.source,
            engine: status.engine,
            agent: status.agent,
            agent_online: status.agent_online,
            state: status.state,
            problem: filled(status.problem),
            remedy: filled(status.remedy),
            recovery_point_at: moment(status.recovery_point),
            loss_seconds: u64::try_from(status.loss_seconds).ok(),
            restore_seconds: (status.restore_millis > 0).then(|| seconds(status.restore_millis)),
            proven_at: moment(status.proven_at),
            copies: status.copies,
            snapshots: status.snapshots,
            logical_bytes: status.logical_bytes,
            snapshot_id: filled(status.snapshot_id),
            proof: filled(status.proof),
            active_run: status.active_run.map(RunView::from),
            last_backup: status.last_backup.map(RunView::from),
            policy: filled(status.policy),
            objectives: status.objectives.into_iter().map(ObjectiveView::from).collect(),
            next_run_at: moment(status.next_run_at),
            paused: status.pause.is_some(),
            missed_slots: status.missed_slots,
            verified_at: moment(status.verified_at),
            health: status.health.unwrap_or_default().into(),
            places: status.places.into_iter().map(PlaceView::from).collect(),
            debug_until: moment(status.debug.and_then(|debug| debug.until)),
        }
    }
}

impl SourceStatusView {
    /// Whether its newest snapshot is known to be damaged.
    pub(crate) fn is_damaged(&self) -> bool {
        self.proof.as_deref() == Some("damaged")
    }

    /// Whether nothing needs attention.
    pub(crate) fn is_protected(&self) -> bool {
        matches!(self.state.as_str(), "protected" | "paused") && !self.is_damaged()
    }

    /// Objectives that were promised, for a list: `ok`, or those that do not hold.
    fn promises(&self) -> String {
        let named = |state: &str| {
            let names = self.objectives.iter().filter(|objective| objective.state == state);
            names.map(|objective| objective.objective.as_str()).collect::<Vec<_>>().join(",")
        };
        let (breached, at_risk) = (named("breached"), named("at_risk"));
        match (breached.as_str(), at_risk.as_str()) {
            ("", "") if self.objectives.iter().all(|objective| objective.state == "not_set") => {
                "-".to_owned()
            }
            ("", "") => "kept".to_owned(),
            ("", at_risk) => format!("!! {at_risk}"),
            (breached, _) => format!("XX {breached}"),
        }
    }

    /// What would be lost now, in a word.
    pub(crate) fn loss(&self) -> String {
        self.loss_seconds.map_or_else(|| "ALL".to_owned(), |seconds| rough(Duration::from_secs(seconds)))
    }

    /// How long a restore takes, in a word.
    pub(crate) fn restore_time(&self) -> String {
        self.restore_seconds
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .map_or_else(|| "-".to_owned(), duration)
    }

    /// The state as a sign and a word.
    pub(crate) fn state_text(&self) -> String {
        match self.state.as_str() {
            "protected" if self.is_damaged() => "XX damaged".to_owned(),
            "protected" => "ok".to_owned(),
            "paused" => "|| paused".to_owned(),
            "at_risk" => "!! at risk".to_owned(),
            "not_restorable" => "XX not restorable".to_owned(),
            other => other.to_owned(),
        }
    }

    /// What the state means.
    pub(crate) fn tone(&self) -> Tone {
        match self.state.as_str() {
            "protected" if !self.is_damaged() => Tone::Good,
            "at_risk" | "paused" => Tone::Warning,
            _ => Tone::Bad,
        }
    }
}

impl Record for SourceStatusView {
    const KIND: &'static str = "SourceStatus";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("SOURCE", |status, _| status.source.clone()),
            Column::<Self>::left("ENGINE", |status, _| dash(Some(&status.engine))),
            Column::<Self>::left("RESTORABLE TO", |status, look| look.time_or(status.recovery_point_at, "-")),
            Column::<Self>::right("LOSS IF NOW", |status, _| status.loss())
                .toned(|status| if status.loss_seconds.is_none() { Tone::Bad } else { Tone::Plain }),
            Column::<Self>::right("RESTORE TAKES", |status, _| status.restore_time()),
            Column::<Self>::left("RESTORE PROVEN", |status, look| look.time_or(status.proven_at, "never")),
            Column::<Self>::right("COPIES", |status, _| status.copies.to_string()),
            Column::<Self>::left("PROMISES", |status, _| status.promises()),
            Column::<Self>::left("NEXT RUN", |status, look| look.time_or(status.next_run_at, "-")),
            Column::<Self>::left("POLICY", |status, _| dash(status.policy.as_deref())).only_wide(),
            Column::<Self>::right("SNAPSHOTS", |status, _| count(status.snapshots)).only_wide(),
            Column::<Self>::right("SIZE", |status, _| size(status.logical_bytes)).only_wide(),
            Column::<Self>::left("AGENT", |status, _| {
                format!("{}{}", status.agent, if status.agent_online { "" } else { " (offline)" })
            })
            .only_wide(),
            Column::<Self>::left("STATE", |status, _| status.state_text()).toned(SourceStatusView::tone),
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
