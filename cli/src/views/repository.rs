//! Repositories and what they hold.

use holdfast_model::Failure;
use holdfast_model::units::Span;
use holdfast_proto::v1;
pub(crate) use holdfast_proto::views::PrunePlanView;
use jiff::Timestamp;
use serde::Serialize;

use super::snapshot::SnapshotView;
use super::{dash, filled, moment};
use crate::output::text::{count, counted, size};
use crate::output::{Column, Look, Record, Tone};

/// One repository.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RepositoryView {
    /// Its name.
    pub name: String,
    /// Where it lies, without credentials.
    pub url: String,
    /// Its id; none while it was never opened.
    pub repository_id: Option<String>,
    /// open, missing, unreachable, locked-out or damaged.
    pub state: String,
    /// Why it is not open.
    pub failure: Option<Failure>,
    /// Its snapshots.
    pub snapshots: u64,
    /// Its packs.
    pub packs: u64,
    /// Size of its packs.
    pub stored_bytes: u64,
    /// What its snapshots show, each counted whole.
    pub logical_bytes: u64,
    /// Free space of its storage, when known.
    pub free_bytes: Option<u64>,
    /// When its structure was last checked without a finding.
    pub checked_at: Option<Timestamp>,
    /// Size of what lies in its trash; not a part of its packs.
    pub trash_bytes: u64,
    /// When it was last pruned.
    pub pruned_at: Option<Timestamp>,
    /// How much of it was read again; none while it is not open.
    pub reading: Option<ReadingView>,
}

/// How much of the packs of a repository was read in full after it was written.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ReadingView {
    /// Packs there are.
    pub packs: u64,
    /// Their size.
    pub bytes: u64,
    /// Packs that were read within the time that the policies say; when none says any: ever.
    pub read_packs: u64,
    /// Their size.
    pub read_bytes: u64,
    /// Packs that were never read.
    pub unread_packs: u64,
    /// Since when the pack was not read that was not for longest.
    pub oldest_at: Option<Timestamp>,
    /// The time within which the policies have everything read.
    pub within_seconds: Option<i64>,
    /// When all will have been read within that time; none when all was.
    pub complete_at: Option<Timestamp>,
}

impl From<v1::RepositoryReading> for ReadingView {
    fn from(reading: v1::RepositoryReading) -> Self {
        Self {
            packs: reading.packs,
            bytes: reading.bytes,
            read_packs: reading.read_packs,
            read_bytes: reading.read_bytes,
            unread_packs: reading.unread_packs,
            oldest_at: moment(reading.oldest_at),
            within_seconds: (reading.within_seconds > 0).then_some(reading.within_seconds),
            complete_at: moment(reading.complete_at),
        }
    }
}

impl ReadingView {
    /// In words: how much, within which time, when the rest.
    pub(crate) fn describe(&self, look: &Look) -> String {
        let percent = (u128::from(self.read_bytes) * 100).checked_div(u128::from(self.bytes)).unwrap_or(0);
        let (read, all) = (count(self.read_packs), counted(self.packs, "pack"));
        let mut text = format!("{percent} % of {}, {read} of {all}", size(self.bytes));
        match self.within_seconds {
            Some(within) => text.push_str(&format!(", within {}", Span::from_secs(within))),
            None => text.push_str("; no policy has it read again"),
        }
        if let Some(at) = self.complete_at {
            text.push_str(&format!("; all by {}", look.time_or(Some(at), "-")));
        }
        if let Some(at) = self.oldest_at {
            text.push_str(&format!("; the longest unread since {}", look.time_or(Some(at), "-")));
        }
        text
    }
}

impl From<v1::Repository> for RepositoryView {
    fn from(repository: v1::Repository) -> Self {
        Self {
            name: repository.name,
            url: repository.url,
            repository_id: filled(repository.repository_id),
            state: repository.state,
            failure: repository.failure.map(Failure::from),
            snapshots: repository.snapshots,
            packs: repository.packs,
            stored_bytes: repository.stored_bytes,
            logical_bytes: repository.logical_bytes,
            free_bytes: (repository.free_bytes > 0).then_some(repository.free_bytes),
            checked_at: moment(repository.checked_at),
            trash_bytes: repository.trash_bytes,
            pruned_at: moment(repository.pruned_at),
            reading: repository.reading.map(ReadingView::from),
        }
    }
}

impl RepositoryView {
    /// How many times smaller than what its snapshots show it is.
    pub(crate) fn ratio(&self) -> String {
        ratio(self.logical_bytes, self.stored_bytes)
    }
}

/// `12.3x`, or `-` where nothing is stored.
pub(crate) fn ratio(logical_bytes: u64, stored_bytes: u64) -> String {
    if stored_bytes == 0 || logical_bytes == 0 {
        return "-".to_owned();
    }
    format!("{:.1}x", logical_bytes as f64 / stored_bytes as f64)
}

impl Record for RepositoryView {
    const KIND: &'static str = "Repository";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("REPOSITORY", |view, _| view.name.clone()),
            Column::<Self>::left("STATE", |view, _| match &view.failure {
                Some(failure) => format!("{} {}", view.state, failure.code),
                None => view.state.clone(),
            })
            .toned(|view| if view.state == "open" { Tone::Good } else { Tone::Bad }),
            Column::<Self>::right("SNAPSHOTS", |view, _| count(view.snapshots)),
            Column::<Self>::right("STORED", |view, _| size(view.stored_bytes)),
            Column::<Self>::right("SHOWS", |view, _| size(view.logical_bytes)),
            Column::<Self>::right("RATIO", |view, _| view.ratio()),
            Column::<Self>::right("FREE", |view, _| view.free_bytes.map_or_else(|| "-".to_owned(), size)),
            Column::<Self>::left("CHECKED", |view, look| look.time_or(view.checked_at, "never")),
            Column::<Self>::left("URL", |view, _| view.url.clone()),
            Column::<Self>::right("PACKS", |view, _| count(view.packs)).only_wide(),
            Column::<Self>::right("TRASH", |view, _| size(view.trash_bytes)).only_wide(),
            Column::<Self>::left("PRUNED", |view, look| look.time_or(view.pruned_at, "never")).only_wide(),
            Column::<Self>::left("ID", |view, _| dash(view.repository_id.as_deref())).only_wide(),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// What one source takes in a repository.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct UsageView {
    /// The repository.
    pub repository: String,
    /// The source; none for snapshots of other programs.
    pub source: Option<String>,
    /// Its snapshots.
    pub snapshots: u64,
    /// What its newest snapshot shows.
    pub logical_bytes: u64,
    /// What its snapshots added.
    pub stored_bytes: u64,
}

impl UsageView {
    /// The usage of one source in a repository.
    pub(crate) fn new(repository: &str, usage: v1::SourceUsage) -> Self {
        Self {
            repository: repository.to_owned(),
            source: filled(usage.source),
            snapshots: usage.snapshots,
            logical_bytes: usage.logical_bytes,
            stored_bytes: usage.stored_bytes,
        }
    }
}

impl Record for UsageView {
    const KIND: &'static str = "SourceUsage";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("SOURCE", |view, _| {
                view.source.clone().unwrap_or_else(|| "(other programs)".to_owned())
            }),
            Column::<Self>::right("SNAPSHOTS", |view, _| count(view.snapshots)),
            Column::<Self>::right("NEWEST SHOWS", |view, _| size(view.logical_bytes)),
            Column::<Self>::right("ADDED", |view, _| size(view.stored_bytes)),
        ]
    }

    fn name(&self) -> String {
        self.source.clone().unwrap_or_default()
    }
}

impl Record for PrunePlanView {
    const KIND: &'static str = "PrunePlan";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("REPOSITORY", |view, _| view.repository.clone()),
            Column::<Self>::right("STORED", |view, _| size(view.stored_bytes)),
            Column::<Self>::right("NOT NEEDED", |view, _| size(view.dead_bytes)),
            Column::<Self>::right("FREES", |view, _| size(view.freed_bytes)),
            Column::<Self>::right("SHARE", |view, _| format!("{} %", view.freed_percent)),
        ]
    }

    fn name(&self) -> String {
        self.repository.clone()
    }
}

/// What a copy would do.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CopyPlanView {
    /// The repository that has the snapshots.
    pub from: String,
    /// The repository that gets them.
    pub to: String,
    /// Snapshots that would be copied, newest first.
    pub snapshots: Vec<SnapshotView>,
    /// Snapshots whose copies are there.
    pub already: u64,
    /// Blobs that would be sent.
    pub blobs: u64,
    /// Size of their contents.
    pub content_bytes: u64,
    /// The same as they are stored.
    pub stored_bytes: u64,
    /// What is damaged and would not be copied.
    pub concerns: Vec<String>,
}

impl CopyPlanView {
    /// The plan for a copy between two repositories.
    pub(crate) fn new(from: &str, to: &str, plan: v1::CopyPlan) -> Self {
        Self {
            from: from.to_owned(),
            to: to.to_owned(),
            snapshots: plan.snapshots.into_iter().map(SnapshotView::from).collect(),
            already: plan.already,
            blobs: plan.blobs,
            content_bytes: plan.content_bytes,
            stored_bytes: plan.stored_bytes,
            concerns: plan.concerns,
        }
    }
}

impl Record for CopyPlanView {
    const KIND: &'static str = "CopyPlan";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("FROM", |view, _| view.from.clone()),
            Column::<Self>::left("TO", |view, _| view.to.clone()),
            Column::<Self>::right("SNAPSHOTS", |view, _| count(view.snapshots.len() as u64)),
            Column::<Self>::right("ALREADY", |view, _| count(view.already)),
            Column::<Self>::right("SENDS", |view, _| size(view.stored_bytes)),
        ]
    }

    fn name(&self) -> String {
        self.to.clone()
    }
}
