//! The command line with a reader that leaves early, and with an output that takes nothing.

use std::fs::File;
use std::io::pipe;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use holdfast_tests::Fleet;
use holdfast_tests::wait::{PATIENCE, until};

use super::add_tree;

/// Runs a command line with this as its standard output; gives the exit status and what it says on standard error.
fn run_into(command: &mut Command, arguments: &[&str], out: impl Into<Stdio>) -> (Option<i32>, String) {
    let folder = holdfast_tests::temp_dir("output");
    let said = folder.path().join("stderr");
    let mut child = command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let status = until(format!("the end of {arguments:?}"), PATIENCE, || child.try_wait().unwrap());
    assert_eq!(status.signal(), None, "{arguments:?}");
    (status.code(), std::fs::read_to_string(&said).unwrap())
}

/// A pipe whose reader has left.
fn closed_pipe() -> Stdio {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    writer.into()
}

/// Commands that print, with the exit status that their verdict has.
fn commands(run: &str) -> Vec<(Vec<&str>, i32)> {
    let lists = [
        vec!["backup", "list"],
        vec!["backup", "show", "latest"],
        vec!["run", "list"],
        vec!["run", "show", run],
        vec!["run", "logs", run],
        vec!["run", "logs", run, "--follow"],
        vec!["source", "list"],
        vec!["repo", "list"],
        vec!["agent", "list"],
        vec!["status"],
        vec!["audit", "list"],
        vec!["export"],
        vec!["version"],
        vec!["man"],
        vec!["completion", "bash"],
        vec!["--help"],
    ];
    let mut all: Vec<_> = lists.into_iter().map(|arguments| (arguments, 0)).collect();
    // The verdict is the exit status, whoever reads what was printed.
    all.push((vec!["backup", "run", "tree", "--progress", "none", "--quiet"], 0));
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_early_ends_no_command_with_an_error() {
    let fleet = Fleet::start().await;
    add_tree(&fleet, "a1").await;
    let run = fleet.backup_well("tree", "full").await;
    for (arguments, verdict) in commands(&run.id) {
        for format in ["table", "json"] {
            if matches!(arguments[0], "--help" | "man" | "completion") && format == "json" {
                continue;
            }
            let run = |out| run_into(fleet.cli().args(["--output", format]), &arguments, out);
            let (read, unread) = (run(Stdio::null()), run(closed_pipe()));
            assert_eq!(unread, read, "{arguments:?} as {format}");
            assert_eq!(unread.0, Some(verdict), "{arguments:?} as {format}: {}", unread.1);
        }
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_keeps_its_verdict_when_nobody_reads() {
    let fleet = Fleet::start().await;
    let (status, said) = run_into(&mut fleet.cli(), &["run", "show", "nothing"], closed_pipe());
    let (expected, and) = run_into(&mut fleet.cli(), &["run", "show", "nothing"], Stdio::null());
    assert_eq!((status, &said), (expected, &and));
    assert_ne!(status, Some(0));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_nobody_reads_to_its_end_has_failed() {
    let fleet = Fleet::start().await;
    add_tree(&fleet, "a1").await;
    fleet.backup_well("tree", "full").await;
    let export = ["backup", "export", "latest", "-o", "-"];
    let (status, said) = run_into(&mut fleet.cli(), &export, closed_pipe());
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("HF-1011"), "{said}");
    assert!(said.contains("the output could not be written"), "{said}");
    assert!(said.contains("the reader closed its end of the pipe"), "{said}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_is_full_is_an_error_of_every_command() {
    let fleet = Fleet::start().await;
    add_tree(&fleet, "a1").await;
    let run = fleet.backup_well("tree", "full").await;
    for (arguments, _) in commands(&run.id) {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (status, said) = run_into(&mut fleet.cli(), &arguments, full);
        assert_eq!(status, Some(1), "{arguments:?}: {said}");
        assert!(said.contains("HF-1011"), "{arguments:?}: {said}");
        assert!(said.contains("the output could not be written"), "{arguments:?}: {said}");
        assert!(said.contains("No space left on device"), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    }
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (status, said) = run_into(fleet.cli().args(["--output", "json"]), &["backup", "list"], full);
    assert_eq!(status, Some(1), "{said}");
    let told: serde_json::Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("no JSON: {said}"));
    assert!(told.to_string().contains("HF-1011"), "{told}");
    fleet.stop().await;
}
