//! Logs of runs: one file of JSON lines per run, durable before the agent may forget its lines.

use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use holdfast_model::ids::RunId;
use holdfast_model::run::{LogLevel, LogLine};
use holdfast_model::{ErrorCode, Failure};
use tokio::sync::Notify;

/// Bytes of one log beyond which lines are dropped; the last one says so.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// Bytes of one log beyond which debug lines are dropped: they must not take the room of what counts.
const LOG_BYTES_WITH_DEBUG_MAX: u64 = LOG_BYTES_MAX / 2;

/// Lines returned by one read.
pub const READ_LINES_MAX: usize = 100;

/// The logs of all runs. Clones share them.
#[derive(Clone)]
pub struct RunLogs {
    folder: Arc<PathBuf>,
    changed: Arc<Notify>,
}

impl RunLogs {
    /// Logs in this folder, which is made when it is missing.
    ///
    /// # Errors
    /// When the folder can not be made.
    pub fn open(folder: PathBuf) -> Result<Self, Failure> {
        holdfast_runtime::durable_file::create_folders(&folder)
            .map_err(|error| failed("made", &folder, &error))?;
        Ok(Self { folder: Arc::new(folder), changed: Arc::default() })
    }

    /// Appends lines; they are durable when this returns. Blocking.
    ///
    /// # Errors
    /// When they could not be made durable; then the caller must not acknowledge them.
    pub fn append(&self, run: RunId, lines: &[LogLine]) -> Result<(), Failure> {
        if lines.is_empty() {
            return Ok(());
        }
        let path = self.path(run);
        let fail = |error: std::io::Error| failed("written", &path, &error);
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&path).map_err(fail)?;
        let length = file.metadata().map_err(fail)?.len();
        if length >= LOG_BYTES_MAX {
            return Ok(());
        }
        let mut text = Vec::new();
        let mut write = |line: &LogLine| {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
            Ok::<_, serde_json::Error>(length + text.len() as u64)
        };
        for line in lines {
            if line.level == LogLevel::Debug && length >= LOG_BYTES_WITH_DEBUG_MAX {
                continue;
            }
            let reached = write(line).map_err(|error| fail(error.into()))?;
            if reached >= LOG_BYTES_MAX {
                let said = "this log is full: what follows is left out".to_owned();
                let last = LogLine { level: LogLevel::Warning, text: said, ..line.clone() };
                write(&last).map_err(|error| fail(error.into()))?;
                break;
            }
        }
        file.write_all(&text).map_err(fail)?;
        file.sync_data().map_err(fail)?;
        if length == 0 {
            holdfast_runtime::durable_file::sync_folder(&self.folder).map_err(fail)?;
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// Up to [`READ_LINES_MAX`] lines from a place, and the place after them. Blocking. A line that is not whole, the
    /// torn end of a crash, is left out.
    ///
    /// # Errors
    /// When the file can not be read.
    pub fn read(&self, run: RunId, offset: u64) -> Result<(Vec<LogLine>, u64), Failure> {
        let path = self.path(run);
        let fail = |error: std::io::Error| failed("read", &path, &error);
        let mut file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), offset)),
            Err(error) => return Err(fail(error)),
        };
        file.seek(SeekFrom::Start(offset)).map_err(fail)?;
        let mut reader = BufReader::new(file);
        let mut lines = Vec::new();
        let mut place = offset;
        let mut text = Vec::new();
        while lines.len() < READ_LINES_MAX {
            text.clear();
            let length = reader.read_until(b'\n', &mut text).map_err(fail)?;
            if length == 0 || text.last() != Some(&b'\n') {
                break;
            }
            place += length as u64;
            if let Ok(line) = serde_json::from_slice(&text) {
                lines.push(line);
            }
        }
        Ok((lines, place))
    }

    /// Completes when any log grows. Create it before reading.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + '_ {
        self.changed.notified()
    }

    fn path(&self, run: RunId) -> PathBuf {
        self.folder.join(format!("{run}.jsonl"))
    }
}

fn failed(what: &str, path: &std::path::Path, error: &std::io::Error) -> Failure {
    Failure::new(ErrorCode::StateUnavailable, format!("{} can not be {what}", path.display()))
        .because(error.to_string())
}

#[cfg(test)]
mod tests {
    use holdfast_model::ids::Attempt;

    use super::*;

    fn line(text: &str) -> LogLine {
        LogLine {
            at: jiff::Timestamp::UNIX_EPOCH,
            attempt: Attempt(1),
            level: LogLevel::Info,
            text: text.to_owned(),
        }
    }

    #[test]
    fn lines_come_back_in_order_and_a_torn_end_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let logs = RunLogs::open(folder.path().join("logs")).unwrap();
        let run = RunId::at(1, [0; 10]);
        let many: Vec<LogLine> =
            (0..150).map(|number| line(&format!("line {number}\nwith a break"))).collect();
        logs.append(run, &many).unwrap();
        let (first, place) = logs.read(run, 0).unwrap();
        assert_eq!(first, many[..100]);
        std::fs::OpenOptions::new()
            .append(true)
            .open(logs.path(run))
            .unwrap()
            .write_all(b"{\"at\":")
            .unwrap();
        let (rest, end) = logs.read(run, place).unwrap();
        assert_eq!(rest, many[100..]);
        assert_eq!(logs.read(run, end).unwrap(), (Vec::new(), end));
    }

    #[test]
    fn a_log_has_an_end_that_it_says_and_debug_lines_take_half_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let logs = RunLogs::open(folder.path().to_owned()).unwrap();
        let run = RunId::at(1, [0; 10]);
        let long = |level| vec![LogLine { level, ..line(&"x".repeat(1 << 20)) }; 4];
        let length = || std::fs::metadata(logs.path(run)).unwrap().len();
        for level in [LogLevel::Debug, LogLevel::Debug, LogLevel::Debug] {
            logs.append(run, &long(level)).unwrap();
        }
        assert!((8 << 20..9 << 20).contains(&length()), "{}", length());
        for level in [LogLevel::Info, LogLevel::Debug, LogLevel::Warning, LogLevel::Info] {
            logs.append(run, &long(level)).unwrap();
        }
        assert!((16 << 20..17 << 20).contains(&length()), "{}", length());
        let (lines, _) = logs.read(run, 0).unwrap();
        let last = lines.last().unwrap();
        assert_eq!(
            (last.level, last.text.as_str()),
            (LogLevel::Warning, "this log is full: what follows is left out")
        );
        assert_eq!(lines.iter().filter(|line| line.level == LogLevel::Debug).count(), 8);
    }

    #[test]
    fn a_run_without_a_log_reads_as_empty() {
        let folder = tempfile::tempdir().unwrap();
        let logs = RunLogs::open(folder.path().to_owned()).unwrap();
        assert_eq!(logs.read(RunId::at(1, [0; 10]), 0).unwrap(), (Vec::new(), 0));
    }
}
