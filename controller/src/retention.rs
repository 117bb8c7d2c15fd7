//! Removes what the policies do not keep. A reconciler: woken by new snapshots and changed definitions, and every hour; each
//! time it reads the facts again. The plan it carries out is the one that `policy simulate` prints.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::ids::{CONTROLLER_SOURCE, RepositoryName, SourceName};
use holdfast_model::policy::Policy;
use holdfast_model::retention::{
    Candidate, Context, RetentionPlan, RetentionRules, StorageUse, Verdict, plan,
};
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::format::ObjectKind;

use crate::core::Core;
use crate::forget::{Forgetting, RETENTION};
use crate::repositories::storage_failure;
use crate::self_backup;

/// How often it looks at every source.
const PERIOD: Duration = Duration::from_secs(3600);
/// How soon it comes back to a source whose repository was pruned just then. What fails is tried again an hour later.
const AGAIN: Duration = Duration::from_secs(10);

/// What becomes of the snapshots of one source in one repository.
pub struct Retention {
    /// The repository.
    pub repository: RepositoryName,
    /// The snapshots, newest first.
    pub records: Vec<SnapshotRecord>,
    /// What becomes of each.
    pub plan: RetentionPlan,
}

/// Plans for all snapshots of a source under a policy, by repository.
///
/// # Errors
/// When the state can not be read, or a storage whose use decides can not be asked.
pub async fn plans(core: &Core, source: &SourceName, policy: &Policy) -> Result<Vec<Retention>, Failure> {
    let mut plans = Vec::new();
    for (repository, records) in snapshots(core, source).await? {
        plans.push(plan_one(core, policy, repository, records).await?);
    }
    Ok(plans)
}

/// The snapshots of a source by repository, newest first.
///
/// # Errors
/// When the state can not be read.
pub async fn snapshots(
    core: &Core,
    source: &SourceName,
) -> Result<BTreeMap<RepositoryName, Vec<SnapshotRecord>>, Failure> {
    let mut found: BTreeMap<RepositoryName, Vec<SnapshotRecord>> = BTreeMap::new();
    let mut before: Option<String> = None;
    loop {
        let page = core.records.snapshots_before(Some(source.as_str()), before.as_deref(), 500).await?;
        let Some((_, last)) = page.last() else { return Ok(found) };
        before = Some(last.clone());
        for (record, _) in page {
            found.entry(record.repository.clone()).or_default().push(record);
        }
    }
}

/// Plans for snapshots of a source as if they were all that a repository has of it.
///
/// # Errors
/// When the state can not be read, or a storage whose use decides can not be asked.
pub async fn plan_one(
    core: &Core,
    policy: &Policy,
    repository: RepositoryName,
    mut records: Vec<SnapshotRecord>,
) -> Result<Retention, Failure> {
    // In the order of the decisions: the catalog has copies behind others of the same moment.
    records.sort_by_key(|record| Reverse((record.committed_at, record.id)));
    let mut candidates = Vec::with_capacity(records.len());
    for record in &records {
        let hold = core.records.hold(record.id).await?;
        candidates.push(Candidate::of(record, hold.map(|hold| hold.value).as_ref()));
    }
    let storage = match policy.keep.as_ref().and_then(|keep| keep.cleanup.as_ref()) {
        Some(_) => Some(storage_use(core, &repository).await?),
        None => None,
    };
    let context = Context { storage, clock_error: core.sessions.clock_error(), log_from: None };
    let plan = plan(&candidates, &RetentionRules::of(policy), core.clock.now(), &context);
    Ok(Retention { repository, records, plan })
}

async fn storage_use(core: &Core, name: &RepositoryName) -> Result<StorageUse, Failure> {
    let repository = core.repository(name).await?;
    let fail = |error| storage_failure(name, &error);
    let (_, repository_bytes) = repository.stored(ObjectKind::Pack).await?;
    let probe = repository.store().probe().await.map_err(fail)?;
    let used = probe.total_bytes.zip(probe.free_bytes).map(|(total, free)| total.saturating_sub(free));
    Ok(StorageUse {
        repository_bytes,
        used_bytes: used.unwrap_or(repository_bytes),
        capacity_bytes: probe.total_bytes,
    })
}

/// Runs until the controller stops.
pub async fn run(core: Arc<Core>) {
    let stop = core.tasks.token().clone();
    let queue = core.retention.clone();
    let mut all_due = true;
    let mut next_all = core.clock.monotonic();
    loop {
        let definitions_changed = core.definitions.changed();
        if all_due {
            core.definitions.current().fleet.sources.keys().for_each(|source| queue.wake(source));
            if let Ok(own) = SourceName::new(CONTROLLER_SOURCE) {
                queue.wake(&own);
            }
            next_all = core.clock.monotonic() + PERIOD;
        }
        let mut again = false;
        for source in queue.take() {
            if stop.is_cancelled() {
                return;
            }
            if let Err(failure) = remove(&core, &source).await {
                if failure.code == ErrorCode::RunAlreadyActive {
                    queue.put_back(source);
                    again = true;
                } else {
                    tracing::warn!(%source, %failure, "what its policy does not keep could not be removed");
                }
            }
        }
        let left = next_all.saturating_duration_since(core.clock.monotonic());
        let wait = if again { AGAIN.min(left) } else { left };
        all_due = tokio::select! {
            () = stop.cancelled() => return,
            () = definitions_changed => true,
            () = queue.changed() => false,
            () = core.clock.sleep(wait) => core.clock.monotonic() >= next_all,
        };
    }
}

/// The policy that says what is kept of a source, and how it is called; copies of the controller's own state have one that
/// nobody declares.
fn rules_of(core: &Core, source: &SourceName) -> Option<(String, Policy)> {
    if source.as_str() == CONTROLLER_SOURCE {
        return Some(("self_backup".to_owned(), self_backup::policy()));
    }
    let definition = core.definitions.source(source).ok()?;
    core.definitions.policy_of(&definition).map(|(name, policy)| (format!("policy {name}"), policy))
}

/// Removes what the policy of a source does not keep.
async fn remove(core: &Core, source: &SourceName) -> Result<(), Failure> {
    let Some((rules, policy)) = rules_of(core, source) else { return Ok(()) };
    if policy.keep.is_some() {
        clean_up(core, source, (&rules, &policy), RETENTION).await?;
    }
    Ok(())
}

/// Removes what a policy does not keep of a source; gives the plans that it carried out. `rules` is how the policy is called.
///
/// # Errors
/// Those of [`plans`] and [`Forgetting`]; then what the first plans remove may be gone.
pub async fn clean_up(
    core: &Core,
    source: &SourceName,
    (rules, policy): (&str, &Policy),
    actor: &str,
) -> Result<Vec<Retention>, Failure> {
    let _turn = core.cleanups.lock().await;
    let mut done = Vec::new();
    for (repository, records) in snapshots(core, source).await? {
        let planned = plan_one(core, policy, repository, records).await?;
        if planned.plan.forgotten().next().is_some() {
            carry_out(core, &planned, rules, actor).await?;
        }
        done.push(planned);
    }
    Ok(done)
}

async fn carry_out(core: &Core, planned: &Retention, rules: &str, actor: &str) -> Result<(), Failure> {
    let forgetting = Forgetting::begin(core, &planned.repository).await?;
    // Oldest first: what is left after a crash is what a rule would have kept longest.
    for (record, decision) in planned.records.iter().zip(&planned.plan.decisions).rev() {
        let Verdict::Forget(reason) = &decision.verdict else { continue };
        if record.id != decision.id {
            let message = "a plan of retention is in another order than its snapshots";
            return Err(Failure::new(ErrorCode::Internal, message));
        }
        forgetting.forget(core, record, actor, &format!("{rules}: {reason}")).await?;
    }
    Ok(())
}
