//! The entries of a tree of folders, depth first, in the order of their raw names.
//!
//! The folders below a folder are loaded many at a time. What a hostile tree can make us hold or do is limited: how
//! deep it goes, how many entries it unfolds to (a folder that holds another one twice, thirty levels deep, is small
//! and unfolds to a thousand million), and how much text is held. A cycle would need a folder that contains its own
//! hash; should somebody find one, the depth ends it.

use std::collections::VecDeque;

use super::BlobReader;
use crate::error::RepositoryError;
use crate::id::BlobId;
use crate::tree::{Node, NodeType, Tree};

/// Folders that are loaded ahead at most.
const AHEAD_MAX: usize = 256;
/// Bytes of text of trees that are loaded ahead at most, over all levels; one tree is always loaded.
const AHEAD_BYTES_MAX: u64 = 32 << 20;

/// How much a walk may unfold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalkLimits {
    /// Levels of folders. No file system has paths longer than 4096 bytes, hence not more levels than half of that.
    pub depth_max: usize,
    /// Entries in total.
    pub entries_max: u64,
}

impl Default for WalkLimits {
    fn default() -> Self {
        Self { depth_max: 2048, entries_max: 500_000_000 }
    }
}

/// What comes next in a walk. Its path is [`TreeWalker::path`].
#[derive(Debug, Clone, PartialEq)]
pub enum WalkStep {
    /// A folder begins; its entries follow.
    Enter(Node),
    /// An entry that is no folder, or a folder whose content was not recorded.
    Entry(Node),
    /// The entries of a folder are over.
    Leave(Node),
}

/// Which entries of a tree are walked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only these and what is in them, and the folders on the way to them; everything when it is empty. Paths as
    /// [`TreeWalker::path`] gives them.
    pub only: Vec<Vec<u8>>,
    /// Not these, nor what is in them.
    pub without: Vec<Vec<u8>>,
}

impl Selection {
    fn is_everything(&self) -> bool {
        self.only.is_empty() && self.without.is_empty()
    }

    fn has(&self, path: &[u8]) -> bool {
        let is_within = |path: &[u8], folder: &[u8]| {
            path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        let is_taken = |wanted: &Vec<u8>| is_within(path, wanted) || is_within(wanted, path);
        (self.only.is_empty() || self.only.iter().any(is_taken))
            && !self.without.iter().any(|folder| is_within(path, folder))
    }
}

struct Frame {
    /// The folder itself; the root has none.
    node: Option<Node>,
    entries: std::vec::IntoIter<Node>,
    /// The trees of the next folders among the entries, with the lengths of their texts.
    ahead: VecDeque<(Tree, u64)>,
    path_bytes: usize,
    held_bytes: u64,
}

/// Walks a tree of folders.
pub struct TreeWalker {
    reader: BlobReader,
    limits: WalkLimits,
    frames: Vec<Frame>,
    path: Vec<u8>,
    entries: u64,
    held_bytes: u64,
    root: Option<BlobId>,
    selection: Selection,
}

impl TreeWalker {
    /// A walk through this tree.
    pub fn new(reader: BlobReader, root: BlobId, limits: WalkLimits) -> Self {
        let (frames, selection) = (Vec::new(), Selection::default());
        Self {
            reader,
            limits,
            frames,
            path: Vec::new(),
            entries: 0,
            held_bytes: 0,
            root: Some(root),
            selection,
        }
    }

    /// The same walk, over these entries only. Folders that are not selected are not loaded.
    #[must_use]
    pub fn selecting(mut self, selection: Selection) -> Self {
        self.selection = selection;
        self
    }

    /// The path of the last step, its parts separated by `/`, without one before it.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The next step; `None` when the walk is over. Call it no more after an error.
    ///
    /// # Errors
    /// `HF-3018` when a limit is reached; else those of [`BlobReader::load_tree`].
    pub async fn next(&mut self) -> Result<Option<WalkStep>, RepositoryError> {
        if let Some(root) = self.root.take() {
            let (tree, bytes) = self.reader.load_trees(&[root], 0).await?.remove(0);
            self.push(None, tree, bytes)?;
        }
        let Some(frame) = self.frames.last_mut() else { return Ok(None) };
        self.path.truncate(frame.path_bytes);
        let Some(node) = frame.entries.next() else { return Ok(self.leave()) };
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            return Err(self.limit("entries", self.entries, self.limits.entries_max));
        }
        if frame.path_bytes > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(&node.name);
        let (NodeType::Directory, Some(subtree)) = (node.metadata.node_type, node.subtree) else {
            return Ok(Some(WalkStep::Entry(node)));
        };
        if frame.ahead.is_empty() {
            let following =
                frame.entries.as_slice().iter().filter_map(|node| match node.metadata.node_type {
                    NodeType::Directory => node.subtree,
                    _ => None,
                });
            let wanted: Vec<BlobId> = std::iter::once(subtree).chain(following).take(AHEAD_MAX).collect();
            let bytes_max = AHEAD_BYTES_MAX.saturating_sub(self.held_bytes);
            let loaded = self.reader.load_trees(&wanted, bytes_max).await?;
            self.held_bytes += loaded.iter().map(|(_, bytes)| bytes).sum::<u64>();
            frame.ahead = loaded.into();
        }
        let (tree, bytes) = frame.ahead.pop_front().expect("at least the tree of this folder was loaded");
        self.push(Some(node.clone()), tree, bytes)?;
        Ok(Some(WalkStep::Enter(node)))
    }

    fn push(&mut self, node: Option<Node>, tree: Tree, held_bytes: u64) -> Result<(), RepositoryError> {
        if self.frames.len() > self.limits.depth_max {
            return Err(self.limit(
                "levels of folders",
                self.frames.len() as u64,
                self.limits.depth_max as u64,
            ));
        }
        let mut nodes = tree.nodes;
        if !self.selection.is_everything() {
            let mut path = self.path.clone();
            nodes.retain(|node| {
                path.truncate(self.path.len());
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(&node.name);
                self.selection.has(&path)
            });
        }
        self.frames.push(Frame {
            node,
            entries: nodes.into_iter(),
            ahead: VecDeque::new(),
            path_bytes: self.path.len(),
            held_bytes,
        });
        Ok(())
    }

    fn leave(&mut self) -> Option<WalkStep> {
        let frame = self.frames.pop()?;
        self.held_bytes = self.held_bytes.saturating_sub(frame.held_bytes);
        frame.node.map(WalkStep::Leave)
    }

    fn limit(&self, what: &'static str, actual: u64, limit: u64) -> RepositoryError {
        let object = format!("the tree at {:?}", String::from_utf8_lossy(&self.path));
        RepositoryError::LimitExceeded { object, what, actual, limit }
    }
}
