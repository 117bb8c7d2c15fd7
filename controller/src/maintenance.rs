//! Runs that the controller does itself: checks, prunes and copies of repositories, and verifications of snapshots.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_model::ids::{RepositoryName, SnapshotId};
use holdfast_model::progress::Progress;
use holdfast_model::run::{LogLevel, Run, RunSpec};
use holdfast_model::run_state::RunEvent;
use holdfast_model::text::{counted, size};
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::check::{CheckOptions, CheckProgress, Finding, check};
use holdfast_repository::copy::CopyProgress;
use holdfast_repository::id::PackId;
use holdfast_repository::prune::PruneProgress;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::check_proof::CheckProof;
use crate::copy::{self, CopyOrder};
use crate::core::Core;
use crate::other_programs;
use crate::prune;
use crate::repositories::{OpenRepository, repository_failure};
use crate::run_lifecycle::Outcome;
use crate::verify::{VerifyProgress, verify_snapshot};
use crate::verify_due;
use crate::work_index::{self, DiskWorkIndex};

/// How often a run that is under way shows a sign of life.
const PULSE: Duration = Duration::from_secs(1);

/// What a run of the controller's own found.
#[derive(Default)]
pub(crate) struct Done {
    /// What is wrong.
    pub(crate) findings: Vec<String>,
    /// Worth knowing, but nothing that is wrong.
    pub(crate) notes: Vec<String>,
    /// The last counters.
    pub(crate) progress: Progress,
    /// What the findings come to, where it is not that a repository is damaged.
    pub(crate) failure: Option<Failure>,
}

/// Performs a run to its end and records how it ended.
pub async fn perform(core: Arc<Core>, run: Run) {
    let attempt = run.state.attempt;
    let begun = core.runs.apply(run.id, "controller", RunEvent::Started(attempt), Outcome::default()).await;
    if let Err(failure) = begun {
        tracing::warn!(run = %run.id, %failure, "could not begin");
        return;
    }
    let stop = core.tasks.token().child_token();
    let progress = Counters::default();
    let work = work(&core, &run, &progress, &stop);
    tokio::pin!(work);
    let ended = loop {
        tokio::select! {
            ended = &mut work => break ended,
            () = core.clock.sleep(PULSE) => {
                core.runs.pulse(run.id, attempt, progress.now());
                if core.runs.is_cancel_wanted(run.id) {
                    stop.cancel();
                }
            }
        }
    };
    let (event, outcome) = match ended {
        Err(_) if core.runs.is_cancel_wanted(run.id) => {
            (RunEvent::CancelConfirmed(attempt), Outcome::default())
        }
        // The process stops: the run is taken up again after the next start, when its lease is over.
        Err(_) if core.tasks.token().is_cancelled() => return,
        Err(failure) => (RunEvent::Failed(attempt, failure), Outcome::default()),
        Ok(done) => {
            note(&core, &run, &done).await;
            let event = match done.findings.first() {
                None => RunEvent::Finished { attempt, warnings: 0 },
                Some(first) => {
                    let failure = done.failure.unwrap_or_else(|| bad(done.findings.len(), first));
                    RunEvent::Failed(attempt, failure)
                }
            };
            let outcome =
                Outcome { findings: done.findings, progress: Some(done.progress), ..Outcome::default() };
            (event, outcome)
        }
    };
    if let Err(failure) = core.runs.apply(run.id, "controller", event, outcome).await {
        tracing::error!(run = %run.id, %failure, "its end could not be recorded");
    }
}

fn bad(count: usize, first: &str) -> Failure {
    let things = if count == 1 { "1 thing is".to_owned() } else { format!("{count} things are") };
    Failure::new(ErrorCode::ObjectDamaged, format!("{things} not as stored; the first: {first}"))
        .at_stake("the snapshots named can not be restored whole from this repository")
        .then("holdfast backup run SOURCE --type full   # stores again what the source still has")
}

async fn note(core: &Arc<Core>, run: &Run, done: &Done) {
    core.log(run, LogLevel::Info, done.notes.clone()).await;
    core.log(run, LogLevel::Error, done.findings.clone()).await;
}

/// What a run has done so far.
#[derive(Default)]
pub(crate) struct Counters {
    /// Of a check, and of packs that are read because they are due.
    pub(crate) check: Arc<CheckProgress>,
    /// Bytes of the packs that are due.
    pub(crate) due_bytes: AtomicU64,
    verify: Arc<VerifyProgress>,
    /// Of a prune.
    pub(crate) prune: Arc<PruneProgress>,
    /// Of a copy.
    pub(crate) copy: Arc<CopyProgress>,
    stage: Mutex<Option<String>>,
}

impl Counters {
    /// What it does now.
    pub(crate) fn stage(&self, stage: impl Into<String>) {
        *self.stage.lock() = Some(stage.into());
    }

    /// The counters.
    pub(crate) fn now(&self) -> Progress {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let bytes =
            load(&self.check.bytes_read) + load(&self.verify.bytes_read) + load(&self.prune.bytes_read);
        Progress {
            stage: self.stage.lock().clone().unwrap_or_else(|| "reading".to_owned()),
            bytes_read: bytes,
            bytes_done: bytes + load(&self.copy.file_bytes),
            bytes_total: load(&self.verify.bytes_total)
                + load(&self.prune.bytes_total)
                + load(&self.due_bytes)
                + load(&self.copy.file_bytes_total),
            bytes_new: load(&self.copy.content_bytes),
            bytes_stored: load(&self.copy.stored_bytes),
            blobs_new: load(&self.copy.data_blobs) + load(&self.copy.tree_blobs),
            files_done: load(&self.check.trees)
                + load(&self.verify.files)
                + load(&self.prune.trees)
                + load(&self.copy.files),
            ..Progress::default()
        }
    }
}

async fn work(
    core: &Arc<Core>,
    run: &Run,
    counters: &Counters,
    stop: &CancellationToken,
) -> Result<Done, Failure> {
    match &run.spec {
        RunSpec::Check { repository, only_due: true, .. } => {
            verify_due::read_due(core, run, repository, counters, stop).await
        }
        RunSpec::Check { repository: name, read_data, .. } => {
            let repository = core.repository(name).await?;
            let options = CheckOptions { read_data: *read_data, ..CheckOptions::default() };
            check_repository(core, run, &repository, options, counters, stop).await
        }
        RunSpec::Prune { repository, approved } => {
            prune::prune(core, run, (repository, *approved), counters, stop).await
        }
        RunSpec::Verify { repository, snapshot } => verify(core, repository, *snapshot, counters, stop).await,
        RunSpec::Copy { source, from, to, snapshots, heal } => {
            let order = CopyOrder {
                from: from.clone(),
                to: to.clone(),
                source: source.clone(),
                snapshots: snapshots.clone(),
                heal: *heal,
            };
            copy::copy(core, run, order, counters, stop).await
        }
        other => {
            Err(Failure::new(ErrorCode::Internal, format!("a {} is not for the controller", other.kind())))
        }
    }
}

/// Checks a repository, and remembers what that proved: of packs, of snapshots, and of what is damaged.
pub(crate) async fn check_repository(
    core: &Arc<Core>,
    run: &Run,
    repository: &Arc<OpenRepository>,
    options: CheckOptions,
    counters: &Counters,
    stop: &CancellationToken,
) -> Result<Done, Failure> {
    // What is durable and only in our memory would look like packs that nothing refers to.
    repository.flush_index().await?;
    // What is gone already is not moved while we look.
    repository.update_index().await?;
    let (began, reads_all) = (core.clock.now(), options.read_data && options.only.is_none());
    let (doubted, relied_since) = (repository.doubted(), repository.index().uses.disturbances());
    let proof = CheckProof::begin(&core.records, &repository.name, began, reads_all).await?;
    // Of what is read again and found sound, nothing is touched.
    let mut looked_into = options.only.clone().unwrap_or_default();
    let options = CheckOptions { doubted: doubted.clone(), ..options };
    let index = work_index(core, format!("{}-{}", run.id, run.state.attempt)).await?;
    let report = check(repository.repository(), index, options, counters.check.clone(), stop).await;
    let mut report = report.map_err(|error| repository_failure(&repository.name, &error))?;
    if report.findings.iter().any(|finding| finding.kind.is_harmful()) {
        // What another program has moved is not damaged.
        other_programs::is_undisturbed(repository, relied_since).await?;
    }
    // Of packs that were doubted before it a check that read everything says which still are.
    let settled = if reads_all { doubted } else { Vec::new() };
    core.repositories.doubt_after_check(repository, &report.damaged_packs, &settled).await?;
    core.catalog.sync(repository).await?;
    verify_due::look(core, repository).await?;
    verify_due::note(core, repository, std::mem::take(&mut report.sound_packs), began).await?;
    let is_relied_on = core.repositories.relies_on(&repository.name).await?;
    let catalog = (&core.records, &core.catalog);
    if proof.enter(catalog, &repository.name, &report, is_relied_on).await? {
        looked_into.extend(&report.damaged_packs);
        core.repositories.touched_are_named(&repository.name, &looked_into).await?;
    }
    let owner = repository.clone();
    core.blocking("note packs", move || owner.index().readings.checked(began)).await?;
    let (harmful, harmless): (Vec<&Finding>, Vec<&Finding>) =
        report.findings.iter().partition(|finding| finding.kind.is_harmful());
    let mut notes = vec![format!(
        "{} with {}, {}, {}, {}; {} read",
        counted(report.packs, "pack"),
        counted(report.blobs, "blob"),
        counted(report.indexes, "index object"),
        counted(report.snapshots, "snapshot"),
        counted(report.trees, "folder"),
        counted(report.packs_read, "pack")
    )];
    notes.extend(harmless.iter().map(ToString::to_string));
    let progress =
        Progress { bytes_read: report.bytes_read, files_done: report.files, ..Progress::default() };
    let findings = harmful.iter().map(ToString::to_string).collect();
    Ok(Done { findings, notes, progress, failure: None })
}

/// An index for one piece of work, in a folder of this name that is not there yet.
pub(crate) async fn work_index(core: &Arc<Core>, name: String) -> Result<Arc<DiskWorkIndex>, Failure> {
    let folder = work_index::folder(&core.data_dir).join(name);
    let tasks = core.tasks.clone();
    core.blocking("begin an index", move || DiskWorkIndex::begin(folder, &tasks).map(Arc::new)).await
}

async fn verify(
    core: &Arc<Core>,
    name: &RepositoryName,
    id: SnapshotId,
    counters: &Counters,
    stop: &CancellationToken,
) -> Result<Done, Failure> {
    let repository = core.repository(name).await?;
    let record = core.records.snapshot(id).await?.ok_or_else(|| {
        Failure::new(ErrorCode::SnapshotUnknown, format!("the catalog has no snapshot {}", id.short()))
    })?;
    let progress = counters.verify.clone();
    progress.bytes_total.store(record.logical_bytes, Ordering::Relaxed);
    repository.update_index().await?;
    let (began, relied_since) = (core.clock.now(), repository.index().uses.disturbances());
    let report = verify_snapshot(core, &repository, &record, progress, stop).await?;
    if !report.findings.is_empty() {
        // What another program has moved is not damaged.
        other_programs::is_undisturbed(&repository, relied_since).await?;
    }
    let damaged: Vec<PackId> = report.damaged_packs.iter().copied().collect();
    core.repositories.doubt(&repository, &damaged).await?;
    let damage = report.findings.first().cloned();
    core.catalog
        .prove(id, "snapshot.read", |proof| match &damage {
            Some(damage) => proof.damage = Some(damage.clone()),
            // Somebody may have found damage since.
            None if proof.damage.is_some() && proof.damage != record.proof.damage => {}
            None => {
                proof.read_at = Some(began);
                proof.damage = None;
            }
        })
        .await?;
    let notes = vec![format!(
        "{}, {}, {} opened",
        counted(report.files, "file"),
        counted(report.blobs, "blob"),
        size(report.bytes)
    )];
    let progress = Progress {
        bytes_read: report.bytes,
        bytes_done: record.logical_bytes,
        bytes_total: record.logical_bytes,
        files_done: report.files,
        ..Progress::default()
    };
    Ok(Done { findings: report.findings, notes, progress, failure: None })
}
