//! One entry of the index: 48 bytes, in memory and on disk.
//!
//! ```text
//! id 32 · pack number u32, whose highest bit says that the blob is a tree · offset u32 · length u32 ·
//! uncompressed length u32, all bits set when the blob is not compressed
//! ```
//!
//! Numbers are little-endian. Slots are ordered by id, and for one id by pack number, newest first.

use holdfast_repository::id::{BlobId, BlobType, PackId};
use holdfast_repository::index::BlobLocation;
use holdfast_repository::pack::PackEntry;

/// Bytes of a slot.
pub const SLOT_BYTES: usize = 48;
const TREE_BIT: u32 = 1 << 31;
const NOT_COMPRESSED: u32 = u32::MAX;

/// How a pack is called within one index.
pub type PackNumber = u32;
/// More packs cannot be numbered: the highest bit is taken.
pub const PACKS_MAX: PackNumber = TREE_BIT;

/// Where one blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    id: BlobId,
    pack_and_type: u32,
    offset: u32,
    length: u32,
    uncompressed_length: u32,
}

impl Slot {
    /// The slot of an entry of a pack.
    pub fn new(pack: PackNumber, entry: &PackEntry) -> Self {
        let tree = if entry.blob_type == BlobType::Tree { TREE_BIT } else { 0 };
        Self {
            id: entry.id,
            pack_and_type: pack | tree,
            offset: entry.offset,
            length: entry.length,
            uncompressed_length: entry.uncompressed_length.unwrap_or(NOT_COMPRESSED),
        }
    }

    /// The blob.
    pub fn id(&self) -> &BlobId {
        &self.id
    }

    /// Its type.
    pub fn blob_type(&self) -> BlobType {
        if self.pack_and_type & TREE_BIT == 0 { BlobType::Data } else { BlobType::Tree }
    }

    /// The pack it is in.
    pub fn pack(&self) -> PackNumber {
        self.pack_and_type & !TREE_BIT
    }

    /// By what slots are ordered.
    pub fn order(&self) -> (BlobId, std::cmp::Reverse<PackNumber>) {
        (self.id, std::cmp::Reverse(self.pack()))
    }

    /// The place, once the name of the pack is known.
    pub fn location(&self, pack: PackId) -> BlobLocation {
        let uncompressed_length =
            (self.uncompressed_length != NOT_COMPRESSED).then_some(self.uncompressed_length);
        let entry = PackEntry {
            id: self.id,
            blob_type: self.blob_type(),
            offset: self.offset,
            length: self.length,
            uncompressed_length,
        };
        BlobLocation { pack, entry }
    }

    /// Appends the bytes of the slot.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.id.as_bytes());
        for number in [self.pack_and_type, self.offset, self.length, self.uncompressed_length] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// Reads a slot.
    pub fn decode(bytes: &[u8; SLOT_BYTES]) -> Self {
        let (id, numbers) = bytes.split_first_chunk::<32>().expect("48 bytes are more than 32");
        let number = |place: usize| {
            let bytes = numbers[4 * place..].first_chunk().expect("four numbers are left");
            u32::from_le_bytes(*bytes)
        };
        Self {
            id: BlobId::from_bytes(*id),
            pack_and_type: number(0),
            offset: number(1),
            length: number(2),
            uncompressed_length: number(3),
        }
    }
}

/// The first eight bytes of an id, as a number in the same order.
pub fn prefix(id: &BlobId) -> u64 {
    u64::from_be_bytes(*id.as_bytes().first_chunk().expect("an id has 32 bytes"))
}
