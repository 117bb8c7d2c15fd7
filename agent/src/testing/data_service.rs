//! A repository in memory behind the data service.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::v1;
use holdfast_proto::v1::data_service_server::DataService;
use holdfast_repository::config::Config;
use holdfast_repository::crypto::MasterKey;
use holdfast_repository::id::PackId;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(crate) struct MemoryRepository {
    pub(crate) keys: MasterKey,
    pub(crate) config: Config,
    pub(crate) state: Mutex<Stored>,
    /// What every call is refused with, when set.
    pub(crate) refusal: Mutex<Option<Failure>>,
    /// The connection breaks when a pack has sent so many bytes, once.
    pub(crate) break_at: Mutex<Option<(u64, CancellationToken)>>,
    pub(crate) put_calls: AtomicUsize,
    pub(crate) lookup_streams: AtomicUsize,
}

#[derive(Default)]
pub(crate) struct Stored {
    pub(crate) packs: HashMap<Vec<u8>, Bytes>,
    pub(crate) places: HashMap<Vec<u8>, v1::BlobPlace>,
    pub(crate) committed: Vec<v1::CommitSnapshotRequest>,
    /// The tree that a run is to read or to compare with.
    pub(crate) tree: Vec<u8>,
}

impl MemoryRepository {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            keys: MasterKey::generate(),
            config: Config::generate(),
            state: Mutex::default(),
            refusal: Mutex::default(),
            break_at: Mutex::default(),
            put_calls: AtomicUsize::new(0),
            lookup_streams: AtomicUsize::new(0),
        })
    }

    fn check(&self) -> Result<(), Status> {
        self.refusal.lock().as_ref().map_or(Ok(()), |failure| Err(holdfast_proto::status::to_status(failure)))
    }
}

#[derive(Clone)]
pub(crate) struct MemoryDataService(pub(crate) Arc<MemoryRepository>);

#[tonic::async_trait]
impl DataService for MemoryDataService {
    type LookupBlobsStream = Answers<v1::LookupBlobsResponse>;
    type LocateBlobsStream = Answers<v1::LocateBlobsResponse>;
    type ReadPackStream = Answers<v1::ReadPackResponse>;

    async fn open_repository(
        &self,
        _request: Request<v1::OpenRepositoryRequest>,
    ) -> Result<Response<v1::OpenRepositoryResponse>, Status> {
        self.0.check()?;
        let keys = self.0.keys.to_bytes();
        Ok(Response::new(v1::OpenRepositoryResponse {
            repository_id: self.0.config.id.to_hex(),
            chunker_polynomial: self.0.config.chunker_polynomial.to_string(),
            encrypt_key: keys[..32].to_vec(),
            mac_k: keys[32..48].to_vec(),
            mac_r: keys[48..].to_vec(),
            compression_level: 3,
            tree_id: self.0.state.lock().tree.clone(),
            snapshot_id: Vec::new(),
        }))
    }

    async fn lookup_blobs(
        &self,
        request: Request<Streaming<v1::LookupBlobsRequest>>,
    ) -> Result<Response<Self::LookupBlobsStream>, Status> {
        self.0.check()?;
        let repository = self.0.clone();
        repository.lookup_streams.fetch_add(1, Ordering::Relaxed);
        let mut first = true;
        let answers = request.into_inner().map(move |question| {
            let question = question?;
            assert_eq!(
                question.run.is_some(),
                std::mem::take(&mut first),
                "the run comes first and only first"
            );
            let count = question.ids.len() / 32;
            assert!(count <= holdfast_proto::LOOKUP_IDS_MAX);
            let mut bits = BytesMut::zeroed(count.div_ceil(8));
            let state = repository.state.lock();
            for (n, id) in question.ids.chunks(32).enumerate() {
                if state.places.get(id).is_some_and(|place| place.is_tree == question.trees) {
                    bits[n / 8] |= 1 << (n % 8);
                }
            }
            Ok(v1::LookupBlobsResponse { known: bits.freeze() })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn locate_blobs(
        &self,
        request: Request<Streaming<v1::LocateBlobsRequest>>,
    ) -> Result<Response<Self::LocateBlobsStream>, Status> {
        let repository = self.0.clone();
        let answers = request.into_inner().map(move |question| {
            let question = question?;
            let state = repository.state.lock();
            let places = question.ids.chunks(32).map(|id| {
                let place = state.places.get(id).filter(|place| place.is_tree == question.trees);
                place.cloned().unwrap_or_default()
            });
            Ok(v1::LocateBlobsResponse { places: places.collect() })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn put_pack(
        &self,
        request: Request<Streaming<v1::PutPackRequest>>,
    ) -> Result<Response<v1::PutPackResponse>, Status> {
        use v1::put_pack_request::Part;
        self.0.put_calls.fetch_add(1, Ordering::Relaxed);
        self.0.check()?;
        let mut parts = request.into_inner();
        let Some(Part::Header(header)) = parts.message().await?.and_then(|part| part.part) else {
            return Err(Status::invalid_argument("no header"));
        };
        let mut bytes = BytesMut::new();
        while let Some(part) = parts.message().await? {
            let Some(Part::Data(data)) = part.part else {
                return Err(Status::invalid_argument("two headers"));
            };
            assert!(data.len() <= holdfast_proto::DATA_PART_BYTES_MAX);
            bytes.extend_from_slice(&data);
            let due = self.0.break_at.lock().take_if(|(at, _)| bytes.len() as u64 >= *at);
            if let Some((_, connection)) = due {
                connection.cancel();
            }
        }
        assert_eq!(bytes.len() as u64, header.length);
        assert_eq!(PackId::of(&bytes).as_bytes()[..], header.pack_id);
        let mut state = self.0.state.lock();
        for entry in header.entries {
            let place = v1::BlobPlace {
                pack_id: header.pack_id.clone(),
                offset: entry.offset,
                length: entry.length,
                uncompressed_length: entry.uncompressed_length,
                is_tree: entry.is_tree,
            };
            state.places.insert(entry.id, place);
        }
        state.packs.insert(header.pack_id, bytes.freeze());
        Ok(Response::new(v1::PutPackResponse {}))
    }

    async fn commit_snapshot(
        &self,
        request: Request<v1::CommitSnapshotRequest>,
    ) -> Result<Response<v1::CommitSnapshotResponse>, Status> {
        self.0.check()?;
        let request = request.into_inner();
        let mut state = self.0.state.lock();
        assert!(state.places.contains_key(&request.tree_id), "the tree is not stored");
        state.tree = request.tree_id.clone();
        state.committed.push(request);
        Ok(Response::new(v1::CommitSnapshotResponse { snapshot_id: vec![state.committed.len() as u8; 32] }))
    }

    async fn read_pack(
        &self,
        request: Request<v1::ReadPackRequest>,
    ) -> Result<Response<Self::ReadPackStream>, Status> {
        let request = request.into_inner();
        let missing = || {
            let failure = Failure::new(ErrorCode::ObjectMissing, "there is no such pack");
            holdfast_proto::status::to_status(&failure)
        };
        let pack = self.0.state.lock().packs.get(&request.pack_id).cloned().ok_or_else(missing)?;
        let start = pack.len().min(request.offset as usize);
        let end = pack.len().min(start + request.length as usize);
        let bytes = pack.slice(start..end);
        let parts: Vec<_> = bytes
            .chunks(holdfast_proto::DATA_PART_BYTES_MAX)
            .map(|part| Ok(v1::ReadPackResponse { data: bytes.slice_ref(part) }))
            .collect();
        Ok(Response::new(Box::pin(futures::stream::iter(parts))))
    }
}
