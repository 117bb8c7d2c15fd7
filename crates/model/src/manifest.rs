//! The manifest: what the engine knew at capture, kept in the snapshot's tree as `/.holdfast/manifest.json`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::source::EngineKind;

/// Where the manifest lies in the tree of a snapshot.
pub const MANIFEST_PATH: &str = ".holdfast/manifest.json";

/// What the engine knew at capture, taken in the same consistent view as the data.
///
/// It outlives our API inside repositories: fields are added, never renamed or removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always 1 so far.
    pub version: u32,
    /// Which engine captured it.
    pub engine: EngineKind,
    /// Version of the server or library, as it reports itself.
    pub engine_version: String,
    /// Versions of the tools used, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tools: BTreeMap<String, String>,
    /// The moment that the captured view shows.
    pub captured_at: Timestamp,
    /// Position in the log at the capture (an LSN, …), if the engine has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_position: Option<String>,
    /// Identity of the server (PostgreSQL: its system identifier), to tell two servers apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_id: Option<String>,
    /// The databases in it; a SQLite file is one database, a file tree has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<DatabaseManifest>,
    /// Totals of a file tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FilesManifest>,
    /// Size of the source in bytes as the engine measures it.
    pub logical_bytes: u64,
    /// Items that could not be read; a capture with any is partial.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<UnreadableItem>,
    /// How many items could not be read; `unreadable` names at most [`UNREADABLE_NAMED_MAX`] of them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unreadable_count: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// How many unreadable items a manifest names.
pub const UNREADABLE_NAMED_MAX: usize = 1000;

/// One database of a capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseManifest {
    /// Its name, as the server gives it.
    pub name: String,
    /// Path of its dump or file in the tree of the snapshot.
    pub path: String,
    /// Tables with their exact row counts, by qualified name.
    pub tables: BTreeMap<String, TableManifest>,
    /// SHA-256 of the normalised definition of the schema.
    pub schema_hash: String,
    /// Extensions with their versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extensions: BTreeMap<String, String>,
    /// Last values of sequences, by qualified name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sequences: BTreeMap<String, Option<i64>>,
    /// How many large objects there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub large_objects: u64,
    /// Roles that own something or are granted something in it; they must exist where it is restored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// Encoding of the database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// Settings that belong to the database itself, such as SQLite's `page_size` and `user_version`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
    /// Size in bytes as the engine measures it.
    pub logical_bytes: u64,
}

impl DatabaseManifest {
    /// Rows of all tables.
    pub fn rows(&self) -> u64 {
        self.tables.values().map(|table| table.rows).sum()
    }
}

/// One table of a capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableManifest {
    /// Exact number of rows in the captured view.
    pub rows: u64,
}

/// Totals of a file tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesManifest {
    /// The paths that were captured, absolute, as the definition of the source gave them then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Regular files, hard links counted each.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links, devices, sockets, pipes.
    pub others: u64,
    /// Bytes of the regular files.
    pub bytes: u64,
}

/// One item that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableItem {
    /// Its path, lossily decoded.
    pub path: String,
    /// Why.
    pub reason: String,
}

impl Manifest {
    /// Rows of all tables of all databases.
    pub fn rows(&self) -> u64 {
        self.databases.iter().map(DatabaseManifest::rows).sum()
    }

    /// Tables of all databases.
    pub fn tables(&self) -> usize {
        self.databases.iter().map(|database| database.tables.len()).sum()
    }
}
