//! Snapshots and what lies in them.

use holdfast_model::manifest::Manifest;
use holdfast_proto::v1;
use jiff::Timestamp;
use serde::Serialize;

use super::{dash, filled, moment, seconds};
use crate::output::text::{count, short_snapshot, size};
use crate::output::{Column, Record, Tone};

/// One snapshot.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct SnapshotView {
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
    pub manifest: Option<Manifest>,
    /// The same snapshot in every repository that has it, the first of them first; only where one snapshot is shown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<CopyView>,
}

/// A snapshot in one of the repositories that have it.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct CopyView {
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
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AnomalyView {
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
    pub(crate) fn moment(&self) -> Option<Timestamp> {
        self.captured_at.or(self.committed_at)
    }

    /// What protects it from removal, in a word or two.
    fn protection(&self) -> String {
        match (&self.milestone, &self.held_because) {
            (Some(name), _) => format!("milestone {name}"),
            (None, Some(_)) => "held".to_owned(),
            (None, None) => "-".to_owned(),
        }
    }

    /// The proof and what is missing from it.
    pub(crate) fn proof_text(&self) -> String {
        if self.unreadable > 0 && self.damage.is_none() {
            format!("{}, {} unreadable", self.proof, count(self.unreadable))
        } else {
            self.proof.clone()
        }
    }
}

/// What a proof means.
pub(crate) fn proof_tone(proof: &str) -> Tone {
    match proof {
        "damaged" => Tone::Bad,
        "restored" | "read" => Tone::Good,
        _ => Tone::Plain,
    }
}

impl Record for SnapshotView {
    const KIND: &'static str = "Snapshot";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("SNAPSHOT", |snapshot, _| short_snapshot(&snapshot.id).to_owned()),
            Column::<Self>::left("SOURCE", |snapshot, _| dash(snapshot.source.as_deref())),
            Column::<Self>::left("CAPTURED", |snapshot, look| look.time_or(snapshot.moment(), "-")),
            Column::<Self>::left("TYPE", |snapshot, _| dash(snapshot.snapshot_type.as_deref())),
            Column::<Self>::right("SIZE", |snapshot, _| size(snapshot.logical_bytes)),
            Column::<Self>::right("ADDED", |snapshot, _| size(snapshot.stored_bytes)),
            Column::<Self>::right("ROWS", |snapshot, _| {
                if snapshot.tables > 0 { count(snapshot.rows) } else { "-".to_owned() }
            }),
            Column::<Self>::right("FILES", |snapshot, _| count(snapshot.files)).only_wide(),
            Column::<Self>::left("PROOF", |snapshot, _| snapshot.proof_text())
                .toned(|snapshot| proof_tone(&snapshot.proof)),
            Column::<Self>::left("KEPT AS", |snapshot, _| snapshot.protection()),
            Column::<Self>::left("REPOSITORY", |snapshot, _| snapshot.repository.clone()),
            Column::<Self>::left("COPY OF", |snapshot, _| {
                snapshot.copy_of.as_deref().map_or_else(|| "-".to_owned(), |id| short_snapshot(id).to_owned())
            }),
            Column::<Self>::left("AGENT", |snapshot, _| dash(snapshot.agent.as_deref())).only_wide(),
            Column::<Self>::left("ENGINE", |snapshot, _| dash(snapshot.engine.as_deref())).only_wide(),
        ]
    }

    fn name(&self) -> String {
        self.id.clone()
    }
}

/// One item of a snapshot's tree.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TreeItemView {
    /// Path in the tree.
    pub path: String,
    /// file, dir, symlink, dev, chardev, fifo or socket.
    #[serde(rename = "type")]
    pub kind: String,
    /// Size of a file.
    pub size_bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Last change of its content.
    pub modified_at: Option<Timestamp>,
}

impl From<v1::TreeItem> for TreeItemView {
    fn from(item: v1::TreeItem) -> Self {
        Self {
            path: item.path,
            kind: item.r#type,
            size_bytes: item.size_bytes,
            mode: item.mode,
            modified_at: moment(item.mtime),
        }
    }
}

impl Record for TreeItemView {
    const KIND: &'static str = "TreeItem";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("TYPE", |item, _| item.kind.clone()),
            Column::<Self>::right("MODE", |item, _| format!("{:04o}", item.mode & 0o7777)),
            Column::<Self>::right("SIZE", |item, _| {
                if item.kind == "file" { size(item.size_bytes) } else { "-".to_owned() }
            }),
            Column::<Self>::left("MODIFIED", |item, look| look.time_or(item.modified_at, "-")),
            Column::<Self>::left("PATH", |item, _| item.path.clone()),
        ]
    }

    fn name(&self) -> String {
        self.path.clone()
    }
}

/// A snapshot that is removed.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DeletionView {
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: SnapshotView,
    /// What else is lost with it.
    pub at_stake: Option<String>,
}

impl From<v1::SnapshotToForget> for DeletionView {
    fn from(forgotten: v1::SnapshotToForget) -> Self {
        Self {
            snapshot: SnapshotView::from(forgotten.snapshot.unwrap_or_default()),
            at_stake: filled(forgotten.at_stake),
        }
    }
}

impl Record for DeletionView {
    const KIND: &'static str = "Deletion";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("SNAPSHOT", |view, _| short_snapshot(&view.snapshot.id).to_owned()),
            Column::<Self>::left("SOURCE", |view, _| dash(view.snapshot.source.as_deref())),
            Column::<Self>::left("REPOSITORY", |view, _| view.snapshot.repository.clone()),
            Column::<Self>::left("COMMITTED", |view, look| look.time_or(view.snapshot.committed_at, "-")),
            Column::<Self>::right("ADDED", |view, _| size(view.snapshot.stored_bytes)),
            Column::<Self>::left("AT STAKE", |view, _| dash(view.at_stake.as_deref()))
                .toned(|view| if view.at_stake.is_some() { Tone::Bad } else { Tone::Plain }),
        ]
    }

    fn name(&self) -> String {
        self.snapshot.id.clone()
    }
}
