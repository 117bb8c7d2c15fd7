//! Where content is cut into chunks.
//!
//! Streams and files are cut where their content says so (FastCDC with normalised chunking, written anew): an insertion
//! moves the cuts with it, and what follows is found again. The rolling hash is `h = 2h + gear[byte]`; a chunk ends
//! behind the first byte, from the minimum on, after which `h` is below a threshold, which is low before the average
//! size and high behind it. Every `h` depends on the last 64 bytes alone.
//!
//! The gear table is derived from the repository: equal files in two repositories are cut differently, so lengths of
//! chunks say nothing about known files. Database page files are cut at fixed multiples of their pages instead.

use sha2::{Digest, Sha256};

use crate::config::Config;

/// No chunk but the last of a file is shorter, in bytes.
pub const CHUNK_BYTES_MIN: usize = 512 << 10;
/// From here on a cut becomes sixteen times as likely, in bytes.
pub const CHUNK_BYTES_AVERAGE: usize = 1 << 20;
/// No chunk is longer, in bytes.
pub const CHUNK_BYTES_MAX: usize = 8 << 20;

/// Bytes that one value of the rolling hash depends on.
const WINDOW_BYTES: usize = 64;
/// Separates this use of the hash from any other.
const GEAR_DOMAIN: &[u8] = b"holdfast chunker gear, version 1\n";

/// Cuts content into chunks.
#[derive(Clone)]
pub struct Chunker {
    gear: Box<[u64; 256]>,
    sizes: ChunkSizes,
    threshold_before_average: u64,
    threshold_after_average: u64,
}

impl std::fmt::Debug for Chunker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chunker").field("sizes", &self.sizes).finish_non_exhaustive()
    }
}

/// The sizes that a chunker aims at, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSizes {
    /// No chunk but the last is shorter; at least 64.
    pub min: usize,
    /// A power of two, at least `min`.
    pub average: usize,
    /// No chunk is longer; at least `average`.
    pub max: usize,
}

impl Default for ChunkSizes {
    fn default() -> Self {
        Self { min: CHUNK_BYTES_MIN, average: CHUNK_BYTES_AVERAGE, max: CHUNK_BYTES_MAX }
    }
}

impl Chunker {
    /// The chunker of a repository.
    pub fn of(config: &Config) -> Self {
        Self::with_sizes(config, ChunkSizes::default())
    }

    /// The chunker of a repository with other sizes. Chunks of different sizes are never the same blobs.
    ///
    /// # Panics
    /// When the sizes break a rule of [`ChunkSizes`].
    pub fn with_sizes(config: &Config, sizes: ChunkSizes) -> Self {
        let ordered = WINDOW_BYTES <= sizes.min && sizes.min <= sizes.average && sizes.average <= sizes.max;
        assert!(ordered && sizes.average.is_power_of_two(), "chunk sizes must be ordered: {sizes:?}");
        let mut gear = Box::new([0; 256]);
        for (byte, value) in (0u8..=255).zip(gear.iter_mut()) {
            let mut hash = Sha256::new();
            hash.update(GEAR_DOMAIN);
            hash.update(config.id.as_bytes());
            hash.update(config.chunker_polynomial.bits().to_le_bytes());
            hash.update([byte]);
            let digest: [u8; 32] = hash.finalize().into();
            *value = u64::from_le_bytes(*digest.first_chunk().expect("a SHA-256 has 32 bytes"));
        }
        let bits = sizes.average.ilog2();
        Self {
            gear,
            sizes,
            threshold_before_average: 1 << (62 - bits),
            threshold_after_average: 1 << (66 - bits).min(63),
        }
    }

    /// The sizes it aims at.
    pub fn sizes(&self) -> ChunkSizes {
        self.sizes
    }

    /// The length of the first chunk of `data`. `None` when that depends on bytes that are still to come, which is
    /// never so once `data` has the maximum length or the content has `ended`. Empty content has no chunk.
    pub fn cut(&self, data: &[u8], ended: bool) -> Option<usize> {
        let ChunkSizes { min, average, max } = self.sizes;
        let limited = &data[..data.len().min(max)];
        if limited.len() > min {
            let hash = limited[min - WINDOW_BYTES..min].iter().fold(0, |hash, &byte| self.roll(hash, byte));
            let middle = limited.len().min(average);
            match self.scan(hash, &limited[min..middle], self.threshold_before_average) {
                Ok(length) => return Some(min + length),
                Err(hash) => {
                    if let Ok(length) = self.scan(hash, &limited[middle..], self.threshold_after_average) {
                        return Some(middle + length);
                    }
                }
            }
        }
        let complete = data.len() >= max || ended;
        (complete && !data.is_empty()).then_some(limited.len())
    }

    /// The number of bytes up to and with the first behind which the hash is below the threshold, or the last hash.
    fn scan(&self, mut hash: u64, data: &[u8], threshold: u64) -> Result<usize, u64> {
        for (index, &byte) in data.iter().enumerate() {
            hash = self.roll(hash, byte);
            if hash < threshold {
                return Ok(index + 1);
            }
        }
        Err(hash)
    }

    #[inline]
    fn roll(&self, hash: u64, byte: u8) -> u64 {
        (hash << 1).wrapping_add(self.gear[usize::from(byte)])
    }
}

/// Length of the chunks of a file of database pages: the larger the file, the larger its chunks, so that a file never
/// drowns the index; always a multiple of the page.
///
/// The 8,192nd part of the file rounded up to a power of two, at least 16 KiB and at most 1 MiB: small databases, in
/// which a few changes touch a large share of all pages, get an increment that is small as well.
pub fn fixed_chunk_bytes(file_bytes: u64, page_bytes: u32) -> usize {
    let part = usize::try_from(file_bytes / 8192).unwrap_or(usize::MAX).min(1 << 20);
    let base = part.next_power_of_two().clamp(16 << 10, 1 << 20);
    base.next_multiple_of(page_bytes.max(1) as usize).min(CHUNK_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RepositoryId;
    use crate::polynomial::Polynomial;
    use proptest::prelude::*;

    fn config() -> Config {
        let chunker_polynomial = Polynomial::parse("25b468838dcb75").unwrap();
        Config { id: RepositoryId::from_bytes([0x42; 32]), chunker_polynomial }
    }

    fn small() -> Chunker {
        Chunker::with_sizes(&config(), ChunkSizes { min: 64, average: 256, max: 2048 })
    }

    /// A fixed stream of bytes without structure.
    fn noise(mut seed: u64, length: usize) -> Vec<u8> {
        std::iter::repeat_with(|| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 32) as u8
        })
        .take(length)
        .collect()
    }

    fn chunks(chunker: &Chunker, data: &[u8]) -> Vec<usize> {
        let mut lengths = Vec::new();
        let mut rest = data;
        while let Some(length) = chunker.cut(rest, true) {
            lengths.push(length);
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
        lengths
    }

    #[test]
    fn cuts_of_a_known_stream_never_change() {
        let data = noise(7, 12 << 20);
        let known = [1546639, 1098459, 1160324, 1548676, 1142471, 1053232, 1469412, 1325760, 1377797, 860142];
        assert_eq!(chunks(&Chunker::of(&config()), &data), known);
    }

    #[test]
    fn another_repository_cuts_elsewhere() {
        let other = Config { id: RepositoryId::from_bytes([0x43; 32]), ..config() };
        let data = noise(7, 12 << 20);
        assert_ne!(chunks(&Chunker::of(&config()), &data), chunks(&Chunker::of(&other), &data));
    }

    #[test]
    fn content_without_variety_is_cut_at_the_maximum() {
        let lengths = chunks(&small(), &[0; 5000]);
        assert!(lengths == [2048, 2048, 904] || lengths.iter().all(|&length| length <= 2048), "{lengths:?}");
    }

    #[test]
    fn nothing_is_no_chunk() {
        assert_eq!(small().cut(&[], true), None);
        assert_eq!(small().cut(&[], false), None);
    }

    proptest! {
        #[test]
        fn chunks_add_up_and_keep_their_bounds(seed in 1u64.., length in 0usize..40_000) {
            let data = noise(seed, length);
            let lengths = chunks(&small(), &data);
            prop_assert_eq!(lengths.iter().sum::<usize>(), length);
            prop_assert!(lengths.iter().all(|&length| length <= 2048));
            prop_assert!(lengths.iter().rev().skip(1).all(|&length| length > 64));
        }

        #[test]
        fn pieces_are_cut_as_the_whole(seed in 1u64.., length in 1usize..20_000, piece in 1usize..3000) {
            let data = noise(seed, length);
            let chunker = small();
            let (mut lengths, mut start, mut end) = (Vec::new(), 0, 0);
            while start < length {
                match chunker.cut(&data[start..end], end == length) {
                    Some(length) => { lengths.push(length); start += length; }
                    None => end = (end + piece).min(length),
                }
            }
            prop_assert_eq!(lengths, chunks(&chunker, &data));
        }

        #[test]
        fn cuts_are_found_again_behind_an_insertion(seed in 1u64.., at in 0usize..10_000, inserted in 1usize..200) {
            let data = noise(seed, 40_000);
            let mut longer = data.clone();
            longer.splice(at..at, noise(seed ^ 0x55, inserted));
            let ends = |lengths: Vec<usize>| -> Vec<usize> {
                lengths.iter().scan(0, |end, length| { *end += length; Some(*end) }).collect()
            };
            let before: Vec<usize> = ends(chunks(&small(), &data)).into_iter().map(|end| end + inserted).collect();
            let after = ends(chunks(&small(), &longer));
            let shared = after.iter().filter(|end| before.contains(end)).count();
            prop_assert!(shared * 2 > before.len(), "{} of {}", shared, before.len());
        }
    }

    #[test]
    fn fixed_chunks_are_multiples_of_the_page() {
        for page in [512, 4096, 8192, 65_536, 3000] {
            for size in [0, 1 << 20, 3 << 30, 5 << 30, 1 << 40] {
                assert_eq!(fixed_chunk_bytes(size, page) % page as usize, 0);
            }
        }
        assert_eq!(fixed_chunk_bytes(12 << 20, 4096), 16 << 10);
        assert_eq!(fixed_chunk_bytes(550 << 20, 4096), 128 << 10);
        assert_eq!(fixed_chunk_bytes(1 << 40, 8192), 1 << 20);
    }
}
