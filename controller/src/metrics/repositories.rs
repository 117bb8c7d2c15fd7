//! Metrics of repositories. What only the storage can tell is asked at most once a minute, sooner when it was down, and
//! only while somebody collects; a storage that does not answer delays a collection by [`PATIENCE`] at most.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_model::Failure;
use holdfast_model::ids::RepositoryName;
use holdfast_model::metrics::catalogue::Metric;
use holdfast_model::verification::{Pace, ReadShare};
use holdfast_repository::format::ObjectKind;
use holdfast_runtime::OnEnd;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Families, flag, number, seconds};
use crate::core::Core;
use crate::repositories::storage_failure;
use crate::verify_schedule;

/// How long what a storage said is taken for true.
const PROBED_EVERY: Duration = Duration::from_secs(60);
/// How long it is when the storage was down, or the repository not made yet.
const DOWN_PROBED_EVERY: Duration = Duration::from_secs(5);
/// How long the sum of the sizes of packs is taken for true while their number stays the same.
const LISTED_EVERY: Duration = Duration::from_secs(6 * 3600);
/// A storage that has not answered by then is down.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a collection waits for the first answer of a storage.
const PATIENCE: Duration = Duration::from_secs(3);

/// What was last found out about each repository.
#[derive(Default)]
pub(super) struct Measures {
    known: Mutex<BTreeMap<RepositoryName, Measure>>,
    changed: Notify,
}

#[derive(Clone, Default)]
struct Measure {
    begun: Option<Instant>,
    is_asked: bool,
    up: Option<bool>,
    free_bytes: Option<u64>,
    stored: Option<Listed>,
    read: ReadShare,
}

/// The sum of the sizes of packs: when it was taken, and how many packs there were.
#[derive(Clone, Copy)]
struct Listed {
    at: Instant,
    packs: usize,
    bytes: u64,
}

/// Asks the storages whose answers are old, and waits for those that never answered.
pub(super) async fn measure(core: &Arc<Core>) {
    let measures = &core.metrics.repositories;
    let now = core.clock.monotonic();
    let current = core.definitions.current();
    let mut due = Vec::new();
    {
        let mut known = measures.known.lock();
        known.retain(|name, _| current.fleet.repositories.contains_key(name));
        for name in current.fleet.repositories.keys() {
            let measure = known.entry(name.clone()).or_default();
            let every = if measure.up == Some(false) { DOWN_PROBED_EVERY } else { PROBED_EVERY };
            let is_old = measure.begun.is_none_or(|begun| now.duration_since(begun) >= every);
            if is_old && !measure.is_asked {
                (measure.begun, measure.is_asked) = (Some(now), true);
                due.push((name.clone(), measure.stored));
            }
        }
    }
    let mut paces = if due.is_empty() { BTreeMap::new() } else { paces(core).await };
    for (name, stored) in due {
        let (asking, pace) = (core.clone(), paces.remove(&name));
        core.tasks.spawn(format!("measure {name}"), OnEnd::Isolated, async move {
            let limited = tokio::time::timeout(PROBE_TIMEOUT, ask(&asking, &name, stored, pace));
            let Some(answer) = asking.tasks.token().run_until_cancelled(limited).await else { return };
            if let Ok(Err(failure)) = &answer {
                tracing::debug!(repository = %name, %failure, "could not be measured");
            }
            asking.metrics.repositories.answered(&name, answer.ok().and_then(Result::ok));
        });
    }
    let answered = async {
        loop {
            let changed = measures.changed.notified();
            if measures.known.lock().values().all(|measure| measure.up.is_some()) {
                return;
            }
            changed.await;
        }
    };
    // Those that stay silent are left out until they answer, or are down.
    let _ = tokio::time::timeout(PATIENCE, answered).await;
}

struct Answer {
    free_bytes: Option<u64>,
    stored: Listed,
    read: ReadShare,
}

async fn paces(core: &Core) -> BTreeMap<RepositoryName, Pace> {
    verify_schedule::paces(core).await.unwrap_or_else(|failure| {
        tracing::debug!(%failure, "it is unknown how fast repositories are read");
        BTreeMap::new()
    })
}

async fn ask(
    core: &Core,
    name: &RepositoryName,
    listed: Option<Listed>,
    pace: Option<Pace>,
) -> Result<Answer, Failure> {
    let repository = core.repository(name).await?;
    let fail = |error| storage_failure(name, &error);
    let probe = repository.store().probe().await.map_err(fail)?;
    let (read, _) = repository.index().readings.share(pace.as_ref(), core.clock.now());
    let now = core.clock.monotonic();
    let (packs, _) = repository.counts();
    let is_new = |listed: &Listed| listed.packs == packs && now.duration_since(listed.at) < LISTED_EVERY;
    if let Some(stored) = listed.filter(is_new) {
        return Ok(Answer { free_bytes: probe.free_bytes, stored, read });
    }
    let (_, bytes) = repository.stored(ObjectKind::Pack).await?;
    Ok(Answer { free_bytes: probe.free_bytes, stored: Listed { at: now, packs, bytes }, read })
}

impl Measures {
    fn answered(&self, name: &RepositoryName, answer: Option<Answer>) {
        if let Some(measure) = self.known.lock().get_mut(name) {
            measure.is_asked = false;
            measure.up = Some(answer.is_some());
            if let Some(answer) = answer {
                measure.free_bytes = answer.free_bytes;
                measure.stored = Some(answer.stored);
                measure.read = answer.read;
            }
        }
        self.changed.notify_waiters();
    }
}

pub(super) async fn collect(core: &Arc<Core>, families: &mut Families) -> Result<(), Failure> {
    let measures = core.metrics.repositories.known.lock().clone();
    for name in core.definitions.current().fleet.repositories.keys() {
        let label = [name.as_str()];
        let measure = measures.get(name).cloned().unwrap_or_default();
        families.set(Metric::RepositoryUp, &label, flag(measure.up == Some(true)));
        if let Some(stored) = measure.stored {
            families.set(Metric::RepositoryStoredBytes, &label, number(stored.bytes));
            families.set(Metric::RepositoryReadBytes, &label, number(measure.read.read_bytes));
            families.set(Metric::RepositoryOldestUnread, &label, seconds(measure.read.oldest));
        }
        if let Some(free) = measure.free_bytes {
            families.set(Metric::RepositoryFreeBytes, &label, number(free));
        }
        let checked = core.records.last_clean_check(name).await?;
        families.set(Metric::VerifyLastSuccess, &[name.as_str(), "metadata"], seconds(checked));
        let read = core.records.last_clean_read(name).await?;
        families.set(Metric::VerifyLastSuccess, &[name.as_str(), "full"], seconds(read));
        let damaged = core.repositories.damaged_count(name).await?;
        families.set(Metric::CorruptObjects, &label, number(damaged as u64));
    }
    Ok(())
}
