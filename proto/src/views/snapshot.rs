//! Snapshots.

use std::collections::BTreeMap;

use holdfast_model::manifest::Manifest;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{filled, moment, seconds};
use crate::v1;

/// One snapshot.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct SnapshotView {
    /// Its id.
    pub id: String,
    /// Where it is.
    pub repository: String,
    /// Whose it is; none when another program wrote it.
    pub source: Option<String>,
    /// Which agent wrote it.
    pub agent: Option<String>,
    /// The engine.
    pub engine: Option<String>,
    /// full, incremental, differential or snapshot.
    pub snapshot_type: Option<String>,
    /// Its name, when it is a milestone.
    pub milestone: Option<String>,
    /// The moment that it shows.
    pub captured_at: Option<Timestamp>,
    /// When it was committed.
    pub committed_at: Option<Timestamp>,
    /// The run that made it.
    pub run_id: Option<String>,
    /// Size of its files.
    pub logical_bytes: u64,
    /// What it added to the repository.
    pub stored_bytes: u64,
    /// Its files.
    pub files: u64,
    /// Its rows.
    pub rows: u64,
    /// Its tables.
    pub tables: u64,
    /// How long the run took.
    pub duration_seconds: f64,
    /// Items that could not be read.
    pub unreadable: u64,
    /// damaged, restored, read, checked or uploaded.
    pub proof: String,
    /// When that was proven.
    pub proven_at: Option<Timestamp>,
    /// When its structure was checked.
    pub checked_at: Option<Timestamp>,
    /// Since when every byte of it was read and opened, in whichever pieces.
    pub read_at: Option<Timestamp>,
    /// When it was restored and agreed with its manifest.
    pub restored_at: Option<Timestamp>,
    /// What is damaged.
    pub damage: Option<String>,
    /// What looks wrong about it beside the snapshot before, the worst first.
    pub anomalies: Vec<AnomalyView>,
    /// Why it is held.
    pub held_because: Option<String>,
    /// Root of its tree.
    pub tree_id: String,
    /// Host that it names.
    pub hostname: String,
    /// Paths that it names.
    pub paths: Vec<String>,
    /// The snapshot that it is a copy of, which may be gone.
    pub copy_of: Option<String>,
    /// What the engine knew at capture; only where one snapshot is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<BTreeMap<String, Value>>")]
    pub manifest: Option<Manifest>,
    /// The same snapshot in every repository that has it, the first of them first; only where one snapshot is shown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<CopyView>,
}

impl From<v1::Snapshot> for SnapshotView {
    fn from(snapshot: v1::Snapshot) -> Self {
        Self {
            id: snapshot.id,
            repository: snapshot.repository,
            copy_of: filled(snapshot.copy_of),
            source: filled(snapshot.source),
            agent: filled(snapshot.agent),
            engine: filled(snapshot.engine),
            snapshot_type: filled(snapshot.snapshot_type),
            milestone: filled(snapshot.milestone),
            captured_at: moment(snapshot.captured_at),
            committed_at: moment(snapshot.committed_at),
            run_id: filled(snapshot.run_id),
            logical_bytes: snapshot.logical_bytes,
            stored_bytes: snapshot.stored_bytes,
            files: snapshot.files,
            rows: snapshot.rows,
            tables: snapshot.tables,
            duration_seconds: seconds(snapshot.duration_millis),
            unreadable: snapshot.unreadable,
            proof: snapshot.proof,
            proven_at: moment(snapshot.proven_at),
            checked_at: moment(snapshot.checked_at),
            read_at: moment(snapshot.read_at),
            restored_at: moment(snapshot.restored_at),
            damage: filled(snapshot.damage),
            anomalies: snapshot.anomalies.into_iter().map(AnomalyView::from).collect(),
            held_because: filled(snapshot.held_because),
            tree_id: snapshot.tree_id,
            hostname: snapshot.hostname,
            paths: snapshot.paths,
            manifest: None,
            copies: Vec::new(),
        }
    }
}

impl SnapshotView {
    /// The moment that it shows, or else when it was committed.
    pub fn moment(&self) -> Option<Timestamp> {
        self.captured_at.or(self.committed_at)
    }
}

/// A snapshot in one of the repositories that have it.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct CopyView {
    /// The repository.
    pub repository: String,
    /// Its id there.
    pub id: String,
    /// damaged, restored, read, checked or uploaded.
    pub proof: String,
    /// When that was proven.
    pub proven_at: Option<Timestamp>,
    /// What is damaged.
    pub damage: Option<String>,
    /// Why it is held there.
    pub held_because: Option<String>,
}

impl From<v1::Snapshot> for CopyView {
    fn from(snapshot: v1::Snapshot) -> Self {
        Self {
            repository: snapshot.repository,
            id: snapshot.id,
            proof: snapshot.proof,
            proven_at: moment(snapshot.proven_at),
            damage: filled(snapshot.damage),
            held_because: filled(snapshot.held_because),
        }
    }
}

/// Something that looks wrong about the data.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct AnomalyView {
    /// warning or critical.
    pub severity: String,
    /// rows, table_gone, size or rewrite.
    pub kind: String,
    /// What it is, in words.
    pub message: String,
}

impl From<v1::Anomaly> for AnomalyView {
    fn from(anomaly: v1::Anomaly) -> Self {
        Self { severity: anomaly.severity, kind: anomaly.kind, message: anomaly.message }
    }
}
