//! The forms of a page: plain text, Markdown, HTML, and paragraphs for chats. Whatever a text says, it is text.

use super::VerdictState;
use super::page::{Block, Page, Row};
use crate::alert::Language;

/// What no form may carry to where it is shown: control characters are gone already, these change the order of what is
/// around them.
fn harmless(text: &str) -> impl Iterator<Item = char> + '_ {
    let is_mark = |c: &char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
    text.chars().filter(move |c| !is_mark(c))
}

/// Characters that Markdown gives a meaning are taken as they are.
pub fn markdown_text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in harmless(text) {
        if matches!(c, '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '#' | '~' | '|' | '!' | '&') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// Characters that HTML gives a meaning are taken as they are, also in attributes.
pub fn html_text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in harmless(text) {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A command as Markdown shows it: nothing in it can end the quotation.
pub fn markdown_code(text: &str) -> String {
    format!("`{}`", harmless(text).map(|c| if c == '`' { '\'' } else { c }).collect::<String>())
}

/// How many columns of a terminal a text takes: letters of East Asia take two.
fn width(text: &str) -> usize {
    let is_wide = |c: char| matches!(c, '\u{1100}'..='\u{115f}' | '\u{2e80}'..='\u{a4cf}' | '\u{ac00}'..='\u{d7a3}' | '\u{f900}'..='\u{faff}' | '\u{fe30}'..='\u{fe6f}' | '\u{ff00}'..='\u{ff60}' | '\u{ffe0}'..='\u{ffe6}');
    text.chars().map(|c| if is_wide(c) { 2 } else { 1 }).sum()
}

/// As plain text, with aligned columns.
pub fn text(page: &Page) -> String {
    let plain = |text: &str| harmless(text).collect::<String>();
    let mut out = format!("{}\n{}\n", plain(&page.title), plain(&page.verdict));
    for block in &page.blocks {
        match block {
            Block::Heading(heading) => out.push_str(&format!("\n{}\n", plain(heading))),
            Block::Text(text) => out.push_str(&format!("{}\n", plain(text))),
            Block::Tasks(tasks) => {
                for (task, command) in tasks {
                    out.push_str(&format!("  {}\n", plain(task)));
                    if let Some(command) = command {
                        out.push_str(&format!("      {}\n", plain(command)));
                    }
                }
            }
            Block::Table { headings, rows } => text_table(headings, rows, &mut out),
        }
    }
    out
}

fn text_table(headings: &[(String, bool)], rows: &[Row], out: &mut String) {
    let plain = |text: &str| harmless(text).collect::<String>();
    let lines: Vec<Vec<String>> = std::iter::once(headings.iter().map(|(title, _)| plain(title)).collect())
        .chain(rows.iter().map(|row| row.cells.iter().map(|cell| plain(cell)).collect()))
        .collect();
    let widths: Vec<usize> = (0..headings.len())
        .map(|column| {
            lines.iter().filter_map(|line| line.get(column)).map(|cell| width(cell)).max().unwrap_or(0)
        })
        .collect();
    for line in lines {
        let mut text = String::new();
        for ((cell, (_, is_number)), most) in line.iter().zip(headings).zip(&widths) {
            let space = " ".repeat(most - width(cell));
            let padded = if *is_number { format!("{space}{cell}") } else { format!("{cell}{space}") };
            text.push_str(&format!("  {padded}"));
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
}

/// As Markdown, for a wiki.
pub fn markdown(page: &Page) -> String {
    let mut out = format!("# {}\n\n**{}**\n", markdown_text(&page.title), markdown_text(&page.verdict));
    let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    for block in &page.blocks {
        out.push('\n');
        match block {
            Block::Heading(heading) => out.push_str(&format!("## {}\n", markdown_text(heading))),
            Block::Text(text) => out.push_str(&format!("{}\n", markdown_text(text))),
            Block::Tasks(tasks) => tasks.iter().for_each(|task| out.push_str(&markdown_task(task))),
            Block::Table { headings, rows } => {
                out.push_str(&row(headings.iter().map(|(title, _)| markdown_text(title)).collect()));
                let align = |(_, is_number): &(String, bool)| {
                    if *is_number { "---:".to_owned() } else { "---".to_owned() }
                };
                out.push_str(&row(headings.iter().map(align).collect()));
                for line in rows {
                    out.push_str(&row(line.cells.iter().map(|cell| markdown_text(cell)).collect()));
                }
            }
        }
    }
    out
}

fn markdown_task((task, command): &(String, Option<String>)) -> String {
    match command {
        Some(command) => format!("- {}: {}\n", markdown_text(task), markdown_code(command)),
        None => format!("- {}\n", markdown_text(task)),
    }
}

/// The look of a page of HTML: nothing of it comes from elsewhere.
const STYLE: &str = "body{font:14px/1.5 sans-serif;color:#222;margin:24px;max-width:1200px}\
    table{border-collapse:collapse;margin:8px 0 16px}th,td{padding:4px 10px;border-bottom:1px solid #ddd;text-align:left}\
    th{font-size:12px;color:#666}.n{text-align:right}.bad td{background:#fdecea}code{background:#f3f3f3;padding:1px 4px}\
    .verdict{padding:10px 14px;border-left:6px solid #999;background:#f7f7f7;font-weight:bold}\
    .good{border-color:#2e7d32}.attention{border-color:#e69500}.bad-verdict{border-color:#c62828}";

/// As a page of HTML that stands alone: no script, nothing from elsewhere.
pub fn html(page: &Page) -> String {
    let class = match page.state {
        VerdictState::Good => "verdict good",
        VerdictState::Attention => "verdict attention",
        VerdictState::Bad => "verdict bad-verdict",
        VerdictState::Unknown => "verdict",
    };
    let title = html_text(&page.title);
    let mut out = format!(
        "<!DOCTYPE html>\n<html><head><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style></head>\n\
         <body><h1>{title}</h1>\n<p class=\"{class}\">{}</p>\n",
        html_text(&page.verdict)
    );
    for block in &page.blocks {
        match block {
            Block::Heading(heading) => out.push_str(&format!("<h2>{}</h2>\n", html_text(heading))),
            Block::Text(text) => out.push_str(&format!("<p>{}</p>\n", html_text(text))),
            Block::Tasks(tasks) => {
                out.push_str("<ul>\n");
                for (task, command) in tasks {
                    let command = command.as_ref().map(|it| format!("<br><code>{}</code>", html_text(it)));
                    out.push_str(&format!("<li>{}{}</li>\n", html_text(task), command.unwrap_or_default()));
                }
                out.push_str("</ul>\n");
            }
            Block::Table { headings, rows } => html_table(headings, rows, &mut out),
        }
    }
    out.push_str("</body></html>\n");
    out
}

fn html_table(headings: &[(String, bool)], rows: &[Row], out: &mut String) {
    let class = |is_number: bool| if is_number { " class=\"n\"" } else { "" };
    out.push_str("<table><tr>");
    for (title, is_number) in headings {
        out.push_str(&format!("<th{}>{}</th>", class(*is_number), html_text(title)));
    }
    out.push_str("</tr>\n");
    for row in rows {
        out.push_str(if row.is_bad { "<tr class=\"bad\">" } else { "<tr>" });
        for (cell, (_, is_number)) in row.cells.iter().zip(headings) {
            out.push_str(&format!("<td{}>{}</td>", class(*is_number), html_text(cell)));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
}

/// As paragraphs for a chat, the most important first: lists instead of tables, of which chats know nothing. `escape`
/// takes the meaning from what the chat would give one, `strong` marks what is escaped already, `code` a command as it is.
pub fn paragraphs(
    page: &Page,
    escape: fn(&str) -> String,
    strong: fn(&str) -> String,
    code: fn(&str) -> String,
) -> Vec<String> {
    let mut out = vec![strong(&escape(&page.verdict))];
    for block in &page.blocks {
        match block {
            Block::Heading(heading) => out.push(strong(&escape(heading))),
            Block::Text(text) => out.push(escape(text)),
            Block::Tasks(tasks) => {
                for (task, command) in tasks {
                    let command = command.as_ref().map(|command| format!(" {}", code(command)));
                    out.push(format!("- {}{}", escape(task), command.unwrap_or_default()));
                }
            }
            Block::Table { headings, rows } => {
                for row in rows {
                    let cells = row.cells.iter().zip(headings).skip(1);
                    let rest: Vec<String> = cells
                        .map(|(cell, (title, _))| {
                            format!("{} {}", escape(&title.to_lowercase()), escape(cell))
                        })
                        .collect();
                    let name = row.cells.first().map(|name| strong(&escape(name))).unwrap_or_default();
                    out.push(format!("- {name}: {}", rest.join(" · ")));
                }
            }
        }
    }
    out
}

/// Joins paragraphs up to a number of bytes; says how many did not fit.
pub fn fit(paragraphs: &[String], separator: &str, bytes_max: usize, language: Language) -> String {
    let note = |left: usize| match language {
        Language::English => format!("… {left} more lines: holdfast report, or the report by mail"),
        Language::Chinese => format!("…… 另有 {left} 行：请运行 holdfast report 或查看邮件"),
    };
    let whole = paragraphs.join(separator);
    if whole.len() <= bytes_max {
        return whole;
    }
    let room = bytes_max.saturating_sub(note(paragraphs.len()).len());
    let mut text = String::new();
    let mut kept = 0;
    for paragraph in paragraphs {
        if text.len() + paragraph.len() + separator.len() > room {
            break;
        }
        text.push_str(paragraph);
        text.push_str(separator);
        kept += 1;
    }
    text.push_str(&note(paragraphs.len() - kept));
    text
}

#[cfg(test)]
mod tests;
