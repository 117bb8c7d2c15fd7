//! Whether a database is open somewhere, and taking it out of use before it is swapped.

use std::path::Path;
use std::time::Duration;

use holdfast_model::ErrorCode;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tokio_util::sync::CancellationToken;

use super::connect::{Patience, SIDECARS, hold, is_busy};
use crate::path_target::with_suffix;
use crate::{EngineError, RunLog};

/// How long to wait for a lock that others hold for a moment.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The processes that have the file open, such as `shopd (pid 4711)`, as far as this user may look: an idle connection
/// in rollback mode holds no lock, so locks alone do not tell. Costs a walk over the descriptors of all processes.
pub(crate) fn openers(file: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(processes) = std::fs::read_dir("/proc") else { return found };
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let has_it = descriptors
            .flatten()
            .any(|descriptor| std::fs::read_link(descriptor.path()).is_ok_and(|target| target == file));
        if has_it {
            let program = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{} (pid {pid})", program.trim()));
        }
    }
    found
}

/// # Errors
/// `HF-2017` when a process has the file open.
pub(crate) fn check_not_open(file: &Path) -> Result<(), EngineError> {
    match openers(file).as_slice() {
        [] => Ok(()),
        openers => Err(in_use(file, &format!("open in {}", openers.join(", ")))),
    }
}

fn in_use(file: &Path, how: &str) -> EngineError {
    EngineError::new(ErrorCode::TargetInUse, format!("the database {} is {how}", file.display()))
}

/// Makes sure that nobody uses a database, and brings its write-ahead log into it, so that the one file is all of it.
/// A database that is damaged is left as it is: its log is kept beside it.
///
/// # Errors
/// `HF-2017` when it is in use, `HF-4010` when cancelled.
pub(crate) fn settle(file: &Path, cancel: &CancellationToken, log: &dyn RunLog) -> Result<(), EngineError> {
    check_not_open(file)?;
    let patience = Patience::new(LOCK_PATIENCE, cancel);
    let _held = hold(file, &patience)?;
    match settle_connection(file, &patience) {
        Ok(()) => Ok(()),
        Err(Unsettled::Busy) => Err(in_use(file, "locked by another connection")),
        Err(Unsettled::Stopped(error)) => Err(error),
        Err(Unsettled::Broken(error)) => {
            let beside: Vec<&str> =
                SIDECARS.into_iter().filter(|suffix| with_suffix(file, suffix).exists()).collect();
            log.warn(&format!(
                "{} could not be opened ({error}) and is kept as it is{}",
                file.display(),
                if beside.is_empty() { String::new() } else { format!(", with its {}", beside.join(", ")) }
            ));
            Ok(())
        }
    }
}

enum Unsettled {
    Busy,
    Stopped(EngineError),
    Broken(String),
}

fn broken(error: rusqlite::Error) -> Unsettled {
    Unsettled::Broken(error.to_string())
}

fn settle_connection(file: &Path, patience: &Patience) -> Result<(), Unsettled> {
    // SQLite throws the log of an empty file away, and that of a file that it cannot read when it closes it. Either
    // may be all that is left of the data.
    if std::fs::metadata(file).is_ok_and(|metadata| metadata.len() == 0) {
        return Err(Unsettled::Broken("it is empty".to_owned()));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let sqlite = Connection::open_with_flags(file, flags).map_err(broken)?;
    let keep_log = |keep| sqlite.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep).map(drop);
    keep_log(true).map_err(broken)?;
    // In this mode the first lock is for the file as a whole, whatever its journal.
    sqlite.execute_batch("PRAGMA locking_mode = EXCLUSIVE").map_err(broken)?;
    sqlite.busy_timeout(Duration::from_millis(100)).map_err(broken)?;
    loop {
        match sqlite.execute_batch("BEGIN EXCLUSIVE; COMMIT") {
            Ok(()) => break,
            Err(error) if is_busy(&error) => {
                if let Err(over) = patience.wait(file) {
                    let is_cancelled = over.code() == ErrorCode::RunCancelled;
                    return Err(if is_cancelled { Unsettled::Stopped(over) } else { Unsettled::Busy });
                }
            }
            Err(error) => return Err(broken(error)),
        }
    }
    let checkpoint = sqlite.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    checkpoint.and_then(|()| keep_log(false)).map_err(broken)?;
    sqlite.close().map_err(|(_, error)| broken(error))
}
