//! Where the blobs of a restore come from: the controller.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::id_bytes;
use holdfast_proto::v1;
use holdfast_repository::RepositoryError;
use holdfast_repository::id::{BlobId, BlobType, PackId};
use holdfast_repository::reader::{BlobPlace, BlobSource};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::query::{Query, QueryStream};
use super::{DataClient, DataPlane, carried};
use crate::counters::Counters;

struct Locate;

impl Query for Locate {
    type Request = v1::LocateBlobsRequest;
    type Response = v1::LocateBlobsResponse;
    type Answer = Vec<Option<BlobPlace>>;

    fn request(run: Option<v1::RunRef>, trees: bool, ids: Bytes) -> Self::Request {
        v1::LocateBlobsRequest { run, ids, trees }
    }

    async fn open(
        mut client: DataClient,
        requests: ReceiverStream<Self::Request>,
    ) -> Result<Streaming<Self::Response>, Status> {
        client.locate_blobs(requests).await.map(tonic::Response::into_inner)
    }

    fn answer(response: Self::Response, count: usize) -> Result<Self::Answer, Failure> {
        if response.places.len() == count {
            return response.places.iter().map(place).collect();
        }
        Err(Failure::new(
            ErrorCode::Internal,
            format!("the controller gave {} places for {count} blobs", response.places.len()),
        ))
    }
}

fn place(place: &v1::BlobPlace) -> Result<Option<BlobPlace>, Failure> {
    if place.pack_id.is_empty() {
        return Ok(None);
    }
    Ok(Some(BlobPlace {
        pack: PackId::from_bytes(id_bytes("pack_id", &place.pack_id)?),
        offset: place.offset,
        length: place.length,
        uncompressed_length: Some(place.uncompressed_length).filter(|&length| length > 0),
        blob_type: if place.is_tree { BlobType::Tree } else { BlobType::Data },
    }))
}

/// Reads packs through the controller.
pub struct GrpcSource {
    plane: DataPlane,
    places: QueryStream<Locate>,
    counters: Arc<Counters>,
}

impl GrpcSource {
    /// A source for one run, which counts what it reads.
    pub fn new(plane: &DataPlane, counters: Arc<Counters>) -> Self {
        Self { plane: plane.clone(), places: QueryStream::start(plane, "places"), counters }
    }
}

#[async_trait]
impl BlobSource for GrpcSource {
    async fn locate(
        &self,
        blob_type: BlobType,
        ids: &[BlobId],
    ) -> Result<Vec<Option<BlobPlace>>, RepositoryError> {
        self.places.ask(blob_type, ids).await.map_err(carried)
    }

    async fn read(&self, pack: PackId, offset: u32, length: u32) -> Result<Bytes, RepositoryError> {
        let bytes =
            self.plane.read_pack(pack, u64::from(offset), u64::from(length)).await.map_err(carried)?;
        self.counters.bytes_done.add(u64::from(length));
        Ok(bytes)
    }
}
