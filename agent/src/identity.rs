//! Who this agent is: its key, made on this host and never sent anywhere, its certificate, and the one CA it trusts.
//!
//! All of it is one file, replaced as a whole, so that key and certificate always belong together.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use holdfast_model::ids::AgentName;
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::durable_file::{self, Access};
use holdfast_runtime::tls::{self, CaPin, TlsError, pem};
use jiff::Timestamp;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use crate::address::ControllerAddress;
use crate::disk;

/// Name of the file within the data folder.
pub const FILE_NAME: &str = "identity.json";

/// An enrolled agent. The certificate can be exchanged while connections are open.
#[derive(Debug)]
pub struct Identity {
    path: PathBuf,
    name: AgentName,
    controller: ControllerAddress,
    key_pem: Zeroizing<String>,
    ca_pem: String,
    current: ArcSwap<Current>,
}

/// What a renewal exchanges.
#[derive(Debug)]
struct Current {
    certificate_pem: String,
    validity: Validity,
    tls: Arc<ClientConfig>,
}

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Its beginning.
    pub not_before: Timestamp,
    /// Its end.
    pub not_after: Timestamp,
}

impl Validity {
    /// When two thirds of its life are over.
    pub fn renew_at(&self) -> Timestamp {
        let life = self.not_after.as_second().saturating_sub(self.not_before.as_second());
        let at = self.not_before.as_second().saturating_add(life.saturating_mul(2) / 3);
        Timestamp::from_second(at).unwrap_or(self.not_after)
    }
}

#[derive(Serialize, Deserialize)]
struct IdentityDocument {
    version: u32,
    name: AgentName,
    controller: ControllerAddress,
    #[serde(serialize_with = "write_key", deserialize_with = "read_key")]
    key_pem: Zeroizing<String>,
    certificate_pem: String,
    ca_pem: String,
}

fn write_key<S: serde::Serializer>(key: &Zeroizing<String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(key)
}

fn read_key<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Zeroizing<String>, D::Error> {
    String::deserialize(deserializer).map(Zeroizing::new)
}

impl Identity {
    /// Reads the identity of a data folder.
    ///
    /// # Errors
    /// `HF-6004` when this agent has not enrolled, `HF-5006` when the file is damaged.
    pub fn load(data_dir: &Path) -> Result<Self, Failure> {
        let path = data_dir.join(FILE_NAME);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Failure::new(
                    ErrorCode::NotAuthenticated,
                    format!("this agent has not enrolled: there is no {}", path.display()),
                )
                .then(format!(
                    "holdfast-agent enroll --controller https://HOST:PORT --name NAME --ca-pin sha256:HEX --data-dir {} --token-file FILE",
                    data_dir.display()
                )));
            }
            Err(error) => return Err(unreadable(&path).because(error.to_string())),
        };
        let document: IdentityDocument =
            serde_json::from_str(&text).map_err(|error| unreadable(&path).because(error.to_string()))?;
        Self::from_document(path, document)
    }

    /// Takes what an enrolment gave and makes it durable, replacing an older identity.
    ///
    /// # Errors
    /// `HF-6002` when the certificate is not for the key, `HF-5004` when it cannot be stored.
    pub(crate) fn establish(
        data_dir: &Path,
        name: AgentName,
        controller: ControllerAddress,
        key: &KeyPair,
        certificate_pem: String,
        ca_pem: String,
    ) -> Result<Self, Failure> {
        let key_pem = Zeroizing::new(key.serialize_pem());
        let document = IdentityDocument { version: 1, name, controller, key_pem, certificate_pem, ca_pem };
        let identity = Self::from_document(data_dir.join(FILE_NAME), document)?;
        identity.store(&identity.current.load().certificate_pem)?;
        Ok(identity)
    }

    fn from_document(path: PathBuf, document: IdentityDocument) -> Result<Self, Failure> {
        let current = Current::new(&document.key_pem, document.certificate_pem, &document.ca_pem)
            .map_err(|error| rejected("the certificate of this agent cannot be used", &error))?;
        Ok(Self {
            path,
            name: document.name,
            controller: document.controller,
            key_pem: document.key_pem,
            ca_pem: document.ca_pem,
            current: ArcSwap::from_pointee(current),
        })
    }

    /// The name this agent enrolled with.
    pub fn name(&self) -> &AgentName {
        &self.name
    }

    /// The controller it enrolled at.
    pub fn controller(&self) -> &ControllerAddress {
        &self.controller
    }

    /// TLS with the certificate of now.
    pub fn tls(&self) -> Arc<ClientConfig> {
        self.current.load().tls.clone()
    }

    /// How long the certificate of now is valid.
    pub fn validity(&self) -> Validity {
        self.current.load().validity
    }

    /// A request for a new certificate for the same key, PEM.
    ///
    /// # Errors
    /// `HF-5006` when the stored key cannot sign.
    pub fn signing_request(&self) -> Result<String, Failure> {
        KeyPair::from_pem(&self.key_pem)
            .and_then(|key| signing_request(&key))
            .map_err(|error| unreadable(&self.path).because(error.to_string()))
    }

    /// Takes a renewed certificate: durable first, then for every connection that is made from now on.
    ///
    /// # Errors
    /// `HF-6002` when it is not for this agent's key, `HF-5004` when it cannot be stored. The old one then stays.
    pub fn renew(&self, certificate_pem: String) -> Result<(), Failure> {
        let renewed = Current::new(&self.key_pem, certificate_pem, &self.ca_pem)
            .map_err(|error| rejected("the renewed certificate cannot be used", &error))?;
        self.store(&renewed.certificate_pem)?;
        self.current.store(Arc::new(renewed));
        Ok(())
    }

    fn store(&self, certificate_pem: &str) -> Result<(), Failure> {
        let document = IdentityDocument {
            version: 1,
            name: self.name.clone(),
            controller: self.controller.clone(),
            key_pem: self.key_pem.clone(),
            certificate_pem: certificate_pem.to_owned(),
            ca_pem: self.ca_pem.clone(),
        };
        let bytes =
            Zeroizing::new(serde_json::to_vec_pretty(&document).expect("texts in a map always serialise"));
        durable_file::replace(&self.path, &bytes, Access::Owner)
            .map_err(|error| disk::failure(format!("{} cannot be written", self.path.display()), &error))
    }
}

impl Current {
    fn new(key_pem: &str, certificate_pem: String, ca_pem: &str) -> Result<Self, TlsError> {
        let chain = pem::certificates(&certificate_pem)?;
        let ca = pem::certificates(ca_pem)?.remove(0);
        let validity = validity(&chain[0])?;
        // Fails when key and certificate do not belong together.
        let tls = tls::client_config(&ca, Some((chain, pem::private_key(key_pem)?)))?;
        Ok(Self { certificate_pem, validity, tls })
    }
}

/// A new key as agents use: ECDSA on P-256.
pub(crate) fn new_key() -> Result<KeyPair, Failure> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|error| Failure::new(ErrorCode::Internal, "no key could be made").because(error.to_string()))
}

/// A request for a certificate, PEM. It names nobody: the controller decides who it is for.
pub(crate) fn signing_request(key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.serialize_request(key)?.pem()
}

/// The pin of the first certificate of a PEM text.
pub(crate) fn pin_of(ca_pem: &str) -> Result<CaPin, TlsError> {
    CaPin::of(&pem::certificates(ca_pem)?[0])
}

fn validity(certificate: &CertificateDer<'_>) -> Result<Validity, TlsError> {
    let unreadable = |error: String| TlsError::Certificate(error);
    let (_, parsed) =
        X509Certificate::from_der(certificate.as_ref()).map_err(|error| unreadable(error.to_string()))?;
    let at = |time: x509_parser::time::ASN1Time| {
        Timestamp::from_second(time.timestamp()).map_err(|error| unreadable(error.to_string()))
    };
    Ok(Validity {
        not_before: at(parsed.validity().not_before)?,
        not_after: at(parsed.validity().not_after)?,
    })
}

fn unreadable(path: &Path) -> Failure {
    Failure::new(ErrorCode::AgentStateDamaged, format!("{} cannot be read", path.display()))
        .at_stake("the agent cannot prove who it is; enrolling again replaces the file")
}

fn rejected(message: &str, error: &TlsError) -> Failure {
    let mut failure = Failure::from_error(ErrorCode::CertificateRejected, error);
    failure.why.insert(0, std::mem::replace(&mut failure.message, message.to_owned()));
    failure
}

#[cfg(test)]
pub(crate) mod testing {
    use rcgen::{BasicConstraints, Certificate, IsCa, Issuer};

    use super::*;

    /// A CA as a controller has it.
    pub(crate) struct TestCa {
        pub(crate) issuer: Issuer<'static, KeyPair>,
        pub(crate) certificate: Certificate,
    }

    impl TestCa {
        pub(crate) fn new() -> Self {
            let key = new_key().unwrap();
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(rcgen::DnType::CommonName, "test CA");
            let certificate = params.self_signed(&key).unwrap();
            Self { issuer: Issuer::new(params, key), certificate }
        }

        pub(crate) fn pin(&self) -> CaPin {
            CaPin::of(self.certificate.der()).unwrap()
        }

        /// A certificate for a request, as the controller answers it.
        pub(crate) fn sign(&self, csr_pem: &str) -> String {
            let request = rcgen::CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
            request.signed_by(&self.issuer).unwrap().pem()
        }

        /// Chain and key of a server on 127.0.0.1.
        pub(crate) fn server(&self) -> tls::ServerIdentity {
            let key = new_key().unwrap();
            let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            let chain = vec![certificate.der().clone(), self.certificate.der().clone()];
            tls::ServerIdentity::new(chain, pem::private_key(&key.serialize_pem()).unwrap()).unwrap()
        }

        /// The identity of an enrolled agent.
        pub(crate) fn enroll(&self, data_dir: &Path, controller: &str) -> Identity {
            let key = new_key().unwrap();
            let certificate = self.sign(&signing_request(&key).unwrap());
            let name = AgentName::new("db1").unwrap();
            let controller = controller.parse().unwrap();
            Identity::establish(data_dir, name, controller, &key, certificate, self.certificate.pem())
                .unwrap()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::testing::TestCa;
    use super::*;

    #[test]
    fn an_identity_is_read_back_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let ca = TestCa::new();
        let made = ca.enroll(folder.path(), "https://127.0.0.1:1");
        let read = Identity::load(folder.path()).unwrap();
        assert_eq!(read.name(), made.name());
        assert_eq!(read.validity(), made.validity());
        let mode = std::fs::metadata(folder.path().join(FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_renewed_certificate_for_another_key_is_refused_and_the_old_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let ca = TestCa::new();
        let identity = ca.enroll(folder.path(), "https://127.0.0.1:1");
        let foreign = ca.sign(&signing_request(&new_key().unwrap()).unwrap());
        let before = std::fs::read(folder.path().join(FILE_NAME)).unwrap();
        assert_eq!(identity.renew(foreign).unwrap_err().code, ErrorCode::CertificateRejected);
        assert_eq!(std::fs::read(folder.path().join(FILE_NAME)).unwrap(), before);
        let own = ca.sign(&identity.signing_request().unwrap());
        identity.renew(own.clone()).unwrap();
        assert!(
            std::fs::read_to_string(folder.path().join(FILE_NAME))
                .unwrap()
                .contains(&own.replace('\n', "\\n"))
        );
    }

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_life() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let validity =
            Validity { not_before: at("2026-11-21T00:00:00Z"), not_after: at("2026-11-22T00:00:00Z") };
        assert_eq!(validity.renew_at(), at("2026-11-21T16:00:00Z"));
    }

    #[test]
    fn an_agent_that_has_not_enrolled_is_told_how() {
        let folder = tempfile::tempdir().unwrap();
        let failure = Identity::load(folder.path()).unwrap_err();
        assert_eq!(failure.code, ErrorCode::NotAuthenticated);
        assert!(failure.next[0].starts_with("holdfast-agent enroll "));
    }
}
