//! What a report follows from, read from the state. Runs come page by page and are counted, none is kept.

use std::sync::Arc;

use holdfast_model::Failure;
use holdfast_model::alert::{Alert, Book};
use holdfast_model::ids::{RepositoryName, RunId, SourceName};
use holdfast_model::manifest::Manifest;
use holdfast_model::metrics::MetricFamily;
use holdfast_model::report::fleet::{self, Incident, Input, Problem, RepositoryReport, SourceInput};
use holdfast_model::report::storage::forecast;
use holdfast_model::report::{Period, Report, ReportKind, Tally, logs};
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::source::Source;
use holdfast_proto::v1;
use jiff::{SignedDuration, Timestamp};

use super::{Asked, removals, sizes};
use crate::core::Core;
use crate::fleet_health;
use crate::metrics;
use crate::source_status::{self, SourceStanding};

/// Runs that are read at a time.
const RUNS_PAGE: usize = 500;

/// Runs are kept in the order in which they were asked for, and belong to the period in which they end: those that were
/// asked for this much earlier are looked at, too.
const LOOK_BACK: SignedDuration = SignedDuration::from_hours(48);

pub(super) async fn report(core: &Arc<Core>, asked: &Asked) -> Result<Report, Failure> {
    let tally = tally(core, asked.period(), asked.source.clone()).await?;
    let (now, environment) = (core.clock.now(), core.notifier.environment().to_owned());
    if asked.kind == ReportKind::Logs {
        return Ok(Report::Logs(Box::new(logs::build(tally, now, environment))));
    }
    let standings = source_status::of_all(core).await?;
    let families = metrics::collect(core).await?;
    let wire: Vec<v1::SourceStatus> = standings
        .iter()
        .map(|(name, source, standing)| source_status::wire(name, source, standing))
        .collect();
    let problems = fleet_health::of(&wire, &families).deductions;
    let problems = problems.into_iter().filter(|problem| !problem.object.is_empty()).map(|problem| Problem {
        object_kind: problem.area.to_owned(),
        object: problem.object,
        problem: problem.reason,
        next: problem.remedy,
    });
    let mut sources = Vec::with_capacity(standings.len());
    for (name, source, standing) in standings {
        sources.push(fleet::source(input(core, &tally.period, name, &source, &standing).await?, &tally));
    }
    let mut repositories = Vec::new();
    for name in core.definitions.current().fleet.repositories.keys() {
        repositories.push(repository(core, &families, name, &tally.period, now).await?);
    }
    let input = Input {
        generated_at: now,
        environment,
        problems: problems.collect(),
        sources,
        incidents: incidents(&core.alerts.book().await, &tally.period, now),
        repositories,
        tally,
    };
    let built = Box::new(fleet::build(input));
    Ok(if asked.kind == ReportKind::Daily { Report::Daily(built) } else { Report::Weekly(built) })
}

/// Counts the runs of a period.
async fn tally(core: &Core, period: Period, source: Option<SourceName>) -> Result<Tally, Failure> {
    let oldest = period.from.checked_sub(LOOK_BACK).unwrap_or(Timestamp::MIN);
    // Ids sort by the time at which they were made.
    let first = RunId::at(u64::try_from(oldest.as_millisecond()).unwrap_or(0), [0; 10]);
    let mut tally = Tally::new(period, source);
    for run in core.runs.active().iter().filter(|run| run.id < first) {
        tally.add(run);
    }
    let mut before: Option<RunId> = None;
    loop {
        let page = core.records.runs_before(before, RUNS_PAGE).await?;
        let Some(last) = page.last() else { return Ok(tally) };
        before = Some(last.id);
        for run in &page {
            if run.id < first {
                return Ok(tally);
            }
            tally.add(run);
        }
    }
}

async fn input(
    core: &Core,
    period: &Period,
    name: SourceName,
    source: &Source,
    standing: &SourceStanding,
) -> Result<SourceInput, Failure> {
    let before = match core.records.snapshot_before(&name, period.from).await? {
        Some(before) => Some(before),
        None => core.records.snapshot_since(&name, period.from).await?,
    };
    // What the state follows from says nothing of tables.
    let newest = match standing.newest() {
        Some(newest) => core.records.snapshot(newest.id).await?,
        None => None,
    };
    let facts =
        |record: SnapshotRecord| -> (u64, Option<Manifest>) { (record.logical_bytes, record.manifest) };
    let schedule = standing.facts.schedule.as_ref();
    Ok(SourceInput {
        engine: source.engine.kind().to_string(),
        labels: source.labels.clone(),
        policy: schedule.map(|schedule| (schedule.policy.to_string(), schedule.since)),
        state: standing.safety.as_str().to_owned(),
        problem: standing.problem.clone(),
        recovery_point: standing.recovery_point,
        proven_at: standing.proven.map(|(at, _)| at),
        verified_at: standing.verified_at,
        objectives: standing.objectives,
        before: before.map(facts),
        newest: newest.map(facts),
        source: name,
    })
}

/// What was wrong in a period: what was told, or would have been without a silence.
fn incidents(book: &Book, period: &Period, now: Timestamp) -> Vec<Incident> {
    let was_wrong = |alert: &&Alert| {
        let is_over_before = alert.recovered_at.is_some_and(|at| at < period.from);
        alert.failing_at.is_some_and(|at| at < period.until) && !is_over_before && alert.follows.is_none()
    };
    let incident = |alert: &Alert| Incident {
        alert: alert.id,
        object_kind: alert.key.object.kind.as_str().to_owned(),
        object: alert.key.object.name.clone(),
        rule: alert.key.reason.clone(),
        severity: alert.severity.as_str().to_owned(),
        summary: alert.text.summary.clone(),
        since_at: alert.since,
        recovered_at: alert.recovered_at,
        duration_seconds: alert.recovered_at.unwrap_or(now).duration_since(alert.since).as_secs().max(0),
        acknowledged_by: alert.ack.as_ref().map(|ack| ack.by.clone()),
    };
    book.alerts.values().filter(was_wrong).map(incident).collect()
}

async fn repository(
    core: &Core,
    families: &[MetricFamily],
    name: &RepositoryName,
    period: &Period,
    now: Timestamp,
) -> Result<RepositoryReport, Failure> {
    let free_bytes = of_repository(families, "holdfast_repository_free_bytes", name).map(whole);
    let removed = removals::within(&core.records, name, period).await?;
    Ok(RepositoryReport {
        repository: name.to_string(),
        up: of_repository(families, "holdfast_repository_up", name).is_some_and(|up| up > 0.0),
        stored_bytes: of_repository(families, "holdfast_repository_stored_bytes", name).map(whole),
        free_bytes,
        forecast: forecast(&sizes(core, name).await?, free_bytes, now),
        removed_by_retention: removed.by_retention,
        removed_by_hand: removed.by_hand,
    })
}

/// A metric of a repository.
pub(super) fn of_repository(families: &[MetricFamily], metric: &str, name: &RepositoryName) -> Option<f64> {
    let samples = families.iter().filter(|family| family.name == metric).flat_map(|family| &family.samples);
    samples.into_iter().find(|sample| sample.label("repository") == name.as_str()).map(|sample| sample.value)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes are whole and not negative"
)]
pub(super) fn whole(value: f64) -> u64 {
    value as u64
}
