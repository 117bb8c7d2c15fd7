//! Folders and files: every folder opens, every blob of every file is there.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::StreamExt;

use super::structure::Roots;
use super::{Checker, FindingKind, FindingObject};
use crate::error::RepositoryError;
use crate::format::ObjectName;
use crate::id::{BlobId, BlobType, PackId};
use crate::index::BlobLocation;
use crate::marks::KnownIds;
use crate::reader::plan::{PackRead, coalesce};
use crate::reader::{BlobOpener, BlobPlace, LOCATE_BATCH};
use crate::tree::{Node, NodeType, Tree};

/// Folders that are opened before the ones below them are gathered.
const TREES_AT_ONCE: usize = 16_384;
/// The same when many wait already: what is below the last is opened before what lies beside it.
const TREES_AT_ONCE_OF_MANY: usize = 1024;
/// Folders that wait from which on they are many, 32 bytes each.
const TREES_WAITING_MANY: usize = 500_000;
/// Requests in flight, of at most 4 MiB each but for longer folders.
const READS_IN_FLIGHT: usize = 6;
/// Folders whose files are looked up together.
const TREES_LOOKED_UP_TOGETHER: usize = 256;

/// A folder that opened.
struct OpenTree {
    id: BlobId,
    pack: PackId,
    tree: Tree,
}

impl OpenTree {
    fn files(&self) -> impl Iterator<Item = &Node> {
        self.tree.nodes.iter().filter(|node| node.metadata.node_type == NodeType::File)
    }
}

impl Checker {
    /// Opens every folder of every snapshot once.
    pub(super) fn check_trees(&self, known: &Arc<KnownIds>, roots: &Roots) -> Result<(), RepositoryError> {
        let mut seen = known.marks();
        let mut waiting: Vec<BlobId> =
            roots.iter().map(|(_, root)| *root).filter(|root| seen.mark(root)).collect();
        while !waiting.is_empty() {
            let many = waiting.len() > TREES_WAITING_MANY;
            let at_once = if many { TREES_AT_ONCE_OF_MANY } else { TREES_AT_ONCE };
            let now = waiting.split_off(waiting.len().saturating_sub(at_once));
            let below = self.check_some_trees(&now)?;
            waiting.extend(below.into_iter().filter(|tree| seen.mark(tree)));
        }
        Ok(())
    }

    /// Opens some folders, checks what is in them, and gives the folders below.
    fn check_some_trees(&self, ids: &[BlobId]) -> Result<Vec<BlobId>, RepositoryError> {
        let mut found: Vec<(BlobPlace, BlobId)> = Vec::with_capacity(ids.len());
        for (id, location) in ids.iter().zip(self.locate(BlobType::Tree, ids)?) {
            match location {
                Some(location) => found.push((location.into(), *id)),
                None => self.find_misplaced(id, BlobType::Tree, "a folder")?,
            }
        }
        found.sort_unstable_by_key(|(place, _)| (place.pack, place.offset));
        let places: Vec<BlobPlace> = found.iter().map(|(place, _)| *place).collect();
        let reads = coalesce(&places);
        let (jobs, queue) = crossbeam_channel::bounded::<(&PackRead, Bytes)>(self.threads());
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads())
                .map(|_| {
                    let queue = queue.clone();
                    let found = &found;
                    scope.spawn(move || self.open_trees(&queue, found))
                })
                .collect();
            drop(queue);
            let fed = self.feed(&reads, jobs);
            let mut below = Vec::new();
            for worker in workers {
                below.extend(worker.join().unwrap_or(Err(RepositoryError::Pipeline("checking folders")))?);
            }
            fed.map(|()| below)
        })
    }

    fn feed<'r>(
        &self,
        reads: &'r [PackRead],
        jobs: crossbeam_channel::Sender<(&'r PackRead, Bytes)>,
    ) -> Result<(), RepositoryError> {
        let store = self.repository.store();
        self.wait(async {
            let fetched = futures::stream::iter(reads).map(|read| async move {
                let name = ObjectName::Pack(read.pack);
                (read, store.get_range(&name, u64::from(read.offset), u64::from(read.length)).await)
            });
            let mut fetched = std::pin::pin!(fetched.buffered(READS_IN_FLIGHT));
            while let Some((read, bytes)) = fetched.next().await {
                match bytes {
                    Ok(bytes) => {
                        if jobs.send((read, bytes)).is_err() {
                            // A worker that ended has the error to report.
                            return Ok(());
                        }
                    }
                    Err(error) => {
                        self.find_error(FindingObject::Object(ObjectName::Pack(read.pack)), error.into())?;
                    }
                }
            }
            Ok(())
        })
    }

    /// Opens the folders of these reads, and gives the ones below.
    fn open_trees(
        &self,
        queue: &crossbeam_channel::Receiver<(&PackRead, Bytes)>,
        found: &[(BlobPlace, BlobId)],
    ) -> Result<Vec<BlobId>, RepositoryError> {
        let mut opener = BlobOpener::new(Arc::clone(self.repository.sealer()))?;
        let mut below = Vec::new();
        let mut open: Vec<OpenTree> = Vec::new();
        let mut blobs = 0;
        for (read, bytes) in queue {
            self.cancelled()?;
            for (place, id) in &found[read.members.clone()] {
                let sealed = read.part(&bytes, place);
                let tree = match opener.open(id, place, sealed).and_then(|text| Tree::parse(id, text)) {
                    Ok(tree) => OpenTree { id: *id, pack: place.pack, tree },
                    Err(error) => {
                        self.lost.lock().lose_blob(*id, Some(place.pack));
                        self.find_error(FindingObject::Blob { blob: *id, pack: Some(place.pack) }, error)?;
                        continue;
                    }
                };
                self.progress.trees.fetch_add(1, Ordering::Relaxed);
                let folders = tree.tree.nodes.iter();
                let folders = folders.filter(|node| node.metadata.node_type == NodeType::Directory);
                below.extend(folders.filter_map(|node| node.subtree));
                blobs += tree.files().map(|file| file.content.len()).sum::<usize>();
                open.push(tree);
                if blobs >= LOCATE_BATCH || open.len() >= TREES_LOOKED_UP_TOGETHER {
                    self.check_files(&open)?;
                    (blobs, open) = (0, Vec::new());
                }
            }
        }
        self.check_files(&open)?;
        Ok(below)
    }

    /// Every blob of the files of these folders is in the index as data, and they add up to the sizes of the files.
    fn check_files(&self, trees: &[OpenTree]) -> Result<(), RepositoryError> {
        let ids = trees.iter().flat_map(OpenTree::files).flat_map(|file| file.content.iter().copied());
        let mut locations = Locations::new(self, ids);
        let mut files = 0;
        for tree in trees {
            for file in tree.files() {
                files += 1;
                self.check_file(tree, file, &mut locations)?;
            }
        }
        self.report.lock().files += files;
        Ok(())
    }

    fn check_file(
        &self,
        tree: &OpenTree,
        file: &Node,
        locations: &mut Locations<'_, impl Iterator<Item = BlobId>>,
    ) -> Result<(), RepositoryError> {
        let name = String::from_utf8_lossy(&file.name);
        let mut length = Some(0);
        for id in &file.content {
            match locations.next()?.map(BlobPlace::from) {
                Some(place) => length = length.map(|length| length + u64::from(place.content_length())),
                None => {
                    let user = format!("the file {name:?} in tree {}", tree.id);
                    self.find_misplaced(id, BlobType::Data, &user)?;
                    length = None;
                }
            }
        }
        if let Some(length) = length.filter(|length| *length != file.metadata.size) {
            let detail =
                format!("its file {name:?} has {} bytes, its blobs have {length}", file.metadata.size);
            self.lost.lock().lose_blob(tree.id, Some(tree.pack));
            let object = FindingObject::Blob { blob: tree.id, pack: Some(tree.pack) };
            self.find(FindingKind::Contradiction, object, detail);
        }
        Ok(())
    }

    /// A blob is in no index, or in the index as something else than it is needed for.
    fn find_misplaced(&self, id: &BlobId, wanted: BlobType, user: &str) -> Result<(), RepositoryError> {
        let other = if wanted == BlobType::Data { BlobType::Tree } else { BlobType::Data };
        let place = self.locate(other, &[*id])?.into_iter().flatten().next();
        let pack = place.map(|place| place.pack);
        if !self.lost.lock().lose_blob(*id, pack) {
            return Ok(());
        }
        let object = FindingObject::Blob { blob: *id, pack };
        match place {
            None => self.find(FindingKind::Missing, object, format!("{user} needs it, and no index has it")),
            Some(place) => {
                let detail =
                    format!("{user} needs it as {wanted}, the index has it as {}", place.entry.blob_type);
                self.find(FindingKind::Contradiction, object, detail);
            }
        }
        Ok(())
    }
}

/// The locations of data blobs, one after the other, asked for in batches.
struct Locations<'c, I> {
    checker: &'c Checker,
    ids: I,
    found: std::vec::IntoIter<Option<BlobLocation>>,
}

impl<'c, I: Iterator<Item = BlobId>> Locations<'c, I> {
    fn new(checker: &'c Checker, ids: I) -> Self {
        Self { checker, ids, found: Vec::new().into_iter() }
    }

    /// Where the next blob is.
    fn next(&mut self) -> Result<Option<BlobLocation>, RepositoryError> {
        if self.found.len() == 0 {
            let ids: Vec<BlobId> = self.ids.by_ref().take(LOCATE_BATCH).collect();
            self.found = self.checker.locate(BlobType::Data, &ids)?.into_iter();
        }
        self.found.next().ok_or(RepositoryError::Pipeline("more blobs were looked at than were asked for"))
    }
}
