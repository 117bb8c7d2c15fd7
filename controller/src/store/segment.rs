//! Files of the journal and how they are read.
//!
//! A segment is a header of 64 bytes and frames. Its name is the number of its first commit. Only the last segment
//! may end in a torn frame, and only if that was never acknowledged; every other fault is damage.

use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::StoreError;
use super::frame::{self, Frame, FrameFault, Hash, PREFIX_BYTES};
use super::record::Sequence;

/// The size of a header.
pub const HEADER_BYTES: usize = 64;
const SEGMENT_SUFFIX: &str = ".journal";
const READ_BUFFER_BYTES: usize = 256 << 10;

/// What a file says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Magic {
    /// A segment of the journal.
    Segment,
    /// A checkpoint.
    Checkpoint,
}

impl Magic {
    fn bytes(self) -> &'static [u8; 8] {
        match self {
            Magic::Segment => b"HFJRNL\0\x01",
            Magic::Checkpoint => b"HFCKPT\0\x01",
        }
    }
}

/// The head of a segment or checkpoint:
/// magic 8 · sequence u64 · hash 32 · time i64 (µs) · nought 4 · CRC-32C of all before u32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the file is.
    pub magic: Magic,
    /// The first commit of a segment; the last one within a checkpoint.
    pub sequence: Sequence,
    /// The hash of the commit before a segment; that of the last one within a checkpoint.
    pub hash: Hash,
    /// When the file was begun.
    pub created_at: Timestamp,
}

impl Header {
    /// The header as bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(self.magic.bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..48].copy_from_slice(&self.hash);
        bytes[48..56].copy_from_slice(&self.created_at.as_microsecond().to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// The bytes are not the header of such a file; files are whole from the start, so that is damage.
    pub fn read(reader: &mut impl io::Read, magic: Magic, path: &Path) -> Result<Self, StoreError> {
        let mut bytes = [0; HEADER_BYTES];
        reader.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged(path, 0, "the header is incomplete"),
            _ => StoreError::io("reading the state", path)(error),
        })?;
        let mut fields = frame::Fields(&bytes);
        let bad = |_| damaged(path, 0, "the header cannot be read");
        let found: [u8; 8] = fields.array().map_err(bad)?;
        let (sequence, hash) = (fields.u64().map_err(bad)?, fields.array().map_err(bad)?);
        let micros = i64::from_le_bytes(fields.array().map_err(bad)?);
        let checksum = crc32c::crc32c(&bytes[..60]).to_le_bytes();
        if checksum != bytes[60..] {
            return Err(damaged(path, 0, "the checksum of the header does not fit"));
        }
        if found[..7] == magic.bytes()[..7] && found[7] > magic.bytes()[7] {
            return Err(StoreError::TooNew { path: path.to_owned() });
        }
        if &found != magic.bytes() {
            return Err(damaged(path, 0, "the file is of another kind"));
        }
        let created_at = Timestamp::from_microsecond(micros)
            .map_err(|_| damaged(path, 0, "the time of the header is impossible"))?;
        Ok(Self { magic, sequence, hash, created_at })
    }
}

/// The file name of the segment that begins with this commit.
pub fn segment_name(first: Sequence) -> String {
    format!("{first:020}{SEGMENT_SUFFIX}")
}

/// The segments in a folder, in order. Leftovers of a crash are removed.
///
/// # Errors
/// The folder cannot be read, or holds something else: then somebody's hand was in it.
pub fn list_segments(folder: &Path) -> Result<Vec<(Sequence, PathBuf)>, StoreError> {
    list_numbered(folder, SEGMENT_SUFFIX)
}

/// Files named by a number and `suffix`, in the order of the numbers. Leftovers of a crash are removed.
///
/// # Errors
/// As for [`list_segments`].
pub fn list_numbered(folder: &Path, suffix: &str) -> Result<Vec<(Sequence, PathBuf)>, StoreError> {
    let failed = || StoreError::io("listing the state", folder);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed())? {
        let path = entry.map_err(failed())?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(holdfast_runtime::durable_file::TEMPORARY_SUFFIX) {
            std::fs::remove_file(&path).map_err(StoreError::io("removing a leftover", &path))?;
            continue;
        }
        let digits = name.strip_suffix(suffix).filter(|digits| digits.len() == 20);
        match digits.and_then(|digits| digits.parse().ok()) {
            Some(number) => found.push((number, path)),
            None => return Err(damaged(&path, 0, "the file does not belong here")),
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// An error that names the place of the damage.
pub fn damaged(path: &Path, offset: u64, reason: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), offset, reason: reason.to_string() }
}

/// A place in the chain of commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The last commit before it.
    pub sequence: Sequence,
    /// The hash of that commit.
    pub hash: Hash,
}

impl Position {
    /// Before the first commit.
    pub const START: Position = Position { sequence: 0, hash: [0; 32] };
}

/// Reads the frames of one segment in order, proving number and hash of each.
#[derive(Debug)]
pub struct SegmentReader {
    path: PathBuf,
    file: BufReader<File>,
    offset: u64,
    position: Position,
    header: Header,
    body: Vec<u8>,
}

/// What comes next in a segment.
#[derive(Debug)]
pub enum Next {
    /// A frame that fits the chain.
    Frame(Frame),
    /// The file ends after a whole frame.
    End,
    /// What follows is no frame of the chain.
    Bad(FrameFault),
}

impl SegmentReader {
    /// Opens a segment at its first frame.
    ///
    /// # Errors
    /// The header cannot be read, or the name is not that of its content.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(StoreError::io("opening the journal", path))?;
        let mut file = BufReader::with_capacity(READ_BUFFER_BYTES, file);
        let header = Header::read(&mut file, Magic::Segment, path)?;
        let named = path.file_name().and_then(|name| name.to_str());
        if header.sequence == 0 || named != Some(&segment_name(header.sequence)) {
            return Err(damaged(path, 8, "the segment begins with another commit than its name says"));
        }
        let position = Position { sequence: header.sequence - 1, hash: header.hash };
        Ok(Self {
            path: path.to_owned(),
            file,
            offset: HEADER_BYTES as u64,
            position,
            header,
            body: Vec::new(),
        })
    }

    /// The header of the segment.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The path of the segment.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where in the file the next frame begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The last commit that was read.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Reads the next frame. After [`Next::Bad`] the reader is of no more use.
    ///
    /// # Errors
    /// The file cannot be read, or a newer version wrote it.
    pub fn read_frame(&mut self) -> Result<Next, StoreError> {
        let mut prefix = [0; PREFIX_BYTES];
        match self.read_up_to(&mut prefix)? {
            0 => return Ok(Next::End),
            PREFIX_BYTES => {}
            _ => return Ok(Next::Bad(FrameFault::Incomplete)),
        }
        let (length, checksum) = match frame::decode_prefix(prefix) {
            Ok(found) => found,
            Err(fault) => return Ok(Next::Bad(fault)),
        };
        let mut body = std::mem::take(&mut self.body);
        body.resize(length, 0);
        if self.read_up_to(&mut body)? < length {
            return Ok(Next::Bad(FrameFault::Incomplete));
        }
        if !frame::is_intact(&body, checksum) {
            return Ok(Next::Bad(FrameFault::Checksum));
        }
        let (frame, hash) = match frame::decode_body(&body) {
            Ok(found) => found,
            Err(FrameFault::TooNew) => return Err(StoreError::TooNew { path: self.path.clone() }),
            Err(fault) => return Ok(Next::Bad(fault)),
        };
        if frame.sequence != self.position.sequence + 1 || frame.previous != self.position.hash {
            return Err(damaged(&self.path, self.offset, "the frame does not follow the one before"));
        }
        self.offset += (PREFIX_BYTES + length) as u64;
        self.position = Position { sequence: frame.sequence, hash };
        self.body = body;
        Ok(Next::Frame(frame))
    }

    /// Fills the buffer as far as the file reaches and says how far that is.
    fn read_up_to(&mut self, buffer: &mut [u8]) -> Result<usize, StoreError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(StoreError::io("reading the journal", &self.path)(error)),
            }
        }
        Ok(filled)
    }
}

/// Whether some frame after a bad one at `bad_offset` knew commit `expected` (the one that should be there) durable.
///
/// If so the bad frame had been acknowledged, and the fault is damage; if not it is the torn tail of a write that a
/// crash cut short, of which later parts may well have reached the disk before earlier ones.
///
/// # Errors
/// The file cannot be read.
pub fn was_acknowledged(path: &Path, bad_offset: u64, expected: Sequence) -> Result<bool, StoreError> {
    let bytes = std::fs::read(path).map_err(StoreError::io("reading the journal", path))?;
    let tail = usize::try_from(bad_offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
    Ok((1..tail.len()).any(|start| is_later_witness(&tail[start..], expected)))
}

/// Far more commits than one group holds: a frame with a higher number is chance, not a frame.
const GROUP_COMMITS_MAX: u64 = 1 << 24;

fn is_later_witness(bytes: &[u8], expected: Sequence) -> bool {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() else { return false };
    let Ok((length, checksum)) = frame::decode_prefix(*prefix) else { return false };
    let Some(body) = rest.get(..length) else { return false };
    // The cheap question first: nearly every place that is no frame fails here.
    let Some((sequence, durable)) = frame::peek(body) else { return false };
    let plausible = sequence > expected && sequence - expected < GROUP_COMMITS_MAX && durable < sequence;
    plausible && durable >= expected && frame::is_intact(body, checksum)
}
