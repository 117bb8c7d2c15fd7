//! What each kind of channel is sent. Pure: messages in, text out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use holdfast_model::alert::render::{Rendered, render};
use holdfast_model::alert::{Channel, Language, Message, MessageKind, Severity, Way};
use holdfast_model::report::form::{self, html_text};
use holdfast_model::report::page::page;
use serde_json::{Value, json};
use sha2::Sha256;

use super::{DeliveryError, template};

mod report;

/// The longest text of one request, in bytes: DingTalk takes 20,000.
const TEXT_BYTES_MAX: usize = 18_000;

/// Alerts that one message of Slack names: it takes fifty blocks.
const SLACK_ALERTS_MAX: usize = 40;

/// `HMAC-SHA256`, in base64.
pub(super) fn sign(key: &[u8], text: &[u8]) -> String {
    let mut mac = <Hmac<Sha256>>::new_from_slice(key).expect("a key of any length is taken");
    mac.update(text);
    STANDARD.encode(mac.finalize().into_bytes())
}

/// What DingTalk wants behind the address: the moment and its signature.
pub(super) fn dingtalk_signature(secret: &str, unix_millis: i64) -> String {
    let signature = sign(secret.as_bytes(), format!("{unix_millis}\n{secret}").as_bytes());
    let mut escaped = String::new();
    for byte in signature.bytes() {
        match byte {
            b'+' => escaped.push_str("%2B"),
            b'/' => escaped.push_str("%2F"),
            b'=' => escaped.push_str("%3D"),
            other => escaped.push(char::from(other)),
        }
    }
    format!("timestamp={unix_millis}&sign={escaped}")
}

/// The signature of a webhook, by the rules of Standard Webhooks.
pub(super) fn webhook_signature(key: &str, id: &str, unix_seconds: i64, body: &str) -> String {
    let decoded = key.strip_prefix("whsec_").and_then(|coded| STANDARD.decode(coded).ok());
    let key = decoded.unwrap_or_else(|| key.as_bytes().to_vec());
    format!("v1,{}", sign(&key, format!("{id}.{unix_seconds}.{body}").as_bytes()))
}

fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = text.floor_char_boundary(bytes_max - 4);
        text.truncate(end);
        text.push_str("\n…");
    }
    text
}

/// Characters that Markdown gives a meaning are taken as they are.
fn markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '#' | '~' | '|' | '!') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

fn next_word(language: Language) -> &'static str {
    match language {
        Language::English => "next",
        Language::Chinese => "下一步",
    }
}

/// Whether people are called by name for it: not because something is over.
fn calls_people(messages: &[Message]) -> bool {
    messages.iter().any(|message| {
        !matches!(message.kind, MessageKind::Recovered | MessageKind::Test | MessageKind::Report)
    })
}

/// That there are more alerts than are named, and how to see them; nothing when there are not.
fn and_more(number: usize, language: Language) -> Option<String> {
    (number > 0).then(|| match language {
        Language::English => format!("and {number} more: holdfast alert list"),
        Language::Chinese => format!("另有 {number} 项：holdfast alert list"),
    })
}

/// How many of these messages make one text, one at least. A report is a text of its own.
pub(super) fn dingtalk_fitting<'a>(
    messages: impl IntoIterator<Item = &'a Message>,
    channel: &Channel,
    environment: &str,
) -> usize {
    let (mut count, mut bytes) = (0, 0);
    for message in messages {
        bytes += dingtalk_text(message, channel.language, environment).len();
        if count > 0 && (bytes > TEXT_BYTES_MAX || message.report.is_some()) {
            break;
        }
        count += 1;
        if message.report.is_some() {
            break;
        }
    }
    count
}

/// The Markdown of a message, with as many of its alerts as one text takes.
fn dingtalk_text(message: &Message, language: Language, environment: &str) -> String {
    const MORE_BYTES: usize = 200;
    if let Some(report) = &message.report {
        return report::dingtalk(report, language, TEXT_BYTES_MAX - MORE_BYTES) + "\n\n";
    }
    let message = render(message, language, environment);
    let mut text = format!("### {}\n\n", markdown(&message.title));
    for (number, section) in message.sections.iter().enumerate() {
        let mut part = String::new();
        if message.sections.len() > 1 {
            part.push_str(&format!("**{}**\n\n", markdown(&section.heading)));
        }
        for (label, line) in &section.lines {
            part.push_str(&format!("- **{label}**: {}\n", markdown(line)));
        }
        for next in &section.next {
            part.push_str(&format!("- **{}**: {}\n", next_word(language), markdown(next)));
        }
        if number > 0 && text.len() + part.len() > TEXT_BYTES_MAX - MORE_BYTES {
            text.extend(and_more(message.sections.len() - number, language));
            text.push('\n');
            break;
        }
        text.push_str(&part);
        text.push('\n');
    }
    cut(text, TEXT_BYTES_MAX)
}

/// One Markdown text of several messages, as many as [`dingtalk_fitting`] says: the robot takes few a minute.
pub(super) fn dingtalk(messages: &[Message], channel: &Channel, environment: &str) -> Value {
    let Way::Dingtalk { at_mobiles, at_all, keyword, .. } = &channel.way else { return Value::Null };
    let title =
        messages.first().map_or_else(String::new, |first| render(first, channel.language, environment).title);
    let text: String =
        messages.iter().map(|message| dingtalk_text(message, channel.language, environment)).collect();
    let mut text = cut(text, TEXT_BYTES_MAX);
    if let Some(keyword) = keyword.as_ref().filter(|keyword| !text.contains(*keyword)) {
        text = format!("{text}\n{keyword}\n");
    }
    let calls = calls_people(messages);
    if calls && !at_mobiles.is_empty() {
        // Only who is named in the text is called.
        let names: Vec<String> = at_mobiles.iter().map(|number| format!("@{number}")).collect();
        text = format!("{text}\n{}\n", names.join(" "));
    }
    let mobiles = if calls { at_mobiles.clone() } else { Vec::new() };
    json!({
        "msgtype": "markdown",
        "markdown": { "title": title, "text": text },
        "at": { "atMobiles": mobiles, "isAtAll": *at_all && calls },
    })
}

fn slack_text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A message of blocks, and a text for where those are not shown.
pub(super) fn slack(message: &Message, channel: &Channel, environment: &str) -> Value {
    let rendered = render(message, channel.language, environment);
    if let Some(report) = &message.report {
        return report::slack(report, channel.language);
    }
    let mark = match (message.kind, message.severity()) {
        (MessageKind::Recovered, _) => ":white_check_mark:",
        (_, Severity::Critical) => ":rotating_light:",
        (_, Severity::Warning) => ":warning:",
        (_, Severity::Info) => ":information_source:",
    };
    let title = slack_text(&rendered.title);
    let mut blocks = vec![json!({
        "type": "section",
        "text": { "type": "mrkdwn", "text": cut(format!("{mark} *{title}*"), 2900) },
    })];
    for section in rendered.sections.iter().take(SLACK_ALERTS_MAX) {
        let mut lines = Vec::new();
        if rendered.sections.len() > 1 {
            lines.push(format!("*{}*", slack_text(&section.heading)));
        }
        lines.extend(section.lines.iter().map(|(label, line)| format!("*{label}*  {}", slack_text(line))));
        let next = next_word(channel.language);
        lines.extend(
            section.next.iter().map(|line| format!("*{next}*  `{}`", slack_text(&line.replace('`', "'")))),
        );
        let text = cut(lines.join("\n"), 2900);
        blocks.push(json!({ "type": "section", "text": { "type": "mrkdwn", "text": text } }));
    }
    let left_out = rendered.sections.len().saturating_sub(SLACK_ALERTS_MAX);
    if let Some(text) = and_more(left_out, channel.language) {
        blocks.push(json!({ "type": "section", "text": { "type": "mrkdwn", "text": text } }));
    }
    json!({ "text": title, "blocks": blocks })
}

/// The documented JSON of a webhook; also what a template sees.
pub(super) fn webhook(message: &Message, channel: &Channel, environment: &str) -> Value {
    let language = channel.language;
    let rendered = render(message, language, environment);
    let alerts: Vec<Value> = message
        .alerts
        .iter()
        .map(|alert| {
            json!({
                "id": alert.id,
                "object": { "kind": alert.object.kind.as_str(), "name": alert.object.name },
                "reason": alert.reason,
                "severity": alert.severity.as_str(),
                "since": alert.since,
                "recovered_at": alert.recovered_at,
                "summary": alert.text.summary.get(language),
                "recovered": alert.text.recovered.get(language),
                "why": alert.text.why.as_ref().map(|why| why.get(language)),
                "safe": alert.text.safe.as_ref().map(|safe| safe.get(language)),
                "next": alert.text.next,
                "labels": alert.labels,
                "affected": alert.affected,
            })
        })
        .collect();
    json!({
        "api": holdfast_model::fleet::API,
        "kind": "Notification",
        "id": message.id,
        "event": message.kind.as_str(),
        "severity": message.severity().as_str(),
        "environment": environment,
        "at": message.at,
        "title": rendered.title,
        "text": message_text(message, &rendered, language),
        "alerts": alerts,
        "report": message.report,
    })
}

/// The body of a webhook: by its template, or the documented JSON.
///
/// # Errors
/// When the template does not work for this message.
pub(super) fn webhook_body(
    message: &Message,
    channel: &Channel,
    environment: &str,
) -> Result<String, DeliveryError> {
    let value = webhook(message, channel, environment);
    let Way::Webhook { template: Some(template), .. } = &channel.way else { return Ok(value.to_string()) };
    let made = template::fill(template, &value);
    made.map_err(|error| DeliveryError::Refused(format!("the template does not work: {error}")))
}

/// A message as plain text; a report has more to say than its title.
pub(super) fn message_text(message: &Message, rendered: &Rendered, language: Language) -> String {
    match &message.report {
        Some(report) => form::text(&page(report, language)),
        None => plain_text(rendered, language),
    }
}

/// A message as HTML, for mail.
pub(super) fn message_html(message: &Message, rendered: &Rendered, language: Language) -> String {
    match &message.report {
        Some(report) => form::html(&page(report, language)),
        None => html(rendered, language),
    }
}

/// The message as plain text, for mail and the log.
fn plain_text(rendered: &Rendered, language: Language) -> String {
    let mut text = format!("{}\n", rendered.title);
    for section in &rendered.sections {
        text.push('\n');
        if rendered.sections.len() > 1 {
            text.push_str(&format!("{}\n", section.heading));
        }
        for (label, line) in &section.lines {
            text.push_str(&format!("{label}: {line}\n"));
        }
        for next in &section.next {
            text.push_str(&format!("{}: {next}\n", next_word(language)));
        }
    }
    text
}

/// The message as HTML, for mail: one table for each alert, nothing from elsewhere.
fn html(rendered: &Rendered, language: Language) -> String {
    let mut text = format!(
        "<!DOCTYPE html><html><head><meta charset=\"utf-8\"><title>{0}</title></head><body><h2>{0}</h2>",
        html_text(&rendered.title)
    );
    for section in &rendered.sections {
        text.push_str(&format!("<h3>{}</h3><table>", html_text(&section.heading)));
        for (label, line) in &section.lines {
            text.push_str(&format!(
                "<tr><td><b>{}</b></td><td>{}</td></tr>\n",
                html_text(label),
                html_text(line)
            ));
        }
        for next in &section.next {
            text.push_str(&format!(
                "<tr><td><b>{}</b></td><td><code>{}</code></td></tr>\n",
                next_word(language),
                html_text(next)
            ));
        }
        text.push_str("</table>");
    }
    text.push_str("</body></html>\n");
    text
}

#[cfg(test)]
mod tests;
