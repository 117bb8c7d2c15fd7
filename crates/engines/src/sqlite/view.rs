//! One consistent view of a live database, and where its pages come from.
//!
//! * **Write-ahead log**: two connections enter read transactions on the same commit. One streams the pages through
//!   SQLite's own page table, the other counts and checks. Writers go on; nothing is copied.
//! * **Rollback journal**: a read transaction would keep writers waiting for as long as the pages are read, so the
//!   database is first copied with the online backup API in small steps between which they can write. When they do so
//!   often that the copy never ends, it is finished in one go while they wait. The copy is what is captured.
//!
//! `docs/adr/0009-sqlite-is-read-in-place.md` tells why, with measurements.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::connect::{Access, LiveConnection, Patience, identity, open_read_only, sqlite_error};
use crate::file_gate::FileId;
use crate::path_target::with_suffix;
use crate::{EngineError, RunLog};

/// Pages of one step of a copy: short enough that no writer notices.
const COPY_STEP_PAGES: i32 = 1024;

/// Pages of one step when writers wait anyway.
const HELD_STEP_PAGES: i32 = 16 * 1024;

/// How often writers may start the copy over before it is finished while they wait.
const RESTARTS_MAX: u32 = 3;

/// How often two connections try to meet on one commit before the database is copied instead.
const MEETINGS_MAX: u32 = 2000;

/// A consistent view.
pub(crate) enum View {
    /// In the live database itself.
    Live {
        /// Reads the pages.
        pages: Box<LiveConnection>,
        /// Counts and checks.
        checks: Box<LiveConnection>,
        /// What must still be there at the end for the view to have been one.
        witness: Witness,
    },
    /// In a copy of it.
    Copy {
        /// The copy, in the scratch folder.
        file: PathBuf,
        /// Counts and checks.
        checks: Box<Connection>,
    },
}

/// The files that a view depends on. While its locks hold, nobody replaces them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Witness {
    path: PathBuf,
    database: Option<FileId>,
    log: Option<FileId>,
}

impl Witness {
    fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), database: identity(path), log: identity(&with_suffix(path, "-wal")) }
    }

    /// Whether the same files are still there.
    pub(crate) fn still_holds(&self) -> bool {
        *self == Self::of(&self.path)
    }
}

/// Opens a view.
///
/// # Errors
/// As [`sqlite_error`]; `HF-2001` when others keep the database locked, `HF-4010` when cancelled.
pub(crate) fn open(
    path: &Path,
    scratch: &Path,
    patience: &Patience,
    log: &dyn RunLog,
) -> Result<View, EngineError> {
    let access = Access::to(path);
    let mut pages = LiveConnection::open(path, access, patience)?;
    let journal_mode: String =
        patience.retry(path, || pages.sqlite.query_row("PRAGMA journal_mode", [], |row| row.get(0)))?;
    let uses_log = journal_mode == "wal";
    log.debug(format_args!("{} has journal mode {journal_mode}", path.display()));
    if uses_log && has_page_table(&pages.sqlite) {
        let mut checks = LiveConnection::open(path, access, patience)?;
        if meet(path, &pages.sqlite, &checks.sqlite, patience)?
            && pages.hold_new(path)
            && checks.hold_new(path)
        {
            let witness = Witness::of(path);
            log.debug(format_args!("its pages are read in place, inside a read transaction"));
            return Ok(View::Live { pages: Box::new(pages), checks: Box::new(checks), witness });
        }
        log.info("the write-ahead log is too busy for a view in place: the database is copied first");
        leave(&pages.sqlite);
        leave(&checks.sqlite);
    }
    let file = scratch.join("copy.sqlite3");
    log.debug(format_args!("it is copied to {}", file.display()));
    copy(path, &pages.sqlite, &file, patience, uses_log, log)?;
    drop(pages);
    let checks = open_read_only(&file).and_then(|checks| enter(&checks).map(|()| checks));
    let checks = checks.map_err(|error| sqlite_error(path, error))?;
    Ok(View::Copy { file, checks: Box::new(checks) })
}

/// Whether this build of SQLite has the table of pages.
fn has_page_table(sqlite: &Connection) -> bool {
    sqlite
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM pragma_module_list WHERE name = 'sqlite_dbpage')",
            [],
            |row| row.get(0),
        )
        .unwrap_or(false)
}

/// Enters a read transaction: it begins with the first read, not with `BEGIN`.
fn enter(sqlite: &Connection) -> rusqlite::Result<()> {
    sqlite.execute_batch("BEGIN")?;
    let entered = sqlite.query_row("SELECT count(*) FROM main.sqlite_schema", [], |_| Ok(()));
    if entered.is_err() {
        leave(sqlite);
    }
    entered
}

fn leave(sqlite: &Connection) {
    if !sqlite.is_autocommit() {
        // It has written nothing: whatever the answer, nothing is lost.
        let _ = sqlite.execute_batch("ROLLBACK");
    }
}

/// Brings both connections into read transactions on the same commit. `false` when writers commit too often for that.
///
/// `data_version` changes when somebody else has committed since the connection looked last. If it is the same before
/// the first transaction began and after the second did, nothing was committed between the two.
fn meet(
    path: &Path,
    pages: &Connection,
    checks: &Connection,
    patience: &Patience,
) -> Result<bool, EngineError> {
    let version = || checks.query_row("PRAGMA data_version", [], |row| row.get::<_, i64>(0));
    for _ in 0..MEETINGS_MAX {
        patience.check_cancelled()?;
        let before = patience.retry(path, version)?;
        patience.retry(path, || enter(pages))?;
        patience.retry(path, || enter(checks))?;
        if version().map_err(|error| sqlite_error(path, error))? == before {
            return Ok(true);
        }
        leave(pages);
        leave(checks);
    }
    Ok(false)
}

/// Copies the database to `file`.
fn copy(
    path: &Path,
    source: &Connection,
    file: &Path,
    patience: &Patience,
    uses_log: bool,
    log: &dyn RunLog,
) -> Result<(), EngineError> {
    let failed = |error| sqlite_error(path, error);
    // With a write-ahead log a read transaction keeps nobody waiting.
    if !uses_log {
        let mut target = new_copy(file)?;
        let backup = Backup::new(source, &mut target).map_err(failed)?;
        if copy_politely(path, file, &backup, patience)? {
            return Ok(());
        }
        log.warn(&format!(
            "{} was written to all the time: writers wait while it is copied in one go",
            path.display()
        ));
    }
    let patience = &Patience::new(patience.total, &patience.cancel);
    let mut target = new_copy(file)?;
    patience.retry(path, || enter(source))?;
    let backup = Backup::new(source, &mut target).map_err(failed)?;
    loop {
        patience.check_cancelled()?;
        match backup.step(HELD_STEP_PAGES) {
            Ok(StepResult::Done) => break,
            Ok(StepResult::More) => {}
            Ok(_) => patience.wait(path)?,
            Err(error) => return Err(step_failed(path, file, error)),
        }
    }
    drop(backup);
    leave(source);
    Ok(())
}

/// An empty database for the copy, in the place of an unfinished one: without a journal SQLite cannot undo that.
fn new_copy(file: &Path) -> Result<Connection, EngineError> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let message = format!("the unfinished copy {} could not be removed", file.display());
            return Err(
                EngineError::new(holdfast_model::ErrorCode::CaptureIncomplete, message).caused_by(error)
            );
        }
        _ => {}
    }
    let open = || {
        let copy = Connection::open(file)?;
        // The copy is read once and thrown away: it needs no journal, and no protection from a crash.
        copy.execute_batch(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE",
        )?;
        Ok(copy)
    };
    open().map_err(|error| copy_failed(file, error))
}

/// Copies in small steps. `false` when writers have started it over too often.
fn copy_politely(
    path: &Path,
    file: &Path,
    backup: &Backup<'_, '_>,
    patience: &Patience,
) -> Result<bool, EngineError> {
    let (mut restarts, mut remaining) = (0, i32::MAX);
    // Others that hold the lock are waited for from the last progress on, not from the beginning.
    let mut current = patience.clone();
    loop {
        match backup.step(COPY_STEP_PAGES) {
            Ok(StepResult::Done) => return Ok(true),
            Ok(StepResult::More) => {
                let progress = backup.progress();
                if progress.remaining > remaining {
                    restarts += 1;
                    if restarts > RESTARTS_MAX {
                        return Ok(false);
                    }
                }
                remaining = progress.remaining;
                current = Patience::new(patience.total, &patience.cancel);
                current.check_cancelled()?;
                // Without a pause a writer that polls for the lock might never meet the moment without it.
                std::thread::sleep(Duration::from_micros(200));
            }
            Ok(_) => current.wait(path)?,
            Err(error) => return Err(step_failed(path, file, error)),
        }
    }
}

fn step_failed(path: &Path, file: &Path, error: rusqlite::Error) -> EngineError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull | rusqlite::ErrorCode::SystemIoFailure) => {
            copy_failed(file, error)
        }
        _ => sqlite_error(path, error),
    }
}

fn copy_failed(file: &Path, error: rusqlite::Error) -> EngineError {
    let code = match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => holdfast_model::ErrorCode::AgentSpoolFull,
        _ => holdfast_model::ErrorCode::CaptureIncomplete,
    };
    EngineError::new(code, format!("the copy {} could not be written", file.display())).caused_by(error)
}
