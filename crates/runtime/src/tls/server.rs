//! The server's side of TLS.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};

use super::{TlsError, provider};

/// The server's certificate and key, exchangeable while connections are open. Clones share it.
#[derive(Clone)]
pub struct ServerIdentity {
    current: Arc<ArcSwap<CertifiedKey>>,
}

impl ServerIdentity {
    /// Takes a chain, the server's own certificate first and the CA's last (a client that knows the CA only by its
    /// pin must be shown it), and the key.
    ///
    /// # Errors
    /// Key and certificate do not belong together, or are of an unsupported kind.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, TlsError> {
        let certified = CertifiedKey::from_der(chain, key, &provider())?;
        Ok(Self { current: Arc::new(ArcSwap::from_pointee(certified)) })
    }

    /// Exchanges certificate and key: the next handshake shows the new ones, open connections stay.
    ///
    /// # Errors
    /// As for [`ServerIdentity::new`]; the old identity then stays.
    pub fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), TlsError> {
        self.current.store(Arc::new(CertifiedKey::from_der(chain, key, &provider())?));
        Ok(())
    }
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerIdentity").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for ServerIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// TLS 1.3 for HTTP/2 and HTTP/1.1. A client may show a certificate; if it does, `client_ca` must have signed it.
///
/// Sessions are never resumed: each connection verifies the client's certificate anew, so that an expired one
/// cannot live on in a ticket.
///
/// # Errors
/// The CA certificate cannot serve as one.
pub fn server_config(
    identity: &ServerIdentity,
    client_ca: &CertificateDer<'static>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(client_ca.clone())?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(identity.clone()));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
