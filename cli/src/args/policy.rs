//! `holdfast policy …`

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Policies.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// List policies
    List,
    /// Show the definition of a policy
    Show(PolicyNameArgs),
    /// Show the runs that begin next by themselves
    Next(PolicyNextArgs),
    /// Show which snapshots are kept and which go now, with the reason of each; removes nothing
    Simulate(PolicySimulateArgs),
    /// Remove now what is not kept, without waiting for the next look of the controller
    Cleanup(PolicyCleanupArgs),
}

/// A command about one policy.
#[derive(Debug, Args)]
pub struct PolicyNameArgs {
    /// Name of the policy
    #[arg(value_name = "POLICY")]
    pub name: String,
}

/// `policy next`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast policy next                      of every source
  holdfast policy next pg-main --count 20
  holdfast policy next --policy gold --time local

Times are those at which a run begins, with its jitter and after the window has opened. Runs that follow other runs \
(`after:`) are shown as if each followed at once.")]
pub struct PolicyNextArgs {
    /// Only of this source
    #[arg(value_name = "SOURCE")]
    pub source: Option<String>,

    /// Only of sources under this policy
    #[arg(long, value_name = "POLICY")]
    pub policy: Option<String>,

    /// How many for each source
    #[arg(long, value_name = "1-100", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub count: u32,
}

/// `policy simulate`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast policy simulate pg-main
  holdfast policy simulate gold                            all sources under a policy
  holdfast policy simulate gold --policy-file fleet.yaml   as the policy is in a file
  holdfast policy simulate gold -o json | jq '.items[] | select(.keep | not)'

This is the very plan that the controller carries out: after each backup, after each change of a definition, and hourly.")]
pub struct PolicySimulateArgs {
    /// A source, or a policy with all sources under it
    #[arg(value_name = "SOURCE|POLICY")]
    pub name: String,

    /// A fleet file with the policy as it might become
    #[arg(long, value_name = "FILE")]
    pub policy_file: Option<PathBuf>,
}

/// `policy cleanup`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast policy cleanup --dry-run        what would go, of all sources
  holdfast policy cleanup pg-main
  holdfast policy cleanup gold --yes       all sources under a policy

It removes what `holdfast policy simulate` shows, and nothing else: never the last good snapshot of a source, the last \
verified one, or a held one. What only these snapshots needed gives its room back with the next `holdfast repo prune`.")]
pub struct PolicyCleanupArgs {
    /// A source, or a policy with all sources under it [default: all sources]
    #[arg(value_name = "SOURCE|POLICY")]
    pub name: Option<String>,

    /// Only show what would go
    #[arg(long)]
    pub dry_run: bool,
}
