//! Asks every source now and then whether it is well. A reconciler: it takes no input, and remembers only in memory; what
//! it finds is true for a minute.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use holdfast_model::fleet::Fleet;
use holdfast_model::health::{Health, HealthReport};
use holdfast_model::ids::SourceName;
use holdfast_model::policy::HealthLimits;
use holdfast_model::source::Source;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{document, from_document};
use holdfast_proto::v1;
use parking_lot::Mutex;

use crate::core::Core;

/// How often it is looked who is to be asked.
const PERIOD: Duration = Duration::from_secs(1);

/// Sources asked at once.
const AT_ONCE: usize = 64;

/// The health of the sources, as far as it is known.
#[derive(Debug, Default)]
pub struct HealthBook {
    sources: Mutex<HashMap<SourceName, (Health, Instant)>>,
}

impl HealthBook {
    /// The health of a source; nothing before it was asked, or while its agent is away.
    pub fn get(&self, source: &SourceName) -> Option<Health> {
        self.sources.lock().get(source).map(|(health, _)| health.clone())
    }
}

/// How a source is asked: as its policy says, or as is usual.
pub fn limits_of(fleet: &Fleet, source: &Source) -> HealthLimits {
    fleet.policy_of(source).map(|(_, policy)| policy.health).unwrap_or_default()
}

/// Runs until the controller stops.
pub async fn run(core: Arc<Core>) {
    let stop = core.tasks.token().clone();
    loop {
        stop.run_until_cancelled(pass(&core)).await;
        tokio::select! {
            () = stop.cancelled() => return,
            () = core.clock.sleep(PERIOD) => {}
        }
    }
}

async fn pass(core: &Arc<Core>) {
    let current = core.definitions.current();
    let now = core.clock.monotonic();
    let sessions = core.sessions.states();
    let due: Vec<(SourceName, Source)> = {
        let mut known = core.health.sources.lock();
        // Of a source whose agent is away nothing is known, and that is said of the agent.
        known.retain(|name, _| {
            current.fleet.sources.get(name).is_some_and(|source| sessions.contains_key(&source.agent))
        });
        let is_due = |name: &SourceName, source: &Source| {
            let every = u64::try_from(limits_of(&current.fleet, source).every.secs()).unwrap_or(u64::MAX);
            known
                .get(name)
                .is_none_or(|(_, asked)| now.saturating_duration_since(*asked) >= Duration::from_secs(every))
        };
        let with_agent = |source: &Source| sessions.contains_key(&source.agent);
        let sources = current.fleet.sources.iter();
        sources
            .filter(|(name, source)| with_agent(source) && is_due(name, source))
            .map(|(name, source)| (name.clone(), source.clone()))
            .collect()
    };
    let asking = futures::stream::iter(due).map(|(name, source)| async move {
        let found = ask(core, &source).await;
        // That an agent went away meanwhile says nothing of the source.
        if !matches!(&found, Err(failure) if failure.code == ErrorCode::AgentOffline) {
            observe(core, name, found);
        }
    });
    asking.buffer_unordered(AT_ONCE).collect::<()>().await;
}

async fn ask(core: &Arc<Core>, source: &Source) -> Result<HealthReport, Failure> {
    let question = v1::inquiry::Question::Health(v1::HealthOfSource {});
    let text = core.sessions.ask(&source.agent, document(source), question).await?;
    Ok(from_document("health", &text)?)
}

fn observe(core: &Core, name: SourceName, found: Result<HealthReport, Failure>) {
    let mut known = core.health.sources.lock();
    let before = known.get(&name).map(|(health, _)| health);
    let health = Health::observe(before, found, core.clock.now());
    known.insert(name, (health, core.clock.monotonic()));
}
