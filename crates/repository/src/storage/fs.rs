//! Objects as files in a folder, laid out as the repository format lays them out on disk.
//!
//! How an object becomes durable, in this order, each step before the next:
//!
//! ```text
//! create `.holdfast-tmp-…` beside the final name (mode 0600, new)
//! write all bytes ─▶ fsync the file ─▶ rename without replacing ─▶ fsync the folder ─▶ Ok
//! ```
//!
//! A crash before the rename leaves a temporary file that no list shows; a crash after it leaves the whole object.
//! An `fsync` that failed is never tried again: the kernel may have dropped the pages it could not write, and a
//! second call would then report success for bytes that are gone. The file is removed and the caller starts over.

mod temporary;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::{
    CreateOnly, OBJECT_BYTES_MAX, ObjectList, ObjectStore, ObjectUpload, StorageError, StorageErrorKind,
    StorageProbe,
};
use crate::format::{ObjectKind, ObjectName};
use temporary::{TEMPORARY_PREFIX, Temporary};

/// Temporary files older than this were left by a writer that died.
const STALE_AFTER: Duration = Duration::from_secs(24 * 3600);

/// A storage in a folder of a local or mounted file system.
///
/// The folder itself must exist: when it is missing (a disk that is not mounted), every call answers `Unreachable`
/// and nothing is written to the disk below it. Folders inside it are made on demand with mode 0700.
#[derive(Debug, Clone)]
pub struct FsStore {
    root: PathBuf,
}

impl FsStore {
    /// A storage in this folder. Touches nothing yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A storage in this folder, which is made (mode 0700, with its parents) if it does not exist.
    ///
    /// # Errors
    /// `Denied`, `Full` or `Other`, as the file system answers.
    pub async fn create(root: impl Into<PathBuf>) -> Result<Self, StorageError> {
        let store = Self::new(root);
        let root = store.root.clone();
        blocking(move || {
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&root)
                .map_err(StorageError::from_io)?;
            let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty());
            temporary::sync_folder(parent.unwrap_or(Path::new(".")))
        })
        .await?;
        Ok(store)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, name: &ObjectName) -> PathBuf {
        self.root.join(name.path())
    }
}

/// Runs file system calls where they may block. The closure runs to its end even when the caller goes away.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(StorageError::new(StorageErrorKind::Other).caused_by(error)),
    }
}

#[async_trait]
impl ObjectStore for FsStore {
    async fn put(&self, name: &ObjectName, data: Bytes) -> Result<(), StorageError> {
        let (root, path, object) = (self.root.clone(), self.path(name), *name);
        blocking(move || {
            let mut temporary = Temporary::create(&root, &path).map_err(|error| error.object(&object))?;
            temporary.write(&data).and_then(|()| temporary.publish()).map_err(|error| error.object(&object))
        })
        .await
    }

    async fn begin_put(&self, name: &ObjectName, length: u64) -> Result<Box<dyn ObjectUpload>, StorageError> {
        let (root, path, object) = (self.root.clone(), self.path(name), *name);
        let temporary =
            blocking(move || Temporary::create(&root, &path).map_err(|error| error.object(&object))).await?;
        Ok(Box::new(FsUpload { temporary: Some(temporary), name: *name, length, written: 0 }))
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        let (store, name) = (self.clone(), *name);
        blocking(move || {
            let (file, size) = store.open(&name)?;
            if size > OBJECT_BYTES_MAX {
                return Err(StorageError::new(StorageErrorKind::Damaged)
                    .object(&name)
                    .detail(format!("{size} bytes are more than an object may have")));
            }
            read_exactly(file, size).map_err(|error| error.object(&name))
        })
        .await
    }

    async fn get_range(&self, name: &ObjectName, offset: u64, length: u64) -> Result<Bytes, StorageError> {
        let (store, name) = (self.clone(), *name);
        blocking(move || {
            let (mut file, size) = store.open(&name)?;
            check_range(size, offset, length).map_err(|error| error.object(&name))?;
            file.seek(SeekFrom::Start(offset)).map_err(|error| StorageError::from_io(error).object(&name))?;
            read_exactly(file, length).map_err(|error| error.object(&name))
        })
        .await
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StorageError> {
        let (store, name) = (self.clone(), *name);
        blocking(move || store.open(&name).map(|(_, size)| size)).await
    }

    async fn list(&self, kind: ObjectKind) -> Result<ObjectList<'_>, StorageError> {
        let root = self.root.clone();
        let folders = blocking(move || folders_of(&root, kind)).await?;
        let listed = stream::iter(folders)
            .then(move |folder| {
                let root = self.root.clone();
                blocking(move || list_folder(&root, &folder, kind))
            })
            .flat_map(|listed| match listed {
                Ok(objects) => stream::iter(objects.into_iter().map(Ok).collect::<Vec<_>>()),
                Err(error) => stream::iter(vec![Err(error)]),
            });
        Ok(listed.boxed())
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        let (store, name) = (self.clone(), *name);
        blocking(move || {
            let path = store.path(&name);
            std::fs::remove_file(&path).map_err(|error| store.explain(error, &name))?;
            temporary::sync_folder(folder_of(&path)).map_err(|error| error.object(&name))?;
            if name.kind() == ObjectKind::Trash {
                // The folder of a moment in the trash goes with its last pack; it refuses while there are others.
                let _ = std::fs::remove_dir(folder_of(&path));
            }
            Ok(())
        })
        .await
    }

    async fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<(), StorageError> {
        let (store, from, to) = (self.clone(), *from, *to);
        blocking(move || {
            let (old, new) = (store.path(&from), store.path(&to));
            // Whether it is there comes first: a folder must not be made for nothing.
            std::fs::symlink_metadata(&old).map_err(|error| store.explain(error, &from))?;
            temporary::rename(&store.root, &old, &new).map_err(|error| error.object(&from))
        })
        .await
    }

    async fn probe(&self) -> Result<StorageProbe, StorageError> {
        let root = self.root.clone();
        blocking(move || probe(&root)).await
    }
}

impl FsStore {
    /// Opens an object for reading and tells its size. Only a regular file is an object: a symbolic link is not
    /// followed, and a pipe or device does not block the call.
    fn open(&self, name: &ObjectName) -> Result<(File, u64), StorageError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file: File = rustix::fs::openat(CWD, self.path(name), flags, Mode::empty())
            .map_err(|errno| self.explain(errno.into(), name))?
            .into();
        let metadata = file.metadata().map_err(|error| StorageError::from_io(error).object(name))?;
        if !metadata.is_file() {
            return Err(StorageError::new(StorageErrorKind::Damaged)
                .object(name)
                .detail("it is not a regular file"));
        }
        Ok((file, metadata.len()))
    }

    /// "Not found" means one thing inside a folder that is there, and another when the folder itself is gone.
    fn explain(&self, error: io::Error, name: &ObjectName) -> StorageError {
        let error = StorageError::from_io(error).object(name);
        if error.kind() == StorageErrorKind::NotFound && !self.root.is_dir() {
            return root_missing(&self.root).object(name);
        }
        error
    }
}

fn root_missing(root: &Path) -> StorageError {
    StorageError::new(StorageErrorKind::Unreachable)
        .detail(format!("the folder {} does not exist", root.display()))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().expect("an object's path has the root before it")
}

fn check_range(size: u64, offset: u64, length: u64) -> Result<(), StorageError> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        _ => Err(StorageError::new(StorageErrorKind::Damaged)
            .detail(format!("it has {size} bytes, {length} from {offset} on were wanted"))),
    }
}

fn read_exactly(file: File, length: u64) -> Result<Bytes, StorageError> {
    let capacity = usize::try_from(length)
        .map_err(|error| StorageError::new(StorageErrorKind::Other).caused_by(error))?;
    let mut data = Vec::with_capacity(capacity);
    let read = file.take(length).read_to_end(&mut data).map_err(read_failed)?;
    if read < capacity {
        return Err(StorageError::new(StorageErrorKind::Damaged)
            .detail(format!("it ended after {read} of {length} bytes")));
    }
    Ok(Bytes::from(data))
}

/// A medium that has lost the bytes of one object says so when they are read, and has the others still.
fn read_failed(error: io::Error) -> StorageError {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::IO | Errno::UCLEAN | Errno::BADMSG) => StorageError::new(StorageErrorKind::Damaged)
            .detail(format!("reading it failed: {error}"))
            .caused_by(error),
        _ => StorageError::from_io(error),
    }
}

/// The folders that may hold objects of a kind. Packs lie in folders named by the first two digits of their id, those in
/// the trash in folders named by when they were put there.
fn folders_of(root: &Path, kind: ObjectKind) -> Result<Vec<PathBuf>, StorageError> {
    if !root.is_dir() {
        return Err(root_missing(root));
    }
    let folder = root.join(kind.folder());
    if !matches!(kind, ObjectKind::Pack | ObjectKind::Trash) {
        return Ok(vec![folder]);
    }
    let mut folders = Vec::new();
    for entry in read_folder(&folder)? {
        let entry = entry.map_err(StorageError::from_io)?;
        if entry.file_type().is_ok_and(|file_type| file_type.is_dir()) {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

/// The objects of a kind in one folder. Whatever is not named like one, or lies in the wrong folder, is not one.
fn list_folder(root: &Path, folder: &Path, kind: ObjectKind) -> Result<Vec<(ObjectName, u64)>, StorageError> {
    let inner = folder.strip_prefix(root).expect("the folders of a kind lie in the root");
    let mut objects = Vec::new();
    for entry in read_folder(folder)? {
        let entry = entry.map_err(StorageError::from_io)?;
        let path = inner.join(entry.file_name());
        let Some(name) = path.to_str().and_then(ObjectName::parse).filter(|name| name.kind() == kind) else {
            continue;
        };
        match entry.metadata() {
            Ok(metadata) if metadata.is_file() => objects.push((name, metadata.len())),
            Ok(_) => {}
            // It was deleted since the folder was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StorageError::from_io(error).object(&name)),
        }
    }
    Ok(objects)
}

/// The entries of a folder; none when it does not exist, as a folder is made with its first object.
fn read_folder(
    folder: &Path,
) -> Result<Box<dyn Iterator<Item = io::Result<std::fs::DirEntry>>>, StorageError> {
    match std::fs::read_dir(folder) {
        Ok(entries) => Ok(Box::new(entries)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Box::new(std::iter::empty())),
        Err(error) => Err(StorageError::from_io(error)),
    }
}

fn probe(root: &Path) -> Result<StorageProbe, StorageError> {
    if !root.is_dir() {
        return Err(root_missing(root));
    }
    let path = root.join(format!("{TEMPORARY_PREFIX}probe-{:016x}", rand::random::<u64>()));
    let started = Instant::now();
    let mut first = Temporary::create(root, &path)?;
    first.write(b"holdfast probe")?;
    first.publish()?;
    let write_latency = started.elapsed();
    let outcome = probe_written(root, &path, write_latency);
    std::fs::remove_file(&path).map_err(StorageError::from_io)?;
    outcome
}

/// The part of the probe that needs the small file it wrote, which is removed afterwards in any case.
fn probe_written(root: &Path, path: &Path, write_latency: Duration) -> Result<StorageProbe, StorageError> {
    let started = Instant::now();
    // The file system's own clock says what "now" is: on a network file system it is not the clock of this host.
    let now = std::fs::metadata(path).map_err(StorageError::from_io)?.mtime();
    std::fs::read(path).map_err(StorageError::from_io)?;
    let read_latency = started.elapsed();

    let mut second = Temporary::create_beside(path)?;
    second.write(b"must not replace")?;
    let create_only = match second.publish() {
        Ok(()) => CreateOnly::AskedBefore,
        Err(error) if error.kind() == StorageErrorKind::AlreadyExists => CreateOnly::Kept,
        Err(error) => return Err(error),
    };
    let statistics = rustix::fs::statvfs(root).map_err(|errno| StorageError::from_io(errno.into()))?;
    let (stale_temporary_files, stale_temporary_bytes) = count_stale(root, now)?;
    Ok(StorageProbe {
        free_bytes: Some(statistics.f_bavail.saturating_mul(statistics.f_frsize)),
        total_bytes: Some(statistics.f_blocks.saturating_mul(statistics.f_frsize)),
        create_only,
        write_latency,
        read_latency,
        stale_temporary_files,
        stale_temporary_bytes,
    })
}

fn count_stale(root: &Path, now_seconds: i64) -> Result<(u64, u64), StorageError> {
    let mut found = (0, 0);
    let mut folders = vec![root.to_owned()];
    for kind in ObjectKind::ALL {
        folders.extend(folders_of(root, kind)?);
    }
    folders.sort();
    folders.dedup();
    for folder in folders {
        for entry in read_folder(&folder)? {
            let entry = entry.map_err(StorageError::from_io)?;
            if !entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
                continue;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            if now_seconds.saturating_sub(metadata.mtime()) > STALE_AFTER.as_secs().cast_signed() {
                found.0 += 1;
                found.1 += metadata.len();
            }
        }
    }
    Ok(found)
}

/// An upload that goes straight to a temporary file.
struct FsUpload {
    /// Taken while a blocking call uses it; gone for good after an error, which removes the file.
    temporary: Option<Temporary>,
    name: ObjectName,
    length: u64,
    written: u64,
}

impl FsUpload {
    fn take(&mut self) -> Result<Temporary, StorageError> {
        self.temporary.take().ok_or_else(|| {
            StorageError::new(StorageErrorKind::Other).object(&self.name).detail("the upload failed before")
        })
    }

    fn wrong_length(&self) -> StorageError {
        StorageError::new(StorageErrorKind::Damaged)
            .object(&self.name)
            .detail(format!("{} bytes came, {} were announced", self.written, self.length))
    }
}

#[async_trait]
impl ObjectUpload for FsUpload {
    async fn write(&mut self, data: Bytes) -> Result<(), StorageError> {
        let mut temporary = self.take()?;
        self.written += data.len() as u64;
        if self.written > self.length {
            return Err(self.wrong_length());
        }
        let written = blocking(move || temporary.write(&data).map(|()| temporary)).await;
        self.temporary = Some(written.map_err(|error| error.object(&self.name))?);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<(), StorageError> {
        let temporary = self.take()?;
        if self.written != self.length {
            return Err(self.wrong_length());
        }
        blocking(move || temporary.publish()).await.map_err(|error| error.object(&self.name))
    }
}

#[cfg(test)]
mod tests;
