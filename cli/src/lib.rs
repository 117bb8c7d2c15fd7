//! The `holdfast` command line.
//!
//! [`run`] is the whole of it: arguments in, exit status out. In reading order: [`args`] what can be said, `settings`
//! what it comes to, `contexts` and `client` how a controller is reached, `commands` what is done, [`output`] and
//! `error_report` what is printed, [`exit_status`] the verdict.

mod app;
pub mod args;
mod client;
mod commands;
mod confirm;
mod contexts;
mod demo;
pub mod error;
mod error_report;
pub mod exit_status;
pub mod output;
mod references;
mod settings;
mod suggest;
mod usage;
mod views;
mod watch;

use std::ffi::OsString;
use std::io::Write;

use clap::{CommandFactory as _, FromArgMatches as _};
use holdfast_model::ErrorCode;
use holdfast_runtime::telemetry::{self, TelemetryGuard, TelemetrySettings};
use holdfast_runtime::{SystemClock, tls};
use jiff::tz::TimeZone;
use tracing::Instrument as _;

use crate::app::App;
use crate::args::{Cli, Command};
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::output::{Look, Output, Palette};
use crate::settings::{Settings, Surroundings};

/// The variable that names the collector of traces (gRPC), as everywhere in OpenTelemetry.
const OTLP_VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Does what the arguments say, with the streams of this process, and returns the verdict.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitStatus {
    tls::install_crypto_provider();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut surroundings = Surroundings::of_process();
    surroundings.arguments =
        arguments.iter().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let json_errors = usage::wants_json(&arguments, &surroundings);
    let parsed =
        Cli::command().try_get_matches_from(&arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return usage::report(&error, &arguments, &surroundings, json_errors),
    };
    let name = command_name(&cli.command);
    let format_is_a_file = matches!(cli.command, Command::Backup(args::backup::BackupCommand::Export(_)));
    let settings = match Settings::resolve(cli.global, &surroundings, format_is_a_file) {
        Ok(settings) => settings,
        Err(error) => return tell(&error, &surroundings, json_errors),
    };
    let is_demo = matches!(cli.command, Command::Demo(_));
    let runtime = match runtime(is_demo || surroundings.variable(OTLP_VARIABLE).is_some()) {
        Ok(runtime) => runtime,
        Err(error) => return tell(&error, &surroundings, json_errors),
    };
    runtime.block_on(async move {
        let _telemetry = match telemetry(&settings, &surroundings, is_demo) {
            Ok(guard) => guard,
            Err(error) => return tell(&error, &surroundings, json_errors),
        };
        let mut app = app(settings, surroundings);
        let span = tracing::info_span!("command", otel.name = name);
        conduct(&mut app, cli.command, json_errors).instrument(span).await
    })
}

/// Runs a command and tells its error.
async fn conduct(app: &mut App, command: Command, json_errors: bool) -> ExitStatus {
    let outcome = Box::pin(commands::dispatch(app, command)).await;
    // Data that was held back goes out before the error that may explain what is missing.
    let flushed = app.output.finish();
    match outcome.and_then(|status| flushed.map(|()| status)) {
        Ok(status) => status,
        Err(error) => {
            if !error.is_interruption() {
                let text = if json_errors {
                    error_report::render_json(&error)
                } else {
                    error_report::render(&error, app.output.error_palette())
                };
                app.output.error_text(&text);
            }
            error.exit_status()
        }
    }
}

fn app(settings: Settings, surroundings: Surroundings) -> App {
    let clock = SystemClock::shared();
    let look = Look {
        now: clock.now(),
        time: settings.time,
        zone: TimeZone::system(),
        palette: Palette::new(settings.stdout_coloured),
    };
    let output = Output::new(
        settings.format,
        look,
        settings.quiet,
        Palette::new(settings.stderr_coloured),
        Box::new(std::io::BufWriter::with_capacity(OUTPUT_BUFFER_BYTES, std::io::stdout())),
        Box::new(std::io::stderr()),
    );
    App { settings, output, clock, surroundings }
}

/// Held back before it is written, in bytes.
const OUTPUT_BUFFER_BYTES: usize = 64 << 10;

/// An error before there is anything else.
fn tell(error: &CliError, surroundings: &Surroundings, json: bool) -> ExitStatus {
    let palette = Palette::new(surroundings.may_colour(surroundings.stderr_is_terminal, false));
    let text = if json { error_report::render_json(error) } else { error_report::render(error, palette) };
    // Nothing can be said about a standard error that is closed.
    let _ = std::io::stderr().write_all(text.as_bytes());
    error.exit_status()
}

/// The demo runs a controller and an agent, and traces are sent while the command ends; everything else waits for one
/// peer.
fn runtime(has_company: bool) -> CliResult<tokio::runtime::Runtime> {
    let mut builder = if has_company {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    builder.enable_all().build().map_err(|error| {
        CliError::new(ErrorCode::Internal, "the runtime could not be started").because(error.to_string())
    })
}

/// Logs are for whoever asks; traces for whoever collects them.
fn telemetry(settings: &Settings, surroundings: &Surroundings, is_demo: bool) -> CliResult<TelemetryGuard> {
    let filter = match settings.verbosity {
        0 if is_demo => "off",
        0 => "error",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let mut wanted = TelemetrySettings::new("holdfast", env!("CARGO_PKG_VERSION"));
    filter.clone_into(&mut wanted.filter);
    wanted.otlp_endpoint = surroundings.variable(OTLP_VARIABLE).map(str::to_owned);
    telemetry::init(&wanted)
        .map_err(|error| holdfast_model::Failure::from_error(ErrorCode::UsageInvalid, &error).into())
}

/// The name under which traces show a command.
fn command_name(command: &Command) -> &'static str {
    match command {
        Command::Status(_) => "holdfast status",
        Command::Doctor(_) => "holdfast doctor",
        Command::Backup(_) => "holdfast backup",
        Command::Restore(_) => "holdfast restore",
        Command::Run(_) => "holdfast run",
        Command::Policy(_) => "holdfast policy",
        Command::Source(_) => "holdfast source",
        Command::Repo(_) => "holdfast repo",
        Command::Agent(_) => "holdfast agent",
        Command::Init(_) => "holdfast init",
        Command::Apply(_) => "holdfast apply",
        Command::Validate(_) => "holdfast validate",
        Command::Diff(_) => "holdfast diff",
        Command::Export(_) => "holdfast export",
        Command::Audit(_) => "holdfast audit",
        Command::Demo(_) => "holdfast demo",
        _ => "holdfast",
    }
}
