use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use super::*;

fn shell(script: &str) -> ToolCommand {
    ToolCommand::new("/bin/sh").unwrap().arg("-c").arg(script)
}

fn spawn(command: &ToolCommand, output: ToolOutput) -> RunningTool {
    command.spawn(ToolInput::Empty, output, &CancellationToken::new()).unwrap()
}

/// Whether a process exists and is not a zombie.
fn lives(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn arguments_reach_the_tool_unchanged_and_unexpanded() {
    let odd = ["$HOME; echo x", "a b", "--", "-rf", "new\nline", "ünïcode", "'\"", ""];
    let command = ToolCommand::new("/usr/bin/printf").unwrap().arg("%s\\0").args(odd);
    let printed = command.run(1024, &CancellationToken::new()).await.unwrap();
    let expected: Vec<u8> = odd.iter().flat_map(|text| text.bytes().chain([0])).collect();
    assert_eq!(printed, expected);
}

#[tokio::test]
async fn the_environment_holds_what_is_given_and_nothing_else() {
    let command = ToolCommand::new("/usr/bin/env").unwrap().env("PGPASSFILE", "/scratch/pgpass");
    let printed = command.run(1024, &CancellationToken::new()).await.unwrap();
    assert_eq!(String::from_utf8(printed).unwrap(), "PGPASSFILE=/scratch/pgpass\n");
}

#[tokio::test]
async fn exit_status_and_stderr_make_the_error() {
    let exit =
        spawn(&shell("echo one >&2; echo two >&2; exit 3"), ToolOutput::Discarded).wait().await.unwrap();
    assert_eq!(exit.ending, ToolEnding::Exited(3));
    let error = exit.into_success().unwrap_err();
    assert_eq!(error.code(), ErrorCode::ToolFailed);
    assert_eq!(error.to_string(), "sh ended with exit status 3");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "one\ntwo");
}

#[tokio::test]
async fn an_end_by_a_signal_is_told_from_an_exit() {
    let exit = spawn(&shell("kill -9 $$"), ToolOutput::Discarded).wait().await.unwrap();
    assert_eq!(exit.ending, ToolEnding::Signalled(9));
    assert_eq!(exit.to_error().to_string(), "sh was killed by signal 9");
}

#[test]
fn stdin_and_stdout_stream_through_blocking_pipes() {
    let command = ToolCommand::new("/bin/cat").unwrap();
    let mut tool = command.spawn(ToolInput::Piped, ToolOutput::Piped, &CancellationToken::new()).unwrap();
    let (mut stdin, mut stdout) = (tool.take_stdin().unwrap(), tool.take_stdout().unwrap());
    let block: Vec<u8> = (0..=255).cycle().take(3_000_000).collect();
    let written = block.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&written));
    let mut read = Vec::new();
    stdout.read_to_end(&mut read).unwrap();
    writer.join().unwrap().unwrap();
    assert!(read == block);
    assert!(tool.wait_blocking().unwrap().is_success());
}

#[tokio::test]
async fn the_deadline_ends_a_tool_that_ignores_the_polite_signal() {
    let folder = tempfile::tempdir().unwrap();
    let ignores = folder.path().join("ignores");
    let script = format!("trap '' TERM; : >{}; while :; do /bin/sleep 100; done", ignores.display());
    // The deadline must not be over before the shell ignores the signal, which takes long on a busy machine.
    for (deadline, text) in [
        (200, "sh did not end within 0.2 s"),
        (2_000, "sh did not end within 2 s"),
        (20_000, "sh did not end within 20 s"),
    ] {
        let deadline = Duration::from_millis(deadline);
        let command = shell(&script).deadline(deadline);
        let exit = spawn(&command, ToolOutput::Discarded).wait().await.unwrap();
        assert_eq!(exit.ending, ToolEnding::DeadlineOver(deadline));
        let error = exit.to_error();
        assert_eq!((error.code(), &*error.to_string()), (ErrorCode::ToolFailed, text));
        if exit.elapsed >= deadline + TERMINATION_GRACE {
            return;
        }
        assert!(!ignores.exists(), "it ended after {:?}, before its time of grace", exit.elapsed);
    }
    panic!("the shell did not come to ignore the signal");
}

#[test]
fn cancelling_unblocks_the_reader_of_the_stream() {
    let cancel = CancellationToken::new();
    let command = ToolCommand::new("/bin/sleep").unwrap().arg("100");
    let mut tool = command.spawn(ToolInput::Empty, ToolOutput::Piped, &cancel).unwrap();
    let mut stdout = tool.take_stdout().unwrap();
    let reader = std::thread::spawn(move || stdout.read_to_end(&mut Vec::new()));
    cancel.cancel();
    assert_eq!(reader.join().unwrap().unwrap(), 0);
    let error = tool.wait_blocking().unwrap().to_error();
    assert_eq!(error.code(), ErrorCode::RunCancelled);
    assert_eq!(error.to_string(), "sleep was stopped: the run was cancelled");
}

#[test]
fn dropping_kills_the_whole_process_group() {
    let command = shell("/bin/sleep 100 & echo $$ $!; wait");
    let mut tool = spawn(&command, ToolOutput::Piped);
    let mut stdout = tool.take_stdout().unwrap();
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stdout.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    let pids: Vec<String> = String::from_utf8(line).unwrap().split_whitespace().map(str::to_owned).collect();
    assert!(pids.iter().all(|pid| lives(pid)), "{pids:?}");
    drop(tool);
    wait_until("both processes are gone", || !pids.iter().any(|pid| lives(pid)));
    assert_eq!(stdout.read(&mut [0]).unwrap(), 0);
}

#[tokio::test]
async fn what_a_tool_leaves_behind_ends_with_it() {
    let command = shell("/bin/sleep 100 & echo $!");
    let printed = command.run(100, &CancellationToken::new()).await.unwrap();
    let pid = String::from_utf8(printed).unwrap();
    wait_until("the grandchild is gone", || !lives(&pid));
}

#[tokio::test]
async fn output_beyond_its_bound_kills_the_tool() {
    let error = shell("while :; do echo yyyyyyyyyyyyyyyy; done")
        .run(1000, &CancellationToken::new())
        .await
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::ToolFailed);
    assert_eq!(error.to_string(), "sh printed more than 1000 B");
}

#[tokio::test]
async fn stderr_is_a_bounded_tail_without_control_characters() {
    let script = "i=0; while [ $i -lt 5000 ]; do echo 'line line line line line' >&2; i=$((i+1)); done; \
                  printf 'last \\033[31mred\\007 \\342\\200\\256 \\377\\r\\n' >&2";
    let exit = spawn(&shell(script), ToolOutput::Discarded).wait().await.unwrap();
    assert_eq!(exit.stderr.last_lines(1), "last \\x1b[31mred\\x07 \\x202e \u{fffd}");
    let total = 5000 * 25 + 22;
    assert_eq!(exit.stderr.dropped_bytes(), total - STDERR_BYTES_MAX as u64);
    assert!(exit.stderr.text().len() <= STDERR_BYTES_MAX + 16);
}

#[test]
fn a_tool_that_is_not_there_is_named() {
    let cancel = CancellationToken::new();
    let command = ToolCommand::new("/nonexistent/pg_dump").unwrap();
    let error = command.spawn(ToolInput::Empty, ToolOutput::Discarded, &cancel).unwrap_err();
    assert_eq!(error.code(), ErrorCode::ToolMissing);
    assert_eq!(error.to_string(), "there is no tool /nonexistent/pg_dump");
    let error = ToolCommand::new("pg_dump").unwrap_err();
    assert_eq!(error.code(), ErrorCode::ToolMissing);
    assert_eq!(error.to_string(), "the tool pg_dump is not given as an absolute path");
}

#[tokio::test]
async fn versions_are_read_as_tools_write_them() {
    for (line, major, minor, text) in [
        ("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", 15, 18, "15.18"),
        ("psql (PostgreSQL) 18beta1", 18, 0, "18beta1"),
        ("restic 0.19.1 compiled with go1.26 on linux/amd64", 0, 19, "0.19.1"),
        ("tool v2.3", 2, 3, "2.3"),
    ] {
        let version = ToolVersion::parse(line).unwrap();
        assert_eq!((version.major, version.minor, version.to_string()), (major, minor, text.to_owned()));
    }
    assert_eq!(ToolVersion::parse("no version here"), None);
    assert!(ToolVersion::parse("9.6").unwrap() < ToolVersion::parse("15.2").unwrap());
    let version = query_version(Path::new("/bin/sh"), &CancellationToken::new()).await;
    assert_eq!(version.unwrap_err().code(), ErrorCode::ToolFailed);
    let version = query_version(Path::new("/bin/sleep"), &CancellationToken::new()).await.unwrap();
    assert!(version.major >= 8, "{version}");
}

#[test]
fn a_secret_file_is_for_its_owner_only_and_goes_with_its_guard() {
    let scratch = tempfile::tempdir().unwrap();
    let file = SecretFile::create(scratch.path(), "pgpass", "*:*:*:*:canary\n").unwrap();
    let path = file.path().to_owned();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "*:*:*:*:canary\n");
    let error = SecretFile::create(scratch.path(), "pgpass", "canary").unwrap_err();
    assert_eq!(error.code(), ErrorCode::SecretUnresolvable);
    assert!(!error.to_string().contains("canary"));
    assert!(SecretFile::create(scratch.path(), "../pgpass", "canary").is_err());
    drop(file);
    assert!(!path.exists());
}
