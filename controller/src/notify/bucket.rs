//! How much a channel takes in a time.

use std::time::{Duration, Instant};

use holdfast_model::alert::channel::ChannelType;

/// Tokens that come back with time: one for each request.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    tokens: f64,
    most: f64,
    per_second: f64,
    filled_at: Instant,
}

impl Bucket {
    /// A full bucket for a kind of channel.
    pub(super) fn new(of: ChannelType, now: Instant) -> Self {
        // DingTalk blocks a robot for ten minutes after the twentieth message of a minute; Slack takes one a second.
        let (most, per_second) = match of {
            ChannelType::Dingtalk => (5.0, 15.0 / 60.0),
            ChannelType::Slack => (5.0, 1.0),
            _ => (60.0, 10.0),
        };
        Self { tokens: most, most, per_second, filled_at: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.most);
        self.filled_at = now;
    }

    /// How many requests may be made now.
    pub(super) fn available(&mut self, now: Instant) -> usize {
        self.fill(now);
        self.tokens.floor().max(0.0) as usize
    }

    /// Takes a token for a request.
    pub(super) fn take(&mut self, now: Instant) {
        self.fill(now);
        self.tokens -= 1.0;
    }

    /// Empties it: somebody said that it was too much.
    pub(super) fn empty_for(&mut self, now: Instant, pause: Duration) {
        self.fill(now);
        self.tokens = -pause.as_secs_f64() * self.per_second;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_minute_sees_more_than_the_robot_takes() {
        let start = Instant::now();
        let mut bucket = Bucket::new(ChannelType::Dingtalk, start);
        let mut sent: Vec<u64> = Vec::new();
        for second in 0..600 {
            let now = start + Duration::from_secs(second);
            while bucket.available(now) > 0 {
                bucket.take(now);
                sent.push(second);
            }
        }
        let worst =
            (0..600).map(|from| sent.iter().filter(|at| (from..from + 60).contains(*at)).count()).max();
        assert_eq!(worst, Some(19), "it blocks after twenty");
        assert_eq!(sent.len(), 5 + 599 / 4);
        bucket.empty_for(start + Duration::from_secs(600), Duration::from_secs(600));
        assert_eq!(bucket.available(start + Duration::from_secs(1199)), 0);
        assert_eq!(bucket.available(start + Duration::from_secs(1205)), 1);
    }
}
