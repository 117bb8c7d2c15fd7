//! The bytes of backups and restores, relayed between agents and storage. Every call is fenced by run and attempt.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_model::data_watch::{self, Anomaly};
use holdfast_model::ids::{AgentName, Attempt, RunId, SnapshotId, SourceName};
use holdfast_model::manifest::Manifest;
use holdfast_model::run::{Run, RunSpec};
use holdfast_model::snapshot::{Hold, SnapshotRecord};
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{ConvertError, from_document, id_bytes, run_ref};
use holdfast_proto::status::to_status;
use holdfast_proto::v1::data_service_server::DataService;
use holdfast_proto::v1::put_pack_request::Part;
use holdfast_proto::{DATA_PART_BYTES_MAX, LOOKUP_IDS_MAX, v1};
use holdfast_repository::format::ObjectName;
use holdfast_repository::id::{BlobId, BlobType, PackId};
use holdfast_repository::pack::PackEntry;
use holdfast_repository::snapshot::{SnapshotObject, SnapshotSummary};
use holdfast_repository::storage::StorageErrorKind;
use holdfast_runtime::OnEnd;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::catalog::{Tags, describe};
use crate::core::Core;
use crate::other_programs;
use crate::records::Batch;
use crate::repositories::{OpenRepository, repository_failure, storage_failure};
use crate::server::agent_of;
use crate::store::{Expect, Kind};

/// Answers that may wait to be read by the agent.
const ANSWERS_MAX: usize = 16;

/// The largest pack that is taken, in bytes.
const PACK_BYTES_MAX: u64 = 512 << 20;

/// Bytes read from the storage at a time.
const READ_BYTES: u64 = 4 << 20;

/// The service.
pub struct DataPlane {
    core: Arc<Core>,
}

/// A call that passed the fence.
struct Granted {
    run: Run,
    repository: Arc<OpenRepository>,
}

impl DataPlane {
    /// The service over the shared parts.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    async fn grant(&self, agent: &AgentName, reference: Option<&v1::RunRef>) -> Result<Granted, Failure> {
        let (id, attempt) = run_ref(reference)?;
        let run = self.core.runs.fence(id, attempt, agent)?;
        let name = run.spec.repository().ok_or_else(|| {
            Failure::new(ErrorCode::NotPermitted, format!("run {} uses no repository", id.short()))
        })?;
        let repository = self.core.repository(name).await?;
        Ok(Granted { run, repository })
    }

    /// As [`Core::base_of`], and it is in the repository: another program may have removed it since the catalog was synced.
    async fn existing_base(
        &self,
        run: &Run,
        repository: &Arc<OpenRepository>,
    ) -> Result<Option<SnapshotRecord>, Failure> {
        let base = self.core.base_of(&run.spec, &repository.name).await?;
        let Some(record) = &base else { return Ok(base) };
        let object = ObjectName::Snapshot(holdfast_repository::id::SnapshotId::from_bytes(record.id.0));
        match repository.store().size(&object).await {
            Ok(_) => Ok(base),
            Err(error) if error.kind() == StorageErrorKind::NotFound => {
                self.core.catalog.sync(repository).await?;
                self.core.base_of(&run.spec, &repository.name).await
            }
            Err(error) => Err(storage_failure(&repository.name, &error)),
        }
    }

    async fn open(
        &self,
        agent: &AgentName,
        request: v1::OpenRepositoryRequest,
    ) -> Result<v1::OpenRepositoryResponse, Failure> {
        let granted = self.grant(agent, request.run.as_ref()).await?;
        let (run, repository) = (&granted.run, &granted.repository);
        repository.update_index().await?;
        self.core.runs.relies_since(run.id, run.state.attempt, repository.index().uses.disturbances());
        let base = self.existing_base(run, repository).await?;
        let config = granted.repository.repository().config();
        let keys = granted.repository.repository().keys().to_bytes();
        let tree = base.as_ref().map(|record| record.tree.parse::<BlobId>()).transpose();
        let tree = tree.map_err(|error| Failure::from_error(ErrorCode::StateDamaged, &error))?;
        Ok(v1::OpenRepositoryResponse {
            repository_id: config.id.to_string(),
            chunker_polynomial: config.chunker_polynomial.to_string(),
            encrypt_key: keys[..32].to_vec(),
            mac_k: keys[32..48].to_vec(),
            mac_r: keys[48..].to_vec(),
            compression_level: u32::from(granted.repository.spec.compression_level),
            tree_id: tree.map(|id| id.as_bytes().to_vec()).unwrap_or_default(),
            snapshot_id: base.map(|record| record.id.0.to_vec()).unwrap_or_default(),
        })
    }

    async fn put_pack_inner(
        &self,
        agent: &AgentName,
        mut parts: Streaming<v1::PutPackRequest>,
    ) -> Result<(), Failure> {
        let cut = || Failure::new(ErrorCode::AgentLost, "the pack ended before its announced length");
        let Some(Part::Header(header)) =
            parts.message().await.map_err(|_| cut())?.and_then(|first| first.part)
        else {
            return Err(ConvertError::new("part", "the first part of a pack is its header").into());
        };
        let granted = self.grant(agent, header.run.as_ref()).await?;
        if !matches!(granted.run.spec, RunSpec::Backup { .. }) {
            return Err(Failure::new(ErrorCode::NotPermitted, "only a backup stores packs"));
        }
        let pack = PackId::from_bytes(id_bytes("pack_id", &header.pack_id)?);
        let entries = read_entries(&header)?;
        let repository = &granted.repository;
        let Some(mut upload) = repository.begin_pack(pack, header.length).await? else {
            // It is durable already: sent before a lost answer, or by an earlier attempt.
            return repository.pack_is_durable(pack, entries).await;
        };
        let mut received = 0;
        while let Some(part) = parts.message().await.map_err(|_| cut())? {
            let Some(Part::Data(data)) = part.part else {
                return Err(ConvertError::new("part", "a pack has one header").into());
            };
            received += data.len() as u64;
            if received > header.length {
                return Err(ConvertError::new("data", "the pack is longer than announced").into());
            }
            upload.write(&repository.name, data).await?;
        }
        if received < header.length {
            return Err(cut());
        }
        let (id, attempt) = run_ref(header.run.as_ref())?;
        upload.finish(&repository.name, pack).await?;
        // A lease may have ended while the bytes came: what a lost attempt stored stays as garbage or is found again.
        self.core.runs.fence(id, attempt, agent)?;
        repository.pack_is_durable(pack, entries).await
    }

    /// Publishes a snapshot: index, then the snapshot object under the fence, then catalog and run together.
    async fn commit(
        &self,
        agent: &AgentName,
        request: v1::CommitSnapshotRequest,
    ) -> Result<SnapshotId, Failure> {
        let granted = self.grant(agent, request.run.as_ref()).await?;
        let RunSpec::Backup { source, snapshot_type, milestone, .. } = granted.run.spec.clone() else {
            return Err(Failure::new(ErrorCode::NotPermitted, "only a backup commits a snapshot"));
        };
        if let Some(id) = granted.run.snapshot {
            // The answer to an earlier request was lost.
            return Ok(id);
        }
        let manifest: Manifest = from_document("manifest_json", &request.manifest_json)?;
        let repository = granted.repository;
        let relied_since = self.core.runs.relied_since(granted.run.id, granted.run.state.attempt);
        other_programs::make_sure(&repository, relied_since, self.core.clock.now()).await?;
        self.require_tree(&repository, &request).await?;
        let actor = format!("agent:{agent}");
        let guard = self.core.runs.begin_commit(granted.run.id, &actor, granted.run.state.attempt).await?;
        if let Some(id) = guard.run().snapshot {
            return Ok(id);
        }
        // An earlier request may have got as far as the snapshot before something failed.
        let earlier = match guard.may_be_made() {
            true => self.core.catalog.committed_by(&repository, &granted.run).await?,
            false => None,
        };
        let mut record = match earlier {
            Some(record) => record,
            None => {
                let tags = Tags {
                    ours: true,
                    source: Some(source.clone()),
                    snapshot_type: Some(snapshot_type),
                    milestone: milestone.clone(),
                    run: Some(granted.run.id),
                    agent: Some(agent.clone()),
                };
                self.publish(&granted.run, &repository, &request, &tags, manifest).await?
            }
        };
        let id = record.id;
        record.anomalies = self.anomalies(&source, &record).await?;
        for found in &record.anomalies {
            tracing::warn!(%source, snapshot = %id.short(), severity = found.severity.as_str(), "{}", found.kind);
        }
        let mut batch = Batch::new(&actor, "snapshot.commit", format!("snapshot/{id}")).put_snapshot(&record);
        if let Some(name) = milestone {
            batch = self.hold_milestone(batch, &record, name.as_ref(), &source);
        }
        guard.finish(id, batch).await?;
        self.core.snapshots_changed(&source);
        holdfast_runtime::fail_point::hit("controller-after-commit");
        Ok(id)
    }

    /// Creates the snapshot object.
    async fn publish(
        &self,
        run: &Run,
        repository: &OpenRepository,
        request: &v1::CommitSnapshotRequest,
        tags: &Tags,
        manifest: Manifest,
    ) -> Result<SnapshotRecord, Failure> {
        let parent = self.core.base_of(&run.spec, &repository.name).await?;
        let object = self.snapshot_object(run, request, tags, parent.map(|record| record.id))?;
        holdfast_runtime::fail_point::hit("controller-before-snapshot");
        let id = repository.repository().save_snapshot(&object).await;
        let id = SnapshotId(*id.map_err(|error| repository_failure(&repository.name, &error))?.as_bytes());
        holdfast_runtime::fail_point::hit("controller-after-snapshot");
        let record = describe(id, &repository.name, &object, Some(manifest));
        Ok(SnapshotRecord { entered_at: Some(record.committed_at), ..record })
    }

    /// What looks wrong about a new snapshot beside the newest sound one before it in the same repository.
    async fn anomalies(&self, source: &SourceName, record: &SnapshotRecord) -> Result<Vec<Anomaly>, Failure> {
        let is_before = |other: &SnapshotRecord| {
            other.id != record.id && other.proof.damage.is_none() && other.committed_at <= record.committed_at
        };
        let Some(before) = self.core.catalog.latest(source, Some(&record.repository), is_before).await?
        else {
            return Ok(Vec::new());
        };
        let definition = self.core.definitions.source(source).ok();
        let policy = definition.and_then(|definition| self.core.definitions.policy_of(&definition));
        let rules = policy.map(|(_, policy)| policy.watch).unwrap_or_default();
        Ok(data_watch::compare(&rules, &before, record))
    }

    /// A snapshot whose root is not there must never be published.
    async fn require_tree(
        &self,
        repository: &OpenRepository,
        request: &v1::CommitSnapshotRequest,
    ) -> Result<(), Failure> {
        let tree = BlobId::from_bytes(id_bytes("tree_id", &request.tree_id)?);
        if repository.locate(BlobType::Tree, &[tree]).await?[0].is_some() {
            return Ok(());
        }
        Err(Failure::new(ErrorCode::ObjectMissing, format!("the root tree {tree} was never stored"))
            .at_stake("nothing was committed"))
    }

    fn hold_milestone(
        &self,
        batch: Batch,
        record: &SnapshotRecord,
        name: &str,
        source: &SourceName,
    ) -> Batch {
        let hold = Hold {
            snapshot: record.id,
            repository: record.repository.clone(),
            reason: format!("milestone {name} of {source}"),
            by: "controller".to_owned(),
            at: self.core.clock.now(),
        };
        batch.put(Kind::Hold, record.id.to_string(), &hold, Expect::Any)
    }

    fn snapshot_object(
        &self,
        run: &Run,
        request: &v1::CommitSnapshotRequest,
        tags: &Tags,
        parent: Option<SnapshotId>,
    ) -> Result<SnapshotObject, Failure> {
        let now = self.core.clock.now();
        Ok(SnapshotObject {
            time: now.to_string(),
            parent: parent.map(|id| holdfast_repository::id::SnapshotId::from_bytes(id.0)),
            tree: BlobId::from_bytes(id_bytes("tree_id", &request.tree_id)?),
            paths: request.paths.clone(),
            hostname: request.hostname.clone(),
            username: "holdfast".to_owned(),
            uid: 0,
            gid: 0,
            tags: tags.write(),
            original: None,
            program_version: format!("holdfast {}", crate::VERSION),
            summary: Some(SnapshotSummary {
                backup_start: run.started_at.unwrap_or(now).to_string(),
                backup_end: now.to_string(),
                files_unmodified: request.files_unchanged,
                files_new: request.files.saturating_sub(request.files_unchanged),
                dirs_new: request.directories,
                data_blobs: request.blobs_new,
                data_added: request.bytes_new,
                data_added_packed: request.bytes_stored,
                total_files_processed: request.files,
                total_bytes_processed: request.logical_bytes,
                ..SnapshotSummary::default()
            }),
        })
    }

    /// Answers batches of ids in their order. The fence is checked with every batch, so that a lost attempt learns it.
    async fn answer_ids<Q, A>(
        &self,
        agent: AgentName,
        mut questions: Streaming<Q>,
        read: fn(Q) -> (Option<v1::RunRef>, Asked),
        answer: fn(Arc<OpenRepository>, Asked) -> BoxFuture<'static, Result<A, Failure>>,
    ) -> Result<ReceiverStream<Result<A, Status>>, Failure>
    where
        Q: Send + 'static,
        A: Send + 'static,
    {
        let first = questions.message().await.map_err(|_| ConvertError::new("stream", "ended at once"))?;
        let (reference, asked) = read(first.ok_or_else(|| ConvertError::new("stream", "is empty"))?);
        let granted = self.grant(&agent, reference.as_ref()).await?;
        let (sender, answers) = mpsc::channel(ANSWERS_MAX);
        let (core, run) = (self.core.clone(), (granted.run.id, granted.run.state.attempt));
        let repository = granted.repository;
        self.core.tasks.spawn("answer lookups", OnEnd::Isolated, async move {
            let mut next = Some(asked);
            while let Some(asked) = next {
                let reply = match check_ids(&core, run, &agent, &asked.ids) {
                    Ok(()) => answer(repository.clone(), asked).await,
                    Err(failure) => Err(failure),
                };
                let ended = reply.is_err();
                if sender.send(reply.map_err(|failure| to_status(&failure))).await.is_err() || ended {
                    return;
                }
                next = match questions.next().await {
                    Some(Ok(question)) => Some(read(question).1),
                    Some(Err(_)) | None => None,
                };
            }
        });
        Ok(ReceiverStream::new(answers))
    }

    async fn read_pack_inner(
        &self,
        agent: &AgentName,
        request: v1::ReadPackRequest,
    ) -> Result<ReceiverStream<Result<v1::ReadPackResponse, Status>>, Failure> {
        let granted = self.grant(agent, request.run.as_ref()).await?;
        let pack = PackId::from_bytes(id_bytes("pack_id", &request.pack_id)?);
        let name = ObjectName::Pack(pack);
        if request.length == 0 || request.length > PACK_BYTES_MAX {
            return Err(ConvertError::new("length", format!("{} is out of bounds", request.length)).into());
        }
        let (sender, parts) = mpsc::channel(4);
        let repository = granted.repository;
        self.core.tasks.spawn("read a pack", OnEnd::Isolated, async move {
            let end = request.offset.saturating_add(request.length);
            let mut offset = request.offset;
            while offset < end {
                let length = READ_BYTES.min(end - offset);
                let data = match repository.store().get_range(&name, offset, length).await {
                    Ok(data) => data,
                    Err(error) => {
                        let failure = storage_failure(&repository.name, &error);
                        // Who asked may be gone.
                        let _ = sender.send(Err(to_status(&failure))).await;
                        return;
                    }
                };
                offset += length;
                for start in (0..data.len()).step_by(DATA_PART_BYTES_MAX) {
                    let part = data.slice(start..data.len().min(start + DATA_PART_BYTES_MAX));
                    if sender.send(Ok(v1::ReadPackResponse { data: part })).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(ReceiverStream::new(parts))
    }
}

fn check_ids(
    core: &Core,
    (run, attempt): (RunId, Attempt),
    agent: &AgentName,
    ids: &[u8],
) -> Result<(), Failure> {
    core.runs.fence(run, attempt, agent)?;
    if !ids.len().is_multiple_of(32) || ids.len() / 32 > LOOKUP_IDS_MAX {
        return Err(ConvertError::new("ids", format!("{} bytes are out of bounds", ids.len())).into());
    }
    Ok(())
}

/// Blobs of one type that an agent asks about.
struct Asked {
    trees: bool,
    ids: bytes::Bytes,
}

impl Asked {
    fn blob_type(&self) -> BlobType {
        if self.trees { BlobType::Tree } else { BlobType::Data }
    }

    fn ids(&self) -> Vec<BlobId> {
        self.ids.as_chunks::<32>().0.iter().map(|id| BlobId::from_bytes(*id)).collect()
    }
}

fn read_entries(header: &v1::PackHeader) -> Result<Vec<PackEntry>, Failure> {
    if header.length > PACK_BYTES_MAX {
        return Err(
            ConvertError::new("length", format!("{} bytes are too many for a pack", header.length)).into()
        );
    }
    let mut entries = Vec::with_capacity(header.entries.len());
    for entry in &header.entries {
        if u64::from(entry.offset) + u64::from(entry.length) > header.length {
            return Err(ConvertError::new("entries", "a blob lies outside of its pack").into());
        }
        entries.push(PackEntry {
            id: BlobId::from_bytes(id_bytes("entries.id", &entry.id)?),
            blob_type: if entry.is_tree { BlobType::Tree } else { BlobType::Data },
            offset: entry.offset,
            length: entry.length,
            uncompressed_length: Some(entry.uncompressed_length).filter(|&length| length > 0),
        });
    }
    Ok(entries)
}

async fn known_bits(
    repository: Arc<OpenRepository>,
    asked: Asked,
) -> Result<v1::LookupBlobsResponse, Failure> {
    let known = repository.known(asked.blob_type(), &asked.ids()).await?;
    let mut bits = vec![0u8; known.len().div_ceil(8)];
    for (index, _) in known.iter().enumerate().filter(|(_, known)| **known) {
        bits[index / 8] |= 1 << (index % 8);
    }
    Ok(v1::LookupBlobsResponse { known: bits.into() })
}

async fn places(repository: Arc<OpenRepository>, asked: Asked) -> Result<v1::LocateBlobsResponse, Failure> {
    let places =
        repository.locate(asked.blob_type(), &asked.ids()).await?.into_iter().map(|place| match place {
            None => v1::BlobPlace::default(),
            Some(place) => v1::BlobPlace {
                pack_id: place.pack.as_bytes().to_vec(),
                offset: place.entry.offset,
                length: place.entry.length,
                uncompressed_length: place.entry.uncompressed_length.unwrap_or(0),
                is_tree: place.entry.blob_type == BlobType::Tree,
            },
        });
    Ok(v1::LocateBlobsResponse { places: places.collect() })
}

#[tonic::async_trait]
impl DataService for DataPlane {
    type LookupBlobsStream = ReceiverStream<Result<v1::LookupBlobsResponse, Status>>;
    type LocateBlobsStream = ReceiverStream<Result<v1::LocateBlobsResponse, Status>>;
    type ReadPackStream = ReceiverStream<Result<v1::ReadPackResponse, Status>>;

    async fn open_repository(
        &self,
        request: Request<v1::OpenRepositoryRequest>,
    ) -> Result<Response<v1::OpenRepositoryResponse>, Status> {
        let agent = agent_of(&request)?;
        let opened = self.open(&agent, request.into_inner()).await;
        opened.map(Response::new).map_err(|failure| to_status(&failure))
    }

    async fn lookup_blobs(
        &self,
        request: Request<Streaming<v1::LookupBlobsRequest>>,
    ) -> Result<Response<Self::LookupBlobsStream>, Status> {
        let agent = agent_of(&request)?;
        let answers = self
            .answer_ids(
                agent,
                request.into_inner(),
                |asked| (asked.run, Asked { trees: asked.trees, ids: asked.ids }),
                |repository, asked| known_bits(repository, asked).boxed(),
            )
            .await;
        answers.map(Response::new).map_err(|failure| to_status(&failure))
    }

    async fn locate_blobs(
        &self,
        request: Request<Streaming<v1::LocateBlobsRequest>>,
    ) -> Result<Response<Self::LocateBlobsStream>, Status> {
        let agent = agent_of(&request)?;
        let answers = self
            .answer_ids(
                agent,
                request.into_inner(),
                |asked| (asked.run, Asked { trees: asked.trees, ids: asked.ids }),
                |repository, asked| places(repository, asked).boxed(),
            )
            .await;
        answers.map(Response::new).map_err(|failure| to_status(&failure))
    }

    async fn put_pack(
        &self,
        request: Request<Streaming<v1::PutPackRequest>>,
    ) -> Result<Response<v1::PutPackResponse>, Status> {
        let agent = agent_of(&request)?;
        let stored = self.put_pack_inner(&agent, request.into_inner()).await;
        stored.map(|()| Response::new(v1::PutPackResponse {})).map_err(|failure| to_status(&failure))
    }

    async fn commit_snapshot(
        &self,
        request: Request<v1::CommitSnapshotRequest>,
    ) -> Result<Response<v1::CommitSnapshotResponse>, Status> {
        let agent = agent_of(&request)?;
        let committed = self.commit(&agent, request.into_inner()).await;
        let reply = |id: SnapshotId| Response::new(v1::CommitSnapshotResponse { snapshot_id: id.0.to_vec() });
        committed.map(reply).map_err(|failure| to_status(&failure))
    }

    async fn read_pack(
        &self,
        request: Request<v1::ReadPackRequest>,
    ) -> Result<Response<Self::ReadPackStream>, Status> {
        let agent = agent_of(&request)?;
        let parts = self.read_pack_inner(&agent, request.into_inner()).await;
        parts.map(Response::new).map_err(|failure| to_status(&failure))
    }
}
