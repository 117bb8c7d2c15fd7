//! What has become of the slots of a source.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{SkipReason, Skipped};
use crate::run::SnapshotType;

/// How many stretches of taken slots are kept apart for each type. Between two of them lie slots that were missed, or
/// that have not come yet because the clock was ahead; beyond this many the oldest gaps are closed.
const STRETCHES_MAX: usize = 16;

/// What has become of the slots of a source under its policy. Stored with the source, changed in the same commit that
/// stores a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotHistory {
    since: Timestamp,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    types: BTreeMap<SnapshotType, TypeHistory>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct TypeHistory {
    /// Stretches of slots that were taken, with both ends, in order.
    taken: Vec<(Timestamp, Timestamp)>,
    /// Up to which slot it was said that they yield no run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reported: Option<Timestamp>,
}

impl SlotHistory {
    /// Of a source that came under its policy, or whose schedule changed, at this moment: no earlier slot counts.
    pub fn since(since: Timestamp) -> Self {
        Self { since, types: BTreeMap::new() }
    }

    /// The newest taken slot that is not ahead of the clock; only later slots are due.
    pub(super) fn base(&self, snapshot_type: SnapshotType, now: Timestamp) -> Timestamp {
        let taken = self.types.get(&snapshot_type).map_or(&[][..], |history| &history.taken);
        let newest = taken.iter().rev().find(|(first, _)| *first <= now).map(|(_, last)| (*last).min(now));
        newest.map_or(self.since, |newest| newest.max(self.since))
    }

    /// Whether a slot yielded its run, or was covered by another.
    pub fn is_taken(&self, snapshot_type: SnapshotType, at: Timestamp) -> bool {
        self.end_of_taken(snapshot_type, at).is_some()
    }

    /// The end of the stretch of taken slots that a slot is in.
    pub(super) fn end_of_taken(&self, snapshot_type: SnapshotType, at: Timestamp) -> Option<Timestamp> {
        let taken = &self.types.get(&snapshot_type)?.taken;
        taken.iter().find(|(first, last)| *first <= at && at <= *last).map(|(_, last)| *last)
    }

    pub(super) fn reported(&self, snapshot_type: SnapshotType) -> Option<Timestamp> {
        self.types.get(&snapshot_type)?.reported
    }

    /// Takes a slot. `consecutive` says whether no slot lies between two.
    pub(super) fn take(
        &mut self,
        snapshot_type: SnapshotType,
        at: Timestamp,
        consecutive: impl Fn(SnapshotType, Timestamp, Timestamp) -> bool,
    ) {
        let taken = &mut self.types.entry(snapshot_type).or_default().taken;
        let place = taken.partition_point(|(first, _)| *first <= at);
        if place > 0 && at <= taken[place - 1].1 {
            return;
        }
        taken.insert(place, (at, at));
        if place + 1 < taken.len() && consecutive(snapshot_type, at, taken[place + 1].0) {
            taken[place].1 = taken[place + 1].1;
            taken.remove(place + 1);
        }
        if place > 0 && consecutive(snapshot_type, taken[place - 1].1, at) {
            taken[place - 1].1 = taken[place].1;
            taken.remove(place);
        }
        while taken.len() > STRETCHES_MAX {
            taken[1].0 = taken[0].0;
            taken.remove(0);
        }
    }

    /// Remembers what was said, so that it is said once.
    pub(super) fn settle(&mut self, skipped: &Skipped) {
        if matches!(skipped.reason, SkipReason::TooLate | SkipReason::Closed) {
            let history = self.types.entry(skipped.snapshot_type).or_default();
            history.reported = history.reported.max(Some(skipped.last));
        }
    }
}
