//! What our processes do on the host they run on: run tools, resolve secrets, and read what only some may write.
//!
//! Both the agent beside a database and the controller beside a storage need it; neither knows the other's trade.

mod error;
pub mod guarded_file;
pub mod secrets;
pub mod tool;

use async_trait::async_trait;
use holdfast_model::secret::{Secret, SecretRef};

pub use error::HostError;

/// Resolves secret references where they are used.
#[async_trait]
pub trait SecretResolver: Send + Sync {
    /// The secret behind a reference.
    ///
    /// # Errors
    /// [`HostError`] with `HF-1006` names the reference, never the secret.
    async fn resolve(&self, reference: &SecretRef) -> Result<Secret, HostError>;
}
