//! Walks a `pg_dump` archive in custom format as it passes by.
//!
//! The format has no end mark: an archive that lost its last tables reads as a whole one, and `pg_restore` notices only
//! when it looks for them. So the walker reads the table of contents, follows every block of data to its end, and says
//! at the end whether each entry that announced data had it, with how many rows. Rows need no parsing: without
//! compression the data of a table is its `COPY` text, in which a line feed ends a row and occurs nowhere else.
//!
//! Source of the format: `pg_backup_archiver.c` and `pg_backup_custom.c` of PostgreSQL 12 to 18 (archive versions 1.14
//! to 1.16). Memory is bounded by the table of contents; data is never kept.

use std::collections::HashMap;

mod toc;

pub(crate) use toc::TocEntry;
use toc::{FIELDS_1_14, FIELDS_1_16, Field};

/// Longest string of the table of contents that is kept, in bytes.
const TEXT_BYTES_MAX: u64 = 64 << 20;
/// What `pg_dump` writes after the last row of a table.
const COPY_END: [u8; 5] = *b"\\.\n\n\n";
/// How many line feeds of [`COPY_END`] end no row.
const COPY_END_LINE_FEEDS: u64 = 3;

/// Why a stream is not a whole archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// It does not begin as an archive in custom format does.
    #[error("the output does not begin as a pg_dump archive in custom format")]
    NotAnArchive,
    /// The archive has a version this program was not written for.
    #[error("the archive has version {0}.{1}, which is not supported")]
    UnsupportedVersion(u8, u8),
    /// The tool compressed although it was told not to.
    #[error("the archive is compressed although the tool was told not to compress")]
    Compressed,
    /// A value that the format does not allow.
    #[error("the archive is damaged at byte {offset}: {what}")]
    Malformed {
        /// Bytes read before it was noticed.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// It ends within something.
    #[error("the archive ends after {bytes} bytes, within {within}")]
    EndedEarly {
        /// Length of what there is.
        bytes: u64,
        /// What it ends in.
        within: &'static str,
    },
    /// It ends at the border of a block, but entries that announced data have none.
    #[error("the archive lacks the data of {missing} entries, the first being {first}")]
    DataMissing {
        /// How many entries.
        missing: usize,
        /// The first of them.
        first: String,
    },
}

/// Which entries of the table of contents are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Those with data: enough to check a capture.
    WithData,
    /// All, with their dependencies and the definitions that concern the database itself.
    All,
}

/// The data of one table in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableData {
    /// Schema, raw.
    pub(crate) schema: Vec<u8>,
    /// Name, raw.
    pub(crate) name: Vec<u8>,
    /// Rows.
    pub(crate) rows: u64,
}

/// What a whole archive held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ArchiveSummary {
    /// Length in bytes.
    pub(crate) bytes: u64,
    /// Tables with data, in the order of the table of contents.
    pub(crate) tables: Vec<TableData>,
    /// Large objects.
    pub(crate) large_objects: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Magic, version, sizes, format.
    Head,
    Compression,
    /// Seconds, minutes, … of the creation; how many numbers are left.
    Created(u8),
    /// Database name, server version, tool version; how many strings are left.
    Labels(u8),
    TocCount,
    /// The field with this number of an entry.
    Entry(usize),
    Dependency,
    /// Where the data lies: not known when the archive is written to a pipe.
    Position,
    /// The kind of the next block. The archive may end only here.
    BlockKind,
    BlockId,
    /// A piece of a table's data; its length comes first.
    TablePiece,
    ObjectOid,
    ObjectPiece,
}

impl Step {
    fn place(self) -> &'static str {
        match self {
            Step::Head | Step::Compression | Step::Created(_) | Step::Labels(_) => "the header",
            Step::TocCount | Step::Entry(_) | Step::Dependency | Step::Position => "the table of contents",
            Step::BlockKind | Step::BlockId => "the head of a block",
            Step::TablePiece => "the data of a table",
            Step::ObjectOid | Step::ObjectPiece => "the large objects",
        }
    }
}

/// What the bytes that are collected now are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Collecting {
    Raw,
    Number,
    /// The length of a string that is wanted or not.
    Length(bool),
    Text,
}

#[derive(Debug)]
enum Value<'a> {
    Raw(&'a [u8]),
    Number(i64),
    Text(Option<&'a [u8]>),
}

/// Follows an archive piece by piece; see the head of this file.
#[derive(Debug)]
pub(crate) struct ArchiveWalker {
    keep: Keep,
    offset: u64,
    step: Step,
    collecting: Collecting,
    scratch: Vec<u8>,
    needed: usize,
    /// Bytes of data or of an unwanted string still to pass by.
    passing: u64,
    number_bytes: usize,
    position_bytes: usize,
    version: (u8, u8),
    fields: &'static [Field],
    entries_left: u64,
    entry: TocEntry,
    entries: Vec<TocEntry>,
    /// Entries with data by id: their place in `entries`, and the rows once they were read.
    data: HashMap<i64, (usize, Option<u64>)>,
    block: Block,
    large_objects: u64,
}

#[derive(Debug, Default)]
struct Block {
    id: i64,
    kind: u8,
    line_feeds: u64,
    tail: [u8; COPY_END.len()],
}

impl Block {
    fn scan(&mut self, data: &[u8]) {
        self.line_feeds += data.iter().map(|&byte| u64::from(byte == b'\n')).sum::<u64>();
        let kept = data.len().min(self.tail.len());
        self.tail.rotate_left(kept);
        let start = self.tail.len() - kept;
        self.tail[start..].copy_from_slice(&data[data.len() - kept..]);
    }
}

impl ArchiveWalker {
    /// Stands before the first byte.
    pub(crate) fn new(keep: Keep) -> Self {
        Self {
            keep,
            offset: 0,
            step: Step::Head,
            collecting: Collecting::Raw,
            scratch: Vec::new(),
            needed: 11,
            passing: 0,
            number_bytes: 4,
            position_bytes: 8,
            version: (0, 0),
            fields: FIELDS_1_14,
            entries_left: 0,
            entry: TocEntry::default(),
            entries: Vec::new(),
            data: HashMap::new(),
            block: Block::default(),
            large_objects: 0,
        }
    }

    /// Takes the next bytes.
    pub(crate) fn feed(&mut self, mut input: &[u8]) -> Result<(), ArchiveError> {
        while !input.is_empty() {
            if self.passing > 0 {
                let count = usize::try_from(self.passing).unwrap_or(usize::MAX).min(input.len());
                let (now, rest) = input.split_at(count);
                if self.step == Step::TablePiece {
                    self.block.scan(now);
                }
                self.passing -= count as u64;
                self.offset += count as u64;
                input = rest;
                continue;
            }
            let missing = self.needed - self.scratch.len();
            let (now, rest) = input.split_at(missing.min(input.len()));
            self.offset += now.len() as u64;
            input = rest;
            if now.len() < missing {
                self.scratch.extend_from_slice(now);
                return Ok(());
            }
            if self.scratch.is_empty() {
                self.collected(now)?;
            } else {
                let mut whole = std::mem::take(&mut self.scratch);
                whole.extend_from_slice(now);
                self.collected(&whole)?;
                whole.clear();
                self.scratch = whole;
            }
        }
        Ok(())
    }

    /// Whether the table of contents was read to its end.
    pub(crate) fn toc_complete(&self) -> bool {
        matches!(
            self.step,
            Step::BlockKind | Step::BlockId | Step::TablePiece | Step::ObjectOid | Step::ObjectPiece
        )
    }

    /// The entries kept, once the table of contents was read to its end.
    pub(crate) fn into_entries(self) -> Result<Vec<TocEntry>, ArchiveError> {
        if self.toc_complete() { Ok(self.entries) } else { Err(self.ended_early()) }
    }

    /// Says after the last byte whether the archive is whole.
    pub(crate) fn finish(self) -> Result<ArchiveSummary, ArchiveError> {
        if self.step != Step::BlockKind || self.passing > 0 || !self.scratch.is_empty() {
            return Err(self.ended_early());
        }
        let mut summary =
            ArchiveSummary { bytes: self.offset, tables: Vec::new(), large_objects: self.large_objects };
        let mut missing = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.has_data) {
            match self.data.get(&entry.id).and_then(|(_, rows)| *rows) {
                None => missing.push(entry),
                Some(rows) if entry.kind == "TABLE DATA" => summary.tables.push(TableData {
                    schema: entry.schema.clone().unwrap_or_default(),
                    name: entry.tag.clone(),
                    rows,
                }),
                Some(_) => {}
            }
        }
        if let Some(first) = missing.first() {
            let first =
                format!("{} {}", first.kind, super::quote::printable(&String::from_utf8_lossy(&first.tag)));
            return Err(ArchiveError::DataMissing { missing: missing.len(), first });
        }
        Ok(summary)
    }

    fn ended_early(&self) -> ArchiveError {
        ArchiveError::EndedEarly { bytes: self.offset, within: self.step.place() }
    }

    fn malformed(&self, what: &'static str) -> ArchiveError {
        ArchiveError::Malformed { offset: self.offset, what }
    }

    fn want_raw(&mut self, bytes: usize) {
        self.collecting = Collecting::Raw;
        self.needed = bytes;
    }

    fn want_number(&mut self) {
        self.collecting = Collecting::Number;
        self.needed = 1 + self.number_bytes;
    }

    fn want_text(&mut self, kept: bool) {
        self.collecting = Collecting::Length(kept);
        self.needed = 1 + self.number_bytes;
    }

    /// A sign byte, then the magnitude, lowest byte first.
    fn number(&self, bytes: &[u8]) -> Result<i64, ArchiveError> {
        let mut magnitude = 0i64;
        for &byte in bytes[1..].iter().rev() {
            magnitude = (magnitude << 8) | i64::from(byte);
        }
        match bytes[0] {
            0 => Ok(magnitude),
            1 => Ok(-magnitude),
            _ => Err(self.malformed("a number has an impossible sign")),
        }
    }

    fn collected(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        match self.collecting {
            Collecting::Raw => self.advance(Value::Raw(bytes)),
            Collecting::Number => {
                let number = self.number(bytes)?;
                self.advance(Value::Number(number))
            }
            Collecting::Length(kept) => match self.number(bytes)? {
                ..0 => self.advance(Value::Text(None)),
                0 => self.advance(Value::Text(Some(b""))),
                length if kept => {
                    if length.unsigned_abs() > TEXT_BYTES_MAX {
                        return Err(self.malformed("a name or definition is too long"));
                    }
                    self.collecting = Collecting::Text;
                    self.needed =
                        usize::try_from(length).map_err(|_| self.malformed("a length is too large"))?;
                    Ok(())
                }
                length => {
                    // The string passes by unread; what follows it is asked for at once.
                    self.advance(Value::Text(Some(b"")))?;
                    self.passing = length.unsigned_abs();
                    Ok(())
                }
            },
            Collecting::Text => self.advance(Value::Text(Some(bytes))),
        }
    }

    fn advance(&mut self, value: Value<'_>) -> Result<(), ArchiveError> {
        match (self.step, value) {
            (Step::Head, Value::Raw(head)) => self.head(head),
            (Step::Compression, Value::Raw([0]) | Value::Number(0)) => {
                self.step = Step::Created(7);
                self.want_number();
                Ok(())
            }
            (Step::Compression, _) => Err(ArchiveError::Compressed),
            (Step::Created(left), _) => {
                if left > 1 {
                    self.step = Step::Created(left - 1);
                    self.want_number();
                } else {
                    self.step = Step::Labels(3);
                    self.want_text(false);
                }
                Ok(())
            }
            (Step::Labels(left), _) => {
                if left > 1 {
                    self.step = Step::Labels(left - 1);
                    self.want_text(false);
                } else {
                    self.step = Step::TocCount;
                    self.want_number();
                }
                Ok(())
            }
            (Step::TocCount, Value::Number(count)) => {
                self.entries_left =
                    u64::try_from(count).map_err(|_| self.malformed("the number of entries is negative"))?;
                self.next_entry();
                Ok(())
            }
            (Step::Entry(number), value) => self.field(number, value),
            (Step::Dependency, Value::Text(Some(text))) => {
                if self.keep == Keep::All {
                    let id = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
                    self.entry
                        .dependencies
                        .push(id.ok_or_else(|| self.malformed("a dependency is no number"))?);
                }
                self.want_text(self.keep == Keep::All);
                Ok(())
            }
            (Step::Dependency, _) => {
                self.step = Step::Position;
                self.want_raw(1 + self.position_bytes);
                Ok(())
            }
            (Step::Position, _) => self.entry_done(),
            (_, value) => self.block_step(&value),
        }
    }

    fn head(&mut self, head: &[u8]) -> Result<(), ArchiveError> {
        let &[b'P', b'G', b'D', b'M', b'P', major, minor, _revision, number_bytes, position_bytes, format] =
            head
        else {
            return Err(ArchiveError::NotAnArchive);
        };
        if format != 1 {
            return Err(ArchiveError::NotAnArchive);
        }
        if !matches!((major, minor), (1, 14..=16)) {
            return Err(ArchiveError::UnsupportedVersion(major, minor));
        }
        if number_bytes != 4 || !matches!(position_bytes, 4 | 8) {
            return Err(self.malformed("the sizes of numbers are unusual"));
        }
        self.version = (major, minor);
        self.number_bytes = usize::from(number_bytes);
        self.position_bytes = usize::from(position_bytes);
        self.fields = if minor >= 16 { FIELDS_1_16 } else { FIELDS_1_14 };
        self.step = Step::Compression;
        // Since 1.15 one byte names the algorithm; before, a number gave the level.
        if minor >= 15 {
            self.want_raw(1)
        } else {
            self.want_number()
        }
        Ok(())
    }

    fn next_entry(&mut self) {
        if self.entries_left == 0 {
            self.step = Step::BlockKind;
            self.want_raw(1);
        } else {
            self.entry = TocEntry::default();
            self.want_field(0);
        }
    }

    fn want_field(&mut self, number: usize) {
        self.step = Step::Entry(number);
        let field = self.fields[number];
        if field.is_number() {
            self.want_number();
        } else {
            let kept = match field {
                Field::Definition => self.keep == Keep::All && self.entry.concerns_database(),
                field => field != Field::Skipped,
            };
            self.want_text(kept);
        }
    }

    fn field(&mut self, number: usize, value: Value<'_>) -> Result<(), ArchiveError> {
        match (self.fields[number], value) {
            (Field::Id, Value::Number(id)) => self.entry.id = id,
            (Field::HasData, Value::Number(flag)) => self.entry.has_data = flag != 0,
            (Field::Tag, Value::Text(text)) => self.entry.tag = text.unwrap_or_default().to_vec(),
            (Field::Kind, Value::Text(text)) => {
                self.entry.kind = String::from_utf8_lossy(text.unwrap_or_default()).into_owned();
            }
            (Field::Definition, Value::Text(text)) => {
                self.entry.definition = text.filter(|text| !text.is_empty()).map(<[u8]>::to_vec);
            }
            (Field::Schema, Value::Text(text)) => {
                self.entry.schema = text.filter(|text| !text.is_empty()).map(<[u8]>::to_vec);
            }
            (Field::Owner, Value::Text(text)) => self.entry.owner = text.unwrap_or_default().to_vec(),
            _ => {}
        }
        if number + 1 < self.fields.len() {
            self.want_field(number + 1);
        } else {
            self.step = Step::Dependency;
            self.want_text(self.keep == Keep::All);
        }
        Ok(())
    }

    fn entry_done(&mut self) -> Result<(), ArchiveError> {
        let entry = std::mem::take(&mut self.entry);
        if entry.has_data && self.data.insert(entry.id, (self.entries.len(), None)).is_some() {
            return Err(self.malformed("two entries have one number"));
        }
        if entry.has_data || self.keep == Keep::All {
            self.entries.push(entry);
        }
        self.entries_left -= 1;
        self.next_entry();
        Ok(())
    }

    fn block_step(&mut self, value: &Value<'_>) -> Result<(), ArchiveError> {
        match (self.step, value) {
            (Step::BlockKind, Value::Raw([kind @ (1 | 3)])) => {
                self.block = Block { kind: *kind, ..Block::default() };
                self.step = Step::BlockId;
                self.want_number();
            }
            (Step::BlockKind, _) => return Err(self.malformed("a block of an unknown kind")),
            (Step::BlockId, Value::Number(id)) => {
                match self.data.get(id) {
                    Some((_, None)) => {}
                    Some(_) => return Err(self.malformed("an entry has data twice")),
                    None => return Err(self.malformed("data of an entry that announced none")),
                }
                self.block.id = *id;
                self.step = if self.block.kind == 1 { Step::TablePiece } else { Step::ObjectOid };
                self.want_number();
            }
            (Step::TablePiece, Value::Number(0)) => self.table_done()?,
            (Step::TablePiece | Step::ObjectPiece, Value::Number(length @ 1..)) => {
                self.passing = length.unsigned_abs();
                self.want_number();
            }
            (Step::ObjectOid, Value::Number(0)) => self.block_done(0),
            (Step::ObjectOid, Value::Number(_)) => {
                self.large_objects += 1;
                self.step = Step::ObjectPiece;
                self.want_number();
            }
            (Step::ObjectPiece, Value::Number(0)) => {
                self.step = Step::ObjectOid;
                self.want_number();
            }
            _ => return Err(self.malformed("a piece of data has an impossible length")),
        }
        Ok(())
    }

    fn table_done(&mut self) -> Result<(), ArchiveError> {
        let is_table =
            self.data.get(&self.block.id).is_some_and(|(at, _)| self.entries[*at].kind == "TABLE DATA");
        if !is_table {
            self.block_done(0);
            return Ok(());
        }
        if self.block.tail != COPY_END {
            return Err(self.malformed("the data of a table lacks its end mark"));
        }
        self.block_done(self.block.line_feeds - COPY_END_LINE_FEEDS);
        Ok(())
    }

    fn block_done(&mut self, rows: u64) {
        if let Some((_, done)) = self.data.get_mut(&self.block.id) {
            *done = Some(rows);
        }
        self.step = Step::BlockKind;
        self.want_raw(1);
    }
}

#[cfg(test)]
mod tests;
