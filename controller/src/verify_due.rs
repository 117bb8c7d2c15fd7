//! Reads the packs of a repository that are due, as a run, and remembers which were sound. A pack that was not is checked
//! like all of a repository is: what is damaged is remembered and stored again by the next backup that has it, and the
//! snapshots that it touches are named.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::TryStreamExt as _;
use holdfast_model::ids::RepositoryName;
use holdfast_model::run::{Run, RunKind};
use holdfast_model::text::{counted, size};
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::RepositoryError;
use holdfast_repository::check::{CheckOptions, CheckProgress, verify_pack};
use holdfast_repository::format::{ObjectKind, ObjectName};
use holdfast_repository::id::{BlobId, BlobType, IdMap, IdSet, PackId};
use holdfast_repository::reader::{BlobOpener, LOCATE_BATCH};
use holdfast_runtime::fail_point;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::maintenance::{Counters, Done, check_repository};
use crate::repositories::{OpenRepository, repository_failure, storage_failure};
use crate::verify_schedule;

/// Bytes of packs that are read before it is remembered: what a crash costs.
const REMEMBERED_EVERY: u64 = 1 << 30;

/// Packs that are read before it is remembered.
const PACKS_TOGETHER: usize = 256;

/// Finds out which packs a repository has; says whether that is known, which it is not while its index is built anew.
/// Costs a listing when they are not those that were there at the last look.
///
/// # Errors
/// Those of the storage and of the state.
pub(crate) async fn look(core: &Arc<Core>, repository: &Arc<OpenRepository>) -> Result<bool, Failure> {
    // Before the packs are asked for: what comes after this is not there yet.
    let now = core.clock.now();
    let Some(there) = repository.index().complete_packs() else { return Ok(false) };
    let mut sizes = IdMap::default();
    if repository.index().readings.differs(&there) {
        let fail = |error| storage_failure(&repository.name, &error);
        let mut listed = repository.store().list(ObjectKind::Pack).await.map_err(fail)?;
        while let Some((object, bytes)) = listed.try_next().await.map_err(fail)? {
            if let ObjectName::Pack(pack) = object {
                sizes.insert(pack, bytes);
            }
        }
    }
    let any_damaged = !repository.doubted().is_empty();
    let owner = repository.clone();
    let look = move || owner.index().readings.look(now, &there, &sizes, any_damaged);
    core.blocking("look at packs", look).await?;
    Ok(true)
}

/// Packs that are not relied on.
pub(crate) struct Doubts {
    /// It is known which snapshots they touch: they are not read again until they are relied on.
    pub(crate) named: IdSet<PackId>,
    /// That is to be found out, at once.
    pub(crate) open: IdSet<PackId>,
}

impl Doubts {
    /// # Errors
    /// When the state can not be read.
    pub(crate) async fn of(core: &Core, repository: &OpenRepository) -> Result<Self, Failure> {
        let named = core.repositories.named(repository).await?;
        let open = repository.doubted().into_iter().filter(|pack| !named.contains(pack)).collect();
        Ok(Self { named, open })
    }

    /// What is to be read now, when this is due by its time.
    pub(crate) fn due(&self, mut due: Vec<(PackId, u64)>) -> Vec<(PackId, u64)> {
        due.retain(|(pack, _)| !self.open.contains(pack));
        self.open.iter().map(|pack| (*pack, 0)).chain(due).collect()
    }
}

/// Remembers that packs were read and found sound, no earlier than `at`.
///
/// # Errors
/// When the state can not be written.
pub(crate) async fn note(
    core: &Core,
    repository: &Arc<OpenRepository>,
    sound: Vec<PackId>,
    at: Timestamp,
) -> Result<(), Failure> {
    if sound.is_empty() {
        return Ok(());
    }
    let owner = repository.clone();
    core.blocking("note packs", move || owner.index().readings.note(&sound, at)).await
}

/// Reads what the policies have read now.
///
/// # Errors
/// Those of the storage and of the state; `HF-4010` when cancelled. What was read until then is remembered.
pub(crate) async fn read_due(
    core: &Arc<Core>,
    run: &Run,
    name: &RepositoryName,
    counters: &Counters,
    stop: &CancellationToken,
) -> Result<Done, Failure> {
    let repository = core.repository(name).await?;
    // Not waited for: a prune waits for the runs that began before it takes packs away, so for this one.
    let Ok(_no_prune) = repository.index().removing.try_read() else {
        let note = "a prune is under way: what is due is left for the next time";
        return Ok(Done { notes: vec![note.to_owned()], ..Done::default() });
    };
    if !look(core, &repository).await? {
        repository.update_index().await?;
        if !look(core, &repository).await? {
            let note = "the index is built anew: what is due is left for the next time";
            return Ok(Done { notes: vec![note.to_owned()], ..Done::default() });
        }
    }
    let Some(pace) = verify_schedule::paces(core).await?.remove(name) else {
        return Ok(Done { notes: vec!["no policy has it read".to_owned()], ..Done::default() });
    };
    let readings = &repository.index().readings;
    let doubts = Doubts::of(core, &repository).await?;
    let now = core.clock.now();
    let due = doubts.due(readings.due(&pace, &doubts.named, now));
    readings.begin_portion(now);
    counters.due_bytes.store(due.iter().map(|(_, bytes)| bytes).sum(), Ordering::Relaxed);
    let (mut taken, mut suspects, mut failure) = (0, Vec::new(), None);
    for portion in portions(&due) {
        if failure.as_ref().is_some_and(is_lasting) || taken > 0 && is_prune_waiting(core, name) {
            break;
        }
        let at = core.clock.now();
        let found = read_packs(core, &repository, portion.to_vec(), counters.check.clone(), stop).await?;
        fail_point::hit("verify-before-remember");
        taken += portion.len();
        let sound: Vec<PackId> =
            found.sound.iter().filter(|pack| doubts.open.contains(pack)).copied().collect();
        note(core, &repository, found.sound, at).await?;
        core.repositories.touched_are_named(name, &sound).await?;
        suspects.extend(found.suspects);
        failure = found.failure.or(failure);
    }
    let bytes = counters.check.bytes_read.load(Ordering::Relaxed);
    let read = counters.check.packs_read.load(Ordering::Relaxed);
    let mut notes = vec![format!("{} read, {}", counted(read, "pack"), size(bytes))];
    if taken < due.len() && failure.is_none() {
        let left = counted((due.len() - taken) as u64, "pack");
        notes.push(format!("a prune waits: {left} that are due are left for the next time"));
    }
    let mut done = Done::default();
    if !suspects.is_empty() && !stop.is_cancelled() {
        counters.stage("looking for what is touched");
        let options = CheckOptions { read_data: true, only: Some(suspects), ..CheckOptions::default() };
        done = check_repository(core, run, &repository, options, counters, stop).await?;
    }
    notes.append(&mut done.notes);
    match failure {
        Some(failure) if done.findings.is_empty() => return Err(failure),
        Some(failure) => notes.push(format!("not all that is due could be read: {failure}")),
        None => {}
    }
    Ok(Done { notes, progress: counters.now(), ..done })
}

/// Whether what failed for one pack fails for the next one as well.
fn is_lasting(failure: &Failure) -> bool {
    matches!(failure.code, ErrorCode::StorageUnreachable | ErrorCode::RunCancelled)
}

fn is_prune_waiting(core: &Core, name: &RepositoryName) -> bool {
    let runs = core.runs.active();
    runs.iter().any(|run| run.spec.kind() == RunKind::Prune && run.spec.repository() == Some(name))
}

/// Cuts what is due into what is remembered together.
fn portions<'d>(due: &'d [(PackId, u64)]) -> impl Iterator<Item = &'d [(PackId, u64)]> {
    let mut rest = due;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = rest.iter().take(PACKS_TOGETHER).take_while(|(_, size)| {
            bytes += size;
            bytes <= REMEMBERED_EVERY
        });
        let count = fitting.count().max(1).min(rest.len());
        let portion: &'d [(PackId, u64)];
        (portion, rest) = rest.split_at(count);
        (!portion.is_empty()).then_some(portion)
    })
}

/// What reading some packs showed.
#[derive(Default)]
struct Found {
    sound: Vec<PackId>,
    suspects: Vec<PackId>,
    /// Why a pack could not be read, the last of several.
    failure: Option<Failure>,
}

/// Reads packs whole, one after the other, past those that can not be read.
async fn read_packs(
    core: &Core,
    repository: &Arc<OpenRepository>,
    packs: Vec<(PackId, u64)>,
    progress: Arc<CheckProgress>,
    stop: &CancellationToken,
) -> Result<Found, Failure> {
    let (repository, stop, handle) = (repository.clone(), stop.clone(), Handle::current());
    core.blocking("read packs", move || {
        let fail = |error: &RepositoryError| repository_failure(&repository.name, error);
        let mut opener =
            BlobOpener::new(repository.repository().sealer().clone()).map_err(|error| fail(&error))?;
        let mut found = Found::default();
        for (pack, bytes) in packs {
            let judged =
                handle.block_on(stop.run_until_cancelled(is_sound(&repository, &mut opener, pack, bytes)));
            match judged.unwrap_or_else(|| Err(fail(&RepositoryError::Cancelled))) {
                Ok(true) => found.sound.push(pack),
                Ok(false) => found.suspects.push(pack),
                Err(failure) => {
                    let is_over = is_lasting(&failure);
                    found.failure = Some(failure);
                    if is_over {
                        break;
                    }
                    continue;
                }
            }
            progress.packs_read.fetch_add(1, Ordering::Relaxed);
            progress.bytes_read.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(found)
    })
    .await
}

/// Whether every byte of a pack is right, and the index says of it what it says itself.
async fn is_sound(
    repository: &OpenRepository,
    opener: &mut BlobOpener,
    pack: PackId,
    bytes: u64,
) -> Result<bool, Failure> {
    let verdict = async {
        // Of one that was not there when it was looked, the size is not known.
        let bytes = if bytes > 0 { bytes } else { repository.store().size(&ObjectName::Pack(pack)).await? };
        verify_pack(repository.repository(), opener, pack, bytes).await
    };
    let verdict = match verdict.await {
        Ok(verdict) if verdict.is_sound() => verdict,
        Ok(_) => return Ok(false),
        Err(error) if matches!(error.code(), ErrorCode::ObjectMissing | ErrorCode::ObjectDamaged) => {
            return Ok(false);
        }
        Err(error) => return Err(repository_failure(&repository.name, &error)),
    };
    for blob_type in BlobType::ALL {
        let entries: Vec<_> = verdict.entries.iter().filter(|entry| entry.blob_type == blob_type).collect();
        for entries in entries.chunks(LOCATE_BATCH) {
            let ids: Vec<BlobId> = entries.iter().map(|entry| entry.id).collect();
            let places = repository.locate(blob_type, &ids).await?;
            let agrees = entries.iter().zip(places).all(|(entry, place)| {
                place.is_some_and(|place| place.pack != pack || place.entry == **entry)
            });
            if !agrees {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_together_is_bounded_and_nothing_is_left_out() {
        let pack = |number: usize| PackId::of(&number.to_le_bytes());
        let due: Vec<(PackId, u64)> =
            (0..600).map(|number| (pack(number), (number as u64 % 3) << 29)).collect();
        let cut: Vec<_> = portions(&due).collect();
        assert_eq!(cut.concat(), due);
        for portion in cut {
            let bytes: u64 = portion.iter().map(|(_, bytes)| bytes).sum();
            assert!(!portion.is_empty() && portion.len() <= PACKS_TOGETHER && bytes <= REMEMBERED_EVERY);
        }
        assert_eq!(portions(&[(pack(1), u64::MAX)]).count(), 1, "a pack is never cut");
        assert_eq!(portions(&[]).count(), 0);
    }
}
