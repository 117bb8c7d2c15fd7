//! `holdfast status` and `holdfast doctor`

use clap::Args;

/// `status`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast status                       all sources, worst first
  holdfast status pg-main               one source
  holdfast status --check -q            for monitoring: only the exit status speaks

Exit status with --check: 0 every source is protected, 10 a snapshot is damaged, 11 a source is not protected (or there \
is no source at all). Without --check: 0 when the status could be shown.")]
pub struct StatusArgs {
    /// Only this source
    #[arg(value_name = "SOURCE")]
    pub source: Option<String>,

    /// The exit status is the verdict
    #[arg(long)]
    pub check: bool,

    /// Only what needs attention
    #[arg(long)]
    pub problems: bool,
}

/// `doctor`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast doctor
  holdfast doctor --agent db1

Exit status: 0 nothing failed (warnings are shown), 1 something failed, 7 the controller cannot be reached.")]
pub struct DoctorArgs {
    /// Only findings about this source
    #[arg(long, value_name = "SOURCE", group = "about")]
    pub source: Option<String>,

    /// Only findings about this agent
    #[arg(long, value_name = "AGENT", group = "about")]
    pub agent: Option<String>,

    /// Only findings about this repository
    #[arg(long, value_name = "REPO", group = "about")]
    pub repo: Option<String>,
}
