//! `holdfast policy …`

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_model::ErrorCode;
use holdfast_model::fleet::{Fleet, to_yaml};
use holdfast_model::source::Source;
use holdfast_model::text::nearest;
use holdfast_proto::v1;

use crate::app::App;
use crate::args::policy::{PolicyCleanupArgs, PolicyCommand, PolicyNextArgs, PolicySimulateArgs};
use crate::client::Client;
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::output::Look;
use crate::output::text::{counted, plain};
use crate::views::policy::{PolicyView, RetentionView, UpcomingView};

/// How long a removal may take: one request to the storage for each snapshot.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(3600);

pub(super) async fn policy(app: &mut App, command: PolicyCommand) -> CliResult {
    match command {
        PolicyCommand::List => list(app).await,
        PolicyCommand::Show(args) => show(app, &args.name).await,
        PolicyCommand::Next(args) => next(app, args).await,
        PolicyCommand::Simulate(args) => simulate(app, args).await,
        PolicyCommand::Cleanup(args) => clean_up(app, args).await,
    }
}

/// All policies, each with the sources under it.
async fn policies(client: &Client) -> CliResult<Vec<PolicyView>> {
    let request = |kind: &str| v1::ListDefinitionsRequest { kind: kind.to_owned(), name: String::new() };
    let mut views: Vec<PolicyView> = client
        .list_definitions(request("policies"))
        .await?
        .definitions
        .into_iter()
        .map(PolicyView::from)
        .collect();
    for definition in client.list_definitions(request("sources")).await?.definitions {
        let source: Option<Source> = serde_json::from_str(&definition.spec_json).ok();
        let policy = source.and_then(|source| source.policy);
        let view =
            views.iter_mut().find(|view| policy.as_ref().is_some_and(|name| view.name == name.as_str()));
        if let Some(view) = view {
            view.sources.push(definition.name);
        }
    }
    Ok(views)
}

async fn list(app: &mut App) -> CliResult {
    let client = app.connect().await?;
    let found = policies(&client).await?;
    app.output.list(
        &found,
        "no policy is declared: nothing is backed up by itself
  next   holdfast export > fleet.yaml    # add policies: there, then holdfast apply -f fleet.yaml",
    )?;
    Ok(ExitStatus::Ok)
}

async fn show(app: &mut App, name: &str) -> CliResult {
    let client = app.connect().await?;
    let all = policies(&client).await?;
    let Some(view) = all.iter().find(|view| view.name == name) else {
        let error = CliError::new(ErrorCode::NotFound, format!("there is no policy {name:?}"));
        return Err(match nearest(name, all.iter().map(|view| view.name.as_str())) {
            Some(near) => error.because(format!("did you mean {near:?}?")),
            None => error,
        }
        .then("holdfast policy list"));
    };
    app.output.show(view, |look| describe(view, look))?;
    app.output.next(&[format!("holdfast policy next --policy {name}")]);
    Ok(ExitStatus::Ok)
}

/// The definition as a fleet file, with who changed it last.
fn describe(view: &PolicyView, look: &Look) -> String {
    let owner = view.owner.as_deref().map(|owner| format!(", managed by {}", plain(owner)));
    let changed = format!(
        "# changed {} by {}{}\n",
        look.time_or(view.updated_at, "-"),
        plain(&view.updated_by),
        owner.unwrap_or_default(),
    );
    let sources = match view.sources.as_slice() {
        [] => "# no source is under it\n".to_owned(),
        names => format!("# sources: {}\n", names.join(" ")),
    };
    let yaml = match (view.policy(), view.name.parse()) {
        (Some(policy), Ok(name)) => {
            to_yaml(&Fleet { policies: BTreeMap::from([(name, policy.clone())]), ..Fleet::default() })
        }
        // Written by a newer controller: shown as it came.
        _ => format!("{:#}\n", view.definition),
    };
    format!("{changed}{sources}{yaml}")
}

async fn next(app: &mut App, args: PolicyNextArgs) -> CliResult {
    let client = app.connect().await?;
    let request = v1::NextRunsRequest {
        source: args.source.unwrap_or_default(),
        policy: args.policy.unwrap_or_default(),
        count: args.count,
    };
    let schedules = client.next_runs(request).await?.sources;
    let mut lines: Vec<UpcomingView> = schedules.into_iter().flat_map(UpcomingView::of).collect();
    // What comes first stands first; what does not come by the clock stands last.
    lines.sort_by_key(|line| (line.begins_at.is_none(), line.begins_at));
    app.output.list(
        &lines,
        "no source is under a policy: nothing begins by itself
  next   holdfast policy list",
    )?;
    Ok(ExitStatus::Ok)
}

async fn simulate(app: &mut App, args: PolicySimulateArgs) -> CliResult {
    let policy_file = match &args.policy_file {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                CliError::new(ErrorCode::FileInvalid, format!("{} can not be read", path.display()))
                    .because(error.to_string())
            })?;
            Some(v1::FleetFile { name: path.display().to_string(), text })
        }
    };
    let client = app.connect().await?;
    let request = v1::SimulateRequest { name: args.name, policy_file };
    let lines = decisions(client.simulate_policy(request).await?.plans);
    show_decisions(app, &lines)?;
    Ok(ExitStatus::Ok)
}

fn decisions(plans: Vec<v1::RetentionPlan>) -> Vec<RetentionView> {
    plans.into_iter().flat_map(RetentionView::of).collect()
}

fn show_decisions(app: &mut App, lines: &[RetentionView]) -> CliResult<()> {
    app.output.list(lines, "there is no snapshot to keep or to remove")?;
    if let Some(why) = lines.iter().find_map(|line| line.frozen.as_deref()) {
        app.output.note(&format!("nothing is removed now: {}", plain(why)));
    }
    Ok(())
}

async fn clean_up(app: &mut App, args: PolicyCleanupArgs) -> CliResult {
    let client = app.connect().await?;
    let mut request = v1::CleanUpRequest { name: args.name.unwrap_or_default(), dry_run: true };
    let mut lines = decisions(client.clean_up(request.clone()).await?.plans);
    let goes = lines.iter().filter(|line| !line.keep).count() as u64;
    if !args.dry_run && goes > 0 {
        app.ask_yes(&format!("Remove {} for good?", counted(goes, "snapshot")))?;
        request.dry_run = false;
        lines = decisions(client.patient(CLEAN_UP_TIMEOUT).clean_up(request).await?.plans);
    }
    show_decisions(app, &lines)?;
    Ok(ExitStatus::Ok)
}
