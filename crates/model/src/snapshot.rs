//! What the catalog knows about one snapshot. A cache: all of it can be read from the repository again.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::data_watch::Anomaly;
use crate::ids::{AgentName, MilestoneName, RepositoryName, RunId, SnapshotId, SourceName};
use crate::manifest::Manifest;
use crate::run::SnapshotType;
use crate::source::EngineKind;

/// One snapshot in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Its id.
    pub id: SnapshotId,
    /// Where it is.
    pub repository: RepositoryName,
    /// Whose it is; none when another program wrote it.
    pub source: Option<SourceName>,
    /// Which agent wrote it.
    pub agent: Option<AgentName>,
    /// The engine, from the manifest.
    pub engine: Option<EngineKind>,
    /// What was re-read.
    pub snapshot_type: Option<SnapshotType>,
    /// Its name, when it is a milestone.
    pub milestone: Option<MilestoneName>,
    /// When it was committed, by the controller's clock; of a copy, when the snapshot was that it is a copy of.
    pub committed_at: Timestamp,
    /// When it was entered into the catalog, so that all packs that it needs were there; missing in old records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entered_at: Option<Timestamp>,
    /// The run that made it, or the snapshot that it is a copy of.
    pub run: Option<RunId>,
    /// The snapshot that it is a copy of, which may be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<SnapshotId>,
    /// The root of its tree, in hexadecimal digits.
    pub tree: String,
    /// Paths that the snapshot object names.
    pub paths: Vec<String>,
    /// Host that the snapshot object names.
    pub hostname: String,
    /// What the engine knew at capture; none when another program wrote it.
    pub manifest: Option<Manifest>,
    /// Bytes of its files.
    pub logical_bytes: u64,
    /// Files in it.
    pub files: u64,
    /// Bytes that it added to the repository, compressed.
    pub stored_bytes: u64,
    /// How long the run took, in milliseconds.
    pub duration_millis: u64,
    /// Items that could not be read; more than none makes it partial.
    pub unreadable: u64,
    /// What is proven of it.
    pub proof: Proof,
    /// What looks wrong about it beside the snapshot before, the worst first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub anomalies: Vec<Anomaly>,
}

impl SnapshotRecord {
    /// What it shares with all its copies: the id of the first of them.
    pub fn origin(&self) -> SnapshotId {
        self.original.unwrap_or(self.id)
    }

    /// The moment that it shows: that of the capture, or, when another program wrote it, that of its commit.
    pub fn captured_at(&self) -> Timestamp {
        self.manifest.as_ref().map_or(self.committed_at, |manifest| manifest.captured_at)
    }
}

/// What is proven of a snapshot; each level has its time, and none stands for another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Proof {
    /// The structure of the repository was checked with it.
    pub checked_at: Option<Timestamp>,
    /// Every byte was read and opened.
    pub read_at: Option<Timestamp>,
    /// It was restored, and rows or files agreed with the manifest.
    pub restored_at: Option<Timestamp>,
    /// How long that restore took, in milliseconds.
    pub restore_millis: Option<u64>,
    /// What was found damaged; a later check or a heal takes it back, nothing else.
    pub damage: Option<String>,
}

impl Proof {
    /// The highest level, as a word: `damaged`, `restored`, `read`, `checked` or `uploaded`.
    pub fn level(&self) -> &'static str {
        if self.damage.is_some() {
            "damaged"
        } else if self.restored_at.is_some() {
            "restored"
        } else if self.read_at.is_some() {
            "read"
        } else if self.checked_at.is_some() {
            "checked"
        } else {
            "uploaded"
        }
    }
}

/// A refusal to remove a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Which snapshot.
    pub snapshot: SnapshotId,
    /// In which repository.
    pub repository: RepositoryName,
    /// Why.
    pub reason: String,
    /// Who placed it.
    pub by: String,
    /// When.
    pub at: Timestamp,
}
