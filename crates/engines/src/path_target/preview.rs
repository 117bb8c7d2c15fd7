//! The parts of a preview that are the same for every restore onto paths.

use std::path::Path;

use holdfast_model::restore::{CheckOutcome, Placement, RestoreCheck, RestorePreview};
use holdfast_model::text::size;
use rustix::fs::Access;

use super::{Occupant, PathTarget, check_allowed, nearest_existing, occupant};
use crate::{EngineError, RestoreOrder};

/// A check of a plan or a report.
pub(crate) fn check(name: &str, outcome: CheckOutcome, detail: impl Into<String>) -> RestoreCheck {
    RestoreCheck { name: name.to_owned(), outcome, detail: detail.into() }
}

/// Steps, checks and targets of a restore of `bytes_needed` bytes (an upper bound when `is_part`). Touches nothing.
///
/// # Errors
/// `HF-1012` when a path is not UTF-8.
pub(crate) fn preview_paths(
    targets: &[PathTarget],
    order: &RestoreOrder,
    bytes_needed: u64,
    is_part: bool,
) -> Result<RestorePreview, EngineError> {
    let mut preview = RestorePreview { bytes_needed, ..RestorePreview::default() };
    for target in targets {
        preview.targets.push(target.to_model()?);
        let (restored, live) = (target.restored.display(), target.live.display());
        preview.steps.push(format!("restore {} to {restored}", target.part));
        preview.checks.extend(target_checks(target, order));
        if order.placement == Placement::InPlace {
            let live_exists = occupant(&target.live) != Occupant::Nothing;
            if live_exists {
                preview.steps.push(format!("rename {live} to {live}_before_STAMP"));
                preview.checks.push(mount_check(&target.live));
            }
            preview.steps.push(format!("rename {restored} to {live}"));
            preview.replaces |= live_exists;
        }
    }
    // Targets share a file system more often than not, and the total is for all of them: the least decides.
    preview.bytes_free =
        targets.iter().filter_map(|target| free_bytes(nearest_existing(&target.restored))).min();
    preview.checks.push(space_check(bytes_needed, preview.bytes_free, is_part));
    Ok(preview)
}

fn target_checks(target: &PathTarget, order: &RestoreOrder) -> Vec<RestoreCheck> {
    let restored = target.restored.display();
    let free = match occupant(&target.restored) {
        Occupant::Nothing => check("target", CheckOutcome::Ok, format!("{restored} does not exist yet")),
        Occupant::EmptyFolder => check("target", CheckOutcome::Ok, format!("{restored} is an empty folder")),
        Occupant::Something => check("target", CheckOutcome::Failed, format!("{restored} exists already")),
    };
    let allowed = match check_allowed(&target.restored, &order.allowed_paths) {
        Ok(()) => check("allowed", CheckOutcome::Ok, format!("{restored} is allowed by the agent")),
        Err(error) => check("allowed", CheckOutcome::Failed, error.to_string()),
    };
    let folder = nearest_existing(&target.restored);
    let writable = match rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => check("permission", CheckOutcome::Ok, format!("{} is writable", folder.display())),
        Err(error) => check(
            "permission",
            CheckOutcome::Failed,
            format!("{} is not writable: {error}", folder.display()),
        ),
    };
    vec![free, allowed, writable]
}

/// A mount point cannot be renamed.
fn mount_check(live: &Path) -> RestoreCheck {
    let device = |path: &Path| rustix::fs::lstat(path).map(|stat| stat.st_dev);
    let parent = live.parent().unwrap_or(Path::new("/"));
    match (device(live), device(parent)) {
        (Ok(live_device), Ok(parent_device)) if live_device == parent_device => {
            check("swap", CheckOutcome::Ok, format!("{} can be renamed", live.display()))
        }
        (Ok(_), Ok(_)) => check(
            "swap",
            CheckOutcome::Failed,
            format!(
                "{} is a mount point, which cannot be renamed: restore into another path",
                live.display()
            ),
        ),
        _ => check("swap", CheckOutcome::Unknown, format!("{} cannot be looked at", live.display())),
    }
}

fn space_check(needed: u64, free: Option<u64>, is_part: bool) -> RestoreCheck {
    let at_most = if is_part { "at most " } else { "" };
    let needs = format!("needs {at_most}{}", size(needed));
    match free {
        None => check("space", CheckOutcome::Unknown, format!("{needs}, free space is not known")),
        Some(free) if free >= needed => {
            check("space", CheckOutcome::Ok, format!("{needs}, {} free", size(free)))
        }
        // A part may well be smaller than the whole.
        Some(free) if is_part => {
            check("space", CheckOutcome::Warning, format!("{needs}, {} free", size(free)))
        }
        Some(free) => check("space", CheckOutcome::Failed, format!("{needs}, {} free", size(free))),
    }
}

/// Bytes that this process may still write to the file system of `folder`.
pub(crate) fn free_bytes(folder: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(folder).ok()?;
    Some(space.f_bavail.saturating_mul(space.f_frsize))
}
