//! Strict reading: what a request says that nobody asked for is an error, not ignored.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use holdfast_model::{ErrorCode, Failure};
use http::{HeaderMap, Uri};
use serde::de::DeserializeOwned;

use super::Rest;
use crate::access::Caller;
use crate::core::Core;

/// Items of a page unless another number was asked for, and at most.
pub(crate) const PAGE_DEFAULT: u32 = 100;
pub(crate) const PAGE_ITEMS: RangeInclusive<u32> = 1..=1000;

/// A request that was let through.
pub(crate) struct Call {
    /// The surface.
    pub(crate) rest: Arc<Rest>,
    /// Who calls.
    pub(crate) caller: Caller,
    /// The values in the path, in order.
    pub(crate) parameters: Vec<String>,
    /// The query.
    pub(crate) query: Query,
    /// The headers.
    pub(crate) headers: HeaderMap,
    /// The body.
    pub(crate) body: Bytes,
}

/// A request that does not make sense.
pub(crate) fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::RequestInvalid, message)
}

impl Call {
    /// The shared parts.
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.rest.core
    }

    /// The only value in the path.
    pub(crate) fn parameter(&self) -> String {
        self.parameters.first().cloned().unwrap_or_default()
    }

    /// The only value in the path, where things have numbers.
    ///
    /// # Errors
    /// `HF-1030` when it is none.
    pub(crate) fn number(&self) -> Result<u64, Failure> {
        let text = self.parameter();
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.then(|| text.parse().ok()).flatten();
        number.ok_or_else(|| invalid(format!("{:?} in the path is not a number", shortened(&text))))
    }

    /// The body as JSON: known keys only, none twice, nothing behind it.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        // A list would be read as the values of an object in order.
        if !self.body.trim_ascii_start().starts_with(b"{") {
            return Err(invalid("the body is not a JSON object"));
        }
        serde_json::from_slice(&self.body).map_err(|error| {
            // It may quote the name of a key; what is no visible character would break out of a line of the log.
            let why: String =
                error.to_string().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
            invalid(format!("the body is not what is asked for: {why}"))
        })
    }

    /// A header as text; empty when it is not there, or no text.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The key under which a request may be repeated.
    pub(crate) fn idempotency_key(&self) -> Result<String, Failure> {
        let mut values = self.headers.get_all("idempotency-key").iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return if self.headers.contains_key("idempotency-key") {
                Err(invalid("the header Idempotency-Key is there more than once"))
            } else {
                Ok(String::new())
            };
        };
        let text = value.to_str().ok().filter(|text| (1..=128).contains(&text.len()));
        text.map(str::to_owned)
            .ok_or_else(|| invalid("Idempotency-Key must be 1 to 128 visible ASCII characters"))
    }

    /// The trace context of the request.
    pub(crate) fn traceparent(&self) -> Option<String> {
        let of_caller = || self.headers.get("traceparent")?.to_str().ok().map(str::to_owned);
        holdfast_runtime::telemetry::traceparent(&tracing::Span::current()).or_else(of_caller)
    }
}

/// A parameter that a query may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// What it may be.
    pub form: Form,
}

/// What a parameter of a query may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Any text.
    Text,
    /// A whole number.
    Number,
    /// `true` or `false`.
    Flag,
}

/// The query of a request.
#[derive(Debug, Default)]
pub(crate) struct Query(BTreeMap<String, String>);

impl Query {
    /// Reads a query that may have these parameters.
    ///
    /// # Errors
    /// `HF-1030` for another parameter, or one that is there twice.
    pub(super) fn read(uri: &Uri, known: &[Parameter]) -> Result<Self, Failure> {
        let pairs: axum::extract::Query<Vec<(String, String)>> =
            axum::extract::Query::try_from_uri(uri).map_err(|_| invalid("the query is not valid"))?;
        let mut values = BTreeMap::new();
        for (name, value) in pairs.0 {
            if !known.iter().any(|parameter| parameter.name == name) {
                let names: Vec<&str> = known.iter().map(|parameter| parameter.name).collect();
                let possible = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                return Err(invalid(format!(
                    "there is no query parameter {:?}; possible: {possible}",
                    shortened(&name)
                )));
            }
            if values.insert(name.clone(), value).is_some() {
                return Err(invalid(format!("the query parameter {name:?} is there more than once")));
            }
        }
        Ok(Self(values))
    }

    /// A text; empty when it is not there.
    pub(crate) fn text(&self, name: &str) -> String {
        self.0.get(name).cloned().unwrap_or_default()
    }

    /// A number within bounds.
    ///
    /// # Errors
    /// `HF-1030`.
    pub(crate) fn number<T>(&self, name: &str, bounds: RangeInclusive<T>, default: T) -> Result<T, Failure>
    where
        T: std::str::FromStr + PartialOrd + std::fmt::Display + Copy,
    {
        let Some(text) = self.0.get(name) else { return Ok(default) };
        let number = text.parse().ok().filter(|number| bounds.contains(number));
        number.ok_or_else(|| {
            invalid(format!(
                "`{name}` is {:?}, {} to {} are possible",
                shortened(text),
                bounds.start(),
                bounds.end()
            ))
        })
    }

    /// A flag; false when it is not there.
    ///
    /// # Errors
    /// `HF-1030`.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Failure> {
        match self.0.get(name).map(String::as_str) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(text) => {
                Err(invalid(format!("`{name}` is {:?}, true and false are possible", shortened(text))))
            }
        }
    }

    /// Where the page before ended, as [`cursor`] wrote it; empty without one.
    ///
    /// # Errors
    /// `HF-1030` for a text that [`cursor`] did not write.
    pub(crate) fn place(&self) -> Result<String, Failure> {
        let Some(text) = self.0.get("cursor") else { return Ok(String::new()) };
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        let place = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        // The order of snapshots: a time and an id in hexadecimal digits.
        let is_place = |place: &String| {
            place.len() == 81
                && place.bytes().enumerate().all(|(at, byte)| {
                    if at == 16 {
                        byte == b'/'
                    } else {
                        byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
                    }
                })
        };
        place.filter(is_place).ok_or_else(|| invalid("`cursor` is not one that an answer gave"))
    }
}

/// A place as it is handed out.
pub(crate) fn cursor(place: &str) -> String {
    URL_SAFE_NO_PAD.encode(place)
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Parameter] = &[
        Parameter { name: "limit", about: "", form: Form::Number },
        Parameter { name: "cursor", about: "", form: Form::Text },
        Parameter { name: "all", about: "", form: Form::Flag },
    ];

    fn read(query: &str) -> Result<Query, Failure> {
        Query::read(&format!("/x?{query}").parse().unwrap(), KNOWN)
    }

    fn message(result: Result<impl std::fmt::Debug, Failure>) -> String {
        let failure = result.unwrap_err();
        assert_eq!(failure.code, ErrorCode::RequestInvalid);
        failure.message
    }

    #[test]
    fn a_query_has_known_parameters_once() {
        assert_eq!(
            message(read("limti=1")),
            "there is no query parameter \"limti\"; possible: limit, cursor, all"
        );
        assert_eq!(message(read("limit=1&limit=2")), "the query parameter \"limit\" is there more than once");
        assert_eq!(read("").unwrap().number("limit", PAGE_ITEMS, PAGE_DEFAULT).unwrap(), 100);
        assert_eq!(read("limit=7").unwrap().number("limit", PAGE_ITEMS, PAGE_DEFAULT).unwrap(), 7);
    }

    #[test]
    fn numbers_have_bounds() {
        for text in ["-1", "0", "1001", "1e9", "1e400", "", "٣", "99999999999999999999"] {
            let limit = read(&format!("limit={text}")).unwrap().number("limit", PAGE_ITEMS, PAGE_DEFAULT);
            assert_eq!(message(limit), format!("`limit` is {text:?}, 1 to 1000 are possible"));
        }
    }

    #[test]
    fn flags_are_true_or_false() {
        assert!(read("all=true").unwrap().flag("all").unwrap());
        assert!(!read("all=false").unwrap().flag("all").unwrap() && !read("").unwrap().flag("all").unwrap());
        for text in ["", "1", "TRUE", "yes"] {
            let flag = read(&format!("all={text}")).unwrap().flag("all");
            assert_eq!(message(flag), format!("`all` is {text:?}, true and false are possible"));
        }
    }

    #[test]
    fn only_cursors_that_were_handed_out_are_taken() {
        let place = format!("{:016x}/{}", 1_700_000_000_000_u64, "ab".repeat(32));
        assert_eq!(read(&format!("cursor={}", cursor(&place))).unwrap().place().unwrap(), place);
        for bad in ["x", "%00", &cursor("../../x"), &cursor(&place.to_uppercase()), &cursor(&place[1..])] {
            let place = read(&format!("cursor={bad}")).unwrap().place();
            assert_eq!(message(place), "`cursor` is not one that an answer gave", "{bad}");
        }
    }
}
