//! Reads and opens every byte that one snapshot needs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::RepositoryError;
use holdfast_repository::format::ObjectName;
use holdfast_repository::id::{BlobId, BlobType, IdSet, PackId};
use holdfast_repository::reader::plan::{PackRead, coalesce};
use holdfast_repository::reader::{BlobOpener, BlobPlace, BlobReader, LOCATE_BATCH};
use holdfast_repository::tree::{NodeType, Tree};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::contents;
use crate::core::Core;
use crate::repositories::{OpenRepository, repository_failure};

/// Findings that are kept.
const FINDINGS_MAX: usize = 100;
/// Blobs that are looked up and read together: bounds memory, and keeps neighbours in a pack together.
const BATCH_BLOBS: usize = 16_384;
/// Folders that are opened together.
const TREES_AT_ONCE: usize = 256;
/// Blobs that are remembered as read, 38 bytes each. After so many it begins anew: one may be read twice.
const SEEN_MAX: usize = 450_000;

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
    /// Files of the snapshot; those of a folder that occurs again soon count once.
    pub files: u64,
    /// Blobs opened; those that occur again soon count once.
    pub blobs: u64,
    /// Bytes of their contents.
    pub bytes: u64,
    /// What is not as stored, one line each, the first hundred.
    pub findings: Vec<String>,
    /// Packs that are damaged or gone, or hold a damaged blob, sorted.
    pub damaged_packs: BTreeSet<PackId>,
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
        report: VerifyReport::default(),
    };
    let object_damage = object_damage(repository, record).await?;
    let name = repository.name.clone();
    let mut report = core
        .blocking("verify a snapshot", move || {
            verifier.run(root).map_err(|error| repository_failure(&name, &error))
        })
        .await?;
    if let Some(error) = object_damage {
        report.findings.insert(0, Failure::from_error(error.code(), &error).to_string());
    }
    Ok(report)
}

/// The name of the object of a snapshot.
pub(crate) fn object_of(record: &SnapshotRecord) -> ObjectName {
    ObjectName::Snapshot(holdfast_repository::id::SnapshotId::from_bytes(record.id.0))
}

/// What is wrong with the object of a snapshot, which nothing of the snapshot is found without; nothing when it is as
/// stored.
///
/// # Errors
/// When the storage can not be asked.
pub(crate) async fn object_damage(
    repository: &OpenRepository,
    record: &SnapshotRecord,
) -> Result<Option<RepositoryError>, Failure> {
    match repository.repository().load_unpacked(&object_of(record)).await {
        Ok(_) => Ok(None),
        Err(error) if is_damage(&error) => Ok(Some(error)),
        Err(error) => Err(repository_failure(&repository.name, &error)),
    }
}

fn is_damage(error: &RepositoryError) -> bool {
    matches!(error.code(), ErrorCode::ObjectDamaged | ErrorCode::ObjectMissing | ErrorCode::LimitExceeded)
}

struct Verifier {
    reader: BlobReader,
    handle: Handle,
    progress: Arc<VerifyProgress>,
    stop: CancellationToken,
    seen: IdSet<BlobId>,
    report: VerifyReport,
}

/// What opening some blobs gave.
#[derive(Default)]
struct Opened {
    trees: Vec<Tree>,
    /// What is wrong, and in which pack.
    damaged: Vec<(PackId, RepositoryError)>,
}

impl Verifier {
    /// Folder by folder, the last found first, past those that do not open.
    fn run(mut self, root: BlobId) -> Result<VerifyReport, RepositoryError> {
        let mut folders = vec![root];
        let mut waiting: Vec<BlobId> = Vec::new();
        while !folders.is_empty() {
            let now = folders.split_off(folders.len().saturating_sub(TREES_AT_ONCE));
            for tree in self.open(&now, BlobType::Tree)? {
                for node in tree.nodes {
                    match node.metadata.node_type {
                        NodeType::Directory => {
                            folders.extend(node.subtree.filter(|folder| self.seen.insert(*folder)));
                        }
                        NodeType::File => {
                            self.report.files += 1;
                            self.progress.files.fetch_add(1, Ordering::Relaxed);
                            waiting.extend(node.content.into_iter().filter(|blob| self.seen.insert(*blob)));
                        }
                        _ => {}
                    }
                }
                if waiting.len() >= BATCH_BLOBS {
                    self.open_data(&mut waiting)?;
                }
            }
            if self.seen.len() >= SEEN_MAX {
                self.seen.clear();
            }
        }
        self.open_data(&mut waiting)?;
        Ok(self.report)
    }

    fn open_data(&mut self, waiting: &mut Vec<BlobId>) -> Result<(), RepositoryError> {
        for ids in std::mem::take(waiting).chunks(BATCH_BLOBS) {
            self.report.blobs += ids.len() as u64;
            self.open(ids, BlobType::Data)?;
        }
        self.report.bytes = self.progress.bytes_read.load(Ordering::Relaxed);
        Ok(())
    }

    /// Damage is a finding; anything else ends the work.
    fn find(&mut self, error: RepositoryError) -> Result<(), RepositoryError> {
        if !is_damage(&error) {
            return Err(error);
        }
        if self.report.findings.len() < FINDINGS_MAX {
            let failure = Failure::from_error(error.code(), &error);
            self.report.findings.push(failure.to_string());
        }
        Ok(())
    }

    /// Reads and opens blobs, on all cores; gives the folders among them.
    fn open(&mut self, ids: &[BlobId], blob_type: BlobType) -> Result<Vec<Tree>, RepositoryError> {
        let mut found: Vec<(BlobPlace, BlobId)> = Vec::with_capacity(ids.len());
        for ids in ids.chunks(LOCATE_BATCH) {
            let places = self.handle.block_on(self.reader.source().locate(blob_type, ids))?;
            for (id, place) in ids.iter().zip(places) {
                match place {
                    Some(place) if place.blob_type == blob_type => found.push((place, *id)),
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
        let mut trees = Vec::new();
        for result in results {
            let opened = result.map_err(|_| RepositoryError::Pipeline("verifying"))??;
            trees.extend(opened.trees);
            for (pack, error) in opened.damaged {
                if is_damage(&error) {
                    self.report.damaged_packs.insert(pack);
                }
                self.find(error)?;
            }
        }
        Ok(trees)
    }

    fn read_all(&self, reads: &[PackRead], found: &[(BlobPlace, BlobId)]) -> Result<Opened, RepositoryError> {
        let mut opener = BlobOpener::new(self.reader.sealer().clone())?;
        let mut opened = Opened::default();
        for read in reads {
            if self.stop.is_cancelled() {
                return Err(RepositoryError::Cancelled);
            }
            let bytes =
                match self.handle.block_on(self.reader.source().read(read.pack, read.offset, read.length)) {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        opened.damaged.push((read.pack, error));
                        continue;
                    }
                };
            for member in read.members.clone() {
                let (place, id) = &found[member];
                let content = match opener.open(id, place, read.part(&bytes, place)) {
                    Ok(content) => content,
                    Err(error) => {
                        opened.damaged.push((read.pack, error));
                        continue;
                    }
                };
                if place.blob_type == BlobType::Data {
                    self.progress.bytes_read.fetch_add(content.len() as u64, Ordering::Relaxed);
                    continue;
                }
                match Tree::parse(id, content) {
                    Ok(tree) => opened.trees.push(tree),
                    Err(error) => opened.damaged.push((read.pack, error)),
                }
            }
        }
        Ok(opened)
    }
}
