//! The schedules of all sources: what has become of their slots, who is paused, and who is to be asked when.
//!
//! What is in memory is what is stored: a record changes in the same commit as the runs that it speaks of, on condition
//! that it is still the version that was decided upon. So a slot yields at most one set of runs, whoever else decides.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use holdfast_model::Failure;
use holdfast_model::ids::{PolicyName, SourceName};
use holdfast_model::policy::{After, Policy};
use holdfast_model::schedule::{
    Due, Gap, Hold, SkipReason, Slot, SlotHistory, SourceState, Successes, Timetable, WakeQueue,
};
use holdfast_model::units::Span;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use crate::definitions::Declared;
use crate::records::{Batch, Records};
use crate::store::{Expect, Kind};

/// Records stored in one commit when many sources come under a schedule together.
const RECORDS_PER_COMMIT: usize = 500;

/// What has become of the slots of one source, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceSchedule {
    /// The policy that it is under.
    pub policy: PolicyName,
    /// Fingerprint of the rules; when they change, no earlier slot counts.
    rules: String,
    /// Since when it is under this policy.
    pub since: Timestamp,
    /// The slots.
    pub history: SlotHistory,
    /// Slots that yielded no run because it was too late or nothing could begin.
    #[serde(default)]
    pub missed: u64,
    /// The last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_missed: Option<Missed>,
}

/// A slot that yielded no run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// The slot's moment.
    pub at: Timestamp,
    /// Why.
    pub reason: String,
}

/// That no backup of a source begins by itself for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// When it goes on by itself; none until it is resumed.
    pub until: Option<Timestamp>,
    /// Why.
    pub reason: String,
    /// Who paused it.
    pub by: String,
    /// Since when.
    pub at: Timestamp,
}

impl Pause {
    /// Whether it is over by itself.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// The schedule of one source, ready to be asked.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its rules.
    pub timetable: Arc<Timetable>,
    /// The longest time between two runs that the rules allow; none when nothing goes by the clock.
    pub longest_gap: Option<Span>,
    /// What is stored of it.
    pub state: SourceSchedule,
    version: u64,
}

/// The schedules of all sources.
pub struct Schedules {
    records: Records,
    inner: Mutex<Inner>,
    /// Orders what is stored by others than the scheduler: pauses.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    adopted: Option<Arc<Declared>>,
    /// Of the last start, until the definitions are known.
    stored: HashMap<SourceName, (SourceSchedule, u64)>,
    entries: HashMap<SourceName, Entry>,
    followers: HashMap<SourceName, BTreeSet<SourceName>>,
    pauses: BTreeMap<SourceName, Pause>,
    queue: WakeQueue,
    /// How late the run that began last was, in milliseconds.
    lag_millis: i64,
}

impl Schedules {
    /// Loads what is stored.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn load(records: Records) -> Result<Self, Failure> {
        let mut inner = Inner::default();
        for found in records.all::<SourceSchedule>(Kind::Slot, "").await? {
            if let Ok(source) = SourceName::new(found.key) {
                inner.stored.insert(source, (found.value, found.version));
            }
        }
        for found in records.all::<Pause>(Kind::Pause, "").await? {
            if let Ok(source) = SourceName::new(found.key) {
                inner.pauses.insert(source, found.value);
            }
        }
        let inner = Mutex::new(inner);
        Ok(Self { records, inner, turn: tokio::sync::Mutex::default(), changed: Notify::new() })
    }

    /// Completes when somebody paused or resumed. Create it before looking.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + '_ {
        self.changed.notified()
    }

    /// Takes over what is declared, when that has changed: sources that are new under a schedule, or whose rules are
    /// others now, begin at `now`.
    ///
    /// # Errors
    /// When the state can not be written; it is tried again at the next call.
    pub async fn adopt(&self, declared: &Arc<Declared>, now: Timestamp) -> Result<(), Failure> {
        if self.inner.lock().adopted.as_ref().is_some_and(|adopted| Arc::ptr_eq(adopted, declared)) {
            return Ok(());
        }
        let (entries, new, gone) = self.compare(declared, now);
        let mut versions = HashMap::new();
        for part in new.chunks(RECORDS_PER_COMMIT) {
            let mut batch = Batch::new("controller", "schedule.begin", names(part));
            for source in part {
                if let Some(entry) = entries.get(source) {
                    batch = batch.put(Kind::Slot, source.as_str(), &entry.state, Expect::Any);
                }
            }
            let version = self.records.commit(batch).await?;
            versions.extend(part.iter().map(|source| (source.clone(), version)));
        }
        for part in gone.chunks(RECORDS_PER_COMMIT) {
            let mut batch = Batch::new("controller", "schedule.end", names(part));
            for source in part {
                batch = batch.delete(Kind::Slot, source.as_str(), Expect::Any);
            }
            self.records.commit(batch).await?;
        }
        let mut inner = self.inner.lock();
        inner.stored.clear();
        inner.followers.clear();
        for source in &gone {
            inner.queue.remove(source);
        }
        inner.entries = entries;
        for (source, version) in versions {
            if let Some(entry) = inner.entries.get_mut(&source) {
                entry.version = version;
            }
        }
        let Inner { entries, followers, queue, .. } = &mut *inner;
        for (source, entry) in entries.iter() {
            for followed in entry.timetable.follows() {
                let followed = match followed {
                    After::Type(_) => source,
                    After::Source(followed) => followed,
                };
                followers.entry(followed.clone()).or_default().insert(source.clone());
            }
            queue.set(source, Some(now));
        }
        inner.adopted = Some(declared.clone());
        Ok(())
    }

    /// The entries of what is declared, the sources among them whose record is to be stored, and those to be removed.
    fn compare(
        &self,
        declared: &Declared,
        now: Timestamp,
    ) -> (HashMap<SourceName, Entry>, Vec<SourceName>, Vec<SourceName>) {
        let inner = self.inner.lock();
        let known = |source: &SourceName| match inner.entries.get(source) {
            Some(entry) => Some((entry.state.clone(), entry.version)),
            None => inner.stored.get(source).cloned(),
        };
        let fleet = &declared.fleet;
        let timetables: HashMap<&PolicyName, (Arc<Timetable>, Option<Span>, String)> = fleet
            .policies
            .iter()
            .map(|(name, policy)| {
                let timetable = Timetable::new(policy.schedule.clone());
                let longest_gap = match timetable.longest_gap(None) {
                    Gap::Longest(gap) => Some(gap),
                    Gap::NoClock | Gap::Never => None,
                };
                (name, (Arc::new(timetable), longest_gap, rules_of(policy)))
            })
            .collect();
        let mut entries = HashMap::new();
        let mut new = Vec::new();
        for (source, definition) in &fleet.sources {
            let Some(policy) = &definition.policy else { continue };
            let Some((timetable, longest_gap, rules)) = timetables.get(policy) else { continue };
            let (state, version) = match known(source) {
                Some((state, version)) if state.policy == *policy && state.rules == *rules => {
                    (state, version)
                }
                old => {
                    new.push(source.clone());
                    let missed = old.as_ref().map_or(0, |(state, _)| state.missed);
                    let since = old
                        .filter(|(state, _)| state.policy == *policy)
                        .map_or(now, |(state, _)| state.since);
                    let state = SourceSchedule {
                        policy: policy.clone(),
                        rules: rules.clone(),
                        since,
                        history: SlotHistory::since(now),
                        missed,
                        last_missed: None,
                    };
                    (state, 0)
                }
            };
            let (timetable, longest_gap) = (timetable.clone(), *longest_gap);
            entries.insert(source.clone(), Entry { timetable, longest_gap, state, version });
        }
        let before = inner.entries.keys().chain(inner.stored.keys());
        let gone: BTreeSet<&SourceName> = before.filter(|source| !entries.contains_key(*source)).collect();
        (entries, new, gone.into_iter().cloned().collect())
    }

    /// Has sources whose backup ended, and those that follow them, asked again at `now`.
    pub fn wake(&self, ended: &BTreeSet<SourceName>, now: Timestamp) {
        let mut inner = self.inner.lock();
        let Inner { entries, followers, queue, .. } = &mut *inner;
        for source in ended {
            let own = entries.contains_key(source).then_some(source);
            for source in own.into_iter().chain(followers.get(source).into_iter().flatten()) {
                queue.set(source, Some(now));
            }
        }
    }

    /// Takes the sources out that are to be asked at `now`; each is to be [`Schedules::ask_again`].
    pub fn take_due(&self, now: Timestamp, limit: usize) -> Vec<Arc<SourceName>> {
        self.inner.lock().queue.take_due(now, limit)
    }

    /// Says when a source is to be asked next; with none, when something happens to it.
    pub fn ask_again(&self, source: &SourceName, wake: Option<Timestamp>) {
        let mut inner = self.inner.lock();
        if inner.entries.contains_key(source) {
            inner.queue.set(source, wake);
        }
    }

    /// When the next source is to be asked.
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.inner.lock().queue.next_wake()
    }

    /// The schedule of a source, when it is under one.
    pub fn entry(&self, source: &SourceName) -> Option<Entry> {
        self.inner.lock().entries.get(source).cloned()
    }

    /// The pause of a source, unless it is over.
    pub fn pause_of(&self, source: &SourceName, now: Timestamp) -> Option<Pause> {
        self.inner.lock().pauses.get(source).filter(|pause| !pause.is_over(now)).cloned()
    }

    /// How late the run of a slot began that began last, in milliseconds.
    pub fn lag_millis(&self) -> i64 {
        self.inner.lock().lag_millis
    }

    /// The runs that a source will begin by the clock from `now` on if nothing fails, at most `count`. None for a
    /// source under no schedule.
    pub fn upcoming(
        &self,
        source: &SourceName,
        now: Timestamp,
        count: usize,
    ) -> Option<Vec<(Timestamp, Slot)>> {
        let entry = self.entry(source)?;
        let from = match self.pause_of(source, now) {
            Some(Pause { until: None, .. }) => return Some(Vec::new()),
            Some(Pause { until: Some(until), .. }) => until,
            None => now,
        };
        Some(entry.timetable.upcoming(source, &entry.state.history, from, count))
    }

    /// Pauses a source, or changes its pause.
    ///
    /// # Errors
    /// When the state can not be written.
    pub async fn pause(&self, source: &SourceName, pause: Pause) -> Result<(), Failure> {
        let _turn = self.turn.lock().await;
        let batch = Batch::new(&pause.by, "source.pause", format!("source/{source}"));
        self.records.commit(batch.put(Kind::Pause, source.as_str(), &pause, Expect::Any)).await?;
        self.inner.lock().pauses.insert(source.clone(), pause);
        self.changed.notify_waiters();
        Ok(())
    }

    /// Ends the pause of a source; says whether there was one.
    ///
    /// # Errors
    /// When the state can not be written.
    pub async fn resume(&self, source: &SourceName, by: &str, now: Timestamp) -> Result<bool, Failure> {
        let _turn = self.turn.lock().await;
        if !self.inner.lock().pauses.contains_key(source) {
            return Ok(false);
        }
        let batch = Batch::new(by, "source.resume", format!("source/{source}"));
        self.records.commit(batch.delete(Kind::Pause, source.as_str(), Expect::Any)).await?;
        self.inner.lock().pauses.remove(source);
        self.ask_again(source, Some(now));
        self.changed.notify_waiters();
        Ok(true)
    }

    /// Enters what was decided into a batch. [`Schedules::settled`] is to be told when it is stored.
    pub fn settle(&self, batch: Batch, source: &SourceName, entry: &Entry, due: &Due) -> (Batch, Entry) {
        let mut entry = entry.clone();
        entry.timetable.settle(&mut entry.state.history, due);
        for skipped in &due.skipped {
            if matches!(skipped.reason, SkipReason::TooLate | SkipReason::Closed) {
                entry.state.note_missed(skipped.last, skipped.reason.to_string());
            }
        }
        let expect = Expect::Version(entry.version);
        (batch.put(Kind::Slot, source.as_str(), &entry.state, expect), entry)
    }

    /// Says that an entry was stored by this commit.
    pub fn settled(&self, source: &SourceName, mut entry: Entry, version: u64, lag_millis: Option<i64>) {
        entry.version = version;
        let mut inner = self.inner.lock();
        if let Some(known) = inner.entries.get_mut(source) {
            *known = entry;
        }
        if let Some(lag) = lag_millis {
            inner.lag_millis = lag;
        }
    }

    /// What a source is, for its timetable.
    pub async fn due(
        &self,
        source: &SourceName,
        entry: &Entry,
        is_busy: bool,
        now: Timestamp,
    ) -> Result<Due, Failure> {
        let hold = match self.pause_of(source, now) {
            Some(pause) => Some(Hold::Paused { until: pause.until }),
            None => is_busy.then_some(Hold::Busy),
        };
        let mut successes = Successes::default();
        for followed in entry.timetable.follows() {
            match followed {
                After::Type(_) if successes.by_type.is_empty() => {
                    successes.by_type = self.records.last_successes(source).await?;
                }
                After::Type(_) => {}
                After::Source(other) => {
                    let newest = self.records.last_successes(other).await?.into_values().max();
                    successes.by_source.extend(newest.map(|at| (other.clone(), at)));
                }
            }
        }
        let state = SourceState { source, history: &entry.state.history, successes: &successes, hold };
        Ok(entry.timetable.due(state, now))
    }
}

impl SourceSchedule {
    /// Remembers a slot that yielded no run.
    pub fn note_missed(&mut self, at: Timestamp, reason: String) {
        self.missed += 1;
        self.last_missed = Some(Missed { at, reason });
    }
}

/// What a slot's moment follows from. A change of the window, of jitter or of what is caught up is none of the rules.
fn rules_of(policy: &Policy) -> String {
    let rules: Vec<_> = policy
        .schedule
        .by_type()
        .map(|(snapshot_type, when)| {
            let mut when = when.clone();
            when.jitter = None;
            (snapshot_type, when, policy.schedule.timezone.clone())
        })
        .collect();
    let text = serde_json::to_vec(&rules).unwrap_or_default();
    hex::encode(&Sha256::digest(text)[..8])
}

fn names(sources: &[SourceName]) -> String {
    match sources {
        [only] => format!("source/{only}"),
        many => format!("{} sources", many.len()),
    }
}
