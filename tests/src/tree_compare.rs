//! Whether two trees are the same, down to links, times and attributes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How many differences a failure shows.
const SHOWN_MAX: usize = 20;

/// One way in which an entry differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The entry, relative to both roots.
    pub path: PathBuf,
    /// What differs, with both values.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.path, self.what)
    }
}

/// Makes sure that two trees hold the same entries with the same content, kind, mode, owner, modification time,
/// extended attributes, symbolic and hard links. The roots themselves are not compared, only what is in them.
///
/// # Panics
/// When they differ; shows the first differences.
pub fn assert_same_tree(expected: &Path, actual: &Path) {
    let differences = compare_trees(expected, actual);
    if differences.is_empty() {
        return;
    }
    let shown: Vec<String> = differences.iter().take(SHOWN_MAX).map(Difference::to_string).collect();
    panic!(
        "{} and {} differ in {} ways:\n{}",
        expected.display(),
        actual.display(),
        differences.len(),
        shown.join("\n")
    );
}

/// Every difference between two trees, in the order of paths.
///
/// # Panics
/// When a tree cannot be read.
pub fn compare_trees(expected: &Path, actual: &Path) -> Vec<Difference> {
    let (left, right) = (Tree::read(expected), Tree::read(actual));
    let mut differences = Vec::new();
    let paths: BTreeSet<&PathBuf> = left.entries.keys().chain(right.entries.keys()).collect();
    for path in paths {
        let mut found = Vec::new();
        match (left.entries.get(path), right.entries.get(path)) {
            (Some(a), Some(b)) => {
                compare_entries(a, b, &mut found);
                if found.is_empty() && a.kind == "file" {
                    compare_content(&expected.join(path), &actual.join(path), &mut found);
                }
                if left.twin(path) != right.twin(path) {
                    found.push(format!("hard link of {:?}, not of {:?}", right.twin(path), left.twin(path)));
                }
            }
            (Some(a), None) => found.push(format!("missing ({})", a.kind)),
            (None, Some(b)) => found.push(format!("not expected ({})", b.kind)),
            (None, None) => unreachable!("every path comes from one of the trees"),
        }
        differences.extend(found.into_iter().map(|what| Difference { path: path.clone(), what }));
    }
    differences
}

/// Bytes that the files of a tree take on disk; holes take none. Hard links count once.
///
/// # Panics
/// When the tree cannot be read.
pub fn allocated_bytes(root: &Path) -> u64 {
    let tree = Tree::read(root);
    tree.entries
        .iter()
        .filter(|(path, _)| tree.twin(path).is_none_or(|first| first == *path))
        .map(|(_, e)| e.allocated)
        .sum()
}

#[derive(Debug)]
struct Entry {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    size: u64,
    device: u64,
    allocated: u64,
    inode: Option<(u64, u64)>,
    link_target: Option<PathBuf>,
    attributes: BTreeMap<OsString, Vec<u8>>,
}

struct Tree {
    entries: BTreeMap<PathBuf, Entry>,
    /// The first path, in order, of each inode that has several.
    first_of_inode: BTreeMap<(u64, u64), PathBuf>,
}

impl Tree {
    fn read(root: &Path) -> Self {
        let mut tree = Self { entries: BTreeMap::new(), first_of_inode: BTreeMap::new() };
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            let absolute = root.join(&folder);
            let names =
                fs::read_dir(&absolute).unwrap_or_else(|error| panic!("{}: {error}", absolute.display()));
            for name in names {
                let path = folder.join(name.expect("a folder can be read").file_name());
                let entry = Entry::read(&root.join(&path));
                if entry.kind == "folder" {
                    folders.push(path.clone());
                }
                tree.entries.insert(path, entry);
            }
        }
        for (path, entry) in &tree.entries {
            if let Some(inode) = entry.inode {
                tree.first_of_inode.entry(inode).or_insert_with(|| path.clone());
            }
        }
        tree
    }

    /// The first path that shares the inode of this one, if any does.
    fn twin(&self, path: &Path) -> Option<&PathBuf> {
        self.entries.get(path)?.inode.and_then(|inode| self.first_of_inode.get(&inode))
    }
}

impl Entry {
    fn read(path: &Path) -> Self {
        let metadata =
            fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let kind = metadata.file_type();
        let kind = match () {
            () if kind.is_file() => "file",
            () if kind.is_dir() => "folder",
            () if kind.is_symlink() => "symbolic link",
            () if kind.is_fifo() => "pipe",
            () if kind.is_socket() => "socket",
            () if kind.is_char_device() => "character device",
            () => "block device",
        };
        // The size of a folder is the file system's affair.
        let size = if kind == "file" { metadata.size() } else { 0 };
        let device = if kind.ends_with("device") { metadata.rdev() } else { 0 };
        Self {
            kind,
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size,
            device,
            allocated: if kind == "file" { metadata.blocks() * 512 } else { 0 },
            inode: (kind == "file" && metadata.nlink() > 1).then(|| (metadata.dev(), metadata.ino())),
            link_target: (kind == "symbolic link").then(|| fs::read_link(path).expect("a link can be read")),
            attributes: attributes(path),
        }
    }
}

fn attributes(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let Ok(names) = xattr::list(path) else { return BTreeMap::new() };
    names.filter_map(|name| xattr::get(path, &name).ok().flatten().map(|value| (name, value))).collect()
}

fn compare_entries(a: &Entry, b: &Entry, found: &mut Vec<String>) {
    let mut note =
        |what: &str, a: &dyn fmt::Debug, b: &dyn fmt::Debug| found.push(format!("{what} {b:?}, not {a:?}"));
    if a.kind != b.kind {
        return note("kind", &a.kind, &b.kind);
    }
    if a.mode != b.mode {
        note("mode", &format_args!("{:o}", a.mode), &format_args!("{:o}", b.mode));
    }
    if a.owner != b.owner {
        note("owner", &a.owner, &b.owner);
    }
    if a.modified != b.modified {
        note("modified", &a.modified, &b.modified);
    }
    if a.size != b.size {
        note("size", &a.size, &b.size);
    }
    if a.device != b.device {
        note("device", &a.device, &b.device);
    }
    if a.link_target != b.link_target {
        note("target", &a.link_target, &b.link_target);
    }
    if a.attributes != b.attributes {
        note("attributes", &a.attributes, &b.attributes);
    }
}

fn compare_content(a: &Path, b: &Path, found: &mut Vec<String>) {
    let open = |path: &Path| {
        BufReader::with_capacity(
            256 * 1024,
            File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        )
    };
    let (mut left, mut right) = (open(a).bytes(), open(b).bytes());
    let mut offset = 0_u64;
    loop {
        let pair = (left.next().transpose(), right.next().transpose());
        match (pair.0.expect("a file can be read"), pair.1.expect("a file can be read")) {
            (None, None) => return,
            (x, y) if x == y => offset += 1,
            _ => return found.push(format!("content differs at byte {offset}")),
        }
    }
}
