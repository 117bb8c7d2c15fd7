//! Alerts, silences, channels and what has become of messages.

use holdfast_proto::v1;
pub(crate) use holdfast_proto::views::{AlertView, SilenceView};
use jiff::Timestamp;
use serde::Serialize;

use super::{dash, filled, moment};
use crate::output::text::plain;
use crate::output::{Column, Record, Tone};

/// The object with its kind, where the name alone would not tell.
pub(crate) fn object(alert: &AlertView) -> String {
    match alert.object_kind.as_str() {
        "source" => plain(&alert.object),
        kind => format!("{kind} {}", plain(&alert.object)),
    }
}

/// The state, and what keeps people from being told.
pub(crate) fn state(alert: &AlertView) -> String {
    let mut words = vec![alert.state.clone()];
    words.extend(alert.acknowledged_by.as_ref().map(|_| "acknowledged".to_owned()));
    words.extend(alert.silenced_until_at.map(|_| "silenced".to_owned()));
    words.extend(alert.follows.map(|id| format!("follows from {id}")));
    words.join(", ")
}

fn tone(alert: &AlertView) -> Tone {
    match (alert.state.as_str(), alert.severity.as_str()) {
        ("recovered", _) => Tone::Good,
        ("failing", "critical") => Tone::Bad,
        ("failing", "warning") => Tone::Warning,
        _ => Tone::Plain,
    }
}

impl Record for AlertView {
    const KIND: &'static str = "Alert";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::right("ALERT", |view, _| view.id.to_string()),
            Column::<Self>::left("SEVERITY", |view, _| view.severity.clone()).toned(tone),
            Column::<Self>::left("OBJECT", |view, _| object(view)),
            Column::<Self>::left("WHAT", |view, _| plain(&view.summary)),
            Column::<Self>::left("SINCE", |view, look| look.time_or(view.since_at, "-")),
            Column::<Self>::left("STATE", |view, _| state(view)),
            Column::<Self>::left("RULE", |view, _| plain(&view.rule)).only_wide(),
            Column::<Self>::left("TOLD", |view, _| dash(Some(&view.told.join(" ")))).only_wide(),
            Column::<Self>::left("OVER", |view, look| look.time_or(view.recovered_at, "-")).only_wide(),
        ]
    }

    fn name(&self) -> String {
        self.id.to_string()
    }
}

impl Record for SilenceView {
    const KIND: &'static str = "Silence";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::right("SILENCE", |view, _| view.name()),
            Column::<Self>::left("MATCH", |view, _| plain(&view.matches.to_string())),
            Column::<Self>::left("UNTIL", |view, look| look.time_or(view.until_at, "-")),
            Column::<Self>::left("REASON", |view, _| plain(&view.reason)),
            Column::<Self>::left("BY", |view, _| dash(view.by.as_deref())),
        ]
    }

    fn name(&self) -> String {
        self.id.map_or_else(|| "declared".to_owned(), |id| id.to_string())
    }
}

/// One channel, and how it does.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ChannelView {
    /// Its name.
    pub name: String,
    /// dingtalk, slack, email, webhook, log or ping.
    #[serde(rename = "type")]
    pub channel_type: String,
    /// en or zh-CN.
    pub language: String,
    /// ok, failing or withheld.
    pub state: String,
    /// Why it is not ok.
    pub problem: Option<String>,
    /// Since when it does not deliver.
    pub failing_since_at: Option<Timestamp>,
    /// Messages that wait.
    pub waiting: u32,
    /// When it last delivered something, since the start of the controller.
    pub delivered_at: Option<Timestamp>,
}

impl From<v1::Channel> for ChannelView {
    fn from(channel: v1::Channel) -> Self {
        Self {
            name: channel.name,
            channel_type: channel.r#type,
            language: channel.language,
            state: channel.state,
            problem: filled(channel.problem),
            failing_since_at: moment(channel.failing_since),
            waiting: channel.waiting,
            delivered_at: moment(channel.delivered_at),
        }
    }
}

impl Record for ChannelView {
    const KIND: &'static str = "Channel";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("CHANNEL", |view, _| view.name.clone()),
            Column::<Self>::left("TYPE", |view, _| view.channel_type.clone()),
            Column::<Self>::left("STATE", |view, _| view.state.clone()).toned(|view| {
                match view.state.as_str() {
                    "ok" => Tone::Good,
                    "withheld" => Tone::Warning,
                    _ => Tone::Bad,
                }
            }),
            Column::<Self>::right("WAITING", |view, _| view.waiting.to_string()),
            Column::<Self>::left("DELIVERED", |view, look| look.time_or(view.delivered_at, "-")),
            Column::<Self>::left("PROBLEM", |view, _| dash(view.problem.as_deref().map(plain).as_deref())),
            Column::<Self>::left("LANGUAGE", |view, _| view.language.clone()).only_wide(),
            Column::<Self>::left("FAILING SINCE", |view, look| look.time_or(view.failing_since_at, "-"))
                .only_wide(),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// What has become of a message.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DeliveryView {
    /// When.
    pub at: Option<Timestamp>,
    /// By which channel.
    pub channel: String,
    /// Which message.
    pub message: String,
    /// Why it was sent.
    pub event: String,
    /// Its title.
    pub title: String,
    /// delivered, failed, given_up or dropped.
    pub outcome: String,
    /// What was answered, or what went wrong.
    pub answer: Option<String>,
    /// How often it was tried.
    pub attempts: u32,
}

impl From<v1::Delivery> for DeliveryView {
    fn from(delivery: v1::Delivery) -> Self {
        Self {
            at: moment(delivery.at),
            channel: delivery.channel,
            message: delivery.message,
            event: delivery.event,
            title: delivery.title,
            outcome: delivery.outcome,
            answer: filled(delivery.answer),
            attempts: delivery.attempts,
        }
    }
}

impl Record for DeliveryView {
    const KIND: &'static str = "Delivery";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("AT", |view, look| look.time_or(view.at, "-")),
            Column::<Self>::left("CHANNEL", |view, _| view.channel.clone()),
            Column::<Self>::left("EVENT", |view, _| view.event.clone()),
            Column::<Self>::left("OUTCOME", |view, _| view.outcome.clone()).toned(|view| {
                match view.outcome.as_str() {
                    "delivered" => Tone::Good,
                    "failed" => Tone::Warning,
                    _ => Tone::Bad,
                }
            }),
            Column::<Self>::right("ATTEMPT", |view, _| view.attempts.to_string()),
            Column::<Self>::left("TITLE", |view, _| plain(&view.title)),
            Column::<Self>::left("ANSWER", |view, _| dash(view.answer.as_deref().map(plain).as_deref())),
            Column::<Self>::left("MESSAGE", |view, _| view.message.clone()).only_wide(),
        ]
    }

    fn name(&self) -> String {
        self.message.clone()
    }
}
