//! How a tool ended, and what it said.

use std::fmt;
use std::time::Duration;

use holdfast_model::ErrorCode;
use holdfast_model::text::size;

use super::STDERR_BYTES_MAX;
use crate::HostError;

/// How a tool ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolEnding {
    /// By itself, with this exit status.
    Exited(i32),
    /// By a signal that nobody here sent.
    Signalled(i32),
    /// It was stopped because the run was cancelled.
    Cancelled,
    /// It was stopped because it took longer than this.
    DeadlineOver(Duration),
    /// It was killed because it printed more than this many bytes.
    OutputTooLong(usize),
    /// It was killed by [`super::RunningTool::kill`] or by dropping it.
    Killed,
}

/// A tool that has ended.
#[derive(Debug, Clone)]
pub struct ToolExit {
    /// File name of the program.
    pub name: String,
    /// How it ended.
    pub ending: ToolEnding,
    /// What it printed, with [`super::ToolOutput::Captured`] only.
    pub stdout: Vec<u8>,
    /// The end of what it wrote to its standard error.
    pub stderr: StderrTail,
    /// How long it ran.
    pub elapsed: Duration,
}

impl ToolExit {
    pub(super) fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Whether it ended by itself with exit status 0.
    pub fn is_success(&self) -> bool {
        self.ending == ToolEnding::Exited(0)
    }

    /// Itself, when it ended by itself with exit status 0.
    ///
    /// # Errors
    /// `HF-4010` when it was cancelled, otherwise `HF-2006` with the end of what it said.
    pub fn into_success(self) -> Result<Self, HostError> {
        if self.is_success() { Ok(self) } else { Err(self.to_error()) }
    }

    /// The error that says how it ended, whatever that is.
    pub fn to_error(&self) -> HostError {
        let code = match self.ending {
            ToolEnding::Cancelled => ErrorCode::RunCancelled,
            _ => ErrorCode::ToolFailed,
        };
        let error = HostError::new(code, self.to_string());
        match self.stderr.last_lines(5) {
            said if said.is_empty() => error,
            said => error.caused_by(said),
        }
    }
}

impl fmt::Display for ToolExit {
    /// How it ended, without what it said.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match self.ending {
            ToolEnding::Exited(status) => write!(f, "{name} ended with exit status {status}"),
            ToolEnding::Signalled(signal) => write!(f, "{name} was killed by signal {signal}"),
            ToolEnding::Cancelled => write!(f, "{name} was stopped: the run was cancelled"),
            ToolEnding::DeadlineOver(deadline) => {
                write!(f, "{name} did not end within {} s", deadline.as_secs_f64())
            }
            ToolEnding::OutputTooLong(bytes_max) => {
                write!(f, "{name} printed more than {}", size(bytes_max as u64))
            }
            ToolEnding::Killed => write!(f, "{name} was killed"),
        }
    }
}

/// The last [`STDERR_BYTES_MAX`] bytes of a tool's standard error.
#[derive(Debug, Clone, Default)]
pub struct StderrTail {
    bytes: Vec<u8>,
    dropped_bytes: u64,
}

impl StderrTail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        // Moving the tail down only when it has grown to twice its size keeps a chatty tool linear.
        if self.bytes.len() > 2 * STDERR_BYTES_MAX {
            self.cut();
        }
    }

    pub(super) fn cut(&mut self) {
        let excess = self.bytes.len().saturating_sub(STDERR_BYTES_MAX);
        self.bytes.drain(..excess);
        self.dropped_bytes += excess as u64;
    }

    /// How many bytes before it were dropped.
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    /// The text, with every control character but newline and tab written as `\x1b`, and what is not UTF-8 replaced:
    /// safe to print on a terminal and to put in a log.
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(self.bytes.len());
        for character in String::from_utf8_lossy(&self.bytes).replace("\r\n", "\n").chars() {
            match character {
                '\n' | '\t' => text.push(character),
                // Besides the control characters: what turns the direction of the text around.
                c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                    text.push_str(&format!("\\x{:02x}", u32::from(c)));
                }
                c => text.push(c),
            }
        }
        text
    }

    /// The last `count` lines that are not blank.
    pub fn last_lines(&self, count: usize) -> String {
        let text = self.text();
        let lines: Vec<&str> =
            text.lines().map(str::trim_end).filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}
