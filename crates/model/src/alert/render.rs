//! What a message says, in plain words: a title, and for each alert what is at stake, since when, why, and what to do.
//! How that looks is up to the channel.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::message::{Message, MessageKind, Told};
use super::{Language, ObjectKind, Severity, Words};
use crate::report::page::page;
use crate::text::cut_chars;

/// The longest title, in characters.
const TITLE_CHARS_MAX: usize = 160;

/// The longest line, in characters: errors of tools can be long.
const LINE_CHARS_MAX: usize = 600;

/// A message in plain words. No line has a control character in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// One line: the environment, how bad it is, and what is at stake.
    pub title: String,
    /// One for each alert.
    pub sections: Vec<Section>,
}

/// What is said of one alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// The object and what is at stake.
    pub heading: String,
    /// Label and text of each line.
    pub lines: Vec<(String, String)>,
    /// Commands that work when pasted.
    pub next: Vec<String>,
}

/// A length of time as people say it: `41 min`, `2 h 5 min`, `3 days`.
pub fn length(seconds: i64) -> Words {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if seconds < 60 {
        Words::new(format!("{seconds} s"), format!("{seconds} 秒"))
    } else if minutes < 60 {
        Words::new(format!("{minutes} min"), format!("{minutes} 分钟"))
    } else if hours < 48 {
        match minutes % 60 {
            0 => Words::new(format!("{hours} h"), format!("{hours} 小时")),
            rest => Words::new(format!("{hours} h {rest} min"), format!("{hours} 小时 {rest} 分钟")),
        }
    } else {
        Words::new(format!("{days} days"), format!("{days} 天"))
    }
}

/// A moment as people read it, in UTC.
pub fn moment(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// What a message says. `environment` is named when no label of the alerts says which one it is.
pub fn render(message: &Message, language: Language, environment: &str) -> Rendered {
    if let Some(report) = &message.report {
        let page = page(report, language);
        let title = line(&format!("{}: {}", page.title, page.verdict), TITLE_CHARS_MAX);
        return Rendered { title, sections: Vec::new() };
    }
    let sections = message.alerts.iter().map(|alert| section(message, alert, language)).collect();
    Rendered { title: title(message, language, environment), sections }
}

fn pick(language: Language, en: &str, zh: &str) -> String {
    match language {
        Language::English => en.to_owned(),
        Language::Chinese => zh.to_owned(),
    }
}

/// On one line, without anything that could end a header or move a cursor.
pub(crate) fn line(text: &str, chars_max: usize) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    cut_chars(&plain.split_whitespace().collect::<Vec<_>>().join(" "), chars_max)
}

/// The environment that all alerts are of.
fn environment_of(message: &Message, default: &str) -> String {
    let labels: BTreeSet<&str> =
        message.alerts.iter().map(|alert| alert.labels.get("env").map_or(default, String::as_str)).collect();
    let known: Vec<&str> = labels.into_iter().filter(|label| !label.is_empty()).collect();
    match known.as_slice() {
        [] => "holdfast".to_owned(),
        known => line(&known.join(", "), 40),
    }
}

fn word(message: &Message, language: Language) -> String {
    match (message.kind, message.severity()) {
        (MessageKind::Recovered, _) => pick(language, "RESOLVED", "已恢复"),
        (MessageKind::Test, _) => pick(language, "TEST", "测试"),
        (_, Severity::Critical) => pick(language, "CRITICAL", "严重"),
        (_, Severity::Warning) => pick(language, "WARNING", "警告"),
        (_, Severity::Info) => pick(language, "INFO", "提示"),
    }
}

fn title(message: &Message, language: Language, environment: &str) -> String {
    let environment = environment_of(message, environment);
    let word = word(message, language);
    let again = match message.kind {
        MessageKind::Reminder => pick(language, " (still)", "（仍未恢复）"),
        MessageKind::Escalated => pick(language, " (not acknowledged)", "（未确认）"),
        MessageKind::Worsened => pick(language, " (worse)", "（加重）"),
        _ => String::new(),
    };
    let first = message.alerts.first().map_or(String::new(), |alert| said(message, alert, language));
    let others = message.alerts.len().saturating_sub(1);
    let others = match language {
        _ if others == 0 => String::new(),
        Language::English => format!(" (and {others} more)"),
        Language::Chinese => format!("（另有 {others} 项）"),
    };
    line(&format!("[{environment}] {word}{again}  {first}{others}"), TITLE_CHARS_MAX)
}

/// The object, and what is at stake or over.
fn said(message: &Message, alert: &Told, language: Language) -> String {
    let kind = match alert.object.kind {
        ObjectKind::Source | ObjectKind::Controller => String::new(),
        ObjectKind::Repository => pick(language, "repository ", "存储库 "),
        ObjectKind::Agent => pick(language, "agent ", "代理 "),
        ObjectKind::Channel => pick(language, "channel ", "通知渠道 "),
    };
    let name = &alert.object.name;
    let what = if message.kind == MessageKind::Recovered {
        let after = alert.recovered_at.map(|at| length(at.duration_since(alert.since).as_secs()));
        let after = after.map_or(String::new(), |after| match language {
            Language::English => format!(" after {}", after.en),
            Language::Chinese => format!("，历时 {}", after.zh),
        });
        format!("{}{after}", alert.text.recovered.get(language))
    } else {
        alert.text.summary.get(language).to_owned()
    };
    let affected = match (alert.affected, language) {
        (0, _) => String::new(),
        (1, Language::English) => "; 1 alert follows from it".to_owned(),
        (n, Language::English) => format!("; {n} alerts follow from it"),
        (n, Language::Chinese) => format!("；由此引发 {n} 项告警"),
    };
    format!("{kind}{name} {what}{affected}")
}

fn section(message: &Message, alert: &Told, language: Language) -> Section {
    let mut lines = Vec::new();
    let mut add = |en: &str, zh: &str, text: &str| {
        lines.push((pick(language, en, zh), line(text, LINE_CHARS_MAX)));
    };
    let is_over = message.kind == MessageKind::Recovered;
    if let Some(why) = alert.text.why.as_ref().filter(|_| !is_over) {
        add("why", "原因", why.get(language));
    }
    if let Some(safe) = &alert.text.safe {
        add("safe", "可恢复到", safe.get(language));
    }
    add("since", "开始时间", &moment(alert.since));
    if let Some(at) = alert.recovered_at {
        add("until", "结束时间", &moment(at));
    }
    if let Some(owner) = alert.labels.get("team").or_else(|| alert.labels.get("owner")) {
        add("owner", "负责人", owner);
    }
    if message.kind != MessageKind::Test {
        add("alert", "告警", &format!("{} · {}", alert.id, alert.reason));
    }
    let next =
        if is_over { Vec::new() } else { alert.text.next.iter().map(|next| line(next, 200)).collect() };
    Section { heading: line(&said(message, alert, language), TITLE_CHARS_MAX * 2), lines, next }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::{AlertText, Object};
    use crate::ids::ChannelName;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn told() -> Told {
        Told {
            id: 17,
            object: Object::new(ObjectKind::Source, "pg-ledger"),
            reason: "rpo-breached".to_owned(),
            severity: Severity::Critical,
            text: AlertText {
                summary: Words::new("would lose 41 min (RPO 5 min)", "现在会丢失 41 分钟数据（目标 5 分钟）"),
                recovered: Words::new("is within its RPO again", "已重新满足 RPO"),
                why: Some(Words::same("login refused\r\nBcc: x@y\u{1b}[31m")),
                safe: Some(Words::new("everything up to 02:10:44 UTC", "02:10:44 UTC 之前的全部数据")),
                next: vec!["holdfast status pg-ledger".to_owned()],
            },
            labels: [("env", "prod"), ("team", "payments")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            since: at("2026-06-01T02:10:00Z"),
            recovered_at: None,
            affected: 0,
        }
    }

    fn message(kind: MessageKind, alerts: Vec<Told>) -> Message {
        let channel = ChannelName::new("ops").unwrap();
        Message { id: "1".to_owned(), channel, kind, at: at("2026-06-01T02:13:00Z"), alerts, report: None }
    }

    #[test]
    fn a_failure_answers_what_since_when_why_and_what_next() {
        let rendered = render(&message(MessageKind::Failing, vec![told()]), Language::English, "");
        assert_eq!(rendered.title, "[prod] CRITICAL pg-ledger would lose 41 min (RPO 5 min)");
        let [section] = rendered.sections.as_slice() else { panic!("{rendered:?}") };
        let lines: Vec<String> =
            section.lines.iter().map(|(label, text)| format!("{label}: {text}")).collect();
        assert_eq!(
            lines,
            [
                "why: login refused Bcc: x@y [31m",
                "safe: everything up to 02:10:44 UTC",
                "since: 2026-06-01 02:10 UTC",
                "owner: payments",
                "alert: 17 · rpo-breached"
            ]
        );
        assert_eq!(section.next, ["holdfast status pg-ledger"]);
    }

    #[test]
    fn a_recovery_says_how_long_it_took() {
        let over = Told { recovered_at: Some(at("2026-06-01T03:08:51Z")), ..told() };
        let english = render(&message(MessageKind::Recovered, vec![over.clone()]), Language::English, "");
        assert_eq!(english.title, "[prod] RESOLVED pg-ledger is within its RPO again after 58 min");
        assert_eq!(english.sections[0].next, [""; 0]);
        let chinese = render(&message(MessageKind::Recovered, vec![over]), Language::Chinese, "");
        assert_eq!(chinese.title, "[prod] 已恢复 pg-ledger 已重新满足 RPO，历时 58 分钟");
    }

    #[test]
    fn several_alerts_are_counted_and_languages_differ() {
        let other = Told { id: 18, labels: Default::default(), affected: 31, ..told() };
        let both = message(MessageKind::Failing, vec![told(), other]);
        let rendered = render(&both, Language::Chinese, "生产");
        assert_eq!(
            rendered.title,
            "[prod, 生产] 严重 pg-ledger 现在会丢失 41 分钟数据（目标 5 分钟）（另有 1 项）"
        );
        assert_eq!(rendered.sections.len(), 2);
        assert!(rendered.sections[1].heading.ends_with("；由此引发 31 项告警"), "{rendered:?}");
        assert_eq!(rendered.sections[0].lines[0].0, "原因");
        let english = render(&both, Language::English, "").title;
        assert_eq!(english, "[prod] CRITICAL pg-ledger would lose 41 min (RPO 5 min) (and 1 more)");
    }

    #[test]
    fn long_texts_are_cut() {
        let mut long = told();
        long.text.summary = Words::same("x".repeat(5000));
        long.text.why = Some(Words::same("y".repeat(5000)));
        let rendered = render(&message(MessageKind::Failing, vec![long]), Language::English, "");
        assert_eq!(rendered.title.chars().count(), TITLE_CHARS_MAX);
        assert_eq!(rendered.sections[0].lines[0].1.chars().count(), LINE_CHARS_MAX);
    }

    #[test]
    fn lengths_are_said_as_people_say_them() {
        let said = [-5, 59, 60, 41 * 60, 3600, 7500, 47 * 3600, 48 * 3600].map(|seconds| length(seconds).en);
        assert_eq!(said, ["0 s", "59 s", "1 min", "41 min", "1 h", "2 h 5 min", "47 h", "2 days"]);
        assert_eq!(length(7500).zh, "2 小时 5 分钟");
    }
}
