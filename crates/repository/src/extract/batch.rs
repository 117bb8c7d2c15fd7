//! A part of the tree that is restored at once.

use std::sync::Arc;

use super::target::Folder;
use crate::tree::{Node, NodeMetadata};

/// Files of a batch, of whatever size.
const FILES_MAX: usize = 8192;
/// References to blobs in a batch, unless a single file has more.
const REFERENCES_MAX: usize = 65_536;
/// Bytes that a batch holds of names, attributes and ids.
const HELD_BYTES_MAX: usize = 16 << 20;

/// A file, symbolic link or pipe to be restored.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) folder: Arc<Folder>,
    pub(super) node: Node,
    /// Something of this name is in the target already.
    pub(super) exists: bool,
}

impl Item {
    /// The path within the target.
    pub(super) fn path(&self) -> Vec<u8> {
        self.folder.join(&self.node.name)
    }
}

/// A further name of a file that is restored in this batch or was in an earlier one.
#[derive(Debug)]
pub(super) struct HardLink {
    pub(super) item: Item,
    pub(super) first: Arc<LinkOrigin>,
}

/// The first name of a file with several.
#[derive(Debug)]
pub(super) struct LinkOrigin {
    pub(super) folder: Arc<Folder>,
    pub(super) name: Vec<u8>,
}

/// A folder whose entries are all in this or an earlier batch.
#[derive(Debug)]
pub(super) struct FinishedFolder {
    pub(super) folder: Arc<Folder>,
    pub(super) metadata: NodeMetadata,
}

/// A part of the tree. Its folders exist already.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) files: Vec<Item>,
    /// Symbolic links and pipes.
    pub(super) others: Vec<Item>,
    pub(super) links: Vec<HardLink>,
    /// In the order in which they were left: inner ones first.
    pub(super) finished: Vec<FinishedFolder>,
    references: usize,
    held_bytes: usize,
}

impl Batch {
    /// Counts what a node holds. To be called for each that is added.
    pub(super) fn weigh(&mut self, node: &Node) {
        let xattrs: usize = node.metadata.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.references += node.content.len();
        self.held_bytes += size_of::<Item>() + node.name.len() + node.content.len() * 32 + xattrs;
    }

    pub(super) fn is_full(&self) -> bool {
        self.files.len() + self.others.len() + self.links.len() >= FILES_MAX
            || self.references >= REFERENCES_MAX
            || self.held_bytes >= HELD_BYTES_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.others.is_empty() && self.links.is_empty() && self.finished.is_empty()
    }
}
