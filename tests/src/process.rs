//! Programs under test and helpers: started with a log, ended for sure.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::wait;

/// How many bytes of a log a failure shows.
const LOG_TAIL_BYTES: usize = 8 * 1024;

/// What a finished program left.
#[derive(Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, lossily decoded.
    pub stdout: String,
    /// Its standard error, lossily decoded.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Finished {
    /// The output, after making sure that the program succeeded.
    ///
    /// # Panics
    /// When it did not; shows all it printed.
    #[must_use = "to ignore the output, use drop"]
    pub fn expect_success(self) -> Self {
        self.expect_code(0)
    }

    /// The output, after making sure of the exit status.
    ///
    /// # Panics
    /// When it differs; shows all it printed.
    #[must_use = "to ignore the output, use drop"]
    pub fn expect_code(self, code: i32) -> Self {
        assert!(
            self.status.code() == Some(code),
            "{} ended with {}, not with {code}\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }
}

/// Runs a program to its end and collects what it prints. Its standard input is empty.
///
/// # Panics
/// When it cannot be started, or is not done by the deadline: it is killed with everything it started.
pub fn run(command: &mut Command, deadline: Duration) -> Finished {
    let line = format!("{command:?}");
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("{line} does not start: {error}"));
    let stdout = collect(child.stdout.take().expect("standard output is a pipe"));
    let stderr = collect(child.stderr.take().expect("standard error is a pipe"));
    let status = loop {
        if let Some(status) = child.try_wait().expect("the child is ours to wait for") {
            break status;
        }
        if start.elapsed() > deadline {
            kill_group(&child);
            let _ = child.wait();
            panic!("{line} was not done after {:.0} s", deadline.as_secs_f64());
        }
        thread::sleep(Duration::from_millis(2));
    };
    let took = start.elapsed();
    let text = |reader: thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&reader.join().expect("reading a pipe does not panic")).into_owned()
    };
    Finished { command: line, status, stdout: text(stdout), stderr: text(stderr), took }
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks while the child dies is no fault of the test; what came before it is kept.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn kill_group(child: &Child) {
    // Already gone is as good as killed.
    let _ = kill_process_group(pid_of(child), Signal::KILL);
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// A program that runs beside the test, in a process group of its own, with a log file. Dropping it kills the group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts a program; standard output and error are appended to `NAME.log` in `log_dir`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command, log_dir: &Path) -> Self {
        let log = log_dir.join(format!("{name}.log"));
        let open = || {
            File::options()
                .create(true)
                .append(true)
                .open(&log)
                .unwrap_or_else(|error| panic!("{} cannot be opened: {error}", log.display()))
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(open())
            .stderr(open())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        Self { name: name.to_owned(), child, log, ended: None }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it printed so far, and what earlier processes of this name printed to the same log.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("the child is ours to wait for");
        }
        self.ended
    }

    /// Waits until `ready` gives something, as long as the process lives.
    ///
    /// # Panics
    /// At the deadline, or as soon as the process has ended; shows the end of its log.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut ready: impl FnMut(&str) -> Option<T>,
    ) -> T {
        wait::until(format!("{what} of {}", self.name), deadline, || {
            let log = self.log();
            let value = ready(&log);
            if value.is_none()
                && let Some(status) = self.status()
            {
                panic!("{} ended with {status} before {what}:\n{}", self.name, tail(&log));
            }
            value
        })
    }

    /// Waits for its end by itself.
    ///
    /// # Panics
    /// At the deadline.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let name = self.name.clone();
        wait::until(format_args!("the end of {name}"), deadline, || self.status())
    }

    /// Sends SIGTERM to it alone, and waits for its end.
    ///
    /// # Panics
    /// At the deadline.
    pub fn terminate(&mut self, deadline: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(deadline)
    }

    /// Kills it alone with SIGKILL, not what it started, and waits for its end.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let status = self.wait(wait::PATIENCE);
        assert!(status.signal().is_some() || status.code().is_some(), "an ended process has a status");
    }

    /// Kills it with everything it started that stayed in its process group, as a service manager does.
    pub fn kill_all(&mut self) {
        kill_group(&self.child);
        self.wait(wait::PATIENCE);
    }

    /// Sends a signal to it alone; nothing happens when it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.status().is_none() {
            // It may end between the question and the signal; until it is waited for, its id is not reused.
            let _ = kill_process(pid_of(&self.child), signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        kill_group(&self.child);
        let _ = self.child.wait();
        if thread::panicking() {
            crate::note(&format!("--- the end of the log of {}\n{}", self.name, tail(&self.log())));
        }
    }
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(LOG_TAIL_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}
