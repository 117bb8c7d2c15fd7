//! Which packs go, which are repacked, which stay.

use crate::error::RepositoryError;
use crate::id::{BlobId, IdMap, IdSet, PackId};
use crate::pack::PackEntry;

use super::survey::{BlobSet, Survey};

/// What is worth the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneOptions {
    /// A pack of which more than this share is dead is repacked, in percent.
    pub max_unused: u8,
}

impl Default for PruneOptions {
    /// Five percent.
    fn default() -> Self {
        Self { max_unused: 5 }
    }
}

/// A pack and its size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlannedPack {
    /// The pack.
    pub id: PackId,
    /// Its size.
    pub bytes: u64,
}

/// A pack that is damaged or gone and has blobs that are needed and in no other pack. It stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoubtfulPack {
    /// The pack.
    pub id: PackId,
    /// Bytes of these blobs.
    pub needed_bytes: u64,
}

/// What a plan comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PruneNumbers {
    /// Snapshots whose content counts as needed.
    pub snapshots: u64,
    /// Folders of these, each counted once.
    pub trees: u64,
    /// Packs in the storage.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of blobs that are needed; of a blob that is in several packs, one counts.
    pub live_bytes: u64,
    /// Bytes of the packs that are not needed.
    pub dead_bytes: u64,
    /// Packs in which nothing is needed.
    pub delete_packs: u64,
    /// Their bytes.
    pub delete_bytes: u64,
    /// Packs whose needed blobs go into new packs.
    pub repack_packs: u64,
    /// Their bytes.
    pub repack_bytes: u64,
    /// Bytes of the needed blobs in them.
    pub repack_live_bytes: u64,
    /// Packs that are in no index.
    pub orphan_packs: u64,
    /// Their bytes.
    pub orphan_bytes: u64,
    /// Packs that the index names, that are not in the storage, and in which nothing is needed.
    pub absent_packs: u64,
    /// Dead bytes that stay, in packs that are not worth the work or are doubtful.
    pub unused_left_bytes: u64,
    /// Doubtful packs that stay because they have something that is needed and in no other pack.
    pub doubtful_packs: u64,
    /// Blobs that files need and that are in no index; one counts for each time that it is needed.
    pub lost_blobs: u64,
}

impl PruneNumbers {
    /// Bytes of packs that go: what is repacked takes no more room than before.
    pub fn freed_bytes(&self) -> u64 {
        let gone = self.delete_bytes + self.orphan_bytes + self.repack_bytes;
        gone.saturating_sub(self.repack_live_bytes)
    }

    /// Whether there is anything to do.
    pub fn is_nothing(&self) -> bool {
        self.delete_packs + self.repack_packs + self.orphan_packs + self.absent_packs == 0
    }

    /// How much of the packs' bytes goes, in percent, rounded up.
    pub fn freed_percent(&self) -> u64 {
        let share = u128::from(self.freed_bytes()) * 100;
        share.div_ceil(u128::from(self.bytes.max(1))) as u64
    }
}

/// What a prune is to do.
pub struct PrunePlan {
    /// What it comes to.
    pub numbers: PruneNumbers,
    /// Packs in which nothing is needed, sorted.
    pub delete: Vec<PlannedPack>,
    /// Packs whose needed blobs go into new packs, sorted.
    pub repack: Vec<PlannedPack>,
    /// Packs in no index, sorted. They may be of somebody who is writing: only what was an orphan before and after
    /// everybody who was writing has ended may go.
    pub orphans: Vec<PlannedPack>,
    /// Packs that the index names for nothing, sorted.
    pub absent: Vec<PackId>,
    /// Packs that are damaged or gone and stay because of what is in them, sorted.
    pub doubtful: Vec<DoubtfulPack>,
    /// Blobs that are needed and in no index, the first hundred.
    pub lost: Vec<BlobId>,
    pub(super) survey: Survey,
}

/// How much of a pack is needed.
#[derive(Debug, Clone, Copy, Default)]
struct Use {
    blob_bytes: u64,
    live_bytes: u64,
}

impl Survey {
    /// Decides about every pack.
    ///
    /// # Errors
    /// Those of the storage, and `HF-4010` when cancelled. Blocks: it reads the index objects again.
    fn decide(self, options: PruneOptions) -> Result<PrunePlan, RepositoryError> {
        let uses = self.uses()?;
        let mut numbers = PruneNumbers {
            snapshots: self.snapshots,
            trees: self.trees,
            lost_blobs: self.lost_total,
            ..PruneNumbers::default()
        };
        let (mut delete, mut repack, mut orphans, mut absent) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut doubtful = Vec::new();
        for pack in self.packs.stored() {
            numbers.packs += 1;
            numbers.bytes += pack.size;
            let planned = PlannedPack { id: pack.id, bytes: pack.size };
            if pack.described.is_none() {
                orphans.push(planned);
                continue;
            }
            let Use { blob_bytes, live_bytes } = uses.get(&pack.id).copied().unwrap_or_default();
            numbers.live_bytes += live_bytes;
            let unused = blob_bytes - live_bytes;
            if live_bytes == 0 {
                delete.push(planned);
            } else if !self.is_sound(&pack.id) {
                doubtful.push(DoubtfulPack { id: pack.id, needed_bytes: live_bytes });
                numbers.unused_left_bytes += unused;
            } else if unused * 100 > pack.size * u64::from(options.max_unused) {
                numbers.repack_live_bytes += live_bytes;
                repack.push(planned);
            } else {
                numbers.unused_left_bytes += unused;
            }
        }
        for (pack, _) in self.packs.absent() {
            match uses.get(pack).map_or(0, |found| found.live_bytes) {
                0 => absent.push(*pack),
                needed_bytes => doubtful.push(DoubtfulPack { id: *pack, needed_bytes }),
            }
        }
        if numbers.lost_blobs > 0 {
            // One of these may have what is missed.
            orphans.clear();
        }
        absent.sort_unstable();
        doubtful.sort_unstable_by_key(|pack| pack.id);
        numbers.doubtful_packs = doubtful.len() as u64;
        let total = |packs: &[PlannedPack]| (packs.len() as u64, packs.iter().map(|pack| pack.bytes).sum());
        (numbers.delete_packs, numbers.delete_bytes) = total(&delete);
        (numbers.repack_packs, numbers.repack_bytes) = total(&repack);
        (numbers.orphan_packs, numbers.orphan_bytes) = total(&orphans);
        numbers.absent_packs = absent.len() as u64;
        numbers.dead_bytes = numbers.delete_bytes
            + numbers.orphan_bytes
            + numbers.unused_left_bytes
            + numbers.repack_bytes.saturating_sub(numbers.repack_live_bytes);
        let lost = self.lost.clone();
        Ok(PrunePlan { numbers, delete, repack, orphans, absent, doubtful, lost, survey: self })
    }

    /// Decides about every pack.
    ///
    /// # Errors
    /// Those of the storage, and `HF-4010` when cancelled.
    pub async fn plan(self, options: PruneOptions) -> Result<PrunePlan, RepositoryError> {
        let token = self.token.clone();
        super::survey::blocking(&token, move |_| self.decide(options)).await
    }

    /// How much of each pack is needed. Of a blob in several packs one place counts, a doubtful one last.
    fn uses(&self) -> Result<IdMap<PackId, Use>, RepositoryError> {
        let mut uses: IdMap<PackId, Use> = IdMap::default();
        let mut claimed = self.empty_set();
        for sound in [true, false] {
            let wanted = |pack: &PackId| self.is_sound(pack) == sound;
            self.visit_packs(wanted, |pack, entries| {
                let mut found = Use::default();
                for entry in entries {
                    found.blob_bytes += u64::from(entry.length);
                    if self.needed.contains(entry) && claimed.insert(entry) {
                        found.live_bytes += u64::from(entry.length);
                    }
                }
                uses.insert(pack, found);
                Ok(())
            })?;
            if sound && self.doubted.is_empty() {
                break;
            }
        }
        Ok(uses)
    }

    /// Goes through the packs that are wanted as the index objects name them, each once.
    pub(super) fn visit_packs(
        &self,
        wanted: impl Fn(&PackId) -> bool,
        mut visit: impl FnMut(PackId, &[PackEntry]) -> Result<(), RepositoryError>,
    ) -> Result<(), RepositoryError> {
        let mut seen: IdSet<PackId> = IdSet::default();
        for &index in &self.indexes {
            for (pack, entries) in self.read_index(index)? {
                if wanted(&pack) && seen.insert(pack) {
                    visit(pack, &entries)?;
                }
            }
        }
        Ok(())
    }

    /// What is in the packs that are sound and not among these.
    pub(super) fn elsewhere(&self, going: &IdSet<PackId>) -> Result<BlobSet, RepositoryError> {
        let mut elsewhere = self.empty_set();
        self.visit_packs(
            |pack| self.is_sound(pack) && !going.contains(pack),
            |_, entries| {
                for entry in entries {
                    elsewhere.insert(entry);
                }
                Ok(())
            },
        )?;
        Ok(elsewhere)
    }

    /// Those of the packs that were to go which have something that is needed now and in no other pack that stays.
    fn find_needed(&self, going: &IdSet<PackId>) -> Result<Vec<PackId>, RepositoryError> {
        let mut elsewhere = self.elsewhere(going)?;
        let mut rescued = Vec::new();
        for sound in [true, false] {
            self.visit_packs(
                |pack| going.contains(pack) && self.is_sound(pack) == sound,
                |pack, entries| {
                    let is_needed =
                        |entry: &PackEntry| self.needed.contains(entry) && !elsewhere.contains(entry);
                    if entries.iter().any(is_needed) {
                        rescued.push(pack);
                        for entry in entries {
                            elsewhere.insert(entry);
                        }
                    }
                    Ok(())
                },
            )?;
        }
        rescued.sort_unstable();
        Ok(rescued)
    }

    /// Those of the packs that were to go, by an earlier plan, which have to stay: something in them is needed by now and
    /// in no other pack that stays. Sorted.
    ///
    /// # Errors
    /// Those of the storage, and `HF-4010` when cancelled.
    pub async fn rescue(self, going: IdSet<PackId>) -> Result<Vec<PackId>, RepositoryError> {
        let token = self.token.clone();
        super::survey::blocking(&token, move |_| self.find_needed(&going)).await
    }

    /// The packs in no index, sorted; none when anything is lost, as one of them may have it.
    pub fn orphans(&self) -> Vec<PackId> {
        let orphans = self.packs.stored().iter().filter(|pack| pack.described.is_none());
        let orphans = orphans.map(|pack| pack.id);
        if self.lost_total > 0 { Vec::new() } else { orphans.collect() }
    }
}

impl PrunePlan {
    /// The packs that are to go once their needed blobs are elsewhere: those that are deleted and those that are
    /// repacked.
    pub fn condemned(&self) -> IdSet<PackId> {
        self.delete.iter().chain(&self.repack).map(|pack| pack.id).collect()
    }
}
