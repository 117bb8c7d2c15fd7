//! Runs: start, list, cancel, retry, watch, logs.

use std::sync::Arc;

use holdfast_model::ids::{MilestoneName, RepositoryName, RunId, SourceName};
use holdfast_model::run::{Run, RunSpec, SnapshotType};
use holdfast_model::run_state::{Intent, RunEvent};
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{ConvertError, parse, parse_optional, required};
use holdfast_proto::v1;
use holdfast_proto::v1::run_service_server::RunService;
use holdfast_proto::v1::session_response::Message as ToAgent;
use holdfast_runtime::OnEnd;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Repeatable, caller_of, reply, traceparent_of};
use crate::access::Caller;
use crate::backup_plan;
use crate::core::Core;
use crate::records::Batch;
use crate::run_lifecycle::{NewRun, Outcome};

/// Runs looked through at most to fill one filtered page.
const SCANNED_MAX: usize = 20_000;

/// The service.
pub struct Runs {
    core: Arc<Core>,
}

impl Runs {
    /// The service over the shared parts.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    pub(crate) async fn start_inner(
        &self,
        caller: &Caller,
        request: v1::StartRequest,
        traceparent: Option<String>,
    ) -> Result<Vec<Run>, Failure> {
        let repeatable = Repeatable::new(caller, &request.idempotency_key, &request)?;
        if let Some(ids) = Repeatable::answered(repeatable.as_ref(), &self.core).await? {
            return self.known(&ids).await;
        }
        let specs = match required("what", request.what)? {
            v1::start_request::What::Backup(backup) => self.backups(&backup)?,
            v1::start_request::What::Verify(verify) => {
                let record = self.core.records.snapshot_by_prefix(&verify.snapshot).await?;
                vec![RunSpec::Verify { repository: record.repository, snapshot: record.id }]
            }
            v1::start_request::What::Check(check) => {
                let repository: RepositoryName = parse("repository", &check.repository)?;
                self.core.definitions.repository(&repository)?;
                vec![RunSpec::Check { repository, read_data: check.read_data, only_due: false }]
            }
        };
        let new: Vec<NewRun> = specs
            .into_iter()
            .map(|spec| {
                Ok(NewRun {
                    agent: self.agent_for(&spec)?,
                    traceparent: traceparent.clone(),
                    ..NewRun::new(spec, caller.actor())
                })
            })
            .collect::<Result<_, Failure>>()?;
        queue_runs(&self.core, caller, "run.start", new, repeatable.as_ref()).await
    }

    async fn plan_inner(&self, request: v1::PlanBackupRequest) -> Result<Vec<v1::BackupPlan>, Failure> {
        let mut plans = Vec::new();
        for spec in self.backups(&required("backup", request.backup)?)? {
            plans.push(backup_plan::plan(&self.core, &spec).await?);
        }
        Ok(plans)
    }

    async fn known(&self, ids: &[String]) -> Result<Vec<Run>, Failure> {
        let mut runs = Vec::with_capacity(ids.len());
        for id in ids {
            runs.push(self.core.runs.get(parse("run_id", id)?).await?);
        }
        Ok(runs)
    }

    fn backups(&self, backup: &v1::StartBackup) -> Result<Vec<RunSpec>, Failure> {
        let source: SourceName = parse("source", &backup.source)?;
        let definition = self.core.definitions.source(&source)?;
        let milestone: Option<MilestoneName> = parse_optional("milestone", &backup.milestone)?;
        let snapshot_type = match backup.snapshot_type.as_str() {
            "" => SnapshotType::Incremental,
            word => SnapshotType::parse(word).ok_or_else(|| {
                ConvertError::new(
                    "snapshot_type",
                    format!("{word:?} is not one of full, incremental, differential, snapshot"),
                )
            })?,
        };
        let all = self.core.definitions.repositories_of(&source, &definition)?;
        let wanted: Option<RepositoryName> = parse_optional("repository", &backup.repository)?;
        let repositories = match wanted {
            None => all,
            Some(name) if all.contains(&name) => vec![name],
            Some(name) => {
                return Err(Failure::new(
                    ErrorCode::ReferenceUnknown,
                    format!("source {source} is not backed up to repository {name}"),
                ));
            }
        };
        let spec = |repository| RunSpec::Backup {
            source: source.clone(),
            repository,
            snapshot_type,
            milestone: milestone.clone(),
        };
        Ok(repositories.into_iter().map(spec).collect())
    }

    fn agent_for(&self, spec: &RunSpec) -> Result<Option<holdfast_model::ids::AgentName>, Failure> {
        match spec {
            RunSpec::Backup { source, .. } => Ok(Some(self.core.definitions.source(source)?.agent)),
            RunSpec::Restore { agent, .. }
            | RunSpec::Promote { agent, .. }
            | RunSpec::Discard { agent, .. } => Ok(Some(agent.clone())),
            RunSpec::Verify { .. } | RunSpec::Check { .. } | RunSpec::Prune { .. } | RunSpec::Copy { .. } => {
                Ok(None)
            }
        }
    }

    /// The run with this id, or the only recent one whose id ends so.
    async fn find(&self, text: &str) -> Result<Run, Failure> {
        find_run(&self.core, text).await
    }

    async fn list_inner(&self, request: v1::ListRunsRequest) -> Result<v1::ListRunsResponse, Failure> {
        let limit = match request.page_size {
            0 => 50,
            size => (size as usize).min(1000),
        };
        let matches = |run: &Run| {
            (request.source.is_empty()
                || run.spec.source().is_some_and(|name| name.as_str() == request.source))
                && (request.kind.is_empty() || run.spec.kind().as_str() == request.kind)
                && (request.phase.is_empty() || run.state.phase.as_str() == request.phase)
        };
        let mut before: Option<RunId> = parse_optional("page_token", &request.page_token)?;
        let mut runs = Vec::new();
        let mut scanned = 0;
        let mut more = true;
        while runs.len() < limit && more && scanned < SCANNED_MAX {
            let page = self.core.records.runs_before(before, 200).await?;
            more = page.len() == 200;
            scanned += page.len();
            for run in page {
                before = Some(run.id);
                // What is active has newer counters in memory.
                let run = self.core.runs.active_run(run.id).unwrap_or(run);
                if matches(&run) {
                    runs.push((&run).into());
                    if runs.len() == limit {
                        more = true;
                        break;
                    }
                }
            }
        }
        let next_page_token = before.filter(|_| more).map(|id| id.to_string()).unwrap_or_default();
        Ok(v1::ListRunsResponse { runs, next_page_token })
    }

    async fn cancel_inner(&self, caller: &Caller, text: &str) -> Result<Run, Failure> {
        let run = self.find(text).await?;
        if run.state.phase.is_terminal() {
            return Err(Failure::new(
                ErrorCode::RunNotCancellable,
                format!("run {} has ended: {}", run.id.short(), run.state.phase.as_str()),
            ));
        }
        let run =
            self.core.runs.apply(run.id, &caller.actor(), RunEvent::CancelAsked, Outcome::default()).await?;
        if run.state.phase.is_with_agent()
            && run.state.intent == Intent::Cancel
            && let Some(agent) = &run.agent
        {
            let cancel = v1::Cancel { run_id: run.id.to_string(), attempt: run.state.attempt.0 };
            // An agent that is not connected learns it when it comes back.
            let _ = self.core.sessions.send(agent, ToAgent::Cancel(cancel));
        }
        Ok(run)
    }

    async fn retry_inner(&self, caller: &Caller, request: v1::RetryRunRequest) -> Result<Run, Failure> {
        let repeatable = Repeatable::new(caller, &request.idempotency_key, &request)?;
        if let Some(run) = queued_before(&self.core, repeatable.as_ref()).await? {
            return Ok(run);
        }
        let old = self.find(&request.run_id).await?;
        if !old.state.phase.is_terminal() {
            return Err(Failure::new(
                ErrorCode::RunAlreadyActive,
                format!("run {} has not ended: it is {}", old.id.short(), old.state.phase.as_str()),
            ));
        }
        let new = NewRun {
            agent: self.agent_for(&old.spec)?,
            spec: old.spec,
            requested_by: caller.actor(),
            traceparent: None,
            retry_of: Some(old.id),
            slot: None,
        };
        queue_run(&self.core, caller, "run.retry", new, repeatable.as_ref()).await
    }

    async fn watch_inner(
        &self,
        text: &str,
    ) -> Result<ReceiverStream<Result<v1::WatchRunResponse, Status>>, Failure> {
        let run = self.find(text).await?;
        let (sender, changes) = mpsc::channel(8);
        let watched = self.core.runs.watch(run.id);
        let core = self.core.clone();
        self.core.tasks.spawn("watch a run", OnEnd::Isolated, async move {
            let send = async |run: &Run| {
                sender.send(Ok(v1::WatchRunResponse { run: Some(run.into()) })).await.is_ok()
            };
            let stop = core.tasks.token();
            if let Some(mut watched) = watched {
                loop {
                    let now = watched.borrow_and_update().clone();
                    if !send(&now).await || now.state.phase.is_terminal() {
                        return;
                    }
                    tokio::select! {
                        () = stop.cancelled() => return,
                        changed = watched.changed() => if changed.is_err() { break },
                    }
                }
            }
            if let Ok(run) = core.runs.get(run.id).await {
                send(&run).await;
            }
        });
        Ok(ReceiverStream::new(changes))
    }

    async fn logs_inner(
        &self,
        request: v1::RunLogsRequest,
    ) -> Result<ReceiverStream<Result<v1::RunLogsResponse, Status>>, Failure> {
        let run = self.find(&request.run_id).await?;
        let (sender, parts) = mpsc::channel(8);
        let core = self.core.clone();
        self.core.tasks.spawn("read a log", OnEnd::Isolated, async move {
            let stop = core.tasks.token().clone();
            let mut place = 0;
            loop {
                let changed = core.logs.changed();
                let ended = core.runs.active_run(run.id).is_none();
                let logs = core.logs.clone();
                let read = core.blocking("read a log", move || logs.read(run.id, place)).await;
                let (lines, after) = match read {
                    Ok(read) => read,
                    Err(failure) => {
                        let _ = sender.send(Err(holdfast_proto::status::to_status(&failure))).await;
                        return;
                    }
                };
                let more = after > place;
                place = after;
                if !lines.is_empty() {
                    let lines = lines.iter().map(Into::into).collect();
                    if sender.send(Ok(v1::RunLogsResponse { lines })).await.is_err() {
                        return;
                    }
                }
                if !more && (ended || !request.follow) {
                    return;
                }
                if !more {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = sender.closed() => return,
                        () = changed => {}
                        () = core.clock.sleep(std::time::Duration::from_secs(1)) => {}
                    }
                }
            }
        });
        Ok(ReceiverStream::new(parts))
    }
}

/// Stores new runs on behalf of a caller, so that a repeated request finds them.
///
/// # Errors
/// Like [`crate::run_lifecycle::RunLifecycle::queue`].
pub async fn queue_runs(
    core: &Core,
    caller: &Caller,
    action: &str,
    mut new: Vec<NewRun>,
    repeatable: Option<&Repeatable>,
) -> Result<Vec<Run>, Failure> {
    for new in new.iter_mut().filter(|new| new.traceparent.is_none()) {
        new.traceparent = holdfast_runtime::telemetry::traceparent(&tracing::Span::current());
    }
    let target: Vec<String> = new
        .iter()
        .map(|new| new.spec.source().map_or_else(|| new.spec.kind().to_string(), ToString::to_string))
        .collect();
    let batch = Batch::new(caller.actor(), action, target.join(" "));
    let queued = core.runs.queue(new, batch, |batch, runs| {
        Repeatable::remember(repeatable, batch, runs.iter().map(|run| run.id.to_string()).collect())
    });
    queued.await.map(|(runs, _)| runs)
}

/// Stores one new run, like [`queue_runs`].
///
/// # Errors
/// Like [`queue_runs`].
pub async fn queue_run(
    core: &Core,
    caller: &Caller,
    action: &str,
    new: NewRun,
    repeatable: Option<&Repeatable>,
) -> Result<Run, Failure> {
    queue_runs(core, caller, action, vec![new], repeatable).await?.pop().ok_or_else(nothing_queued)
}

/// The run that an earlier request of the same key queued, if there was one.
///
/// # Errors
/// When the key was used for another request.
pub async fn queued_before(core: &Core, repeatable: Option<&Repeatable>) -> Result<Option<Run>, Failure> {
    let Some(ids) = Repeatable::answered(repeatable, core).await? else { return Ok(None) };
    let id = ids.first().ok_or_else(nothing_queued)?;
    core.runs.get(parse("run_id", id)?).await.map(Some)
}

/// The run with this id, or the only recent one whose id ends so.
///
/// # Errors
/// `HF-4001` when there is none, `HF-1001` when several fit.
pub async fn find_run(core: &Core, text: &str) -> Result<Run, Failure> {
    if let Ok(id) = text.parse::<RunId>() {
        return core.runs.get(id).await;
    }
    let unknown = || {
        let shown: String = text.chars().take(40).collect();
        Failure::new(ErrorCode::NotFound, format!("there is no run {shown:?}")).then("holdfast run list")
    };
    if text.len() < 4 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(
            unknown().because("a run id has 32 hexadecimal digits, of which the last 4 or more are needed")
        );
    }
    let text = text.to_lowercase();
    let mut found: Vec<Run> =
        core.runs.active().into_iter().filter(|run| run.id.to_string().ends_with(&text)).collect();
    let recent = core.records.runs_before(None, 1000).await?;
    for run in recent.into_iter().filter(|run| run.id.to_string().ends_with(&text)) {
        if found.iter().all(|known| known.id != run.id) {
            found.push(run);
        }
    }
    match found.len() {
        1 => Ok(found.swap_remove(0)),
        0 => Err(unknown()),
        count => {
            Err(ConvertError::new("run_id", format!("{count} runs have ids that end with {text}")).into())
        }
    }
}

/// What can only be a defect: a request that was stored without a run.
pub fn nothing_queued() -> Failure {
    Failure::new(ErrorCode::Internal, "no run was queued")
}

#[tonic::async_trait]
impl RunService for Runs {
    type WatchStream = ReceiverStream<Result<v1::WatchRunResponse, Status>>;
    type LogsStream = ReceiverStream<Result<v1::RunLogsResponse, Status>>;

    async fn start(&self, request: Request<v1::StartRequest>) -> Result<Response<v1::StartResponse>, Status> {
        let caller = caller_of(&request);
        let traceparent = traceparent_of(&request);
        let runs = self.start_inner(&caller, request.into_inner(), traceparent).await;
        reply(runs.map(|runs| v1::StartResponse { runs: runs.iter().map(Into::into).collect() }))
    }

    async fn plan_backup(
        &self,
        request: Request<v1::PlanBackupRequest>,
    ) -> Result<Response<v1::PlanBackupResponse>, Status> {
        let plans = self.plan_inner(request.into_inner()).await;
        reply(plans.map(|plans| v1::PlanBackupResponse { plans }))
    }

    async fn get(&self, request: Request<v1::GetRunRequest>) -> Result<Response<v1::GetRunResponse>, Status> {
        let run = self.find(&request.into_inner().run_id).await;
        reply(run.map(|run| v1::GetRunResponse { run: Some((&run).into()) }))
    }

    async fn list(
        &self,
        request: Request<v1::ListRunsRequest>,
    ) -> Result<Response<v1::ListRunsResponse>, Status> {
        reply(self.list_inner(request.into_inner()).await)
    }

    async fn cancel(
        &self,
        request: Request<v1::CancelRunRequest>,
    ) -> Result<Response<v1::CancelRunResponse>, Status> {
        let caller = caller_of(&request);
        let run = self.cancel_inner(&caller, &request.into_inner().run_id).await;
        reply(run.map(|run| v1::CancelRunResponse { run: Some((&run).into()) }))
    }

    async fn retry(
        &self,
        request: Request<v1::RetryRunRequest>,
    ) -> Result<Response<v1::RetryRunResponse>, Status> {
        let caller = caller_of(&request);
        let run = self.retry_inner(&caller, request.into_inner()).await;
        reply(run.map(|run| v1::RetryRunResponse { run: Some((&run).into()) }))
    }

    async fn watch(
        &self,
        request: Request<v1::WatchRunRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        reply(self.watch_inner(&request.into_inner().run_id).await)
    }

    async fn logs(&self, request: Request<v1::RunLogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        reply(self.logs_inner(request.into_inner()).await)
    }
}
