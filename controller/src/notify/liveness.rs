//! Signs of life of the parts that must be alive for silence to mean that all is well.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use holdfast_runtime::SharedClock;

/// A part that is silent for longer is not well.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// A part that gives signs of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What begins backups.
    Scheduler,
    /// What judges alerts, and with them the state.
    Alerts,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 2] = [Part::Scheduler, Part::Alerts];

    /// The word used in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Part::Scheduler => "the scheduler",
            Part::Alerts => "the rules of alerts",
        }
    }
}

/// When each part last did its work.
#[derive(Debug)]
pub struct Liveness {
    clock: SharedClock,
    origin: Instant,
    /// Milliseconds since the origin, and one more; 0 for never.
    beats: [AtomicU64; Part::ALL.len()],
}

impl Liveness {
    /// Nobody has done anything yet.
    pub fn new(clock: SharedClock) -> Self {
        Self { origin: clock.monotonic(), clock, beats: Default::default() }
    }

    fn elapsed(&self) -> u64 {
        let elapsed = self.clock.monotonic().saturating_duration_since(self.origin);
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX - 1)
    }

    /// How long the controller has been up.
    pub fn uptime(&self) -> Duration {
        Duration::from_millis(self.elapsed())
    }

    /// A part has done its work.
    pub fn beat(&self, part: Part) {
        self.beats[part as usize].store(self.elapsed() + 1, Ordering::Relaxed);
    }

    /// The part that has not done its work for too long, if there is one.
    pub fn silent(&self) -> Option<Part> {
        let now = self.elapsed();
        let limit = u64::try_from(SILENCE_MAX.as_millis()).unwrap_or(u64::MAX);
        Part::ALL.into_iter().find(|part| {
            let beat = self.beats[*part as usize].load(Ordering::Relaxed);
            beat == 0 || now.saturating_sub(beat - 1) > limit
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use holdfast_runtime::ManualClock;

    use super::*;

    #[test]
    fn a_part_that_did_nothing_for_too_long_is_silent() {
        let clock = ManualClock::at("2026-06-01T00:00:00Z".parse().unwrap());
        let liveness = Liveness::new(Arc::new(clock.clone()));
        assert_eq!(liveness.silent(), Some(Part::Scheduler));
        Part::ALL.into_iter().for_each(|part| liveness.beat(part));
        assert_eq!(liveness.silent(), None);
        clock.advance(SILENCE_MAX);
        liveness.beat(Part::Scheduler);
        assert_eq!(liveness.silent(), None);
        clock.advance(Duration::from_secs(1));
        assert_eq!(liveness.silent(), Some(Part::Alerts));
    }
}
