//! Client tools such as `pg_dump`, run so that nothing of them stays behind.
//!
//! * The program is an absolute path and its arguments an array: there is no shell, and no search path.
//! * The environment is empty but for what is given. A secret goes in a [`SecretFile`], never in an argument or a
//!   variable: both can be read by others on the same host.
//! * The tool leads a process group of its own. The whole group is killed when its [`RunningTool`] is dropped, and
//!   whatever of the group is left when the tool itself ends is killed then. A process that moves to another group
//!   or session escapes this; the tools used here do not.
//! * When this process is killed without a chance to clean up, the tool reads the end of its input, or gets `SIGPIPE`
//!   or an error when it next writes to its output. Nothing else ends it then: asking the kernel for a signal at the
//!   death of the parent takes code between fork and exec, which is not safe Rust.
//! * Cancellation and the deadline send `SIGTERM`, so that the tool can cancel its work on a server, and `SIGKILL`
//!   after [`TERMINATION_GRACE`].
//! * Exit status and standard error are for whoever waits: a stream that was read to its end proves nothing.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, PipeReader, PipeWriter};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::ErrorCode;
use holdfast_model::text::shell_word;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::HostError;

mod ending;
mod secret_file;
mod supervisor;
mod version;

pub use ending::{StderrTail, ToolEnding, ToolExit};
pub use secret_file::SecretFile;
pub use version::{ToolVersion, query_version};

use supervisor::{Group, Supervisor};

/// How long a tool has between `SIGTERM` and `SIGKILL`.
pub const TERMINATION_GRACE: Duration = Duration::from_secs(2);

/// How many bytes of a tool's standard error are kept: the last ones.
pub const STDERR_BYTES_MAX: usize = 64 * 1024;

/// Size asked for the pipes of streams, the most that Linux gives to everybody. Fewer switches between the tool and
/// its reader; a kernel that refuses leaves the default of 64 KiB.
const STREAM_PIPE_BYTES: usize = 1024 * 1024;

/// What the tool reads on its standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolInput {
    /// Nothing.
    Empty,
    /// What is written to [`RunningTool::take_stdin`].
    Piped,
}

/// Where the standard output of the tool goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolOutput {
    /// Nowhere.
    Discarded,
    /// To [`RunningTool::take_stdout`].
    Piped,
    /// Into [`ToolExit::stdout`]. A tool that writes more is killed.
    Captured {
        /// The most it may write, in bytes.
        bytes_max: usize,
    },
}

/// A tool that is to be run.
#[derive(Clone)]
pub struct ToolCommand {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    folder: PathBuf,
    deadline: Option<Duration>,
}

impl ToolCommand {
    /// A tool without arguments, with an empty environment, in the folder `/`, without a deadline.
    ///
    /// # Errors
    /// `HF-2004` when `program` is not an absolute path.
    pub fn new(program: impl Into<PathBuf>) -> Result<Self, HostError> {
        let program = program.into();
        if !program.is_absolute() {
            return Err(HostError::new(
                ErrorCode::ToolMissing,
                format!("the tool {} is not given as an absolute path", program.display()),
            ));
        }
        Ok(Self {
            program,
            arguments: Vec::new(),
            environment: Vec::new(),
            folder: PathBuf::from("/"),
            deadline: None,
        })
    }

    /// Adds one argument. Never a secret: every user of the host can read it.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I>(mut self, arguments: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of the environment. Never a secret, but the path of a [`SecretFile`] may be one.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs it in this folder.
    #[must_use]
    pub fn in_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = folder.into();
        self
    }

    /// Ends it after this time.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// The file name of the program, for messages.
    pub fn name(&self) -> String {
        self.program.file_name().unwrap_or(OsStr::new("tool")).to_string_lossy().into_owned()
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Starts it.
    ///
    /// # Errors
    /// `HF-2004` when there is no such program or it may not be run, `HF-2006` when it cannot be started.
    pub fn spawn(
        &self,
        input: ToolInput,
        output: ToolOutput,
        cancel: &CancellationToken,
    ) -> Result<RunningTool, HostError> {
        let failed = |error| self.not_started(error);
        let (stdin, child_stdin) = match input {
            ToolInput::Empty => (None, Stdio::null()),
            ToolInput::Piped => {
                let (reader, writer) = stream_pipe().map_err(failed)?;
                (Some(writer), Stdio::from(reader))
            }
        };
        let (stdout, child_stdout) = match output {
            ToolOutput::Discarded => (None, Stdio::null()),
            ToolOutput::Piped | ToolOutput::Captured { .. } => {
                let (reader, writer) = stream_pipe().map_err(failed)?;
                (Some(reader), Stdio::from(writer))
            }
        };
        let (stderr, child_stderr) = io::pipe().map_err(failed)?;

        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.folder)
            .stdin(child_stdin)
            .stdout(child_stdout)
            .stderr(child_stderr)
            .process_group(0);
        let child = command.spawn().map_err(failed)?;
        // The command owns our copies of the child's ends: the pipes would never end while it lives.
        drop(command);

        let (stdout, captured) = match output {
            ToolOutput::Captured { bytes_max } => (None, stdout.map(|reader| (reader, bytes_max))),
            ToolOutput::Discarded | ToolOutput::Piped => (stdout, None),
        };
        let (group, done) =
            Supervisor::start(child, stderr, captured, self.deadline, cancel.clone()).map_err(failed)?;
        Ok(RunningTool { name: self.name(), stdin, stdout, group, done: Some(done) })
    }

    /// Runs it to its end without input and returns what it printed, at most `stdout_bytes_max` bytes.
    ///
    /// # Errors
    /// As [`ToolCommand::spawn`] and [`ToolExit::into_success`].
    pub async fn run(
        &self,
        stdout_bytes_max: usize,
        cancel: &CancellationToken,
    ) -> Result<Vec<u8>, HostError> {
        let output = ToolOutput::Captured { bytes_max: stdout_bytes_max };
        let exit = self.spawn(ToolInput::Empty, output, cancel)?.wait().await?;
        exit.into_success().map(|exit| exit.stdout)
    }

    fn not_started(&self, error: io::Error) -> HostError {
        let program = self.program.display();
        match error.kind() {
            io::ErrorKind::NotFound => {
                HostError::new(ErrorCode::ToolMissing, format!("there is no tool {program}"))
            }
            io::ErrorKind::PermissionDenied => {
                HostError::new(ErrorCode::ToolMissing, format!("the tool {program} may not be run"))
            }
            _ => HostError::new(ErrorCode::ToolFailed, format!("the tool {program} could not be started")),
        }
        .caused_by(error)
    }
}

impl fmt::Display for ToolCommand {
    /// Program and arguments as a shell takes them, without the environment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shell_word(&self.program.to_string_lossy()))?;
        self.arguments.iter().try_for_each(|word| write!(f, " {}", shell_word(&word.to_string_lossy())))
    }
}

impl fmt::Debug for ToolCommand {
    /// Leaves the values of the environment out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToolCommand")
            .field("program", &self.program)
            .field("arguments", &self.arguments)
            .field("environment", &self.environment.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("folder", &self.folder)
            .field("deadline", &self.deadline)
            .finish()
    }
}

fn stream_pipe() -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    // Only speed depends on it: a host whose users have many large pipes already may refuse.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, STREAM_PIPE_BYTES);
    Ok((reader, writer))
}

/// A tool that runs. Dropping it kills its process group at once.
#[derive(Debug)]
pub struct RunningTool {
    name: String,
    stdin: Option<PipeWriter>,
    stdout: Option<PipeReader>,
    group: Arc<Group>,
    done: Option<oneshot::Receiver<ToolExit>>,
}

impl RunningTool {
    /// The file name of the program.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The standard input, blocking; drop it to let the tool read its end. Gives it once, and only with
    /// [`ToolInput::Piped`].
    pub fn take_stdin(&mut self) -> Option<PipeWriter> {
        self.stdin.take()
    }

    /// The standard output, blocking; it ends when the tool does, however that is. Gives it once, and only with
    /// [`ToolOutput::Piped`].
    pub fn take_stdout(&mut self) -> Option<PipeReader> {
        self.stdout.take()
    }

    /// Kills the process group. [`RunningTool::wait`] tells how it ended.
    pub fn kill(&self) {
        self.group.kill();
    }

    /// Waits for its end. A standard input or output that was not taken is closed first.
    ///
    /// Dropping the future kills the tool.
    ///
    /// # Errors
    /// `HF-2006` when its end could not be observed.
    pub async fn wait(mut self) -> Result<ToolExit, HostError> {
        let done = self.close_and_take_done();
        done.await.map(|exit| exit.named(&self.name)).map_err(|_| self.lost())
    }

    /// Waits for its end as [`RunningTool::wait`] does, on a thread that may block.
    ///
    /// # Errors
    /// `HF-2006` when its end could not be observed.
    pub fn wait_blocking(mut self) -> Result<ToolExit, HostError> {
        let done = self.close_and_take_done();
        done.blocking_recv().map(|exit| exit.named(&self.name)).map_err(|_| self.lost())
    }

    fn close_and_take_done(&mut self) -> oneshot::Receiver<ToolExit> {
        self.stdin = None;
        self.stdout = None;
        self.done.take().expect("only the waiting methods take it, and they consume the tool")
    }

    fn lost(&self) -> HostError {
        HostError::new(ErrorCode::ToolFailed, format!("the end of {} could not be observed", self.name))
    }
}

impl Drop for RunningTool {
    fn drop(&mut self) {
        self.group.kill();
    }
}

#[cfg(test)]
mod tests;
