//! What in a policy contradicts itself: promises that its own rules can not keep.

use crate::error_code::ErrorCode;
use crate::run::SnapshotType;
use crate::schedule::{Gap, Timetable};
use crate::units::Span;
use crate::verification;

use super::{After, KeepByType, Policy, Rule};

/// How many ranges of blackout days are read.
const BLACKOUT_MAX: usize = 100;

/// What is wrong with a policy, and where in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyProblem {
    /// Which rule is broken.
    pub code: ErrorCode,
    /// The key below the policy, such as `objectives.rpo`; empty for the policy as a whole.
    pub key: &'static str,
    /// What is wrong, and what would be right.
    pub message: String,
}

fn problem(code: ErrorCode, key: &'static str, message: impl Into<String>) -> PolicyProblem {
    PolicyProblem { code, key, message: message.into() }
}

fn impossible(key: &'static str, message: impl Into<String>) -> PolicyProblem {
    problem(ErrorCode::PromiseImpossible, key, message)
}

impl Policy {
    /// Everything that is wrong with the policy by itself.
    pub fn problems(&self) -> Vec<PolicyProblem> {
        if *self == Policy::default() {
            let message = "says nothing: give it objectives, a schedule or what to keep";
            return vec![problem(ErrorCode::PolicyEmpty, "", message)];
        }
        if self.schedule.blackout.len() > BLACKOUT_MAX {
            let message = format!("has more than {BLACKOUT_MAX} ranges");
            return vec![problem(ErrorCode::FileInvalid, "schedule.blackout", message)];
        }
        let timetable = Timetable::new(self.schedule.clone());
        let mut problems = self.rules_that_never_begin(&timetable);
        if problems.is_empty() {
            let gap = timetable.longest_gap(None);
            problems.extend(self.rpo_problem(gap));
            problems.extend(self.retention_problem(gap));
            problems.extend(self.proof_problem(gap));
        }
        problems.extend(self.promises_without_means());
        problems
    }

    /// How much may be lost between two backups: the longest gap; with `log_archived`, what of the log may be lost.
    /// None when nothing in the schedule goes by the clock.
    pub fn worst_loss(&self, log_archived: bool) -> Option<Span> {
        let gap = match Timetable::new(self.schedule.clone()).longest_gap(None) {
            Gap::Longest(gap) => Some(gap),
            Gap::NoClock | Gap::Never => None,
        };
        self.worst_of(gap, log_archived)
    }

    fn worst_of(&self, gap: Option<Span>, log_archived: bool) -> Option<Span> {
        let log = self.schedule.log.filter(|_| log_archived).map(super::LogArchiving::worst_loss);
        gap.into_iter().chain(log).min()
    }

    fn rules_that_never_begin(&self, timetable: &Timetable) -> Vec<PolicyProblem> {
        let mut problems = Vec::new();
        for (snapshot_type, when) in self.schedule.by_type() {
            let key = schedule_key(snapshot_type);
            match &when.rule {
                Rule::After(After::Type(followed)) => {
                    let scheduled = self.schedule.by_type().any(|(other, _)| other == *followed);
                    if !scheduled {
                        problems.push(impossible(
                            key,
                            format!("follows {followed}, which is not scheduled: it would never begin"),
                        ));
                    } else if self.follows_itself(snapshot_type) {
                        problems.push(impossible(key, "follows itself: it would never begin"));
                    }
                }
                Rule::After(After::Source(_)) => {}
                Rule::Cron(_) | Rule::Every(_) => {
                    if timetable.longest_gap(Some(snapshot_type)) == Gap::Never {
                        problems.push(impossible(
                            key,
                            format!(
                                "never begins: its times are outside the window, and catch_up ({}) is over before \
                                 the window opens",
                                self.schedule.catch_up
                            ),
                        ));
                    }
                }
            }
        }
        problems
    }

    fn follows_itself(&self, snapshot_type: SnapshotType) -> bool {
        let mut at = snapshot_type;
        // There are four types: after four steps one came twice.
        for _ in 0..4 {
            let next = self.schedule.by_type().find(|(other, _)| *other == at).map(|(_, when)| &when.rule);
            match next {
                Some(Rule::After(After::Type(followed))) => at = *followed,
                _ => return false,
            }
            if at == snapshot_type {
                return true;
            }
        }
        false
    }

    fn rpo_problem(&self, gap: Gap) -> Option<PolicyProblem> {
        let rpo = self.objectives.rpo?;
        let gap = match gap {
            Gap::Longest(gap) => Some(gap),
            Gap::NoClock | Gap::Never => None,
        };
        let key = "objectives.rpo";
        match self.worst_of(gap, true) {
            Some(worst) if worst <= rpo => None,
            Some(worst) => Some(impossible(
                key,
                format!(
                    "promises to lose at most {rpo}, but the schedule leaves up to {worst}: back up at least every \
                     {rpo}, or promise {worst}"
                ),
            )),
            // What follows another source is as good as that source's schedule.
            None if self.schedule.by_type().next().is_some() => None,
            None => Some(impossible(
                key,
                format!("promises to lose at most {rpo}, but nothing is scheduled: add `schedule`"),
            )),
        }
    }

    fn retention_problem(&self, gap: Gap) -> Option<PolicyProblem> {
        let code = ErrorCode::RetentionEmpty;
        let Some(keep) = &self.keep else {
            return None;
        };
        if *keep == super::Keep::default() {
            let message = "says nothing: leave it out to keep everything, or say what to keep";
            return Some(problem(code, "keep", message));
        }
        let counts = [keep.last, keep.hourly, keep.daily, keep.weekly, keep.monthly, keep.yearly];
        if !keep.has_rules() || keep.pitr.is_some() || counts.iter().any(Option::is_some) {
            return None;
        }
        let Gap::Longest(gap) = gap else { return None };
        let longest = keep.within.into_iter().chain(self.times_by_type()).max()?;
        (longest < gap).then(|| {
            let message = format!(
                "keeps snapshots for {longest}, but {gap} may pass between backups: all would be gone before the \
                 next; add `last: 3`, or keep them for longer"
            );
            problem(code, "keep", message)
        })
    }

    /// How long snapshots of the types that are scheduled stay by their types.
    fn times_by_type(&self) -> impl Iterator<Item = Span> {
        self.schedule.by_type().filter_map(|(snapshot_type, _)| {
            let default = (snapshot_type == SnapshotType::Snapshot).then_some(KeepByType::SNAPSHOT_DEFAULT);
            self.keep_by_type.of(snapshot_type).or(default)
        })
    }

    /// Whether every snapshot is gone before it is proven to be read.
    fn proof_problem(&self, gap: Gap) -> Option<PolicyProblem> {
        let full = self.verify.full?;
        let (life, wanted) = (self.longest_life(gap)?, verification::proven_within(full));
        (life < wanted).then(|| {
            let right = verification::proves_within(life);
            impossible(
                "verify.full",
                format!(
                    "has a snapshot read in full up to {wanted} after it was made, but none is kept for longer than \
                     {life}: none would ever be proven; set `full: {right}`, or keep snapshots for {wanted}"
                ),
            )
        })
    }

    /// How long a snapshot stays at most; none when there is no such time, or it does not follow from the policy.
    fn longest_life(&self, gap: Gap) -> Option<Span> {
        let keep = self.keep.as_ref()?;
        let Gap::Longest(gap) = gap else { return None };
        if !keep.has_rules() || keep.pitr.is_some() {
            return None;
        }
        let periods = [
            (keep.last, Span::from_secs(1)),
            (keep.hourly, Span::from_hours(1)),
            (keep.daily, Span::from_days(1)),
            (keep.weekly, Span::from_days(7)),
            (keep.monthly, Span::from_days(31)),
            (keep.yearly, Span::from_days(366)),
        ];
        // Of each period that has one; between two that have, there may be as much as between two backups.
        let counted = periods.into_iter().filter_map(|(count, period)| {
            let secs = period.max(gap).secs().saturating_mul(i64::from(count?.get()));
            Some(Span::from_secs(secs))
        });
        // The newest stays until the next comes.
        keep.within.into_iter().chain(self.times_by_type()).chain(counted).chain([gap]).max()
    }

    /// Promises for which the policy names no means.
    fn promises_without_means(&self) -> Vec<PolicyProblem> {
        let mut problems = Vec::new();
        if let (Some(pitr), None) = (self.keep.as_ref().and_then(|keep| keep.pitr), self.schedule.log) {
            problems.push(impossible(
                "keep.pitr",
                format!(
                    "promises every moment of {pitr}, which needs the log: add `log: stream` to the schedule"
                ),
            ));
        }
        if let Some(message) = self.copies_problem(&self.to) {
            problems.push(impossible("objectives.copies", message));
        }
        let all_read = self.verify.reads_all_within();
        if let Some(promised) = self.objectives.verify_every
            && all_read.is_none_or(|within| within > promised)
        {
            let means = match all_read {
                Some(within) => format!("everything is read within {within} only"),
                None => "nothing makes sure that everything is read".to_owned(),
            };
            problems.push(impossible(
                "objectives.verify_every",
                format!(
                    "promises a verification every {promised}, but {means}: set `verify.full: {promised}`"
                ),
            ));
        }
        problems
    }

    /// What is wrong with the promised number of copies, for a source that is backed up to `to`.
    pub(crate) fn copies_problem(&self, to: &[crate::ids::RepositoryName]) -> Option<String> {
        let copies = self.objectives.copies?.as_usize();
        let names: std::collections::BTreeSet<_> = to.iter().chain(&self.copy_to).collect();
        // With no `to` it is the only repository there is.
        let have = names.len() + usize::from(to.is_empty());
        (have < copies).then(|| {
            format!("promises {copies} copies, but `to` and `copy_to` make {have}: name more repositories")
        })
    }

    /// Whether less would be kept under this policy than under `old`, so that it has to be confirmed.
    pub fn keeps_less_than(&self, old: &Policy) -> bool {
        fn fewer<T: Ord>(new: Option<T>, old: Option<T>) -> bool {
            match (new, old) {
                (Some(new), Some(old)) => new < old,
                (None, Some(_)) => true,
                (_, None) => false,
            }
        }
        // A limit that was not there is as good as one without end.
        fn tighter<T: Ord>(new: Option<T>, old: Option<T>) -> bool {
            match (new, old) {
                (Some(new), Some(old)) => new < old,
                (Some(_), None) => true,
                (None, _) => false,
            }
        }
        let Some(new_keep) = &self.keep else { return false };
        let Some(old_keep) = &old.keep else { return true };
        let limits = tighter(new_keep.max_count, old_keep.max_count)
            || tighter(new_keep.max_total_size, old_keep.max_total_size)
            || (new_keep.cleanup.is_some() && new_keep.cleanup != old_keep.cleanup);
        if !new_keep.has_rules() {
            return limits;
        }
        if !old_keep.has_rules() {
            // Where there were limits only, what no rule keeps goes now.
            return true;
        }
        let rules = [
            (new_keep.last, old_keep.last),
            (new_keep.hourly, old_keep.hourly),
            (new_keep.daily, old_keep.daily),
            (new_keep.weekly, old_keep.weekly),
            (new_keep.monthly, old_keep.monthly),
            (new_keep.yearly, old_keep.yearly),
        ];
        let types = [
            SnapshotType::Full,
            SnapshotType::Incremental,
            SnapshotType::Differential,
            SnapshotType::Snapshot,
        ];
        limits
            || rules.into_iter().any(|(new, old)| fewer(new, old))
            || fewer(new_keep.within, old_keep.within)
            || fewer(new_keep.pitr, old_keep.pitr)
            || types.into_iter().any(|of| fewer(self.keep_by_type.of(of), old.keep_by_type.of(of)))
    }
}

fn schedule_key(snapshot_type: SnapshotType) -> &'static str {
    match snapshot_type {
        SnapshotType::Full => "schedule.full",
        SnapshotType::Incremental => "schedule.incremental",
        SnapshotType::Differential => "schedule.differential",
        SnapshotType::Snapshot => "schedule.snapshot",
    }
}
