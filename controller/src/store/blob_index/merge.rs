//! Making segments: of sorted slots, and of other segments.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::PathBuf;
use std::sync::Arc;

use super::BlobIndexError;
use super::packs::Removed;
use super::segment::{Builder, Segment, SlotStream};
use super::slot::Slot;

/// So many segments of a size are merged into one of the next. A blob is written once for each size.
const FAN_IN: usize = 4;
/// The same during a rebuild, when much is written and little is asked.
const FAN_IN_OF_REBUILD: usize = 8;

/// A segment in the making.
pub(super) struct Merge {
    pub(super) path: PathBuf,
    pub(super) filter_bytes_max: u64,
}

impl Merge {
    /// Writes sorted slots; nothing when there are none.
    pub(super) fn write_sorted(self, slots: Vec<Slot>) -> Result<Option<Segment>, BlobIndexError> {
        let packs_end = slots.iter().map(|slot| slot.pack() + 1).max().unwrap_or(0);
        let mut builder = Builder::begin(&self.path, slots.len() as u64, packs_end, self.filter_bytes_max)?;
        let mut last = None;
        for slot in slots {
            if last.replace(slot) != Some(slot) {
                builder.add(&slot)?;
            }
        }
        builder.finish()
    }

    /// Writes the slots of other segments in one order, without those of removed packs; nothing when none is left.
    pub(super) fn write_merged(
        self,
        parts: &[Arc<Segment>],
        removed: &Removed,
    ) -> Result<Option<Segment>, BlobIndexError> {
        let slots = parts.iter().map(|part| part.slots()).sum();
        let packs_end = parts.iter().map(|part| part.packs_end()).max().unwrap_or(0);
        let mut builder = Builder::begin(&self.path, slots, packs_end, self.filter_bytes_max)?;
        let mut streams: Vec<SlotStream<'_>> = parts.iter().map(|part| part.stream()).collect();
        let mut heads: Vec<Option<Slot>> = Vec::with_capacity(streams.len());
        let mut next = BinaryHeap::new();
        for (number, stream) in streams.iter_mut().enumerate() {
            let head = stream.next_slot()?;
            next.extend(head.map(|slot| Reverse((slot.order(), number))));
            heads.push(head);
        }
        let mut last = None;
        while let Some(Reverse((_, number))) = next.pop() {
            let Some(slot) = std::mem::replace(&mut heads[number], streams[number].next_slot()?) else {
                continue;
            };
            next.extend(heads[number].map(|slot| Reverse((slot.order(), number))));
            // A crash between a merge and the removal of its parts leaves slots twice.
            if last.replace(slot) != Some(slot) && !removed.contains(slot.pack()) {
                builder.add(&slot)?;
            }
        }
        builder.finish()
    }
}

/// Which segments to merge: those of the smallest size of which there are enough. Sizes grow by the number that is
/// merged, from the size of a new segment on.
pub(super) fn choose(sizes: &[u64], new_size: u64, complete: bool) -> Vec<usize> {
    let fan_in = if complete { FAN_IN } else { FAN_IN_OF_REBUILD };
    let level = |size: u64| (size / new_size.max(1)).max(1).ilog(fan_in as u64);
    let highest = sizes.iter().map(|&size| level(size)).max().unwrap_or(0);
    (0..=highest)
        .map(|wanted| (0..sizes.len()).filter(|&place| level(sizes[place]) == wanted).collect::<Vec<_>>())
        .find(|places| places.len() >= fan_in)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_of_a_size_are_left_alone_and_enough_are_merged_smallest_first() {
        assert!(choose(&[], 100, true).is_empty());
        assert!(choose(&[100, 100, 100], 100, true).is_empty());
        assert_eq!(choose(&[400, 100, 100, 100, 120], 100, true), [1, 2, 3, 4]);
        assert_eq!(choose(&[400, 100, 500, 1_599, 400], 100, true), [0, 2, 3, 4]);
        assert_eq!(choose(&[400, 410, 420, 430, 7, 8, 9, 10], 100, true), [4, 5, 6, 7]);
        assert!(choose(&[100; 7], 100, false).is_empty());
        assert_eq!(choose(&[100; 8], 100, false).len(), 8);
    }

    #[test]
    fn the_number_of_segments_grows_with_the_logarithm() {
        let mut sizes: Vec<u64> = Vec::new();
        let mut written = 0;
        for _ in 0..1_526 {
            sizes.push(65_536);
            loop {
                let chosen = choose(&sizes, 65_536, true);
                if chosen.is_empty() {
                    break;
                }
                let merged: u64 = chosen.iter().map(|&place| sizes[place]).sum();
                written += merged;
                sizes = (0..sizes.len())
                    .filter(|place| !chosen.contains(place))
                    .map(|place| sizes[place])
                    .collect();
                sizes.push(merged);
            }
            assert!(sizes.len() <= 18);
        }
        assert!(written <= 6 * 100_000_000, "100 million blobs are written {written} times");
    }
}
