//! Walks the tree, makes folders, and gathers everything else in batches.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crossbeam_channel::Sender;
use rustix::fs::{FileType, Mode, OFlags};
use sha2::{Digest, Sha256};

use super::batch::{Batch, FinishedFolder, HardLink, Item, LinkOrigin};
use super::layout::Blobs;
use super::locate::locate;
use super::target::{self, Folder, FolderCache, Target};
use super::{ExtractError, Tally, Work};
use crate::reader::{TreeWalker, WalkStep};
use crate::tree::{Node, NodeType, name_is_safe};

/// Sends the batches of the whole tree, in the order of the walk.
pub(super) fn plan(
    work: &Work,
    target: &Target,
    tally: &Tally,
    batches: &Sender<(Batch, Blobs)>,
) -> Result<(), ExtractError> {
    let mut planner = Planner {
        target,
        delta: work.options.delta.is_some(),
        tally,
        folders: FolderCache::new(target),
        open: Vec::new(),
        next_folder: 0,
        links: HashMap::new(),
        batch: Batch::default(),
    };
    planner.enter_root()?;
    let mut walker = TreeWalker::new(work.reader.clone(), work.root, work.options.limits)
        .selecting(work.options.selection.clone());
    loop {
        let step = work.handle.block_on(work.token.run_until_cancelled(walker.next()));
        let step = step.ok_or(ExtractError::Cancelled)?.map_err(|source| ExtractError::Tree {
            path: String::from_utf8_lossy(walker.path()).into_owned(),
            source,
        })?;
        match step {
            Some(WalkStep::Enter(node)) => planner.enter(&node)?,
            Some(WalkStep::Entry(node)) => planner.entry(node)?,
            Some(WalkStep::Leave(node)) => planner.leave(Some(node))?,
            None => {
                planner.leave(None)?;
                return if planner.batch.is_empty() { Ok(()) } else { send(work, batches, planner.batch) };
            }
        }
        if planner.batch.is_full() {
            send(work, batches, std::mem::take(&mut planner.batch))?;
        }
    }
}

fn send(work: &Work, batches: &Sender<(Batch, Blobs)>, batch: Batch) -> Result<(), ExtractError> {
    let blobs = locate(work, &batch)?;
    // The writers are gone: they have the error to report.
    batches.send((batch, blobs)).map_err(|_| ExtractError::Cancelled)
}

/// A folder whose entries are being walked.
struct OpenFolder {
    folder: Arc<Folder>,
    /// What was in it before and has not been met in the snapshot.
    extra: HashSet<Vec<u8>>,
}

struct Planner<'w> {
    target: &'w Target,
    delta: bool,
    tally: &'w Tally,
    folders: FolderCache<'w>,
    open: Vec<OpenFolder>,
    next_folder: u64,
    links: HashMap<LinkKey, Arc<LinkOrigin>>,
    batch: Batch,
}

/// Two names are one file when device, inode and content agree: a hostile tree may give different files one inode.
type LinkKey = (u64, u64, [u8; 32]);

impl Planner<'_> {
    fn enter_root(&mut self) -> Result<(), ExtractError> {
        let folder = Arc::new(Folder { id: 0, path: Vec::new() });
        let extra = self.names_in(&folder)?;
        self.open.push(OpenFolder { folder, extra });
        Ok(())
    }

    /// What is in an existing folder. Nothing is looked for when the target was empty.
    fn names_in(&mut self, folder: &Folder) -> Result<HashSet<Vec<u8>>, ExtractError> {
        let mut names = HashSet::new();
        if !self.delta {
            return Ok(names);
        }
        let failed = |errno| ExtractError::target("list the folder", &folder.path, errno);
        let opened = self.folders.target().open_folder(&folder.path, OFlags::RDONLY).map_err(failed)?;
        for entry in rustix::fs::Dir::new(opened).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.insert(name);
            }
        }
        Ok(names)
    }

    /// The folder that is being walked, and whether it had an entry of this name.
    fn meet(&mut self, name: &[u8]) -> Result<(Arc<Folder>, bool), ExtractError> {
        let open = self.open.last_mut().expect("the root is left last");
        if !name_is_safe(name) {
            let source = std::io::Error::from(std::io::ErrorKind::InvalidFilename);
            return Err(ExtractError::target("use the name of", &open.folder.join(name), source));
        }
        Ok((Arc::clone(&open.folder), open.extra.remove(name)))
    }

    fn enter(&mut self, node: &Node) -> Result<(), ExtractError> {
        let (parent, exists) = self.meet(&node.name)?;
        let path = parent.join(&node.name);
        let failed = |error: std::io::Error| ExtractError::target("make the folder", &path, error);
        let within = self.folders.get(&parent)?;
        let mut made = false;
        if exists && !keep_folder(within, &node.name).map_err(failed)? {
            self.target.make_way(within, &parent, &node.name).map_err(failed)?;
            made = true;
        }
        if made || !exists {
            rustix::fs::mkdirat(within, &*node.name, Mode::RWXU).map_err(|errno| failed(errno.into()))?;
            made = true;
        }
        self.next_folder += 1;
        let folder = Arc::new(Folder { id: self.next_folder, path });
        let extra = if made { HashSet::new() } else { self.names_in(&folder)? };
        self.open.push(OpenFolder { folder, extra });
        self.tally.add(|report| report.folders += 1);
        Ok(())
    }

    /// The entries of a folder are over; the root has no node.
    fn leave(&mut self, node: Option<Node>) -> Result<(), ExtractError> {
        let left = self.open.pop().expect("each folder is left once");
        for name in &left.extra {
            let within = self.folders.get(&left.folder)?;
            self.target
                .make_way(within, &left.folder, name)
                .map_err(|error| ExtractError::target("remove", &left.folder.join(name), error))?;
            self.tally.add(|report| report.removed += 1);
        }
        if let Some(node) = node {
            self.batch.weigh(&node);
            self.batch.finished.push(FinishedFolder { folder: left.folder, metadata: node.metadata });
        }
        Ok(())
    }

    fn entry(&mut self, node: Node) -> Result<(), ExtractError> {
        let (folder, exists) = self.meet(&node.name)?;
        self.batch.weigh(&node);
        let item = Item { folder, node, exists };
        match item.node.metadata.node_type {
            NodeType::File => self.file(item),
            NodeType::Symlink | NodeType::Fifo => self.batch.others.push(item),
            NodeType::Directory => {
                self.leave_out(&item, "the folder could not be read when it was backed up")?
            }
            NodeType::BlockDevice | NodeType::CharDevice => {
                self.leave_out(&item, "devices are not restored")?
            }
            NodeType::Socket => self.leave_out(&item, "sockets are not restored")?,
            NodeType::Irregular => self.leave_out(&item, "its type is not known")?,
        }
        Ok(())
    }

    fn file(&mut self, item: Item) {
        let metadata = &item.node.metadata;
        if metadata.links > 1 && metadata.inode != 0 {
            let mut content = Sha256::new();
            item.node.content.iter().for_each(|id| content.update(id.as_bytes()));
            let key = (metadata.device_id, metadata.inode, content.finalize().into());
            if let Some(first) = self.links.get(&key) {
                self.batch.links.push(HardLink { first: Arc::clone(first), item });
                return;
            }
            let origin = LinkOrigin { folder: Arc::clone(&item.folder), name: item.node.name.clone() };
            self.links.insert(key, Arc::new(origin));
        }
        self.batch.files.push(item);
    }

    /// Something that cannot be restored; nothing else may stand in its place either.
    fn leave_out(&mut self, item: &Item, reason: &str) -> Result<(), ExtractError> {
        if item.exists {
            let within = self.folders.get(&item.folder)?;
            self.target
                .make_way(within, &item.folder, &item.node.name)
                .map_err(|error| ExtractError::target("remove", &item.path(), error))?;
        }
        self.tally.warn(format!("{:?}: {reason}", String::from_utf8_lossy(&item.path())));
        Ok(())
    }
}

/// Whether an existing entry can serve as the folder; makes sure that we may write into it.
fn keep_folder(within: std::os::fd::BorrowedFd<'_>, name: &[u8]) -> std::io::Result<bool> {
    let Some(stat) = target::stat(within, name)? else { return Ok(false) };
    if target::file_type(&stat) != FileType::Directory {
        return Ok(false);
    }
    if stat.st_mode & 0o700 != 0o700 {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(within, name, flags, Mode::empty())?;
        // Through the descriptor: whatever is put under the name meanwhile is not touched.
        rustix::fs::chmod(target::path_through(std::os::fd::AsFd::as_fd(&folder), b""), Mode::RWXU)?;
    }
    Ok(true)
}
