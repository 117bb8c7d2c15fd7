//! What the tests of several engines need.

use std::fmt;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_model::ErrorCode;
use holdfast_model::manifest::Manifest;
use holdfast_runtime::SystemClock;
use parking_lot::Mutex;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tokio_util::sync::CancellationToken;

use crate::{
    Content, EngineContext, EngineError, Entry, ExtractOrder, ExtractReport, FileType, RunLog,
    SnapshotContents,
};
use holdfast_host::secrets::LocalSecretResolver;

/// A log that remembers its warnings.
#[derive(Debug, Default)]
pub(crate) struct TestLog {
    pub(crate) warnings: Mutex<Vec<String>>,
}

impl RunLog for TestLog {
    fn debug(&self, _line: fmt::Arguments<'_>) {}

    fn info(&self, _line: &str) {}

    fn warn(&self, line: &str) {
        self.warnings.lock().push(line.to_owned());
    }
}

/// A context without secrets, whose scratch folder does not exist.
pub(crate) fn context() -> EngineContext {
    context_with_scratch(Path::new("/nonexistent/scratch"))
}

pub(crate) fn context_with_scratch(scratch: &Path) -> EngineContext {
    EngineContext {
        secrets: Arc::new(LocalSecretResolver::with_environment([])),
        scratch: scratch.to_owned(),
        cancel: CancellationToken::new(),
        log: Arc::new(TestLog::default()),
        clock: SystemClock::shared(),
    }
}

/// Runs something on this thread as a user whom permissions bind, even when the tests run as root.
pub(crate) fn without_root_powers<T>(work: impl FnOnce() -> T) -> T {
    let before = capabilities(None).unwrap();
    let mut reduced = before;
    reduced.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    set_capabilities(None, reduced).unwrap();
    let result = work();
    set_capabilities(None, before).unwrap();
    result
}

/// A snapshot whose tree lies in a folder as it is.
pub(crate) struct DirectoryContents {
    folder: PathBuf,
    manifest: Manifest,
}

impl DirectoryContents {
    /// Stores what a capture yielded.
    pub(crate) fn store(folder: &Path, entries: Vec<Entry>, manifest: Manifest) -> Self {
        for entry in entries {
            let to = folder.join(std::ffi::OsStr::from_bytes(&entry.path));
            match (entry.metadata.file_type, entry.content) {
                (FileType::Directory, _) => fs::create_dir(&to).unwrap(),
                (FileType::Symlink, _) => {
                    let target = entry.metadata.link_target.unwrap();
                    symlink(std::ffi::OsStr::from_bytes(&target), &to).unwrap();
                }
                (_, Content::File(from) | Content::Pages { path: from, .. }) => {
                    fs::copy(from, &to).unwrap();
                }
                (_, Content::PageStream { mut reader, .. } | Content::Stream(mut reader)) => {
                    let mut file = fs::File::create(&to).unwrap();
                    std::io::copy(&mut reader, &mut file).unwrap();
                }
                (_, Content::None) => {}
            }
        }
        Self { folder: folder.to_owned(), manifest }
    }

    /// A snapshot of one file.
    pub(crate) fn of_file(folder: &Path, manifest: Manifest) -> Self {
        Self { folder: folder.to_owned(), manifest }
    }

    fn place(&self, path: &[u8]) -> Result<PathBuf, EngineError> {
        let place = self.folder.join(std::ffi::OsStr::from_bytes(path));
        if place.symlink_metadata().is_ok() {
            return Ok(place);
        }
        let message = format!("the snapshot does not hold {}", String::from_utf8_lossy(path));
        Err(EngineError::new(ErrorCode::PathNotInSnapshot, message))
    }
}

impl SnapshotContents for DirectoryContents {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn size(&self, path: &str) -> Result<u64, EngineError> {
        Ok(self.place(path.as_bytes())?.metadata().unwrap().len())
    }

    fn open(&self, path: &str) -> Result<Box<dyn Read + Send>, EngineError> {
        Ok(Box::new(fs::File::open(self.place(path.as_bytes())?).unwrap()))
    }

    fn extract(&self, order: &ExtractOrder) -> Result<ExtractReport, EngineError> {
        let from = self.place(&order.from)?;
        let mut report = ExtractReport::default();
        if order.only.is_empty() {
            copy(&from, &order.to, &mut report);
        }
        for only in &order.only {
            let prefix = if order.from.is_empty() { 0 } else { order.from.len() + 1 };
            let to = order.to.join(std::ffi::OsStr::from_bytes(&only[prefix..]));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            copy(&self.place(only)?, &to, &mut report);
        }
        Ok(report)
    }
}

fn copy(from: &Path, to: &Path, report: &mut ExtractReport) {
    let metadata = from.symlink_metadata().unwrap();
    if metadata.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let name = entry.unwrap().file_name();
            copy(&from.join(&name), &to.join(&name), report);
        }
    } else if metadata.is_symlink() {
        symlink(fs::read_link(from).unwrap(), to).unwrap();
    } else {
        report.files += 1;
        report.bytes_written += fs::copy(from, to).unwrap();
    }
}
