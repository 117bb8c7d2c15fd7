//! The trees of a parent snapshot, loaded through the read path and ahead of need: neighbours in one request.

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::options::TreeSource;
use crate::error::RepositoryError;
use crate::id::{BlobId, IdMap};
use crate::reader::BlobReader;
use crate::tree::Tree;

/// Trees that are loaded at a time.
const AHEAD_TREES: usize = 512;
/// Text of the trees that are loaded at a time, in bytes.
const AHEAD_BYTES: u64 = 4 << 20;
/// Text of loaded trees that are kept, in bytes. A tree takes about as much memory as its text.
const KEPT_BYTES_MAX: u64 = 24 << 20;

/// Gives the trees of a snapshot in the order of a walk through it.
pub struct ParentTrees {
    reader: BlobReader,
    runtime: Handle,
    ahead: Mutex<Ahead>,
}

#[derive(Default)]
struct Ahead {
    /// What will be asked for, the next last.
    upcoming: Vec<BlobId>,
    loaded: IdMap<BlobId, (Tree, u64)>,
    loaded_bytes: u64,
}

impl ParentTrees {
    /// Loads through this reader, on this runtime.
    pub fn new(reader: BlobReader, runtime: Handle) -> Self {
        Self { reader, runtime, ahead: Mutex::default() }
    }
}

impl ParentTrees {
    /// Loads a tree, and with it what will be asked for next: its neighbours, then what is below all of these, so that
    /// a thousand small folders cost a handful of requests.
    fn load(&self, ahead: &mut Ahead, id: BlobId) -> Result<Tree, RepositoryError> {
        let mut wanted = vec![id];
        if let Some(position) = ahead.upcoming.iter().rposition(|upcoming| *upcoming == id) {
            // What lies above was asked for already, or is not there any more.
            ahead.upcoming.truncate(position);
            let next = ahead.upcoming.iter().rev().take(AHEAD_TREES);
            wanted.extend(next.filter(|id| !ahead.loaded.contains_key(*id)));
        }
        let (mut trees_left, mut bytes_left) = (AHEAD_TREES, AHEAD_BYTES);
        let mut result = None;
        while !wanted.is_empty() && trees_left > 0 && bytes_left > 0 {
            wanted.truncate(trees_left);
            let trees = match self.runtime.block_on(self.reader.load_trees(&wanted, bytes_left)) {
                Ok(trees) => trees,
                // Each tree is asked for again on its own when its turn comes, and fails then if it must.
                Err(_) if result.is_some() => break,
                // A neighbour that is gone must not cost this one.
                Err(_) if wanted.len() > 1 => {
                    wanted.truncate(1);
                    continue;
                }
                Err(error) => return Err(error),
            };
            trees_left -= trees.len().min(trees_left);
            let mut below = Vec::new();
            for (id, (tree, bytes)) in wanted.iter().zip(trees) {
                bytes_left = bytes_left.saturating_sub(bytes);
                below.extend(tree.nodes.iter().filter_map(|node| node.subtree));
                if result.is_none() {
                    result = Some(tree);
                } else {
                    ahead.keep(*id, tree, bytes);
                }
            }
            below.retain(|id| !ahead.loaded.contains_key(id));
            wanted = below;
        }
        result.ok_or(RepositoryError::BlobMissing { blob: id })
    }
}

impl Ahead {
    fn keep(&mut self, id: BlobId, tree: Tree, bytes: u64) {
        self.loaded_bytes += bytes;
        if let Some((_, replaced)) = self.loaded.insert(id, (tree, bytes)) {
            self.loaded_bytes -= replaced;
        }
    }
}

impl TreeSource for ParentTrees {
    fn tree(&self, id: &BlobId) -> Result<Tree, RepositoryError> {
        let mut ahead = self.ahead.lock();
        if let Some((tree, bytes)) = ahead.loaded.remove(id) {
            ahead.loaded_bytes -= bytes;
            return Ok(tree);
        }
        if ahead.loaded_bytes > KEPT_BYTES_MAX {
            // Loaded for folders that the source no longer has.
            ahead.loaded.clear();
            ahead.loaded_bytes = 0;
        }
        self.load(&mut ahead, *id)
    }

    fn will_need(&self, ids: &[BlobId]) {
        self.ahead.lock().upcoming.extend(ids.iter().rev());
    }
}
