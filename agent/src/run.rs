//! What runs do, one file per kind.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use holdfast_engines::{Engine, EngineContext, SecretResolver};
use holdfast_model::run::RunSpec;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::id_bytes;
use holdfast_proto::v1;
use holdfast_repository::config::Config;
use holdfast_repository::crypto::{MASTER_KEY_BYTES, MasterKey, Sealer};
use holdfast_repository::id::{BlobId, RepositoryId};
use holdfast_repository::polynomial::Polynomial;
use holdfast_runtime::{Clock, SharedClock, fail_point};
use zeroize::{Zeroize as _, Zeroizing};

mod backup;
mod discard;
mod promote;
mod restore;
#[cfg(test)]
mod tests;

use crate::config::AgentConfig;
use crate::data_plane::DataPlane;
use crate::dial::Link;
use crate::engines::EngineFactory;
use crate::executor::{Assignment, Outcome, RunContext, Worker};
use crate::hooks::RunHooks;
use crate::journal::Journal;
use crate::pacer::{PacedRun, Pacer};
use crate::reload::InForce;
use crate::tree_caches::TreeCaches;

/// How much longer than a lease calls for data are tried again when the controller is away: a controller that
/// restarts gives every agent a new lease, and only then knows which runs go on.
const PATIENCE_BEYOND_LEASE: Duration = Duration::from_secs(60);

/// Does the work of runs, with real engines and a real controller.
pub struct RunWorker {
    /// The way to the controller.
    pub link: Arc<Link>,
    /// What this agent may be asked to do, and its hooks.
    pub config: InForce,
    /// Makes drivers.
    pub engines: EngineFactory,
    /// Resolves secrets.
    pub secrets: Arc<dyn SecretResolver>,
    /// What restores made.
    pub journal: Journal,
    /// Where caches of trees lie.
    pub tree_caches: TreeCaches,
    /// The time.
    pub clock: SharedClock,
    /// Spreads over time what is sent.
    pub pacer: Arc<Pacer>,
    /// How long a lease lasts, in seconds.
    pub lease_seconds: Arc<AtomicU32>,
}

#[async_trait]
impl Worker for RunWorker {
    async fn work(&self, assignment: &Assignment, context: &RunContext) -> Result<Outcome, Failure> {
        let config = self.config.get();
        config.allow.check_source(&assignment.source)?;
        let job = Job { worker: self, config, assignment, context };
        match &assignment.spec {
            RunSpec::Backup { source, snapshot_type, .. } => backup::run(&job, source, *snapshot_type).await,
            RunSpec::Restore { source, placement, .. } => restore::run(&job, source, placement).await,
            RunSpec::Promote { source, restore, targets, .. } => {
                promote::run(&job, source, *restore, targets).await
            }
            RunSpec::Discard { restore, targets, .. } => discard::run(&job, *restore, targets).await,
            RunSpec::Verify { .. } | RunSpec::Check { .. } | RunSpec::Prune { .. } | RunSpec::Copy { .. } => {
                Err(Failure::new(
                    ErrorCode::Unsupported,
                    "an agent does not verify, check or prune repositories",
                ))
            }
        }
    }
}

/// One run, with everything it needs.
struct Job<'a> {
    worker: &'a RunWorker,
    /// As it was when the run began.
    config: Arc<AgentConfig>,
    assignment: &'a Assignment,
    context: &'a RunContext,
}

impl Job<'_> {
    fn engine(&self) -> Arc<dyn Engine> {
        (self.worker.engines)(&self.assignment.source)
    }

    fn engine_context(&self) -> EngineContext {
        EngineContext {
            secrets: self.worker.secrets.clone(),
            scratch: self.context.scratch.clone(),
            cancel: self.context.cancel.clone(),
            log: Arc::new(self.context.log.clone()),
            clock: self.worker.clock.clone(),
        }
    }

    fn hooks(&self, source: &holdfast_model::ids::SourceName) -> Result<RunHooks, Failure> {
        let wanted = &self.assignment.source.hooks;
        RunHooks::resolve(wanted, &self.config.hooks, self.context.run, source, &self.context.tasks)
    }

    /// Does work between the hooks. The one after follows whatever becomes of the one before and of the work, also when a
    /// defect ends it; that it is to be run is in the journal first, so that it also follows the death of the agent.
    async fn between_hooks<T>(
        &self,
        hooks: &RunHooks,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let (context, journal) = (self.context, &self.worker.journal);
        if let Some(name) = hooks.name_of_after() {
            journal.owe_hook(context.run, Some(name.clone())).await?;
        }
        let done = async {
            hooks.before(&context.log, &context.cancel).await?;
            fail_point::hit("agent-after-hook-before");
            work.await
        };
        let done = AssertUnwindSafe(done).catch_unwind().await;
        hooks.after(&context.log).await;
        fail_point::hit("agent-after-hook-after");
        if hooks.name_of_after().is_some()
            && let Err(error) = journal.owe_hook(context.run, None).await
        {
            tracing::warn!(%error, "it could not be noted that the hook was run; a restarted agent runs it again");
        }
        done.unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn data_plane(&self) -> DataPlane {
        let pacer = &self.worker.pacer;
        let paced = self.assignment.pace.clone().map(|pace| PacedRun { pacer: pacer.clone(), pace });
        let lease = Duration::from_secs(u64::from(self.worker.lease_seconds.load(Ordering::Relaxed)));
        DataPlane::new(
            self.worker.link.clone(),
            self.worker.clock.clone(),
            self.context,
            lease + PATIENCE_BEYOND_LEASE,
            paced,
        )
    }

    fn stamp(&self) -> String {
        stamp(&*self.worker.clock)
    }
}

/// Now, as the names of what a promotion keeps carry it: `20261121T120000Z`.
pub(crate) fn stamp(clock: &dyn Clock) -> String {
    clock.now().strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// What the controller says of the repository of a run. The keys are in memory only, and wiped when dropped.
struct OpenedRepository {
    sealer: Arc<Sealer>,
    config: Config,
    compression_level: i32,
    /// The root tree to compare with, or to read.
    tree: Option<BlobId>,
}

impl OpenedRepository {
    fn read(mut answer: v1::OpenRepositoryResponse) -> Result<Self, Failure> {
        let wrong = |what: &str| {
            Failure::new(
                ErrorCode::Internal,
                format!("the controller sent {what} that is none of a repository"),
            )
        };
        let mut keys = Zeroizing::new([0; MASTER_KEY_BYTES]);
        let given = [&answer.encrypt_key[..], &answer.mac_k[..], &answer.mac_r[..]].map(<[u8]>::len);
        if given != [32, 16, 16] {
            return Err(wrong("a key"));
        }
        keys[..32].copy_from_slice(&answer.encrypt_key);
        keys[32..48].copy_from_slice(&answer.mac_k);
        keys[48..].copy_from_slice(&answer.mac_r);
        answer.encrypt_key.zeroize();
        answer.mac_k.zeroize();
        answer.mac_r.zeroize();
        let id: RepositoryId = answer.repository_id.parse().map_err(|_| wrong("an id"))?;
        let chunker_polynomial =
            Polynomial::parse(&answer.chunker_polynomial).ok_or_else(|| wrong("a polynomial"))?;
        let tree = match answer.tree_id.as_slice() {
            [] => None,
            bytes => Some(BlobId::from_bytes(id_bytes("tree_id", bytes)?)),
        };
        Ok(Self {
            sealer: Arc::new(Sealer::new(&MasterKey::from_bytes(&keys))),
            config: Config { id, chunker_polynomial },
            compression_level: i32::try_from(answer.compression_level).unwrap_or(0).clamp(1, 19),
            tree,
        })
    }
}
