//! Reports in chats: the verdict and what is wrong first, cut to what the chat takes.

use holdfast_model::alert::Language;
use holdfast_model::report::form::{fit, markdown_code, markdown_text, paragraphs};
use holdfast_model::report::page::page;
use holdfast_model::report::{Report, VerdictState};
use serde_json::{Value, json};

use super::{cut, slack_text};

/// The longest text of one block of Slack, in bytes: it takes 3,000 characters, and fifty blocks.
const BLOCK_BYTES_MAX: usize = 2900;
const BLOCKS_MAX: usize = 45;

/// The Markdown of a report; DingTalk knows no tables.
pub(super) fn dingtalk(report: &Report, language: Language, bytes_max: usize) -> String {
    let page = page(report, language);
    let mut parts = vec![format!("### {}", markdown_text(&page.title))];
    parts.extend(paragraphs(&page, markdown_text, |text| format!("**{text}**"), markdown_code));
    fit(&parts, "\n\n", bytes_max, language)
}

/// The blocks of a report.
pub(super) fn slack(report: &Report, language: Language) -> Value {
    let page = page(report, language);
    let mark = match page.state {
        VerdictState::Good => ":white_check_mark:",
        VerdictState::Attention => ":warning:",
        VerdictState::Bad => ":rotating_light:",
        VerdictState::Unknown => ":grey_question:",
    };
    let title = slack_text(&page.title);
    let code = |text: &str| format!("`{}`", slack_text(&text.replace('`', "'")));
    let mut parts = vec![format!("{mark} *{title}*")];
    parts.extend(paragraphs(&page, slack_text, |text| format!("*{text}*"), code));
    let parts: Vec<String> = parts.into_iter().map(|part| cut(part, BLOCK_BYTES_MAX)).collect();
    // Half of a block may stay empty where the next line does not fit.
    let text = fit(&parts, "\n", BLOCK_BYTES_MAX / 2 * BLOCKS_MAX, language);
    let mut blocks: Vec<String> = Vec::new();
    for line in text.lines() {
        match blocks.last_mut() {
            Some(last) if last.len() + 1 + line.len() <= BLOCK_BYTES_MAX => {
                last.push('\n');
                last.push_str(line);
            }
            _ => blocks.push(line.to_owned()),
        }
    }
    let section = |text: String| json!({ "type": "section", "text": { "type": "mrkdwn", "text": text } });
    let blocks: Vec<Value> = blocks.into_iter().map(section).collect();
    json!({ "text": format!("{title}: {}", slack_text(&page.verdict)), "blocks": blocks })
}
