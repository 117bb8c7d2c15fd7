//! `holdfast policy …`

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
