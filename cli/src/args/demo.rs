//! `holdfast demo`

use std::path::PathBuf;

use clap::Args;

/// `demo`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast demo                          stays up for a look around; Ctrl-C stops and removes it
  holdfast demo --once                   exits with the verdict
  holdfast demo --once --keep /tmp/shop  keeps the repository and its password

No root, no network, no container: controller, agent and a shop database in one process, on free ports.
Exit status: 0 rows restored = rows captured, 1 a step failed, 10 they differ.")]
pub struct DemoArgs {
    /// Do everything once and exit with the verdict
    #[arg(long)]
    pub once: bool,

    /// Work in this folder, which must be empty or not exist, and keep it
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}
