//! Which packs there are, and which blobs the snapshots need.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::TryStreamExt;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::error::RepositoryError;
use crate::format::{ObjectKind, ObjectName};
use crate::id::{BlobId, BlobType, IdSet, IndexId, PackId};
use crate::index::{BlobLocations, WorkIndex};
use crate::marks::{KnownIds, Marks};
use crate::pack::PackEntry;
use crate::pack_list::{PackSummary, Packs};
use crate::reader::{BlobReader, LOCATE_BATCH, LocalSource};
use crate::repository::Repository;
use crate::storage::StorageErrorKind;
use crate::tree::Tree;

/// Folders that are opened before the ones below them are gathered.
const TREES_AT_ONCE: usize = 4096;
/// Fewer folders than this are not worth a thread of their own.
const TREES_PER_THREAD_MIN: usize = 32;
/// Text of folders that one thread holds at a time.
const TREE_BYTES_AT_ONCE: u64 = 8 << 20;
/// Lost blobs that are named.
const LOST_NAMED: usize = 100;

/// How a survey is made.
#[derive(Debug, Clone, Default)]
pub struct SurveyOptions {
    /// Packs that were found damaged before: of a blob that is in another pack too, the other one counts.
    pub doubted: Vec<PackId>,
    /// Threads that open folders; the number of cores when missing.
    pub threads: Option<usize>,
}

/// Counts that grow while a prune is under way.
#[derive(Debug, Default)]
pub struct PruneProgress {
    /// Folders that were opened.
    pub trees: AtomicU64,
    /// Bytes of packs that were read to be repacked.
    pub bytes_read: AtomicU64,
    /// Bytes of packs that are to be repacked.
    pub bytes_total: AtomicU64,
}

/// Something for blobs of either type. A file may have the very content of a folder, so an id alone says too little.
#[derive(Debug, Default)]
pub(super) struct ByType<T> {
    data: T,
    tree: T,
}

impl<T> ByType<T> {
    pub(super) fn of(&self, blob_type: BlobType) -> &T {
        match blob_type {
            BlobType::Data => &self.data,
            BlobType::Tree => &self.tree,
        }
    }

    pub(super) fn of_mut(&mut self, blob_type: BlobType) -> &mut T {
        match blob_type {
            BlobType::Data => &mut self.data,
            BlobType::Tree => &mut self.tree,
        }
    }
}

/// Which blobs are in a set.
pub(super) type BlobSet = ByType<Marks>;

impl BlobSet {
    pub(super) fn insert(&mut self, entry: &PackEntry) -> bool {
        self.of_mut(entry.blob_type).mark(&entry.id)
    }

    pub(super) fn contains(&self, entry: &PackEntry) -> bool {
        self.of(entry.blob_type).contains(&entry.id)
    }
}

/// What a repository holds, and what of it is needed.
pub struct Survey {
    pub(super) repository: Repository,
    pub(super) handle: Handle,
    pub(super) token: CancellationToken,
    known: ByType<Arc<KnownIds>>,
    /// What the snapshots need.
    pub(super) needed: BlobSet,
    pub(super) packs: Packs,
    /// Packs that are not relied on: found damaged, or not as the index says.
    pub(super) doubted: IdSet<PackId>,
    pub(super) indexes: Vec<IndexId>,
    pub(super) snapshots: u64,
    pub(super) trees: u64,
    /// Blobs that are needed and in no index, the first of them.
    pub(super) lost: Vec<BlobId>,
    pub(super) lost_total: u64,
}

impl Survey {
    /// A set without blobs.
    pub(super) fn empty_set(&self) -> BlobSet {
        ByType { data: self.known.data.marks(), tree: self.known.tree.marks() }
    }

    pub(super) fn cancelled(&self) -> Result<(), RepositoryError> {
        if self.token.is_cancelled() { Err(RepositoryError::Cancelled) } else { Ok(()) }
    }

    /// Waits for a call, unless the work is cancelled.
    pub(super) fn wait<T>(
        &self,
        call: impl Future<Output = Result<T, RepositoryError>>,
    ) -> Result<T, RepositoryError> {
        let done = self.handle.block_on(self.token.run_until_cancelled(call));
        done.unwrap_or(Err(RepositoryError::Cancelled))
    }

    /// The packs of one index object.
    pub(super) fn read_index(&self, id: IndexId) -> Result<Vec<(PackId, Vec<PackEntry>)>, RepositoryError> {
        self.cancelled()?;
        let mut packs = Vec::new();
        self.wait(self.repository.visit_index(id, |pack, entries| packs.push((pack, entries.to_vec()))))?;
        Ok(packs)
    }

    /// Whether a pack is in the storage and what the index says of it, as far as is known.
    pub(super) fn is_sound(&self, pack: &PackId) -> bool {
        !self.doubted.contains(pack)
    }
}

/// Does work that blocks, on a thread that may. Dropping the future cancels it.
pub(super) async fn blocking<T: Send + 'static>(
    token: &CancellationToken,
    work: impl FnOnce(CancellationToken) -> Result<T, RepositoryError> + Send + 'static,
) -> Result<T, RepositoryError> {
    let token = token.child_token();
    let _cancel_when_dropped = token.clone().drop_guard();
    match tokio::task::spawn_blocking(move || work(token)).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(RepositoryError::Cancelled),
    }
}

/// Reads index and snapshots and walks every folder. What the index objects say of folders goes into `index`, which is
/// empty at first.
///
/// # Errors
/// `HF-3005` and `HF-3006` for whatever keeps it from knowing all that is needed: an index object, a snapshot or a folder
/// that is gone or damaged, index objects that contradict each other. Those of the storage, and `HF-4010` when cancelled.
pub async fn survey(
    repository: &Repository,
    index: Arc<dyn WorkIndex>,
    options: SurveyOptions,
    progress: Arc<PruneProgress>,
    cancelled: &CancellationToken,
) -> Result<Survey, RepositoryError> {
    let (repository, handle) = (repository.clone(), Handle::current());
    let survey = blocking(cancelled, move |token| {
        let maker = Maker { repository, index, options, progress, handle, token };
        maker.make()
    });
    // The survey is used after this call, whose own token ends with it.
    survey.await.map(|survey| Survey { token: cancelled.clone(), ..survey })
}

struct Maker {
    repository: Repository,
    index: Arc<dyn WorkIndex>,
    options: SurveyOptions,
    progress: Arc<PruneProgress>,
    handle: Handle,
    token: CancellationToken,
}

/// What the walk through the folders found.
struct Found {
    needed: BlobSet,
    /// Folders that were opened or wait to be.
    seen: Marks,
    lost: Vec<BlobId>,
    lost_total: u64,
    trees: u64,
}

impl Maker {
    fn make(self) -> Result<Survey, RepositoryError> {
        // In this order: what a snapshot that is listed needs was indexed before it.
        let (snapshots, roots) = self.snapshots()?;
        let mut packs = self.list_packs()?;
        let mut doubted: IdSet<PackId> = self.options.doubted.iter().copied().collect();
        let (known, indexes) = self.read_indexes(&mut packs, &mut doubted)?;
        let found = self.walk(&known, &roots)?;
        Ok(Survey {
            repository: self.repository,
            handle: self.handle,
            token: self.token,
            known,
            needed: found.needed,
            packs,
            doubted,
            indexes,
            snapshots,
            trees: found.trees,
            lost: found.lost,
            lost_total: found.lost_total,
        })
    }

    fn wait<T>(&self, call: impl Future<Output = Result<T, RepositoryError>>) -> Result<T, RepositoryError> {
        let done = self.handle.block_on(self.token.run_until_cancelled(call));
        done.unwrap_or(Err(RepositoryError::Cancelled))
    }

    fn snapshots(&self) -> Result<(u64, Vec<BlobId>), RepositoryError> {
        let mut trees = Vec::new();
        for id in self.wait(self.repository.snapshot_ids())? {
            match self.wait(self.repository.snapshot(id)) {
                Ok(snapshot) => trees.push(snapshot.tree),
                // It was forgotten since it was listed.
                Err(RepositoryError::SnapshotUnknown { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((trees.len() as u64, trees))
    }

    fn list_packs(&self) -> Result<Packs, RepositoryError> {
        let listed = self.wait(async {
            let listed = self.repository.store().list(ObjectKind::Pack).await?;
            let packs = listed.try_filter_map(|(name, size)| async move {
                Ok(match name {
                    ObjectName::Pack(pack) => Some((pack, size)),
                    _ => None,
                })
            });
            Ok(packs.try_collect().await?)
        })?;
        Ok(Packs::new(listed))
    }

    fn read_indexes(
        &self,
        packs: &mut Packs,
        doubted: &mut IdSet<PackId>,
    ) -> Result<(ByType<Arc<KnownIds>>, Vec<IndexId>), RepositoryError> {
        doubted.iter().for_each(|pack| self.index.doubt(*pack));
        let mut ids: ByType<Vec<u64>> = ByType::default();
        let indexes = self.wait(self.repository.index_ids())?;
        for &id in &indexes {
            let mut entered = Vec::new();
            let mut contradiction = None;
            self.wait(self.repository.visit_index(id, |pack, entries| {
                let described = packs.describe(pack, PackSummary::of(entries));
                if !described.as_before {
                    contradiction = Some(pack);
                }
                if !described.as_stored && doubted.insert(pack) {
                    self.index.doubt(pack);
                }
                for entry in entries {
                    ids.of_mut(entry.blob_type).push(KnownIds::prefix(&entry.id));
                }
                // Only folders are looked for.
                let trees: Vec<PackEntry> =
                    entries.iter().filter(|entry| entry.blob_type == BlobType::Tree).copied().collect();
                if !trees.is_empty() {
                    entered.push((pack, trees));
                }
            }))?;
            if let Some(pack) = contradiction {
                let reason = format!("index {id} describes other blobs in it than another index object");
                return Err(RepositoryError::damaged(ObjectName::Pack(pack), reason));
            }
            self.wait(self.index.enter(entered))?;
        }
        // What somebody stored and indexed since the packs were listed is not gone.
        let absent: Vec<PackId> = packs.absent().map(|(pack, _)| *pack).collect();
        for pack in absent {
            let size =
                self.wait(async { Ok(self.repository.store().size(&ObjectName::Pack(pack)).await) })?;
            match size {
                Ok(size) if packs.came(pack, size) && !self.options.doubted.contains(&pack) => {
                    doubted.remove(&pack);
                }
                Ok(_) => {}
                Err(error) if error.kind() == StorageErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        let known =
            ByType { data: Arc::new(KnownIds::new(ids.data)), tree: Arc::new(KnownIds::new(ids.tree)) };
        Ok((known, indexes))
    }

    /// Opens every folder below the roots once.
    fn walk(&self, known: &ByType<Arc<KnownIds>>, roots: &[BlobId]) -> Result<Found, RepositoryError> {
        let needed = ByType { data: known.data.marks(), tree: known.tree.marks() };
        let seen = known.tree.marks();
        let found = Mutex::new(Found { needed, seen, lost: Vec::new(), lost_total: 0, trees: 0 });
        let mut waiting = Vec::new();
        found.lock().need_trees(known, roots.iter().copied(), &mut waiting)?;
        let local = LocalSource::new(
            Arc::clone(self.repository.store()),
            Arc::clone(&self.index) as Arc<dyn BlobLocations>,
        );
        let reader = BlobReader::new(Arc::new(local), Arc::clone(self.repository.sealer()));
        while !waiting.is_empty() {
            let now = waiting.split_off(waiting.len().saturating_sub(TREES_AT_ONCE));
            let now = self.in_order(now)?;
            let cores = || std::thread::available_parallelism().map_or(1, usize::from);
            let threads = self.options.threads.unwrap_or_else(cores).clamp(1, 64);
            let share = now.len().div_ceil(threads).max(TREES_PER_THREAD_MIN);
            let below = std::thread::scope(|scope| {
                let (reader, found) = (&reader, &found);
                let workers: Vec<_> = now
                    .chunks(share)
                    .map(|ids| scope.spawn(move || self.open(reader, known, ids, found)))
                    .collect();
                let mut below = Vec::new();
                for worker in workers {
                    below.extend(worker.join().unwrap_or(Err(RepositoryError::Pipeline("walking folders")))?);
                }
                Ok::<_, RepositoryError>(below)
            })?;
            waiting.extend(below);
        }
        Ok(found.into_inner())
    }

    /// The folders in the order in which they lie in their packs.
    fn in_order(&self, ids: Vec<BlobId>) -> Result<Vec<BlobId>, RepositoryError> {
        let mut places = Vec::with_capacity(ids.len());
        for ids in ids.chunks(LOCATE_BATCH) {
            for (id, place) in ids.iter().zip(self.wait(self.index.locate(BlobType::Tree, ids))?) {
                let place = place.ok_or(RepositoryError::BlobMissing { blob: *id })?;
                places.push((place.pack, place.entry.offset, *id));
            }
        }
        places.sort_unstable();
        Ok(places.into_iter().map(|(_, _, id)| id).collect())
    }

    /// Opens some folders, notes what they need, and gives the folders below that are new.
    fn open(
        &self,
        reader: &BlobReader,
        known: &ByType<Arc<KnownIds>>,
        mut ids: &[BlobId],
        found: &Mutex<Found>,
    ) -> Result<Vec<BlobId>, RepositoryError> {
        let mut below = Vec::new();
        while !ids.is_empty() {
            let trees = self.wait(reader.load_trees(ids, TREE_BYTES_AT_ONCE))?;
            ids = &ids[trees.len()..];
            self.progress.trees.fetch_add(trees.len() as u64, Ordering::Relaxed);
            let mut found = found.lock();
            for (tree, _) in trees {
                found.need(known, &tree, &mut below)?;
            }
        }
        Ok(below)
    }
}

impl Found {
    fn need(
        &mut self,
        known: &ByType<Arc<KnownIds>>,
        tree: &Tree,
        below: &mut Vec<BlobId>,
    ) -> Result<(), RepositoryError> {
        self.trees += 1;
        for node in &tree.nodes {
            for id in &node.content {
                if known.data.contains(id) {
                    self.needed.data.mark(id);
                    continue;
                }
                self.lost_total += 1;
                if self.lost.len() < LOST_NAMED {
                    self.lost.push(*id);
                }
            }
        }
        self.need_trees(known, tree.nodes.iter().filter_map(|node| node.subtree), below)
    }

    fn need_trees(
        &mut self,
        known: &ByType<Arc<KnownIds>>,
        ids: impl Iterator<Item = BlobId>,
        new: &mut Vec<BlobId>,
    ) -> Result<(), RepositoryError> {
        for id in ids {
            if !known.tree.contains(&id) {
                // What is below it is not known, so nothing may go.
                return Err(RepositoryError::BlobMissing { blob: id });
            }
            self.needed.tree.mark(&id);
            if self.seen.mark(&id) {
                new.push(id);
            }
        }
        Ok(())
    }
}
