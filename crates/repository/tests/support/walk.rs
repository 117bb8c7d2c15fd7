//! A plain walk through a tree of this host, for tests and the example. The engine for files does more.

use std::fs::{DirEntry, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use holdfast_repository::tree::{FileTime, NodeMetadata, NodeType};
use holdfast_repository::write::{WriteContent, WriteEntry};

/// Hands over every entry below `root`, a folder before what is in it, siblings in the order of their raw bytes.
pub(crate) fn walk(root: &Path, mut take: impl FnMut(WriteEntry)) -> io::Result<()> {
    // Folders to be read, with their paths in the snapshot; the last is next.
    let mut levels: Vec<(Vec<u8>, std::vec::IntoIter<DirEntry>)> = vec![(Vec::new(), sorted(root)?)];
    while let Some((above, entries)) = levels.last_mut() {
        let Some(entry) = entries.next() else {
            levels.pop();
            continue;
        };
        let mut path = above.clone();
        path.extend_from_slice(entry.file_name().as_bytes());
        let file = entry.path();
        let metadata = describe(&file, &std::fs::symlink_metadata(&file)?)?;
        let folder = metadata.node_type == NodeType::Directory;
        let content = match metadata.node_type {
            NodeType::File => WriteContent::File(file.clone()),
            _ => WriteContent::None,
        };
        take(WriteEntry { path: path.clone(), metadata, content });
        if folder {
            path.push(b'/');
            levels.push((path, sorted(&file)?));
        }
    }
    Ok(())
}

fn sorted(folder: &Path) -> io::Result<std::vec::IntoIter<DirEntry>> {
    let mut entries = std::fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_cached_key(|entry| entry.file_name().into_vec());
    Ok(entries.into_iter())
}

fn describe(path: &Path, metadata: &Metadata) -> io::Result<NodeMetadata> {
    let file_type = metadata.file_type();
    let node_type = if file_type.is_dir() {
        NodeType::Directory
    } else if file_type.is_symlink() {
        NodeType::Symlink
    } else if file_type.is_fifo() {
        NodeType::Fifo
    } else if file_type.is_socket() {
        NodeType::Socket
    } else if file_type.is_block_device() {
        NodeType::BlockDevice
    } else if file_type.is_char_device() {
        NodeType::CharDevice
    } else {
        NodeType::File
    };
    let mtime = time(metadata.mtime(), metadata.mtime_nsec());
    let mut node = NodeMetadata::plain(node_type, metadata.mode() & 0o7777, mtime);
    node.ctime = time(metadata.ctime(), metadata.ctime_nsec());
    (node.uid, node.gid) = (metadata.uid(), metadata.gid());
    (node.inode, node.device_id, node.links) = (metadata.ino(), metadata.dev(), metadata.nlink());
    match node_type {
        NodeType::File => node.size = metadata.size(),
        NodeType::Symlink => node.link_target = Some(link_target(path)?),
        NodeType::BlockDevice | NodeType::CharDevice => node.device = metadata.rdev(),
        _ => {}
    }
    if matches!(node_type, NodeType::File | NodeType::Directory) {
        for name in xattr::list(path)? {
            if let Some(value) = xattr::get(path, &name)? {
                node.xattrs.push((name.into_vec(), value));
            }
        }
        node.xattrs.sort();
    }
    Ok(node)
}

fn link_target(path: &Path) -> io::Result<Vec<u8>> {
    std::fs::read_link(path).map(PathBuf::into_os_string).map(OsStringExt::into_vec)
}

fn time(seconds: i64, nanoseconds: i64) -> FileTime {
    FileTime::new(seconds, u32::try_from(nanoseconds).unwrap_or(0))
}
