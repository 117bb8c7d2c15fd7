//! Owners, modes, attributes and times, put on what was restored.
//!
//! The order matters: changing the owner clears setuid bits, writing changes the times, and an attribute needs a file
//! that may be written. Hence owner, attributes, mode, times.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::target;
use super::{ExtractError, ExtractOptions, Tally};
use crate::tree::{FileTime, NodeMetadata, NodeType};

/// Attributes of a file take at most this much for their names.
const XATTR_NAMES_BYTES_MAX: usize = 65_536;

/// What an open file or folder had before it was restored.
#[derive(Clone, Copy)]
pub(super) enum Before<'s> {
    /// It is new.
    New,
    /// It was there and its content was changed.
    Changed,
    /// It was there, its content was right, and this was its metadata.
    Unchanged(&'s Stat),
}

/// Puts metadata on what is restored.
#[derive(Clone, Copy)]
pub(super) struct Applier<'w> {
    pub(super) options: &'w ExtractOptions,
    pub(super) tally: &'w Tally,
}

impl Applier<'_> {
    /// Puts everything on an open file or folder; what is right already is not touched.
    pub(super) fn apply_open(
        &self,
        file: BorrowedFd<'_>,
        metadata: &NodeMetadata,
        before: Before<'_>,
        path: &dyn Fn() -> Vec<u8>,
    ) -> Result<(), ExtractError> {
        let found = match before {
            Before::Unchanged(stat) => Some(stat),
            Before::New | Before::Changed => None,
        };
        if self.options.owner
            && found.is_none_or(|stat| (stat.st_uid, stat.st_gid) != (metadata.uid, metadata.gid))
        {
            let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
            rustix::fs::fchown(file, Some(uid), Some(gid))
                .map_err(|errno| ExtractError::target("change the owner of", &path(), errno))?;
        }
        if !matches!(before, Before::New) {
            self.remove_attributes(file, metadata);
        }
        for (name, value) in self.attributes(metadata) {
            if let Err(errno) = rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
                self.warn_attribute(name, errno, path);
            }
        }
        let mode = self.mode(metadata);
        if found.is_none_or(|stat| stat.st_mode & 0o7777 != mode || self.options.owner) {
            rustix::fs::fchmod(file, Mode::from_raw_mode(mode))
                .map_err(|errno| ExtractError::target("change the mode of", &path(), errno))?;
        }
        if found.is_none_or(|stat| !same_time(stat, metadata.mtime)) {
            rustix::fs::futimens(file, &times(metadata))
                .map_err(|errno| ExtractError::target("change the times of", &path(), errno))?;
        }
        Ok(())
    }

    /// Puts everything on a symbolic link or pipe, by its name in an open folder.
    pub(super) fn apply_named(
        &self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        metadata: &NodeMetadata,
        path: &dyn Fn() -> Vec<u8>,
    ) -> Result<(), ExtractError> {
        if self.options.owner {
            let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
            rustix::fs::chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| ExtractError::target("change the owner of", &path(), errno))?;
        }
        for (attribute, value) in self.attributes(metadata) {
            let file = target::path_through(folder, name);
            if let Err(errno) = rustix::fs::lsetxattr(file, attribute.as_slice(), value, XattrFlags::empty())
            {
                self.warn_attribute(attribute, errno, path);
            }
        }
        if metadata.node_type == NodeType::Fifo {
            let mode = Mode::from_raw_mode(self.mode(metadata));
            rustix::fs::chmodat(folder, name, mode, AtFlags::empty())
                .map_err(|errno| ExtractError::target("change the mode of", &path(), errno))?;
        }
        rustix::fs::utimensat(folder, name, &times(metadata), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| ExtractError::target("change the times of", &path(), errno))
    }

    /// Setuid and setgid give away what the owner may do, so they come with the owner or not at all.
    fn mode(&self, metadata: &NodeMetadata) -> u32 {
        metadata.mode & if self.options.owner { 0o7777 } else { 0o1777 }
    }

    fn attributes<'m>(&self, metadata: &'m NodeMetadata) -> impl Iterator<Item = &'m (Vec<u8>, Vec<u8>)> {
        let owner = self.options.owner;
        metadata.xattrs.iter().filter(move |(name, _)| may_set(name, owner))
    }

    /// Removes the attributes that the snapshot does not have. What cannot be listed or removed is left: attributes
    /// that security modules put on every file belong to the system.
    fn remove_attributes(&self, file: BorrowedFd<'_>, metadata: &NodeMetadata) {
        let mut names = [0; 4096];
        let mut many;
        let listed = match rustix::fs::flistxattr(file, &mut names[..]) {
            Ok(length) => &names[..length],
            Err(Errno::RANGE) => {
                many = vec![0; XATTR_NAMES_BYTES_MAX];
                let Ok(length) = rustix::fs::flistxattr(file, &mut many[..]) else { return };
                &many[..length]
            }
            Err(_) => return,
        };
        for name in listed.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            let wanted = metadata.xattrs.iter().any(|(wanted, _)| wanted == name);
            if !wanted && may_set(name, false) {
                let _ = rustix::fs::fremovexattr(file, name);
            }
        }
    }

    fn warn_attribute(&self, name: &[u8], errno: Errno, path: &dyn Fn() -> Vec<u8>) {
        let (path, name) = (path(), String::from_utf8_lossy(name));
        let path = String::from_utf8_lossy(&path);
        self.tally.warn(format!("{path:?}: the attribute {name:?} could not be set: {errno}"));
    }
}

/// Which attributes are restored: those of users and access lists always, those that speak for the system
/// (`security.*`, `trusted.*`, other `system.*`) only together with the owner.
fn may_set(name: &[u8], owner: bool) -> bool {
    owner || name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_")
}

fn times(metadata: &NodeMetadata) -> Timestamps {
    let timespec = |time: FileTime| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: timespec(metadata.atime), last_modification: timespec(metadata.mtime) }
}

fn same_time(stat: &Stat, time: FileTime) -> bool {
    (stat.st_mtime, stat.st_mtime_nsec) == (time.seconds, u64::from(time.nanoseconds))
}

/// Opens a finished folder to put its metadata on.
pub(super) fn apply_folder(
    applier: &Applier<'_>,
    target: &target::Target,
    folder: &target::Folder,
    metadata: &NodeMetadata,
) -> Result<(), ExtractError> {
    let opened = target
        .open_folder(&folder.path, rustix::fs::OFlags::RDONLY)
        .map_err(|errno| ExtractError::target("open the folder", &folder.path, errno))?;
    if applier.options.delta.is_none() {
        return applier.apply_open(opened.as_fd(), metadata, Before::New, &|| folder.path.clone());
    }
    let found = rustix::fs::fstat(&opened)
        .map_err(|errno| ExtractError::target("look at the folder", &folder.path, errno))?;
    applier.apply_open(opened.as_fd(), metadata, Before::Unchanged(&found), &|| folder.path.clone())
}
