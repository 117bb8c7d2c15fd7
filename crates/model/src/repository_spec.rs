//! Repositories as declared in the fleet files: where they lie and which key opens them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::secret::SecretRef;
use crate::units::{Percent, Span};

/// One repository. Its name is its key in the fleet files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RepositorySpec {
    /// `file:///absolute/path` or `s3://bucket/prefix`.
    pub url: String,
    /// Region of the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Address of an S3-compatible server, when it is not the region's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Credentials of the storage; only the controller resolves them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<StorageCredentials>,
    /// How it is encrypted.
    pub encryption: Encryption,
    /// zstd level of new blobs, 1 to 19.
    #[serde(default = "default_level")]
    pub compression_level: u8,
    /// When and how what no snapshot needs any more is removed.
    #[serde(default)]
    pub prune: PruneSettings,
}

impl RepositorySpec {
    /// Every secret that it refers to.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretRef> {
        let credentials = self.credentials.iter().flat_map(|found| [&found.access_key, &found.secret_key]);
        std::iter::once(&self.encryption.key).chain(credentials)
    }
}

/// When and how a repository is pruned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PruneSettings {
    /// How often, when there may be something to gain.
    pub every: Span,
    /// A pack of which more than this share is not needed is repacked.
    pub max_unused: Percent,
    /// How long packs stay in the trash.
    pub grace: Span,
    /// A prune that would free more than this share of the packs' bytes waits for a person.
    pub approve_above: Percent,
}

impl Default for PruneSettings {
    fn default() -> Self {
        Self {
            every: Span::from_days(1),
            max_unused: Percent::new(5),
            grace: Span::from_days(1),
            approve_above: Percent::new(30),
        }
    }
}

fn default_level() -> u8 {
    3
}

/// Credentials of a storage, by reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StorageCredentials {
    /// The access key.
    pub access_key: SecretRef,
    /// The secret key.
    pub secret_key: SecretRef,
}

/// How a repository is encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Encryption {
    /// The password that opens the repository's key; the same that `restic` asks for.
    pub key: SecretRef,
}
