//! A sorted, immutable file of slots.
//!
//! ```text
//! slots   48 bytes each, in order
//! fences  for each block of 128 slots: the first 8 bytes of its first id (big-endian), CRC-32C of the block u32
//! filter  its words
//! footer  64: magic 8 · slots u64 · filter words u64 · filter hashes u32 · CRC-32C of fences and filter u32 ·
//!         number behind the highest pack u32 · nought 24 · CRC-32C of the footer so far u32
//! ```
//!
//! Numbers are little-endian unless said otherwise. Fences and filter are held in memory: a blob is found with one
//! read of at most 6 KiB.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use holdfast_repository::id::BlobId;
use holdfast_runtime::durable_file::{Access, DurableFile};

use super::BlobIndexError;
use super::filter::Filter;
use super::slot::{PackNumber, SLOT_BYTES, Slot, prefix};

/// Slots that one read fetches.
pub const BLOCK_SLOTS: usize = 128;
const BLOCK_BYTES: usize = BLOCK_SLOTS * SLOT_BYTES;
const FENCE_BYTES: usize = 12;
const FOOTER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"HFBLOB\0\x01";
/// Blocks that a merge reads at a time.
const STREAM_BLOCKS: u64 = 32;

/// What is written and read of the tables at a time: they must not be in memory twice. Whole fences and whole words fit.
const TABLE_BYTES: usize = FENCE_BYTES * 8 * 1_024;

/// The beginning and the checksum of each block.
#[derive(Debug, Default)]
struct Fences {
    prefixes: Vec<u64>,
    checksums: Vec<u32>,
}

/// Reads what lies behind the slots, a piece at a time.
struct Tables<'a> {
    file: &'a File,
    at: u64,
    checksum: u32,
}

impl Tables<'_> {
    fn read(&mut self, mut length: u64, mut take: impl FnMut(&[u8])) -> std::io::Result<()> {
        let mut bytes = vec![0; TABLE_BYTES];
        while length > 0 {
            let piece = &mut bytes[..length.min(TABLE_BYTES as u64) as usize];
            self.file.read_exact_at(piece, self.at)?;
            self.checksum = crc32c::crc32c_append(self.checksum, piece);
            take(piece);
            self.at += piece.len() as u64;
            length -= piece.len() as u64;
        }
        Ok(())
    }
}

/// One sorted file, open for reading.
#[derive(Debug)]
pub struct Segment {
    path: PathBuf,
    file: File,
    slots: u64,
    packs_end: PackNumber,
    fences: Fences,
    filter: Filter,
}

impl Segment {
    /// Opens a file that [`Builder`] has written. Reads fences and filter: 12 bytes for each 128 blobs and the filter.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn open(path: &Path) -> Result<Self, BlobIndexError> {
        let failed = || BlobIndexError::io("opening a segment of the blob index", path);
        let damaged = |reason| BlobIndexError::Damaged { path: path.to_owned(), reason };
        let file = File::open(path).map_err(failed())?;
        let bytes = file.metadata().map_err(failed())?.len();
        let footer_at = bytes.checked_sub(FOOTER_BYTES as u64).ok_or_else(|| damaged("it has no footer"))?;
        let mut footer = [0; FOOTER_BYTES];
        file.read_exact_at(&mut footer, footer_at).map_err(failed())?;
        let (content, checksum) = footer.split_at(FOOTER_BYTES - 4);
        if crc32c::crc32c(content).to_le_bytes() != checksum || footer[..8] != *MAGIC {
            return Err(damaged("its footer does not fit"));
        }
        let u64_at =
            |at: usize| u64::from_le_bytes(*footer[at..].first_chunk().expect("the footer has 64 bytes"));
        let u32_at =
            |at: usize| u32::from_le_bytes(*footer[at..].first_chunk().expect("the footer has 64 bytes"));
        let (slots, words) = (u64_at(8), u64_at(16));
        let blocks = slots.div_ceil(BLOCK_SLOTS as u64);
        let tables_at = slots.checked_mul(SLOT_BYTES as u64);
        let tables = tables_at.and_then(|at| footer_at.checked_sub(at)).unwrap_or_default();
        if slots == 0
            || Some(tables) != words.checked_mul(8).and_then(|b| b.checked_add(blocks * FENCE_BYTES as u64))
        {
            return Err(damaged("its length does not fit its footer"));
        }
        let mut tables = Tables { file: &file, at: footer_at - tables, checksum: 0 };
        let mut fences = Fences::default();
        tables
            .read(blocks * FENCE_BYTES as u64, |bytes| {
                for fence in bytes.as_chunks::<FENCE_BYTES>().0 {
                    let (prefix, checksum) = fence.split_first_chunk::<8>().expect("a fence has 12 bytes");
                    fences.prefixes.push(u64::from_be_bytes(*prefix));
                    let checksum = checksum.first_chunk().expect("a fence has 12 bytes");
                    fences.checksums.push(u32::from_le_bytes(*checksum));
                }
            })
            .map_err(failed())?;
        let mut filter = Vec::new();
        tables
            .read(words * 8, |bytes| {
                filter.extend(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)));
            })
            .map_err(failed())?;
        if tables.checksum != u32_at(28) {
            return Err(damaged("the checksum of its tables does not fit"));
        }
        let filter = Filter::from_parts(filter, u32_at(24)).ok_or_else(|| damaged("its filter is none"))?;
        let packs_end = u32_at(32);
        Ok(Self { path: path.to_owned(), file, slots, packs_end, fences, filter })
    }

    /// How many slots it has.
    pub fn slots(&self) -> u64 {
        self.slots
    }

    /// The number behind the highest pack that it has had slots of.
    pub fn packs_end(&self) -> PackNumber {
        self.packs_end
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The first slot of this blob that `accept` takes, newest pack first. `cache` holds the block read last: sorted
    /// questions read each block once.
    ///
    /// # Errors
    /// The file cannot be read, or the block is damaged.
    pub fn find(
        &self,
        id: &BlobId,
        cache: &mut BlockCache,
        mut accept: impl FnMut(&Slot) -> bool,
    ) -> Result<Option<Slot>, BlobIndexError> {
        if !self.filter.may_contain(id) {
            return Ok(None);
        }
        let wanted = prefix(id);
        // Equal prefixes may begin in the block before the first fence that shows them.
        let first = self.fences.prefixes.partition_point(|&prefix| prefix < wanted).saturating_sub(1);
        for (number, &prefix) in self.fences.prefixes.iter().enumerate().skip(first) {
            if prefix > wanted {
                return Ok(None);
            }
            self.load(number, cache)?;
            let (slots, _) = cache.bytes.as_chunks::<SLOT_BYTES>();
            let start = slots.partition_point(|slot| slot[..32] < id.as_bytes()[..]);
            for slot in &slots[start..] {
                if slot[..32] != id.as_bytes()[..] {
                    return Ok(None);
                }
                let slot = Slot::decode(slot);
                if accept(&slot) {
                    return Ok(Some(slot));
                }
            }
        }
        Ok(None)
    }

    fn load(&self, number: usize, cache: &mut BlockCache) -> Result<(), BlobIndexError> {
        if cache.holds == Some(number) {
            return Ok(());
        }
        cache.holds = None;
        let slots = (self.slots - (number * BLOCK_SLOTS) as u64).min(BLOCK_SLOTS as u64) as usize;
        cache.bytes.resize(slots * SLOT_BYTES, 0);
        self.file
            .read_exact_at(&mut cache.bytes, (number * BLOCK_BYTES) as u64)
            .map_err(BlobIndexError::io("reading a segment of the blob index", &self.path))?;
        if crc32c::crc32c(&cache.bytes) != self.fences.checksums[number] {
            return Err(BlobIndexError::Damaged {
                path: self.path.clone(),
                reason: "a block is not what was written",
            });
        }
        cache.holds = Some(number);
        Ok(())
    }

    /// All slots, in order, for a merge.
    pub fn stream(&self) -> SlotStream<'_> {
        SlotStream { segment: self, next_block: 0, bytes: Vec::new(), used: 0 }
    }
}

/// The block of one segment that was read last.
#[derive(Debug, Default)]
pub struct BlockCache {
    holds: Option<usize>,
    bytes: Vec<u8>,
}

/// Reads the slots of a segment in order, proving every block.
#[derive(Debug)]
pub struct SlotStream<'a> {
    segment: &'a Segment,
    next_block: u64,
    bytes: Vec<u8>,
    used: usize,
}

impl SlotStream<'_> {
    /// The next slot.
    ///
    /// # Errors
    /// The file cannot be read, or a block is damaged.
    pub fn next_slot(&mut self) -> Result<Option<Slot>, BlobIndexError> {
        if self.used == self.bytes.len() && !self.refill()? {
            return Ok(None);
        }
        let slot = self.bytes[self.used..].first_chunk().expect("whole slots are read");
        self.used += SLOT_BYTES;
        Ok(Some(Slot::decode(slot)))
    }

    fn refill(&mut self) -> Result<bool, BlobIndexError> {
        let segment = self.segment;
        let start = self.next_block * BLOCK_BYTES as u64;
        let left = segment.slots * SLOT_BYTES as u64 - start.min(segment.slots * SLOT_BYTES as u64);
        let length = left.min(STREAM_BLOCKS * BLOCK_BYTES as u64) as usize;
        self.bytes.resize(length, 0);
        self.used = 0;
        segment
            .file
            .read_exact_at(&mut self.bytes, start)
            .map_err(BlobIndexError::io("reading a segment of the blob index", &segment.path))?;
        let checksums = &segment.fences.checksums;
        let checksums = &checksums[(self.next_block as usize).min(checksums.len())..];
        let mut blocks = self.bytes.chunks(BLOCK_BYTES).zip(checksums);
        if blocks.any(|(block, &expected)| crc32c::crc32c(block) != expected) {
            let path = segment.path.clone();
            return Err(BlobIndexError::Damaged { path, reason: "a block is not what was written" });
        }
        self.next_block += STREAM_BLOCKS;
        Ok(length > 0)
    }
}

/// Writes a segment; slots must come in order.
pub struct Builder {
    path: PathBuf,
    file: DurableFile,
    block: Vec<u8>,
    fences: Vec<u8>,
    filter: Filter,
    slots: u64,
    packs_end: PackNumber,
}

impl Builder {
    /// Begins a segment of at most `slots_max` slots, which stands for packs below `packs_end`.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn begin(
        path: &Path,
        slots_max: u64,
        packs_end: PackNumber,
        filter_bytes_max: u64,
    ) -> Result<Self, BlobIndexError> {
        let file = DurableFile::create(path, Access::Owner)
            .map_err(BlobIndexError::io("beginning a segment of the blob index", path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            block: Vec::with_capacity(BLOCK_BYTES),
            fences: Vec::new(),
            filter: Filter::for_keys(slots_max, filter_bytes_max),
            slots: 0,
            packs_end,
        })
    }

    /// Adds the next slot.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn add(&mut self, slot: &Slot) -> Result<(), BlobIndexError> {
        if self.block.is_empty() {
            self.fences.extend_from_slice(&prefix(slot.id()).to_be_bytes());
        }
        slot.encode(&mut self.block);
        self.filter.insert(slot.id());
        self.slots += 1;
        if self.block.len() == BLOCK_BYTES { self.end_block() } else { Ok(()) }
    }

    fn end_block(&mut self) -> Result<(), BlobIndexError> {
        if self.block.is_empty() {
            return Ok(());
        }
        self.fences.extend_from_slice(&crc32c::crc32c(&self.block).to_le_bytes());
        let block = std::mem::take(&mut self.block);
        self.put(&block)?;
        self.block = block;
        self.block.clear();
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), BlobIndexError> {
        self.file
            .write_all(bytes)
            .map_err(BlobIndexError::io("writing a segment of the blob index", &self.path))
    }

    /// Makes the segment durable and opens it; nothing when it has no slot.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn finish(mut self) -> Result<Option<Segment>, BlobIndexError> {
        if self.slots == 0 {
            return Ok(None);
        }
        self.end_block()?;
        let mut checksum = crc32c::crc32c(&self.fences);
        let fences = std::mem::take(&mut self.fences);
        self.put(&fences)?;
        drop(fences);
        let filter = std::mem::replace(&mut self.filter, Filter::for_keys(0, 0));
        for words in filter.words().chunks(TABLE_BYTES / 8) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            checksum = crc32c::crc32c_append(checksum, &bytes);
            self.put(&bytes)?;
        }
        let mut footer = Vec::with_capacity(FOOTER_BYTES);
        footer.extend_from_slice(MAGIC);
        footer.extend_from_slice(&self.slots.to_le_bytes());
        footer.extend_from_slice(&(filter.words().len() as u64).to_le_bytes());
        footer.extend_from_slice(&filter.hashes().to_le_bytes());
        footer.extend_from_slice(&checksum.to_le_bytes());
        footer.extend_from_slice(&self.packs_end.to_le_bytes());
        footer.resize(FOOTER_BYTES - 4, 0);
        footer.extend_from_slice(&crc32c::crc32c(&footer).to_le_bytes());
        drop(filter);
        self.put(&footer)?;
        let path = self.path;
        self.file.commit().map_err(BlobIndexError::io("writing a segment of the blob index", &path))?;
        Segment::open(&path).map(Some)
    }
}
