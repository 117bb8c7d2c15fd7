//! The gRPC server: TLS, limits, who calls, and the services behind one gate.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use holdfast_model::ids::AgentName;
use holdfast_model::secret::Secret;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::status::to_status;
use holdfast_proto::v1::agent_service_server::AgentServiceServer;
use holdfast_proto::v1::alert_service_server::AlertServiceServer;
use holdfast_proto::v1::data_service_server::DataServiceServer;
use holdfast_proto::v1::enrollment_service_server::EnrollmentServiceServer;
use holdfast_proto::v1::fleet_service_server::FleetServiceServer;
use holdfast_proto::v1::notify_service_server::NotifyServiceServer;
use holdfast_proto::v1::policy_service_server::PolicyServiceServer;
use holdfast_proto::v1::report_service_server::ReportServiceServer;
use holdfast_proto::v1::repository_service_server::RepositoryServiceServer;
use holdfast_proto::v1::restore_service_server::RestoreServiceServer;
use holdfast_proto::v1::run_service_server::RunServiceServer;
use holdfast_proto::v1::snapshot_service_server::SnapshotServiceServer;
use holdfast_proto::v1::status_service_server::StatusServiceServer;
use holdfast_runtime::OnEnd;
use holdfast_runtime::telemetry::adopt_trace_context;
use holdfast_runtime::tls::{AcceptLimits, ConnectionInfo, ServerIdentity, accept_tls, server_config};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Request, Status};
use tower::{Layer, Service};
use tracing::Instrument as _;

use crate::access::{self, Caller};
use crate::api::agents::{AgentApi, Enrollment};
use crate::api::alerts::AlertsApi;
use crate::api::fleet::FleetApi;
use crate::api::notify::NotifyApi;
use crate::api::policies::PoliciesApi;
use crate::api::reports::ReportsApi;
use crate::api::repositories::RepositoriesApi;
use crate::api::restores::Restores;
use crate::api::runs::Runs;
use crate::api::snapshots::Snapshots;
use crate::api::status::StatusApi;
use crate::connection::Connection;
use crate::core::Core;
use crate::data_plane::DataPlane;
use crate::pki::AgentIdentity;
use crate::pki::token::{OperatorToken, TokenError};
use crate::refusals;

/// Bytes of one message, both ways.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// Bytes of all headers of a request.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// Streams of one connection at a time.
const STREAMS_MAX: u32 = 256;

/// Bytes in flight of one stream, and of one connection: packs are large.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Serves until the controller stops; calls under way may finish.
///
/// # Errors
/// When the server can not be set up or its transport fails.
pub async fn serve(core: Arc<Core>, listener: TcpListener, identity: ServerIdentity) -> Result<(), Failure> {
    let config = server_config(&identity, core.authority.certificate())
        .map_err(|error| Failure::from_error(ErrorCode::Internal, &error))?;
    let incoming = accept_tls(listener, config, AcceptLimits::default(), &core.tasks).map(Connection::of);
    let stop = core.tasks.token().clone();
    let routes = routes(&core).await?;
    tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .tcp_nodelay(true)
        .layer(Gate { core })
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
        .map_err(|error| Failure::from_error(ErrorCode::Internal, &error))
}

async fn routes(core: &Arc<Core>) -> Result<Routes, Failure> {
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let reflected = |error: tonic_reflection::server::Error| Failure::from_error(ErrorCode::Internal, &error);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(holdfast_proto::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    macro_rules! limited {
        ($service:expr) => {
            $service.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
        };
    }
    let mut routes = Routes::new(health)
        .add_service(reflection().build_v1().map_err(reflected)?)
        .add_service(reflection().build_v1alpha().map_err(reflected)?);
    routes = routes
        .add_service(limited!(EnrollmentServiceServer::new(Enrollment::new(core.clone()))))
        .add_service(limited!(AgentServiceServer::new(AgentApi::new(core.clone()))))
        .add_service(limited!(DataServiceServer::new(DataPlane::new(core.clone()))))
        .add_service(limited!(FleetServiceServer::new(FleetApi::new(core.clone()))))
        .add_service(limited!(AlertServiceServer::new(AlertsApi::new(core.clone()))))
        .add_service(limited!(NotifyServiceServer::new(NotifyApi::new(core.clone()))))
        .add_service(limited!(ReportServiceServer::new(ReportsApi::new(core.clone()))))
        .add_service(limited!(PolicyServiceServer::new(PoliciesApi::new(core.clone()))))
        .add_service(limited!(RunServiceServer::new(Runs::new(core.clone()))))
        .add_service(limited!(RestoreServiceServer::new(Restores::new(core.clone()))))
        .add_service(limited!(SnapshotServiceServer::new(Snapshots::new(core.clone()))))
        .add_service(limited!(RepositoryServiceServer::new(RepositoriesApi::new(core.clone()))))
        .add_service(limited!(StatusServiceServer::new(StatusApi::new(core.clone()))));
    Ok(routes.prepare())
}

/// The agent that makes a call.
///
/// # Errors
/// `HF-6004`; the gate lets nobody else through to a service for agents.
pub fn agent_of<T>(request: &Request<T>) -> Result<AgentName, Status> {
    match request.extensions().get::<Caller>() {
        Some(Caller::Agent { name, .. }) => Ok(name.clone()),
        _ => Err(to_status(&Failure::new(ErrorCode::NotAuthenticated, "no agent certificate was shown"))),
    }
}

/// Finds out who calls, and lets through who may. What was let through is carried to its end, also when the caller is gone
/// or its connection breaks: no change may stop between its steps.
#[derive(Clone)]
struct Gate {
    core: Arc<Core>,
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { core: self.core.clone(), inner }
    }
}

#[derive(Clone)]
struct Gated<S> {
    core: Arc<Core>,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Gated<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // The clone may not be ready, the one that was polled is.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let core = self.core.clone();
        // Taken out before anything is awaited: a body can not be shared between threads.
        let peer = request.extensions().get::<ConnectionInfo>();
        let certificate = peer.and_then(|info| info.peer_certificates.first().cloned());
        let token = request.headers().get(http::header::AUTHORIZATION).map(bearer);
        let path = request.uri().path().to_owned();
        Box::pin(async move {
            let admitted = match identify(&core, certificate.as_ref(), token).await {
                Ok(caller) => match access::check(&path, &caller) {
                    Ok(()) => Ok(caller),
                    Err(failure) => {
                        refusals::note(&core, &caller, &path, &failure).await;
                        Err(failure)
                    }
                },
                Err(failure) => Err(failure),
            };
            match admitted {
                Err(failure) => {
                    tracing::info!(path, %failure, "call refused");
                    Ok(to_status(&failure).into_http())
                }
                Ok(caller) => {
                    let span = tracing::info_span!("call", path, caller = caller.actor());
                    adopt_trace_context(&span, request.headers());
                    request.extensions_mut().insert(caller);
                    let call = async move { inner.call(request).await }.instrument(span);
                    core.tasks.spawn("call", OnEnd::Isolated, call).join().await.unwrap_or_else(|error| {
                        Ok(to_status(&Failure::from_error(ErrorCode::Internal, &error)).into_http())
                    })
                }
            }
        })
    }
}

/// The token of an `Authorization` header; empty, hence not valid, when it is of another kind.
pub(crate) fn bearer(header: &http::HeaderValue) -> Secret {
    Secret::new(header.to_str().ok().and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default())
}

/// Who calls. A token that is given and not valid is an error, never a fall back to nobody.
pub(crate) async fn identify(
    core: &Core,
    certificate: Option<&CertificateDer<'static>>,
    token: Option<Secret>,
) -> Result<Caller, Failure> {
    if let Some(certificate) = certificate {
        let identity =
            AgentIdentity::of(certificate).map_err(|error| Failure::from_error(error.code(), &error))?;
        core.agents.admit(&identity.name, &identity.serial).await?;
        return Ok(Caller::Agent { name: identity.name, serial: identity.serial.into() });
    }
    let Some(token) = token else { return Ok(Caller::Nobody) };
    let found =
        OperatorToken::authenticate(core.records.store().as_ref(), token.reveal(), core.clock.now()).await;
    let token = found.map_err(|error| match error {
        TokenError::Invalid => Failure::new(ErrorCode::NotAuthenticated, "the token is unknown or expired")
            .then("holdfast context show"),
        other => Failure::from_error(other.code(), &other),
    })?;
    Ok(Caller::Operator { name: token.name.into(), role: token.role, not_after: token.not_after })
}
