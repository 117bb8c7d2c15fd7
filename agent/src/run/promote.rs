//! A promotion: what an earlier restore made takes the place of the live data.

use holdfast_model::ids::{RunId, SourceName};
use holdfast_model::restore::{Placement, RestoreReport, RestoredTarget};

use super::{Job, discard, restore};
use crate::executor::Outcome;
use holdfast_model::Failure;

pub(super) async fn run(
    job: &Job<'_>,
    source: &SourceName,
    restore: RunId,
    targets: &[RestoredTarget],
) -> Result<Outcome, Failure> {
    job.worker.config.allow.check_restore(&job.assignment.source, &Placement::InPlace)?;
    let made = discard::check_made_here(job, restore, targets)?;
    let hooks = job.hooks(source)?;
    job.context.counters.enter("swapping");
    let promoted = restore::swap(job, &hooks, targets).await?;
    let rest = made.into_iter().filter(|known| !targets.iter().any(|target| discard::is_same(known, target)));
    job.worker.journal.remember(restore, rest.chain(promoted.iter().cloned()).collect()).await?;
    let items = promoted.len() as u64;
    Ok(Outcome { restored: Some(RestoreReport { targets: promoted, items, ..RestoreReport::default() }) })
}
