//! Copies what snapshots need into another repository: only the blobs that it lacks.
//!
//! Each blob is opened with the key of the repository it comes from and its hash is compared; its compressed bytes are
//! sealed with the key of the other, opened again and compared, and packed. Boundaries of chunks stay as they are, so
//! the ids of all blobs and folders do too. The repository that is copied from is only read. Nothing is a snapshot
//! before the caller has made the index durable and stored the object, which [`copied_snapshot`] describes.
//!
//! A folder that the other repository has is walked through nevertheless: that a blob is there says nothing of what it
//! refers to.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_model::ErrorCode;
use holdfast_runtime::fail_point;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::crypto::Sealer;
use crate::error::RepositoryError;
use crate::format::ObjectName;
use crate::id::{BlobId, BlobType, IdSet, PackId, SnapshotId};
use crate::pack::PackBuilder;
use crate::reader::plan::{PackRead, coalesce};
use crate::reader::{BlobOpener, BlobPlace, BlobReader, LOCATE_BATCH};
use crate::sink::BlobSink;
use crate::tree::{NodeType, Tree};

/// A pack is finished when it has this many bytes.
const PACK_BYTES: usize = 16 << 20;
/// Threads that read, seal and put: each waits for two storages in turn.
const THREADS: usize = 4;
/// Blobs that are looked up and read together: bounds memory, and keeps neighbours in a pack together.
const BATCH_BLOBS: usize = 16_384;
/// Folders that are opened together, and how much of their text.
const TREES_AT_ONCE: usize = 256;
const TREE_BYTES_AT_ONCE: u64 = 8 << 20;
/// Blobs that are remembered as dealt with, 38 bytes each. After so many it begins anew.
const SEEN_MAX: usize = 450_000;
/// Blobs that are named when a snapshot can not be copied.
const LOST_NAMED: usize = 100;

/// What a copier works with.
#[derive(Clone)]
pub struct CopyContext {
    /// The runtime on which source and sink are called, from threads of the copier's own.
    pub runtime: Handle,
    /// Where blobs come from: each from the first that has it whole.
    pub from: Vec<BlobReader>,
    /// The repository that they go to.
    pub to: Arc<dyn BlobSink>,
    /// The key of that repository.
    pub sealer: Arc<Sealer>,
    /// Count what would be sent, and send nothing.
    pub only_count: bool,
    /// What was done so far.
    pub progress: Arc<CopyProgress>,
    /// Stops everything between two requests.
    pub cancel: CancellationToken,
}

/// Counts that grow while snapshots are copied.
#[derive(Debug, Default)]
pub struct CopyProgress {
    /// Folders opened.
    pub trees: AtomicU64,
    /// Files whose blobs were dealt with.
    pub files: AtomicU64,
    /// Their bytes.
    pub file_bytes: AtomicU64,
    /// Bytes of files that are expected.
    pub file_bytes_total: AtomicU64,
    /// Data blobs sent.
    pub data_blobs: AtomicU64,
    /// Folders sent.
    pub tree_blobs: AtomicU64,
    /// Bytes of their contents.
    pub content_bytes: AtomicU64,
    /// The same as they are stored.
    pub stored_bytes: AtomicU64,
    /// Packs that became durable.
    pub packs: AtomicU64,
}

impl CopyProgress {
    /// What was sent so far.
    pub fn sent(&self) -> Sent {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Sent {
            data_blobs: load(&self.data_blobs),
            tree_blobs: load(&self.tree_blobs),
            content_bytes: load(&self.content_bytes),
            stored_bytes: load(&self.stored_bytes),
        }
    }
}

/// What was, or would be, sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Data blobs.
    pub data_blobs: u64,
    /// Folders.
    pub tree_blobs: u64,
    /// Bytes of their contents.
    pub content_bytes: u64,
    /// The same as they are stored.
    pub stored_bytes: u64,
}

impl Sent {
    /// Whether there was nothing to send.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// What came since.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            data_blobs: self.data_blobs - before.data_blobs,
            tree_blobs: self.tree_blobs - before.tree_blobs,
            content_bytes: self.content_bytes - before.content_bytes,
            stored_bytes: self.stored_bytes - before.stored_bytes,
        }
    }
}

/// What became of one tree.
#[derive(Debug, Default)]
pub struct CopiedTree {
    /// What was sent for it.
    pub sent: Sent,
    /// Blobs that no source has whole, the first hundred, and why not. A tree with one is not to be published.
    pub lost: Vec<RepositoryError>,
    /// Packs of the sources that are damaged or gone, or hold a damaged blob, sorted.
    pub damaged_packs: Vec<PackId>,
}

/// Copies trees, one after the other. Blocks: to be used on a thread that may. At most about 200 MiB of memory.
pub struct Copier {
    context: CopyContext,
    data: Mutex<PackBuilder>,
    tree: Mutex<PackBuilder>,
    seen_data: IdSet<BlobId>,
    seen_trees: IdSet<BlobId>,
    lost: Vec<RepositoryError>,
    damaged_packs: IdSet<PackId>,
}

/// A blob that is wanted.
#[derive(Clone, Copy)]
struct Wanted {
    id: BlobId,
    /// The other repository lacks it.
    is_new: bool,
}

/// What came of reading some blobs from one source.
#[derive(Default)]
struct Taken {
    trees: Vec<Tree>,
    failed: Vec<(Wanted, Option<PackId>, RepositoryError)>,
    /// Folders that were too much for now.
    left: Vec<BlobId>,
}

/// Buffers of one thread.
struct Scratch {
    opener: BlobOpener,
    sealed: Vec<u8>,
    opened: Vec<u8>,
}

fn is_damage(error: &RepositoryError) -> bool {
    matches!(error.code(), ErrorCode::ObjectDamaged | ErrorCode::ObjectMissing | ErrorCode::LimitExceeded)
        || matches!(error, RepositoryError::UnsafeName { .. })
}

impl Copier {
    /// A copier that has not seen anything.
    pub fn new(context: CopyContext) -> Self {
        Self {
            context,
            data: Mutex::new(PackBuilder::new(BlobType::Data, 0)),
            tree: Mutex::new(PackBuilder::new(BlobType::Tree, 0)),
            seen_data: IdSet::default(),
            seen_trees: IdSet::default(),
            lost: Vec::new(),
            damaged_packs: IdSet::default(),
        }
    }

    /// Sends what the other repository lacks of everything below a tree, and the tree. What was sent last may wait in
    /// packs that are not full: [`Self::finish`] before a snapshot is made of it.
    ///
    /// # Errors
    /// Those of the storages, and `HF-4010` when cancelled; damage is in the answer.
    pub fn copy_tree(&mut self, root: BlobId) -> Result<CopiedTree, RepositoryError> {
        let before = self.context.progress.sent();
        if self.seen_data.len() + self.seen_trees.len() >= SEEN_MAX {
            self.forget_seen();
        }
        let walked = self.walk(root);
        let lost = std::mem::take(&mut self.lost);
        let damaged_packs = std::mem::take(&mut self.damaged_packs);
        if walked.is_err() || !lost.is_empty() {
            // What was seen may lead to what is lost; the next tree that needs it must find that out, too.
            self.forget_seen();
        }
        walked?;
        if !lost.is_empty() {
            // So that what was sent is known, and not sent again for the next tree.
            self.finish()?;
        }
        let mut damaged_packs: Vec<PackId> = damaged_packs.into_iter().collect();
        damaged_packs.sort_unstable();
        Ok(CopiedTree { sent: self.context.progress.sent().since(&before), lost, damaged_packs })
    }

    /// Puts the packs that are not full. When it returns, everything that was sent is in durable packs.
    ///
    /// # Errors
    /// Those of the other repository, and `HF-4010` when cancelled.
    pub fn finish(&self) -> Result<(), RepositoryError> {
        for (open, blob_type) in [(&self.data, BlobType::Data), (&self.tree, BlobType::Tree)] {
            let last = std::mem::replace(&mut *open.lock(), PackBuilder::new(blob_type, 0));
            if !last.is_empty() {
                self.put(last)?;
            }
        }
        Ok(())
    }

    fn forget_seen(&mut self) {
        self.seen_data.clear();
        self.seen_trees.clear();
    }

    /// Folder by folder, the last found first.
    fn walk(&mut self, root: BlobId) -> Result<(), RepositoryError> {
        let mut folders = Vec::new();
        folders.extend(self.seen_trees.insert(root).then_some(root));
        let mut waiting: Vec<BlobId> = Vec::new();
        while !folders.is_empty() {
            let now = folders.split_off(folders.len().saturating_sub(TREES_AT_ONCE));
            let wanted = self.ask(BlobType::Tree, &now)?;
            let (trees, left) = self.take(wanted, BlobType::Tree)?;
            folders.extend(left);
            for tree in trees {
                self.context.progress.trees.fetch_add(1, Ordering::Relaxed);
                for node in tree.nodes {
                    match node.metadata.node_type {
                        NodeType::Directory => {
                            folders.extend(node.subtree.filter(|folder| self.seen_trees.insert(*folder)));
                        }
                        NodeType::File => {
                            let progress = &self.context.progress;
                            progress.files.fetch_add(1, Ordering::Relaxed);
                            progress.file_bytes.fetch_add(node.metadata.size, Ordering::Relaxed);
                            let is_new = |blob: &BlobId| self.seen_data.insert(*blob);
                            waiting.extend(node.content.into_iter().filter(is_new));
                        }
                        _ => {}
                    }
                }
                if waiting.len() >= BATCH_BLOBS {
                    self.send_data(&mut waiting)?;
                }
            }
            if self.seen_data.len() + self.seen_trees.len() >= SEEN_MAX {
                self.forget_seen();
            }
        }
        self.send_data(&mut waiting)
    }

    fn send_data(&mut self, waiting: &mut Vec<BlobId>) -> Result<(), RepositoryError> {
        for ids in std::mem::take(waiting).chunks(BATCH_BLOBS) {
            let mut wanted = self.ask(BlobType::Data, ids)?;
            wanted.retain(|blob| blob.is_new);
            self.take(wanted, BlobType::Data)?;
        }
        Ok(())
    }

    fn wait<T>(&self, call: impl Future<Output = Result<T, RepositoryError>>) -> Result<T, RepositoryError> {
        let done = self.context.runtime.block_on(self.context.cancel.run_until_cancelled(call));
        done.unwrap_or(Err(RepositoryError::Cancelled))
    }

    /// Which of these blobs the other repository lacks.
    fn ask(&self, blob_type: BlobType, ids: &[BlobId]) -> Result<Vec<Wanted>, RepositoryError> {
        let mut wanted = Vec::with_capacity(ids.len());
        for ids in ids.chunks(LOCATE_BATCH) {
            let known = self.wait(self.context.to.known(blob_type, ids))?;
            wanted.extend(ids.iter().zip(known).map(|(id, known)| Wanted { id: *id, is_new: !known }));
        }
        Ok(wanted)
    }

    /// Takes each blob from the first source that has it whole, and sends those that are new. Gives the folders, and the
    /// ids of those that were too much for now.
    fn take(
        &mut self,
        mut wanted: Vec<Wanted>,
        blob_type: BlobType,
    ) -> Result<(Vec<Tree>, Vec<BlobId>), RepositoryError> {
        let (mut trees, mut left) = (Vec::new(), Vec::new());
        let sources = self.context.from.len();
        for number in 0..sources {
            if wanted.is_empty() {
                break;
            }
            let taken = self.take_from(&self.context.from[number], &wanted, blob_type)?;
            trees.extend(taken.trees);
            left.extend(taken.left);
            wanted.clear();
            for (blob, pack, error) in taken.failed {
                self.damaged_packs.extend(pack);
                if number + 1 < sources {
                    wanted.push(blob);
                } else if self.lost.len() < LOST_NAMED {
                    self.lost.push(error);
                }
            }
        }
        Ok((trees, left))
    }

    /// Of folders the first, and as many more as stay within a limit of text.
    fn take_from(
        &self,
        source: &BlobReader,
        wanted: &[Wanted],
        blob_type: BlobType,
    ) -> Result<Taken, RepositoryError> {
        let mut taken = Taken::default();
        let mut found: Vec<(BlobPlace, Wanted)> = Vec::with_capacity(wanted.len());
        let mut tree_bytes = 0;
        for wanted in wanted.chunks(LOCATE_BATCH) {
            let ids: Vec<BlobId> = wanted.iter().map(|blob| blob.id).collect();
            for (blob, place) in wanted.iter().zip(self.wait(source.source().locate(blob_type, &ids))?) {
                match place {
                    Some(place) if place.blob_type == blob_type => {
                        tree_bytes += match blob_type {
                            BlobType::Tree => u64::from(place.content_length()),
                            BlobType::Data => 0,
                        };
                        if found.is_empty() || tree_bytes <= TREE_BYTES_AT_ONCE {
                            found.push((place, *blob));
                        } else {
                            taken.left.push(blob.id);
                        }
                    }
                    _ => taken.failed.push((*blob, None, RepositoryError::BlobMissing { blob: blob.id })),
                }
            }
        }
        if self.context.only_count && blob_type == BlobType::Data {
            found.iter().for_each(|(place, _)| self.count(place));
            return Ok(taken);
        }
        found.sort_unstable_by_key(|(place, _)| (place.pack, place.offset));
        let places: Vec<BlobPlace> = found.iter().map(|(place, _)| *place).collect();
        let reads = coalesce(&places);
        let share = reads.len().div_ceil(THREADS).max(1);
        let results: Vec<_> = std::thread::scope(|scope| {
            let found = &found;
            let workers: Vec<_> = reads
                .chunks(share)
                .map(|reads| scope.spawn(move || self.take_all(source, reads, found)))
                .collect();
            workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        for result in results {
            let some = result.map_err(|_| RepositoryError::Pipeline("copying"))??;
            taken.trees.extend(some.trees);
            taken.failed.extend(some.failed);
        }
        Ok(taken)
    }

    /// The work of one thread.
    fn take_all(
        &self,
        source: &BlobReader,
        reads: &[PackRead],
        found: &[(BlobPlace, Wanted)],
    ) -> Result<Taken, RepositoryError> {
        let opener = BlobOpener::new(Arc::clone(source.sealer()))?;
        let mut scratch = Scratch { opener, sealed: Vec::new(), opened: Vec::new() };
        let mut taken = Taken::default();
        for read in reads {
            let members = &found[read.members.clone()];
            let bytes = match self.wait(source.source().read(read.pack, read.offset, read.length)) {
                Ok(bytes) => bytes,
                Err(error) if is_damage(&error) => {
                    let reason = error.to_string();
                    taken.failed.extend(members.iter().map(|(place, blob)| {
                        let object = crate::reader::open::blob_name(&blob.id, place);
                        (*blob, Some(read.pack), RepositoryError::damaged(object, reason.clone()))
                    }));
                    continue;
                }
                Err(error) => return Err(error),
            };
            for (place, blob) in members {
                match self.take_one(&mut scratch, read.part(&bytes, place), place, blob) {
                    Ok(tree) => taken.trees.extend(tree),
                    Err(error) if is_damage(&error) => {
                        taken.failed.push((*blob, Some(read.pack), error));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(taken)
    }

    fn take_one(
        &self,
        scratch: &mut Scratch,
        sealed: &[u8],
        place: &BlobPlace,
        blob: &Wanted,
    ) -> Result<Option<Tree>, RepositoryError> {
        let content = scratch.opener.open(&blob.id, place, sealed)?;
        let tree = match place.blob_type {
            BlobType::Tree => Some(Tree::parse(&blob.id, content)?),
            BlobType::Data => None,
        };
        if blob.is_new {
            self.count(place);
            if !self.context.only_count {
                self.send(scratch, place, blob.id)?;
            }
        }
        Ok(tree)
    }

    fn count(&self, place: &BlobPlace) {
        let progress = &self.context.progress;
        let blobs = match place.blob_type {
            BlobType::Data => &progress.data_blobs,
            BlobType::Tree => &progress.tree_blobs,
        };
        blobs.fetch_add(1, Ordering::Relaxed);
        progress.content_bytes.fetch_add(u64::from(place.content_length()), Ordering::Relaxed);
        progress.stored_bytes.fetch_add(u64::from(place.length), Ordering::Relaxed);
    }

    /// Seals the blob that was opened last, proves that it opens to the same, and adds it to a pack.
    fn send(&self, scratch: &mut Scratch, place: &BlobPlace, id: BlobId) -> Result<(), RepositoryError> {
        let text = scratch.opener.stored(place);
        let mismatch = |stage| RepositoryError::EncodingMismatch {
            blob: id,
            size_bytes: place.content_length() as usize,
            stage,
        };
        scratch.sealed.clear();
        self.context.sealer.seal(text, &mut scratch.sealed);
        if fail_point::hit_io("repository.encode.damage").is_err() {
            // What broken memory does, for a test.
            let middle = scratch.sealed.len() / 2;
            scratch.sealed[middle] ^= 1;
        }
        let opened = self.context.sealer.open(&scratch.sealed, &mut scratch.opened);
        opened.map_err(|_| mismatch("it did not open"))?;
        if scratch.opened != text {
            return Err(mismatch("its bytes differ"));
        }
        let full = {
            let mut open = match place.blob_type {
                BlobType::Data => self.data.lock(),
                BlobType::Tree => self.tree.lock(),
            };
            open.push(id, &scratch.sealed, place.uncompressed_length);
            let is_full = open.len() >= PACK_BYTES || open.entries_full();
            is_full.then(|| std::mem::replace(&mut *open, PackBuilder::new(place.blob_type, PACK_BYTES)))
        };
        full.map_or(Ok(()), |pack| self.put(pack))
    }

    fn put(&self, pack: PackBuilder) -> Result<(), RepositoryError> {
        let pack = pack.finish(&self.context.sealer);
        fail_point::hit("copy-before-pack");
        self.wait(self.context.to.put_pack(pack))?;
        fail_point::hit("copy-after-pack");
        self.context.progress.packs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// The text of the object that makes a copy of a snapshot: that of its origin, whatever program wrote it, without the
/// parent, which may not be there, and with the id of the origin as `original`, so that `restic` knows the two for the
/// same. A copy of a copy names the first of them.
///
/// # Errors
/// `HF-3006` when the text is no snapshot.
pub fn copied_snapshot(origin: SnapshotId, text: &[u8], sent: &Sent) -> Result<Vec<u8>, RepositoryError> {
    let name = ObjectName::Snapshot(origin);
    let damaged = |error| RepositoryError::damaged(name, format!("it is no snapshot: {error}"));
    let mut object: serde_json::Map<String, Value> = serde_json::from_slice(text).map_err(damaged)?;
    object.remove("parent");
    if object.get("original").is_none_or(Value::is_null) {
        object.insert("original".to_owned(), origin.to_hex().into());
    }
    if let Some(Value::Object(summary)) = object.get_mut("summary") {
        // What it took in the repository that has it.
        for (key, value) in [
            ("data_blobs", sent.data_blobs),
            ("tree_blobs", sent.tree_blobs),
            ("data_added", sent.content_bytes),
            ("data_added_packed", sent.stored_bytes),
        ] {
            summary.insert(key.to_owned(), value.into());
        }
    }
    Ok(serde_json::to_vec(&object).expect("numbers and strings always serialise"))
}
