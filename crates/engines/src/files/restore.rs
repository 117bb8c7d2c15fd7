//! Restores of file trees: which parts, where to, and whether what came out is what the manifest says.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_model::ErrorCode;
use holdfast_model::manifest::{FilesManifest, Manifest};
use holdfast_model::restore::{CheckOutcome, Placement, RestorePreview, RestoreReport};
use holdfast_model::text::{counted, size};

use super::patterns::Patterns;
use super::roots::{Roots, normalise, tree_path};
use super::walk::{Step, Walker};
use crate::path_target::preview::{check, free_bytes, preview_paths};
use crate::path_target::{
    Occupant, PathTarget, beside_name, check_allowed, check_free, nearest_existing, occupant, remove, resolve,
};
use crate::{EngineError, ExtractOrder, FileType, RestoreOrder, SnapshotContents};

/// What a restore is going to do.
#[derive(Debug)]
pub(crate) struct RestorePlan {
    pub(crate) targets: Vec<PathTarget>,
    pub(crate) extracts: Vec<ExtractOrder>,
    /// Whether it restores less than the snapshot holds.
    pub(crate) is_part: bool,
}

/// Decides what goes where.
///
/// The parts are the paths of `order.only` or, without any, those of the snapshot. Beside and in place, each part is
/// restored next to its original as `NAME_restored_SHORT`. Into a path, a single part becomes that path; several lie
/// below it as they lay below `/`.
///
/// # Errors
/// `HF-1012` when a path is not acceptable, `HF-3016` when a part lies in none of the snapshot's paths.
pub(crate) fn plan(
    order: &RestoreOrder,
    manifest: &Manifest,
    source_paths: &[PathBuf],
) -> Result<RestorePlan, EngineError> {
    let recorded = manifest.files.as_ref().map_or(&[][..], |files| &files.paths);
    let roots: Vec<PathBuf> = if recorded.is_empty() {
        source_paths.to_vec()
    } else {
        recorded.iter().map(PathBuf::from).collect()
    };
    let roots = outermost(Roots::new(&roots)?.paths());
    let parts = select(&order.only, &roots)?;
    let into = match &order.placement {
        Placement::Into(path) => Some(resolve(Path::new(path))?),
        Placement::Beside | Placement::InPlace | Placement::InPlaceDelta => None,
    };
    let mut targets = Vec::new();
    for part in &parts {
        let live = resolve(part)?;
        let restored = match &into {
            Some(path) if parts.len() == 1 => path.clone(),
            Some(path) => path.join(part.strip_prefix("/").expect("a part is an absolute path")),
            None => {
                let name = live.file_name().expect("a resolved path has a last name");
                live.with_file_name(beside_name(name, &order.snapshot_short, false))
            }
        };
        targets.push(PathTarget { part: part.display().to_string(), restored, live });
    }
    let ownership = rustix::process::geteuid().is_root();
    let extract = |from, only, to| ExtractOrder { from, only, to, delta: None, ownership };
    let extracts = match into {
        // One order for all, so that the folders on the way get what the snapshot says of them, too.
        Some(path) if parts.len() > 1 => {
            vec![extract(Vec::new(), parts.iter().map(|part| tree_path(part)).collect(), path)]
        }
        _ => parts
            .iter()
            .zip(&targets)
            .map(|(part, target)| extract(tree_path(part), Vec::new(), target.restored.clone()))
            .collect(),
    };
    Ok(RestorePlan { targets, extracts, is_part: !order.only.is_empty() })
}

/// The paths that lie in no other one.
fn outermost(sorted: &[PathBuf]) -> Vec<PathBuf> {
    let mut outer: Vec<PathBuf> = Vec::new();
    for path in sorted {
        if outer.last().is_none_or(|last| !path.starts_with(last)) {
            outer.push(path.clone());
        }
    }
    outer
}

/// The parts that are meant by `only`: absolute paths, or paths in the tree of the snapshot.
fn select(only: &[String], roots: &[PathBuf]) -> Result<Vec<PathBuf>, EngineError> {
    if only.is_empty() {
        return Ok(roots.to_vec());
    }
    let mut parts = Vec::new();
    for given in only {
        let part = normalise(&Path::new("/").join(given))?;
        if !roots.iter().any(|root| part.starts_with(root)) {
            let roots = roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ");
            return Err(EngineError::new(
                ErrorCode::PathNotInSnapshot,
                format!("the snapshot holds {roots}, but not {}", part.display()),
            ));
        }
        parts.push(part);
    }
    parts.sort_by(|a, b| a.components().cmp(b.components()));
    Ok(outermost(&parts))
}

/// What the plan would do.
pub(crate) fn preview(
    plan: &RestorePlan,
    order: &RestoreOrder,
    manifest: &Manifest,
) -> Result<RestorePreview, EngineError> {
    preview_paths(&plan.targets, order, manifest.logical_bytes, plan.is_part)
}

/// Restores and compares with the manifest. Blocking.
pub(crate) fn restore(
    plan: &RestorePlan,
    order: &RestoreOrder,
    contents: &Arc<dyn SnapshotContents>,
) -> Result<RestoreReport, EngineError> {
    for extract in &plan.extracts {
        check_allowed(&extract.to, &order.allowed_paths)?;
        check_free(&extract.to)?;
        check_space(extract, plan, contents.manifest())?;
    }
    let mut made = Vec::new();
    extract_all(plan, contents, &mut made).map_err(|error| undo(made, error))
}

fn check_space(extract: &ExtractOrder, plan: &RestorePlan, manifest: &Manifest) -> Result<(), EngineError> {
    let needed = manifest.logical_bytes;
    match free_bytes(nearest_existing(&extract.to)) {
        Some(free) if free < needed && !plan.is_part => Err(EngineError::new(
            ErrorCode::TargetNoSpace,
            format!("{} needs {}, {} free", extract.to.display(), size(needed), size(free)),
        )),
        _ => Ok(()),
    }
}

fn extract_all(
    plan: &RestorePlan,
    contents: &Arc<dyn SnapshotContents>,
    made: &mut Vec<Made>,
) -> Result<RestoreReport, EngineError> {
    let mut report = RestoreReport::default();
    for extract in &plan.extracts {
        made.push(Made::by(&extract.to));
        let parent = extract.to.parent().expect("a resolved path lies in a folder");
        std::fs::create_dir_all(parent).map_err(|error| {
            EngineError::new(
                ErrorCode::RestoreFailed,
                format!("the folder {} cannot be made", parent.display()),
            )
            .caused_by(error)
        })?;
        extract_one(contents, extract, &mut report)?;
    }
    let mut found = FilesManifest::default();
    for target in &plan.targets {
        count(&target.restored, &mut found)?;
        report.targets.push(target.to_model()?);
    }
    report.items = found.files;
    compare(&found, contents.manifest(), plan.is_part)?;
    let detail = format!("{}, {}", counted(found.files, "file"), size(found.bytes));
    let detail = if plan.is_part { detail } else { format!("{detail}, as in the manifest") };
    report.checks.push(check("files", CheckOutcome::Ok, detail));
    Ok(report)
}

/// Extracts one part, and adds what that did to the report.
pub(super) fn extract_one(
    contents: &Arc<dyn SnapshotContents>,
    order: &ExtractOrder,
    report: &mut RestoreReport,
) -> Result<(), EngineError> {
    let done = contents.extract(order)?;
    report.bytes_written += done.bytes_written;
    report.bytes_unchanged += done.bytes_unchanged;
    let warnings = done.warnings.into_iter();
    report.checks.extend(warnings.map(|warning| check("attributes", CheckOutcome::Warning, warning)));
    Ok(())
}

/// What undoes the making of a target.
enum Made {
    /// Its content goes: the folder was there, and empty.
    Filled(PathBuf),
    /// It goes, from the outermost folder that was made for it.
    Created(PathBuf),
}

impl Made {
    fn by(target: &Path) -> Self {
        if occupant(target) != Occupant::Nothing {
            return Made::Filled(target.to_owned());
        }
        let existing = nearest_existing(target);
        let outermost = target.ancestors().take_while(|&ancestor| ancestor != existing).last();
        Made::Created(outermost.unwrap_or(target).to_owned())
    }

    fn undo(&self) -> Result<(), EngineError> {
        match self {
            Made::Filled(path) => remove::empty(path),
            Made::Created(path) => remove::remove(path),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Made::Filled(path) | Made::Created(path) => path,
        }
    }
}

/// Counts regular files and their bytes below `path`.
pub(super) fn count(path: &Path, found: &mut FilesManifest) -> Result<(), EngineError> {
    let unreadable = |path: &Path, why: String| {
        EngineError::new(ErrorCode::RestoreFailed, format!("the restored {} cannot be read", path.display()))
            .caused_by(why)
    };
    let stat = rustix::fs::lstat(path).map_err(|error| unreadable(path, error.to_string()))?;
    if super::metadata::file_type(&stat) != FileType::Directory {
        if super::metadata::file_type(&stat) == FileType::File {
            found.files += 1;
            found.bytes += u64::try_from(stat.st_size).unwrap_or(0);
        }
        return Ok(());
    }
    let roots = Roots::new(&[path.to_owned()])?;
    let mut walker = Walker::new(&roots, Patterns::new(&[], &[])?, false)?.without_attributes();
    while let Some(step) = walker.next_step()? {
        match step {
            Step::Entry(entry) if entry.metadata.file_type == FileType::File => {
                found.files += 1;
                found.bytes += entry.metadata.size;
            }
            Step::Entry(_) | Step::AttributesUnreadable(..) | Step::LeftOut(_) => {}
            Step::Unreadable(path, why) => {
                return Err(unreadable(Path::new(std::ffi::OsStr::from_bytes(&path)), why));
            }
        }
    }
    Ok(())
}

pub(super) fn compare(found: &FilesManifest, manifest: &Manifest, is_part: bool) -> Result<(), EngineError> {
    let Some(expected) = manifest.files.as_ref().filter(|_| !is_part) else { return Ok(()) };
    if (found.files, found.bytes) == (expected.files, expected.bytes) {
        return Ok(());
    }
    let text = |files, bytes| format!("{} of {}", counted(files, "file"), counted(bytes, "byte"));
    let message = format!(
        "restored were {}, but the manifest says {}",
        text(found.files, found.bytes),
        text(expected.files, expected.bytes)
    );
    Err(EngineError::new(ErrorCode::RestoreMismatch, message))
}

/// Removes what was made; names in the error what could not be removed.
fn undo(made: Vec<Made>, error: EngineError) -> EngineError {
    let left: Vec<String> = made
        .iter()
        .filter(|made| made.undo().is_err())
        .map(|made| made.path().display().to_string())
        .collect();
    if left.is_empty() {
        return error;
    }
    EngineError::new(error.code(), format!("the restore failed and left {}", left.join(", ")))
        .caused_by(error)
}
