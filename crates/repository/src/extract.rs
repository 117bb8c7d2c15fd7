//! Restoring a tree of a snapshot into a folder.
//!
//! ```text
//!  walk the tree ─▶ make folders, gather files ─▶ batch ─▶ locate blobs ─▶ (delta: compare what is there)
//!                                                             │
//!            folders' times ◀─ hard links ◀─ open, verify, write at offsets ◀─ read ranges of packs, joined
//! ```
//!
//! * One thread walks, plans and locates the next batch while the one before is written; the blobs of a batch are read in the
//!   order of the packs, neighbours in one request, and opened and written by as many threads as there are cores.
//! * Memory is bounded by batches and requests in flight, not by the size of the tree: below 256 MiB.
//! * Nothing is followed out of the target: every name is resolved beneath its folder descriptor, symbolic links are
//!   never followed, files are created new (`O_EXCL`), names that no file can have are refused.
//! * A blob that does not verify ends the restore with the names of the object and of the files; wrong bytes are never
//!   written under a right name and left there as a success.

mod batch;
mod delta;
mod error;
mod execute;
mod layout;
mod locate;
mod metadata;
mod plan;
mod target;
mod write;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

pub use error::ExtractError;

use crate::id::BlobId;
use crate::reader::{BlobReader, Selection, WalkLimits};
use target::Target;

/// Warnings that are kept word for word; the rest is counted.
const WARNINGS_KEPT: usize = 100;

/// How a tree is restored.
#[derive(Debug, Clone)]
pub struct ExtractOptions {
    /// Restore owners, and with them the setuid and setgid bits and all extended attributes. Needs privileges.
    /// Without it everything belongs to the process, and of the attributes only `user.*` and ACLs are restored.
    pub owner: bool,
    /// Make an existing folder equal to the snapshot. Without it the target must not exist or be an empty folder.
    pub delta: Option<Delta>,
    /// Wait at the end until everything is on the disk (one `syncfs` of its file system).
    pub sync: bool,
    /// Threads that open and write; the number of cores when missing.
    pub threads: Option<usize>,
    /// How much the tree may unfold.
    pub limits: WalkLimits,
    /// What of the tree is restored. With `delta`, what is not selected counts as what the snapshot lacks.
    pub selection: Selection,
}

impl Default for ExtractOptions {
    fn default() -> Self {
        Self {
            owner: false,
            delta: None,
            sync: true,
            threads: None,
            limits: WalkLimits::default(),
            selection: Selection::default(),
        }
    }
}

/// How an existing folder is made equal to the snapshot. What matches is left alone; attributes are set where they
/// differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// What differs is rewritten in place, blob by blob; **what the snapshot lacks is removed**.
    Remove,
    /// What differs is restored whole; what was there, and what the snapshot lacks, is moved under the same path to
    /// this folder, which is made and must lie on the same file system.
    Keep(PathBuf),
}

/// Counts that grow while a restore runs. A measurement, to be looked at and not to be decided by.
#[derive(Debug, Default)]
pub struct ExtractProgress {
    /// Files that are finished.
    pub files: AtomicU64,
    /// Bytes of content written.
    pub bytes_written: AtomicU64,
    /// Bytes of content found in place and kept.
    pub bytes_kept: AtomicU64,
}

/// What a restore did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtractReport {
    /// Regular files in the target now, hard links not counted.
    pub files: u64,
    /// Of these, files whose content was in place already.
    pub files_kept: u64,
    /// Folders, the target itself not counted.
    pub folders: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Further names of files.
    pub hard_links: u64,
    /// Named pipes.
    pub fifos: u64,
    /// Things that the snapshot lacks and that were removed or kept elsewhere, each with what was in it counted as one.
    pub removed: u64,
    /// Bytes of content written; holes count.
    pub bytes_written: u64,
    /// Bytes of content found in place and kept.
    pub bytes_kept: u64,
    /// What could not be restored and is not content: devices, sockets, attributes that the file system lacks. The first
    /// hundred.
    pub warnings: Vec<String>,
    /// How many warnings there were.
    pub warnings_total: u64,
}

/// Counters and warnings shared by the threads of one restore.
struct Tally {
    progress: Arc<ExtractProgress>,
    report: Mutex<ExtractReport>,
}

impl Tally {
    fn warn(&self, warning: String) {
        let mut report = self.report.lock();
        report.warnings_total += 1;
        if report.warnings.len() < WARNINGS_KEPT {
            report.warnings.push(warning);
        }
    }

    fn add(&self, change: impl FnOnce(&mut ExtractReport)) {
        change(&mut self.report.lock());
    }

    fn written(&self, bytes: u64) {
        self.progress.bytes_written.fetch_add(bytes, Ordering::Relaxed);
    }

    fn finish(self) -> ExtractReport {
        let mut report = self.report.into_inner();
        report.files = self.progress.files.load(Ordering::Relaxed);
        report.bytes_written = self.progress.bytes_written.load(Ordering::Relaxed);
        report.bytes_kept = self.progress.bytes_kept.load(Ordering::Relaxed);
        report
    }
}

/// Restores the tree `root` into the folder `target`, which is made with mode 0700 if it does not exist.
///
/// After an error or a cancellation the target is incomplete and says so by nothing but the missing `Ok`: callers
/// restore into a folder of their own and publish it by a rename. Dropping the future cancels the work, which ends
/// within one blob and one request.
///
/// # Errors
/// `HF-2012` when the target exists and is not empty, `HF-2013` when there is no space, `HF-2014` when the file system
/// refuses something, `HF-4010` when cancelled, and those of the [`BlobReader`], with the names of the files.
pub async fn extract_tree(
    reader: &BlobReader,
    root: BlobId,
    target: &Path,
    options: &ExtractOptions,
    progress: Arc<ExtractProgress>,
    cancelled: &CancellationToken,
) -> Result<ExtractReport, ExtractError> {
    let token = cancelled.child_token();
    let _cancel_when_dropped = token.clone().drop_guard();
    let work = Work {
        reader: reader.clone(),
        root,
        target: target.to_owned(),
        options: options.clone(),
        progress,
        token,
        handle: Handle::current(),
    };
    match tokio::task::spawn_blocking(move || work.run()).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(ExtractError::Cancelled),
    }
}

/// One restore, on threads of its own.
struct Work {
    reader: BlobReader,
    root: BlobId,
    target: PathBuf,
    options: ExtractOptions,
    progress: Arc<ExtractProgress>,
    token: CancellationToken,
    handle: Handle,
}

impl Work {
    fn run(self) -> Result<ExtractReport, ExtractError> {
        let target = Target::prepare(&self.target, self.options.delta.as_ref())?;
        let tally = Tally { progress: Arc::clone(&self.progress), report: Mutex::default() };
        // The planner is one batch ahead of the writers.
        let (sender, batches) = crossbeam_channel::bounded(1);
        let (work, folder, counts) = (&self, &target, &tally);
        let outcome = std::thread::scope(|scope| {
            let planner = scope.spawn(move || plan::plan(work, folder, counts, &sender));
            // What is written goes to the disk while more is being written: the end has less to wait for.
            let (flush, flushes) = crossbeam_channel::bounded(1);
            let flusher =
                work.options.sync.then(|| scope.spawn(move || keep_flushing(work, folder, &flushes)));
            let executed = execute::run(work, folder, counts, batches, flusher.is_some().then_some(&flush));
            drop(flush);
            if executed.is_err() {
                work.token.cancel();
            }
            let planned = planner.join().unwrap_or(Err(ExtractError::Thread("planning")));
            let flushed =
                flusher.map(|flusher| flusher.join().unwrap_or(Err(ExtractError::Thread("flushing"))));
            // The system tells of a failed write once: it must not get lost here.
            flushed.unwrap_or(Ok(()))?;
            match (executed, planned) {
                // The writers' error is the cause when both failed: the planner only saw them go.
                (Err(error), _) | (Ok(()), Err(error)) => Err(error),
                (Ok(()), Ok(())) => Ok(()),
            }
        });
        outcome?;
        if self.options.sync {
            target.sync()?;
        }
        Ok(tally.finish())
    }
}

fn keep_flushing(
    work: &Work,
    target: &Target,
    flushes: &crossbeam_channel::Receiver<()>,
) -> Result<(), ExtractError> {
    flushes.iter().try_for_each(|()| target.sync()).inspect_err(|_| work.token.cancel())
}
