//! Connections to a live database, and what its errors mean.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_model::ErrorCode;
use rusqlite::{Connection, OpenFlags};
use tokio_util::sync::CancellationToken;

use crate::EngineError;
use crate::file_gate::{FILE_GATE, FileId, HoldPass};
use crate::path_target::with_suffix;

/// Files that belong to a database, by what their names add to its own.
pub(crate) const SIDECARS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// How long SQLite itself waits for a lock before it asks whether to go on.
const BUSY_SLICE: Duration = Duration::from_millis(100);

/// How long to wait for others, and when to stop.
#[derive(Debug, Clone)]
pub(crate) struct Patience {
    pub(crate) until: Instant,
    pub(crate) total: Duration,
    pub(crate) cancel: CancellationToken,
}

impl Patience {
    pub(crate) fn new(total: Duration, cancel: &CancellationToken) -> Self {
        Self { until: Instant::now() + total, total, cancel: cancel.clone() }
    }

    /// # Errors
    /// `HF-4010` when cancelled.
    pub(crate) fn check_cancelled(&self) -> Result<(), EngineError> {
        if self.cancel.is_cancelled() {
            return Err(EngineError::new(ErrorCode::RunCancelled, "the run was cancelled"));
        }
        Ok(())
    }

    /// Waits a moment for somebody else's lock.
    ///
    /// # Errors
    /// `HF-4010` when cancelled, `HF-2001` when patience is at its end.
    pub(crate) fn wait(&self, path: &Path) -> Result<(), EngineError> {
        self.check_cancelled()?;
        if Instant::now() >= self.until {
            let message = format!(
                "the database {} was locked by others for {} s",
                path.display(),
                self.total.as_secs_f64()
            );
            return Err(EngineError::new(ErrorCode::SourceUnreachable, message));
        }
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    }

    /// Does something that others may keep from being done, until it is done.
    ///
    /// # Errors
    /// As [`Patience::wait`] and [`sqlite_error`].
    pub(crate) fn retry<T>(
        &self,
        path: &Path,
        mut attempt: impl FnMut() -> rusqlite::Result<T>,
    ) -> Result<T, EngineError> {
        loop {
            match attempt() {
                Err(error) if is_busy(&error) => self.wait(path)?,
                outcome => return outcome.map_err(|error| sqlite_error(path, error)),
            }
        }
    }
}

/// Whether somebody else's lock is in the way.
pub(crate) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
    )
}

/// Whether the file is damaged, as far as SQLite can tell.
pub(crate) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseCorrupt))
}

/// What an error of SQLite means for a source.
pub(crate) fn sqlite_error(path: &Path, error: rusqlite::Error) -> EngineError {
    use rusqlite::ErrorCode as Sqlite;
    let path = path.display();
    let (code, message) = match error.sqlite_error_code() {
        Some(Sqlite::DatabaseCorrupt) => {
            (ErrorCode::SourceDamaged, format!("the database {path} is damaged"))
        }
        Some(Sqlite::NotADatabase) => {
            (ErrorCode::SourceChangedType, format!("{path} is not a SQLite database"))
        }
        Some(Sqlite::DatabaseBusy | Sqlite::DatabaseLocked) => {
            (ErrorCode::SourceUnreachable, format!("the database {path} is locked"))
        }
        Some(Sqlite::CannotOpen | Sqlite::PermissionDenied | Sqlite::ReadOnly) => {
            (ErrorCode::SourcePermissionMissing, format!("the database {path} cannot be opened by this user"))
        }
        Some(Sqlite::OperationInterrupted) => {
            (ErrorCode::RunCancelled, format!("reading {path} was interrupted"))
        }
        _ => (ErrorCode::CaptureIncomplete, format!("the database {path} could not be read")),
    };
    EngineError::new(code, message).caused_by(error)
}

/// The database file itself, symbolic links resolved as SQLite resolves them.
///
/// # Errors
/// `HF-2010` when there is none, `HF-2003` when that cannot be found out, `HF-2016` when it is no regular file or is
/// empty: SQLite would take it for a database without tables, and a backup of nothing must not look like one.
pub(crate) fn locate(path: &Path) -> Result<PathBuf, EngineError> {
    let failed = |error: std::io::Error| {
        match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                EngineError::new(ErrorCode::SourceMissing, format!("there is no database {}", path.display()))
            }
            _ => EngineError::new(
                ErrorCode::SourcePermissionMissing,
                format!("the database {} cannot be looked at", path.display()),
            ),
        }
        .caused_by(error)
    };
    crate::files::roots::normalise(path)?;
    let file = std::fs::canonicalize(path).map_err(failed)?;
    let metadata = std::fs::metadata(&file).map_err(failed)?;
    let wrong =
        |why: &str| Err(EngineError::new(ErrorCode::SourceChangedType, format!("{} {why}", path.display())));
    if !metadata.is_file() {
        return wrong("is not a regular file");
    }
    if metadata.len() == 0 {
        return wrong("is empty, not a SQLite database");
    }
    Ok(file)
}

/// Device and inode of a file, if it exists.
pub(crate) fn identity(path: &Path) -> Option<FileId> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(FileId { device_id: metadata.dev(), inode: metadata.ino() })
}

/// The file of a database and those beside it that exist now.
pub(crate) fn family(path: &Path) -> Vec<FileId> {
    let beside = SIDECARS.iter().map(|suffix| with_suffix(path, suffix));
    std::iter::once(path.to_owned()).chain(beside).filter_map(|path| identity(&path)).collect()
}

/// Holds the files of a database against everybody in this process who would open and close them.
///
/// # Errors
/// As [`Patience::wait`].
pub(crate) fn hold(path: &Path, patience: &Patience) -> Result<HoldPass, EngineError> {
    loop {
        match FILE_GATE.hold(&family(path)) {
            Some(pass) => return Ok(pass),
            None => patience.wait(path)?,
        }
    }
}

/// How a live database is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reading only. What an application left beside the database stays as it is.
    Read,
    /// With the right to write, which only SQLite uses: to undo what a crash left half done, and to remove the files
    /// of a write-ahead log again that it makes for the connection. Left behind, they might belong to a user whose
    /// files the application cannot open.
    CleanUp,
}

impl Access {
    /// A write-ahead log that is there already is somebody's: an application's, or what one left that crashed.
    pub(crate) fn to(path: &Path) -> Self {
        if with_suffix(path, "-wal").exists() { Access::Read } else { Access::CleanUp }
    }
}

/// A connection that reads a live database and changes nothing in it, with the hold on its files.
pub(crate) struct LiveConnection {
    // Dropped first: the locks must go before the hold does.
    pub(crate) sqlite: Connection,
    _holds: Vec<Arc<HoldPass>>,
}

impl LiveConnection {
    /// Opens it. The first read may find that it is no database.
    ///
    /// # Errors
    /// As [`sqlite_error`] and [`Patience::wait`].
    pub(crate) fn open(path: &Path, access: Access, patience: &Patience) -> Result<Self, EngineError> {
        let held = Arc::new(hold(path, patience)?);
        let sqlite = match access {
            Access::Read => open_read_only(path),
            // Where writing is not allowed, SQLite opens it for reading by itself.
            Access::CleanUp => open_with(path, OpenFlags::SQLITE_OPEN_READ_WRITE),
        };
        let sqlite = sqlite.map_err(|error| sqlite_error(path, error))?;
        Ok(Self { sqlite, _holds: vec![held] })
    }

    /// Holds what has come to be beside the database since, such as its write-ahead log. `false` when somebody reads
    /// one of them now.
    pub(crate) fn hold_new(&mut self, path: &Path) -> bool {
        let pass = FILE_GATE.hold(&family(path)).map(Arc::new);
        let held = pass.is_some();
        self._holds.extend(pass);
        held
    }
}

/// A connection that writes nothing to the database, and trusts nothing that is written in it.
pub(crate) fn open_read_only(path: &Path) -> rusqlite::Result<Connection> {
    open_with(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

fn open_with(path: &Path, access: OpenFlags) -> rusqlite::Result<Connection> {
    let sqlite = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    harden(&sqlite)?;
    sqlite.execute_batch("PRAGMA query_only = ON")?;
    Ok(sqlite)
}

/// Keeps a hostile schema from doing more than being data.
pub(crate) fn harden(sqlite: &Connection) -> rusqlite::Result<()> {
    sqlite.busy_timeout(BUSY_SLICE)?;
    sqlite.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    sqlite.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    sqlite.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
    Ok(())
}

/// A text inside double quotes, as an identifier.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The version of the SQLite library in this program.
pub(crate) fn library_version() -> String {
    rusqlite::version().to_owned()
}
