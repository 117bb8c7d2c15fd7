//! One file per noun: arguments → calls → output.

mod agent;
mod alert;
mod audit;
mod backup;
mod backup_show;
mod backup_transfer;
mod context;
mod doctor;
mod explain;
mod fleet_files;
mod fleet_init;
mod notify;
mod policy;
mod repo;
mod report;
mod restore;
mod restore_plan;
mod run;
mod source;
mod source_definition;
mod source_discover;
mod status;
mod tools;

use crate::app::App;
use crate::args::Command;
use crate::demo;
use crate::error::CliResult;

/// Does what is asked.
///
/// # Errors
/// Why it was not done.
pub(crate) async fn dispatch(app: &mut App, command: Command) -> CliResult {
    match command {
        Command::Status(args) => status::status(app, args).await,
        Command::Doctor(args) => doctor::doctor(app, args).await,
        Command::Backup(command) => backup::backup(app, command).await,
        Command::Restore(command) => restore::restore(app, command).await,
        Command::Run(command) => run::run(app, command).await,
        Command::Alert(command) => alert::alert(app, command).await,
        Command::Notify(command) => notify::notify(app, command).await,
        Command::Report(command) => report::report(app, command).await,
        Command::Policy(command) => policy::policy(app, command).await,
        Command::Source(command) => source::source(app, command).await,
        Command::Repo(command) => repo::repo(app, command).await,
        Command::Agent(command) => agent::agent(app, command).await,
        Command::Init(args) => fleet_init::init(app, &args),
        Command::Apply(args) => fleet_files::apply(app, args).await,
        Command::Validate(args) => fleet_files::validate(app, args).await,
        Command::Diff(args) => fleet_files::diff(app, args).await,
        Command::Export(args) => fleet_files::export(app, &args).await,
        Command::Schema => fleet_files::schema(app),
        Command::Explain(args) => explain::explain(app, &args),
        Command::Audit(command) => audit::audit(app, command).await,
        Command::Whoami => audit::whoami(app).await,
        Command::Context(command) => context::context(app, command),
        Command::Demo(args) => demo::demo(app, args).await,
        Command::Completion(args) => tools::completion(app, &args),
        Command::Man(args) => tools::man(app, args),
        Command::Version => tools::version(app),
    }
}

/// A block of labelled lines; lines without a value are left out.
fn details(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(label, _)| label.len()).max().unwrap_or_default();
    lines
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(label, value)| format!("  {label:<width$}   {value}\n"))
        .collect()
}
