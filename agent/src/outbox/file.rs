//! The file of the outbox: a header, then one frame per fact. All integers are little endian.
//!
//! ```text
//! header   "HFOUTBOX"  version u32  id [16]  first number u64  crc32c u32 of all before
//! frame    length u32 of the payload  crc32c u32 of number and payload  number u64  payload (holdfast.v1.Fact)
//! ```
//!
//! A frame is written and synced before the next one is begun, so a crash leaves at most one torn frame, at the end.
//! Anything else that does not read is damage, and is never cut away silently.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use holdfast_model::ids::{Attempt, RunId};
use holdfast_proto::v1;
use holdfast_runtime::durable_file::{self, Access, DurableFile};
use holdfast_runtime::fail_point;
use prost::Message as _;

use super::OutboxError;

const MAGIC: &[u8; 8] = b"HFOUTBOX";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 40;
const FRAME_HEADER_BYTES: usize = 16;
/// The largest fact, encoded: within what one message of the protocol may be. A hundred log lines of four KiB fit.
const FACT_BYTES_MAX: usize = 3 << 20;
/// What all facts that wait may take together.
pub(super) const PENDING_BYTES_MAX: u64 = 64 << 20;
/// Kept free for the facts that end a run, which must not fail for want of room that log lines took.
const RESERVED_FOR_ENDS_BYTES: u64 = 8 << 20;
/// A file smaller than this is not worth the two syncs of a rewrite.
const COMPACT_FROM_BYTES: u64 = 1 << 20;

/// Identity of an outbox: fact numbers count within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OutboxId([u8; 16]);

impl OutboxId {
    fn random() -> Self {
        Self(rand::random())
    }
}

impl std::fmt::Display for OutboxId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// A fact that is on the disk and not yet acknowledged.
#[derive(Debug, Clone, Copy)]
struct Pending {
    seq: u64,
    /// Where its payload begins.
    offset: u64,
    length: u32,
    run: RunId,
    attempt: Attempt,
    /// Whether it ends the attempt.
    is_end: bool,
}

impl Pending {
    fn frame_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + u64::from(self.length)
    }
}

/// The open file, with an index of what waits in it. Blocking.
#[derive(Debug)]
pub(super) struct OutboxFile {
    path: PathBuf,
    file: File,
    id: OutboxId,
    next_seq: u64,
    /// Where the next frame goes.
    end: u64,
    pending: VecDeque<Pending>,
    pending_bytes: u64,
    /// A sync failed: what the disk holds is not known any more.
    broken: bool,
}

impl OutboxFile {
    /// Opens the file, or makes an empty one. A torn frame at the end is cut away: it never counted as made.
    pub(super) fn open(path: &Path) -> Result<Self, OutboxError> {
        let file = match open_for_update(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let header = header(OutboxId::random(), 1);
                durable_file::create_new(path, &header, Access::Owner)
                    .and_then(|()| open_for_update(path))
                    .map_err(|source| OutboxError::io("make", path, source))?
            }
            other => other.map_err(|source| OutboxError::io("open", path, source))?,
        };
        let length = file.metadata().map_err(|source| OutboxError::io("open", path, source))?.len();
        let damaged = |reason: String| OutboxError::Damaged { path: path.to_owned(), reason };
        let mut head = [0; HEADER_BYTES];
        if length < HEADER_BYTES as u64 {
            return Err(damaged(format!("it has {length} bytes, its header alone has {HEADER_BYTES}")));
        }
        file.read_exact_at(&mut head, 0).map_err(|source| OutboxError::io("read", path, source))?;
        let (id, first_seq) = read_header(&head).map_err(|reason| damaged(reason.to_owned()))?;
        let mut outbox = Self {
            path: path.to_owned(),
            file,
            id,
            next_seq: first_seq,
            end: HEADER_BYTES as u64,
            pending: VecDeque::new(),
            pending_bytes: 0,
            broken: false,
        };
        outbox.scan(length)?;
        Ok(outbox)
    }

    /// Takes in every frame, and cuts a torn one off the end.
    fn scan(&mut self, length: u64) -> Result<(), OutboxError> {
        while self.end < length {
            match self.frame_at(self.end, length)? {
                Some((seq, fact, payload_bytes)) if seq == self.next_seq => {
                    self.remember(&fact, payload_bytes)?;
                }
                _ => {
                    if let Some(offset) = self.later_frame(length)? {
                        return Err(OutboxError::Damaged {
                            path: self.path.clone(),
                            reason: format!(
                                "the frame at byte {} does not read, and a later one at byte {offset} does",
                                self.end
                            ),
                        });
                    }
                    tracing::info!(
                        path = %self.path.display(),
                        bytes = length - self.end,
                        "cut off a fact that was being written when the agent stopped"
                    );
                    let cut = self.file.set_len(self.end).and_then(|()| self.file.sync_all());
                    return cut.map_err(|source| OutboxError::io("repair", &self.path, source));
                }
            }
        }
        Ok(())
    }

    /// The frame at a place, or nothing when there is no whole and valid one.
    fn frame_at(&self, offset: u64, file_bytes: u64) -> Result<Option<(u64, v1::Fact, u32)>, OutboxError> {
        let available = file_bytes.saturating_sub(offset);
        if available < FRAME_HEADER_BYTES as u64 {
            return Ok(None);
        }
        let read = |buffer: &mut [u8], at: u64| {
            self.file.read_exact_at(buffer, at).map_err(|source| OutboxError::io("read", &self.path, source))
        };
        let mut head = [0; FRAME_HEADER_BYTES];
        read(&mut head, offset)?;
        let length = u32_at(&head, 0);
        if length as usize > FACT_BYTES_MAX || u64::from(length) > available - FRAME_HEADER_BYTES as u64 {
            return Ok(None);
        }
        let mut payload = vec![0; length as usize];
        read(&mut payload, offset + FRAME_HEADER_BYTES as u64)?;
        let seq = u64_at(&head, 8);
        if u32_at(&head, 4) != frame_checksum(seq, &payload) {
            return Ok(None);
        }
        Ok(v1::Fact::decode(payload.as_slice()).ok().map(|fact| (seq, fact, length)))
    }

    /// Whether a valid frame begins anywhere behind the one that does not read; then that one is no torn end.
    fn later_frame(&self, file_bytes: u64) -> Result<Option<u64>, OutboxError> {
        let start = self.end + 1;
        let mut rest = Vec::new();
        let mut file = &self.file;
        io::Seek::seek(&mut file, io::SeekFrom::Start(start))
            .and_then(|_| file.read_to_end(&mut rest))
            .map_err(|source| OutboxError::io("read", &self.path, source))?;
        // A frame that was skipped over can be at most this far in numbers.
        let numbers = self.next_seq + 1..=self.next_seq + 1 + file_bytes / FRAME_HEADER_BYTES as u64;
        for offset in 0..rest.len().saturating_sub(FRAME_HEADER_BYTES) {
            let head = &rest[offset..offset + FRAME_HEADER_BYTES];
            let (length, seq) = (u32_at(head, 0) as usize, u64_at(head, 8));
            let Some(payload) = rest.get(offset + FRAME_HEADER_BYTES..offset + FRAME_HEADER_BYTES + length)
            else {
                continue;
            };
            if length > 0 && numbers.contains(&seq) && u32_at(head, 4) == frame_checksum(seq, payload) {
                return Ok(Some(start + offset as u64));
            }
        }
        Ok(None)
    }

    fn remember(&mut self, fact: &v1::Fact, payload_bytes: u32) -> Result<(), OutboxError> {
        let run = fact.run_id.parse().map_err(|_| OutboxError::Damaged {
            path: self.path.clone(),
            reason: format!("fact {} names no run", self.next_seq),
        })?;
        let pending = Pending {
            seq: self.next_seq,
            offset: self.end + FRAME_HEADER_BYTES as u64,
            length: payload_bytes,
            run,
            attempt: Attempt(fact.attempt),
            is_end: fact.event.as_ref().is_some_and(super::is_end),
        };
        self.end += pending.frame_bytes();
        self.pending_bytes += pending.frame_bytes();
        self.next_seq += 1;
        self.pending.push_back(pending);
        Ok(())
    }

    pub(super) fn id(&self) -> OutboxId {
        self.id
    }

    pub(super) fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Runs whose last fact waits here.
    pub(super) fn ended_runs(&self) -> Vec<(RunId, Attempt)> {
        self.pending.iter().filter(|fact| fact.is_end).map(|fact| (fact.run, fact.attempt)).collect()
    }

    /// Makes a fact: when this returns, it is on the disk.
    pub(super) fn append(
        &mut self,
        run: RunId,
        attempt: Attempt,
        event: v1::fact::Event,
    ) -> Result<u64, OutboxError> {
        self.check_sound()?;
        let is_end = super::is_end(&event);
        let fact =
            v1::Fact { seq: self.next_seq, run_id: run.to_string(), attempt: attempt.0, event: Some(event) };
        let frame = frame(&fact);
        let payload_bytes = frame.len() - FRAME_HEADER_BYTES;
        let limit = if is_end { PENDING_BYTES_MAX } else { PENDING_BYTES_MAX - RESERVED_FOR_ENDS_BYTES };
        if payload_bytes > FACT_BYTES_MAX || self.pending_bytes + frame.len() as u64 > limit {
            return Err(OutboxError::Full { path: self.path.clone(), limit_bytes: limit });
        }
        fail_point::hit("agent-outbox-before-append");
        let written =
            fail_point::hit_io("agent-outbox-append").and_then(|()| self.file.write_all_at(&frame, self.end));
        if let Err(source) = written {
            // What was written of it lies behind the end and is overwritten by the next fact.
            return Err(OutboxError::io("write", &self.path, source));
        }
        let synced = fail_point::hit_io("agent-outbox-fsync").and_then(|()| self.file.sync_data());
        if let Err(source) = synced {
            self.broken = true;
            return Err(OutboxError::Sync { path: self.path.clone(), source });
        }
        fail_point::hit("agent-outbox-after-fsync");
        let length = u32::try_from(payload_bytes).expect("a fact has at most 3 MiB, checked above");
        self.remember(&fact, length)?;
        Ok(fact.seq)
    }

    /// The facts after a number, in order, up to a limit of facts.
    pub(super) fn read_after(&self, seq: u64, facts_max: usize) -> Result<Vec<v1::Fact>, OutboxError> {
        self.check_sound()?;
        let first = self.pending.partition_point(|fact| fact.seq <= seq);
        self.pending.iter().skip(first).take(facts_max).map(|pending| self.read(pending)).collect()
    }

    fn read(&self, pending: &Pending) -> Result<v1::Fact, OutboxError> {
        let mut payload = vec![0; pending.length as usize];
        self.file
            .read_exact_at(&mut payload, pending.offset)
            .map_err(|source| OutboxError::io("read", &self.path, source))?;
        v1::Fact::decode(payload.as_slice()).map_err(|error| OutboxError::Damaged {
            path: self.path.clone(),
            reason: format!("fact {} does not read any more: {error}", pending.seq),
        })
    }

    /// Facts up to this number are durable at the controller and need not be kept.
    pub(super) fn acknowledge(&mut self, seq: u64) -> Result<(), OutboxError> {
        while let Some(first) = self.pending.front().filter(|first| first.seq <= seq) {
            self.pending_bytes -= first.frame_bytes();
            self.pending.pop_front();
        }
        if self.end > COMPACT_FROM_BYTES && self.end > 2 * (self.pending_bytes + HEADER_BYTES as u64) {
            self.rewrite(self.id, |_, fact| fact)?;
        }
        Ok(())
    }

    /// Takes a new identity, within which the facts that wait are numbered from 1. Needed when the controller has seen
    /// higher numbers than this file gave out: the folder was put back to an older state.
    pub(super) fn renew_identity(&mut self) -> Result<(), OutboxError> {
        self.next_seq = 1 + self.pending.len() as u64;
        self.rewrite(OutboxId::random(), |place, fact| v1::Fact { seq: place as u64 + 1, ..fact })
    }

    /// Puts a new file with what waits into the place of the old one.
    fn rewrite(
        &mut self,
        id: OutboxId,
        renumber: impl Fn(usize, v1::Fact) -> v1::Fact,
    ) -> Result<(), OutboxError> {
        self.check_sound()?;
        let first_seq = match self.pending.front() {
            Some(_) if id != self.id => 1,
            Some(first) => first.seq,
            None => self.next_seq,
        };
        let mut pending = VecDeque::with_capacity(self.pending.len());
        let mut end = HEADER_BYTES as u64;
        let io = |path: &Path, source| OutboxError::io("rewrite", path, source);
        let mut new =
            DurableFile::create(&self.path, Access::Owner).map_err(|source| io(&self.path, source))?;
        new.write_all(&header(id, first_seq)).map_err(|source| io(&self.path, source))?;
        for (place, old) in self.pending.iter().enumerate() {
            let fact = renumber(place, self.read(old)?);
            let frame = frame(&fact);
            new.write_all(&frame).map_err(|source| io(&self.path, source))?;
            let length = u32::try_from(frame.len() - FRAME_HEADER_BYTES).unwrap_or(u32::MAX);
            let offset = end + FRAME_HEADER_BYTES as u64;
            pending.push_back(Pending { seq: fact.seq, offset, length, ..*old });
            end += frame.len() as u64;
        }
        // From here on an error leaves open which of the two files the name means.
        self.broken = true;
        new.commit().map_err(|source| OutboxError::Sync { path: self.path.clone(), source })?;
        self.file = open_for_update(&self.path).map_err(|source| io(&self.path, source))?;
        self.pending_bytes = pending.iter().map(Pending::frame_bytes).sum();
        (self.id, self.pending, self.end, self.broken) = (id, pending, end, false);
        Ok(())
    }

    fn check_sound(&self) -> Result<(), OutboxError> {
        if self.broken { Err(OutboxError::Broken { path: self.path.clone() }) } else { Ok(()) }
    }
}

fn open_for_update(path: &Path) -> io::Result<File> {
    std::fs::OpenOptions::new().read(true).write(true).open(path)
}

fn header(id: OutboxId, first_seq: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&id.0);
    bytes.extend_from_slice(&first_seq.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

fn read_header(bytes: &[u8; HEADER_BYTES]) -> Result<(OutboxId, u64), &'static str> {
    let (head, checksum) = bytes.split_at(HEADER_BYTES - 4);
    if &head[..8] != MAGIC {
        return Err("it does not begin as an outbox does");
    }
    if u32_at(checksum, 0) != crc32c::crc32c(head) {
        return Err("the checksum of its header does not fit");
    }
    if u32_at(head, 8) != VERSION {
        return Err("it has a version that this agent does not read");
    }
    let id = head[12..28].try_into().expect("16 bytes were cut out");
    Ok((OutboxId(id), u64_at(head, 28)))
}

fn frame(fact: &v1::Fact) -> Vec<u8> {
    let mut bytes = vec![0; FRAME_HEADER_BYTES];
    fact.encode(&mut bytes).expect("a Vec grows as needed");
    let payload = &bytes[FRAME_HEADER_BYTES..];
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let checksum = frame_checksum(fact.seq, payload);
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    bytes[8..16].copy_from_slice(&fact.seq.to_le_bytes());
    bytes
}

fn frame_checksum(seq: u64, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&seq.to_le_bytes()), payload)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were cut out"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were cut out"))
}
