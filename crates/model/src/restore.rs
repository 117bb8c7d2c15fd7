//! Restores: where to, what a plan says, what was done.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a restore puts the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Beside the original, under a new name made from the snapshot's id: touches nothing that exists.
    Beside,
    /// Under this new name (a database) or path (a SQLite file, a tree); it must not exist, or be an empty folder.
    Into(String),
    /// In the place of the original: restored aside first, checked, then swapped by rename; the old is kept.
    InPlace,
    /// In the place of the original, where only what differs is restored; what was there in its stead is kept. For
    /// file trees.
    InPlaceDelta,
}

impl Placement {
    /// Whether live data makes way.
    pub fn is_in_place(&self) -> bool {
        matches!(self, Placement::InPlace | Placement::InPlaceDelta)
    }
}

/// One database, file or tree that a restore made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredTarget {
    /// What of the snapshot it is: a database name, or a path of the source.
    pub part: String,
    /// Where it was restored to: a database name, or an absolute path.
    pub restored: String,
    /// What it would replace, or has replaced, when promoted: a database name, or an absolute path.
    pub live: String,
    /// Under which name the former content of `live` is kept, once promoted and until discarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
}

/// How one check of a plan or of a finished restore came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckOutcome {
    /// As it should be.
    Ok,
    /// Worth a look; does not stop the restore.
    Warning,
    /// Stops the restore.
    Failed,
    /// Could not be found out.
    Unknown,
}

/// One check with its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreCheck {
    /// What was looked at, one or two words: `space`, `version`, `rows`.
    pub name: String,
    /// How it came out.
    pub outcome: CheckOutcome,
    /// The particulars, such as `needs 118 MiB, 402 GiB free`.
    pub detail: String,
}

/// What a restore would do, found out without touching anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePreview {
    /// The steps in order, each one line.
    pub steps: Vec<String>,
    /// Space, versions, roles, permissions.
    pub checks: Vec<RestoreCheck>,
    /// What would come to be.
    pub targets: Vec<RestoredTarget>,
    /// Bytes that the restored data takes.
    pub bytes_needed: u64,
    /// Bytes free where it would go, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_free: Option<u64>,
    /// Whether something that exists would be replaced.
    pub replaces: bool,
}

/// What a restore did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// What came to be.
    pub targets: Vec<RestoredTarget>,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes of an existing target that matched already and were left alone.
    #[serde(default)]
    pub bytes_unchanged: u64,
    /// Files written, or databases.
    pub items: u64,
    /// Rows counted after the restore, if the engine counts any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Rows that the manifest promises for what was restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_expected: Option<u64>,
    /// What was checked after the restore.
    pub checks: Vec<RestoreCheck>,
}
