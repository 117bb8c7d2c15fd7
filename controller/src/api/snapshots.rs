//! Snapshots: list, show, tree, hold, release, forget, export, import.

use std::sync::Arc;

use holdfast_model::data_watch::Anomaly;
use holdfast_model::ids::CONTROLLER_SOURCE;
use holdfast_model::snapshot::{Hold, SnapshotRecord};
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{ConvertError, document, timestamp};
use holdfast_proto::status::to_status;
use holdfast_proto::v1;
use holdfast_proto::v1::snapshot_service_server::SnapshotService;
use holdfast_repository::RepositoryError;
use holdfast_repository::id::BlobId;
use holdfast_repository::reader::{BlobReader, TreeWalker, WalkLimits, WalkStep};
use holdfast_repository::tree::Node;
use holdfast_runtime::OnEnd;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{caller_of, reply};
use crate::access::Caller;
use crate::contents;
use crate::core::Core;
use crate::forget;
use crate::records::Batch;
use crate::repositories::repository_failure;
use crate::store::{Expect, Kind};

/// Items in one message of a listing.
const ITEMS_MAX: usize = 100;

/// The service.
pub struct Snapshots {
    core: Arc<Core>,
}

impl Snapshots {
    /// The service over the shared parts.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    pub(crate) async fn list_inner(
        &self,
        request: v1::ListSnapshotsRequest,
    ) -> Result<v1::ListSnapshotsResponse, Failure> {
        let limit = match request.page_size {
            0 => 100,
            size => (size as usize).min(1000),
        };
        let source = Some(request.source.as_str()).filter(|name| !name.is_empty());
        let mut before = Some(request.page_token).filter(|token| !token.is_empty());
        let mut snapshots = Vec::new();
        let mut more = true;
        while snapshots.len() < limit && more {
            let page = self.core.records.snapshots_before(source, before.as_deref(), 200).await?;
            more = page.len() == 200;
            for (record, place) in page {
                before = Some(place);
                let own = source.is_none()
                    && record.source.as_ref().is_some_and(|name| name.as_str() == CONTROLLER_SOURCE);
                if !own && (request.repository.is_empty() || record.repository.as_str() == request.repository)
                {
                    snapshots.push(self.describe(&record).await?);
                    if snapshots.len() == limit {
                        more = true;
                        break;
                    }
                }
            }
        }
        let next_page_token = before.filter(|_| more).unwrap_or_default();
        Ok(v1::ListSnapshotsResponse { snapshots, next_page_token })
    }

    pub(crate) async fn describe(&self, record: &SnapshotRecord) -> Result<v1::Snapshot, Failure> {
        let hold = self.core.records.hold(record.id).await?;
        Ok(message(record, hold.map(|found| found.value.reason)))
    }

    /// A snapshot in all repositories that have it.
    pub(crate) async fn copies(&self, record: &SnapshotRecord) -> Result<Vec<v1::Snapshot>, Failure> {
        let mut copies = Vec::new();
        for copy in self.core.records.copies(record).await? {
            copies.push(self.describe(&copy).await?);
        }
        Ok(copies)
    }

    async fn hold_inner(&self, caller: &Caller, request: v1::HoldRequest) -> Result<v1::Snapshot, Failure> {
        let _turn = self.core.holds.lock().await;
        let record = self.core.records.snapshot_by_prefix(&request.id).await?;
        let hold = Hold {
            snapshot: record.id,
            repository: record.repository.clone(),
            reason: request.reason.chars().take(500).collect(),
            by: caller.actor(),
            at: self.core.clock.now(),
        };
        let batch =
            Batch::new(caller.actor(), "snapshot.hold", format!("snapshot/{}: {}", record.id, hold.reason));
        self.core.records.commit(batch.put(Kind::Hold, record.id.to_string(), &hold, Expect::Any)).await?;
        record.source.iter().for_each(|source| self.core.snapshots_changed(source));
        self.describe(&record).await
    }

    async fn release_inner(
        &self,
        caller: &Caller,
        request: v1::ReleaseRequest,
    ) -> Result<v1::Snapshot, Failure> {
        let record = self.core.records.snapshot_by_prefix(&request.id).await?;
        let short = record.id.short();
        let Some(hold) = self.core.records.hold(record.id).await? else {
            return Err(Failure::new(ErrorCode::NotFound, format!("snapshot {short} is not held")));
        };
        if request.confirm != short || request.reason.trim().is_empty() {
            return Err(Failure::new(
                ErrorCode::NeedsConfirmation,
                format!("snapshot {short} is held for: {}", hold.value.reason),
            )
            .at_stake("once released, retention may remove it")
            .then(format!("add: --confirm {short} --reason TEXT")));
        }
        let target =
            format!("snapshot/{}: {}", record.id, request.reason.chars().take(500).collect::<String>());
        let batch = Batch::new(caller.actor(), "snapshot.release", target);
        let batch = batch.delete(Kind::Hold, record.id.to_string(), Expect::Version(hold.version));
        self.core.records.commit(batch).await?;
        record.source.iter().for_each(|source| self.core.snapshots_changed(source));
        self.describe(&record).await
    }

    async fn forget_inner(
        &self,
        caller: &Caller,
        request: v1::ForgetSnapshotsRequest,
    ) -> Result<v1::ForgetSnapshotsResponse, Failure> {
        if request.ids.is_empty() {
            return Err(ConvertError::new("ids", "name at least one snapshot").into());
        }
        let deletion = forget::plan(&self.core, &request.ids).await?;
        let mut snapshots = Vec::with_capacity(deletion.snapshots.len());
        for (record, lost) in &deletion.snapshots {
            snapshots.push(v1::SnapshotToForget {
                snapshot: Some(message(record, None)),
                at_stake: lost.clone().unwrap_or_default(),
            });
        }
        if !request.dry_run {
            let actor = caller.actor();
            forget::delete(&self.core, &deletion, &actor, &request.confirm, &request.reason).await?;
        }
        Ok(v1::ForgetSnapshotsResponse { snapshots, confirm_with: deletion.confirm_with })
    }

    async fn tree_inner(
        &self,
        request: v1::TreeRequest,
    ) -> Result<ReceiverStream<Result<v1::TreeResponse, Status>>, Failure> {
        let record = self.core.records.snapshot_by_prefix(&request.id).await?;
        let repository = self.core.repository(&record.repository).await?;
        let root: BlobId =
            record.tree.parse().map_err(|error| Failure::from_error(ErrorCode::StateDamaged, &error))?;
        let reader = contents::reader(&repository);
        let name = repository.name.clone();
        let fail = move |error: RepositoryError| repository_failure(&name, &error);
        let node = reader.find(root, request.path.as_bytes()).await.map_err(&fail)?;
        let (sender, parts) = mpsc::channel(8);
        let sending = Listing { reader, fail: Box::new(fail), base: request.path, sender };
        self.core.tasks.spawn("list a tree", OnEnd::Isolated, sending.send(node, request.recursive));
        Ok(ReceiverStream::new(parts))
    }
}

/// A folder of a snapshot on its way to who asked.
struct Listing {
    reader: BlobReader,
    fail: Box<dyn Fn(RepositoryError) -> Failure + Send + Sync>,
    base: String,
    sender: mpsc::Sender<Result<v1::TreeResponse, Status>>,
}

impl Listing {
    async fn send(self, node: Node, recursive: bool) {
        let sent = match node.subtree {
            None => self.items(vec![item(&self.base, &node)]).await,
            Some(tree) if recursive => self.all(tree).await,
            Some(tree) => self.folder(tree).await,
        };
        if let Err(Some(error)) = sent {
            // Who asked may be gone.
            let _ = self.sender.send(Err(to_status(&(self.fail)(error)))).await;
        }
    }

    /// Sends items; the error without a cause says that nobody listens any more.
    async fn items(&self, items: Vec<v1::TreeItem>) -> Result<(), Option<RepositoryError>> {
        self.sender.send(Ok(v1::TreeResponse { items })).await.map_err(|_| None)
    }

    async fn folder(&self, tree: BlobId) -> Result<(), Option<RepositoryError>> {
        let nodes = self.reader.load_tree(tree).await?.nodes;
        for nodes in nodes.chunks(ITEMS_MAX) {
            let mut items = Vec::with_capacity(nodes.len());
            for node in nodes {
                items.push(item(&below(&self.base, &String::from_utf8_lossy(&node.name)), node));
            }
            self.items(items).await?;
        }
        Ok(())
    }

    async fn all(&self, tree: BlobId) -> Result<(), Option<RepositoryError>> {
        let mut walker = TreeWalker::new(self.reader.clone(), tree, WalkLimits::default());
        let mut items = Vec::new();
        while let Some(step) = walker.next().await? {
            let (WalkStep::Enter(node) | WalkStep::Entry(node)) = step else { continue };
            items.push(item(&below(&self.base, &String::from_utf8_lossy(walker.path())), &node));
            if items.len() == ITEMS_MAX {
                self.items(std::mem::take(&mut items)).await?;
            }
        }
        self.items(items).await
    }
}

fn below(base: &str, name: &str) -> String {
    if base.is_empty() { name.to_owned() } else { format!("{}/{name}", base.trim_end_matches('/')) }
}

fn item(path: &str, node: &Node) -> v1::TreeItem {
    v1::TreeItem {
        path: path.to_owned(),
        r#type: node.metadata.node_type.as_str().to_owned(),
        size_bytes: node.metadata.size,
        mode: node.metadata.mode,
        mtime: Some(holdfast_proto::WireTimestamp {
            seconds: node.metadata.mtime.seconds,
            nanos: i32::try_from(node.metadata.mtime.nanoseconds).unwrap_or(0),
        }),
    }
}

/// A snapshot as it travels.
pub fn message(record: &SnapshotRecord, held_because: Option<String>) -> v1::Snapshot {
    let manifest = record.manifest.as_ref();
    let text = |value: Option<String>| value.unwrap_or_default();
    let proof = &record.proof;
    v1::Snapshot {
        id: record.id.to_string(),
        repository: record.repository.to_string(),
        source: text(record.source.as_ref().map(ToString::to_string)),
        agent: text(record.agent.as_ref().map(ToString::to_string)),
        engine: text(record.engine.map(|engine| engine.to_string())),
        snapshot_type: text(record.snapshot_type.map(|kind| kind.to_string())),
        milestone: text(record.milestone.as_ref().map(ToString::to_string)),
        captured_at: Some(timestamp(record.captured_at())),
        committed_at: Some(timestamp(record.committed_at)),
        run_id: text(record.run.map(|id| id.to_string())),
        logical_bytes: record.logical_bytes,
        stored_bytes: record.stored_bytes,
        files: record.files,
        rows: manifest.map_or(0, |manifest| manifest.rows()),
        tables: manifest.map_or(0, |manifest| manifest.tables() as u64),
        duration_millis: record.duration_millis,
        unreadable: record.unreadable,
        proof: proof.level().to_owned(),
        proven_at: proof.restored_at.or(proof.read_at).or(proof.checked_at).map(timestamp),
        checked_at: proof.checked_at.map(timestamp),
        read_at: proof.read_at.map(timestamp),
        restored_at: proof.restored_at.map(timestamp),
        damage: text(proof.damage.clone()),
        held_because: text(held_because),
        tree_id: record.tree.clone(),
        hostname: record.hostname.clone(),
        paths: record.paths.clone(),
        anomalies: record.anomalies.iter().map(anomaly).collect(),
        copy_of: text(record.original.map(|id| id.to_string())),
    }
}

fn anomaly(found: &Anomaly) -> v1::Anomaly {
    v1::Anomaly {
        severity: found.severity.as_str().to_owned(),
        kind: found.kind.name().to_owned(),
        message: found.kind.to_string(),
    }
}

#[tonic::async_trait]
impl SnapshotService for Snapshots {
    type TreeStream = ReceiverStream<Result<v1::TreeResponse, Status>>;
    type ExportStream = ReceiverStream<Result<v1::ExportSnapshotResponse, Status>>;

    async fn list(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        reply(self.list_inner(request.into_inner()).await)
    }

    async fn show(
        &self,
        request: Request<v1::ShowSnapshotRequest>,
    ) -> Result<Response<v1::ShowSnapshotResponse>, Status> {
        let result = async {
            let record = self.core.records.snapshot_by_prefix(&request.into_inner().id).await?;
            Ok(v1::ShowSnapshotResponse {
                copies: self.copies(&record).await?,
                snapshot: Some(self.describe(&record).await?),
                manifest_json: record.manifest.as_ref().map(document).unwrap_or_default(),
            })
        };
        reply(result.await)
    }

    async fn tree(&self, request: Request<v1::TreeRequest>) -> Result<Response<Self::TreeStream>, Status> {
        reply(self.tree_inner(request.into_inner()).await)
    }

    async fn hold(&self, request: Request<v1::HoldRequest>) -> Result<Response<v1::HoldResponse>, Status> {
        let caller = caller_of(&request);
        let snapshot = self.hold_inner(&caller, request.into_inner()).await;
        reply(snapshot.map(|snapshot| v1::HoldResponse { snapshot: Some(snapshot) }))
    }

    async fn release(
        &self,
        request: Request<v1::ReleaseRequest>,
    ) -> Result<Response<v1::ReleaseResponse>, Status> {
        let caller = caller_of(&request);
        let snapshot = self.release_inner(&caller, request.into_inner()).await;
        reply(snapshot.map(|snapshot| v1::ReleaseResponse { snapshot: Some(snapshot) }))
    }

    async fn forget(
        &self,
        request: Request<v1::ForgetSnapshotsRequest>,
    ) -> Result<Response<v1::ForgetSnapshotsResponse>, Status> {
        let caller = caller_of(&request);
        reply(self.forget_inner(&caller, request.into_inner()).await)
    }

    async fn export(
        &self,
        request: Request<v1::ExportSnapshotRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        reply(crate::export::export(&self.core, &request.into_inner().id).await)
    }

    async fn import(
        &self,
        request: Request<Streaming<v1::ImportSnapshotRequest>>,
    ) -> Result<Response<v1::ImportSnapshotResponse>, Status> {
        let caller = caller_of(&request);
        let record = crate::import::import(&self.core, &caller, request.into_inner()).await;
        reply(record.map(|record| v1::ImportSnapshotResponse { snapshot: Some(message(&record, None)) }))
    }
}
