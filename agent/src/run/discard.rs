//! Removing what a restore made, or what a promotion kept.

use holdfast_engines::RunLog as _;
use holdfast_model::ids::RunId;
use holdfast_model::restore::{RestoreReport, RestoredTarget};
use holdfast_model::{ErrorCode, Failure};

use super::Job;
use crate::executor::Outcome;

pub(super) async fn run(
    job: &Job<'_>,
    restore: RunId,
    targets: &[RestoredTarget],
) -> Result<Outcome, Failure> {
    let made = check_made_here(job, restore, targets)?;
    // Of a restore that did not succeed, only this agent knows what it left.
    let targets = if targets.is_empty() { &made } else { targets };
    job.context.enter("removing");
    job.engine().discard(targets, &job.engine_context()).await?;
    let rest = made.iter().filter(|known| !targets.iter().any(|target| is_same(known, target)));
    job.worker.journal.remember(restore, rest.cloned().collect()).await?;
    for target in targets {
        job.context.log.info(&format!("{} was removed", target.kept.as_ref().unwrap_or(&target.restored)));
    }
    let items = targets.len() as u64;
    Ok(Outcome { restored: Some(RestoreReport { items, ..RestoreReport::default() }) })
}

/// Whether every target is one that this agent remembers to have made: the controller alone cannot have anything
/// removed or replaced here. Returns all that the restore made.
pub(super) fn check_made_here(
    job: &Job<'_>,
    restore: RunId,
    targets: &[RestoredTarget],
) -> Result<Vec<RestoredTarget>, Failure> {
    let made = job.worker.journal.restored(restore);
    match targets.iter().find(|target| !made.iter().any(|known| is_same(known, target))) {
        None => Ok(made),
        Some(target) => Err(Failure::new(
            ErrorCode::NotAllowedHere,
            format!(
                "{} is not something that restore {} made on this agent",
                target.kept.as_ref().unwrap_or(&target.restored),
                restore.short()
            ),
        )
        .at_stake("nothing was touched")),
    }
}

/// Whether both mean the same data at the same place.
fn is_same(one: &RestoredTarget, other: &RestoredTarget) -> bool {
    one.restored == other.restored && one.live == other.live && one.kept == other.kept
}
