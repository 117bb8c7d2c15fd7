//! Reports: what they follow from, and when they are sent by themselves.
//!
//! That a report was sent is stored in the commit that hands it to the outbox: whatever restarts happen, each moment at
//! which one is due yields it at most once, and the newest one that was missed is sent when the controller is back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::alert::{Channel, Message, MessageKind};
use holdfast_model::ids::{ChannelName, ReportName, RepositoryName, SourceName};
use holdfast_model::policy::Zone;
use holdfast_model::report::storage::{SizeHistory, SizeSample};
use holdfast_model::report::{Period, Report, ReportKind, ReportSchedule};
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::fail_point;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::core::Core;
use crate::metrics;
use crate::records::Batch;
use crate::store::{Expect, Kind};

mod facts;
pub mod removals;

/// How often it looks whether a report is due.
const PERIOD: Duration = Duration::from_secs(1);

/// How soon it tries again what failed.
const AGAIN: Duration = Duration::from_secs(10);

/// How far a clock may be set back for what was sent not to be sent again when it comes to that moment once more.
const CLOCK_SET_BACK_MAX: SignedDuration = SignedDuration::from_mins(12);

/// How often it looks whether a size is to be remembered.
const SIZES_PERIOD: Duration = Duration::from_secs(60);

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Which report.
    pub kind: ReportKind,
    /// logs: how many hours it covers.
    pub hours: u32,
    /// logs: only the runs of this source.
    pub source: Option<SourceName>,
    /// The time zone of its days and times.
    pub zone: Zone,
    /// Its end.
    pub until: Timestamp,
}

impl Asked {
    /// What it covers.
    pub fn period(&self) -> Period {
        Period::ending(self.kind, self.hours, self.until, &self.zone)
    }
}

/// Makes a report.
///
/// # Errors
/// When the state can not be read.
pub async fn make(core: &Arc<Core>, asked: &Asked) -> Result<Report, Failure> {
    facts::report(core, asked).await
}

/// The message that carries a report.
pub fn message(id: String, channel: &ChannelName, at: Timestamp, report: Report) -> Message {
    Message {
        id,
        channel: channel.clone(),
        kind: MessageKind::Report,
        at,
        alerts: Vec::new(),
        report: Some(report),
    }
}

/// What has become of the slots of a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Slots {
    /// What its moments follow from: another rule begins anew.
    rule: String,
    /// Since when it is declared like this, or the last slot that was sent.
    after: Timestamp,
}

impl Slots {
    /// Whether the clock was set back by more than a slot may wait for it to come again.
    fn is_of_another_clock(&self, now: Timestamp) -> bool {
        self.after.duration_since(now) > CLOCK_SET_BACK_MAX
    }
}

fn slot_key(name: &ReportName) -> String {
    format!("slot/{name}")
}

/// Runs until the controller stops.
pub async fn run(core: Arc<Core>) {
    let stop = core.tasks.token().clone();
    // Not at once: a repository that was declared a moment ago may not be made yet, and would be known as down.
    let mut sizes_due = core.clock.monotonic() + SIZES_PERIOD;
    loop {
        let definitions_changed = core.definitions.changed();
        let mut wait = PERIOD;
        if let Err(failure) = send_due(&core).await {
            tracing::error!(%failure, "a report that is due could not be made");
            wait = AGAIN;
        }
        if core.clock.monotonic() >= sizes_due {
            sizes_due = core.clock.monotonic() + SIZES_PERIOD;
            if let Err(failure) = remember_sizes(&core).await {
                tracing::warn!(%failure, "the sizes of the repositories could not be remembered");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = definitions_changed => {}
            () = core.clock.sleep(wait) => {}
        }
    }
}

/// Sends what is due now.
async fn send_due(core: &Arc<Core>) -> Result<(), Failure> {
    let declared = core.definitions.current();
    let known: BTreeMap<String, (Slots, u64)> = core
        .records
        .all::<Slots>(Kind::Report, "slot/")
        .await?
        .into_iter()
        .map(|found| (found.key, (found.value, found.version)))
        .collect();
    let mut failed = None;
    for (name, schedule) in &declared.fleet.reports {
        let now = core.clock.now();
        match known.get(&slot_key(name)) {
            Some((slots, version)) if slots.rule == schedule.rule() && !slots.is_of_another_clock(now) => {
                if let Some(slot) = schedule.due(slots.after, now)
                    && let Err(failure) = send(core, name, schedule, slot, *version).await
                {
                    failed = Some(failure.because(format!("report {name} of {slot}")));
                }
            }
            other => {
                let slots = Slots { rule: schedule.rule(), after: now };
                let expect = other.map_or(Expect::Absent, |(_, version)| Expect::Version(*version));
                let batch = Batch::new("controller", "report.begin", format!("report/{name}"));
                core.records.commit(batch.put(Kind::Report, slot_key(name), &slots, expect)).await?;
            }
        }
    }
    let is_declared = |key: &str| {
        let name = key.trim_start_matches("slot/").parse::<ReportName>();
        name.is_ok_and(|name| declared.fleet.reports.contains_key(&name))
    };
    for key in known.keys().filter(|key| !is_declared(key)) {
        let batch = Batch::new("controller", "report.end", key.replace("slot/", "report/"));
        core.records.commit(batch.delete(Kind::Report, key.clone(), Expect::Any)).await?;
    }
    failed.map_or(Ok(()), Err)
}

/// Hands the report of a slot to the outbox, in one commit with the slot.
async fn send(
    core: &Arc<Core>,
    name: &ReportName,
    schedule: &ReportSchedule,
    slot: Timestamp,
    version: u64,
) -> Result<(), Failure> {
    let asked = Asked {
        kind: schedule.report,
        hours: schedule.hours(),
        source: schedule.source.clone(),
        zone: schedule.timezone.clone(),
        until: slot,
    };
    let report = make(core, &asked).await?;
    let slots = Slots { rule: schedule.rule(), after: slot };
    hand_over(core, name, schedule, &slots, report, version).await
}

/// Hands a report over as a whole or, when that is more than the state takes, without its lists: one that says less is
/// better than one that never comes, and is made again and again.
async fn hand_over(
    core: &Arc<Core>,
    name: &ReportName,
    schedule: &ReportSchedule,
    slots: &Slots,
    report: Report,
    version: u64,
) -> Result<(), Failure> {
    match store(core, name, schedule, slots, report.clone(), version).await {
        Err(failure) if failure.code == ErrorCode::RecordTooLarge => {
            tracing::warn!(report = %name, slot = %slots.after, %failure, "the lists of the report are left out");
            store(core, name, schedule, slots, report.without_lists(), version).await
        }
        other => other,
    }
}

async fn store(
    core: &Arc<Core>,
    name: &ReportName,
    schedule: &ReportSchedule,
    slots: &Slots,
    report: Report,
    version: u64,
) -> Result<(), Failure> {
    let now = core.clock.now();
    let channels = core.definitions.current();
    let is_there = |to: &&ChannelName| channels.fleet.channels.get(*to).is_some_and(Channel::takes_messages);
    let to: BTreeSet<&ChannelName> = schedule.to.iter().filter(is_there).collect();
    let messages: Vec<Message> = to
        .into_iter()
        .map(|to| {
            let id = format!("report-{name}-{:x}-{to}", slots.after.as_second());
            message(id, to, now, report.clone())
        })
        .collect();
    let batch = Batch::new("controller", "report.send", format!("report/{name} of {}", slots.after));
    let batch = batch.put(Kind::Report, slot_key(name), slots, Expect::Version(version));
    fail_point::hit("controller-before-report");
    core.records.commit(core.outbox.add(batch, &messages)).await?;
    fail_point::hit("controller-after-report");
    core.outbox.stored(messages);
    Ok(())
}

fn size_key(name: &RepositoryName) -> String {
    format!("size/{name}")
}

/// The sizes of a repository that are remembered.
///
/// # Errors
/// When the state can not be read.
async fn sizes(core: &Core, name: &RepositoryName) -> Result<SizeHistory, Failure> {
    let found = core.records.get::<SizeHistory>(Kind::Report, &size_key(name)).await?;
    Ok(found.map(|found| found.value).unwrap_or_default())
}

/// Remembers the sizes of repositories that were last looked at a while ago.
async fn remember_sizes(core: &Arc<Core>) -> Result<(), Failure> {
    let declared = core.definitions.current();
    let mut due = Vec::new();
    for name in declared.fleet.repositories.keys() {
        let history = sizes(core, name).await?;
        if history.is_due(core.clock.now()) {
            due.push((name, history));
        }
    }
    if due.is_empty() {
        return Ok(());
    }
    let families = metrics::collect(core).await?;
    for (name, mut history) in due {
        let stored = facts::of_repository(&families, "holdfast_repository_stored_bytes", name);
        let Some(stored_bytes) = stored.map(facts::whole) else { continue };
        history.add(SizeSample { at: core.clock.now(), stored_bytes });
        let batch = Batch::new("controller", "repository.measure", format!("repository/{name}"));
        core.records.commit(batch.put(Kind::Report, size_key(name), &history, Expect::Any)).await?;
    }
    Ok(())
}

/// The failure of a channel that takes no messages.
pub fn no_messages(name: &ChannelName) -> Failure {
    Failure::new(ErrorCode::UsageInvalid, format!("channel {name} gives signs of life only"))
        .then("holdfast notify list")
}

#[cfg(test)]
mod tests;
