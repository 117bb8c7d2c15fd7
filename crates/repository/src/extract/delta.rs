//! Comparing files that are in the target already with what they must be.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, Mode, OFlags, Stat};
use tokio_util::sync::CancellationToken;

use super::ExtractError;
use super::batch::Item;
use super::metadata::{Applier, Before};
use super::target::{self, FolderCache};
use crate::id::BlobId;

/// What a comparison found.
#[derive(Debug)]
pub(super) enum Compared {
    /// Everything is right, metadata included: the file is finished.
    Kept,
    /// Nothing of it can be used.
    Replace,
    /// Only these blobs differ, one flag for each of the file. The file is ready to be changed in place.
    Change(Vec<bool>),
}

/// Compares files of one thread, in a buffer that is used again.
pub(super) struct Comparer<'w> {
    pub(super) folders: FolderCache<'w>,
    pub(super) applier: Applier<'w>,
    pub(super) cancelled: &'w CancellationToken,
    pub(super) buffer: Vec<u8>,
}

impl Comparer<'_> {
    /// Compares a file with the blobs that it must have, of these lengths, and finishes it if nothing is to be done.
    pub(super) fn compare(&mut self, item: &Item, lengths: &[u32]) -> Result<Compared, ExtractError> {
        let folder = self.folders.get(&item.folder)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // Whatever cannot be opened or read for comparing is replaced.
        let Ok(file) = rustix::fs::openat(folder, &*item.node.name, flags, Mode::empty()) else {
            return Ok(Compared::Replace);
        };
        let Ok(stat) = rustix::fs::fstat(&file) else { return Ok(Compared::Replace) };
        let several_names = stat.st_nlink > 1;
        let links_agree = !several_names || item.node.metadata.links > 1;
        if target::file_type(&stat) != FileType::RegularFile || !links_agree {
            return Ok(Compared::Replace);
        }
        let file = File::from(file);
        let length: u64 = lengths.iter().map(|&length| u64::from(length)).sum();
        let differs = self.differing(&file, &stat, &item.node.content, lengths)?;
        let kept: u64 =
            differs.iter().zip(lengths).filter(|(differs, _)| !**differs).map(|(_, &n)| u64::from(n)).sum();
        let tally = self.applier.tally;
        if kept == length && stat.st_size as u64 == length {
            let before = Before::Unchanged(&stat);
            self.applier.apply_open(file.as_fd(), &item.node.metadata, before, &|| item.path())?;
            tally.progress.files.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tally.progress.bytes_kept.fetch_add(kept, std::sync::atomic::Ordering::Relaxed);
            return Ok(Compared::Kept);
        }
        // A file with other names outside the snapshot must not be changed through this one, and one that is changed
        // cannot be kept.
        if kept == 0 || several_names || self.folders.target().keeps() {
            return Ok(Compared::Replace);
        }
        if stat.st_mode & 0o200 == 0 && rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR).is_err() {
            return Ok(Compared::Replace);
        }
        tally.progress.bytes_kept.fetch_add(kept, std::sync::atomic::Ordering::Relaxed);
        Ok(Compared::Change(differs))
    }

    /// Which blobs of the file are not in place.
    fn differing(
        &mut self,
        file: &File,
        stat: &Stat,
        content: &[BlobId],
        lengths: &[u32],
    ) -> Result<Vec<bool>, ExtractError> {
        let mut differs = vec![true; content.len()];
        let mut offset = 0;
        for (number, (id, &length)) in content.iter().zip(lengths).enumerate() {
            if self.cancelled.is_cancelled() {
                return Err(ExtractError::Cancelled);
            }
            let end = offset + u64::from(length);
            if end > stat.st_size as u64 {
                break;
            }
            self.buffer.resize(self.buffer.len().max(length as usize), 0);
            let read = &mut self.buffer[..length as usize];
            if file.read_exact_at(read, offset).is_err() {
                break;
            }
            differs[number] = BlobId::of(read) != *id;
            offset = end;
        }
        Ok(differs)
    }
}
