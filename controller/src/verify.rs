//! Reads and opens every byte that one snapshot needs, each blob once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::RepositoryError;
use holdfast_repository::id::{BlobId, BlobType, IdSet};
use holdfast_repository::reader::plan::{PackRead, coalesce};
use holdfast_repository::reader::{BlobOpener, BlobPlace, BlobReader, TreeWalker, WalkLimits, WalkStep};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::contents;
use crate::core::Core;
use crate::repositories::{OpenRepository, repository_failure};

/// Findings that are kept.
const FINDINGS_MAX: usize = 100;
/// Blobs that are looked up and read together: bounds memory, and keeps neighbours in a pack together.
const BATCH_BLOBS: usize = 16_384;

/// Counts that grow while a snapshot is read.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    /// Bytes expected.
    pub bytes_total: AtomicU64,
    /// Bytes opened.
    pub bytes_read: AtomicU64,
    /// Files dealt with.
    pub files: AtomicU64,
}

/// What was read.
#[derive(Debug, Default)]
pub struct VerifyReport {
    /// Files of the snapshot.
    pub files: u64,
    /// Different blobs.
    pub blobs: u64,
    /// Bytes of their contents.
    pub bytes: u64,
    /// What is not as stored, one line each, the first hundred.
    pub findings: Vec<String>,
}

/// Verifies a snapshot.
///
/// # Errors
/// When the storage can not be asked, and `HF-4010` when cancelled; damage is a finding.
pub async fn verify_snapshot(
    core: &Core,
    repository: &Arc<OpenRepository>,
    record: &SnapshotRecord,
    progress: Arc<VerifyProgress>,
    stop: &CancellationToken,
) -> Result<VerifyReport, Failure> {
    let root: BlobId =
        record.tree.parse().map_err(|error| Failure::from_error(ErrorCode::StateDamaged, &error))?;
    let verifier = Verifier {
        reader: contents::reader(repository),
        handle: Handle::current(),
        progress,
        stop: stop.clone(),
        seen: IdSet::default(),
        waiting: Vec::new(),
        report: VerifyReport::default(),
    };
    let name = repository.name.clone();
    core.blocking("verify a snapshot", move || {
        verifier.run(root).map_err(|error| repository_failure(&name, &error))
    })
    .await
}

struct Verifier {
    reader: BlobReader,
    handle: Handle,
    progress: Arc<VerifyProgress>,
    stop: CancellationToken,
    seen: IdSet<BlobId>,
    waiting: Vec<BlobId>,
    report: VerifyReport,
}

impl Verifier {
    fn run(mut self, root: BlobId) -> Result<VerifyReport, RepositoryError> {
        let mut walker = TreeWalker::new(self.reader.clone(), root, WalkLimits::default());
        let handle = self.handle.clone();
        loop {
            let step = match handle.block_on(walker.next()) {
                Ok(Some(step)) => step,
                Ok(None) => break,
                Err(error) => {
                    // Below a damaged folder nothing can be found; what was found so far is still read.
                    self.find(error)?;
                    break;
                }
            };
            let WalkStep::Entry(node) = step else { continue };
            self.report.files += 1;
            self.progress.files.fetch_add(1, Ordering::Relaxed);
            for blob in node.content {
                if self.seen.insert(blob) {
                    self.waiting.push(blob);
                }
            }
            if self.waiting.len() >= BATCH_BLOBS {
                self.read_waiting()?;
            }
        }
        self.read_waiting()?;
        Ok(self.report)
    }

    /// Damage is a finding; anything else ends the work.
    fn find(&mut self, error: RepositoryError) -> Result<(), RepositoryError> {
        if !matches!(
            error.code(),
            ErrorCode::ObjectDamaged | ErrorCode::ObjectMissing | ErrorCode::LimitExceeded
        ) {
            return Err(error);
        }
        if self.report.findings.len() < FINDINGS_MAX {
            let failure = Failure::from_error(error.code(), &error);
            self.report.findings.push(failure.to_string());
        }
        Ok(())
    }

    fn read_waiting(&mut self) -> Result<(), RepositoryError> {
        let ids = std::mem::take(&mut self.waiting);
        self.report.blobs += ids.len() as u64;
        let mut found: Vec<(BlobPlace, BlobId)> = Vec::with_capacity(ids.len());
        for ids in ids.chunks(holdfast_repository::reader::LOCATE_BATCH) {
            let places = self.handle.block_on(self.reader.source().locate(ids))?;
            for (id, place) in ids.iter().zip(places) {
                match place {
                    Some(place) if place.blob_type == BlobType::Data => found.push((place, *id)),
                    _ => self.find(RepositoryError::BlobMissing { blob: *id })?,
                }
            }
        }
        found.sort_unstable_by_key(|(place, _)| (place.pack, place.offset));
        let places: Vec<BlobPlace> = found.iter().map(|(place, _)| *place).collect();
        let reads = coalesce(&places);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).clamp(1, 8);
        let share = reads.len().div_ceil(threads).max(1);
        let results: Vec<_> = std::thread::scope(|scope| {
            let this = &*self;
            let found = &found;
            let workers: Vec<_> =
                reads.chunks(share).map(|reads| scope.spawn(move || this.read_all(reads, found))).collect();
            workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        for result in results {
            let errors = result.map_err(|_| RepositoryError::Pipeline("verifying"))??;
            for error in errors {
                self.find(error)?;
            }
        }
        self.report.bytes = self.progress.bytes_read.load(Ordering::Relaxed);
        Ok(())
    }

    /// Opens the blobs of these reads; returns what is wrong with them.
    fn read_all(
        &self,
        reads: &[PackRead],
        found: &[(BlobPlace, BlobId)],
    ) -> Result<Vec<RepositoryError>, RepositoryError> {
        let mut opener = BlobOpener::new(self.reader.sealer().clone())?;
        let mut errors = Vec::new();
        for read in reads {
            if self.stop.is_cancelled() {
                return Err(RepositoryError::Cancelled);
            }
            let bytes =
                match self.handle.block_on(self.reader.source().read(read.pack, read.offset, read.length)) {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        errors.push(error);
                        continue;
                    }
                };
            for member in read.members.clone() {
                let (place, id) = &found[member];
                match opener.open(id, place, read.part(&bytes, place)) {
                    Ok(content) => {
                        self.progress.bytes_read.fetch_add(content.len() as u64, Ordering::Relaxed);
                    }
                    Err(error) => errors.push(error),
                }
            }
        }
        Ok(errors)
    }
}
