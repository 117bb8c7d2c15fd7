//! 100,000 random histories under random rules; no plan may break a promise.

use super::*;
use crate::policy::Cleanup;
use crate::random_numbers::Numbers;
use crate::units::Count;
use crate::units::Percent;

const HISTORIES: u64 = 100_000;
const ZONES: &[&str] = &["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu"];

struct History {
    snapshots: Vec<Candidate>,
    rules: RetentionRules,
    context: Context,
}

impl History {
    fn random(numbers: &mut Numbers, zones: &[Zone]) -> Self {
        let mut snapshots = Vec::new();
        let mut time = now() - numbers.secs(0, 4 * 86_400);
        if numbers.one_in(40) {
            time = now() + numbers.secs(1, 86_400);
        }
        for number in 0..numbers.below(25) {
            let types = [
                SnapshotType::Full,
                SnapshotType::Incremental,
                SnapshotType::Differential,
                SnapshotType::Snapshot,
            ];
            snapshots.push(Candidate {
                snapshot_type: types[numbers.below(4) as usize],
                added_bytes: numbers.below(1000),
                good: !numbers.one_in(8),
                complete: !numbers.one_in(6),
                verified: numbers.one_in(5),
                held: numbers.one_in(15).then(|| "audit".to_owned()),
                ..good(number as u8, time)
            });
            time -= match numbers.below(5) {
                0 => SignedDuration::ZERO,
                1 => numbers.secs(1, 3600),
                2 => numbers.secs(1, 86_400),
                3 => numbers.secs(1, 10 * 86_400),
                _ => numbers.secs(1, 90 * 86_400),
            };
        }
        let mut count = |most| numbers.one_in(4).then(|| Count::new(1 + numbers.below(most) as u32));
        let mut keep = Keep {
            last: count(5),
            hourly: count(8),
            daily: count(8),
            weekly: count(6),
            monthly: count(6),
            yearly: count(3),
            max_count: count(12),
            ..Keep::default()
        };
        let mut span = |chances| {
            numbers.one_in(chances).then(|| Span::from_secs(numbers.secs(1, 40 * 86_400).as_secs()))
        };
        keep.within = span(5);
        keep.pitr = span(6);
        let keep_by_type =
            KeepByType { full: span(5), incremental: span(5), differential: span(5), snapshot: span(3) };
        let fresh_within = span(3);
        keep.max_total_size = numbers.one_in(8).then(|| Bytes(1 + numbers.below(8000)));
        keep.cleanup = numbers.one_in(6).then(|| Cleanup {
            above: Threshold::Share(Percent::new(1 + numbers.below(99) as u8)),
            newest: Count::new(1 + numbers.below(6) as u32),
        });
        let storage = StorageUse {
            repository_bytes: numbers.below(20_000),
            used_bytes: numbers.below(10_000),
            capacity_bytes: Some(10_000),
        };
        let context = Context {
            clock_error: numbers.one_in(20).then(|| numbers.secs(-900, 900)),
            log_from: numbers.one_in(5).then(|| now() - numbers.secs(0, 40 * 86_400)),
            storage: numbers.one_in(2).then_some(storage),
        };
        let zone = zones[numbers.below(zones.len() as u64) as usize].clone();
        let keep = (!numbers.one_in(20)).then_some(keep);
        History { snapshots, rules: RetentionRules { keep, keep_by_type, zone, fresh_within }, context }
    }

    fn newest(&self, fits: impl Fn(&Candidate) -> bool) -> Option<&Candidate> {
        let fitting = self.snapshots.iter().filter(|snapshot| snapshot.good && fits(snapshot));
        fitting.max_by_key(|snapshot| (snapshot.committed_at, snapshot.id))
    }

    /// What may never go, as a reader of the promises would list it.
    fn untouchable(&self) -> BTreeSet<SnapshotId> {
        let mut ids: BTreeSet<SnapshotId> = self
            .snapshots
            .iter()
            .filter(|snapshot| snapshot.held.is_some())
            .map(|snapshot| snapshot.id)
            .collect();
        ids.extend(self.newest(|_| true).map(|snapshot| snapshot.id));
        ids.extend(self.newest(|snapshot| snapshot.complete).map(|snapshot| snapshot.id));
        ids.extend(self.newest(|snapshot| snapshot.verified).map(|snapshot| snapshot.id));
        if let Some(from) = self.context.log_from {
            ids.extend(self.newest(|snapshot| snapshot.committed_at <= from).map(|snapshot| snapshot.id));
        }
        ids
    }

    fn is_frozen(&self) -> bool {
        let clock_is_off = self.context.clock_error.is_some_and(|error| error.as_secs().abs() > 300);
        let future =
            self.snapshots.iter().any(|snapshot| snapshot.committed_at.duration_since(now()).as_secs() > 300);
        let newest = self.newest(|_| true);
        let stale = match (newest, self.rules.fresh_within) {
            (None, _) => !self.snapshots.is_empty(),
            (Some(newest), Some(fresh)) => now().duration_since(newest.committed_at).as_secs() > fresh.secs(),
            (Some(_), None) => false,
        };
        clock_is_off || future || stale
    }

    fn check(&self) {
        let plan = plan(&self.snapshots, &self.rules, now(), &self.context);
        assert_eq!(plan.decisions.len(), self.snapshots.len());
        let forgotten: BTreeSet<SnapshotId> = plan.forgotten().map(|decision| decision.id).collect();
        for decision in &plan.decisions {
            if let Verdict::Keep(reasons) = &decision.verdict {
                assert!(!reasons.is_empty(), "{decision:?} has no reason");
            }
        }
        let keep = self.rules.keep.clone().unwrap_or_default();
        if self.is_frozen() || keep == Keep::default() {
            assert!(forgotten.is_empty(), "removes {forgotten:?}");
            return;
        }
        let untouchable = self.untouchable();
        assert!(untouchable.is_disjoint(&forgotten), "removes what may not go");
        let kept: Vec<&Candidate> =
            self.snapshots.iter().filter(|snapshot| !forgotten.contains(&snapshot.id)).collect();
        self.check_rules(&keep, &kept);
        // With what is left, nothing more goes: a plan is not the beginning of another.
        if keep.cleanup.is_none() {
            let left: Vec<Candidate> = kept.into_iter().cloned().collect();
            let again = super::plan(&left, &self.rules, now(), &self.context);
            assert_eq!(again.forgotten().next(), None, "a second plan removes more");
        }
    }

    fn check_rules(&self, keep: &Keep, kept: &[&Candidate]) {
        let limited = keep.max_count.is_some() || keep.max_total_size.is_some() || keep.cleanup.is_some();
        let has = |id: SnapshotId| kept.iter().any(|snapshot| snapshot.id == id);
        let mut good: Vec<&Candidate> = self.snapshots.iter().filter(|snapshot| snapshot.good).collect();
        good.sort_by_key(|snapshot| std::cmp::Reverse((snapshot.committed_at, snapshot.id)));
        if !limited {
            let last = keep.last.map_or(0, Count::as_usize);
            assert!(good.iter().take(last).all(|snapshot| has(snapshot.id)), "one of the last is gone");
            let day =
                |snapshot: &Candidate| self.rules.zone.time_zone().to_datetime(snapshot.committed_at).date();
            let days = |snapshots: &mut dyn Iterator<Item = &Candidate>| -> BTreeSet<_> {
                snapshots
                    .filter(|snapshot| snapshot.good && snapshot.snapshot_type != SnapshotType::Snapshot)
                    .map(day)
                    .collect()
            };
            let before = days(&mut self.snapshots.iter());
            let after = days(&mut kept.iter().copied());
            let promised = keep.daily.map_or(0, Count::as_usize).min(before.len());
            let missing: Vec<_> =
                before.iter().rev().take(promised).filter(|day| !after.contains(day)).collect();
            assert!(missing.is_empty(), "no snapshot is left of {missing:?}");
            for snapshot in &self.snapshots {
                let age = now().duration_since(snapshot.committed_at).as_secs();
                let young = keep.within.is_some_and(|within| age <= within.secs());
                assert!(!young || has(snapshot.id), "{snapshot:?} is young enough");
            }
            return;
        }
        let loose = |snapshot: &&&Candidate| !self.is_firm(keep, snapshot);
        if let Some(max) = keep.max_count {
            let over = kept.len() > max.as_usize();
            assert!(!over || kept.iter().filter(loose).count() == 0, "more than {max} are kept");
        }
        if let Some(cleanup) = &keep.cleanup
            && keep.max_count.is_none()
            && keep.max_total_size.is_none()
            && !keep.has_rules()
        {
            let spared = good.iter().take(cleanup.newest.as_usize());
            assert!(spared.into_iter().all(|snapshot| has(snapshot.id)), "one of the newest is gone");
        }
    }

    /// Whether no limit can take it.
    fn is_firm(&self, keep: &Keep, snapshot: &Candidate) -> bool {
        let mut firm = self.untouchable();
        for from in self.context.log_from.into_iter().chain(keep.pitr.map(|pitr| now() - pitr.duration())) {
            let base = self.newest(|snapshot| snapshot.committed_at <= from);
            let good = self.snapshots.iter().filter(|snapshot| snapshot.good);
            let oldest = || good.min_by_key(|snapshot| (snapshot.committed_at, snapshot.id));
            firm.extend(base.or_else(oldest).map(|snapshot| snapshot.id));
        }
        firm.contains(&snapshot.id)
    }
}

#[test]
fn no_plan_breaks_a_promise() {
    let zones: Vec<Zone> = ZONES.iter().map(|zone| zone.parse().unwrap()).collect();
    let mut forgot = 0;
    let mut frozen = 0;
    for seed in 0..HISTORIES {
        let history = History::random(&mut Numbers::new(seed), &zones);
        let checked = std::panic::catch_unwind(|| history.check());
        if let Err(panic) = checked {
            println!("seed {seed}: {:#?} {:?} {:?}", history.snapshots, history.rules, history.context);
            std::panic::resume_unwind(panic);
        }
        frozen += usize::from(history.is_frozen());
        forgot += plan(&history.snapshots, &history.rules, now(), &history.context).forgotten().count();
    }
    // Otherwise nothing was tried.
    assert!(forgot > 200_000 && frozen > 5_000, "{forgot} forgotten, {frozen} frozen");
}
