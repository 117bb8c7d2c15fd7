//! The index of blobs in one folder.
//!
//! ```text
//! lock        held while the index is open
//! marker      whether the rest can be trusted, and is complete
//! packs       numbers of packs
//! removed     packs that are gone
//! N.segment   sorted slots; merged when four of a size have come together
//! N.log       what is in no segment yet
//! ```

use std::collections::{HashMap, HashSet, hash_map};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use async_trait::async_trait;
use holdfast_repository::id::{BlobId, BlobType, PackId};
use holdfast_repository::index::BlobLocation;
use holdfast_repository::pack::PackEntry;
use holdfast_runtime::durable_file::{self, FolderLock};
use holdfast_runtime::{OnEnd, TaskGroup, fail_point};
use parking_lot::{Condvar, Mutex, RwLock};

use super::files::{Marker, file_path, numbered, remove_file, remove_unfinished, wipe};
use super::merge::{self, Merge};
use super::packs::{Packs, Removed};
use super::recent::{Log, Recent};
use super::segment::{BlockCache, Segment};
use super::slot::PackNumber;
use super::slot::Slot;
use super::{BlobIndex, BlobIndexError};

/// Where the index is and how much memory it may take.
#[derive(Debug, Clone)]
pub struct BlobIndexSettings {
    /// The folder; made if it is not there.
    pub folder: PathBuf,
    /// What tells one boot of the machine from the next; without it every crash asks for a rebuild.
    pub boot_id: Option<String>,
    /// Slots that are kept in memory before they become a segment; each takes about 100 bytes, twice at worst.
    pub recent_slots_max: usize,
    /// Memory for the filters of all segments, about; there are rarely more than eight large ones.
    pub filters_bytes: u64,
}

impl BlobIndexSettings {
    /// 65,536 recent slots (13 MiB) and 32 MiB of filters; 100 million blobs take 10 MiB more.
    pub fn new(folder: impl Into<PathBuf>, boot_id: Option<String>) -> Self {
        Self { folder: folder.into(), boot_id, recent_slots_max: 65_536, filters_bytes: 32 << 20 }
    }

    fn marker(&self) -> PathBuf {
        self.folder.join("marker")
    }

    fn filter_bytes_max(&self) -> u64 {
        self.filters_bytes / 8
    }
}

/// What readers look at.
#[derive(Debug)]
struct State {
    recent: Recent,
    /// What becomes a segment now, with the log that is removed after.
    frozen: Option<(Arc<Recent>, PathBuf)>,
    segments: Vec<Arc<Segment>>,
    packs: Arc<Packs>,
    removed: Arc<Removed>,
    /// Packs that are not relied on.
    doubted: Arc<HashSet<PackNumber>>,
}

#[derive(Debug, Default)]
struct Signal {
    work: bool,
    stop: bool,
}

/// Locks are taken in the order writing, maintenance, signal, state.
#[derive(Debug)]
struct Inner {
    settings: BlobIndexSettings,
    /// The log of the recent slots: held by the one who writes.
    writing: Mutex<Log>,
    /// Held while segments are made or removed.
    maintenance: Mutex<()>,
    state: RwLock<State>,
    signal: Mutex<Signal>,
    wake: Condvar,
    written_out: Condvar,
    /// Why nothing more is taken until the index is rebuilt.
    failure: Mutex<Option<Arc<BlobIndexError>>>,
    complete: AtomicBool,
    /// No file has had this number.
    next_file: AtomicU64,
    worker: Mutex<Option<JoinHandle<()>>>,
    lock: Mutex<Option<FolderLock>>,
}

/// The index of blobs in one folder. Close it with [`DiskBlobIndex::close`], or drop it, which waits for the disk.
#[derive(Debug)]
pub struct DiskBlobIndex {
    inner: Arc<Inner>,
    tasks: TaskGroup,
}

impl DiskBlobIndex {
    /// Opens the index in a folder, or begins an empty one, which is not complete. Blocks for moments.
    ///
    /// After a loss of power, and when a file is damaged, it begins anew: then it has to be rebuilt.
    ///
    /// # Errors
    /// The file system refuses, or another process has it open.
    pub fn open(settings: BlobIndexSettings, tasks: &TaskGroup) -> Result<Self, BlobIndexError> {
        let folder = &settings.folder;
        durable_file::create_folders(folder)
            .map_err(BlobIndexError::io("making the folder of the blob index", folder))?;
        let lock = FolderLock::take(folder).map_err(BlobIndexError::io("locking the blob index", folder))?;
        let marker = Marker::read(&settings.marker())?;
        let trusted = marker.filter(|marker| {
            marker.clean || (settings.boot_id.is_some() && marker.boot_id == settings.boot_id)
        });
        let mut complete = trusted.as_ref().is_some_and(|marker| marker.complete);
        if trusted.is_none() {
            wipe(folder)?;
        }
        let (state, log, next_file) = match load(folder) {
            Ok(loaded) => loaded,
            Err(BlobIndexError::Damaged { path, reason }) => {
                tracing::warn!(path = %path.display(), reason, "the blob index is damaged and is begun anew");
                complete = false;
                wipe(folder)?;
                load(folder)?
            }
            Err(error) => return Err(error),
        };
        Marker { boot_id: settings.boot_id.clone(), clean: false, complete }.write(&settings.marker())?;
        let inner = Arc::new(Inner {
            writing: Mutex::new(log),
            maintenance: Mutex::new(()),
            state: RwLock::new(state),
            signal: Mutex::default(),
            wake: Condvar::new(),
            written_out: Condvar::new(),
            failure: Mutex::default(),
            complete: AtomicBool::new(complete),
            next_file: AtomicU64::new(next_file),
            worker: Mutex::default(),
            lock: Mutex::new(Some(lock)),
            settings,
        });
        let working = inner.clone();
        let worker = std::thread::Builder::new()
            .name("blob-index".to_owned())
            .spawn(move || working.work())
            .map_err(BlobIndexError::io("starting a thread", &inner.settings.folder))?;
        *inner.worker.lock() = Some(worker);
        Ok(Self { inner, tasks: tasks.clone() })
    }

    /// Writes everything out, so that the index survives even a loss of power afterwards, and gives the folder free.
    /// Nothing is entered any more.
    ///
    /// # Errors
    /// The file system refuses; the index then has to be rebuilt.
    pub async fn close(&self) -> Result<(), BlobIndexError> {
        self.blocking(Inner::close).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, BlobIndexError> + Send + 'static,
    ) -> Result<T, BlobIndexError> {
        let inner = self.inner.clone();
        let task = self.tasks.spawn_blocking("blob-index", OnEnd::Isolated, move || work(&inner));
        task.join().await.map_err(|_| BlobIndexError::Closed)?
    }
}

impl Drop for DiskBlobIndex {
    fn drop(&mut self) {
        if let Err(error) = self.inner.close() {
            tracing::warn!(%error, "a blob index was not closed in order and has to be rebuilt");
        }
    }
}

#[async_trait]
impl BlobIndex for DiskBlobIndex {
    async fn lookup(
        &self,
        blob_type: BlobType,
        ids: Vec<BlobId>,
    ) -> Result<Vec<Option<BlobLocation>>, BlobIndexError> {
        self.blocking(move |inner| inner.checked(|inner| inner.lookup(blob_type, &ids))).await
    }

    async fn contains(&self, blob_type: BlobType, ids: Vec<BlobId>) -> Result<Vec<bool>, BlobIndexError> {
        let find = move |inner: &Inner| {
            let (found, _) = inner.find(blob_type, &ids, false)?;
            Ok(found.iter().map(Option::is_some).collect())
        };
        self.blocking(move |inner| inner.checked(find)).await
    }

    async fn insert(&self, packs: Vec<(PackId, Vec<PackEntry>)>) -> Result<(), BlobIndexError> {
        self.blocking(move |inner| inner.checked(|inner| inner.insert(packs))).await
    }

    async fn remove_packs(&self, packs: Vec<PackId>) -> Result<(), BlobIndexError> {
        self.blocking(move |inner| inner.remove_packs(&packs)).await
    }

    async fn begin_rebuild(&self) -> Result<(), BlobIndexError> {
        self.blocking(Inner::begin_rebuild).await
    }

    async fn finish_rebuild(&self) -> Result<(), BlobIndexError> {
        self.blocking(Inner::finish_rebuild).await
    }

    fn packs(&self) -> Vec<PackId> {
        self.inner.state.read().packs.ids()
    }

    fn doubt_only(&self, packs: &[PackId]) {
        let mut state = self.inner.state.write();
        state.doubted = Arc::new(state.packs.numbers_of(packs).into_iter().collect());
    }

    fn contains_pack(&self, pack: &PackId) -> bool {
        self.inner.state.read().packs.contains(pack)
    }

    fn counts(&self) -> (usize, u64) {
        let state = self.inner.state.read();
        let frozen = state.frozen.as_ref().map_or(0, |(frozen, _)| frozen.len());
        let segments: u64 = state.segments.iter().map(|segment| segment.slots()).sum();
        (state.packs.len(), (state.recent.len() + frozen) as u64 + segments)
    }

    fn is_complete(&self) -> bool {
        self.inner.complete.load(Ordering::Acquire)
    }
}

/// State, log, and the first number that no file has had.
fn load(folder: &Path) -> Result<(State, Log, u64), BlobIndexError> {
    remove_unfinished(folder)?;
    let segment_files = numbered(folder, ".segment")?;
    let log_files = numbered(folder, ".log")?;
    let newest = segment_files.iter().chain(&log_files).map(|(number, _)| *number).max().unwrap_or(0);
    let segments = segment_files.iter().map(|(_, path)| Segment::open(path).map(Arc::new));
    let segments = segments.collect::<Result<Vec<_>, _>>()?;
    let removed = Removed::read(&folder.join("removed"))?;
    let packs = Packs::open(&folder.join("packs"), &removed)?;
    let mut slots = Vec::new();
    for (_, path) in &log_files {
        Log::read(path, |slot| slots.push(slot))?;
    }
    // Packs are listed once their blobs are in the log. A crash may leave some there that are not, never the reverse.
    slots.retain(|slot: &Slot| slot.pack() < packs.end());
    let in_segments = segments.iter().map(|segment| segment.packs_end()).max().unwrap_or(0);
    let in_logs = slots.iter().map(|slot| slot.pack() + 1).max().unwrap_or(0);
    let damaged = |reason| Err(BlobIndexError::Damaged { path: folder.to_owned(), reason });
    if packs.end() < in_segments.max(removed.end()) {
        return damaged("the list of packs is too short");
    }
    if packs.end() > in_segments.max(removed.end()).max(in_logs) {
        return damaged("the blobs of a pack are missing");
    }
    // One log again, without the torn end that the last one may have.
    let mut log = Log::begin(&file_path(folder, newest + 1, ".log"))?;
    log.append(&slots)?;
    for (_, path) in &log_files {
        remove_file(path)?;
    }
    let mut recent = Recent::default();
    slots.into_iter().for_each(|slot| recent.insert(slot));
    let state = State {
        recent,
        frozen: None,
        segments,
        packs: Arc::new(packs),
        removed: Arc::new(removed),
        doubted: Arc::default(),
    };
    Ok((state, log, newest + 2))
}

impl Inner {
    /// A damaged file means that the index is no longer complete.
    fn checked<T>(&self, work: impl FnOnce(&Self) -> Result<T, BlobIndexError>) -> Result<T, BlobIndexError> {
        work(self).inspect_err(|error| {
            if matches!(error, BlobIndexError::Damaged { .. }) && self.complete.swap(false, Ordering::AcqRel)
            {
                tracing::error!(%error, "a blob index has to be rebuilt");
                if let Err(error) = self.write_marker(false, false) {
                    tracing::error!(%error, "the marker of the blob index could not be written");
                }
            }
        })
    }

    fn write_marker(&self, clean: bool, complete: bool) -> Result<(), BlobIndexError> {
        let marker = Marker { boot_id: self.settings.boot_id.clone(), clean, complete };
        marker.write(&self.settings.marker())
    }

    fn usable(&self) -> Result<(), BlobIndexError> {
        self.running()?;
        self.failure.lock().clone().map_or(Ok(()), |error| Err(BlobIndexError::Failed(error)))
    }

    fn running(&self) -> Result<(), BlobIndexError> {
        if self.signal.lock().stop { Err(BlobIndexError::Closed) } else { Ok(()) }
    }

    /// Takes nothing more until the index is rebuilt.
    fn fail(&self, error: BlobIndexError) -> BlobIndexError {
        self.complete.store(false, Ordering::Release);
        let error = Arc::new(error);
        self.failure.lock().get_or_insert_with(|| error.clone());
        BlobIndexError::Failed(error)
    }

    /// The live slot of each blob of one type in a pack that is relied on, else, with `doubtful`, in any; and the packs that their
    /// numbers belong to.
    fn find(
        &self,
        blob_type: BlobType,
        ids: &[BlobId],
        doubtful: bool,
    ) -> Result<(Vec<Option<Slot>>, Arc<Packs>), BlobIndexError> {
        let doubted = self.state.read().doubted.clone();
        let (mut found, packs) =
            self.find_where(ids, &|slot| slot.blob_type() == blob_type && !doubted.contains(&slot.pack()))?;
        if doubtful && !doubted.is_empty() {
            let open: Vec<usize> = (0..ids.len()).filter(|&place| found[place].is_none()).collect();
            let wanted: Vec<BlobId> = open.iter().map(|&place| ids[place]).collect();
            let (rest, _) = self.find_where(&wanted, &|slot| slot.blob_type() == blob_type)?;
            open.into_iter().zip(rest).for_each(|(place, slot)| found[place] = slot);
        }
        Ok((found, packs))
    }

    fn find_where(
        &self,
        ids: &[BlobId],
        accept: &dyn Fn(&Slot) -> bool,
    ) -> Result<(Vec<Option<Slot>>, Arc<Packs>), BlobIndexError> {
        let mut found: Vec<Option<Slot>>;
        let (frozen, mut segments, packs, removed);
        {
            let state = self.state.read();
            (packs, removed) = (state.packs.clone(), state.removed.clone());
            let live = |slot: &Slot| !removed.contains(slot.pack()) && accept(slot);
            found = ids.iter().map(|id| state.recent.find(id, live)).collect();
            frozen = state.frozen.as_ref().map(|(recent, _)| recent.clone());
            segments = state.segments.clone();
        }
        let live = |slot: &Slot| !removed.contains(slot.pack()) && accept(slot);
        let mut open: Vec<usize> = (0..ids.len()).filter(|&place| found[place].is_none()).collect();
        if let Some(frozen) = frozen {
            open.retain(|&place| {
                found[place] = frozen.find(&ids[place], live);
                found[place].is_none()
            });
        }
        // Sorted questions read each block once; the largest segment answers most.
        open.sort_unstable_by_key(|&place| ids[place]);
        segments.sort_unstable_by_key(|segment| std::cmp::Reverse(segment.slots()));
        for segment in segments {
            let mut cache = BlockCache::default();
            for &place in &open {
                found[place] = segment.find(&ids[place], &mut cache, live)?;
            }
            open.retain(|&place| found[place].is_none());
        }
        Ok((found, packs))
    }

    fn lookup(
        &self,
        blob_type: BlobType,
        ids: &[BlobId],
    ) -> Result<Vec<Option<BlobLocation>>, BlobIndexError> {
        let (found, packs) = self.find(blob_type, ids, true)?;
        let mut names = HashMap::new();
        let mut location = |slot: Slot| -> Result<BlobLocation, BlobIndexError> {
            let name = match names.entry(slot.pack()) {
                hash_map::Entry::Occupied(known) => *known.get(),
                hash_map::Entry::Vacant(new) => *new.insert(packs.get(slot.pack())?),
            };
            Ok(slot.location(name))
        };
        found.into_iter().map(|slot| slot.map(&mut location).transpose()).collect()
    }

    fn insert(&self, mut packs: Vec<(PackId, Vec<PackEntry>)>) -> Result<(), BlobIndexError> {
        let mut log = self.writing.lock();
        self.usable()?;
        let numbers = self.state.read().packs.clone();
        let mut taken = HashSet::new();
        packs.retain(|(pack, entries)| !entries.is_empty() && !numbers.contains(pack) && taken.insert(*pack));
        if packs.is_empty() {
            return Ok(());
        }
        let slots: Vec<Slot> = (numbers.end()..)
            .zip(&packs)
            .flat_map(|(number, (_, entries))| entries.iter().map(move |entry| Slot::new(number, entry)))
            .collect();
        let names: Vec<PackId> = packs.iter().map(|(pack, _)| *pack).collect();
        // In this order: a pack that is listed has all its blobs.
        log.append(&slots).and_then(|()| numbers.add(&names)).map_err(|error| self.fail(error))?;
        let full = {
            let mut state = self.state.write();
            slots.into_iter().for_each(|slot| state.recent.insert(slot));
            state.recent.len() >= self.settings.recent_slots_max
        };
        if full { self.freeze(&mut log) } else { Ok(()) }
    }

    /// Hands the recent slots to the thread that writes segments, once it is done with those before.
    fn freeze(&self, log: &mut Log) -> Result<(), BlobIndexError> {
        let mut signal = self.signal.lock();
        while self.state.read().frozen.is_some() {
            if self.failure.lock().is_some() || signal.stop {
                drop(signal);
                return self.usable();
            }
            self.written_out.wait(&mut signal);
        }
        let new = Log::begin(&self.new_file(".log"))?;
        let old = std::mem::replace(log, new).path().to_owned();
        let empty = Recent::with_room(self.settings.recent_slots_max);
        let mut state = self.state.write();
        let recent = std::mem::replace(&mut state.recent, empty);
        state.frozen = Some((Arc::new(recent), old));
        drop(state);
        signal.work = true;
        drop(signal);
        self.wake.notify_one();
        Ok(())
    }

    fn new_file(&self, suffix: &str) -> PathBuf {
        file_path(&self.settings.folder, self.next_file.fetch_add(1, Ordering::Relaxed), suffix)
    }

    fn work(&self) {
        loop {
            {
                let mut signal = self.signal.lock();
                while !signal.work && !signal.stop {
                    self.wake.wait(&mut signal);
                }
                if signal.stop {
                    return;
                }
                signal.work = false;
            }
            let _maintenance = self.maintenance.lock();
            if let Err(error) = self.write_frozen().and_then(|()| self.merge()) {
                tracing::error!(%error, "a blob index could not be written");
                self.fail(error);
            }
            self.tell_writers();
        }
    }

    fn tell_writers(&self) {
        // Taken and given back, so that nobody is between looking and waiting.
        drop(self.signal.lock());
        self.written_out.notify_all();
    }

    /// Makes a segment of the frozen slots.
    fn write_frozen(&self) -> Result<(), BlobIndexError> {
        let Some((frozen, log)) = self.state.read().frozen.clone() else { return Ok(()) };
        // The number of the log is free for the segment: the suffix differs.
        let path = log.with_extension("segment");
        let merge = Merge { path, filter_bytes_max: self.settings.filter_bytes_max() };
        let segment = merge.write_sorted(frozen.sorted())?;
        fail_point::hit("blob-index-after-segment");
        let mut state = self.state.write();
        state.segments.extend(segment.map(Arc::new));
        state.frozen = None;
        drop(state);
        self.tell_writers();
        remove_file(&log)
    }

    /// Merges segments of a size until there are few of each.
    fn merge(&self) -> Result<(), BlobIndexError> {
        loop {
            let (segments, removed) = {
                let state = self.state.read();
                (state.segments.clone(), state.removed.clone())
            };
            let complete = self.complete.load(Ordering::Acquire);
            let sizes: Vec<u64> = segments.iter().map(|segment| segment.slots()).collect();
            let chosen = merge::choose(&sizes, self.settings.recent_slots_max as u64, complete);
            if chosen.is_empty() || self.signal.lock().stop {
                return Ok(());
            }
            let parts: Vec<Arc<Segment>> = chosen.iter().map(|&place| segments[place].clone()).collect();
            let merge =
                Merge { path: self.new_file(".segment"), filter_bytes_max: self.settings.filter_bytes_max() };
            let merged = merge.write_merged(&parts, &removed)?;
            fail_point::hit("blob-index-after-merge");
            {
                let mut state = self.state.write();
                state.segments.retain(|segment| !parts.iter().any(|part| Arc::ptr_eq(part, segment)));
                state.segments.extend(merged.map(Arc::new));
            }
            for part in parts {
                remove_file(part.path())?;
            }
        }
    }

    fn remove_packs(&self, packs: &[PackId]) -> Result<(), BlobIndexError> {
        let _writing = self.writing.lock();
        self.usable()?;
        let (numbers, removed) = {
            let state = self.state.read();
            (state.packs.clone(), state.removed.clone())
        };
        let mut removed = Removed::clone(&removed);
        numbers.numbers_of(packs).into_iter().for_each(|number| removed.insert(number));
        removed.write(&self.settings.folder.join("removed"))?;
        numbers.forget(packs);
        self.state.write().removed = Arc::new(removed);
        Ok(())
    }

    fn begin_rebuild(&self) -> Result<(), BlobIndexError> {
        let mut log = self.writing.lock();
        let _maintenance = self.maintenance.lock();
        self.running()?;
        self.complete.store(false, Ordering::Release);
        wipe(&self.settings.folder)?;
        self.write_marker(false, false)?;
        // Numbers go on: a reader may still hold a file of the old index open.
        let (state, new_log, _) = load(&self.settings.folder)?;
        *self.state.write() = state;
        *log = new_log;
        *self.failure.lock() = None;
        self.tell_writers();
        Ok(())
    }

    fn finish_rebuild(&self) -> Result<(), BlobIndexError> {
        let _writing = self.writing.lock();
        self.usable()?;
        self.write_marker(false, true)?;
        self.complete.store(true, Ordering::Release);
        self.signal.lock().work = true;
        self.wake.notify_one();
        Ok(())
    }

    fn close(&self) -> Result<(), BlobIndexError> {
        let Some(worker) = self.worker.lock().take() else { return Ok(()) };
        self.signal.lock().stop = true;
        self.wake.notify_all();
        self.written_out.notify_all();
        if worker.join().is_err() {
            tracing::error!("the thread of a blob index panicked");
        }
        let written = self.write_all_out();
        drop(self.lock.lock().take());
        written
    }

    /// The last work of an index that is closed; the thread has ended.
    fn write_all_out(&self) -> Result<(), BlobIndexError> {
        let mut log = self.writing.lock();
        let _maintenance = self.maintenance.lock();
        if self.failure.lock().is_some() {
            return wipe(&self.settings.folder);
        }
        self.write_frozen()?;
        let recent = std::mem::take(&mut self.state.write().recent);
        if !recent.is_empty() {
            let new = Log::begin(&self.new_file(".log"))?;
            let old = std::mem::replace(&mut *log, new).path().to_owned();
            self.state.write().frozen = Some((Arc::new(recent), old));
            self.write_frozen()?;
        }
        self.state.read().packs.sync()?;
        durable_file::sync_folder(&self.settings.folder)
            .map_err(BlobIndexError::io("making the blob index durable", &self.settings.folder))?;
        self.write_marker(true, self.complete.load(Ordering::Acquire))
    }
}
