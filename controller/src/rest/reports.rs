//! Reports, as JSON, Markdown or a page.

use holdfast_model::Failure;
use holdfast_model::alert::Language;
use holdfast_model::report::page::page;
use holdfast_model::report::{HOURS_DEFAULT, HOURS_MAX, form};
use holdfast_proto::v1;

use super::reply::Reply;
use super::request::{Call, invalid};
use super::routes::{REPORT_FORMS, Rendition};
use crate::api::reports::ReportsApi;

pub(super) async fn daily(call: Call) -> Result<Reply, Failure> {
    answer(call, "daily").await
}

pub(super) async fn weekly(call: Call) -> Result<Reply, Failure> {
    answer(call, "weekly").await
}

pub(super) async fn logs(call: Call) -> Result<Reply, Failure> {
    answer(call, "logs").await
}

async fn answer(call: Call, report: &str) -> Result<Reply, Failure> {
    let wanted = wanted(&call.query.text("format"), call.header("accept"))?;
    let hours = match report {
        "logs" => call.query.number("hours", 1..=HOURS_MAX, HOURS_DEFAULT)?,
        _ => 0,
    };
    let request = v1::GetReportRequest {
        report: report.to_owned(),
        hours,
        source: call.query.text("source"),
        timezone: call.query.text("timezone"),
    };
    let report = ReportsApi::new(call.core().clone()).get_inner(&request).await?;
    Ok(match wanted {
        None => Reply::item(report),
        Some(form) => {
            let page = page(&report, Language::English);
            match form.word {
                "html" => Reply::Page(form.content_type, form::html(&page)),
                _ => Reply::Document(form.content_type, form::markdown(&page)),
            }
        }
    })
}

/// The form that is asked for; none is JSON. The query decides before the header; a header that asks for nothing that
/// there is gets JSON, as browsers and tools ask for anything at all.
fn wanted(format: &str, accept: &str) -> Result<Option<Rendition>, Failure> {
    let find = |fits: &dyn Fn(&Rendition) -> bool| REPORT_FORMS.iter().copied().find(|form| fits(form));
    match format {
        "" => {}
        "json" => return Ok(None),
        word => {
            let found = find(&|form| form.word == word);
            return found.map(Some).ok_or_else(|| {
                let shown: String = word.chars().take(40).collect();
                invalid(format!("`format` is {shown:?}, json, markdown and html are possible"))
            });
        }
    }
    for kind in accept.split(',') {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if kind.eq_ignore_ascii_case("application/json") {
            return Ok(None);
        }
        let plain = |form: &Rendition| form.content_type.split(';').next().unwrap_or_default().to_owned();
        if let Some(form) = find(&|form| plain(form).eq_ignore_ascii_case(kind)) {
            return Ok(Some(form));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_decides_before_the_header_and_json_is_what_is_left() {
        let word =
            |format: &str, accept: &str| wanted(format, accept).unwrap().map_or("json", |form| form.word);
        assert_eq!(word("", ""), "json");
        assert_eq!(word("", "*/*"), "json");
        assert_eq!(word("", "text/html,application/xhtml+xml;q=0.9"), "html");
        assert_eq!(word("", "Text/Markdown; q=0.5"), "markdown");
        assert_eq!(word("", "application/json, text/html"), "json");
        assert_eq!(word("json", "text/html"), "json");
        assert_eq!(word("markdown", "text/html"), "markdown");
        let failure = wanted("pdf", "").unwrap_err();
        assert_eq!(failure.message, "`format` is \"pdf\", json, markdown and html are possible");
    }
}
