//! `kill -9` of a process that writes the controller's state, at random moments and at every named point: nothing
//! that was acknowledged is lost, and no hand is needed to go on.

#![expect(clippy::unwrap_used, reason = "a test says by its panic where it failed")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SIGKILL: i32 = 9;

/// The example `state_torture`, which cargo builds beside the tests.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let built = own.parent().and_then(Path::parent).unwrap().join("examples/state_torture");
    assert!(built.exists(), "{} is missing: build with --examples or --all-targets", built.display());
    built
}

/// One state that lives through many deaths.
struct Torture {
    folder: tempfile::TempDir,
    acknowledged: Vec<String>,
    boot: u32,
}

impl Torture {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), acknowledged: Vec::new(), boot: 0 }
    }

    fn command(&self, mode: &str) -> Command {
        let mut command = Command::new(program());
        command.arg(mode).arg(self.folder.path().join("state")).arg(format!("boot {}", self.boot));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    /// Lets a writer live until it dies by itself or `kill_after` lines, and keeps what it acknowledged.
    fn write(&mut self, fail_points: Option<&str>, kill_after: Option<usize>) {
        let mut command = self.command("write");
        if let Some(points) = fail_points {
            command.env(holdfast_runtime::fail_point::ENVIRONMENT_VARIABLE, points);
        }
        let mut child = Guarded(command.spawn().unwrap());
        let output = BufReader::new(child.0.stdout.take().unwrap());
        for (count, line) in output.lines().enumerate() {
            self.acknowledged.push(line.unwrap());
            if kill_after == Some(count) {
                // The lines that are still in the pipe are acknowledgements as well: the loop goes on to its end.
                child.0.kill().unwrap();
            }
        }
        let status = child.0.wait().unwrap();
        assert_eq!(status.signal(), Some(SIGKILL), "{fail_points:?}: {status}");
    }

    fn check(&self) {
        let mut child = self.command("check").stderr(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(self.acknowledged.join("\n").as_bytes()).unwrap();
        drop(input);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A child that does not outlive its test.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn forty_kills_at_random_moments_lose_nothing() {
    let mut torture = Torture::new();
    for round in 0..40_u32 {
        torture.write(None, Some(rand::random_range(0..1_500)));
        // Most deaths are followed by another writer at once; some by a look, some by another boot.
        if round % 3 == 0 {
            torture.check();
        }
        if round % 5 == 0 {
            torture.boot += 1;
        }
    }
    torture.check();
    assert!(torture.acknowledged.len() > 5_000, "{} commits are not a campaign", torture.acknowledged.len());
}

#[test]
fn kills_during_recovery_lose_nothing() {
    let mut torture = Torture::new();
    torture.write(None, Some(3_000));
    for millis in [1, 2, 4, 8, 12, 16, 24, 32] {
        torture.boot += 1;
        let mut child = Guarded(torture.command("check").stderr(Stdio::null()).spawn().unwrap());
        // Not a wait for something to become true: the moment of death is what is tried.
        std::thread::sleep(Duration::from_millis(millis));
        child.0.kill().unwrap();
        drop(child);
        torture.check();
    }
}

#[cfg(feature = "fail-points")]
#[test]
fn kills_at_every_named_point_lose_nothing() {
    const POINTS: &[&str] = &[
        "journal-before-write",
        "journal-before-fsync",
        "journal-after-fsync",
        "store-before-apply",
        "view-before-apply",
        "view-after-apply",
        "store-before-acknowledge",
        "durable-file-before-fsync",
        "durable-file-before-rename",
        "durable-file-before-folder-fsync",
        "durable-file-done",
        "checkpoint-before-commit",
        "checkpoint-after-commit",
    ];
    for point in POINTS {
        let mut torture = Torture::new();
        for hit in [1, 2, 3, 5, 9] {
            // A point that is never reached would leave the writer alive, and the test would run into its limit.
            torture.write(Some(&format!("{point}=kill:{hit}")), None);
            torture.boot += u32::from(hit % 2 == 0);
            torture.check();
        }
    }
}
