//! The config: what holds for the whole repository.

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::error::RepositoryError;
use crate::format::{ObjectName, REPOSITORY_VERSION};
use crate::id::RepositoryId;
use crate::polynomial::Polynomial;

/// What holds for the whole repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Random, made at creation: two repositories never share one.
    pub id: RepositoryId,
    /// For other clients, and part of the seed of our chunker.
    pub chunker_polynomial: Polynomial,
}

#[derive(Serialize, Deserialize)]
struct ConfigJson {
    version: u64,
    id: RepositoryId,
    chunker_polynomial: String,
}

/// Reads the version alone: a newer config may lack the other fields.
#[derive(Deserialize)]
struct VersionJson {
    version: u64,
}

impl Config {
    /// A config for a new repository.
    pub fn generate() -> Self {
        let mut id = [0; 32];
        rand::rng().fill_bytes(&mut id);
        Self { id: RepositoryId::from_bytes(id), chunker_polynomial: Polynomial::random() }
    }

    /// The JSON text as stored.
    pub fn to_json(&self) -> Vec<u8> {
        let json = ConfigJson {
            version: u64::from(REPOSITORY_VERSION),
            id: self.id,
            chunker_polynomial: self.chunker_polynomial.to_string(),
        };
        serde_json::to_vec(&json).expect("numbers and strings always serialise")
    }

    /// Reads the JSON text.
    ///
    /// # Errors
    /// `HF-3004` for another version, `HF-3006` for anything that is no config.
    pub fn from_json(json: &[u8]) -> Result<Self, RepositoryError> {
        let damaged = |reason: String| RepositoryError::damaged(ObjectName::Config, reason);
        let VersionJson { version } =
            serde_json::from_slice(json).map_err(|error| damaged(format!("it is no config: {error}")))?;
        if version != u64::from(REPOSITORY_VERSION) {
            return Err(RepositoryError::Unsupported { found: version, supported: REPOSITORY_VERSION });
        }
        let config: ConfigJson =
            serde_json::from_slice(json).map_err(|error| damaged(format!("it is no config: {error}")))?;
        let chunker_polynomial = Polynomial::parse(&config.chunker_polynomial)
            .ok_or_else(|| damaged("its chunker polynomial is not irreducible of degree 53".to_owned()))?;
        Ok(Self { id: config.id, chunker_polynomial })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::ErrorCode;

    #[test]
    fn a_config_reads_back() {
        let config = Config::generate();
        assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn other_versions_are_unsupported_and_not_damaged() {
        for (json, code) in [
            (r#"{"version":1,"id":"x"}"#, ErrorCode::RepositoryUnsupported),
            (r#"{"version":3}"#, ErrorCode::RepositoryUnsupported),
            (r#"{"version":2}"#, ErrorCode::ObjectDamaged),
            (r"[]", ErrorCode::ObjectDamaged),
            ("", ErrorCode::ObjectDamaged),
        ] {
            assert_eq!(Config::from_json(json.as_bytes()).unwrap_err().code(), code, "{json}");
        }
    }
}
