//! `holdfast audit …` and `holdfast context …`

use clap::{Args, Subcommand};

/// The audit log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Print who did what, oldest first
    List(AuditListArgs),
    /// Check the chain of hashes over the whole log
    Verify,
}

/// `audit list`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast audit list
  holdfast audit list --after 1200 -o jsonl >> audit.jsonl")]
pub struct AuditListArgs {
    /// Only entries after this number
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub after: u64,

    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit: u32,
}

/// Controllers that this user knows.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List contexts
    List,
    /// Make a context the current one
    Use(ContextNameArgs),
    /// Add a controller
    Add(ContextAddArgs),
    /// Forget a controller
    Remove(ContextNameArgs),
    /// Show the context that commands would use
    Show(ContextShowArgs),
}

/// A command about one context.
#[derive(Debug, Args)]
pub struct ContextNameArgs {
    /// Name of the context
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `context show`
#[derive(Debug, Args)]
pub struct ContextShowArgs {
    /// Name of the context; the current one without it
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
}

/// `context add`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast context add prod --server https://backup:7443 --ca-file ca.pem
        asks for the token without showing it
  holdfast context add prod --server https://backup:7443 --ca-file ca.pem --token-file token
  pass show hf | holdfast context add prod --server backup:7443 --ca-file ca.pem --token-stdin

A token is never given as an argument: arguments can be read by every process of the machine.")]
pub struct ContextAddArgs {
    /// Name of the context
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Read the token from standard input and keep it in a file of its own
    #[arg(long)]
    pub token_stdin: bool,

    /// Make it the current one, even when there is another
    #[arg(long = "use")]
    pub make_current: bool,

    /// Replace a context of this name
    #[arg(long)]
    pub replace: bool,
}
