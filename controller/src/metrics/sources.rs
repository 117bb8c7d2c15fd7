//! Metrics of sources: what can be restored, what would be lost, what backups and restores gave.

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_model::Failure;
use holdfast_model::alert::Severity;
use holdfast_model::ids::{RepositoryName, SourceName};
use holdfast_model::metrics::catalogue::Metric;
use holdfast_model::objectives::ObjectiveState;
use holdfast_model::run::SnapshotType;
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::source::Source;

use super::{Families, number, seconds};
use crate::copy_schedule;
use crate::core::Core;
use crate::source_status::{self, Safety, SourceStanding};

/// The states of sources that are counted.
const STATES: [Safety; 4] = [Safety::NotRestorable, Safety::AtRisk, Safety::Paused, Safety::Protected];

pub(super) async fn collect(core: &Arc<Core>, families: &mut Families) -> Result<(), Failure> {
    let mut states = STATES.map(|state| (state, 0));
    for (name, source, standing) in &source_status::of_all(core).await? {
        if let Some((_, count)) = states.iter_mut().find(|(state, _)| *state == standing.safety) {
            *count += 1;
        }
        let loss = standing.loss_seconds.map_or(f64::INFINITY, |loss| number(loss.max(0).unsigned_abs()));
        families.set(Metric::PotentialLoss, &[name.as_str()], loss);
        families.set(Metric::SourceCopies, &[name.as_str()], f64::from(standing.copies));
        describe(name, source, families);
        of_objectives(name, standing, families);
        of_snapshots(core, name, source, &standing.facts.snapshots, families);
    }
    for (state, count) in states {
        families.set(Metric::Sources, &[state.as_str()], number(count));
    }
    Ok(())
}

/// What was never measured is neither met nor broken: it has no sample until it is one of them.
fn of_objectives(name: &SourceName, standing: &SourceStanding, families: &mut Families) {
    for (objective, found) in standing.named_objectives() {
        let labels = [name.as_str(), objective];
        match found.state {
            ObjectiveState::Met | ObjectiveState::AtRisk => families.set(Metric::ObjectiveMet, &labels, 1.0),
            ObjectiveState::Breached => families.set(Metric::ObjectiveMet, &labels, 0.0),
            ObjectiveState::NotSet | ObjectiveState::Unknown => {}
        }
        if let Some(target) = found.objective.filter(|_| objective != "copies") {
            families.set(Metric::ObjectiveTarget, &labels, number(target.max(0).unsigned_abs()));
        }
    }
}

fn describe(name: &SourceName, source: &Source, families: &mut Families) {
    let label = |key: &str| source.labels.get(key).map_or("", String::as_str);
    let policy = source.policy.as_ref().map_or("", |policy| policy.as_str());
    let values = [
        name.as_str(),
        source.engine.kind().as_str(),
        policy,
        source.agent.as_str(),
        label("team"),
        label("env"),
        label("tier"),
    ];
    families.set(Metric::SourceInfo, &values, 1.0);
}

/// The repositories that a source is backed up to, and those that hold snapshots of it.
pub(super) fn repositories_of(
    core: &Core,
    name: &SourceName,
    source: &Source,
    snapshots: &[SnapshotRecord],
) -> BTreeSet<RepositoryName> {
    let mut names: BTreeSet<_> =
        core.definitions.repositories_of(name, source).unwrap_or_default().into_iter().collect();
    names.extend(snapshots.iter().map(|record| record.repository.clone()));
    names
}

fn of_snapshots(
    core: &Core,
    name: &SourceName,
    source: &Source,
    snapshots: &[SnapshotRecord],
    families: &mut Families,
) {
    let copies = copy_schedule::standing(core, name).into_iter().map(|target| target.repository);
    let repositories: BTreeSet<_> =
        repositories_of(core, name, source, snapshots).into_iter().chain(copies).collect();
    for repository in repositories {
        let sound =
            |record: &&SnapshotRecord| record.repository == repository && record.proof.damage.is_none();
        let newest = snapshots.iter().find(sound);
        let at = newest.map(SnapshotRecord::captured_at);
        families.set(Metric::RecoveryPoint, &[name.as_str(), repository.as_str()], seconds(at));
    }
    for kind in SnapshotType::ALL {
        let newest = snapshots.iter().find(|record| record.snapshot_type == Some(kind));
        let labels = [name.as_str(), kind.as_str()];
        let millis = newest.map_or(0, |record| record.duration_millis);
        families.set(Metric::BackupLastDuration, &labels, number(millis) / 1000.0);
        let bytes = newest.map_or(0, |record| record.logical_bytes);
        families.set(Metric::BackupLastLogicalBytes, &labels, number(bytes));
        let added = newest.map_or(0, |record| record.stored_bytes);
        families.set(Metric::BackupLastAddedBytes, &labels, number(added));
    }
    for severity in [Severity::Warning, Severity::Critical] {
        let anomalies = snapshots.first().map_or(&[][..], |record| &record.anomalies);
        let count = anomalies.iter().filter(|found| found.severity == severity).count();
        families.set(Metric::BackupAnomalies, &[name.as_str(), severity.as_str()], number(count as u64));
    }
    let restored = snapshots.iter().max_by_key(|record| record.proof.restored_at).map(|record| &record.proof);
    let at = restored.and_then(|proof| proof.restored_at);
    families.set(Metric::RestoreLastSuccess, &[name.as_str()], seconds(at));
    let took = restored.and_then(|proof| proof.restore_millis).unwrap_or(0);
    families.set(Metric::RestoreRto, &[name.as_str()], number(took) / 1000.0);
}
