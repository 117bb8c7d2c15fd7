//! Copies of snapshots in another repository, and its healing from one, done by the controller as runs. The repository
//! that is copied from is only read; a prune of either waits for a copy that began before it condemned anything.
//!
//! Several small snapshots share packs, so they are published together: packs, then index, then their objects, each
//! followed by its record. A crash between any two of these leaves garbage; the next attempt finds by the origin which
//! copies exist, and by the index which blobs are there.

mod heal;
mod publish;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_model::ids::{RepositoryName, SnapshotId, SourceName};
use holdfast_model::run::{LogLevel, Run, RunSpec};
use holdfast_model::snapshot::{Proof, SnapshotRecord};
use holdfast_model::text::{counted, size};
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::RepositoryError;
use holdfast_repository::copy::{CopiedTree, Copier, CopyContext, CopyProgress, Sent};
use holdfast_repository::id::{BlobId, PackId};
use holdfast_runtime::fail_point;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use self::publish::Pending;
use crate::contents;
use crate::core::Core;
use crate::maintenance::{Counters, Done};
use crate::other_programs;
use crate::repositories::{OpenRepository, repository_failure};
use crate::snapshot_writer::OpenSink;
use crate::verify::object_of;

/// Snapshots are published when so many bytes were sent since the last were.
const PUBLISH_AFTER_BYTES: u64 = 64 << 20;
/// Or when so many are to be: their records are held in memory.
const PUBLISH_AFTER_SNAPSHOTS: usize = 32;

/// What is to be copied, and where.
#[derive(Debug, Clone)]
pub struct CopyOrder {
    /// The repository that has the snapshots.
    pub from: RepositoryName,
    /// The repository that gets them, or is healed.
    pub to: RepositoryName,
    /// Whose snapshots; those of all without it.
    pub source: Option<SourceName>,
    /// Only these; without any, all.
    pub snapshots: Vec<SnapshotId>,
    /// Store again what the second repository lacks instead.
    pub heal: bool,
}

impl CopyOrder {
    /// What a run is told to do.
    pub fn spec(self) -> RunSpec {
        let Self { from, to, source, snapshots, heal } = self;
        RunSpec::Copy { source, from, to, snapshots, heal }
    }
}

/// What a copy would do.
#[derive(Debug, Default)]
pub struct CopyPlan {
    /// Snapshots that would be copied, or healed, newest first.
    pub snapshots: Vec<SnapshotRecord>,
    /// Snapshots whose copies are there.
    pub already: u64,
    /// What would be sent.
    pub sent: Sent,
    /// What is damaged, one line each.
    pub concerns: Vec<String>,
}

/// The snapshots of an order.
struct Selection {
    /// Newest first.
    todo: Vec<SnapshotId>,
    already: u64,
    /// Of the contents of those to do.
    logical_bytes: u64,
}

struct Job<'a> {
    core: &'a Arc<Core>,
    order: CopyOrder,
    from: Arc<OpenRepository>,
    to: Arc<OpenRepository>,
    stop: CancellationToken,
    progress: Arc<CopyProgress>,
    /// How often the second repository had been disturbed when it was looked at.
    relied_since: u64,
    /// The same of the one that is read.
    read_since: u64,
}

/// Refuses what could never be done.
///
/// # Errors
/// `HF-4001` when one of the repositories, or the source, does not exist, `HF-4037` when both are the same, `HF-3014`
/// when a snapshot is not in the repository that is read.
pub async fn validate(core: &Core, order: &CopyOrder) -> Result<(), Failure> {
    for name in [&order.from, &order.to] {
        core.definitions.repository(name)?;
    }
    // Two definitions never have the same place.
    if order.from == order.to {
        let message = format!("repository {} is named twice", order.from);
        return Err(Failure::new(ErrorCode::CopyToItself, message).then("holdfast repo list"));
    }
    if let Some(source) = &order.source
        && core.records.snapshots_before(Some(source.as_str()), None, 1).await?.is_empty()
    {
        core.definitions.source(source)?;
    }
    let holder = if order.heal { &order.to } else { &order.from };
    for id in &order.snapshots {
        core.catalog.manifest(holder, *id).await?;
    }
    Ok(())
}

/// Finds out what a copy would do; sends nothing.
///
/// # Errors
/// Those of [`validate`], of the repositories and of the state.
pub async fn plan(core: &Arc<Core>, order: CopyOrder) -> Result<CopyPlan, Failure> {
    validate(core, &order).await?;
    let stop = core.tasks.token().child_token();
    let _stop_when_dropped = stop.clone().drop_guard();
    let job = Job::open(core, order, Arc::default(), &stop).await?;
    // It is no run: this keeps prunes from what is looked at.
    let _uses = (job.from.index().uses.begin(), job.to.index().uses.begin());
    let selection = job.select().await?;
    let mut plan = CopyPlan { already: selection.already, ..CopyPlan::default() };
    let mut copier = job.copier(true);
    for id in selection.todo {
        let Some(record) = core.records.snapshot(id).await? else { continue };
        let copied;
        (copier, copied) = job.copy_tree(copier, &record).await?;
        plan.concerns.extend(copied.lost.first().map(|error| told(&record, error)));
        plan.snapshots.push(record);
    }
    if !plan.concerns.is_empty() {
        job.is_read_undisturbed().await?;
    }
    plan.sent = job.progress.sent();
    Ok(plan)
}

/// Carries out a copy or a heal.
///
/// # Errors
/// Those of [`validate`], of the repositories and of the state; damage is in the findings.
pub(crate) async fn copy(
    core: &Arc<Core>,
    run: &Run,
    order: CopyOrder,
    counters: &Counters,
    stop: &CancellationToken,
) -> Result<Done, Failure> {
    validate(core, &order).await?;
    let mut job = Job::open(core, order, counters.copy.clone(), stop).await?;
    counters.stage("looking for what is missing");
    core.catalog.sync(&job.from).await?;
    core.catalog.sync(&job.to).await?;
    job.relied_since = job.to.index().uses.disturbances();
    job.read_since = job.from.index().uses.disturbances();
    let selection = job.select().await?;
    job.progress.file_bytes_total.store(selection.logical_bytes, Ordering::Relaxed);
    if job.order.heal {
        job.heal(run, selection, counters).await
    } else {
        job.copy(run, selection, counters).await
    }
}

/// What is wrong with a snapshot, in a line.
fn told(record: &SnapshotRecord, error: &RepositoryError) -> String {
    format!("snapshot {}: {}", record.id.short(), Failure::from_error(error.code(), error))
}

impl<'a> Job<'a> {
    async fn open(
        core: &'a Arc<Core>,
        order: CopyOrder,
        progress: Arc<CopyProgress>,
        stop: &CancellationToken,
    ) -> Result<Self, Failure> {
        let (from, to) = (core.repository(&order.from).await?, core.repository(&order.to).await?);
        let (relied_since, read_since) = (to.index().uses.disturbances(), from.index().uses.disturbances());
        Ok(Self { core, order, from, to, stop: stop.clone(), progress, relied_since, read_since })
    }

    fn fail(&self, error: &RepositoryError) -> Failure {
        // What is put goes through the sink; what is read does not.
        let name = match error {
            RepositoryError::Storage(_) => &self.order.from,
            _ => &self.order.to,
        };
        repository_failure(name, error)
    }

    fn copier(&self, only_count: bool) -> Copier {
        let readers = if self.order.heal { vec![&self.to, &self.from] } else { vec![&self.from] };
        Copier::new(CopyContext {
            runtime: Handle::current(),
            from: readers.into_iter().map(contents::reader).collect(),
            to: Arc::new(OpenSink(self.to.clone())),
            sealer: self.to.repository().sealer().clone(),
            only_count,
            progress: self.progress.clone(),
            cancel: self.stop.clone(),
        })
    }

    /// The snapshots of the order that are in the repository which has them, newest first.
    async fn select(&self) -> Result<Selection, Failure> {
        let holder = if self.order.heal { &self.order.to } else { &self.order.from };
        let mut selection = Selection { todo: Vec::new(), already: 0, logical_bytes: 0 };
        let there = self.there().await?;
        let mut origins = BTreeSet::new();
        let mut before: Option<String> = None;
        let source = self.order.source.as_ref().map(|name| name.as_str());
        loop {
            let page = self.core.records.snapshots_before(source, before.as_deref(), 500).await?;
            let Some((_, last)) = page.last() else { return Ok(selection) };
            before = Some(last.clone());
            for (record, _) in page {
                let is_meant = self.order.snapshots.is_empty() || self.order.snapshots.contains(&record.id);
                if record.repository != *holder || !is_meant {
                    continue;
                }
                let is_there = if self.order.heal {
                    false
                } else if origins.insert(record.origin()) {
                    match self.copy_of(&record).await? {
                        None => there.contains(&record.origin()) || there.contains(&record.id),
                        Some(copy) => copy.proof.damage.is_none(),
                    }
                } else {
                    continue;
                };
                if is_there {
                    selection.already += 1;
                } else {
                    selection.logical_bytes += record.logical_bytes;
                    selection.todo.push(record.id);
                }
            }
        }
    }

    /// The snapshots of the repository that is written. One that was copied by the means of its storage has the very
    /// same, which the catalog knows in one of the two only.
    async fn there(&self) -> Result<BTreeSet<SnapshotId>, Failure> {
        let ids = self.to.repository().snapshot_ids().await;
        let ids = ids.map_err(|error| repository_failure(&self.order.to, &error))?;
        Ok(ids.into_iter().map(|id| SnapshotId(*id.as_bytes())).collect())
    }

    /// The copy of a snapshot in the other repository: a sound one, or else a damaged one.
    async fn copy_of(&self, record: &SnapshotRecord) -> Result<Option<SnapshotRecord>, Failure> {
        let mut copies = self.core.records.copies(record).await?;
        copies.retain(|copy| copy.repository == self.order.to);
        copies.sort_by_key(|copy| copy.proof.damage.is_some());
        Ok(copies.into_iter().next())
    }

    /// Sends what is missing of a snapshot, on a thread that may block.
    async fn copy_tree(
        &self,
        mut copier: Copier,
        record: &SnapshotRecord,
    ) -> Result<(Copier, CopiedTree), Failure> {
        let root: BlobId =
            record.tree.parse().map_err(|error| Failure::from_error(ErrorCode::StateDamaged, &error))?;
        let work = move || {
            let copied = copier.copy_tree(root);
            Ok((copier, copied))
        };
        let (copier, copied) = self.core.blocking("copy a snapshot", work).await?;
        Ok((copier, copied.map_err(|error| self.fail(&error))?))
    }

    /// Makes durable and indexed what was sent.
    async fn finish(&self, copier: Copier) -> Result<Copier, Failure> {
        let work = move || {
            let finished = copier.finish();
            Ok((copier, finished))
        };
        let (copier, finished) = self.core.blocking("store the last packs of a copy", work).await?;
        finished.map_err(|error| self.fail(&error))?;
        other_programs::make_sure(&self.to, self.relied_since, self.core.clock.now()).await?;
        Ok(copier)
    }

    async fn copy(self, run: &Run, mut selection: Selection, counters: &Counters) -> Result<Done, Failure> {
        let count = selection.todo.len();
        let (mut findings, mut made, mut done_bytes, mut published) = (Vec::new(), 0, 0, 0);
        let mut pending: Vec<Pending> = Vec::new();
        let mut copier = self.copier(false);
        for (number, id) in std::mem::take(&mut selection.todo).into_iter().enumerate() {
            counters.stage(format!("copying {} ({} of {count})", id.short(), number + 1));
            let Some((record, text)) = self.load(run, id, &mut findings).await? else { continue };
            let damaged = self.copy_of(&record).await?.map(|copy| (copy, self.to.index().times_worse()));
            fail_point::hit("copy-before-read");
            let copied;
            (copier, copied) = self.copy_tree(copier, &record).await?;
            done_bytes += record.logical_bytes;
            self.progress.file_bytes.store(done_bytes, Ordering::Relaxed);
            if !(copied.lost.is_empty() && copied.damaged_packs.is_empty()) {
                self.is_read_undisturbed().await?;
                self.doubt(&copied.damaged_packs).await?;
            }
            match copied.lost.first() {
                None => pending.push(Pending { record, text, sent: copied.sent, damaged }),
                Some(error) => {
                    let finding = told(&record, error);
                    let damage = finding.clone();
                    let prove = move |proof: &mut Proof| proof.damage = Some(damage.clone());
                    self.core.catalog.prove(record.id, "snapshot.read", prove).await?;
                    findings.push(finding);
                }
            }
            let stored = self.progress.stored_bytes.load(Ordering::Relaxed);
            if stored - published >= PUBLISH_AFTER_BYTES || pending.len() >= PUBLISH_AFTER_SNAPSHOTS {
                published = stored;
                copier = self.finish(copier).await?;
                made += self.publish_all(run, std::mem::take(&mut pending)).await?;
            }
        }
        counters.stage("publishing");
        self.finish(copier).await?;
        made += self.publish_all(run, pending).await?;
        let sent = self.progress.sent();
        let notes = vec![
            format!("{} copied, {} were there", counted(made, "snapshot"), selection.already),
            format!(
                "sent: {}, {}",
                counted(sent.data_blobs + sent.tree_blobs, "blob"),
                size(sent.stored_bytes)
            ),
        ];
        let failure = findings.first().map(|first| self.incomplete(first, findings.len(), made));
        Ok(Done { findings, notes, progress: counters.now(), failure })
    }

    /// A snapshot and the text of its object; nothing when it is gone, or damaged, which is a finding.
    async fn load(
        &self,
        run: &Run,
        id: SnapshotId,
        findings: &mut Vec<String>,
    ) -> Result<Option<(SnapshotRecord, Vec<u8>)>, Failure> {
        if let Some(record) = self.core.records.snapshot(id).await? {
            match self.from.repository().load_unpacked(&object_of(&record)).await {
                Ok(text) => return Ok(Some((record, text))),
                Err(error) if error.code() == ErrorCode::ObjectMissing => {}
                Err(error) if error.code() == ErrorCode::ObjectDamaged => {
                    findings.push(told(&record, &error));
                    return Ok(None);
                }
                Err(error) => return Err(repository_failure(&self.order.from, &error)),
            }
        }
        let line = format!("snapshot {} was forgotten meanwhile", id.short());
        self.core.log(run, LogLevel::Warning, vec![line]).await;
        Ok(None)
    }

    /// Refuses to call anything lost that another program may have moved: a prune of the repository that is read puts
    /// what is needed into other packs.
    async fn is_read_undisturbed(&self) -> Result<(), Failure> {
        other_programs::is_undisturbed(&self.from, self.read_since).await
    }

    fn incomplete(&self, first: &str, count: usize, made: u64) -> Failure {
        let message = format!(
            "{} of repository {} damaged and not copied; the first: {first}",
            if count == 1 { "1 snapshot".to_owned() } else { format!("{count} snapshots") },
            if count == 1 { format!("{} is", self.order.from) } else { format!("{} are", self.order.from) },
        );
        Failure::new(ErrorCode::CopyIncomplete, message)
            .at_stake(format!("{} copied; those named are in no copy whole", counted(made, "other snapshot")))
            .then("holdfast backup run SOURCE --type full   # stores again what the source still has")
            .then(format!("holdfast repo check {} --read-data", self.order.from))
    }

    /// Relies no more on packs that were found damaged, in whichever of the repositories they are.
    async fn doubt(&self, packs: &[PackId]) -> Result<(), Failure> {
        for repository in [&self.from, &self.to] {
            let of_it: Vec<PackId> =
                packs.iter().filter(|pack| repository.index().contains_pack(pack)).copied().collect();
            if !of_it.is_empty() {
                self.core.repositories.doubt(repository, &of_it).await?;
            }
        }
        Ok(())
    }
}
