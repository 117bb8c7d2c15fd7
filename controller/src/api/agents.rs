//! Agents: enrolment, certificates, sessions, listing, revocation.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::ids::AgentName;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{parse, timestamp};
use holdfast_proto::v1;
use holdfast_proto::v1::agent_service_server::AgentService;
use holdfast_proto::v1::enrollment_service_server::EnrollmentService;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{caller_of, reply};
use crate::access::Caller;
use crate::agents::{HostRecord, IssuedCertificate};
use crate::core::Core;
use crate::pki::AgentCertificate;
use crate::pki::authority::AGENT_LIFETIME_MAX;
use crate::pki::token::{EnrollmentToken, TokenError};
use crate::records::Batch;
use crate::session;
use crate::store::{Expect, Kind};

/// How long an enrolment token can be used, unless another time is asked for.
const TOKEN_LIFE: Duration = Duration::from_secs(15 * 60);

/// Makes a one-use token.
///
/// # Errors
/// When the name is not valid or the state can not be written.
pub async fn create_token(
    core: &Core,
    caller: &Caller,
    request: v1::CreateEnrollmentTokenRequest,
) -> Result<v1::CreateEnrollmentTokenResponse, Failure> {
    let agent: AgentName = parse("agent", &request.agent)?;
    let life = match request.ttl_seconds {
        0 => TOKEN_LIFE,
        seconds => Duration::from_secs(u64::from(seconds)),
    };
    let now = core.clock.now();
    let (token, record) = EnrollmentToken::make(agent.clone(), &caller.actor(), now, life);
    let batch = Batch::new(caller.actor(), "agent.token", format!("agent/{agent}"));
    core.records.commit(batch.put(Kind::EnrollmentToken, token.id(), &record, Expect::Absent)).await?;
    Ok(v1::CreateEnrollmentTokenResponse {
        token: token.expose().to_owned(),
        ca_pin: core.authority.pin().to_string(),
        not_after: Some(timestamp(record.not_after)),
    })
}

/// Enrolled agents with their state.
///
/// # Errors
/// When the state can not be read.
pub async fn list(core: &Core) -> Result<v1::ListAgentsResponse, Failure> {
    let sessions = core.sessions.states();
    let current = core.definitions.current();
    let agents = core.agents.all().await?.into_iter().map(|record| {
        let session = sessions.get(&record.name);
        let state = match session {
            _ if record.revoked_at.is_some() => "revoked",
            None => "offline",
            Some(session) if session.draining => "draining",
            Some(_) => "online",
        };
        let labels =
            current.fleet.agents.get(&record.name).map(|spec| spec.labels.clone()).unwrap_or_default();
        let last_seen_at = session.map(|session| session.last_seen_at).or(record.last_session_at);
        v1::Agent {
            name: record.name.to_string(),
            state: state.to_owned(),
            facts: Some((&record.host).into()),
            version: record.version,
            enrolled_at: Some(timestamp(record.enrolled_at)),
            last_seen_at: last_seen_at.map(timestamp),
            certificate_not_after: record
                .certificates
                .last()
                .map(|certificate| timestamp(certificate.not_after)),
            labels: labels.into_iter().collect(),
            heartbeat: session.and_then(|session| session.heartbeat.clone()),
            epoch: session.map_or(0, |session| session.epoch),
            clock_skew_millis: session.map_or(0, |session| session.clock_skew_millis),
        }
    });
    Ok(v1::ListAgentsResponse { agents: agents.collect() })
}

/// Refuses an agent's certificates from now on and ends its session.
///
/// # Errors
/// `HF-4001` when it was never enrolled.
pub async fn revoke(
    core: &Core,
    caller: &Caller,
    request: v1::RevokeAgentRequest,
) -> Result<v1::RevokeAgentResponse, Failure> {
    let name: AgentName = parse("name", &request.name)?;
    core.agents.revoke(&name, &caller.actor(), &request.reason, core.clock.now()).await?;
    core.sessions.end(&name);
    core.discovery.forget(&name);
    Ok(v1::RevokeAgentResponse {})
}

fn sign(core: &Core, name: &AgentName, csr_pem: &str) -> Result<AgentCertificate, Failure> {
    let signed = core.authority.sign_agent(name, csr_pem, core.clock.now(), AGENT_LIFETIME_MAX);
    signed.map_err(|error| Failure::from_error(error.code(), &error))
}

fn refused(error: &TokenError) -> Failure {
    Failure::from_error(error.code(), error).then("holdfast agent enroll NAME   # makes a new token")
}

/// Enrolment.
pub struct Enrollment {
    core: Arc<Core>,
}

impl Enrollment {
    /// The service over the shared parts.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    async fn enroll_inner(&self, request: v1::EnrollRequest) -> Result<v1::EnrollResponse, Failure> {
        let core = &self.core;
        let name: AgentName = parse("name", &request.name)?;
        let now = core.clock.now();
        let store = core.records.store().as_ref();
        let token = EnrollmentToken::find(store, &request.token, &name, now)
            .await
            .map_err(|error| refused(&error))?;
        let certificate = sign(core, &name, &request.csr_pem)?;
        let batch =
            Batch::new(format!("agent:{name}"), "agent.enroll", format!("agent/{name}")).consume(&token);
        let issued = IssuedCertificate { serial: certificate.serial, not_after: certificate.not_after };
        let host = request.facts.as_ref().map(HostRecord::from).unwrap_or_default();
        let batch = core.agents.enroll(batch, &name, issued, host, now).await?;
        core.records.commit(batch).await.map_err(|failure| match failure.code {
            // Somebody else used the token between our look and our commit.
            ErrorCode::VersionConflict | ErrorCode::NotFound => refused(&TokenError::Invalid),
            _ => failure,
        })?;
        // A session with the certificates from before ends.
        core.sessions.end(&name);
        tracing::info!(agent = %name, "agent enrolled");
        Ok(v1::EnrollResponse {
            certificate_pem: certificate.chain_pem,
            ca_pem: core.authority.certificate_pem().to_owned(),
            not_after: Some(timestamp(certificate.not_after)),
        })
    }
}

#[tonic::async_trait]
impl EnrollmentService for Enrollment {
    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        reply(self.enroll_inner(request.into_inner()).await)
    }
}

/// Sessions and certificates of enrolled agents.
pub struct AgentApi {
    core: Arc<Core>,
}

impl AgentApi {
    /// The service over the shared parts.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    async fn renew_inner(
        &self,
        caller: Caller,
        request: v1::RenewCertificateRequest,
    ) -> Result<v1::RenewCertificateResponse, Failure> {
        let (name, serial) = agent(caller)?;
        let certificate = sign(&self.core, &name, &request.csr_pem)?;
        let issued = IssuedCertificate { serial: certificate.serial, not_after: certificate.not_after };
        self.core.agents.renewed(&name, &serial, issued).await?;
        Ok(v1::RenewCertificateResponse {
            certificate_pem: certificate.chain_pem,
            not_after: Some(timestamp(certificate.not_after)),
        })
    }
}

fn agent(caller: Caller) -> Result<(AgentName, Arc<str>), Failure> {
    match caller {
        Caller::Agent { name, serial } => Ok((name, serial)),
        _ => Err(Failure::new(ErrorCode::NotAuthenticated, "no agent certificate was shown")),
    }
}

#[tonic::async_trait]
impl AgentService for AgentApi {
    type SessionStream = ReceiverStream<Result<v1::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = agent(caller_of(&request));
        let result = async {
            let (name, serial) = caller?;
            session::serve(self.core.clone(), name, serial, request.into_inner())
                .await
                .map(ReceiverStream::new)
        };
        reply(result.await)
    }

    async fn renew_certificate(
        &self,
        request: Request<v1::RenewCertificateRequest>,
    ) -> Result<Response<v1::RenewCertificateResponse>, Status> {
        let caller = caller_of(&request);
        reply(self.renew_inner(caller, request.into_inner()).await)
    }
}
