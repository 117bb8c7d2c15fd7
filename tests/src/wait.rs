//! Waiting for a fact with a deadline.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for what must come. Long enough for a slow machine that is busy with something else: where the
/// thing comes, this costs nothing.
pub const PATIENCE: Duration = Duration::from_secs(300);

const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Polls until `observe` gives something, and returns it. The pauses grow from 2 to 100 milliseconds.
///
/// # Panics
/// When `deadline` has passed, naming `what` was waited for.
pub fn until<T>(what: impl Display, deadline: Duration, mut observe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    let mut pause = PAUSE_MIN;
    loop {
        if let Some(value) = observe() {
            return value;
        }
        assert!(
            start.elapsed() < deadline,
            "waited {:.1} s in vain for {what}",
            start.elapsed().as_secs_f64()
        );
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// As [`until`], for a condition that is true or not yet.
///
/// # Panics
/// When `deadline` has passed.
pub fn until_true(what: impl Display, deadline: Duration, mut condition: impl FnMut() -> bool) {
    until(what, deadline, || condition().then_some(()));
}

/// As [`until`], for what must be asked asynchronously. Dropping the future stops the waiting; a question that hangs ends
/// with the deadline too.
///
/// # Panics
/// When `deadline` has passed.
pub async fn until_async<T>(
    what: impl Display,
    deadline: Duration,
    mut observe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let polling = async {
        let mut pause = PAUSE_MIN;
        loop {
            if let Some(value) = observe().await {
                return value;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    };
    let waited = tokio::time::timeout(deadline, polling).await;
    waited.unwrap_or_else(|_| panic!("waited {:.1} s in vain for {what}", deadline.as_secs_f64()))
}
