//! `holdfast backup …`

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_model::Failure;
use holdfast_proto::v1;

use super::{backup_show, backup_transfer, details, run};
use crate::app::{App, snapshots};
use crate::args::backup::{BackupCommand, BackupDeleteArgs, BackupListArgs, BackupRunArgs};
use crate::client::Client;
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::output::Look;
use crate::output::text::{counted, plain, short_snapshot, size};
use crate::references::SnapshotReference;
use crate::views::backup_plan::BackupPlanView;
use crate::views::run::RunView;
use crate::views::snapshot::{DeletionView, SnapshotView};

/// How long a plan may take: it reaches the source.
const PLAN_TIMEOUT: Duration = Duration::from_secs(120);

pub(super) async fn backup(app: &mut App, command: BackupCommand) -> CliResult {
    match command {
        BackupCommand::Run(args) => start(app, args).await,
        BackupCommand::List(args) => list(app, args).await,
        BackupCommand::Show(args) => backup_show::show(app, args).await,
        BackupCommand::Verify(args) => verify(app, &args.snapshot).await,
        BackupCommand::Hold(args) => hold(app, &args.snapshot).await,
        BackupCommand::Release(args) => release(app, &args.snapshot).await,
        BackupCommand::Delete(args) => delete(app, &args).await,
        BackupCommand::Export(args) => backup_transfer::export(app, args).await,
        BackupCommand::Import(args) => backup_transfer::import(app, args).await,
    }
}

async fn start(app: &mut App, args: BackupRunArgs) -> CliResult {
    let client = app.connect().await?;
    let sources = if args.all { all_sources(&client).await? } else { args.sources.clone() };
    if sources.is_empty() {
        return Err(CliError::new(holdfast_model::ErrorCode::NotFound, "there is no source to back up")
            .then("holdfast source add NAME --engine ENGINE --agent AGENT …"));
    }
    if args.dry_run {
        return preview(app, &client, &sources, &args).await;
    }
    let mut runs: Vec<RunView> = Vec::new();
    let mut errors: Vec<CliError> = Vec::new();
    for source in sources {
        let what = wanted(&source, &args);
        let request = v1::StartRequest {
            idempotency_key: app.idempotency_key(),
            what: Some(v1::start_request::What::Backup(what)),
        };
        match client.start_runs(request).await {
            Ok(reply) => runs.extend(reply.runs.into_iter().map(RunView::from)),
            Err(error) => errors.push(error),
        }
    }
    if runs.is_empty() {
        return Err(errors.swap_remove(0));
    }
    for error in &errors {
        let text = crate::error_report::render(error, app.output.error_palette());
        app.output.error_text(&text);
    }
    let status = run::started(app, &client, runs).await?;
    // Some sources were not even begun.
    Ok(if errors.is_empty() { status } else { ExitStatus::of_all(&[status, errors[0].exit_status()]) })
}

/// The backup of a source, as a request.
fn wanted(source: &str, args: &BackupRunArgs) -> v1::StartBackup {
    v1::StartBackup {
        source: source.to_owned(),
        snapshot_type: args.kind.map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
        milestone: args.milestone.clone().unwrap_or_default(),
        repository: args.repo.clone().unwrap_or_default(),
    }
}

async fn all_sources(client: &Client) -> CliResult<Vec<String>> {
    let request = v1::ListDefinitionsRequest { kind: "sources".to_owned(), name: String::new() };
    let reply = client.list_definitions(request).await?;
    Ok(reply.definitions.into_iter().map(|definition| definition.name).collect())
}

/// What would run, and the first reason why something would not.
async fn preview(app: &mut App, client: &Client, sources: &[String], args: &BackupRunArgs) -> CliResult {
    let (mut plans, mut first) = (Vec::new(), None);
    for source in sources {
        let request = v1::PlanBackupRequest { backup: Some(wanted(source, args)) };
        match client.patient(PLAN_TIMEOUT).plan_backup(request).await {
            Ok(reply) => {
                let failures = reply.plans.iter().flat_map(|plan| plan.failures.iter().cloned());
                first = first.or(failures.map(|failure| CliError::from(Failure::from(failure))).next());
                plans.extend(reply.plans.into_iter().map(BackupPlanView::from));
            }
            Err(error) => first = first.or(Some(error)),
        }
    }
    if plans.is_empty() {
        return first.map_or(Ok(ExitStatus::Ok), Err);
    }
    if app.output.is_human() {
        let text: Vec<String> = plans.iter().map(|plan| describe_plan(plan, app.output.look())).collect();
        app.output.write(&text.join("\n"))?;
    } else {
        app.output.list(&plans, "")?;
    }
    match first {
        Some(error) => Err(error.at_stake("nothing was begun")),
        None => Ok(ExitStatus::Ok),
    }
}

fn describe_plan(plan: &BackupPlanView, look: &Look) -> String {
    let text = |value: &Option<String>| value.as_deref().map(plain).unwrap_or_default();
    let online = if plan.agent_online { "connected" } else { "not connected" };
    let base = match (&plan.base_snapshot_id, plan.base_committed_at) {
        (Some(id), Some(at)) => format!("{} of {}", short_snapshot(id), look.time(at)),
        _ => "none: everything is read".to_owned(),
    };
    let last = if plan.logical_bytes > 0 {
        format!("{} in {}", size(plan.logical_bytes), counted(plan.files, "file"))
    } else {
        "not known: it was never backed up".to_owned()
    };
    let estimate = plan.estimated_seconds.map_or("not known".to_owned(), |took| {
        let adds = size(plan.estimated_stored_bytes.unwrap_or(0));
        let from = counted(plan.estimated_from.into(), "earlier backup");
        format!("{took:.1} s, adding {adds}, by {from}")
    });
    let host = match (&plan.busy, &plan.when_busy) {
        (Some(busy), Some(then)) => format!("{}: {}", plain(busy), plain(then)),
        (None, Some(_)) => "within its limits".to_owned(),
        _ => String::new(),
    };
    let hooks = [("before: ", &plan.hook_before), ("after: ", &plan.hook_after)];
    let hooks = hooks.iter().filter_map(|(when, name)| Some(format!("{when}{}", name.as_deref()?)));
    let begins =
        plan.waits_for.as_ref().map_or("at once".to_owned(), |what| format!("after {}", plain(what)));
    format!(
        "{} backup of {} to {}\n{}",
        plan.snapshot_type,
        plain(&plan.source),
        plain(&plan.repository),
        details(&[
            ("agent", format!("{} ({online})", plain(&plan.agent))),
            ("policy", text(&plan.policy)),
            ("begins", begins),
            ("host", host),
            ("base", base),
            ("source", last),
            ("takes", estimate),
            ("hooks", hooks.collect::<Vec<_>>().join(", ")),
            (
                "fails",
                plan.failures
                    .iter()
                    .map(|failure| plain(&failure.to_string()))
                    .collect::<Vec<_>>()
                    .join("; ")
            ),
        ])
    )
}

async fn list(app: &mut App, args: BackupListArgs) -> CliResult {
    let client = app.connect().await?;
    let found = snapshots(&client, args.source.as_deref(), args.repo.as_deref(), args.limit).await?;
    let empty = match &args.source {
        Some(source) => format!("no snapshot of {source}\n  next   holdfast backup run {source}"),
        None => "no snapshot\n  next   holdfast backup run SOURCE".to_owned(),
    };
    app.output.list(&found, &empty)?;
    if found.len() >= args.limit as usize {
        app.output.note(&format!("the newest {}; more with --limit", args.limit));
    }
    Ok(ExitStatus::Ok)
}

async fn verify(app: &mut App, snapshot: &str) -> CliResult {
    let reference: SnapshotReference = snapshot.parse()?;
    let client = app.connect().await?;
    let snapshot = app.snapshot_id(&client, &reference).await?;
    let request = v1::StartRequest {
        idempotency_key: app.idempotency_key(),
        what: Some(v1::start_request::What::Verify(v1::StartVerify { snapshot })),
    };
    let runs = client.start_runs(request).await?.runs.into_iter().map(RunView::from).collect();
    run::started(app, &client, runs).await
}

async fn hold(app: &mut App, snapshot: &str) -> CliResult {
    let reference: SnapshotReference = snapshot.parse()?;
    let client = app.connect().await?;
    let id = app.snapshot_id(&client, &reference).await?;
    let reason = app.ask_reason("a hold")?;
    let reply = client.hold_snapshot(v1::HoldRequest { id, reason }).await?;
    let view = SnapshotView::from(reply.snapshot.unwrap_or_default());
    app.output.show(&view, |_| format!("{} is held: nothing removes it\n", short_snapshot(&view.id)))?;
    app.output.next(&[format!("holdfast backup release {}", short_snapshot(&view.id))]);
    Ok(ExitStatus::Ok)
}

async fn delete(app: &mut App, args: &BackupDeleteArgs) -> CliResult {
    let references: Vec<SnapshotReference> =
        args.snapshots.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let client = app.connect().await?;
    let mut ids = Vec::with_capacity(references.len());
    for reference in &references {
        ids.push(app.snapshot_id(&client, reference).await?);
    }
    let request = v1::ForgetSnapshotsRequest { ids, dry_run: true, ..Default::default() };
    let planned = client.forget_snapshots(request.clone()).await?;
    let found: Vec<DeletionView> = planned.snapshots.into_iter().map(DeletionView::from).collect();
    if args.dry_run {
        app.output.list(&found, "")?;
        let flags: String = planned.confirm_with.iter().map(|name| format!(" --confirm {name}")).collect();
        app.output
            .next(&[format!("holdfast backup delete {}{flags} --reason TEXT", args.snapshots.join(" "))]);
        return Ok(ExitStatus::Ok);
    }
    let mut request = v1::ForgetSnapshotsRequest { dry_run: false, ..request };
    for name in planned.confirm_with {
        let of_one = found.iter().find(|view| short_snapshot(&view.snapshot.id) == name);
        let what = match of_one.and_then(|view| view.at_stake.as_deref()) {
            Some(stake) => format!("snapshot {name} would be gone for good: {stake}"),
            None => format!("{} of {name} would be gone for good", counted(found.len() as u64, "snapshot")),
        };
        let confirmed = app.ask_name(&what, &name)?;
        request.confirm.push(confirmed.name);
        request.reason = confirmed.reason;
    }
    client.forget_snapshots(request).await?;
    app.output.list(&found, "")?;
    let repositories: BTreeSet<&str> = found.iter().map(|view| view.snapshot.repository.as_str()).collect();
    app.output.next(
        &repositories.iter().map(|name| format!("holdfast repo prune {name} --dry-run")).collect::<Vec<_>>(),
    );
    Ok(ExitStatus::Ok)
}

async fn release(app: &mut App, snapshot: &str) -> CliResult {
    let reference: SnapshotReference = snapshot.parse()?;
    let client = app.connect().await?;
    let id = app.snapshot_id(&client, &reference).await?;
    let reply = client.show_snapshot(v1::ShowSnapshotRequest { id }).await?;
    let view = SnapshotView::from(reply.snapshot.unwrap_or_default());
    let short = short_snapshot(&view.id);
    let what = format!(
        "snapshot {short} of {} loses its protection ({})",
        view.source.as_deref().unwrap_or("another program"),
        view.held_because.as_deref().unwrap_or("it is not held")
    );
    let confirmation = app.ask_name(&what, short)?;
    let request =
        v1::ReleaseRequest { id: view.id.clone(), confirm: confirmation.name, reason: confirmation.reason };
    let view = SnapshotView::from(client.release_snapshot(request).await?.snapshot.unwrap_or_default());
    app.output.show(&view, |_| format!("{} is not held any more\n", short_snapshot(&view.id)))?;
    Ok(ExitStatus::Ok)
}
