//! Is the repository what it must be?
//!
//! * **Structure**: keys and config open; index ↔ packs: each pack that the index names is there and has the size that
//!   its blobs and header add up to; snapshots ↔ trees ↔ index: every snapshot opens, every folder below it opens and
//!   verifies, every blob of every file is in the index and their lengths add up to the file's size.
//! * **Data**, when asked for: every byte of every pack is read; its hash is compared with its name, its header with
//!   the index, every blob is opened and its content hashed.
//!
//! Each [`Finding`] names the object and, where content is concerned, the snapshots that it touches. Whatever is wrong
//! with an object is a finding and the check goes on; only a storage that cannot be asked ends it with an error.

mod data;
mod structure;
mod touch;
mod trees;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_model::ErrorCode;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

pub use data::{PackVerdict, verify_pack};

use crate::error::RepositoryError;
use crate::format::{ObjectKind, ObjectName};
use crate::id::{BlobId, BlobType, IdSet, PackId, SnapshotId};
use crate::index::{BlobLocation, WorkIndex};
use crate::reader::LOCATE_BATCH;
use crate::repository::Repository;
use crate::storage::StorageErrorKind;

/// Findings that are kept; the rest is counted.
const FINDINGS_KEPT: usize = 1000;
/// Lost blobs that are remembered, so that each is found once. Of more, some may count twice.
const LOST_BLOBS_KEPT: usize = 100_000;

/// What is checked.
#[derive(Debug, Clone, Default)]
pub struct CheckOptions {
    /// Read and open every byte of every pack. Costs the time of reading the whole repository.
    pub read_data: bool,
    /// With `read_data`: these packs only.
    pub only: Option<Vec<PackId>>,
    /// Threads that open blobs; the number of cores when missing.
    pub threads: Option<usize>,
    /// Packs that were found damaged before: of a blob that is in another pack too, the other one counts.
    pub doubted: Vec<PackId>,
}

/// Counts that grow while a check runs.
#[derive(Debug, Default)]
pub struct CheckProgress {
    /// Folders that were opened.
    pub trees: AtomicU64,
    /// Packs that were read whole.
    pub packs_read: AtomicU64,
    /// Bytes of packs that were read whole.
    pub bytes_read: AtomicU64,
}

/// What is wrong with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FindingKind {
    /// It is referred to and not there.
    Missing,
    /// It does not open, or is not what its name, its header or the index say.
    Damaged,
    /// Two objects say different things about it.
    Contradiction,
    /// Nothing refers to it. Harmless: a writer that died left it, or it is being written.
    Unreferenced,
}

impl FindingKind {
    /// Whether something cannot be restored, or may not be.
    pub fn is_harmful(self) -> bool {
        self != FindingKind::Unreferenced
    }

    /// The word for it in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            FindingKind::Missing => "missing",
            FindingKind::Damaged => "damaged",
            FindingKind::Contradiction => "contradictory",
            FindingKind::Unreferenced => "unreferenced",
        }
    }

    /// The stable code; `None` for what is harmless.
    pub fn code(self) -> Option<ErrorCode> {
        match self {
            FindingKind::Missing => Some(ErrorCode::ObjectMissing),
            FindingKind::Damaged | FindingKind::Contradiction => Some(ErrorCode::ObjectDamaged),
            FindingKind::Unreferenced => None,
        }
    }
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FindingObject {
    /// An object of the storage.
    Object(ObjectName),
    /// The keys all together.
    Keys,
    /// A blob within a pack.
    Blob {
        /// The blob.
        blob: BlobId,
        /// Where the index says it is; `None` when it does not know it.
        pack: Option<PackId>,
    },
}

impl fmt::Display for FindingObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FindingObject::Object(name) => write!(f, "{} {name}", name.kind()),
            FindingObject::Keys => f.write_str("every key"),
            FindingObject::Blob { blob, pack: Some(pack) } => {
                write!(f, "blob {blob} in {}", ObjectName::Pack(*pack))
            }
            FindingObject::Blob { blob, pack: None } => write!(f, "blob {blob}"),
        }
    }
}

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// With what.
    pub object: FindingObject,
    /// The particulars, with the numbers.
    pub detail: String,
    /// The snapshots that need it, sorted. Empty for what concerns no content, and when the snapshots cannot be read.
    pub snapshots: Vec<SnapshotId>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}: {}", self.object, self.kind.as_str(), self.detail)?;
        match self.snapshots.len() {
            0 => Ok(()),
            1 => write!(f, " (touches snapshot {})", self.snapshots[0].short()),
            n => write!(f, " (touches {n} snapshots, {} is the first)", self.snapshots[0].short()),
        }
    }
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Keys looked at.
    pub keys: u64,
    /// Index objects read.
    pub indexes: u64,
    /// Snapshots read.
    pub snapshots: u64,
    /// Packs in the storage.
    pub packs: u64,
    /// Bytes of these packs.
    pub pack_bytes: u64,
    /// Blobs in the index, counted once for each pack that they are in.
    pub blobs: u64,
    /// Different folders opened.
    pub trees: u64,
    /// Files seen in them; a file in an unchanged folder counts once for all snapshots.
    pub files: u64,
    /// Packs read whole.
    pub packs_read: u64,
    /// Bytes of packs read whole.
    pub bytes_read: u64,
    /// Blobs opened and hashed while packs were read whole.
    pub blobs_read: u64,
    /// The findings, the first thousand, sorted by object.
    pub findings: Vec<Finding>,
    /// How many there were.
    pub findings_total: u64,
    /// Packs that are damaged or missing, or hold a damaged blob, sorted.
    pub damaged_packs: Vec<PackId>,
    /// Packs that were read whole and in which every byte was right, sorted.
    pub sound_packs: Vec<PackId>,
    /// Snapshots that opened and need nothing that is lost, sorted; nothing when more is lost than can be remembered.
    pub sound_snapshots: Vec<SnapshotId>,
    /// Snapshots that do not open or need something that is lost, sorted: also those that only findings touch which were
    /// not kept.
    pub touched_snapshots: Vec<SnapshotId>,
}

impl CheckReport {
    /// Whether nothing harmful was found.
    pub fn is_sound(&self) -> bool {
        self.findings_total == self.findings.len() as u64
            && !self.findings.iter().any(|finding| finding.kind.is_harmful())
    }
}

/// What the parts of a check share.
struct Checker {
    repository: Repository,
    index: Arc<dyn WorkIndex>,
    options: CheckOptions,
    progress: Arc<CheckProgress>,
    token: CancellationToken,
    handle: Handle,
    report: Mutex<CheckReport>,
    lost: Mutex<Lost>,
}

/// What cannot be restored, for finding out which snapshots need it.
#[derive(Debug, Default)]
struct Lost {
    packs: IdSet<PackId>,
    /// The first [`LOST_BLOBS_KEPT`].
    blobs: IdSet<BlobId>,
    /// Packs that hold lost blobs.
    packs_of_blobs: IdSet<PackId>,
    /// They do not open.
    snapshots: BTreeSet<SnapshotId>,
    /// Whether there are blobs that are not remembered, nor a pack that stands for them.
    is_incomplete: bool,
}

impl Lost {
    /// Notes a blob, and the pack that has it; says whether that is new, as far as is remembered.
    fn lose_blob(&mut self, blob: BlobId, pack: Option<PackId>) -> bool {
        self.packs_of_blobs.extend(pack);
        if self.blobs.len() < LOST_BLOBS_KEPT {
            return self.blobs.insert(blob);
        }
        let is_new = !self.blobs.contains(&blob);
        if is_new {
            // Whoever needs anything of its pack counts as touched.
            self.packs.extend(pack);
            self.is_incomplete |= pack.is_none();
        }
        is_new
    }
}

impl Checker {
    fn find(&self, kind: FindingKind, object: FindingObject, detail: impl Into<String>) {
        match object {
            FindingObject::Object(ObjectName::Pack(pack)) if kind.is_harmful() => {
                self.lost.lock().packs.insert(pack);
            }
            FindingObject::Object(ObjectName::Snapshot(id)) if kind.is_harmful() => {
                self.lost.lock().snapshots.insert(id);
            }
            _ => {}
        }
        let mut report = self.report.lock();
        report.findings_total += 1;
        if report.findings.len() < FINDINGS_KEPT {
            report.findings.push(Finding { kind, object, detail: detail.into(), snapshots: Vec::new() });
        }
    }

    /// Turns what is wrong with an object into a finding, and what is wrong with the storage into an error.
    fn find_error(&self, object: FindingObject, error: RepositoryError) -> Result<(), RepositoryError> {
        let Some(kind) = kind_of(&error) else { return Err(error) };
        self.find(kind, object, reason(&error));
        Ok(())
    }

    fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.options.threads.unwrap_or_else(cores).clamp(1, 64)
    }

    fn cancelled(&self) -> Result<(), RepositoryError> {
        if self.token.is_cancelled() { Err(RepositoryError::Cancelled) } else { Ok(()) }
    }

    /// Waits for a call, unless the check is cancelled.
    fn wait<T>(&self, call: impl Future<Output = Result<T, RepositoryError>>) -> Result<T, RepositoryError> {
        let done = self.handle.block_on(self.token.run_until_cancelled(call));
        done.unwrap_or(Err(RepositoryError::Cancelled))
    }

    /// Where blobs of one type are, in their order, however many.
    fn locate(
        &self,
        blob_type: BlobType,
        ids: &[BlobId],
    ) -> Result<Vec<Option<BlobLocation>>, RepositoryError> {
        let mut found = Vec::with_capacity(ids.len());
        for ids in ids.chunks(LOCATE_BATCH) {
            found.extend(self.wait(self.index.locate(blob_type, ids))?);
        }
        if found.len() != ids.len() {
            return Err(RepositoryError::Pipeline("the index answered for other blobs than were asked"));
        }
        Ok(found)
    }
}

impl Checker {
    /// Where blobs are, in their order, whatever their types.
    fn locate_each(
        &self,
        blobs: &[(BlobId, BlobType)],
    ) -> Result<Vec<Option<BlobLocation>>, RepositoryError> {
        let mut found = vec![None; blobs.len()];
        for wanted in BlobType::ALL {
            let places: Vec<usize> = (0..blobs.len()).filter(|&place| blobs[place].1 == wanted).collect();
            let ids: Vec<BlobId> = places.iter().map(|&place| blobs[place].0).collect();
            places.into_iter().zip(self.locate(wanted, &ids)?).for_each(|(place, at)| found[place] = at);
        }
        Ok(found)
    }
}

/// What is wrong with the object that the error is about; `None` when the error is not about an object.
fn kind_of(error: &RepositoryError) -> Option<FindingKind> {
    match error {
        RepositoryError::Storage(storage) => match storage.kind() {
            StorageErrorKind::NotFound => Some(FindingKind::Missing),
            StorageErrorKind::Damaged => Some(FindingKind::Damaged),
            _ => None,
        },
        RepositoryError::BlobMissing { .. } => Some(FindingKind::Missing),
        RepositoryError::Damaged { .. }
        | RepositoryError::LimitExceeded { .. }
        | RepositoryError::UnsafeName { .. }
        | RepositoryError::Unsupported { .. } => Some(FindingKind::Damaged),
        _ => None,
    }
}

/// What a finding says of an error: the particulars without the name of the object, which the finding has itself.
fn reason(error: &RepositoryError) -> String {
    match error {
        RepositoryError::Damaged { reason, .. } => reason.clone(),
        RepositoryError::Storage(storage) => storage.to_string(),
        other => other.to_string(),
    }
}

/// Checks a repository. Works on threads of its own; dropping the future cancels it. What the index objects say goes
/// into `index`, which is empty at first. Memory beside that index: 64 bytes for each pack, 8 for each folder, 32 for
/// each folder that waits, and the largest index object.
///
/// # Errors
/// Those of a storage or an index that cannot be asked, and `HF-4010` when cancelled.
pub async fn check(
    repository: &Repository,
    index: Arc<dyn WorkIndex>,
    options: CheckOptions,
    progress: Arc<CheckProgress>,
    cancelled: &CancellationToken,
) -> Result<CheckReport, RepositoryError> {
    let token = cancelled.child_token();
    let _cancel_when_dropped = token.clone().drop_guard();
    let checker = Checker {
        repository: repository.clone(),
        index,
        options,
        progress,
        token,
        handle: Handle::current(),
        report: Mutex::default(),
        lost: Mutex::default(),
    };
    match tokio::task::spawn_blocking(move || checker.run()).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(RepositoryError::Cancelled),
    }
}

impl Checker {
    fn run(self) -> Result<CheckReport, RepositoryError> {
        self.check_keys()?;
        // In this order: what a snapshot needs was in an index object before it, and what that names in the storage.
        let snapshots = self.list(ObjectKind::Snapshot)?;
        let indexes = self.list(ObjectKind::Index)?;
        let mut packs = self.list_packs()?;
        let trees = self.check_index(indexes, &mut packs)?;
        let snapshots = self.check_snapshots(snapshots)?;
        self.check_trees(&trees, &snapshots)?;
        if self.options.read_data {
            self.check_data(&packs)?;
        }
        self.name_snapshots(&trees, &snapshots)?;
        let mut report = self.report.into_inner();
        let lost = self.lost.into_inner();
        let damaged: BTreeSet<PackId> = lost.packs.union(&lost.packs_of_blobs).copied().collect();
        report.damaged_packs = damaged.into_iter().collect();
        report.sound_packs.retain(|pack| report.damaged_packs.binary_search(pack).is_err());
        report.sound_packs.sort_unstable();
        report.trees = self.progress.trees.load(Ordering::Relaxed);
        report.packs_read = self.progress.packs_read.load(Ordering::Relaxed);
        report.bytes_read = self.progress.bytes_read.load(Ordering::Relaxed);
        report.findings.sort_by(|a, b| (a.object, a.kind, &a.detail).cmp(&(b.object, b.kind, &b.detail)));
        Ok(report)
    }
}
