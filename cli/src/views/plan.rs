//! The plan of a restore.

use holdfast_model::restore::RestorePreview;
use holdfast_proto::v1;
use jiff::Timestamp;
use serde::Serialize;

use super::{filled, moment, seconds};
use crate::output::text::short_snapshot;
use crate::output::{Column, Record};

/// What a restore would do.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PlanView {
    /// To run it.
    pub plan_id: String,
    /// The source.
    pub source: String,
    /// Until when it can be run.
    pub not_after: Option<Timestamp>,
    /// The snapshot.
    pub snapshot_id: String,
    /// When it was captured.
    pub captured_at: Option<Timestamp>,
    /// Where from.
    pub repository: String,
    /// On which agent.
    pub agent: String,
    /// How long it would take, from what earlier restores took; null when none was timed.
    pub estimated_seconds: Option<f64>,
    /// Why it can not be run; empty when it can.
    pub obstacles: Vec<String>,
    /// The name to type, when something live is replaced.
    pub confirm_with: Option<String>,
    /// Steps, checks, targets, space.
    pub preview: RestorePreview,
}

impl PlanView {
    /// The plan of a reply.
    pub(crate) fn new(source: &str, plan: v1::PlanRestoreResponse) -> Self {
        Self {
            plan_id: plan.plan_id,
            source: source.to_owned(),
            not_after: moment(plan.not_after),
            snapshot_id: plan.snapshot_id,
            captured_at: moment(plan.captured_at),
            repository: plan.repository,
            agent: plan.agent,
            estimated_seconds: (plan.estimated_millis > 0).then(|| seconds(plan.estimated_millis)),
            obstacles: plan.obstacles,
            confirm_with: filled(plan.confirm_with),
            preview: serde_json::from_str(&plan.preview_json).unwrap_or_default(),
        }
    }
}

impl Record for PlanView {
    const KIND: &'static str = "RestorePlan";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("PLAN", |plan, _| plan.plan_id.clone()),
            Column::<Self>::left("SOURCE", |plan, _| plan.source.clone()),
            Column::<Self>::left("SNAPSHOT", |plan, _| short_snapshot(&plan.snapshot_id).to_owned()),
            Column::<Self>::left("CAPTURED", |plan, look| look.time_or(plan.captured_at, "-")),
            Column::<Self>::left("AGENT", |plan, _| plan.agent.clone()),
            Column::<Self>::left("CAN RUN", |plan, _| {
                if plan.obstacles.is_empty() { "yes" } else { "no" }.to_owned()
            }),
        ]
    }

    fn name(&self) -> String {
        self.plan_id.clone()
    }
}
