//! Numbers for packs: a file of pack ids, in which the number is the place, and which of them are gone.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use holdfast_repository::id::PackId;
use holdfast_runtime::durable_file::{self, Access};

use super::BlobIndexError;
use super::slot::{PACKS_MAX, PackNumber};

const ID_BYTES: u64 = 32;

/// The packs of an index, by number. One writer, many readers.
#[derive(Debug)]
pub struct Packs {
    path: PathBuf,
    file: File,
    count: AtomicU32,
}

impl Packs {
    /// Opens the file, or begins it. An id that a crash cut short is overwritten by the next.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn open(path: &Path) -> Result<Self, BlobIndexError> {
        let failed = || BlobIndexError::io("opening the list of packs", path);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed())?;
        let count = file.metadata().map_err(failed())?.len() / ID_BYTES;
        let count = u32::try_from(count).map_err(|_| BlobIndexError::Full)?;
        Ok(Self { path: path.to_owned(), file, count: AtomicU32::new(count) })
    }

    /// Numbers packs; returns the first number, the others follow.
    ///
    /// # Errors
    /// The file system refuses, or there are too many.
    pub fn add(&self, packs: impl ExactSizeIterator<Item = PackId>) -> Result<PackNumber, BlobIndexError> {
        let first = self.count.load(Ordering::Acquire);
        let added = u32::try_from(packs.len()).map_err(|_| BlobIndexError::Full)?;
        let count =
            first.checked_add(added).filter(|&count| count <= PACKS_MAX).ok_or(BlobIndexError::Full)?;
        let bytes: Vec<u8> = packs.flat_map(|pack| *pack.as_bytes()).collect();
        self.file
            .write_all_at(&bytes, u64::from(first) * ID_BYTES)
            .map_err(BlobIndexError::io("writing the list of packs", &self.path))?;
        self.count.store(count, Ordering::Release);
        Ok(first)
    }

    /// The pack with this number.
    ///
    /// # Errors
    /// There is none: the index is damaged.
    pub fn get(&self, number: PackNumber) -> Result<PackId, BlobIndexError> {
        if number >= self.count.load(Ordering::Acquire) {
            let reason = "a blob is in a pack that is not listed";
            return Err(BlobIndexError::Damaged { path: self.path.clone(), reason });
        }
        let mut id = [0; 32];
        self.file
            .read_exact_at(&mut id, u64::from(number) * ID_BYTES)
            .map_err(BlobIndexError::io("reading the list of packs", &self.path))?;
        Ok(PackId::from_bytes(id))
    }

    /// The numbers of these packs. Reads the whole list.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn numbers_of(&self, packs: &HashSet<PackId>) -> Result<Vec<PackNumber>, BlobIndexError> {
        let failed = || BlobIndexError::io("reading the list of packs", &self.path);
        let mut reader = io::BufReader::with_capacity(1 << 20, File::open(&self.path).map_err(failed())?);
        let mut numbers = Vec::new();
        let mut id = [0; 32];
        for number in 0..self.count.load(Ordering::Acquire) {
            reader.read_exact(&mut id).map_err(failed())?;
            if packs.contains(&PackId::from_bytes(id)) {
                numbers.push(number);
            }
        }
        Ok(numbers)
    }

    /// Makes the list durable.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn sync(&self) -> Result<(), BlobIndexError> {
        self.file.sync_all().map_err(BlobIndexError::io("making the list of packs durable", &self.path))
    }
}

/// Packs that are gone: one bit for each number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    words: Vec<u64>,
}

impl Removed {
    /// Reads the file; an absent one says that nothing is gone.
    ///
    /// # Errors
    /// The file system refuses, or the file is damaged.
    pub fn read(path: &Path) -> Result<Self, BlobIndexError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(BlobIndexError::io("reading the removed packs", path)(error)),
        };
        let damaged =
            || BlobIndexError::Damaged { path: path.to_owned(), reason: "its checksum does not fit" };
        let (content, checksum) = bytes.split_last_chunk::<4>().ok_or_else(damaged)?;
        let (words, rest) = content.as_chunks::<8>();
        if crc32c::crc32c(content).to_le_bytes() != *checksum || !rest.is_empty() {
            return Err(damaged());
        }
        Ok(Self { words: words.iter().map(|word| u64::from_le_bytes(*word)).collect() })
    }

    /// Writes the file durably.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&self, path: &Path) -> Result<(), BlobIndexError> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        durable_file::replace(path, &bytes, Access::Owner)
            .map_err(BlobIndexError::io("writing the removed packs", path))
    }

    /// Marks a pack as gone.
    pub fn insert(&mut self, number: PackNumber) {
        let word = number as usize / 64;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (number % 64);
    }

    /// Whether the pack is gone.
    pub fn contains(&self, number: PackNumber) -> bool {
        self.words.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }
}
