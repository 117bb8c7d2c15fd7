use super::*;
use crate::report::page::Row;

const HOSTILE: &str = "<img src=x onerror=alert(1)>|[a](javascript:x)`&\"'\u{202e}";

fn hostile_page() -> Page {
    let text = HOSTILE.to_owned();
    Page {
        title: text.clone(),
        state: VerdictState::Bad,
        verdict: text.clone(),
        blocks: vec![
            Block::Heading(text.clone()),
            Block::Text(text.clone()),
            Block::Tasks(vec![(text.clone(), Some(text.clone())), (text.clone(), None)]),
            Block::Table {
                headings: vec![(text.clone(), false), (text.clone(), true)],
                rows: vec![Row { cells: vec![text.clone(), text.clone()], is_bad: true }],
            },
        ],
    }
}

#[test]
fn whatever_a_text_says_it_is_no_element_of_html() {
    let html = html(&hostile_page());
    let escaped = "&lt;img src=x onerror=alert(1)&gt;|[a](javascript:x)`&amp;&quot;&#39;";
    assert_eq!(html.matches(escaped).count(), 12, "{html}");
    assert!(!html.contains("<img") && !html.contains('\u{202e}'), "{html}");
    for from_elsewhere in ["<script", "src=\"", "href", "url(", "@import"] {
        assert!(!html.contains(from_elsewhere), "{from_elsewhere}");
    }
}

#[test]
fn whatever_a_text_says_it_is_no_mark_of_markdown() {
    let markdown = markdown(&hostile_page());
    // As a command it stands in a quotation that it can not end.
    let rest = markdown.replace(&markdown_code(HOSTILE), "");
    let bare = |mark: char| {
        let mut before = ' ';
        rest.chars().any(|c| {
            let is_bare = c == mark && before != '\\';
            before = c;
            is_bare
        })
    };
    assert!(!bare('<') && !bare('[') && !bare('`') && !bare('&'), "{markdown}");
    assert_eq!(markdown_code(HOSTILE).matches('`').count(), 2);
    let row = markdown.lines().last().unwrap();
    assert_eq!(row.replace("\\|", "").matches('|').count(), 3, "{row}");
}

#[test]
fn columns_are_aligned_also_in_letters_that_are_wide() {
    let table = Block::Table {
        headings: vec![("数据源".to_owned(), false), ("N".to_owned(), true)],
        rows: vec![
            Row { cells: vec!["pg-main".to_owned(), "5".to_owned()], is_bad: false },
            Row { cells: vec!["a".to_owned(), "1,000".to_owned()], is_bad: false },
        ],
    };
    let page = Page {
        title: "t".to_owned(),
        state: VerdictState::Good,
        verdict: "v".to_owned(),
        blocks: vec![table],
    };
    assert_eq!(text(&page), "t\nv\n  数据源       N\n  pg-main      5\n  a        1,000\n");
}

#[test]
fn what_does_not_fit_into_a_chat_is_left_out_and_counted() {
    let lines: Vec<String> = (0..100).map(|number| format!("line {number:02}")).collect();
    assert_eq!(fit(&lines, "\n", 10_000, Language::English), lines.join("\n"));
    let exact = lines.join("\n").len();
    assert_eq!(fit(&lines, "\n", exact + 1, Language::English), lines.join("\n"));
    for most in 200..exact {
        let text = fit(&lines, "\n", most, Language::English);
        assert!(text.len() <= most, "{} > {most}", text.len());
        let kept = text.lines().filter(|line| line.starts_with("line")).count();
        assert!(
            text.ends_with(&format!("… {} more lines: holdfast report, or the report by mail", 100 - kept)),
            "{text}"
        );
    }
}
