//! How a source stands: what would be lost now, how long a restore takes, when that was last proven, and how that compares
//! with what its policy promises. One computation for the command line, the metrics, the alerts and the reports.

mod places;
mod snapshots;

use std::collections::BTreeSet;

use holdfast_model::Failure;
use holdfast_model::alert::Severity;
use holdfast_model::health::Health;
use holdfast_model::ids::{PolicyName, RepositoryName, SourceName};
use holdfast_model::objectives::{self, ObjectiveState, Report, SourceFacts, Standing};
use holdfast_model::policy::{HealthLimits, Objectives};
use holdfast_model::run::{Run, RunKind};
use holdfast_model::run_state::Phase;
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::source::Source;
use holdfast_model::units::Span;
use holdfast_proto::convert::timestamp;
use holdfast_proto::v1;
use jiff::{SignedDuration, Timestamp};

use crate::api::{fleet, policies};
use crate::copy_schedule;
use crate::core::Core;
use crate::debug_logging::DebugLogging;
use crate::health;
use crate::schedules::Pause;

pub use self::places::{CopyTarget, Place};
pub use self::snapshots::SnapshotCache;

/// What the state of a source follows from.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Those of its snapshots that its state follows from, newest first. Their manifests say nothing of tables.
    pub snapshots: Vec<SnapshotRecord>,
    /// How many it has, as far as they were looked at.
    pub snapshot_count: u64,
    /// Its last ended backup run.
    pub last_backup: Option<Run>,
    /// Its active backup run.
    pub active_run: Option<Run>,
    /// Whether its agent is connected.
    pub agent_online: bool,
    /// What is promised of it.
    pub objectives: Objectives,
    /// What its schedule says.
    pub schedule: Option<ScheduleFacts>,
    /// Where its policy has snapshots copied to.
    pub copy_to: Vec<CopyTarget>,
    /// Whether it answers, as far as that is known, and how slow it may be.
    pub health: Option<(Health, HealthLimits)>,
    /// Its debug logging, while that is on.
    pub debug: Option<DebugLogging>,
}

/// What the schedule of a source says.
#[derive(Debug, Clone)]
pub struct ScheduleFacts {
    /// The policy that it is under.
    pub policy: PolicyName,
    /// Since when.
    pub since: Timestamp,
    /// When the next backup begins by itself.
    pub next_run: Option<Timestamp>,
    /// The longest time between two runs.
    pub longest_gap: Option<Span>,
    /// Its pause, while there is one.
    pub pause: Option<Pause>,
    /// Slots that yielded no run.
    pub missed: u64,
}

/// How safe a source is, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Safety {
    /// There is nothing to restore.
    NotRestorable,
    /// Something is wrong, or a promise is broken.
    AtRisk,
    /// All is well, and no backup begins by itself for now.
    Paused,
    /// All is well.
    Protected,
}

impl Safety {
    /// The word used in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Safety::NotRestorable => "not_restorable",
            Safety::AtRisk => "at_risk",
            Safety::Paused => "paused",
            Safety::Protected => "protected",
        }
    }
}

/// How a source stands.
#[derive(Debug, Clone)]
pub struct SourceStanding {
    /// How safe it is.
    pub safety: Safety,
    /// Why, when it is not protected.
    pub problem: String,
    /// A command against that.
    pub remedy: String,
    /// Newest moment that can be restored.
    pub recovery_point: Option<Timestamp>,
    /// What would be lost now, in seconds; none: everything.
    pub loss_seconds: Option<i64>,
    /// When a restore last agreed with its manifest, and how long it took in milliseconds.
    pub proven: Option<(Timestamp, u64)>,
    /// When every byte of a snapshot was last read.
    pub verified_at: Option<Timestamp>,
    /// Repositories that hold a snapshot of it that is not damaged and not older than what is promised.
    pub copies: u32,
    /// How it stands in each repository, in the order of their names.
    pub places: Vec<Place>,
    /// Objectives beside what is measured.
    pub objectives: Report,
    /// What it follows from.
    pub facts: Facts,
}

impl SourceStanding {
    /// Its newest snapshot that is not damaged.
    pub fn newest(&self) -> Option<&SnapshotRecord> {
        newest(&self.facts)
    }

    /// The objectives with their names, in a fixed order.
    pub fn named_objectives(&self) -> [(&'static str, Standing<i64>); 5] {
        let report = self.objectives;
        [
            ("rpo", report.rpo),
            ("rto", report.rto),
            ("drill_age", report.drill_age),
            ("verify_age", report.verify_age),
            ("copies", report.copies),
        ]
    }
}

fn newest(facts: &Facts) -> Option<&SnapshotRecord> {
    facts.snapshots.iter().find(|record| record.proof.damage.is_none())
}

/// How a source stands: a pure function of what is known. Nothing is green without evidence.
pub fn judge(name: &SourceName, source: &Source, facts: Facts, now: Timestamp) -> SourceStanding {
    let newest_at = newest(&facts).map(SnapshotRecord::captured_at);
    let proven = facts.snapshots.iter().filter_map(|record| {
        let at = record.proof.restored_at?;
        Some((at, record.proof.restore_millis.unwrap_or(0)))
    });
    let proven = proven.max();
    let sound = facts.snapshots.iter().filter(|record| record.proof.damage.is_none());
    let verified_at = sound.filter_map(|record| record.proof.read_at).max();
    let copies = copies(&facts, newest_at);
    let schedule = facts.schedule.as_ref();
    let measured = SourceFacts {
        protected_since: schedule.map_or(now, |schedule| schedule.since),
        newest_snapshot: newest_at,
        log_until: None,
        unchanged_at: unchanged_at(&facts),
        next_run: schedule.and_then(|schedule| schedule.next_run),
        last_run_failed: last_failure(&facts, newest_at).is_some(),
        last_restore: proven
            .map(|(_, millis)| SignedDuration::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))),
        last_drill: proven.map(|(at, _)| at),
        last_verify: verified_at,
        copies,
    };
    let objectives = objectives::report(&facts.objectives, &measured, now);
    let places = places::places(&facts.snapshots, &facts.copy_to, newest_at);
    let (safety, problem, remedy) = verdict(name, source, &facts, newest_at, &objectives, now);
    SourceStanding {
        safety,
        problem,
        remedy,
        recovery_point: newest_at,
        loss_seconds: objectives::potential_loss(&measured, now).map(|loss| loss.as_secs()),
        proven,
        verified_at,
        copies,
        places,
        objectives,
        facts,
    }
}

/// When the source was last seen to be as its newest snapshot has it: an idle source loses nothing.
fn unchanged_at(facts: &Facts) -> Option<Timestamp> {
    let position = newest(facts)?.manifest.as_ref()?.log_position.as_deref();
    facts.health.as_ref().and_then(|(health, _)| health.unchanged_since(position))
}

/// Repositories whose newest sound snapshot of the source is as good as the newest of all: not older than it by more
/// than may be lost.
fn copies(facts: &Facts, newest_at: Option<Timestamp>) -> u32 {
    let Some(newest_at) = newest_at else { return 0 };
    let gap = facts.schedule.as_ref().and_then(|schedule| schedule.longest_gap);
    let allowed = facts.objectives.rpo.or(gap).map_or(SignedDuration::MAX, Span::duration);
    let good = facts.snapshots.iter().filter(|record| {
        record.proof.damage.is_none() && newest_at.duration_since(record.captured_at()) <= allowed
    });
    let repositories: BTreeSet<&RepositoryName> = good.map(|record| &record.repository).collect();
    u32::try_from(repositories.len()).unwrap_or(u32::MAX)
}

/// The last backup, when it failed and nothing newer was captured.
fn last_failure(facts: &Facts, newest_at: Option<Timestamp>) -> Option<(&Run, &Failure)> {
    let run = facts.last_backup.as_ref()?;
    match &run.state.phase {
        Phase::Failed(failure) if run.ended_at >= newest_at => Some((run, failure)),
        _ => None,
    }
}

fn verdict(
    name: &SourceName,
    source: &Source,
    facts: &Facts,
    newest_at: Option<Timestamp>,
    objectives: &Report,
    now: Timestamp,
) -> (Safety, String, String) {
    let at_risk = |problem: String, remedy: String| (Safety::AtRisk, problem, remedy);
    let why = last_failure(facts, newest_at)
        .map(|(run, failure)| (failure.to_string(), format!("holdfast run logs {}", run.id.short())));
    if newest_at.is_none() {
        let (problem, remedy) = why.unwrap_or_else(|| {
            let problem =
                if facts.snapshots.is_empty() { "was never backed up" } else { "every snapshot is damaged" };
            (problem.to_owned(), format!("holdfast backup run {name}"))
        });
        return (Safety::NotRestorable, problem, remedy);
    }
    if let Some(record) = facts.snapshots.first()
        && let Some(damage) = &record.proof.damage
    {
        let problem = format!("its newest snapshot {} is damaged: {damage}", record.id.short());
        return at_risk(problem, format!("holdfast backup run {name} --type full"));
    }
    if let Some((problem, remedy)) = why {
        return at_risk(format!("the last backup failed: {problem}"), remedy);
    }
    if !facts.agent_online {
        return at_risk(format!("agent {} is not connected", source.agent), "holdfast agent list".to_owned());
    }
    if let Some(record) = facts.snapshots.first()
        && let Some(worst) = record.anomalies.first().filter(|found| found.severity == Severity::Critical)
    {
        let problem = format!("its newest snapshot {} looks wrong: {}", record.id.short(), worst.kind);
        return at_risk(problem, format!("holdfast backup show {}", record.id.short()));
    }
    if let Some((health, limits)) = &facts.health
        && let Some((Severity::Critical, problem)) = health.problem(limits)
    {
        return at_risk(problem, format!("holdfast source test {name}"));
    }
    if let Some((problem, remedy)) = breach(name, facts, objectives) {
        return at_risk(problem, remedy);
    }
    if let Some((problem, remedy)) = failed_copy(name, facts) {
        return at_risk(problem, remedy);
    }
    let Some(schedule) = &facts.schedule else { return (Safety::Protected, String::new(), String::new()) };
    if let Some(pause) = &schedule.pause {
        let until = pause.until.map_or_else(|| "until it is resumed".to_owned(), |at| format!("until {at}"));
        let problem = format!("is paused {until} by {}: {}", pause.by, pause.reason);
        return (Safety::Paused, problem, format!("holdfast source resume {name}"));
    }
    if let Some(gap) = schedule.longest_gap
        && objectives::is_silent(gap, newest_at, schedule.since, now)
    {
        let problem = format!("no backup for longer than the schedule promises, which is one every {gap}");
        return at_risk(problem, format!("holdfast run list --source {name}"));
    }
    (Safety::Protected, String::new(), String::new())
}

/// A repository that snapshots are to be copied to in vain, with a remedy.
fn failed_copy(name: &SourceName, facts: &Facts) -> Option<(String, String)> {
    let (target, failure) =
        facts.copy_to.iter().find_map(|target| Some((target, target.problem.as_ref()?)))?;
    let (to, from) = (&target.repository, &newest(facts)?.repository);
    let remedy = format!("holdfast repo copy {from} {to} --source {name}");
    Some((format!("its copy to {to} fails: {failure}"), remedy))
}

/// The first promise that is broken, with a remedy.
fn breach(name: &SourceName, facts: &Facts, report: &Report) -> Option<(String, String)> {
    let broken = |standing: &Standing<i64>| standing.state == ObjectiveState::Breached;
    let span = |seconds: Option<i64>| {
        seconds.map_or_else(|| "-".to_owned(), |secs| Span::from_secs(secs).to_string())
    };
    let since_or_never = |actual: Option<i64>, what: &str| match actual {
        Some(age) => format!("{what} {} ago", span(Some(age))),
        None => format!("{what} never"),
    };
    if broken(&report.rpo) {
        let problem = match report.rpo.actual {
            Some(_) => format!(
                "would lose {}, at most {} is promised",
                span(report.rpo.actual),
                span(report.rpo.objective)
            ),
            None => "would lose everything".to_owned(),
        };
        return Some((problem, format!("holdfast backup run {name}")));
    }
    if broken(&report.rto) {
        let problem = format!(
            "the last restore took {}, {} is promised",
            span(report.rto.actual),
            span(report.rto.objective)
        );
        return Some((problem, format!("holdfast restore plan {name}")));
    }
    if broken(&report.drill_age) {
        let problem = format!(
            "{}, {} is promised",
            since_or_never(report.drill_age.actual, "a restore was proven"),
            span(report.drill_age.objective)
        );
        return Some((problem, format!("holdfast restore run {name}")));
    }
    if broken(&report.verify_age) {
        let problem = format!(
            "{}, {} is promised",
            since_or_never(report.verify_age.actual, "a snapshot was read in full"),
            span(report.verify_age.objective)
        );
        let snapshot = newest(facts).map_or_else(|| "latest".to_owned(), |record| record.id.short());
        return Some((problem, format!("holdfast backup verify {snapshot}")));
    }
    if broken(&report.copies) {
        let problem = format!(
            "is in {} of the {} repositories that are promised",
            report.copies.actual.unwrap_or(0),
            report.copies.objective.unwrap_or(0)
        );
        return Some((problem, "holdfast repo list".to_owned()));
    }
    None
}

/// What the state of a source follows from, as it is known now.
///
/// # Errors
/// When the state can not be read.
async fn facts(
    core: &Core,
    name: &SourceName,
    source: &Source,
    active: &[Run],
    now: Timestamp,
) -> Result<Facts, Failure> {
    let snapshots = core.snapshots.get(core, name).await?;
    let current = core.definitions.current();
    let policy = current.fleet.policy_of(source).map(|(_, policy)| policy);
    let schedule = core.schedules.entry(name).map(|entry| ScheduleFacts {
        next_run: core.schedules.upcoming(name, now, 1).and_then(|runs| runs.first().map(|(at, _)| *at)),
        pause: core.schedules.pause_of(name, now),
        policy: entry.state.policy,
        since: entry.state.since,
        longest_gap: entry.longest_gap,
        missed: entry.state.missed,
    });
    Ok(Facts {
        debug: core.debug.of(name, now),
        snapshots: snapshots.records.clone(),
        snapshot_count: snapshots.count,
        last_backup: core.records.last_backup(name).await?,
        active_run: active
            .iter()
            .find(|run| run.spec.kind() == RunKind::Backup && run.spec.source() == Some(name))
            .cloned(),
        agent_online: core.sessions.state(&source.agent).is_some(),
        objectives: policy.map(|policy| policy.objectives.clone()).unwrap_or_default(),
        copy_to: copy_schedule::standing(core, name),
        schedule,
        health: core.health.get(name).map(|health| (health, health::limits_of(&current.fleet, source))),
    })
}

/// The repositories that have snapshots of a source, among its newest or by where it goes.
///
/// # Errors
/// When the state can not be read.
pub async fn repositories_of(core: &Core, name: &SourceName) -> Result<BTreeSet<RepositoryName>, Failure> {
    let snapshots = core.snapshots.get(core, name).await?;
    Ok(snapshots.records.iter().map(|record| record.repository.clone()).collect())
}

/// How a source stands now.
///
/// # Errors
/// When the state can not be read.
pub async fn standing(
    core: &Core,
    name: &SourceName,
    source: &Source,
    active: &[Run],
    now: Timestamp,
) -> Result<SourceStanding, Failure> {
    Ok(judge(name, source, facts(core, name, source, active, now).await?, now))
}

/// How every declared source stands now, in the order of their names.
///
/// # Errors
/// When the state can not be read.
pub async fn of_all(core: &Core) -> Result<Vec<(SourceName, Source, SourceStanding)>, Failure> {
    let (current, active, now) = (core.definitions.current(), core.runs.active(), core.clock.now());
    core.snapshots.forget_all_but(&current.fleet.sources);
    let mut all = Vec::with_capacity(current.fleet.sources.len());
    for (name, source) in &current.fleet.sources {
        let standing = standing(core, name, source, &active, now).await?;
        all.push((name.clone(), source.clone(), standing));
    }
    Ok(all)
}

/// How a source stands, on the wire.
pub fn wire(name: &SourceName, source: &Source, standing: &SourceStanding) -> v1::SourceStatus {
    let (facts, newest) = (&standing.facts, standing.newest());
    let version =
        newest.and_then(|record| record.manifest.as_ref()).map_or("", |m| m.engine_version.as_str());
    let text = |value: Option<String>| value.unwrap_or_default();
    let schedule = facts.schedule.as_ref();
    let objectives = standing.named_objectives().into_iter().map(|(name, found)| v1::Objective {
        name: name.to_owned(),
        target: found.objective,
        actual: found.actual,
        state: found.state.to_string(),
    });
    v1::SourceStatus {
        source: name.to_string(),
        engine: format!("{} {version}", source.engine.kind()).trim_end().to_owned(),
        agent: source.agent.to_string(),
        agent_online: facts.agent_online,
        state: standing.safety.as_str().to_owned(),
        problem: standing.problem.clone(),
        remedy: standing.remedy.clone(),
        recovery_point: standing.recovery_point.map(timestamp),
        loss_seconds: standing.loss_seconds.unwrap_or(-1),
        restore_millis: standing.proven.map_or(0, |(_, millis)| millis),
        proven_at: standing.proven.map(|(at, _)| timestamp(at)),
        copies: standing.copies,
        snapshots: facts.snapshot_count,
        logical_bytes: newest.map_or(0, |record| record.logical_bytes),
        active_run: facts.active_run.as_ref().map(Into::into),
        last_backup: facts.last_backup.as_ref().map(Into::into),
        snapshot_id: text(newest.map(|record| record.id.to_string())),
        proof: text(facts.snapshots.first().map(|record| record.proof.level().to_owned())),
        policy: text(schedule.map(|schedule| schedule.policy.to_string())),
        objectives: objectives.collect(),
        next_run_at: schedule.and_then(|schedule| schedule.next_run).map(timestamp),
        pause: schedule.and_then(|schedule| schedule.pause.as_ref()).map(policies::pause),
        missed_slots: schedule.map_or(0, |schedule| schedule.missed),
        verified_at: standing.verified_at.map(timestamp),
        health: Some(health_on_wire(facts)),
        places: standing.places.iter().map(Place::wire).collect(),
        debug: facts.debug.as_ref().map(fleet::debug_logging),
    }
}

fn health_on_wire(facts: &Facts) -> v1::SourceHealth {
    let Some((health, limits)) = &facts.health else {
        return v1::SourceHealth { state: "unknown".to_owned(), ..v1::SourceHealth::default() };
    };
    let problem = health.problem(limits);
    let report = health.report.as_ref().filter(|_| health.failure.is_none());
    v1::SourceHealth {
        state: problem.as_ref().map_or("ok", |(severity, _)| severity.as_str()).to_owned(),
        problem: problem.map(|(_, problem)| problem).unwrap_or_default(),
        response_millis: report.map(|report| report.response_millis),
        log_bytes: report.and_then(|report| report.log_bytes),
        checked_at: Some(timestamp(health.checked_at)),
    }
}

#[cfg(test)]
mod tests;
