//! The bytes of one run on their way to and from the controller.
//!
//! A connection that breaks, a controller that restarts, a storage that is away for a moment: none of it ends a run.
//! Calls are made again until the lease of the run, and some time on top, is over. Every call may be repeated without
//! harm: packs are named by their content, questions change nothing, and a commit is answered once per run and attempt.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use holdfast_engines::RunLog as _;
use holdfast_model::ids::{Attempt, RunId, SnapshotId};
use holdfast_model::text::{counted, size};
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::v1::data_service_client::DataServiceClient;
use holdfast_proto::{DATA_PART_BYTES_MAX, v1};
use holdfast_repository::RepositoryError;
use holdfast_repository::id::{BlobId, PackId};
use holdfast_repository::pack::SealedPack;
use holdfast_runtime::telemetry::inject_trace_context;
use holdfast_runtime::{SharedClock, TaskGroup, fail_point};
use http::HeaderMap;
use prost::Message as _;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::dial::Link;
use crate::executor::RunContext;
use crate::pacer::PacedRun;
use crate::run_log::RunLogger;

mod patience;
mod query;
mod sink;
mod source;
#[cfg(test)]
mod tests;

use patience::Patience;
pub use sink::GrpcSink;
pub use source::GrpcSource;

/// The largest message either side sends: the header of a pack with very many small blobs.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

type DataClient = DataServiceClient<InterceptedService<Channel, TraceContext>>;

/// The data service, as one run uses it. Clones share it.
#[derive(Clone)]
pub struct DataPlane {
    shared: Arc<Shared>,
}

struct Shared {
    link: Arc<Link>,
    clock: SharedClock,
    tasks: TaskGroup,
    run: RunId,
    attempt: Attempt,
    cancel: CancellationToken,
    patience: Duration,
    paced: Option<PacedRun>,
    log: RunLogger,
    trace: TraceContext,
}

impl DataPlane {
    /// The data service for one attempt of a run. `patience`: how long in a row calls may fail for want of a
    /// controller before the run does. `paced`: how fast it may send. Calls belong to the trace of the current span.
    pub fn new(
        link: Arc<Link>,
        clock: SharedClock,
        context: &RunContext,
        patience: Duration,
        paced: Option<PacedRun>,
    ) -> Self {
        let RunContext { run, attempt, cancel, log, tasks, .. } = context.clone();
        let trace = TraceContext::current();
        let shared = Shared { link, clock, tasks, run, attempt, cancel, patience, paced, log, trace };
        Self { shared: Arc::new(shared) }
    }

    fn run_ref(&self) -> v1::RunRef {
        v1::RunRef { run_id: self.shared.run.to_string(), attempt: self.shared.attempt.0 }
    }

    fn client(&self) -> DataClient {
        DataServiceClient::with_interceptor(self.shared.link.data(), self.shared.trace.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn patience(&self) -> Patience {
        Patience::new(&self.shared)
    }

    /// Makes a call until it succeeds, fails for good, or patience is over.
    async fn call<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Status>> + Send,
    {
        let mut patience = self.patience();
        loop {
            let outcome = self.shared.cancel.run_until_cancelled(attempt()).await;
            match outcome.ok_or_else(patience::cancelled)? {
                Ok(value) => return Ok(value),
                Err(status) => patience.wait_after(&status).await?,
            }
        }
    }

    /// What this run needs to read or write its repository.
    ///
    /// # Errors
    /// Those of the controller; `HF-4015` when it stays away too long.
    pub async fn open_repository(&self) -> Result<v1::OpenRepositoryResponse, Failure> {
        self.call(|| {
            let request = v1::OpenRepositoryRequest { run: Some(self.run_ref()) };
            let mut client = self.client();
            async move { Ok(client.open_repository(request).await?.into_inner()) }
        })
        .await
    }

    /// Stores a pack; it is durable when this returns. Sends its bytes without copying them.
    ///
    /// # Errors
    /// Those of the controller and its storage.
    pub async fn put_pack(&self, pack: &SealedPack) -> Result<(), Failure> {
        let header = v1::PackHeader {
            run: Some(self.run_ref()),
            pack_id: pack.id.as_bytes().to_vec(),
            length: pack.bytes.len() as u64,
            entries: pack.entries.iter().map(sink::entry).collect(),
        };
        fail_point::hit("agent-before-put-pack");
        let began = self.shared.clock.monotonic();
        self.call(|| {
            let parts = tokio_stream::iter(parts(header.clone(), pack.bytes.clone()));
            let shared = self.shared.clone();
            let paced = parts.then(move |part| {
                let shared = shared.clone();
                async move {
                    if let Some(paced) = &shared.paced {
                        paced.before_sending(part.encoded_len(), &*shared.clock).await;
                    }
                    part
                }
            });
            let mut client = self.client();
            async move { client.put_pack(paced).await.map(|_| ()) }
        })
        .await?;
        fail_point::hit("agent-after-put-pack");
        self.shared.log.debug(format_args!(
            "stored pack {} of {} with {} in {} ms",
            pack.id.short(),
            size(pack.bytes.len() as u64),
            counted(pack.entries.len() as u64, "blob"),
            self.shared.clock.monotonic().saturating_duration_since(began).as_millis(),
        ));
        Ok(())
    }

    /// Publishes the snapshot of a backup.
    ///
    /// # Errors
    /// `HF-4007` when the attempt is not the current one any more; those of the storage.
    pub async fn commit_snapshot(&self, request: v1::CommitSnapshotRequest) -> Result<SnapshotId, Failure> {
        let request = v1::CommitSnapshotRequest { run: Some(self.run_ref()), ..request };
        fail_point::hit("agent-before-commit-snapshot");
        let answer = self
            .call(|| {
                let (request, mut client) = (request.clone(), self.client());
                async move { Ok(client.commit_snapshot(request).await?.into_inner()) }
            })
            .await?;
        fail_point::hit("agent-after-commit-snapshot");
        let id = holdfast_proto::convert::id_bytes("snapshot_id", &answer.snapshot_id)?;
        Ok(SnapshotId(id))
    }

    /// A range of a pack.
    ///
    /// # Errors
    /// `HF-3005` when there is no such pack, `HF-3006` when it ends before the range does.
    pub async fn read_pack(&self, pack: PackId, offset: u64, length: u64) -> Result<Bytes, Failure> {
        let first = self
            .call(|| {
                let request = v1::ReadPackRequest {
                    run: Some(self.run_ref()),
                    pack_id: pack.as_bytes().to_vec(),
                    offset,
                    length,
                };
                let mut client = self.client();
                async move { collect(client.read_pack(request).await?.into_inner(), length).await }
            })
            .await?;
        if first.len() as u64 == length {
            return Ok(first);
        }
        Err(Failure::new(
            ErrorCode::ObjectDamaged,
            format!("pack {pack} gave {} of {length} bytes from byte {offset} on", first.len()),
        ))
    }
}

/// Lets the controller's spans be children of the run's. Taken once: the writer calls from threads of its own.
#[derive(Clone)]
struct TraceContext(HeaderMap);

impl TraceContext {
    fn current() -> Self {
        let mut headers = HeaderMap::new();
        inject_trace_context(&tracing::Span::current(), &mut headers);
        Self(headers)
    }
}

impl Interceptor for TraceContext {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let mut headers = std::mem::take(request.metadata_mut()).into_headers();
        headers.extend(self.0.clone());
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        Ok(request)
    }
}

/// The messages that carry a pack: its header, then its bytes in slices that share them.
fn parts(header: v1::PackHeader, bytes: Bytes) -> impl Iterator<Item = v1::PutPackRequest> + Send {
    use v1::put_pack_request::Part;
    let count = bytes.len().div_ceil(DATA_PART_BYTES_MAX);
    let slices = (0..count).map(move |n| {
        let start = n * DATA_PART_BYTES_MAX;
        Part::Data(bytes.slice(start..bytes.len().min(start + DATA_PART_BYTES_MAX)))
    });
    std::iter::once(Part::Header(header)).chain(slices).map(|part| v1::PutPackRequest { part: Some(part) })
}

/// The bytes of an answer; never more than were asked for. An answer of one message is not copied.
async fn collect(mut answer: tonic::Streaming<v1::ReadPackResponse>, length: u64) -> Result<Bytes, Status> {
    let Some(first) = answer.message().await? else { return Ok(Bytes::new()) };
    let mut rest: Option<BytesMut> = None;
    while let Some(part) = answer.message().await? {
        let buffer = rest.get_or_insert_with(|| {
            let mut buffer = BytesMut::with_capacity(usize::try_from(length).unwrap_or(DATA_PART_BYTES_MAX));
            buffer.extend_from_slice(&first.data);
            buffer
        });
        buffer.extend_from_slice(&part.data);
        if buffer.len() as u64 > length {
            return Err(Status::data_loss("the controller sent more bytes than were asked for"));
        }
    }
    Ok(rest.map_or(first.data, BytesMut::freeze))
}

/// Blob ids, one after another, as questions carry them.
fn joined(ids: &[BlobId]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(ids.len() * 32);
    for id in ids {
        bytes.extend_from_slice(id.as_bytes());
    }
    bytes.freeze()
}

/// A failure as the repository's traits carry it; [`failure_of`] takes it out again.
fn carried(failure: Failure) -> RepositoryError {
    RepositoryError::sink(failure.code, failure)
}

/// The failure behind an error of the repository: the controller's own words where it is one of ours.
pub fn failure_of(error: &RepositoryError) -> Failure {
    if let RepositoryError::Sink { source, .. } = error
        && let Some(failure) = source.downcast_ref::<Failure>()
    {
        return failure.clone();
    }
    Failure::from_error(error.code(), error)
}
