//! One view of a file tree. It is consistent per file at best: files may change while others are read.

use async_trait::async_trait;
use holdfast_model::ErrorCode;
use holdfast_model::manifest::{FilesManifest, Manifest, UNREADABLE_NAMED_MAX, UnreadableItem};
use holdfast_model::source::EngineKind;
use holdfast_model::text::counted;
use jiff::Timestamp;

use super::walk::{Step, Walker};
use crate::file_gate::{FILE_GATE, FileId, HeldBySqlite};
use crate::{Capture, Content, EngineContext, EngineError, Entry, FileType, StoredSummary};

/// How many files whose attributes could not be read are named in the log.
const ATTRIBUTE_WARNINGS_MAX: u64 = 20;

/// A running capture of file trees.
pub(crate) struct FilesCapture {
    pub(crate) walker: Walker,
    pub(crate) context: EngineContext,
    pub(crate) captured_at: Timestamp,
    pub(crate) engine_version: String,
    /// What was yielded so far.
    pub(crate) totals: FilesManifest,
    pub(crate) unreadable: Vec<UnreadableItem>,
    pub(crate) unreadable_count: u64,
    pub(crate) attribute_warnings: u64,
    pub(crate) ended: bool,
}

impl FilesCapture {
    fn count(&mut self, entry: &Entry) {
        match entry.metadata.file_type {
            FileType::File => {
                self.totals.files += 1;
                self.totals.bytes += entry.metadata.size;
            }
            FileType::Directory => self.totals.directories += 1,
            _ => self.totals.others += 1,
        }
    }

    fn record_unreadable(&mut self, path: &[u8], reason: String) {
        self.unreadable_count += 1;
        if self.unreadable.len() < UNREADABLE_NAMED_MAX {
            self.unreadable.push(UnreadableItem { path: String::from_utf8_lossy(path).into_owned(), reason });
        }
    }

    fn warn_of_attributes(&mut self, path: &[u8], reason: &str) {
        self.attribute_warnings += 1;
        if self.attribute_warnings <= ATTRIBUTE_WARNINGS_MAX {
            let path = String::from_utf8_lossy(path);
            self.context.log.warn(&format!("/{path}: saved without its extended attributes: {reason}"));
        }
    }
}

fn file_id(entry: &Entry) -> FileId {
    FileId { device_id: entry.metadata.device_id, inode: entry.metadata.inode }
}

#[async_trait]
impl Capture for FilesCapture {
    fn next_entry(&mut self) -> Result<Option<Entry>, EngineError> {
        loop {
            if self.context.cancel.is_cancelled() {
                return Err(EngineError::new(ErrorCode::RunCancelled, "the run was cancelled"));
            }
            match self.walker.next_step()? {
                Some(Step::Entry(entry)) => {
                    // Whoever opens files takes a pass; this spares the pipeline those that it would not get.
                    if matches!(entry.content, Content::File(_)) && FILE_GATE.is_held(file_id(&entry)) {
                        self.record_unreadable(&entry.path, HeldBySqlite.to_string());
                        continue;
                    }
                    self.count(&entry);
                    return Ok(Some(entry));
                }
                Some(Step::Unreadable(path, reason)) => self.record_unreadable(&path, reason),
                Some(Step::AttributesUnreadable(path, reason)) => self.warn_of_attributes(&path, &reason),
                Some(Step::LeftOut(path)) => {
                    let path = String::from_utf8_lossy(&path);
                    self.context
                        .log
                        .debug(format_args!("{} is left out by the patterns", path.escape_debug()));
                }
                None => {
                    self.ended = true;
                    return Ok(None);
                }
            }
        }
    }

    async fn finish(mut self: Box<Self>, stored: StoredSummary) -> Result<Manifest, EngineError> {
        if !self.ended {
            return Err(EngineError::new(
                ErrorCode::CaptureIncomplete,
                "the file tree was not walked to its end",
            ));
        }
        if stored.files + stored.unreadable_count != self.totals.files {
            let message = format!(
                "{} found, but {} stored and {} could not be read",
                counted(self.totals.files, "file"),
                stored.files,
                stored.unreadable_count
            );
            return Err(EngineError::new(ErrorCode::CaptureInconsistent, message));
        }
        // The manifest tells what the tree holds: files that could not be read are not in it, and a file that grew
        // while it was read is as long as what was read.
        self.totals.files = stored.files;
        self.totals.bytes = stored.bytes;
        self.unreadable_count += stored.unreadable_count;
        self.unreadable.extend(stored.unreadable);
        self.unreadable.sort_by(|a, b| a.path.cmp(&b.path));
        self.unreadable.truncate(UNREADABLE_NAMED_MAX);
        if self.attribute_warnings > ATTRIBUTE_WARNINGS_MAX {
            let more = self.attribute_warnings - ATTRIBUTE_WARNINGS_MAX;
            let more = counted(more, "more file");
            self.context.log.warn(&format!("{more} saved without their extended attributes"));
        }
        Ok(Manifest {
            version: 1,
            engine: EngineKind::Files,
            engine_version: self.engine_version,
            tools: std::collections::BTreeMap::new(),
            captured_at: self.captured_at,
            log_position: None,
            system_id: None,
            databases: Vec::new(),
            logical_bytes: self.totals.bytes,
            files: Some(self.totals),
            unreadable: self.unreadable,
            unreadable_count: self.unreadable_count,
        })
    }
}
