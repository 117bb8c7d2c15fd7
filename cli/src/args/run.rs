//! `holdfast run …`

use clap::{Args, Subcommand, ValueEnum};

/// Runs.
#[derive(Debug, Subcommand)]
pub enum RunCommand {
    /// List runs, newest first
    List(RunListArgs),
    /// Show one run
    Show(RunRefArgs),
    /// Print the log of a run
    Logs(RunLogsArgs),
    /// Follow a run until it ends; the exit status is its verdict
    Watch(RunRefArgs),
    /// Ask a run to stop as soon as it is safe
    Cancel(RunRefArgs),
    /// Do the same again
    Retry(RunRefArgs),
}

/// The kinds of run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the words of the vocabulary; clap would print them as help")]
pub enum KindFilter {
    Backup,
    Restore,
    Promote,
    Discard,
    Verify,
    Check,
    Prune,
    Copy,
}

impl KindFilter {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            KindFilter::Backup => "backup",
            KindFilter::Restore => "restore",
            KindFilter::Promote => "promote",
            KindFilter::Discard => "discard",
            KindFilter::Verify => "verify",
            KindFilter::Check => "check",
            KindFilter::Prune => "prune",
            KindFilter::Copy => "copy",
        }
    }
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the words of the state machine; clap would print them as help")]
pub enum PhaseFilter {
    Queued,
    Assigned,
    Running,
    Committing,
    Succeeded,
    Failed,
    Cancelled,
    Skipped,
}

impl PhaseFilter {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            PhaseFilter::Queued => "queued",
            PhaseFilter::Assigned => "assigned",
            PhaseFilter::Running => "running",
            PhaseFilter::Committing => "committing",
            PhaseFilter::Succeeded => "succeeded",
            PhaseFilter::Failed => "failed",
            PhaseFilter::Cancelled => "cancelled",
            PhaseFilter::Skipped => "skipped",
        }
    }
}

/// `run list`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast run list --phase failed
  holdfast run list --source pg-main --kind backup -o json")]
pub struct RunListArgs {
    /// Only of this source
    #[arg(long, value_name = "SOURCE")]
    pub source: Option<String>,

    /// Only of this kind
    #[arg(long)]
    pub kind: Option<KindFilter>,

    /// Only in this phase
    #[arg(long)]
    pub phase: Option<PhaseFilter>,

    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
}

/// A command about one run.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 done, 1 failed, 3 succeeded with warnings, 4 no such run; of a run that failed, the status of its error.")]
pub struct RunRefArgs {
    /// Id of the run, or the end of it that lists print
    #[arg(value_name = "RUN")]
    pub run: String,
}

/// `run logs`
#[derive(Debug, Args)]
pub struct RunLogsArgs {
    /// Id of the run, or the end of it that lists print
    #[arg(value_name = "RUN")]
    pub run: String,

    /// Go on until the run ends
    #[arg(short, long)]
    pub follow: bool,
}
