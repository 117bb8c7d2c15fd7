//! Which ids of a known set have been seen: 8 bytes and a bit for each, where a set of ids takes 45.

use std::sync::Arc;

use crate::id::{BlobId, IdSet};

/// Ids by their first eight bytes. Where two share these, which is rare, whole ids are kept once they are marked.
#[derive(Debug, Default)]
pub(crate) struct KnownIds {
    /// Sorted, each once.
    prefixes: Vec<u64>,
    /// Those of the prefixes that more than one entry has. Sorted.
    shared: Vec<u64>,
}

impl KnownIds {
    /// The ids that were gathered, in any order and also more than once.
    pub(crate) fn new(mut gathered: Vec<u64>) -> Self {
        gathered.sort_unstable();
        let mut shared: Vec<u64> =
            gathered.array_windows().filter(|[a, b]| a == b).map(|[prefix, _]| *prefix).collect();
        shared.dedup();
        gathered.dedup();
        gathered.shrink_to_fit();
        Self { prefixes: gathered, shared }
    }

    /// What [`KnownIds::new`] wants of an id.
    pub(crate) fn prefix(id: &BlobId) -> u64 {
        let (prefix, _) = id.as_bytes().split_first_chunk().unwrap_or((&[0; 8], &[]));
        u64::from_be_bytes(*prefix)
    }

    /// No id is marked.
    pub(crate) fn marks(self: &Arc<Self>) -> Marks {
        let words = vec![0; self.prefixes.len().div_ceil(64)];
        Marks { known: Arc::clone(self), words, whole: IdSet::default() }
    }

    /// Whether an id is known; one that begins like a known one may be taken for it.
    pub(crate) fn contains(&self, id: &BlobId) -> bool {
        self.prefixes.binary_search(&Self::prefix(id)).is_ok()
    }
}

/// Which of the known ids are marked.
#[derive(Debug)]
pub(crate) struct Marks {
    known: Arc<KnownIds>,
    words: Vec<u64>,
    whole: IdSet<BlobId>,
}

impl Marks {
    /// Marks an id; says whether it was not marked before. One that is not known is never marked.
    pub(crate) fn mark(&mut self, id: &BlobId) -> bool {
        let prefix = KnownIds::prefix(id);
        let Ok(place) = self.known.prefixes.binary_search(&prefix) else { return true };
        if self.known.shared.binary_search(&prefix).is_ok() {
            return self.whole.insert(*id);
        }
        let (word, bit) = (place / 64, 1 << (place % 64));
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        new
    }

    /// Whether an id is marked.
    pub(crate) fn contains(&self, id: &BlobId) -> bool {
        let prefix = KnownIds::prefix(id);
        let Ok(place) = self.known.prefixes.binary_search(&prefix) else { return false };
        match self.known.shared.binary_search(&prefix) {
            Ok(_) => self.whole.contains(id),
            Err(_) => self.words[place / 64] >> (place % 64) & 1 == 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(prefix: u64, rest: u8) -> BlobId {
        let mut bytes = [rest; 32];
        bytes[..8].copy_from_slice(&prefix.to_be_bytes());
        BlobId::from_bytes(bytes)
    }

    #[test]
    fn each_known_id_is_marked_once_and_an_unknown_one_never() {
        let ids: Vec<BlobId> = (0..1000u64).map(|n| BlobId::of(&n.to_le_bytes())).collect();
        let known = Arc::new(KnownIds::new(ids.iter().rev().map(KnownIds::prefix).collect()));
        let mut marks = known.marks();
        assert!(!ids.iter().any(|id| marks.contains(id)));
        assert!(ids.iter().all(|id| marks.mark(id)));
        assert!(!ids.iter().any(|id| marks.mark(id)));
        assert!(ids.iter().all(|id| marks.contains(id) && known.contains(id)));
        let unknown = BlobId::of(b"unknown");
        assert!(marks.mark(&unknown) && marks.mark(&unknown) && !marks.contains(&unknown));
        assert!(known.marks().mark(&ids[0]), "other marks are of their own");
    }

    #[test]
    fn ids_that_begin_alike_are_told_apart() {
        let twins = [id(7, 1), id(7, 2), id(9, 1)];
        let known = Arc::new(KnownIds::new(twins.iter().map(KnownIds::prefix).collect()));
        let mut marks = known.marks();
        assert!(marks.mark(&twins[0]) && !marks.contains(&twins[1]));
        assert!(twins[1..].iter().all(|id| marks.mark(id)));
        assert!(!twins.iter().any(|id| marks.mark(id)));
    }

    #[test]
    fn an_id_that_was_gathered_twice_is_one() {
        let known = Arc::new(KnownIds::new(vec![KnownIds::prefix(&id(7, 1)); 2]));
        let mut marks = known.marks();
        assert!(marks.mark(&id(7, 1)));
        assert!(!marks.mark(&id(7, 1)));
    }
}
