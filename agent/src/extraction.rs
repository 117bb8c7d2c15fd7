//! Writing a part of a snapshot to disk, for engines.
//!
//! What does not exist yet is made in a temporary folder beside its place and put there by one rename, with everything
//! that the snapshot says of it. The folder's name holds that of the run: what a crash leaves is found by it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_engines::{EngineError, ExtractOrder, ExtractReport};
use holdfast_model::ids::RunId;
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::RepositoryError;
use holdfast_repository::extract::{Delta, ExtractError, ExtractOptions, ExtractProgress, extract_tree};
use holdfast_repository::id::BlobId;
use holdfast_repository::reader::{BlobReader, Selection};
use holdfast_repository::tree::NodeType;
use holdfast_repository::write::OWN_FOLDER;
use holdfast_runtime::{SharedClock, durable_file};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::contents::engine_error;
use crate::counters::Counters;

/// How often progress is copied into the counters of the run.
const COPY_INTERVAL: Duration = Duration::from_millis(500);

/// Where a tree is written from.
pub(crate) struct Extraction<'a> {
    pub(crate) run: RunId,
    pub(crate) reader: &'a BlobReader,
    pub(crate) root: BlobId,
    pub(crate) runtime: &'a Handle,
    pub(crate) cancel: &'a CancellationToken,
    pub(crate) counters: &'a Arc<Counters>,
    pub(crate) clock: &'a SharedClock,
}

/// The folder beside a target in which it is made.
pub(crate) fn temporary_beside(target: &Path, run: RunId) -> PathBuf {
    let mut name = OsString::from(format!(".holdfast-{run}-"));
    name.push(target.file_name().unwrap_or_default());
    target.with_file_name(name)
}

impl Extraction<'_> {
    /// Carries out an order. Blocking.
    pub(crate) fn extract(&self, order: &ExtractOrder) -> Result<ExtractReport, EngineError> {
        self.check_only(order)?;
        if order.from.is_empty() {
            let selection = Selection { only: order.only.clone(), without: vec![OWN_FOLDER.to_vec()] };
            return self.write_tree(self.root, &order.to, order, selection);
        }
        let node =
            self.block_on(self.reader.find(self.root, &order.from))?.map_err(|error| engine_error(&error))?;
        let is_folder = node.metadata.node_type == NodeType::Directory;
        match node.subtree {
            Some(tree) if is_folder && (order.delta.is_some() || order.to.is_dir()) => {
                let only = order.only.iter().filter_map(|path| below(path, &order.from)).collect();
                self.write_tree(tree, &order.to, order, Selection { only, without: Vec::new() })
            }
            _ if order.delta.is_some() => Err(EngineError::new(
                ErrorCode::Unsupported,
                format!(
                    "{} is no folder in the snapshot: restore it whole",
                    String::from_utf8_lossy(&order.from)
                ),
            )),
            _ => self.write_and_rename(order),
        }
    }

    /// Writes into a temporary folder what then gets its place by a rename.
    fn write_and_rename(&self, order: &ExtractOrder) -> Result<ExtractReport, EngineError> {
        let split = order.from.iter().rposition(|&byte| byte == b'/');
        let (folder, name) = match split {
            Some(at) => (&order.from[..at], &order.from[at + 1..]),
            None => (&[][..], &order.from[..]),
        };
        let parent =
            self.block_on(self.reader.find(self.root, folder))?.map_err(|error| engine_error(&error))?;
        let tree = parent.subtree.ok_or_else(|| missing(&order.from))?;
        let only = match order.only.is_empty() {
            true => vec![name.to_vec()],
            false => order.only.iter().filter_map(|path| below(path, folder)).collect(),
        };
        let temporary = temporary_beside(&order.to, self.run);
        remove(&temporary).map_err(|error| failed("remove", &temporary, error))?;
        let written = self
            .write_tree(tree, &temporary, order, Selection { only, without: Vec::new() })
            .and_then(|report| {
                let made = temporary.join(OsStr::from_bytes(name));
                std::fs::rename(&made, &order.to)
                    .and_then(|()| durable_file::sync_folder(order.to.parent().unwrap_or(Path::new("/"))))
                    .map_err(|error| failed("put in its place", &order.to, error))?;
                Ok(report)
            });
        let removed = remove(&temporary).map_err(|error| failed("remove", &temporary, error));
        let report = written?;
        removed?;
        Ok(report)
    }

    fn write_tree(
        &self,
        tree: BlobId,
        to: &Path,
        order: &ExtractOrder,
        selection: Selection,
    ) -> Result<ExtractReport, EngineError> {
        let options = ExtractOptions {
            owner: order.ownership,
            delta: order.delta.clone().map(Delta::Keep),
            selection,
            ..ExtractOptions::default()
        };
        let progress = Arc::new(ExtractProgress::default());
        let before = (self.counters.files_done.get(), self.counters.bytes_read.get());
        let copy = || {
            self.counters.files_done.set(before.0 + progress.files.load(Ordering::Relaxed));
            self.counters.bytes_read.set(before.1 + progress.bytes_written.load(Ordering::Relaxed));
        };
        let outcome = self.runtime.block_on(async {
            let work = extract_tree(self.reader, tree, to, &options, progress.clone(), self.cancel);
            let mut work = std::pin::pin!(work);
            loop {
                let tick = self.clock.sleep(COPY_INTERVAL);
                tokio::select! {
                    outcome = &mut work => return outcome,
                    () = tick => copy(),
                }
            }
        });
        copy();
        let report = outcome.map_err(|error| extract_error(&error))?;
        let mut warnings = report.warnings;
        if let Some(more) = report.warnings_total.checked_sub(warnings.len() as u64).filter(|&more| more > 0)
        {
            warnings.pop();
            warnings.push(format!("and {} more", more + 1));
        }
        Ok(ExtractReport {
            files: report.files - report.files_kept,
            bytes_written: report.bytes_written,
            bytes_unchanged: report.bytes_kept,
            warnings,
        })
    }

    /// Everything that is wanted must be there, and an existing target must not lose what was not asked for.
    fn check_only(&self, order: &ExtractOrder) -> Result<(), EngineError> {
        if order.delta.is_some() && !order.only.is_empty() {
            let message = "a part of a tree cannot be restored over an existing one";
            return Err(EngineError::new(ErrorCode::Unsupported, message));
        }
        for path in &order.only {
            self.block_on(self.reader.find(self.root, path))?.map_err(|error| engine_error(&error))?;
        }
        Ok(())
    }

    fn block_on<T>(&self, work: impl Future<Output = T>) -> Result<T, EngineError> {
        let cancelled = || EngineError::new(ErrorCode::RunCancelled, "the restore was cancelled");
        self.runtime.block_on(self.cancel.run_until_cancelled(work)).ok_or_else(cancelled)
    }
}

/// The rest of a path below a folder of the tree; nothing when it lies elsewhere.
fn below(path: &[u8], folder: &[u8]) -> Option<Vec<u8>> {
    match folder {
        [] => Some(path.to_vec()),
        folder => path.strip_prefix(folder)?.strip_prefix(b"/").map(<[u8]>::to_vec),
    }
}

fn missing(path: &[u8]) -> EngineError {
    let message = format!("the snapshot does not hold {}", String::from_utf8_lossy(path));
    EngineError::new(ErrorCode::PathNotInSnapshot, message)
}

fn failed(doing: &str, path: &Path, error: std::io::Error) -> EngineError {
    let code = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorCode::TargetNoSpace,
        _ => ErrorCode::RestoreFailed,
    };
    EngineError::new(code, format!("could not {doing} {}", path.display())).caused_by(error)
}

/// Removes a temporary folder; one that is not there is no error.
pub(crate) fn remove(temporary: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn extract_error(error: &ExtractError) -> EngineError {
    let mut causes = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        // What the controller said stands for itself, without what carried it here.
        if let Some(failure) = inner.downcast_ref::<Failure>() {
            causes.push(failure.message.clone());
            causes.extend(failure.why.iter().cloned());
        } else if !matches!(inner.downcast_ref(), Some(RepositoryError::Sink { .. })) {
            causes.push(inner.to_string());
        }
        cause = inner.source();
    }
    let engine = EngineError::new(error.code(), error.to_string());
    if causes.is_empty() { engine } else { engine.caused_by(causes.join(": ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_below_a_folder_is_what_follows_its_slash() {
        assert_eq!(below(b"srv/app/a", b"srv/app"), Some(b"a".to_vec()));
        assert_eq!(below(b"srv/apple", b"srv/app"), None);
        assert_eq!(below(b"srv/app", b"srv/app"), None);
        assert_eq!(below(b"srv", b""), Some(b"srv".to_vec()));
    }

    #[test]
    fn the_temporary_folder_lies_beside_its_target_and_names_the_run() {
        let run = RunId::at(1, [1; 10]);
        let temporary = temporary_beside(Path::new("/srv/a b"), run);
        assert_eq!(temporary, PathBuf::from(format!("/srv/.holdfast-{run}-a b")));
    }
}
