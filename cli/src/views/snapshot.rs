//! Snapshots and what lies in them.

use holdfast_proto::v1;
pub(crate) use holdfast_proto::views::{CopyView, SnapshotView};
use jiff::Timestamp;
use serde::Serialize;

use super::{dash, filled, moment};
use crate::output::text::{count, short_snapshot, size};
use crate::output::{Column, Record, Tone};

/// What protects it from removal, in a word or two.
fn protection(snapshot: &SnapshotView) -> String {
    match (&snapshot.milestone, &snapshot.held_because) {
        (Some(name), _) => format!("milestone {name}"),
        (None, Some(_)) => "held".to_owned(),
        (None, None) => "-".to_owned(),
    }
}

/// The proof and what is missing from it.
pub(crate) fn proof_text(snapshot: &SnapshotView) -> String {
    if snapshot.unreadable > 0 && snapshot.damage.is_none() {
        format!("{}, {} unreadable", snapshot.proof, count(snapshot.unreadable))
    } else {
        snapshot.proof.clone()
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
            Column::<Self>::left("PROOF", |snapshot, _| proof_text(snapshot))
                .toned(|snapshot| proof_tone(&snapshot.proof)),
            Column::<Self>::left("KEPT AS", |snapshot, _| protection(snapshot)),
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
