//! Secrets: a value that cannot be printed, and a reference that can travel.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// A secret value. It has no `Display`, its `Debug` is masked, it is never serialised, and it is wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself; the name makes every use easy to find.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// Where a secret is found. Only the reference is stored and sent; it is resolved where it is used.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SecretRef {
    /// An environment variable of the process that uses the secret.
    Env(String),
    /// A file that only its owner may read; one trailing newline is not part of the secret.
    File(PathBuf),
    /// A command (no shell) that prints the secret on its standard output within ten seconds.
    Command(Vec<String>),
    /// A systemd credential (`LoadCredential=`).
    Credential(String),
}

impl fmt::Display for SecretRef {
    /// Says where the secret is, never what it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretRef::Env(name) => write!(f, "environment variable {name}"),
            SecretRef::File(path) => write!(f, "file {}", path.display()),
            SecretRef::Command(argv) => {
                write!(f, "command {}", argv.first().map_or("(empty)", String::as_str))
            }
            SecretRef::Credential(name) => write!(f, "credential {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show_in_debug() {
        assert_eq!(format!("{:?}", Secret::new("canary")), "Secret(***)");
    }

    #[test]
    fn a_reference_reads_as_a_map_of_one() {
        let reference: SecretRef = serde_json::from_str(r#"{"file":"/etc/holdfast/pg.pass"}"#).unwrap();
        assert_eq!(reference.to_string(), "file /etc/holdfast/pg.pass");
    }
}
