//! The steps of a prune that take something away. Each is whole or repeated by the next prune; in this order a crash
//! leaves garbage, never an index object that names what is gone.

use futures::TryStreamExt;
use holdfast_runtime::fail_point;
use jiff::Timestamp;

use crate::error::RepositoryError;
use crate::format::{INDEX_BLOBS_MAX, ObjectKind, ObjectName, TrashedPack};
use crate::id::{IdSet, IndexId, PackId};
use crate::index::IndexPack;
use crate::repository::Repository;
use crate::storage::StorageErrorKind;

/// Index objects that were replaced.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct IndexChange {
    /// Those that are new.
    pub added: Vec<IndexId>,
    /// Those that are gone.
    pub removed: Vec<IndexId>,
}

/// Takes packs out of the index: index objects that name them are replaced by others that do not. The new ones are durable
/// before the first old one goes. Memory: the largest index object, and the packs of one.
///
/// # Errors
/// Those of the storage; `HF-3006` when an index object is damaged, before anything was removed.
pub async fn remove_from_index(
    repository: &Repository,
    packs: &IdSet<PackId>,
) -> Result<IndexChange, RepositoryError> {
    let mut change = IndexChange::default();
    if packs.is_empty() {
        return Ok(change);
    }
    let mut staying: Vec<IndexPack> = Vec::new();
    let mut taken: IdSet<PackId> = IdSet::default();
    for id in repository.index_ids().await? {
        let mut found = Vec::new();
        let mut names_one = false;
        let visited = repository.visit_index(id, |pack, entries| {
            if packs.contains(&pack) {
                names_one = true;
            } else {
                found.push(IndexPack { id: pack, entries: entries.to_vec() });
            }
        });
        visited.await?;
        if !names_one {
            continue;
        }
        change.removed.push(id);
        // A pack that two of the old ones name is named once.
        staying.extend(found.into_iter().filter(|pack| taken.insert(pack.id)));
        if staying.iter().map(|pack| pack.entries.len()).sum::<usize>() >= INDEX_BLOBS_MAX {
            change.added.extend(repository.save_index(&std::mem::take(&mut staying)).await?);
        }
    }
    fail_point::hit("prune-before-new-index");
    change.added.extend(repository.save_index(&staying).await?);
    fail_point::hit("prune-after-new-index");
    for id in &change.removed {
        delete(repository, &ObjectName::Index(*id)).await?;
        fail_point::hit("prune-after-old-index");
    }
    Ok(change)
}

/// Removes index objects that were just written and that nobody relies on yet. One that is not there is passed over.
///
/// # Errors
/// Those of the storage.
pub async fn take_back_index(repository: &Repository, written: &[IndexId]) -> Result<(), RepositoryError> {
    for id in written {
        delete(repository, &ObjectName::Index(*id)).await?;
    }
    Ok(())
}

/// Puts packs that no index object names into the trash. One that is not there is passed over.
///
/// # Errors
/// Those of the storage; the rest stays in its place.
pub async fn to_trash(
    repository: &Repository,
    packs: impl IntoIterator<Item = PackId>,
    now: Timestamp,
) -> Result<u64, RepositoryError> {
    let at = u64::try_from(now.as_second()).unwrap_or(0);
    let mut moved = 0;
    for pack in packs {
        let trashed = ObjectName::Trash(TrashedPack { at, pack });
        match repository.store().rename(&ObjectName::Pack(pack), &trashed).await {
            Err(error) if error.kind() == StorageErrorKind::NotFound => continue,
            other => other?,
        }
        fail_point::hit("prune-after-trash");
        moved += 1;
    }
    Ok(moved)
}

/// What is in the trash.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trash {
    /// Packs.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Trash {
    fn add(&mut self, bytes: u64) {
        self.packs += 1;
        self.bytes += bytes;
    }
}

/// Deletes for good what was put into the trash at this time or before. Says what was deleted and what is left.
///
/// # Errors
/// Those of the storage; the rest stays in the trash.
pub async fn empty_trash(
    repository: &Repository,
    put_until: Timestamp,
) -> Result<(Trash, Trash), RepositoryError> {
    let (mut deleted, mut left) = (Trash::default(), Trash::default());
    let listed: Vec<_> = repository.store().list(ObjectKind::Trash).await?.try_collect().await?;
    for (name, bytes) in listed {
        let ObjectName::Trash(trashed) = name else { continue };
        if i64::try_from(trashed.at).is_ok_and(|at| at <= put_until.as_second()) {
            delete(repository, &name).await?;
            fail_point::hit("prune-after-delete");
            deleted.add(bytes);
        } else {
            left.add(bytes);
        }
    }
    Ok((deleted, left))
}

async fn delete(repository: &Repository, name: &ObjectName) -> Result<(), RepositoryError> {
    match repository.store().delete(name).await {
        Err(error) if error.kind() != StorageErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
