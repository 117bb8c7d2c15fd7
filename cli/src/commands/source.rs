//! `holdfast source …`

use std::collections::BTreeMap;

use holdfast_model::ErrorCode;
use holdfast_model::fleet::{Fleet, to_yaml};
use holdfast_model::text::nearest;
use holdfast_proto::v1;
use serde::{Deserialize, Serialize};

use super::fleet_files::apply_text;
use super::source_definition::{check, source_file};
use super::source_discover;
use crate::app::App;
use crate::args::fleet::{SourceAddArgs, SourceCommand, SourceDebugArgs, SourcePauseArgs, SourceRemoveArgs};
use crate::client::Client;
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::output::text::{plain, size};
use crate::output::{Align, Column, Look, Record, Tone, format};
use crate::views::fleet::SourceView;
use crate::views::moment;

/// How long debug lines are written when nobody says, in seconds.
const DEBUG_SECONDS: u32 = 3600;

pub(super) async fn source(app: &mut App, command: SourceCommand) -> CliResult {
    match command {
        SourceCommand::Add(args) => add(app, &args).await,
        SourceCommand::List => list(app).await,
        SourceCommand::Show(args) => show(app, &args.name).await,
        SourceCommand::Discover(args) => source_discover::discover(app, args).await,
        SourceCommand::Test(args) => test(app, &args.name).await,
        SourceCommand::Pause(args) => pause(app, &args).await,
        SourceCommand::Resume(args) => resume(app, &args.name).await,
        SourceCommand::Debug(args) => debug(app, &args).await,
        SourceCommand::Remove(args) => remove(app, args).await,
    }
}

async fn definitions(client: &Client, name: &str) -> CliResult<Vec<SourceView>> {
    let request = v1::ListDefinitionsRequest { kind: "sources".to_owned(), name: name.to_owned() };
    Ok(client.list_definitions(request).await?.definitions.into_iter().map(SourceView::from).collect())
}

/// The definition of one source.
pub(super) async fn definition(client: &Client, name: &str) -> CliResult<SourceView> {
    match definitions(client, name).await {
        Ok(found) if !found.is_empty() => found
            .into_iter()
            .find(|view| view.name == name)
            .ok_or_else(|| CliError::new(ErrorCode::NotFound, format!("there is no source {name:?}"))),
        Err(error) if error.code() != ErrorCode::NotFound => Err(error),
        _ => {
            let all = definitions(client, "").await?;
            let error = CliError::new(ErrorCode::NotFound, format!("there is no source {name:?}"));
            Err(match nearest(name, all.iter().map(|view| view.name.as_str())) {
                Some(near) => error.because(format!("did you mean {near:?}?")),
                None => error,
            }
            .then("holdfast source list"))
        }
    }
}

async fn add(app: &mut App, args: &SourceAddArgs) -> CliResult {
    let text = source_file(args)?;
    check(&format!("source add {}", args.name), &text)?;
    if args.dry_run {
        app.output.write(&text)?;
        return Ok(ExitStatus::Ok);
    }
    let client = app.connect().await?;
    match definition(&client, &args.name).await {
        Ok(_) => {
            return Err(CliError::new(
                ErrorCode::AlreadyExists,
                format!("there is a source {:?} already", args.name),
            )
            .then(format!("holdfast source show {}", args.name))
            .then("holdfast export > fleet.yaml    # change it there, then holdfast apply -f fleet.yaml"));
        }
        Err(error) if error.code() == ErrorCode::NotFound => {}
        Err(error) => return Err(error),
    }
    apply_text(app, &client, &format!("source add {}", args.name), text).await?;
    let view = definition(&client, &args.name).await?;
    app.output.show(&view, |_| format!("source {} is declared\n", view.name))?;
    app.output
        .next(&[format!("holdfast source test {}", args.name), format!("holdfast backup run {}", args.name)]);
    Ok(ExitStatus::Ok)
}

async fn list(app: &mut App) -> CliResult {
    let client = app.connect().await?;
    let found = definitions(&client, "").await?;
    app.output.list(
        &found,
        "no source is declared\n  next   holdfast source add NAME --engine sqlite --agent AGENT --path /srv/app.db",
    )?;
    Ok(ExitStatus::Ok)
}

async fn show(app: &mut App, name: &str) -> CliResult {
    let client = app.connect().await?;
    let view = definition(&client, name).await?;
    app.output.show(&view, |look| describe(&view, look))?;
    app.output.next(&[format!("holdfast status {name}"), format!("holdfast backup list {name}")]);
    Ok(ExitStatus::Ok)
}

/// The definition as a fleet file, with who changed it last.
fn describe(view: &SourceView, look: &Look) -> String {
    let owner = view.owner.as_deref().map(|owner| format!(", managed by {}", plain(owner)));
    let changed = format!(
        "# changed {} by {}{}\n",
        look.time_or(view.updated_at, "-"),
        plain(&view.updated_by),
        owner.unwrap_or_default(),
    );
    let yaml = match (view.source(), view.name.parse()) {
        (Some(source), Ok(name)) => {
            to_yaml(&Fleet { sources: BTreeMap::from([(name, source.clone())]), ..Fleet::default() })
        }
        // Written by a newer controller: shown as it came.
        _ => format!("{:#}\n", view.definition),
    };
    format!("{changed}{yaml}")
}

/// What a probe found, as the agent reports it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct ProbeView {
    #[serde(skip_deserializing)]
    source: String,
    version: String,
    logical_bytes: u64,
    parts: Vec<String>,
    tools: BTreeMap<String, String>,
    steps: Vec<(String, String)>,
    warnings: Vec<String>,
}

impl Record for ProbeView {
    const KIND: &'static str = "ProbeReport";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("SOURCE", |probe, _| probe.source.clone()),
            Column::<Self>::left("VERSION", |probe, _| probe.version.clone()),
            Column::<Self>::right("SIZE", |probe, _| size(probe.logical_bytes)),
            Column::<Self>::left("PARTS", |probe, _| probe.parts.join(" ")),
        ]
    }

    fn name(&self) -> String {
        self.source.clone()
    }
}

async fn test(app: &mut App, name: &str) -> CliResult {
    let client = app.connect().await?;
    let reply = client.test_source(v1::TestSourceRequest { source: name.to_owned() }).await?;
    let mut probe: ProbeView = serde_json::from_str(&reply.report_json).map_err(|error| {
        CliError::new(ErrorCode::Internal, "the agent's report cannot be read").because(error.to_string())
    })?;
    name.clone_into(&mut probe.source);
    app.output.show(&probe, |look| steps(&probe, look))?;
    app.output.next(&[format!("holdfast backup run {name}")]);
    Ok(ExitStatus::Ok)
}

fn steps(probe: &ProbeView, look: &Look) -> String {
    let mut rows: Vec<Vec<(String, Tone)>> = Vec::new();
    let mut row = |sign: &str, tone: Tone, name: &str, detail: String| {
        rows.push(vec![
            (format!("  {sign}"), tone),
            (plain(name), Tone::Plain),
            (plain(&detail), Tone::Plain),
        ]);
    };
    for (step, found) in &probe.steps {
        row("ok", Tone::Good, step, found.clone());
    }
    for (tool, version) in &probe.tools {
        row("ok", Tone::Good, "tool", format!("{tool} {version}"));
    }
    row("ok", Tone::Good, "captures", format!("{}   {}", size(probe.logical_bytes), probe.parts.join("  ")));
    for warning in &probe.warnings {
        row("!!", Tone::Warning, "warning", warning.clone());
    }
    format!(
        "{}   {}\n{}",
        plain(&probe.source),
        plain(&probe.version),
        format::grid(&[("", Align::Left); 3], &rows, look)
    )
}

async fn pause(app: &mut App, args: &SourcePauseArgs) -> CliResult {
    let client = app.connect().await?;
    let for_seconds = args.length.map_or(Ok(0), |length| u32::try_from(length.secs()));
    let for_seconds = for_seconds.map_err(|_| CliError::usage("--for is longer than a year"))?;
    let reason = app.ask_reason("a pause")?;
    let request = v1::PauseSourceRequest { source: args.name.clone(), reason, for_seconds };
    let pause = client.pause_source(request).await?.pause.unwrap_or_default();
    let until = match moment(pause.until) {
        Some(until) => format!("until {}", app.output.look().both_times(until)),
        None => "until it is resumed".to_owned(),
    };
    app.output.note(&format!("source {} is paused {until}", args.name));
    app.output.next(&[format!("holdfast source resume {}", args.name)]);
    Ok(ExitStatus::Ok)
}

async fn resume(app: &mut App, name: &str) -> CliResult {
    let client = app.connect().await?;
    let reply = client.resume_source(v1::ResumeSourceRequest { source: name.to_owned() }).await?;
    app.output.note(&if reply.was_paused {
        format!("source {name} is not paused any more")
    } else {
        format!("source {name} was not paused")
    });
    app.output.next(&[format!("holdfast policy next {name}")]);
    Ok(ExitStatus::Ok)
}

async fn debug(app: &mut App, args: &SourceDebugArgs) -> CliResult {
    let client = app.connect().await?;
    let for_seconds = match args.length {
        _ if args.off => Ok(0),
        Some(length) => u32::try_from(length.secs()),
        None => Ok(DEBUG_SECONDS),
    };
    let for_seconds = for_seconds.map_err(|_| CliError::usage("--for is longer than a week"))?;
    let request = v1::DebugSourceRequest { source: args.name.clone(), for_seconds };
    let reply = client.debug_source(request).await?;
    match moment(reply.debug.and_then(|debug| debug.until)) {
        Some(until) => {
            let until = app.output.look().both_times(until);
            app.output.note(&format!("runs of source {} write debug lines until {until}", args.name));
            app.output.next(&[
                format!("holdfast backup run {}", args.name),
                format!("holdfast source debug {} --off", args.name),
            ]);
        }
        None if reply.was_on => {
            app.output.note(&format!("runs of source {} write no debug lines any more", args.name));
        }
        None => app.output.note(&format!("runs of source {} wrote no debug lines", args.name)),
    }
    Ok(ExitStatus::Ok)
}

async fn remove(app: &mut App, args: SourceRemoveArgs) -> CliResult {
    let client = app.connect().await?;
    let view = definition(&client, &args.name).await?;
    if args.dry_run {
        app.output.show(&view, |look| describe(&view, look))?;
        app.output.note("would be removed; its snapshots stay");
        return Ok(ExitStatus::Ok);
    }
    let what = format!("source {} is not protected any more; its snapshots stay", args.name);
    let confirmation = app.ask_name(&what, &args.name)?;
    let request = v1::DeleteDefinitionRequest {
        idempotency_key: app.idempotency_key(),
        kind: "sources".to_owned(),
        name: args.name.clone(),
        confirm: confirmation.name,
        reason: confirmation.reason,
    };
    client.delete_definition(request).await?;
    app.output.note(&format!("source {} is removed; its snapshots stay", args.name));
    app.output.next(&[format!("holdfast backup list {}", args.name)]);
    Ok(ExitStatus::Ok)
}
