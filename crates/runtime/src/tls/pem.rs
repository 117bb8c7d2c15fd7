//! Keys and certificates as text, and what identifies them.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::TlsError;

/// Every certificate of a PEM text, in its order; at least one.
///
/// # Errors
/// [`TlsError::Pem`] when there is none, or one is damaged.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let what = "certificate";
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem { what, source })?;
    if chain.is_empty() {
        return Err(TlsError::Pem { what, source: rustls::pki_types::pem::Error::NoItemsFound });
    }
    Ok(chain)
}

/// The first private key of a PEM text (PKCS #8, SEC 1 or PKCS #1).
///
/// # Errors
/// [`TlsError::Pem`] when there is none, or it is damaged.
pub fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|source| TlsError::Pem { what: "private key", source })
}

/// A certificate as PEM text.
pub fn certificate_to_pem(certificate: &CertificateDer<'_>) -> String {
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    // RFC 7468: 64 characters a line, which are 48 bytes.
    for line in certificate.as_ref().chunks(48) {
        STANDARD.encode_string(line, &mut text);
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// What an operator hands to an agent so that it knows the right CA: the SHA-256 of the CA's public key
/// (SubjectPublicKeyInfo), written `sha256:HEX`. It survives a renewal of the CA certificate with the same key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CaPin([u8; 32]);

impl CaPin {
    /// The pin of this CA certificate.
    ///
    /// # Errors
    /// [`TlsError::Certificate`] when the bytes are no certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let (_, parsed) = X509Certificate::from_der(certificate.as_ref())
            .map_err(|error| TlsError::Certificate(error.to_string()))?;
        Ok(Self(Sha256::digest(parsed.public_key().raw).into()))
    }
}

impl fmt::Display for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for CaPin {
    type Err = TlsError;

    fn from_str(text: &str) -> Result<Self, TlsError> {
        let invalid = || TlsError::Pin(text.chars().take(80).collect());
        let mut hash = [0; 32];
        let digits = text.strip_prefix("sha256:").ok_or_else(invalid)?;
        hex::decode_to_slice(digits, &mut hash).map_err(|_| invalid())?;
        Ok(Self(hash))
    }
}
