//! Secrets of sources, resolved on this host, within what its own configuration allows.

use async_trait::async_trait;
use holdfast_engines::{EngineError, SecretResolver};
use holdfast_host::secrets::LocalSecretResolver;
use holdfast_model::secret::{Secret, SecretRef};

use crate::reload::InForce;

/// Refuses commands that the configuration does not list: the controller must not be able to run anything here.
#[derive(Debug, Clone)]
pub struct AllowedSecrets {
    resolver: LocalSecretResolver,
    config: InForce,
}

impl AllowedSecrets {
    /// A resolver over the environment of this process.
    pub fn new(config: InForce) -> Self {
        Self { resolver: LocalSecretResolver::from_process(), config }
    }
}

#[async_trait]
impl SecretResolver for AllowedSecrets {
    async fn resolve(&self, reference: &SecretRef) -> Result<Secret, EngineError> {
        if let SecretRef::Command(argv) = reference {
            self.config.get().allow.check_command(argv).map_err(|failure| {
                EngineError::new(failure.code, failure.message).caused_by(failure.why.join(": "))
            })?;
        }
        self.resolver.resolve(reference).await
    }
}

#[cfg(test)]
mod tests {
    use holdfast_model::ErrorCode;

    use super::*;
    use crate::config::AgentConfig;

    #[tokio::test]
    async fn a_command_that_is_not_listed_is_not_run() {
        let reference = SecretRef::Command(vec!["/bin/echo".to_owned(), "secret".to_owned()]);
        let mut config = AgentConfig::new("/nowhere");
        let secrets = |config: &AgentConfig| AllowedSecrets::new(InForce::new(config.clone()));
        let refused = secrets(&config).resolve(&reference).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::NotAllowedHere);
        config.allow.commands = vec!["/bin/echo".into()];
        assert_eq!(secrets(&config).resolve(&reference).await.unwrap().reveal(), "secret");
    }
}
