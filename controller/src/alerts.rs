//! Judges what is wrong, and decides who is told. A reconciler: each pass looks at the world again.
//!
//! The book of alerts and the messages that follow from it are stored in one commit: whatever restarts happen, nobody is
//! told twice, and nobody is left out.

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
use crate::store::{Expect, Kind};

mod rules;
mod words;

/// The shortest time between two passes, and the longest.
const PERIOD: Duration = Duration::from_secs(1);
const PERIOD_MAX: Duration = Duration::from_secs(60);

/// A pass takes at most this share of the time: the more there is to look at, the more seldom it is.
const REST_FACTOR: u32 = 10;

/// How often the time that somebody was looking is stored while something is wrong, in seconds.
const TIME_STORED_EVERY: i64 = 60;

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
        let (batch, _) = store_changes(&self.inner.book, &self.book, batch);
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

async fn store(
    core: &Arc<Core>,
    inner: &mut Inner,
    book: Book,
    messages: Vec<Message>,
) -> Result<(), Failure> {
    let target = messages.first().map_or("alerts".to_owned(), |message| format!("message/{}", message.id));
    let batch = Batch::new("controller", "alert.change", target);
    let (batch, changes) = store_changes(&inner.book, &book, batch);
    let is_timing = book.active().next().is_some();
    let is_time = is_timing && book.head.seconds - inner.stored_seconds >= TIME_STORED_EVERY;
    if changes > 0 || is_time || !messages.is_empty() {
        let batch = batch.put(Kind::Alert, "head", &book.head, Expect::Any);
        core.records.commit(core.outbox.add(batch, &messages)).await?;
        inner.stored_seconds = book.head.seconds;
        core.outbox.stored(messages);
    }
    inner.book = book;
    Ok(())
}

/// Adds what differs; of alerts, more than their words, which change with every minute.
fn store_changes(before: &Book, after: &Book, mut batch: Batch) -> (Batch, usize) {
    let mut changes = 0;
    let is_same = |old: &Alert, new: &Alert| {
        let mut reworded = old.clone();
        reworded.text = new.text.clone();
        reworded == *new
    };
    for (id, alert) in &after.alerts {
        if !before.alerts.get(id).is_some_and(|old| is_same(old, alert)) {
            batch = batch.put(Kind::Alert, format!("alert/{id:016x}"), alert, Expect::Any);
            changes += 1;
        }
    }
    for (id, silence) in &after.silences {
        if before.silences.get(id) != Some(silence) {
            batch = batch.put(Kind::Alert, format!("silence/{id:016x}"), silence, Expect::Any);
            changes += 1;
        }
    }
    for id in before.alerts.keys().filter(|id| !after.alerts.contains_key(id)) {
        batch = batch.delete(Kind::Alert, format!("alert/{id:016x}"), Expect::Any);
        changes += 1;
    }
    for id in before.silences.keys().filter(|id| !after.silences.contains_key(id)) {
        batch = batch.delete(Kind::Alert, format!("silence/{id:016x}"), Expect::Any);
        changes += 1;
    }
    (batch, changes)
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
