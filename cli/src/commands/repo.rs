//! `holdfast repo …`

use std::time::Duration;

use holdfast_model::ErrorCode;
use holdfast_proto::v1;

use super::fleet_files::apply_text;
use super::source_definition::{check, repository_file};
use super::{details, run};
use crate::app::App;
use crate::args::fleet::{RepoAddArgs, RepoCheckArgs, RepoCommand, RepoCopyArgs, RepoPruneArgs};
use crate::client::Client;
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::output::text::{counted, plain, size};
use crate::output::{Look, OutputFormat, format};
use crate::views::repository::{CopyPlanView, PrunePlanView, RepositoryView, UsageView};
use crate::views::run::RunView;

/// How long a plan may take: it walks through every folder of every snapshot.
const PLAN_TIMEOUT: Duration = Duration::from_secs(3600);

pub(super) async fn repo(app: &mut App, command: RepoCommand) -> CliResult {
    match command {
        RepoCommand::Add(args) => add(app, &args).await,
        RepoCommand::List => list(app).await,
        RepoCommand::Check(args) => check_repository(app, args).await,
        RepoCommand::Usage(args) => usage(app, args.name).await,
        RepoCommand::Prune(args) => prune(app, args).await,
        RepoCommand::Copy(args) => copy(app, args).await,
    }
}

async fn repositories(client: &Client) -> CliResult<Vec<RepositoryView>> {
    let reply = client.list_repositories(v1::ListRepositoriesRequest {}).await?;
    Ok(reply.repositories.into_iter().map(RepositoryView::from).collect())
}

async fn add(app: &mut App, args: &RepoAddArgs) -> CliResult {
    let text = repository_file(args)?;
    let file = format!("repo add {}", args.name);
    check(&file, &text)?;
    if args.dry_run {
        app.output.write(&text)?;
        return Ok(ExitStatus::Ok);
    }
    let client = app.connect().await?;
    let request = v1::ListDefinitionsRequest { kind: "repositories".to_owned(), name: String::new() };
    let existing = client.list_definitions(request).await?.definitions;
    if existing.iter().any(|definition| definition.name == args.name) {
        return Err(CliError::new(
            ErrorCode::AlreadyExists,
            format!("there is a repository {:?} already", args.name),
        )
        .then("holdfast repo list"));
    }
    apply_text(app, &client, &file, text).await?;
    let reply = client.init_repository(v1::InitRepositoryRequest { name: args.name.clone() }).await.map_err(
        |error| {
            error
                .at_stake(format!("repository {} is declared, but not open", args.name))
                .then("holdfast repo list")
        },
    )?;
    let view =
        repositories(&client).await?.into_iter().find(|view| view.name == args.name).ok_or_else(|| {
            CliError::new(ErrorCode::Internal, "the repository that was added is not listed")
        })?;
    app.output.show(&view, |_| {
        let id = reply.repository_id.get(..8).unwrap_or(&reply.repository_id);
        if reply.created {
            format!("repository {} is created at {} (id {id})\n", view.name, plain(&view.url))
        } else {
            format!(
                "repository {} is opened at {} (id {id}), it holds {}\n",
                view.name,
                plain(&view.url),
                counted(reply.snapshots, "snapshot")
            )
        }
    })?;
    if reply.created {
        app.output.note("keep a copy of its key elsewhere: without it nothing can be read");
    }
    app.output.next(&["holdfast source add NAME --engine ENGINE --agent AGENT …".to_owned()]);
    Ok(ExitStatus::Ok)
}

async fn list(app: &mut App) -> CliResult {
    let client = app.connect().await?;
    let found = repositories(&client).await?;
    app.output.list(
        &found,
        "no repository is declared\n  next   holdfast repo add main --url file:///var/lib/holdfast/main --key-file /etc/holdfast/main.key",
    )?;
    Ok(ExitStatus::Ok)
}

async fn check_repository(app: &mut App, args: RepoCheckArgs) -> CliResult {
    let client = app.connect().await?;
    let what = v1::StartCheck { repository: args.name, read_data: args.read_data };
    let request = v1::StartRequest {
        idempotency_key: app.idempotency_key(),
        what: Some(v1::start_request::What::Check(what)),
    };
    let runs = client.start_runs(request).await?.runs.into_iter().map(RunView::from).collect();
    run::started(app, &client, runs).await
}

async fn usage(app: &mut App, name: String) -> CliResult {
    let client = app.connect().await?;
    let reply = client.repository_usage(v1::RepositoryUsageRequest { name: name.clone() }).await?;
    let repository = RepositoryView::from(reply.repository.unwrap_or_default());
    let usage: Vec<UsageView> =
        reply.sources.into_iter().map(|source| UsageView::new(&repository.name, source)).collect();
    if app.output.is_human() {
        let head = describe(&repository, app.output.look());
        let rows = format::render(app.output.format(), &usage, app.output.look());
        app.output.write(&format!("{head}\n{rows}"))?;
    } else {
        app.output.list(&usage, "")?;
    }
    app.output.next(&[format!("holdfast repo check {name}")]);
    Ok(ExitStatus::Ok)
}

async fn prune(app: &mut App, args: RepoPruneArgs) -> CliResult {
    let client = app.connect().await?;
    let request = v1::PruneRepositoryRequest {
        idempotency_key: String::new(),
        name: args.name.clone(),
        dry_run: true,
        ..v1::PruneRepositoryRequest::default()
    };
    let planned = client.patient(PLAN_TIMEOUT).prune_repository(request).await?.plan.unwrap_or_default();
    let plan = PrunePlanView::new(&args.name, planned);
    if args.dry_run {
        app.output.show(&plan, |_| describe_plan(&plan))?;
        if plan.needs_approval {
            app.output.next(&[format!("holdfast repo prune {0} --confirm {0} --reason TEXT", args.name)]);
        } else {
            app.output.next(&[format!("holdfast repo prune {}", args.name)]);
        }
        return Ok(ExitStatus::Ok);
    }
    let mut request = v1::PruneRepositoryRequest {
        idempotency_key: app.idempotency_key(),
        name: args.name.clone(),
        ..v1::PruneRepositoryRequest::default()
    };
    if plan.needs_approval {
        let what = format!(
            "a prune of repository {} would free {}, {} % of its packs",
            plan.repository,
            size(plan.freed_bytes),
            plan.freed_percent
        );
        let confirmed = app.ask_name(&what, &args.name)?;
        (request.confirm, request.reason) = (confirmed.name, confirmed.reason);
    }
    let run = run::present(client.prune_repository(request).await?.run)?;
    run::started(app, &client, vec![run]).await
}

async fn copy(app: &mut App, args: RepoCopyArgs) -> CliResult {
    let client = app.connect().await?;
    let mut request = v1::CopySnapshotsRequest {
        idempotency_key: String::new(),
        from: args.from,
        to: args.to,
        source: args.source.unwrap_or_default(),
        snapshots: args.snapshot,
        heal: args.heal,
        dry_run: args.dry_run,
    };
    if args.dry_run {
        let (from, to) = (request.from.clone(), request.to.clone());
        let planned = client.patient(PLAN_TIMEOUT).copy_snapshots(request).await?.plan.unwrap_or_default();
        let plan = CopyPlanView::new(&from, &to, planned);
        app.output.show(&plan, |look| describe_copy(&plan, look))?;
        let heal = if args.heal { " --heal" } else { "" };
        app.output.next(&[format!("holdfast repo copy {from} {to}{heal}")]);
        return Ok(ExitStatus::Ok);
    }
    request.idempotency_key = app.idempotency_key();
    let run = run::present(client.copy_snapshots(request).await?.run)?;
    run::started(app, &client, vec![run]).await
}

fn describe_copy(plan: &CopyPlanView, look: &Look) -> String {
    let mut lines = vec![
        (
            "snapshots",
            format!("{}, {} are there", counted(plan.snapshots.len() as u64, "snapshot"), plan.already),
        ),
        (
            "sends",
            format!(
                "{}, {} of {}",
                counted(plan.blobs, "blob"),
                size(plan.stored_bytes),
                size(plan.content_bytes)
            ),
        ),
    ];
    lines.extend(plan.concerns.iter().map(|concern| ("found", look.palette.bad(&plain(concern)))));
    let table = match plan.snapshots.is_empty() {
        true => String::new(),
        false => format!("\n{}", format::render(OutputFormat::Table, &plan.snapshots, look)),
    };
    format!("copy from {} to {}\n{}{table}", plain(&plan.from), plain(&plan.to), details(&lines))
}

fn describe_plan(plan: &PrunePlanView) -> String {
    let packs = |count, bytes| format!("{}, {}", counted(count, "pack"), size(bytes));
    let mut lines = vec![
        ("kept", counted(plan.snapshots, "snapshot")),
        ("stored", packs(plan.packs, plan.stored_bytes)),
        ("needed", format!("{}, not needed {}", size(plan.live_bytes), size(plan.dead_bytes))),
        ("go", packs(plan.delete_packs, plan.delete_bytes)),
        (
            "repacked",
            format!(
                "{}, of which {} stay",
                packs(plan.repack_packs, plan.repack_bytes),
                size(plan.repack_live_bytes)
            ),
        ),
        ("no index", packs(plan.orphan_packs, plan.orphan_bytes)),
        ("frees", format!("{}, {} % of the packs", size(plan.freed_bytes), plan.freed_percent)),
        ("leaves", format!("{} that are not needed", size(plan.unused_left_bytes))),
    ];
    lines.extend(plan.concerns.iter().map(|concern| ("found", plain(concern))));
    format!("prune of {}\n{}", plain(&plan.repository), details(&lines))
}

fn describe(view: &RepositoryView, look: &Look) -> String {
    let state = match &view.failure {
        Some(failure) => {
            look.palette.bad(&format!("{} [{}] {}", view.state, failure.code, plain(&failure.message)))
        }
        None => look.palette.good(&view.state),
    };
    format!(
        "{}   {state}   {}\n{}",
        plain(&view.name),
        plain(&view.url),
        details(&[
            ("stored", format!("{} in {}", size(view.stored_bytes), counted(view.packs, "pack"))),
            (
                "shows",
                format!(
                    "{} in {} ({})",
                    size(view.logical_bytes),
                    counted(view.snapshots, "snapshot"),
                    view.ratio()
                )
            ),
            ("free", view.free_bytes.map(size).unwrap_or_default()),
            ("trash", if view.trash_bytes > 0 { size(view.trash_bytes) } else { String::new() }),
            ("checked", look.time_or(view.checked_at, "never")),
            ("read", view.reading.as_ref().map(|reading| reading.describe(look)).unwrap_or_default()),
            ("pruned", look.time_or(view.pruned_at, "never")),
        ])
    )
}
