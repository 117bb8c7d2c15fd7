//! The error of a command: a failure, where it happened, and the exit status.

use std::fmt;

use holdfast_model::{ErrorCode, Failure};

use crate::exit_status::ExitStatus;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub struct CliError(Box<Inner>);

#[derive(Debug)]
struct Inner {
    failure: Failure,
    run: Option<String>,
    trace: Option<String>,
    exit: Option<ExitStatus>,
}

impl CliError {
    /// An error with a message and nothing else.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Failure::new(code, message).into()
    }

    /// Wrong flags or arguments.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::UsageInvalid, message)
    }

    /// Data could not be written to standard output.
    pub fn output(error: &std::io::Error) -> Self {
        let failure = Failure::new(ErrorCode::OutputFailed, "the output could not be written");
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return failure.because("the reader closed its end of the pipe").into();
        }
        failure.because(error.to_string()).into()
    }

    /// Ctrl-C, with the message to leave behind.
    pub fn interrupted(message: impl Into<String>) -> Self {
        let mut error = Self::new(ErrorCode::WatchTimeout, message);
        error.0.exit = Some(ExitStatus::Interrupted);
        error
    }

    /// A local file or folder could not be used.
    pub fn file(action: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Failure::new(ErrorCode::PathInvalid, format!("{action} {} failed", path.display()))
            .because(error.to_string())
            .into()
    }

    /// Adds a cause.
    #[must_use]
    pub fn because(mut self, why: impl Into<String>) -> Self {
        self.0.failure.why.push(why.into());
        self
    }

    /// Says what is at stake.
    #[must_use]
    pub fn at_stake(mut self, now: impl Into<String>) -> Self {
        self.0.failure.now = Some(now.into());
        self
    }

    /// Adds a command that helps.
    #[must_use]
    pub fn then(mut self, command: impl Into<String>) -> Self {
        self.0.failure.next.push(command.into());
        self
    }

    /// Names the run that it is about.
    #[must_use]
    pub fn of_run(mut self, run: impl Into<String>) -> Self {
        self.0.run = Some(run.into());
        self
    }

    /// Names the trace that it belongs to.
    #[must_use]
    pub fn of_trace(mut self, trace: Option<String>) -> Self {
        self.0.trace = trace.or(self.0.trace);
        self
    }

    /// The same error with another exit status.
    #[must_use]
    pub fn exiting_with(mut self, status: ExitStatus) -> Self {
        self.0.exit = Some(status);
        self
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        self.0.failure.code
    }

    /// What happened, why, and what to do.
    pub fn failure(&self) -> &Failure {
        &self.0.failure
    }

    /// The run that it is about.
    pub fn run(&self) -> Option<&str> {
        self.0.run.as_deref()
    }

    /// The trace that it belongs to.
    pub fn trace(&self) -> Option<&str> {
        self.0.trace.as_deref()
    }

    /// The verdict.
    pub fn exit_status(&self) -> ExitStatus {
        self.0.exit.unwrap_or_else(|| self.code().category().into())
    }

    /// Whether there is nothing to print: Ctrl-C was answered already.
    pub fn is_interruption(&self) -> bool {
        self.0.exit == Some(ExitStatus::Interrupted)
    }
}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        Self(Box::new(Inner { failure, run: None, trace: None, exit: None }))
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.failure)
    }
}

impl std::error::Error for CliError {}

/// What commands return.
pub type CliResult<T = ExitStatus> = Result<T, CliError>;
