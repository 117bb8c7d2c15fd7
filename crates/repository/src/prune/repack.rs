//! Live blobs of packs that go are stored once more, in new packs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_runtime::fail_point;

use super::plan::PrunePlan;
use super::survey::{BlobSet, PruneProgress, Survey};
use crate::error::RepositoryError;
use crate::format::{INDEX_BLOBS_MAX, ObjectName};
use crate::id::{BlobType, IdSet, PackId};
use crate::index::IndexPack;
use crate::pack::{PackBuilder, PackEntry};
use crate::reader::plan::coalesce;
use crate::reader::{BlobOpener, BlobPlace};
use crate::storage::StorageErrorKind;

/// A new pack is finished when it has this many bytes.
const PACK_BYTES: usize = 16 << 20;

/// What was repacked.
#[derive(Debug, Default)]
pub struct Repacked {
    /// New packs.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packs that turned out to be damaged and have to stay, with what is wrong.
    pub damaged: Vec<(PackId, String)>,
}

/// Stores the needed blobs of the packs that are to be repacked in new packs and indexes these. Each is opened and its
/// hash compared before. Only adds.
///
/// # Errors
/// Those of the storage, and `HF-4010` when cancelled. What was stored until then is found again by the next prune.
pub async fn repack(plan: PrunePlan, progress: Arc<PruneProgress>) -> Result<Repacked, RepositoryError> {
    if plan.repack.is_empty() {
        return Ok(Repacked::default());
    }
    progress.bytes_total.store(plan.numbers.repack_bytes, Ordering::Relaxed);
    let token = plan.survey.token.clone();
    super::survey::blocking(&token, move |_| {
        let going = plan.condemned();
        let repack: IdSet<PackId> = plan.repack.iter().map(|pack| pack.id).collect();
        let survey = plan.survey;
        let mut done = survey.elsewhere(&going)?;
        let mut repacker = Repacker::new(&survey)?;
        let mut damaged = Vec::new();
        survey.visit_packs(
            |pack| repack.contains(pack),
            |pack, entries| {
                let is_wanted = |entry: &&PackEntry| survey.needed.contains(entry) && !done.contains(entry);
                let wanted: Vec<PackEntry> = entries.iter().filter(is_wanted).copied().collect();
                if let Err(reason) = repacker.take(pack, &wanted, &mut done)? {
                    damaged.push((pack, reason));
                }
                let bytes = entries.iter().map(|entry| u64::from(entry.length)).sum();
                progress.bytes_read.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            },
        )?;
        repacker.finish(damaged)
    })
    .await
}

struct Repacker<'s> {
    survey: &'s Survey,
    opener: BlobOpener,
    data: PackBuilder,
    tree: PackBuilder,
    stored: Vec<IndexPack>,
    stored_blobs: usize,
    repacked: Repacked,
}

impl<'s> Repacker<'s> {
    fn new(survey: &'s Survey) -> Result<Self, RepositoryError> {
        Ok(Self {
            survey,
            opener: BlobOpener::new(Arc::clone(survey.repository.sealer()))?,
            data: PackBuilder::new(BlobType::Data, 0),
            tree: PackBuilder::new(BlobType::Tree, 0),
            stored: Vec::new(),
            stored_blobs: 0,
            repacked: Repacked::default(),
        })
    }

    /// Takes blobs over from a pack; says what is wrong with it when one of them is damaged.
    fn take(
        &mut self,
        pack: PackId,
        wanted: &[PackEntry],
        done: &mut BlobSet,
    ) -> Result<Result<(), String>, RepositoryError> {
        let mut wanted = wanted.to_vec();
        wanted.sort_unstable_by_key(|entry| entry.offset);
        let places: Vec<BlobPlace> = wanted
            .iter()
            .map(|entry| BlobPlace {
                pack,
                offset: entry.offset,
                length: entry.length,
                uncompressed_length: entry.uncompressed_length,
                blob_type: entry.blob_type,
            })
            .collect();
        let name = ObjectName::Pack(pack);
        let store = self.survey.repository.store().clone();
        for read in coalesce(&places) {
            self.survey.cancelled()?;
            let (offset, length) = (u64::from(read.offset), u64::from(read.length));
            let bytes = self.survey.wait(async { Ok(store.get_range(&name, offset, length).await) })?;
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(error)
                    if matches!(error.kind(), StorageErrorKind::Damaged | StorageErrorKind::NotFound) =>
                {
                    return Ok(Err(error.to_string()));
                }
                Err(error) => return Err(error.into()),
            };
            for member in read.members.clone() {
                let (place, entry) = (&places[member], &wanted[member]);
                let sealed = read.part(&bytes, place);
                if let Err(error) = self.opener.open(&entry.id, place, sealed) {
                    return Ok(Err(error.to_string()));
                }
                self.push(entry, sealed)?;
                done.insert(entry);
            }
        }
        Ok(Ok(()))
    }

    fn push(&mut self, entry: &PackEntry, sealed: &[u8]) -> Result<(), RepositoryError> {
        let open = match entry.blob_type {
            BlobType::Data => &mut self.data,
            BlobType::Tree => &mut self.tree,
        };
        open.push(entry.id, sealed, entry.uncompressed_length);
        if open.len() >= PACK_BYTES || open.entries_full() {
            let full = std::mem::replace(open, PackBuilder::new(entry.blob_type, 0));
            self.store(full)?;
        }
        Ok(())
    }

    fn store(&mut self, pack: PackBuilder) -> Result<(), RepositoryError> {
        let pack = pack.finish(self.survey.repository.sealer());
        self.repacked.packs += 1;
        self.repacked.bytes += pack.bytes.len() as u64;
        let store = self.survey.repository.store();
        fail_point::hit("prune-before-pack");
        self.survey.wait(async { Ok(store.put(&ObjectName::Pack(pack.id), pack.bytes).await?) })?;
        fail_point::hit("prune-after-pack");
        self.stored_blobs += pack.entries.len();
        self.stored.push(IndexPack { id: pack.id, entries: pack.entries });
        if self.stored_blobs >= INDEX_BLOBS_MAX / 2 { self.index() } else { Ok(()) }
    }

    fn index(&mut self) -> Result<(), RepositoryError> {
        let packs = std::mem::take(&mut self.stored);
        self.stored_blobs = 0;
        self.survey.wait(self.survey.repository.save_index(&packs))?;
        fail_point::hit("prune-after-index");
        Ok(())
    }

    fn finish(mut self, damaged: Vec<(PackId, String)>) -> Result<Repacked, RepositoryError> {
        for blob_type in [BlobType::Data, BlobType::Tree] {
            let open = match blob_type {
                BlobType::Data => &mut self.data,
                BlobType::Tree => &mut self.tree,
            };
            let last = std::mem::replace(open, PackBuilder::new(blob_type, 0));
            if !last.is_empty() {
                self.store(last)?;
            }
        }
        self.index()?;
        Ok(Repacked { damaged, ..self.repacked })
    }
}
