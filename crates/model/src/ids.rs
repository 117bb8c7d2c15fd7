//! Typed ids and names: never mixed, validated where they are made.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest name of a source, repository, policy or agent, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// A name that is not acceptable, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} name {name:?} is not valid: {reason}")]
pub struct InvalidName {
    /// What was to be named.
    pub kind: &'static str,
    /// The offending text.
    pub name: String,
    /// Which rule it breaks.
    pub reason: &'static str,
}

/// Names are lower-case letters, digits, `-`, `_` and `.`, begin with a letter or digit, and have at most 63 bytes:
/// safe in a path, a label, a shell and a URL without quoting.
fn check_name(kind: &'static str, name: &str) -> Result<(), InvalidName> {
    let fail = |reason| Err(InvalidName { kind, name: name.chars().take(80).collect(), reason });
    if name.is_empty() {
        return fail("it is empty");
    }
    if name.len() > NAME_BYTES_MAX {
        return fail("it is longer than 63 bytes");
    }
    if !name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()) {
        return fail("it must begin with a lower-case letter or a digit");
    }
    if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
    {
        return fail("only lower-case letters, digits, '-', '_' and '.' are allowed");
    }
    Ok(())
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident, $kind:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Checks and takes a name.
            ///
            /// # Errors
            /// [`InvalidName`] says which rule the text breaks.
            pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
                let name = name.into();
                check_name($kind, &name)?;
                Ok(Self(name))
            }

            /// The text of the name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    )*};
}

names! {
    /// The name of a source.
    SourceName, "source";
    /// The name of a repository.
    RepositoryName, "repository";
    /// The name of a policy.
    PolicyName, "policy";
    /// The name of an agent; also what its certificate says.
    AgentName, "agent";
    /// The name of a hook in an agent's own configuration.
    HookName, "hook";
    /// The name of a milestone.
    MilestoneName, "milestone";
    /// The name of a channel of notifications.
    ChannelName, "channel";
    /// The name of an alert rule.
    RuleName, "rule";
    /// The name of a report that is sent by itself.
    ReportName, "report";
}

/// The source that copies of the controller's own state are snapshots of. No source of a fleet may have this name.
pub const CONTROLLER_SOURCE: &str = "holdfast-controller";

/// The id of a run: a UUID version 7, so ids sort by the time they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(uuid::Uuid);

/// The text is not a run id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a run id")]
pub struct InvalidRunId(pub String);

impl RunId {
    /// Makes the id of a run queued at this moment; `unix_millis` comes from the caller's clock.
    pub fn at(unix_millis: u64, randomness: [u8; 10]) -> Self {
        Self(uuid::Builder::from_unix_timestamp_millis(unix_millis, &randomness).into_uuid())
    }

    /// The raw 16 bytes, for keys that must sort by time.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// What lists print: the random end of the id, which differs where the beginning is a time.
    pub fn short(&self) -> String {
        let text = self.0.simple().to_string();
        text[text.len() - 8..].to_owned()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl FromStr for RunId {
    type Err = InvalidRunId;
    fn from_str(text: &str) -> Result<Self, InvalidRunId> {
        uuid::Uuid::try_parse(text).map(Self).map_err(|_| InvalidRunId(text.chars().take(80).collect()))
    }
}

/// The fenced number of a run's execution, from 1. Reports and commits of an older attempt are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub u32);

impl Attempt {
    /// The first attempt.
    pub const FIRST: Attempt = Attempt(1);

    /// The attempt after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Attempt(self.0.saturating_add(1))
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The id of a snapshot: the SHA-256 of its sealed object, as in the repository format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId(pub [u8; 32]);

/// The text is not a snapshot id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a snapshot id: 64 hexadecimal digits are")]
pub struct InvalidSnapshotId(pub String);

impl SnapshotId {
    /// The first eight hexadecimal digits, as lists print it and `restic` does.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotId({})", self.short())
    }
}

impl FromStr for SnapshotId {
    type Err = InvalidSnapshotId;
    fn from_str(text: &str) -> Result<Self, InvalidSnapshotId> {
        let mut id = [0; 32];
        hex::decode_to_slice(text, &mut id)
            .map_err(|_| InvalidSnapshotId(text.chars().take(80).collect()))?;
        Ok(Self(id))
    }
}

impl Serialize for SnapshotId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SnapshotId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_need_quoting_are_refused() {
        let long = "a".repeat(64);
        for bad in [
            "",
            "-rf",
            "--help",
            ".",
            "a b",
            "a\nb",
            "A",
            "ü",
            "a/b",
            "a\u{202e}b",
            long.as_str(),
            "..",
            "_a",
        ] {
            assert!(SourceName::new(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["pg-main", "0", "a.b_c-d", "db1"] {
            assert!(SourceName::new(good).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn run_ids_sort_by_time() {
        let early = RunId::at(1_000, [255; 10]);
        let late = RunId::at(1_001, [0; 10]);
        assert!(early < late);
        assert_eq!(late.to_string().parse(), Ok(late));
    }
}
