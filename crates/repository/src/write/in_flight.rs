//! Which blobs are on their way: claimed by a worker and not yet in a durable pack.
//!
//! Once a pack is durable the sink knows its blobs, but answers that were asked for before may still say "unknown".
//! Its blobs are therefore remembered until every question of that time has been worked off. So no blob is stored
//! twice, and what is remembered is bounded by the packs and batches in flight.

use std::collections::{BTreeSet, VecDeque};

use crate::id::{BlobId, BlobType, IdSet};

#[derive(Debug, Default)]
pub(super) struct InFlight {
    claimed: IdSet<(BlobId, BlobType)>,
    /// Blobs of durable packs, with the first question number that was not yet asked then.
    retired: VecDeque<(u64, Vec<(BlobId, BlobType)>)>,
    /// Questions that were asked and whose batches are not worked off.
    open_questions: BTreeSet<u64>,
    next_question: u64,
}

impl InFlight {
    /// A batch is about to be asked for; returns the number of the question.
    pub(super) fn ask(&mut self) -> u64 {
        let number = self.next_question;
        self.next_question += 1;
        self.open_questions.insert(number);
        number
    }

    /// Whether the caller is to store this blob: nobody else does.
    pub(super) fn claim(&mut self, id: BlobId, blob_type: BlobType) -> bool {
        self.claimed.insert((id, blob_type))
    }

    /// The batch of this question has been worked off.
    pub(super) fn done(&mut self, question: u64) {
        self.open_questions.remove(&question);
        self.forget_retired();
    }

    /// A pack with these blobs is durable, and the sink knows them.
    pub(super) fn durable(&mut self, blobs: Vec<(BlobId, BlobType)>) {
        self.retired.push_back((self.next_question, blobs));
        self.forget_retired();
    }

    fn forget_retired(&mut self) {
        let oldest_open = self.open_questions.first().copied().unwrap_or(self.next_question);
        while self.retired.front().is_some_and(|(asked_before, _)| *asked_before <= oldest_open) {
            for blob in self.retired.pop_front().map(|(_, blobs)| blobs).unwrap_or_default() {
                self.claimed.remove(&blob);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_claimed_once_while_old_answers_are_about() {
        let mut in_flight = InFlight::default();
        let blob = BlobId::of(b"x");
        let (first, second) = (in_flight.ask(), in_flight.ask());
        assert!(in_flight.claim(blob, BlobType::Data));
        assert!(in_flight.claim(blob, BlobType::Tree), "the same bytes as a folder are another blob");
        in_flight.done(first);
        in_flight.durable(vec![(blob, BlobType::Data), (blob, BlobType::Tree)]);
        // The second question may have been answered before the pack was durable.
        assert!(!in_flight.claim(blob, BlobType::Data));
        let third = in_flight.ask();
        in_flight.done(second);
        assert!(in_flight.claimed.is_empty() && in_flight.retired.is_empty());
        in_flight.done(third);
    }

    #[test]
    fn nothing_is_remembered_when_no_question_is_open() {
        let mut in_flight = InFlight::default();
        assert!(in_flight.claim(BlobId::of(b"x"), BlobType::Data));
        in_flight.durable(vec![(BlobId::of(b"x"), BlobType::Data)]);
        assert!(in_flight.claimed.is_empty());
    }
}
