//! Keeps this process from breaking the locks that SQLite holds in it.
//!
//! SQLite locks a database with POSIX record locks. They belong to the process, and when it closes *any* descriptor
//! of a file, all its locks on that file are gone, whoever took them (`fcntl(2)`). An agent that reads the file of a
//! database as part of a file tree, while it holds a consistent view of the same database, would lose the view
//! without noticing, and so could the application lose its write-ahead log.
//!
//! So everything in this process that opens files of sources takes a [`ReadPass`] first and gives it back after the
//! file is closed; and a capture of a database takes a `HoldPass` for the files that it locks. The two exclude each
//! other per file.

use std::collections::HashMap;
use std::fmt;

use parking_lot::Mutex;

/// Who is who: device number and inode number, as `stat(2)` gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    /// `st_dev`.
    pub device_id: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// The gate of this process.
pub static FILE_GATE: FileGate = FileGate::new();

/// Which files are being read, and which are held by SQLite.
#[derive(Debug)]
pub struct FileGate {
    uses: Mutex<Option<HashMap<FileId, Use>>>,
}

#[derive(Debug, Clone, Copy)]
enum Use {
    Read { readers: u32 },
    Held { holders: u32 },
}

/// The file is held by a capture of the database that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it belongs to a SQLite database that is being backed up at this moment")]
pub struct HeldBySqlite;

impl FileGate {
    const fn new() -> Self {
        Self { uses: Mutex::new(None) }
    }

    /// Leave to open this file, until the pass is dropped. Drop it after the file is closed. Never waits.
    ///
    /// # Errors
    /// [`HeldBySqlite`]: opening and closing it now would break the lock.
    pub fn read(&'static self, file: FileId) -> Result<ReadPass, HeldBySqlite> {
        let mut uses = self.uses.lock();
        match uses.get_or_insert_default().entry(file).or_insert(Use::Read { readers: 0 }) {
            Use::Read { readers } => *readers += 1,
            Use::Held { .. } => return Err(HeldBySqlite),
        }
        Ok(ReadPass { gate: self, file })
    }

    /// Whether a capture holds this file now.
    pub fn is_held(&self, file: FileId) -> bool {
        let uses = self.uses.lock();
        uses.as_ref().is_some_and(|uses| matches!(uses.get(&file), Some(Use::Held { .. })))
    }

    /// Holds all these files, or none when one is being read now. Several may hold the same: SQLite shares its own
    /// locks within a process.
    pub(crate) fn hold(&'static self, files: &[FileId]) -> Option<HoldPass> {
        let mut uses = self.uses.lock();
        let uses = uses.get_or_insert_default();
        if files.iter().any(|file| matches!(uses.get(file), Some(Use::Read { .. }))) {
            return None;
        }
        for &file in files {
            if let Use::Held { holders } = uses.entry(file).or_insert(Use::Held { holders: 0 }) {
                *holders += 1;
            }
        }
        Some(HoldPass { gate: self, files: files.to_vec() })
    }

    fn leave(&self, file: FileId) {
        let mut uses = self.uses.lock();
        let uses = uses.get_or_insert_default();
        let Some(Use::Read { readers: count } | Use::Held { holders: count }) = uses.get_mut(&file) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            uses.remove(&file);
        }
    }
}

/// Leave to open one file.
#[must_use = "the file may be open only while the pass lives"]
pub struct ReadPass {
    gate: &'static FileGate,
    file: FileId,
}

impl Drop for ReadPass {
    fn drop(&mut self) {
        self.gate.leave(self.file);
    }
}

impl fmt::Debug for ReadPass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReadPass").field(&self.file).finish()
    }
}

/// Files that SQLite locks.
pub(crate) struct HoldPass {
    gate: &'static FileGate,
    files: Vec<FileId>,
}

impl Drop for HoldPass {
    fn drop(&mut self) {
        for &file in &self.files {
            self.gate.leave(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static GATE: FileGate = FileGate::new();

    #[test]
    fn readers_and_holders_of_a_file_exclude_each_other() {
        let [a, b] = [1, 2].map(|inode| FileId { device_id: 7, inode });
        let first = GATE.read(a).unwrap();
        let second = GATE.read(a).unwrap();
        assert!(GATE.hold(&[b, a]).is_none());
        drop(GATE.read(b).expect("a hold that failed holds nothing"));
        drop(first);
        assert!(GATE.hold(&[a]).is_none());
        drop(second);
        let hold = GATE.hold(&[b, a]).unwrap();
        let again = GATE.hold(&[a]).unwrap();
        assert_eq!(GATE.read(a).unwrap_err(), HeldBySqlite);
        drop(hold);
        assert!(GATE.read(b).is_ok());
        assert_eq!(GATE.read(a).unwrap_err(), HeldBySqlite);
        drop(again);
        assert!(GATE.read(a).is_ok());
        assert!(GATE.uses.lock().as_ref().unwrap().is_empty());
    }
}
