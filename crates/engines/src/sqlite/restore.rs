//! Restores of a database: the whole file, or some of its tables in a new one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_model::ErrorCode;
use holdfast_model::manifest::{DatabaseManifest, Manifest, TableManifest};
use holdfast_model::restore::{CheckOutcome, Placement, RestorePreview, RestoreReport};
use holdfast_model::text::{counted, size};
use rusqlite::{Connection, OpenFlags};

use super::capture::damaged;
use super::connect::{SIDECARS, harden, library_version, sqlite_error};
use super::facts::{self, Facts};
use super::{in_use, tables};
use crate::path_target::preview::{check, free_bytes, preview_paths};
use crate::path_target::{
    Occupant, PathTarget, beside_name, check_allowed, nearest_existing, occupant, remove, resolve,
    with_suffix,
};
use crate::{EngineContext, EngineError, ExtractOrder, RestoreOrder, SnapshotContents};

/// What a restore is going to do.
#[derive(Debug)]
pub(crate) struct RestorePlan {
    pub(crate) target: PathTarget,
    database: DatabaseManifest,
    /// The tables to restore; `None` for the whole database.
    tables: Option<BTreeMap<String, TableManifest>>,
}

/// Decides what goes where.
///
/// # Errors
/// `HF-1012` when the path is not acceptable, `HF-3016` when the snapshot lacks a table, `HF-4020` for some tables in
/// place: all others would be lost.
pub(crate) fn plan(
    order: &RestoreOrder,
    manifest: &Manifest,
    source: &Path,
) -> Result<RestorePlan, EngineError> {
    let [database] = manifest.databases.as_slice() else {
        return Err(EngineError::new(
            ErrorCode::RestoreFailed,
            format!("the manifest names {} databases, not one", manifest.databases.len()),
        ));
    };
    let live = match std::fs::canonicalize(source) {
        Ok(file) => file,
        Err(_) => resolve(source)?,
    };
    let restored = match &order.placement {
        Placement::Into(path) => resolve(Path::new(path))?,
        Placement::InPlaceDelta => return Err(crate::no_delta("a SQLite database")),
        Placement::Beside | Placement::InPlace => {
            let name = live.file_name().ok_or_else(|| {
                EngineError::new(ErrorCode::PathInvalid, "the root folder is not a database")
            })?;
            live.with_file_name(beside_name(name, &order.snapshot_short, true))
        }
    };
    let tables = tables::select(&order.only, database)?;
    if tables.is_some() && order.placement == Placement::InPlace {
        let message = "single tables of a SQLite database are not restored in place, where all others would be lost: \
                       restore them beside it or into another path";
        return Err(EngineError::new(ErrorCode::Unsupported, message));
    }
    let target = PathTarget { part: source.display().to_string(), restored, live };
    Ok(RestorePlan { target, database: database.clone(), tables })
}

/// What the plan would do.
pub(crate) fn preview(
    plan: &RestorePlan,
    order: &RestoreOrder,
    manifest: &Manifest,
) -> Result<RestorePreview, EngineError> {
    let mut preview = preview_paths(
        std::slice::from_ref(&plan.target),
        order,
        plan.database.logical_bytes,
        plan.tables.is_some(),
    )?;
    if let Some(tables) = &plan.tables {
        let names: Vec<&str> = tables.keys().map(String::as_str).collect();
        preview.steps.push(format!("copy {} into a new database", names.join(", ")));
    }
    preview.steps.insert(1, "check the integrity and count the rows of every table".to_owned());
    let (captured, here) = (&manifest.engine_version, library_version());
    preview.checks.push(check(
        "version",
        CheckOutcome::Ok,
        format!("captured with SQLite {captured}, restored with {here}"),
    ));
    if order.placement == Placement::InPlace {
        preview.checks.push(match in_use::openers(&plan.target.live).as_slice() {
            [] => check(
                "in use",
                CheckOutcome::Ok,
                format!("no process has {} open", plan.target.live.display()),
            ),
            // Hooks may stop it before the swap, which looks again.
            openers => check(
                "in use",
                CheckOutcome::Warning,
                format!(
                    "{} is open in {}, which must be stopped",
                    plan.target.live.display(),
                    openers.join(", ")
                ),
            ),
        });
    }
    Ok(preview)
}

/// Restores and compares with the manifest. Blocking.
pub(crate) fn restore(
    plan: &RestorePlan,
    order: &RestoreOrder,
    contents: &Arc<dyn SnapshotContents>,
    context: &EngineContext,
) -> Result<RestoreReport, EngineError> {
    let target = &plan.target.restored;
    check_allowed(target, &order.allowed_paths)?;
    for path in
        std::iter::once(target.clone()).chain(SIDECARS.iter().map(|suffix| with_suffix(target, suffix)))
    {
        if occupant(&path) != Occupant::Nothing {
            let message = format!("the restore target {} exists already", path.display());
            return Err(EngineError::new(ErrorCode::TargetExists, message));
        }
    }
    let needed = plan.database.logical_bytes;
    if let Some(free) = free_bytes(nearest_existing(target))
        && free < needed
        && plan.tables.is_none()
    {
        let message = format!("{} needs {}, {} free", target.display(), size(needed), size(free));
        return Err(EngineError::new(ErrorCode::TargetNoSpace, message));
    }
    let existing = nearest_existing(target);
    let made = target.ancestors().take_while(|&path| path != existing).last().unwrap_or(target).to_owned();
    make(plan, contents, context).map_err(|error| undo(target, &made, error))
}

fn make(
    plan: &RestorePlan,
    contents: &Arc<dyn SnapshotContents>,
    context: &EngineContext,
) -> Result<RestoreReport, EngineError> {
    let target = &plan.target.restored;
    let parent = target.parent().expect("a resolved path lies in a folder");
    std::fs::create_dir_all(parent).map_err(|error| {
        EngineError::new(ErrorCode::RestoreFailed, format!("the folder {} cannot be made", parent.display()))
            .caused_by(error)
    })?;
    let mut report = RestoreReport { items: 1, ..RestoreReport::default() };
    let whole = match plan.tables {
        None => target.clone(),
        Some(_) => context.scratch.join("whole.sqlite3"),
    };
    let order = ExtractOrder {
        from: plan.database.path.clone().into_bytes(),
        only: Vec::new(),
        to: whole.clone(),
        delta: None,
        ownership: rustix::process::geteuid().is_root(),
    };
    let extracted = contents.extract(&order)?;
    report.bytes_written = extracted.bytes_written;
    for warning in extracted.warnings {
        report.checks.push(check("attributes", CheckOutcome::Warning, warning));
    }
    let found = verify(&whole, &plan.database)?;
    let (rows, expected) = match &plan.tables {
        None => (total(&found.tables), plan.database.rows()),
        Some(chosen) => {
            let copied = tables::copy(&whole, target, chosen, &found)?;
            report.bytes_written = std::fs::metadata(target).map_or(0, |metadata| metadata.len());
            remove::remove(&whole)?;
            (copied, total(chosen))
        }
    };
    flush(target)?;
    report.checks.push(check("integrity", CheckOutcome::Ok, "integrity_check found nothing"));
    report.checks.push(check(
        "rows",
        CheckOutcome::Ok,
        format!("{}, as in the manifest", counted(rows, "row")),
    ));
    report.rows = Some(rows);
    report.rows_expected = Some(expected);
    report.targets.push(plan.target.to_model()?);
    Ok(report)
}

fn total(tables: &BTreeMap<String, TableManifest>) -> u64 {
    tables.values().map(|table| table.rows).sum()
}

/// Whether a restored file is what was captured.
///
/// # Errors
/// `HF-2015` when it is damaged, or its schema or any row count is not that of the manifest.
fn verify(file: &Path, expected: &DatabaseManifest) -> Result<Facts, EngineError> {
    let what = format!("the restored {}", file.display());
    let failed = |error| {
        let cause = sqlite_error(file, error);
        EngineError::new(ErrorCode::RestoreMismatch, format!("{what} cannot be read")).caused_by(cause)
    };
    // Opened for writing so that SQLite removes its files beside it again; nothing is written.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let sqlite = Connection::open_with_flags(file, flags).map_err(failed)?;
    harden(&sqlite).and_then(|()| sqlite.execute_batch("PRAGMA query_only = ON")).map_err(failed)?;
    let health = facts::check(&sqlite).map_err(failed)?;
    if !health.damage.is_empty() {
        return Err(damaged(&what, &health, ErrorCode::RestoreMismatch));
    }
    let found = facts::collect(&sqlite, &mut Vec::new()).map_err(failed)?;
    sqlite.close().map_err(|(_, error)| failed(error))?;
    compare(&what, &found, expected)?;
    Ok(found)
}

fn compare(what: &str, found: &Facts, expected: &DatabaseManifest) -> Result<(), EngineError> {
    let mismatch = |difference: String| {
        Err(EngineError::new(ErrorCode::RestoreMismatch, format!("{what} {difference}")))
    };
    for (name, table) in &expected.tables {
        match found.tables.get(name) {
            Some(restored) if restored == table => {}
            Some(restored) => {
                return mismatch(format!(
                    "has {} rows in {name}, but the manifest says {}",
                    restored.rows, table.rows
                ));
            }
            None => return mismatch(format!("lacks the table {name}")),
        }
    }
    if found.tables.len() != expected.tables.len() || found.schema_hash != expected.schema_hash {
        return mismatch("has another schema than the manifest says".to_owned());
    }
    Ok(())
}

/// Brings a restored file to the disk.
fn flush(file: &Path) -> Result<(), EngineError> {
    let flush = || {
        std::fs::File::open(file)?.sync_all()?;
        std::fs::File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    flush().map_err(|error| {
        EngineError::new(
            ErrorCode::RestoreFailed,
            format!("{} could not be brought to the disk", file.display()),
        )
        .caused_by(error)
    })
}

/// Removes what was made; names in the error what could not be removed.
fn undo(target: &Path, made: &Path, error: EngineError) -> EngineError {
    let mut paths: Vec<PathBuf> = SIDECARS.iter().map(|suffix| with_suffix(target, suffix)).collect();
    paths.push(target.to_owned());
    paths.push(made.to_owned());
    let left: Vec<String> = paths
        .iter()
        .filter(|path| remove::remove(path).is_err())
        .map(|path| path.display().to_string())
        .collect();
    if left.is_empty() {
        return error;
    }
    EngineError::new(error.code(), format!("the restore failed and left {}", left.join(", ")))
        .caused_by(error)
}
