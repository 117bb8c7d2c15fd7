//! The error of this package.

use std::error::Error;
use std::fmt;

use holdfast_model::{ErrorCode, Failure};

/// Why something on this host could not be done: a stable code, a sentence with the particulars, causes, and what to try.
#[derive(Debug)]
pub struct HostError {
    code: ErrorCode,
    message: String,
    next: Vec<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl HostError {
    /// An error with a sentence that names the particulars, without a full stop.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), next: Vec::new(), source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds a command to try next.
    #[must_use]
    pub fn then(mut self, command: impl Into<String>) -> Self {
        self.next.push(command.into());
        self
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        self.code
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for HostError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as &(dyn Error + 'static))
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        let mut failure = Failure::from_error(error.code, &error);
        failure.next = error.next;
        failure
    }
}
