//! Which databases the agents see on their hosts, and how many of them nobody protects. A reconciler: it asks once a
//! day, and remembers only in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_model::Failure;
use holdfast_model::discovery::{
    DatabaseKind, Discovery, FOUND_MAX, Found, Place, Unprotected, same_server, unprotected,
};
use holdfast_model::fleet::Fleet;
use holdfast_model::ids::{AgentName, SourceName};
use holdfast_model::source::{EngineConfig, PostgresConfig, Source};
use holdfast_proto::convert::{document, from_document};
use holdfast_proto::v1;
use holdfast_proto::v1::inquiry::Question;
use parking_lot::Mutex;

use crate::core::Core;

/// How often it is looked which agents are to be asked.
const PERIOD: Duration = Duration::from_secs(60);

/// How often an agent is asked.
const LOOK_AGAIN: Duration = Duration::from_secs(24 * 3600);

/// What the agents have seen.
#[derive(Default)]
pub struct DiscoveryBook {
    agents: Mutex<BTreeMap<AgentName, Seen>>,
}

struct Seen {
    /// Nothing when the agent could not answer.
    discovery: Option<Arc<Discovery>>,
    asked: Instant,
}

impl DiscoveryBook {
    /// How many databases were found, and how many of them nobody protects.
    pub fn unprotected(&self, fleet: &Fleet) -> Unprotected {
        // Nobody waits for the count.
        let agents: Vec<(AgentName, Arc<Discovery>)> = {
            let agents = self.agents.lock();
            agents.iter().filter_map(|(name, seen)| Some((name.clone(), seen.discovery.clone()?))).collect()
        };
        unprotected(fleet, agents.iter().map(|(name, discovery)| (name, discovery.as_ref())))
    }

    /// An agent is gone for good.
    pub fn forget(&self, agent: &AgentName) {
        self.agents.lock().remove(agent);
    }

    /// What was seen before stays when nothing could be seen now.
    fn remember(&self, agent: &AgentName, discovery: Option<Arc<Discovery>>, asked: Instant) {
        let mut agents = self.agents.lock();
        let seen = agents.entry(agent.clone()).or_insert(Seen { discovery: None, asked });
        seen.asked = asked;
        seen.discovery = discovery.or(seen.discovery.take());
    }
}

/// Asks an agent what it sees: on its host, and beside the sources whose servers it reaches.
///
/// # Errors
/// `HF-4008` when it is not connected, `HF-5001` when it may not look.
pub async fn look(core: &Core, agent: &AgentName) -> Result<Arc<Discovery>, Failure> {
    let asked = core.clock.monotonic();
    let discovery = ask(core, agent).await.map(Arc::new);
    core.discovery.remember(agent, discovery.as_ref().ok().cloned(), asked);
    discovery
}

async fn ask(core: &Core, agent: &AgentName) -> Result<Discovery, Failure> {
    let question = Question::Discover(v1::DiscoverDatabases {});
    let text = core.sessions.ask(agent, String::new(), question).await?;
    let mut discovery: Discovery = from_document("discovery", &text)?;
    // An agent does not know the names of sources, and it may not fill the memory of the controller.
    discovery.found.retain(|found| !matches!(found.place, Place::Database { .. }));
    discovery.found.truncate(FOUND_MAX);
    discovery.unseen.truncate(FOUND_MAX);
    let current = core.definitions.current();
    for (name, source) in partly_covered_servers(&current.fleet, agent) {
        match beside(core, source).await {
            Ok(names) => discovery.found.extend(names.into_iter().take(FOUND_MAX).map(|database| Found {
                kind: DatabaseKind::Postgres,
                place: Place::Database { server: name.clone(), name: database },
            })),
            Err(failure) => discovery.unseen.push(format!("databases beside {name}: {failure}")),
        }
    }
    Ok(discovery)
}

/// The databases of the server that a source is on.
async fn beside(core: &Core, source: &Source) -> Result<Vec<String>, Failure> {
    let question = Question::Discover(v1::DiscoverDatabases {});
    let text = core.sessions.ask(&source.agent, document(source), question).await?;
    Ok(from_document("databases", &text)?)
}

/// One source for each server of which the sources of an agent name databases, and no source takes them all.
fn partly_covered_servers<'a>(fleet: &'a Fleet, agent: &AgentName) -> Vec<(&'a SourceName, &'a Source)> {
    let mut servers: Vec<(&SourceName, &Source, &PostgresConfig, bool)> = Vec::new();
    for (name, source) in fleet.sources.iter().filter(|(_, source)| source.agent == *agent) {
        let EngineConfig::Postgres(postgres) = &source.engine else { continue };
        let takes_all = postgres.databases.is_empty();
        match servers.iter_mut().find(|server| same_server(&server.2.connect, &postgres.connect)) {
            Some(server) => server.3 |= takes_all,
            None => servers.push((name, source, postgres, takes_all)),
        }
    }
    servers.into_iter().filter(|server| !server.3).map(|(name, source, ..)| (name, source)).collect()
}

/// Runs until the controller stops.
pub async fn run(core: Arc<Core>) {
    let stop = core.tasks.token().clone();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = core.clock.sleep(PERIOD) => {}
        }
        stop.run_until_cancelled(pass(&core)).await;
    }
}

/// One agent after the other: nothing waits for it.
async fn pass(core: &Core) {
    for agent in core.sessions.states().into_keys() {
        let now = core.clock.monotonic();
        let is_fresh = |seen: &Seen| now.saturating_duration_since(seen.asked) < LOOK_AGAIN;
        if core.discovery.agents.lock().get(&agent).is_some_and(is_fresh) {
            continue;
        }
        if let Err(failure) = look(core, &agent).await {
            tracing::debug!(%agent, %failure, "its host could not be looked at");
        }
    }
}
