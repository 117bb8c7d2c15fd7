//! The controller's certificate authority.
//!
//! ```text
//! ca.key      ECDSA P-256, PKCS #8, mode 0600; made at the first start, never replaced
//! ca.pem      its certificate, ten years; agents know it by the hash of its public key
//! server.key  exchanged with every certificate
//! server.pem  the server's certificate, 90 days, and the CA's
//! ```

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_model::ids::AgentName;
use holdfast_runtime::durable_file::{self, Access};
use holdfast_runtime::tls::{CaPin, pem};
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ED25519};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::PkiError;
use super::identity::SPIFFE_PREFIX;

/// The longest life of an agent's certificate.
pub const AGENT_LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// The life of the server's certificate.
pub const SERVER_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// The server's certificate is exchanged when less than this is left of it.
pub const SERVER_RENEWED_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
const CA_LIFETIME: Duration = Duration::from_secs(3652 * 24 * 3600);
/// Certificates are valid from a little before now: the clocks of a fleet differ.
const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);
/// A request holds a key, a signature and names; this is many times as much.
const REQUEST_BYTES_MAX: usize = 16 << 10;

/// The certificate authority.
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    not_after: Timestamp,
    pin: CaPin,
}

/// The server's certificate and key, as [`holdfast_runtime::tls::ServerIdentity`] takes them.
#[derive(Debug)]
pub struct ServerCertificate {
    /// The server's certificate, then the CA's.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// When it ends.
    pub not_after: Timestamp,
    /// Whether it was made by this call; a server that runs must exchange it then.
    pub is_new: bool,
}

/// A certificate that was issued to an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCertificate {
    /// The certificate, then the CA's, as PEM.
    pub chain_pem: String,
    /// Its serial number, hexadecimal, as [`super::AgentIdentity`] gives it.
    pub serial: String,
    /// When it ends.
    pub not_after: Timestamp,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("folder", &self.folder)
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Opens the authority in a folder, or makes it at the first start.
    ///
    /// # Errors
    /// [`PkiError::Authority`] when half of it is missing, or key and certificate do not belong together: it is never
    /// replaced by itself, for then no agent would know its controller any more.
    pub fn open(folder: &Path, now: Timestamp) -> Result<Self, PkiError> {
        durable_file::create_folders(folder)
            .map_err(PkiError::io("making the folder of the authority", folder))?;
        let (key_path, certificate_path) = (folder.join("ca.key"), folder.join("ca.pem"));
        let key = match read_if_there(&key_path)? {
            Some(pem) => {
                KeyPair::from_pem(&pem).map_err(|error| broken(folder, format!("ca.key: {error}")))?
            }
            None if certificate_path.exists() => return Err(broken(folder, "ca.key is missing".to_owned())),
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                durable_file::create_new(&key_path, key.serialize_pem().as_bytes(), Access::Owner)
                    .map_err(PkiError::io("writing the key of the authority", &key_path))?;
                key
            }
        };
        let certificate_pem = match read_if_there(&certificate_path)? {
            Some(pem) => pem,
            // Also after a crash between the two files: the key alone is enough to make the certificate.
            None => {
                let pem = ca_params(now).self_signed(&key)?.pem();
                durable_file::create_new(&certificate_path, pem.as_bytes(), Access::Everyone)
                    .map_err(PkiError::io("writing the certificate of the authority", &certificate_path))?;
                pem
            }
        };
        Self::assemble(folder, key, certificate_pem)
    }

    fn assemble(folder: &Path, key: KeyPair, certificate_pem: String) -> Result<Self, PkiError> {
        let broken_certificate = |reason: String| broken(folder, format!("ca.pem: {reason}"));
        let certificate = pem::certificates(&certificate_pem)
            .map_err(|error| broken_certificate(error.to_string()))?
            .swap_remove(0);
        let (_, parsed) =
            X509Certificate::from_der(&certificate).map_err(|error| broken_certificate(error.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(broken_certificate("it is not that of ca.key".to_owned()));
        }
        let not_after = Timestamp::from_second(parsed.validity().not_after.timestamp())
            .map_err(|error| broken_certificate(error.to_string()))?;
        let pin = CaPin::of(&certificate)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { folder: folder.to_owned(), issuer, certificate, certificate_pem, not_after, pin })
    }

    /// The CA's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The CA's certificate as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// When the CA's certificate ends; nothing it signs lives longer.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// By what an agent that enrols knows this authority.
    pub fn pin(&self) -> CaPin {
        self.pin
    }

    /// The server's certificate for these names and addresses: the one at hand, or a new one when there is none, when
    /// it is for other names, or when less than [`SERVER_RENEWED_BEFORE`] is left of it.
    ///
    /// # Errors
    /// [`PkiError::ServerName`] names what is neither a host name nor an address; those of the file system.
    pub fn server_certificate(
        &self,
        names: &[String],
        now: Timestamp,
    ) -> Result<ServerCertificate, PkiError> {
        let names = names.iter().map(|name| server_name(name)).collect::<Result<Vec<_>, _>>()?;
        let (key_path, chain_path) = (self.folder.join("server.key"), self.folder.join("server.pem"));
        if let (Some(key), Some(chain)) = (read_if_there(&key_path)?, read_if_there(&chain_path)?)
            && let Some(at_hand) = self.usable(&key, &chain, &names, now)
        {
            return Ok(at_hand);
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let not_after = self.end(now, SERVER_LIFETIME);
        let mut params = leaf_params("Holdfast controller", now, not_after);
        params.subject_alt_names = names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        let chain_pem = certificate.pem() + &self.certificate_pem;
        // The key first: a crash in between leaves a key that does not fit, and both are made anew.
        durable_file::replace(&key_path, key.serialize_pem().as_bytes(), Access::Owner)
            .map_err(PkiError::io("writing the key of the server", &key_path))?;
        durable_file::replace(&chain_path, chain_pem.as_bytes(), Access::Everyone)
            .map_err(PkiError::io("writing the certificate of the server", &chain_path))?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        let key = pem::private_key(&key.serialize_pem())?;
        Ok(ServerCertificate { chain, key, not_after, is_new: true })
    }

    /// The certificate at hand, if it still serves.
    fn usable(&self, key: &str, chain: &str, names: &[SanType], now: Timestamp) -> Option<ServerCertificate> {
        let key_pair = KeyPair::from_pem(key).ok()?;
        let chain = pem::certificates(chain).ok()?;
        let (_, parsed) = X509Certificate::from_der(chain.first()?).ok()?;
        let not_after = Timestamp::from_second(parsed.validity().not_after.timestamp()).ok()?;
        let (_, ca) = X509Certificate::from_der(&self.certificate).ok()?;
        let found = parsed.subject_alternative_name().ok()??.value.general_names.iter();
        let serves = chain.get(1) == Some(&self.certificate)
            && parsed.verify_signature(Some(ca.public_key())).is_ok()
            && parsed.public_key().subject_public_key.data.as_ref() == key_pair.public_key_raw()
            && found.map(same_name).eq(names.iter().map(|name| Some(name.clone())))
            && now + signed(SERVER_RENEWED_BEFORE) < not_after;
        let key = pem::private_key(key).ok()?;
        serves.then_some(ServerCertificate { chain, key, not_after, is_new: false })
    }

    /// Signs the key in a certificate signing request for an agent. Nothing else in the request counts: name, purposes
    /// and life are ours to say. The life is cut to [`AGENT_LIFETIME_MAX`].
    ///
    /// # Errors
    /// [`PkiError::Request`] when the request is no PKCS #10 in PEM, is too large, has a key of another kind than
    /// ECDSA or Ed25519, or is not signed by that key: then whoever sent it does not have it.
    pub fn sign_agent(
        &self,
        name: &AgentName,
        request_pem: &str,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<AgentCertificate, PkiError> {
        let key = requested_key(request_pem)?;
        let not_after = self.end(now, lifetime.min(AGENT_LIFETIME_MAX));
        let mut params = leaf_params(name.as_str(), now, not_after);
        let uri = format!("{SPIFFE_PREFIX}{name}");
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let serial = params.serial_number.as_ref().map(SerialNumber::to_bytes).unwrap_or_default();
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(AgentCertificate {
            chain_pem: certificate.pem() + &self.certificate_pem,
            serial: hex::encode(serial),
            not_after,
        })
    }

    fn end(&self, now: Timestamp, lifetime: Duration) -> Timestamp {
        // Certificates count whole seconds.
        let end = Timestamp::from_second((now + signed(lifetime)).as_second())
            .expect("only a fraction was cut off");
        end.min(self.not_after)
    }
}

fn broken(folder: &Path, reason: String) -> PkiError {
    PkiError::Authority { folder: folder.to_owned(), reason }
}

fn read_if_there(path: &Path) -> Result<Option<String>, PkiError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PkiError::io("reading a file of the authority", path)(error)),
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).expect("the lives of certificates are far below 292 years")
}

/// The moment as the certificate library counts it.
fn set_validity(params: &mut CertificateParams, from: Timestamp, to: Timestamp) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since_epoch = |time: Timestamp| Duration::from_secs(u64::try_from(time.as_second()).unwrap_or(0));
    params.not_before = epoch + since_epoch(from);
    params.not_after = epoch + since_epoch(to);
}

fn ca_params(now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Holdfast certificate authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(random_serial());
    set_validity(&mut params, now - signed(CLOCK_SKEW), now + signed(CA_LIFETIME));
    params
}

fn leaf_params(common_name: &str, now: Timestamp, not_after: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String(common_name.to_owned()));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(random_serial());
    set_validity(&mut params, now - signed(CLOCK_SKEW), not_after);
    params
}

/// 127 random bits: positive, and of the same length always.
fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn server_name(name: &str) -> Result<SanType, PkiError> {
    let invalid = || PkiError::ServerName(name.chars().take(255).collect());
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    // What TLS clients will not take for a name must not be promised.
    rustls::pki_types::DnsName::try_from(name).map_err(|_| invalid())?;
    Ok(SanType::DnsName(name.try_into().map_err(|_| invalid())?))
}

fn same_name(found: &GeneralName<'_>) -> Option<SanType> {
    match found {
        GeneralName::DNSName(name) => Some(SanType::DnsName((*name).try_into().ok()?)),
        GeneralName::IPAddress(bytes) => {
            let address = match <[u8; 4]>::try_from(*bytes) {
                Ok(four) => IpAddr::from(four),
                Err(_) => IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?),
            };
            Some(SanType::IpAddress(address))
        }
        _ => None,
    }
}

/// The key of a request, once the request has proven that its sender has it.
fn requested_key(pem: &str) -> Result<SubjectPublicKeyInfo, PkiError> {
    if pem.len() > REQUEST_BYTES_MAX {
        return Err(PkiError::Request("it is too large"));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| PkiError::Request("it is not in PEM form"))?;
    let (rest, request) =
        X509CertificationRequest::from_der(&der).map_err(|_| PkiError::Request("it is no PKCS #10"))?;
    if !rest.is_empty() {
        return Err(PkiError::Request("there is something behind it"));
    }
    let key = &request.certification_request_info.subject_pki;
    if ![OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ED25519].contains(&key.algorithm.algorithm) {
        return Err(PkiError::Request("its key is neither ECDSA nor Ed25519"));
    }
    request.verify_signature().map_err(|_| PkiError::Request("it is not signed by the key in it"))?;
    SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| PkiError::Request("its key cannot be used"))
}
