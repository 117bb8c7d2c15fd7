//! Tells people: one delivery by one channel. What is told, and what becomes of it when nobody answers, is decided in
//! [`outbox`].

use std::sync::Arc;

use arc_swap::ArcSwap;
use holdfast_model::alert::message::Told;
use holdfast_model::alert::render::render;
use holdfast_model::alert::{
    AlertText, Channel, Message, MessageKind, Object, ObjectKind, Severity, Way, Words,
};
use holdfast_model::fleet::{Fleet, FleetError};
use holdfast_model::ids::ChannelName;
use holdfast_model::secret::{Secret, SecretRef};
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::SharedClock;
use jiff::Timestamp;

pub mod address;
mod body;
mod bucket;
mod email;
mod http;
pub mod liveness;
pub mod outbox;
mod scrub;
mod template;

pub use address::Network;

use crate::config::NotificationsConfig;
use crate::secrets::Secrets;
use http::Request;
use scrub::Scrub;

/// Why something was not delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliveryError {
    /// Nothing may be sent there.
    Denied(String),
    /// Nobody answers, or not well: later may be better.
    Unreachable(String),
    /// Too much was sent in too short a time.
    Throttled(String),
    /// This message is not taken, now or later.
    Refused(String),
}

impl DeliveryError {
    /// What happened.
    pub fn text(&self) -> &str {
        match self {
            DeliveryError::Denied(text)
            | DeliveryError::Unreachable(text)
            | DeliveryError::Throttled(text)
            | DeliveryError::Refused(text) => text,
        }
    }

    fn map(self, change: impl Fn(&str) -> String) -> Self {
        match self {
            DeliveryError::Denied(text) => DeliveryError::Denied(change(&text)),
            DeliveryError::Unreachable(text) => DeliveryError::Unreachable(change(&text)),
            DeliveryError::Throttled(text) => DeliveryError::Throttled(change(&text)),
            DeliveryError::Refused(text) => DeliveryError::Refused(change(&text)),
        }
    }

    /// The error as callers see it.
    pub fn failure(&self, channel: &str) -> Failure {
        let code = match self {
            DeliveryError::Denied(_) => ErrorCode::AddressDenied,
            _ => ErrorCode::NotificationFailed,
        };
        Failure::new(code, format!("channel {channel} did not deliver: {}", self.text()))
            .then(format!("holdfast notify history {channel}"))
    }
}

/// What is wrong with the templates of channels.
pub fn check_templates(fleet: &Fleet) -> Vec<FleetError> {
    let wrong = |(name, channel): (&ChannelName, &Channel)| {
        let Way::Webhook { template: Some(template), .. } = &channel.way else { return None };
        let message = template::check(template).err()?;
        let file = format!("channels.{name}.template");
        Some(FleetError { code: ErrorCode::FileInvalid, file, position: None, message })
    };
    fleet.channels.iter().filter_map(wrong).collect()
}

/// A message that says that nothing is wrong.
pub fn test_message(channel: &ChannelName, at: Timestamp) -> Message {
    let text = AlertText {
        summary: Words::new("tests this channel: nothing is wrong", "正在测试此通知渠道：一切正常"),
        ..AlertText::default()
    };
    let told = Told {
        id: 0,
        object: Object::new(ObjectKind::Controller, "holdfast"),
        reason: "test".to_owned(),
        severity: Severity::Info,
        text,
        labels: Default::default(),
        since: at,
        recovered_at: None,
        affected: 0,
    };
    Message {
        id: format!("test-{}", hex::encode(rand::random::<[u8; 12]>())),
        channel: channel.clone(),
        kind: MessageKind::Test,
        at,
        alerts: vec![told],
        report: None,
    }
}

/// Delivers messages.
pub struct Notifier {
    secrets: Secrets,
    clock: SharedClock,
    settings: ArcSwap<NotificationsConfig>,
}

/// What would be sent, without what is secret.
pub struct Preview {
    /// What kind of text it is.
    pub content_type: &'static str,
    /// The text.
    pub body: String,
}

impl Notifier {
    /// A notifier that resolves secrets in this process.
    pub fn new(secrets: Secrets, clock: SharedClock, settings: NotificationsConfig) -> Self {
        Self { secrets, clock, settings: ArcSwap::from_pointee(settings) }
    }

    /// Delivers by other settings from now on.
    pub fn configure(&self, settings: NotificationsConfig) {
        self.settings.store(Arc::new(settings));
    }

    /// The environment that messages name when no label does.
    pub fn environment(&self) -> String {
        self.settings.load().environment.clone()
    }

    /// How many of these messages are sent as one text, one after the other: one where there is no more than one.
    pub fn fitting<'a>(&self, channel: &Channel, messages: impl IntoIterator<Item = &'a Message>) -> usize {
        match &channel.way {
            Way::Dingtalk { .. } => body::dingtalk_fitting(messages, channel, &self.environment()),
            _ => 1,
        }
    }

    /// What would be sent for a message.
    ///
    /// # Errors
    /// When the message can not be written for this channel.
    pub fn preview(&self, message: &Message, channel: &Channel) -> Result<Preview, DeliveryError> {
        let environment = self.environment();
        let environment = environment.as_str();
        let pretty = |value: &serde_json::Value| serde_json::to_string_pretty(value).unwrap_or_default();
        let json = |body| Preview { content_type: "application/json", body };
        Ok(match &channel.way {
            Way::Dingtalk { .. } => {
                json(pretty(&body::dingtalk(std::slice::from_ref(message), channel, environment)))
            }
            Way::Slack { .. } => json(pretty(&body::slack(message, channel, environment))),
            Way::Webhook { .. } => json(body::webhook_body(message, channel, environment)?),
            Way::Email { to, from, .. } => {
                let mail = email::mail(message, channel, to, from.as_deref(), environment)?;
                let body = String::from_utf8_lossy(&mail.formatted()).into_owned();
                Preview { content_type: "message/rfc822", body }
            }
            Way::Log | Way::Ping { .. } => {
                let rendered = render(message, channel.language, environment);
                let body = body::message_text(message, &rendered, channel.language);
                Preview { content_type: "text/plain", body }
            }
        })
    }

    /// Sends messages by a channel; several only where they make one text. Gives the answer, without secrets.
    ///
    /// # Errors
    /// Says why it was not delivered, without secrets.
    pub async fn deliver(&self, channel: &Channel, messages: &[Message]) -> Result<String, DeliveryError> {
        let mut scrub = Scrub::default();
        let answer = self.deliver_inner(channel, messages, &mut scrub).await;
        let shown = |text: &str| -> String {
            let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            scrub.clean(&plain).chars().take(400).collect()
        };
        answer.map(|answer| shown(&answer)).map_err(|error| error.map(shown))
    }

    async fn deliver_inner(
        &self,
        channel: &Channel,
        messages: &[Message],
        scrub: &mut Scrub,
    ) -> Result<String, DeliveryError> {
        let Some(message) = messages.first() else { return Ok(String::new()) };
        let environment = self.environment();
        let environment = environment.as_str();
        match &channel.way {
            Way::Dingtalk { webhook, secret, .. } => {
                let url = self.url(webhook, scrub).await?;
                let secret = match secret {
                    Some(secret) => Some(self.secret(secret, scrub).await?),
                    None => None,
                };
                let body = body::dingtalk(messages, channel, environment);
                self.dingtalk(&url, secret.as_ref(), &body.to_string()).await
            }
            Way::Slack { webhook } => {
                let url = self.url(webhook, scrub).await?;
                let body = body::slack(message, channel, environment).to_string();
                self.post(url.reveal(), body, Vec::new()).await
            }
            Way::Webhook { url, signing_key, .. } => {
                let body = body::webhook_body(message, channel, environment)?;
                let now = self.clock.now().as_second();
                let mut headers =
                    vec![("webhook-id", message.id.clone()), ("webhook-timestamp", now.to_string())];
                if let Some(key) = signing_key {
                    let key = self.secret(key, scrub).await?;
                    let signature = body::webhook_signature(key.reveal(), &message.id, now, &body);
                    headers.push(("webhook-signature", signature));
                }
                self.post(url, body, headers).await
            }
            Way::Email { to, from, smtp } => {
                let password = match &smtp.password {
                    Some(password) => Some(self.secret(password, scrub).await?),
                    None => None,
                };
                let mail = email::mail(message, channel, to, from.as_deref(), environment)?;
                email::send(mail, smtp, password.as_ref(), &self.settings.load().allow_addresses).await
            }
            Way::Log => {
                let title = render(message, channel.language, environment).title;
                tracing::warn!(channel = %message.channel, event = message.kind.as_str(), "{title}");
                Ok("logged".to_owned())
            }
            Way::Ping { url, .. } => {
                let url = self.url(url, scrub).await?;
                let request = Request { url: url.reveal(), headers: Vec::new(), body: None };
                let answer = http::send(request, &self.settings.load().allow_addresses).await?;
                answer.check()?;
                Ok(answer.shown())
            }
        }
    }

    async fn secret(&self, reference: &SecretRef, scrub: &mut Scrub) -> Result<Secret, DeliveryError> {
        let found = self.secrets.resolve(reference).await;
        let secret = found.map_err(|failure| DeliveryError::Unreachable(failure.to_string()))?;
        scrub.add(&secret);
        Ok(secret)
    }

    async fn url(&self, reference: &SecretRef, scrub: &mut Scrub) -> Result<Secret, DeliveryError> {
        let url = self.secret(reference, scrub).await?;
        scrub.add_url(&url);
        Ok(url)
    }

    async fn post(
        &self,
        url: &str,
        body: String,
        mut headers: Vec<(&'static str, String)>,
    ) -> Result<String, DeliveryError> {
        headers.push(("content-type", "application/json; charset=utf-8".to_owned()));
        let request = Request { url, headers, body: Some(body) };
        let answer = http::send(request, &self.settings.load().allow_addresses).await?;
        answer.check()?;
        Ok(answer.shown())
    }

    /// The robot answers 200 to what it refuses: its word is in the body.
    async fn dingtalk(
        &self,
        url: &Secret,
        secret: Option<&Secret>,
        body: &str,
    ) -> Result<String, DeliveryError> {
        let mut signed = url.reveal().to_owned();
        if let Some(secret) = secret {
            let with = if signed.contains('?') { '&' } else { '?' };
            let now = self.clock.now().as_millisecond();
            signed = format!("{signed}{with}{}", body::dingtalk_signature(secret.reveal(), now));
        }
        let headers = vec![("content-type", "application/json; charset=utf-8".to_owned())];
        let request = Request { url: &signed, headers, body: Some(body.to_owned()) };
        let answer = http::send(request, &self.settings.load().allow_addresses).await?;
        answer.check()?;
        let word: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
        match word["errcode"].as_i64() {
            Some(0) => Ok(answer.shown()),
            Some(130_101 | 410_100 | -1) => Err(DeliveryError::Throttled(answer.shown())),
            _ => Err(DeliveryError::Unreachable(answer.shown())),
        }
    }
}
