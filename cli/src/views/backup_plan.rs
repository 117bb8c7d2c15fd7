//! What a backup would do.

use holdfast_model::Failure;
use holdfast_proto::v1;
use jiff::Timestamp;
use serde::Serialize;

use super::{filled, moment, seconds};
use crate::output::text::plain;
use crate::output::{Column, Record, Tone};

/// What the backup of a source to a repository would do.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BackupPlanView {
    /// The source.
    pub source: String,
    /// The repository.
    pub repository: String,
    /// The agent.
    pub agent: String,
    /// Whether it is connected.
    pub agent_online: bool,
    /// The policy that it is made under.
    pub policy: Option<String>,
    /// full, incremental, differential or snapshot.
    pub snapshot_type: String,
    /// The snapshot whose unchanged parts are not read again.
    pub base_snapshot_id: Option<String>,
    /// From when that is.
    pub base_committed_at: Option<Timestamp>,
    /// Nothing is skipped: it is a full one in all but name.
    pub reads_everything: bool,
    /// Size of the source, as of its newest snapshot; 0 when there is none.
    pub logical_bytes: u64,
    /// Its files likewise.
    pub files: u64,
    /// From how many earlier backups the following is estimated.
    pub estimated_from: u32,
    /// What it adds to the repository; null when not known.
    pub estimated_stored_bytes: Option<u64>,
    /// How long it takes; null when not known.
    pub estimated_seconds: Option<f64>,
    /// What it would wait for now.
    pub waits_for: Option<String>,
    /// What of its host is in use more than its policy allows.
    pub busy: Option<String>,
    /// What becomes of it while that is so.
    pub when_busy: Option<String>,
    /// The hook before it.
    pub hook_before: Option<String>,
    /// The hook after it.
    pub hook_after: Option<String>,
    /// Why it would fail now.
    pub failures: Vec<Failure>,
}

impl From<v1::BackupPlan> for BackupPlanView {
    fn from(plan: v1::BackupPlan) -> Self {
        let is_known = plan.estimated_from > 0;
        Self {
            source: plan.source,
            repository: plan.repository,
            agent: plan.agent,
            agent_online: plan.agent_online,
            policy: filled(plan.policy),
            snapshot_type: plan.snapshot_type,
            base_snapshot_id: filled(plan.base_snapshot_id),
            base_committed_at: moment(plan.base_committed_at),
            reads_everything: plan.reads_everything,
            logical_bytes: plan.logical_bytes,
            files: plan.files,
            estimated_from: plan.estimated_from,
            estimated_stored_bytes: is_known.then_some(plan.estimated_stored_bytes),
            estimated_seconds: is_known.then(|| seconds(plan.estimated_millis)),
            waits_for: filled(plan.waits_for),
            busy: filled(plan.busy),
            when_busy: filled(plan.when_busy),
            hook_before: filled(plan.hook_before),
            hook_after: filled(plan.hook_after),
            failures: plan.failures.into_iter().map(Failure::from).collect(),
        }
    }
}

impl Record for BackupPlanView {
    const KIND: &'static str = "BackupPlan";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("SOURCE", |plan, _| plan.source.clone()),
            Column::<Self>::left("REPOSITORY", |plan, _| plan.repository.clone()),
            Column::<Self>::left("TYPE", |plan, _| plan.snapshot_type.clone()),
            Column::<Self>::left("AGENT", |plan, _| plan.agent.clone()),
            Column::<Self>::left("WOULD", |plan, _| match (plan.failures.first(), &plan.waits_for) {
                (Some(failure), _) => format!("fail: {}", plain(&failure.to_string())),
                (None, Some(what)) => format!("wait for {}", plain(what)),
                (None, None) => "begin".to_owned(),
            })
            .toned(|plan| if plan.failures.is_empty() { Tone::Plain } else { Tone::Bad }),
        ]
    }

    fn name(&self) -> String {
        self.source.clone()
    }
}
