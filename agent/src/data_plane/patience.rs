//! How long calls may fail before the run does.

use std::time::{Duration, Instant};

use holdfast_engines::RunLog as _;
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::{Backoff, BackoffPolicy, SharedClock};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::Shared;
use crate::address::ControllerAddress;
use crate::dial;
use crate::run_log::RunLogger;

/// Quick at first: a controller that restarts is back within seconds.
const POLICY: BackoffPolicy = BackoffPolicy {
    initial: Duration::from_millis(100),
    max: Duration::from_secs(5),
    factor: 2.0,
    jitter: 0.5,
};

/// Counts failures in a row, and the time since the first of them.
pub(super) struct Patience {
    clock: SharedClock,
    log: RunLogger,
    cancel: CancellationToken,
    address: ControllerAddress,
    limit: Duration,
    backoff: Backoff,
    failing_since: Option<Instant>,
}

impl Patience {
    pub(super) fn new(shared: &Shared) -> Self {
        Self {
            clock: shared.clock.clone(),
            log: shared.log.clone(),
            cancel: shared.cancel.clone(),
            address: shared.link.address().clone(),
            limit: shared.patience,
            backoff: Backoff::new(POLICY),
            failing_since: None,
        }
    }

    /// A call succeeded.
    pub(super) fn restore(&mut self) {
        self.backoff.reset();
        self.failing_since = None;
    }

    /// Waits before the next try after a call failed, or says that there is none.
    pub(super) async fn wait_after(&mut self, status: &Status) -> Result<(), Failure> {
        let failure = dial::failure_of(&self.address, status);
        if !may_pass(status, &failure) {
            return Err(failure);
        }
        let now = self.clock.monotonic();
        let since = *self.failing_since.get_or_insert(now);
        let failing_for = now.saturating_duration_since(since);
        if failing_for >= self.limit {
            return Err(failure.because(format!("tried again for {} s", failing_for.as_secs())));
        }
        if self.backoff.failures() == 0 {
            tracing::info!(%failure, "a call to the controller failed, trying again");
        }
        self.log.debug(format_args!("a call to the controller failed, it is tried again: {failure}"));
        self.backoff.wait(&*self.clock, &self.cancel).await.map_err(|_| cancelled())
    }
}

pub(super) fn cancelled() -> Failure {
    Failure::new(ErrorCode::RunCancelled, "the run was cancelled")
}

/// Whether the same call may succeed a moment later.
fn may_pass(status: &Status, failure: &Failure) -> bool {
    dial::is_connection_loss(status)
        || matches!(
            failure.code,
            ErrorCode::StorageUnreachable
                | ErrorCode::ControllerUnreachable
                | ErrorCode::AgentOffline
                | ErrorCode::SessionReplaced
                | ErrorCode::QueueFull
        )
}
