//! The index of one repository's blobs, as this controller holds it: on disk what the repository's index objects say,
//! in memory the packs that are durable but in no index object yet.
//!
//! The part on disk is a cache. It is brought up to date when the repository is opened and when its catalog is synced:
//! index objects that were not entered yet are read, and when one that was entered is gone, it is built anew.

use std::path::PathBuf;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_model::text::counted;
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::RepositoryError;
use holdfast_repository::format::ObjectName;
use holdfast_repository::id::{BlobId, BlobType, IdSet, IndexId, PackId};
use holdfast_repository::index::{BlobLocation, IndexPack, MemoryIndex};
use holdfast_repository::lock;
use holdfast_repository::pack::PackEntry;
use holdfast_repository::prune_apply::{remove_from_index, take_back_index};
use holdfast_repository::storage::StorageErrorKind;
use holdfast_runtime::{SharedClock, TaskGroup, fail_point};
use parking_lot::RwLock;

use crate::pack_readings::PackReadings;
use crate::prune::lock_owner;
use crate::repositories::{OpenRepository, repository_failure, storage_failure};
use crate::repository_uses::RepositoryUses;
use crate::store::blob_index::{
    BlobIndex as _, BlobIndexError, BlobIndexSettings, DiskBlobIndex, EnteredIndexes,
};
use crate::store::boot_id;

/// Packs that may be durable but in no index object before one is written on the way.
const WAITING_PACKS_MAX: usize = 64;
/// Blobs of such packs; they are held in memory, 120 bytes each.
const WAITING_BLOBS_MAX: usize = 65_536;
/// How many times as many may wait while another program keeps index objects from being written.
const WAITING_LONGER: usize = 4;
/// Packs that are looked for at once.
const LOOKS_AT_ONCE: usize = 16;
/// How often the list of index objects is read again because another program replaces them meanwhile.
const LISTINGS_MAX: usize = 5;

/// The index. Whoever has the same repository open in the same place shares one.
pub struct RepositoryIndex {
    clock: SharedClock,
    blobs: DiskBlobIndex,
    waiting: RwLock<Waiting>,
    /// Orders the writing and the reading of index objects.
    turn: tokio::sync::Mutex<EnteredIndexes>,
    /// Held shared by those who ask, alone while the index is built anew.
    whole: tokio::sync::RwLock<()>,
    adopted: tokio::sync::OnceCell<usize>,
    /// The part on disk knows these by numbers, which change when it is built anew.
    unreliable: RwLock<Unreliable>,
    /// When its packs were last read.
    pub readings: PackReadings,
    /// What works with the repository and is no run.
    pub uses: RepositoryUses,
    /// Held shared by those who forget snapshots, and alone by a prune from its beginning to its end: what it found to be
    /// needed must not be forgotten, or it would take away what a backup under way goes on from.
    pub removing: Arc<tokio::sync::RwLock<()>>,
    /// Held by a copy from the question whether the repository has a snapshot until it has.
    pub copying: tokio::sync::Mutex<()>,
}

/// Packs whose blobs are not known, and located there only where they are in no other pack.
#[derive(Default)]
struct Unreliable {
    /// Damaged or gone.
    doubted: IdSet<PackId>,
    /// About to go.
    condemned: IdSet<PackId>,
    /// How often packs came to be doubted that were not.
    times_worse: u64,
}

impl Unreliable {
    fn doubt_only(&mut self, packs: IdSet<PackId>) {
        self.times_worse += u64::from(!packs.is_subset(&self.doubted));
        self.doubted = packs;
    }
}

/// Packs that are in no index object yet.
#[derive(Default)]
struct Waiting {
    packs: Vec<IndexPack>,
    index: MemoryIndex,
}

impl Waiting {
    fn push(&mut self, pack: IndexPack) {
        self.index.insert_pack(pack.id, &pack.entries);
        self.packs.push(pack);
    }

    /// Whether there are so many times as many as are written together.
    fn is_full(&self, times: usize) -> bool {
        self.packs.len() >= times * WAITING_PACKS_MAX || self.index.len() >= times * WAITING_BLOBS_MAX
    }

    /// Takes out these packs.
    fn remove(&mut self, packs: &IdSet<PackId>) {
        if packs.iter().any(|pack| self.index.contains_pack(pack)) {
            let rest = std::mem::take(self).packs;
            rest.into_iter().filter(|pack| !packs.contains(&pack.id)).for_each(|pack| self.push(pack));
        }
    }

    /// Takes out the packs that came first.
    fn remove_first(&mut self, count: usize) {
        let rest = self.packs.split_off(count);
        *self = Self::default();
        rest.into_iter().for_each(|pack| self.push(pack));
    }
}

fn index_failure(error: &BlobIndexError) -> Failure {
    Failure::from_error(error.code(), error)
}

impl RepositoryIndex {
    /// Opens the index in a folder, or begins an empty one. Then [`RepositoryIndex::update`] it.
    ///
    /// # Errors
    /// `HF-4004` when the file system refuses.
    pub fn open(folder: PathBuf, clock: SharedClock, tasks: &TaskGroup) -> Result<Self, Failure> {
        let settings = BlobIndexSettings::new(&folder, boot_id());
        let blobs = DiskBlobIndex::open(settings, tasks).map_err(|error| index_failure(&error))?;
        let entered = EnteredIndexes::open(&folder).map_err(|error| index_failure(&error))?;
        Ok(Self {
            clock,
            blobs,
            waiting: RwLock::default(),
            turn: tokio::sync::Mutex::new(entered),
            whole: tokio::sync::RwLock::default(),
            adopted: tokio::sync::OnceCell::new(),
            unreliable: RwLock::default(),
            readings: PackReadings::open(&folder.join("readings")),
            uses: RepositoryUses::default(),
            removing: Arc::default(),
            copying: tokio::sync::Mutex::default(),
        })
    }

    /// Does once what takes in the packs that are durable but in no index object; says how many those were.
    ///
    /// # Errors
    /// Those of `adopt`; then it is done again by the next who asks.
    pub async fn adopt_once(
        &self,
        adopt: impl Future<Output = Result<usize, Failure>> + Send,
    ) -> Result<usize, Failure> {
        self.adopted.get_or_try_init(|| adopt).await.copied()
    }

    /// Makes it durable and gives the folder free.
    ///
    /// # Errors
    /// `HF-4004` when the file system refuses.
    pub async fn close(&self) -> Result<(), Failure> {
        self.blobs.close().await.map_err(|error| index_failure(&error))
    }

    fn disturbed(&self, of: &OpenRepository, what: &str) -> Failure {
        self.uses.disturb();
        tracing::warn!(repository = %of.name, what, "another program took something away from the repository");
        let message = format!("{what} of repository {} were taken away by another program", of.name);
        Failure::new(ErrorCode::RepositoryDisturbed, message).at_stake("nothing was committed")
    }

    /// How many packs there are, and how many blobs, counted once for each pack that they are in.
    pub fn counts(&self) -> (usize, u64) {
        let (packs, blobs) = self.blobs.counts();
        let waiting = self.waiting.read();
        (packs + waiting.packs.len(), blobs + waiting.index.len() as u64)
    }

    /// The packs of the index objects that were entered. 32 bytes for each.
    pub fn packs(&self) -> Vec<PackId> {
        self.blobs.packs()
    }

    /// The packs that there are; nothing while the index is not complete.
    pub fn complete_packs(&self) -> Option<Vec<PackId>> {
        let _whole = self.whole.try_read().ok()?;
        self.blobs.is_complete().then(|| self.blobs.packs())
    }

    /// Relies no more on these packs, too: their blobs are not known any more, and are located there only where they
    /// are in no other pack.
    pub fn doubt(&self, packs: IdSet<PackId>) {
        let mut unreliable = self.unreliable.write();
        let all = unreliable.doubted.union(&packs).copied().collect();
        unreliable.doubt_only(all);
        self.tell_doubts(&unreliable);
    }

    /// Relies again on the packs in `settled`, and no more on those that were `found`.
    pub fn change_doubts(&self, settled: &IdSet<PackId>, found: &[PackId]) {
        let mut unreliable = self.unreliable.write();
        let kept = unreliable.doubted.difference(settled);
        let packs = kept.chain(found).copied().collect();
        unreliable.doubt_only(packs);
        self.tell_doubts(&unreliable);
    }

    /// Keeps others from these packs, and from no other: their blobs are not known any more, and are located there only
    /// where they are in no other pack. Forgotten when the process ends.
    pub fn condemn_only(&self, packs: IdSet<PackId>) {
        let mut unreliable = self.unreliable.write();
        unreliable.condemned = packs;
        self.tell_doubts(&unreliable);
    }

    fn tell_doubts(&self, unreliable: &Unreliable) {
        let all = unreliable.doubted.union(&unreliable.condemned);
        self.blobs.doubt_only(&all.copied().collect::<Vec<_>>());
    }

    /// The packs that are not relied on, in no order.
    pub fn doubted(&self) -> Vec<PackId> {
        self.unreliable.read().doubted.iter().copied().collect()
    }

    /// How often packs were found damaged or gone that had been relied on, since the repository was opened.
    pub fn times_worse(&self) -> u64 {
        self.unreliable.read().times_worse
    }

    /// Whether a pack is known.
    pub fn contains_pack(&self, pack: &PackId) -> bool {
        self.waiting.read().index.contains_pack(pack) || self.blobs.contains_pack(pack)
    }

    /// Which of these blobs of one type the repository has in packs that are relied on.
    ///
    /// # Errors
    /// `HF-4004`, or what building the index anew fails with.
    pub async fn known(
        &self,
        of: &OpenRepository,
        blob_type: BlobType,
        ids: &[BlobId],
    ) -> Result<Vec<bool>, Failure> {
        let waiting = |index: &MemoryIndex, id: &BlobId| index.contains(blob_type, id).then_some(true);
        let ask = |ids| self.blobs.contains(blob_type, ids);
        self.ask(of, ids, waiting, ask).await
    }

    /// Where these blobs of one type are.
    ///
    /// # Errors
    /// As for [`RepositoryIndex::known`].
    pub async fn locate(
        &self,
        of: &OpenRepository,
        blob_type: BlobType,
        ids: &[BlobId],
    ) -> Result<Vec<Option<BlobLocation>>, Failure> {
        let waiting = |index: &MemoryIndex, id: &BlobId| index.get(blob_type, id).map(Some);
        let ask = |ids| self.blobs.lookup(blob_type, ids);
        self.ask(of, ids, waiting, ask).await
    }

    /// Asks the packs that wait first, then the disk: on the way from one to the other a pack is in both. An index that
    /// is not complete, or turns out to be damaged, is built anew before it answers.
    async fn ask<T: Clone + Default, F: Future<Output = Result<Vec<T>, BlobIndexError>> + Send>(
        &self,
        of: &OpenRepository,
        ids: &[BlobId],
        waiting: impl Fn(&MemoryIndex, &BlobId) -> Option<T>,
        ask: impl Fn(Vec<BlobId>) -> F,
    ) -> Result<Vec<T>, Failure> {
        let mut answers = vec![T::default(); ids.len()];
        let mut open = Vec::with_capacity(ids.len());
        {
            let held = self.waiting.read();
            for (place, id) in ids.iter().enumerate() {
                match waiting(&held.index, id) {
                    Some(answer) => answers[place] = answer,
                    None => open.push(place),
                }
            }
        }
        if open.is_empty() {
            return Ok(answers);
        }
        let mut repaired = false;
        let found = loop {
            if !self.blobs.is_complete() {
                self.update(of).await?;
            }
            let asked = {
                let _whole = self.whole.read().await;
                ask(open.iter().map(|&place| ids[place]).collect()).await
            };
            match asked {
                Err(BlobIndexError::Damaged { .. }) if !repaired => repaired = true,
                other => break other.map_err(|error| index_failure(&error))?,
            }
        };
        for (place, answer) in open.into_iter().zip(found) {
            answers[place] = answer;
        }
        Ok(answers)
    }

    /// Notes a pack that is durable and in no index object. On the way, an index object is written now and then, so that
    /// a crash costs little; not while another program may be removing objects, which keeps nobody from his work for long.
    ///
    /// # Errors
    /// As for [`RepositoryIndex::flush`]; `HF-3007` only when too many packs wait for another program.
    pub async fn add(
        &self,
        of: &OpenRepository,
        pack: PackId,
        entries: Vec<PackEntry>,
    ) -> Result<(), Failure> {
        let (full, may_wait) = {
            let mut waiting = self.waiting.write();
            if !waiting.index.contains_pack(&pack) && !self.blobs.contains_pack(&pack) {
                waiting.push(IndexPack { id: pack, entries });
            }
            (waiting.is_full(1), !waiting.is_full(WAITING_LONGER))
        };
        if !full {
            return Ok(());
        }
        match self.flush(of).await {
            Err(failure) if failure.code == ErrorCode::RepositoryLocked && may_wait => Ok(()),
            other => other,
        }
    }

    /// Refuses while another program may be removing objects.
    async fn refuse_others(&self, of: &OpenRepository) -> Result<(), Failure> {
        let nobody = lock::refuse_exclusive(of.repository(), &lock_owner(), self.clock.now()).await;
        nobody.map_err(|error| repository_failure(&of.name, &error))
    }

    /// Refuses when packs are gone that are to be in an index object, and lets them wait no longer.
    async fn refuse_gone(&self, of: &OpenRepository, packs: &[IndexPack]) -> Result<(), Failure> {
        let gone = gone_packs(of, packs).await?;
        if gone.is_empty() {
            return Ok(());
        }
        self.waiting.write().remove(&gone);
        Err(self.disturbed(of, &counted(gone.len() as u64, "new pack")))
    }

    /// Writes index objects for all packs that have none. When it returns, every pack that was added before the call is
    /// in a durable index object.
    ///
    /// # Errors
    /// Those of the storage, and `HF-4004`; the packs stay to be indexed. `HF-3007` while another program may be removing
    /// objects, `HF-3023` when packs are gone: one that cleans up takes for garbage what was in no index object when it
    /// looked. An index object that came after that would name what is gone.
    pub async fn flush(&self, of: &OpenRepository) -> Result<(), Failure> {
        // Whoever comes second waits for the first, which may have taken his packs.
        let mut entered = self.turn.lock().await;
        let packs = self.waiting.read().packs.clone();
        if packs.is_empty() {
            return Ok(());
        }
        self.refuse_others(of).await?;
        self.refuse_gone(of, &packs).await?;
        fail_point::hit("controller-before-index");
        let failed = |error| repository_failure(&of.name, &error);
        let saved = of.repository().save_index(&packs).await.map_err(failed)?;
        fail_point::hit("controller-after-index");
        // Who locked and looked before it was there is still at it, or done.
        let looked_again = match self.refuse_others(of).await {
            Ok(()) => self.refuse_gone(of, &packs).await,
            locked => locked,
        };
        if looked_again.is_err() {
            take_back_index(of.repository(), &saved).await.map_err(failed)?;
            return looked_again;
        }
        let count = packs.len();
        let packs = packs.into_iter().map(|pack| (pack.id, pack.entries)).collect();
        let noted = match self.blobs.insert(packs).await {
            Ok(()) => entered.add(&saved),
            Err(error) => Err(error),
        };
        match noted {
            Ok(()) => self.waiting.write().remove_first(count),
            // They are in an index object: what is built anew from those has them.
            Err(error) => {
                tracing::error!(repository = %of.name, %error, "the index is built anew");
                self.build(of, &mut entered).await?;
                self.waiting.write().remove_first(count);
            }
        }
        Ok(())
    }

    /// Takes packs out of the repository's index objects and out of this index. They must be condemned, and whoever may
    /// know their blobs from before must be done.
    ///
    /// # Errors
    /// Those of the storage, and `HF-4004`.
    pub async fn remove(&self, of: &OpenRepository, packs: &IdSet<PackId>) -> Result<(), Failure> {
        let mut entered = self.turn.lock().await;
        // Else an index object would be written for them later.
        self.waiting.write().remove(packs);
        let removed = self.remove_in_turn(of, packs, &mut entered).await;
        if removed.is_err() {
            // What this index knows may be in no index object by now. The first error is the one to report.
            let _ = self.build(of, &mut entered).await;
        }
        removed
    }

    async fn remove_in_turn(
        &self,
        of: &OpenRepository,
        packs: &IdSet<PackId>,
        entered: &mut EnteredIndexes,
    ) -> Result<(), Failure> {
        let change = remove_from_index(of.repository(), packs).await;
        let change = change.map_err(|error| repository_failure(&of.name, &error))?;
        fail_point::hit("controller-after-prune-index");
        let gone = self.blobs.remove_packs(packs.iter().copied().collect()).await;
        gone.and_then(|()| entered.replace(&change.removed, &change.added))
            .map_err(|error| index_failure(&error))
    }

    /// Takes in what the repository's index objects say and this index does not know; builds it anew when it is not
    /// complete, or when an index object that it knows is gone. Says how many were read.
    ///
    /// # Errors
    /// Those of the repository, and `HF-4004`.
    pub async fn update(&self, of: &OpenRepository) -> Result<usize, Failure> {
        let mut entered = self.turn.lock().await;
        let listed = list(of).await?;
        let gone = entered.ids().difference(&listed).count();
        if self.blobs.is_complete() && gone == 0 {
            return self.enter(of, &mut entered, listed).await;
        }
        if gone > 0 {
            // Not an error here: whoever relied on them finds out by the count.
            let _ = self.disturbed(of, &counted(gone as u64, "index object"));
        }
        self.build(of, &mut entered).await
    }

    async fn build(&self, of: &OpenRepository, entered: &mut EnteredIndexes) -> Result<usize, Failure> {
        let _alone = self.whole.write().await;
        let fail = |error: BlobIndexError| index_failure(&error);
        entered.clear().map_err(fail)?;
        self.blobs.begin_rebuild().await.map_err(fail)?;
        let listed = list(of).await?;
        let read = self.enter(of, entered, listed).await?;
        self.blobs.finish_rebuild().await.map_err(fail)?;
        tracing::info!(repository = %of.name, index_objects = read, blobs = self.blobs.counts().1, "index built");
        Ok(read)
    }

    /// Enters the index objects that were listed and are not entered yet.
    async fn enter(
        &self,
        of: &OpenRepository,
        entered: &mut EnteredIndexes,
        mut listed: IdSet<IndexId>,
    ) -> Result<usize, Failure> {
        let mut read = 0;
        for _ in 0..LISTINGS_MAX {
            let mut replaced = false;
            for id in listed.difference(&entered.ids().clone()) {
                let mut packs = Vec::new();
                let visit = |pack, entries: &[PackEntry]| packs.push((pack, entries.to_vec()));
                match of.repository().visit_index(*id, visit).await {
                    // Another program has put its content into others since it was listed.
                    Err(RepositoryError::Storage(error)) if error.kind() == StorageErrorKind::NotFound => {
                        replaced = true;
                        continue;
                    }
                    other => other.map_err(|error| repository_failure(&of.name, &error))?,
                }
                self.blobs.insert(packs).await.map_err(|error| index_failure(&error))?;
                entered.add(&[*id]).map_err(|error| index_failure(&error))?;
                self.tell_doubts(&self.unreliable.read());
                read += 1;
            }
            if !replaced {
                return Ok(read);
            }
            listed = list(of).await?;
        }
        let message = format!("another program keeps replacing the index objects of repository {}", of.name);
        Err(Failure::new(ErrorCode::StorageFailed, message))
    }
}

/// Those of the packs that the storage has not.
async fn gone_packs(of: &OpenRepository, packs: &[IndexPack]) -> Result<IdSet<PackId>, Failure> {
    let look = |pack: PackId| async move {
        match of.store().size(&ObjectName::Pack(pack)).await {
            Ok(_) => Ok(None),
            Err(error) if error.kind() == StorageErrorKind::NotFound => Ok(Some(pack)),
            Err(error) => Err(storage_failure(&of.name, &error)),
        }
    };
    let ids: Vec<PackId> = packs.iter().map(|pack| pack.id).collect();
    let looks: Vec<Option<PackId>> =
        stream::iter(ids).map(look).buffer_unordered(LOOKS_AT_ONCE).try_collect().await?;
    Ok(looks.into_iter().flatten().collect())
}

async fn list(of: &OpenRepository) -> Result<IdSet<IndexId>, Failure> {
    let ids = of.repository().index_ids().await.map_err(|error| repository_failure(&of.name, &error))?;
    Ok(ids.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use holdfast_model::repository_spec::RepositorySpec;
    use holdfast_repository::lock::{HeldLock, LockMode, LockOwner};
    use holdfast_runtime::{Clock as _, ManualClock, Shutdown};

    use super::*;
    use crate::records::Records;
    use crate::repositories::Repositories;
    use crate::secrets::Secrets;
    use crate::store::{EmbeddedStore, StoreSettings};

    async fn opened(folder: &std::path::Path, clock: &ManualClock) -> Arc<OpenRepository> {
        use std::os::unix::fs::PermissionsExt as _;
        let tasks = TaskGroup::new(&Shutdown::new());
        let store = EmbeddedStore::open(StoreSettings::new(folder.join("state")), clock.shared(), &tasks);
        let key = folder.join("key");
        std::fs::write(&key, "a password").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let url = format!("file://{}", folder.join("repository").display());
        let spec = serde_json::json!({ "url": url, "encryption": { "key": { "file": key } } });
        let spec: RepositorySpec = serde_json::from_value(spec).unwrap();
        let (secrets, records) = (Secrets::from_process(), Records::new(store.unwrap()));
        let repositories = Repositories::new(secrets, clock.shared(), records, folder.join("index"), tasks);
        repositories.init(&"main".parse().unwrap(), &spec).await.unwrap().0
    }

    #[tokio::test]
    async fn packs_wait_while_another_program_removes_but_not_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap());
        let repository = opened(folder.path(), &clock).await;
        let owner = LockOwner {
            hostname: "elsewhere".to_owned(),
            username: "ops".to_owned(),
            pid: 4711,
            uid: 1000,
            gid: 1000,
        };
        let held = HeldLock::acquire(repository.repository(), owner, LockMode::Exclusive, clock.now());
        let held = held.await.unwrap();
        let pack = |number: usize| PackId::from_bytes([u8::try_from(number).unwrap(); 32]);
        let many = WAITING_PACKS_MAX * WAITING_LONGER;
        for number in 1..many {
            repository.pack_is_durable(pack(number), Vec::new()).await.unwrap();
        }
        let refused = repository.pack_is_durable(pack(0), Vec::new()).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::RepositoryLocked);
        assert!(refused.message.contains("elsewhere"), "{}", refused.message);
        assert_eq!(repository.repository().index_ids().await.unwrap(), []);
        assert_eq!(repository.index().uses.disturbances(), 0);
        held.release().await.unwrap();
        // The other program took them for garbage.
        let gone = repository.flush_index().await.unwrap_err();
        assert_eq!(gone.code, ErrorCode::RepositoryDisturbed);
        assert_eq!(gone.message, "256 new packs of repository main were taken away by another program");
        assert_eq!((repository.index().uses.disturbances(), repository.counts().0), (1, 0));
    }
}
