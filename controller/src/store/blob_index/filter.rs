//! A filter that says of most unknown blobs that they are unknown, without a read.
//!
//! Bits are set in one block of 512 bits for each id, so that a question touches one line of the processor's cache.
//! Ids are hashes: their own bytes choose block and bits. Ids that somebody chose to collide cost time, not truth.

use holdfast_repository::id::BlobId;

const BLOCK_WORDS: usize = 8;
const BLOCK_BITS: usize = BLOCK_WORDS * 64;
/// More bits for each id would gain little.
const BITS_PER_KEY_MAX: u64 = 10;
/// Bits that one id sets at most: nine bits of eight bytes choose each.
const HASHES_MAX: u32 = 7;

/// The filter of one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    words: Vec<u64>,
    hashes: u32,
}

impl Filter {
    /// An empty filter for so many ids, of about so many bytes at most: beyond them it says less.
    pub fn for_keys(keys: u64, bytes_max: u64) -> Self {
        let bits_per_key = (bytes_max * 8 / keys.max(1)).clamp(1, BITS_PER_KEY_MAX);
        let blocks = (keys * bits_per_key).div_ceil(BLOCK_BITS as u64).max(1);
        // ln 2 times the bits of each id is the best number.
        let hashes = u32::try_from(bits_per_key * 69 / 100).unwrap_or(HASHES_MAX).clamp(1, HASHES_MAX);
        let words = usize::try_from(blocks).expect("a filter fits in memory") * BLOCK_WORDS;
        Self { words: vec![0; words], hashes }
    }

    /// A filter as it was written; `None` when it cannot be one.
    pub fn from_parts(words: Vec<u64>, hashes: u32) -> Option<Self> {
        let fits = !words.is_empty()
            && words.len().is_multiple_of(BLOCK_WORDS)
            && (1..=HASHES_MAX).contains(&hashes);
        fits.then_some(Self { words, hashes })
    }

    /// The words, as they are written.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// How many bits one id sets.
    pub fn hashes(&self) -> u32 {
        self.hashes
    }

    /// Enters an id.
    pub fn insert(&mut self, id: &BlobId) {
        let (block, mut bits) = self.place(id);
        for _ in 0..self.hashes {
            self.words[block + (bits as usize >> 6) % BLOCK_WORDS] |= 1 << (bits & 63);
            bits >>= 9;
        }
    }

    /// `false` when the id was certainly not entered.
    pub fn may_contain(&self, id: &BlobId) -> bool {
        let (block, mut bits) = self.place(id);
        (0..self.hashes).all(|_| {
            let word = self.words[block + (bits as usize >> 6) % BLOCK_WORDS];
            let set = word >> (bits & 63) & 1 == 1;
            bits >>= 9;
            set
        })
    }

    /// The first word of the id's block, and the bytes that choose its bits.
    fn place(&self, id: &BlobId) -> (usize, u64) {
        let number = |start: usize| {
            u64::from_le_bytes(*id.as_bytes()[start..].first_chunk().expect("an id has 32 bytes"))
        };
        let blocks = (self.words.len() / BLOCK_WORDS) as u128;
        // The high half of the product is evenly spread over the blocks.
        let block = (u128::from(number(8)) * blocks) >> 64;
        (block as usize * BLOCK_WORDS, number(16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_entered_is_found_and_most_else_is_not() {
        let ids: Vec<BlobId> = (0..20_000_u32).map(|n| BlobId::of(&n.to_le_bytes())).collect();
        let (known, unknown) = ids.split_at(10_000);
        for (bytes_max, false_share_max) in [(1 << 20, 0.03), (3_750, 0.40)] {
            let mut filter = Filter::for_keys(10_000, bytes_max);
            assert!(filter.words().len() * 8 <= 12_544);
            known.iter().for_each(|id| filter.insert(id));
            assert!(known.iter().all(|id| filter.may_contain(id)));
            let false_hits = unknown.iter().filter(|id| filter.may_contain(id)).count();
            assert!((false_hits as f64) < 10_000.0 * false_share_max, "{false_hits} of 10,000");
            let copy = Filter::from_parts(filter.words().to_vec(), filter.hashes());
            assert_eq!(copy, Some(filter));
        }
    }
}
