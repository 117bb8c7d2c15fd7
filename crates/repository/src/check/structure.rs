//! Keys, index, snapshots and folders.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::{Checker, FindingKind, FindingObject};
use crate::config::Config;
use crate::error::RepositoryError;
use crate::format::{ObjectKind, ObjectName, PACK_TRAILER_BYTES, SEAL_OVERHEAD_BYTES};
use crate::id::{BlobId, BlobType, IdMap, IdSet, PackId, SnapshotId};
use crate::index::MemoryIndex;
use crate::pack::PackEntry;
use crate::reader::plan::{PackRead, coalesce};
use crate::reader::{BlobOpener, BlobPlace};
use crate::tree::{Node, NodeType, Tree};
use crate::unpacked::check_hash;

/// Folders that are opened before the ones below them are gathered.
const TREES_AT_ONCE: usize = 16_384;
/// Requests in flight, of at most 4 MiB each but for longer folders.
const READS_IN_FLIGHT: usize = 6;

/// What the index says of one pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PackSummary {
    entries: usize,
    bytes: u64,
}

impl PackSummary {
    /// The size of a pack follows from its blobs: they lie one after the other, then the sealed header and its length.
    fn of(entries: &[PackEntry]) -> Self {
        let blobs: u64 = entries.iter().map(|entry| u64::from(entry.length)).sum();
        let header: usize = entries.iter().map(PackEntry::header_bytes).sum();
        Self {
            entries: entries.len(),
            bytes: blobs + (header + SEAL_OVERHEAD_BYTES + PACK_TRAILER_BYTES) as u64,
        }
    }
}

/// A snapshot that opened, with its root.
pub(super) type Roots = Vec<(SnapshotId, BlobId)>;

impl Checker {
    /// The names of all objects of a kind, with their sizes.
    fn list(&self, kind: ObjectKind) -> Result<Vec<(ObjectName, u64)>, RepositoryError> {
        self.wait(async {
            let listed = self.repository.store().list(kind).await?;
            Ok(listed.try_collect().await?)
        })
    }

    /// The config opens; each key is what its name says. Whether a key opens depends on a password that is not ours.
    pub(super) fn check_keys(&self) -> Result<(), RepositoryError> {
        let config = ObjectName::Config;
        let opened =
            self.wait(self.repository.load_unpacked(&config)).and_then(|json| Config::from_json(&json));
        match opened {
            Ok(found) if found == *self.repository.config() => {}
            Ok(_) => {
                let detail = "it is not the config that this repository was opened with";
                self.find(FindingKind::Contradiction, FindingObject::Object(config), detail);
            }
            Err(error) => self.find_error(FindingObject::Object(config), error)?,
        }
        let keys = self.list(ObjectKind::Key)?;
        if keys.is_empty() {
            let detail = "no password opens the repository any more";
            self.find(FindingKind::Missing, FindingObject::Keys, detail);
        }
        for (name, _) in keys {
            let data = self.wait(async { Ok(self.repository.store().get(&name).await?) });
            if let Err(error) = data.and_then(|data| check_hash(&name, &data)) {
                self.find_error(FindingObject::Object(name), error)?;
            }
            self.report.lock().keys += 1;
        }
        Ok(())
    }

    pub(super) fn list_packs(&self) -> Result<IdMap<PackId, u64>, RepositoryError> {
        let mut packs: IdMap<PackId, u64> = HashMap::default();
        for (name, size) in self.list(ObjectKind::Pack)? {
            if let ObjectName::Pack(pack) = name {
                packs.insert(pack, size);
            }
        }
        let mut report = self.report.lock();
        report.packs = packs.len() as u64;
        report.pack_bytes = packs.values().sum();
        Ok(packs)
    }

    /// Reads every index object and compares it with the packs that are there.
    pub(super) fn check_index(&self, packs: &IdMap<PackId, u64>) -> Result<MemoryIndex, RepositoryError> {
        let mut index = MemoryIndex::new();
        index.doubt_only(self.options.doubted.iter().copied());
        let mut described: IdMap<PackId, PackSummary> = HashMap::default();
        for (name, _) in self.list(ObjectKind::Index)? {
            let ObjectName::Index(id) = name else { continue };
            let mut contradictions = Vec::new();
            let visited = self.wait(self.repository.visit_index(id, |pack, entries| {
                let summary = PackSummary::of(entries);
                if *described.entry(pack).or_insert(summary) != summary {
                    contradictions.push(pack);
                }
                if packs.get(&pack) != Some(&summary.bytes) {
                    index.doubt(pack);
                }
                index.insert_pack(pack, entries);
            }));
            if let Err(error) = visited {
                self.find_error(FindingObject::Object(name), error)?;
            }
            for pack in contradictions {
                let detail = format!("{name} describes other blobs in it than another index object");
                self.find(FindingKind::Contradiction, FindingObject::Object(ObjectName::Pack(pack)), detail);
            }
            self.report.lock().indexes += 1;
        }
        for (pack, summary) in &described {
            let object = FindingObject::Object(ObjectName::Pack(*pack));
            match packs.get(pack) {
                None => {
                    let detail = format!("the index has {} blobs in it", summary.entries);
                    self.find(FindingKind::Missing, object, detail);
                }
                Some(size) if *size != summary.bytes => {
                    let detail = format!("it has {size} bytes, by the index it must have {}", summary.bytes);
                    self.find(FindingKind::Damaged, object, detail);
                }
                Some(_) => continue,
            }
            self.lost.lock().packs.insert(*pack);
        }
        for (pack, size) in packs.iter().filter(|(pack, _)| !described.contains_key(*pack)) {
            let detail = format!("its {size} bytes are in no index");
            self.find(FindingKind::Unreferenced, FindingObject::Object(ObjectName::Pack(*pack)), detail);
        }
        self.report.lock().blobs = index.len() as u64;
        Ok(index)
    }

    pub(super) fn check_snapshots(&self) -> Result<Roots, RepositoryError> {
        let mut roots = Vec::new();
        for (name, _) in self.list(ObjectKind::Snapshot)? {
            let ObjectName::Snapshot(id) = name else { continue };
            match self.wait(self.repository.snapshot(id)) {
                Ok(snapshot) => roots.push((id, snapshot.tree)),
                // It was forgotten since it was listed.
                Err(RepositoryError::SnapshotUnknown { .. }) => continue,
                Err(error) => self.find_error(FindingObject::Object(name), error)?,
            }
            self.report.lock().snapshots += 1;
        }
        roots.sort_unstable();
        Ok(roots)
    }

    /// Opens every folder of every snapshot once, level by level.
    pub(super) fn check_trees(&self, index: &MemoryIndex, roots: &Roots) -> Result<(), RepositoryError> {
        let mut seen: IdSet<BlobId> = IdSet::default();
        let mut waiting: Vec<BlobId> =
            roots.iter().map(|(_, root)| *root).filter(|root| seen.insert(*root)).collect();
        while !waiting.is_empty() {
            let now = waiting.split_off(waiting.len().saturating_sub(TREES_AT_ONCE));
            let below = self.check_some_trees(index, &now)?;
            waiting.extend(below.into_iter().filter(|tree| seen.insert(*tree)));
        }
        Ok(())
    }

    /// Opens some folders, checks what is in them, and gives the folders below.
    fn check_some_trees(&self, index: &MemoryIndex, ids: &[BlobId]) -> Result<Vec<BlobId>, RepositoryError> {
        let mut found: Vec<(BlobPlace, BlobId)> = Vec::with_capacity(ids.len());
        for id in ids {
            match index.get(id).map(BlobPlace::from) {
                Some(place) if place.blob_type == BlobType::Tree => found.push((place, *id)),
                other => self.find_misplaced(id, other, BlobType::Tree, "a folder"),
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
                    scope.spawn(move || {
                        let mut opener = BlobOpener::new(Arc::clone(self.repository.sealer()))?;
                        let mut below = Vec::new();
                        for (read, bytes) in queue {
                            self.cancelled()?;
                            for (place, id) in &found[read.members.clone()] {
                                self.check_tree(
                                    index,
                                    &mut opener,
                                    id,
                                    place,
                                    read.part(&bytes, place),
                                    &mut below,
                                )?;
                            }
                        }
                        Ok(below)
                    })
                })
                .collect();
            drop(queue);
            let fed = self.feed(&reads, &found, jobs);
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
        found: &[(BlobPlace, BlobId)],
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
                        self.lost.lock().blobs.extend(found[read.members.clone()].iter().map(|(_, id)| *id));
                    }
                }
            }
            Ok(())
        })
    }

    fn check_tree(
        &self,
        index: &MemoryIndex,
        opener: &mut BlobOpener,
        id: &BlobId,
        place: &BlobPlace,
        sealed: &[u8],
        below: &mut Vec<BlobId>,
    ) -> Result<(), RepositoryError> {
        let tree = match opener.open(id, place, sealed).and_then(|text| Tree::parse(id, text)) {
            Ok(tree) => tree,
            Err(error) => {
                self.lost.lock().blobs.insert(*id);
                return self.find_error(FindingObject::Blob { blob: *id, pack: Some(place.pack) }, error);
            }
        };
        self.progress.trees.fetch_add(1, Ordering::Relaxed);
        let mut files = 0;
        for node in &tree.nodes {
            match (node.metadata.node_type, node.subtree) {
                (NodeType::Directory, Some(subtree)) => below.push(subtree),
                (NodeType::File, _) => {
                    files += 1;
                    self.check_file(index, id, node);
                }
                _ => {}
            }
        }
        self.report.lock().files += files;
        Ok(())
    }

    fn check_file(&self, index: &MemoryIndex, tree: &BlobId, node: &Node) {
        let name = String::from_utf8_lossy(&node.name);
        let mut length = 0;
        for id in &node.content {
            match index.get(id).map(BlobPlace::from) {
                Some(place) if place.blob_type == BlobType::Data => {
                    length += u64::from(place.content_length())
                }
                other => {
                    self.find_misplaced(
                        id,
                        other,
                        BlobType::Data,
                        &format!("the file {name:?} in tree {tree}"),
                    );
                    return;
                }
            }
        }
        if length != node.metadata.size {
            let pack = index.get(tree).map(|location| location.pack);
            let detail =
                format!("its file {name:?} has {} bytes, its blobs have {length}", node.metadata.size);
            self.lost.lock().blobs.insert(*tree);
            self.find(FindingKind::Contradiction, FindingObject::Blob { blob: *tree, pack }, detail);
        }
    }

    /// A blob is in no index, or in the index as something else than it is needed for.
    fn find_misplaced(&self, id: &BlobId, place: Option<BlobPlace>, wanted: BlobType, user: &str) {
        if !self.lost.lock().blobs.insert(*id) {
            return;
        }
        let object = FindingObject::Blob { blob: *id, pack: place.map(|place| place.pack) };
        match place {
            None => self.find(FindingKind::Missing, object, format!("{user} needs it, and no index has it")),
            Some(place) => {
                let detail = format!("{user} needs it as {wanted}, the index has it as {}", place.blob_type);
                self.find(FindingKind::Contradiction, object, detail);
            }
        }
    }
}
