//! Time as an argument.
//!
//! Wall time (`now`) is for what people read and for schedules; it may jump. Monotonic time is for leases, timeouts
//! and measurements; it never does. Nothing else in the house asks the operating system for the time.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt as _, poll_fn};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Where time comes from.
pub trait Clock: Send + Sync + std::fmt::Debug + 'static {
    /// The wall-clock time, which an administrator or a time server may set forwards and backwards.
    fn now(&self) -> Timestamp;

    /// A moment on a scale that never goes backwards; for durations only.
    fn monotonic(&self) -> Instant;

    /// Completes at `deadline` or, when that is past, at once. Cancellation-safe.
    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()>;

    /// Completes `duration` from now. Cancellation-safe.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.sleep_until(self.monotonic() + duration)
    }
}

/// A clock as it is handed around.
pub type SharedClock = Arc<dyn Clock>;

/// The clock of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl SystemClock {
    /// The clock of the machine, ready to be handed around.
    pub fn shared() -> SharedClock {
        Arc::new(Self)
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place where wall time enters the house")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> Instant {
        Instant::now()
    }

    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        tokio::time::sleep_until(deadline.into()).boxed()
    }
}

/// A clock that stands still until a test moves it.
///
/// Clones share the same time. Sleepers are woken in the order of their deadlines.
#[derive(Debug, Clone)]
pub struct ManualClock {
    shared: Arc<ManualShared>,
}

#[derive(Debug)]
struct ManualShared {
    origin: Instant,
    state: Mutex<ManualState>,
    sleepers_changed: Notify,
}

#[derive(Debug)]
struct ManualState {
    wall: Timestamp,
    elapsed: Duration,
    sleepers: Vec<Sleeper>,
    next_sleeper: u64,
}

#[derive(Debug)]
struct Sleeper {
    id: u64,
    deadline: Instant,
    waker: std::task::Waker,
}

impl ManualClock {
    /// A clock that shows `wall`.
    pub fn at(wall: Timestamp) -> Self {
        Self {
            shared: Arc::new(ManualShared {
                origin: Instant::now(),
                state: Mutex::new(ManualState {
                    wall,
                    elapsed: Duration::ZERO,
                    sleepers: Vec::new(),
                    next_sleeper: 0,
                }),
                sleepers_changed: Notify::new(),
            }),
        }
    }

    /// The same clock, ready to be handed around.
    pub fn shared(&self) -> SharedClock {
        Arc::new(self.clone())
    }

    /// Moves wall and monotonic time forward and wakes everyone whose deadline is reached.
    pub fn advance(&self, duration: Duration) {
        let mut due: Vec<Sleeper> = {
            let mut state = self.shared.state.lock();
            let span = SignedDuration::try_from(duration).expect("a test advances by less than 292 years");
            state.wall = state.wall.checked_add(span).expect("a test stays within the calendar");
            state.elapsed += duration;
            let now = self.shared.origin + state.elapsed;
            let (due, waiting) = state.sleepers.drain(..).partition(|sleeper| sleeper.deadline <= now);
            state.sleepers = waiting;
            due
        };
        due.sort_by_key(|sleeper| (sleeper.deadline, sleeper.id));
        for sleeper in due {
            sleeper.waker.wake();
        }
    }

    /// Moves to the earliest deadline anyone sleeps for. Returns by how much, or `None` when nobody sleeps.
    pub fn advance_to_next_sleeper(&self) -> Option<Duration> {
        let earliest = self.shared.state.lock().sleepers.iter().map(|sleeper| sleeper.deadline).min()?;
        let step = earliest.saturating_duration_since(self.monotonic());
        self.advance(step);
        Some(step)
    }

    /// Sets the wall clock alone, as an administrator or a time server does; monotonic time and sleepers don't notice.
    pub fn jump_wall_to(&self, wall: Timestamp) {
        self.shared.state.lock().wall = wall;
    }

    /// How many futures wait for this clock now.
    pub fn sleepers(&self) -> usize {
        self.shared.state.lock().sleepers.len()
    }

    /// Completes when at least `count` futures wait for this clock: the moment at which a test may advance it.
    pub async fn until_sleepers(&self, count: usize) {
        loop {
            let changed = self.shared.sleepers_changed.notified();
            if self.sleepers() >= count {
                return;
            }
            changed.await;
        }
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.shared.state.lock().wall
    }

    fn monotonic(&self) -> Instant {
        self.shared.origin + self.shared.state.lock().elapsed
    }

    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        let mut place = Place { clock: self.shared.clone(), id: None };
        poll_fn(move |context| {
            let clock = place.clock.clone();
            let mut state = clock.state.lock();
            if clock.origin + state.elapsed >= deadline {
                return Poll::Ready(());
            }
            let id = *place.id.get_or_insert_with(|| {
                state.next_sleeper += 1;
                state.next_sleeper
            });
            match state.sleepers.iter_mut().find(|sleeper| sleeper.id == id) {
                Some(sleeper) => sleeper.waker.clone_from(context.waker()),
                None => {
                    state.sleepers.push(Sleeper { id, deadline, waker: context.waker().clone() });
                    drop(state);
                    clock.sleepers_changed.notify_waiters();
                }
            }
            Poll::Pending
        })
        .boxed()
    }
}

/// A sleeper's place in the list, given up when its future is dropped.
struct Place {
    clock: Arc<ManualShared>,
    id: Option<u64>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.clock.state.lock().sleepers.retain(|sleeper| sleeper.id != id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noon() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    #[tokio::test]
    async fn sleepers_wake_in_the_order_of_their_deadlines() {
        let clock = ManualClock::at(noon());
        let (send, mut receive) = tokio::sync::mpsc::channel(3);
        let tasks: Vec<_> = [30, 10, 20]
            .into_iter()
            .map(|seconds| {
                let (clock, send) = (clock.clone(), send.clone());
                async move {
                    clock.sleep(Duration::from_secs(seconds)).await;
                    send.send(seconds).await.unwrap();
                }
            })
            .collect();
        let driver = async {
            clock.until_sleepers(3).await;
            clock.advance(Duration::from_secs(9));
            assert!(receive.try_recv().is_err());
            for expected in [10, 20, 30] {
                assert!(clock.advance_to_next_sleeper().is_some());
                assert_eq!(receive.recv().await, Some(expected));
            }
        };
        futures::join!(futures::future::join_all(tasks), driver);
        assert_eq!(clock.now(), noon() + SignedDuration::from_secs(30));
        assert_eq!(clock.sleepers(), 0);
    }

    #[tokio::test]
    async fn a_jump_of_the_wall_clock_moves_no_deadline() {
        let clock = ManualClock::at(noon());
        let before = clock.monotonic();
        let mut sleep = clock.sleep(Duration::from_secs(1));
        assert!(futures::poll!(&mut sleep).is_pending());
        clock.jump_wall_to(noon() + SignedDuration::from_hours(72));
        assert!(futures::poll!(&mut sleep).is_pending());
        assert_eq!(clock.monotonic(), before);
        clock.advance(Duration::from_secs(1));
        assert!(futures::poll!(&mut sleep).is_ready());
    }

    #[tokio::test]
    async fn a_dropped_sleep_leaves_no_sleeper_behind() {
        let clock = ManualClock::at(noon());
        let mut sleep = clock.sleep(Duration::from_secs(1));
        assert!(futures::poll!(&mut sleep).is_pending());
        assert_eq!(clock.sleepers(), 1);
        drop(sleep);
        assert_eq!(clock.sleepers(), 0);
        assert_eq!(clock.advance_to_next_sleeper(), None);
    }
}
