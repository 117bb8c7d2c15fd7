//! Snapshot objects: one recoverable state of one source.

use serde::{Deserialize, Serialize};

use crate::id::{BlobId, SnapshotId};

/// One recoverable state, as stored. What of other clients is not named here is passed over when read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotObject {
    /// The moment it shows, RFC 3339.
    pub time: String,
    /// The snapshot that it was compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SnapshotId>,
    /// The tree at its root.
    pub tree: BlobId,
    /// What was backed up; snapshots of one source share it.
    #[serde(default, deserialize_with = "list_or_null")]
    pub paths: Vec<String>,
    /// Where; snapshots of one source share it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// Who made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// Who made it, as a number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub uid: u32,
    /// The group of who made it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gid: u32,
    /// Words to find it by.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "list_or_null")]
    pub tags: Vec<String>,
    /// The snapshot whose description was changed to make this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<SnapshotId>,
    /// Which program made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub program_version: String,
    /// What the backup did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<SnapshotSummary>,
}

/// What a backup did, with the field names of newer clients.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotSummary {
    /// When it began, RFC 3339.
    pub backup_start: String,
    /// When it ended, RFC 3339.
    pub backup_end: String,
    /// Files that the parent does not have.
    pub files_new: u64,
    /// Files that the parent has in another state.
    pub files_changed: u64,
    /// Files that were not read, or had the same content.
    pub files_unmodified: u64,
    /// Folders that the parent does not have.
    pub dirs_new: u64,
    /// Folders that the parent has in another state.
    pub dirs_changed: u64,
    /// Folders as the parent has them.
    pub dirs_unmodified: u64,
    /// Data blobs added.
    pub data_blobs: u64,
    /// Tree blobs added.
    pub tree_blobs: u64,
    /// Bytes added, before compression.
    pub data_added: u64,
    /// Bytes added, as stored.
    pub data_added_packed: u64,
    /// Files of the snapshot.
    pub total_files_processed: u64,
    /// Bytes of the snapshot.
    pub total_bytes_processed: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// An empty list of the Go encoder is `null`.
fn list_or_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_of_other_clients_are_read() {
        let json = r#"{"time":"2026-11-21T08:21:41.1+01:00","tree":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "paths":null,"hostname":"vm","uid":1000,"excludes":["*.tmp"],"tags":null,"later":{"x":1},
            "summary":{"backup_start":"a","files_new":7,"later":true}}"#;
        let snapshot: SnapshotObject = serde_json::from_str(json).unwrap();
        assert_eq!((snapshot.hostname.as_str(), snapshot.uid, snapshot.paths.len()), ("vm", 1000, 0));
        assert_eq!(snapshot.summary.unwrap().files_new, 7);
    }

    #[test]
    fn what_is_empty_is_left_out() {
        let snapshot = SnapshotObject {
            time: "2026-11-21T08:21:41Z".into(),
            parent: None,
            tree: BlobId::of(b""),
            paths: vec!["/srv".into()],
            hostname: "db1".into(),
            username: String::new(),
            uid: 0,
            gid: 0,
            tags: Vec::new(),
            original: None,
            program_version: String::new(),
            summary: None,
        };
        let json = serde_json::to_string(&snapshot).unwrap();
        assert_eq!(
            json,
            format!(
                r#"{{"time":"2026-11-21T08:21:41Z","tree":"{}","paths":["/srv"],"hostname":"db1"}}"#,
                BlobId::of(b"")
            )
        );
        assert_eq!(serde_json::from_str::<SnapshotObject>(&json).unwrap(), snapshot);
    }
}
