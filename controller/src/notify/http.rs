//! Requests of notifications: one try each, no redirects, little time, little of the answer.

use std::time::Duration;

use futures::StreamExt as _;
use reqwest::redirect::Policy;

use super::DeliveryError;
use super::address::{Network, destination};

/// How long one request may take in all.
const DEADLINE: Duration = Duration::from_secs(10);

/// How much of an answer is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// What to send: no body makes it a GET.
pub(super) struct Request<'a> {
    pub(super) url: &'a str,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Option<String>,
}

/// Sends one request to an address that was looked up and judged.
///
/// # Errors
/// When it may not be sent there, or nothing was answered. An answer is no error, whatever it says.
pub(super) async fn send(request: Request<'_>, allowed: &[Network]) -> Result<Answer, DeliveryError> {
    let sent = tokio::time::timeout(DEADLINE, send_inner(request, allowed)).await;
    sent.unwrap_or_else(|_| {
        Err(DeliveryError::Unreachable(format!("there was no answer within {} seconds", DEADLINE.as_secs())))
    })
}

async fn send_inner(request: Request<'_>, allowed: &[Network]) -> Result<Answer, DeliveryError> {
    let to = destination(request.url, allowed).await?;
    holdfast_runtime::tls::install_crypto_provider();
    let mut client = reqwest::Client::builder()
        .redirect(Policy::none())
        .no_proxy()
        .referer(false)
        .user_agent(concat!("holdfast/", env!("CARGO_PKG_VERSION")));
    if let Some(host) = to.url.host_str() {
        client = client.resolve_to_addrs(host, &to.addresses);
    }
    let client = client.build().map_err(|error| unreachable(&error))?;
    let mut sent = match request.body {
        None => client.get(to.url),
        Some(body) => client.post(to.url).body(body),
    };
    for (name, value) in request.headers {
        sent = sent.header(name, value);
    }
    let answer = sent.send().await.map_err(|error| unreachable(&error))?;
    let status = answer.status().as_u16();
    let mut body = Vec::new();
    let mut parts = answer.bytes_stream();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|error| unreachable(&error))?;
        let room = ANSWER_BYTES_MAX - body.len();
        body.extend_from_slice(&part[..part.len().min(room)]);
        if body.len() == ANSWER_BYTES_MAX {
            break;
        }
    }
    Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
}

/// The causes, without the address: it may be a secret.
fn unreachable(error: &reqwest::Error) -> DeliveryError {
    let mut text =
        if error.is_connect() { "no connection".to_owned() } else { "the request failed".to_owned() };
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    DeliveryError::Unreachable(text)
}

impl Answer {
    /// The answer in one line, cut.
    pub(super) fn shown(&self) -> String {
        let body: String =
            self.body.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
        format!("HTTP {} {}", self.status, body.trim()).trim_end().to_owned()
    }

    /// What the status says; what is in the body is for the channel to judge.
    ///
    /// # Errors
    /// When it is none of success.
    pub(super) fn check(&self) -> Result<(), DeliveryError> {
        match self.status {
            200..=299 => Ok(()),
            429 => Err(DeliveryError::Throttled(self.shown())),
            300..=399 => {
                Err(DeliveryError::Unreachable(format!("{}: redirects are not followed", self.shown())))
            }
            // What this says of the message would be said of it for ever.
            400 | 405 | 406 | 411 | 413 | 414 | 415 | 422 => Err(DeliveryError::Refused(self.shown())),
            _ => Err(DeliveryError::Unreachable(self.shown())),
        }
    }
}
