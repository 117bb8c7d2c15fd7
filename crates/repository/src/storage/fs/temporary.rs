//! One file on its way to its name.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use holdfast_runtime::fail_point;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{folder_of, root_missing};
use crate::storage::{StorageError, StorageErrorKind};

/// How the names of temporary files begin. Other clients of the format ignore names that are not ids.
pub(super) const TEMPORARY_PREFIX: &str = ".holdfast-tmp-";

/// A file under a temporary name in the folder of its final name. Dropped before [`Self::publish`], it is removed.
#[derive(Debug)]
pub(super) struct Temporary {
    file: File,
    path: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Temporary {
    /// Creates the file for `target`, which lies below `root`; makes the folders between, never the root itself.
    pub(super) fn create(root: &Path, target: &Path) -> Result<Self, StorageError> {
        if target.exists() {
            return Err(already_there(target));
        }
        match Self::create_beside(target) {
            Err(error) if error.kind() == StorageErrorKind::NotFound => {
                make_folder(root, folder_of(target))?;
                Self::create_beside(target)
            }
            result => result,
        }
    }

    /// Creates the file for `target`, whose folder must exist.
    pub(super) fn create_beside(target: &Path) -> Result<Self, StorageError> {
        let path = folder_of(target).join(format!("{TEMPORARY_PREFIX}{:016x}", rand::random::<u64>()));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR).map_err(from_errno)?.into();
        Ok(Self { file, path, target: target.to_owned(), published: false })
    }

    /// Appends bytes.
    pub(super) fn write(&mut self, data: &[u8]) -> Result<(), StorageError> {
        fail_point::hit_io("fs-put-before-write").map_err(StorageError::from_io)?;
        self.file.write_all(data).map_err(StorageError::from_io)
    }

    /// Makes the bytes durable, then visible under the final name, then the name durable.
    pub(super) fn publish(mut self) -> Result<(), StorageError> {
        fail_point::hit_io("fs-put-before-fsync")
            .and_then(|()| self.file.sync_all())
            .map_err(fsync_failed)?;
        fail_point::hit("fs-put-before-rename");
        match self.rename() {
            Ok(()) => self.published = true,
            Err(Errno::EXIST) => return Err(already_there(&self.target)),
            Err(errno) => return Err(from_errno(errno)),
        }
        let synced = fail_point::hit_io("fs-put-before-folder-fsync").map_err(fsync_failed);
        if let Err(error) = synced.and_then(|()| sync_folder(folder_of(&self.target))) {
            // Visible, but perhaps not durable: an object that nobody acknowledged must not look like a good one.
            // Removing it is best effort, the error is reported in any case.
            let _ = std::fs::remove_file(&self.target);
            return Err(error);
        }
        fail_point::hit("fs-put-done");
        Ok(())
    }

    fn rename(&self) -> rustix::io::Result<()> {
        match rustix::fs::renameat_with(CWD, &self.path, CWD, &self.target, RenameFlags::NOREPLACE) {
            // File systems without that flag have hard links, which never replace either.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                rustix::fs::linkat(CWD, &self.path, CWD, &self.target, rustix::fs::AtFlags::empty())?;
                rustix::fs::unlink(&self.path)
            }
            result => result,
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed now is invisible to lists and counted by the probe once it is a day old.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The winner of a race may not have made the name durable yet. Whoever is told "exists already" may rely on it,
/// so the folder is made durable first.
fn already_there(target: &Path) -> StorageError {
    match sync_folder(folder_of(target)) {
        Ok(()) => StorageError::new(StorageErrorKind::AlreadyExists),
        Err(error) => error,
    }
}

/// Gives a file another name, durably: the new name before the old one is gone for good. Makes the folders between.
pub(super) fn rename(root: &Path, old: &Path, new: &Path) -> Result<(), StorageError> {
    make_folder(root, folder_of(new))?;
    std::fs::rename(old, new).map_err(StorageError::from_io)?;
    sync_folder(folder_of(new))?;
    sync_folder(folder_of(old))
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StorageError> {
    let folder = File::open(folder).map_err(StorageError::from_io)?;
    match folder.sync_all() {
        // Some network file systems have no fsync for folders and keep names durable by themselves.
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(()),
        result => result.map_err(fsync_failed),
    }
}

/// Makes the folders from below `root` down to `folder`, each durable in its parent.
fn make_folder(root: &Path, folder: &Path) -> Result<(), StorageError> {
    if !root.is_dir() {
        return Err(root_missing(root));
    }
    let inner = folder.strip_prefix(root).expect("an object's path begins with the root");
    let mut path = root.to_owned();
    for component in inner.components() {
        let parent = path.clone();
        path.push(component);
        match rustix::fs::mkdir(&path, Mode::RWXU) {
            Ok(()) => sync_folder(&parent)?,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(from_errno(errno)),
        }
    }
    Ok(())
}

fn from_errno(errno: Errno) -> StorageError {
    StorageError::from_io(errno.into())
}

fn fsync_failed(error: io::Error) -> StorageError {
    StorageError::new(StorageErrorKind::FsyncFailed).caused_by(error)
}
