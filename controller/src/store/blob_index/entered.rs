//! Which index objects of a repository have been entered into its index of blobs: a file of their ids, beside the index.
//!
//! It needs no checksum and is not made durable: an id that is lost is entered once more, and one that the repository
//! does not have asks for a rebuild.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use holdfast_repository::id::{IdSet, IndexId};

use super::BlobIndexError;

const ID_BYTES: u64 = 32;

/// The ids of index objects that were entered.
#[derive(Debug)]
pub struct EnteredIndexes {
    path: PathBuf,
    file: File,
    ids: IdSet<IndexId>,
    /// How many ids are in the file.
    written: u64,
}

impl EnteredIndexes {
    /// Opens the file in the folder of an index, or begins it. An id that a crash cut short does not count.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn open(folder: &Path) -> Result<Self, BlobIndexError> {
        let path = folder.join("indexes");
        let failed = || BlobIndexError::io("opening the list of index objects", &path);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(failed())?;
        let written = file.metadata().map_err(failed())?.len() / ID_BYTES;
        let mut bytes = vec![0; (written * ID_BYTES) as usize];
        file.read_exact_at(&mut bytes, 0).map_err(failed())?;
        let ids = bytes.as_chunks::<32>().0.iter().map(|id| IndexId::from_bytes(*id)).collect();
        Ok(Self { path, file, ids, written })
    }

    /// The ids.
    pub fn ids(&self) -> &IdSet<IndexId> {
        &self.ids
    }

    /// Notes index objects whose packs were all entered.
    ///
    /// # Errors
    /// The file system refuses; then they are not noted.
    pub fn add(&mut self, ids: &[IndexId]) -> Result<(), BlobIndexError> {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| *id.as_bytes()).collect();
        self.file
            .write_all_at(&bytes, self.written * ID_BYTES)
            .map_err(BlobIndexError::io("writing the list of index objects", &self.path))?;
        self.written += ids.len() as u64;
        self.ids.extend(ids);
        Ok(())
    }

    /// Forgets some and notes others instead.
    ///
    /// # Errors
    /// The file system refuses; then few or none are noted, and what is missing is entered once more.
    pub fn replace(&mut self, removed: &[IndexId], added: &[IndexId]) -> Result<(), BlobIndexError> {
        let mut ids = self.ids.clone();
        ids.retain(|id| !removed.contains(id));
        ids.extend(added);
        self.clear()?;
        self.add(&ids.into_iter().collect::<Vec<_>>())
    }

    /// Forgets all.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn clear(&mut self) -> Result<(), BlobIndexError> {
        self.file.set_len(0).map_err(BlobIndexError::io("clearing the list of index objects", &self.path))?;
        self.written = 0;
        self.ids.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_there_after_a_crash_except_an_id_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, c] = [b"a", b"b", b"c"].map(|text| IndexId::of(text));
        let mut entered = EnteredIndexes::open(folder.path()).unwrap();
        entered.add(&[a, b]).unwrap();
        let path = folder.path().join("indexes");
        std::fs::write(&path, &std::fs::read(&path).unwrap()[..40]).unwrap();
        let mut entered = EnteredIndexes::open(folder.path()).unwrap();
        assert_eq!(entered.ids(), &IdSet::from_iter([a]));
        entered.add(&[c]).unwrap();
        assert_eq!(EnteredIndexes::open(folder.path()).unwrap().ids(), &IdSet::from_iter([a, c]));
        entered.replace(&[a], &[b]).unwrap();
        assert_eq!(EnteredIndexes::open(folder.path()).unwrap().ids(), &IdSet::from_iter([b, c]));
        entered.clear().unwrap();
        assert!(EnteredIndexes::open(folder.path()).unwrap().ids().is_empty());
    }
}
