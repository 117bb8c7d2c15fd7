//! What was promised beside what is measured, for each source. Pure: facts in, standing out.
//!
//! Nothing is met without evidence: what was not promised is *not set*, what was never measured is *unknown* until its
//! time is over, and *breached* from then on.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::policy::Objectives;
use crate::units::Span;

/// How an objective stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveState {
    /// It holds.
    Met,
    /// It holds, and will not for long if nothing else happens than what is planned.
    AtRisk,
    /// It does not hold.
    Breached,
    /// Nothing was promised.
    NotSet,
    /// It was never measured, and its time is not over yet.
    Unknown,
}

impl ObjectiveState {
    /// The word used in output.
    pub fn as_str(self) -> &'static str {
        match self {
            ObjectiveState::Met => "met",
            ObjectiveState::AtRisk => "at_risk",
            ObjectiveState::Breached => "breached",
            ObjectiveState::NotSet => "not_set",
            ObjectiveState::Unknown => "unknown",
        }
    }

    /// How much attention it needs; the worst of several is the one that needs most.
    fn weight(self) -> u8 {
        match self {
            ObjectiveState::NotSet => 0,
            ObjectiveState::Met => 1,
            ObjectiveState::Unknown => 2,
            ObjectiveState::AtRisk => 3,
            ObjectiveState::Breached => 4,
        }
    }
}

impl fmt::Display for ObjectiveState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An objective beside what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing<T> {
    /// What was promised.
    pub objective: Option<T>,
    /// What was measured.
    pub actual: Option<T>,
    /// How they compare.
    pub state: ObjectiveState,
}

/// What is known of a source.
#[derive(Debug, Clone, Copy)]
pub struct SourceFacts {
    /// Since when it is under its policy: what has not happened yet is due from then on.
    pub protected_since: Timestamp,
    /// The moment that the newest good snapshot is of.
    pub newest_snapshot: Option<Timestamp>,
    /// Up to when the log is archived without a gap.
    pub log_until: Option<Timestamp>,
    /// When the source was last seen to be the same as its newest recovery point. An idle source loses nothing.
    pub unchanged_at: Option<Timestamp>,
    /// When the next run begins.
    pub next_run: Option<Timestamp>,
    /// Whether the last run failed.
    pub last_run_failed: bool,
    /// How long the last real restore took.
    pub last_restore: Option<SignedDuration>,
    /// When the last drill passed.
    pub last_drill: Option<Timestamp>,
    /// When every byte of a snapshot was last read.
    pub last_verify: Option<Timestamp>,
    /// In how many repositories the newest good snapshot is.
    pub copies: u32,
}

/// How all objectives of a source stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// How much would be lost now, in seconds.
    pub rpo: Standing<i64>,
    /// How long a restore takes, in seconds.
    pub rto: Standing<i64>,
    /// How old the last drill is, in seconds.
    pub drill_age: Standing<i64>,
    /// How old the last verification is, in seconds.
    pub verify_age: Standing<i64>,
    /// Repositories with the newest snapshot.
    pub copies: Standing<i64>,
}

impl Report {
    /// The state that needs most attention.
    pub fn worst(&self) -> ObjectiveState {
        let states =
            [self.rpo.state, self.rto.state, self.drill_age.state, self.verify_age.state, self.copies.state];
        states.into_iter().max_by_key(|state| state.weight()).unwrap_or(ObjectiveState::NotSet)
    }
}

/// How the objectives of a source stand at `now`.
pub fn report(objectives: &Objectives, facts: &SourceFacts, now: Timestamp) -> Report {
    Report {
        rpo: rpo(objectives.rpo, facts, now),
        rto: rto(objectives.rto, facts),
        drill_age: age(objectives.drill_every, facts.last_drill, facts.protected_since, now),
        verify_age: age(objectives.verify_every, facts.last_verify, facts.protected_since, now),
        copies: copies(objectives.copies.map(|copies| i64::from(copies.get())), facts),
    }
}

/// How much would be lost if the source were lost now; none while nothing was ever backed up.
pub fn potential_loss(facts: &SourceFacts, now: Timestamp) -> Option<SignedDuration> {
    let snapshot = facts.newest_snapshot?;
    // A log without a snapshot before it restores nothing; what was compared holds from the comparison on.
    let point = snapshot.max(facts.log_until.unwrap_or(snapshot)).max(facts.unchanged_at.unwrap_or(snapshot));
    Some(now.duration_since(point).max(SignedDuration::ZERO))
}

fn rpo(objective: Option<Span>, facts: &SourceFacts, now: Timestamp) -> Standing<i64> {
    let actual = potential_loss(facts, now).map(|loss| loss.as_secs());
    let state = match (objective.map(Span::secs), actual) {
        (None, _) => ObjectiveState::NotSet,
        (Some(promised), None) => never_yet(promised, facts.protected_since, now),
        (Some(promised), Some(loss)) if loss > promised => ObjectiveState::Breached,
        (Some(promised), Some(loss)) => {
            let ahead = facts.next_run.map(|next| next.duration_since(now).as_secs().max(0));
            // A log that is archived goes on by itself.
            let by_log = facts
                .log_until
                .is_some_and(|log| facts.newest_snapshot.is_some_and(|snapshot| log > snapshot));
            let late = !by_log && ahead.is_some_and(|ahead| loss.saturating_add(ahead) > promised);
            if late || facts.last_run_failed { ObjectiveState::AtRisk } else { ObjectiveState::Met }
        }
    };
    Standing { objective: objective.map(Span::secs), actual, state }
}

fn rto(objective: Option<Span>, facts: &SourceFacts) -> Standing<i64> {
    let actual = facts.last_restore.map(|took| took.as_secs());
    let state = match (objective.map(Span::secs), actual) {
        (None, _) => ObjectiveState::NotSet,
        // Only a restore tells how long one takes.
        (Some(_), None) => ObjectiveState::Unknown,
        (Some(promised), Some(took)) if took > promised => ObjectiveState::Breached,
        (Some(promised), Some(took)) if took > share(promised, 80) => ObjectiveState::AtRisk,
        (Some(_), Some(_)) => ObjectiveState::Met,
    };
    Standing { objective: objective.map(Span::secs), actual, state }
}

/// A time that lies ahead by more than this was noted by a clock that was wrong: nobody knows when it was.
const AHEAD_MAX: SignedDuration = SignedDuration::from_mins(5);

fn age(objective: Option<Span>, last: Option<Timestamp>, since: Timestamp, now: Timestamp) -> Standing<i64> {
    let last = last.filter(|last| last.duration_since(now) <= AHEAD_MAX);
    let actual = last.map(|last| now.duration_since(last).as_secs().max(0));
    let state = match (objective.map(Span::secs), actual) {
        (None, _) => ObjectiveState::NotSet,
        (Some(promised), None) => never_yet(promised, since, now),
        (Some(promised), Some(age)) if age > promised => ObjectiveState::Breached,
        (Some(promised), Some(age)) if age > share(promised, 90) => ObjectiveState::AtRisk,
        (Some(_), Some(_)) => ObjectiveState::Met,
    };
    Standing { objective: objective.map(Span::secs), actual, state }
}

fn copies(objective: Option<i64>, facts: &SourceFacts) -> Standing<i64> {
    let actual = facts.newest_snapshot.map(|_| i64::from(facts.copies));
    let state = match (objective, actual) {
        (None, _) => ObjectiveState::NotSet,
        (Some(_), None) => ObjectiveState::Unknown,
        (Some(promised), Some(have)) if have < promised => ObjectiveState::Breached,
        (Some(_), Some(_)) => ObjectiveState::Met,
    };
    Standing { objective, actual, state }
}

/// What never happened is not late before its time is over.
fn never_yet(promised: i64, since: Timestamp, now: Timestamp) -> ObjectiveState {
    if now.duration_since(since).as_secs() > promised {
        ObjectiveState::Breached
    } else {
        ObjectiveState::Unknown
    }
}

fn share(of: i64, percent: i64) -> i64 {
    of.saturating_mul(percent) / 100
}

/// Whether a source has been silent for too long: no success within one and a half times the longest gap of its
/// schedule. Silence is a failure of its own, whatever the runs report.
pub fn is_silent(
    longest_gap: Span,
    last_success: Option<Timestamp>,
    since: Timestamp,
    now: Timestamp,
) -> bool {
    let quiet_from = last_success.map_or(since, |success| success.max(since));
    now.duration_since(quiet_from).as_secs() > longest_gap.secs().saturating_mul(3) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Count;
    use ObjectiveState::{AtRisk, Breached, Met, NotSet, Unknown};

    const MINUTE: SignedDuration = SignedDuration::from_mins(1);

    fn now() -> Timestamp {
        "2026-06-01T12:00:00Z".parse().unwrap()
    }

    fn new_source() -> SourceFacts {
        SourceFacts {
            protected_since: now() - MINUTE * 10,
            newest_snapshot: None,
            log_until: None,
            unchanged_at: None,
            next_run: None,
            last_run_failed: false,
            last_restore: None,
            last_drill: None,
            last_verify: None,
            copies: 0,
        }
    }

    fn promised() -> Objectives {
        Objectives {
            rpo: Some(Span::from_hours(1)),
            rto: Some(Span::from_mins(30)),
            drill_every: Some(Span::from_days(7)),
            verify_every: Some(Span::from_days(30)),
            copies: Some(Count::new(2)),
        }
    }

    fn rpo_of(facts: SourceFacts) -> (Option<i64>, ObjectiveState) {
        let rpo = report(&promised(), &facts, now()).rpo;
        (rpo.actual, rpo.state)
    }

    #[test]
    fn what_was_not_promised_is_not_set_even_when_it_is_measured() {
        let facts = SourceFacts { newest_snapshot: Some(now() - MINUTE), copies: 1, ..new_source() };
        let report = report(&Objectives::default(), &facts, now());
        assert_eq!(report.rpo, Standing { objective: None, actual: Some(60), state: NotSet });
        assert_eq!(report.worst(), NotSet);
    }

    #[test]
    fn what_never_happened_is_unknown_until_its_time_is_over() {
        let report_at = |now| report(&promised(), &new_source(), now);
        let early = report_at(now());
        assert_eq!([early.rpo.state, early.rto.state, early.drill_age.state], [Unknown; 3]);
        assert_eq!([early.verify_age.state, early.copies.state, early.worst()], [Unknown; 3]);
        let late = report_at(now() + SignedDuration::from_hours(24 * 40));
        assert_eq!([late.rpo.state, late.drill_age.state, late.verify_age.state], [Breached; 3]);
        assert_eq!(late.rto.state, Unknown, "only a restore tells how long one takes");
    }

    #[test]
    fn the_loss_grows_from_the_newest_recovery_point() {
        let snapshot =
            |minutes: i32| SourceFacts { newest_snapshot: Some(now() - MINUTE * minutes), ..new_source() };
        assert_eq!(rpo_of(snapshot(59)), (Some(59 * 60), Met));
        assert_eq!(rpo_of(snapshot(60)), (Some(3600), Met));
        assert_eq!(rpo_of(snapshot(61)), (Some(61 * 60), Breached));
        let log = SourceFacts { log_until: Some(now() - MINUTE), ..snapshot(600) };
        assert_eq!(rpo_of(log), (Some(60), Met));
        let orphan = SourceFacts { log_until: Some(now()), ..new_source() };
        assert_eq!(rpo_of(orphan), (None, Unknown), "a log without a snapshot restores nothing");
        let ahead = SourceFacts { newest_snapshot: Some(now() + MINUTE), ..new_source() };
        assert_eq!(rpo_of(ahead), (Some(0), Met));
    }

    #[test]
    fn an_idle_source_is_not_late() {
        let old = SourceFacts { newest_snapshot: Some(now() - MINUTE * 600), ..new_source() };
        assert_eq!(rpo_of(old).1, Breached);
        assert_eq!(rpo_of(SourceFacts { unchanged_at: Some(now() - MINUTE * 5), ..old }), (Some(300), Met));
        // Compared before the snapshot: says nothing.
        assert_eq!(rpo_of(SourceFacts { unchanged_at: Some(now() - MINUTE * 700), ..old }).1, Breached);
    }

    #[test]
    fn an_rpo_that_will_not_hold_until_the_next_run_is_at_risk() {
        let facts = SourceFacts { newest_snapshot: Some(now() - MINUTE * 40), ..new_source() };
        assert_eq!(rpo_of(SourceFacts { next_run: Some(now() + MINUTE * 20), ..facts }).1, Met);
        assert_eq!(rpo_of(SourceFacts { next_run: Some(now() + MINUTE * 21), ..facts }).1, AtRisk);
        assert_eq!(rpo_of(SourceFacts { last_run_failed: true, ..facts }).1, AtRisk);
    }

    #[test]
    fn what_happened_in_the_future_is_unknown() {
        let verified = |at| {
            let verified = SourceFacts { last_verify: Some(at), ..new_source() };
            let found = report(&promised(), &verified, now()).verify_age;
            (found.actual, found.state)
        };
        assert_eq!(verified(now() + MINUTE * 5), (Some(0), Met));
        assert_eq!(verified(now() + MINUTE * 6), (None, Unknown));
    }

    #[test]
    fn restores_drills_verifications_and_copies_are_held_against_their_objectives() {
        let facts = |minutes: i64, days: i32, copies| SourceFacts {
            newest_snapshot: Some(now()),
            last_restore: Some(SignedDuration::from_mins(minutes)),
            last_drill: Some(now() - SignedDuration::from_hours(24) * days),
            last_verify: Some(now() - SignedDuration::from_hours(24) * days),
            copies,
            ..new_source()
        };
        let states = |facts| {
            let report = report(&promised(), &facts, now());
            [report.rto.state, report.drill_age.state, report.verify_age.state, report.copies.state]
        };
        assert_eq!(states(facts(10, 1, 2)), [Met; 4]);
        assert_eq!(states(facts(25, 7, 3)), [AtRisk, AtRisk, Met, Met]);
        assert_eq!(states(facts(31, 8, 1)), [Breached, Breached, Met, Breached]);
        assert_eq!(states(facts(31, 28, 0)), [Breached, Breached, AtRisk, Breached]);
        assert_eq!(report(&promised(), &facts(10, 1, 1), now()).worst(), Breached);
    }

    #[test]
    fn silence_begins_after_one_and_a_half_gaps() {
        let gap = Span::from_hours(1);
        let since = now() - MINUTE * 1000;
        assert!(!is_silent(gap, Some(now() - MINUTE * 90), since, now()));
        assert!(is_silent(gap, Some(now() - MINUTE * 91), since, now()));
        assert!(!is_silent(gap, None, now() - MINUTE * 90, now()));
        assert!(is_silent(gap, None, since, now()));
    }
}
