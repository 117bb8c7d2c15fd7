//! Which snapshots of a source are kept, and why. Pure: the result is a plan that can be printed before anything is
//! removed.
//!
//! First come the refusals: while something is wrong (backups fail, a time lies in the future, the clock is not to be
//! trusted) nothing is removed at all. Then what is never removed, whatever the rules say. Then the rules, of which one
//! is enough to keep a snapshot. Last the limits, which remove the oldest of what only rules keep.

use std::fmt;

use jiff::{SignedDuration, Timestamp};

use crate::ids::SnapshotId;
use crate::policy::{Keep, KeepByType, Policy, Threshold, Zone};
use crate::run::SnapshotType;
use crate::schedule::{Gap, Timetable};
use crate::snapshot::{Hold, SnapshotRecord};
use crate::units::{Bytes, Span};

mod periods;
mod reasons;

pub use periods::Period;
pub use reasons::{ForgetReason, Freeze, KeepReason};

/// How far times may disagree before nothing is removed.
pub const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// A snapshot, as far as retention is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: SnapshotId,
    /// When it was committed, by the controller's clock.
    pub committed_at: Timestamp,
    /// Its type.
    pub snapshot_type: SnapshotType,
    /// Bytes that it added to the repository.
    pub added_bytes: u64,
    /// Nothing of it is known to be damaged.
    pub good: bool,
    /// Every item of the source could be read.
    pub complete: bool,
    /// Every byte of it was read or restored since.
    pub verified: bool,
    /// Why it is held, if it is.
    pub held: Option<String>,
}

impl Candidate {
    /// From the catalog. What another program wrote counts as full.
    pub fn of(record: &SnapshotRecord, hold: Option<&Hold>) -> Self {
        let milestone = record.milestone.as_ref().map(|name| format!("milestone {name}"));
        Self {
            id: record.id,
            committed_at: record.committed_at,
            snapshot_type: record.snapshot_type.unwrap_or(SnapshotType::Full),
            added_bytes: record.stored_bytes,
            good: record.proof.damage.is_none(),
            complete: record.unreadable == 0,
            verified: record.proof.read_at.is_some() || record.proof.restored_at.is_some(),
            held: milestone.or_else(|| hold.map(|hold| hold.reason.clone())),
        }
    }
}

/// The rules of a policy, ready to be applied to many sources.
#[derive(Debug, Clone)]
pub struct RetentionRules {
    keep: Option<Keep>,
    keep_by_type: KeepByType,
    zone: Zone,
    /// How old the newest good snapshot may be before nothing is removed; none without a schedule by the clock.
    fresh_within: Option<Span>,
}

impl RetentionRules {
    /// Those of a policy.
    pub fn of(policy: &Policy) -> Self {
        let fresh_within = match Timetable::new(policy.schedule.clone()).longest_gap(None) {
            // Half as much again: one backup may take its time, two in a row may not.
            Gap::Longest(gap) => Some(Span::from_secs(gap.secs() + gap.secs() / 2)),
            Gap::NoClock | Gap::Never => None,
        };
        Self {
            keep: policy.keep.clone(),
            keep_by_type: policy.keep_by_type.clone(),
            zone: policy.schedule.timezone.clone(),
            fresh_within,
        }
    }

    /// How old the newest good snapshot may be before nothing is removed.
    pub fn fresh_within(&self) -> Option<Span> {
        self.fresh_within
    }
}

/// What else decides.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// By how much the controller's clock is known to disagree with another, such as the storage's.
    pub clock_error: Option<SignedDuration>,
    /// From when on the log archive of the source is kept: the snapshot before it is its base.
    pub log_from: Option<Timestamp>,
    /// How full the storage is; without it `cleanup` removes nothing.
    pub storage: Option<StorageUse>,
}

/// How full a storage is.
#[derive(Debug, Clone, Copy)]
pub struct StorageUse {
    /// Bytes of the repository.
    pub repository_bytes: u64,
    /// Bytes in use, by whomever.
    pub used_bytes: u64,
    /// All bytes there are, when the storage has an end.
    pub capacity_bytes: Option<u64>,
}

/// What becomes of each snapshot, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionPlan {
    /// One decision for each snapshot.
    pub decisions: Vec<Decision>,
    /// Why nothing is removed, when something forbids it.
    pub frozen: Option<Freeze>,
}

/// What becomes of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Which.
    pub id: SnapshotId,
    /// From when it is.
    pub committed_at: Timestamp,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// Keep or forget, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It stays; never without a reason.
    Keep(Vec<KeepReason>),
    /// It goes.
    Forget(ForgetReason),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Keep(reasons) => {
                f.write_str("keep: ")?;
                for (index, reason) in reasons.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "; " };
                    write!(f, "{separator}{reason}")?;
                }
                Ok(())
            }
            Verdict::Forget(reason) => write!(f, "forget: {reason}"),
        }
    }
}

impl RetentionPlan {
    /// Those that go, newest first.
    pub fn forgotten(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter().filter(|decision| matches!(decision.verdict, Verdict::Forget(_)))
    }
}

/// One snapshot on its way to a decision.
struct Standing<'a> {
    snapshot: &'a Candidate,
    /// Reasons that no limit can take away.
    firm: Vec<KeepReason>,
    /// Reasons by rules.
    rules: Vec<KeepReason>,
    /// The limit that took the rules' reasons away.
    cut: Option<ForgetReason>,
}

impl Standing<'_> {
    fn is_kept(&self) -> bool {
        !self.firm.is_empty() || (!self.rules.is_empty() && self.cut.is_none())
    }

    fn verdict(self) -> Verdict {
        let Standing { firm, rules, cut, .. } = self;
        match (firm.is_empty(), rules.is_empty(), cut) {
            (false, ..) => Verdict::Keep(firm.into_iter().chain(rules).collect()),
            (true, false, None) => Verdict::Keep(rules),
            (true, _, Some(cut)) => Verdict::Forget(cut),
            (true, true, None) => Verdict::Forget(ForgetReason::NoRule),
        }
    }
}

/// Decides about all snapshots of one source in one repository.
pub fn plan(
    snapshots: &[Candidate],
    rules: &RetentionRules,
    now: Timestamp,
    context: &Context,
) -> RetentionPlan {
    let mut newest_first: Vec<&Candidate> = snapshots.iter().collect();
    newest_first.sort_by_key(|snapshot| std::cmp::Reverse((snapshot.committed_at, snapshot.id)));
    let all_kept = |reason: KeepReason, frozen| {
        let keep = |snapshot: &&Candidate| decision(snapshot, Verdict::Keep(vec![reason.clone()]));
        RetentionPlan { decisions: newest_first.iter().map(keep).collect(), frozen }
    };
    let Some(keep) = rules.keep.as_ref().filter(|keep| **keep != Keep::default()) else {
        return all_kept(KeepReason::Everything, None);
    };
    if let Some(freeze) = freeze(&newest_first, rules, now, context) {
        return all_kept(KeepReason::Frozen(freeze.clone()), Some(freeze));
    }
    let mut standings: Vec<Standing<'_>> = newest_first
        .iter()
        .map(|snapshot| Standing { snapshot, firm: Vec::new(), rules: Vec::new(), cut: None })
        .collect();
    protect(&mut standings, keep, now, context);
    apply_rules(&mut standings, keep, rules, now);
    apply_limits(&mut standings, keep, context);
    let decisions =
        standings.into_iter().map(|standing| decision(standing.snapshot, standing.verdict())).collect();
    RetentionPlan { decisions, frozen: None }
}

fn decision(snapshot: &Candidate, verdict: Verdict) -> Decision {
    Decision { id: snapshot.id, committed_at: snapshot.committed_at, verdict }
}

/// Why nothing may be removed now.
fn freeze(
    newest_first: &[&Candidate],
    rules: &RetentionRules,
    now: Timestamp,
    context: &Context,
) -> Option<Freeze> {
    let newest = newest_first.first()?;
    if let Some(error) = context.clock_error.filter(|error| error.abs() > CLOCK_TOLERANCE) {
        return Some(Freeze::ClockDisagrees { by: error.abs() });
    }
    if newest.committed_at.duration_since(now) > CLOCK_TOLERANCE {
        return Some(Freeze::FromTheFuture { at: newest.committed_at });
    }
    let Some(good) = newest_first.iter().find(|snapshot| snapshot.good) else {
        return Some(Freeze::NoneGood);
    };
    let age = now.duration_since(good.committed_at);
    let promised = rules.fresh_within.filter(|promised| age > promised.duration())?;
    Some(Freeze::BackupsFail { age: Span::from_secs(age.as_secs()), promised })
}

/// What is never removed.
fn protect(standings: &mut [Standing<'_>], keep: &Keep, now: Timestamp, context: &Context) {
    let newest = |standings: &[Standing<'_>], fits: &dyn Fn(&Candidate) -> bool| {
        standings.iter().position(|standing| standing.snapshot.good && fits(standing.snapshot))
    };
    let mut firm = vec![
        (newest(standings, &|_| true), KeepReason::LastGood),
        (newest(standings, &|snapshot| snapshot.complete), KeepReason::LastComplete),
        (newest(standings, &|snapshot| snapshot.verified), KeepReason::LastVerified),
    ];
    let window = keep.pitr.and_then(|pitr| now.checked_sub(pitr.duration()).ok());
    for from in context.log_from.into_iter().chain(window) {
        // Where the log goes back further than the snapshots, it begins to be of use with the oldest of them.
        let oldest = || standings.iter().rposition(|standing| standing.snapshot.good);
        let base = newest(standings, &|snapshot| snapshot.committed_at <= from).or_else(oldest);
        firm.push((base, KeepReason::LogBase { from }));
    }
    for (index, reason) in firm {
        if let Some(index) = index {
            standings[index].firm.push(reason);
        }
    }
    for standing in standings {
        if let Some(reason) = &standing.snapshot.held {
            standing.firm.push(KeepReason::Held(reason.clone()));
        }
    }
}

/// What the rules keep.
fn apply_rules(standings: &mut [Standing<'_>], keep: &Keep, rules: &RetentionRules, now: Timestamp) {
    if !keep.has_rules() {
        for standing in standings {
            standing.rules.push(KeepReason::WithinLimits);
        }
        return;
    }
    if let Some(last) = keep.last {
        let good = standings.iter_mut().filter(|standing| standing.snapshot.good);
        for (index, standing) in good.take(last.as_usize()).enumerate() {
            standing.rules.push(KeepReason::Last { number: index + 1, of: last });
        }
    }
    for (period, count) in Period::rules(keep) {
        let mut kept = 0;
        let mut newest_of = None;
        let regular = standings
            .iter_mut()
            // A damaged snapshot does not stand for its period, and an ad hoc one is not meant to.
            .filter(|standing| standing.snapshot.good)
            .filter(|standing| standing.snapshot.snapshot_type != SnapshotType::Snapshot);
        for standing in regular {
            let key = period.key(standing.snapshot.committed_at, &rules.zone);
            if newest_of.as_ref() == Some(&key) {
                continue;
            }
            if kept == count.get() {
                break;
            }
            kept += 1;
            standing.rules.push(KeepReason::Newest { period, of: key.to_string(), number: kept, count });
            newest_of = Some(key);
        }
    }
    for standing in standings {
        let age = now.duration_since(standing.snapshot.committed_at);
        if let Some(within) = keep.within.filter(|within| age <= within.duration()) {
            standing.rules.push(KeepReason::Within(within));
        }
        let snapshot_type = standing.snapshot.snapshot_type;
        let default = (snapshot_type == SnapshotType::Snapshot).then_some(KeepByType::SNAPSHOT_DEFAULT);
        let by_type = rules.keep_by_type.of(snapshot_type).or(default);
        if let Some(span) = by_type.filter(|span| age <= span.duration()) {
            standing.rules.push(KeepReason::OfType { snapshot_type, span });
        }
    }
}

/// What the limits take away, the oldest first.
fn apply_limits(standings: &mut [Standing<'_>], keep: &Keep, context: &Context) {
    let kept = |standings: &[Standing<'_>]| -> (usize, u64) {
        let kept = standings.iter().filter(|standing| standing.is_kept());
        kept.fold((0, 0), |(count, bytes): (usize, u64), standing| {
            (count + 1, bytes.saturating_add(standing.snapshot.added_bytes))
        })
    };
    if let Some(max) = keep.max_count {
        let (mut count, _) = kept(standings);
        cut_oldest(standings, 0, ForgetReason::MaxCount(max), |_| {
            let over = count > max.as_usize();
            count -= usize::from(over);
            over
        });
    }
    if let Some(max) = keep.max_total_size {
        let (_, mut bytes) = kept(standings);
        cut_oldest(standings, 0, ForgetReason::MaxTotalSize(max), |snapshot| {
            let over = bytes > max.0;
            bytes -= if over { snapshot.added_bytes } else { 0 };
            over
        });
    }
    if let (Some(cleanup), Some(storage)) = (&keep.cleanup, context.storage) {
        let (used, limit) = match cleanup.above {
            Threshold::Size(Bytes(limit)) => (storage.repository_bytes, limit),
            Threshold::Share(share) => {
                let Some(capacity) = storage.capacity_bytes else { return };
                (storage.used_bytes, (u128::from(capacity) * u128::from(share.get()) / 100) as u64)
            }
        };
        // What goes already makes room; how much exactly only pruning knows.
        let gone = standings.iter().filter(|standing| !standing.is_kept());
        let mut used = gone.fold(used, |used, standing| used.saturating_sub(standing.snapshot.added_bytes));
        cut_oldest(standings, cleanup.newest.as_usize(), ForgetReason::Cleanup(cleanup.above), |snapshot| {
            let over = used > limit;
            used -= if over { snapshot.added_bytes.min(used) } else { 0 };
            over
        });
    }
}

/// Goes through what only rules keep, the oldest first, sparing the newest good ones, as long as `over` says so.
fn cut_oldest(
    standings: &mut [Standing<'_>],
    spare: usize,
    reason: ForgetReason,
    mut over: impl FnMut(&Candidate) -> bool,
) {
    let good = standings.iter().enumerate().filter(|(_, standing)| standing.snapshot.good);
    let spared: Vec<usize> = good.take(spare).map(|(index, _)| index).collect();
    for (index, standing) in standings.iter_mut().enumerate().rev() {
        let loose = standing.is_kept() && standing.firm.is_empty() && !spared.contains(&index);
        if loose && over(standing.snapshot) {
            standing.cut = Some(reason.clone());
        }
    }
}

#[cfg(test)]
mod tests;
