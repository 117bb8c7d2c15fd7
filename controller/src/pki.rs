//! Who is who: the controller's certificate authority, the identities in its certificates, and tokens.
//!
//! * [`authority`]: the CA, made at the first start; the server's certificate; certificates of agents;
//! * [`identity`]: the agent that a verified certificate names;
//! * [`token`]: one-use enrolment tokens and bearer tokens of operators.
//!
//! Which certificates of an agent are let in is a record of the agent (`crate::agents`): the serial numbers that were
//! issued to it and not revoked. A deny list would let in what it never heard of.

pub mod authority;
pub mod identity;
pub mod token;

use std::io;
use std::path::PathBuf;

use holdfast_model::ErrorCode;
use holdfast_model::ids::AgentName;
use holdfast_runtime::tls::TlsError;

pub use authority::{AgentCertificate, Authority, ServerCertificate};
pub use identity::AgentIdentity;

/// What can go wrong with certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file of the authority could not be read or written.
    #[error("{what} failed at {}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Key and certificate of the authority do not belong together, or one of them is missing or unreadable.
    #[error("the certificate authority in {} cannot be used: {reason}", folder.display())]
    Authority {
        /// Where it is.
        folder: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A configured name is neither a host name nor an address.
    #[error("{0:?} cannot be in a server certificate: it is neither a host name nor an address")]
    ServerName(String),
    /// The certificate signing request is not acceptable.
    #[error("the certificate signing request is not acceptable: {0}")]
    Request(&'static str),
    /// A certificate could not be made.
    #[error("the certificate could not be made")]
    Signing(#[from] rcgen::Error),
    /// A certificate, verified by its chain, names no agent.
    #[error("the certificate names no agent: {0}")]
    NoIdentity(&'static str),
    /// A certificate names another agent than the one that was expected.
    #[error("the certificate is that of agent {found}, not of {expected}")]
    OtherAgent {
        /// Who was expected.
        expected: AgentName,
        /// Whom the certificate names.
        found: AgentName,
    },
    /// The TLS library refuses what was made.
    #[error("the TLS library refuses a certificate of the authority")]
    Tls(#[from] TlsError),
}

impl PkiError {
    /// Its stable code.
    pub fn code(&self) -> ErrorCode {
        match self {
            PkiError::Io { .. } => ErrorCode::StateUnavailable,
            PkiError::Authority { .. } => ErrorCode::StateDamaged,
            PkiError::ServerName(_) => ErrorCode::FileInvalid,
            PkiError::Request(_) | PkiError::NoIdentity(_) | PkiError::OtherAgent { .. } => {
                ErrorCode::CertificateRejected
            }
            PkiError::Signing(_) | PkiError::Tls(_) => ErrorCode::Internal,
        }
    }

    fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| PkiError::Io { what, path, source }
    }
}

#[cfg(test)]
mod tests;
