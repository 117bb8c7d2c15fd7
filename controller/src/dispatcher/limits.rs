//! How much may be under way at a time: in all, on an agent, in a repository, under a policy.

use std::collections::BTreeMap;

use holdfast_model::ids::{AgentName, PolicyName, RepositoryName};
use holdfast_model::policy::Policy;
use holdfast_model::run::Run;
use holdfast_model::text::counted;

use crate::config::LimitsConfig;
use crate::session_registry::SessionState;

/// What the runs under way use.
#[derive(Default)]
pub(super) struct Used {
    runs: u32,
    slots: BTreeMap<AgentName, u32>,
    repositories: BTreeMap<RepositoryName, u32>,
    policies: BTreeMap<PolicyName, UsedByPolicy>,
}

/// What the runs under way of one policy use.
#[derive(Default)]
struct UsedByPolicy {
    runs: u32,
    agents: BTreeMap<AgentName, u32>,
    repositories: BTreeMap<RepositoryName, u32>,
}

impl Used {
    /// Counts a run.
    pub(super) fn take(&mut self, run: &Run, policy: Option<&PolicyName>) {
        self.runs += 1;
        if let Some(agent) = &run.agent {
            *self.slots.entry(agent.clone()).or_default() += 1;
        }
        if let Some(repository) = run.spec.repository() {
            *self.repositories.entry(repository.clone()).or_default() += 1;
        }
        if let Some(policy) = policy {
            let used = self.policies.entry(policy.clone()).or_default();
            used.runs += 1;
            if let Some(agent) = &run.agent {
                *used.agents.entry(agent.clone()).or_default() += 1;
            }
            if let Some(repository) = run.spec.repository() {
                *used.repositories.entry(repository.clone()).or_default() += 1;
            }
        }
    }

    /// Why a run can not start now.
    pub(super) fn obstacle(
        &self,
        run: &Run,
        policy: Option<(&PolicyName, &Policy)>,
        sessions: &BTreeMap<AgentName, SessionState>,
        limits: &LimitsConfig,
    ) -> Option<String> {
        if let Some(agent) = &run.agent {
            let Some(session) = sessions.get(agent) else {
                return Some(format!("agent {agent} to connect"));
            };
            if session.draining {
                return Some(format!("agent {agent} to end its drain"));
            }
            if self.slots.get(agent).copied().unwrap_or(0) >= session.slots {
                return Some(format!("a free slot on agent {agent} ({} in use)", session.slots));
            }
        }
        if self.runs >= limits.runs {
            return Some(format!("the controller ({} under way)", counted(self.runs.into(), "run")));
        }
        if let Some(repository) = run.spec.repository() {
            let busy = self.repositories.get(repository).copied().unwrap_or(0);
            if busy >= limits.runs_per_repository {
                return Some(format!("repository {repository} (used by {})", counted(busy.into(), "run")));
            }
        }
        policy.and_then(|(name, policy)| self.obstacle_of_policy(run, name, policy))
    }

    fn obstacle_of_policy(&self, run: &Run, name: &PolicyName, policy: &Policy) -> Option<String> {
        let used = self.policies.get(name)?;
        let (limits, count) = (&policy.limits, |used: u32| counted(used.into(), "run"));
        if limits.runs.is_some_and(|most| used.runs >= most.get()) {
            return Some(format!("policy {name} ({} under way)", count(used.runs)));
        }
        if let Some(agent) = &run.agent {
            let busy = used.agents.get(agent).copied().unwrap_or(0);
            if limits.runs_per_agent.is_some_and(|most| busy >= most.get()) {
                return Some(format!("policy {name} on agent {agent} ({} under way)", count(busy)));
            }
        }
        let repository = run.spec.repository()?;
        let busy = used.repositories.get(repository).copied().unwrap_or(0);
        limits
            .runs_per_repository
            .is_some_and(|most| busy >= most.get())
            .then(|| format!("policy {name} in repository {repository} ({} under way)", count(busy)))
    }
}
