//! The target folder, and the rule that nothing leaves it.
//!
//! Every path is resolved by the kernel beneath the target's descriptor with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
//! RESOLVE_NO_MAGICLINKS`: whatever stands in the way (a symbolic link that was restored, or put there by somebody
//! else meanwhile) ends the call with an error instead of leading elsewhere.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::{Delta, ExtractError};

/// Paths longer than this are resolved step by step, as the kernel takes 4096 bytes at once.
const PATH_BYTES_AT_ONCE: usize = 4000;
/// Descriptors of folders that a thread keeps open.
const FOLDERS_OPEN: usize = 32;

/// A folder of the target.
#[derive(Debug)]
pub(super) struct Folder {
    /// Tells folders apart within one restore.
    pub(super) id: u64,
    /// Its path within the target; empty for the target itself.
    pub(super) path: Vec<u8>,
}

impl Folder {
    /// The path of an entry of this folder.
    pub(super) fn join(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [&self.path, b"/".as_slice(), name].concat() }
    }
}

/// The target of a restore.
#[derive(Debug)]
pub(super) struct Target {
    root: OwnedFd,
    /// Where what makes way is kept; without one it is removed.
    kept: Option<OwnedFd>,
}

impl Target {
    /// Opens the target, or makes it.
    pub(super) fn prepare(path: &Path, delta: Option<&Delta>) -> Result<Self, ExtractError> {
        let may_have_content = delta.is_some();
        let failed = |source| ExtractError::target("prepare", b"", source);
        match std::fs::read_dir(path) {
            Ok(mut entries) => {
                if !may_have_content && entries.next().is_some() {
                    return Err(ExtractError::TargetExists(path.to_owned()));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if let Some(parent) = path.parent() {
                    std::fs::create_dir_all(parent).map_err(failed)?;
                }
                std::fs::DirBuilder::new().mode(0o700).create(path).map_err(failed)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
                return Err(ExtractError::TargetExists(path.to_owned()));
            }
            Err(error) => return Err(failed(error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &Path| {
            rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))
        };
        let kept = match delta {
            Some(Delta::Keep(kept)) => {
                std::fs::DirBuilder::new().mode(0o700).create(kept).map_err(failed)?;
                Some(open(kept)?)
            }
            Some(Delta::Remove) | None => None,
        };
        Ok(Self { root: open(path)?, kept })
    }

    /// Whether what makes way is kept.
    pub(super) fn keeps(&self) -> bool {
        self.kept.is_some()
    }

    /// Makes way for what is to be restored: whatever is under a name of a folder is kept, or removed with all that is
    /// in it. Follows nothing.
    pub(super) fn make_way(
        &self,
        within: BorrowedFd<'_>,
        folder: &Folder,
        name: &[u8],
    ) -> std::io::Result<()> {
        let Some(kept) = &self.kept else { return remove(within, name) };
        let step_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut place = rustix::fs::openat(kept, c".", step_flags, Mode::empty())?;
        for part in folder.path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
            match rustix::fs::mkdirat(&place, part, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            place = rustix::fs::openat(&place, part, step_flags, Mode::empty())?;
        }
        match rustix::fs::renameat_with(within, name, &place, name, RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Opens a folder beneath the target.
    pub(super) fn open_folder(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let whole = if path.is_empty() { b".".as_slice() } else { path };
        if whole.len() <= PATH_BYTES_AT_ONCE {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            match rustix::fs::openat2(&self.root, whole, flags, Mode::empty(), resolve) {
                // Kernels before 5.6, and sandboxes that do not know the call.
                Err(Errno::NOSYS | Errno::PERM) => {}
                result => return result,
            }
        }
        self.open_by_steps(path, flags)
    }

    /// One part at a time, none of which may be a symbolic link or lead upwards.
    fn open_by_steps(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let step_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut folder = rustix::fs::openat(&self.root, c".", step_flags, Mode::empty())?;
        for part in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
            if part == b".." {
                return Err(Errno::XDEV);
            }
            folder = rustix::fs::openat(&folder, part, step_flags, Mode::empty())?;
        }
        rustix::fs::openat(&folder, c".", flags, Mode::empty())
    }

    /// Waits until the file system of the target has written everything.
    pub(super) fn sync(&self) -> Result<(), ExtractError> {
        // What is kept lies on the same file system: it was renamed.
        rustix::fs::syncfs(&self.root).map_err(|errno| ExtractError::target("make durable", b"", errno))
    }
}

/// Folders that one thread has open. Most entries lie in the folder of the one before.
pub(super) struct FolderCache<'t> {
    target: &'t Target,
    open: VecDeque<(u64, OwnedFd)>,
}

impl<'t> FolderCache<'t> {
    pub(super) fn new(target: &'t Target) -> Self {
        Self { target, open: VecDeque::with_capacity(FOLDERS_OPEN) }
    }

    /// The target that the folders lie in.
    pub(super) fn target(&self) -> &'t Target {
        self.target
    }

    /// The descriptor of a folder, as a place to make and open things in.
    pub(super) fn get(&mut self, folder: &Folder) -> Result<BorrowedFd<'_>, ExtractError> {
        if let Some(found) = self.open.iter().position(|(id, _)| *id == folder.id) {
            self.open.swap(0, found);
        } else {
            let opened = self.target.open_folder(&folder.path, OFlags::PATH);
            let opened =
                opened.map_err(|errno| ExtractError::target("open the folder", &folder.path, errno))?;
            if self.open.len() == FOLDERS_OPEN {
                self.open.pop_back();
            }
            self.open.push_front((folder.id, opened));
        }
        Ok(self.open[0].1.as_fd())
    }
}

/// What is there under a name, without following it.
pub(super) fn stat(folder: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Option<Stat>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The type of what [`stat`] found.
pub(super) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The path by which calls that take no descriptor reach an entry of an open folder. Its last part is not followed by
/// the calls that use it.
pub(super) fn path_through(folder: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    path.push(std::ffi::OsStr::from_bytes(name));
    path
}

/// Removes whatever is under a name, with all that is in it, without following anything.
fn remove(folder: BorrowedFd<'_>, name: &[u8]) -> std::io::Result<()> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => std::fs::remove_dir_all(path_through(folder, name)),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_resolved_outside_the_target() {
        let outside = tempfile::tempdir().unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("real/inner")).unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("out")).unwrap();
        std::os::unix::fs::symlink("real", folder.path().join("in")).unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("real/out")).unwrap();
        let target = Target::prepare(folder.path(), Some(&Delta::Remove)).unwrap();
        for path in ["..", "out", "in", "real/out", "real/../..", "/", "/etc", "real/inner/../../.."] {
            assert!(target.open_folder(path.as_bytes(), OFlags::PATH).is_err(), "{path} was opened");
            let relative = path.trim_start_matches('/');
            if !relative.is_empty() {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                assert!(
                    target.open_by_steps(relative.as_bytes(), flags).is_err(),
                    "{path} was opened by steps"
                );
            }
        }
        for path in ["", "real", "real/inner"] {
            assert!(target.open_folder(path.as_bytes(), OFlags::RDONLY).is_ok(), "{path}");
            assert!(
                target.open_by_steps(path.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY).is_ok(),
                "{path}"
            );
        }
    }

    #[test]
    fn a_target_with_content_is_refused_unless_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Target::prepare(folder.path(), None).is_ok());
        assert!(Target::prepare(&folder.path().join("new/inner"), None).is_ok());
        let error = Target::prepare(folder.path(), None).unwrap_err();
        assert_eq!(error.code().to_string(), "HF-2012");
        assert!(Target::prepare(folder.path(), Some(&Delta::Remove)).is_ok());
        std::fs::write(folder.path().join("file"), b"").unwrap();
        assert_eq!(
            Target::prepare(&folder.path().join("file"), Some(&Delta::Remove))
                .unwrap_err()
                .code()
                .to_string(),
            "HF-2012"
        );
    }

    #[test]
    fn removing_a_link_leaves_what_it_points_to() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("canary"), b"alive").unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("dir/inner")).unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("dir/inner/link")).unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("link")).unwrap();
        let target = Target::prepare(folder.path(), Some(&Delta::Remove)).unwrap();
        for name in ["link", "dir", "absent"] {
            remove(target.root.as_fd(), name.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(std::fs::read(outside.path().join("canary")).unwrap(), b"alive");
    }
}
