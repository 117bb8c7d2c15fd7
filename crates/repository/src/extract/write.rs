//! Writing the content of one file: at offsets, from several threads, with holes kept.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};

use super::ExtractError;
use super::batch::Item;
use super::metadata::{Applier, Before};
use super::target::{FolderCache, Target};

/// Pieces in which zeros are looked for.
const PIECE_BYTES: usize = 4096;
/// Zeros that are long enough to be left out; shorter ones are cheaper to write than to remember.
const HOLE_BYTES_MIN: usize = 64 << 10;
/// Files that are kept open between two of their blobs, over all threads.
const OPEN_FILES_MAX: usize = 256;

/// How far a file of a batch is.
#[derive(Debug, Default)]
pub(super) struct FileState {
    /// Blobs that are still to be written; the file is finished by who writes the last.
    pub(super) remaining: AtomicU32,
    /// The length it must have.
    pub(super) length: u64,
    /// The file was there before and part of its content is kept.
    pub(super) in_place: bool,
    /// Something was left out, so that the length must be set.
    holes: AtomicBool,
    open: Mutex<OpenState>,
}

#[derive(Debug, Default)]
struct OpenState {
    /// The file was created by this restore, or is kept.
    created: bool,
    file: Option<Arc<File>>,
}

impl FileState {
    /// A file that must get this length.
    pub(super) fn new(length: u64) -> Self {
        Self { length, ..Self::default() }
    }
}

/// What the threads that write share.
pub(super) struct Writer<'w> {
    pub(super) target: &'w Target,
    pub(super) applier: Applier<'w>,
    pub(super) open_files: AtomicUsize,
}

impl Writer<'_> {
    /// Writes one blob of a file at its offset, and finishes the file when it was the last.
    pub(super) fn write(
        &self,
        folders: &mut FolderCache<'_>,
        item: &Item,
        state: &FileState,
        offset: u64,
        content: &[u8],
    ) -> Result<(), ExtractError> {
        let (file, kept_open) = self.open(folders, item, state)?;
        let failed = |error| ExtractError::target("write", &item.path(), error);
        if state.in_place {
            // Old bytes lie below: zeros must be written too.
            file.write_all_at(content, offset).map_err(failed)?;
        } else {
            let mut written = 0;
            for run in data_runs(content) {
                file.write_all_at(&content[run.clone()], offset + run.start as u64).map_err(failed)?;
                written += run.len();
            }
            if written < content.len() {
                state.holes.store(true, Ordering::Relaxed);
            }
        }
        self.applier.tally.written(content.len() as u64);
        if state.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finish(&file, item, state)?;
            if kept_open && state.open.lock().file.take().is_some() {
                self.open_files.fetch_sub(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Restores a file of which nothing is to be written: it is empty, or all of its content was found in place.
    pub(super) fn finish_unwritten(
        &self,
        folders: &mut FolderCache<'_>,
        item: &Item,
        state: &FileState,
    ) -> Result<(), ExtractError> {
        let (file, _) = self.open(folders, item, state)?;
        self.finish(&file, item, state)
    }

    /// The file, open for writing; creates it the first time. Says whether others find it open as well.
    fn open(
        &self,
        folders: &mut FolderCache<'_>,
        item: &Item,
        state: &FileState,
    ) -> Result<(Arc<File>, bool), ExtractError> {
        let mut open = state.open.lock();
        if let Some(file) = &open.file {
            return Ok((Arc::clone(file), true));
        }
        let folder = folders.get(&item.folder)?;
        let file =
            if state.in_place || open.created { reopen(folder, item)? } else { self.create(folder, item)? };
        open.created = true;
        let file = Arc::new(file);
        // Most files have one blob and are finished at once. Of the others a limited number stays open.
        let several = state.remaining.load(Ordering::Acquire) > 1;
        let keep = several && self.open_files.fetch_add(1, Ordering::Relaxed) < OPEN_FILES_MAX;
        if keep {
            open.file = Some(Arc::clone(&file));
        } else if several {
            self.open_files.fetch_sub(1, Ordering::Relaxed);
        }
        Ok((file, keep))
    }

    /// Something else may stand under the name in an existing target: it makes way.
    fn create(&self, folder: BorrowedFd<'_>, item: &Item) -> Result<File, ExtractError> {
        if item.exists {
            self.target
                .make_way(folder, &item.folder, &item.node.name)
                .map_err(|error| ExtractError::target("replace", &item.path(), error))?;
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        open_with(folder, item, flags)
    }

    fn finish(&self, file: &File, item: &Item, state: &FileState) -> Result<(), ExtractError> {
        // A file that is kept may have been longer; one that ends with a hole is too short.
        if state.in_place || state.holes.load(Ordering::Relaxed) {
            file.set_len(state.length)
                .map_err(|error| ExtractError::target("set the length of", &item.path(), error))?;
        }
        let before = if state.in_place { Before::Changed } else { Before::New };
        self.applier.apply_open(file.as_fd(), &item.node.metadata, before, &|| item.path())?;
        self.applier.tally.progress.files.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A file that this restore created before, or found and changes in place.
fn reopen(folder: BorrowedFd<'_>, item: &Item) -> Result<File, ExtractError> {
    open_with(folder, item, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC)
}

fn open_with(folder: BorrowedFd<'_>, item: &Item, flags: OFlags) -> Result<File, ExtractError> {
    rustix::fs::openat(folder, &*item.node.name, flags, Mode::RUSR | Mode::WUSR)
        .map(File::from)
        .map_err(|errno| ExtractError::target("create", &item.path(), errno))
}

/// The parts of a blob that are written: all but long runs of zeros.
fn data_runs(content: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut position = 0;
    std::iter::from_fn(move || {
        let start = position + zeros_at(&content[position..]);
        if start == content.len() {
            return None;
        }
        let mut end = start;
        while end < content.len() {
            let zeros = zeros_at(&content[end..]);
            if zeros > 0 {
                break;
            }
            end = (end + PIECE_BYTES).min(content.len());
        }
        position = end;
        Some(start..end)
    })
}

/// The length of the run of zeros at the beginning, if it is long enough to be left out, or fills all there is.
fn zeros_at(content: &[u8]) -> usize {
    let mut zeros = 0;
    for piece in content.chunks(PIECE_BYTES) {
        if !is_zero(piece) {
            break;
        }
        zeros += piece.len();
    }
    if zeros >= HOLE_BYTES_MIN || (zeros == content.len() && zeros >= PIECE_BYTES) { zeros } else { 0 }
}

fn is_zero(piece: &[u8]) -> bool {
    piece.first() == Some(&0) && piece.chunks(64).all(|part| part == &[0; 64][..part.len()])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn long_zeros_are_left_out_and_short_ones_written() {
        let mut content = vec![1; 4 * HOLE_BYTES_MIN];
        content[HOLE_BYTES_MIN..3 * HOLE_BYTES_MIN].fill(0);
        let runs: Vec<_> = data_runs(&content).collect();
        assert_eq!(runs, [0..HOLE_BYTES_MIN, 3 * HOLE_BYTES_MIN..4 * HOLE_BYTES_MIN]);
        assert!(data_runs(&[0; 100]).eq(std::iter::once(0..100)));
        assert_eq!(data_runs(&[0; 2 * HOLE_BYTES_MIN]).count(), 0);
        assert_eq!(data_runs(&[]).count(), 0);
    }

    proptest! {
        #[test]
        fn what_is_left_out_is_zero(
            parts in prop::collection::vec((any::<bool>(), 1usize..200_000), 0..8),
        ) {
            let mut content = Vec::new();
            for (zero, length) in parts {
                content.extend(std::iter::repeat_n(u8::from(!zero), length));
            }
            let mut rebuilt = vec![0; content.len()];
            let mut last = 0;
            for run in data_runs(&content) {
                prop_assert!(run.start >= last && run.end > run.start);
                last = run.end;
                rebuilt[run.clone()].copy_from_slice(&content[run]);
            }
            prop_assert!(rebuilt == content);
        }
    }
}
