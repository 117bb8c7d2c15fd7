//! Packs: sealed blobs one after the other, a sealed header that lists them, and the header's length.
//!
//! `blob ‖ … ‖ blob ‖ header ‖ length of the sealed header (4 bytes, little endian)`. The header has one entry per blob
//! in their order, so offsets follow from lengths.

use bytes::Bytes;

use crate::crypto::Sealer;
use crate::error::RepositoryError;
use crate::format::{
    HEADER_ENTRY_COMPRESSED_BYTES, HEADER_ENTRY_PLAIN_BYTES, ObjectName, PACK_ENTRIES_MAX,
    PACK_HEADER_BYTES_MAX, PACK_TRAILER_BYTES, SEAL_OVERHEAD_BYTES,
};
use crate::id::{BlobId, BlobType, PackId};

/// Where one blob lies in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackEntry {
    /// The SHA-256 of its content.
    pub id: BlobId,
    /// What it holds.
    pub blob_type: BlobType,
    /// Where it begins in the pack, in bytes.
    pub offset: u32,
    /// Its length in the pack, sealed, in bytes.
    pub length: u32,
    /// The length of its content in bytes; `None` when it is stored without compression.
    pub uncompressed_length: Option<u32>,
}

impl PackEntry {
    /// The length of the blob's content in bytes.
    pub fn content_length(&self) -> u32 {
        self.uncompressed_length.unwrap_or(self.length.saturating_sub(SEAL_OVERHEAD_BYTES as u32))
    }

    /// Bytes of its entry in the header.
    pub fn header_bytes(&self) -> usize {
        match self.uncompressed_length {
            Some(_) => HEADER_ENTRY_COMPRESSED_BYTES,
            None => HEADER_ENTRY_PLAIN_BYTES,
        }
    }
}

/// A finished pack, ready to be stored under its id.
#[derive(Debug, Clone)]
pub struct SealedPack {
    /// The SHA-256 of `bytes`.
    pub id: PackId,
    /// The whole object.
    pub bytes: Bytes,
    /// What is in it, in order.
    pub entries: Vec<PackEntry>,
}

/// A pack that is being filled. Blobs of one pack are of one type.
#[derive(Debug)]
pub struct PackBuilder {
    blob_type: BlobType,
    bytes: Vec<u8>,
    entries: Vec<PackEntry>,
}

impl PackBuilder {
    /// An empty pack that is expected to grow to about `capacity` bytes.
    pub fn new(blob_type: BlobType, capacity: usize) -> Self {
        Self { blob_type, bytes: Vec::with_capacity(capacity), entries: Vec::new() }
    }

    /// Bytes of sealed blobs so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether no blob is in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether it has as many entries as a pack may have.
    pub fn entries_full(&self) -> bool {
        self.entries.len() >= PACK_ENTRIES_MAX
    }

    /// Adds a sealed blob.
    ///
    /// # Panics
    /// When the pack would exceed 4 GiB; callers finish packs long before.
    pub fn push(&mut self, id: BlobId, sealed: &[u8], uncompressed_length: Option<u32>) {
        let offset = u32::try_from(self.bytes.len()).expect("a pack is finished before it has 4 GiB");
        let length = u32::try_from(sealed.len()).expect("a sealed blob is far smaller than 4 GiB");
        self.bytes.extend_from_slice(sealed);
        self.entries.push(PackEntry { id, blob_type: self.blob_type, offset, length, uncompressed_length });
    }

    /// Adds the header and hashes the whole. Costs one SHA-256 of the pack.
    pub fn finish(mut self, sealer: &Sealer) -> SealedPack {
        let header = encode_header(&self.entries);
        let length =
            u32::try_from(sealer.seal(&header, &mut self.bytes)).expect("a header is limited by its entries");
        self.bytes.extend_from_slice(&length.to_le_bytes());
        SealedPack { id: PackId::of(&self.bytes), bytes: Bytes::from(self.bytes), entries: self.entries }
    }
}

fn encode_header(entries: &[PackEntry]) -> Vec<u8> {
    let mut header = Vec::with_capacity(entries.iter().map(PackEntry::header_bytes).sum());
    for entry in entries {
        let type_bit = match entry.blob_type {
            BlobType::Data => 0,
            BlobType::Tree => 1,
        };
        header.push(type_bit | if entry.uncompressed_length.is_some() { 2 } else { 0 });
        header.extend_from_slice(&entry.length.to_le_bytes());
        if let Some(length) = entry.uncompressed_length {
            header.extend_from_slice(&length.to_le_bytes());
        }
        header.extend_from_slice(entry.id.as_bytes());
    }
    header
}

/// The length of the sealed header from the last four bytes of a pack of `pack_bytes`.
///
/// # Errors
/// `HF-3006` when the pack cannot hold such a header, `HF-3018` when it is beyond the format's limit.
pub fn header_length(
    pack: PackId,
    pack_bytes: u64,
    trailer: [u8; PACK_TRAILER_BYTES],
) -> Result<usize, RepositoryError> {
    let name = ObjectName::Pack(pack);
    let length = u32::from_le_bytes(trailer) as usize;
    if length > PACK_HEADER_BYTES_MAX {
        return Err(RepositoryError::LimitExceeded {
            object: name.to_string(),
            what: "bytes of header",
            actual: length as u64,
            limit: PACK_HEADER_BYTES_MAX as u64,
        });
    }
    let fits = (length + PACK_TRAILER_BYTES) as u64 <= pack_bytes;
    if length < SEAL_OVERHEAD_BYTES + HEADER_ENTRY_PLAIN_BYTES || !fits {
        let reason = format!("{pack_bytes} bytes cannot end with a header of {length} bytes");
        return Err(RepositoryError::damaged(name, reason));
    }
    Ok(length)
}

/// Opens the sealed header of a pack of `pack_bytes` and lists its blobs.
///
/// # Errors
/// `HF-3006` when it does not open, is malformed, or its blobs do not fill the pack exactly.
pub fn parse_header(
    pack: PackId,
    pack_bytes: u64,
    sealed_header: &[u8],
    sealer: &Sealer,
) -> Result<Vec<PackEntry>, RepositoryError> {
    let damaged = |reason: String| RepositoryError::damaged(ObjectName::Pack(pack), reason);
    let mut header = Vec::new();
    sealer
        .open(sealed_header, &mut header)
        .map_err(|_| damaged("its header does not open with the key of the repository".to_owned()))?;
    let entries = decode_header(&header).map_err(damaged)?;
    let blobs_end = entries.last().map_or(0, |entry| u64::from(entry.offset) + u64::from(entry.length));
    let expected = blobs_end + (sealed_header.len() + PACK_TRAILER_BYTES) as u64;
    if expected != pack_bytes {
        return Err(damaged(format!("its header describes {expected} bytes, it has {pack_bytes}")));
    }
    Ok(entries)
}

/// Reads an opened header. Survives any input.
pub(crate) fn decode_header(header: &[u8]) -> Result<Vec<PackEntry>, String> {
    let mut entries = Vec::with_capacity(header.len() / HEADER_ENTRY_PLAIN_BYTES);
    let mut rest = header;
    let mut offset: u32 = 0;
    while let Some((&kind, tail)) = rest.split_first() {
        if kind > 3 {
            return Err(format!("entry {} of its header has the unknown type {kind}", entries.len()));
        }
        let blob_type = if kind & 1 == 0 { BlobType::Data } else { BlobType::Tree };
        let short = || format!("entry {} of its header is cut off", entries.len());
        let (length, tail) = take_u32(tail).ok_or_else(short)?;
        let (uncompressed_length, tail) = if kind & 2 == 0 {
            (None, tail)
        } else {
            let (length, tail) = take_u32(tail).ok_or_else(short)?;
            (Some(length), tail)
        };
        let (id, tail) = tail.split_first_chunk::<32>().ok_or_else(short)?;
        if (length as usize) < SEAL_OVERHEAD_BYTES {
            return Err(format!("entry {} of its header has the impossible length {length}", entries.len()));
        }
        let id = BlobId::from_bytes(*id);
        entries.push(PackEntry { id, blob_type, offset, length, uncompressed_length });
        offset = offset
            .checked_add(length)
            .ok_or_else(|| "the blobs of its header add up to more than 4 GiB".to_owned())?;
        rest = tail;
    }
    Ok(entries)
}

fn take_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    bytes.split_first_chunk::<4>().map(|(first, rest)| (u32::from_le_bytes(*first), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::MasterKey;
    use holdfast_model::ErrorCode;
    use proptest::prelude::*;

    fn sealer() -> Sealer {
        Sealer::new(&MasterKey::from_bytes(&[7; 64]))
    }

    fn read_back(pack: &SealedPack, bytes: &[u8]) -> Result<Vec<PackEntry>, RepositoryError> {
        let size = bytes.len() as u64;
        let trailer = *bytes.last_chunk::<4>().unwrap();
        let length = header_length(pack.id, size, trailer)?;
        parse_header(pack.id, size, &bytes[bytes.len() - 4 - length..bytes.len() - 4], &sealer())
    }

    proptest! {
        #[test]
        fn a_pack_lists_what_was_put_in(
            blobs in prop::collection::vec((any::<[u8; 32]>(), 32usize..200, any::<Option<u32>>()), 1..50),
            tree: bool,
        ) {
            let blob_type = if tree { BlobType::Tree } else { BlobType::Data };
            let mut builder = PackBuilder::new(blob_type, 0);
            for (id, length, uncompressed) in &blobs {
                builder.push(BlobId::from_bytes(*id), &vec![1; *length], *uncompressed);
            }
            let pack = builder.finish(&sealer());
            prop_assert_eq!(pack.id, PackId::of(&pack.bytes));
            let entries = read_back(&pack, &pack.bytes).unwrap();
            prop_assert_eq!(&entries, &pack.entries);
            for (entry, (id, length, uncompressed)) in entries.iter().zip(&blobs) {
                prop_assert_eq!(entry.id.as_bytes(), id);
                prop_assert_eq!(entry.length as usize, *length);
                prop_assert_eq!(entry.uncompressed_length, *uncompressed);
                prop_assert_eq!(entry.blob_type, blob_type);
            }
        }

        #[test]
        fn a_hostile_header_is_an_error_or_a_list_and_never_a_panic(header in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode_header(&header);
        }

        #[test]
        fn an_altered_pack_is_refused(position: prop::sample::Index, bit in 0u8..8) {
            let mut builder = PackBuilder::new(BlobType::Data, 0);
            builder.push(BlobId::of(b"x"), &[0; 40], None);
            builder.push(BlobId::of(b"y"), &[0; 50], Some(90));
            let pack = builder.finish(&sealer());
            let mut bytes = pack.bytes.to_vec();
            // Blobs are sealed on their own; here only the header and its length are looked at.
            let index = 90 + position.index(bytes.len() - 90);
            bytes[index] ^= 1 << bit;
            prop_assert!(read_back(&pack, &bytes).is_err());
        }
    }

    #[test]
    fn a_pack_of_another_size_than_its_header_says_is_damaged() {
        let mut builder = PackBuilder::new(BlobType::Data, 0);
        builder.push(BlobId::of(b"x"), &[0; 40], None);
        let pack = builder.finish(&sealer());
        let longer = [&[0], &pack.bytes[..]].concat();
        assert_eq!(read_back(&pack, &longer).unwrap_err().code(), ErrorCode::ObjectDamaged);
        assert_eq!(read_back(&pack, &pack.bytes[1..]).unwrap_err().code(), ErrorCode::ObjectDamaged);
    }

    #[test]
    fn a_header_beyond_the_limit_is_refused_unread() {
        let error = header_length(PackId::of(b""), 1 << 40, u32::MAX.to_le_bytes()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::LimitExceeded);
    }
}
