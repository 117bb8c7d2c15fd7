//! Secrets that the controller itself needs: passwords of repositories, credentials of storages.

use holdfast_model::secret::{Secret, SecretRef};
use holdfast_model::{ErrorCode, Failure};

/// Resolves references in the environment and files of this process.
#[derive(Debug, Clone)]
pub struct Secrets;

impl Secrets {
    /// Secrets of this process.
    pub fn from_process() -> Self {
        Self
    }

    /// The secret behind a reference.
    ///
    /// # Errors
    /// `HF-1006` names the reference, never the secret.
    pub async fn resolve(&self, reference: &SecretRef) -> Result<Secret, Failure> {
        let failed = |why: String| Failure::new(ErrorCode::SecretUnresolvable, format!("{reference}: {why}"));
        match reference {
            SecretRef::File(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
                Ok(Secret::new(text.strip_suffix('\n').unwrap_or(&text)))
            }
            SecretRef::Env(name) => {
                std::env::var(name).map(Secret::new).map_err(|error| failed(error.to_string()))
            }
            _ => Err(failed("not supported".to_owned())),
        }
    }
}
