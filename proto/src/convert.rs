//! Translations between messages and the domain. Wire types stop at the services; inside, only model types circulate.

use holdfast_model::ids::{Attempt, RunId};
use holdfast_model::progress::Progress;
use holdfast_model::run::{LogLevel, LogLine, Run};
use holdfast_model::run_state::{Intent, Phase};
use holdfast_model::{ErrorCode, Failure};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::v1;

/// A message that does not make sense: which field, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field {field}: {reason}")]
pub struct ConvertError {
    /// The field.
    pub field: &'static str,
    /// Why it does not make sense.
    pub reason: String,
}

impl ConvertError {
    /// An error about one field.
    pub fn new(field: &'static str, reason: impl ToString) -> Self {
        Self { field, reason: reason.to_string() }
    }
}

impl From<ConvertError> for Failure {
    fn from(error: ConvertError) -> Self {
        Failure::new(ErrorCode::UsageInvalid, error.to_string())
    }
}

/// A time on the wire.
pub fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

/// A time from the wire.
///
/// # Errors
/// When it is out of range.
pub fn from_timestamp(field: &'static str, at: &prost_types::Timestamp) -> Result<Timestamp, ConvertError> {
    Timestamp::new(at.seconds, at.nanos).map_err(|error| ConvertError::new(field, error))
}

/// Takes a field that must be there.
///
/// # Errors
/// When it is not.
pub fn required<T>(field: &'static str, value: Option<T>) -> Result<T, ConvertError> {
    value.ok_or_else(|| ConvertError::new(field, "is missing"))
}

/// Parses a text field into a name or id.
///
/// # Errors
/// When the text breaks the rules of the type.
pub fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(
    field: &'static str,
    text: &str,
) -> Result<T, ConvertError> {
    text.parse().map_err(|error| ConvertError::new(field, error))
}

/// Like [`parse`], with nothing for an empty text.
///
/// # Errors
/// When the text breaks the rules of the type.
pub fn parse_optional<T: std::str::FromStr<Err: std::fmt::Display>>(
    field: &'static str,
    text: &str,
) -> Result<Option<T>, ConvertError> {
    if text.is_empty() { Ok(None) } else { parse(field, text).map(Some) }
}

/// A document of the model's schema as it travels.
pub fn document<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("model types have text keys only, so they always serialise")
}

/// A document from the wire.
///
/// # Errors
/// When it does not fit the schema.
pub fn from_document<T: DeserializeOwned>(field: &'static str, text: &str) -> Result<T, ConvertError> {
    serde_json::from_str(text).map_err(|error| ConvertError::new(field, error))
}

/// 32 bytes of an id.
///
/// # Errors
/// When there are more or fewer.
pub fn id_bytes(field: &'static str, bytes: &[u8]) -> Result<[u8; 32], ConvertError> {
    bytes.try_into().map_err(|_| ConvertError::new(field, format!("has {} bytes, an id has 32", bytes.len())))
}

impl From<&Failure> for v1::Failure {
    fn from(failure: &Failure) -> Self {
        Self {
            code: failure.code.to_string(),
            message: failure.message.clone(),
            why: failure.why.clone(),
            now: failure.now.clone().unwrap_or_default(),
            next: failure.next.clone(),
        }
    }
}

impl From<v1::Failure> for Failure {
    fn from(failure: v1::Failure) -> Self {
        Self {
            code: failure.code.parse().unwrap_or(ErrorCode::Internal),
            message: failure.message,
            why: failure.why,
            now: Some(failure.now).filter(|now| !now.is_empty()),
            next: failure.next,
        }
        .bounded()
    }
}

/// Both ways between the two, which have the same fields.
macro_rules! same_fields {
    ($($field:ident),*) => {
        impl From<&Progress> for v1::Progress {
            fn from(progress: &Progress) -> Self {
                let progress = progress.clone();
                Self { $($field: progress.$field),* }
            }
        }

        impl From<v1::Progress> for Progress {
            fn from(progress: v1::Progress) -> Self {
                Self { $($field: progress.$field),* }
            }
        }
    };
}

same_fields!(
    stage,
    bytes_total,
    bytes_done,
    bytes_read,
    files_total,
    files_done,
    files_unchanged,
    blobs_new,
    bytes_new,
    bytes_stored,
    unreadable
);

impl From<&LogLine> for v1::LogLine {
    fn from(line: &LogLine) -> Self {
        let level = match line.level {
            LogLevel::Debug => v1::LogLevel::Debug,
            LogLevel::Info => v1::LogLevel::Info,
            LogLevel::Warning => v1::LogLevel::Warning,
            LogLevel::Error => v1::LogLevel::Error,
        };
        Self {
            at: Some(timestamp(line.at)),
            attempt: line.attempt.0,
            level: level.into(),
            text: line.text.clone(),
        }
    }
}

impl TryFrom<v1::LogLine> for LogLine {
    type Error = ConvertError;

    fn try_from(line: v1::LogLine) -> Result<Self, ConvertError> {
        let level = match line.level() {
            v1::LogLevel::Debug => LogLevel::Debug,
            v1::LogLevel::Info => LogLevel::Info,
            v1::LogLevel::Warning => LogLevel::Warning,
            v1::LogLevel::Error => LogLevel::Error,
            v1::LogLevel::Unspecified => return Err(ConvertError::new("level", "is not given")),
        };
        let at = from_timestamp("at", &required("at", line.at)?)?;
        Ok(Self { at, attempt: Attempt(line.attempt), level, text: line.text })
    }
}

impl From<&Run> for v1::Run {
    fn from(run: &Run) -> Self {
        let (warnings, failure) = match &run.state.phase {
            Phase::Succeeded { warnings } => (*warnings, None),
            Phase::Failed(failure) | Phase::Skipped(failure) => (0, Some(failure.into())),
            _ => (0, None),
        };
        let text = |value: Option<String>| value.unwrap_or_default();
        Self {
            id: run.id.to_string(),
            kind: run.spec.kind().to_string(),
            spec_json: document(&run.spec),
            source: text(run.spec.source().map(ToString::to_string)),
            repository: text(run.spec.repository().map(ToString::to_string)),
            agent: text(run.agent.as_ref().map(ToString::to_string)),
            phase: run.state.phase.as_str().to_owned(),
            intent: match run.state.intent {
                Intent::Finish => "finish".to_owned(),
                Intent::Cancel => "cancel".to_owned(),
            },
            attempt: run.state.attempt.0,
            requested_by: run.requested_by.clone(),
            queued_at: Some(timestamp(run.queued_at)),
            started_at: run.started_at.map(timestamp),
            ended_at: run.ended_at.map(timestamp),
            waiting_for: text(run.waiting_for.clone()),
            snapshot_id: text(run.snapshot.map(|id| id.to_string())),
            warnings,
            failure,
            progress: Some((&run.progress).into()),
            restored_json: text(run.restored.as_ref().map(document)),
            findings: run.findings.clone(),
            retry_of: text(run.retry_of.map(|id| id.to_string())),
            trace_id: text(run.traceparent.as_deref().and_then(trace_id).map(str::to_owned)),
            slot_at: run.slot.as_ref().map(|slot| timestamp(slot.at)),
        }
    }
}

/// The trace id within a W3C `traceparent`.
fn trace_id(traceparent: &str) -> Option<&str> {
    traceparent.split('-').nth(1).filter(|id| id.len() == 32)
}

/// A reference to a run and its attempt.
///
/// # Errors
/// When the id is not one.
pub fn run_ref(run: Option<&v1::RunRef>) -> Result<(RunId, Attempt), ConvertError> {
    let run = run.ok_or_else(|| ConvertError::new("run", "is missing"))?;
    Ok((parse("run_id", &run.run_id)?, Attempt(run.attempt)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_another_process_is_as_long_as_ours_can_be() {
        let long = "ü".repeat(1 << 20);
        let wire = v1::Failure {
            code: ErrorCode::ToolFailed.to_string(),
            message: long.clone(),
            why: vec![long.clone(); 1000],
            now: long.clone(),
            next: vec![long; 1000],
        };
        let failure = Failure::from(wire);
        assert_eq!((failure.why.len(), failure.next.len()), (8, 8));
        let texts = failure.why.iter().chain(&failure.next).chain(&failure.now).chain([&failure.message]);
        for text in texts {
            assert!(text.len() <= 4096 && text.len() > 4090 && text.ends_with("ü…"), "{} bytes", text.len());
        }
        let short = Failure::new(ErrorCode::ToolFailed, "pg_dump ended with 1").because("no room").then("df");
        assert_eq!(Failure::from(v1::Failure::from(&short)), short);
    }
}
