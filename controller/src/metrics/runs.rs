//! Metrics of runs: how many ended how, how long they took, what is under way.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_model::Failure;
use holdfast_model::metrics::catalogue::Metric;
use holdfast_model::run::{Outcome, RunKind};
use holdfast_model::run_state::Phase;

use super::sources::repositories_of;
use super::{Families, number, seconds};
use crate::core::Core;
use crate::run_totals::{self, AllTotals, DURATION_BUCKETS, Durations, Subject, Totals};

/// The kinds of run that are about a source.
const OF_SOURCES: [RunKind; 5] =
    [RunKind::Backup, RunKind::Restore, RunKind::Promote, RunKind::Discard, RunKind::Copy];

pub(super) async fn collect(core: &Arc<Core>, families: &mut Families) -> Result<(), Failure> {
    let totals = run_totals::all(&core.records).await?;
    of_sources(core, &totals, families);
    of_repositories(core, &totals, families);
    for ((kind, outcome), durations) in &totals.durations {
        let labels = [kind.as_str(), outcome.as_str()];
        let buckets = cumulated(durations);
        families.histogram(Metric::RunDuration, &labels, &buckets, durations.sum_seconds, durations.count);
    }
    under_way(core, families);
    let lag = i32::try_from(core.schedules.lag_millis()).unwrap_or(i32::MAX);
    families.set(Metric::SchedulerLag, &[], f64::from(lag) / 1000.0);
    Ok(())
}

fn of_sources(core: &Core, totals: &AllTotals, families: &mut Families) {
    let current = core.definitions.current();
    for (name, source) in &current.fleet.sources {
        for kind in OF_SOURCES {
            let sum = |of: &dyn Fn(&Totals) -> u64| -> f64 {
                number(totals.of_source(kind, name.as_str()).map(|(_, totals)| of(totals)).sum())
            };
            for outcome in Outcome::ALL {
                let labels = [kind.as_str(), name.as_str(), "", outcome.as_str()];
                let is_schedule = (kind, outcome) == (RunKind::Backup, Outcome::Skipped);
                let entry = is_schedule.then(|| core.schedules.entry(name)).flatten();
                let missed = number(entry.map_or(0, |entry| entry.state.missed));
                families.set(Metric::Runs, &labels, missed + sum(&|totals| totals.of(outcome)));
            }
            if matches!(kind, RunKind::Backup | RunKind::Restore) {
                let labels = |direction| [kind.as_str(), name.as_str(), direction];
                families.set(Metric::RunBytes, &labels("read"), sum(&|totals| totals.bytes_read));
                families.set(Metric::RunBytes, &labels("stored"), sum(&|totals| totals.bytes_stored));
            }
        }
        let backups: BTreeMap<&str, &Totals> = totals.of_source(RunKind::Backup, name.as_str()).collect();
        let in_a_row = backups.values().map(|totals| totals.consecutive_failures).max().unwrap_or(0);
        families.set(Metric::BackupConsecutiveFailures, &[name.as_str()], number(in_a_row));
        for repository in repositories_of(core, name, source, &[]) {
            let of_it = backups.get(repository.as_str());
            let labels = [name.as_str(), repository.as_str()];
            let success = of_it.and_then(|totals| totals.last_success_at);
            families.set(Metric::BackupLastSuccess, &labels, seconds(success));
            let attempt = of_it.and_then(|totals| totals.last_ended_at);
            families.set(Metric::BackupLastAttempt, &labels, seconds(attempt));
        }
    }
}

fn of_repositories(core: &Core, totals: &AllTotals, families: &mut Families) {
    let none = Totals::default();
    for name in core.definitions.current().fleet.repositories.keys() {
        for kind in [RunKind::Verify, RunKind::Check, RunKind::Prune, RunKind::Copy] {
            let subject = Subject { kind, source: String::new(), repository: name.to_string() };
            let totals = totals.runs.get(&subject).unwrap_or(&none);
            for outcome in Outcome::ALL {
                let labels = [kind.as_str(), "", name.as_str(), outcome.as_str()];
                families.set(Metric::Runs, &labels, number(totals.of(outcome)));
            }
            if kind == RunKind::Verify {
                let labels = [name.as_str(), "snapshot"];
                families.set(Metric::VerifyLastSuccess, &labels, seconds(totals.last_success_at));
            }
        }
    }
}

/// How many were at most so long, for each end of a bucket.
fn cumulated(durations: &Durations) -> Vec<(u32, u64)> {
    let mut within = 0;
    let ends = DURATION_BUCKETS.into_iter().map(|end| {
        within += durations.buckets.get(&end).copied().unwrap_or(0);
        (end, within)
    });
    ends.collect()
}

fn under_way(core: &Core, families: &mut Families) {
    let active = core.runs.active();
    for kind in RunKind::ALL {
        let of_kind = || active.iter().filter(|run| run.spec.kind() == kind);
        let queued = of_kind().filter(|run| run.state.phase == Phase::Queued).count();
        let all = of_kind().count();
        families.set(Metric::RunsQueued, &[kind.as_str()], number(queued as u64));
        families.set(Metric::RunsRunning, &[kind.as_str()], number((all - queued) as u64));
    }
    let mut progress: BTreeMap<(RunKind, &str), f64> = BTreeMap::new();
    for run in active.iter().filter(|run| run.state.phase.is_with_agent() && run.progress.bytes_total > 0) {
        if let Some(source) = run.spec.source() {
            let done = number(run.progress.bytes_done) / number(run.progress.bytes_total);
            let least = progress.entry((run.spec.kind(), source.as_str())).or_insert(1.0);
            *least = least.min(done);
        }
    }
    for ((kind, source), done) in progress {
        families.set(Metric::RunProgress, &[kind.as_str(), source], done);
    }
}
