//! `holdfast explain`, `holdfast completion`, `holdfast man`

use std::path::PathBuf;

use clap::Args;

/// `explain`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast explain HF-2002
  holdfast explain              every code, one line each")]
pub struct ExplainArgs {
    /// An error code; all are listed without one
    #[arg(value_name = "HF-nnnn")]
    pub code: Option<String>,
}

/// `completion`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast completion bash > /etc/bash_completion.d/holdfast
  holdfast completion zsh > \"${fpath[1]}/_holdfast\"
  holdfast completion fish > ~/.config/fish/completions/holdfast.fish")]
pub struct CompletionArgs {
    /// Which shell
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// `man`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast man | man -l -
  holdfast man --to /usr/local/share/man/man1")]
pub struct ManArgs {
    /// Write one page per command into this folder
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
}
