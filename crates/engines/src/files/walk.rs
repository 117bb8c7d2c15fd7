//! Walks file trees depth first, siblings in the order of their raw bytes.
//!
//! Everything below a root is reached from the descriptor of the folder that it lies in and no symbolic link is
//! followed, so whoever moves folders about meanwhile cannot lead the walk elsewhere. The folders on the way *to* a
//! root may be links: that is how the path was configured.

use std::collections::VecDeque;
use std::ffi::{CStr, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_model::ErrorCode;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

use super::metadata::{NameCache, XattrReader, file_type, from_stat};
use super::patterns::Patterns;
use super::roots::{Node, Roots};
use crate::{Content, EngineError, Entry, FileType};

/// How many folders are open at once; those further up are opened again on the way back.
const OPEN_FOLDERS_MAX: usize = 64;

/// Bytes of one batch of names from the kernel.
const NAMES_BATCH_BYTES: usize = 64 * 1024;

/// What a walk yields.
pub(crate) enum Step {
    /// An entry.
    Entry(Entry),
    /// Something that could not be read: its path in the tree, and why. What surrounds it is walked all the same.
    Unreadable(Vec<u8>, String),
    /// Something that was read but for its extended attributes.
    AttributesUnreadable(Vec<u8>, String),
    /// Something that is there and not taken: its absolute path.
    LeftOut(Vec<u8>),
}

/// A walk over the roots of a source.
pub(crate) struct Walker {
    patterns: Patterns,
    one_file_system: bool,
    with_attributes: bool,
    owners: NameCache,
    attributes: XattrReader,
    batch: Vec<MaybeUninit<u8>>,
    frames: Vec<Frame>,
    /// Absolute path of the entry at hand; empty for `/`.
    path: Vec<u8>,
    /// What comes before anything else is read.
    pending: VecDeque<Step>,
}

/// A folder that is being walked.
struct Frame {
    /// Closed when the walk is deep below it.
    folder: Option<OwnedFd>,
    identity: (u64, u64),
    /// Length of its absolute path; 0 for `/`.
    path_len: usize,
    node: Option<Arc<Node>>,
    /// Which root it lies in; `None` for a folder on the way to one.
    inside: Option<Inside>,
    names: Names,
    next: usize,
}

/// The root that a folder lies in.
#[derive(Clone, Copy)]
struct Inside {
    /// Length of the absolute path of the root; 0 for `/`.
    root_len: usize,
    device: u64,
    /// Whether a folder on the way matched `include`, so that everything below is taken.
    included: bool,
}

impl Walker {
    /// A walk that has not begun. Checks that the roots are there.
    ///
    /// # Errors
    /// `HF-2010` when a root does not exist, `HF-2003` when that cannot be found out, `HF-1012` when one is a symbolic
    /// link: saving the link alone is not what anybody means.
    pub(crate) fn new(roots: &Roots, patterns: Patterns, one_file_system: bool) -> Result<Self, EngineError> {
        for root in roots.paths() {
            check_root(root)?;
        }
        let root_stat = rustix::fs::stat("/").map_err(|error| cannot_look(Path::new("/"), error))?;
        let mut walker = Self {
            patterns,
            one_file_system,
            with_attributes: true,
            owners: NameCache::load(),
            attributes: XattrReader::default(),
            batch: vec![MaybeUninit::uninit(); NAMES_BATCH_BYTES],
            frames: Vec::new(),
            path: Vec::new(),
            pending: VecDeque::new(),
        };
        let node = roots.top().clone();
        let inside =
            node.is_root.then_some(Inside { root_len: 0, device: root_stat.st_dev, included: false });
        let opened = open_folder(CWD, OsStr::new("/"), &root_stat, Some(&node), inside.is_some());
        walker.push_frame(opened, &root_stat, Some(node), inside);
        Ok(walker)
    }

    /// Leaves extended attributes out.
    pub(crate) fn without_attributes(mut self) -> Self {
        self.with_attributes = false;
        self
    }

    /// The next step, or `None` after the last.
    ///
    /// # Errors
    /// `HF-2010` or `HF-2003` when a root has gone since the walk began.
    pub(crate) fn next_step(&mut self) -> Result<Option<Step>, EngineError> {
        loop {
            if let Some(step) = self.pending.pop_front() {
                return Ok(Some(step));
            }
            let Some(frame) = self.frames.last_mut() else { return Ok(None) };
            if frame.next == frame.names.len() {
                self.ascend();
                continue;
            }
            let index = frame.next;
            frame.next += 1;
            if let Some(step) = self.visit(index)? {
                return Ok(Some(step));
            }
        }
    }

    /// Looks at one name of the folder at hand. `None` when it is not taken.
    fn visit(&mut self, index: usize) -> Result<Option<Step>, EngineError> {
        let frame = self.frames.last().expect("a name belongs to a folder");
        let name = frame.names.get(index);
        self.path.truncate(frame.path_len);
        self.path.push(b'/');
        let name_start = self.path.len();
        self.path.extend_from_slice(name);

        let node = frame.node.as_ref().and_then(|node| node.children.get(name)).cloned();
        let is_root = node.as_ref().is_some_and(|node| node.is_root);
        let is_on_the_way = node.is_some() && !is_root;
        let folder = frame.folder.as_ref().expect("the folder at hand is open");
        let name = OsStr::from_bytes(name);
        let follow = if is_on_the_way { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let stat = match rustix::fs::statat(folder, name, follow | AtFlags::NO_AUTOMOUNT) {
            Ok(stat) => stat,
            Err(error) if node.is_some() => return Err(cannot_look(self.absolute(), error)),
            // It was removed since the folder was listed: it is not part of the tree.
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Ok(Some(self.unreadable(error))),
        };
        let is_folder = file_type(&stat) == FileType::Directory;
        if is_on_the_way && !is_folder {
            return Err(cannot_look(self.absolute(), Errno::NOTDIR));
        }
        let (taken, inside) = self.judge(frame.inside, &stat, is_root);
        if !taken && node.is_none() {
            // Of a folder on the way to a root nothing but that root is meant.
            return Ok(frame.inside.is_some().then(|| Step::LeftOut(self.path.clone())));
        }
        let step = self.entry(name_start, &stat);
        if is_folder && (inside.is_some() || node.is_some()) {
            let folder = self.frames.last().and_then(|frame| frame.folder.as_ref()).expect("it is open");
            let name = OsStr::from_bytes(&self.path[name_start..]);
            let opened = open_folder(folder, name, &stat, node.as_ref(), inside.is_some());
            self.push_frame(opened, &stat, node, inside);
        }
        Ok(Some(step))
    }

    /// Whether what `self.path` names is taken, and as part of which root what is in it is walked, if at all.
    fn judge(&self, parent: Option<Inside>, stat: &Stat, is_root: bool) -> (bool, Option<Inside>) {
        let is_folder = file_type(stat) == FileType::Directory;
        if is_root {
            let root = Inside { root_len: self.path.len(), device: stat.st_dev, included: false };
            return (true, Some(root));
        }
        let Some(mut inside) = parent else { return (false, None) };
        let relative = Path::new(OsStr::from_bytes(&self.path[inside.root_len + 1..]));
        if self.patterns.excludes(relative, is_folder) {
            return (false, None);
        }
        let included = inside.included || self.patterns.includes(relative, is_folder);
        if is_folder {
            inside.included = included;
        } else if !included {
            return (false, None);
        }
        if self.one_file_system && stat.st_dev != inside.device {
            // The folder that another file system is mounted on is part of the tree, what is in it is not.
            return (is_folder, None);
        }
        (true, Some(inside))
    }

    /// The entry that `self.path` names.
    fn entry(&mut self, name_start: usize, stat: &Stat) -> Step {
        let mut metadata = from_stat(stat, &self.owners);
        if metadata.file_type == FileType::Symlink {
            let folder = self.frames.last().and_then(|frame| frame.folder.as_ref()).expect("it is open");
            let name = OsStr::from_bytes(&self.path[name_start..]);
            match rustix::fs::readlinkat(folder, name, Vec::new()) {
                Ok(target) => metadata.link_target = Some(target.into_bytes()),
                Err(error) => return self.unreadable(error),
            }
        }
        if self.with_attributes {
            self.path.push(0);
            let path = CStr::from_bytes_with_nul(&self.path).expect("names hold no zero byte");
            let attributes = self.attributes.read(path);
            self.path.pop();
            match attributes {
                Ok(attributes) => metadata.xattrs = attributes,
                Err(error) => {
                    self.pending.push_back(Step::AttributesUnreadable(self.tree_path(), error.to_string()));
                }
            }
        }
        let content = match metadata.file_type {
            FileType::File => Content::File(self.absolute().to_owned()),
            _ => Content::None,
        };
        Step::Entry(Entry { path: self.tree_path(), metadata, content })
    }

    /// Lists the folder that `self.path` names and makes it the one at hand. What fails is pending afterwards.
    fn push_frame(
        &mut self,
        opened: Result<OwnedFd, String>,
        stat: &Stat,
        node: Option<Arc<Node>>,
        inside: Option<Inside>,
    ) {
        let folder = match opened {
            Ok(folder) => folder,
            Err(why) => {
                self.pending.push_back(Step::Unreadable(self.tree_path(), why));
                return;
            }
        };
        let mut names = Names::default();
        if inside.is_some()
            && let Err(error) = names.list(&folder, &mut self.batch)
        {
            // What was listed so far is saved.
            let unreadable = self.unreadable(error);
            self.pending.push_back(unreadable);
        }
        for name in node.iter().flat_map(|node| node.children.keys()) {
            names.add(name);
        }
        names.sort();
        let (path_len, identity) = (self.path.len(), (stat.st_dev, stat.st_ino));
        self.frames.push(Frame { folder: Some(folder), identity, path_len, node, inside, names, next: 0 });
        if let Some(far) = self.frames.len().checked_sub(OPEN_FOLDERS_MAX + 1) {
            self.frames[far].folder = None;
        }
    }

    /// Goes back to the folder that the finished one lies in, or, where that has gone, to the next above.
    fn ascend(&mut self) {
        let mut below = self.frames.pop().and_then(|finished| finished.folder);
        while let Some(frame) = self.frames.last_mut()
            && frame.folder.is_none()
        {
            self.path.truncate(frame.path_len);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let path = if self.path.is_empty() { b"/".as_slice() } else { &self.path };
            let path = OsStr::from_bytes(path);
            // The way up reaches what is too deep for a path; the path reaches what was moved below.
            let reopened = below
                .take()
                .and_then(|below| open_if_same(&below, OsStr::new(".."), flags, frame.identity).ok())
                .map_or_else(|| open_if_same(CWD, path, flags, frame.identity), Ok);
            match reopened {
                Ok(folder) => frame.folder = Some(folder),
                Err(why) => {
                    self.pending.push_back(Step::Unreadable(self.tree_path(), why));
                    self.frames.pop();
                }
            }
        }
    }

    fn unreadable(&self, error: Errno) -> Step {
        Step::Unreadable(self.tree_path(), error.to_string())
    }

    fn tree_path(&self) -> Vec<u8> {
        self.path.get(1..).unwrap_or_default().to_vec()
    }

    fn absolute(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.path))
    }
}

/// Opens a folder to walk it. Passing through one on the way to a root takes no permission to list it.
fn open_folder<Fd: AsFd>(
    parent: Fd,
    name: &OsStr,
    stat: &Stat,
    node: Option<&Arc<Node>>,
    is_listed: bool,
) -> Result<OwnedFd, String> {
    let mut flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    flags |= if is_listed { OFlags::RDONLY } else { OFlags::PATH };
    if node.is_none_or(|node| node.is_root) {
        flags |= OFlags::NOFOLLOW;
    }
    open_if_same(parent, name, flags, (stat.st_dev, stat.st_ino))
}

/// Opens a folder if it is still the one that was looked at.
fn open_if_same<Fd: AsFd>(
    parent: Fd,
    name: &OsStr,
    flags: OFlags,
    identity: (u64, u64),
) -> Result<OwnedFd, String> {
    let folder = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(|error| error.to_string())?;
    let stat = rustix::fs::fstat(&folder).map_err(|error| error.to_string())?;
    if (stat.st_dev, stat.st_ino) == identity {
        Ok(folder)
    } else {
        Err("the folder was moved while it was being walked".to_owned())
    }
}

/// The error for a root, or a folder on the way to one, that cannot be looked at.
fn cannot_look(path: &Path, error: Errno) -> EngineError {
    let path = path.display();
    match error {
        Errno::NOENT | Errno::NOTDIR => {
            EngineError::new(ErrorCode::SourceMissing, format!("the path {path} does not exist"))
        }
        _ => EngineError::new(ErrorCode::SourcePermissionMissing, format!("{path} cannot be looked at")),
    }
    .caused_by(std::io::Error::from(error))
}

fn check_root(root: &Path) -> Result<(), EngineError> {
    let stat = rustix::fs::lstat(root).map_err(|error| cannot_look(root, error))?;
    if file_type(&stat) != FileType::Symlink {
        return Ok(());
    }
    let target = std::fs::canonicalize(root).unwrap_or_else(|_| PathBuf::from("a place that does not exist"));
    Err(EngineError::new(
        ErrorCode::PathInvalid,
        format!("the path {} is a symbolic link to {}: give that instead", root.display(), target.display()),
    ))
}

/// The names in a folder, in one allocation.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    /// Where each begins, and its length.
    order: Vec<(usize, u32)>,
}

impl Names {
    fn list(&mut self, folder: &OwnedFd, batch: &mut [MaybeUninit<u8>]) -> Result<(), Errno> {
        let mut entries = RawDir::new(folder, batch);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                self.add(name);
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &[u8]) {
        let length = u32::try_from(name.len()).expect("a name has at most a few hundred bytes");
        self.order.push((self.bytes.len(), length));
        self.bytes.extend_from_slice(name);
    }

    /// Sorts by raw bytes and drops what was added twice.
    fn sort(&mut self) {
        let bytes = &self.bytes;
        let name = |&(start, length): &(usize, u32)| &bytes[start..start + length as usize];
        self.order.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        self.order.dedup_by(|a, b| name(a) == name(b));
    }

    fn len(&self) -> usize {
        self.order.len()
    }

    fn get(&self, index: usize) -> &[u8] {
        let (start, length) = self.order[index];
        &self.bytes[start..start + length as usize]
    }
}
