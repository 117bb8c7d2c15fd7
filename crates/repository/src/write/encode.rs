//! From a chunk to a sealed blob: compress, seal, open again and compare.

use std::sync::Arc;

use holdfast_runtime::fail_point;
use zstd::bulk::{Compressor, Decompressor};

use super::options::WriteOptions;
use crate::crypto::Sealer;
use crate::error::RepositoryError;
use crate::format::{IV_BYTES, SEAL_OVERHEAD_BYTES, TAG_BYTES};
use crate::id::BlobId;

/// Buffers of an encoder that are larger than this are given back: chunks of more than 4 MiB are rare.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// Encodes chunks, one after the other. Each worker has one; its contexts and buffers are used again and again.
pub(super) struct Encoder {
    sealer: Arc<Sealer>,
    verify: bool,
    compressor: Compressor<'static>,
    decompressor: Decompressor<'static>,
    /// Room for the IV, the text, room for the tag. Keeps its greatest length.
    sealed: Vec<u8>,
    opened: Vec<u8>,
    decompressed: Vec<u8>,
}

/// A sealed blob, borrowed from the encoder.
pub(super) struct Encoded<'a> {
    pub(super) sealed: &'a [u8],
    pub(super) uncompressed_length: Option<u32>,
}

impl Encoder {
    pub(super) fn new(sealer: Arc<Sealer>, options: &WriteOptions) -> Result<Self, RepositoryError> {
        let zstd_failed =
            |error: std::io::Error| RepositoryError::damaged("zstd", format!("it has no context: {error}"));
        Ok(Self {
            sealer,
            verify: options.verify_encoding,
            compressor: Compressor::new(options.level).map_err(zstd_failed)?,
            decompressor: Decompressor::new().map_err(zstd_failed)?,
            sealed: Vec::new(),
            opened: Vec::new(),
            decompressed: Vec::new(),
        })
    }

    /// Compresses where that pays, seals, and proves that the result opens to what went in.
    pub(super) fn encode(&mut self, id: BlobId, content: &[u8]) -> Result<Encoded<'_>, RepositoryError> {
        let mismatch =
            |stage| RepositoryError::EncodingMismatch { blob: id, size_bytes: content.len(), stage };
        let bound = zstd::zstd_safe::compress_bound(content.len());
        if self.sealed.len() < bound + SEAL_OVERHEAD_BYTES || self.sealed.len() > KEPT_BYTES_MAX {
            // Made anew instead of grown: pages that are never written to cost no memory.
            self.sealed = vec![0; bound.max(KEPT_BYTES_MAX / 2) + SEAL_OVERHEAD_BYTES];
        }
        let compressed = self
            .compressor
            .compress_to_buffer(content, &mut self.sealed[IV_BYTES..IV_BYTES + bound])
            .map_err(|_| mismatch("compression failed"))?;
        let pays = compressed + saving_min(content.len()) <= content.len();
        let (text_bytes, uncompressed_length) = if pays {
            let length = u32::try_from(content.len()).map_err(|_| mismatch("it has 4 GiB or more"))?;
            (compressed, Some(length))
        } else {
            self.sealed[IV_BYTES..IV_BYTES + content.len()].copy_from_slice(content);
            (content.len(), None)
        };
        let sealed = &mut self.sealed[..IV_BYTES + text_bytes + TAG_BYTES];
        if fail_point::hit_io("repository.encode.damage").is_err() {
            // What broken memory does, for a test.
            sealed[IV_BYTES + text_bytes / 2] ^= 1;
        }
        self.sealer.seal_in_place(sealed);
        if self.verify {
            self.opened.clear();
            self.opened.shrink_to(KEPT_BYTES_MAX);
            self.sealer.open(sealed, &mut self.opened).map_err(|_| mismatch("it did not open"))?;
            let text = if pays {
                self.decompressed.clear();
                self.decompressed.shrink_to(KEPT_BYTES_MAX);
                self.decompressed.reserve(content.len());
                self.decompressor
                    .decompress_to_buffer(&self.opened, &mut self.decompressed)
                    .map_err(|_| mismatch("it did not decompress"))?;
                &self.decompressed
            } else {
                &self.opened
            };
            if text != content {
                return Err(mismatch("its bytes differ"));
            }
        }
        Ok(Encoded { sealed, uncompressed_length })
    }
}

/// How many bytes compression must save: less is not worth the decompression of every read.
fn saving_min(content_bytes: usize) -> usize {
    (content_bytes / 64).max(8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::MasterKey;
    use crate::id::{BlobType, PackId};
    use crate::reader::{BlobOpener, BlobPlace};

    #[test]
    fn what_compresses_is_compressed_and_what_does_not_is_stored_raw() {
        let sealer = Arc::new(Sealer::new(&MasterKey::generate()));
        let mut encoder = Encoder::new(Arc::clone(&sealer), &WriteOptions::default()).unwrap();
        let noise: Vec<u8> =
            (0u32..100_000).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 ^ (n >> 3) as u8).collect();
        let noise: Vec<u8> = noise.chunks(32).flat_map(|part| *BlobId::of(part).as_bytes()).collect();
        for (content, raw) in
            [(vec![7; 50_000], false), (noise, true), (b"abc".to_vec(), true), (Vec::new(), true)]
        {
            let id = BlobId::of(&content);
            let encoded = encoder.encode(id, &content).unwrap();
            assert_eq!(encoded.uncompressed_length.is_none(), raw);
            let place = BlobPlace {
                pack: PackId::of(b""),
                offset: 0,
                length: encoded.sealed.len() as u32,
                uncompressed_length: encoded.uncompressed_length,
                blob_type: BlobType::Data,
            };
            let mut opener = BlobOpener::new(Arc::clone(&sealer)).unwrap();
            assert_eq!(opener.open(&id, &place, encoded.sealed).unwrap(), content);
        }
    }
}
