//! The read path: from ids to verified bytes, trees and files.
//!
//! Where blobs are and how ranges of packs are fetched is a [`BlobSource`]: a storage with an index ([`LocalSource`]),
//! or the controller over the network. Everything that comes from it is hostile until it was opened with the key and
//! its hash was compared, which [`BlobOpener`] alone does: **wrong bytes are never returned**, an error names the pack
//! and the blob.
//!
//! | module | what it knows |
//! |---|---|
//! | [`open`] | one sealed blob: decrypt, decompress within the stated bound, compare the hash |
//! | [`plan`] | which blobs lie close enough to be read in one request |
//! | [`walk`] | the folders of a snapshot in order, with limits |
//! | [`mod@file`] | one file as a `std::io::Read` that reads ahead |

pub mod file;
mod local;
pub mod open;
pub mod plan;
pub mod walk;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

pub use file::FileReader;
pub use local::LocalSource;
pub use open::BlobOpener;
pub use walk::{Selection, TreeWalker, WalkLimits, WalkStep};

use crate::crypto::Sealer;
use crate::error::RepositoryError;
use crate::format::SEAL_OVERHEAD_BYTES;
use crate::id::{BlobId, BlobType, PackId};
use crate::index::BlobLocation;
use crate::tree::{FileTime, Node, NodeMetadata, NodeType, Tree};

/// Most ids that are asked for in one call of [`BlobSource::locate`].
pub const LOCATE_BATCH: usize = 4096;

/// Requests that a reader has in flight at the same time.
const READS_IN_FLIGHT: usize = 8;

/// Where a blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobPlace {
    /// The pack that holds it.
    pub pack: PackId,
    /// Where it begins in the pack, in bytes.
    pub offset: u32,
    /// Its length in the pack, sealed, in bytes.
    pub length: u32,
    /// The length of its content in bytes; `None` when it is stored without compression.
    pub uncompressed_length: Option<u32>,
    /// What it holds.
    pub blob_type: BlobType,
}

impl BlobPlace {
    /// The length of the blob's content in bytes.
    pub fn content_length(&self) -> u32 {
        self.uncompressed_length.unwrap_or(self.length.saturating_sub(SEAL_OVERHEAD_BYTES as u32))
    }

    /// Where it ends in the pack.
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.length)
    }
}

impl From<BlobLocation> for BlobPlace {
    fn from(location: BlobLocation) -> Self {
        Self {
            pack: location.pack,
            offset: location.entry.offset,
            length: location.entry.length,
            uncompressed_length: location.entry.uncompressed_length,
            blob_type: location.entry.blob_type,
        }
    }
}

/// Knows where blobs are, and fetches ranges of packs. What it says is checked, not believed.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// Where each of these blobs of one type is, in their order; `None` for a blob that is in no index. At most
    /// [`LOCATE_BATCH`] ids are asked at once.
    ///
    /// # Errors
    /// When the index cannot be asked.
    async fn locate(
        &self,
        blob_type: BlobType,
        ids: &[BlobId],
    ) -> Result<Vec<Option<BlobPlace>>, RepositoryError>;

    /// Exactly `length` bytes of a pack from `offset` on.
    ///
    /// # Errors
    /// `HF-3005` when there is no such pack, `HF-3006` when it ends before the range does.
    async fn read(&self, pack: PackId, offset: u32, length: u32) -> Result<Bytes, RepositoryError>;
}

/// Loads verified blobs and trees. Cheap to clone.
#[derive(Clone)]
pub struct BlobReader {
    source: Arc<dyn BlobSource>,
    sealer: Arc<Sealer>,
}

impl BlobReader {
    /// Reads from this source with this key.
    pub fn new(source: Arc<dyn BlobSource>, sealer: Arc<Sealer>) -> Self {
        Self { source, sealer }
    }

    /// Where the bytes come from.
    pub fn source(&self) -> &Arc<dyn BlobSource> {
        &self.source
    }

    /// What opens them.
    pub fn sealer(&self) -> &Arc<Sealer> {
        &self.sealer
    }

    /// Where these blobs are, in their order, however many.
    ///
    /// # Errors
    /// `HF-3005` for a blob that is in no index; `HF-3006` for one that is not of this type.
    pub async fn locate(
        &self,
        ids: &[BlobId],
        blob_type: BlobType,
    ) -> Result<Vec<BlobPlace>, RepositoryError> {
        let mut places = Vec::with_capacity(ids.len());
        for batch in ids.chunks(LOCATE_BATCH) {
            let found = self.source.locate(blob_type, batch).await?;
            for (id, place) in batch.iter().zip(&found) {
                let place = place.ok_or(RepositoryError::BlobMissing { blob: *id })?;
                if place.blob_type != blob_type {
                    let reason = format!("it is a {} blob where a {blob_type} blob belongs", place.blob_type);
                    return Err(RepositoryError::damaged(open::blob_name(id, &place), reason));
                }
                places.push(place);
            }
            if found.len() != batch.len() {
                return Err(RepositoryError::Pipeline("the source answered for fewer blobs than were asked"));
            }
        }
        Ok(places)
    }

    /// Loads one blob.
    ///
    /// # Errors
    /// As [`Self::locate`] and [`BlobSource::read`]; `HF-3006` when it does not open or has another hash.
    pub async fn load(&self, id: BlobId, blob_type: BlobType) -> Result<Vec<u8>, RepositoryError> {
        let place = self.locate(&[id], blob_type).await?[0];
        let sealed = self.source.read(place.pack, place.offset, place.length).await?;
        let mut opener = BlobOpener::new(Arc::clone(&self.sealer))?;
        opener.open(&id, &place, &sealed)?;
        Ok(opener.take_content())
    }

    /// Loads one folder.
    ///
    /// # Errors
    /// As [`Self::load`] and [`Tree::parse`].
    pub async fn load_tree(&self, id: BlobId) -> Result<Tree, RepositoryError> {
        Tree::parse(&id, &self.load(id, BlobType::Tree).await?)
    }

    /// Loads the first of these folders, and as many of the following as stay within `bytes_max` of text in total.
    /// Neighbours in a pack are read in one request. Gives each with the length of its text.
    ///
    /// # Errors
    /// As [`Self::load_tree`].
    pub async fn load_trees(
        &self,
        ids: &[BlobId],
        bytes_max: u64,
    ) -> Result<Vec<(Tree, u64)>, RepositoryError> {
        let places = self.locate(ids, BlobType::Tree).await?;
        let mut total = 0;
        let fitting = places.iter().take_while(|place| {
            total += u64::from(place.content_length());
            total <= bytes_max
        });
        let count = fitting.count().max(1).min(ids.len());
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_unstable_by_key(|&n| (places[n].pack, places[n].offset));
        let sorted: Vec<BlobPlace> = order.iter().map(|&n| places[n]).collect();
        let reads = plan::coalesce(&sorted);
        // By value: a closure over references keeps the future from being spawned (a limit of the compiler).
        let ranges: Vec<_> = reads.iter().map(|read| (read.pack, read.offset, read.length)).collect();
        let fetched =
            stream::iter(ranges).map(|(pack, offset, length)| self.source.read(pack, offset, length));
        let fetched: Vec<Bytes> = fetched.buffered(READS_IN_FLIGHT).try_collect().await?;

        let mut opener = BlobOpener::new(Arc::clone(&self.sealer))?;
        let mut trees: Vec<Option<(Tree, u64)>> = (0..count).map(|_| None).collect();
        for (read, bytes) in reads.iter().zip(&fetched) {
            for member in read.members.clone() {
                let place = &sorted[member];
                let id = &ids[order[member]];
                let text = opener.open(id, place, read.part(bytes, place))?;
                trees[order[member]] = Some((Tree::parse(id, text)?, text.len() as u64));
            }
        }
        Ok(trees.into_iter().flatten().collect())
    }

    /// The entry at a path of a snapshot whose root is the tree `root`. Parts are separated by `/`; leading, trailing
    /// and double ones do not count. The empty path is the root itself, as a folder without a name.
    ///
    /// # Errors
    /// `HF-3016` when there is no such entry, or something on the way is no folder; else as [`Self::load_tree`].
    pub async fn find(&self, root: BlobId, path: &[u8]) -> Result<Node, RepositoryError> {
        let metadata = NodeMetadata::plain(NodeType::Directory, 0o755, FileTime::default());
        let mut node = Node { subtree: Some(root), ..Node::new(Vec::new(), metadata) };
        for part in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
            let missing =
                || RepositoryError::PathNotInSnapshot { path: String::from_utf8_lossy(path).into_owned() };
            let tree = self.load_tree(node.subtree.ok_or_else(missing)?).await?;
            node = tree.find(part).ok_or_else(missing)?.clone();
        }
        Ok(node)
    }
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BlobReader")
    }
}
