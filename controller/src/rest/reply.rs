//! The form of answers: one envelope for what was asked, one for what went wrong.

use std::time::Duration;

use axum::body::Body;
use holdfast_model::fleet::API;
use holdfast_model::{Category, ErrorCode, Failure};
use http::{HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::routes::Route;

/// What a browser lets a page do: be looked at, with the style that is in it.
const PAGE_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; form-action 'none'; sandbox";

/// An answer.
pub(crate) enum Reply {
    /// Items in the envelope.
    Items {
        /// What was asked.
        items: Vec<Value>,
        /// Where the next page begins.
        next_cursor: Option<String>,
        /// Where what was made can be looked at.
        location: Option<String>,
    },
    /// What would be done, where the route could also do it.
    Plan(Value),
    /// A document that is no list.
    Document(&'static str, String),
    /// A page: it brings its look with it, and may do nothing.
    Page(&'static str, String),
    /// Something else.
    Other(Response<Body>),
}

impl Reply {
    /// Items that are all there are.
    pub(crate) fn items<T: Serialize>(items: impl IntoIterator<Item = T>) -> Self {
        let items = items.into_iter().map(value).collect();
        Self::Items { items, next_cursor: None, location: None }
    }

    /// One item.
    pub(crate) fn item<T: Serialize>(item: T) -> Self {
        Self::items([item])
    }

    pub(super) fn into_response(self, route: &Route, now: Timestamp) -> Response<Body> {
        match self {
            Self::Other(response) => response,
            Self::Document(content_type, text) => response(StatusCode::OK, content_type, text),
            Self::Page(content_type, text) => {
                let mut response = response(StatusCode::OK, content_type, text);
                let policy = HeaderValue::from_static(PAGE_POLICY);
                response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
                response
            }
            Self::Plan(item) => {
                let kind = route.plan.map_or(route.kind, |plan| plan.kind);
                response(StatusCode::OK, "application/json", envelope(kind, now, vec![item]).to_string())
            }
            Self::Items { items, next_cursor, location } => {
                let mut document = envelope(route.kind, now, items);
                if let Some(cursor) = next_cursor {
                    document["next_cursor"] = cursor.into();
                }
                let status = StatusCode::from_u16(route.status).unwrap_or(StatusCode::OK);
                let mut response = response(status, "application/json", document.to_string());
                let location = location.and_then(|path| HeaderValue::from_str(&path).ok());
                response.headers_mut().extend(location.map(|path| (header::LOCATION, path)));
                response
            }
        }
    }
}

fn envelope(kind: &str, now: Timestamp, items: Vec<Value>) -> Value {
    json!({ "api": API, "kind": kind, "generated_at": now, "items": items })
}

/// A view as JSON.
pub(crate) fn value<T: Serialize>(view: T) -> Value {
    serde_json::to_value(view).expect("views have text keys only, so they always serialise")
}

fn response(status: StatusCode, content_type: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// What is answered instead of what was asked.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The status.
    pub(crate) status: StatusCode,
    /// Why.
    pub(crate) failure: Failure,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self { status: status_of(failure.code), failure }
    }
}

impl Refusal {
    /// The answer was not there in time.
    pub(super) fn slow(limit: Duration) -> Self {
        let message = format!("no answer within {} s", limit.as_secs());
        Self { status: StatusCode::GATEWAY_TIMEOUT, failure: Failure::new(ErrorCode::WatchTimeout, message) }
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let document = json!({ "error": value(&self.failure) });
        let mut response = response(self.status, "application/json", document.to_string());
        let more = match self.status {
            StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, "Bearer realm=\"holdfast\"")),
            StatusCode::SERVICE_UNAVAILABLE => Some((header::RETRY_AFTER, "1")),
            _ => None,
        };
        let more = more.map(|(name, value)| (name, HeaderValue::from_static(value)));
        response.headers_mut().extend(more);
        response
    }
}

/// The one table of error code and HTTP status.
pub(crate) fn status_of(code: ErrorCode) -> StatusCode {
    match (code, code.category()) {
        (ErrorCode::NotAuthenticated, _) => StatusCode::UNAUTHORIZED,
        (ErrorCode::QueueFull, _) | (_, Category::Unreachable) => StatusCode::SERVICE_UNAVAILABLE,
        (ErrorCode::RecordTooLarge, _) => StatusCode::PAYLOAD_TOO_LARGE,
        (_, Category::Usage) => StatusCode::BAD_REQUEST,
        (_, Category::NotFound) => StatusCode::NOT_FOUND,
        (_, Category::Denied) => StatusCode::FORBIDDEN,
        (_, Category::Conflict) => StatusCode::CONFLICT,
        (_, Category::NeedsConfirmation) => StatusCode::PRECONDITION_REQUIRED,
        (_, Category::Timeout) => StatusCode::GATEWAY_TIMEOUT,
        (_, Category::Failed | Category::Partial | Category::DataBad) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
