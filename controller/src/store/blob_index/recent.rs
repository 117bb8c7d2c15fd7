//! What was entered last and is in no segment yet: a map in memory, and a log from which it is made again after a
//! crash. The log is not made durable: a crash of the process leaves the page cache whole, and after a loss of power
//! the index is rebuilt anyway.
//!
//! The log is a row of groups: number of slots u32 · CRC-32C of the slots u32 · slots.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use holdfast_repository::id::{BlobId, IdMap};

use super::BlobIndexError;
use super::slot::{SLOT_BYTES, Slot};

const NONE: u32 = u32::MAX;

/// Slots in the order of their entry, with a map to the newest of each blob.
#[derive(Debug, Default)]
pub struct Recent {
    slots: Vec<Slot>,
    /// For each slot the one before it of the same blob.
    older: Vec<u32>,
    newest: IdMap<BlobId, u32>,
}

impl Recent {
    /// Empty, with room for so many slots: growing step by step would leave holes of all sizes in memory.
    pub fn with_room(slots: usize) -> Self {
        Self {
            slots: Vec::with_capacity(slots),
            older: Vec::with_capacity(slots),
            newest: IdMap::with_capacity_and_hasher(slots, Default::default()),
        }
    }

    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Enters a slot.
    pub fn insert(&mut self, slot: Slot) {
        let place = u32::try_from(self.slots.len()).expect("it is written out long before");
        self.older.push(self.newest.insert(*slot.id(), place).unwrap_or(NONE));
        self.slots.push(slot);
    }

    /// The newest slot of this blob that `accept` takes.
    pub fn find(&self, id: &BlobId, mut accept: impl FnMut(&Slot) -> bool) -> Option<Slot> {
        let mut place = *self.newest.get(id)?;
        while place != NONE {
            let slot = self.slots[place as usize];
            if accept(&slot) {
                return Some(slot);
            }
            place = self.older[place as usize];
        }
        None
    }

    /// The slots, sorted as in a segment.
    pub fn sorted(&self) -> Vec<Slot> {
        let mut sorted = self.slots.clone();
        sorted.sort_unstable_by_key(Slot::order);
        sorted
    }
}

/// The log of one [`Recent`].
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Begins an empty log.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn begin(path: &Path) -> Result<Self, BlobIndexError> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path);
        let file = file.map_err(BlobIndexError::io("beginning a log of the blob index", path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends slots, as a whole.
    ///
    /// # Errors
    /// The file system refuses; nothing may be appended any more: the log may have half a group at its end.
    pub fn append(&mut self, slots: &[Slot]) -> Result<(), BlobIndexError> {
        let mut bytes = Vec::with_capacity(8 + slots.len() * SLOT_BYTES);
        let count = u32::try_from(slots.len()).expect("one entry has fewer than 2^32 blobs");
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        slots.iter().for_each(|slot| slot.encode(&mut bytes));
        let checksum = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        self.file.write_all(&bytes).map_err(BlobIndexError::io("writing a log of the blob index", &self.path))
    }

    /// Reads the groups of a log up to the first that is not whole, which nobody was told of.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(path: &Path, mut take: impl FnMut(Slot)) -> Result<(), BlobIndexError> {
        let bytes =
            std::fs::read(path).map_err(BlobIndexError::io("reading a log of the blob index", path))?;
        let mut rest = &bytes[..];
        while let Some(([a, b, c, d, checksum @ ..], after)) = rest.split_first_chunk::<8>() {
            let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize * SLOT_BYTES;
            let Some((group, next)) = after.split_at_checked(length) else { break };
            if crc32c::crc32c(group).to_le_bytes() != *checksum {
                break;
            }
            group.as_chunks::<SLOT_BYTES>().0.iter().map(Slot::decode).for_each(&mut take);
            rest = next;
        }
        Ok(())
    }
}
