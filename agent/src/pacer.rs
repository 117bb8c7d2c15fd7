//! Spreads over time what this agent sends, where policies limit it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_model::policy::Pace;
use holdfast_runtime::Clock;
use parking_lot::Mutex;

/// What the runs of this agent that are limited send one after another, so that together they are not faster than the
/// limit either.
#[derive(Debug, Default)]
pub struct Pacer {
    /// When what was sent so far is paid for.
    paid: Mutex<Option<Instant>>,
}

/// The pacer and the pace of one run.
#[derive(Debug, Clone)]
pub struct PacedRun {
    /// Shared by the runs of the agent.
    pub pacer: Arc<Pacer>,
    /// What the policy of this one says.
    pub pace: Pace,
}

impl PacedRun {
    /// Waits until so many bytes may be sent. Cancellation-safe; what was reserved stays reserved.
    pub async fn before_sending(&self, bytes: usize, clock: &dyn Clock) {
        let Some(rate) = self.pace.rate_at(clock.now()) else { return };
        let now = clock.monotonic();
        let cost = Duration::from_secs_f64(bytes as f64 / rate.0.0.max(1) as f64);
        let begin = {
            let mut paid = self.pacer.paid.lock();
            let begin = paid.map_or(now, |paid| paid.max(now));
            *paid = Some(begin + cost);
            begin
        };
        if begin > now {
            clock.sleep_until(begin).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_runtime::ManualClock;
    use jiff::Timestamp;

    use super::*;

    fn paced(pacer: &Arc<Pacer>, limit: &str) -> PacedRun {
        let pace = serde_json::json!({ "bandwidth": { "limit": limit }, "timezone": "UTC" });
        PacedRun { pacer: pacer.clone(), pace: serde_json::from_value(pace).unwrap() }
    }

    #[tokio::test]
    async fn two_runs_together_are_as_slow_as_the_limit() {
        let clock = ManualClock::at(Timestamp::UNIX_EPOCH);
        let pacer = Arc::new(Pacer::default());
        let (one, other) = (paced(&pacer, "1MiB/s"), paced(&pacer, "1MiB/s"));
        one.before_sending(1 << 20, &clock).await;
        let mut waiting = std::pin::pin!(other.before_sending(1 << 20, &clock));
        assert!(futures::poll!(&mut waiting).is_pending());
        clock.advance(Duration::from_millis(999));
        assert!(futures::poll!(&mut waiting).is_pending());
        clock.advance(Duration::from_millis(1));
        waiting.await;
    }

    #[tokio::test]
    async fn what_was_not_sent_is_not_saved_up() {
        let clock = ManualClock::at(Timestamp::UNIX_EPOCH);
        let run = paced(&Arc::default(), "1MiB/s");
        run.before_sending(1 << 20, &clock).await;
        clock.advance(Duration::from_secs(100));
        run.before_sending(1 << 20, &clock).await;
        let mut third = std::pin::pin!(run.before_sending(1, &clock));
        assert!(futures::poll!(&mut third).is_pending());
        clock.advance(Duration::from_secs(1));
        third.await;
    }
}
