//! What happens in the demo, step by step, and the proof at its end.

use std::path::PathBuf;
use std::time::Duration;

use holdfast_model::ErrorCode;
use holdfast_model::manifest::Manifest;
use holdfast_proto::v1;

use super::fleet::{AGENT, REPOSITORY, SOURCE, Stage, declaration};
use super::home::Home;
use super::report::{BackupView, DemoView, TableView, step_line};
use super::shop;
use crate::app::App;
use crate::client::Client;
use crate::error::{CliError, CliResult};
use crate::output::text::{count, counted, duration, short_snapshot, size};
use crate::views::plan::PlanView;
use crate::views::run::{RunView, error_of};
use crate::views::snapshot::SnapshotView;

/// How many orders come in between the two backups, besides those of the writer.
const BUSY_ORDERS: i64 = 200;

/// How long one run of the demo may take.
const RUN_WITHIN: Duration = Duration::from_secs(60);

/// Plays the story and proves its end.
pub(super) async fn tell(app: &mut App, home: &Home, stage: &mut Stage) -> CliResult<DemoView> {
    let began = app.clock.monotonic();
    let tail = if home.is_kept() { "kept" } else { "removed at the end" };
    let title = format!("Holdfast demo   everything lies in {}, {tail}", home.path().display());
    say(app, &format!("{title}\n"))?;
    let client = prepare(app, home, stage).await?;

    let full = backup(app, &client, "full").await?;
    let path = home.database();
    let at = app.clock.monotonic();
    stage.with_database("changing", move || shop::change(&path, BUSY_ORDERS)).await?;
    let text = format!("{BUSY_ORDERS} orders at once, new prices for 200 products, and the writer goes on");
    step(app, "changes", &text, at)?;
    let incremental = backup(app, &client, "incremental").await?;

    let path = home.database();
    let at = app.clock.monotonic();
    let deleted = stage.with_database("damaging", move || shop::delete_orders(&path)).await?;
    let text = format!("somebody runs DELETE FROM orders: {} rows are gone", count(deleted as u64));
    let took = elapsed(app, at);
    say(app, &step_line("accident", &text, took, "oops"))?;

    let (restored_to, restore_took) = restore(app, &client, &incremental.snapshot_id).await?;
    let tables = prove(app, &client, stage, &incremental.snapshot_id, restored_to.clone()).await?;
    let took = elapsed(app, began);
    Ok(DemoView::new(
        home,
        client.address().to_string(),
        vec![full, incremental],
        deleted as u64,
        restored_to,
        restore_took,
        tables,
        took,
    ))
}

/// Controller, agent, shop, repository.
async fn prepare(app: &mut App, home: &Home, stage: &mut Stage) -> CliResult<Client> {
    let at = app.clock.monotonic();
    let client = stage.start_controller(home, app.clock.clone()).await?;
    step(app, "controller", &format!("{}, its own CA, TLS 1.3", client.address()), at)?;

    let at = app.clock.monotonic();
    stage.start_agent(home, &client, app.clock.clone()).await?;
    step(app, "agent", &format!("{AGENT} enrolled with a one-use token, mutual TLS, no open port"), at)?;

    let at = app.clock.monotonic();
    let path = home.database();
    stage.with_database("making", move || shop::build(&path)).await?;
    let bytes = std::fs::metadata(home.database()).map_or(0, |metadata| metadata.len());
    stage.start_writer(&home.database());
    let text = format!(
        "shop.db: SQLite, {}, {} orders in 5 tables; a writer adds 20 a second",
        size(bytes),
        count(shop::ORDERS.unsigned_abs())
    );
    step(app, "source", &text, at)?;

    let at = app.clock.monotonic();
    let key = uuid::Uuid::from_bytes(rand::random()).simple().to_string()
        + &uuid::Uuid::from_bytes(rand::random()).simple().to_string();
    home.write(&home.repository_key(), &format!("{key}\n"))?;
    let request = v1::ApplyRequest {
        idempotency_key: app.idempotency_key(),
        files: vec![v1::FleetFile { name: "demo".to_owned(), text: declaration(home)? }],
        ..v1::ApplyRequest::default()
    };
    client.apply_fleet(request).await?;
    client.init_repository(v1::InitRepositoryRequest { name: REPOSITORY.to_owned() }).await?;
    step(app, "repository", "restic format, encrypted, deduplicated, compressed", at)?;
    say(app, "\n")?;
    Ok(client)
}

/// Prints a line at once: somebody watches.
fn say(app: &mut App, line: &str) -> CliResult<()> {
    if !app.output.is_human() {
        return Ok(());
    }
    app.output.write(line)?;
    app.output.finish()
}

fn step(app: &mut App, label: &str, text: &str, since: std::time::Instant) -> CliResult<()> {
    let took = elapsed(app, since);
    say(app, &step_line(label, text, took, "ok"))
}

fn elapsed(app: &App, since: std::time::Instant) -> Duration {
    app.clock.monotonic().saturating_duration_since(since)
}

/// Waits for a run, and takes its failure for an error.
async fn ended(app: &App, client: &Client, id: String) -> CliResult<RunView> {
    let mut news = client.watch_run(v1::WatchRunRequest { run_id: id.clone() }).await?;
    let over = app.clock.sleep(RUN_WITHIN);
    tokio::pin!(over);
    loop {
        let reply = tokio::select! {
            reply = news.next() => reply?,
            () = &mut over => {
                return Err(CliError::new(
                    ErrorCode::WatchTimeout,
                    format!("run {id} has not ended after {}", duration(RUN_WITHIN)),
                ));
            }
        };
        let Some(run) = reply.and_then(|reply| reply.run).map(RunView::from) else {
            return Err(CliError::new(
                ErrorCode::Internal,
                format!("the news of run {id} ended before it did"),
            ));
        };
        if run.is_ended() {
            return error_of(&run).map_or(Ok(run), Err);
        }
    }
}

async fn backup(app: &mut App, client: &Client, kind: &str) -> CliResult<BackupView> {
    let at = app.clock.monotonic();
    let what = v1::StartBackup {
        source: SOURCE.to_owned(),
        snapshot_type: kind.to_owned(),
        ..v1::StartBackup::default()
    };
    let request = v1::StartRequest {
        idempotency_key: app.idempotency_key(),
        what: Some(v1::start_request::What::Backup(what)),
    };
    let mut runs = client.start_runs(request).await?.runs;
    let id = runs.pop().map(|run| run.id).unwrap_or_default();
    let run = ended(app, client, id).await?;
    let snapshot = run.snapshot_id.clone().unwrap_or_default();
    let reply = client.show_snapshot(v1::ShowSnapshotRequest { id: snapshot }).await?;
    let view = SnapshotView::from(reply.snapshot.unwrap_or_default());
    let took = elapsed(app, at);
    let text = format!(
        "{kind:<11}   {} -> {} added   snapshot {}",
        size(view.logical_bytes),
        size(view.stored_bytes),
        short_snapshot(&view.id)
    );
    say(app, &step_line("backup", &text, took, "ok"))?;
    Ok(BackupView {
        snapshot_type: kind.to_owned(),
        snapshot_id: view.id,
        logical_bytes: view.logical_bytes,
        stored_bytes: view.stored_bytes,
        rows: view.rows,
        duration_seconds: took.as_secs_f64(),
    })
}

/// Plans and runs the restore beside the original; returns where it put the database.
async fn restore(app: &mut App, client: &Client, snapshot: &str) -> CliResult<(PathBuf, Duration)> {
    let at = app.clock.monotonic();
    let request = v1::PlanRestoreRequest {
        source: SOURCE.to_owned(),
        to: snapshot.to_owned(),
        ..v1::PlanRestoreRequest::default()
    };
    let plan = PlanView::new(SOURCE, client.plan_restore(request).await?);
    if let Some(obstacle) = plan.obstacles.first() {
        return Err(CliError::new(ErrorCode::RestoreFailed, "the restore cannot be run").because(obstacle));
    }
    let request = v1::RunRestoreRequest {
        idempotency_key: app.idempotency_key(),
        plan_id: plan.plan_id,
        ..v1::RunRestoreRequest::default()
    };
    let queued = client.run_restore(request).await?.run.unwrap_or_default();
    let run = ended(app, client, queued.id).await?;
    let target = run
        .restored
        .and_then(|report| report.targets.into_iter().next())
        .ok_or_else(|| CliError::new(ErrorCode::RestoreFailed, "the restore reports nothing that it made"))?;
    let took = elapsed(app, at);
    let path = PathBuf::from(target.restored);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let text = format!("snapshot {} -> {name}, beside the original", short_snapshot(snapshot));
    say(app, &step_line("restore", &text, took, "ok"))?;
    Ok((path, took))
}

/// Counts the rows of the restored file by opening it, and lays them beside those of the manifest.
async fn prove(
    app: &mut App,
    client: &Client,
    stage: &Stage,
    snapshot: &str,
    restored: PathBuf,
) -> CliResult<Vec<TableView>> {
    let at = app.clock.monotonic();
    let reply = client.show_snapshot(v1::ShowSnapshotRequest { id: snapshot.to_owned() }).await?;
    let manifest: Manifest = serde_json::from_str(&reply.manifest_json).map_err(|error| {
        CliError::new(ErrorCode::Internal, "the manifest cannot be read").because(error.to_string())
    })?;
    let counted_rows = stage.with_database("counting", move || shop::count(&restored)).await?;
    if !counted_rows.intact {
        return Err(CliError::new(ErrorCode::RestoreMismatch, "SQLite finds the restored database damaged"));
    }
    let tables = compare(&manifest, &counted_rows.rows);
    let equal = tables.iter().all(TableView::is_equal);
    let took = elapsed(app, at);
    let text = format!("opened by SQLite itself, intact, {} counted", counted(tables.len() as u64, "table"));
    say(app, &step_line("proof", &text, took, if equal { "ok" } else { "DIFFERENT" }))?;
    Ok(tables)
}

/// Every table that was captured or restored, with its rows in both.
fn compare(manifest: &Manifest, restored: &std::collections::BTreeMap<String, u64>) -> Vec<TableView> {
    let plain = |name: &str| name.strip_prefix("main.").unwrap_or(name).to_owned();
    let captured: std::collections::BTreeMap<String, u64> = manifest
        .databases
        .iter()
        .flat_map(|database| &database.tables)
        .map(|(name, table)| (plain(name), table.rows))
        .collect();
    let mut names: Vec<&String> = captured.keys().chain(restored.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .map(|name| TableView {
            table: name.clone(),
            captured_rows: captured.get(name).copied(),
            restored_rows: restored.get(name).copied(),
        })
        .collect()
}
