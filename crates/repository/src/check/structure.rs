//! Keys, index and snapshots.

use std::sync::Arc;

use futures::TryStreamExt;

use super::{Checker, FindingKind, FindingObject};
use crate::config::Config;
use crate::error::RepositoryError;
use crate::format::{ObjectKind, ObjectName};
use crate::id::{BlobId, BlobType, PackId, SnapshotId};
use crate::marks::KnownIds;
use crate::pack_list::{PackSummary, Packs};
use crate::unpacked::check_hash;

/// A snapshot that opened, with its root.
pub(super) type Roots = Vec<(SnapshotId, BlobId)>;

impl Checker {
    /// The names of all objects of a kind, with their sizes.
    pub(super) fn list(&self, kind: ObjectKind) -> Result<Vec<(ObjectName, u64)>, RepositoryError> {
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

    pub(super) fn list_packs(&self) -> Result<Packs, RepositoryError> {
        let listed = self.list(ObjectKind::Pack)?.into_iter().filter_map(|(name, size)| match name {
            ObjectName::Pack(pack) => Some((pack, size)),
            _ => None,
        });
        let packs = Packs::new(listed.collect());
        let mut report = self.report.lock();
        report.packs = packs.stored().len() as u64;
        report.pack_bytes = packs.stored().iter().map(|pack| pack.size).sum();
        Ok(packs)
    }

    /// Reads the index objects, compares them with the packs that are there, and enters them into the index of this check.
    /// Gives the ids of all trees.
    pub(super) fn check_index(
        &self,
        indexes: Vec<(ObjectName, u64)>,
        packs: &mut Packs,
    ) -> Result<Arc<KnownIds>, RepositoryError> {
        self.options.doubted.iter().for_each(|pack| self.index.doubt(*pack));
        let mut trees = Vec::new();
        for (name, _) in indexes {
            let ObjectName::Index(id) = name else { continue };
            let mut contradictions = Vec::new();
            let mut entered = Vec::new();
            let visited = self.wait(self.repository.visit_index(id, |pack, entries| {
                let described = packs.describe(pack, PackSummary::of(entries));
                if !described.as_before {
                    contradictions.push(pack);
                }
                if !described.as_stored {
                    self.index.doubt(pack);
                }
                let of_trees = entries.iter().filter(|entry| entry.blob_type == BlobType::Tree);
                trees.extend(of_trees.map(|entry| KnownIds::prefix(&entry.id)));
                entered.push((pack, entries.to_vec()));
            }));
            if let Err(error) = visited {
                self.find_error(FindingObject::Object(name), error)?;
            }
            self.wait(self.index.enter(entered))?;
            for pack in contradictions {
                let detail = format!("{name} describes other blobs in it than another index object");
                self.find(FindingKind::Contradiction, FindingObject::Object(ObjectName::Pack(pack)), detail);
            }
            self.report.lock().indexes += 1;
        }
        self.report.lock().blobs = packs.blobs();
        self.compare_packs(packs);
        Ok(Arc::new(KnownIds::new(trees)))
    }

    fn compare_packs(&self, packs: &Packs) {
        let lose = |pack: &PackId, kind, detail: String| {
            self.find(kind, FindingObject::Object(ObjectName::Pack(*pack)), detail);
        };
        for (pack, summary) in packs.absent() {
            lose(pack, FindingKind::Missing, format!("the index has {} blobs in it", summary.entries));
        }
        for pack in packs.stored() {
            match pack.described {
                None => {
                    let detail = format!("its {} bytes are in no index", pack.size);
                    let object = FindingObject::Object(ObjectName::Pack(pack.id));
                    self.find(FindingKind::Unreferenced, object, detail);
                }
                Some(summary) if summary.bytes != pack.size => {
                    let detail =
                        format!("it has {} bytes, by the index it must have {}", pack.size, summary.bytes);
                    lose(&pack.id, FindingKind::Damaged, detail);
                }
                Some(_) => {}
            }
        }
    }

    pub(super) fn check_snapshots(&self, listed: Vec<(ObjectName, u64)>) -> Result<Roots, RepositoryError> {
        let mut roots = Vec::new();
        for (name, _) in listed {
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
}
