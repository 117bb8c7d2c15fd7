//! The client's side of TLS: one CA is trusted, and no other.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
};

use super::{CaPin, TlsError, provider};

/// A client that trusts `ca` alone and shows its own certificate, if it has one.
///
/// # Errors
/// The CA certificate cannot serve as one, or key and certificate do not belong together.
pub fn client_config(
    ca: &CertificateDer<'static>,
    own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let config = match own {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    Ok(finish(config))
}

/// A client that has not enrolled yet and knows its CA by the pin alone.
///
/// The server must show the CA certificate in its chain; the chain must lead to it, and names and times are checked
/// as always.
///
/// # Errors
/// The configuration is not valid; does not happen with the linked provider.
pub fn client_config_by_pin(pin: CaPin) -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinVerifier { pin }))
        .with_no_client_auth();
    Ok(finish(config))
}

fn finish(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    // As on the server: every connection proves itself anew.
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// The server showed no CA certificate with the pinned key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server showed no CA with the pinned key {expected}; it showed {}", shown(.found))]
pub struct PinMismatch {
    /// The pin that was configured.
    pub expected: CaPin,
    /// The pins of what the server showed beside its own certificate.
    pub found: Vec<CaPin>,
}

fn shown(found: &[CaPin]) -> String {
    if found.is_empty() {
        return "none".to_owned();
    }
    found.iter().map(CaPin::to_string).collect::<Vec<_>>().join(", ")
}

/// Finds a [`PinMismatch`] anywhere among the causes of an error.
pub fn is_pin_mismatch<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a PinMismatch> {
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(mismatch) = current.downcast_ref::<PinMismatch>() {
            return Some(mismatch);
        }
        let wrapped = match current.downcast_ref::<rustls::Error>() {
            Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) => {
                other.0.downcast_ref::<PinMismatch>()
            }
            _ => None,
        };
        if wrapped.is_some() {
            return wrapped;
        }
        // An `io::Error` gives the source of what it wraps, not what it wraps.
        next = match current.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => current.source(),
        };
    }
    None
}

#[derive(Debug)]
struct PinVerifier {
    pin: CaPin,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pins: Vec<Option<CaPin>> = intermediates.iter().map(|shown| CaPin::of(shown).ok()).collect();
        let Some(place) = pins.iter().position(|pin| *pin == Some(self.pin)) else {
            let found = pins.into_iter().flatten().collect();
            let mismatch = PinMismatch { expected: self.pin, found };
            return Err(CertificateError::Other(OtherError(Arc::new(mismatch))).into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(intermediates[place].clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
