//! Files that are whole and on the disk, or not there at all.
//!
//! The order is always: write a temporary file beside the final name, `fsync` it, rename it, `fsync` the folder.
//! An `fsync` that failed is never tried again on the same file: the kernel may have dropped the pages and would
//! then report success (the operation is reported as failed, and the caller starts from nothing).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::fail_point;

/// The ending of a file that is not finished; a crash may leave one behind, and anyone may remove it.
pub const TEMPORARY_SUFFIX: &str = ".tmp";

/// Who may read the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Mode 0600: keys, tokens, state.
    Owner,
    /// Mode 0644: what everyone may see, such as a CA certificate.
    Everyone,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Access::Owner => 0o600,
            Access::Everyone => 0o644,
        }
    }
}

/// A file under way to its final name. Dropped without [`DurableFile::commit`], it is removed.
#[derive(Debug)]
pub struct DurableFile {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    finished: bool,
}

impl DurableFile {
    /// Begins to write what shall become `target`.
    ///
    /// # Errors
    /// Those of the file system; `target` must have a name and its folder must exist.
    pub fn create(target: &Path, access: Access) -> io::Result<Self> {
        let temporary = temporary_name(target)?;
        // A leftover of a crash has no owner: the folder is locked by whoever writes here.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(access.mode()).open(&temporary)?;
        Ok(Self { file, temporary, target: target.to_owned(), finished: false })
    }

    /// Makes the file durable under its final name, replacing what is there.
    ///
    /// # Errors
    /// Those of the file system. After an error the old file may or may not have been replaced, never by half.
    pub fn commit(mut self) -> io::Result<()> {
        fail_point::hit_io("durable-file-before-fsync")?;
        self.file.sync_all()?;
        fail_point::hit_io("durable-file-before-rename")?;
        std::fs::rename(&self.temporary, &self.target)?;
        self.finished = true;
        fail_point::hit_io("durable-file-before-folder-fsync")?;
        sync_folder(parent(&self.target))?;
        fail_point::hit("durable-file-done");
        Ok(())
    }

    /// As [`DurableFile::commit`], but an existing file is left alone.
    ///
    /// # Errors
    /// `AlreadyExists` when there is a file of this name; otherwise those of the file system.
    pub fn commit_new(mut self) -> io::Result<()> {
        fail_point::hit_io("durable-file-before-fsync")?;
        self.file.sync_all()?;
        fail_point::hit_io("durable-file-before-rename")?;
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            &self.temporary,
            rustix::fs::CWD,
            &self.target,
            rustix::fs::RenameFlags::NOREPLACE,
        )?;
        self.finished = true;
        fail_point::hit_io("durable-file-before-folder-fsync")?;
        sync_folder(parent(&self.target))
    }
}

impl io::Write for DurableFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for DurableFile {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing depends on it: a leftover is removed by the next writer of the same name.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Puts `bytes` under `target`, whole and durable, replacing what is there.
///
/// # Errors
/// Those of the file system.
pub fn replace(target: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let mut file = DurableFile::create(target, access)?;
    file.write_all(bytes)?;
    file.commit()
}

/// Puts `bytes` under `target`, whole and durable, unless there is a file already.
///
/// # Errors
/// `AlreadyExists` when there is a file of this name; otherwise those of the file system.
pub fn create_new(target: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let mut file = DurableFile::create(target, access)?;
    file.write_all(bytes)?;
    file.commit_new()
}

/// Removes a file durably. A file that is not there is no error.
///
/// # Errors
/// Those of the file system.
pub fn remove(target: &Path) -> io::Result<()> {
    match std::fs::remove_file(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    sync_folder(parent(target))
}

/// Makes the names in a folder durable.
///
/// # Errors
/// Those of the file system.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes a folder (mode 0700) with those above it, each durable in its parent. An existing folder is no error.
///
/// # Errors
/// Those of the file system.
pub fn create_folders(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = parent(folder);
    create_folders(above)?;
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        other => other?,
    }
    sync_folder(above)
}

/// The right to a folder, as long as the value lives; it ends with the process, however that dies.
#[derive(Debug)]
pub struct FolderLock {
    file: File,
}

impl FolderLock {
    /// Takes the lock of a folder (an `flock` on the file `lock` within), or says that another process has it.
    ///
    /// # Errors
    /// `WouldBlock` when another holder lives; otherwise those of the file system.
    pub fn take(folder: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(Access::Owner.mode())
            .open(folder.join("lock"))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { file })
    }
}

impl Drop for FolderLock {
    /// Ends the lock itself, not only our hold on its file: a child process that is being started by another thread
    /// has a copy of the file until it becomes its program, and would keep the lock for that moment.
    fn drop(&mut self) {
        // What is not unlocked here ends with the last copy of the file.
        let _ = rustix::fs::flock(&self.file, rustix::fs::FlockOperation::Unlock);
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn temporary_name(target: &Path) -> io::Result<PathBuf> {
    let mut name = target
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?
        .to_owned();
    name.push(TEMPORARY_SUFFIX);
    Ok(target.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_replaced_file_is_whole_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        replace(&path, b"one", Access::Owner).unwrap();
        replace(&path, b"two", Access::Owner).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn create_new_never_overwrites() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.key");
        create_new(&path, b"first", Access::Owner).unwrap();
        let error = create_new(&path, b"second", Access::Owner).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn an_abandoned_file_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = DurableFile::create(&folder.path().join("x"), Access::Owner).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_leftover_of_a_crash_does_not_hinder_the_next_writer() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x.tmp"), b"left by a crash, and longer").unwrap();
        replace(&folder.path().join("x"), b"new", Access::Everyone).unwrap();
        assert_eq!(std::fs::read(folder.path().join("x")).unwrap(), b"new");
    }

    #[test]
    fn folders_are_made_with_those_above_and_kept_private() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("a/b/c");
        create_folders(&deep).unwrap();
        create_folders(&deep).unwrap();
        assert_eq!(std::fs::metadata(&deep).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_folder_has_one_holder_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let held = FolderLock::take(folder.path()).unwrap();
        assert_eq!(FolderLock::take(folder.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        FolderLock::take(folder.path()).unwrap();
    }

    #[test]
    fn removing_twice_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        replace(&path, b"x", Access::Owner).unwrap();
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }
}
