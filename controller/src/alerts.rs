//! Judges what is wrong, and decides who is told. A reconciler: each pass looks at the world again.
//!
//! An alert and the messages that tell of it are stored in one commit: whatever restarts happen, nobody is told twice, and
//! nobody is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::Failure;
use holdfast_model::alert::book::Head;
use holdfast_model::alert::{Alert, AlertState, Book, Config, Message, Route, Silence, step};
use holdfast_model::fleet::Fleet;
use holdfast_model::ids::ChannelName;
use tokio::sync::{Mutex, MutexGuard, Notify};

use crate::core::Core;
use crate::notify::liveness::Part;
use crate::records::{Batch, Records};
use crate::store::record::BATCH_BYTES_MAX;
use crate::store::{Expect, Kind};

mod rules;
#[cfg(test)]
mod tests;
mod words;

/// The shortest time between two passes, and the longest.
const PERIOD: Duration = Duration::from_secs(1);
const PERIOD_MAX: Duration = Duration::from_secs(60);

/// A pass takes at most this share of the time: the more there is to look at, the more seldom it is.
const REST_FACTOR: u32 = 10;

/// How often the time that somebody was looking is stored while something is wrong, in seconds.
const TIME_STORED_EVERY: i64 = 60;

/// How much of what follows from a pass is stored at a time, in bytes: less than a commit takes by more than the messages
/// are that tell of the same alerts.
const COMMIT_BYTES: usize = BATCH_BYTES_MAX / 4;

/// The alerts as they are stored.
pub struct Alerts {
    records: Records,
    inner: Mutex<Inner>,
    changed: Notify,
}

struct Inner {
    book: Book,
    /// The seconds of the book as they are stored.
    stored_seconds: i64,
}

/// A change of the book by hand: it is made as a whole, or not at all.
pub struct Change<'a> {
    alerts: &'a Alerts,
    inner: MutexGuard<'a, Inner>,
    /// The book as it will be.
    pub book: Book,
}

impl Alerts {
    /// Loads what is stored.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn load(records: Records) -> Result<Self, Failure> {
        let mut book = Book::default();
        for found in records.all::<Alert>(Kind::Alert, "alert/").await? {
            book.alerts.insert(found.value.id, found.value);
        }
        for found in records.all::<Silence>(Kind::Alert, "silence/").await? {
            if let Ok(id) = u64::from_str_radix(found.key.trim_start_matches("silence/"), 16) {
                book.silences.insert(id, found.value);
            }
        }
        if let Some(head) = records.get::<Head>(Kind::Alert, "head").await? {
            book.head = head.value;
        }
        let inner = Mutex::new(Inner { stored_seconds: book.head.seconds, book });
        Ok(Self { records, inner, changed: Notify::new() })
    }

    /// The book now.
    pub async fn book(&self) -> Book {
        self.inner.lock().await.book.clone()
    }

    /// Begins a change by hand; nothing else changes the book meanwhile.
    pub async fn change(&self) -> Change<'_> {
        let inner = self.inner.lock().await;
        let book = inner.book.clone();
        Change { alerts: self, inner, book }
    }
}

impl Change<'_> {
    /// Stores the change with what else is in the batch.
    ///
    /// # Errors
    /// When the state can not be written: then nothing has changed.
    pub async fn commit(mut self, batch: Batch) -> Result<(), Failure> {
        let mut batch = store_silences(&self.inner.book, &self.book, batch);
        for id in changed_alerts(&self.inner.book, &self.book) {
            batch = store_alert(&self.book, id, batch);
        }
        let batch = batch.put(Kind::Alert, "head", &self.book.head, Expect::Any);
        self.alerts.records.commit(batch).await?;
        self.inner.stored_seconds = self.book.head.seconds;
        self.inner.book = self.book;
        self.alerts.changed.notify_one();
        Ok(())
    }
}

/// Runs until the controller stops.
pub async fn run(core: Arc<Core>) {
    let stop = core.tasks.token().clone();
    let mut took_before = Duration::ZERO;
    loop {
        let changed = core.alerts.changed.notified();
        let begun = core.clock.monotonic();
        match stop.run_until_cancelled(pass(&core)).await {
            None => return,
            Some(Ok(())) => core.liveness.beat(Part::Alerts),
            Some(Err(failure)) => tracing::error!(%failure, "the alerts could not be judged"),
        }
        let took = core.clock.monotonic().saturating_duration_since(begun);
        // One that waited for a storage says nothing of the next.
        let effort = took.min(took_before);
        took_before = took;
        tokio::select! {
            () = stop.cancelled() => return,
            () = changed => {}
            () = core.clock.sleep((effort * REST_FACTOR).clamp(PERIOD, PERIOD_MAX)) => {}
        }
    }
}

/// Looks at the world once, and stores what follows.
///
/// # Errors
/// When the state can not be read or written: then nothing has happened.
pub async fn pass(core: &Arc<Core>) -> Result<(), Failure> {
    let declared = core.definitions.current();
    let before = core.alerts.book().await;
    let seen = rules::see(core, &declared.fleet, &before).await?;
    let config = config(&declared.fleet);
    let now = core.clock.now();
    let mut inner = core.alerts.inner.lock().await;
    let (book, messages) = step(inner.book.clone(), &seen, now, &config);
    store(core, &mut inner, book, messages).await
}

/// Stores what follows from a pass, in as many commits as it takes: there may be more to say than one can hold. An alert
/// and what tells of it are in one; the counters are in the first, so that no number is given twice whatever happens.
async fn store(
    core: &Arc<Core>,
    inner: &mut Inner,
    book: Book,
    messages: Vec<Message>,
) -> Result<(), Failure> {
    let mut changed = changed_alerts(&inner.book, &book);
    let is_timing = book.active().next().is_some();
    let is_time = is_timing && book.head.seconds - inner.stored_seconds >= TIME_STORED_EVERY;
    let is_same = changed.is_empty() && messages.is_empty() && book.silences == inner.book.silences;
    if !is_same || is_time {
        let mut portion = Portion::new(messages.first());
        portion.batch = store_silences(&inner.book, &book, portion.batch);
        portion.batch = portion.batch.put(Kind::Alert, "head", &book.head, Expect::Any);
        for unit in together(messages) {
            portion = portion.commit_when_large(core, inner, &book).await?;
            let told = unit.iter().flat_map(|message| &message.alerts).map(|told| told.id);
            for id in told.collect::<BTreeSet<u64>>() {
                changed.remove(&id);
                portion = portion.with_alert(&book, id);
            }
            portion.batch = core.outbox.add(portion.batch, &unit);
            portion.messages.extend(unit);
        }
        for id in changed {
            portion = portion.commit_when_large(core, inner, &book).await?;
            portion = portion.with_alert(&book, id);
        }
        portion.commit(core, inner, &book).await?;
    }
    inner.book = book;
    Ok(())
}

/// What is stored in one commit.
struct Portion {
    batch: Batch,
    alerts: Vec<u64>,
    messages: Vec<Message>,
}

impl Portion {
    fn new(first: Option<&Message>) -> Self {
        let target = first.map_or("alerts".to_owned(), |message| format!("message/{}", message.id));
        let batch = Batch::new("controller", "alert.change", target);
        Self { batch, alerts: Vec::new(), messages: Vec::new() }
    }

    fn with_alert(mut self, book: &Book, id: u64) -> Self {
        self.batch = store_alert(book, id, self.batch);
        self.alerts.push(id);
        self
    }

    async fn commit_when_large(self, core: &Core, inner: &mut Inner, book: &Book) -> Result<Self, Failure> {
        if self.batch.bytes() < COMMIT_BYTES {
            return Ok(self);
        }
        self.commit(core, inner, book).await?;
        Ok(Self::new(None))
    }

    /// What is stored is so in memory, too: whatever becomes of the rest, it is not told again.
    async fn commit(self, core: &Core, inner: &mut Inner, book: &Book) -> Result<(), Failure> {
        core.records.commit(self.batch).await?;
        inner.stored_seconds = book.head.seconds;
        inner.book.head = book.head.clone();
        inner.book.silences = book.silences.clone();
        for id in self.alerts {
            match book.alerts.get(&id) {
                Some(alert) => inner.book.alerts.insert(id, alert.clone()),
                None => inner.book.alerts.remove(&id),
            };
        }
        core.outbox.stored(self.messages);
        Ok(())
    }
}

/// The messages by what they tell of: those that have an alert in common are together.
fn together(messages: Vec<Message>) -> Vec<Vec<Message>> {
    let mut units: BTreeMap<usize, Vec<Message>> = BTreeMap::new();
    let mut unit_of: BTreeMap<u64, usize> = BTreeMap::new();
    for (number, message) in messages.into_iter().enumerate() {
        let known: BTreeSet<usize> =
            message.alerts.iter().filter_map(|told| unit_of.get(&told.id).copied()).collect();
        let mut unit: Vec<Message> = known.iter().filter_map(|known| units.remove(known)).flatten().collect();
        unit.push(message);
        let number = known.first().copied().unwrap_or(number);
        for told in unit.iter().flat_map(|message| &message.alerts) {
            unit_of.insert(told.id, number);
        }
        units.insert(number, unit);
    }
    units.into_values().collect()
}

/// The alerts that differ, by more than their words, which change with every minute.
fn changed_alerts(before: &Book, after: &Book) -> BTreeSet<u64> {
    let is_same = |old: &Alert, new: &Alert| {
        let mut reworded = old.clone();
        reworded.text = new.text.clone();
        reworded == *new
    };
    let is_new = |(id, alert): &(&u64, &Alert)| !before.alerts.get(id).is_some_and(|old| is_same(old, alert));
    let put = after.alerts.iter().filter(is_new).map(|(id, _)| *id);
    put.chain(before.alerts.keys().filter(|id| !after.alerts.contains_key(id)).copied()).collect()
}

/// Adds an alert as it is; when it is gone, that.
fn store_alert(book: &Book, id: u64, batch: Batch) -> Batch {
    let key = format!("alert/{id:016x}");
    match book.alerts.get(&id) {
        Some(alert) => batch.put(Kind::Alert, key, alert, Expect::Any),
        None => batch.delete(Kind::Alert, key, Expect::Any),
    }
}

/// Adds the silences that differ.
fn store_silences(before: &Book, after: &Book, mut batch: Batch) -> Batch {
    for (id, silence) in &after.silences {
        if before.silences.get(id) != Some(silence) {
            batch = batch.put(Kind::Alert, format!("silence/{id:016x}"), silence, Expect::Any);
        }
    }
    for id in before.silences.keys().filter(|id| !after.silences.contains_key(id)) {
        batch = batch.delete(Kind::Alert, format!("silence/{id:016x}"), Expect::Any);
    }
    batch
}

/// Who is told of what, as declared; without routes, every channel of what is critical or a warning.
pub fn config(fleet: &Fleet) -> Config {
    let routing = fleet.routing().cloned().unwrap_or_default();
    let all = || -> Vec<ChannelName> {
        let takes = fleet.channels.iter().filter(|(_, channel)| channel.takes_messages());
        takes.map(|(name, _)| name.clone()).collect()
    };
    let routes = if routing.routes.is_empty() { vec![Route::to_all(all())] } else { routing.routes };
    Config { routes, silences: routing.silences }
}

/// How many alerts hold, as `(failing, pending)`.
pub fn counts(book: &Book) -> (usize, usize) {
    let failing = book.active().filter(|alert| alert.state == AlertState::Failing).count();
    (failing, book.active().count() - failing)
}
