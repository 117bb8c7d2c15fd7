//! `holdfast explain`: the pages of docs/errors, carried along.

use holdfast_model::ErrorCode;

use crate::app::App;
use crate::args::tools::ExplainArgs;
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::output::Palette;
use crate::views::local::ErrorCodeView;

/// Number and text of every page, in order.
static PAGES: &[(u16, &str)] = include!(concat!(env!("OUT_DIR"), "/error_pages.rs"));

pub(super) fn explain(app: &mut App, args: &ExplainArgs) -> CliResult {
    let Some(text) = &args.code else {
        let all: Vec<ErrorCodeView> = ErrorCode::ALL.iter().map(|&code| view(code)).collect();
        app.output.list(&all, "")?;
        return Ok(ExitStatus::Ok);
    };
    let code = parse(text)?;
    app.output.show(&view(code), |look| page(code, look.palette))?;
    Ok(ExitStatus::Ok)
}

fn view(code: ErrorCode) -> ErrorCodeView {
    ErrorCodeView {
        code: code.to_string(),
        title: code.title(),
        exit_status: ExitStatus::from(code.category()).number(),
    }
}

/// `HF-2002`, `hf-2002` or `2002`.
fn parse(text: &str) -> CliResult<ErrorCode> {
    let digits = text.get(..3).filter(|start| start.eq_ignore_ascii_case("HF-")).map_or(text, |_| &text[3..]);
    digits.parse().ok().and_then(ErrorCode::from_number).ok_or_else(|| {
        CliError::new(ErrorCode::NotFound, format!("{text:?} is no error code of this version"))
            .then("holdfast explain")
    })
}

/// The page without its markup.
fn page(code: ErrorCode, palette: Palette) -> String {
    let exit = format!("Exit status {}.\n", ExitStatus::from(code.category()).number());
    let Ok(place) = PAGES.binary_search_by_key(&code.number(), |(number, _)| *number) else {
        return format!("{}: {}\n\n{exit}", palette.strong(&code.to_string()), code.title());
    };
    let mut text = String::new();
    let mut in_block = false;
    for line in PAGES[place].1.lines() {
        if line.starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            text.push_str(&format!("    {line}\n"));
        } else if let Some(heading) = line.strip_prefix("## ").or_else(|| line.strip_prefix("# ")) {
            text.push_str(&format!("{}\n", palette.strong(heading)));
        } else {
            text.push_str(&format!("{line}\n"));
        }
    }
    format!("{text}\n{exit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_in_every_spelling() {
        for text in ["HF-2002", "hf-2002", "2002"] {
            assert_eq!(parse(text).unwrap(), ErrorCode::SourceLoginRefused);
        }
        for text in ["", "HF-", "HF-9999", "login", "é"] {
            assert_eq!(parse(text).unwrap_err().exit_status(), ExitStatus::NotFound);
        }
    }

    #[test]
    fn pages_are_in_order_and_belong_to_codes() {
        assert!(PAGES.windows(2).all(|pair| pair[0].0 < pair[1].0));
        for (number, text) in PAGES {
            let code = ErrorCode::from_number(*number).expect("a page without a code");
            assert!(text.starts_with(&format!("# {code}: ")), "{code}");
        }
    }

    #[test]
    fn every_code_can_be_explained() {
        for &code in ErrorCode::ALL {
            let text = page(code, Palette::plain());
            assert!(text.contains(&code.to_string()) && !text.contains("```"), "{code}");
        }
    }
}
