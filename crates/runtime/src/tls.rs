//! TLS as Holdfast speaks it: version 1.3 only, one cryptographic provider, a CA of our own.
//!
//! * [`pem`]: keys and certificates as text, their fingerprints, and [`CaPin`];
//! * [`server`]: the server's configuration, with a certificate that can be exchanged while it runs;
//! * [`client`]: trust in one CA, known by certificate or, before enrolment, by pin;
//! * [`accept`]: the accept loop, with limits;
//! * [`connect`]: the dialling side.

pub mod accept;
pub mod client;
pub mod connect;
pub mod pem;
pub mod server;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use accept::{
    AcceptLimits, Accepted, ConnectionInfo, PlainConnection, TlsConnection, accept_plain, accept_tls,
};
pub use client::{PinMismatch, client_config, client_config_by_pin, is_pin_mismatch};
pub use connect::connect_tls;
pub use pem::CaPin;
pub use server::{ServerIdentity, server_config};

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The text holds no such thing in PEM form.
    #[error("no valid {what} in PEM form")]
    Pem {
        /// What was looked for.
        what: &'static str,
        /// What is wrong, when it was there.
        source: rustls::pki_types::pem::Error,
    },
    /// The bytes are no X.509 certificate.
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    /// The text is not a CA pin.
    #[error("{0:?} is not a CA pin: sha256: and 64 hexadecimal digits are")]
    Pin(String),
    /// Key and certificate do not fit together, or the library refuses them.
    #[error("the TLS configuration is not valid")]
    Config(#[from] rustls::Error),
    /// The CA certificate cannot serve to verify others.
    #[error("the CA certificate cannot be used to verify others")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    /// The text is no name or address of a server.
    #[error("{0:?} is not a name or address of a server")]
    ServerName(String),
}

/// Makes ring the process's cryptographic provider, for libraries that ask for the default. May be called often.
pub fn install_crypto_provider() {
    // An error says that somebody installed one before: then that is the one, and ours is the only one linked.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())).clone()
}

#[cfg(test)]
mod tests;
