//! The HTTP server: REST, health and metrics on a port of its own. TLS as for gRPC; without it on loopback only.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::tls::{
    AcceptLimits, Accepted, ServerIdentity, accept_plain, accept_tls, server_config,
};
use holdfast_runtime::{OnEnd, TaskGroup};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::core::Core;
use crate::rest::Site;

/// Open connections in all, and of one address: people and monitoring, often behind one proxy.
const CONNECTIONS_MAX: usize = 2_048;

/// How long a peer may take to finish its handshake, and the headers of a request.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of the headers of a request.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// Requests of one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 64;

/// Serves until the controller stops; requests under way may finish.
///
/// # Errors
/// When TLS can not be set up.
pub async fn serve(
    core: Arc<Core>,
    listener: TcpListener,
    identity: Option<ServerIdentity>,
    site: Site,
) -> Result<(), Failure> {
    let limits = AcceptLimits {
        handshake_timeout: HEADERS_TIMEOUT,
        connections_max: CONNECTIONS_MAX,
        connections_per_peer_max: CONNECTIONS_MAX,
    };
    match identity {
        None => take(&core, accept_plain(listener, limits, &core.tasks), &site).await,
        Some(identity) => {
            let config = server_config(&identity, core.authority.certificate())
                .map_err(|error| Failure::from_error(ErrorCode::Internal, &error))?;
            take(&core, accept_tls(listener, config, limits, &core.tasks), &site).await;
        }
    }
    Ok(())
}

async fn take<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    core: &Arc<Core>,
    mut incoming: ReceiverStream<std::io::Result<Accepted<S>>>,
    site: &Site,
) {
    while let Some(Ok(connection)) = incoming.next().await {
        core.tasks.spawn(
            "http connection",
            OnEnd::Isolated,
            converse(core.clone(), connection, site.clone()),
        );
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    core: Arc<Core>,
    connection: Accepted<S>,
    site: Site,
) {
    let info = connection.info().clone();
    let answer = tower::service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(info.clone());
        let site = site.clone();
        async move { Ok::<_, Infallible>(site.answer(request.map(Body::new)).await) }
    });
    let mut builder = auto::Builder::new(Owned(core.tasks.clone()));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(Some(Duration::from_secs(20)))
        .keep_alive_timeout(Duration::from_secs(20));
    let served = builder.serve_connection(TokioIo::new(connection), TowerToHyperService::new(answer));
    tokio::pin!(served);
    let stop = core.tasks.token().clone();
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

/// Runs what belongs to a connection as tasks of the group.
#[derive(Clone)]
struct Owned(TaskGroup);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Owned {
    fn execute(&self, future: F) {
        drop(self.0.spawn("http stream", OnEnd::Isolated, future));
    }
}
