//! Copies of snapshots in another repository, and its healing from one, done by the controller as runs. The repository
//! that is copied from is only read; a prune of either waits for a copy that began before it condemned anything.
//!
//! Several small snapshots share packs, so they are published together: packs, then index, then their objects, each
//! followed by its record. A crash between any two of these leaves garbage; the next attempt finds by the origin which
//! copies exist, and by the index which blobs are there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_model::ids::{RepositoryName, SnapshotId, SourceName};
use holdfast_model::run::{LogLevel, Run, RunSpec};
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::text::{counted, size};
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::RepositoryError;
use holdfast_repository::copy::{CopiedTree, Copier, CopyContext, CopyProgress, Sent, copied_snapshot};
use holdfast_repository::format::{ObjectKind, ObjectName};
use holdfast_repository::id::{BlobId, PackId};
use holdfast_repository::snapshot::SnapshotObject;
use holdfast_runtime::fail_point;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::catalog::describe;
use crate::contents;
use crate::core::Core;
use crate::maintenance::{Counters, Done};
use crate::other_programs;
use crate::records::Batch;
use crate::repositories::{OpenRepository, repository_failure};
use crate::snapshot_writer::OpenSink;

/// Snapshots are published when so many bytes were sent since the last were.
const PUBLISH_AFTER_BYTES: u64 = 64 << 20;
/// How often a heal looks again when it finds damage that was not known.
const HEAL_ROUNDS: usize = 3;

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
    /// Newest first; each with its copy in the other repository when that is damaged.
    todo: Vec<(SnapshotRecord, Option<SnapshotRecord>)>,
    already: u64,
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
    for (record, _) in selection.todo {
        let copied;
        (copier, copied) = job.copy_tree(copier, &record).await?;
        plan.concerns.extend(copied.lost.first().map(|error| told(&record, error)));
        plan.snapshots.push(record);
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
    let selection = job.select().await?;
    let total: u64 = selection.todo.iter().map(|(record, _)| record.logical_bytes).sum();
    job.progress.file_bytes_total.store(total, Ordering::Relaxed);
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

/// A snapshot of which everything was sent.
struct Pending {
    record: SnapshotRecord,
    /// The text of its object.
    text: Vec<u8>,
    sent: Sent,
    /// Its copy that was damaged, which is whole now.
    healed: Option<SnapshotRecord>,
}

impl<'a> Job<'a> {
    async fn open(
        core: &'a Arc<Core>,
        order: CopyOrder,
        progress: Arc<CopyProgress>,
        stop: &CancellationToken,
    ) -> Result<Self, Failure> {
        let (from, to) = (core.repository(&order.from).await?, core.repository(&order.to).await?);
        let relied_since = to.index().uses.disturbances();
        Ok(Self { core, order, from, to, stop: stop.clone(), progress, relied_since })
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
        let mut selection = Selection { todo: Vec::new(), already: 0 };
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
                if self.order.heal {
                    selection.todo.push((record, None));
                } else if origins.insert(record.origin()) {
                    match self.copy_of(&record).await? {
                        None if there.contains(&record.origin()) || there.contains(&record.id) => {
                            selection.already += 1;
                        }
                        Some(copy) if copy.proof.damage.is_none() => selection.already += 1,
                        damaged => selection.todo.push((record, damaged)),
                    }
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

    async fn copy(self, run: &Run, selection: Selection, counters: &Counters) -> Result<Done, Failure> {
        let count = selection.todo.len();
        let (mut findings, mut made, mut done_bytes, mut published) = (Vec::new(), 0, 0, 0);
        let mut pending: Vec<Pending> = Vec::new();
        let mut copier = self.copier(false);
        for (number, (record, healed)) in selection.todo.into_iter().enumerate() {
            counters.stage(format!("copying {} ({} of {count})", record.id.short(), number + 1));
            let name = ObjectName::Snapshot(holdfast_repository::id::SnapshotId::from_bytes(record.id.0));
            let text = match self.from.repository().load_unpacked(&name).await {
                Ok(text) => text,
                Err(error) if error.code() == ErrorCode::ObjectMissing => {
                    let line = format!("snapshot {} was forgotten meanwhile", record.id.short());
                    self.core.log(run, LogLevel::Warning, vec![line]).await;
                    continue;
                }
                Err(error) if error.code() == ErrorCode::ObjectDamaged => {
                    findings.push(told(&record, &error));
                    continue;
                }
                Err(error) => return Err(repository_failure(&self.order.from, &error)),
            };
            let copied;
            (copier, copied) = self.copy_tree(copier, &record).await?;
            done_bytes += record.logical_bytes;
            self.progress.file_bytes.store(done_bytes, Ordering::Relaxed);
            self.doubt(&copied.damaged_packs).await?;
            match copied.lost.first() {
                None => pending.push(Pending { record, text, sent: copied.sent, healed }),
                Some(error) => {
                    let finding = told(&record, error);
                    let damage = finding.clone();
                    let prove = move |proof: &mut holdfast_model::snapshot::Proof| {
                        proof.damage = Some(damage.clone());
                    };
                    self.core.catalog.prove(record.id, "snapshot.read", prove).await?;
                    findings.push(finding);
                }
            }
            let stored = self.progress.stored_bytes.load(Ordering::Relaxed);
            if stored - published >= PUBLISH_AFTER_BYTES {
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
    async fn doubt(&self, packs: &[PackId]) -> Result<bool, Failure> {
        let mut is_new = false;
        for repository in [&self.from, &self.to] {
            let known = repository.doubted();
            let of_it: Vec<PackId> =
                packs.iter().filter(|pack| repository.index().contains_pack(pack)).copied().collect();
            is_new |= of_it.iter().any(|pack| !known.contains(pack));
            self.core.repositories.doubt(repository, &of_it, false).await?;
        }
        Ok(is_new)
    }

    async fn publish_all(&self, run: &Run, pending: Vec<Pending>) -> Result<u64, Failure> {
        let mut made = 0;
        for pending in pending {
            self.fence(run)?;
            let short = pending.record.id.short();
            let source = pending.record.source.clone();
            let line = match pending.healed {
                Some(copy) => {
                    self.take_back(&copy).await?;
                    format!("the copy {} of snapshot {short} is whole again", copy.id.short())
                }
                None => {
                    let copy = self.publish(pending).await?;
                    made += 1;
                    format!("snapshot {short} is copied: {}", copy.short())
                }
            };
            self.core.log(run, LogLevel::Info, vec![line]).await;
            source.iter().for_each(|source| self.core.snapshots_changed(source));
        }
        Ok(made)
    }

    /// A later attempt may be under way when this process was stopped for long.
    fn fence(&self, run: &Run) -> Result<(), Failure> {
        let now = self.core.runs.active_run(run.id).map(|now| now.state);
        if now.is_some_and(|now| now.attempt == run.state.attempt && now.phase.is_with_agent()) {
            return Ok(());
        }
        let message = format!("attempt {} of run {} is over", run.state.attempt, run.id.short());
        Err(Failure::new(ErrorCode::StaleAttempt, message))
    }

    /// Makes the copy of a snapshot exist; all of it is durable and indexed.
    async fn publish(&self, pending: Pending) -> Result<SnapshotId, Failure> {
        let Pending { record, text, sent, .. } = pending;
        let origin = holdfast_repository::id::SnapshotId::from_bytes(record.id.0);
        let text = copied_snapshot(origin, &text, &sent)
            .map_err(|error| repository_failure(&self.order.from, &error))?;
        let object: SnapshotObject = serde_json::from_slice(&text)
            .map_err(|error| Failure::from_error(ErrorCode::Internal, &error))?;
        let repository = self.to.repository();
        fail_point::hit("copy-before-snapshot");
        let saved = repository.save_unpacked(ObjectKind::Snapshot, &text).await;
        let name = saved.map_err(|error| repository_failure(&self.order.to, &error))?;
        fail_point::hit("copy-after-snapshot");
        let id = name.content_hash().map(|hash| SnapshotId(*hash));
        let id = id.ok_or_else(|| Failure::new(ErrorCode::Internal, "a snapshot has no hash"))?;
        let copy = SnapshotRecord {
            anomalies: record.anomalies.clone(),
            ..describe(id, &self.order.to, &object, record.manifest.clone())
        };
        // So that no hold is placed or released between the question and the deed.
        let _turn = self.core.holds.lock().await;
        let target = format!("snapshot/{id}: copy of {} in {}", record.id, self.order.from);
        let batch = Batch::new("controller", "snapshot.copy", target).put_snapshot(&copy);
        let batch = self.core.catalog.inherit_hold(batch, &copy, record.id).await?;
        self.core.records.commit(batch).await?;
        fail_point::hit("copy-after-catalog");
        Ok(id)
    }

    /// All that a snapshot needs is there again, in packs that are relied on.
    async fn take_back(&self, record: &SnapshotRecord) -> Result<(), Failure> {
        let now = self.core.clock.now();
        self.core
            .catalog
            .prove(record.id, "snapshot.healed", |proof| {
                proof.damage = None;
                proof.checked_at = Some(now);
            })
            .await
    }

    /// Stores again in the second repository what its snapshots lack.
    async fn heal(self, run: &Run, selection: Selection, counters: &Counters) -> Result<Done, Failure> {
        let (mut whole, mut findings) = (Vec::new(), Vec::new());
        for round in 1..=HEAL_ROUNDS {
            whole.clear();
            findings.clear();
            let mut copier = self.copier(false);
            let mut damaged_packs = BTreeSet::new();
            for (number, (record, _)) in selection.todo.iter().enumerate() {
                let (number, count) = (number + 1, selection.todo.len());
                counters.stage(format!("healing {} ({number} of {count})", record.id.short()));
                let copied;
                (copier, copied) = self.copy_tree(copier, record).await?;
                damaged_packs.extend(copied.damaged_packs);
                match copied.lost.first() {
                    None => whole.push(record),
                    Some(error) => findings.push(told(record, error)),
                }
            }
            self.finish(copier).await?;
            let damaged_packs: Vec<PackId> = damaged_packs.into_iter().collect();
            // What was relied on and is damaged is stored again in the next round.
            if !self.doubt(&damaged_packs).await? || round == HEAL_ROUNDS {
                break;
            }
        }
        self.fence(run)?;
        let mut healed = 0;
        for record in whole.into_iter().filter(|record| record.proof.damage.is_some()) {
            self.take_back(record).await?;
            let line = format!("snapshot {} is whole again", record.id.short());
            self.core.log(run, LogLevel::Info, vec![line]).await;
            healed += 1;
        }
        let (sent, doubted) = (self.progress.sent(), self.to.doubted().len() as u64);
        if doubted > 0 {
            let target = format!("repository/{}: healed", self.order.to);
            let batch = Batch::new("controller", "repository.heal", target).garbage(&self.order.to);
            self.core.records.commit(batch).await?;
        }
        let blobs = counted(sent.data_blobs + sent.tree_blobs, "blob");
        let mut notes = vec![
            format!("stored again: {blobs}, {}", size(sent.stored_bytes)),
            format!("whole again: {}", counted(healed, "snapshot")),
        ];
        if doubted > 0 {
            let packs = counted(doubted, "damaged pack");
            notes.push(format!("left until the next prune: {packs}; holdfast repo prune {}", self.order.to));
        }
        let failure = findings.first().map(|first| self.not_healed(first, findings.len()));
        Ok(Done { findings, notes, progress: counters.now(), failure })
    }

    fn not_healed(&self, first: &str, count: usize) -> Failure {
        let snapshots = counted(count as u64, "snapshot");
        let message = format!(
            "{snapshots} of repository {} lack what repository {} does not have either; the first: {first}",
            self.order.to, self.order.from
        );
        Failure::new(ErrorCode::HealIncomplete, message)
            .at_stake("the snapshots named can not be restored whole from this repository")
            .then("holdfast backup run SOURCE --type full   # stores again what the source still has")
    }
}
