//! Snapshots and runs.

use holdfast_model::Failure;
use holdfast_proto::convert::document;
use holdfast_proto::v1;
use schemars::JsonSchema;
use serde::Deserialize;

use super::reply::Reply;
use super::request::{Call, PAGE_DEFAULT, PAGE_ITEMS, cursor};
use super::views::{CopyView, RunView, SnapshotView};
use crate::api::runs::{Runs, find_run};
use crate::api::snapshots::Snapshots;

/// What is to be backed up.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(deny_unknown_fields)]
pub(crate) struct StartBackup {
    /// The source.
    #[schemars(required)]
    source: String,
    /// full, incremental (unless given), differential or snapshot.
    snapshot_type: String,
    /// Only into this repository.
    repository: String,
    /// Makes the snapshot a milestone of this name, which is held.
    milestone: String,
}

pub(super) async fn list(call: Call) -> Result<Reply, Failure> {
    let request = v1::ListSnapshotsRequest {
        source: call.query.text("source"),
        repository: call.query.text("repository"),
        page_size: call.query.number("limit", PAGE_ITEMS, PAGE_DEFAULT)?,
        page_token: call.query.place()?,
    };
    let found = Snapshots::new(call.core().clone()).list_inner(request).await?;
    let reply = Reply::items(found.snapshots.into_iter().map(SnapshotView::from));
    let next = Some(found.next_page_token).filter(|place| !place.is_empty());
    Ok(match reply {
        Reply::Items { items, location, .. } => {
            Reply::Items { items, next_cursor: next.map(|place| cursor(&place)), location }
        }
        other => other,
    })
}

pub(super) async fn show(call: Call) -> Result<Reply, Failure> {
    let snapshots = Snapshots::new(call.core().clone());
    let record = call.core().records.snapshot_by_prefix(&call.parameter()).await?;
    let mut view = SnapshotView::from(snapshots.describe(&record).await?);
    view.manifest = record.manifest.as_ref().and_then(|it| serde_json::from_str(&document(it)).ok());
    view.copies = snapshots.copies(&record).await?.into_iter().map(CopyView::from).collect();
    Ok(Reply::item(view))
}

pub(super) async fn start(call: Call) -> Result<Reply, Failure> {
    let wanted: StartBackup = call.json()?;
    let backup = v1::StartBackup {
        source: wanted.source,
        snapshot_type: wanted.snapshot_type,
        milestone: wanted.milestone,
        repository: wanted.repository,
    };
    queue(&call, v1::start_request::What::Backup(backup)).await
}

pub(super) async fn verify(call: Call) -> Result<Reply, Failure> {
    let verify = v1::StartVerify { snapshot: call.parameter() };
    queue(&call, v1::start_request::What::Verify(verify)).await
}

async fn queue(call: &Call, what: v1::start_request::What) -> Result<Reply, Failure> {
    let request = v1::StartRequest { idempotency_key: call.idempotency_key()?, what: Some(what) };
    let runs = Runs::new(call.core().clone()).start_inner(&call.caller, request, call.traceparent()).await?;
    let location = runs.first().map(|run| format!("/api/v1/runs/{}", run.id));
    let items = runs.iter().map(|run| super::reply::value(RunView::from(v1::Run::from(run)))).collect();
    Ok(Reply::Items { items, next_cursor: None, location })
}

pub(super) async fn run(call: Call) -> Result<Reply, Failure> {
    let run = find_run(call.core(), &call.parameter()).await?;
    Ok(Reply::item(RunView::from(v1::Run::from(&run))))
}
