//! The journal: append-only segments, and the one place where a commit becomes durable.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_runtime::durable_file::{self, Access, DurableFile};
use holdfast_runtime::fail_point;
use jiff::Timestamp;
use parking_lot::RwLock;

use super::StoreError;
use super::frame::{Frame, FrameFault};
use super::record::Sequence;
use super::segment::{
    HEADER_BYTES, Header, Magic, Next, Position, SegmentReader, damaged, list_segments, segment_name,
    was_acknowledged,
};

/// How the process before us ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastStop {
    /// In order: the journal is durable to its end, and nothing torn is acceptable.
    Clean,
    /// Any other way.
    Crash,
}

/// The segments that exist, by their first commit; shared by the writer and all readers.
#[derive(Debug, Default)]
pub struct Segments {
    paths: RwLock<BTreeMap<Sequence, PathBuf>>,
}

impl Segments {
    /// The oldest commit that is kept; 1 when nothing was ever removed.
    pub fn oldest(&self) -> Sequence {
        self.paths.read().keys().next().copied().unwrap_or(1)
    }

    /// The segment that holds this commit, or will.
    pub fn holding(&self, sequence: Sequence) -> Option<(Sequence, PathBuf)> {
        let paths = self.paths.read();
        paths.range(..=sequence).next_back().map(|(first, path)| (*first, path.clone()))
    }

    /// The segment that begins after this commit, next in order.
    pub fn following(&self, first: Sequence) -> Option<(Sequence, PathBuf)> {
        let paths = self.paths.read();
        paths.range(first + 1..).next().map(|(first, path)| (*first, path.clone()))
    }

    fn insert(&self, first: Sequence, path: PathBuf) {
        self.paths.write().insert(first, path);
    }

    /// Forgets the oldest segments that end before `covered` and were ended before `before`, and removes their files.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove_older(&self, covered: Sequence, before: Timestamp) -> Result<usize, StoreError> {
        let mut removed = 0;
        loop {
            let oldest = self.oldest();
            let Some((next_first, next_path)) = self.following(oldest) else { return Ok(removed) };
            let ended_at = SegmentReader::open(&next_path)?.header().created_at;
            if next_first > covered || ended_at >= before {
                return Ok(removed);
            }
            // Forgotten first: a reader must not be sent to a file that is gone.
            let path = self.paths.write().remove(&oldest);
            if let Some(path) = path {
                durable_file::remove(&path).map_err(StoreError::io("removing an old segment", &path))?;
                removed += 1;
            }
        }
    }
}

/// The writing end of the journal. There is one, and it lives in the writer thread.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    segments: Arc<Segments>,
    file: File,
    file_bytes: u64,
    segment_bytes_max: u64,
    end: Position,
}

/// What the scan of the journal tells, frame by frame.
pub type Visit<'a> = &'a mut dyn FnMut(Frame, Position) -> Result<(), StoreError>;

impl Journal {
    /// Opens the journal, giving `visit` every frame after `from`, in order, each proven to follow the one before.
    ///
    /// After a crash the last segment is written anew, without its torn tail: what an interrupted process left in the
    /// page cache may look durable and not be, if its last `fsync` failed.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] names segment and offset of the first fault that is not a torn tail.
    pub fn open(
        folder: &Path,
        from: Position,
        last_stop: LastStop,
        segment_bytes_max: u64,
        now: Timestamp,
        visit: Visit<'_>,
    ) -> Result<Self, StoreError> {
        durable_file::create_folders(folder)
            .map_err(StoreError::io("making the folder of the journal", folder))?;
        let segments = Arc::new(Segments::default());
        for (first, path) in list_segments(folder)? {
            segments.insert(first, path);
        }
        let Some((mut first, mut path)) = segments.holding(from.sequence + 1) else {
            if from != Position::START || segments.following(0).is_some() {
                let reason = format!("the journal does not reach back to commit {}", from.sequence + 1);
                return Err(damaged(folder, 0, reason));
            }
            let path = create_segment(folder, Position::START, now)?;
            segments.insert(1, path.clone());
            return Self::append_to(folder, segments, &path, segment_bytes_max, Position::START);
        };
        let mut expected: Option<Position> = None;
        loop {
            let next = segments.following(first);
            let is_last = next.is_none();
            let reader = scan_segment(&path, expected, from, is_last && last_stop == LastStop::Crash, visit)?;
            let end = reader.position();
            if let Some((next_first, next_path)) = next {
                expected = Some(end);
                (first, path) = (next_first, next_path);
                continue;
            }
            if end.sequence < from.sequence {
                return Err(damaged(&path, reader.offset(), format!("commit {} is missing", from.sequence)));
            }
            if last_stop == LastStop::Crash {
                rewrite(&path, reader.offset())?;
            }
            return Self::append_to(folder, segments, &path, segment_bytes_max, end);
        }
    }

    fn append_to(
        folder: &Path,
        segments: Arc<Segments>,
        path: &Path,
        segment_bytes_max: u64,
        end: Position,
    ) -> Result<Self, StoreError> {
        let opened = || StoreError::io("opening the journal", path);
        let file = OpenOptions::new().append(true).open(path).map_err(opened())?;
        let file_bytes = file.metadata().map_err(opened())?.len();
        Ok(Self { folder: folder.to_owned(), segments, file, file_bytes, segment_bytes_max, end })
    }

    /// The segments, for readers.
    pub fn segments(&self) -> &Arc<Segments> {
        &self.segments
    }

    /// The last commit.
    pub fn end(&self) -> Position {
        self.end
    }

    /// Writes encoded frames up to `end` and makes them durable. Returns whether a new segment was begun for them.
    ///
    /// # Errors
    /// Those of the file system. After any of them the journal must not be written again: what is on the disk is
    /// unknown, and an `fsync` tried again could report success for pages that were dropped.
    pub fn append(&mut self, frames: &[u8], end: Position, now: Timestamp) -> io::Result<bool> {
        let full = self.file_bytes + frames.len() as u64 > self.segment_bytes_max;
        let begin_new = full && self.file_bytes > HEADER_BYTES as u64;
        if begin_new {
            self.begin_segment(now)?;
        }
        fail_point::hit_io("journal-before-write")?;
        self.file.write_all(frames)?;
        fail_point::hit_io("journal-before-fsync")?;
        self.file.sync_data()?;
        fail_point::hit("journal-after-fsync");
        self.file_bytes += frames.len() as u64;
        self.end = end;
        Ok(begin_new)
    }

    fn begin_segment(&mut self, now: Timestamp) -> io::Result<()> {
        let path = create_segment(&self.folder, self.end, now).map_err(io::Error::other)?;
        self.file = OpenOptions::new().append(true).open(&path)?;
        self.file_bytes = HEADER_BYTES as u64;
        self.segments.insert(self.end.sequence + 1, path);
        Ok(())
    }
}

fn create_segment(folder: &Path, end: Position, now: Timestamp) -> Result<PathBuf, StoreError> {
    let first = end.sequence + 1;
    let path = folder.join(segment_name(first));
    let header = Header { magic: Magic::Segment, sequence: first, hash: end.hash, created_at: now };
    durable_file::create_new(&path, &header.encode(), Access::Owner)
        .map_err(StoreError::io("beginning a segment", &path))?;
    Ok(path)
}

/// Reads one segment to its end. `tail_may_be_torn` holds for the last segment after a crash.
fn scan_segment(
    path: &Path,
    follows: Option<Position>,
    from: Position,
    tail_may_be_torn: bool,
    visit: Visit<'_>,
) -> Result<SegmentReader, StoreError> {
    let mut reader = SegmentReader::open(path)?;
    if follows.is_some_and(|end| end != reader.position()) {
        return Err(damaged(path, 0, "the segment does not follow the one before"));
    }
    loop {
        let position = reader.position();
        if position.sequence == from.sequence && position.hash != from.hash {
            return Err(damaged(
                path,
                reader.offset(),
                "the journal is not the one that the view was made of",
            ));
        }
        match reader.read_frame()? {
            Next::Frame(frame) if frame.sequence > from.sequence => visit(frame, reader.position())?,
            Next::Frame(_) => {}
            Next::End => return Ok(reader),
            Next::Bad(fault) => {
                let torn = tail_may_be_torn
                    && fault != FrameFault::Content
                    && !was_acknowledged(path, reader.offset(), position.sequence + 1)?;
                if !torn {
                    return Err(damaged(path, reader.offset(), fault));
                }
                tracing::warn!(
                    segment = %path.display(), offset = reader.offset(), reason = %fault,
                    "the journal ends in a commit that was never acknowledged; it is left out"
                );
                return Ok(reader);
            }
        }
    }
}

/// Writes the first `length` bytes of a file anew and durably in its place.
fn rewrite(path: &Path, length: u64) -> Result<(), StoreError> {
    let work = || -> io::Result<()> {
        let mut copy = DurableFile::create(path, Access::Owner)?;
        let copied = io::copy(&mut File::open(path)?.take(length), &mut copy)?;
        if copied != length {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
        }
        copy.commit()
    };
    work().map_err(StoreError::io("making the journal durable after a crash", path))
}

/// Reads commits in order across segments, up to a limit that the writer raises.
#[derive(Debug)]
pub struct Cursor {
    segments: Arc<Segments>,
    reader: Option<SegmentReader>,
    /// The last commit that was read or skipped.
    after: Sequence,
}

impl Cursor {
    /// A cursor behind commit `after`.
    ///
    /// # Errors
    /// [`StoreError::HistoryGone`] when the journal no longer reaches back that far.
    pub fn after(segments: Arc<Segments>, after: Sequence) -> Result<Self, StoreError> {
        let oldest = segments.oldest();
        if after + 1 < oldest {
            return Err(StoreError::HistoryGone { after, oldest });
        }
        Ok(Self { segments, reader: None, after })
    }

    /// The next commit, if its number is at most `limit` (a durable commit), with its place in the chain.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when a durable commit does not read back.
    pub fn next_commit(&mut self, limit: Sequence) -> Result<Option<(Frame, Position)>, StoreError> {
        if self.after >= limit {
            return Ok(None);
        }
        loop {
            let reader = match &mut self.reader {
                Some(reader) => reader,
                empty => {
                    let oldest = self.segments.oldest();
                    let gone = || StoreError::HistoryGone { after: self.after, oldest };
                    let (_, path) = self.segments.holding(self.after + 1).ok_or_else(gone)?;
                    match SegmentReader::open(&path) {
                        Ok(reader) => empty.insert(reader),
                        // Let go between being looked up and being opened.
                        Err(_) if self.segments.oldest() > self.after + 1 => {
                            let oldest = self.segments.oldest();
                            return Err(StoreError::HistoryGone { after: self.after, oldest });
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            match reader.read_frame()? {
                Next::Frame(frame) if frame.sequence <= self.after => {}
                Next::Frame(frame) => {
                    self.after = frame.sequence;
                    return Ok(Some((frame, reader.position())));
                }
                Next::Bad(fault) => return Err(damaged(reader.path(), reader.offset(), fault)),
                Next::End => self.next_segment()?,
            }
        }
    }

    fn next_segment(&mut self) -> Result<(), StoreError> {
        let Some(ended) = self.reader.take() else { return Ok(()) };
        let Some((_, path)) = self.segments.following(ended.header().sequence) else {
            let reason = format!("commit {} is missing", self.after + 1);
            return Err(damaged(ended.path(), ended.offset(), reason));
        };
        let next = SegmentReader::open(&path)?;
        if next.position() != ended.position() {
            return Err(damaged(&path, 0, "the segment does not follow the one before"));
        }
        self.reader = Some(next);
        Ok(())
    }

    /// What the oldest kept segment says of the commit before it.
    ///
    /// # Errors
    /// The segment cannot be read.
    pub fn anchor(segments: &Segments) -> Result<Position, StoreError> {
        match segments.holding(segments.oldest()) {
            Some((_, path)) => Ok(SegmentReader::open(&path)?.position()),
            None => Ok(Position::START),
        }
    }
}
