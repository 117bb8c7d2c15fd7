//! The trees of a parent snapshot, loaded through the read path and ahead of need: neighbours in one request.

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::options::TreeSource;
use crate::error::RepositoryError;
use crate::id::{BlobId, IdMap};
use crate::reader::BlobReader;
use crate::tree::Tree;

/// Trees that are asked for in one call.
const AHEAD_TREES: usize = 512;
/// Text of the trees that one call may load, in bytes.
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
        let mut wanted = vec![*id];
        if let Some(position) = ahead.upcoming.iter().rposition(|upcoming| upcoming == id) {
            ahead.upcoming.truncate(position);
            let loaded = &ahead.loaded;
            let next = ahead.upcoming.iter().rev().filter(|id| !loaded.contains_key(*id));
            wanted.extend(next.take(AHEAD_TREES - 1));
            wanted.dedup();
        }
        let mut trees = self.runtime.block_on(self.reader.load_trees(&wanted, AHEAD_BYTES))?.into_iter();
        let (first, _) = trees.next().ok_or(RepositoryError::BlobMissing { blob: *id })?;
        for (id, (tree, bytes)) in wanted.into_iter().skip(1).zip(trees) {
            ahead.loaded_bytes += bytes;
            if let Some((_, replaced)) = ahead.loaded.insert(id, (tree, bytes)) {
                ahead.loaded_bytes -= replaced;
            }
        }
        Ok(first)
    }

    fn will_need(&self, ids: &[BlobId]) {
        self.ahead.lock().upcoming.extend(ids.iter().rev());
    }
}
