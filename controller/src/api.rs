//! How a handler looks: parse → decide → store → translate. Wire types stop here.

pub mod agents;
pub mod alerts;
mod discovery;
pub mod fleet;
pub mod notify;
pub mod policies;
pub mod reports;
pub mod repositories;
pub mod restores;
pub mod runs;
pub mod snapshots;
pub mod status;

use holdfast_model::Failure;
use holdfast_proto::status::to_status;
use sha2::{Digest as _, Sha256};
use tonic::{Request, Response, Status};

use crate::access::Caller;
use crate::core::Core;
use crate::records::{Answered, Batch};
use crate::store::{Expect, Kind};

/// A handler's result as a reply.
pub fn reply<T>(result: Result<T, Failure>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|failure| {
        tracing::debug!(%failure, "refused");
        to_status(&failure)
    })
}

/// Who makes a call; the layer in front of the services put it there.
pub fn caller_of<T>(request: &Request<T>) -> Caller {
    request.extensions().get::<Caller>().cloned().unwrap_or(Caller::Nobody)
}

/// The trace that runs asked for by this call belong to: the call's own place in it, or, where this process records none,
/// the caller's.
pub fn traceparent_of<T>(request: &Request<T>) -> Option<String> {
    let of_caller = || request.metadata().get("traceparent")?.to_str().ok().map(str::to_owned);
    holdfast_runtime::telemetry::traceparent(&tracing::Span::current()).or_else(of_caller)
}

/// A request that may be repeated: its key within the caller's own, and what tells it from another request.
pub struct Repeatable {
    key: String,
    request: String,
}

impl Repeatable {
    /// From the key that the caller chose. Without one, the request is never taken for a repetition.
    ///
    /// # Errors
    /// When the key is longer than 128 bytes.
    pub fn new(caller: &Caller, key: &str, request: &impl prost::Message) -> Result<Option<Self>, Failure> {
        if key.is_empty() {
            return Ok(None);
        }
        if key.len() > 128 {
            return Err(holdfast_proto::convert::ConvertError::new(
                "idempotency_key",
                "is longer than 128 bytes",
            )
            .into());
        }
        let request = hex::encode(Sha256::digest(request.encode_to_vec()));
        Ok(Some(Self { key: format!("{}/{key}", caller.actor()), request }))
    }

    /// What the first request of this key made, if there was one.
    ///
    /// # Errors
    /// When the key was used for another request.
    pub async fn answered(this: Option<&Self>, core: &Core) -> Result<Option<Vec<String>>, Failure> {
        let Some(this) = this else { return Ok(None) };
        let found = core.records.get::<Answered>(Kind::Idempotency, &this.key).await?;
        match found {
            None => Ok(None),
            Some(found) if found.value.request == this.request => Ok(Some(found.value.ids)),
            Some(_) => Err(holdfast_proto::convert::ConvertError::new(
                "idempotency_key",
                "was used for another request before",
            )
            .into()),
        }
    }

    /// Adds to a batch what will answer the repetition.
    #[must_use]
    pub fn remember(this: Option<&Self>, batch: Batch, ids: Vec<String>) -> Batch {
        match this {
            None => batch,
            Some(this) => {
                let answered = Answered { request: this.request.clone(), ids };
                batch.put(Kind::Idempotency, this.key.clone(), &answered, Expect::Absent)
            }
        }
    }
}
