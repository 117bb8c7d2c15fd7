//! Begins the backups that are due. A reconciler: it takes no input, and its work is in proportion to what is due.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::ids::SourceName;
use holdfast_model::run::RunSpec;
use holdfast_model::schedule::{Due, Slot, SlotId};
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::fail_point;
use jiff::{SignedDuration, Timestamp};

use crate::core::Core;
use crate::notify::liveness::Part;
use crate::records::Batch;
use crate::run_lifecycle::NewRun;
use crate::schedules::Entry;

/// How often it looks without being woken, so that a clock that was set is seen soon.
const PERIOD: Duration = Duration::from_secs(1);

/// How soon it tries again what could not be stored.
const AGAIN: SignedDuration = SignedDuration::from_secs(5);

/// Sources asked before the clock is looked at again.
const ASKED_AT_ONCE: usize = 256;

/// Runs until the controller stops.
pub async fn run(core: Arc<Core>) {
    let stop = core.tasks.token().clone();
    loop {
        let run_changed = core.runs.changed();
        let definitions_changed = core.definitions.changed();
        let pauses_changed = core.schedules.changed();
        match pass(&core).await {
            Ok(()) => core.liveness.beat(Part::Scheduler),
            Err(failure) => tracing::error!(%failure, "the schedules could not be looked at"),
        }
        let now = core.clock.now();
        let wait = core.schedules.next_wake().map_or(PERIOD, |wake| {
            Duration::try_from(wake.duration_since(now)).unwrap_or(Duration::ZERO).min(PERIOD)
        });
        tokio::select! {
            () = stop.cancelled() => return,
            () = run_changed => {}
            () = definitions_changed => {}
            () = pauses_changed => {}
            () = core.clock.sleep(wait) => {}
        }
    }
}

/// Begins what is due now.
///
/// # Errors
/// When what is declared could not be taken over. What fails for one source is logged and tried again.
pub async fn pass(core: &Arc<Core>) -> Result<(), Failure> {
    core.schedules.adopt(&core.definitions.current(), core.clock.now()).await?;
    core.schedules.wake(&core.runs.take_ended_backups(), core.clock.now());
    loop {
        let now = core.clock.now();
        let due = core.schedules.take_due(now, ASKED_AT_ONCE);
        for source in &due {
            let wake = match ask(core, source, now).await {
                Ok(wake) => wake,
                Err(failure) => {
                    tracing::warn!(%source, %failure, "what is due could not begin");
                    Some(now + AGAIN)
                }
            };
            core.schedules.ask_again(source, wake);
        }
        if due.len() < ASKED_AT_ONCE {
            return Ok(());
        }
    }
}

/// Begins what is due for a source; says when to ask again.
async fn ask(core: &Arc<Core>, source: &SourceName, now: Timestamp) -> Result<Option<Timestamp>, Failure> {
    let Some(entry) = core.schedules.entry(source) else { return Ok(None) };
    let is_busy = core.runs.is_backed_up_now(source);
    let due = core.schedules.due(source, &entry, is_busy, now).await?;
    for skipped in &due.skipped {
        tracing::info!(%source, snapshot_type = %skipped.snapshot_type, first = %skipped.first,
            last = %skipped.last, reason = %skipped.reason, "slots yield no run");
    }
    let Some(slot) = due.run else {
        if !due.skipped.is_empty() {
            note_skipped(core, source, &entry, &due).await?;
        }
        return Ok(due.wake);
    };
    match begin(core, source, &entry, &due, slot, now).await {
        Ok(()) => Ok(due.wake),
        // A run that somebody asked for came first; its end wakes us.
        Err(failure) if failure.code == ErrorCode::RunAlreadyActive => Ok(None),
        Err(failure) => Err(failure),
    }
}

async fn note_skipped(
    core: &Arc<Core>,
    source: &SourceName,
    entry: &Entry,
    due: &Due,
) -> Result<(), Failure> {
    let batch = Batch::new(actor(entry), "slot.skip", format!("source/{source}"));
    let (batch, settled) = core.schedules.settle(batch, source, entry, due);
    let version = core.records.commit(batch).await?;
    core.schedules.settled(source, settled, version, None);
    Ok(())
}

/// Stores the runs of a slot, one for each repository of the source, in one commit with the slot.
async fn begin(
    core: &Arc<Core>,
    source: &SourceName,
    entry: &Entry,
    due: &Due,
    slot: Slot,
    now: Timestamp,
) -> Result<(), Failure> {
    let batch = Batch::new(actor(entry), "slot.begin", format!("source/{source}"));
    let (batch, mut settled) = core.schedules.settle(batch, source, entry, due);
    let new = match runs_of(core, source, entry, slot) {
        Ok(new) => new,
        Err(failure) => {
            settled.state.note_missed(slot.at, failure.to_string());
            return note_skipped(core, source, &settled, &Due::default()).await;
        }
    };
    fail_point::hit("controller-before-slot");
    let (_, version) = core.runs.queue(new, batch, |batch, _| batch).await?;
    fail_point::hit("controller-after-slot");
    let lag = now.as_millisecond() - slot.begins.as_millisecond();
    core.schedules.settled(source, settled, version, Some(lag));
    Ok(())
}

fn runs_of(core: &Core, source: &SourceName, entry: &Entry, slot: Slot) -> Result<Vec<NewRun>, Failure> {
    let definition = core.definitions.source(source)?;
    let repositories = core.definitions.repositories_of(source, &definition)?;
    let slot_id = SlotId {
        policy: entry.state.policy.clone(),
        source: source.clone(),
        snapshot_type: slot.snapshot_type,
        at: slot.at,
    };
    let run = |repository| NewRun {
        spec: RunSpec::Backup {
            source: source.clone(),
            repository,
            snapshot_type: slot.snapshot_type,
            milestone: None,
        },
        agent: Some(definition.agent.clone()),
        requested_by: actor(entry),
        traceparent: None,
        retry_of: None,
        slot: Some(slot_id.clone()),
    };
    Ok(repositories.into_iter().map(run).collect())
}

fn actor(entry: &Entry) -> String {
    format!("policy:{}", entry.state.policy)
}
