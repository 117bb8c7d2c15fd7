//! The command line as clap reads it: what can be said, and the help that says so.

pub mod access;
pub mod alert;
pub mod backup;
pub mod demo;
pub mod fleet;
pub mod global;
pub mod policy;
pub mod report;
pub mod restore;
pub mod run;
pub mod status;
pub mod tools;

use clap::{Parser, Subcommand};

pub use global::GlobalArgs;

/// Shown under the help of the whole.
const ROOT_AFTER_HELP: &str = "\
Examples:
  holdfast demo                               see all of it in ten seconds, in a folder of its own
  holdfast status                             per source: loss if now, restore time, last proof
  holdfast backup run pg-main                 back up, wait, print what was done
  holdfast restore plan pg-main --to latest   what a restore would do; touches nothing
  holdfast explain HF-2002                    causes and remedies of an error

Exit status:
  0 done                       7 unreachable
  1 failed                     8 timeout, the run may go on
  2 usage or invalid file      9 needs confirmation
  3 partial                   10 data bad
  4 not found                 11 objective breached
  5 denied                    20 changes pending
  6 conflict                 130 interrupted

Environment, besides the variables of the options:
  HOLDFAST_TOKEN                  the access token itself
  HOLDFAST_CONTEXTS_FILE          instead of ~/.config/holdfast/contexts.yaml
  HOLDFAST_LOG                    what is logged on standard error, such as debug
  OTEL_EXPORTER_OTLP_ENDPOINT     where traces go
  NO_COLOR, CI                    no colours; no questions and no bars";

/// Back up databases and files, restore them, and know that it works.
#[derive(Debug, Parser)]
#[command(
    name = "holdfast",
    version,
    after_help = ROOT_AFTER_HELP,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What applies to every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show per source what would be lost now, how long a restore takes, and when that was proven
    Status(status::StatusArgs),
    /// Look for problems, each with a remedy
    Doctor(status::DoctorArgs),
    /// Take snapshots, look at them, prove and protect them
    #[command(subcommand, arg_required_else_help = true)]
    Backup(backup::BackupCommand),
    /// Bring data back: plan, run, promote into place, discard
    #[command(subcommand, arg_required_else_help = true)]
    Restore(restore::RestoreCommand),
    /// Follow, stop and repeat what the fleet does
    #[command(subcommand, arg_required_else_help = true)]
    Run(run::RunCommand),
    /// See what is wrong, say that you have seen it, keep it quiet for a time
    #[command(subcommand, arg_required_else_help = true)]
    Alert(alert::AlertCommand),
    /// See how people are told, and test it
    #[command(subcommand, arg_required_else_help = true)]
    Notify(alert::NotifyCommand),
    /// See what a day or a week brought, and how the fleet stands; or send it
    #[command(subcommand, arg_required_else_help = true)]
    Report(report::ReportCommand),
    /// Look at policies, and at what they will do by themselves
    #[command(subcommand, arg_required_else_help = true)]
    Policy(policy::PolicyCommand),
    /// Declare what is protected
    #[command(subcommand, arg_required_else_help = true)]
    Source(fleet::SourceCommand),
    /// Declare where snapshots are kept
    #[command(subcommand, arg_required_else_help = true)]
    Repo(fleet::RepoCommand),
    /// Enrol and revoke agents
    #[command(subcommand, arg_required_else_help = true)]
    Agent(fleet::AgentCommand),
    /// Write example fleet files into a folder, to begin with
    Init(fleet::InitArgs),
    /// Make the fleet what the files say
    Apply(fleet::ApplyArgs),
    /// Check fleet files: syntax, keys, references
    Validate(fleet::ValidateArgs),
    /// Show what applying fleet files would change
    Diff(fleet::DiffArgs),
    /// Print the fleet as a file that `apply` accepts unchanged
    Export(fleet::ExportArgs),
    /// Print the JSON Schema of fleet files, for editors
    Schema,
    /// Explain an error code
    Explain(tools::ExplainArgs),
    /// Read and verify the record of who did what
    #[command(subcommand, arg_required_else_help = true)]
    Audit(access::AuditCommand),
    /// Show who you are to the controller
    Whoami,
    /// Choose between controllers
    #[command(subcommand, arg_required_else_help = true)]
    Context(access::ContextCommand),
    /// Run a whole fleet in one process: backup, accident, restore, proof
    Demo(demo::DemoArgs),
    /// Print the completions of a shell
    Completion(tools::CompletionArgs),
    /// Print the manual page, or write one page per command
    Man(tools::ManArgs),
    /// Print the version
    Version,
}

#[cfg(test)]
mod tests;
