//! A restore: aside first, checked there, and only then, where that was asked for, swapped in between two hooks.

use std::sync::Arc;

use holdfast_engines::{RestoreOrder, RunLog as _, SnapshotContents};
use holdfast_model::ids::{RunId, SourceName};
use holdfast_model::manifest::Manifest;
use holdfast_model::restore::{CheckOutcome, Placement, RestoreReport, RestoredTarget};
use holdfast_model::text::{counted, size};
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::reader::BlobReader;
use holdfast_runtime::fail_point;

use super::{Job, OpenedRepository};
use crate::contents::RepositoryContents;
use crate::data_plane::GrpcSource;
use crate::executor::Outcome;
use crate::hooks::RunHooks;
use crate::inquiry::restore_order;
use crate::journal::Promotion;

pub(super) async fn run(
    job: &Job<'_>,
    source: &SourceName,
    placement: &Placement,
) -> Result<Outcome, Failure> {
    let context = job.context;
    job.config.allow.check_restore(&job.assignment.source, placement)?;
    let hooks = job.hooks(source)?;
    let order = restore_order(&job.assignment.spec, &job.config.allow, job.stamp())?;
    let manifest = job.assignment.manifest.clone().ok_or_else(|| {
        Failure::new(ErrorCode::Unsupported, "the snapshot has no manifest: another program wrote it")
            .at_stake("nothing was restored; its files can be restored by the program that wrote it")
    })?;
    context.enter("opening the repository");
    let contents = contents(job, manifest).await?;
    let report = match placement {
        Placement::InPlace => promote(job, &hooks, restore_aside(job, &order, contents).await?).await?,
        Placement::InPlaceDelta => restore_delta(job, &hooks, &order, contents).await?,
        Placement::Beside | Placement::Into(_) => restore_aside(job, &order, contents).await?,
    };
    context.log.info(&format!(
        "restored {}, {} written{}",
        counted(report.items, "item"),
        size(report.bytes_written),
        report.rows.map(|rows| format!(", {}", counted(rows, "row"))).unwrap_or_default(),
    ));
    Ok(Outcome { restored: Some(report) })
}

async fn contents(job: &Job<'_>, manifest: Manifest) -> Result<Arc<dyn SnapshotContents>, Failure> {
    let plane = job.data_plane();
    let repository = OpenedRepository::read(plane.open_repository().await?)?;
    let root = repository.tree.ok_or_else(|| {
        Failure::new(
            ErrorCode::SnapshotUnknown,
            "the controller did not say which snapshot is to be restored",
        )
    })?;
    job.context.counters.bytes_total.set(manifest.logical_bytes);
    let source = GrpcSource::new(&plane, job.context.counters.clone());
    let reader = BlobReader::new(Arc::new(source), repository.sealer);
    let clock = job.worker.clock.clone();
    Ok(Arc::new(RepositoryContents::new(manifest, reader, root, job.context, clock)))
}

/// Restores beside everything that exists. What would be left behind by a crash is in the journal before it is made.
async fn restore_aside(
    job: &Job<'_>,
    order: &RestoreOrder,
    contents: Arc<dyn SnapshotContents>,
) -> Result<RestoreReport, Failure> {
    let (context, journal) = (job.context, &job.worker.journal);
    let (engine, engine_context) = (job.engine(), job.engine_context());
    context.enter("planning");
    let preview = engine.preview_restore(order, contents.manifest(), &engine_context).await?;
    let possible = preview.checks.iter().all(|check| check.outcome != CheckOutcome::Failed);
    if possible {
        journal.expect(context.run, preview.targets).await?;
    }
    context.enter("restoring");
    fail_point::hit("agent-before-restore");
    let restored = engine.restore(order, contents, &engine_context).await;
    if let Ok(report) = &restored {
        journal.remember(context.run, report.targets.clone()).await?;
    }
    journal.expect(context.run, Vec::new()).await?;
    fail_point::hit("agent-after-restore");
    let report = restored?;
    match report.checks.iter().find(|check| check.outcome == CheckOutcome::Failed) {
        None => Ok(report),
        Some(check) => Err(Failure::new(
            ErrorCode::RestoreMismatch,
            format!("what was restored failed the check of its {}: {}", check.name, check.detail),
        )
        .at_stake(format!("nothing was replaced; what was restored is kept as {}", names(&report.targets)))),
    }
}

/// Restores what differs into the live data, between the hooks. Where the rest is kept is in the journal before
/// anything is moved there.
async fn restore_delta(
    job: &Job<'_>,
    hooks: &RunHooks,
    order: &RestoreOrder,
    contents: Arc<dyn SnapshotContents>,
) -> Result<RestoreReport, Failure> {
    let context = job.context;
    let (engine, engine_context) = (job.engine(), job.engine_context());
    context.enter("planning");
    let preview = engine.preview_restore(order, contents.manifest(), &engine_context).await?;
    let obstacle = preview.checks.iter().find(|check| check.outcome == CheckOutcome::Failed);
    if let Some(check) = obstacle {
        return Err(Failure::new(ErrorCode::RestoreFailed, format!("{}: {}", check.name, check.detail))
            .at_stake("nothing was touched"));
    }
    job.worker.journal.remember(context.run, preview.targets.clone()).await?;
    let restoring = async {
        context.enter("restoring");
        fail_point::hit("agent-before-restore");
        let restored = engine.restore(order, contents, &engine_context).await;
        fail_point::hit("agent-after-restore");
        restored.map_err(|error| {
            let kept: Vec<&str> =
                preview.targets.iter().filter_map(|target| target.kept.as_deref()).collect();
            Failure::from(error).at_stake(format!(
                "the live data is partly restored: run the restore again; what it replaced so far is kept in {}",
                kept.join(", ")
            ))
        })
    };
    job.between_hooks(hooks, restoring).await
}

/// Swaps what was restored into the place of the live data, between the hooks.
async fn promote(job: &Job<'_>, hooks: &RunHooks, report: RestoreReport) -> Result<RestoreReport, Failure> {
    let context = job.context;
    if context.cancel.is_cancelled() {
        return Err(Failure::new(
            ErrorCode::RunCancelled,
            "the run was cancelled before anything was replaced",
        ));
    }
    context.enter("swapping");
    let kept =
        format!("the live data was not replaced; what was restored is kept as {}", names(&report.targets));
    swap(job, hooks, context.run, report).await.map_err(|failure| failure.at_stake(kept))
}

/// Runs the hook, swaps what `restore` made, runs the other hook whatever came of it. What is about to be swapped is in
/// the journal before it is, so that a crash at any moment can be brought to an end.
pub(super) async fn swap(
    job: &Job<'_>,
    hooks: &RunHooks,
    restore: RunId,
    report: RestoreReport,
) -> Result<RestoreReport, Failure> {
    let (context, journal) = (job.context, &job.worker.journal);
    let (engine, engine_context, stamp) = (job.engine(), job.engine_context(), job.stamp());
    let swapping = async {
        let marks = engine.marks(&report.targets, &engine_context).await?;
        let promotion = Promotion { restore, report: report.clone(), marks, stamp: stamp.clone() };
        journal.promoting(context.run, promotion).await?;
        fail_point::hit("agent-before-promote");
        let promoted = engine.promote(&report.targets, &stamp, &engine_context).await?;
        fail_point::hit("agent-after-promote");
        journal.promoted(restore, &promoted).await?;
        Ok(promoted)
    };
    let promoted = job.between_hooks(hooks, swapping).await?;
    for target in &promoted {
        if let Some(kept) = &target.kept {
            context
                .log
                .info(&format!("{} is the restored data now, the former is kept as {kept}", target.live));
        }
    }
    Ok(RestoreReport { targets: promoted, ..report })
}

fn names(targets: &[RestoredTarget]) -> String {
    targets.iter().map(|target| target.restored.as_str()).collect::<Vec<_>>().join(", ")
}
