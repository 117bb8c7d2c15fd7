//! When runs are due: slots, and what has become of them. Pure: the clock is an argument.
//!
//! A rule gives **slots**: moments at which a run of one type is due. A slot has an identity, [`SlotId`], and yields at
//! most one run, whatever happens to the controller or its clock: what was taken is remembered in [`SlotHistory`] by
//! the slot's own moment and not by the clock at that time. So a clock that was ahead for a while neither makes
//! anything run twice nor, once it is right again, leaves out what is due.
//!
//! The rules, for each type of a source:
//! * Of several slots that passed, only the newest begins; the others are superseded by it.
//! * A slot may begin until `catch_up` is over, in the window and outside blackout days.
//! * Jitter moves the beginning, always by the same for the same slot, and never up to the next slot.
//! * Of slots of several types that can begin together, the strongest type does, and covers the others. A slot waits
//!   for the jitter of a stronger one of the same moment.

use std::collections::BTreeMap;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::ids::{PolicyName, SourceName};
use crate::policy::{After, Rule, Schedule, When};
use crate::run::SnapshotType;

mod history;
mod opening;
mod queue;
mod worst_gap;

pub use history::SlotHistory;
pub use opening::Opening;
pub use queue::WakeQueue;
pub use worst_gap::Gap;

const SECOND: SignedDuration = SignedDuration::from_secs(1);

/// What makes a run the only one: a run of a slot is stored under this, on condition that there is none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SlotId {
    /// Whose rule.
    pub policy: PolicyName,
    /// Which source.
    pub source: SourceName,
    /// Which type of snapshot.
    pub snapshot_type: SnapshotType,
    /// The moment of the rule, without jitter.
    pub at: Timestamp,
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.source, self.policy, self.snapshot_type, self.at)
    }
}

/// A moment at which a run of one type is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    /// Which type of snapshot.
    pub snapshot_type: SnapshotType,
    /// The moment of the rule.
    pub at: Timestamp,
    /// When it may begin: the moment and its jitter.
    pub begins: Timestamp,
}

/// Slots that yield no run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Of which type.
    pub snapshot_type: SnapshotType,
    /// The first of them.
    pub first: Timestamp,
    /// The last of them; the same when it is only one.
    pub last: Timestamp,
    /// Why.
    pub reason: SkipReason,
}

/// Why a slot yields no run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    /// A newer slot of the same type begins instead.
    Superseded {
        /// The newer one.
        by: Timestamp,
    },
    /// A run of a stronger type begins instead.
    Covered {
        /// The stronger type.
        by: SnapshotType,
    },
    /// The time for catching up was over.
    TooLate,
    /// All of the time for catching up lay outside the window or in blackout days.
    Closed,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SkipReason::Superseded { by } => write!(f, "missed; the one of {by} is made up for instead"),
            SkipReason::Covered { by } => write!(f, "the {by} backup due together with it is enough"),
            SkipReason::TooLate => f.write_str("missed, and it is too late to catch up"),
            SkipReason::Closed => {
                f.write_str("outside the window or on a blackout day until it was too late")
            }
        }
    }
}

/// What is to be done for a source now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Due {
    /// The slot to begin. [`Timetable::settle`] enters it into the history, in the commit that stores the run.
    pub run: Option<Slot>,
    /// What yields no run and was not said before.
    pub skipped: Vec<Skipped>,
    /// When to ask again at the latest; none when nothing comes by the clock alone.
    pub wake: Option<Timestamp>,
}

/// What keeps a source from beginning anything now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// An operator paused it, for a time or until it is resumed.
    Paused {
        /// When it goes on by itself.
        until: Option<Timestamp>,
    },
    /// A run of the source is active; ask again when it has ended.
    Busy,
}

/// When backups succeeded, for `after`.
#[derive(Debug, Clone, Default)]
pub struct Successes {
    /// The last of this source, by type.
    pub by_type: BTreeMap<SnapshotType, Timestamp>,
    /// The last of other sources, whichever type.
    pub by_source: BTreeMap<SourceName, Timestamp>,
}

/// A source, as far as its schedule is concerned.
#[derive(Debug, Clone, Copy)]
pub struct SourceState<'a> {
    /// Its name.
    pub source: &'a SourceName,
    /// What has become of its slots.
    pub history: &'a SlotHistory,
    /// Backups that others may follow.
    pub successes: &'a Successes,
    /// What keeps it from beginning anything.
    pub hold: Option<Hold>,
}

/// A schedule, ready to be asked.
#[derive(Debug, Clone)]
pub struct Timetable {
    schedule: Schedule,
    opening: Opening,
}

/// The moments of one rule.
enum Moments<'a> {
    Cron(&'a crate::policy::Cron, &'a crate::policy::Zone),
    Every(i64),
    Once(Option<Timestamp>),
}

impl Moments<'_> {
    /// The first after `after`.
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match self {
            Moments::Cron(cron, zone) => cron.next(after, zone),
            Moments::Every(secs) => {
                let next = (after.as_second().div_euclid(*secs) + 1).checked_mul(*secs)?;
                Timestamp::from_second(next).ok()
            }
            Moments::Once(at) => at.filter(|at| *at > after),
        }
    }

    /// The last at or before `at`.
    fn newest(&self, at: Timestamp) -> Option<Timestamp> {
        match self {
            Moments::Cron(cron, zone) => cron.newest(at, zone),
            Moments::Every(secs) => {
                Timestamp::from_second(at.as_second().div_euclid(*secs).checked_mul(*secs)?).ok()
            }
            Moments::Once(once) => once.filter(|once| *once <= at),
        }
    }
}

/// Where one type of a source stands.
struct Standing {
    /// The newest slot whose beginning has come, when it was not taken.
    candidate: Option<Slot>,
    /// A slot whose moment has come and whose jitter has not.
    jittering: Option<Slot>,
    /// The first slot that is still to come.
    coming: Option<Slot>,
    /// What was missed before the candidate.
    missed: Option<(Timestamp, Timestamp)>,
}

impl Timetable {
    /// The timetable of a schedule.
    pub fn new(schedule: Schedule) -> Self {
        let opening = Opening::new(schedule.timezone.clone(), schedule.window, schedule.blackout.clone());
        Self { schedule, opening }
    }

    /// The hours and days in which runs may begin.
    pub fn opening(&self) -> &Opening {
        &self.opening
    }

    /// What is to be done for a source at `now`.
    pub fn due(&self, state: SourceState<'_>, now: Timestamp) -> Due {
        match state.hold {
            Some(Hold::Paused { until: Some(until) }) if until <= now => {}
            Some(Hold::Paused { until }) => return Due { wake: until, ..Due::default() },
            Some(Hold::Busy) => return Due::default(),
            None => {}
        }
        let open = self.opening.is_open(now);
        let mut due = Due::default();
        let mut wakes: Vec<Timestamp> = Vec::new();
        let mut jittering: Vec<Slot> = Vec::new();
        for (snapshot_type, when) in self.schedule.by_type() {
            let standing = self.standing(state, snapshot_type, when, now);
            wakes.extend(standing.coming.map(|slot| slot.begins));
            wakes.extend(standing.jittering.map(|slot| slot.begins));
            if let Some(slot) = standing.candidate {
                let late = now.duration_since(slot.begins) > self.schedule.catch_up.duration();
                let covered_by =
                    due.run.map(|run| run.snapshot_type).or_else(|| self.stronger_taken(state, slot));
                if late {
                    self.give_up(state, slot, standing.missed, &mut due);
                } else if let Some(by) = covered_by {
                    let first = standing.missed.map_or(slot.at, |(first, _)| first);
                    skip(&mut due, slot, first, slot.at, SkipReason::Covered { by });
                } else if jittering.iter().any(|stronger| stronger.at == slot.at) {
                    // The stronger one is awaited; its beginning wakes us.
                } else if open {
                    if let Some((first, last)) = standing.missed {
                        skip(&mut due, slot, first, last, SkipReason::Superseded { by: slot.at });
                    }
                    due.run = Some(slot);
                } else {
                    wakes.push(now);
                }
            }
            jittering.extend(standing.jittering);
        }
        // Blackout days without an end in sight are looked at again another day.
        due.wake = wakes
            .into_iter()
            .min()
            .map(|wake| self.opening.next_open(wake).unwrap_or(wake + SignedDuration::from_hours(24)));
        due
    }

    /// Where one type of a source stands at `now`.
    fn standing(
        &self,
        state: SourceState<'_>,
        snapshot_type: SnapshotType,
        when: &When,
        now: Timestamp,
    ) -> Standing {
        let moments = self.moments(when, state);
        let slot = |at: Timestamp| Slot {
            snapshot_type,
            at,
            begins: at + self.jitter(state.source, snapshot_type, when, &moments, at),
        };
        let base = state.history.base(snapshot_type, now);
        let fresh = |at: &Timestamp| *at > base;
        let before = |at: Timestamp| moments.newest(at - SECOND);
        let newest = moments.newest(now).filter(fresh).map(slot);
        let (candidate, jittering) = match newest {
            Some(newest) if newest.begins > now => (before(newest.at).filter(fresh).map(slot), Some(newest)),
            newest => (newest, None),
        };
        let missed = candidate.and_then(|candidate| {
            let first =
                moments.next(state.history.reported(snapshot_type).map_or(base, |said| said.max(base)))?;
            let last = before(candidate.at)?;
            (first <= last).then_some((first, last))
        });
        let mut coming = moments.next(now);
        // What was taken while the clock was ahead does not come again.
        while let Some(taken) = coming.filter(|at| state.history.is_taken(snapshot_type, *at)) {
            coming = moments.next(state.history.end_of_taken(snapshot_type, taken).unwrap_or(taken));
        }
        Standing { candidate, jittering, coming: coming.map(slot), missed }
    }

    /// A stronger type that was taken at the same moment: the weaker one's jitter was longer.
    fn stronger_taken(&self, state: SourceState<'_>, slot: Slot) -> Option<SnapshotType> {
        self.schedule
            .by_type()
            .take_while(|(stronger, _)| *stronger != slot.snapshot_type)
            .find(|(stronger, when)| {
                state.history.is_taken(*stronger, slot.at)
                    && self.moments(when, state).newest(slot.at) == Some(slot.at)
            })
            .map(|(stronger, _)| stronger)
    }

    /// Says once that a slot, and what was missed before it, yields no run any more.
    fn give_up(
        &self,
        state: SourceState<'_>,
        slot: Slot,
        missed: Option<(Timestamp, Timestamp)>,
        due: &mut Due,
    ) {
        if state.history.reported(slot.snapshot_type).is_some_and(|reported| reported >= slot.at) {
            return;
        }
        let deadline = slot.begins + self.schedule.catch_up.duration();
        let opened = self.opening.next_open(slot.begins).is_some_and(|opening| opening <= deadline);
        let reason = if opened { SkipReason::TooLate } else { SkipReason::Closed };
        let first = missed.map_or(slot.at, |(first, _)| first);
        skip(due, slot, first, slot.at, reason);
    }

    fn moments<'a>(&'a self, when: &'a When, state: SourceState<'_>) -> Moments<'a> {
        match &when.rule {
            Rule::Cron(cron) => Moments::Cron(cron, self.schedule.zone_of(when)),
            Rule::Every(every) => Moments::Every(every.secs()),
            Rule::After(After::Type(followed)) => {
                Moments::Once(state.successes.by_type.get(followed).copied())
            }
            Rule::After(After::Source(followed)) => {
                Moments::Once(state.successes.by_source.get(followed).copied())
            }
        }
    }

    /// How much later than its moment a slot begins.
    fn jitter(
        &self,
        source: &SourceName,
        snapshot_type: SnapshotType,
        when: &When,
        moments: &Moments<'_>,
        at: Timestamp,
    ) -> SignedDuration {
        let Some(jitter) = when.jitter else { return SignedDuration::ZERO };
        // A slot that began after the next one's moment would be superseded before it began.
        let room = moments.next(at).map_or(i64::MAX, |next| next.duration_since(at).as_secs());
        let span = jitter.secs().min(room - 1).max(0) as u64 + 1;
        let hash = hash(source, snapshot_type, at);
        SignedDuration::from_secs((hash % span) as i64)
    }

    /// The runs that will begin from `now` on if nothing fails, at most `count`.
    pub fn upcoming(
        &self,
        source: &SourceName,
        history: &SlotHistory,
        now: Timestamp,
        count: usize,
    ) -> Vec<(Timestamp, Slot)> {
        let mut history = history.clone();
        let mut successes = Successes::default();
        let mut at = now;
        let mut found = Vec::new();
        // Most steps give a run; the limit is for schedules that hardly ever do.
        for _ in 0..count.saturating_mul(4).saturating_add(100) {
            let state = SourceState { source, history: &history, successes: &successes, hold: None };
            let due = self.due(state, at);
            self.settle(&mut history, &due);
            if let Some(slot) = due.run {
                found.push((at, slot));
                successes.by_type.insert(slot.snapshot_type, at + SECOND);
                if found.len() >= count {
                    break;
                }
            }
            let followed = due.run.filter(|_| self.follows_types()).map(|_| at + SECOND);
            let Some(wake) = due.wake.into_iter().chain(followed).min() else { break };
            at = wake.max(at);
        }
        found
    }

    fn follows_types(&self) -> bool {
        self.follows().any(|followed| matches!(followed, After::Type(_)))
    }

    /// The backups that runs of this schedule follow.
    pub fn follows(&self) -> impl Iterator<Item = &After> {
        self.schedule.by_type().filter_map(|(_, when)| match &when.rule {
            Rule::After(followed) => Some(followed),
            Rule::Cron(_) | Rule::Every(_) => None,
        })
    }

    /// The schedule.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Enters what was decided into the history of the source.
    pub fn settle(&self, history: &mut SlotHistory, due: &Due) {
        let consecutive = |snapshot_type: SnapshotType, earlier: Timestamp, at: Timestamp| {
            let rules = self.schedule.by_type().find(|(scheduled, _)| *scheduled == snapshot_type);
            rules.is_some_and(|(_, when)| match &when.rule {
                Rule::Cron(cron) => cron.next(earlier, self.schedule.zone_of(when)) == Some(at),
                Rule::Every(every) => at.duration_since(earlier).as_secs() == every.secs(),
                Rule::After(_) => false,
            })
        };
        for skipped in &due.skipped {
            history.settle(skipped);
            if let SkipReason::Covered { .. } = skipped.reason {
                history.take(skipped.snapshot_type, skipped.last, consecutive);
            }
        }
        if let Some(slot) = due.run {
            history.take(slot.snapshot_type, slot.at, consecutive);
        }
    }
}

fn skip(due: &mut Due, slot: Slot, first: Timestamp, last: Timestamp, reason: SkipReason) {
    due.skipped.push(Skipped { snapshot_type: slot.snapshot_type, first, last, reason });
}

/// FNV-1a with a final mix: the same on every machine and in every version, which the standard library's is not.
fn hash(source: &SourceName, snapshot_type: SnapshotType, at: Timestamp) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let parts =
        [source.as_str().as_bytes(), snapshot_type.as_str().as_bytes(), &at.as_second().to_le_bytes()];
    for part in parts {
        for byte in part.iter().chain(&[0xff]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests;
