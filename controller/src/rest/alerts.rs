//! What is wrong, and what is kept quiet.

use holdfast_model::Failure;
use holdfast_model::alert::Match;
use holdfast_proto::v1;
use schemars::JsonSchema;
use serde::Deserialize;

use super::reply::{Reply, value};
use super::request::Call;
use super::views::{AlertView, SilenceView};
use crate::api::alerts::AlertsApi;

/// That somebody has seen an alert.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Acknowledge {
    /// What the next person should know.
    reason: String,
}

/// What is to be kept quiet.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(deny_unknown_fields)]
pub(crate) struct PlaceSilence {
    /// Which alerts, as in a fleet file.
    #[serde(rename = "match")]
    matches: Match,
    /// For how long; at most a year.
    for_seconds: u32,
    /// Why.
    reason: String,
}

fn service(call: &Call) -> AlertsApi {
    AlertsApi::new(call.core().clone())
}

pub(super) async fn list(call: Call) -> Result<Reply, Failure> {
    let found = service(&call).list_inner(call.query.flag("all")?).await;
    Ok(Reply::items(found.alerts.into_iter().map(AlertView::from)))
}

pub(super) async fn show(call: Call) -> Result<Reply, Failure> {
    Ok(Reply::item(AlertView::from(service(&call).show_inner(call.number()?).await?)))
}

pub(super) async fn acknowledge(call: Call) -> Result<Reply, Failure> {
    let wanted: Acknowledge = call.json()?;
    let request = v1::AcknowledgeRequest {
        idempotency_key: call.idempotency_key()?,
        id: call.number()?,
        reason: wanted.reason,
    };
    Ok(Reply::item(AlertView::from(service(&call).acknowledge_inner(&call.caller, request).await?)))
}

pub(super) async fn silences(call: Call) -> Result<Reply, Failure> {
    let found = service(&call).list_inner(false).await;
    Ok(Reply::items(found.silences.into_iter().map(SilenceView::from)))
}

pub(super) async fn silence(call: Call) -> Result<Reply, Failure> {
    let wanted: PlaceSilence = call.json()?;
    let request = v1::SilenceRequest {
        idempotency_key: call.idempotency_key()?,
        match_json: value(wanted.matches).to_string(),
        for_seconds: wanted.for_seconds,
        reason: wanted.reason,
    };
    let placed = service(&call).silence_inner(&call.caller, request).await?.silence;
    Ok(Reply::items(placed.into_iter().map(SilenceView::from)))
}

pub(super) async fn end_silence(call: Call) -> Result<Reply, Failure> {
    let request = v1::UnsilenceRequest { idempotency_key: call.idempotency_key()?, id: call.number()? };
    service(&call).unsilence_inner(&call.caller, request).await?;
    silences(call).await
}
