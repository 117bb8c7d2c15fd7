//! Debug logging: the sources whose runs write down how they do what they do, each until a moment. It is switched while
//! the controller and its agents run, and ends by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::Failure;
use holdfast_model::ids::SourceName;
use holdfast_model::run::{LogLevel, Run};
use holdfast_proto::v1;
use holdfast_proto::v1::session_response::Message as ToAgent;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::core::Core;
use crate::records::{Batch, Records};
use crate::store::{Expect, Kind};

/// The debug logging of one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugLogging {
    /// When it ends by itself.
    pub until: Timestamp,
    /// Who asked for it.
    pub by: String,
    /// Since when.
    pub at: Timestamp,
}

/// The debug logging of all sources. What has ended is forgotten with the next change.
pub struct DebugBook {
    records: Records,
    inner: Mutex<BTreeMap<SourceName, DebugLogging>>,
    /// Orders what is stored.
    turn: tokio::sync::Mutex<()>,
}

impl DebugBook {
    /// Loads what is stored.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn load(records: Records) -> Result<Self, Failure> {
        let mut inner = BTreeMap::new();
        for found in records.all::<DebugLogging>(Kind::Debug, "").await? {
            if let Ok(source) = SourceName::new(found.key) {
                inner.insert(source, found.value);
            }
        }
        Ok(Self { records, inner: Mutex::new(inner), turn: tokio::sync::Mutex::default() })
    }

    /// The debug logging of a source, while it is on.
    pub fn of(&self, source: &SourceName, now: Timestamp) -> Option<DebugLogging> {
        self.inner.lock().get(source).filter(|logging| logging.until > now).cloned()
    }

    /// How long the runs of a source still write debug lines; nothing when they write none.
    pub fn left(&self, source: &SourceName, now: Timestamp) -> Duration {
        let left = self.of(source, now).map(|logging| logging.until.duration_since(now));
        left.and_then(|left| Duration::try_from(left).ok()).unwrap_or_default()
    }

    /// Stores that it is on, or off.
    async fn store(
        &self,
        source: &SourceName,
        wanted: Option<&DebugLogging>,
        by: &str,
        now: Timestamp,
    ) -> Result<(), Failure> {
        let _turn = self.turn.lock().await;
        let over: Vec<SourceName> = {
            let inner = self.inner.lock();
            let over = inner.iter().filter(|(name, logging)| logging.until <= now && *name != source);
            over.map(|(name, _)| name.clone()).collect()
        };
        let action = if wanted.is_some() { "source.debug" } else { "source.debug_end" };
        let batch = Batch::new(by, action, format!("source/{source}"));
        let batch = match wanted {
            Some(logging) => batch.put(Kind::Debug, source.as_str(), logging, Expect::Any),
            None => batch.delete(Kind::Debug, source.as_str(), Expect::Any),
        };
        let forget = |batch: Batch, name: &SourceName| batch.delete(Kind::Debug, name.as_str(), Expect::Any);
        self.records.commit(over.iter().fold(batch, forget)).await?;
        let mut inner = self.inner.lock();
        inner.retain(|name, _| !over.contains(name) && name != source);
        inner.extend(wanted.map(|logging| (source.clone(), logging.clone())));
        Ok(())
    }
}

impl Core {
    /// Has the runs of a source write debug lines for so long from now on, those that are active too; without a length
    /// no more. Says what was on before.
    ///
    /// # Errors
    /// When the state can not be written.
    pub async fn debug_source(
        &self,
        source: &SourceName,
        length: Option<Duration>,
        by: &str,
    ) -> Result<(Option<DebugLogging>, Option<DebugLogging>), Failure> {
        let now = self.clock.now();
        let before = self.debug.of(source, now);
        let wanted = length.map(|length| DebugLogging { until: now + length, by: by.to_owned(), at: now });
        if before.is_some() || wanted.is_some() {
            self.debug.store(source, wanted.as_ref(), by, now).await?;
        }
        let order =
            v1::DebugRuns { source: source.to_string(), seconds: seconds(length.unwrap_or_default()) };
        let active = self.runs.active();
        let mut agents: Vec<_> = active
            .iter()
            .filter(|run| run.spec.source() == Some(source))
            .filter_map(|run| run.agent.as_ref())
            .collect();
        agents.sort();
        agents.dedup();
        for agent in agents {
            // One that is away is told with the next attempt.
            let _ = self.sessions.send(agent, ToAgent::DebugRuns(order.clone()));
        }
        Ok((before, wanted))
    }

    /// Writes a line into the log of a run if the debug logging of its source is on.
    pub async fn debug_line(self: &Arc<Self>, run: &Run, line: impl FnOnce() -> String) {
        let source = run.spec.source();
        if source.is_some_and(|source| self.debug.of(source, self.clock.now()).is_some()) {
            self.log(run, LogLevel::Debug, vec![line()]).await;
        }
    }
}

/// Whole seconds, as orders to agents hold them: what is shorter than one is one.
pub fn seconds(length: Duration) -> u32 {
    u32::try_from(length.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_second_is_not_the_end_of_it() {
        let lengths = [Duration::ZERO, Duration::from_millis(1), Duration::from_secs(1800), Duration::MAX];
        assert_eq!(lengths.map(seconds), [0, 1, 1800, u32::MAX]);
    }
}
