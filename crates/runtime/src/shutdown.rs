//! Who asked the process to stop, and how the stop ended.
//!
//! The first SIGINT or SIGTERM (or a call of [`Shutdown::request`]) cancels the token: everyone stops taking new work
//! and finishes what runs. [`Shutdown::drain`] waits for that up to a grace period, which a second signal ends at once,
//! and says which of the two [`Ending`]s it was.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::task_group::TaskGroup;

/// Why the process stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopCause {
    /// SIGINT: somebody pressed Ctrl-C.
    Interrupted,
    /// SIGTERM: the service manager or an administrator.
    Terminated,
    /// The process decided itself, in order.
    Requested(String),
    /// Something the process cannot live without broke; it must end with an error.
    Broken(String),
}

impl StopCause {
    /// Whether the process must report that it failed.
    pub fn is_failure(&self) -> bool {
        matches!(self, StopCause::Broken(_))
    }
}

impl std::fmt::Display for StopCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StopCause::Interrupted => f.write_str("interrupted"),
            StopCause::Terminated => f.write_str("terminated"),
            StopCause::Requested(reason) | StopCause::Broken(reason) => f.write_str(reason),
        }
    }
}

/// How a stop ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Ending {
    /// Everything finished by itself.
    Drained(StopCause),
    /// The grace period was over (or a second signal came) while these tasks still ran; they were aborted.
    CutShort {
        /// Why the process stopped.
        cause: StopCause,
        /// The names of the tasks that were still running, sorted.
        blocked_by: Vec<String>,
    },
}

impl Ending {
    /// Why the process stopped.
    pub fn cause(&self) -> &StopCause {
        match self {
            Ending::Drained(cause) | Ending::CutShort { cause, .. } => cause,
        }
    }
}

/// The process's one switch from running to stopping. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    token: CancellationToken,
    hurry: CancellationToken,
    cause: OnceLock<StopCause>,
}

impl Shutdown {
    /// A switch that no signal moves: for tests and for a process within a process.
    pub fn new() -> Self {
        Self::default()
    }

    /// Handles SIGINT and SIGTERM from now on: the first begins the stop, the second ends the grace period.
    ///
    /// # Errors
    /// The operating system refused the handlers.
    pub fn on_signals(&self, tasks: &TaskGroup) -> std::io::Result<()> {
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        tasks.spawn_unawaited("signals", self.clone().listen(interrupt, terminate));
        Ok(())
    }

    async fn listen(self, mut interrupt: Signal, mut terminate: Signal) {
        loop {
            let cause = tokio::select! {
                Some(()) = interrupt.recv() => StopCause::Interrupted,
                Some(()) = terminate.recv() => StopCause::Terminated,
                else => return,
            };
            if self.is_requested() {
                tracing::warn!(%cause, "second signal: not waiting any longer");
                self.shared.hurry.cancel();
            } else {
                tracing::info!(%cause, "stopping");
                self.request(cause);
            }
        }
    }

    /// Begins the stop. Only the first cause is kept.
    pub fn request(&self, cause: StopCause) {
        let _ = self.shared.cause.set(cause);
        self.shared.token.cancel();
    }

    /// Whether the stop has begun.
    pub fn is_requested(&self) -> bool {
        self.shared.token.is_cancelled()
    }

    /// Cancelled when the stop begins.
    pub fn token(&self) -> &CancellationToken {
        &self.shared.token
    }

    /// Why the process stops, once it does.
    pub fn cause(&self) -> Option<&StopCause> {
        self.shared.cause.get()
    }

    /// Waits for the stop to begin, then for the tasks to finish, at most `grace` long; then aborts the rest.
    pub async fn drain(&self, tasks: &TaskGroup, grace: Duration) -> Ending {
        self.shared.token.cancelled().await;
        let blocked_by = tasks.join_until(grace, &self.shared.hurry).await;
        let cause = self
            .cause()
            .cloned()
            .unwrap_or_else(|| StopCause::Requested("the owner of the token cancelled it".to_owned()));
        if blocked_by.is_empty() { Ending::Drained(cause) } else { Ending::CutShort { cause, blocked_by } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task_group::OnEnd;

    #[tokio::test]
    async fn tasks_that_heed_the_token_drain() {
        let shutdown = Shutdown::new();
        let tasks = TaskGroup::new(&shutdown);
        let token = tasks.token().clone();
        drop(tasks.spawn("heeds", OnEnd::Finite, async move { token.cancelled().await }));
        shutdown.request(StopCause::Requested("test".to_owned()));
        let ending = shutdown.drain(&tasks, Duration::from_secs(120)).await;
        assert_eq!(ending, Ending::Drained(StopCause::Requested("test".to_owned())));
    }

    #[tokio::test]
    async fn tasks_that_do_not_are_named_and_aborted() {
        let shutdown = Shutdown::new();
        let tasks = TaskGroup::new(&shutdown);
        let stuck = tasks.spawn("stuck", OnEnd::Finite, std::future::pending::<()>());
        shutdown.request(StopCause::Terminated);
        let ending = shutdown.drain(&tasks, Duration::from_millis(1)).await;
        assert_eq!(
            ending,
            Ending::CutShort { cause: StopCause::Terminated, blocked_by: vec!["stuck".to_owned()] }
        );
        assert!(stuck.join().await.is_err());
    }

    #[tokio::test]
    async fn the_first_signal_stops_and_the_second_ends_the_grace_period() {
        let shutdown = Shutdown::new();
        let tasks = TaskGroup::new(&shutdown);
        shutdown.on_signals(&tasks).unwrap();
        drop(tasks.spawn("stuck", OnEnd::Finite, std::future::pending::<()>()));
        let raise = |signal| rustix::process::kill_process(rustix::process::getpid(), signal).unwrap();
        raise(rustix::process::Signal::TERM);
        shutdown.token().cancelled().await;
        raise(rustix::process::Signal::INT);
        let ending = shutdown.drain(&tasks, Duration::from_secs(3600)).await;
        assert_eq!(
            ending,
            Ending::CutShort { cause: StopCause::Terminated, blocked_by: vec!["stuck".to_owned()] }
        );
    }

    #[test]
    fn the_first_cause_is_kept() {
        let shutdown = Shutdown::new();
        shutdown.request(StopCause::Broken("the journal failed".to_owned()));
        shutdown.request(StopCause::Terminated);
        assert!(shutdown.cause().unwrap().is_failure());
    }
}
