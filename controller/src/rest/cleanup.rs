//! What is removed: snapshots that policies do not keep, and what no snapshot needs.

use holdfast_model::Failure;
use holdfast_proto::v1;
use schemars::JsonSchema;
use serde::Deserialize;

use super::reply::{Reply, value};
use super::request::Call;
use super::views::{PrunePlanView, RetentionView, RunView};
use crate::api::policies::PoliciesApi;
use crate::api::repositories::RepositoriesApi;

/// What is to be cleaned up.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(deny_unknown_fields)]
pub(crate) struct CleanUp {
    /// A source, or a policy with all the sources under it; all sources unless given.
    name: String,
    /// Only find out what would go; true unless given.
    dry_run: bool,
}

impl Default for CleanUp {
    fn default() -> Self {
        Self { name: String::new(), dry_run: true }
    }
}

/// How a repository is to be pruned.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Prune {
    /// Only find out what would be freed; true unless given.
    dry_run: bool,
    /// The name of the repository again, to approve a plan that frees more than may go without a person.
    confirm: String,
    /// Why; needed with `confirm`.
    reason: String,
}

impl Default for Prune {
    fn default() -> Self {
        Self { dry_run: true, confirm: String::new(), reason: String::new() }
    }
}

pub(super) async fn clean_up(call: Call) -> Result<Reply, Failure> {
    let wanted: CleanUp = call.json()?;
    let request = v1::CleanUpRequest { name: wanted.name, dry_run: wanted.dry_run };
    let done = PoliciesApi::new(call.core().clone()).clean_up_inner(&call.caller, request).await?;
    Ok(Reply::items(done.plans.into_iter().flat_map(RetentionView::of)))
}

pub(super) async fn prune(call: Call) -> Result<Reply, Failure> {
    let wanted: Prune = call.json()?;
    let name = call.parameter();
    let request = v1::PruneRepositoryRequest {
        idempotency_key: call.idempotency_key()?,
        name: name.clone(),
        dry_run: wanted.dry_run,
        confirm: wanted.confirm,
        reason: wanted.reason,
    };
    let done = RepositoriesApi::new(call.core().clone()).prune_inner(&call.caller, request).await?;
    if let Some(plan) = done.plan {
        return Ok(Reply::Plan(value(PrunePlanView::new(&name, plan))));
    }
    let location = done.run.as_ref().map(|run| format!("/api/v1/runs/{}", run.id));
    let items = done.run.map(|run| value(RunView::from(run))).into_iter().collect();
    Ok(Reply::Items { items, next_cursor: None, location })
}
