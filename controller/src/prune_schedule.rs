//! Prunes repositories when it is time and there may be something to gain. A reconciler: it takes no input.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use holdfast_model::ErrorCode;
use holdfast_model::Failure;
use holdfast_model::ids::RepositoryName;
use holdfast_model::repository_spec::RepositorySpec;
use holdfast_model::run::RunSpec;
use holdfast_repository::format::ObjectKind;

use crate::core::Core;
use crate::records::Batch;
use crate::repositories::storage_failure;
use crate::run_lifecycle::NewRun;

/// How often it looks. That costs two reads of the state for each repository.
const PERIOD: Duration = Duration::from_secs(5);

/// How often a storage is asked at most whether something lies in its trash.
const ASK_AGAIN: Duration = Duration::from_secs(3600);

/// Runs until the controller stops.
pub async fn run(core: Arc<Core>) {
    let stop = core.tasks.token().clone();
    let mut asked = BTreeMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = core.clock.sleep(PERIOD) => {}
        }
        let current = core.definitions.current();
        for (name, spec) in &current.fleet.repositories {
            if let Err(failure) = look_at(&core, name, spec, &mut asked).await {
                tracing::warn!(repository = %name, %failure, "it is unknown whether it has to be pruned");
            }
        }
    }
}

/// When storages were last asked for their trash.
type Asked = BTreeMap<RepositoryName, Instant>;

async fn look_at(
    core: &Arc<Core>,
    name: &RepositoryName,
    spec: &RepositorySpec,
    asked: &mut Asked,
) -> Result<(), Failure> {
    let (last, garbage) = core.records.last_prune(name).await?;
    let declared =
        core.definitions.current().stamps.get(&format!("repositories.{name}")).map(|stamp| stamp.at);
    let Some(since) = last.or(declared) else { return Ok(()) };
    if core.clock.now().duration_since(since) < spec.prune.every.duration() {
        return Ok(());
    }
    if !garbage && !may_have_trash(core, name, spec, asked).await? {
        return Ok(());
    }
    let spec = RunSpec::Prune { repository: name.clone(), approved: false };
    let new = NewRun::new(spec, "controller");
    let batch = Batch::new("controller", "run.start", format!("repository/{name}: prune"));
    match core.runs.queue(vec![new], batch, |batch, _| batch).await {
        Err(failure) if failure.code == ErrorCode::RunAlreadyActive => Ok(()),
        other => other.map(drop),
    }
}

/// Whether something lies in the trash; the storage is asked no more often than there may be prunes.
async fn may_have_trash(
    core: &Arc<Core>,
    name: &RepositoryName,
    spec: &RepositorySpec,
    asked: &mut Asked,
) -> Result<bool, Failure> {
    let now = core.clock.monotonic();
    let every = spec.prune.every.duration().unsigned_abs().min(ASK_AGAIN);
    if asked.get(name).is_some_and(|asked| now.duration_since(*asked) < every) {
        return Ok(false);
    }
    asked.insert(name.clone(), now);
    let repository = core.repository(name).await?;
    let fail = |error| storage_failure(name, &error);
    let mut trash = repository.store().list(ObjectKind::Trash).await.map_err(fail)?;
    Ok(trash.try_next().await.map_err(fail)?.is_some())
}
