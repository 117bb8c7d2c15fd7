//! The thread beside a running tool: reads its standard error, watches deadline and cancellation, takes its end.

use std::io::{self, PipeReader, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::pin::pin;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::TERMINATION_GRACE;
use super::ending::{StderrTail, ToolEnding, ToolExit};

/// The process group of a tool, until the tool is reaped: after that its number may belong to others.
#[derive(Debug)]
pub(super) struct Group {
    state: Mutex<GroupState>,
}

#[derive(Debug)]
struct GroupState {
    /// The leader, while it is not reaped.
    leader: Option<Pid>,
    killed: bool,
}

impl Group {
    /// Kills every process of the group, unless the leader was reaped.
    pub(super) fn kill(&self) {
        let mut state = self.state.lock();
        if let Some(leader) = state.leader {
            state.killed = true;
            signal(leader, Signal::KILL);
        }
    }

    fn signal(&self, kind: Signal) {
        if let Some(leader) = self.state.lock().leader {
            signal(leader, kind);
        }
    }

    /// Kills what the leader left behind and reaps it, in this order: as long as the leader is a zombie, nobody else
    /// can have its number.
    fn reap(&self, child: &mut Child) -> io::Result<(ExitStatus, bool)> {
        let mut state = self.state.lock();
        if let Some(leader) = state.leader {
            signal(leader, Signal::KILL);
        }
        let status = child.wait()?;
        state.leader = None;
        Ok((status, state.killed))
    }
}

fn signal(leader: Pid, kind: Signal) {
    // The only error that can come is that nobody is left in the group.
    let _ = kill_process_group(leader, kind);
}

/// Wakes the supervisor from any thread.
#[derive(Debug)]
struct Bell(OwnedFd);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // A full counter has rung already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

pub(super) struct Supervisor {
    child: Child,
    group: Arc<Group>,
    pidfd: OwnedFd,
    bell: Arc<Bell>,
    stderr: Option<PipeReader>,
    stderr_tail: StderrTail,
    stdout: Option<PipeReader>,
    stdout_bytes: Vec<u8>,
    stdout_bytes_max: usize,
    started: Instant,
    deadline: Option<Duration>,
    /// Why it is being stopped, and when it is killed if it has not ended by then.
    stopping: Option<(ToolEnding, Instant)>,
}

impl Supervisor {
    /// Starts the thread. The receiver gets the end of the tool.
    ///
    /// # Errors
    /// What the system refuses; the tool is killed and reaped then.
    pub(super) fn start(
        mut child: Child,
        stderr: PipeReader,
        captured: Option<(PipeReader, usize)>,
        deadline: Option<Duration>,
        cancel: CancellationToken,
    ) -> io::Result<(Arc<Group>, oneshot::Receiver<ToolExit>)> {
        let leader = Pid::from_child(&child);
        let group = Arc::new(Group { state: Mutex::new(GroupState { leader: Some(leader), killed: false }) });
        let prepared = (|| {
            nonblocking(&stderr)?;
            if let Some((stdout, _)) = &captured {
                nonblocking(stdout)?;
            }
            let pidfd = pidfd_open(leader, PidfdFlags::empty())?;
            let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            Ok::<_, io::Error>((pidfd, Arc::new(Bell(bell))))
        })();
        let (pidfd, bell) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                group.kill();
                group.reap(&mut child)?;
                return Err(error);
            }
        };
        let (stdout, stdout_bytes_max) =
            captured.map_or((None, 0), |(reader, bytes_max)| (Some(reader), bytes_max));
        let supervisor = Self {
            child,
            group: group.clone(),
            pidfd,
            bell,
            stderr: Some(stderr),
            stderr_tail: StderrTail::default(),
            stdout,
            stdout_bytes: Vec::new(),
            stdout_bytes_max,
            started: Instant::now(),
            deadline,
            stopping: None,
        };
        let (done, receiver) = oneshot::channel();
        let spawned = std::thread::Builder::new().name("tool".to_owned()).spawn(move || {
            // Nobody may be waiting any more; the tool was killed then.
            if let Some(exit) = supervisor.watch(&cancel) {
                let _ = done.send(exit);
            }
        });
        if let Err(error) = spawned {
            // The child went down with the closure, unreaped. Killing it is all that is left to do; the kernel
            // keeps a zombie until this process, out of threads as it is, ends.
            group.kill();
            return Err(error);
        }
        Ok((group, receiver))
    }

    /// Follows the tool to its end; `None` when that cannot be observed.
    fn watch(mut self, cancel: &CancellationToken) -> Option<ToolExit> {
        let waker = Waker::from(self.bell.clone());
        let mut cancelled = pin!(cancel.cancelled());
        loop {
            if self.stopping.is_none() {
                if cancelled.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                    self.stop(ToolEnding::Cancelled);
                } else if let Some(deadline) = self.deadline
                    && self.started.elapsed() >= deadline
                {
                    self.stop(ToolEnding::DeadlineOver(deadline));
                }
            } else if self.stopping.is_some_and(|(_, kill_at)| Instant::now() >= kill_at) {
                self.group.signal(Signal::KILL);
            }
            match self.sleep() {
                Ok(true) => break,
                Ok(false) => self.drain(),
                Err(_) => {
                    self.group.kill();
                    break;
                }
            }
        }
        let (status, killed) = self.group.reap(&mut self.child).ok()?;
        // Everybody who could write is dead, or has left the group and is not waited for.
        self.drain();
        self.stderr_tail.cut();
        let ending = match (self.stopping, status.code()) {
            (Some((ending @ ToolEnding::OutputTooLong(_), _)), _) => ending,
            // A tool that made it by itself while it was being stopped has made it.
            (_, Some(0)) => ToolEnding::Exited(0),
            (Some((ending, _)), _) => ending,
            (None, _) if killed && status.signal() == Some(Signal::KILL.as_raw()) => ToolEnding::Killed,
            (None, Some(code)) => ToolEnding::Exited(code),
            (None, None) => ToolEnding::Signalled(status.signal().unwrap_or_default()),
        };
        Some(ToolExit {
            name: String::new(),
            ending,
            stdout: self.stdout_bytes,
            stderr: self.stderr_tail,
            elapsed: self.started.elapsed(),
        })
    }

    fn stop(&mut self, ending: ToolEnding) {
        self.group.signal(Signal::TERM);
        self.stopping = Some((ending, Instant::now() + TERMINATION_GRACE));
    }

    /// Sleeps until something happens. Returns whether the tool has ended.
    fn sleep(&self) -> io::Result<bool> {
        let wake_at = match (self.stopping, self.deadline) {
            (Some((_, kill_at)), _) => Some(kill_at),
            (None, Some(deadline)) => self.started.checked_add(deadline),
            (None, None) => None,
        };
        let timeout = wake_at.map(|at| {
            // After the kill only the death of the tool is waited for; no zero timeout may spin meanwhile.
            let left = at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
        });
        let mut fds = vec![
            PollFd::new(&self.pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(self.bell.0.as_fd(), PollFlags::IN),
        ];
        for pipe in [&self.stderr, &self.stdout].into_iter().flatten() {
            fds.push(PollFd::new(pipe, PollFlags::IN));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => Ok(!fds[0].revents().is_empty()),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes what is there without waiting for more.
    fn drain(&mut self) {
        let mut counter = [0; 8];
        let _ = rustix::io::read(&self.bell.0, &mut counter);

        let tail = &mut self.stderr_tail;
        drain_pipe(&mut self.stderr, |bytes| {
            tail.push(bytes);
            true
        });
        let (stdout_bytes, bytes_max) = (&mut self.stdout_bytes, self.stdout_bytes_max);
        let mut fits = true;
        drain_pipe(&mut self.stdout, |bytes| {
            fits = stdout_bytes.len() + bytes.len() <= bytes_max;
            if fits {
                stdout_bytes.extend_from_slice(bytes);
            }
            fits
        });
        if !fits {
            self.stdout = None;
            self.group.signal(Signal::KILL);
            self.stopping = Some((ToolEnding::OutputTooLong(bytes_max), Instant::now() + TERMINATION_GRACE));
        }
    }
}

/// Reads what is there; closes the pipe at its end.
fn drain_pipe(pipe: &mut Option<PipeReader>, mut take: impl FnMut(&[u8]) -> bool) {
    let mut buffer = [0; 16 * 1024];
    while let Some(reader) = pipe {
        match reader.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(count) => {
                if !take(&buffer[..count]) {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => *pipe = None,
        }
    }
}

/// Concerns our end alone: the two ends of a pipe have flags of their own.
fn nonblocking(pipe: &PipeReader) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(pipe)?;
    rustix::fs::fcntl_setfl(pipe, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(())
}
