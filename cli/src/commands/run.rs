//! `holdfast run …`

use holdfast_model::ErrorCode;
use holdfast_proto::v1;

use super::details;
use crate::app::{App, PAGE_MAX};
use crate::args::run::{RunCommand, RunListArgs, RunLogsArgs};
use crate::client::Client;
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::output::text::{count, counted, duration, plain, short_run, short_snapshot, size};
use crate::output::{Look, OutputFormat, format};
use crate::views::run::{LogLineView, RunView, error_of, exit_status};
use crate::watch;

pub(super) async fn run(app: &mut App, command: RunCommand) -> CliResult {
    match command {
        RunCommand::List(args) => list(app, args).await,
        RunCommand::Show(args) => show(app, args.run).await,
        RunCommand::Logs(args) => logs(app, args).await,
        RunCommand::Watch(args) => {
            let client = app.connect().await?;
            let run = get(&client, args.run).await?;
            finish(app, &client, vec![run]).await
        }
        RunCommand::Cancel(args) => {
            let client = app.connect().await?;
            let reply = client.cancel_run(v1::CancelRunRequest { run_id: args.run }).await?;
            let run = present(reply.run)?;
            app.output.show(&run, |_| format!("{} was asked to stop\n", short_run(&run.id)))?;
            app.output.next(&[
                format!("holdfast run watch {}", short_run(&run.id)),
                format!("holdfast run retry {}", short_run(&run.id)),
            ]);
            Ok(ExitStatus::Ok)
        }
        RunCommand::Retry(args) => {
            let client = app.connect().await?;
            let request = v1::RetryRunRequest { run_id: args.run, idempotency_key: app.idempotency_key() };
            let run = present(client.retry_run(request).await?.run)?;
            started(app, &client, vec![run]).await
        }
    }
}

/// The run of a reply.
pub(super) fn present(run: Option<v1::Run>) -> CliResult<RunView> {
    run.map(RunView::from)
        .ok_or_else(|| CliError::new(ErrorCode::Internal, "the controller's reply has no run in it"))
}

async fn get(client: &Client, run_id: String) -> CliResult<RunView> {
    present(client.get_run(v1::GetRunRequest { run_id }).await?.run)
}

/// Runs that were queued: waits for them and tells how they ended, or only lists them with `--no-wait`.
pub(super) async fn started(app: &mut App, client: &Client, runs: Vec<RunView>) -> CliResult {
    if app.settings.wait {
        return finish(app, client, runs).await;
    }
    app.output.list(&runs, "")?;
    app.output.next(
        &runs.iter().map(|run| format!("holdfast run watch {}", short_run(&run.id))).collect::<Vec<_>>(),
    );
    Ok(ExitStatus::Ok)
}

/// Waits for runs and tells how they ended.
pub(super) async fn finish(app: &mut App, client: &Client, runs: Vec<RunView>) -> CliResult {
    let runs = watch::until_ended(app, client, runs).await?;
    app.output.set_now(app.clock.now());
    if app.output.is_human() {
        let done: String = runs
            .iter()
            .filter(|run| run.phase == "succeeded")
            .map(|run| summary(run, app.output.look()))
            .collect();
        app.output.write(&done)?;
        app.output.next(&runs.iter().flat_map(next_commands).collect::<Vec<_>>());
    } else {
        app.output.list(&runs, "")?;
    }
    app.output.finish()?;
    watch::verdict(app, &runs)
}

/// What was done, in a few lines.
pub(super) fn summary(run: &RunView, look: &Look) -> String {
    let outcome = match exit_status(run) {
        ExitStatus::Ok => look.palette.good("ok"),
        ExitStatus::Partial => look.palette.warning("partial"),
        _ => look.palette.bad("DATA BAD"),
    };
    let took = run.duration().map(duration).unwrap_or_default();
    let what = plain(run.source.as_deref().or(run.repository.as_deref()).unwrap_or("-"));
    let head = match run.kind.as_str() {
        "backup" => format!(
            "{what} -> {}   {}   snapshot {}   {took}   {outcome}\n",
            run.repository.as_deref().unwrap_or("-"),
            run.snapshot_type.as_deref().unwrap_or("-"),
            run.snapshot_id.as_deref().map_or("-", short_snapshot),
        ),
        kind => format!("{kind} {what}   {took}   {outcome}\n"),
    };
    let mut lines = Vec::new();
    let progress = &run.progress;
    if run.kind == "backup" {
        let ratio = crate::views::repository::ratio(progress.new_bytes, progress.stored_bytes);
        let unchanged = match progress.unchanged_files {
            0 => String::new(),
            files => format!("   {} of {} unchanged", count(files), counted(progress.done_files, "file")),
        };
        lines.push((
            "bytes",
            format!(
                "{} read   {} new   {} stored ({ratio}){unchanged}",
                size(progress.read_bytes),
                size(progress.new_bytes),
                size(progress.stored_bytes),
            ),
        ));
    }
    if let Some(report) = &run.restored {
        lines.extend(super::restore_plan::report_lines(report));
    }
    if run.warnings > 0 {
        let log = format!("holdfast run logs {}", short_run(&run.id));
        lines.push(("warnings", format!("{}, see {log}", run.warnings)));
    }
    for finding in run.findings.iter().take(FINDINGS_SHOWN_MAX) {
        lines.push(("found", plain(finding)));
    }
    if run.findings.len() > FINDINGS_SHOWN_MAX {
        let more = run.findings.len() - FINDINGS_SHOWN_MAX;
        lines.push(("", format!("and {more} more: holdfast run show {} -o json", short_run(&run.id))));
    }
    format!("{head}{}", details(&lines))
}

/// Whether a restore has taken the place of the live data already.
fn is_in_place(run: &RunView) -> bool {
    run.restored.iter().flat_map(|report| &report.targets).any(|target| target.kept.is_some())
}

/// How many findings people are shown.
const FINDINGS_SHOWN_MAX: usize = 20;

fn next_commands(run: &RunView) -> Vec<String> {
    let id = short_run(&run.id);
    match (run.phase.as_str(), run.kind.as_str()) {
        ("succeeded", "backup") => {
            let mut commands = Vec::new();
            if let Some(snapshot) = &run.snapshot_id {
                commands.push(format!("holdfast backup show {}", short_snapshot(snapshot)));
            }
            if let Some(source) = &run.source {
                commands.push(format!("holdfast restore plan {source}"));
            }
            commands
        }
        ("succeeded", "restore") if is_in_place(run) => vec![format!("holdfast restore discard {id}")],
        ("succeeded", "restore") => {
            vec![format!("holdfast restore promote {id}"), format!("holdfast restore discard {id}")]
        }
        ("succeeded", "promote") => vec![format!("holdfast restore discard {id}")],
        _ => Vec::new(),
    }
}

/// Runs that fit, newest first.
pub(super) async fn runs(
    client: &Client,
    filter: &v1::ListRunsRequest,
    limit: u32,
) -> CliResult<Vec<RunView>> {
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let wanted = limit.saturating_sub(u32::try_from(found.len()).unwrap_or(u32::MAX));
        let request =
            v1::ListRunsRequest { page_size: wanted.clamp(1, PAGE_MAX), page_token, ..filter.clone() };
        let reply = client.list_runs(request).await?;
        let got = reply.runs.len();
        found.extend(reply.runs.into_iter().map(RunView::from));
        found.truncate(limit as usize);
        page_token = reply.next_page_token;
        if page_token.is_empty() || got == 0 || found.len() >= limit as usize {
            return Ok(found);
        }
    }
}

async fn list(app: &mut App, args: RunListArgs) -> CliResult {
    let client = app.connect().await?;
    let filter = v1::ListRunsRequest {
        source: args.source.unwrap_or_default(),
        kind: args.kind.map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
        phase: args.phase.map(|phase| phase.as_str().to_owned()).unwrap_or_default(),
        ..v1::ListRunsRequest::default()
    };
    let found = runs(&client, &filter, args.limit).await?;
    app.output.list(&found, "no run fits\n  next   holdfast backup run SOURCE")?;
    Ok(ExitStatus::Ok)
}

/// Shows one run in full.
pub(super) async fn show(app: &mut App, run_id: String) -> CliResult {
    let client = app.connect().await?;
    let run = get(&client, run_id).await?;
    app.output.show(&run, |look| describe(&run, look))?;
    if run.phase == "failed" && app.output.is_human() {
        app.output.finish()?;
        if let Some(error) = error_of(&run) {
            let text = crate::error_report::render(&error, app.output.error_palette());
            app.output.error_text(&text);
        }
    }
    Ok(ExitStatus::Ok)
}

fn describe(run: &RunView, look: &Look) -> String {
    let or_dash = |text: &Option<String>| plain(text.as_deref().unwrap_or("-"));
    let mut lines = vec![
        ("id", run.id.clone()),
        ("source", or_dash(&run.source)),
        ("repository", or_dash(&run.repository)),
        ("agent", or_dash(&run.agent)),
        ("asked for", format!("{} by {}", look.time_or(run.queued_at, "-"), plain(&run.requested_by))),
        ("began", look.time_or(run.started_at, "")),
        ("ended", look.time_or(run.ended_at, "")),
        ("took", run.duration().map(duration).unwrap_or_default()),
        ("attempt", run.attempt.to_string()),
        ("waits for", run.waiting_for.as_deref().map(plain).unwrap_or_default()),
        ("snapshot", run.snapshot_id.clone().unwrap_or_default()),
        ("retry of", run.retry_of.clone().unwrap_or_default()),
        ("slot", run.slot_at.map_or_else(String::new, |at| look.both_times(at))),
        ("trace", run.trace_id.clone().unwrap_or_default()),
    ];
    let progress = &run.progress;
    // The report of a restore says it better.
    if run.restored.is_none() && progress.done_bytes + progress.read_bytes > 0 {
        lines.push((
            "bytes",
            format!(
                "{}{} done   {} read   {} new   {} stored",
                size(progress.done_bytes),
                if progress.total_bytes > 0 {
                    format!(" of {}", size(progress.total_bytes))
                } else {
                    String::new()
                },
                size(progress.read_bytes),
                size(progress.new_bytes),
                size(progress.stored_bytes)
            ),
        ));
    }
    if let Some(report) = &run.restored {
        lines.extend(super::restore_plan::report_lines(report));
    }
    if run.warnings > 0 {
        lines.push(("warnings", run.warnings.to_string()));
    }
    lines.extend(run.findings.iter().take(FINDINGS_SHOWN_MAX).map(|finding| ("found", plain(finding))));
    format!("{} {}\n{}", run.kind, run.phase, details(&lines))
}

async fn logs(app: &mut App, args: RunLogsArgs) -> CliResult {
    let client = app.connect().await?;
    let mut replies = client.run_logs(v1::RunLogsRequest { run_id: args.run, follow: args.follow }).await?;
    let streamed = matches!(
        app.output.format(),
        OutputFormat::Table | OutputFormat::Wide | OutputFormat::Jsonl | OutputFormat::Name
    );
    let mut kept: Vec<LogLineView> = Vec::new();
    let mut interrupt = Box::pin(tokio::signal::ctrl_c());
    loop {
        let reply = tokio::select! {
            reply = replies.next() => reply?,
            _ = &mut interrupt => return Err(CliError::interrupted("interrupted")),
        };
        let Some(reply) = reply else { break };
        let lines: Vec<LogLineView> = reply.lines.into_iter().map(LogLineView::from).collect();
        if streamed {
            let text = log_text(app.output.format(), &lines, app.output.look());
            app.output.write(&text)?;
            // Somebody looks on: nothing may stay in a buffer.
            app.output.finish()?;
            if app.output.reader_is_gone() {
                break;
            }
        } else {
            kept.extend(lines);
        }
    }
    if !streamed {
        app.output.list(&kept, "")?;
    }
    Ok(ExitStatus::Ok)
}

fn log_text(form: OutputFormat, lines: &[LogLineView], look: &Look) -> String {
    if !matches!(form, OutputFormat::Table | OutputFormat::Wide) {
        return format::render(form, lines, look);
    }
    lines
        .iter()
        .map(|line| {
            let level = match line.level {
                "error" => look.palette.bad("error  "),
                "warning" => look.palette.warning("warning"),
                "debug" => look.palette.dim("debug  "),
                _ => look.palette.dim("info   "),
            };
            let at = line.at.map(|at| at.to_zoned(look.zone.clone()).strftime("%H:%M:%S").to_string());
            format!("{} {level} {}\n", at.unwrap_or_default(), plain(&line.text))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing::look;
    use crate::views::run::ProgressView;

    #[test]
    fn a_backup_is_summed_up_with_bytes_and_ratio() {
        let run = RunView {
            id: "018f00000000700080000000deadbeef".to_owned(),
            kind: "backup".to_owned(),
            phase: "succeeded".to_owned(),
            source: Some("shop".to_owned()),
            repository: Some("main".to_owned()),
            snapshot_type: Some("incremental".to_owned()),
            snapshot_id: Some("3f2a91bc".repeat(8)),
            duration_seconds: Some(0.64),
            warnings: 1,
            progress: ProgressView {
                read_bytes: 19_293_798,
                new_bytes: 524_288,
                stored_bytes: 131_072,
                done_files: 4,
                unchanged_files: 3,
                ..ProgressView::default()
            },
            ..RunView::default()
        };
        let look = look();
        insta::assert_snapshot!(summary(&run, &look), @r#"
        shop -> main   incremental   snapshot 3f2a91bc   0.6s   partial
          bytes      18.4 MiB read   512.0 KiB new   128.0 KiB stored (4.0x)   3 of 4 files unchanged
          warnings   1, see holdfast run logs deadbeef
        "#);
        assert_eq!(next_commands(&run), ["holdfast backup show 3f2a91bc", "holdfast restore plan shop"]);
    }
}
