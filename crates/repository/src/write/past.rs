//! What a folder is compared with: its tree in the parent snapshot, as a whole for as long as nothing differs, then
//! entry by entry.

use std::sync::Arc;

use super::options::{Parent, TreeSource, WhyRead};
use crate::id::BlobId;
use crate::tree::{Fingerprint, Node, NodeMetadata, NodeType, Tree};
use crate::tree_cache::{CachedTree, TreeCache};

/// The trees of the parent snapshot: from the cache where it has them, else from the repository.
pub(super) struct PastTrees {
    source: Arc<dyn TreeSource>,
    cache: Option<TreeCache>,
}

/// The same folder in the parent snapshot.
#[derive(Debug, Default)]
pub(super) enum Past {
    /// The parent does not have it, or its tree cannot be read.
    #[default]
    Unknown,
    /// So far every entry is as it was.
    Same(SameSoFar),
    /// Its entries, of which those that were asked for are gone.
    Entries(Box<PastEntries>),
}

/// A folder of which every entry that came was the next one of the parent, unchanged.
#[derive(Debug)]
pub(super) struct SameSoFar {
    pub(super) id: BlobId,
    pub(super) cached: CachedTree,
    /// How many entries have come.
    pub(super) entries: usize,
    /// How many of them are folders.
    pub(super) folders: usize,
    /// The last of them, when it is a folder that is still open.
    pub(super) open_folder: Option<usize>,
}

/// The entries of a folder in the parent snapshot. They are asked for in order.
#[derive(Debug)]
pub(super) struct PastEntries {
    pub(super) id: BlobId,
    nodes: std::iter::Peekable<std::vec::IntoIter<Node>>,
}

impl PastTrees {
    pub(super) fn new(parent: &Parent, cache: Option<TreeCache>) -> Self {
        Self { source: Arc::clone(&parent.trees), cache }
    }

    /// A folder that is new to this backup and was this tree in the parent.
    pub(super) fn of(&self, id: BlobId) -> Past {
        self.same(id).unwrap_or_else(|| self.entries(id))
    }

    /// The same, when the cache has its tree.
    pub(super) fn same(&self, id: BlobId) -> Option<Past> {
        let cached = self.cache.as_ref()?.get(&id)?;
        Some(Past::Same(SameSoFar { id, cached, entries: 0, folders: 0, open_folder: None }))
    }

    /// The record of a tree in the cache.
    pub(super) fn cached(&self, id: &BlobId) -> Option<CachedTree> {
        self.cache.as_ref()?.get(id)
    }

    /// The folder, to be compared entry by entry from the start.
    pub(super) fn entries(&self, id: BlobId) -> Past {
        if let Some(tree) = self.cached(&id).and_then(|cached| cached.tree(&id)) {
            return Past::Entries(PastEntries::new(id, tree.nodes.into_iter()));
        }
        match self.source.tree(&id) {
            Ok(tree) => {
                self.announce(&tree);
                Past::Entries(PastEntries::new(id, tree.nodes.into_iter()))
            }
            Err(error) => {
                tracing::warn!(tree = %id, error = %error, "the folder is read again: its tree of the parent snapshot is unreadable");
                Past::Unknown
            }
        }
    }

    /// Tells the source which of the trees below will be asked for.
    fn announce(&self, tree: &Tree) {
        let cached = |id: &BlobId| self.cache.as_ref().is_some_and(|cache| cache.contains(id));
        let below = tree.nodes.iter().filter_map(|node| node.subtree);
        let below: Vec<BlobId> = below.filter(|id| !cached(id)).collect();
        if !below.is_empty() {
            self.source.will_need(&below);
        }
    }
}

impl SameSoFar {
    /// Whether the next entry of the parent is this one, unchanged.
    pub(super) fn goes_on_with(&self, now: &Fingerprint) -> bool {
        self.cached.fingerprint(self.entries).is_some_and(|then| then.confirms(now))
    }

    /// Whether all entries of the parent have come.
    pub(super) fn is_complete(&self) -> bool {
        self.entries == self.cached.entries()
    }
}

impl PastEntries {
    pub(super) fn new(id: BlobId, nodes: std::vec::IntoIter<Node>) -> Box<Self> {
        Box::new(Self { id, nodes: nodes.peekable() })
    }

    /// The entry of this name. Names must be asked for in order.
    pub(super) fn find(&mut self, name: &[u8]) -> Option<Node> {
        while self.nodes.next_if(|node| node.name.as_slice() < name).is_some() {}
        self.nodes.next_if(|node| node.name == name)
    }
}

/// The file of the parent, if this one need not be read: nothing that changes with its content differs.
pub(super) fn as_before(parent: Option<Node>, now: &NodeMetadata) -> Result<Node, WhyRead> {
    let parent = parent.ok_or(WhyRead::New)?;
    let then = &parent.metadata;
    let differences = [
        (then.node_type != NodeType::File || now.node_type != NodeType::File, WhyRead::New),
        (parent.error.is_some(), WhyRead::Unreadable),
        (then.size != now.size, WhyRead::Size),
        (then.mtime != now.mtime, WhyRead::ModificationTime),
        (then.ctime != now.ctime, WhyRead::ChangeTime),
        (then.inode != now.inode, WhyRead::Inode),
    ];
    match differences.into_iter().find(|(differs, _)| *differs) {
        Some((_, why)) => Err(why),
        None => Ok(parent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::FileTime;

    fn file() -> NodeMetadata {
        let time = FileTime { seconds: 1_800_000_000, nanoseconds: 5 };
        NodeMetadata { size: 900, ctime: time, inode: 7, ..NodeMetadata::plain(NodeType::File, 0o644, time) }
    }

    #[test]
    fn a_file_is_read_again_for_the_first_thing_that_differs() {
        let later = FileTime { seconds: 1_800_000_001, nanoseconds: 5 };
        let node = |error: Option<&str>, metadata| Node {
            metadata,
            error: error.map(str::to_owned),
            ..Node::new(b"a".to_vec(), file())
        };
        let now = [
            (file(), None),
            (NodeMetadata { uid: 1, mode: 0o600, ..file() }, None),
            (NodeMetadata { size: 901, mtime: later, ..file() }, Some(WhyRead::Size)),
            (NodeMetadata { mtime: later, ctime: later, ..file() }, Some(WhyRead::ModificationTime)),
            (NodeMetadata { ctime: later, ..file() }, Some(WhyRead::ChangeTime)),
            (NodeMetadata { inode: 8, ..file() }, Some(WhyRead::Inode)),
        ];
        for (now, why) in now {
            assert_eq!(as_before(Some(node(None, file())), &now).err(), why, "{now:?}");
        }
        assert_eq!(as_before(None, &file()).err(), Some(WhyRead::New));
        let folder = NodeMetadata { node_type: NodeType::Directory, ..file() };
        assert_eq!(as_before(Some(node(None, folder)), &file()).err(), Some(WhyRead::New));
        let unreadable = node(Some("permission denied"), file());
        assert_eq!(as_before(Some(unreadable), &file()).err(), Some(WhyRead::Unreadable));
    }
}
