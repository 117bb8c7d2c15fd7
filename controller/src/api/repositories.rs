//! Repositories: create or open, list, usage, prune, copy.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_model::ids::RepositoryName;
use holdfast_model::repository_spec::RepositorySpec;
use holdfast_model::run::RunSpec;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{parse, parse_optional, timestamp};
use holdfast_proto::v1;
use holdfast_proto::v1::repository_service_server::RepositoryService;
use holdfast_repository::format::ObjectKind;
use tonic::{Request, Response, Status};

use super::runs::{queue_run, queued_before};
use super::{Repeatable, caller_of, reply};
use crate::access::Caller;
use crate::copy::{self, CopyOrder, CopyPlan};
use crate::core::Core;
use crate::prune::{self, PlanShown};
use crate::records::Batch;
use crate::repositories::{OpenRepository, storage_failure};
use crate::run_lifecycle::NewRun;
use crate::verify_schedule;

/// The service.
pub struct RepositoriesApi {
    core: Arc<Core>,
}

impl RepositoriesApi {
    /// The service over the shared parts.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    async fn describe(&self, name: &RepositoryName, spec: &RepositorySpec) -> v1::Repository {
        let mut described =
            v1::Repository { name: name.to_string(), url: spec.url.clone(), ..v1::Repository::default() };
        if let Err(failure) = self.measure(name, spec, &mut described).await {
            described.state = match failure.code {
                ErrorCode::RepositoryMissing => "missing",
                ErrorCode::RepositoryWrongPassword | ErrorCode::SecretUnresolvable => "locked-out",
                ErrorCode::ObjectDamaged | ErrorCode::ObjectMissing => "damaged",
                _ => "unreachable",
            }
            .to_owned();
            described.failure = Some((&failure).into());
        }
        described
    }

    async fn measure(
        &self,
        name: &RepositoryName,
        spec: &RepositorySpec,
        described: &mut v1::Repository,
    ) -> Result<(), Failure> {
        let repository = self.core.repositories.get(name, spec).await?;
        described.state = "open".to_owned();
        described.repository_id = repository.repository().config().id.to_string();
        let fail = |error| storage_failure(name, &error);
        (described.packs, described.stored_bytes) = repository.stored(ObjectKind::Pack).await?;
        (_, described.trash_bytes) = repository.stored(ObjectKind::Trash).await?;
        described.pruned_at = self.core.records.last_prune(name).await?.0.map(timestamp);
        for usage in self.usage(name).await? {
            described.snapshots += usage.snapshots;
        }
        described.reading = Some(self.reading(name, &repository).await?);
        let probe = repository.store().probe().await.map_err(fail)?;
        described.free_bytes = probe.free_bytes.unwrap_or(0);
        described.checked_at = self.core.records.last_clean_check(name).await?.map(timestamp);
        let mut before: Option<String> = None;
        loop {
            let page = self.core.records.snapshots_before(None, before.as_deref(), 500).await?;
            let Some((_, last)) = page.last() else { return Ok(()) };
            before = Some(last.clone());
            let here = page.iter().filter(|(record, _)| record.repository == *name);
            described.logical_bytes += here.map(|(record, _)| record.logical_bytes).sum::<u64>();
        }
    }

    async fn reading(
        &self,
        name: &RepositoryName,
        repository: &OpenRepository,
    ) -> Result<v1::RepositoryReading, Failure> {
        let pace = verify_schedule::paces(&self.core).await?.remove(name);
        let (share, complete_at) = repository.index().readings.share(pace.as_ref(), self.core.clock.now());
        Ok(v1::RepositoryReading {
            packs: share.packs,
            bytes: share.bytes,
            read_packs: share.read_packs,
            read_bytes: share.read_bytes,
            unread_packs: share.unread_packs,
            oldest_at: share.oldest.map(timestamp),
            within_seconds: pace.map_or(0, |pace| pace.all_within().secs()),
            complete_at: complete_at.map(timestamp),
        })
    }

    async fn usage(&self, name: &RepositoryName) -> Result<Vec<v1::SourceUsage>, Failure> {
        let mut usage: BTreeMap<String, v1::SourceUsage> = BTreeMap::new();
        let mut before: Option<String> = None;
        loop {
            let page = self.core.records.snapshots_before(None, before.as_deref(), 500).await?;
            let Some((_, last)) = page.last() else { return Ok(usage.into_values().collect()) };
            before = Some(last.clone());
            for (record, _) in page.into_iter().filter(|(record, _)| record.repository == *name) {
                let source = record.source.as_ref().map(ToString::to_string).unwrap_or_default();
                let entry = usage.entry(source.clone()).or_insert_with(|| v1::SourceUsage {
                    source,
                    // The first that comes is the newest.
                    logical_bytes: record.logical_bytes,
                    ..v1::SourceUsage::default()
                });
                entry.snapshots += 1;
                entry.stored_bytes += record.stored_bytes;
            }
        }
    }

    pub(crate) async fn prune_inner(
        &self,
        caller: &Caller,
        request: v1::PruneRepositoryRequest,
    ) -> Result<v1::PruneRepositoryResponse, Failure> {
        let (name, _) = self.spec(&request.name)?;
        if request.dry_run {
            let plan = prune::plan(&self.core, &name).await?;
            return Ok(v1::PruneRepositoryResponse { plan: Some(message(&plan)), run: None });
        }
        let repeatable = Repeatable::new(caller, &request.idempotency_key, &request)?;
        let run = match queued_before(&self.core, repeatable.as_ref()).await? {
            Some(run) => run,
            None => {
                let approved = !request.confirm.is_empty();
                if approved && (request.confirm != name.as_str() || request.reason.trim().is_empty()) {
                    return Err(Failure::new(
                        ErrorCode::NeedsConfirmation,
                        format!("the prune of repository {name} is confirmed by its name, and with a reason"),
                    )
                    .then(format!("add: --confirm {name} --reason TEXT")));
                }
                let new = NewRun::new(RunSpec::Prune { repository: name, approved }, caller.actor());
                let why: String = request.reason.chars().take(500).collect();
                let action =
                    if approved { format!("run.start approved: {why}") } else { "run.start".to_owned() };
                queue_run(&self.core, caller, &action, new, repeatable.as_ref()).await?
            }
        };
        Ok(v1::PruneRepositoryResponse { plan: None, run: Some((&run).into()) })
    }

    async fn copy_inner(
        &self,
        caller: &Caller,
        request: v1::CopySnapshotsRequest,
    ) -> Result<v1::CopySnapshotsResponse, Failure> {
        let order = self.copy_order(&request).await?;
        if request.dry_run {
            let plan = copy::plan(&self.core, order).await?;
            return Ok(v1::CopySnapshotsResponse { plan: Some(copy_message(&plan)), run: None });
        }
        let repeatable = Repeatable::new(caller, &request.idempotency_key, &request)?;
        let run = match queued_before(&self.core, repeatable.as_ref()).await? {
            Some(run) => run,
            None => {
                copy::validate(&self.core, &order).await?;
                let new = NewRun::new(order.spec(), caller.actor());
                queue_run(&self.core, caller, "run.start", new, repeatable.as_ref()).await?
            }
        };
        Ok(v1::CopySnapshotsResponse { plan: None, run: Some((&run).into()) })
    }

    async fn copy_order(&self, request: &v1::CopySnapshotsRequest) -> Result<CopyOrder, Failure> {
        let mut snapshots = Vec::with_capacity(request.snapshots.len());
        for id in &request.snapshots {
            snapshots.push(self.core.records.snapshot_by_prefix(id).await?.id);
        }
        Ok(CopyOrder {
            from: self.spec(&request.from)?.0,
            to: self.spec(&request.to)?.0,
            source: parse_optional("source", &request.source)?,
            snapshots,
            heal: request.heal,
        })
    }

    fn spec(&self, text: &str) -> Result<(RepositoryName, RepositorySpec), Failure> {
        let name: RepositoryName = parse("name", text)?;
        let spec = self.core.definitions.repository(&name)?;
        Ok((name, spec))
    }
}

/// The plan of a copy as it travels.
fn copy_message(plan: &CopyPlan) -> v1::CopyPlan {
    v1::CopyPlan {
        snapshots: plan.snapshots.iter().map(|record| super::snapshots::message(record, None)).collect(),
        already: plan.already,
        blobs: plan.sent.data_blobs + plan.sent.tree_blobs,
        content_bytes: plan.sent.content_bytes,
        stored_bytes: plan.sent.stored_bytes,
        concerns: plan.concerns.clone(),
    }
}

/// A plan as it travels.
fn message(plan: &PlanShown) -> v1::PrunePlan {
    let n = &plan.numbers;
    v1::PrunePlan {
        snapshots: n.snapshots,
        packs: n.packs,
        bytes: n.bytes,
        live_bytes: n.live_bytes,
        dead_bytes: n.dead_bytes,
        delete_packs: n.delete_packs,
        delete_bytes: n.delete_bytes,
        repack_packs: n.repack_packs,
        repack_bytes: n.repack_bytes,
        repack_live_bytes: n.repack_live_bytes,
        orphan_packs: n.orphan_packs,
        orphan_bytes: n.orphan_bytes,
        freed_bytes: n.freed_bytes(),
        freed_percent: n.freed_percent(),
        unused_left_bytes: n.unused_left_bytes,
        needs_approval: plan.needs_approval,
        concerns: plan.concerns.clone(),
    }
}

#[tonic::async_trait]
impl RepositoryService for RepositoriesApi {
    async fn init(
        &self,
        request: Request<v1::InitRepositoryRequest>,
    ) -> Result<Response<v1::InitRepositoryResponse>, Status> {
        let caller = caller_of(&request);
        let request = request.into_inner();
        let result = async {
            let (name, spec) = self.spec(&request.name)?;
            let (repository, created) = self.core.repositories.init(&name, &spec).await?;
            let synced = self.core.catalog.sync(&repository).await?;
            let action = if created { "repository.create" } else { "repository.open" };
            self.core
                .records
                .commit(Batch::new(caller.actor(), action, format!("repository/{name}")))
                .await?;
            Ok(v1::InitRepositoryResponse {
                repository_id: repository.repository().config().id.to_string(),
                created,
                snapshots: synced.snapshots as u64,
            })
        };
        reply(result.await)
    }

    async fn prune(
        &self,
        request: Request<v1::PruneRepositoryRequest>,
    ) -> Result<Response<v1::PruneRepositoryResponse>, Status> {
        let caller = caller_of(&request);
        reply(self.prune_inner(&caller, request.into_inner()).await)
    }

    async fn copy(
        &self,
        request: Request<v1::CopySnapshotsRequest>,
    ) -> Result<Response<v1::CopySnapshotsResponse>, Status> {
        let caller = caller_of(&request);
        reply(self.copy_inner(&caller, request.into_inner()).await)
    }

    async fn list(
        &self,
        _request: Request<v1::ListRepositoriesRequest>,
    ) -> Result<Response<v1::ListRepositoriesResponse>, Status> {
        let current = self.core.definitions.current();
        let mut repositories = Vec::new();
        for (name, spec) in &current.fleet.repositories {
            repositories.push(self.describe(name, spec).await);
        }
        reply(Ok(v1::ListRepositoriesResponse { repositories }))
    }

    async fn usage(
        &self,
        request: Request<v1::RepositoryUsageRequest>,
    ) -> Result<Response<v1::RepositoryUsageResponse>, Status> {
        let request = request.into_inner();
        let result = async {
            let (name, spec) = self.spec(&request.name)?;
            let repository = Some(self.describe(&name, &spec).await);
            Ok(v1::RepositoryUsageResponse { repository, sources: self.usage(&name).await? })
        };
        reply(result.await)
    }
}
