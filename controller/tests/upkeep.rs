//! What a controller does once a day, seen by its clients while the days pass.

#![expect(clippy::unwrap_used, reason = "a test says by its panic where it failed")]

use std::time::Duration;

use holdfast_controller::pki::token::EnrollmentToken;
use holdfast_controller::records::Batch;
use holdfast_controller::store::{Expect, Kind};
use holdfast_controller::{Controller, ControllerConfig, RunningController};
use holdfast_runtime::tls::{client_config, install_crypto_provider};
use holdfast_runtime::{Clock as _, ManualClock, SystemClock};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long the test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(120);
/// Days before the present at which the controller starts. Its certificate lives for 90, and is renewed after 60.
const STARTED_DAYS_AGO: u32 = 75;

async fn connect(controller: &RunningController) -> TlsStream<TcpStream> {
    let config = client_config(controller.core().authority.certificate(), None).unwrap();
    let stream = TcpStream::connect(controller.address()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(config).connect(name, stream).await.unwrap()
}

fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn days_renew_the_certificate_and_remove_tokens_while_connections_stay() {
    install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    let mut config = ControllerConfig::new(folder.path().join("controller"));
    config.grpc.listen = ([127, 0, 0, 1], 0).into();
    let past = SystemClock.now() - jiff::SignedDuration::try_from(DAY * STARTED_DAYS_AGO).unwrap();
    let clock = ManualClock::at(past);
    let unused = config.data_dir.join("blobs/not in use");
    Controller::init(&config, clock.shared()).await.unwrap();
    std::fs::create_dir_all(&unused).unwrap();
    let marker = std::fs::File::create(unused.join("marker")).unwrap();
    marker.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let controller = Controller::start(config, clock.shared()).await.unwrap();
    let records = &controller.core().records;
    let (token, record) = EnrollmentToken::make("a1".parse().unwrap(), "a test", clock.now(), DAY);
    let batch = Batch::new("test", "token.create", "enrollment/a1");
    records.commit(batch.put(Kind::EnrollmentToken, token.id(), &record, Expect::Absent)).await.unwrap();

    let mut early = connect(&controller).await;
    let first = shown(&early);
    assert_eq!(shown(&connect(&controller).await), first);
    clock.advance(DAY * 60);
    let (began, mut next_day) = (std::time::Instant::now(), Duration::from_millis(100));
    let second = loop {
        let now = shown(&connect(&controller).await);
        if now != first {
            break now;
        }
        assert!(began.elapsed() < PATIENCE, "the certificate was never renewed");
        tokio::time::sleep(Duration::from_millis(10)).await;
        // Whoever looks once a day may have looked just before the days passed; or it takes its time.
        if began.elapsed() > next_day {
            clock.advance(DAY);
            next_day *= 2;
        }
    };
    assert_eq!(shown(&connect(&controller).await), second);
    let left = || async { records.all::<EnrollmentToken>(Kind::EnrollmentToken, "").await.unwrap().len() };
    while left().await > 0 || unused.exists() {
        assert!(began.elapsed() < 2 * PATIENCE, "what is not used any more is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The connection of the first day is as good as ever: it is greeted in HTTP/2.
    early.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut frame = [0; 9];
    tokio::time::timeout(PATIENCE, early.read_exact(&mut frame)).await.unwrap().unwrap();
    assert_eq!(frame[3], 4, "the first frame of a server is SETTINGS: {frame:?}");
    drop(early);
    controller.stop().await.unwrap();
}
