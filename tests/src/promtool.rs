//! `promtool` as an independent reader of what we give to Prometheus. It starts no server.

use std::ffi::OsStr;
use std::process::Command;

use crate::process::{Finished, run};
use crate::wait::PATIENCE;
use crate::{temp_dir, workspace};

/// Runs it with these arguments.
pub fn promtool<S: AsRef<OsStr>>(arguments: &[S]) -> Finished {
    run(Command::new(workspace::tool("promtool")).args(arguments), PATIENCE)
}

/// Checks a text of metrics: its grammar, and the names, units and help texts in it.
///
/// # Panics
/// When it finds anything wrong; shows what.
pub fn check_metrics(text: &str) {
    let folder = temp_dir("promtool");
    let file = folder.path().join("metrics.txt");
    std::fs::write(&file, text).expect("the folder is ours");
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" check metrics <\"$1\""]).arg(workspace::tool("promtool")).arg(file);
    let finished = run(&mut command, PATIENCE);
    let said = format!("{}{}", finished.stdout, finished.stderr);
    assert!(finished.status.success() && said.is_empty(), "{said}\n{text}");
}
