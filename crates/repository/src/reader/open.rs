//! One sealed blob becomes verified content.

use std::sync::Arc;

use super::BlobPlace;
use crate::crypto::Sealer;
use crate::error::RepositoryError;
use crate::format::{DATA_BLOB_BYTES_MAX, ObjectName, SEAL_OVERHEAD_BYTES, TREE_BLOB_BYTES_MAX};
use crate::id::{BlobId, BlobType};

/// How errors name a blob within its pack.
pub(crate) fn blob_name(id: &BlobId, place: &BlobPlace) -> String {
    format!("blob {id} in {}", ObjectName::Pack(place.pack))
}

/// Opens blobs, one after the other, in buffers that are used again: one opener per thread.
pub struct BlobOpener {
    sealer: Arc<Sealer>,
    decompressor: zstd::bulk::Decompressor<'static>,
    opened: Vec<u8>,
    content: Vec<u8>,
}

impl BlobOpener {
    /// An opener with this key.
    ///
    /// # Errors
    /// When there is no memory for a decompressor.
    pub fn new(sealer: Arc<Sealer>) -> Result<Self, RepositoryError> {
        let decompressor = zstd::bulk::Decompressor::new()
            .map_err(|_| RepositoryError::Pipeline("no memory for a decompressor"))?;
        Ok(Self { sealer, decompressor, opened: Vec::new(), content: Vec::new() })
    }

    /// Opens, decompresses and compares the hash. Costs one SHA-256 of the content. The buffers stay as large as the
    /// largest blob so far.
    ///
    /// # Errors
    /// `HF-3018` when the index claims more content than a blob may have, `HF-3006` for everything else that is wrong.
    pub fn open(&mut self, id: &BlobId, place: &BlobPlace, sealed: &[u8]) -> Result<&[u8], RepositoryError> {
        let damaged = |reason: String| RepositoryError::damaged(blob_name(id, place), reason);
        check_lengths(id, place, sealed.len())?;
        self.sealer
            .open(sealed, &mut self.opened)
            .map_err(|_| damaged("its authentication tag does not fit".to_owned()))?;
        if let Some(length) = place.uncompressed_length {
            let length = length as usize;
            self.content.clear();
            // The stated length is the bound: what would decompress to more fails instead of growing.
            self.content.reserve_exact(length);
            self.decompressor
                .decompress_to_buffer(&self.opened, &mut self.content)
                .map_err(|error| damaged(format!("it does not decompress: {error}")))?;
            if self.content.len() != length {
                return Err(damaged(format!("it has {} bytes, the index says {length}", self.content.len())));
            }
        } else {
            std::mem::swap(&mut self.opened, &mut self.content);
        }
        let found = BlobId::of(&self.content);
        if found != *id {
            return Err(damaged(format!("its content has the hash {found}")));
        }
        Ok(&self.content)
    }

    /// The blob that was opened last at this place as it is stored: compressed, when it was.
    pub fn stored(&self, place: &BlobPlace) -> &[u8] {
        if place.uncompressed_length.is_some() { &self.opened } else { &self.content }
    }

    /// Takes the content of the blob that was opened last, with its buffer.
    pub fn take_content(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.content)
    }
}

/// Before anything is allocated: the lengths must be possible.
fn check_lengths(id: &BlobId, place: &BlobPlace, sealed_bytes: usize) -> Result<(), RepositoryError> {
    let limit = match place.blob_type {
        BlobType::Data => DATA_BLOB_BYTES_MAX,
        BlobType::Tree => TREE_BLOB_BYTES_MAX,
    };
    if place.content_length() as usize > limit {
        return Err(RepositoryError::LimitExceeded {
            object: blob_name(id, place),
            what: "bytes of content",
            actual: u64::from(place.content_length()),
            limit: limit as u64,
        });
    }
    if sealed_bytes != place.length as usize || sealed_bytes < SEAL_OVERHEAD_BYTES {
        let reason = format!("{sealed_bytes} bytes came, the index says {}", place.length);
        return Err(RepositoryError::damaged(blob_name(id, place), reason));
    }
    Ok(())
}
