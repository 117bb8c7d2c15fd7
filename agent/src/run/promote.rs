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
    job.config.allow.check_restore(&job.assignment.source, &Placement::InPlace)?;
    discard::check_made_here(job, restore, targets)?;
    let hooks = job.hooks(source)?;
    job.context.enter("swapping");
    let items = targets.len() as u64;
    let report = RestoreReport { targets: targets.to_vec(), items, ..RestoreReport::default() };
    Ok(Outcome { restored: Some(restore::swap(job, &hooks, restore, report).await?) })
}
