//! What goes, or would.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::{filled, moment};
use crate::v1;

/// What becomes of a snapshot.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct RetentionView {
    /// The source.
    pub source: String,
    /// Where the snapshot is.
    pub repository: String,
    /// The policy that decides.
    pub policy: String,
    /// The snapshot.
    pub snapshot_id: String,
    /// From when it is.
    pub committed_at: Option<Timestamp>,
    /// full, incremental, differential or snapshot.
    pub snapshot_type: Option<String>,
    /// What it added to the repository.
    pub stored_bytes: u64,
    /// Whether it stays.
    pub keep: bool,
    /// Why.
    pub reason: String,
    /// Why nothing is removed now, when something forbids it.
    pub frozen: Option<String>,
}

impl RetentionView {
    /// One line for each snapshot.
    pub fn of(plan: v1::RetentionPlan) -> Vec<Self> {
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
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct PrunePlanView {
    /// The repository.
    pub repository: String,
    /// Snapshots whose content counts as needed.
    pub snapshots: u64,
    /// Packs in the storage.
    pub packs: u64,
    /// Size of all packs.
    pub stored_bytes: u64,
    /// What is needed of it.
    pub live_bytes: u64,
    /// What is not.
    pub dead_bytes: u64,
    /// Packs that go whole.
    pub delete_packs: u64,
    /// Their size.
    pub delete_bytes: u64,
    /// Packs whose needed blobs go into new packs.
    pub repack_packs: u64,
    /// Their size.
    pub repack_bytes: u64,
    /// What is needed of them.
    pub repack_live_bytes: u64,
    /// Packs in no index.
    pub orphan_packs: u64,
    /// Their size.
    pub orphan_bytes: u64,
    /// Size of the packs that go.
    pub freed_bytes: u64,
    /// The same in percent of all packs, rounded up.
    pub freed_percent: u64,
    /// What is not needed and stays.
    pub unused_left_bytes: u64,
    /// More goes than may without a person.
    pub needs_approval: bool,
    /// What is damaged or lost.
    pub concerns: Vec<String>,
}

impl PrunePlanView {
    /// The plan for a repository.
    pub fn new(repository: &str, plan: v1::PrunePlan) -> Self {
        Self {
            repository: repository.to_owned(),
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
