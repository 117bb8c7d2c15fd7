//! What a backup would do now, without doing it.

use std::sync::Arc;

use holdfast_model::ids::{AgentName, Attempt, RepositoryName, RunId, SourceName};
use holdfast_model::policy::{Policy, WhenBusy};
use holdfast_model::run::{Run, RunSpec, SnapshotType};
use holdfast_model::run_state::RunState;
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{document, timestamp};
use holdfast_proto::v1;
use holdfast_proto::v1::inquiry::Question;

use crate::core::Core;
use crate::dispatcher::{self, Foreseen};

/// Snapshots that say how long a backup takes.
const HISTORY: usize = 5;

/// How far back they are looked for.
const HISTORY_SCANNED: usize = 200;

/// Finds out what one backup, of a source to a repository, would do.
///
/// # Errors
/// When the state can not be read. Why the backup would fail is part of the plan.
pub async fn plan(core: &Arc<Core>, spec: &RunSpec) -> Result<v1::BackupPlan, Failure> {
    let RunSpec::Backup { source, repository, snapshot_type, .. } = spec else {
        return Err(Failure::new(ErrorCode::UsageInvalid, "only a backup can be planned"));
    };
    let definition = core.definitions.effective_source(source)?;
    let agent = definition.agent.clone();
    let mut plan = v1::BackupPlan {
        source: source.to_string(),
        repository: repository.to_string(),
        agent: agent.to_string(),
        agent_online: core.sessions.state(&agent).is_some(),
        snapshot_type: snapshot_type.to_string(),
        hook_before: definition.hooks.before.as_ref().map(ToString::to_string).unwrap_or_default(),
        hook_after: definition.hooks.after.as_ref().map(ToString::to_string).unwrap_or_default(),
        ..v1::BackupPlan::default()
    };
    let mut fail = |failure: Failure| plan.failures.push((&failure).into());
    if let Err(failure) = core.runs.refuse_second(spec) {
        fail(failure);
    }
    if let Err(failure) = core.repository(repository).await {
        fail(failure);
    }
    if plan.agent_online {
        // Reaches it as the backup would, within what the agent may do, and changes nothing.
        let question = Question::Probe(v1::ProbeSource {});
        if let Err(failure) = core.sessions.ask(&agent, document(&definition), question).await {
            fail(failure);
        }
    } else {
        core.agents.get(&agent).await.map(drop).unwrap_or_else(&mut fail);
    }
    foresee(core, spec, &agent, &mut plan);
    estimate(core, (source, repository, *snapshot_type), spec, &mut plan).await?;
    Ok(plan)
}

/// Where it would wait, and what the host's load would make of it.
fn foresee(core: &Core, spec: &RunSpec, agent: &AgentName, plan: &mut v1::BackupPlan) {
    let run = Run {
        agent: Some(agent.clone()),
        state: RunState { attempt: Attempt(0), ..RunState::default() },
        ..Run::queued(RunId::at(0, [0; 10]), spec.clone(), "", core.clock.now())
    };
    let Foreseen { waits_for, busy, policy } = dispatcher::foresee(core, &run);
    plan.waits_for = waits_for.unwrap_or_default();
    plan.busy = busy.unwrap_or_default();
    if let Some((name, policy)) = policy {
        plan.policy = name.to_string();
        plan.when_busy = when_busy(&policy);
    }
}

/// What the policy does about a host that is too busy; nothing when it has no limits.
fn when_busy(policy: &Policy) -> String {
    let resources = &policy.resources;
    if resources.memory.is_none() && resources.cpu.is_none() && resources.disk.is_none() {
        return String::new();
    }
    let then = match resources.then {
        WhenBusy::Run => "it begins all the same",
        WhenBusy::Skip => "it is left out",
        WhenBusy::Fail => "it fails",
    };
    format!("it waits for {}, then {then}", resources.wait)
}

/// What it compares with, and how much it deals with for how long, by what was before.
async fn estimate(
    core: &Core,
    (source, repository, kind): (&SourceName, &RepositoryName, SnapshotType),
    spec: &RunSpec,
    plan: &mut v1::BackupPlan,
) -> Result<(), Failure> {
    let base = core.base_of(spec, repository).await?;
    let reads_all = base.is_none();
    if let Some(base) = &base {
        plan.base_snapshot_id = base.id.to_string();
        plan.base_committed_at = Some(timestamp(base.committed_at));
    }
    plan.reads_everything = reads_all;
    let mut alike: Vec<SnapshotRecord> = Vec::new();
    let recent = core.records.snapshots_before(Some(source.as_str()), None, HISTORY_SCANNED).await?;
    let here = recent.into_iter().map(|(record, _)| record).filter(|record| record.repository == *repository);
    for record in here {
        if plan.logical_bytes == 0 {
            (plan.logical_bytes, plan.files) = (record.logical_bytes, record.files);
        }
        let read_all = record.snapshot_type == Some(SnapshotType::Full);
        if alike.len() < HISTORY && (record.snapshot_type == Some(kind) || reads_all && read_all) {
            alike.push(record);
        }
    }
    plan.estimated_from = u32::try_from(alike.len()).unwrap_or(0);
    let mean = |of: fn(&SnapshotRecord) -> u64| {
        alike.iter().map(of).sum::<u64>().checked_div(alike.len() as u64).unwrap_or(0)
    };
    plan.estimated_stored_bytes = mean(|record| record.stored_bytes);
    plan.estimated_millis = mean(|record| record.duration_millis);
    Ok(())
}
