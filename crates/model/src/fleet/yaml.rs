//! YAML, read strictly: unknown keys, keys written twice, secrets in plain text and numbers in surprising notations are
//! errors, each with its line and column, in our words and not in those of a library.

use granit_parser::{Event, Parser, ScalarStyle};
use serde_saphyr::Error;

use super::{FILE_BYTES_MAX, FleetError};
use crate::error_code::ErrorCode;
use crate::text::{count, counted, nearest};

/// Reads one YAML text into a type that refuses unknown keys. Also used for `controller.yaml` and `agent.yaml`.
///
/// # Errors
/// [`FleetError`] with the code of the broken rule, line and column.
pub fn read_yaml<T: serde::de::DeserializeOwned>(file: &str, text: &str) -> Result<T, FleetError> {
    let fail = |code, position, message| FleetError { code, file: file.to_owned(), position, message };
    if text.len() > FILE_BYTES_MAX {
        let (size, limit) = (counted(text.len() as u64, "byte"), count(FILE_BYTES_MAX as u64));
        let message = format!("the file has {size}, the limit is {limit}");
        return Err(fail(ErrorCode::FileInvalid, None, message));
    }
    let options = serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
    };
    let value = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let position = error.location().map(|at| (at.line(), at.column()));
        let (code, message) = in_our_words(&error);
        fail(code, position, message)
    })?;
    match surprising_number(text) {
        None => Ok(value),
        Some((position, number)) => {
            let message = format!(
                "`{number}` is a number to some readers and a text to others: write it in plain digits, or in quotes \
                 where it is a text"
            );
            Err(fail(ErrorCode::FileInvalid, Some(position), message))
        }
    }
}

/// The first plain scalar that is a number in one version of YAML and not in another, or not the number that it looks
/// like: `0x1f`, `0o17`, `0b1`, `017`, `1_000`. (Sexagesimal `1:30` reads as a text everywhere here.)
fn surprising_number(text: &str) -> Option<((u64, u64), String)> {
    for (event, span) in Parser::new_from_str(text).map_while(Result::ok) {
        if let Event::Scalar(value, ScalarStyle::Plain, ..) = event
            && is_surprising(&value)
        {
            let position = (span.start.line() as u64, span.start.col() as u64 + 1);
            return Some((position, value.into_owned()));
        }
    }
    None
}

fn is_surprising(scalar: &str) -> bool {
    let number = scalar.strip_prefix(['-', '+']).unwrap_or(scalar);
    let all = |text: &str, allowed: fn(char) -> bool| !text.is_empty() && text.chars().all(allowed);
    match number.strip_prefix('0') {
        Some(rest) if rest.starts_with(['x', 'X', 'o', 'O', 'b', 'B']) => {
            all(&rest[1..], |c| c.is_ascii_hexdigit() || c == '_')
        }
        Some(rest) if all(rest, |c| c.is_ascii_digit()) => true,
        _ => {
            number.contains('_')
                && number.starts_with(|c: char| c.is_ascii_digit())
                && all(number, |c| c.is_ascii_digit() || c == '_' || c == '.')
        }
    }
}

/// The code of the broken rule, and what is wrong, without the place.
fn in_our_words(error: &Error) -> (ErrorCode, String) {
    let error = error.without_snippet();
    let invalid = |message: String| (ErrorCode::FileInvalid, message);
    match error {
        Error::AliasError { error, .. } => in_our_words(error),
        Error::SerdeUnknownField { field, expected, .. } => {
            let hint = did_you_mean(field, expected);
            let message = format!("unknown key `{field}`{hint}; possible are {}", expected.join(", "));
            (ErrorCode::FileUnknownKey, message)
        }
        Error::SerdeUnknownVariant { expected, .. } if is_secret(&expected.join(", ")) => plain_text_secret(),
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            let hint = did_you_mean(variant, expected);
            invalid(format!("`{variant}` is not possible here{hint}; possible are {}", expected.join(", ")))
        }
        Error::SerdeMissingField { field, .. } => invalid(format!("the key `{field}` is missing")),
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().map_or_else(|| "a key".to_owned(), |key| format!("`{key}`"));
            (ErrorCode::FileDuplicateKey, format!("{key} is written twice"))
        }
        Error::NullIntoString { .. } => invalid(
            "a text is needed: `~` and `null` stand for nothing, unless they are in quotes".to_owned(),
        ),
        Error::InvalidBooleanStrict { .. } => {
            invalid("true or false is needed: `yes`, `no`, `on` and `off` are words here".to_owned())
        }
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. } => {
            invalid("there is too much in it, or its aliases unfold to too much".to_owned())
        }
        other => {
            let text = other.to_string();
            let line = text.lines().next().unwrap_or("not valid YAML");
            let message = line.rsplit_once(" at line ").map_or(line, |(message, _)| message);
            if is_secret(message) { plain_text_secret() } else { invalid(message.to_owned()) }
        }
    }
}

fn did_you_mean(typed: &str, possible: &[&'static str]) -> String {
    nearest(typed, possible.iter().copied())
        .map_or_else(String::new, |near| format!(", did you mean `{near}`?"))
}

/// Whether a secret reference is due: what is there instead is a secret, and must not be repeated.
fn is_secret(message: &str) -> bool {
    message.contains("env, file, command, credential") || message.contains("SecretRef")
}

fn plain_text_secret() -> (ErrorCode, String) {
    let message = "a secret is never written here: give a reference, one of { env: NAME }, { file: PATH }, \
                   { command: [ARGV] }, { credential: NAME }";
    (ErrorCode::PlaintextSecret, message.to_owned())
}

#[cfg(test)]
mod tests;
