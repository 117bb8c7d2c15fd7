//! What an agent keeps of the trees of a source's last snapshot, so that an unchanged folder costs a look at its
//! entries and nothing else: no tree is fetched, parsed or written for it.
//!
//! The cache is a file. Each record is one tree: the fingerprints of its entries in order, the trees of the folders in
//! it, and its text as zstd. A record is a function of its tree alone, so no record is ever out of date; one that is
//! missing costs a request to the repository. Everything is checked when it is read, and nothing in it is ever
//! trusted to be there: it may be deleted at any time.
//!
//! ```text
//! magic    "HFTREES" 1
//! record   entries u32 | folders u32 | text u32 | packed u32 | fingerprint 16 × entries | tree id 32 × folders
//!          | text as zstd, `packed` bytes | first 8 bytes of the SHA-256 of the record up to here
//! …
//! index    tree id 32 | offset of its record u64 | its length u32, for each record
//! footer   offset of the index u64 | records u64 | first 8 bytes of the SHA-256 of the index | magic
//! ```
//!
//! Numbers are little-endian. In memory: 48 bytes per folder of the source.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use zstd::bulk::{Compressor, Decompressor};

use crate::format::TREE_BLOB_BYTES_MAX;
use crate::id::{BlobId, IdMap};
use crate::tree::fingerprint::FINGERPRINT_BYTES;
use crate::tree::{Fingerprint, Tree};

const MAGIC: [u8; 8] = *b"HFTREES\x01";
const HEAD_BYTES: usize = 16;
const ID_BYTES: usize = 32;
const SUM_BYTES: usize = 8;
const INDEX_ENTRY_BYTES: usize = ID_BYTES + 8 + 4;
const FOOTER_BYTES: usize = 8 + 8 + SUM_BYTES + MAGIC.len();
/// Fast, and small enough: the cache is read and written as a whole by every backup.
const ZSTD_LEVEL: i32 = 1;
const WRITE_BUFFER_BYTES: usize = 256 << 10;

/// The trees of an earlier snapshot.
#[derive(Debug)]
pub(crate) struct TreeCache {
    file: File,
    index: IdMap<BlobId, (u64, u32)>,
}

/// One tree as the cache has it, checked.
#[derive(Debug)]
pub(crate) struct CachedTree {
    record: Vec<u8>,
    entries: usize,
    folders: usize,
    text_bytes: usize,
}

impl TreeCache {
    /// Opens the cache at a path. `None` when there is none that can be used.
    pub(crate) fn open(path: &Path) -> Option<Self> {
        match Self::read(path) {
            Ok(cache) => Some(cache),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "the cache of trees is not used and made anew");
                }
                None
            }
        }
    }

    fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let footer_at = length.checked_sub(FOOTER_BYTES as u64).ok_or_else(|| broken("it is too short"))?;
        let mut footer = [0; FOOTER_BYTES];
        file.read_exact_at(&mut footer, footer_at)?;
        let (index_at, count) = (number_u64(&footer), number_u64(&footer[8..]));
        let index_bytes = footer_at.checked_sub(index_at);
        let expected = count.checked_mul(INDEX_ENTRY_BYTES as u64);
        if footer[16 + SUM_BYTES..] != MAGIC || index_bytes.is_none() || index_bytes != expected {
            return Err(broken("its end is not one"));
        }
        let mut bytes = vec![0; usize::try_from(footer_at - index_at).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, index_at)?;
        if sum(&bytes) != footer[16..16 + SUM_BYTES] {
            return Err(broken("its index is damaged"));
        }
        let entries = bytes.chunks_exact(INDEX_ENTRY_BYTES);
        let index =
            entries.map(|entry| (id(entry), (number_u64(&entry[32..]), number_u32(&entry[40..])))).collect();
        Ok(Self { file, index })
    }

    /// Whether there is a record of a tree.
    pub(crate) fn contains(&self, id: &BlobId) -> bool {
        self.index.contains_key(id)
    }

    /// The record of a tree, when it is there and whole.
    pub(crate) fn get(&self, id: &BlobId) -> Option<CachedTree> {
        let (offset, length) = *self.index.get(id)?;
        let read = || {
            let mut record = vec![0; length as usize];
            self.file.read_exact_at(&mut record, offset)?;
            CachedTree::check(record)
        };
        read().inspect_err(|error| tracing::warn!(tree = %id, %error, "a tree of the cache is not used")).ok()
    }
}

impl CachedTree {
    fn check(record: Vec<u8>) -> io::Result<Self> {
        let body = record.len().checked_sub(SUM_BYTES).filter(|body| *body >= HEAD_BYTES);
        let (body, found) = record.split_at(body.ok_or_else(|| broken("the record is too short"))?);
        let [entries, folders, text_bytes, packed] = [0, 4, 8, 12].map(|at| number_u32(&body[at..]) as usize);
        let expected = HEAD_BYTES + entries * FINGERPRINT_BYTES + folders * ID_BYTES + packed;
        if sum(body) != found || body.len() != expected || text_bytes > TREE_BLOB_BYTES_MAX {
            return Err(broken("the record is damaged"));
        }
        Ok(Self { record, entries, folders, text_bytes })
    }

    /// How many entries the folder has.
    pub(crate) fn entries(&self) -> usize {
        self.entries
    }

    /// The fingerprint of its n-th entry.
    pub(crate) fn fingerprint(&self, n: usize) -> Option<Fingerprint> {
        let start = HEAD_BYTES + n * FINGERPRINT_BYTES;
        let bytes = (n < self.entries).then(|| self.record[start..start + FINGERPRINT_BYTES].try_into().ok());
        bytes.flatten().map(Fingerprint::from_bytes)
    }

    /// The tree of the n-th folder in it.
    pub(crate) fn folder(&self, n: usize) -> Option<BlobId> {
        let start = HEAD_BYTES + self.entries * FINGERPRINT_BYTES + n * ID_BYTES;
        (n < self.folders).then(|| id(&self.record[start..]))
    }

    /// The tree itself. `None` when the text is not that of this tree.
    pub(crate) fn tree(&self, id: &BlobId) -> Option<Tree> {
        let start = HEAD_BYTES + self.entries * FINGERPRINT_BYTES + self.folders * ID_BYTES;
        let packed = &self.record[start..self.record.len() - SUM_BYTES];
        let text = Decompressor::new().ok()?.decompress(packed, self.text_bytes).ok()?;
        if BlobId::of(&text) != *id {
            return None;
        }
        Tree::parse(id, &text).ok().filter(|tree| tree.nodes.len() == self.entries)
    }
}

/// Writes the cache for the next snapshot. It takes the place of the one before when it is complete, and does not wait
/// for the disk: what a crash leaves of it is found out when it is read.
pub(crate) struct TreeCacheWriter {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    at: u64,
    index: IdMap<BlobId, (u64, u32)>,
    compressor: Compressor<'static>,
    record: Vec<u8>,
}

impl TreeCacheWriter {
    /// Begins a cache that will lie at this path.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = BufWriter::with_capacity(WRITE_BUFFER_BYTES, NamedTempFile::new_in(folder)?);
        file.write_all(&MAGIC)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            at: MAGIC.len() as u64,
            index: IdMap::default(),
            compressor: Compressor::new(ZSTD_LEVEL)?,
            record: Vec::new(),
        })
    }

    /// Adds a tree as another cache has it.
    pub(crate) fn copy(&mut self, id: BlobId, tree: &CachedTree) -> io::Result<()> {
        if self.index.contains_key(&id) {
            return Ok(());
        }
        self.enter(id, tree.record.len())?;
        self.file.write_all(&tree.record)
    }

    /// Adds a tree: its entries' fingerprints, the trees of the folders in it, its text.
    pub(crate) fn add(
        &mut self,
        id: BlobId,
        fingerprints: &[Fingerprint],
        folders: &[BlobId],
        text: &[u8],
    ) -> io::Result<()> {
        if self.index.contains_key(&id) {
            return Ok(());
        }
        let packed = self.compressor.compress(text)?;
        let mut record = std::mem::take(&mut self.record);
        record.clear();
        for length in [fingerprints.len(), folders.len(), text.len(), packed.len()] {
            record.extend_from_slice(&u32::try_from(length).map_err(io::Error::other)?.to_le_bytes());
        }
        fingerprints.iter().for_each(|print| record.extend_from_slice(print.as_bytes()));
        folders.iter().for_each(|folder| record.extend_from_slice(folder.as_bytes()));
        record.extend_from_slice(&packed);
        let sum = sum(&record);
        record.extend_from_slice(&sum);
        self.enter(id, record.len())?;
        self.file.write_all(&record)?;
        self.record = record;
        Ok(())
    }

    fn enter(&mut self, id: BlobId, length: usize) -> io::Result<()> {
        self.index.insert(id, (self.at, u32::try_from(length).map_err(io::Error::other)?));
        self.at += length as u64;
        Ok(())
    }

    /// Puts the cache in its place.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let mut index = Vec::with_capacity(self.index.len() * INDEX_ENTRY_BYTES);
        for (id, (offset, length)) in &self.index {
            index.extend_from_slice(id.as_bytes());
            index.extend_from_slice(&offset.to_le_bytes());
            index.extend_from_slice(&length.to_le_bytes());
        }
        self.file.write_all(&index)?;
        self.file.write_all(&self.at.to_le_bytes())?;
        self.file.write_all(&(self.index.len() as u64).to_le_bytes())?;
        self.file.write_all(&sum(&index))?;
        self.file.write_all(&MAGIC)?;
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.persist(&self.path).map_err(|error| error.error)?;
        Ok(())
    }
}

fn sum(bytes: &[u8]) -> [u8; SUM_BYTES] {
    let digest = Sha256::digest(bytes);
    std::array::from_fn(|n| digest[n])
}

fn id(bytes: &[u8]) -> BlobId {
    BlobId::from_bytes(std::array::from_fn(|n| bytes[n]))
}

fn number_u64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|n| bytes[n]))
}

fn number_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|n| bytes[n]))
}

fn broken(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
