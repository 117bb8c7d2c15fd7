//! The agent that a certificate names.

use holdfast_model::ids::AgentName;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::PkiError;

/// What comes before an agent's name in its certificate: a SPIFFE id (<https://spiffe.io>) in our trust domain.
pub const SPIFFE_PREFIX: &str = "spiffe://holdfast/agent/";

/// An agent, as its certificate names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentIdentity {
    /// The agent.
    pub name: AgentName,
    /// The serial number of the certificate, hexadecimal.
    pub serial: String,
    /// When the certificate ends.
    pub not_after: Timestamp,
}

impl AgentIdentity {
    /// Reads the identity from a certificate whose chain TLS has verified. This looks at names and purposes only.
    ///
    /// # Errors
    /// [`PkiError::NoIdentity`] unless the certificate is for clients alone, is no CA, and has exactly one name: that
    /// of an agent.
    pub fn of(verified: &CertificateDer<'_>) -> Result<Self, PkiError> {
        let (rest, certificate) =
            X509Certificate::from_der(verified).map_err(|_| PkiError::NoIdentity("it cannot be read"))?;
        if !rest.is_empty() {
            return Err(PkiError::NoIdentity("there is something behind it"));
        }
        if certificate.is_ca() {
            return Err(PkiError::NoIdentity("it is that of an authority"));
        }
        let usage = certificate
            .extended_key_usage()
            .ok()
            .flatten()
            .ok_or(PkiError::NoIdentity("it has no stated purpose"))?
            .value;
        if !usage.client_auth || usage.server_auth || usage.any {
            return Err(PkiError::NoIdentity("it is not for clients alone"));
        }
        let names = certificate
            .subject_alternative_name()
            .ok()
            .flatten()
            .ok_or(PkiError::NoIdentity("it has no name"))?
            .value;
        let [GeneralName::URI(uri)] = names.general_names[..] else {
            return Err(PkiError::NoIdentity("it does not have exactly one name of the right kind"));
        };
        let name = uri
            .strip_prefix(SPIFFE_PREFIX)
            .and_then(|name| AgentName::new(name).ok())
            .ok_or(PkiError::NoIdentity("its name is not that of an agent"))?;
        let not_after = Timestamp::from_second(certificate.validity().not_after.timestamp())
            .map_err(|_| PkiError::NoIdentity("its end is out of range"))?;
        Ok(Self { name, serial: hex::encode(certificate.raw_serial()), not_after })
    }

    /// The same, for a call in which the agent is named besides.
    ///
    /// # Errors
    /// [`PkiError::OtherAgent`] when the certificate names another.
    pub fn must_be(self, expected: &AgentName) -> Result<Self, PkiError> {
        if self.name == *expected {
            return Ok(self);
        }
        Err(PkiError::OtherAgent { expected: expected.clone(), found: self.name })
    }
}
