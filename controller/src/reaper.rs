//! Finds runs whose agent fell silent and gives them up. A reconciler: it takes no input.

use std::sync::Arc;
use std::time::Duration;

use crate::core::Core;

/// How often it looks. A lease ends at most this much later than promised.
const PERIOD: Duration = Duration::from_secs(1);

/// Runs until the controller stops.
pub async fn run(core: Arc<Core>) {
    let stop = core.tasks.token().clone();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = core.clock.sleep(PERIOD) => {}
        }
        for run in core.runs.expired() {
            tracing::warn!(run = %run.id, attempt = run.state.attempt.0, "the lease ended");
            if let Err(failure) = core.give_up(&run, true).await {
                tracing::error!(run = %run.id, %failure, "could not be given up");
            }
        }
    }
}
