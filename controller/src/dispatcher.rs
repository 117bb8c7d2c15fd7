//! Hands queued runs to their agents, or to the controller's own hands. A reconciler: it takes no input, and looks at
//! the world anew whenever a run or a session changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::Failure;
use holdfast_model::ids::{AgentName, RepositoryName};
use holdfast_model::run::{Run, RunSpec};
use holdfast_model::run_state::{Phase, RunEvent};
use holdfast_model::text::counted;
use holdfast_proto::convert::document;
use holdfast_proto::v1;
use holdfast_proto::v1::session_response::Message as ToAgent;
use holdfast_runtime::fail_point;

use crate::core::Core;
use crate::run_lifecycle::Outcome;
use crate::session_registry::SessionState;

/// How often it looks without being woken.
const PERIOD: Duration = Duration::from_secs(5);

/// Runs until the controller stops.
pub async fn run(core: Arc<Core>) {
    let stop = core.tasks.token().clone();
    loop {
        let run_changed = core.runs.changed();
        let session_changed = core.sessions.changed();
        pass(&core).await;
        tokio::select! {
            () = stop.cancelled() => return,
            () = run_changed => {}
            () = session_changed => {}
            () = core.clock.sleep(soonest_rest(&core).unwrap_or(PERIOD).min(PERIOD)) => {}
        }
    }
}

/// When the first of the runs that rest may begin again.
fn soonest_rest(core: &Core) -> Option<Duration> {
    core.runs.active().iter().filter_map(|run| core.runs.rest(run.id)).min()
}

async fn pass(core: &Arc<Core>) {
    let runs = core.runs.active();
    let sessions = core.sessions.states();
    let mut used = Used::of(&runs);
    for run in runs.iter().filter(|run| run.state.phase == Phase::Queued) {
        let obstacle = core.runs.rest(run.id).map(|_| "its next attempt".to_owned());
        match obstacle.or_else(|| used.obstacle(run, &sessions, core.limits.runs_per_repository)) {
            Some(reason) => core.runs.waits_for(run.id, Some(reason)),
            None => {
                used.take(run);
                if let Err(failure) = start(core, run).await {
                    tracing::warn!(run = %run.id, %failure, "could not be assigned");
                }
            }
        }
    }
}

/// What the runs under way use.
#[derive(Default)]
struct Used {
    slots: BTreeMap<AgentName, u32>,
    repositories: BTreeMap<RepositoryName, u32>,
}

impl Used {
    fn of(runs: &[Run]) -> Self {
        let mut used = Self::default();
        runs.iter().filter(|run| run.state.phase.is_with_agent()).for_each(|run| used.take(run));
        used
    }

    fn take(&mut self, run: &Run) {
        if let Some(agent) = &run.agent {
            *self.slots.entry(agent.clone()).or_default() += 1;
        }
        if let Some(repository) = run.spec.repository() {
            *self.repositories.entry(repository.clone()).or_default() += 1;
        }
    }

    /// Why a run can not start now.
    fn obstacle(
        &self,
        run: &Run,
        sessions: &BTreeMap<AgentName, SessionState>,
        per_repository: u32,
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
        let repository = run.spec.repository()?;
        let busy = self.repositories.get(repository).copied().unwrap_or(0);
        (busy >= per_repository)
            .then(|| format!("repository {repository} (used by {})", counted(busy as u64, "run")))
    }
}

async fn start(core: &Arc<Core>, run: &Run) -> Result<(), Failure> {
    let order = match prepare(core, run).await {
        Ok(order) => order,
        Err(failure) => {
            core.runs.apply(run.id, "controller", RunEvent::Refused(failure), Outcome::default()).await?;
            return Ok(());
        }
    };
    expect_as_much_as_last_time(core, run).await?;
    fail_point::hit("controller-before-assign");
    let run = core.runs.apply(run.id, "controller", RunEvent::Assigned, Outcome::default()).await?;
    fail_point::hit("controller-after-assign");
    let attempt = run.state.attempt;
    match (&run.agent, order) {
        (Some(agent), Some(mut order)) => {
            order.attempt = attempt.0;
            if core.sessions.send(agent, ToAgent::Assign(order)).is_err() {
                core.runs.lease_lost(run.id, attempt, None, false).await?;
            }
        }
        _ => core.maintain(run),
    }
    Ok(())
}

/// A backup deals with about as much as the one before it.
async fn expect_as_much_as_last_time(core: &Core, run: &Run) -> Result<(), Failure> {
    if let RunSpec::Backup { source, .. } = &run.spec
        && let Some(last) = core.catalog.latest(source, None, |_| true).await?
    {
        core.runs.expect(run.id, last.logical_bytes, last.files);
    }
    Ok(())
}

/// The order for an agent; none for what the controller does itself.
async fn prepare(core: &Core, run: &Run) -> Result<Option<v1::Assign>, Failure> {
    if run.agent.is_none() {
        return Ok(None);
    }
    let source = run.spec.source().map(|name| core.definitions.effective_source(name)).transpose()?;
    let manifest_json = match &run.spec {
        RunSpec::Restore { repository, snapshot, .. } => {
            core.catalog.manifest(repository, *snapshot).await?.as_ref().map(document).unwrap_or_default()
        }
        _ => String::new(),
    };
    Ok(Some(v1::Assign {
        run_id: run.id.to_string(),
        attempt: 0,
        spec_json: document(&run.spec),
        source_json: source.as_ref().map(document).unwrap_or_default(),
        traceparent: run.traceparent.clone().unwrap_or_default(),
        manifest_json,
    }))
}

#[cfg(test)]
mod tests {
    use holdfast_model::ids::{RunId, SourceName};
    use holdfast_model::progress::Progress;
    use holdfast_model::run::SnapshotType;
    use holdfast_model::run_state::RunState;
    use jiff::Timestamp;

    use super::*;

    fn backup(number: u8, phase: Phase) -> Run {
        Run {
            id: RunId::at(u64::from(number), [number; 10]),
            spec: RunSpec::Backup {
                source: SourceName::new(format!("s{number}")).unwrap(),
                repository: RepositoryName::new("main").unwrap(),
                snapshot_type: SnapshotType::Full,
                milestone: None,
            },
            agent: Some(AgentName::new("db1").unwrap()),
            requested_by: "test".to_owned(),
            state: RunState { phase, ..RunState::default() },
            queued_at: Timestamp::UNIX_EPOCH,
            assigned_at: None,
            started_at: None,
            ended_at: None,
            waiting_for: None,
            snapshot: None,
            restored: None,
            findings: Vec::new(),
            progress: Progress::default(),
            traceparent: None,
            retry_of: None,
            slot: None,
        }
    }

    fn sessions(slots: u32, draining: bool) -> BTreeMap<AgentName, SessionState> {
        let state = SessionState {
            epoch: 1,
            serial: "01".into(),
            slots,
            draining,
            heartbeat: None,
            last_seen_at: Timestamp::UNIX_EPOCH,
            clock_skew_millis: 0,
        };
        BTreeMap::from([(AgentName::new("db1").unwrap(), state)])
    }

    #[test]
    fn a_run_waits_for_its_agent_a_slot_and_its_repository() {
        let running = [backup(1, Phase::Running), backup(2, Phase::Assigned)];
        let used = Used::of(&running);
        let next = backup(3, Phase::Queued);
        let waits = |sessions, limit| used.obstacle(&next, &sessions, limit);
        assert_eq!(waits(BTreeMap::new(), 8).as_deref(), Some("agent db1 to connect"));
        assert_eq!(waits(sessions(4, true), 8).as_deref(), Some("agent db1 to end its drain"));
        assert_eq!(waits(sessions(2, false), 8).as_deref(), Some("a free slot on agent db1 (2 in use)"));
        assert_eq!(waits(sessions(3, false), 2).as_deref(), Some("repository main (used by 2 runs)"));
        assert_eq!(waits(sessions(3, false), 8), None);
    }
}
