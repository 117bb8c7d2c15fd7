//! An index in memory, for check, import, tests and restores of small repositories.

use crate::id::{BlobId, BlobType, IdMap, IdSet, PackId};
use crate::pack::PackEntry;

/// Where a blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobLocation {
    /// The pack that holds it.
    pub pack: PackId,
    /// Where in the pack.
    pub entry: PackEntry,
}

/// 48 bytes. The highest bit of `pack` says that the blob is a tree.
#[derive(Debug, Clone, Copy)]
struct Slot {
    id: BlobId,
    pack: u32,
    offset: u32,
    length: u32,
    /// `u32::MAX` stands for "not compressed".
    uncompressed_length: u32,
}

impl Slot {
    /// By what slots are ordered and found.
    fn order(&self) -> (BlobId, u32) {
        (self.id, self.pack & TREE_BIT)
    }
}

const TREE_BIT: u32 = 1 << 31;

fn type_bit(blob_type: BlobType) -> u32 {
    if blob_type == BlobType::Tree { TREE_BIT } else { 0 }
}

const NOT_COMPRESSED: u32 = u32::MAX;

/// An index in memory: 48 bytes per blob in a sorted list, and a small map of what was added last, which is merged
/// into the list when it has grown to a sixteenth of it. At most 60 bytes per blob in large indexes.
#[derive(Debug, Default)]
pub struct MemoryIndex {
    packs: Vec<PackId>,
    pack_numbers: IdMap<PackId, u32>,
    sorted: Vec<Slot>,
    recent: IdMap<(BlobId, BlobType), Slot>,
    doubted: IdSet<PackId>,
}

/// The map of recent additions is not merged before it has this many.
const RECENT_MIN: usize = 4096;

impl MemoryIndex {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    /// Relies no more on a pack that is damaged or gone. Its blobs are not [sound](Self::is_sound); they are still found
    /// where nothing better is, and give way to the same blobs in another pack that is added later.
    pub fn doubt(&mut self, pack: PackId) {
        self.doubted.insert(pack);
    }

    /// Relies on every pack again but these.
    pub fn doubt_only(&mut self, packs: impl IntoIterator<Item = PackId>) {
        self.doubted = packs.into_iter().collect();
    }

    /// Whether a blob is in a pack that is relied on: it need not be stored again.
    pub fn is_sound(&self, blob_type: BlobType, id: &BlobId) -> bool {
        self.slot(blob_type, id).is_some_and(|slot| !self.is_doubted(slot))
    }

    fn is_doubted(&self, slot: &Slot) -> bool {
        !self.doubted.is_empty() && self.doubted.contains(&self.pack_of(slot))
    }

    fn pack_of(&self, slot: &Slot) -> PackId {
        self.packs[(slot.pack & !TREE_BIT) as usize]
    }

    /// Adds the blobs of a pack. A blob that is known already keeps its first place, unless that is in doubt.
    pub fn insert_pack(&mut self, pack: PackId, entries: &[PackEntry]) {
        let next = u32::try_from(self.packs.len()).expect("an index holds fewer than 2^31 packs") & !TREE_BIT;
        let number = *self.pack_numbers.entry(pack).or_insert(next);
        if number == next {
            self.packs.push(pack);
        }
        for entry in entries {
            let known = self.slot(entry.blob_type, &entry.id);
            if known.is_some_and(|slot| !self.is_doubted(slot) || self.doubted.contains(&pack)) {
                continue;
            }
            let slot = Slot {
                id: entry.id,
                pack: number | type_bit(entry.blob_type),
                offset: entry.offset,
                length: entry.length,
                uncompressed_length: entry.uncompressed_length.unwrap_or(NOT_COMPRESSED),
            };
            if known.is_some()
                && let Ok(found) = self.sorted.binary_search_by_key(&slot.order(), Slot::order)
            {
                self.sorted[found] = slot;
                continue;
            }
            self.recent.insert((entry.id, entry.blob_type), slot);
            if self.recent.len() > RECENT_MIN.max(self.sorted.len() / 16) {
                self.merge();
            }
        }
    }

    /// Where a blob is.
    pub fn get(&self, blob_type: BlobType, id: &BlobId) -> Option<BlobLocation> {
        self.slot(blob_type, id).map(|slot| self.location(slot))
    }

    /// Whether a blob is in some pack.
    pub fn contains(&self, blob_type: BlobType, id: &BlobId) -> bool {
        self.slot(blob_type, id).is_some()
    }

    /// How many blobs there are.
    pub fn len(&self) -> usize {
        self.sorted.len() + self.recent.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every pack, in the order in which they were added.
    pub fn packs(&self) -> &[PackId] {
        &self.packs
    }

    /// Whether a pack is in the index.
    pub fn contains_pack(&self, pack: &PackId) -> bool {
        self.pack_numbers.contains_key(pack)
    }

    /// Every blob, in no order.
    pub fn iter(&self) -> impl Iterator<Item = BlobLocation> + '_ {
        self.sorted.iter().chain(self.recent.values()).map(|slot| self.location(slot))
    }

    fn location(&self, slot: &Slot) -> BlobLocation {
        let blob_type = if slot.pack & TREE_BIT == 0 { BlobType::Data } else { BlobType::Tree };
        BlobLocation {
            pack: self.pack_of(slot),
            entry: PackEntry {
                id: slot.id,
                blob_type,
                offset: slot.offset,
                length: slot.length,
                uncompressed_length: Some(slot.uncompressed_length)
                    .filter(|&length| length != NOT_COMPRESSED),
            },
        }
    }

    fn slot(&self, blob_type: BlobType, id: &BlobId) -> Option<&Slot> {
        self.recent.get(&(*id, blob_type)).or_else(|| {
            let wanted = (*id, type_bit(blob_type));
            let found = self.sorted.binary_search_by_key(&wanted, Slot::order).ok()?;
            Some(&self.sorted[found])
        })
    }

    /// Merges from the back, in place: each slot moves once.
    fn merge(&mut self) {
        let mut recent: Vec<Slot> = self.recent.drain().map(|(_, slot)| slot).collect();
        recent.sort_unstable_by_key(Slot::order);
        let Some(&filler) = recent.last() else { return };
        let mut left = self.sorted.len();
        let mut right = recent.len();
        self.sorted.reserve_exact(right);
        self.sorted.resize(left + right, filler);
        while right > 0 {
            let take_left = left > 0 && self.sorted[left - 1].order() > recent[right - 1].order();
            let slot = if take_left { self.sorted[left - 1] } else { recent[right - 1] };
            self.sorted[left + right - 1] = slot;
            if take_left {
                left -= 1;
            } else {
                right -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u32) -> PackEntry {
        PackEntry {
            id: BlobId::of(&n.to_le_bytes()),
            blob_type: if n.is_multiple_of(3) { BlobType::Tree } else { BlobType::Data },
            offset: n,
            length: n + 32,
            uncompressed_length: n.is_multiple_of(2).then_some(n * 2),
        }
    }

    #[test]
    fn a_slot_has_48_bytes() {
        assert_eq!(size_of::<Slot>(), 48);
    }

    #[test]
    fn every_blob_is_found_before_and_after_merges() {
        let mut index = MemoryIndex::new();
        for pack in 0..200u32 {
            let entries: Vec<_> = (pack * 100..pack * 100 + 100).map(entry).collect();
            index.insert_pack(PackId::of(&pack.to_le_bytes()), &entries);
        }
        assert_eq!((index.len(), index.packs().len(), index.iter().count()), (20_000, 200, 20_000));
        for n in 0..20_000 {
            let location = index.get(entry(n).blob_type, &entry(n).id).unwrap();
            assert_eq!(location.entry, entry(n));
            assert_eq!(location.pack, PackId::of(&(n / 100).to_le_bytes()));
        }
        assert!(!index.contains(BlobType::Data, &BlobId::of(b"other")));
    }

    #[test]
    fn a_blob_of_a_doubted_pack_gives_way_to_the_same_in_another() {
        let mut index = MemoryIndex::new();
        let [bad, good] = [&b"bad"[..], b"good"].map(PackId::of);
        // So many that some are in the sorted list and some are not.
        let entries: Vec<_> = (0..10_000).map(entry).collect();
        index.insert_pack(bad, &entries);
        index.doubt(bad);
        assert!(!entries.iter().any(|entry| index.is_sound(entry.blob_type, &entry.id)));
        assert_eq!(
            index.get(BlobType::Data, &entry(7).id).unwrap().pack,
            bad,
            "it is found where nothing better is"
        );
        index.insert_pack(good, &entries[..9_999]);
        assert_eq!((index.len(), index.iter().count()), (10_000, 10_000));
        for entry in &entries[..9_999] {
            assert_eq!(index.get(entry.blob_type, &entry.id).unwrap().pack, good);
            assert!(index.is_sound(entry.blob_type, &entry.id));
        }
        assert!(!index.is_sound(BlobType::Tree, &entry(9_999).id));
        index.insert_pack(bad, &entries);
        assert_eq!(index.get(BlobType::Data, &entry(7).id).unwrap().pack, good, "it does not come back");
        index.doubt_only([]);
        assert!(index.is_sound(BlobType::Tree, &entry(9_999).id));
    }

    #[test]
    fn a_blob_keeps_its_first_place() {
        let mut index = MemoryIndex::new();
        index.insert_pack(PackId::of(b"first"), &[entry(1)]);
        index.insert_pack(PackId::of(b"second"), &[entry(1), entry(2)]);
        assert_eq!(index.get(BlobType::Data, &entry(1).id).unwrap().pack, PackId::of(b"first"));
        assert_eq!(index.len(), 2);
        assert!(index.contains_pack(&PackId::of(b"second")));
    }

    #[test]
    fn an_id_stands_for_a_folder_and_for_content_apart() {
        let mut index = MemoryIndex::new();
        let id = BlobId::of(b"{\"nodes\":[]}\n");
        let [data, tree] = [BlobType::Data, BlobType::Tree].map(|blob_type| PackEntry {
            id,
            blob_type,
            ..entry(if blob_type == BlobType::Data { 1 } else { 2 })
        });
        // So many beside them that they come to lie in the sorted list.
        let many: Vec<_> = (10..10_000).map(entry).collect();
        index.insert_pack(PackId::of(b"content"), &[data]);
        assert!(index.is_sound(BlobType::Data, &id) && !index.contains(BlobType::Tree, &id));
        for _ in 0..2 {
            index.insert_pack(PackId::of(b"folders"), &[tree]);
            for expected in [data, tree] {
                assert_eq!(index.get(expected.blob_type, &id).unwrap().entry, expected);
            }
            index.insert_pack(PackId::of(b"many"), &many);
        }
        assert_eq!(index.len(), many.len() + 2);
        index.doubt(PackId::of(b"folders"));
        assert!(index.is_sound(BlobType::Data, &id) && !index.is_sound(BlobType::Tree, &id));
    }
}
