//! Which snapshots need what is lost.

use std::collections::HashMap;
use std::sync::Arc;

use super::structure::Roots;
use super::{Checker, FindingObject, kind_of};
use crate::error::RepositoryError;
use crate::format::ObjectName;
use crate::id::{BlobId, BlobType, IdMap, IdSet, PackId, SnapshotId};
use crate::index::BlobLocations;
use crate::marks::KnownIds;
use crate::reader::{BlobReader, LocalSource};
use crate::tree::NodeType;

/// What of the lost things the folders at and below a tree need.
#[derive(Debug, Default)]
struct Needed {
    blobs: IdSet<BlobId>,
    packs: IdSet<PackId>,
    /// A folder did not open: what is below it is unknown.
    is_unknown: bool,
}

impl Needed {
    fn is_something(&self) -> bool {
        self.is_unknown || !self.blobs.is_empty() || !self.packs.is_empty()
    }
}

impl Checker {
    /// Adds to each finding the snapshots that it touches, and tells those that are touched from those that are not. Costs
    /// a second walk through each snapshot, and nothing when nothing is lost.
    pub(super) fn name_snapshots(&self, trees: &Arc<KnownIds>, roots: &Roots) -> Result<(), RepositoryError> {
        {
            let mut report = self.report.lock();
            for finding in &mut report.findings {
                if let FindingObject::Object(ObjectName::Snapshot(id)) = finding.object {
                    finding.snapshots = vec![id];
                }
            }
            let lost = self.lost.lock();
            report.touched_snapshots = lost.snapshots.iter().copied().collect();
            if lost.packs.is_empty() && lost.blobs.is_empty() {
                report.sound_snapshots = roots.iter().map(|(snapshot, _)| *snapshot).collect();
                return Ok(());
            }
        }
        let mut touched_by_blob: IdMap<BlobId, Vec<SnapshotId>> = HashMap::default();
        let mut touched_by_pack: IdMap<PackId, Vec<SnapshotId>> = HashMap::default();
        let source = LocalSource::new(
            Arc::clone(self.repository.store()),
            Arc::clone(&self.index) as Arc<dyn BlobLocations>,
        );
        let reader = BlobReader::new(Arc::new(source), Arc::clone(self.repository.sealer()));
        for (snapshot, root) in roots {
            let needed = self.needed_by(&reader, trees, *root)?;
            {
                let mut report = self.report.lock();
                if needed.is_something() {
                    report.touched_snapshots.push(*snapshot);
                } else if !self.lost.lock().is_incomplete {
                    report.sound_snapshots.push(*snapshot);
                }
            }
            needed.blobs.into_iter().for_each(|id| touched_by_blob.entry(id).or_default().push(*snapshot));
            needed.packs.into_iter().for_each(|id| touched_by_pack.entry(id).or_default().push(*snapshot));
        }
        let mut report = self.report.lock();
        report.touched_snapshots.sort_unstable();
        for finding in &mut report.findings {
            let touched = match finding.object {
                FindingObject::Blob { blob, .. } => touched_by_blob.get(&blob),
                FindingObject::Object(ObjectName::Pack(pack)) => touched_by_pack.get(&pack),
                FindingObject::Object(_) | FindingObject::Keys => None,
            };
            if let Some(snapshots) = touched {
                finding.snapshots.clone_from(snapshots);
            }
        }
        Ok(())
    }

    /// Walks one snapshot, past the folders that cannot be opened.
    fn needed_by(
        &self,
        reader: &BlobReader,
        trees: &Arc<KnownIds>,
        root: BlobId,
    ) -> Result<Needed, RepositoryError> {
        let lost = self.lost.lock();
        let mut needed = Needed::default();
        let mut seen = trees.marks();
        let mut waiting = vec![root];
        let need = |needed: &mut Needed, blob_type, ids: &[BlobId]| -> Result<(), RepositoryError> {
            needed.blobs.extend(ids.iter().filter(|id| lost.blobs.contains(*id)));
            if !lost.packs.is_empty() {
                let packs = self.locate(blob_type, ids)?.into_iter().flatten().map(|location| location.pack);
                needed.packs.extend(packs.filter(|pack| lost.packs.contains(pack)));
            }
            Ok(())
        };
        while let Some(id) = waiting.pop() {
            self.cancelled()?;
            need(&mut needed, BlobType::Tree, &[id])?;
            let tree = match self.wait(reader.load_tree(id)) {
                Ok(tree) => tree,
                Err(error) if kind_of(&error).is_some() => {
                    needed.is_unknown = true;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let blobs: Vec<BlobId> =
                tree.nodes.iter().flat_map(|node| node.content.iter().copied()).collect();
            need(&mut needed, BlobType::Data, &blobs)?;
            let folders = tree.nodes.iter().filter(|node| node.metadata.node_type == NodeType::Directory);
            waiting.extend(folders.filter_map(|node| node.subtree).filter(|subtree| seen.mark(subtree)));
        }
        Ok(needed)
    }
}
