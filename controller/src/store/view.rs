//! The view of the journal that reads are answered from: one sled tree.
//!
//! Keys are the number of the kind and the key; values are the version (u64) and the JSON. One further record says up
//! to which commit the journal was applied, and is written in the same atomic batch as the changes.
//!
//! sled loses acknowledged writes when the power fails, and may then not open at all. So the view is trusted only
//! after a clean stop, or after a crash within the same boot of the machine ([`Marker`]); otherwise it is deleted and
//! made anew from checkpoint and journal.

use std::panic::AssertUnwindSafe;
use std::path::Path;

use holdfast_runtime::durable_file::{self, Access};
use holdfast_runtime::fail_point;
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::frame::{Fields, Frame};
use super::record::{Kind, Operation, PAGE_RECORDS_MAX, Record, Scan, Sequence};
use super::segment::Position;

/// The key of the record that says how far the journal was applied; kinds begin at 1.
const APPLIED_KEY: &[u8] = &[0];

/// The view.
#[derive(Debug, Clone)]
pub struct View {
    db: sled::Db,
}

impl View {
    /// Opens the view in a folder, or begins an empty one.
    ///
    /// # Errors
    /// sled refuses the files. It may also panic over damaged ones; that is an error here, too.
    pub fn open(folder: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        let config = sled::Config::new().path(folder).cache_capacity(cache_bytes).flush_every_ms(Some(500));
        // What a panic leaves half-made is dropped with the configuration.
        let opened = std::panic::catch_unwind(AssertUnwindSafe(move || config.open()));
        let opened = opened.unwrap_or_else(|_| {
            Err(sled::Error::Unsupported("sled panicked while it opened its files".to_owned()))
        });
        Ok(Self { db: opened.map_err(StoreError::View)? })
    }

    /// Up to which commit the journal was applied.
    ///
    /// # Errors
    /// sled cannot read, or the record makes no sense.
    pub fn applied(&self) -> Result<Position, StoreError> {
        let Some(bytes) = self.db.get(APPLIED_KEY).map_err(StoreError::View)? else {
            return Ok(Position::START);
        };
        let mut fields = Fields(&bytes);
        match (fields.u64(), fields.array()) {
            (Ok(sequence), Ok(hash)) => Ok(Position { sequence, hash }),
            _ => Err(unreadable()),
        }
    }

    /// The record.
    ///
    /// # Errors
    /// sled cannot read.
    pub fn get(&self, kind: Kind, key: &str) -> Result<Option<Record>, StoreError> {
        let found = self.db.get(full_key(kind, key)).map_err(StoreError::View)?;
        found.map(|bytes| split_value(key.to_owned(), &bytes)).transpose()
    }

    /// The version of the record, if there is one.
    ///
    /// # Errors
    /// sled cannot read.
    pub fn version(&self, kind: Kind, key: &str) -> Result<Option<Sequence>, StoreError> {
        let found = self.db.get(full_key(kind, key)).map_err(StoreError::View)?;
        found.map(|bytes| Fields(&bytes).u64().map_err(|_| unreadable())).transpose()
    }

    /// One page of records.
    ///
    /// # Errors
    /// sled cannot read.
    pub fn scan(&self, kind: Kind, scan: &Scan) -> Result<Vec<Record>, StoreError> {
        let low = full_key(kind, &scan.prefix);
        let high = end_of_prefix(&low);
        let after = scan.after.as_ref().map(|after| full_key(kind, after));
        // An `after` outside the prefix must not widen the range.
        let (start, end) = match (after, scan.descending) {
            (Some(after), false) if after >= low => ([after, vec![0]].concat(), high),
            (Some(after), true) if after < high => (low, after),
            _ => (low, high),
        };
        if start >= end {
            return Ok(Vec::new());
        }
        let range = self.db.range(start..end);
        let limit = scan.limit.min(PAGE_RECORDS_MAX);
        if scan.descending { collect(range.rev().take(limit)) } else { collect(range.take(limit)) }
    }

    /// Applies commits in order, all of them or none.
    ///
    /// # Errors
    /// sled cannot write.
    pub fn apply<'a>(
        &self,
        frames: impl Iterator<Item = &'a Frame>,
        end: Position,
    ) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for frame in frames {
            for operation in &frame.operations {
                match operation {
                    Operation::Put { kind, key, value } => {
                        batch.insert(full_key(*kind, key), join_value(frame.sequence, value));
                    }
                    Operation::Delete { kind, key } => batch.remove(full_key(*kind, key)),
                }
            }
        }
        batch.insert(APPLIED_KEY, [&end.sequence.to_le_bytes()[..], &end.hash].concat());
        fail_point::hit("view-before-apply");
        self.db.apply_batch(batch).map_err(StoreError::View)?;
        fail_point::hit("view-after-apply");
        Ok(())
    }

    /// Puts records of a checkpoint into an empty view.
    ///
    /// # Errors
    /// sled cannot write.
    pub fn load(&self, records: &[(Kind, Record)]) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (kind, record) in records {
            batch.insert(full_key(*kind, &record.key), join_value(record.version, &record.value));
        }
        self.db.apply_batch(batch).map_err(StoreError::View)
    }

    /// Writes everything out and closes the view, so that it survives even a loss of power afterwards.
    ///
    /// # Errors
    /// sled, or the file system, cannot write.
    pub fn close(self, folder: &Path) -> Result<(), StoreError> {
        self.db.flush().map_err(StoreError::View)?;
        drop(self);
        // sled calls no fsync that deserves the name.
        sync_tree(folder).map_err(StoreError::io("making the view durable", folder))
    }
}

fn collect(
    range: impl Iterator<Item = sled::Result<(sled::IVec, sled::IVec)>>,
) -> Result<Vec<Record>, StoreError> {
    range
        .map(|entry| {
            let (key, value) = entry.map_err(StoreError::View)?;
            let key = std::str::from_utf8(&key[1..]).map_err(|_| unreadable())?;
            split_value(key.to_owned(), &value)
        })
        .collect()
}

fn unreadable() -> StoreError {
    StoreError::View(sled::Error::Unsupported("a record of the view makes no sense".to_owned()))
}

fn full_key(kind: Kind, key: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + key.len());
    bytes.push(kind.number());
    bytes.extend_from_slice(key.as_bytes());
    bytes
}

/// The smallest key greater than all that begin with `prefix`. The first byte is a kind, so it is never 255.
fn end_of_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while end.last() == Some(&u8::MAX) {
        end.pop();
    }
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

fn join_value(version: Sequence, value: &[u8]) -> Vec<u8> {
    [&version.to_le_bytes()[..], value].concat()
}

fn split_value(key: String, bytes: &[u8]) -> Result<Record, StoreError> {
    let (version, value) = bytes.split_first_chunk().ok_or_else(unreadable)?;
    Ok(Record { key, version: u64::from_le_bytes(*version), value: value.to_vec() })
}

fn sync_tree(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            std::fs::File::open(&path)?.sync_all()?;
        }
    }
    durable_file::sync_folder(folder)
}

/// What is known of the view without opening it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The boot of the machine during which the view was open last.
    pub boot_id: String,
    /// The last commit when the store was closed in order; nothing while it is open.
    pub clean_end: Option<Sequence>,
}

impl Marker {
    /// Reads the marker. One that is missing or unreadable says that the view cannot be trusted.
    ///
    /// # Errors
    /// The file is there and the file system refuses to read it.
    pub fn read(path: &Path) -> Result<Option<Self>, StoreError> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("reading the marker of the view", path)(error)),
        }
    }

    /// Writes the marker durably.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&self, path: &Path) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(self).expect("two plain fields can be written as JSON");
        durable_file::replace(path, &bytes, Access::Owner)
            .map_err(StoreError::io("writing the marker of the view", path))
    }
}
