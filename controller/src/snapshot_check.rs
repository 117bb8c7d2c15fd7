//! Checks the structure of new snapshots: every folder opens, every blob of every file is known and where the index says,
//! and the packs are there and as long as they say themselves. A reconciler: woken by commits, and at the start for what an
//! earlier process left; each time it reads from the catalog what is not checked yet.
//!
//! What a snapshot has in common with the one before it was checked with that one: folders and files with the same
//! contents are passed over. Nothing waits for it, least of all the next backup.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use holdfast_model::ids::{SnapshotId, SourceName};
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::RepositoryError;
use holdfast_repository::format::ObjectName;
use holdfast_repository::id::{BlobId, BlobType, IdSet, PackId};
use holdfast_repository::reader::{BlobPlace, BlobReader, LOCATE_BATCH};
use holdfast_repository::tree::{NodeType, Tree};
use holdfast_runtime::fail_point;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::contents;
use crate::core::Core;
use crate::other_programs;
use crate::repositories::{OpenRepository, repository_failure};

/// How soon it comes back to a source whose repository did not answer.
const AGAIN: Duration = Duration::from_secs(30);
/// Sources whose snapshots are checked at the same time.
const SOURCES_AT_ONCE: usize = 2;
/// Snapshots of a source that are looked at: of more that are unchecked, the older ones stay so.
const SNAPSHOTS_LOOKED_AT: usize = 20;
/// The same where copies are looked for: many may come at once, and in any order.
const COPIES_LOOKED_AT: usize = 200;
/// Folders that are opened together, and how much of their text.
const TREES_AT_ONCE: usize = 256;
const TREE_BYTES_AT_ONCE: u64 = 8 << 20;
/// Folders that are remembered as seen, 38 bytes each. After so many it begins anew: one may be opened twice.
const SEEN_MAX: usize = 450_000;
/// Requests in flight.
const READS_IN_FLIGHT: usize = 8;
/// Findings that are kept.
const FINDINGS_MAX: usize = 100;

/// Runs until the controller stops.
pub async fn run(core: Arc<Core>) {
    let stop = core.tasks.token().clone();
    let queue = core.new_snapshots.clone();
    core.definitions.current().fleet.sources.keys().for_each(|source| queue.wake(source));
    loop {
        let failed: Vec<SourceName> = futures::stream::iter(queue.take())
            .map(|source| check_new(&core, source, &stop))
            .buffer_unordered(SOURCES_AT_ONCE)
            .filter_map(std::future::ready)
            .collect()
            .await;
        let again = !failed.is_empty();
        failed.into_iter().for_each(|source| queue.put_back(source));
        tokio::select! {
            () = stop.cancelled() => return,
            () = queue.changed() => {}
            () = core.clock.sleep(AGAIN), if again => {}
        }
    }
}

/// Checks the new snapshots of a source, the oldest first; gives the source back when that could not be done.
async fn check_new(core: &Arc<Core>, source: SourceName, stop: &CancellationToken) -> Option<SourceName> {
    let done = async {
        for id in unchecked(core, &source).await? {
            if stop.is_cancelled() {
                return Ok(());
            }
            check_snapshot(core, &source, id, stop).await?;
        }
        Ok::<(), Failure>(())
    };
    let failure = done.await.err().filter(|_| !stop.is_cancelled())?;
    tracing::warn!(%source, %failure, "its new snapshot could not be checked");
    Some(source)
}

/// The snapshots of a source that are to be checked, oldest first.
async fn unchecked(core: &Core, source: &SourceName) -> Result<Vec<SnapshotId>, Failure> {
    let Ok(definition) = core.definitions.source(source) else { return Ok(Vec::new()) };
    let is_wanted =
        core.definitions.policy_of(&definition).is_some_and(|(_, policy)| policy.verify.after_backup);
    if !is_wanted {
        return Ok(Vec::new());
    }
    let newest = core.records.snapshots_before(Some(source.as_str()), None, COPIES_LOOKED_AT).await?;
    Ok(of_newest(newest.into_iter().map(|(record, _)| record)))
}

/// Of the newest snapshots of a source, newest first: those that are newer than the last that was checked in their
/// repository, and all copies, which need not come in the order of their origins. Oldest first.
fn of_newest(newest: impl Iterator<Item = SnapshotRecord>) -> Vec<SnapshotId> {
    let mut reached = BTreeSet::new();
    let mut unchecked = Vec::new();
    for (number, record) in newest.enumerate() {
        if record.proof.checked_at.is_some() || record.proof.damage.is_some() {
            reached.insert(record.repository);
        } else if record.original.is_some()
            || number < SNAPSHOTS_LOOKED_AT && !reached.contains(&record.repository)
        {
            unchecked.push(record.id);
        }
    }
    unchecked.reverse();
    unchecked
}

async fn check_snapshot(
    core: &Arc<Core>,
    source: &SourceName,
    id: SnapshotId,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let Some(record) = core.records.snapshot(id).await? else { return Ok(()) };
    let repository = core.repository(&record.repository).await?;
    // What is found must not go before it was looked at.
    let in_use = repository.index().uses.begin();
    if core.records.snapshot(id).await?.is_none() {
        return Ok(());
    }
    let root = |record: &SnapshotRecord| -> Result<BlobId, Failure> {
        record.tree.parse().map_err(|error| Failure::from_error(ErrorCode::StateDamaged, &error))
    };
    let relied_on = core.repositories.relies_on(&record.repository).await?;
    let is_base = |other: &SnapshotRecord| {
        other.id != record.id && other.proof.checked_at.is_some() && relied_on(other)
    };
    let base = core.catalog.latest(source, Some(&record.repository), is_base).await?;
    let base = base.as_ref().map(root).transpose()?;
    let check = StructureCheck {
        reader: contents::reader(&repository),
        doubted: repository.doubted().into_iter().collect(),
        repository: repository.clone(),
        packs: IdSet::default(),
        found: Found::default(),
    };
    fail_point::hit("check-before-look");
    let (root, handle, stop) = (root(&record)?, Handle::current(), stop.clone());
    let found = core
        .blocking("check a snapshot", move || {
            let work = stop.run_until_cancelled(check.run(root, base));
            handle
                .block_on(work)
                .unwrap_or_else(|| Err(Failure::new(ErrorCode::RunCancelled, "the controller stops")))
        })
        .await?;
    if !(found.findings.is_empty() && found.damaged_packs.is_empty()) {
        // What another program has moved is not damaged: it is looked for again where it is now.
        other_programs::is_undisturbed(&repository, in_use.relied_since()).await?;
        core.repositories.doubt(&repository, &found.damaged_packs).await?;
    }
    let now = core.clock.now();
    let damage = found.findings.first();
    for finding in &found.findings {
        tracing::error!(%source, snapshot = %record.id.short(), finding, "a new snapshot is damaged");
    }
    core.catalog
        .prove(record.id, "snapshot.checked", |proof| match damage {
            Some(damage) => proof.damage = Some(damage.clone()),
            None => proof.checked_at = Some(now),
        })
        .await
}

/// What is wrong with a snapshot.
#[derive(Debug, Default)]
struct Found {
    /// One line each, the first hundred.
    findings: Vec<String>,
    /// Packs that are gone or not as long as they must be.
    damaged_packs: Vec<PackId>,
}

/// A file whose blobs are to be looked up.
struct File {
    name: Vec<u8>,
    tree: BlobId,
    bytes: u64,
    blobs: Vec<BlobId>,
}

struct StructureCheck {
    reader: BlobReader,
    repository: Arc<OpenRepository>,
    doubted: IdSet<PackId>,
    /// Those that what is new lies in.
    packs: IdSet<PackId>,
    found: Found,
}

impl StructureCheck {
    /// Walks through the folders of a snapshot side by side with those of one that was checked.
    async fn run(mut self, root: BlobId, base: Option<BlobId>) -> Result<Found, Failure> {
        let mut waiting = vec![(root, base)];
        let mut seen: IdSet<BlobId> = IdSet::default();
        let (mut files, mut blobs) = (Vec::new(), 0);
        while !waiting.is_empty() {
            let mut now = waiting.split_off(waiting.len().saturating_sub(TREES_AT_ONCE));
            now.retain(|(tree, base)| Some(*tree) != *base && seen.insert(*tree));
            for (id, tree, base) in self.open(&now, &mut waiting, &mut seen).await? {
                let base = match base {
                    Some(base) => self.reader.load_tree(base).await.ok(),
                    None => None,
                };
                for node in tree.nodes {
                    let before = base.as_ref().and_then(|base| base.find(&node.name));
                    match node.metadata.node_type {
                        NodeType::Directory => {
                            let before = before.and_then(|before| before.subtree);
                            waiting.extend(node.subtree.map(|subtree| (subtree, before)));
                        }
                        NodeType::File if before.is_none_or(|before| before.content != node.content) => {
                            blobs += node.content.len();
                            let bytes = node.metadata.size;
                            files.push(File { name: node.name, tree: id, bytes, blobs: node.content });
                        }
                        _ => {}
                    }
                }
                if blobs >= LOCATE_BATCH {
                    self.check_files(std::mem::take(&mut files)).await?;
                    blobs = 0;
                }
            }
            if seen.len() >= SEEN_MAX {
                seen.clear();
            }
        }
        self.check_files(files).await?;
        self.check_packs().await?;
        Ok(self.found)
    }

    /// Damage is a finding; anything else ends the work.
    fn find(&mut self, error: &RepositoryError) -> Result<(), Failure> {
        let failure = repository_failure(&self.repository.name, error);
        let is_damage = matches!(
            failure.code,
            ErrorCode::ObjectDamaged | ErrorCode::ObjectMissing | ErrorCode::LimitExceeded
        );
        if !is_damage {
            return Err(failure);
        }
        self.note(Failure::from_error(failure.code, error).to_string());
        Ok(())
    }

    fn note(&mut self, finding: String) {
        if self.found.findings.len() < FINDINGS_MAX {
            self.found.findings.push(finding);
        }
    }

    /// Opens folders; those that did not fit in come back to those that wait.
    async fn open(
        &mut self,
        now: &[(BlobId, Option<BlobId>)],
        waiting: &mut Vec<(BlobId, Option<BlobId>)>,
        seen: &mut IdSet<BlobId>,
    ) -> Result<Vec<(BlobId, Tree, Option<BlobId>)>, Failure> {
        let mut known = Vec::with_capacity(now.len());
        for ((id, base), place) in now.iter().zip(self.locate(BlobType::Tree, &ids_of(now)).await?) {
            if self.is_at(id, place) {
                known.push((*id, *base));
            }
        }
        if known.is_empty() {
            return Ok(Vec::new());
        }
        match self.reader.load_trees(&ids_of(&known), TREE_BYTES_AT_ONCE).await {
            Ok(trees) => {
                for (id, base) in known.split_off(trees.len()) {
                    seen.remove(&id);
                    waiting.push((id, base));
                }
                Ok(known.into_iter().zip(trees).map(|((id, base), (tree, _))| (id, tree, base)).collect())
            }
            // Which of them?
            Err(_) => {
                let mut opened = Vec::new();
                for (id, base) in known {
                    match self.reader.load_tree(id).await {
                        Ok(tree) => opened.push((id, tree, base)),
                        Err(error) => self.find(&error)?,
                    }
                }
                Ok(opened)
            }
        }
    }

    async fn locate(&self, blob_type: BlobType, ids: &[BlobId]) -> Result<Vec<Option<BlobPlace>>, Failure> {
        let mut places = Vec::with_capacity(ids.len());
        for ids in ids.chunks(LOCATE_BATCH) {
            let found = self.repository.locate(blob_type, ids).await?;
            places.extend(found.into_iter().map(|place| place.map(BlobPlace::from)));
        }
        Ok(places)
    }

    /// Whether a blob is known, in a pack that is relied on.
    fn is_at(&mut self, id: &BlobId, place: Option<BlobPlace>) -> bool {
        let (code, reason) = match place {
            None => (ErrorCode::ObjectMissing, "is in no index".to_owned()),
            Some(place) if self.doubted.contains(&place.pack) => {
                let pack = ObjectName::Pack(place.pack);
                (ErrorCode::ObjectDamaged, format!("is only in {pack}, which is damaged or gone"))
            }
            Some(place) => {
                self.packs.insert(place.pack);
                return true;
            }
        };
        self.note(Failure::new(code, format!("blob {id} {reason}")).to_string());
        false
    }

    /// Every blob of these files is known, and they add up to their sizes.
    async fn check_files(&mut self, files: Vec<File>) -> Result<(), Failure> {
        let ids: Vec<BlobId> = files.iter().flat_map(|file| file.blobs.iter().copied()).collect();
        let mut places = self.locate(BlobType::Data, &ids).await?.into_iter();
        for file in files {
            let mut length = Some(0);
            for (id, place) in file.blobs.iter().zip(&mut places) {
                let is_there = self.is_at(id, place);
                let bytes = place.filter(|_| is_there).map(|place| u64::from(place.content_length()));
                length = length.zip(bytes).map(|(length, bytes)| length + bytes);
            }
            if let Some(length) = length.filter(|length| *length != file.bytes) {
                let name = String::from_utf8_lossy(&file.name);
                let message = format!(
                    "file {name:?} in tree {} has {} bytes, its blobs have {length}",
                    file.tree, file.bytes
                );
                self.note(Failure::new(ErrorCode::ObjectDamaged, message).to_string());
            }
        }
        Ok(())
    }

    /// The packs of all that is new are there, and as long as their headers say.
    async fn check_packs(&mut self) -> Result<(), Failure> {
        let repository = self.repository.repository().clone();
        let headers = futures::stream::iter(std::mem::take(&mut self.packs))
            .map(|pack| {
                let repository = repository.clone();
                async move { (pack, repository.read_pack_header(pack).await) }
            })
            .buffer_unordered(READS_IN_FLIGHT);
        let mut headers = std::pin::pin!(headers);
        while let Some((pack, header)) = headers.next().await {
            if let Err(error) = header {
                self.find(&error)?;
                self.found.damaged_packs.push(pack);
            }
        }
        Ok(())
    }
}

fn ids_of(trees: &[(BlobId, Option<BlobId>)]) -> Vec<BlobId> {
    trees.iter().map(|(id, _)| *id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::snapshot;

    #[test]
    fn copies_are_checked_in_whatever_order_they_come_and_others_from_the_last_that_was() {
        let at = jiff::Timestamp::UNIX_EPOCH;
        let origin = |number: u16| snapshot(number, None, at);
        let copy_of = |number: u16| SnapshotRecord {
            repository: "offsite".parse().unwrap(),
            original: Some(origin(number).id),
            ..snapshot(1000 + number, None, at)
        };
        let checked = |mut record: SnapshotRecord| {
            record.proof.checked_at = Some(at);
            record
        };
        // Newest first, each with its copy, of which the newest came first.
        let mut newest = vec![origin(60), checked(copy_of(60)), checked(origin(59)), copy_of(59)];
        for number in (1..59).rev() {
            newest.extend([origin(number), copy_of(number)]);
        }
        let found = of_newest(newest.into_iter());
        let copies = (1..60).map(|number| copy_of(number).id);
        assert_eq!(found, copies.chain([origin(60).id]).collect::<Vec<_>>());
        // Of a backlog of others only the newest.
        let backlog = of_newest((1..60).rev().map(origin));
        assert_eq!(backlog, (40..60).map(|number| origin(number).id).collect::<Vec<_>>());
    }
}
