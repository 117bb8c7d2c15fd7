//! Which blobs are read together. Pure.

use std::ops::Range;

use super::BlobPlace;
use crate::id::PackId;

/// The longest range that is read in one request, unless a single blob is longer.
pub const READ_BYTES_MAX: u32 = 4 << 20;

/// Blobs that are at most this far apart are read together: fetching the gap costs less than another request.
pub const GAP_BYTES_MAX: u32 = 128 << 10;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackRead {
    /// The pack.
    pub pack: PackId,
    /// Where the range begins.
    pub offset: u32,
    /// How long it is.
    pub length: u32,
    /// Which of the places lie in it.
    pub members: Range<usize>,
}

impl PackRead {
    /// The part of the bytes that were read that is one member's.
    ///
    /// # Panics
    /// When the place is not one of the members, or `bytes` are not the whole range.
    pub fn part<'b>(&self, bytes: &'b [u8], place: &BlobPlace) -> &'b [u8] {
        let start = (place.offset - self.offset) as usize;
        &bytes[start..start + place.length as usize]
    }
}

/// Joins places that follow one another in the list and lie close in the same pack. Sort them by pack and offset for
/// the fewest requests, or leave them in the order in which they are needed.
pub fn coalesce(places: &[BlobPlace]) -> Vec<PackRead> {
    let mut reads: Vec<PackRead> = Vec::new();
    for (number, place) in places.iter().enumerate() {
        if let Some(read) = reads.last_mut()
            && let Some(length) = joined_length(read, place)
        {
            read.length = length;
            read.members.end = number + 1;
            continue;
        }
        reads.push(PackRead {
            pack: place.pack,
            offset: place.offset,
            length: place.length,
            members: number..number + 1,
        });
    }
    reads
}

/// The length of the range when the place is added to it, if it may be.
fn joined_length(read: &PackRead, place: &BlobPlace) -> Option<u32> {
    let end = read.offset.checked_add(read.length)?;
    if place.pack != read.pack
        || place.offset < read.offset
        || place.offset > end.saturating_add(GAP_BYTES_MAX)
    {
        return None;
    }
    let new_end = place.offset.checked_add(place.length)?.max(end);
    let length = new_end - read.offset;
    (length <= READ_BYTES_MAX).then_some(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::BlobType;

    fn place(pack: u8, offset: u32, length: u32) -> BlobPlace {
        BlobPlace {
            pack: PackId::from_bytes([pack; 32]),
            offset,
            length,
            uncompressed_length: None,
            blob_type: BlobType::Data,
        }
    }

    #[test]
    fn neighbours_are_read_together_and_far_ones_apart() {
        let far = 3000 + GAP_BYTES_MAX + 1;
        let places = [
            place(1, 0, 1000),
            place(1, 1000, 1000),
            place(1, 2500, 500),
            place(1, far, 7),
            place(2, far + 7, 7),
        ];
        let reads = coalesce(&places);
        let shape: Vec<_> =
            reads.iter().map(|read| (read.offset, read.length, read.members.clone())).collect();
        assert_eq!(shape, [(0, 3000, 0..3), (far, 7, 3..4), (far + 7, 7, 4..5)]);
    }

    #[test]
    fn a_blob_longer_than_a_request_is_read_alone() {
        let places = [place(1, 0, 10), place(1, 10, READ_BYTES_MAX + 1), place(1, READ_BYTES_MAX + 11, 10)];
        assert_eq!(coalesce(&places).len(), 3);
    }

    proptest! {
        #[test]
        fn every_place_is_in_exactly_one_read_and_whole(
            places in prop::collection::vec((0u8..3, any::<u32>(), 32u32..9_000_000), 0..60),
            sorted: bool,
        ) {
            let mut places: Vec<_> =
                places.into_iter().map(|(pack, offset, length)| place(pack, offset, length)).collect();
            if sorted {
                places.sort_by_key(|place| (place.pack, place.offset));
            }
            let reads = coalesce(&places);
            let mut next = 0;
            for read in &reads {
                prop_assert_eq!(read.members.start, next);
                next = read.members.end;
                prop_assert!(read.members.len() == 1 || read.length <= READ_BYTES_MAX);
                for place in &places[read.members.clone()] {
                    prop_assert_eq!(place.pack, read.pack);
                    prop_assert!(place.offset >= read.offset);
                    let end = u64::from(read.offset) + u64::from(read.length);
                    prop_assert!(place.end() <= end);
                }
            }
            prop_assert_eq!(next, places.len());
        }
    }
}
