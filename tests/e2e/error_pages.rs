//! Every error code has its page, every page its code, and every page says the same four things.

use std::collections::BTreeSet;
use std::fs;

use holdfast_model::ErrorCode;
use holdfast_tests::workspace;

const SECTIONS: &[&str] = &["## What happened", "## Causes", "## What is at stake", "## What to do"];
const PAGE_LINES_MAX: usize = 30;

fn page_names() -> BTreeSet<String> {
    let folder = workspace::root().join("docs/errors");
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn codes_and_pages_are_the_same_set() {
    let codes: BTreeSet<String> = ErrorCode::ALL.iter().map(|code| format!("{code}.md")).collect();
    let pages: BTreeSet<String> = page_names().into_iter().filter(|name| name != "README.md").collect();
    let missing: Vec<_> = codes.difference(&pages).collect();
    let unknown: Vec<_> = pages.difference(&codes).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "without a page: {missing:?}; without a code: {unknown:?}"
    );
}

#[test]
fn a_page_has_its_title_and_four_filled_sections() {
    for code in ErrorCode::ALL {
        let path = workspace::root().join(format!("docs/errors/{code}.md"));
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], format!("# {code}: {}", code.title()), "the first line of {code}");
        assert!(lines.len() <= PAGE_LINES_MAX, "the page of {code} has {} lines", lines.len());
        let headings: Vec<&str> = lines.iter().copied().filter(|line| line.starts_with("## ")).collect();
        assert_eq!(headings, SECTIONS, "the sections of {code}");
        for section in SECTIONS {
            let body = lines.iter().skip_while(|line| *line != section).skip(1);
            let filled = body.take_while(|line| !line.starts_with("## ")).any(|line| !line.trim().is_empty());
            assert!(filled, "{section:?} of {code} is empty");
        }
    }
}
