//! What answers hold: what the command line prints with `-o json` ([`holdfast_proto::views`]), and what only REST has.

use std::collections::BTreeMap;

pub(crate) use holdfast_proto::views::{
    AlertView, CopyView, PrunePlanView, RetentionView, RunView, SilenceView, SnapshotView, SourceStatusView,
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::fleet_health::Health;

/// What is declared and configured.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ConfigView {
    /// As in controller.yaml, with every default.
    pub controller: Value,
    /// As in the fleet files.
    pub fleet: Value,
}

/// Agents.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct AgentCounts {
    /// Those that are connected.
    pub online: u64,
    /// Those that are enrolled.
    pub total: u64,
}

/// A repository.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RepositorySize {
    /// Its name.
    pub name: String,
    /// Whether it can be reached.
    pub up: bool,
    /// Bytes of its packs.
    pub stored_bytes: Option<u64>,
    /// Bytes that its storage can still take, where it says so.
    pub free_bytes: Option<u64>,
}

/// Counts.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct StatsView {
    /// Sources by state.
    pub sources: BTreeMap<String, u64>,
    /// Agents.
    pub agents: AgentCounts,
    /// Runs that ended, by kind and outcome.
    pub runs: BTreeMap<String, BTreeMap<String, u64>>,
    /// Runs under way, by kind.
    pub running: BTreeMap<String, u64>,
    /// Runs that wait, by kind.
    pub queued: BTreeMap<String, u64>,
    /// Repositories.
    pub repositories: Vec<RepositorySize>,
    /// Version of the controller.
    pub controller_version: String,
}

/// The state of all in a few numbers.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct QuickView {
    /// healthy, degraded, critical or unknown.
    pub status: String,
    /// 1 when nothing is wrong, 0 when nothing is right.
    pub health_score: f64,
    /// Sources by state.
    pub sources: BTreeMap<String, u64>,
    /// Agents.
    pub agents: AgentCounts,
    /// Runs under way.
    pub running: u64,
    /// Runs that wait.
    pub queued: u64,
}

/// How runs of one kind go.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct KindPerformance {
    /// backup, restore, promote, discard, verify or check.
    pub kind: String,
    /// How long they took on average; null before the first.
    pub duration_mean_seconds: Option<f64>,
    /// The share that succeeded of those that were not cancelled; null before the first.
    pub success_ratio: Option<f64>,
    /// How many succeeded.
    pub succeeded: u64,
    /// How many failed.
    pub failed: u64,
}

/// How runs go.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct PerformanceView {
    /// By kind.
    pub kinds: Vec<KindPerformance>,
    /// What waits or is under way.
    pub active_runs: Vec<RunView>,
    /// How late the scheduled run began that began last.
    pub scheduler_lag_seconds: f64,
}

/// Everything together.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct OverviewView {
    /// How the fleet is.
    pub health: Health,
    /// Counts.
    pub stats: StatsView,
    /// Each source.
    pub sources: Vec<SourceStatusView>,
}
