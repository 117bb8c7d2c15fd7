//! Trees: one folder each, as JSON with the field names of the format.
//!
//! | module | what it knows |
//! |---|---|
//! | [`quote`] | names as quoted strings of Go, which carry any bytes |
//! | [`time`] | times as RFC 3339 with nanoseconds |
//! | [`encode`] | writing nodes, byte for byte as the Go encoder of restic does |
//! | [`decode`] | reading them, from anybody |
//! | [`fingerprint`] | a short name for what is known of an entry |

pub mod decode;
pub mod encode;
pub mod fingerprint;
pub mod quote;
pub mod time;

use std::sync::Arc;

pub use decode::Tree;
pub use encode::TreeEncoder;
pub use fingerprint::{Fingerprint, Fingerprinter};
pub use time::FileTime;

use crate::id::BlobId;

/// The longest name of an entry, in bytes. File systems allow 255; engines make up names of their own.
pub const NAME_BYTES_MAX: usize = 4096;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeType {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// What another client could not name; kept when read, never written by us from a file system.
    Irregular,
}

/// Bits of Go's `fs.FileMode` above the nine permission bits.
pub mod go_mode {
    /// A folder.
    pub const DIRECTORY: u32 = 1 << 31;
    /// A symbolic link.
    pub const SYMLINK: u32 = 1 << 27;
    /// A device.
    pub const DEVICE: u32 = 1 << 26;
    /// A named pipe.
    pub const NAMED_PIPE: u32 = 1 << 25;
    /// A Unix socket.
    pub const SOCKET: u32 = 1 << 24;
    /// Set user id.
    pub const SETUID: u32 = 1 << 23;
    /// Set group id.
    pub const SETGID: u32 = 1 << 22;
    /// A character device; set together with `DEVICE`.
    pub const CHAR_DEVICE: u32 = 1 << 21;
    /// The sticky bit.
    pub const STICKY: u32 = 1 << 20;
    /// A file of unknown type.
    pub const IRREGULAR: u32 = 1 << 19;
}

impl NodeType {
    /// The word of the format.
    pub fn as_str(self) -> &'static str {
        match self {
            NodeType::File => "file",
            NodeType::Directory => "dir",
            NodeType::Symlink => "symlink",
            NodeType::BlockDevice => "dev",
            NodeType::CharDevice => "chardev",
            NodeType::Fifo => "fifo",
            NodeType::Socket => "socket",
            NodeType::Irregular => "irregular",
        }
    }

    /// Reads the word of the format.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "file" => NodeType::File,
            "dir" => NodeType::Directory,
            "symlink" => NodeType::Symlink,
            "dev" => NodeType::BlockDevice,
            "chardev" => NodeType::CharDevice,
            "fifo" => NodeType::Fifo,
            "socket" => NodeType::Socket,
            "irregular" => NodeType::Irregular,
            _ => return None,
        })
    }

    fn go_bits(self) -> u32 {
        match self {
            NodeType::File => 0,
            NodeType::Directory => go_mode::DIRECTORY,
            NodeType::Symlink => go_mode::SYMLINK,
            NodeType::BlockDevice => go_mode::DEVICE,
            NodeType::CharDevice => go_mode::DEVICE | go_mode::CHAR_DEVICE,
            NodeType::Fifo => go_mode::NAMED_PIPE,
            NodeType::Socket => go_mode::SOCKET,
            NodeType::Irregular => go_mode::IRREGULAR,
        }
    }
}

/// The mode of the format for Unix permission bits (`st_mode & 0o7777`) and a type.
pub fn to_go_mode(node_type: NodeType, unix: u32) -> u32 {
    let mut mode = node_type.go_bits() | (unix & 0o777);
    for (bit, go) in [(0o4000, go_mode::SETUID), (0o2000, go_mode::SETGID), (0o1000, go_mode::STICKY)] {
        if unix & bit != 0 {
            mode |= go;
        }
    }
    mode
}

/// The Unix permission bits (`st_mode & 0o7777`) in a mode of the format.
pub fn from_go_mode(go: u32) -> u32 {
    let mut unix = go & 0o777;
    for (bit, flag) in [(0o4000, go_mode::SETUID), (0o2000, go_mode::SETGID), (0o1000, go_mode::STICKY)] {
        if go & flag != 0 {
            unix |= bit;
        }
    }
    unix
}

/// What is known of an entry besides its name and content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeMetadata {
    /// Its type.
    pub node_type: NodeType,
    /// Unix permission bits with setuid, setgid and sticky: `st_mode & 0o7777`.
    pub mode: u32,
    /// Last change of content.
    pub mtime: FileTime,
    /// Last access.
    pub atime: FileTime,
    /// Last change of the inode.
    pub ctime: FileTime,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Name of the owner, when known.
    pub user: Option<Arc<str>>,
    /// Name of the group, when known.
    pub group: Option<Arc<str>>,
    /// Inode number, 0 when there is none.
    pub inode: u64,
    /// Number of the device it lies on. Stored for files with several hard links only.
    pub device_id: u64,
    /// Size of a regular file in bytes.
    pub size: u64,
    /// Hard links, 0 when not known.
    pub links: u64,
    /// Target of a symbolic link, raw bytes.
    pub link_target: Option<Vec<u8>>,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// `st_rdev` of a device.
    pub device: u64,
}

impl NodeMetadata {
    /// A regular file or folder with this mode and nothing else known.
    pub fn plain(node_type: NodeType, mode: u32, mtime: FileTime) -> Self {
        Self {
            node_type,
            mode,
            mtime,
            atime: mtime,
            ctime: mtime,
            uid: 0,
            gid: 0,
            user: None,
            group: None,
            inode: 0,
            device_id: 0,
            size: 0,
            links: 0,
            link_target: None,
            xattrs: Vec::new(),
            device: 0,
        }
    }
}

/// One entry of a folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its name: any bytes but `/` and NUL, never empty, `.` or `..`.
    pub name: Vec<u8>,
    /// What is known of it.
    pub metadata: NodeMetadata,
    /// The blobs of a regular file, in order.
    pub content: Vec<BlobId>,
    /// The tree of a folder.
    pub subtree: Option<BlobId>,
    /// What a client could not read of it.
    pub error: Option<String>,
    /// Attributes that newer clients keep for some systems; carried, not understood.
    pub generic_attributes: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Node {
    /// An entry without content.
    pub fn new(name: impl Into<Vec<u8>>, metadata: NodeMetadata) -> Self {
        Self {
            name: name.into(),
            metadata,
            content: Vec::new(),
            subtree: None,
            error: None,
            generic_attributes: None,
        }
    }
}

/// Whether bytes can be the name of an entry; what cannot is refused when read and when written.
pub fn name_is_safe(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= NAME_BYTES_MAX
        && !name.iter().any(|&byte| byte == b'/' || byte == 0)
}

#[cfg(test)]
mod tests;
