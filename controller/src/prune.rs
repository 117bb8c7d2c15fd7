//! Prunes of repositories, done by the controller as runs. What each step promises is written in
//! [`holdfast_repository::prune`]; this puts them in order and keeps others from the packs that go.
//!
//! | step | who may do what meanwhile |
//! |---|---|
//! | survey, plan, repack | everybody everything, but nobody forgets snapshots until the end of the prune |
//! | condemn | from now on nobody hears of the packs that go where there is another place |
//! | wait | for all runs, imports and exports that began before, so may know the packs |
//! | lock | other programs are kept out; backups of our own go on |
//! | survey again, rescue | |
//! | index, trash | |

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::ids::{Attempt, RepositoryName, RunId};
use holdfast_model::repository_spec::PruneSettings;
use holdfast_model::run::{LogLevel, Run};
use holdfast_model::text::{counted, size};
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::RepositoryError;
use holdfast_repository::id::{IdSet, PackId};
use holdfast_repository::index::WorkIndex;
use holdfast_repository::lock::{
    HeldLock, LOCK_REFRESH_INTERVAL, LOCK_STALE_AFTER, LockMode, LockOwner, remove_stale_locks,
};
use holdfast_repository::prune::{
    PruneNumbers, PruneOptions, PrunePlan, PruneProgress, Survey, SurveyOptions, repack, survey,
};
use holdfast_repository::prune_apply::{Trash, empty_trash, to_trash};
use holdfast_runtime::fail_point;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::maintenance::{Counters, Done, work_index};
use crate::repositories::{OpenRepository, repository_failure};

/// How often it looks whether those that it waits for are done.
const LOOK: Duration = Duration::from_millis(250);

/// Doubtful packs that are named in a plan.
const NAMED_MAX: usize = 100;

/// A plan as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanShown {
    /// What it comes to.
    pub numbers: PruneNumbers,
    /// Index objects and packs in words, one line each: doubtful packs and lost blobs, of each the first hundred.
    pub concerns: Vec<String>,
    /// Whether a person has to approve it.
    pub needs_approval: bool,
}

impl PlanShown {
    fn of(plan: &PrunePlan, settings: &PruneSettings) -> Self {
        let doubtful = plan.doubtful.iter().take(NAMED_MAX).map(|pack| {
            let needed = size(pack.needed_bytes);
            format!("pack {} is damaged or gone; {needed} in it are needed and in no other pack", pack.id)
        });
        let lost = plan.lost.iter().map(|blob| format!("blob {blob} is needed and in no index"));
        Self {
            numbers: plan.numbers,
            concerns: doubtful.chain(lost).collect(),
            needs_approval: plan.numbers.freed_percent() > u64::from(settings.approve_above.get()),
        }
    }

    /// The plan in a few lines.
    pub fn lines(&self) -> Vec<String> {
        let n = &self.numbers;
        let packs = |count, bytes| format!("{}, {}", counted(count, "pack"), size(bytes));
        let mut lines = vec![
            format!("{} with {} are kept", counted(n.snapshots, "snapshot"), counted(n.trees, "folder")),
            format!("in all: {}", packs(n.packs, n.bytes)),
            format!("needed: {}; not needed: {}", size(n.live_bytes), size(n.dead_bytes)),
            format!("go whole: {}", packs(n.delete_packs, n.delete_bytes)),
            format!(
                "are repacked: {}, of which {} stay",
                packs(n.repack_packs, n.repack_bytes),
                size(n.repack_live_bytes)
            ),
            format!("in no index: {}", packs(n.orphan_packs, n.orphan_bytes)),
            format!("freed: {}, {} % of the packs", size(n.freed_bytes()), n.freed_percent()),
        ];
        lines.extend(self.concerns.iter().cloned());
        lines
    }
}

/// Finds out what a prune would do; touches nothing.
///
/// # Errors
/// Those of the repository: what cannot be read is named, and nothing may go then.
pub async fn plan(core: &Arc<Core>, name: &RepositoryName) -> Result<PlanShown, Failure> {
    let repository = core.repository(name).await?;
    let label = format!("plan-{:016x}", rand::random::<u64>());
    let stop = core.tasks.token().child_token();
    let job = Job { core, repository: &repository, label, stop: &stop, progress: Arc::default() };
    let plan = job.plan(&repository.spec.prune).await?;
    Ok(PlanShown::of(&plan, &repository.spec.prune))
}

/// Prunes a repository.
///
/// # Errors
/// `HF-1009` when more would go than may without a person, `HF-3007` when another program holds the repository; those of
/// the storage.
pub(crate) async fn prune(
    core: &Arc<Core>,
    run: &Run,
    (name, approved): (&RepositoryName, bool),
    counters: &Counters,
    stop: &CancellationToken,
) -> Result<Done, Failure> {
    let repository = core.repository(name).await?;
    let _alone = repository.index().removing.write().await;
    let settings = repository.spec.prune.clone();
    // After a crash the catalog may hold what was forgotten; nobody may go on from that.
    core.catalog.sync(&repository).await?;
    match repository.flush_index().await {
        // It is waited for below; packs that are known and in no index object are left alone.
        Err(failure) if failure.code == ErrorCode::RepositoryLocked => {}
        flushed => flushed?,
    }
    let label = format!("{}-{}", run.id, run.state.attempt);
    let job = Job { core, repository: &repository, label, stop, progress: counters.prune.clone() };

    counters.stage("looking for what is needed");
    let plan = job.plan(&settings).await?;
    let shown = PlanShown::of(&plan, &settings);
    let doubtful: Vec<PackId> = plan.doubtful.iter().map(|pack| pack.id).collect();
    core.repositories.doubt(&repository, &doubtful).await?;
    core.log(run, LogLevel::Info, shown.lines()).await;
    if shown.needs_approval && !approved {
        return Err(needs_approval(name, &shown, &settings));
    }
    let removed = if shown.numbers.is_nothing() {
        drop(plan);
        0
    } else {
        job.apply(run, plan, counters).await?
    };
    counters.stage("emptying the trash");
    let before = core.clock.now().saturating_sub(settings.grace.duration());
    let before = before.unwrap_or(jiff::Timestamp::MIN);
    let emptied = empty_trash(repository.repository(), before).await;
    let (deleted, left) = emptied.map_err(|error| repository_failure(name, &error))?;
    let trash = |trash: Trash| format!("{}, {}", counted(trash.packs, "pack"), size(trash.bytes));
    let notes = vec![
        format!("into the trash: {}", counted(removed, "pack")),
        format!("deleted from the trash: {}; left in it: {}", trash(deleted), trash(left)),
    ];
    Ok(Done { notes, progress: counters.now(), ..Done::default() })
}

fn needs_approval(name: &RepositoryName, shown: &PlanShown, settings: &PruneSettings) -> Failure {
    let numbers = &shown.numbers;
    Failure::new(
        ErrorCode::NeedsConfirmation,
        format!(
            "the prune of repository {name} would free {}, {} % of its packs, more than {} go without a person",
            size(numbers.freed_bytes()),
            numbers.freed_percent(),
            settings.approve_above
        ),
    )
    .at_stake("nothing was removed; if snapshots were forgotten by mistake, what they need is still there")
    .then(format!("holdfast repo prune {name} --dry-run"))
    .then(format!("holdfast repo prune {name} --confirm {name} --reason TEXT"))
}

/// One prune of one repository.
struct Job<'a> {
    core: &'a Arc<Core>,
    repository: &'a Arc<OpenRepository>,
    /// A name for the folder of its index.
    label: String,
    stop: &'a CancellationToken,
    progress: Arc<PruneProgress>,
}

/// Packs that others are kept from; they are free again when it is dropped.
struct Condemned<'a>(&'a OpenRepository);

impl Condemned<'_> {
    /// Others are kept from them until the next prune, or until the process ends: they may be in no index by now.
    fn stay(self) {
        std::mem::forget(self);
    }
}

impl Drop for Condemned<'_> {
    fn drop(&mut self) {
        self.0.index().condemn_only(IdSet::default());
    }
}

impl Job<'_> {
    fn fail(&self, error: &RepositoryError) -> Failure {
        let failure = repository_failure(&self.repository.name, error);
        match error.code() {
            ErrorCode::ObjectMissing | ErrorCode::ObjectDamaged => {
                failure.at_stake("nothing is removed as long as it is not known what is needed")
            }
            _ => failure,
        }
    }

    async fn survey(&self, doubted: Vec<PackId>) -> Result<Survey, Failure> {
        let index: Arc<dyn WorkIndex> = work_index(self.core, self.label.clone()).await?;
        let options = SurveyOptions { doubted, ..SurveyOptions::default() };
        let repository = self.repository.repository();
        let survey = survey(repository, index, options, self.progress.clone(), self.stop).await;
        survey.map_err(|error| self.fail(&error))
    }

    async fn plan(&self, settings: &PruneSettings) -> Result<PrunePlan, Failure> {
        let survey = self.survey(self.repository.doubted()).await?;
        let options = PruneOptions { max_unused: settings.max_unused.get() };
        survey.plan(options).await.map_err(|error| self.fail(&error))
    }

    /// Does what the plan says; gives the number of packs that went.
    async fn apply(&self, run: &Run, plan: PrunePlan, counters: &Counters) -> Result<u64, Failure> {
        let (core, repository) = (self.core, self.repository);
        let mut going = plan.condemned();
        let absent = plan.absent.clone();
        let orphans: BTreeSet<PackId> = plan.orphans.iter().map(|pack| pack.id).collect();
        counters.stage("repacking");
        let repacked = repack(plan, self.progress.clone()).await.map_err(|error| self.fail(&error))?;
        // What is new must be known before what is old is not.
        repository.update_index().await?;
        if !repacked.damaged.is_empty() {
            let lines = repacked.damaged.iter().map(|(pack, why)| format!("pack {pack} stays: {why}"));
            core.log(run, LogLevel::Warning, lines.collect()).await;
            let damaged: Vec<PackId> = repacked.damaged.iter().map(|(pack, _)| *pack).collect();
            going.retain(|pack| !damaged.contains(pack));
            core.repositories.doubt(repository, &damaged).await?;
        }
        fail_point::hit("prune-before-condemn");
        repository.index().condemn_only(going.clone());
        let condemned = Condemned(repository);
        fail_point::hit("prune-after-condemn");
        self.wait_for_others(run, counters).await?;

        let lock = self.lock(run, counters).await?;
        let removed = self.locked(lock, self.remove(run, going, absent, &orphans, counters)).await;
        match removed {
            Ok(_) => drop(condemned),
            Err(_) => condemned.stay(),
        }
        removed
    }

    /// Does something while a lock is refreshed, then releases it.
    async fn locked<T>(
        &self,
        mut lock: HeldLock,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let clock = &self.core.clock;
        let mut refreshed = clock.monotonic();
        tokio::pin!(work);
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                () = clock.sleep(LOCK_REFRESH_INTERVAL) => match lock.refresh(clock.now()).await {
                    Ok(()) => refreshed = clock.monotonic(),
                    Err(error) if clock.monotonic().duration_since(refreshed) > LOCK_STALE_AFTER / 2 => {
                        break Err(self.fail(&error));
                    }
                    Err(error) => tracing::warn!(%error, "the lock of a prune could not be refreshed"),
                },
            }
        };
        if let Err(error) = lock.release().await {
            tracing::warn!(repository = %self.repository.name, %error, "the lock was not removed");
        }
        done
    }

    /// Waits until everybody is done who began before packs were condemned and may know of them.
    async fn wait_for_others(&self, run: &Run, counters: &Counters) -> Result<(), Failure> {
        let name = &self.repository.name;
        let uses = &self.repository.index().uses;
        let now = uses.next();
        let active = || -> BTreeSet<(RunId, Attempt)> {
            let runs = self.core.runs.active().into_iter();
            let others = runs.filter(|other| {
                other.id != run.id && other.state.phase.is_with_agent() && other.spec.uses(name)
            });
            others.map(|other| (other.id, other.state.attempt)).collect()
        };
        let before = active();
        loop {
            let runs = active().intersection(&before).count() + uses.before(now);
            if runs == 0 {
                return Ok(());
            }
            counters.stage(format!("waiting for {} that began before", counted(runs as u64, "run")));
            self.pause().await?;
        }
    }

    async fn pause(&self) -> Result<(), Failure> {
        tokio::select! {
            () = self.stop.cancelled() => {
                Err(Failure::new(ErrorCode::RunCancelled, "the prune was stopped, nothing was removed"))
            }
            () = self.core.clock.sleep(LOOK) => Ok(()),
        }
    }

    /// Keeps other programs out. Waits for them as long as a lock may count that nobody refreshes.
    async fn lock(&self, run: &Run, counters: &Counters) -> Result<HeldLock, Failure> {
        let repository = self.repository.repository();
        let owner = lock_owner();
        let began = self.core.clock.monotonic();
        let mut told = false;
        loop {
            let now = self.core.clock.now();
            let taken = HeldLock::acquire(repository, owner.clone(), LockMode::Exclusive, now).await;
            let refused = match taken {
                Ok(lock) => {
                    let stale = remove_stale_locks(repository, &owner, now).await;
                    stale.map_err(|error| self.fail(&error))?;
                    return Ok(lock);
                }
                Err(error) => error,
            };
            let waited = self.core.clock.monotonic().duration_since(began);
            if refused.code() != ErrorCode::RepositoryLocked || waited > LOCK_STALE_AFTER {
                return Err(self.fail(&refused));
            }
            counters.stage("waiting for another program");
            if !told {
                self.core.log(run, LogLevel::Info, vec![format!("waits: {refused}")]).await;
                told = true;
            }
            self.pause().await?;
        }
    }

    /// The part that takes away, with other programs kept out.
    async fn remove(
        &self,
        run: &Run,
        mut going: IdSet<PackId>,
        absent: Vec<PackId>,
        orphans: &BTreeSet<PackId>,
        counters: &Counters,
    ) -> Result<u64, Failure> {
        let (core, repository) = (self.core, self.repository);
        counters.stage("looking again");
        // Of those who ended without a snapshot something may wait.
        repository.flush_index().await?;
        let survey = self.survey(repository.doubted()).await?;
        // What waits to be indexed belongs to somebody who began since.
        let is_orphan = |pack: &PackId| orphans.contains(pack) && !repository.index().contains_pack(pack);
        let orphans: Vec<PackId> = survey.orphans().into_iter().filter(is_orphan).collect();
        let rescued = survey.rescue(going.clone()).await.map_err(|error| self.fail(&error))?;
        if !rescued.is_empty() {
            let rescued = counted(rescued.len() as u64, "pack");
            core.log(run, LogLevel::Info, vec![format!("needed again meanwhile, so they stay: {rescued}")])
                .await;
        }
        going.retain(|pack| rescued.binary_search(pack).is_err());
        counters.stage("removing");
        let unnamed: IdSet<PackId> = going.iter().copied().chain(absent).collect();
        repository.index().remove(repository, &unnamed).await?;
        core.repositories.doubt_no_more(repository, &unnamed).await?;
        let owner = repository.clone();
        core.blocking("note packs", move || owner.index().readings.removed(&unnamed)).await?;
        let trashed = to_trash(repository.repository(), going.into_iter().chain(orphans), core.clock.now());
        trashed.await.map_err(|error| self.fail(&error))
    }
}

/// Who locks. The random part tells this process from one of another machine with the same name.
pub(crate) fn lock_owner() -> LockOwner {
    use std::sync::OnceLock;
    static NAME: OnceLock<String> = OnceLock::new();
    LockOwner {
        hostname: crate::hostname(),
        username: NAME.get_or_init(|| format!("holdfast-{:08x}", rand::random::<u32>())).clone(),
        pid: std::process::id(),
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
    }
}
