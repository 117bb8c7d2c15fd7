//! Versions of client tools.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use holdfast_model::ErrorCode;
use tokio_util::sync::CancellationToken;

use super::ToolCommand;
use crate::HostError;

const QUERY_DEADLINE: Duration = Duration::from_secs(10);
const QUERY_BYTES_MAX: usize = 16 * 1024;

/// The version of a tool. Ordered by its numbers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ToolVersion {
    /// The first number.
    pub major: u32,
    /// The second number, 0 when there is none, as in `18beta1`.
    pub minor: u32,
    /// As the tool writes it, such as `15.18`.
    pub text: String,
}

impl ToolVersion {
    /// Takes the first word that begins with a digit, as in `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
    pub fn parse(line: &str) -> Option<Self> {
        let text = line
            .split_whitespace()
            .map(|word| word.trim_matches(|c| matches!(c, '(' | ')' | ',' | ';')))
            .map(|word| word.strip_prefix('v').unwrap_or(word))
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let leading_number = |text: &str| {
            let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            text[..digits].parse::<u32>().ok().map(|number| (number, text[digits..].to_owned()))
        };
        let (major, rest) = leading_number(text)?;
        let minor = rest.strip_prefix('.').and_then(leading_number).map_or(0, |(minor, _)| minor);
        Some(Self { major, minor, text: text.to_owned() })
    }
}

impl fmt::Display for ToolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Runs `PROGRAM --version`.
///
/// # Errors
/// `HF-2004` when there is no such program, `HF-2006` when it fails or prints no version, `HF-4010` when cancelled.
pub async fn query_version(program: &Path, cancel: &CancellationToken) -> Result<ToolVersion, HostError> {
    let command = ToolCommand::new(program)?.arg("--version").deadline(QUERY_DEADLINE);
    let output = command.run(QUERY_BYTES_MAX, cancel).await?;
    let line = String::from_utf8_lossy(&output).lines().next().unwrap_or_default().to_owned();
    ToolVersion::parse(&line).ok_or_else(|| {
        HostError::new(
            ErrorCode::ToolFailed,
            format!("{} --version printed no version: {line:?}", program.display()),
        )
    })
}
