//! The packs of a repository: which are there, and what the index says of them.

use crate::format::{PACK_TRAILER_BYTES, SEAL_OVERHEAD_BYTES};
use crate::id::{IdMap, PackId};
use crate::pack::PackEntry;

/// What the index says of one pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackSummary {
    pub(crate) entries: u32,
    pub(crate) bytes: u64,
}

impl PackSummary {
    /// The size of a pack follows from its blobs: they lie one after the other, then the sealed header and its length.
    pub(crate) fn of(entries: &[PackEntry]) -> Self {
        let blobs: u64 = entries.iter().map(|entry| u64::from(entry.length)).sum();
        let header: usize = entries.iter().map(PackEntry::header_bytes).sum();
        Self {
            entries: entries.len() as u32,
            bytes: blobs + (header + SEAL_OVERHEAD_BYTES + PACK_TRAILER_BYTES) as u64,
        }
    }
}

/// A pack that is in the storage: 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredPack {
    pub(crate) id: PackId,
    /// Its size in the storage.
    pub(crate) size: u64,
    /// Missing when no index names it.
    pub(crate) described: Option<PackSummary>,
}

/// The packs that are in the storage, and those that the index names and that are not.
#[derive(Debug, Default)]
pub(crate) struct Packs {
    /// Sorted by id.
    stored: Vec<StoredPack>,
    absent: IdMap<PackId, PackSummary>,
}

impl Packs {
    pub(crate) fn new(mut listed: Vec<(PackId, u64)>) -> Self {
        listed.sort_unstable();
        listed.dedup_by_key(|(id, _)| *id);
        let stored = listed.into_iter().map(|(id, size)| StoredPack { id, size, described: None }).collect();
        Self { stored, absent: IdMap::default() }
    }

    pub(crate) fn stored(&self) -> &[StoredPack] {
        &self.stored
    }

    /// What the index names and the storage does not have.
    pub(crate) fn absent(&self) -> impl Iterator<Item = (&PackId, &PackSummary)> {
        self.absent.iter()
    }

    /// Notes what an index object says of a pack.
    pub(crate) fn describe(&mut self, pack: PackId, summary: PackSummary) -> Described {
        let (first, size) = match self.stored.binary_search_by_key(&pack, |stored| stored.id) {
            Ok(place) => {
                let stored = &mut self.stored[place];
                (*stored.described.get_or_insert(summary), Some(stored.size))
            }
            Err(_) => (*self.absent.entry(pack).or_insert(summary), None),
        };
        Described { as_before: first == summary, as_stored: size == Some(summary.bytes) }
    }

    /// A pack that came after the list was made. Says whether it has the size that the index says.
    pub(crate) fn came(&mut self, pack: PackId, size: u64) -> bool {
        let described = self.absent.remove(&pack);
        if let Err(place) = self.stored.binary_search_by_key(&pack, |stored| stored.id) {
            self.stored.insert(place, StoredPack { id: pack, size, described });
        }
        described.is_some_and(|summary| summary.bytes == size)
    }

    /// How many blobs the index names, counted once for each pack that they are in.
    pub(crate) fn blobs(&self) -> u64 {
        let stored = self.stored.iter().filter_map(|stored| stored.described);
        stored.chain(self.absent.values().copied()).map(|summary| u64::from(summary.entries)).sum()
    }
}

/// How a description fits what is known of the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Described {
    /// An index object that came earlier says the same, or none came.
    pub(crate) as_before: bool,
    /// The pack is in the storage and has the size that it must have.
    pub(crate) as_stored: bool,
}
