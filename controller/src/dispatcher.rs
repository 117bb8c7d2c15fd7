//! Hands queued runs to their agents, or to the controller's own hands. A reconciler: it takes no input, and looks at
//! the world anew whenever a run or a session changed.

mod gates;
mod limits;

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::fleet::Fleet;
use holdfast_model::ids::{AgentName, Attempt, PolicyName};
use holdfast_model::policy::{Pace, Policy, Priority};
use holdfast_model::run::{Run, RunSpec};
use holdfast_model::run_state::{Phase, RunEvent};
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::document;
use holdfast_proto::v1;
use holdfast_proto::v1::session_response::Message as ToAgent;
use holdfast_runtime::fail_point;
use jiff::Timestamp;

use self::gates::Gate;
use self::limits::Used;
use crate::core::Core;
use crate::debug_logging::seconds;
use crate::run_lifecycle::Outcome;

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
    let current = core.definitions.current();
    let policy_of = |run: &Run| policy_of(&current.fleet, run);
    let runs = core.runs.active();
    let sessions = core.sessions.states();
    let mut used = Used::default();
    for run in runs.iter().filter(|run| run.state.phase.is_with_agent()) {
        used.take(run, policy_of(run).map(|(name, _)| name));
    }
    let mut queued: Vec<&Run> = runs.iter().filter(|run| run.state.phase == Phase::Queued).collect();
    // The ids are in the order in which they were made; sorting keeps it among equals.
    queued.sort_by_key(|run| Reverse(policy_of(run).map_or(Priority::MEDIUM, |(_, policy)| policy.priority)));
    for run in queued {
        let policy = policy_of(run);
        let turn = turn(core, run, policy.map(|(_, policy)| policy), || {
            used.obstacle(run, policy, &sessions, &core.config.get().limits)
        });
        let done = match turn {
            Turn::Wait(reason) => {
                core.runs.waits_for(run.id, Some(reason));
                Ok(())
            }
            Turn::Begin => {
                used.take(run, policy.map(|(name, _)| name));
                start(core, run).await
            }
            Turn::End(event) => {
                core.runs.apply(run.id, "controller", event, Outcome::default()).await.map(drop)
            }
        };
        if let Err(failure) = done {
            tracing::warn!(run = %run.id, %failure, "could not be taken from the queue");
        }
    }
}

/// What would become of a run that is not queued yet.
pub struct Foreseen {
    /// What it would wait for.
    pub waits_for: Option<String>,
    /// What of its host is in use more than its policy allows.
    pub busy: Option<String>,
    /// The policy that it is made under.
    pub policy: Option<(PolicyName, Policy)>,
}

/// Foresees what would become of a run if it were queued now.
pub fn foresee(core: &Core, run: &Run) -> Foreseen {
    let current = core.definitions.current();
    let sessions = core.sessions.states();
    let mut used = Used::default();
    for other in core.runs.active().iter().filter(|other| other.state.phase.is_with_agent()) {
        used.take(other, policy_of(&current.fleet, other).map(|(name, _)| name));
    }
    let policy = policy_of(&current.fleet, run);
    let waits_for = used.obstacle(run, policy, &sessions, &core.config.get().limits);
    let heartbeat = run.agent.as_ref().and_then(|agent| sessions.get(agent)?.heartbeat.clone());
    let busy = policy.zip(heartbeat);
    let busy = busy.and_then(|((_, policy), heartbeat)| gates::too_busy(&policy.resources, &heartbeat));
    Foreseen { waits_for, busy, policy: policy.map(|(name, policy)| (name.clone(), policy.clone())) }
}

/// The policy that a backup is made under.
fn policy_of<'a>(fleet: &'a Fleet, run: &Run) -> Option<(&'a PolicyName, &'a Policy)> {
    let RunSpec::Backup { source, .. } = &run.spec else { return None };
    fleet.policy_of(fleet.sources.get(source)?)
}

/// What becomes of a queued run now.
enum Turn {
    /// It waits, for this.
    Wait(String),
    /// It begins.
    Begin,
    /// It leaves the queue without having begun.
    End(RunEvent),
}

fn turn(core: &Core, run: &Run, policy: Option<&Policy>, obstacle: impl FnOnce() -> Option<String>) -> Turn {
    if core.runs.rest(run.id).is_some() {
        return Turn::Wait("its next attempt".to_owned());
    }
    if let Some(reason) = obstacle() {
        core.runs.held_for(run.id, false);
        let waited = core.clock.now().duration_since(run.queued_at);
        let catch_up = policy.map(|policy| policy.schedule.catch_up);
        return match catch_up {
            Some(most) if is_first_of_schedule(run) && waited > most.duration() => {
                let failure =
                    Failure::new(ErrorCode::TooLateToBegin, format!("could not begin within {most}"))
                        .because(format!("it waited for {reason}"));
                Turn::End(RunEvent::Refused(failure))
            }
            _ => Turn::Wait(reason),
        };
    }
    let Some(policy) = policy else { return Turn::Begin };
    let heartbeat = run.agent.as_ref().and_then(|agent| core.sessions.state(agent)?.heartbeat);
    let busy = heartbeat.and_then(|heartbeat| gates::too_busy(&policy.resources, &heartbeat));
    let held_for = core.runs.held_for(run.id, busy.is_some());
    match gates::judge(&policy.resources, busy, held_for) {
        Gate::Open => Turn::Begin,
        Gate::Forced(busy) => {
            tracing::info!(run = %run.id, busy, "begins although its host is too busy");
            Turn::Begin
        }
        Gate::Wait(busy) => Turn::Wait(format!("its host: {busy}")),
        Gate::Skip(failure) => Turn::End(RunEvent::Skipped(failure)),
        Gate::Fail(failure) => Turn::End(RunEvent::Refused(failure)),
    }
}

/// Whether a schedule began the run, and no attempt was made yet.
fn is_first_of_schedule(run: &Run) -> bool {
    run.slot.is_some() && run.state.attempt == Attempt(0)
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
            core.debug_line(&run, || assigned_to(agent, &order, &run, core.clock.now())).await;
            if core.sessions.send(agent, ToAgent::Assign(order)).is_err() {
                core.runs.lease_lost(run.id, attempt, None, false).await?;
            }
        }
        _ => core.maintain(run),
    }
    Ok(())
}

/// What the log says of an assignment, for who wants to know.
fn assigned_to(agent: &AgentName, order: &v1::Assign, run: &Run, now: Timestamp) -> String {
    let queued = now.duration_since(run.queued_at).as_secs_f64();
    let timeout = match order.timeout_seconds {
        0 => "the agent's own timeout".to_owned(),
        timeout => format!("a timeout of {timeout} s"),
    };
    format!(
        "assigned to agent {agent} {queued:.1} s after it was queued, with {timeout}: {}",
        order.spec_json
    )
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
    let policy = policy_of(&core.definitions.current().fleet, run).map(|(_, policy)| policy.clone());
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
        timeout_seconds: policy.as_ref().map_or(0, |policy| policy.timeout.0.secs().try_into().unwrap_or(0)),
        pace_json: policy.and_then(pace).as_ref().map(document).unwrap_or_default(),
        debug_seconds: run.spec.source().map_or(0, |name| seconds(core.debug.left(name, core.clock.now()))),
    }))
}

/// How fast a run of this policy may send.
fn pace(policy: Policy) -> Option<Pace> {
    Some(Pace { bandwidth: policy.bandwidth?, timezone: policy.schedule.timezone })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use holdfast_model::ids::{AgentName, RepositoryName, RunId, SourceName};
    use holdfast_model::policy::Limits;
    use holdfast_model::run::SnapshotType;
    use holdfast_model::run_state::RunState;
    use holdfast_model::units::Count;
    use jiff::Timestamp;

    use super::*;
    use crate::config::LimitsConfig;
    use crate::session_registry::SessionState;

    fn backup(number: u8, phase: Phase) -> Run {
        let spec = RunSpec::Backup {
            source: SourceName::new(format!("s{number}")).unwrap(),
            repository: RepositoryName::new("main").unwrap(),
            snapshot_type: SnapshotType::Full,
            milestone: None,
        };
        let id = RunId::at(u64::from(number), [number; 10]);
        Run {
            agent: Some(AgentName::new("db1").unwrap()),
            state: RunState { phase, ..RunState::default() },
            ..Run::queued(id, spec, "test", Timestamp::UNIX_EPOCH)
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
    fn a_run_waits_for_its_agent_a_slot_and_what_is_limited() {
        let gold = PolicyName::new("gold").unwrap();
        let mut used = Used::default();
        used.take(&backup(1, Phase::Running), Some(&gold));
        used.take(&backup(2, Phase::Assigned), None);
        let next = backup(3, Phase::Queued);
        let limits =
            |runs, runs_per_repository| LimitsConfig { runs, runs_per_repository, ..LimitsConfig::default() };
        let waits = |sessions, limits: LimitsConfig| used.obstacle(&next, None, &sessions, &limits);
        assert_eq!(waits(BTreeMap::new(), limits(9, 8)).as_deref(), Some("agent db1 to connect"));
        assert_eq!(waits(sessions(4, true), limits(9, 8)).as_deref(), Some("agent db1 to end its drain"));
        let slot = waits(sessions(2, false), limits(9, 8));
        assert_eq!(slot.as_deref(), Some("a free slot on agent db1 (2 in use)"));
        let repository = waits(sessions(3, false), limits(9, 2));
        assert_eq!(repository.as_deref(), Some("repository main (used by 2 runs)"));
        assert_eq!(
            waits(sessions(3, false), limits(2, 8)).as_deref(),
            Some("the controller (2 runs under way)")
        );
        assert_eq!(waits(sessions(3, false), limits(9, 8)), None);

        let under = |limits: Limits| {
            let policy = Policy { limits, ..Policy::default() };
            used.obstacle(&next, Some((&gold, &policy)), &sessions(3, false), &LimitsConfig::default())
        };
        let one = Some(Count::new(1));
        assert_eq!(under(Limits::default()), None);
        assert_eq!(
            under(Limits { runs: one, ..Limits::default() }).as_deref(),
            Some("policy gold (1 run under way)")
        );
        assert_eq!(
            under(Limits { runs_per_agent: one, ..Limits::default() }).as_deref(),
            Some("policy gold on agent db1 (1 run under way)")
        );
        assert_eq!(
            under(Limits { runs_per_repository: one, ..Limits::default() }).as_deref(),
            Some("policy gold in repository main (1 run under way)")
        );
        assert_eq!(under(Limits { runs: Some(Count::new(2)), ..Limits::default() }), None);
    }
}
