//! Channels: by which way people are told, as declared in the fleet files.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Language;
use crate::secret::SecretRef;
use crate::units::Span;

/// The longest template, in bytes.
pub const TEMPLATE_BYTES_MAX: usize = 16 << 10;

/// A channel, as declared. Its name is its key there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ChannelDocument", into = "ChannelDocument")]
pub struct Channel {
    /// The language of what it is told.
    pub language: Language,
    /// By which way.
    pub way: Way,
}

/// By which way a channel is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// A robot of a DingTalk group.
    Dingtalk {
        /// Its address, with the token.
        webhook: SecretRef,
        /// What signs the requests, when the robot demands it.
        secret: Option<SecretRef>,
        /// Telephone numbers of people who are called by name.
        at_mobiles: Vec<String>,
        /// Whether everybody is called.
        at_all: bool,
        /// A word that the robot demands in every message.
        keyword: Option<String>,
    },
    /// An incoming webhook of Slack.
    Slack {
        /// Its address.
        webhook: SecretRef,
    },
    /// Mail.
    Email {
        /// To whom.
        to: Vec<String>,
        /// From whom; without it `holdfast@` and the name of the controller's host.
        from: Option<String>,
        /// By which server.
        smtp: Smtp,
    },
    /// A signed request to an address of one's own.
    Webhook {
        /// The address.
        url: String,
        /// What signs the requests.
        signing_key: Option<SecretRef>,
        /// The body, as a template; without it the documented JSON.
        template: Option<String>,
    },
    /// The log of the controller.
    Log,
    /// A sign of life at an address that raises the alarm when there is none.
    Ping {
        /// The address.
        url: SecretRef,
        /// How often.
        every: Span,
    },
}

/// What kind of channel it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChannelType {
    /// A robot of a DingTalk group.
    Dingtalk,
    /// An incoming webhook of Slack.
    Slack,
    /// Mail.
    Email,
    /// A signed request to an address of one's own.
    Webhook,
    /// The log of the controller.
    Log,
    /// A sign of life at an address that raises the alarm when there is none.
    Ping,
}

impl ChannelType {
    /// The word used in files and output.
    pub fn as_str(self) -> &'static str {
        match self {
            ChannelType::Dingtalk => "dingtalk",
            ChannelType::Slack => "slack",
            ChannelType::Email => "email",
            ChannelType::Webhook => "webhook",
            ChannelType::Log => "log",
            ChannelType::Ping => "ping",
        }
    }
}

impl fmt::Display for ChannelType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A mail server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Smtp {
    /// Its name.
    pub host: String,
    /// Its port; without it 587, or 465 with `tls: implicit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// How the connection is protected.
    #[serde(default)]
    pub tls: SmtpTls,
    /// Certificates of authorities to trust instead of those of the system, PEM, on the controller's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The name to log in with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
}

/// How a connection to a mail server is protected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SmtpTls {
    /// By STARTTLS, or not at all: then nothing is sent.
    #[default]
    Required,
    /// From the first byte.
    Implicit,
    /// Not at all; only to this host itself.
    None,
}

/// A channel as it is written: one flat map, in which each type has keys of its own.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Channel")]
pub struct ChannelDocument {
    /// What kind of channel it is.
    #[serde(rename = "type")]
    pub channel_type: ChannelType,
    /// The language of what it is told.
    #[serde(default, skip_serializing_if = "is_english")]
    pub language: Language,
    /// dingtalk, slack: the address, which is a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<SecretRef>,
    /// dingtalk: what signs the requests (`SEC…`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretRef>,
    /// dingtalk: telephone numbers of people who are called by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_mobiles: Option<Vec<String>>,
    /// dingtalk: whether everybody is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_all: Option<bool>,
    /// dingtalk: a word that the robot demands in every message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyword: Option<String>,
    /// email: to whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<String>>,
    /// email: from whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// email: by which server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smtp: Option<Smtp>,
    /// webhook: the address as text; ping: the address, which is a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<Address>,
    /// webhook: what signs the requests (`whsec_…`, or any text).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<SecretRef>,
    /// webhook: the body, as a template; without it the documented JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// ping: how often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,
}

/// An address that is written down, or that is a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Address {
    /// Written down.
    Plain(String),
    /// A secret.
    Secret(SecretRef),
}

fn is_english(language: &Language) -> bool {
    *language == Language::English
}

/// A channel whose keys do not fit its type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidChannel {
    /// A key that the type needs is missing.
    #[error("a channel with type {0} needs `{1}`")]
    Missing(ChannelType, &'static str),
    /// A key belongs to another type.
    #[error("`{1}` does not apply to a channel with type {0}")]
    Foreign(ChannelType, &'static str),
    /// The address of a ping or a robot lets whoever knows it speak for us.
    #[error("`url` of a channel with type ping is a secret: give a reference, such as {{ file: PATH }}")]
    PlainUrl,
    /// The address of a webhook is no secret: its signing key is.
    #[error("`url` of a channel with type webhook is written as text; what is secret is `signing_key`")]
    SecretUrl,
    /// An address that is not one.
    #[error("`url` is {0:?}: https://HOST/PATH is needed, without a name and password in it")]
    Url(String),
    /// Not an address of mail.
    #[error("`{0}` has {1:?}, which is not a mail address")]
    Mail(&'static str, String),
    /// Not a telephone number.
    #[error("`at_mobiles` has {0:?}: digits are needed, with a `+` before them at most")]
    Mobile(String),
    /// A list or a text that must not be empty is, or is too long.
    #[error("`{0}` is empty or too long")]
    Length(&'static str),
    /// A password without protection.
    #[error("`smtp.tls` is none: that is possible only with the host localhost, 127.0.0.1 or ::1")]
    PlainMail,
    /// A name without a password, or the other way round.
    #[error("`smtp.user` and `smtp.password` are given both, or neither")]
    HalfLogin,
}

impl TryFrom<ChannelDocument> for Channel {
    type Error = InvalidChannel;

    fn try_from(document: ChannelDocument) -> Result<Self, InvalidChannel> {
        use ChannelType::{Dingtalk, Email, Log, Ping, Slack, Webhook};
        let of = document.channel_type;
        let given: [(&'static str, bool, &[ChannelType]); 12] = [
            ("webhook", document.webhook.is_some(), &[Dingtalk, Slack]),
            ("secret", document.secret.is_some(), &[Dingtalk]),
            ("at_mobiles", document.at_mobiles.is_some(), &[Dingtalk]),
            ("at_all", document.at_all.is_some(), &[Dingtalk]),
            ("keyword", document.keyword.is_some(), &[Dingtalk]),
            ("to", document.to.is_some(), &[Email]),
            ("from", document.from.is_some(), &[Email]),
            ("smtp", document.smtp.is_some(), &[Email]),
            ("url", document.url.is_some(), &[Webhook, Ping]),
            ("signing_key", document.signing_key.is_some(), &[Webhook]),
            ("template", document.template.is_some(), &[Webhook]),
            ("every", document.every.is_some(), &[Ping]),
        ];
        for (key, given, types) in given {
            if given && !types.contains(&of) {
                return Err(InvalidChannel::Foreign(of, key));
            }
        }
        let missing = |key| InvalidChannel::Missing(of, key);
        let way = match of {
            Dingtalk => {
                dingtalk(document.webhook.ok_or(missing("webhook"))?, document.secret, document.at_mobiles)
                    .map(|mut way| {
                        if let Way::Dingtalk { at_all, keyword, .. } = &mut way {
                            *at_all = document.at_all.unwrap_or(false);
                            *keyword = document.keyword;
                        }
                        way
                    })?
            }
            Slack => Way::Slack { webhook: document.webhook.ok_or(missing("webhook"))? },
            Email => email(
                document.to.ok_or(missing("to"))?,
                document.from,
                document.smtp.ok_or(missing("smtp"))?,
            )?,
            Webhook => {
                let url = match document.url.ok_or(missing("url"))? {
                    Address::Plain(url) => url,
                    Address::Secret(_) => return Err(InvalidChannel::SecretUrl),
                };
                check_url(&url)?;
                if document
                    .template
                    .as_ref()
                    .is_some_and(|text| !(1..=TEMPLATE_BYTES_MAX).contains(&text.len()))
                {
                    return Err(InvalidChannel::Length("template"));
                }
                Way::Webhook { url, signing_key: document.signing_key, template: document.template }
            }
            Log => Way::Log,
            Ping => match document.url.ok_or(missing("url"))? {
                Address::Plain(_) => return Err(InvalidChannel::PlainUrl),
                Address::Secret(url) => {
                    Way::Ping { url, every: document.every.unwrap_or(Span::from_mins(1)) }
                }
            },
        };
        Ok(Channel { language: document.language, way })
    }
}

fn dingtalk(
    webhook: SecretRef,
    secret: Option<SecretRef>,
    at_mobiles: Option<Vec<String>>,
) -> Result<Way, InvalidChannel> {
    let at_mobiles = at_mobiles.unwrap_or_default();
    let digits = |number: &str| {
        let number = number.strip_prefix('+').unwrap_or(number);
        (3..=20).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit() || b == b'-')
    };
    if let Some(wrong) = at_mobiles.iter().find(|number| !digits(number)) {
        return Err(InvalidChannel::Mobile(wrong.chars().take(40).collect()));
    }
    Ok(Way::Dingtalk { webhook, secret, at_mobiles, at_all: false, keyword: None })
}

fn email(to: Vec<String>, from: Option<String>, smtp: Smtp) -> Result<Way, InvalidChannel> {
    if !(1..=100).contains(&to.len()) {
        return Err(InvalidChannel::Length("to"));
    }
    let wrong = |address: &&String| !is_mail_address(address);
    let shown = |address: &String| address.chars().take(80).collect();
    if let Some(address) = to.iter().find(wrong) {
        return Err(InvalidChannel::Mail("to", shown(address)));
    }
    if let Some(address) = from.iter().find(wrong) {
        return Err(InvalidChannel::Mail("from", shown(address)));
    }
    if smtp.host.is_empty() || smtp.host.len() > 253 {
        return Err(InvalidChannel::Length("smtp.host"));
    }
    if smtp.tls == SmtpTls::None && !matches!(smtp.host.as_str(), "localhost" | "127.0.0.1" | "::1") {
        return Err(InvalidChannel::PlainMail);
    }
    if smtp.user.is_some() != smtp.password.is_some() {
        return Err(InvalidChannel::HalfLogin);
    }
    Ok(Way::Email { to, from, smtp })
}

/// One `@` with something on both sides, and nothing that could end a header line.
fn is_mail_address(text: &str) -> bool {
    let plain = text.len() <= 254 && text.chars().all(|c| !c.is_whitespace() && !c.is_control());
    let parts = text.split_once('@');
    plain && parts.is_some_and(|(name, host)| !name.is_empty() && !host.is_empty() && !host.contains('@'))
}

/// Where it leads is judged when it is used: names lead elsewhere from one day to the next.
fn check_url(url: &str) -> Result<(), InvalidChannel> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let host = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    let plain = url.len() <= 2000 && url.chars().all(|c| c.is_ascii_graphic() && c != '\\');
    match host {
        Some(host) if plain && !host.is_empty() && !host.contains('@') => Ok(()),
        _ => Err(InvalidChannel::Url(without_login(url))),
    }
}

/// What may be shown of an address that may hold a password.
fn without_login(url: &str) -> String {
    let shown: String = url.chars().take(80).collect();
    match shown.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => shown,
    }
}

impl From<Channel> for ChannelDocument {
    fn from(channel: Channel) -> Self {
        let mut document = ChannelDocument {
            channel_type: channel.channel_type(),
            language: channel.language,
            webhook: None,
            secret: None,
            at_mobiles: None,
            at_all: None,
            keyword: None,
            to: None,
            from: None,
            smtp: None,
            url: None,
            signing_key: None,
            template: None,
            every: None,
        };
        match channel.way {
            Way::Dingtalk { webhook, secret, at_mobiles, at_all, keyword } => {
                document.webhook = Some(webhook);
                document.secret = secret;
                document.at_mobiles = Some(at_mobiles).filter(|numbers| !numbers.is_empty());
                document.at_all = Some(at_all).filter(|all| *all);
                document.keyword = keyword;
            }
            Way::Slack { webhook } => document.webhook = Some(webhook),
            Way::Email { to, from, smtp } => {
                document.to = Some(to);
                document.from = from;
                document.smtp = Some(smtp);
            }
            Way::Webhook { url, signing_key, template } => {
                document.url = Some(Address::Plain(url));
                document.signing_key = signing_key;
                document.template = template;
            }
            Way::Log => {}
            Way::Ping { url, every } => {
                document.url = Some(Address::Secret(url));
                document.every = Some(every);
            }
        }
        document
    }
}

impl Channel {
    /// What kind it is.
    pub fn channel_type(&self) -> ChannelType {
        match self.way {
            Way::Dingtalk { .. } => ChannelType::Dingtalk,
            Way::Slack { .. } => ChannelType::Slack,
            Way::Email { .. } => ChannelType::Email,
            Way::Webhook { .. } => ChannelType::Webhook,
            Way::Log => ChannelType::Log,
            Way::Ping { .. } => ChannelType::Ping,
        }
    }

    /// Whether it takes messages; a ping only says that somebody is there.
    pub fn takes_messages(&self) -> bool {
        !matches!(self.way, Way::Ping { .. })
    }
}
