//! When to try again: exponential, capped, with jitter, and stopped by a token.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// How delays between attempts grow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BackoffPolicy {
    /// The longest delay after the first failure.
    pub initial: Duration,
    /// No delay is longer.
    pub max: Duration,
    /// By how much the delay grows with each failure; at least 1.
    pub factor: f64,
    /// The share of each delay that is random, 0 to 1: a fleet that failed together must not return together.
    pub jitter: f64,
}

impl BackoffPolicy {
    /// For a connection that should come back by itself: 0.5 s growing to 60 s, half of it random.
    pub const RECONNECT: Self =
        Self { initial: Duration::from_millis(500), max: Duration::from_secs(60), factor: 2.0, jitter: 0.5 };

    /// The delay after `failures` failures in a row (from 1), for a random number in `0..1`.
    ///
    /// The result lies between `(1 - jitter)` and 1 times the exponential delay, and never above `max`.
    pub fn delay(&self, failures: u32, random: f64) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let full = self.initial.as_secs_f64() * self.factor.max(1.0).powi(exponent);
        let capped = full.min(self.max.as_secs_f64());
        let share = 1.0 - self.jitter.clamp(0.0, 1.0) * (1.0 - random.clamp(0.0, 1.0));
        Duration::try_from_secs_f64(capped * share).unwrap_or(self.max)
    }
}

/// The wait was ended by its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled while waiting to try again")]
pub struct Cancelled;

/// Counts failures in a row and waits between attempts.
#[derive(Debug, Clone)]
pub struct Backoff {
    policy: BackoffPolicy,
    failures: u32,
}

impl Backoff {
    /// No failure yet.
    pub fn new(policy: BackoffPolicy) -> Self {
        Self { policy, failures: 0 }
    }

    /// How many failures there were since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// An attempt succeeded: the next failure waits `initial` again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Counts a failure and says how long to wait before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.policy.delay(self.failures, rand::random())
    }

    /// Counts a failure and waits until the next attempt is due.
    ///
    /// # Errors
    /// [`Cancelled`] when the token ended the wait.
    pub async fn wait(&mut self, clock: &dyn Clock, token: &CancellationToken) -> Result<(), Cancelled> {
        let delay = self.next_delay();
        token.run_until_cancelled(clock.sleep(delay)).await.ok_or(Cancelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const POLICY: BackoffPolicy = BackoffPolicy {
        initial: Duration::from_secs(1),
        max: Duration::from_secs(60),
        factor: 2.0,
        jitter: 0.5,
    };

    #[test]
    fn delays_double_up_to_the_cap() {
        let delays: Vec<u64> = (1..=9).map(|n| POLICY.delay(n, 1.0).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(POLICY.delay(u32::MAX, 1.0), POLICY.max);
    }

    #[test]
    fn jitter_takes_away_at_most_its_share() {
        assert_eq!(POLICY.delay(1, 0.0), Duration::from_millis(500));
        assert_eq!(POLICY.delay(2, 0.5), Duration::from_millis(1500));
        assert_eq!(BackoffPolicy { jitter: 0.0, ..POLICY }.delay(1, 0.0), POLICY.initial);
    }

    #[test]
    fn a_success_starts_over() {
        let mut backoff = Backoff::new(POLICY);
        for _ in 0..5 {
            backoff.next_delay();
        }
        assert_eq!(backoff.failures(), 5);
        backoff.reset();
        assert!(backoff.next_delay() <= POLICY.initial);
    }

    #[tokio::test]
    async fn the_token_ends_the_wait() {
        let clock = ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap());
        let token = CancellationToken::new();
        let mut backoff = Backoff::new(POLICY);
        let (waited, ()) = futures::join!(backoff.wait(&clock, &token), async {
            clock.until_sleepers(1).await;
            token.cancel();
        });
        assert_eq!(waited, Err(Cancelled));
    }
}
