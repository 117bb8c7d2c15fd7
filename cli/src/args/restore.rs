//! `holdfast restore …`

use clap::{Args, Subcommand};

/// Restores.
#[derive(Debug, Subcommand)]
pub enum RestoreCommand {
    /// Print exactly what a restore would do; touches nothing
    Plan(RestorePlanArgs),
    /// Restore, from a plan or from the same flags
    Run(RestoreRunArgs),
    /// List restores, newest first
    List(RestoreListArgs),
    /// Show what a restore did
    Show(RestoreRefArgs),
    /// Swap a finished restore into the place of the live data; the old is kept
    Promote(RestorePromoteArgs),
    /// Remove what a restore made, or what its promotion kept
    Discard(RestoreDiscardArgs),
}

/// What to restore, and where to.
#[derive(Debug, Clone, Args)]
pub struct RestoreWhat {
    /// latest, latest~N, a snapshot id, or a time: 13:41, "yesterday 22:00", "10 minutes ago", RFC 3339
    #[arg(long, value_name = "POINT", default_value = "latest")]
    pub to: String,

    /// Another database or path, or either followed by @AGENT; beside the original without it
    #[arg(long, value_name = "TARGET[@AGENT]", conflicts_with = "in_place")]
    pub into: Option<String>,

    /// In the place of the original, after a safety copy; must be confirmed by name
    #[arg(long)]
    pub in_place: bool,

    /// With --in-place, for trees of files: restore only what differs; what makes way is kept in NAME_before_TIME
    #[arg(long, requires = "in_place", conflicts_with = "only")]
    pub delta: bool,

    /// Only this table or path; may be given often
    #[arg(long, value_name = "TABLE|PATH")]
    pub only: Vec<String>,

    /// From this repository
    #[arg(long, value_name = "REPO")]
    pub from: Option<String>,
}

/// `restore plan`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast restore plan pg-main                            newest, beside the original
  holdfast restore plan pg-main --to \"today 13:40\" --into pg_rescue
  holdfast restore plan pg-main --only public.orders
  holdfast restore plan files-etc --to 3f2a91bc --into /srv/rescue@db2
  holdfast restore plan shop --in-place                    shows what would be replaced
  holdfast restore plan files-etc --in-place --delta       a large tree of which little is damaged

Exit status: 0 it can be run, 1 something stands in the way, 4 no such source or snapshot.")]
pub struct RestorePlanArgs {
    /// Name of the source
    #[arg(value_name = "SOURCE")]
    pub source: String,
    /// What and where to.
    #[command(flatten)]
    pub what: RestoreWhat,
}

/// `restore run`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast restore run --plan 8c1d7f2e
  holdfast restore run shop --to latest                    plans, prints the plan, runs it
  holdfast restore run shop --in-place --confirm shop --reason \"orders deleted at 13:41\"

Exit status: 0 restored and equal to the manifest, 1 failed, 3 with warnings, 9 must be confirmed, \
10 what was restored does not agree with the manifest.")]
pub struct RestoreRunArgs {
    /// Name of the source
    #[arg(value_name = "SOURCE", required_unless_present = "plan", conflicts_with = "plan")]
    pub source: Option<String>,

    /// The id that `restore plan` printed
    #[arg(long, value_name = "ID", conflicts_with_all = ["into", "in_place", "delta", "only", "from"])]
    pub plan: Option<String>,

    /// What and where to.
    #[command(flatten)]
    pub what: RestoreWhat,

    /// Print the plan and stop
    #[arg(long, conflicts_with = "plan")]
    pub dry_run: bool,
}

/// `restore list`
#[derive(Debug, Args)]
pub struct RestoreListArgs {
    /// Only of this source
    #[arg(value_name = "SOURCE")]
    pub source: Option<String>,

    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
}

/// A command about one restore.
#[derive(Debug, Args)]
pub struct RestoreRefArgs {
    /// Id of the restore, or the end of it that lists print
    #[arg(value_name = "RUN")]
    pub run: String,
}

/// `restore promote`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast restore promote 8c1d7f2e
  holdfast restore promote 8c1d7f2e --confirm shop --reason \"orders deleted at 13:41\"

The former data is kept as NAME_before_TIMESTAMP until `holdfast restore discard`.")]
pub struct RestorePromoteArgs {
    /// Id of the restore, or the end of it that lists print
    #[arg(value_name = "RUN")]
    pub run: String,
}

/// `restore discard`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast restore discard 8c1d7f2e                   removes what this restore made
  holdfast restore discard 8c1d7f2e --confirm shop    the same, without a question

A restore that failed or was cancelled may have left something too: what its agent remembers of it is removed.")]
pub struct RestoreDiscardArgs {
    /// Id of the restore or promotion, or the end of it that lists print
    #[arg(value_name = "RUN")]
    pub run: String,
}
