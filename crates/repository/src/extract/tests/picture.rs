//! What a folder holds, for comparing two of them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::id::BlobId;
use crate::storage::conformance::noise;

/// All that is compared of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    size: u64,
    content: Option<BlobId>,
    link: Option<Vec<u8>>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first path with the same inode.
    same_file_as: Option<Vec<u8>>,
}

/// Everything below a folder, by its path within.
pub(crate) fn of(folder: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut seen = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    collect(folder, folder, &mut seen, &mut inodes);
    seen
}

fn collect(
    root: &Path,
    folder: &Path,
    seen: &mut BTreeMap<Vec<u8>, Seen>,
    inodes: &mut BTreeMap<u64, Vec<u8>>,
) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let inner = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let metadata = path.symlink_metadata().unwrap();
        let file_type = metadata.file_type();
        let kind = match () {
            () if file_type.is_dir() => "folder",
            () if file_type.is_symlink() => "link",
            () if file_type.is_fifo() => "fifo",
            () => "file",
        };
        let mut xattrs: Vec<_> = xattr::list(&path)
            .unwrap()
            .map(|name| (name.as_bytes().to_vec(), xattr::get(&path, &name).unwrap().unwrap_or_default()))
            .collect();
        xattrs.sort();
        let same_file_as = match kind {
            "file" if metadata.nlink() > 1 => {
                Some(inodes.entry(metadata.ino()).or_insert_with(|| inner.clone()).clone())
            }
            _ => None,
        };
        seen.insert(
            inner,
            Seen {
                kind,
                mode: if kind == "link" { 0 } else { metadata.permissions().mode() & 0o7777 },
                owner: (metadata.uid(), metadata.gid()),
                mtime: (metadata.mtime(), metadata.mtime_nsec()),
                size: if kind == "file" { metadata.len() } else { 0 },
                content: (kind == "file").then(|| BlobId::of(&std::fs::read(&path).unwrap())),
                link: (kind == "link")
                    .then(|| std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()),
                xattrs,
                same_file_as,
            },
        );
        if kind == "folder" {
            collect(root, &path, seen, inodes);
        }
    }
}

/// Names the first entries that differ.
#[track_caller]
pub(crate) fn assert_same(expected: &Path, found: &Path) {
    let (expected, found) = (of(expected), of(found));
    let names: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let differing: Vec<String> = names
        .into_iter()
        .filter(|name| expected.get(*name) != found.get(*name))
        .map(|name| {
            let name_text = String::from_utf8_lossy(name);
            format!("{name_text:?}\n  expected {:?}\n  found    {:?}", expected.get(name), found.get(name))
        })
        .collect();
    assert!(
        differing.is_empty(),
        "{} differ: {}",
        differing.len(),
        differing[..differing.len().min(3)].join("\n")
    );
}

fn write(path: &Path, content: &[u8], mode: u32) {
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A folder with one of everything that can be restored.
pub(crate) fn make_everything(folder: &Path) {
    let root = rustix::process::geteuid().is_root();
    for inner in ["a/b/c", "empty folder", "ünïcode/日本", "many"] {
        std::fs::create_dir_all(folder.join(inner)).unwrap();
    }
    write(&folder.join("a/empty"), b"", 0o600);
    write(&folder.join("a/one"), b"1", 0o644);
    write(&folder.join("a/b/run"), b"#!/bin/sh\n", 0o755);
    write(&folder.join("a/b/c/big"), &noise(9_000_017, 1), 0o640);
    write(&folder.join("a/read only"), b"read only", 0o400);
    for (name, n) in
        [("-rf", 1), ("with\nnewline", 2), ("quo\"te'\\", 3), (" leading", 4), ("*?[", 5), ("日本/ß", 6)]
    {
        write(&folder.join("ünïcode").join(name), &[n], 0o644);
    }
    write(&folder.join(OsStr::from_bytes(b"inv\xff\xfealid")), b"not utf-8", 0o644);
    write(&folder.join("n".repeat(255)), b"longest", 0o644);
    for n in 0..300u64 {
        write(&folder.join(format!("many/{n}")), &noise(n as usize * 7, n), 0o644);
    }
    write(&folder.join("twin 1"), b"the same content in two files", 0o644);
    write(&folder.join("twin 2"), b"the same content in two files", 0o600);
    // A file with large holes in the middle and at its end.
    let sparse = std::fs::File::create(folder.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &noise(5000, 3), 40_000_000).unwrap();
    sparse.set_len(70_000_000).unwrap();
    std::fs::hard_link(folder.join("a/one"), folder.join("one again")).unwrap();
    std::fs::hard_link(folder.join("a/one"), folder.join("a/b/and again")).unwrap();
    std::os::unix::fs::symlink("a/one", folder.join("link")).unwrap();
    std::os::unix::fs::symlink("/nowhere/at all", folder.join("dangling")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, folder.join("pipe"), rustix::fs::Mode::from_raw_mode(0o620))
        .unwrap();
    xattr::set(folder.join("twin 1"), "user.colour", b"blue\0green").unwrap();
    xattr::set(folder.join("a/b"), "user.folder", b"").unwrap();
    if root {
        std::os::unix::fs::chown(folder.join("a/b/run"), Some(1234), Some(5678)).unwrap();
        std::os::unix::fs::lchown(folder.join("link"), Some(1), Some(2)).unwrap();
        write(&folder.join("setuid"), b"x", 0o644);
        std::fs::set_permissions(folder.join("setuid"), std::fs::Permissions::from_mode(0o6755)).unwrap();
    }
    std::fs::set_permissions(folder.join("empty folder"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    std::fs::set_permissions(folder.join("a/b"), std::fs::Permissions::from_mode(0o500)).unwrap();
    // Times before the epoch, with nanoseconds, and of a folder whose content is younger.
    for (path, time) in [
        ("a/one", "1969-12-31 23:59:58.5"),
        ("many", "2001-02-03 04:05:06.789012345"),
        ("link", "2010-01-01"),
    ] {
        let done =
            Command::new("touch").args(["-h", "-d", time, "--"]).arg(folder.join(path)).status().unwrap();
        assert!(done.success());
    }
}
