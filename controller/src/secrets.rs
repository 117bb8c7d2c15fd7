//! Secrets that the controller itself needs: passwords of repositories, credentials of storages.

use holdfast_host::SecretResolver as _;
use holdfast_host::secrets::LocalSecretResolver;
use holdfast_model::Failure;
use holdfast_model::secret::{Secret, SecretRef};

/// Resolves references on the controller's host, where they are used.
#[derive(Debug, Clone)]
pub struct Secrets {
    resolver: LocalSecretResolver,
}

impl Secrets {
    /// Secrets of this process: its environment, its files, its commands, its systemd credentials.
    pub fn from_process() -> Self {
        Self { resolver: LocalSecretResolver::from_process() }
    }

    /// The secret behind a reference.
    ///
    /// # Errors
    /// `HF-1006` names the reference, never the secret.
    pub async fn resolve(&self, reference: &SecretRef) -> Result<Secret, Failure> {
        self.resolver.resolve(reference).await.map_err(Failure::from)
    }
}
