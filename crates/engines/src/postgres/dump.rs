//! The stream of one `pg_dump`, which reads as ended only when the dump is proven whole.

use std::io::{self, PipeReader, Read};
use std::sync::Arc;

use holdfast_model::ErrorCode;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::archive::{ArchiveSummary, ArchiveWalker, Keep};
use super::quote::printable;
use crate::tool::{RunningTool, ToolEnding, ToolExit};
use crate::{EngineError, RunLog};

/// How many lines of a tool's warnings go to the log.
const WARNING_LINES_MAX: usize = 20;

/// What a capture learns of a dump from its stream.
#[derive(Debug, Default)]
pub(crate) struct DumpProgress {
    /// Set when the stream was read to its end and found whole.
    pub(crate) outcome: Mutex<Option<ArchiveSummary>>,
    /// Told when the first bytes came: by then `pg_dump` has locked all its tables.
    pub(crate) started: Notify,
}

/// Reads the output of a running `pg_dump`.
///
/// Its end is given out only after the exit status was seen to be 0 and the archive to be whole; otherwise the last
/// read fails with an [`EngineError`] inside. Dropping it before kills the tool.
pub(crate) struct DumpReader {
    database: String,
    state: State,
    begun: bool,
    progress: Arc<DumpProgress>,
    log: Arc<dyn RunLog>,
}

enum State {
    Running { stdout: PipeReader, tool: RunningTool, walker: Box<ArchiveWalker> },
    Ended,
    Failed,
}

impl DumpReader {
    /// Follows a tool that was started with its output piped.
    pub(crate) fn new(
        database: &str,
        mut tool: RunningTool,
        progress: Arc<DumpProgress>,
        log: Arc<dyn RunLog>,
    ) -> Self {
        let stdout = tool.take_stdout().expect("the tool was started with its output piped");
        let walker = Box::new(ArchiveWalker::new(Keep::WithData));
        Self {
            database: database.to_owned(),
            state: State::Running { stdout, tool, walker },
            begun: false,
            progress,
            log,
        }
    }

    fn conclude(&self, tool: RunningTool, walker: ArchiveWalker) -> Result<ArchiveSummary, EngineError> {
        let exit = tool.wait_blocking()?;
        self.log.debug(format_args!("{exit} after {:.1} s", exit.elapsed.as_secs_f64()));
        let database = printable(&self.database);
        if !exit.is_success() {
            return Err(dump_failed(&exit, &database));
        }
        let said = exit.stderr.last_lines(WARNING_LINES_MAX);
        if !said.is_empty() {
            self.log.warn(&format!("{} of database {database} said: {said}", exit.name));
        }
        walker.finish().map_err(|error| self.not_whole(error))
    }

    fn not_whole(&self, error: super::archive::ArchiveError) -> EngineError {
        EngineError::new(
            ErrorCode::CaptureIncomplete,
            format!("the dump of database {} is not a whole archive", printable(&self.database)),
        )
        .caused_by(error)
    }
}

impl Read for DumpReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (stdout, walker) = match &mut self.state {
            State::Running { stdout, walker, .. } => (stdout, walker),
            State::Ended => return Ok(0),
            State::Failed => return Err(io::Error::other("the dump failed before")),
        };
        if buffer.is_empty() {
            return Ok(0);
        }
        let count = stdout.read(buffer)?;
        if count > 0 {
            if !self.begun {
                self.begun = true;
                self.progress.started.notify_one();
            }
            if let Err(error) = walker.feed(&buffer[..count]) {
                let error = self.not_whole(error);
                self.state = State::Failed;
                return Err(io::Error::other(error));
            }
            return Ok(count);
        }
        let State::Running { tool, walker, .. } = std::mem::replace(&mut self.state, State::Failed) else {
            return Err(io::Error::other("the dump failed before"));
        };
        let summary = self.conclude(tool, *walker).map_err(io::Error::other)?;
        *self.progress.outcome.lock() = Some(summary);
        self.state = State::Ended;
        Ok(0)
    }
}

/// What the end of `pg_dump` or `pg_dumpall` means, told from what it said in English.
pub(crate) fn dump_failed(exit: &ToolExit, subject: &str) -> EngineError {
    const DENIED: [&str; 2] = ["permission denied", "row-level security"];
    const SERVER_GONE: [&str; 5] = [
        "server closed the connection",
        "terminating connection",
        "connection to server",
        "no connection to the server",
        "lost synchronization with server",
    ];
    let plain = exit.to_error();
    let said = exit.stderr.text();
    let mentions = |phrases: &[&str]| phrases.iter().any(|phrase| said.contains(phrase));
    let (code, what) = match exit.ending {
        ToolEnding::Cancelled => return plain,
        ToolEnding::Signalled(_) | ToolEnding::Killed => {
            (ErrorCode::CaptureIncomplete, "the dump ended before its time")
        }
        _ if mentions(&DENIED) => {
            (ErrorCode::SourcePermissionMissing, "the login may not read all that a dump needs")
        }
        _ if mentions(&SERVER_GONE) => (ErrorCode::CaptureIncomplete, "the server ended the dump"),
        _ => (ErrorCode::ToolFailed, "the dump failed"),
    };
    EngineError::new(code, format!("{what}: {subject}")).caused_by(plain)
}
