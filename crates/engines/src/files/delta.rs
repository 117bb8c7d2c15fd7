//! A delta restore: a live tree becomes what the snapshot says by touching only what differs.
//!
//! Nothing is lost by it: what makes way, and what the snapshot lacks, is moved to `NAME_before_STAMP` beside the tree,
//! under the same paths. It is no single step, though: while it runs, and after it failed, the tree is partly old and
//! partly restored. Running it again completes it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_model::ErrorCode;
use holdfast_model::manifest::{FilesManifest, Manifest};
use holdfast_model::restore::{CheckOutcome, RestorePreview, RestoreReport, RestoredTarget};
use holdfast_model::text::{counted, size};

use super::restore::{RestorePlan, compare, count, extract_one};
use crate::path_target::preview::{check, free_bytes};
use crate::path_target::{PathTarget, check_allowed, kept_name};
use crate::{EngineError, ExtractOrder, RestoreOrder, SnapshotContents};

/// What the plan would do.
pub(crate) fn preview(
    plan: &RestorePlan,
    order: &RestoreOrder,
    manifest: &Manifest,
) -> Result<RestorePreview, EngineError> {
    let mut preview = RestorePreview { replaces: true, ..RestorePreview::default() };
    for (target, model) in plan.targets.iter().zip(targets(plan, order)?) {
        let (live, kept) = (&target.live, model.kept.as_deref().unwrap_or_default());
        preview.steps.push(format!("compare every file below {} with the snapshot", live.display()));
        preview.steps.push(format!("move what differs, and what the snapshot lacks, to {kept}"));
        preview.steps.push(format!("restore what differs below {}", live.display()));
        preview.checks.push(match check_folder(live) {
            Ok(()) => check("target", CheckOutcome::Ok, format!("{} is a folder", live.display())),
            Err(error) => check("target", CheckOutcome::Failed, error.to_string()),
        });
        preview.checks.push(match check_allowed(live, &order.allowed_paths) {
            Ok(()) => {
                check("allowed", CheckOutcome::Ok, format!("{} is allowed by the agent", live.display()))
            }
            Err(error) => check("allowed", CheckOutcome::Failed, error.to_string()),
        });
        preview.targets.push(model);
    }
    preview.bytes_needed = manifest.logical_bytes;
    preview.bytes_free = plan.targets.iter().filter_map(|target| free_bytes(&target.live)).min();
    let needs = format!("needs at most {}", size(manifest.logical_bytes));
    preview.checks.push(match preview.bytes_free {
        None => check("space", CheckOutcome::Unknown, format!("{needs}, free space is not known")),
        // What is needed is known once everything was compared.
        Some(free) => {
            let enough = free >= manifest.logical_bytes;
            let outcome = if enough { CheckOutcome::Ok } else { CheckOutcome::Warning };
            check("space", outcome, format!("{needs}, {} free", size(free)))
        }
    });
    Ok(preview)
}

/// Restores and compares with the manifest. Blocking.
pub(crate) fn restore(
    plan: &RestorePlan,
    order: &RestoreOrder,
    contents: &Arc<dyn SnapshotContents>,
) -> Result<RestoreReport, EngineError> {
    for target in &plan.targets {
        check_folder(&target.live)?;
        check_allowed(&target.live, &order.allowed_paths)?;
    }
    let mut report = RestoreReport::default();
    for (target, extract) in plan.targets.iter().zip(&plan.extracts) {
        let kept = kept_path(target, order)?;
        let extract = ExtractOrder { to: target.live.clone(), delta: Some(kept), ..extract.clone() };
        extract_one(contents, &extract, &mut report)?;
    }
    let mut found = FilesManifest::default();
    for target in &plan.targets {
        count(&target.live, &mut found)?;
    }
    report.targets = targets(plan, order)?;
    report.items = found.files;
    compare(&found, contents.manifest(), plan.is_part)?;
    let detail = format!("{}, {}, as in the manifest", counted(found.files, "file"), size(found.bytes));
    report.checks.push(check("files", CheckOutcome::Ok, detail));
    Ok(report)
}

fn targets(plan: &RestorePlan, order: &RestoreOrder) -> Result<Vec<RestoredTarget>, EngineError> {
    let target = |target: &PathTarget| {
        let in_place = PathTarget { restored: target.live.clone(), ..target.clone() };
        let kept = kept_path(target, order)?.display().to_string();
        Ok(RestoredTarget { kept: Some(kept), ..in_place.to_model()? })
    };
    plan.targets.iter().map(target).collect()
}

fn kept_path(target: &PathTarget, order: &RestoreOrder) -> Result<PathBuf, EngineError> {
    let name = target.live.file_name().expect("a resolved path has a last name");
    Ok(target.live.with_file_name(kept_name(name, &order.stamp)?))
}

fn check_folder(live: &Path) -> Result<(), EngineError> {
    if std::fs::symlink_metadata(live).is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    let message = format!("{} is not a folder: restore it whole", live.display());
    Err(EngineError::new(ErrorCode::Unsupported, message))
}
