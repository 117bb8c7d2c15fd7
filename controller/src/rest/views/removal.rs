//! What goes, or would.

use holdfast_proto::v1;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::{filled, moment};

/// What becomes of a snapshot.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RetentionView {
    /// The source.
    source: String,
    /// Where the snapshot is.
    repository: String,
    /// The policy that decides.
    policy: String,
    /// The snapshot.
    snapshot_id: String,
    /// From when it is.
    committed_at: Option<Timestamp>,
    /// full, incremental, differential or snapshot.
    snapshot_type: Option<String>,
    /// What it added to the repository.
    stored_bytes: u64,
    /// Whether it stays.
    keep: bool,
    /// Why.
    reason: String,
    /// Why nothing is removed now, when something forbids it.
    frozen: Option<String>,
}

impl RetentionView {
    /// One line for each snapshot.
    pub(crate) fn of(plan: v1::RetentionPlan) -> Vec<Self> {
        let line = |decision: v1::RetentionDecision| Self {
            source: plan.source.clone(),
            repository: plan.repository.clone(),
            policy: plan.policy.clone(),
            snapshot_id: decision.snapshot_id,
            committed_at: moment(decision.committed_at),
            snapshot_type: filled(decision.snapshot_type),
            stored_bytes: decision.stored_bytes,
            keep: decision.keep,
            reason: decision.reason,
            frozen: filled(plan.frozen.clone()),
        };
        plan.decisions.into_iter().map(line).collect()
    }
}

/// What a prune would do.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct PrunePlanView {
    /// The repository.
    repository: String,
    /// Snapshots whose content counts as needed.
    snapshots: u64,
    /// Packs in the storage.
    packs: u64,
    /// Size of all packs.
    stored_bytes: u64,
    /// What is needed of it.
    live_bytes: u64,
    /// What is not.
    dead_bytes: u64,
    /// Packs that go whole.
    delete_packs: u64,
    /// Their size.
    delete_bytes: u64,
    /// Packs whose needed blobs go into new packs.
    repack_packs: u64,
    /// Their size.
    repack_bytes: u64,
    /// What is needed of them.
    repack_live_bytes: u64,
    /// Packs in no index.
    orphan_packs: u64,
    /// Their size.
    orphan_bytes: u64,
    /// Size of the packs that go.
    freed_bytes: u64,
    /// The same in percent of all packs, rounded up.
    freed_percent: u64,
    /// What is not needed and stays.
    unused_left_bytes: u64,
    /// More goes than may without a person.
    needs_approval: bool,
    /// What is damaged or lost.
    concerns: Vec<String>,
}

impl PrunePlanView {
    /// The plan for a repository.
    pub(crate) fn new(repository: String, plan: v1::PrunePlan) -> Self {
        Self {
            repository,
            snapshots: plan.snapshots,
            packs: plan.packs,
            stored_bytes: plan.bytes,
            live_bytes: plan.live_bytes,
            dead_bytes: plan.dead_bytes,
            delete_packs: plan.delete_packs,
            delete_bytes: plan.delete_bytes,
            repack_packs: plan.repack_packs,
            repack_bytes: plan.repack_bytes,
            repack_live_bytes: plan.repack_live_bytes,
            orphan_packs: plan.orphan_packs,
            orphan_bytes: plan.orphan_bytes,
            freed_bytes: plan.freed_bytes,
            freed_percent: plan.freed_percent,
            unused_left_bytes: plan.unused_left_bytes,
            needs_approval: plan.needs_approval,
            concerns: plan.concerns,
        }
    }
}
