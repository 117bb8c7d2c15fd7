use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::ErrorCode;
use holdfast_model::ids::AgentName;
use holdfast_runtime::tls::{
    AcceptLimits, CaPin, ServerIdentity, TlsConnection, accept_tls, client_config, client_config_by_pin,
    connect_tls, pem, server_config,
};
use holdfast_runtime::{Clock as _, ManualClock, Shutdown, SystemClock, TaskGroup};
use jiff::{SignedDuration, Timestamp};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use tokio::io::AsyncReadExt as _;
use tokio_stream::StreamExt as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::authority::{AGENT_LIFETIME_MAX, SERVER_LIFETIME, SERVER_RENEWED_BEFORE};
use super::token::{EnrollmentToken, OperatorToken, TokenError};
use super::*;
use crate::access::Role;
use crate::store::{Audit, Batch, EmbeddedStore, Expect, Kind, Store, StoreSettings};

const HOUR: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(120);

fn noon() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

fn after(duration: Duration) -> Timestamp {
    noon() + SignedDuration::try_from(duration).unwrap()
}

fn agent(name: &str) -> AgentName {
    AgentName::new(name).unwrap()
}

fn names() -> Vec<String> {
    ["localhost", "127.0.0.1", "::1", "backup.example.com"].map(str::to_owned).into()
}

fn request(key: &KeyPair, params: CertificateParams) -> String {
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn plain_request() -> String {
    request(&KeyPair::generate().unwrap(), CertificateParams::default())
}

fn identity_of(chain_pem: &str) -> Result<AgentIdentity, PkiError> {
    AgentIdentity::of(&pem::certificates(chain_pem).unwrap()[0])
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_authority_is_made_once_and_its_key_is_private() {
    let folder = tempfile::tempdir().unwrap();
    let made = Authority::open(folder.path(), noon()).unwrap();
    let again = Authority::open(folder.path(), after(HOUR)).unwrap();
    assert_eq!(again.pin(), made.pin());
    assert_eq!(again.certificate(), made.certificate());
    assert_eq!(made.pin(), CaPin::of(made.certificate()).unwrap());
    assert!(made.pin().to_string().starts_with("sha256:"));
    assert_eq!(mode(&folder.path().join("ca.key")), 0o600);
    let (_, parsed) = X509Certificate::from_der(made.certificate()).unwrap();
    assert!(parsed.is_ca());
    assert!(made.not_after() > after(HOUR * 24 * 3650));
}

#[test]
fn an_authority_of_which_half_is_missing_or_foreign_is_refused() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pin = Authority::open(folder.path(), noon()).unwrap().pin();
    Authority::open(other.path(), noon()).unwrap();
    let certificate = folder.path().join("ca.pem");
    std::fs::remove_file(&certificate).unwrap();
    assert_eq!(Authority::open(folder.path(), noon()).unwrap().pin(), pin, "the key alone is enough");
    std::fs::copy(other.path().join("ca.pem"), &certificate).unwrap();
    assert_eq!(Authority::open(folder.path(), noon()).unwrap_err().code(), ErrorCode::StateDamaged);
    std::fs::remove_file(folder.path().join("ca.key")).unwrap();
    assert_eq!(Authority::open(folder.path(), noon()).unwrap_err().code(), ErrorCode::StateDamaged);
}

#[test]
fn the_server_certificate_is_kept_until_it_nears_its_end_or_the_names_change() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open(folder.path(), noon()).unwrap();
    let first = authority.server_certificate(&names(), noon()).unwrap();
    assert!(first.is_new);
    assert_eq!(first.not_after, after(SERVER_LIFETIME));
    assert_eq!(first.chain[1], *authority.certificate());
    assert_eq!(mode(&folder.path().join("server.key")), 0o600);
    let due = SERVER_LIFETIME - SERVER_RENEWED_BEFORE;
    let kept = authority.server_certificate(&names(), after(due - HOUR)).unwrap();
    assert_eq!((kept.is_new, &kept.chain), (false, &first.chain));
    assert!(authority.server_certificate(&names(), after(due)).unwrap().is_new);
    assert!(authority.server_certificate(&names()[..1], after(due)).unwrap().is_new);
    std::fs::write(folder.path().join("server.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(
        authority.server_certificate(&names()[..1], after(due)).unwrap().is_new,
        "a key that does not fit"
    );
    for bad in ["", "two words", "a_b..c", "-x", "http://host", "host:7443"] {
        let error = authority.server_certificate(&[bad.to_owned()], noon()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::FileInvalid, "{bad:?}");
    }
}

#[test]
fn an_agent_certificate_says_what_we_say_and_nothing_of_the_request() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open(folder.path(), noon()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::new(vec!["controller".to_owned()]).unwrap();
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.subject_alt_names.push(SanType::URI("spiffe://holdfast/agent/other".try_into().unwrap()));
    greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any];
    let issued = authority.sign_agent(&agent("db1"), &request(&key, greedy), noon(), HOUR * 1_000).unwrap();
    let identity = identity_of(&issued.chain_pem).unwrap();
    assert_eq!(identity.name, agent("db1"));
    assert_eq!(identity.serial, issued.serial);
    assert_eq!(identity.not_after, issued.not_after);
    assert_eq!(issued.not_after, after(AGENT_LIFETIME_MAX), "the life is cut");
    let chain = pem::certificates(&issued.chain_pem).unwrap();
    let (_, parsed) = X509Certificate::from_der(&chain[0]).unwrap();
    assert_eq!(parsed.public_key().subject_public_key.data.as_ref(), key.public_key_raw());
    assert!(!parsed.is_ca());
    assert_eq!(parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
    let again =
        authority.sign_agent(&agent("db1"), &request(&key, CertificateParams::default()), noon(), HOUR);
    assert_ne!(again.unwrap().serial, issued.serial, "the same key gets another number");
}

#[test]
fn requests_that_prove_nothing_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open(folder.path(), noon()).unwrap();
    let good = plain_request();
    let der = |pem: &str| {
        use rustls::pki_types::pem::PemObject as _;
        rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
    };
    let to_pem = |der: &[u8]| {
        pem::certificate_to_pem(&der.to_vec().into()).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    };
    assert!(authority.sign_agent(&agent("db1"), &to_pem(&der(&good)), noon(), HOUR).is_ok());
    // A changed byte breaks the request or its signature. What is not signed may change; the key is.
    let bytes = der(&good);
    let key_in = |der: &[u8]| {
        let (_, request) =
            x509_parser::certification_request::X509CertificationRequest::from_der(der).unwrap();
        request.certification_request_info.subject_pki.raw.to_vec()
    };
    let mut refused = 0;
    for place in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[place] ^= 1;
        match authority.sign_agent(&agent("db1"), &to_pem(&changed), noon(), HOUR) {
            Ok(_) => assert_eq!(key_in(&changed), key_in(&bytes), "byte {place}"),
            Err(error) => {
                assert!(matches!(error, PkiError::Request(_)), "byte {place}");
                refused += 1;
            }
        }
    }
    assert!(refused + 2 >= bytes.len(), "{refused} of {} bytes count", bytes.len());
    let longer = [bytes, vec![0]].concat();
    for bad in ["", "nonsense", authority.certificate_pem(), &to_pem(&longer), &"x".repeat(20_000)] {
        let error = authority.sign_agent(&agent("db1"), bad, noon(), HOUR).unwrap_err();
        assert_eq!(error.code(), ErrorCode::CertificateRejected);
    }
}

#[test]
fn only_agent_certificates_name_an_agent() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open(folder.path(), noon()).unwrap();
    let server = authority.server_certificate(&names(), noon()).unwrap();
    let forged = |uris: &[&str], usages: &[ExtendedKeyUsagePurpose]| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.extended_key_usages = usages.to_vec();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    };
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let name = "spiffe://holdfast/agent/db1";
    assert!(AgentIdentity::of(&forged(&[name], &[ClientAuth])).is_ok());
    for bad in [
        authority.certificate().clone(),
        server.chain[0].clone(),
        forged(&[name], &[ClientAuth, ServerAuth]),
        forged(&[name], &[]),
        forged(&[], &[ClientAuth]),
        forged(&[name, "spiffe://holdfast/agent/db2"], &[ClientAuth]),
        forged(&["spiffe://elsewhere/agent/db1"], &[ClientAuth]),
        forged(&["spiffe://holdfast/agent/"], &[ClientAuth]),
        forged(&["spiffe://holdfast/agent/db1/x"], &[ClientAuth]),
        forged(&["spiffe://holdfast/agent/../db1"], &[ClientAuth]),
        vec![1, 2, 3].into(),
    ] {
        assert_eq!(AgentIdentity::of(&bad).unwrap_err().code(), ErrorCode::CertificateRejected);
    }
    let db1 = AgentIdentity::of(&forged(&[name], &[ClientAuth])).unwrap();
    assert!(db1.clone().must_be(&agent("db1")).is_ok());
    let error = db1.must_be(&agent("db2")).unwrap_err();
    assert_eq!(error.to_string(), "the certificate is that of agent db1, not of db2");
}

#[tokio::test]
async fn an_agent_enrols_by_pin_and_connects_with_its_certificate_until_that_ends() {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemClock.now();
    let authority = Authority::open(folder.path(), now).unwrap();
    let server = authority.server_certificate(&names(), now).unwrap();
    let identity = ServerIdentity::new(server.chain, server.key).unwrap();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tasks = TaskGroup::new(&Shutdown::new());
    let config = server_config(&identity, authority.certificate()).unwrap();
    let mut incoming = accept_tls(listener, config, AcceptLimits::default(), &tasks);
    let mut next = async || -> TlsConnection { incoming.next().await.unwrap().unwrap() };

    let by_pin = client_config_by_pin(authority.pin()).unwrap();
    let _enrolling = connect_tls("127.0.0.1", port, by_pin, PATIENCE).await.unwrap();
    assert!(next().await.info().peer_certificates.is_empty());

    let key = KeyPair::generate().unwrap();
    let csr = request(&key, CertificateParams::default());
    let own = |issued: &AgentCertificate| {
        (pem::certificates(&issued.chain_pem).unwrap(), pem::private_key(&key.serialize_pem()).unwrap())
    };
    let issued = authority.sign_agent(&agent("db1"), &csr, now, HOUR).unwrap();
    let config = client_config(authority.certificate(), Some(own(&issued))).unwrap();
    let _session = connect_tls("localhost", port, config, PATIENCE).await.unwrap();
    let connection = next().await;
    let named = AgentIdentity::of(&connection.info().peer_certificates[0]).unwrap();
    assert_eq!((named.name, named.serial), (agent("db1"), issued.serial));

    let day_before = now - SignedDuration::from_hours(25);
    let ended = authority.sign_agent(&agent("db1"), &csr, day_before, HOUR).unwrap();
    let config = client_config(authority.certificate(), Some(own(&ended))).unwrap();
    let mut refused = connect_tls("localhost", port, config, PATIENCE).await.unwrap();
    assert!(refused.read_u8().await.is_err(), "an ended certificate is refused");
}

struct Tokens {
    store: Arc<EmbeddedStore>,
    _folder: tempfile::TempDir,
}

impl Tokens {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tasks = TaskGroup::new(&Shutdown::new());
        let clock = ManualClock::at(noon()).shared();
        let store = EmbeddedStore::open(StoreSettings::new(folder.path()), clock, &tasks).unwrap();
        Self { store, _folder: folder }
    }

    fn store(&self) -> &dyn Store {
        &*self.store
    }

    async fn offer(&self, lifetime: Duration) -> token::TokenText {
        let (text, record) = EnrollmentToken::make(agent("db1"), "operator/test", noon(), lifetime);
        let audit = Audit::done("operator/test", "agent.offer", "agent/db1");
        self.store().put_as(Kind::EnrollmentToken, text.id(), &record, Expect::Absent, audit).await.unwrap();
        text
    }

    async fn redeem(&self, text: &str, racer: usize) -> Result<(), TokenError> {
        let found = EnrollmentToken::find(self.store(), text, &agent("db1"), noon()).await?;
        let mut batch = Batch::new(Audit::done("agent/db1", "agent.enroll", "agent/db1"));
        found.consume(&mut batch);
        batch.put(Kind::Agent, "db1", &racer, Expect::Any);
        match self.store().commit(batch).await {
            Ok(_) => Ok(()),
            Err(crate::store::StoreError::Conflict { .. }) => Err(TokenError::Invalid),
            Err(error) => Err(error.into()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_a_thousand_racers_with_one_token_exactly_one_wins() {
    let tokens = Arc::new(Tokens::new());
    let text = tokens.offer(HOUR).await;
    let tasks = TaskGroup::new(&Shutdown::new());
    let racers: Vec<_> = (0..1_000)
        .map(|racer| {
            let (tokens, text) = (tokens.clone(), text.clone());
            let race = async move { tokens.redeem(text.expose(), racer).await };
            tasks.spawn("racer", holdfast_runtime::OnEnd::Isolated, race)
        })
        .collect();
    let mut winners = Vec::new();
    for (racer, task) in racers.into_iter().enumerate() {
        match task.join().await.unwrap() {
            Ok(()) => winners.push(racer),
            Err(error) => assert_eq!(error.code(), ErrorCode::TokenInvalid),
        }
    }
    assert_eq!(winners.len(), 1);
    let stored = tokens.store().get_as::<usize>(Kind::Agent, "db1").await.unwrap().unwrap();
    assert_eq!(stored.value, winners[0]);
}

#[tokio::test]
async fn unknown_used_expired_and_foreign_tokens_look_alike() {
    let tokens = Tokens::new();
    let text = tokens.offer(Duration::from_secs(600)).await;
    let find = async |text: &str, name: &str, at: Timestamp| {
        EnrollmentToken::find(tokens.store(), text, &agent(name), at).await.map_err(|error| error.to_string())
    };
    let used = tokens.offer(HOUR).await;
    tokens.redeem(used.expose(), 0).await.unwrap();
    let (unknown, _) = EnrollmentToken::make(agent("db1"), "operator/test", noon(), HOUR);
    let mut other_secret = text.expose().to_owned();
    let last = other_secret.pop().unwrap();
    other_secret.push(if last == '0' { '1' } else { '0' });
    let (operator, _) = OperatorToken::make("ci", Role::Viewer, noon(), HOUR);
    let expected = Err("the token is unknown, used or expired".to_owned());
    for bad in [
        unknown.expose(),
        used.expose(),
        &other_secret,
        operator.expose(),
        "",
        "hfe__",
        "hfe_x_y",
        &text.expose().to_uppercase(),
    ] {
        assert_eq!(find(bad, "db1", noon()).await, expected, "{bad}");
    }
    assert_eq!(find(text.expose(), "db2", noon()).await, expected);
    assert_eq!(find(text.expose(), "db1", after(Duration::from_secs(600))).await, expected);
    assert!(
        find(text.expose(), "db1", after(Duration::from_secs(599))).await.is_ok(),
        "asking does not use it up"
    );
}

#[tokio::test]
async fn an_enrolment_token_lives_an_hour_at_most_and_is_swept_after() {
    let tokens = Tokens::new();
    let text = tokens.offer(HOUR * 24).await;
    let expired = async |at| token::expired_enrollments(tokens.store(), at).await.unwrap();
    assert!(expired(after(HOUR - Duration::from_secs(1))).await.is_empty());
    assert_eq!(expired(after(HOUR)).await, [text.id()]);
}

#[tokio::test]
async fn an_operator_token_opens_its_role_until_it_ends() {
    let tokens = Tokens::new();
    let (text, record) = OperatorToken::make("ci", Role::Restorer, noon(), HOUR);
    let audit = Audit::done("operator/test", "token.make", "token/ci");
    tokens.store().put_as(Kind::OperatorToken, text.id(), &record, Expect::Absent, audit).await.unwrap();
    let found = OperatorToken::authenticate(tokens.store(), text.expose(), noon()).await.unwrap();
    assert_eq!((found.name.as_str(), found.role), ("ci", Role::Restorer));
    assert!(OperatorToken::authenticate(tokens.store(), text.expose(), after(HOUR)).await.is_err());
    let enrollment = tokens.offer(HOUR).await;
    assert!(OperatorToken::authenticate(tokens.store(), enrollment.expose(), noon()).await.is_err());
}

#[tokio::test]
async fn neither_a_token_nor_its_debug_text_gives_the_secret_away() {
    let tokens = Tokens::new();
    let text = tokens.offer(HOUR).await;
    let secret = text.expose().rsplit('_').next().unwrap();
    assert_eq!(secret.len(), 40, "160 bits");
    assert!(!format!("{text:?}").contains(secret));
    let stored = tokens.store().get(Kind::EnrollmentToken, text.id()).await.unwrap().unwrap();
    assert!(!String::from_utf8(stored.value).unwrap().contains(secret));
}
