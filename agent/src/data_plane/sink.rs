//! Where the packs of a backup go: to the controller.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::{LOOKUP_IDS_MAX, v1};
use holdfast_repository::RepositoryError;
use holdfast_repository::id::{BlobId, BlobType};
use holdfast_repository::pack::{PackEntry, SealedPack};
use holdfast_repository::sink::BlobSink;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::query::{Query, QueryStream};
use super::{DataClient, DataPlane, carried};
use crate::counters::Counters;

struct Lookup;

impl Query for Lookup {
    type Request = v1::LookupBlobsRequest;
    type Response = v1::LookupBlobsResponse;
    type Answer = Bytes;

    fn request(run: Option<v1::RunRef>, trees: bool, ids: Bytes) -> Self::Request {
        v1::LookupBlobsRequest { run, ids, trees }
    }

    async fn open(
        mut client: DataClient,
        requests: ReceiverStream<Self::Request>,
    ) -> Result<Streaming<Self::Response>, Status> {
        client.lookup_blobs(requests).await.map(tonic::Response::into_inner)
    }

    fn answer(response: Self::Response, count: usize) -> Result<Bytes, Failure> {
        if response.known.len() == count.div_ceil(8) {
            return Ok(response.known);
        }
        Err(Failure::new(
            ErrorCode::Internal,
            format!("the controller answered {} bytes of bits for {count} blobs", response.known.len()),
        ))
    }
}

/// Sends packs to the controller.
pub struct GrpcSink {
    plane: DataPlane,
    lookups: QueryStream<Lookup>,
    counters: Arc<Counters>,
}

impl GrpcSink {
    /// A sink for one run, which counts what it sends.
    pub fn new(plane: &DataPlane, counters: Arc<Counters>) -> Self {
        Self { plane: plane.clone(), lookups: QueryStream::start(plane, "lookups"), counters }
    }
}

#[async_trait]
impl BlobSink for GrpcSink {
    async fn known(&self, blob_type: BlobType, ids: &[BlobId]) -> Result<Vec<bool>, RepositoryError> {
        let mut known = Vec::with_capacity(ids.len());
        for batch in ids.chunks(LOOKUP_IDS_MAX) {
            let bits = self.lookups.ask(blob_type, batch).await.map_err(carried)?;
            known.extend((0..batch.len()).map(|n| bits[n / 8] >> (n % 8) & 1 == 1));
        }
        Ok(known)
    }

    async fn put_pack(&self, pack: SealedPack) -> Result<(), RepositoryError> {
        self.plane.put_pack(&pack).await.map_err(carried)?;
        self.counters.bytes_stored.add(pack.bytes.len() as u64);
        Ok(())
    }
}

/// A blob of a pack as it travels.
pub(super) fn entry(entry: &PackEntry) -> v1::PackEntry {
    v1::PackEntry {
        id: entry.id.as_bytes().to_vec(),
        offset: entry.offset,
        length: entry.length,
        uncompressed_length: entry.uncompressed_length.unwrap_or(0),
        is_tree: entry.blob_type == BlobType::Tree,
    }
}
