//! Every task has an owner, a name and a meaning of its end.
//!
//! A group spawns tasks, knows which still run, and joins them at the end with a limit of time. A child group has its
//! own token (cancelled with its parent's, or alone) and can be joined alone; its tasks count in the parent too.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Instrument as _;

use crate::shutdown::{Shutdown, StopCause};

/// What the end of a task means for the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnEnd {
    /// The process cannot live without it: any end before the stop begins, and any panic, stops the process.
    Essential,
    /// It ends when its work is done; a panic is a defect that stops the process.
    Finite,
    /// It ends when its work is done; a panic is logged and concerns nobody else (one connection, one run).
    Isolated,
}

/// A task ended without a result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskFailed {
    /// It panicked.
    #[error("the task {name} panicked: {message}")]
    Panicked {
        /// The name of the task.
        name: String,
        /// What the panic said.
        message: String,
    },
    /// It was aborted.
    #[error("the task {name} was aborted")]
    Aborted {
        /// The name of the task.
        name: String,
    },
}

/// A spawned task. Dropping it lets the task run on: the group owns it.
#[derive(Debug)]
pub struct Task<T> {
    name: Arc<str>,
    handle: JoinHandle<Result<T, TaskFailed>>,
}

impl<T> Task<T> {
    /// Waits for the result. Dropping the future lets the task run on.
    ///
    /// # Errors
    /// [`TaskFailed`] when the task panicked or was aborted.
    pub async fn join(self) -> Result<T, TaskFailed> {
        self.handle.await.unwrap_or_else(|_| Err(TaskFailed::Aborted { name: self.name.to_string() }))
    }

    /// Drops the task's future at its next await. A blocking task cannot be aborted once it runs.
    pub fn abort(&self) {
        self.handle.abort();
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

/// The owner of tasks. Clones share the group.
#[derive(Debug, Clone)]
pub struct TaskGroup {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shutdown: Shutdown,
    token: CancellationToken,
    tracker: TaskTracker,
    running: Mutex<BTreeMap<u64, Running>>,
    next_id: AtomicU64,
    parent: Option<TaskGroup>,
}

#[derive(Debug)]
struct Running {
    name: Arc<str>,
    abort: Option<AbortHandle>,
}

impl TaskGroup {
    /// The root group of a process: it stops when `shutdown` does.
    pub fn new(shutdown: &Shutdown) -> Self {
        Self::with(shutdown.clone(), shutdown.token().clone(), None)
    }

    /// A group within this one, with a token of its own.
    #[must_use]
    pub fn child(&self) -> Self {
        Self::with(self.inner.shutdown.clone(), self.inner.token.child_token(), Some(self.clone()))
    }

    fn with(shutdown: Shutdown, token: CancellationToken, parent: Option<TaskGroup>) -> Self {
        Self {
            inner: Arc::new(Inner {
                shutdown,
                token,
                tracker: TaskTracker::new(),
                running: Mutex::default(),
                next_id: AtomicU64::new(0),
                parent,
            }),
        }
    }

    /// Cancelled when the tasks of this group shall end. Every loop of a task heeds it.
    pub fn token(&self) -> &CancellationToken {
        &self.inner.token
    }

    /// The switch of the whole process.
    pub fn shutdown(&self) -> &Shutdown {
        &self.inner.shutdown
    }

    /// Tells the tasks of this group, and of those within, to end.
    pub fn cancel(&self) {
        self.inner.token.cancel();
    }

    /// The names of the tasks that run now, sorted.
    pub fn running(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.inner.running.lock().values().map(|task| task.name.to_string()).collect();
        names.sort();
        names
    }

    /// Runs a future as a task of this group, within the current span.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: impl Into<Arc<str>>,
        on_end: OnEnd,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Task<T> {
        let name = name.into();
        let places = self.enter(&name);
        let watched = Watched { group: self.clone(), name: name.clone(), on_end };
        let ids = places.ids();
        let task = async move {
            let _places = places;
            let outcome = AssertUnwindSafe(future).catch_unwind().await;
            watched.ended(outcome)
        };
        let handle = self.inner.tracker.spawn(task.in_current_span());
        self.remember_abort(&ids, &handle.abort_handle());
        Task { name, handle }
    }

    /// Runs a blocking function on the pool for blocking work, as a task of this group.
    ///
    /// It cannot be aborted: it must end soon after the group's token is cancelled, or be short.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        name: impl Into<Arc<str>>,
        on_end: OnEnd,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Task<T> {
        let name = name.into();
        let places = self.enter(&name);
        let watched = Watched { group: self.clone(), name: name.clone(), on_end };
        let span = tracing::Span::current();
        let handle = self.inner.tracker.spawn_blocking(move || {
            let _places = places;
            let outcome = span.in_scope(|| std::panic::catch_unwind(AssertUnwindSafe(work)));
            watched.ended(outcome)
        });
        Task { name, handle }
    }

    /// Runs a task that nobody waits for: it is aborted at once when the group is joined.
    pub(crate) fn spawn_unawaited(
        &self,
        name: &'static str,
        future: impl Future<Output = ()> + Send + 'static,
    ) {
        let tracker = self.inner.tracker.clone();
        let watched = Watched { group: self.clone(), name: name.into(), on_end: OnEnd::Finite };
        let joined = async move { tracker.wait().await };
        // Not tracked: it must not keep the group from being joined. It ends with the last tracked task.
        #[expect(clippy::disallowed_methods, reason = "this is the owner that the ban asks for")]
        let _detached = tokio::spawn(async move {
            let work = AssertUnwindSafe(future).catch_unwind();
            tokio::select! {
                outcome = work => { let _ = watched.ended(outcome); }
                () = joined => {}
            }
        });
    }

    /// Waits until every task has ended, at most `grace` long; then aborts the rest and returns their names, sorted.
    ///
    /// Does not cancel the token: say [`TaskGroup::cancel`] first. Tasks spawned meanwhile are waited for too.
    pub async fn join(&self, grace: Duration) -> Vec<String> {
        self.join_until(grace, &CancellationToken::new()).await
    }

    pub(crate) async fn join_until(&self, grace: Duration, hurry: &CancellationToken) -> Vec<String> {
        self.inner.tracker.close();
        tokio::select! {
            biased;
            () = self.inner.tracker.wait() => return Vec::new(),
            () = hurry.cancelled() => {}
            () = tokio::time::sleep(grace) => {}
        }
        let names = self.running();
        for task in self.inner.running.lock().values() {
            if let Some(abort) = &task.abort {
                abort.abort();
            }
        }
        names
    }

    /// Enters a task in the lists of this group and of those around it.
    fn enter(&self, name: &Arc<str>) -> Places {
        let mut places = Places { entries: Vec::new() };
        let mut group = Some(self);
        while let Some(current) = group {
            let id = current.inner.next_id.fetch_add(1, Ordering::Relaxed);
            current.inner.running.lock().insert(id, Running { name: name.clone(), abort: None });
            places.entries.push((current.clone(), id, current.inner.tracker.token()));
            group = current.inner.parent.as_ref();
        }
        places
    }

    fn remember_abort(&self, ids: &[u64], abort: &AbortHandle) {
        let mut group = Some(self);
        for id in ids {
            let Some(current) = group else { return };
            // The task may have ended already and left the list.
            if let Some(task) = current.inner.running.lock().get_mut(id) {
                task.abort = Some(abort.clone());
            }
            group = current.inner.parent.as_ref();
        }
    }
}

/// A task's entries in its group and those around it; dropped with the task, however that ends.
struct Places {
    entries: Vec<(TaskGroup, u64, TaskTrackerToken)>,
}

impl Places {
    fn ids(&self) -> Vec<u64> {
        self.entries.iter().map(|(_, id, _)| *id).collect()
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for (group, id, _) in &self.entries {
            group.inner.running.lock().remove(id);
        }
    }
}

/// Decides what the end of a task means.
struct Watched {
    group: TaskGroup,
    name: Arc<str>,
    on_end: OnEnd,
}

impl Watched {
    fn ended<T>(self, outcome: std::thread::Result<T>) -> Result<T, TaskFailed> {
        let shutdown = &self.group.inner.shutdown;
        match outcome {
            Ok(value) => {
                if self.on_end == OnEnd::Essential && !self.group.inner.token.is_cancelled() {
                    tracing::error!(task = %self.name, "an essential task ended");
                    shutdown.request(StopCause::Broken(format!("the task {} ended", self.name)));
                }
                Ok(value)
            }
            Err(panic) => {
                let message = panic_message(panic.as_ref());
                tracing::error!(task = %self.name, panic = %message, "a task panicked");
                if self.on_end != OnEnd::Isolated {
                    shutdown
                        .request(StopCause::Broken(format!("the task {} panicked: {message}", self.name)));
                }
                Err(TaskFailed::Panicked { name: self.name.to_string(), message })
            }
        }
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "(no message)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> (Shutdown, TaskGroup) {
        let shutdown = Shutdown::new();
        let tasks = TaskGroup::new(&shutdown);
        (shutdown, tasks)
    }

    #[tokio::test]
    async fn a_task_gives_its_result() {
        let (_shutdown, tasks) = group();
        assert_eq!(tasks.spawn("sum", OnEnd::Finite, async { 1 + 1 }).join().await, Ok(2));
        assert_eq!(tasks.spawn_blocking("sum", OnEnd::Finite, || 1 + 1).join().await, Ok(2));
        assert!(tasks.join(Duration::from_secs(120)).await.is_empty());
    }

    #[tokio::test]
    async fn an_essential_task_that_ends_stops_the_process() {
        let (shutdown, tasks) = group();
        drop(tasks.spawn("loop", OnEnd::Essential, async {}));
        shutdown.token().cancelled().await;
        assert!(shutdown.cause().unwrap().is_failure());
    }

    #[tokio::test]
    async fn the_end_of_an_essential_task_is_right_once_its_group_is_cancelled() {
        let (shutdown, tasks) = group();
        let token = tasks.token().clone();
        let task = tasks.spawn("loop", OnEnd::Essential, async move { token.cancelled().await });
        tasks.cancel();
        task.join().await.unwrap();
        assert_eq!(shutdown.cause(), None);
    }

    #[tokio::test]
    async fn a_panic_stops_the_process_unless_it_is_isolated() {
        let (shutdown, tasks) = group();
        let isolated = tasks.spawn("connection", OnEnd::Isolated, async { panic!("bad peer") });
        let failed: Result<(), _> = isolated.join().await;
        assert_eq!(
            failed,
            Err(TaskFailed::Panicked { name: "connection".to_owned(), message: "bad peer".to_owned() })
        );
        assert!(!shutdown.is_requested());
        drop(tasks.spawn_blocking("work", OnEnd::Finite, || panic!("{}", "a defect")));
        shutdown.token().cancelled().await;
        assert_eq!(shutdown.cause().unwrap().to_string(), "the task work panicked: a defect");
    }

    #[tokio::test]
    async fn a_child_ends_alone_and_with_its_parent() {
        let (shutdown, tasks) = group();
        let (one, two) = (tasks.child(), tasks.child());
        for (child, name) in [(&one, "one"), (&two, "two")] {
            let token = child.token().clone();
            drop(child.spawn(name, OnEnd::Finite, async move { token.cancelled().await }));
        }
        assert_eq!(tasks.running(), ["one", "two"]);
        one.cancel();
        assert!(one.join(Duration::from_secs(120)).await.is_empty());
        assert_eq!(tasks.running(), ["two"]);
        shutdown.request(StopCause::Terminated);
        assert!(tasks.join(Duration::from_secs(120)).await.is_empty());
    }

    #[tokio::test]
    async fn a_stuck_task_of_a_child_blocks_its_parent_by_name() {
        let (_shutdown, tasks) = group();
        let child = tasks.child();
        let stuck = child.spawn("stuck", OnEnd::Finite, std::future::pending::<()>());
        assert_eq!(tasks.join(Duration::from_millis(1)).await, ["stuck"]);
        assert_eq!(stuck.join().await, Err(TaskFailed::Aborted { name: "stuck".to_owned() }));
    }
}
