//! A wall clock that a test sets, on a machine whose time goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use holdfast_runtime::{Clock, SharedClock, SystemClock};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

/// The clock of the machine with a wall time that is off by a span. Monotonic time is the machine's: it never jumps.
/// Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SkewedClock {
    off_by: Arc<Mutex<SignedDuration>>,
}

impl SkewedClock {
    /// Sets the wall time forwards or backwards.
    pub fn jump(&self, span: SignedDuration) {
        *self.off_by.lock() += span;
    }

    /// The same clock, ready to be handed around.
    pub fn shared(&self) -> SharedClock {
        Arc::new(self.clone())
    }
}

impl Clock for SkewedClock {
    fn now(&self) -> Timestamp {
        SystemClock.now() + *self.off_by.lock()
    }

    fn monotonic(&self) -> Instant {
        SystemClock.monotonic()
    }

    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        SystemClock.sleep_until(deadline)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        SystemClock.sleep(duration)
    }
}
