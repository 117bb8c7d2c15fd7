//! Dialling: TLS with the controller's own CA as the only root.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::tls;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tonic::transport::{Channel, Endpoint, Uri};

use super::Address;
use crate::error::{CliError, CliResult};
use crate::output::text::size;

/// How long dialling may take, the TLS handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A half-open connection is found within the sum of these two.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// The largest CA file that is read, in bytes.
const CA_BYTES_MAX: u64 = 1 << 20;

/// A channel whose first connection stands. It dials again by itself when the connection is lost.
pub(super) async fn channel(address: &Address, ca_file: &Path) -> CliResult<Channel> {
    let config = trust(ca_file)?;
    let origin: Uri = address.to_string().parse().map_err(|_| unreachable_address(address))?;
    // The connector below does TLS itself: an https endpoint would make the transport want to do it again.
    let endpoint = address.to_string().replacen("https://", "http://", 1);
    let endpoint = Endpoint::from_shared(endpoint)
        .map_err(|_| unreachable_address(address))?
        .origin(origin)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .user_agent(concat!("holdfast/", env!("CARGO_PKG_VERSION")))
        .map_err(|_| unreachable_address(address))?;
    let target = address.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let (target, config) = (target.clone(), config.clone());
        async move { tls::connect_tls(&target.host, target.port, config, CONNECT_TIMEOUT).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| refused(address, ca_file, &error))
}

fn unreachable_address(address: &Address) -> CliError {
    CliError::usage(format!("{address} is not the address of a controller"))
}

/// Trust in the one CA of the file.
fn trust(ca_file: &Path) -> CliResult<Arc<ClientConfig>> {
    let fail = |why: String| {
        CliError::new(ErrorCode::FileInvalid, format!("the CA file {} cannot be used", ca_file.display()))
            .because(why)
            .then("holdfast context show")
    };
    let metadata = std::fs::metadata(ca_file).map_err(|error| fail(error.to_string()))?;
    if metadata.len() > CA_BYTES_MAX {
        return Err(fail(format!("it has {}, a certificate has far fewer", size(metadata.len()))));
    }
    let pem = std::fs::read_to_string(ca_file).map_err(|error| fail(error.to_string()))?;
    let certificates = tls::pem::certificates(&pem).map_err(|error| fail(error.to_string()))?;
    let ca = certificates.first().ok_or_else(|| fail("it holds no certificate".to_owned()))?;
    tls::client_config(ca, None).map_err(|error| fail(error.to_string()))
}

/// Why no connection came about: the certificate, or everything else.
fn refused(address: &Address, ca_file: &Path, error: &(dyn Error + 'static)) -> CliError {
    let mut causes = Vec::new();
    let mut certificate = false;
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(rustls::Error::InvalidCertificate(_)) = current.downcast_ref::<rustls::Error>() {
            certificate = true;
        }
        let text = current.to_string();
        // The transport's own wrapper says nothing; and wrappers that repeat what they wrap are told once.
        if !matches!(text.as_str(), "transport error" | "Connection error" | "tcp connect error")
            && causes.last() != Some(&text)
        {
            causes.push(text);
        }
        next = match current.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => current.source(),
        };
    }
    let (code, message) = if certificate {
        (
            ErrorCode::CertificateRejected,
            format!("the certificate of the controller at {address} was rejected"),
        )
    } else {
        (ErrorCode::ControllerUnreachable, format!("the controller at {address} cannot be reached"))
    };
    let mut failure = Failure::new(code, message);
    failure.why = causes;
    if certificate {
        failure = failure
            .because(format!("trusted is only the CA in {}", ca_file.display()))
            .then("holdfast context show");
    } else {
        failure = failure.then("holdfast context show").then("holdfast doctor");
    }
    failure.into()
}
