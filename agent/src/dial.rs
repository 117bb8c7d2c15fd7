//! Connections to the controller. One for the session and one for the data, so that a heartbeat never waits behind a
//! pack.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::tls::{connect_tls, is_pin_mismatch};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt as _;

use crate::address::ControllerAddress;
use crate::identity::Identity;

/// TCP and TLS handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A half-open connection is found within these two together.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// What the controller may send before it waits for us: the product of bandwidth and delay of a fast line.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Larger frames than the 16 KiB of the standard: fewer of them for the same bytes.
const FRAME_BYTES_MAX: u32 = 256 << 10;

/// How a controller is reached.
#[derive(Debug)]
pub struct Link {
    address: ControllerAddress,
    identity: Arc<Identity>,
    data: ArcSwap<Channel>,
}

impl Link {
    /// A link of an enrolled agent. Connects nowhere yet.
    pub fn new(address: ControllerAddress, identity: Arc<Identity>) -> Self {
        let data = ArcSwap::from_pointee(lazy(&address, &identity));
        Self { address, identity, data }
    }

    /// The controller.
    pub fn address(&self) -> &ControllerAddress {
        &self.address
    }

    /// A new connection for a session.
    ///
    /// # Errors
    /// `HF-4015` when the controller cannot be reached, `HF-6002` when either side refuses the other's certificate.
    pub async fn connect(&self) -> Result<Channel, Failure> {
        connect(&self.address, self.identity.tls()).await
    }

    /// The connection for data: made when it is first needed, and again when it was lost.
    pub fn data(&self) -> Channel {
        Channel::clone(&self.data.load())
    }

    /// Lets new calls use a new connection, with the certificate of now; those under way go on.
    pub fn renew_data(&self) {
        self.data.store(Arc::new(lazy(&self.address, &self.identity)));
    }
}

/// A connection with this TLS configuration.
///
/// # Errors
/// As [`Link::connect`], and `HF-6003` when the CA is pinned and another one was shown.
pub async fn connect(address: &ControllerAddress, tls: Arc<ClientConfig>) -> Result<Channel, Failure> {
    let (host, port) = (address.host().to_owned(), address.port());
    let connector = tower::service_fn(move |_: http::Uri| {
        let (host, tls) = (host.clone(), tls.clone());
        async move { dial(&host, port, tls).await }
    });
    endpoint(address).connect_with_connector(connector).await.map_err(|error| unreachable(address, &error))
}

fn lazy(address: &ControllerAddress, identity: &Arc<Identity>) -> Channel {
    let (host, port, identity) = (address.host().to_owned(), address.port(), identity.clone());
    let connector = tower::service_fn(move |_: http::Uri| {
        let (host, tls) = (host.clone(), identity.tls());
        async move { dial(&host, port, tls).await }
    });
    endpoint(address).connect_with_connector_lazy(connector)
}

async fn dial(
    host: &str,
    port: u16,
    tls: Arc<ClientConfig>,
) -> io::Result<TokioIo<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>> {
    connect_tls(host, port, tls, CONNECT_TIMEOUT).await.map(TokioIo::new)
}

fn endpoint(address: &ControllerAddress) -> Endpoint {
    let authority = address.authority();
    // TLS is ours: to the library the connection looks plain, and the requests say what they are.
    let plain = Endpoint::from_shared(format!("http://{authority}")).expect("host and port make a URL");
    let origin = format!("https://{authority}").parse().expect("host and port make a URL");
    plain
        .origin(origin)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .buffer_size(1024)
}

/// Why the controller could not be reached.
fn unreachable(address: &ControllerAddress, error: &(dyn Error + 'static)) -> Failure {
    let (code, message) = if is_pin_mismatch(error).is_some() {
        (ErrorCode::CaPinMismatch, format!("the controller {address} does not show the pinned CA"))
    } else if is_tls_error(error) {
        (ErrorCode::CertificateRejected, format!("no TLS connection to the controller {address}"))
    } else {
        (ErrorCode::ControllerUnreachable, format!("the controller {address} cannot be reached"))
    };
    let mut failure = Failure::new(code, message);
    failure.why = causes(error);
    failure
}

/// The texts of an error and its causes, without the ones that only repeat the next.
fn causes(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    each_cause(error, |cause| {
        let text = cause.to_string();
        if text != "transport error" && texts.last() != Some(&text) {
            texts.push(text);
        }
    });
    texts
}

fn is_tls_error(error: &(dyn Error + 'static)) -> bool {
    let mut found = false;
    each_cause(error, |cause| found |= cause.is::<rustls::Error>());
    found
}

fn each_cause(error: &(dyn Error + 'static), mut visit: impl FnMut(&(dyn Error + 'static))) {
    let mut next = Some(error);
    while let Some(current) = next {
        visit(current);
        // An `io::Error` gives the source of what it wraps, not what it wraps.
        next = match current.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => current.source(),
        };
    }
}

/// The failure that the status of a call stands for. One that our TLS layer caused says so.
pub fn failure_of(address: &ControllerAddress, status: &Status) -> Failure {
    if status.get_details_error_info().is_none()
        && let Some(source) = status.source()
    {
        let failure = unreachable(address, source);
        if failure.code != ErrorCode::ControllerUnreachable || is_connection_loss(status) {
            return failure;
        }
    }
    holdfast_proto::status::from_status(status)
}

/// Whether a call failed since the connection did, or since the controller is just starting or stopping: it says
/// nothing about the request, which may be sent again.
pub fn is_connection_loss(status: &Status) -> bool {
    use tonic::Code;
    status.get_details_error_info().is_none()
        && matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
}

#[cfg(test)]
mod tests {
    use holdfast_runtime::tls::client_config_by_pin;

    use super::*;
    use crate::identity::testing::TestCa;

    #[tokio::test]
    async fn a_controller_that_is_not_there_is_unreachable() {
        let folder = tempfile::tempdir().unwrap();
        let identity = TestCa::new().enroll(folder.path(), "https://127.0.0.1:1");
        let link = Link::new(identity.controller().clone(), Arc::new(identity));
        let failure = link.connect().await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::ControllerUnreachable);
        assert_eq!(failure.message, "the controller https://127.0.0.1:1 cannot be reached");
        assert!(failure.why.iter().any(|why| why.contains("refused")), "{failure:?}");
    }

    #[tokio::test]
    async fn a_server_of_another_ca_is_refused() {
        use holdfast_runtime::tls::{AcceptLimits, accept_tls, server_config};
        use holdfast_runtime::{Shutdown, TaskGroup};
        let (ours, theirs) = (TestCa::new(), TestCa::new());
        let tasks = TaskGroup::new(&Shutdown::new());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: ControllerAddress =
            format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
        let config = server_config(&theirs.server(), theirs.certificate.der()).unwrap();
        let _accepting = accept_tls(listener, config, AcceptLimits::default(), &tasks);
        let folder = tempfile::tempdir().unwrap();
        let identity = ours.enroll(folder.path(), &address.to_string());
        let failure = Link::new(address.clone(), Arc::new(identity)).connect().await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::CertificateRejected, "{failure:?}");
        let pinned = client_config_by_pin(ours.pin()).unwrap();
        let failure = connect(&address, pinned).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::CaPinMismatch, "{failure:?}");
    }
}
