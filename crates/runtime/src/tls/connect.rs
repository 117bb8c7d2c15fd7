//! The dialling side.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Connects to `host` (a name or an address, without brackets) and shakes hands, within `timeout` for both together.
///
/// The certificate must be valid for `host`.
///
/// # Errors
/// `InvalidInput` when `host` is neither name nor address, `TimedOut`, those of the network, and `InvalidData` with a
/// [`rustls::Error`] within when TLS failed.
pub async fn connect_tls(
    host: &str,
    port: u16,
    config: Arc<ClientConfig>,
    timeout: Duration,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidInput, super::TlsError::ServerName(host.to_owned()))
    })?;
    let dial = async {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(config).connect(name, stream).await
    };
    tokio::time::timeout(timeout, dial)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no TLS connection in the time allowed"))?
}
