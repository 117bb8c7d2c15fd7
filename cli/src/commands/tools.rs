//! `holdfast completion`, `holdfast man`, `holdfast version`

use clap::CommandFactory as _;
use holdfast_model::ErrorCode;

use crate::app::App;
use crate::args::Cli;
use crate::args::tools::{CompletionArgs, ManArgs};
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::views::local::VersionView;

pub(super) fn completion(app: &mut App, args: &CompletionArgs) -> CliResult {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "holdfast", &mut script);
    app.output.write(&String::from_utf8_lossy(&script))?;
    Ok(ExitStatus::Ok)
}

pub(super) fn man(app: &mut App, args: ManArgs) -> CliResult {
    let Some(folder) = args.to else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(|error| CliError::output(&error))?;
        app.output.write(&String::from_utf8_lossy(&page))?;
        return Ok(ExitStatus::Ok);
    };
    if !folder.is_dir() {
        return Err(CliError::new(ErrorCode::PathInvalid, format!("{} is not a folder", folder.display())));
    }
    clap_mangen::generate_to(Cli::command(), &folder)
        .map_err(|error| CliError::file("writing into", &folder, &error))?;
    app.output.note(&format!("the pages are in {}", folder.display()));
    Ok(ExitStatus::Ok)
}

pub(super) fn version(app: &mut App) -> CliResult {
    let view = VersionView {
        version: env!("CARGO_PKG_VERSION"),
        session_protocol: holdfast_proto::PROTOCOL_VERSION,
        api_version: crate::output::API,
    };
    app.output.show(&view, |_| format!("holdfast {}\n", env!("CARGO_PKG_VERSION")))?;
    Ok(ExitStatus::Ok)
}
