//! Every byte of the packs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt;
use sha2::{Digest, Sha256};

use super::{Checker, FindingKind, FindingObject, kind_of, reason};
use crate::error::RepositoryError;
use crate::format::{ObjectName, PACK_BYTES_MAX};
use crate::id::{BlobId, BlobType, IdSet, PackId};
use crate::pack::PackEntry;
use crate::pack_list::{Packs, StoredPack};
use crate::reader::plan::READ_BYTES_MAX;
use crate::reader::{BlobOpener, BlobPlace};
use crate::repository::Repository;

/// Ranges of a pack that are read ahead.
const READS_AHEAD: usize = 2;

/// What reading a whole pack showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackVerdict {
    /// Bytes read.
    pub bytes: u64,
    /// Blobs that opened and have their hashes.
    pub blobs: u64,
    /// What is wrong with the pack itself: its hash or its header.
    pub damage: Option<String>,
    /// Blobs that do not open or have other hashes, and why.
    pub damaged_blobs: Vec<((BlobId, BlobType), String)>,
    /// What the header says is in it; nothing when it does not open.
    pub entries: Vec<PackEntry>,
}

impl PackVerdict {
    /// Whether every byte of the pack is right.
    pub fn is_sound(&self) -> bool {
        self.damage.is_none() && self.damaged_blobs.is_empty()
    }
}

/// Reads a pack of `size` bytes whole: compares its hash with its name, opens its header and every blob. Memory: three
/// ranges of 4 MiB, or of the largest blob. When the header does not open, its blobs are not looked at.
///
/// # Errors
/// Those of the storage; a pack that is gone is `HF-3005`. Damage is in the verdict.
pub async fn verify_pack(
    repository: &Repository,
    opener: &mut BlobOpener,
    pack: PackId,
    size: u64,
) -> Result<PackVerdict, RepositoryError> {
    let mut verdict = PackVerdict { bytes: size, ..PackVerdict::default() };
    if size > PACK_BYTES_MAX {
        verdict.damage = Some(format!("{size} bytes are more than a pack may have"));
        return Ok(verdict);
    }
    match repository.read_pack_header(pack).await {
        Ok(entries) => verdict.entries = entries,
        Err(error) if kind_of(&error) == Some(FindingKind::Damaged) => {
            verdict.damage = Some(reason(&error));
        }
        Err(error) => return Err(error),
    }
    let (inside, outside) = split_at_size(&verdict.entries, size);
    let cut_off =
        |entry: &PackEntry| ((entry.id, entry.blob_type), "the pack ends before it does".to_owned());
    verdict.damaged_blobs.extend(outside.iter().map(cut_off));
    let inside = inside.to_vec();

    let name = ObjectName::Pack(pack);
    let ranges = ranges_of(&inside, size);
    let fetched = futures::stream::iter(&ranges).map(|range| async move {
        let bytes = repository.store().get_range(&name, range.start, range.end - range.start).await;
        (range, bytes)
    });
    let mut fetched = std::pin::pin!(fetched.buffered(READS_AHEAD));
    let mut hash = Sha256::new();
    while let Some((range, bytes)) = fetched.next().await {
        let bytes = bytes?;
        hash.update(&bytes);
        for entry in &inside[range.blobs.clone()] {
            let start = (u64::from(entry.offset) - range.start) as usize;
            let sealed = &bytes[start..start + entry.length as usize];
            let place = BlobPlace {
                pack,
                offset: entry.offset,
                length: entry.length,
                uncompressed_length: entry.uncompressed_length,
                blob_type: entry.blob_type,
            };
            match opener.open(&entry.id, &place, sealed) {
                Ok(_) => verdict.blobs += 1,
                Err(error) => verdict.damaged_blobs.push(((entry.id, entry.blob_type), reason(&error))),
            }
        }
    }
    let found = PackId::from_bytes(hash.finalize().into());
    if found != pack {
        verdict.damage.get_or_insert(format!("the SHA-256 of its {size} bytes is {found}"));
    }
    Ok(verdict)
}

/// The blobs that lie within the pack, and those that do not. They are sorted by offset, and a header's never overlap;
/// what an index claims may.
fn split_at_size(entries: &[PackEntry], size: u64) -> (&[PackEntry], &[PackEntry]) {
    let mut end = 0;
    let inside = entries.iter().take_while(|entry| {
        let begins_after = u64::from(entry.offset) >= end;
        end = u64::from(entry.offset) + u64::from(entry.length);
        begins_after && end <= size
    });
    entries.split_at(inside.count())
}

/// A range of a pack and the blobs that lie in it.
#[derive(Debug, PartialEq, Eq)]
struct PackRange {
    start: u64,
    end: u64,
    blobs: std::ops::Range<usize>,
}

/// Cuts a whole pack into ranges of about 4 MiB, none of which cuts a blob.
fn ranges_of(entries: &[PackEntry], size: u64) -> Vec<PackRange> {
    let mut ranges = Vec::new();
    let mut range = PackRange { start: 0, end: 0, blobs: 0..0 };
    for (number, entry) in entries.iter().enumerate() {
        let end = u64::from(entry.offset) + u64::from(entry.length);
        if end - range.start > u64::from(READ_BYTES_MAX) && range.end > range.start {
            let next = PackRange { start: range.end, end: range.end, blobs: number..number };
            ranges.push(std::mem::replace(&mut range, next));
        }
        range.end = end;
        range.blobs.end = number + 1;
    }
    // The header, or all of a pack in which nothing is known.
    while size - range.start > u64::from(READ_BYTES_MAX) && range.end < size {
        let end = range.end.max(range.start + u64::from(READ_BYTES_MAX)).min(size);
        let blobs = range.blobs.end..range.blobs.end;
        range.end = end;
        ranges.push(std::mem::replace(&mut range, PackRange { start: end, end, blobs }));
    }
    range.end = size;
    if range.end > range.start {
        ranges.push(range);
    }
    ranges
}

impl Checker {
    /// Reads all packs whole, or those that were asked for, on all cores.
    pub(super) fn check_data(&self, packs: &Packs) -> Result<(), RepositoryError> {
        let only = self.options.only.as_ref().map(|only| only.iter().copied().collect::<IdSet<PackId>>());
        let is_wanted = |pack: &StoredPack| only.as_ref().is_none_or(|only| only.contains(&pack.id));
        let next = AtomicUsize::new(0);
        let verify_some = || {
            let mut opener = BlobOpener::new(Arc::clone(self.repository.sealer()))?;
            while let Some(pack) = packs.stored().get(next.fetch_add(1, Ordering::Relaxed)) {
                self.cancelled()?;
                if is_wanted(pack) {
                    self.check_pack(&mut opener, pack)?;
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads()).map(|_| scope.spawn(verify_some)).collect();
            let results: Vec<_> = workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or(Err(RepositoryError::Pipeline("reading packs"))))
                .collect();
            results.into_iter().collect()
        })
    }

    fn check_pack(&self, opener: &mut BlobOpener, pack: &StoredPack) -> Result<(), RepositoryError> {
        let object = FindingObject::Object(ObjectName::Pack(pack.id));
        let verdict = match self.wait(verify_pack(&self.repository, opener, pack.id, pack.size)) {
            Ok(verdict) => verdict,
            Err(error) => {
                self.find_error(object, error)?;
                return Ok(());
            }
        };
        self.progress.packs_read.fetch_add(1, Ordering::Relaxed);
        self.progress.bytes_read.fetch_add(verdict.bytes, Ordering::Relaxed);
        {
            let mut report = self.report.lock();
            report.blobs_read += verdict.blobs;
            if verdict.is_sound() {
                report.sound_packs.push(pack.id);
            }
        }
        if let Some(damage) = &verdict.damage {
            self.find(FindingKind::Damaged, object, damage.as_str());
        }
        let damaged: Vec<(BlobId, BlobType)> = verdict.damaged_blobs.iter().map(|(blob, _)| *blob).collect();
        for (((blob, _), why), location) in verdict.damaged_blobs.iter().zip(self.locate_each(&damaged)?) {
            // What is whole in another pack is not lost.
            if location.is_none_or(|location| location.pack == pack.id) {
                self.lost.lock().lose_blob(*blob, Some(pack.id));
            }
            let object = FindingObject::Blob { blob: *blob, pack: Some(pack.id) };
            self.find(FindingKind::Damaged, object, why.as_str());
        }
        if verdict.damage.is_none() && pack.described.is_some() {
            self.compare_with_index(pack.id, &verdict.entries)?;
        }
        Ok(())
    }

    /// What the header says must be what the index says. Of a blob that lies in two packs, one place is known.
    fn compare_with_index(&self, pack: PackId, entries: &[PackEntry]) -> Result<(), RepositoryError> {
        let blobs: Vec<(BlobId, BlobType)> =
            entries.iter().map(|entry| (entry.id, entry.blob_type)).collect();
        for (entry, location) in entries.iter().zip(self.locate_each(&blobs)?) {
            let detail = match location {
                Some(location) if location.pack != pack || location.entry == *entry => continue,
                Some(_) => "the header of its pack has it at another place than the index",
                None => "the header of its pack has it, no index does",
            };
            self.lost.lock().lose_blob(entry.id, location.map(|location| location.pack));
            let object = FindingObject::Blob { blob: entry.id, pack: Some(pack) };
            self.find(FindingKind::Contradiction, object, detail);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_cover_a_pack_once_and_cut_no_blob(
            lengths in prop::collection::vec(32u32..9_000_000, 0..40),
            header in 36u64..10_000_000,
        ) {
            let mut offset = 0;
            let entries: Vec<PackEntry> = lengths
                .iter()
                .map(|&length| {
                    let entry = PackEntry {
                        id: BlobId::of(b""),
                        blob_type: BlobType::Data,
                        offset,
                        length,
                        uncompressed_length: None,
                    };
                    offset += length;
                    entry
                })
                .collect();
            let size = u64::from(offset) + header;
            let ranges = ranges_of(&entries, size);
            let (mut end, mut blob) = (0, 0);
            for range in &ranges {
                prop_assert_eq!(range.start, end);
                prop_assert!(range.end > range.start);
                prop_assert_eq!(range.blobs.start, blob);
                for entry in &entries[range.blobs.clone()] {
                    prop_assert!(u64::from(entry.offset) >= range.start);
                    prop_assert!(u64::from(entry.offset) + u64::from(entry.length) <= range.end);
                }
                (end, blob) = (range.end, range.blobs.end);
            }
            prop_assert_eq!((end, blob), (size, entries.len()));
        }
    }
}
