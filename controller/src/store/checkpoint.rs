//! Checkpoints: all records as of one commit, in one file, so that the view can be made anew without the whole
//! journal.
//!
//! A checkpoint is made from the one before and the journal since, never from the live view: what sled might have
//! garbled must not become the truth. It is a header ([`super::segment::Header`]), blocks, and an end:
//!
//! ```text
//! block   length u32 · CRC-32C of length and records u32 · records:
//!         kind u8 · key u16 length and UTF-8 · version u64 · value u32 length and bytes
//! end     nought u32 · CRC-32C of nought, count and hash u32 · count u64 · SHA-256 of all before the end 32
//! ```
//!
//! Records are ordered by kind and key. The two newest checkpoints are kept.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};

use holdfast_runtime::durable_file::{self, Access, DurableFile};
use holdfast_runtime::fail_point;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::StoreError;
use super::frame::{Fields, Frame, put_bytes, put_text};
use super::record::{Kind, Operation, Record, Sequence, VALUE_BYTES_MAX};
use super::segment::{HEADER_BYTES, Header, Magic, Position, damaged, list_numbered};

const SUFFIX: &str = ".checkpoint";
const BLOCK_BYTES: usize = 256 << 10;
const BLOCK_BYTES_MAX: usize = 2 * VALUE_BYTES_MAX;
const KEPT: usize = 2;

/// The commit that wrote a record, and its value.
type Written = (Sequence, Vec<u8>);

/// The changes of a stretch of the journal: the last state of each record, nothing for a removed one.
#[derive(Debug, Default)]
pub struct Delta {
    records: BTreeMap<(Kind, String), Option<Written>>,
}

impl Delta {
    /// Adds a commit that follows those before.
    pub fn add(&mut self, frame: Frame) {
        for operation in frame.operations {
            match operation {
                Operation::Put { kind, key, value } => {
                    self.records.insert((kind, key), Some((frame.sequence, value)));
                }
                Operation::Delete { kind, key } => {
                    self.records.insert((kind, key), None);
                }
            }
        }
    }
}

/// The checkpoints in a folder, oldest first.
///
/// # Errors
/// The folder cannot be read, or something in it does not belong there.
pub fn list(folder: &Path) -> Result<Vec<(Sequence, PathBuf)>, StoreError> {
    durable_file::create_folders(folder)
        .map_err(StoreError::io("making the folder of checkpoints", folder))?;
    list_numbered(folder, SUFFIX)
}

/// Makes a checkpoint at `end` from the one before and the changes since, and removes all but the newest two.
///
/// # Errors
/// The one before is damaged, or the file system refuses; then nothing has changed.
pub fn write(
    folder: &Path,
    previous: Option<&Path>,
    delta: Delta,
    end: Position,
    now: Timestamp,
) -> Result<PathBuf, StoreError> {
    let path = folder.join(format!("{:020}{SUFFIX}", end.sequence));
    let failed = || StoreError::io("writing a checkpoint", &path);
    let mut writer = Writer::begin(&path, end, now).map_err(failed())?;
    let mut older = match previous {
        Some(previous) => Some(Reader::open(previous)?),
        None => None,
    };
    let next_older = |older: &mut Option<Reader>| match older {
        Some(reader) => reader.next_record(),
        None => Ok(None),
    };
    let mut old = next_older(&mut older)?;
    for ((kind, key), change) in delta.records {
        while let Some((old_kind, record)) = old.take_if(|(k, r)| (*k, r.key.as_str()) < (kind, key.as_str()))
        {
            writer.add(old_kind, &record).map_err(failed())?;
            old = next_older(&mut older)?;
        }
        if old.take_if(|(k, r)| *k == kind && r.key == key).is_some() {
            old = next_older(&mut older)?;
        }
        if let Some((version, value)) = change {
            writer.add(kind, &Record { key, version, value }).map_err(failed())?;
        }
    }
    while let Some((kind, record)) = old {
        writer.add(kind, &record).map_err(failed())?;
        old = next_older(&mut older)?;
    }
    fail_point::hit("checkpoint-before-commit");
    writer.finish().map_err(failed())?;
    fail_point::hit("checkpoint-after-commit");
    let all = list(folder)?;
    for (_, old) in &all[..all.len().saturating_sub(KEPT)] {
        durable_file::remove(old).map_err(StoreError::io("removing an old checkpoint", old))?;
    }
    Ok(path)
}

struct Writer {
    file: DurableFile,
    block: Vec<u8>,
    hash: Sha256,
    count: u64,
}

impl Writer {
    fn begin(path: &Path, end: Position, now: Timestamp) -> std::io::Result<Self> {
        let header =
            Header { magic: Magic::Checkpoint, sequence: end.sequence, hash: end.hash, created_at: now };
        let mut writer = Self {
            file: DurableFile::create(path, Access::Owner)?,
            block: Vec::new(),
            hash: Sha256::new(),
            count: 0,
        };
        writer.put(&header.encode())?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hash.update(bytes);
        self.file.write_all(bytes)
    }

    fn add(&mut self, kind: Kind, record: &Record) -> std::io::Result<()> {
        self.count += 1;
        self.block.push(kind.number());
        put_text(&record.key, &mut self.block);
        self.block.extend_from_slice(&record.version.to_le_bytes());
        put_bytes(&record.value, &mut self.block);
        if self.block.len() >= BLOCK_BYTES { self.end_block() } else { Ok(()) }
    }

    fn end_block(&mut self) -> std::io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let block = std::mem::take(&mut self.block);
        let length =
            u32::try_from(block.len()).expect("a block holds little more than one value").to_le_bytes();
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&length), &block);
        self.put(&length)?;
        self.put(&checksum.to_le_bytes())?;
        self.put(&block)?;
        self.block = block;
        self.block.clear();
        Ok(())
    }

    fn finish(mut self) -> std::io::Result<()> {
        self.end_block()?;
        let count = self.count.to_le_bytes();
        let hash: [u8; 32] = self.hash.finalize().into();
        self.file.write_all(&[0; 4])?;
        self.file.write_all(&end_checksum(count, &hash).to_le_bytes())?;
        self.file.write_all(&count)?;
        self.file.write_all(&hash)?;
        self.file.commit()
    }
}

fn end_checksum(count: [u8; 8], hash: &[u8; 32]) -> u32 {
    crc32c::crc32c(&[&[0; 4][..], &count, hash].concat())
}

/// Reads a checkpoint in order, proving every block, and at the end the whole.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    offset: u64,
    end: Position,
    block: Vec<u8>,
    used: usize,
    hash: Sha256,
    count: u64,
    finished: bool,
}

impl Reader {
    /// Opens a checkpoint.
    ///
    /// # Errors
    /// It cannot be read, or its header is damaged.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(StoreError::io("opening a checkpoint", path))?;
        let mut file = BufReader::with_capacity(BLOCK_BYTES, file);
        let header = Header::read(&mut file, Magic::Checkpoint, path)?;
        let mut hash = Sha256::new();
        hash.update(header.encode());
        Ok(Self {
            path: path.to_owned(),
            file,
            offset: HEADER_BYTES as u64,
            end: Position { sequence: header.sequence, hash: header.hash },
            block: Vec::new(),
            used: 0,
            hash,
            count: 0,
            finished: false,
        })
    }

    /// The commit that it contains everything up to.
    pub fn end(&self) -> Position {
        self.end
    }

    /// The next record; nothing once all were read and the whole is proven.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when a block, or the whole, is not what was written.
    pub fn next_record(&mut self) -> Result<Option<(Kind, Record)>, StoreError> {
        if self.used == self.block.len() && (self.finished || !self.next_block()?) {
            return Ok(None);
        }
        let mut fields = Fields(&self.block[self.used..]);
        let read = |fields: &mut Fields<'_>| {
            let kind = fields.u8()?;
            let (key, version) = (fields.text()?, fields.u64()?);
            Ok::<_, super::frame::FrameFault>((
                kind,
                Record { key, version, value: fields.bytes()?.to_vec() },
            ))
        };
        let (kind, record) = read(&mut fields).map_err(|fault| damaged(&self.path, self.offset, fault))?;
        self.used = self.block.len() - fields.0.len();
        self.count += 1;
        let kind = Kind::from_number(kind).ok_or_else(|| StoreError::TooNew { path: self.path.clone() })?;
        Ok(Some((kind, record)))
    }

    /// Reads the next block; `false` at the proven end.
    fn next_block(&mut self) -> Result<bool, StoreError> {
        let start = self.offset;
        let prefix: [u8; 8] = self.read_array()?;
        let [a, b, c, d, checksum @ ..] = prefix;
        let (length, checksum) = (u32::from_le_bytes([a, b, c, d]) as usize, u32::from_le_bytes(checksum));
        if length == 0 {
            let (count, hash): ([u8; 8], [u8; 32]) = (self.read_array()?, self.read_array()?);
            let proven = end_checksum(count, &hash) == checksum
                && u64::from_le_bytes(count) == self.count
                && self.hash.clone().finalize()[..] == hash;
            if !proven {
                return Err(damaged(&self.path, start, "the end of the checkpoint does not fit its content"));
            }
            self.finished = true;
            return Ok(false);
        }
        if length > BLOCK_BYTES_MAX {
            return Err(damaged(&self.path, start, "the length of the block is impossible"));
        }
        self.block.resize(length, 0);
        let mut block = std::mem::take(&mut self.block);
        self.fill(&mut block)?;
        self.block = block;
        self.used = 0;
        if crc32c::crc32c_append(crc32c::crc32c(&prefix[..4]), &self.block) != checksum {
            return Err(damaged(&self.path, start, "the checksum of the block does not fit"));
        }
        self.hash.update(prefix);
        self.hash.update(&self.block);
        Ok(true)
    }

    fn read_array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.file.read_exact(buffer).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                damaged(&self.path, self.offset, "the checkpoint is incomplete")
            }
            _ => StoreError::io("reading a checkpoint", &self.path)(error),
        })?;
        self.offset += buffer.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::Audit;

    fn frame(sequence: Sequence, operations: Vec<Operation>) -> Frame {
        Frame {
            sequence,
            durable: 0,
            previous: [0; 32],
            time: Timestamp::UNIX_EPOCH,
            audit: Audit::by_controller("test", "test"),
            operations,
        }
    }

    fn put(key: &str, value: &str) -> Operation {
        Operation::Put { kind: Kind::Run, key: key.to_owned(), value: value.as_bytes().to_vec() }
    }

    fn delete(key: &str) -> Operation {
        Operation::Delete { kind: Kind::Run, key: key.to_owned() }
    }

    fn delta(frames: impl IntoIterator<Item = Frame>) -> Delta {
        let mut delta = Delta::default();
        frames.into_iter().for_each(|frame| delta.add(frame));
        delta
    }

    fn at(sequence: Sequence) -> Position {
        Position { sequence, hash: [sequence as u8; 32] }
    }

    fn content(path: &Path) -> Result<Vec<(String, Sequence, String)>, StoreError> {
        let mut reader = Reader::open(path)?;
        let mut all = Vec::new();
        while let Some((_, record)) = reader.next_record()? {
            all.push((record.key, record.version, String::from_utf8(record.value).unwrap()));
        }
        Ok(all)
    }

    #[test]
    fn a_checkpoint_is_the_one_before_with_the_changes_since() {
        let folder = tempfile::tempdir().unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let first = delta([frame(1, vec![put("b", "1"), put("d", "1")]), frame(2, vec![put("f", "2")])]);
        let first = write(folder.path(), None, first, at(2), now).unwrap();
        let second = delta([
            frame(3, vec![put("a", "3"), put("c", "3"), put("d", "3")]),
            frame(4, vec![delete("f"), delete("x")]),
        ]);
        let second = write(folder.path(), Some(&first), second, at(4), now).unwrap();
        let expected = [("a", 3, "3"), ("b", 1, "1"), ("c", 3, "3"), ("d", 3, "3")];
        let expected: Vec<_> = expected.map(|(k, n, v)| (k.to_owned(), n, v.to_owned())).into();
        assert_eq!(content(&second).unwrap(), expected);
        assert_eq!(Reader::open(&second).unwrap().end(), at(4));
        let third = write(folder.path(), Some(&second), Delta::default(), at(5), now).unwrap();
        assert_eq!(content(&third).unwrap(), expected);
        assert_eq!(list(folder.path()).unwrap().len(), 2, "the two newest are kept");
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let many = delta((1..=9).map(|n| frame(n, vec![put(&n.to_string(), "value")])));
        let path = write(folder.path(), None, many, at(9), Timestamp::UNIX_EPOCH).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for place in 0..whole.len() {
            std::fs::write(&path, &whole[..place]).unwrap();
            assert!(content(&path).is_err(), "cut at {place}");
            let mut flipped = whole.clone();
            flipped[place] ^= 1;
            std::fs::write(&path, flipped).unwrap();
            assert!(content(&path).is_err(), "flipped at {place}");
        }
    }
}
