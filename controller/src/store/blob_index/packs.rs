//! Numbers for packs: a file of pack ids, in which the number is the place, and which of them are gone.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use holdfast_repository::id::{IdMap, PackId};
use holdfast_runtime::durable_file::{self, Access};
use parking_lot::RwLock;

use super::BlobIndexError;
use super::slot::{PACKS_MAX, PackNumber};

const ID_BYTES: u64 = 32;

/// The packs of an index, by number and by id: about 55 bytes of memory for each. One writer, many readers.
#[derive(Debug)]
pub struct Packs {
    path: PathBuf,
    file: File,
    count: AtomicU32,
    live: RwLock<IdMap<PackId, PackNumber>>,
}

impl Packs {
    /// Opens the file, or begins it. An id that a crash cut short is overwritten by the next. Reads the whole list.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn open(path: &Path, removed: &Removed) -> Result<Self, BlobIndexError> {
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
        let mut live = IdMap::default();
        let mut reader = io::BufReader::with_capacity(1 << 16, &file);
        let mut id = [0; 32];
        for number in 0..count {
            reader.read_exact(&mut id).map_err(failed())?;
            if !removed.contains(number) {
                live.insert(PackId::from_bytes(id), number);
            }
        }
        Ok(Self { path: path.to_owned(), file, count: AtomicU32::new(count), live: RwLock::new(live) })
    }

    /// The number that the next pack gets; as many packs have been numbered.
    pub fn end(&self) -> PackNumber {
        self.count.load(Ordering::Acquire)
    }

    /// Whether this pack is there.
    pub fn contains(&self, pack: &PackId) -> bool {
        self.live.read().contains_key(pack)
    }

    /// The packs that are there, in no order.
    pub fn ids(&self) -> Vec<PackId> {
        self.live.read().keys().copied().collect()
    }

    /// How many packs are there.
    pub fn len(&self) -> usize {
        self.live.read().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers packs, from [`Packs::end`] on.
    ///
    /// # Errors
    /// The file system refuses, or there are too many.
    pub fn add(&self, packs: &[PackId]) -> Result<(), BlobIndexError> {
        let first = self.end();
        let added = u32::try_from(packs.len()).map_err(|_| BlobIndexError::Full)?;
        let count =
            first.checked_add(added).filter(|&count| count <= PACKS_MAX).ok_or(BlobIndexError::Full)?;
        let bytes: Vec<u8> = packs.iter().flat_map(|pack| *pack.as_bytes()).collect();
        self.file
            .write_all_at(&bytes, u64::from(first) * ID_BYTES)
            .map_err(BlobIndexError::io("writing the list of packs", &self.path))?;
        self.count.store(count, Ordering::Release);
        self.live.write().extend(packs.iter().copied().zip(first..));
        Ok(())
    }

    /// The pack with this number.
    ///
    /// # Errors
    /// There is none: the index is damaged.
    pub fn get(&self, number: PackNumber) -> Result<PackId, BlobIndexError> {
        if number >= self.end() {
            let reason = "a blob is in a pack that is not listed";
            return Err(BlobIndexError::Damaged { path: self.path.clone(), reason });
        }
        let mut id = [0; 32];
        self.file
            .read_exact_at(&mut id, u64::from(number) * ID_BYTES)
            .map_err(BlobIndexError::io("reading the list of packs", &self.path))?;
        Ok(PackId::from_bytes(id))
    }

    /// The numbers of those of these packs that are there.
    pub fn numbers_of(&self, packs: &[PackId]) -> Vec<PackNumber> {
        let live = self.live.read();
        packs.iter().filter_map(|pack| live.get(pack).copied()).collect()
    }

    /// Forgets these packs; their numbers stay taken.
    pub fn forget(&self, packs: &[PackId]) {
        let mut live = self.live.write();
        for pack in packs {
            live.remove(pack);
        }
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

    /// The number behind the highest pack that is gone.
    pub fn end(&self) -> PackNumber {
        let last = self.words.iter().rposition(|&word| word != 0);
        last.map_or(0, |word| word as PackNumber * 64 + 64 - self.words[word].leading_zeros())
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
