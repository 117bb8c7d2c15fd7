//! What is at stake, what is wrong, who did what.

use std::sync::Arc;

use holdfast_model::Failure;
use holdfast_model::ids::SourceName;
use holdfast_proto::convert::{parse, timestamp};
use holdfast_proto::status::to_status;
use holdfast_proto::v1;
use holdfast_proto::v1::status_service_server::StatusService;
use holdfast_runtime::OnEnd;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{caller_of, reply};
use crate::access::Caller;
use crate::core::Core;
use crate::doctor;
use crate::records::store_failure;
use crate::source_status;

/// The service.
pub struct StatusApi {
    core: Arc<Core>,
}

impl StatusApi {
    /// The service over the shared parts.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    pub(crate) async fn fleet_inner(&self, only: &str) -> Result<v1::FleetStatusResponse, Failure> {
        let mut standings = if only.is_empty() {
            source_status::of_all(&self.core).await?
        } else {
            let name: SourceName = parse("source", only)?;
            let (source, active) = (self.core.definitions.source(&name)?, self.core.runs.active());
            let now = self.core.clock.now();
            let standing = source_status::standing(&self.core, &name, &source, &active, now).await?;
            vec![(name, source, standing)]
        };
        standings.sort_by_key(|(_, _, standing)| standing.safety);
        let sources = standings
            .iter()
            .map(|(name, source, standing)| source_status::wire(name, source, standing))
            .collect();
        let agents = self.core.agents.all().await?;
        let databases = self.core.discovery.unprotected(&self.core.definitions.current().fleet);
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
            databases_found: u32::try_from(databases.found).unwrap_or(u32::MAX),
            databases_unprotected: u32::try_from(databases.unprotected).unwrap_or(u32::MAX),
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
