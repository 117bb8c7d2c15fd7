//! Changes as they happen, over the change feed of the store: what was missed during a broken connection is sent again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::IntoResponse as _;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::StreamExt as _;
use holdfast_model::ids::RunId;
use holdfast_model::{ErrorCode, Failure};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::reply::Reply;
use super::request::{Call, invalid};
use crate::access::Caller;
use crate::core::Core;
use crate::records::store_failure;
use crate::store::{Change, Changes, Kind};

/// How often a stream without events shows that it is alive.
const ALIVE_EVERY: Duration = Duration::from_secs(15);

pub(super) async fn watch(call: Call) -> Result<Reply, Failure> {
    let core = call.core().clone();
    let store = core.records.store();
    let after = after(&call, store.sequence())?;
    let changes = store.watch(after).map_err(|error| store_failure(&error))?;
    let place = call.rest.streams.clone().try_acquire_owned();
    let place =
        place.map_err(|_| Failure::new(ErrorCode::QueueFull, "too many streams of events are open"))?;
    let end = end_of(&core, &call.caller);
    let stream = futures::stream::unfold((changes, core), next).flat_map(futures::stream::iter);
    let stream = stream.take_until(end).map(move |event| {
        // Given back when the stream is dropped.
        let _ = &place;
        Ok::<_, Infallible>(event)
    });
    let sse = Sse::new(stream).keep_alive(KeepAlive::new().interval(ALIVE_EVERY));
    Ok(Reply::Other(sse.into_response()))
}

/// After which commit to begin: a browser that reconnects says it in a header.
fn after(call: &Call, now: u64) -> Result<u64, Failure> {
    let asked = call.query.number("after", 0..=now, now)?;
    let Some(header) = call.headers.get("last-event-id") else { return Ok(asked) };
    let number = header.to_str().ok().and_then(|text| text.parse().ok()).filter(|number| *number <= now);
    number.ok_or_else(|| invalid("Last-Event-ID is not the id of an event"))
}

/// Completes when the controller stops, or the token of the caller ends.
fn end_of(core: &Arc<Core>, caller: &Caller) -> impl Future<Output = ()> + Send + 'static {
    let (clock, stop) = (core.clock.clone(), core.tasks.token().clone());
    let not_after = match caller {
        Caller::Operator { not_after, .. } => *not_after,
        _ => Timestamp::MAX,
    };
    async move {
        let left = Duration::try_from(not_after.duration_since(clock.now())).unwrap_or_default();
        tokio::select! {
            () = stop.cancelled() => {}
            // Some clocks cannot sleep for centuries.
            () = clock.sleep(left.min(Duration::from_secs(366 * 24 * 3600))) => {}
        }
    }
}

/// The events of the next commit that has any for outside.
async fn next((mut changes, core): (Changes, Arc<Core>)) -> Option<(Vec<Event>, (Changes, Arc<Core>))> {
    match changes.next().await {
        Ok(Some(change)) => {
            let events = events_of(&core, &change).await;
            Some((events, (changes, core)))
        }
        // The store was closed, or can not be read: the client comes again, and is told.
        Ok(None) | Err(_) => None,
    }
}

async fn events_of(core: &Core, change: &Change) -> Vec<Event> {
    let mut events = Vec::new();
    for changed in &change.changed {
        let Some((kind, object)) = shown(changed.kind, &changed.key) else { continue };
        let mut data =
            json!({ "kind": kind, "object": object, "at": change.time, "removed": changed.removed });
        if kind == "run"
            && let Some(run) = run(core, object).await
        {
            data["run"] = run;
        }
        events.push(Event::default().event(kind).id(change.sequence.to_string()).data(data.to_string()));
    }
    events
}

/// What may be seen of a record: tokens, keys of requests and the controller's own notes are nobody's business.
fn shown(kind: Kind, key: &str) -> Option<(&'static str, &str)> {
    match kind {
        Kind::Run => key.strip_prefix("run/").map(|id| ("run", id)),
        Kind::Snapshot => key.strip_prefix("id/").map(|id| ("snapshot", id)),
        Kind::Definition => Some(("definition", key)),
        Kind::Agent => Some(("agent", key)),
        Kind::Hold => Some(("hold", key)),
        _ => None,
    }
}

/// How a run is stored, with this change or a later one; what is in memory may be behind it for a moment.
async fn run(core: &Core, id: &str) -> Option<Value> {
    let (run, _) = core.records.run(id.parse::<RunId>().ok()?).await.ok()??;
    Some(json!({
        "run_kind": run.spec.kind().as_str(),
        "source": run.spec.source(),
        "repository": run.spec.repository(),
        "phase": run.state.phase.as_str(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_that_hold_secrets_or_notes_are_never_shown() {
        for kind in Kind::ALL {
            let is_shown = ["run/1", "id/1", "totals/backup/x/y", "active/1"]
                .iter()
                .filter(|key| shown(*kind, key).is_some())
                .count();
            let expected = match kind {
                Kind::Run | Kind::Snapshot => 1,
                Kind::Definition | Kind::Agent | Kind::Hold => 4,
                _ => 0,
            };
            assert_eq!(is_shown, expected, "{kind}");
        }
    }
}
