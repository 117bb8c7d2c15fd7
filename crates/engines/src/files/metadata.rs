//! What the file system says of one entry.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FileType as RawType, Stat};
use rustix::io::Errno;

use crate::{FileTime, FileType, Metadata};

/// The longest list of attribute names, and the longest value, that Linux gives (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_BYTES_MAX: usize = 64 * 1024;

/// Names of users and groups by number, from `/etc/passwd` and `/etc/group`.
///
/// Other directories (LDAP and the like) are not asked: each question might wait for a network. A number without a
/// name is saved as a number, which is what restores it.
#[derive(Debug, Default)]
pub(crate) struct NameCache {
    users: HashMap<u32, Arc<str>>,
    groups: HashMap<u32, Arc<str>>,
}

impl NameCache {
    /// Reads both files once; one that cannot be read gives no names.
    pub(crate) fn load() -> Self {
        let load = |path| std::fs::read_to_string(path).map(|text| parse_names(&text)).unwrap_or_default();
        Self { users: load("/etc/passwd"), groups: load("/etc/group") }
    }

    pub(crate) fn user(&self, uid: u32) -> Option<Arc<str>> {
        self.users.get(&uid).cloned()
    }

    pub(crate) fn group(&self, gid: u32) -> Option<Arc<str>> {
        self.groups.get(&gid).cloned()
    }
}

/// `name:password:number:…`, one a line, in both files. The first line with a number names it.
fn parse_names(text: &str) -> HashMap<u32, Arc<str>> {
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(_), Some(Ok(number))) =
            (fields.next(), fields.next(), fields.next().map(str::parse))
        {
            names.entry(number).or_insert_with(|| Arc::from(name));
        }
    }
    names
}

/// The metadata in a `stat`, without link target and attributes. `atime` is `mtime`, as [`Metadata::atime`] promises.
pub(crate) fn from_stat(stat: &Stat, names: &NameCache) -> Metadata {
    let file_type = file_type(stat);
    let mtime = file_time(stat.st_mtime, stat.st_mtime_nsec);
    Metadata {
        file_type,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        user: names.user(stat.st_uid),
        group: names.group(stat.st_gid),
        size: if file_type == FileType::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
        mtime,
        ctime: file_time(stat.st_ctime, stat.st_ctime_nsec),
        atime: mtime,
        inode: stat.st_ino,
        device_id: stat.st_dev,
        links: link_count(stat),
        link_target: None,
        device: match file_type {
            FileType::BlockDevice | FileType::CharDevice => stat.st_rdev,
            _ => 0,
        },
        xattrs: Vec::new(),
    }
}

#[allow(clippy::useless_conversion, reason = "on other processors than x86-64 the field has 32 bits")]
fn link_count(stat: &Stat) -> u64 {
    u64::from(stat.st_nlink)
}

fn file_time(seconds: i64, nanoseconds: u64) -> FileTime {
    FileTime { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or(0) }
}

pub(crate) fn file_type(stat: &Stat) -> FileType {
    match RawType::from_raw_mode(stat.st_mode) {
        RawType::Directory => FileType::Directory,
        RawType::Symlink => FileType::Symlink,
        RawType::BlockDevice => FileType::BlockDevice,
        RawType::CharacterDevice => FileType::CharDevice,
        RawType::Fifo => FileType::Fifo,
        RawType::Socket => FileType::Socket,
        RawType::RegularFile | RawType::Unknown => FileType::File,
    }
}

/// Extended attributes, name and value.
pub(crate) type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// Reads extended attributes with buffers that are kept.
#[derive(Debug, Default)]
pub(crate) struct XattrReader {
    names: Vec<u8>,
    value: Vec<u8>,
}

impl XattrReader {
    /// The attributes of what lies at `path`, sorted by name; a symbolic link is not followed. One system call when
    /// there are none. A file system without attributes has none, and neither has a file that is gone.
    pub(crate) fn read(&mut self, path: &CStr) -> Result<Attributes, Errno> {
        if self.names.is_empty() {
            self.names.resize(XATTR_BYTES_MAX, 0);
        }
        let length = match rustix::fs::llistxattr(path, &mut self.names[..]) {
            Ok(length) => length,
            Err(Errno::OPNOTSUPP | Errno::NOENT) => 0,
            Err(error) => return Err(error),
        };
        if length == 0 {
            return Ok(Vec::new());
        }
        self.value.resize(XATTR_BYTES_MAX, 0);
        let mut attributes = Vec::new();
        for name in self.names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            let c_name = CString::new(name).expect("the list was split at its zero bytes");
            match rustix::fs::lgetxattr(path, c_name.as_c_str(), &mut self.value[..]) {
                Ok(length) => attributes.push((name.to_vec(), self.value[..length].to_vec())),
                // Removed since it was listed.
                Err(Errno::NODATA | Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        attributes.sort();
        Ok(attributes)
    }
}

/// The metadata of one path by itself, attributes included; a symbolic link is not followed.
pub(crate) fn of_path(path: &Path) -> Result<Metadata, Errno> {
    let stat = rustix::fs::lstat(path)?;
    let mut metadata = from_stat(&stat, &NameCache::load());
    let c_path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Errno::INVAL)?;
    metadata.xattrs = XattrReader::default().read(&c_path)?;
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_lines_and_the_first_one_counts() {
        let names =
            parse_names("root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:/bin/sh\n# x\nnobody:x:65534:\n");
        assert_eq!(names.get(&0).map(AsRef::as_ref), Some("root"));
        assert_eq!(names.get(&65534).map(AsRef::as_ref), Some("nobody"));
        assert_eq!(names.len(), 2);
    }
}
