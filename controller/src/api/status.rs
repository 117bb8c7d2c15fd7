//! What is at stake, what is wrong, who did what.

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_model::Failure;
use holdfast_model::ids::SourceName;
use holdfast_model::run::{Run, RunKind};
use holdfast_model::run_state::Phase;
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::source::Source;
use holdfast_proto::convert::{parse, timestamp};
use holdfast_proto::status::to_status;
use holdfast_proto::v1;
use holdfast_proto::v1::status_service_server::StatusService;
use holdfast_runtime::OnEnd;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{caller_of, reply};
use crate::access::Caller;
use crate::core::Core;
use crate::doctor;
use crate::records::store_failure;

/// Snapshots of a source looked at for its state.
const LOOKED_AT: usize = 200;

/// The service.
pub struct StatusApi {
    core: Arc<Core>,
}

/// What the state of a source follows from.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Its snapshots, newest first.
    pub snapshots: Vec<SnapshotRecord>,
    /// Its last ended backup run.
    pub last_backup: Option<Run>,
    /// Its active run.
    pub active_run: Option<Run>,
    /// Whether its agent is connected.
    pub agent_online: bool,
}

/// The state of a source: a pure function of what is known. Nothing is green without evidence.
pub fn judge(name: &SourceName, source: &Source, facts: &Facts, now: Timestamp) -> v1::SourceStatus {
    let newest = facts.snapshots.iter().find(|record| record.proof.damage.is_none());
    let proven = facts.snapshots.iter().filter_map(|record| {
        let at = record.proof.restored_at?;
        Some((at, record.proof.restore_millis.unwrap_or(0)))
    });
    let proven = proven.max();
    let repositories: BTreeSet<_> = facts
        .snapshots
        .iter()
        .filter(|record| record.proof.damage.is_none())
        .map(|record| &record.repository)
        .collect();
    let captured_at =
        newest.map(|record| record.manifest.as_ref().map_or(record.committed_at, |m| m.captured_at));
    let (state, problem, remedy) = verdict(name, source, facts, newest, captured_at);
    let version =
        newest.and_then(|record| record.manifest.as_ref()).map_or("", |m| m.engine_version.as_str());
    let text = |value: Option<String>| value.unwrap_or_default();
    v1::SourceStatus {
        source: name.to_string(),
        engine: format!("{} {version}", source.engine.kind()).trim_end().to_owned(),
        agent: source.agent.to_string(),
        agent_online: facts.agent_online,
        state: state.to_owned(),
        problem,
        remedy,
        recovery_point: captured_at.map(timestamp),
        loss_seconds: captured_at.map_or(-1, |at| (now.as_second() - at.as_second()).max(0)),
        restore_millis: proven.map_or(0, |(_, millis)| millis),
        proven_at: proven.map(|(at, _)| timestamp(at)),
        copies: u32::try_from(repositories.len()).unwrap_or(u32::MAX),
        snapshots: facts.snapshots.len() as u64,
        logical_bytes: newest.map_or(0, |record| record.logical_bytes),
        active_run: facts.active_run.as_ref().map(Into::into),
        last_backup: facts.last_backup.as_ref().map(Into::into),
        snapshot_id: text(newest.map(|record| record.id.to_string())),
        proof: text(facts.snapshots.first().map(|record| record.proof.level().to_owned())),
    }
}

fn verdict(
    name: &SourceName,
    source: &Source,
    facts: &Facts,
    newest: Option<&SnapshotRecord>,
    captured_at: Option<Timestamp>,
) -> (&'static str, String, String) {
    let failed = facts.last_backup.as_ref().and_then(|run| match &run.state.phase {
        Phase::Failed(failure) if run.ended_at >= captured_at => Some((run, failure)),
        _ => None,
    });
    let why =
        failed.map(|(run, failure)| (failure.to_string(), format!("holdfast run logs {}", run.id.short())));
    if newest.is_none() {
        let (problem, remedy) = why.unwrap_or_else(|| {
            let problem =
                if facts.snapshots.is_empty() { "was never backed up" } else { "every snapshot is damaged" };
            (problem.to_owned(), format!("holdfast backup run {name}"))
        });
        return ("not_restorable", problem, remedy);
    }
    if let Some(record) = facts.snapshots.first()
        && let Some(damage) = &record.proof.damage
    {
        let problem = format!("its newest snapshot {} is damaged: {damage}", record.id.short());
        return ("at_risk", problem, format!("holdfast backup run {name} --type full"));
    }
    if let Some((problem, remedy)) = why {
        return ("at_risk", format!("the last backup failed: {problem}"), remedy);
    }
    if !facts.agent_online {
        return (
            "at_risk",
            format!("agent {} is not connected", source.agent),
            "holdfast agent list".to_owned(),
        );
    }
    ("protected", String::new(), String::new())
}

impl StatusApi {
    /// The service over the shared parts.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    async fn facts(&self, name: &SourceName, source: &Source, active: &[Run]) -> Result<Facts, Failure> {
        let snapshots = self.core.records.snapshots_before(Some(name.as_str()), None, LOOKED_AT).await?;
        Ok(Facts {
            snapshots: snapshots.into_iter().map(|(record, _)| record).collect(),
            last_backup: self.core.records.last_backup(name).await?,
            active_run: active
                .iter()
                .find(|run| run.spec.kind() == RunKind::Backup && run.spec.source() == Some(name))
                .cloned(),
            agent_online: self.core.sessions.state(&source.agent).is_some(),
        })
    }

    async fn fleet_inner(&self, only: &str) -> Result<v1::FleetStatusResponse, Failure> {
        let current = self.core.definitions.current();
        let now = self.core.clock.now();
        let active = self.core.runs.active();
        let mut sources = Vec::new();
        if only.is_empty() {
            for (name, source) in &current.fleet.sources {
                sources.push(judge(name, source, &self.facts(name, source, &active).await?, now));
            }
        } else {
            let name: SourceName = parse("source", only)?;
            let source = self.core.definitions.source(&name)?;
            sources.push(judge(&name, &source, &self.facts(&name, &source, &active).await?, now));
        }
        let rank = |status: &v1::SourceStatus| match status.state.as_str() {
            "not_restorable" => 0,
            "at_risk" => 1,
            _ => 2,
        };
        sources.sort_by_key(rank);
        let agents = self.core.agents.all().await?;
        Ok(v1::FleetStatusResponse {
            sources,
            agents_online: u32::try_from(self.core.sessions.states().len()).unwrap_or(u32::MAX),
            agents_total: agents
                .iter()
                .filter(|agent| agent.revoked_at.is_none())
                .count()
                .try_into()
                .unwrap_or(u32::MAX),
            controller_version: crate::VERSION.to_owned(),
        })
    }

    async fn audit_inner(
        &self,
        request: v1::AuditRequest,
    ) -> Result<ReceiverStream<Result<v1::AuditResponse, Status>>, Failure> {
        let store = self.core.records.store().clone();
        if request.verify {
            store.verify_audit().await.map_err(|error| store_failure(&error))?;
        }
        let limit = match request.limit {
            0 => 1000,
            limit => (limit as usize).min(10_000),
        };
        let (sender, parts) = mpsc::channel(8);
        self.core.tasks.spawn("read the audit log", OnEnd::Isolated, async move {
            let mut after = request.after;
            let mut left = limit;
            while left > 0 {
                let page = match store.audit(after, left.min(100)).await {
                    Ok(page) => page,
                    Err(error) => {
                        let _ = sender.send(Err(to_status(&store_failure(&error)))).await;
                        return;
                    }
                };
                let Some(last) = page.last() else { return };
                after = last.sequence;
                left -= page.len();
                let entries = page.iter().map(|entry| v1::AuditEntry {
                    seq: entry.sequence,
                    at: Some(timestamp(entry.time)),
                    actor: entry.audit.actor.clone(),
                    action: entry.audit.action.clone(),
                    target: entry.audit.target.clone(),
                    detail: entry.audit.result.clone(),
                    hash: hex::encode(entry.hash),
                });
                if sender.send(Ok(v1::AuditResponse { entries: entries.collect() })).await.is_err() {
                    return;
                }
            }
        });
        Ok(ReceiverStream::new(parts))
    }
}

#[tonic::async_trait]
impl StatusService for StatusApi {
    type AuditStream = ReceiverStream<Result<v1::AuditResponse, Status>>;

    async fn fleet(
        &self,
        request: Request<v1::FleetStatusRequest>,
    ) -> Result<Response<v1::FleetStatusResponse>, Status> {
        reply(self.fleet_inner(&request.into_inner().source).await)
    }

    async fn doctor(
        &self,
        _request: Request<v1::DoctorRequest>,
    ) -> Result<Response<v1::DoctorResponse>, Status> {
        reply(doctor::examine(&self.core).await.map(|findings| v1::DoctorResponse { findings }))
    }

    async fn audit(&self, request: Request<v1::AuditRequest>) -> Result<Response<Self::AuditStream>, Status> {
        reply(self.audit_inner(request.into_inner()).await)
    }

    async fn whoami(
        &self,
        request: Request<v1::WhoamiRequest>,
    ) -> Result<Response<v1::WhoamiResponse>, Status> {
        let (name, role, not_after) = match caller_of(&request) {
            Caller::Operator { name, role, not_after } => {
                (name.to_string(), role.as_str().to_owned(), Some(timestamp(not_after)))
            }
            other => (other.actor(), String::new(), None),
        };
        reply(Ok(v1::WhoamiResponse { name, role, controller_version: crate::VERSION.to_owned(), not_after }))
    }
}
