//! Databases that are seen on hosts, and what would protect them.

use std::sync::Arc;

use futures::StreamExt as _;
use holdfast_model::Failure;
use holdfast_model::discovery::{Covers, Definitions, Discovery};
use holdfast_model::ids::{AgentName, PolicyName};
use holdfast_proto::convert::parse_optional;
use holdfast_proto::v1;

use crate::core::Core;
use crate::discovery;

/// Agents that are asked at once.
const AT_ONCE: usize = 16;

/// Databases in one reply.
const DATABASES_MAX: usize = 10_000;

/// Asks one agent, or all that are connected.
pub(super) async fn discover(
    core: &Core,
    request: v1::DiscoverRequest,
) -> Result<v1::DiscoverResponse, Failure> {
    let only: Option<AgentName> = parse_optional("agent", &request.agent)?;
    let policy: Option<PolicyName> = parse_optional("policy", &request.policy)?;
    if let Some(name) = &policy {
        core.definitions.policy(name)?;
    }
    let mut response = v1::DiscoverResponse::default();
    let mut seen: Vec<(AgentName, Arc<Discovery>)> = Vec::new();
    if let Some(agent) = only {
        core.agents.get(&agent).await?;
        seen.push((agent.clone(), discovery::look(core, &agent).await?));
    } else {
        let connected = core.sessions.states();
        for agent in core.agents.all().await?.into_iter().filter(|agent| agent.revoked_at.is_none()) {
            if !connected.contains_key(&agent.name) {
                response.unseen.push(format!("{}: it is not connected", agent.name));
            }
        }
        let asking = futures::stream::iter(connected.into_keys()).map(|agent| async move {
            let found = discovery::look(core, &agent).await;
            (agent, found)
        });
        for (agent, found) in asking.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await {
            match found {
                Ok(found) => seen.push((agent, found)),
                Err(failure) => response.unseen.push(format!("{agent}: {failure}")),
            }
        }
        seen.sort_by(|one, other| one.0.cmp(&other.0));
    }
    describe(core, &seen, policy, &mut response);
    Ok(response)
}

fn describe(
    core: &Core,
    seen: &[(AgentName, Arc<Discovery>)],
    policy: Option<PolicyName>,
    response: &mut v1::DiscoverResponse,
) {
    let current = core.definitions.current();
    let fleet = &current.fleet;
    // Where there is one policy only, it is the one that is meant.
    let only = fleet.policies.keys().next().filter(|_| fleet.policies.len() == 1).cloned();
    let policy = policy.or(only);
    let (covers, mut definitions) = (Covers::new(fleet), Definitions::new(fleet));
    for (agent, discovery) in seen {
        response.unseen.extend(discovery.unseen.iter().map(|line| format!("{agent}: {line}")));
        for found in &discovery.found {
            if response.databases.len() == DATABASES_MAX {
                response.unseen.push(format!("what comes after {DATABASES_MAX} databases"));
                return;
            }
            let cover = covers.of(agent, found);
            let definition = match &cover {
                None => definitions.line(agent, found, policy.as_ref()).unwrap_or_default(),
                Some(_) => String::new(),
            };
            let (source, of_policy) = cover.map_or((String::new(), String::new()), |cover| {
                (cover.source.to_string(), cover.policy.map(|name| name.to_string()).unwrap_or_default())
            });
            response.databases.push(v1::FoundDatabase {
                agent: agent.to_string(),
                kind: found.kind.as_str().to_owned(),
                place: found.place.describe(),
                source,
                policy: of_policy,
                definition,
            });
        }
    }
}
