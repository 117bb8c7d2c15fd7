//! Reading content into buffers, cutting it into chunks, hashing them.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::options::{FileIdentity, WriteCounters};
use super::shared::{BUFFER_BYTES, Batch, BatchContent, Buffer, Chunk, Shared, Stopped};
use super::worker::FileToRead;
use crate::id::{BlobId, BlobType};

/// Files of this size and more are announced to the system as read from front to back.
const READ_AHEAD_BYTES: u64 = 8 << 20;

/// How content is cut.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cutting {
    /// Where its content says so.
    ByContent,
    /// At multiples of this many bytes.
    Fixed(usize),
}

/// Gives buffers and takes batches; the caller and the workers do it in different ways.
pub(super) trait Pipeline {
    fn shared(&self) -> &Shared;
    fn take_buffer(&mut self) -> Result<Buffer, Stopped>;
    fn send_batch(&mut self, batch: Batch) -> Result<(), Stopped>;
}

/// Content of one file as it was read.
#[derive(Debug, Default)]
pub(super) struct ReadContent {
    pub(super) blobs: Vec<BlobId>,
    pub(super) size: u64,
}

/// A buffer that is being filled with the content of one file after another.
pub(super) struct Fill {
    buffer: Buffer,
    /// Bytes of content in it.
    filled: usize,
    /// Where the content that is not cut yet begins.
    uncut: usize,
    chunks: Vec<Chunk>,
}

/// Reading ended early: the source failed, or the writer stops.
pub(super) enum ReadFailed {
    Source(io::Error),
    Stopped,
}

impl From<Stopped> for ReadFailed {
    fn from(_: Stopped) -> Self {
        ReadFailed::Stopped
    }
}

impl Fill {
    pub(super) fn new(pipeline: &mut impl Pipeline) -> Result<Self, Stopped> {
        Ok(Self { buffer: pipeline.take_buffer()?, filled: 0, uncut: 0, chunks: Vec::new() })
    }

    /// Sends what is in the buffer, or gives the buffer back.
    pub(super) fn finish(self, pipeline: &mut impl Pipeline) -> Result<(), Stopped> {
        if self.chunks.is_empty() {
            pipeline.shared().recycle(BatchContent::Buffer(self.buffer));
            return Ok(());
        }
        let content = BatchContent::Buffer(self.buffer);
        pipeline.send_batch(Batch { blob_type: BlobType::Data, content, chunks: self.chunks, question: 0 })
    }

    /// Reads a file of this host. What was read of a file that failed in the middle is left out again as far as it has
    /// not been sent; the rest is garbage that no tree refers to.
    pub(super) fn read_file(
        &mut self,
        file: &FileToRead,
        pipeline: &mut impl Pipeline,
    ) -> Result<ReadContent, ReadFailed> {
        let FileToRead { path, identity, cutting } = file;
        let (filled, chunks) = (self.filled, self.chunks.len());
        let gate = pipeline.shared().gate.as_ref();
        let pass = gate.zip(*identity).map(|(gate, identity)| gate.pass(identity)).transpose();
        // Declared before the file, hence dropped after it is closed.
        let _pass = pass.map_err(|reason| ReadFailed::Source(io::Error::other(reason)))?;
        let (mut file, size) = open_regular(path, *identity).map_err(ReadFailed::Source)?;
        let mut content = ReadContent::default();
        let read = self.read(&mut file, Some(size), *cutting, &mut content, pipeline);
        if read.is_err() {
            if self.chunks.len() >= chunks && self.filled >= filled {
                self.chunks.truncate(chunks);
                self.filled = filled;
            } else {
                self.filled = self.chunks.last().map_or(0, |chunk| chunk.start + chunk.length);
            }
            self.uncut = self.filled;
        }
        read.map(|()| content)
    }

    /// Reads content to its end. `expected` is how much a regular file has: when exactly that was read, and less than
    /// there was room for, its end has been seen without asking again.
    pub(super) fn read(
        &mut self,
        source: &mut impl Read,
        expected: Option<u64>,
        cutting: Cutting,
        content: &mut ReadContent,
        pipeline: &mut impl Pipeline,
    ) -> Result<(), ReadFailed> {
        loop {
            if self.filled == BUFFER_BYTES {
                self.cut(cutting, false, content, pipeline.shared());
                self.make_room(pipeline)?;
            }
            let room = BUFFER_BYTES - self.filled;
            let read = match source.read(&mut self.buffer[self.filled..]) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ReadFailed::Source(error)),
            };
            pipeline.shared().check()?;
            self.filled += read;
            content.size += read as u64;
            WriteCounters::add(&pipeline.shared().counters.bytes_read, read as u64);
            if read == 0 || (expected == Some(content.size) && read < room) {
                self.cut(cutting, true, content, pipeline.shared());
                return Ok(());
            }
        }
    }

    fn cut(&mut self, cutting: Cutting, ended: bool, content: &mut ReadContent, shared: &Shared) {
        loop {
            let uncut = &self.buffer[self.uncut..self.filled];
            let length = match cutting {
                Cutting::ByContent => shared.chunker.cut(uncut, ended),
                Cutting::Fixed(length) if uncut.len() >= length => Some(length),
                Cutting::Fixed(_) => (ended && !uncut.is_empty()).then_some(uncut.len()),
            };
            let Some(length) = length else { return };
            let id = BlobId::of(&uncut[..length]);
            content.blobs.push(id);
            self.chunks.push(Chunk { id, start: self.uncut, length, known: false });
            self.uncut += length;
        }
    }

    /// Sends the chunks of a full buffer and goes on in another, into which the uncut rest is carried.
    fn make_room(&mut self, pipeline: &mut impl Pipeline) -> Result<(), Stopped> {
        let mut buffer = pipeline.take_buffer()?;
        let rest = self.filled - self.uncut;
        buffer[..rest].copy_from_slice(&self.buffer[self.uncut..self.filled]);
        let full = std::mem::replace(self, Self { buffer, filled: rest, uncut: 0, chunks: Vec::new() });
        full.finish(pipeline)
    }
}

/// Opens a regular file without following a link, and without waiting if it has become a pipe.
fn open_regular(path: &Path, identity: Option<FileIdentity>) -> io::Result<(File, u64)> {
    use rustix::fs::{Advice, OFlags};
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file any more"));
    }
    let found = FileIdentity { device_id: metadata.dev(), inode: metadata.ino() };
    if identity.is_some_and(|expected| expected != found) {
        return Err(io::Error::other("it was replaced while it was being backed up"));
    }
    if metadata.size() >= READ_AHEAD_BYTES {
        // Advice only: a file system that knows none of it reads as it always does.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
    }
    Ok((file, metadata.size()))
}
