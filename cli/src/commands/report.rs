//! `holdfast report …`

use holdfast_model::ErrorCode;
use holdfast_model::alert::Language;
use holdfast_model::report::page::page;
use holdfast_model::report::{Report, form};
use holdfast_proto::v1;

use crate::app::App;
use crate::args::report::{ReportCommand, ReportForm};
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::output::OutputFormat;
use crate::output::text::plain;
use crate::views::report::ReportView;

pub(super) async fn report(app: &mut App, command: ReportCommand) -> CliResult {
    let request = |report: &str| v1::GetReportRequest { report: report.to_owned(), ..Default::default() };
    let (request, form) = match command {
        ReportCommand::Daily(args) => (request("daily"), args.form),
        ReportCommand::Weekly(args) => (request("weekly"), args.form),
        ReportCommand::Logs(args) => {
            let source = args.source.unwrap_or_default();
            (v1::GetReportRequest { hours: args.hours, source, ..request("logs") }, args.form)
        }
    };
    let request = v1::GetReportRequest { timezone: form.timezone.clone(), ..request };
    match form.send.clone() {
        Some(channel) => send(app, request, channel).await,
        None => show(app, request, &form).await,
    }
}

async fn show(app: &mut App, request: v1::GetReportRequest, form: &ReportForm) -> CliResult {
    let reply = app.connect().await?.get_report(request).await?;
    let report: Report = serde_json::from_str(&reply.report_json).map_err(|error| {
        CliError::new(ErrorCode::Internal, "the controller's report cannot be read")
            .because(error.to_string())
    })?;
    let words = page(&report, Language::English);
    if form.html {
        app.output.write(&form::html(&words))?;
    } else if app.output.format() == OutputFormat::Markdown {
        app.output.write(&form::markdown(&words))?;
    } else {
        app.output.show(&ReportView(report), |_| form::text(&words))?;
    }
    Ok(ExitStatus::Ok)
}

async fn send(app: &mut App, request: v1::GetReportRequest, channel: String) -> CliResult {
    let request = v1::SendReportRequest { report: Some(request), channel: channel.clone() };
    let reply = app.connect().await?.send_report(request).await?;
    app.output.note(&format!("channel {channel} delivered it: {}", plain(&reply.answer)));
    app.output.next(&[format!("holdfast notify history {channel}")]);
    Ok(ExitStatus::Ok)
}
