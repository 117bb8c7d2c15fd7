//! Restores: first a plan that touches nothing, then the run of that plan; promotion and removal afterwards.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::ids::{AgentName, RepositoryName, SourceName};
use holdfast_model::restore::{CheckOutcome, Placement, RestorePreview, RestoreReport};
use holdfast_model::run::{Run, RunSpec};
use holdfast_model::run_state::Phase;
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{ConvertError, document, from_document, parse, parse_optional, timestamp};
use holdfast_proto::v1;
use holdfast_proto::v1::restore_service_server::RestoreService;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tonic::{Request, Response, Status};

use super::runs::{find_run, nothing_queued, queue_run, queued_before};
use super::{Repeatable, caller_of, reply};
use crate::access::Caller;
use crate::core::Core;
use crate::records::Batch;
use crate::run_lifecycle::NewRun;
use crate::store::{Expect, Kind};

/// How long a plan can be run.
const PLAN_LIFE: Duration = Duration::from_secs(30 * 60);

/// Snapshots looked at for an estimate.
const ESTIMATED_FROM: usize = 50;

/// A stored plan.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct PlanRecord {
    spec: RunSpec,
    not_after: Timestamp,
    obstacles: Vec<String>,
    confirm_with: Option<String>,
    /// Version of the source's definition: a plan for another definition is not run.
    source_version: u64,
}

/// The service.
pub struct Restores {
    core: Arc<Core>,
}

impl Restores {
    /// The service over the shared parts.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    async fn plan_inner(
        &self,
        caller: &Caller,
        request: v1::PlanRestoreRequest,
    ) -> Result<v1::PlanRestoreResponse, Failure> {
        let source: SourceName = parse("source", &request.source)?;
        let definition = self.core.definitions.source(&source)?;
        let wanted: Option<RepositoryName> = parse_optional("repository", &request.repository)?;
        let record = self.snapshot_for(&source, &request.to, wanted.as_ref()).await?;
        let manifest = record.manifest.clone().ok_or_else(|| {
            Failure::new(
                ErrorCode::SnapshotUnknown,
                format!("snapshot {} was not written by Holdfast: it has no manifest", record.id.short()),
            )
            .then(format!("restic restore {} --target DIR", record.id.short()))
        })?;
        let (placement, agent) = self.placement(&request, &definition.agent).await?;
        let spec = RunSpec::Restore {
            source: source.clone(),
            repository: record.repository.clone(),
            snapshot: record.id,
            agent: agent.clone(),
            placement,
            only: request.only.clone(),
        };
        let question = v1::PreviewRestore { spec_json: document(&spec), manifest_json: document(&manifest) };
        let question = v1::inquiry::Question::Preview(question);
        let preview_json = self.core.sessions.ask(&agent, document(&definition), question).await?;
        let preview: RestorePreview = from_document("preview", &preview_json)?;
        let mut obstacles: Vec<String> = preview
            .checks
            .iter()
            .filter(|check| check.outcome == CheckOutcome::Failed)
            .map(|check| format!("{}: {}", check.name, check.detail))
            .collect();
        if let Some(damage) = &record.proof.damage {
            obstacles.push(format!("the snapshot is damaged: {damage}"));
        }
        let confirm_with = preview.replaces.then(|| source.to_string());
        let not_after = self.core.clock.now() + PLAN_LIFE;
        let plan = PlanRecord {
            spec,
            not_after,
            obstacles: obstacles.clone(),
            confirm_with: confirm_with.clone(),
            source_version: self.source_version(&source),
        };
        let plan_id = hex::encode(rand::random::<[u8; 6]>());
        let batch = Batch::new(caller.actor(), "restore.plan", format!("source/{source} plan/{plan_id}"));
        self.core.records.commit(batch.put(Kind::Plan, plan_id.clone(), &plan, Expect::Absent)).await?;
        Ok(v1::PlanRestoreResponse {
            plan_id,
            not_after: Some(timestamp(not_after)),
            snapshot_id: record.id.to_string(),
            captured_at: Some(timestamp(manifest.captured_at)),
            repository: record.repository.to_string(),
            agent: agent.to_string(),
            preview_json,
            obstacles,
            estimated_millis: self.estimate(&source, record.logical_bytes).await?,
            confirm_with: confirm_with.unwrap_or_default(),
        })
    }

    fn source_version(&self, source: &SourceName) -> u64 {
        let current = self.core.definitions.current();
        current.stamps.get(&format!("sources.{source}")).map_or(0, |stamp| stamp.version)
    }

    async fn snapshot_for(
        &self,
        source: &SourceName,
        to: &str,
        repository: Option<&RepositoryName>,
    ) -> Result<SnapshotRecord, Failure> {
        let none = |what: String| {
            Failure::new(ErrorCode::SnapshotUnknown, what).then(format!("holdfast backup list {source}"))
        };
        if to.is_empty() || to == "latest" {
            let found =
                self.core.catalog.latest(source, repository, |record| record.proof.damage.is_none()).await?;
            return found
                .ok_or_else(|| none(format!("source {source} has no snapshot that can be restored")));
        }
        if let Ok(at) = to.parse::<Timestamp>() {
            if at > self.core.clock.now() {
                return Err(ConvertError::new("to", format!("{at} is in the future")).into());
            }
            let before =
                |record: &SnapshotRecord| record.captured_at() <= at && record.proof.damage.is_none();
            let found = self.core.catalog.latest(source, repository, before).await?;
            return found.ok_or_else(|| none(format!("source {source} has no snapshot from before {at}")));
        }
        let record = self.core.records.snapshot_by_prefix(to).await?;
        if record.source.as_ref() != Some(source) {
            return Err(none(format!("snapshot {} is not one of source {source}", record.id.short())));
        }
        Ok(record)
    }

    /// Where it goes: `TARGET`, `TARGET@AGENT`, `@AGENT`, or beside the original.
    async fn placement(
        &self,
        request: &v1::PlanRestoreRequest,
        home: &AgentName,
    ) -> Result<(Placement, AgentName), Failure> {
        if request.in_place {
            if !request.into.is_empty() {
                return Err(ConvertError::new("into", "does not go with in_place").into());
            }
            if !request.only.is_empty() {
                return Err(ConvertError::new(
                    "only",
                    "does not go with in_place: a part can not replace the whole",
                )
                .into());
            }
            let placement = if request.delta { Placement::InPlaceDelta } else { Placement::InPlace };
            return Ok((placement, home.clone()));
        }
        if request.delta {
            return Err(ConvertError::new("delta", "goes with in_place only").into());
        }
        let mut target = request.into.as_str();
        let mut agent = home.clone();
        if let Some((before, name)) = target.rsplit_once('@')
            && let Ok(name) = AgentName::new(name)
            && self.core.agents.get(&name).await.is_ok()
        {
            (target, agent) = (before, name);
        }
        let placement =
            if target.is_empty() { Placement::Beside } else { Placement::Into(target.to_owned()) };
        Ok((placement, agent))
    }

    /// The median of what earlier restores of the source took, scaled by size; 0 without any.
    async fn estimate(&self, source: &SourceName, bytes: u64) -> Result<u64, Failure> {
        let recent = self.core.records.snapshots_before(Some(source.as_str()), None, ESTIMATED_FROM).await?;
        let mut scaled: Vec<u64> = recent
            .iter()
            .filter_map(|(record, _)| {
                let share = u128::from(bytes.max(1)) * u128::from(record.proof.restore_millis?);
                u64::try_from(share / u128::from(record.logical_bytes.max(1))).ok()
            })
            .collect();
        scaled.sort_unstable();
        Ok(scaled.get(scaled.len() / 2).copied().unwrap_or(0))
    }

    async fn run_inner(&self, caller: &Caller, request: v1::RunRestoreRequest) -> Result<Run, Failure> {
        let repeatable = Repeatable::new(caller, &request.idempotency_key, &request)?;
        if let Some(run) = queued_before(&self.core, repeatable.as_ref()).await? {
            return Ok(run);
        }
        let plan = self.core.records.get::<PlanRecord>(Kind::Plan, &request.plan_id).await;
        let plan = plan.ok().flatten().map(|found| found.value).ok_or_else(|| {
            Failure::new(
                ErrorCode::NotFound,
                format!("there is no plan {}", request.plan_id.escape_default()),
            )
        })?;
        let RunSpec::Restore { source, agent, .. } = &plan.spec else { return Err(nothing_queued()) };
        let again = || format!("holdfast restore plan {source}");
        if plan.not_after < self.core.clock.now() || plan.source_version != self.source_version(source) {
            return Err(Failure::new(
                ErrorCode::PlanExpired,
                format!("plan {} is too old, or source {source} was changed since", request.plan_id),
            )
            .then(again()));
        }
        if !plan.obstacles.is_empty() {
            let mut failure =
                Failure::new(ErrorCode::TargetExists, format!("plan {} can not be run", request.plan_id));
            failure.why = plan.obstacles.clone();
            return Err(failure.then(again()));
        }
        if let Some(name) = &plan.confirm_with {
            confirmed("the live data is replaced", name, &request.confirm, &request.reason)?;
        }
        let new = new_run(caller, plan.spec.clone(), agent);
        let action = reasoned("restore.run", &request.reason);
        queue_run(&self.core, caller, &action, new, repeatable.as_ref()).await
    }

    async fn promote_inner(
        &self,
        caller: &Caller,
        request: v1::PromoteRestoreRequest,
    ) -> Result<Run, Failure> {
        let repeatable = Repeatable::new(caller, &request.idempotency_key, &request)?;
        if let Some(run) = queued_before(&self.core, repeatable.as_ref()).await? {
            return Ok(run);
        }
        let run = find_run(&self.core, &request.run_id).await?;
        let report = finished(&run)?;
        let RunSpec::Restore { source, agent, only, .. } = &run.spec else {
            return Err(ConvertError::new("run_id", "is not a restore").into());
        };
        if !only.is_empty() {
            return Err(ConvertError::new(
                "run_id",
                "is the restore of a part: it can not replace the whole",
            )
            .into());
        }
        if report.targets.iter().any(|target| target.kept.is_some()) {
            return Err(Failure::new(ErrorCode::AlreadyExists, "this restore is in place already"));
        }
        confirmed("the live data is replaced", source.as_str(), &request.confirm, &request.reason)?;
        let spec = RunSpec::Promote {
            source: source.clone(),
            agent: agent.clone(),
            restore: run.id,
            targets: report.targets.clone(),
        };
        let action = reasoned("restore.promote", &request.reason);
        let new = new_run(caller, spec, agent);
        queue_run(&self.core, caller, &action, new, repeatable.as_ref()).await
    }

    async fn discard_inner(
        &self,
        caller: &Caller,
        request: v1::DiscardRestoreRequest,
    ) -> Result<Run, Failure> {
        let repeatable = Repeatable::new(caller, &request.idempotency_key, &request)?;
        if let Some(run) = queued_before(&self.core, repeatable.as_ref()).await? {
            return Ok(run);
        }
        let run = find_run(&self.core, &request.run_id).await?;
        let targets = match &run.state.phase {
            // What is left of it, if anything, only its agent knows.
            Phase::Failed(_) | Phase::Cancelled | Phase::Skipped(_) => Vec::new(),
            _ => finished(&run)?.targets.clone(),
        };
        let (source, agent, restore) = match &run.spec {
            RunSpec::Restore { source, agent, .. } => (source, agent, run.id),
            RunSpec::Promote { source, agent, restore, .. } => (source, agent, *restore),
            _ => return Err(ConvertError::new("run_id", "is neither a restore nor a promotion").into()),
        };
        confirmed("what was restored or kept is removed", source.as_str(), &request.confirm, "-")?;
        let spec = RunSpec::Discard { source: source.clone(), agent: agent.clone(), restore, targets };
        let new = new_run(caller, spec, agent);
        queue_run(&self.core, caller, "restore.discard", new, repeatable.as_ref()).await
    }
}

fn new_run(caller: &Caller, spec: RunSpec, agent: &AgentName) -> NewRun {
    NewRun { agent: Some(agent.clone()), ..NewRun::new(spec, caller.actor()) }
}

fn finished(run: &Run) -> Result<&RestoreReport, Failure> {
    match (&run.state.phase, &run.restored) {
        (Phase::Succeeded { .. }, Some(report)) => Ok(report),
        (phase, _) => Err(Failure::new(
            ErrorCode::PlanExpired,
            format!("run {} is {}: it has nothing restored to work with", run.id.short(), phase.as_str()),
        )),
    }
}

/// Whether a dangerous action was meant: the name typed, and a reason given.
fn confirmed(what: &str, name: &str, typed: &str, reason: &str) -> Result<(), Failure> {
    if typed == name && !reason.trim().is_empty() {
        return Ok(());
    }
    let missing = if typed == name { "a reason is missing" } else { "the name was not confirmed" };
    Err(Failure::new(ErrorCode::NeedsConfirmation, format!("{what}: {missing}"))
        .then(format!("add: --confirm {name} --reason TEXT")))
}

fn reasoned(action: &str, reason: &str) -> String {
    let reason: String = reason.chars().take(200).collect();
    if reason.is_empty() { action.to_owned() } else { format!("{action} ({reason})") }
}

#[tonic::async_trait]
impl RestoreService for Restores {
    async fn plan(
        &self,
        request: Request<v1::PlanRestoreRequest>,
    ) -> Result<Response<v1::PlanRestoreResponse>, Status> {
        let caller = caller_of(&request);
        reply(self.plan_inner(&caller, request.into_inner()).await)
    }

    async fn run(
        &self,
        request: Request<v1::RunRestoreRequest>,
    ) -> Result<Response<v1::RunRestoreResponse>, Status> {
        let caller = caller_of(&request);
        let run = self.run_inner(&caller, request.into_inner()).await;
        reply(run.map(|run| v1::RunRestoreResponse { run: Some((&run).into()) }))
    }

    async fn promote(
        &self,
        request: Request<v1::PromoteRestoreRequest>,
    ) -> Result<Response<v1::PromoteRestoreResponse>, Status> {
        let caller = caller_of(&request);
        let run = self.promote_inner(&caller, request.into_inner()).await;
        reply(run.map(|run| v1::PromoteRestoreResponse { run: Some((&run).into()) }))
    }

    async fn discard(
        &self,
        request: Request<v1::DiscardRestoreRequest>,
    ) -> Result<Response<v1::DiscardRestoreResponse>, Status> {
        let caller = caller_of(&request);
        let run = self.discard_inner(&caller, request.into_inner()).await;
        reply(run.map(|run| v1::DiscardRestoreResponse { run: Some((&run).into()) }))
    }
}
