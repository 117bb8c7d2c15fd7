use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{CertificateError, ClientConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::shutdown::Shutdown;
use crate::task_group::TaskGroup;

const PATIENCE: Duration = Duration::from_secs(120);

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn certificate(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    fn issue(
        &self,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (
            vec![certificate.der().clone(), self.certificate()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
    }

    fn server(&self) -> ServerIdentity {
        let (chain, key) = self.issue("localhost", ExtendedKeyUsagePurpose::ServerAuth);
        ServerIdentity::new(chain, key).unwrap()
    }
}

struct Server {
    port: u16,
    tasks: TaskGroup,
    incoming: ReceiverStream<std::io::Result<TlsConnection>>,
}

impl Server {
    async fn start(identity: &ServerIdentity, ca: &Ca, limits: AcceptLimits) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let tasks = TaskGroup::new(&Shutdown::new());
        let config = server_config(identity, &ca.certificate()).unwrap();
        Self { port, incoming: accept_tls(listener, config, limits, &tasks), tasks }
    }

    async fn call(
        &self,
        config: Arc<ClientConfig>,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
        connect_tls("localhost", self.port, config, PATIENCE).await
    }

    async fn next(&mut self) -> TlsConnection {
        tokio::time::timeout(PATIENCE, self.incoming.next()).await.unwrap().unwrap().unwrap()
    }
}

#[tokio::test]
async fn both_sides_know_each_other_after_the_handshake() {
    let ca = Ca::new();
    let mut server = Server::start(&ca.server(), &ca, AcceptLimits::default()).await;
    let own = ca.issue("agent", ExtendedKeyUsagePurpose::ClientAuth);
    let own_certificate = own.0[0].clone();
    let mut client = server.call(client_config(&ca.certificate(), Some(own)).unwrap()).await.unwrap();
    assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(client.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let mut connection = server.next().await;
    assert_eq!(connection.info().peer_certificates[0], own_certificate);
    client.write_all(b"ping").await.unwrap();
    client.flush().await.unwrap();
    let mut read = [0; 4];
    connection.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"ping");
    server.tasks.cancel();
    assert!(server.incoming.next().await.is_none());
    assert!(server.tasks.join(PATIENCE).await.is_empty());
}

#[tokio::test]
async fn a_client_without_a_certificate_is_let_in_and_one_of_a_foreign_ca_is_not() {
    let (ca, foreign) = (Ca::new(), Ca::new());
    let mut server = Server::start(&ca.server(), &ca, AcceptLimits::default()).await;
    let intruder = foreign.issue("agent", ExtendedKeyUsagePurpose::ClientAuth);
    // In TLS 1.3 the client learns of the refusal with its first read.
    let mut refused = server.call(client_config(&ca.certificate(), Some(intruder)).unwrap()).await.unwrap();
    assert!(refused.read_u8().await.is_err());
    let _client = server.call(client_config(&ca.certificate(), None).unwrap()).await.unwrap();
    assert!(server.next().await.info().peer_certificates.is_empty());
}

#[tokio::test]
async fn a_server_of_a_foreign_ca_is_refused() {
    let (ca, foreign) = (Ca::new(), Ca::new());
    let server = Server::start(&foreign.server(), &foreign, AcceptLimits::default()).await;
    assert!(server.call(client_config(&ca.certificate(), None).unwrap()).await.is_err());
}

#[tokio::test]
async fn the_pin_lets_in_its_ca_and_no_other() {
    let (ca, foreign) = (Ca::new(), Ca::new());
    let mut server = Server::start(&ca.server(), &ca, AcceptLimits::default()).await;
    let pin = CaPin::of(&ca.certificate()).unwrap();
    let _client = server.call(client_config_by_pin(pin).unwrap()).await.unwrap();
    server.next().await;
    let wrong = CaPin::of(&foreign.certificate()).unwrap();
    let error = server.call(client_config_by_pin(wrong).unwrap()).await.unwrap_err();
    assert_eq!(is_pin_mismatch(&error), Some(&PinMismatch { expected: wrong, found: vec![pin] }));
}

#[tokio::test]
async fn the_pinned_ca_beside_a_foreign_certificate_does_not_help() {
    let (ca, foreign) = (Ca::new(), Ca::new());
    let (mut chain, key) = foreign.issue("localhost", ExtendedKeyUsagePurpose::ServerAuth);
    chain.push(ca.certificate());
    let identity = ServerIdentity::new(chain, key).unwrap();
    let server = Server::start(&identity, &ca, AcceptLimits::default()).await;
    let pin = CaPin::of(&ca.certificate()).unwrap();
    let error = server.call(client_config_by_pin(pin).unwrap()).await.unwrap_err();
    assert!(is_pin_mismatch(&error).is_none(), "the pin fits, the signature does not");
}

#[tokio::test]
async fn a_pinned_server_must_carry_the_right_name() {
    let ca = Ca::new();
    let (chain, key) = ca.issue("elsewhere", ExtendedKeyUsagePurpose::ServerAuth);
    let server = Server::start(&ServerIdentity::new(chain, key).unwrap(), &ca, AcceptLimits::default()).await;
    let pin = CaPin::of(&ca.certificate()).unwrap();
    let error = server.call(client_config_by_pin(pin).unwrap()).await.unwrap_err();
    let error = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).unwrap();
    assert!(matches!(
        error,
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        )
    ));
}

#[tokio::test]
async fn a_client_of_tls_1_2_is_refused() {
    let ca = Ca::new();
    let server = Server::start(&ca.server(), &ca, AcceptLimits::default()).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.certificate()).unwrap();
    let old = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    assert!(server.call(Arc::new(old)).await.is_err());
}

#[tokio::test]
async fn an_exchanged_certificate_is_shown_to_the_next_client() {
    let ca = Ca::new();
    let identity = ca.server();
    let mut server = Server::start(&identity, &ca, AcceptLimits::default()).await;
    let (chain, key) = ca.issue("localhost", ExtendedKeyUsagePurpose::ServerAuth);
    let new = chain[0].clone();
    identity.replace(chain, key).unwrap();
    let client = server.call(client_config(&ca.certificate(), None).unwrap()).await.unwrap();
    assert_eq!(client.get_ref().1.peer_certificates().unwrap()[0], new);
    server.next().await;
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_dropped() {
    let ca = Ca::new();
    let limits = AcceptLimits { handshake_timeout: Duration::from_millis(20), ..AcceptLimits::default() };
    let server = Server::start(&ca.server(), &ca, limits).await;
    let mut silent = tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, silent.read(&mut [0; 16])).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn one_address_gets_its_share_of_connections_and_no_more() {
    let ca = Ca::new();
    let limits = AcceptLimits { connections_per_peer_max: 1, ..AcceptLimits::default() };
    let mut server = Server::start(&ca.server(), &ca, limits).await;
    let config = client_config(&ca.certificate(), None).unwrap();
    let first = server.call(config.clone()).await.unwrap();
    let first_at_server = server.next().await;
    assert!(server.call(config.clone()).await.is_err());
    drop((first, first_at_server));
    let _second = server.call(config).await.unwrap();
    server.next().await;
}

#[test]
fn a_pin_reads_back_and_nonsense_does_not() {
    let pin = CaPin::of(&Ca::new().certificate()).unwrap();
    assert_eq!(pin.to_string().parse::<CaPin>().unwrap(), pin);
    let hex = "0".repeat(64);
    for bad in ["", "sha256:", "sha256:00", &hex, &format!("md5:{hex}"), &format!("sha256:{hex}0")] {
        assert!(bad.parse::<CaPin>().is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn certificates_and_keys_survive_pem() {
    let ca = Ca::new();
    let text = pem::certificate_to_pem(&ca.certificate());
    assert_eq!(text.replace("\r\n", "\n").trim(), ca.0.pem().replace("\r\n", "\n").trim());
    assert_eq!(pem::certificates(&text).unwrap(), [ca.certificate()]);
    let key = KeyPair::generate().unwrap();
    assert_eq!(pem::private_key(&key.serialize_pem()).unwrap().secret_der(), key.serialize_der());
    assert!(pem::certificates("").is_err());
    assert!(pem::private_key(&text).is_err());
}
