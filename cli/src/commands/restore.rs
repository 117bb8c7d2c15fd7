//! `holdfast restore …`

use holdfast_model::ErrorCode;
use holdfast_proto::v1;

use super::{restore_plan, run};
use crate::app::App;
use crate::args::restore::{
    RestoreCommand, RestoreDiscardArgs, RestoreListArgs, RestorePlanArgs, RestorePromoteArgs, RestoreRunArgs,
    RestoreWhat,
};
use crate::client::Client;
use crate::confirm::Confirmation;
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::output::text::{plain, utc};
use crate::references::{RecoveryTarget, SnapshotReference, nth_latest, recovery_target};
use crate::views::plan::PlanView;
use crate::views::run::RunView;

pub(super) async fn restore(app: &mut App, command: RestoreCommand) -> CliResult {
    match command {
        RestoreCommand::Plan(args) => plan(app, args).await,
        RestoreCommand::Run(args) => start(app, args).await,
        RestoreCommand::List(args) => list(app, args).await,
        RestoreCommand::Show(args) => run::show(app, args.run).await,
        RestoreCommand::Promote(args) => promote(app, args).await,
        RestoreCommand::Discard(args) => discard(app, args).await,
    }
}

async fn plan(app: &mut App, args: RestorePlanArgs) -> CliResult {
    let client = app.connect().await?;
    let plan = make_plan(app, &client, &args.source, &args.what).await?;
    let runnable = plan.obstacles.is_empty();
    app.output.show(&plan, |look| restore_plan::render(&plan, look))?;
    if runnable {
        app.output.next(&[format!("holdfast restore run --plan {}", plan.plan_id)]);
        Ok(ExitStatus::Ok)
    } else {
        Ok(ExitStatus::Failed)
    }
}

/// Asks the controller, after the target was put into the words of the wire.
async fn make_plan(app: &mut App, client: &Client, source: &str, what: &RestoreWhat) -> CliResult<PlanView> {
    let to = match recovery_target(&what.to, &app.now())? {
        RecoveryTarget::Moment(at) => {
            // What was typed is echoed before anything is done with it.
            let shown = app.output.look().both_times(at);
            app.output.note(&format!("to the newest snapshot not after {shown}"));
            utc(at)
        }
        RecoveryTarget::Snapshot(SnapshotReference::Id(id)) => id,
        RecoveryTarget::Snapshot(SnapshotReference::Latest {
            source: None,
            back: 0,
            snapshot_type: None,
        }) => "latest".to_owned(),
        RecoveryTarget::Snapshot(SnapshotReference::Latest { source: of, back, snapshot_type }) => {
            if of.as_deref().is_some_and(|of| of != source) {
                return Err(CliError::usage(format!(
                    "{:?} is a snapshot of another source than {source}",
                    what.to
                )));
            }
            let found =
                crate::app::snapshots(client, Some(source), what.from.as_deref(), SEARCHED_MAX).await?;
            nth_latest(&found, back, snapshot_type.as_deref())?.id.clone()
        }
    };
    let request = v1::PlanRestoreRequest {
        source: source.to_owned(),
        to,
        into: what.into.clone().unwrap_or_default(),
        in_place: what.in_place,
        delta: what.delta,
        only: what.only.clone(),
        repository: what.from.clone().unwrap_or_default(),
    };
    Ok(PlanView::new(source, client.plan_restore(request).await?))
}

/// How many snapshots are looked through for `latest~N`.
const SEARCHED_MAX: u32 = 10_000;

async fn start(app: &mut App, args: RestoreRunArgs) -> CliResult {
    let client = app.connect().await?;
    let (plan_id, confirmation) = match (args.plan, args.source) {
        (Some(plan_id), _) => {
            let given = &app.settings.consent;
            let confirmation = given.confirm.first().map(|name| Confirmation {
                name: name.clone(),
                reason: given.reason.clone().unwrap_or_default(),
            });
            (plan_id, confirmation)
        }
        (None, Some(source)) => {
            let plan = make_plan(app, &client, &source, &args.what).await?;
            if args.dry_run || app.output.is_human() {
                app.output.show(&plan, |look| restore_plan::render(&plan, look))?;
                app.output.finish()?;
            }
            if args.dry_run {
                return Ok(if plan.obstacles.is_empty() { ExitStatus::Ok } else { ExitStatus::Failed });
            }
            let confirmation = match (&plan.confirm_with, plan.obstacles.is_empty()) {
                (Some(name), true) => {
                    Some(app.ask_name(&format!("this replaces live data of {}", plain(&plan.source)), name)?)
                }
                _ => None,
            };
            (plan.plan_id, confirmation)
        }
        (None, None) => return Err(CliError::usage("a source or --plan is needed")),
    };
    let run = queue(app, &client, &plan_id, confirmation).await?;
    run::started(app, &client, vec![run]).await
}

/// Queues the restore of a plan. A person who did not know that a name is asked for is asked now.
async fn queue(
    app: &mut App,
    client: &Client,
    plan_id: &str,
    confirmation: Option<Confirmation>,
) -> CliResult<RunView> {
    let key = app.idempotency_key();
    let request = |confirmation: Option<Confirmation>| {
        let (confirm, reason) =
            confirmation.map_or_else(Default::default, |given| (given.name, given.reason));
        v1::RunRestoreRequest { idempotency_key: key.clone(), plan_id: plan_id.to_owned(), confirm, reason }
    };
    let unconfirmed = confirmation.is_none();
    match client.run_restore(request(confirmation)).await {
        Ok(reply) => run::present(reply.run),
        Err(error)
            if error.code() == ErrorCode::NeedsConfirmation
                && unconfirmed
                && app.settings.consent.interactive =>
        {
            app.output.error_line(&plain(&error.failure().message));
            let Some(name) = crate::confirm::Dialogue::ask(
                &mut crate::confirm::Terminal,
                "Type the name of the source to confirm:",
            )
            .ok()
            .flatten()
            .filter(|name| !name.is_empty()) else {
                return Err(error);
            };
            let reason = crate::confirm::reason(&app.settings.consent, &mut crate::confirm::Terminal)?;
            let confirmation = Confirmation { name, reason: reason.unwrap_or_default() };
            run::present(client.run_restore(request(Some(confirmation))).await?.run)
        }
        Err(error) => Err(error),
    }
}

async fn list(app: &mut App, args: RestoreListArgs) -> CliResult {
    let client = app.connect().await?;
    let filter = v1::ListRunsRequest {
        source: args.source.unwrap_or_default(),
        kind: "restore".to_owned(),
        ..v1::ListRunsRequest::default()
    };
    let found = run::runs(&client, &filter, args.limit).await?;
    app.output.list(&found, "no restore yet: nothing is proven\n  next   holdfast restore plan SOURCE")?;
    Ok(ExitStatus::Ok)
}

/// The restore of an id, with what it made.
async fn finished_restore(client: &Client, run_id: String) -> CliResult<RunView> {
    run::present(client.get_run(v1::GetRunRequest { run_id }).await?.run)
}

fn source_of(run: &RunView) -> CliResult<&str> {
    run.source.as_deref().ok_or_else(|| {
        CliError::usage(format!("run {} is not a restore", run.id)).then("holdfast restore list")
    })
}

/// One line per target: what goes where.
fn targets(run: &RunView, line: impl Fn(&holdfast_model::restore::RestoredTarget) -> String) -> String {
    let targets = run.restored.iter().flat_map(|report| &report.targets);
    targets.map(|target| format!("\n  {}", plain(&line(target)))).collect()
}

async fn promote(app: &mut App, args: RestorePromoteArgs) -> CliResult {
    let client = app.connect().await?;
    let run = finished_restore(&client, args.run).await?;
    let name = source_of(&run)?.to_owned();
    let swaps = targets(&run, |target| format!("{} -> {}", target.restored, target.live));
    let what = format!("live data of {} is replaced; the old is kept until discarded{swaps}", plain(&name));
    if !app.settings.consent.interactive {
        app.output.note(&what);
    }
    let confirmation = app.ask_name(&what, &name)?;
    let request = v1::PromoteRestoreRequest {
        idempotency_key: app.idempotency_key(),
        run_id: run.id,
        confirm: confirmation.name,
        reason: confirmation.reason,
    };
    let run = run::present(client.promote_restore(request).await?.run)?;
    run::started(app, &client, vec![run]).await
}

async fn discard(app: &mut App, args: RestoreDiscardArgs) -> CliResult {
    let client = app.connect().await?;
    let run = finished_restore(&client, args.run).await?;
    let name = source_of(&run)?.to_owned();
    let removed = targets(&run, |target| target.kept.clone().unwrap_or_else(|| target.restored.clone()));
    let what = format!("what run {} made or kept for {} is removed{removed}", run.id, plain(&name));
    // Nothing live is touched: the name is enough, or yes.
    let confirm = if app.settings.consent.confirm.contains(&name) {
        name
    } else {
        app.ask_yes(&what)?;
        name
    };
    let request =
        v1::DiscardRestoreRequest { idempotency_key: app.idempotency_key(), run_id: run.id, confirm };
    let run = run::present(client.discard_restore(request).await?.run)?;
    run::started(app, &client, vec![run]).await
}
