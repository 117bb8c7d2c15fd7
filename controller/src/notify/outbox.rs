//! What is still to be delivered, and what has become of the rest. Durable: a message is stored in the commit that stores
//! why it is sent, and taken out in the commit that stores how it went.
//!
//! Messages of one channel go out in the order in which they were written. One that the receiver does not take stands
//! back; one that does not reach it holds up those behind it, so that nobody hears of the end before the beginning.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_model::Failure;
use holdfast_model::alert::channel::ChannelType;
use holdfast_model::alert::render::render;
use holdfast_model::alert::{Channel, Message, Way};
use holdfast_model::ids::ChannelName;
use holdfast_runtime::{BackoffPolicy, OnEnd};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use self::pings::{Ping, ping};
use super::bucket::Bucket;
use super::{DeliveryError, Notifier};
use crate::core::Core;
use crate::records::{Batch, Records};
use crate::store::{Expect, Kind};

mod pings;

pub use self::pings::unwell;

/// How often it looks without being woken.
const PERIOD: Duration = Duration::from_secs(1);

/// When delivery is tried again.
const AGAIN: BackoffPolicy = BackoffPolicy {
    initial: Duration::from_secs(1),
    max: Duration::from_secs(600),
    factor: 2.0,
    jitter: 0.2,
};

/// The longest that it takes until then.
const AGAIN_MAX: SignedDuration = SignedDuration::from_mins(12);

/// How long a channel that said that it was too much is left alone.
const THROTTLED: Duration = Duration::from_secs(600);

/// After this time a message is given up.
const KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Entries of the history that are kept.
pub const HISTORY_MAX: usize = 1000;

/// Messages that become one where a channel takes few.
const MERGED_MAX: usize = 20;

/// A message that waits, as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// The message.
    pub message: Message,
    /// How often delivery was tried.
    pub attempts: u32,
    /// When it is tried again.
    pub not_before: Timestamp,
    /// Whether the receiver did not take it, and others may go first.
    #[serde(default)]
    pub refused: bool,
    /// Since when it could not be delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<Timestamp>,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

impl Waiting {
    /// A message that was not tried yet.
    pub fn new(message: Message) -> Self {
        Self {
            message,
            attempts: 0,
            not_before: Timestamp::UNIX_EPOCH,
            refused: false,
            failing_since: None,
            last_error: None,
        }
    }

    /// Whether it is tried now. A moment that is further away than any that is set was set by a clock that went wrong.
    fn is_due(&self, now: Timestamp) -> bool {
        self.not_before <= now || self.not_before.duration_since(now) > AGAIN_MAX
    }
}

/// What has become of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It arrived.
    Delivered,
    /// It did not; it is tried again.
    Failed,
    /// It did not, for so long that nobody would care.
    GivenUp,
    /// Its channel is not declared any more.
    Dropped,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Outcome; 4] = [Outcome::Delivered, Outcome::Failed, Outcome::GivenUp, Outcome::Dropped];

    /// The word used in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Delivered => "delivered",
            Outcome::Failed => "failed",
            Outcome::GivenUp => "given_up",
            Outcome::Dropped => "dropped",
        }
    }
}

/// An entry of the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// When.
    pub at: Timestamp,
    /// By which channel.
    pub channel: ChannelName,
    /// Which message.
    pub message: String,
    /// Why it was sent.
    pub event: String,
    /// Its title.
    pub title: String,
    /// What has become of it.
    pub outcome: Outcome,
    /// What was answered, or what went wrong.
    pub answer: String,
    /// How often it was tried.
    pub attempts: u32,
}

/// How a channel does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChannelState {
    /// Messages that wait.
    pub waiting: usize,
    /// Since when it does not deliver.
    pub failing_since: Option<Timestamp>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When it last delivered something, since the start of the controller.
    pub delivered_at: Option<Timestamp>,
}

#[derive(Default)]
struct Inner {
    waiting: BTreeMap<ChannelName, BTreeMap<String, Waiting>>,
    history: VecDeque<String>,
    number: u64,
    busy: HashSet<ChannelName>,
    buckets: HashMap<ChannelName, Bucket>,
    delivered: HashMap<ChannelName, Timestamp>,
    totals: BTreeMap<ChannelName, Totals>,
    pings: HashMap<ChannelName, Ping>,
}

/// How many messages of a channel ended so, or were tried in vain.
pub type Totals = BTreeMap<Outcome, u64>;

const TOTALS: &str = "messages/";

/// What is to be delivered.
pub struct Outbox {
    records: Records,
    inner: Mutex<Inner>,
    changed: Notify,
}

fn key(message: &Message) -> String {
    format!("{}/{}", message.channel, message.id)
}

impl Outbox {
    /// Loads what waits.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn load(records: Records) -> Result<Self, Failure> {
        let mut inner = Inner::default();
        for found in records.all::<Waiting>(Kind::Outbox, "").await? {
            // After a start everything is tried at once: it may have been our own network.
            inner.enter(Waiting { not_before: Timestamp::UNIX_EPOCH, ..found.value });
        }
        let history = records.all::<Delivery>(Kind::Delivery, "").await?;
        inner.history = history.into_iter().map(|found| found.key).collect();
        for found in records.all::<Totals>(Kind::Report, TOTALS).await? {
            if let Ok(channel) = found.key.trim_start_matches(TOTALS).parse() {
                inner.totals.insert(channel, found.value);
            }
        }
        Ok(Self { records, inner: Mutex::new(inner), changed: Notify::new() })
    }

    /// Adds messages to the batch that stores why they are sent. Tell [`Outbox::stored`] once it is committed.
    #[must_use]
    pub fn add(&self, mut batch: Batch, messages: &[Message]) -> Batch {
        for message in messages {
            let waiting = Waiting::new(message.clone());
            batch = batch.put(Kind::Outbox, key(message), &waiting, Expect::Absent);
        }
        batch
    }

    /// The messages are durable: they may go out.
    pub fn stored(&self, messages: Vec<Message>) {
        let mut inner = self.inner.lock();
        messages.into_iter().for_each(|message| inner.enter(Waiting::new(message)));
        drop(inner);
        self.changed.notify_one();
    }

    /// What goes out next by a channel: nothing, one message, or as many as make one text.
    fn next(
        &self,
        name: &ChannelName,
        channel: &Channel,
        notifier: &Notifier,
        now: Timestamp,
        moment: Instant,
    ) -> Vec<Waiting> {
        let mut due = self.inner.lock().next(name, channel.channel_type(), now, moment);
        due.truncate(notifier.fitting(channel, due.iter().map(|waiting| &waiting.message)));
        due
    }

    /// How each channel does that has something to tell.
    pub fn states(&self) -> BTreeMap<ChannelName, ChannelState> {
        let inner = self.inner.lock();
        let mut states: BTreeMap<ChannelName, ChannelState> = BTreeMap::new();
        for (name, waiting) in &inner.waiting {
            let state = states.entry(name.clone()).or_default();
            state.waiting = waiting.len();
            state.failing_since = waiting.values().filter_map(|waiting| waiting.failing_since).min();
            state.last_error = waiting.values().find_map(|waiting| waiting.last_error.clone());
        }
        for (name, ping) in &inner.pings {
            let state = states.entry(name.clone()).or_default();
            state.failing_since = state.failing_since.or(ping.failing_since);
            state.last_error = state.last_error.take().or_else(|| ping.last_error.clone());
        }
        for (name, at) in &inner.delivered {
            states.entry(name.clone()).or_default().delivered_at = Some(*at);
        }
        states
    }

    /// The newest entries of the history, newest first; of one channel or of all.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn history(
        &self,
        channel: Option<&ChannelName>,
        limit: usize,
    ) -> Result<Vec<Delivery>, Failure> {
        let all = self.records.all::<Delivery>(Kind::Delivery, "").await?;
        let wanted = |delivery: &Delivery| channel.is_none_or(|name| *name == delivery.channel);
        Ok(all.into_iter().rev().map(|found| found.value).filter(wanted).take(limit).collect())
    }

    /// What became of the messages of each channel that ever had one.
    pub fn totals(&self) -> BTreeMap<ChannelName, Totals> {
        self.inner.lock().totals.clone()
    }

    /// Adds to the batch that stores what became of a message what counts it.
    fn count(&self, batch: Batch, channel: &ChannelName, outcome: Outcome) -> Batch {
        let mut inner = self.inner.lock();
        let totals = inner.totals.entry(channel.clone()).or_default();
        *totals.entry(outcome).or_default() += 1;
        batch.put(Kind::Report, format!("{TOTALS}{channel}"), totals, Expect::Any)
    }

    /// Stores an entry of the history beside what it speaks of, and removes the oldest.
    fn note(&self, mut batch: Batch, delivery: &Delivery) -> Batch {
        let mut inner = self.inner.lock();
        inner.number += 1;
        let key = format!("{:012x}-{:08x}", delivery.at.as_millisecond(), inner.number);
        batch = batch.put(Kind::Delivery, key.clone(), delivery, Expect::Any);
        inner.history.push_back(key);
        while inner.history.len() > HISTORY_MAX {
            if let Some(oldest) = inner.history.pop_front() {
                batch = batch.delete(Kind::Delivery, oldest, Expect::Any);
            }
        }
        batch
    }

    /// Stores how a delivery by hand went.
    ///
    /// # Errors
    /// When the state can not be written.
    pub async fn note_test(&self, actor: &str, delivery: &Delivery) -> Result<(), Failure> {
        let batch = Batch::new(actor, "notify.test", format!("channel/{}", delivery.channel));
        let batch = self.count(batch, &delivery.channel, delivery.outcome);
        self.records.commit(self.note(batch, delivery)).await.map(|_| ())
    }
}

impl Inner {
    fn enter(&mut self, waiting: Waiting) {
        let channel = waiting.message.channel.clone();
        self.waiting.entry(channel).or_default().insert(waiting.message.id.clone(), waiting);
    }

    fn remove(&mut self, channel: &ChannelName, id: &str) {
        if let Some(waiting) = self.waiting.get_mut(channel) {
            waiting.remove(id);
            if waiting.is_empty() {
                self.waiting.remove(channel);
            }
        }
    }

    /// What is due by a channel: nothing, one message, or several where they may become one text.
    fn next(&mut self, name: &ChannelName, of: ChannelType, now: Timestamp, moment: Instant) -> Vec<Waiting> {
        let Some(waiting) = self.waiting.get(name) else { return Vec::new() };
        let mut due = Vec::new();
        for one in waiting.values() {
            if one.is_due(now) {
                due.push(one.clone());
            } else if !one.refused {
                break;
            }
            if due.len() == MERGED_MAX {
                break;
            }
        }
        let bucket = self.buckets.entry(name.clone()).or_insert_with(|| Bucket::new(of, moment));
        let available = bucket.available(moment);
        if due.is_empty() || available == 0 {
            return Vec::new();
        }
        bucket.take(moment);
        if of != ChannelType::Dingtalk || due.len() <= available {
            due.truncate(1);
        }
        due
    }
}

/// Runs until the controller stops.
pub async fn run(core: Arc<Core>) {
    let stop = core.tasks.token().clone();
    loop {
        let changed = core.outbox.changed.notified();
        pass(&core).await;
        tokio::select! {
            () = stop.cancelled() => return,
            () = changed => {}
            () = core.clock.sleep(PERIOD) => {}
        }
    }
}

/// Begins what is due by every channel that is not busy.
async fn pass(core: &Arc<Core>) {
    let channels = core.definitions.current().fleet.channels.clone();
    let idle: Vec<ChannelName> = {
        let mut inner = core.outbox.inner.lock();
        inner.pings.retain(|name, _| channels.contains_key(name));
        inner.waiting.keys().filter(|name| !inner.busy.contains(*name)).cloned().collect()
    };
    for name in idle {
        match channels.get(&name) {
            Some(channel) => spawn(core, name, channel.clone()),
            None => {
                if let Err(failure) = drop_all(core, &name).await {
                    tracing::error!(channel = %name, %failure, "what waits could not be removed");
                }
            }
        }
    }
    for (name, channel) in channels {
        if let Way::Ping { every, .. } = &channel.way {
            let every = Duration::from_secs(every.secs().unsigned_abs());
            ping(core, name, channel, every);
        }
    }
}

fn spawn(core: &Arc<Core>, name: ChannelName, channel: Channel) {
    let turn = Turn::take(core, &name);
    let owner = core.clone();
    core.tasks.spawn(format!("notify {name}"), OnEnd::Isolated, async move {
        let _turn = turn;
        // What is on its way is not broken off: nobody could tell whether it arrived.
        if let Err(failure) = deliver_all(&owner, &name, &channel).await {
            tracing::error!(channel = %name, %failure, "how a delivery went could not be stored");
        }
    });
}

/// One task at a time delivers by a channel; however it ends, another may go on.
struct Turn {
    core: Arc<Core>,
    channel: ChannelName,
}

impl Turn {
    fn take(core: &Arc<Core>, channel: &ChannelName) -> Self {
        core.outbox.inner.lock().busy.insert(channel.clone());
        Self { core: core.clone(), channel: channel.clone() }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.core.outbox.inner.lock().busy.remove(&self.channel);
    }
}

/// Delivers what is due by one channel, until nothing is or one does not arrive.
async fn deliver_all(core: &Arc<Core>, name: &ChannelName, channel: &Channel) -> Result<(), Failure> {
    loop {
        let (now, moment) = (core.clock.now(), core.clock.monotonic());
        let due = core.outbox.next(name, channel, &core.notifier, now, moment);
        if due.is_empty() || core.tasks.token().is_cancelled() {
            return Ok(());
        }
        let messages: Vec<Message> = due.iter().map(|waiting| waiting.message.clone()).collect();
        let result = core.notifier.deliver(channel, &messages).await;
        if let Err(DeliveryError::Throttled(_)) = &result
            && let Some(bucket) = core.outbox.inner.lock().buckets.get_mut(name)
        {
            bucket.empty_for(moment, THROTTLED);
        }
        let goes_on = matches!(result, Ok(_) | Err(DeliveryError::Refused(_)));
        settle(core, channel, due, result).await?;
        if !goes_on {
            return Ok(());
        }
    }
}

/// Stores how it went, and makes that known.
async fn settle(
    core: &Arc<Core>,
    channel: &Channel,
    due: Vec<Waiting>,
    result: Result<String, DeliveryError>,
) -> Result<(), Failure> {
    let outbox = &core.outbox;
    let now = core.clock.now();
    let Some(first) = due.first() else { return Ok(()) };
    let name = first.message.channel.clone();
    let action = if result.is_ok() { "notify.deliver" } else { "notify.fail" };
    let mut batch = Batch::new("controller", action, format!("channel/{name}"));
    let mut kept: Vec<Waiting> = Vec::new();
    for waiting in &due {
        let mut delivery = Delivery {
            at: now,
            channel: name.clone(),
            message: waiting.message.id.clone(),
            event: waiting.message.kind.as_str().to_owned(),
            title: render(&waiting.message, channel.language, &core.notifier.environment()).title,
            outcome: Outcome::Delivered,
            answer: String::new(),
            attempts: waiting.attempts + 1,
        };
        match &result {
            Ok(answer) => {
                delivery.answer = answer.clone();
                batch = outbox.count(batch, &name, delivery.outcome);
                batch =
                    outbox.note(batch.delete(Kind::Outbox, key(&waiting.message), Expect::Any), &delivery);
            }
            Err(error) => {
                let again = after_failure(waiting, error, now);
                delivery.answer = error.text().to_owned();
                delivery.outcome = if again.is_some() { Outcome::Failed } else { Outcome::GivenUp };
                batch = outbox.count(batch, &name, delivery.outcome);
                // The same again and again would push everything else out of the history.
                if again.is_none() || waiting.last_error.as_deref() != Some(error.text()) {
                    batch = outbox.note(batch, &delivery);
                }
                batch = match &again {
                    Some(again) => batch.put(Kind::Outbox, key(&again.message), again, Expect::Any),
                    None => batch.delete(Kind::Outbox, key(&waiting.message), Expect::Any),
                };
                kept.extend(again);
            }
        }
    }
    core.records.commit(batch).await?;
    if let Err(error) = &result {
        tracing::warn!(channel = %name, error = error.text(), attempt = first.attempts + 1, "not delivered");
    }
    let mut inner = outbox.inner.lock();
    due.iter().for_each(|waiting| inner.remove(&name, &waiting.message.id));
    kept.into_iter().for_each(|waiting| inner.enter(waiting));
    if result.is_ok() {
        inner.delivered.insert(name, now);
    }
    Ok(())
}

/// The message as it waits for the next attempt; none when it has waited for too long.
fn after_failure(waiting: &Waiting, error: &DeliveryError, now: Timestamp) -> Option<Waiting> {
    if now.duration_since(waiting.message.at) > KEPT {
        return None;
    }
    let attempts = waiting.attempts.saturating_add(1);
    let delay = AGAIN.delay(attempts, rand::random());
    let delay = SignedDuration::try_from(delay).unwrap_or(SignedDuration::from_mins(10));
    Some(Waiting {
        message: waiting.message.clone(),
        attempts,
        not_before: now + delay,
        refused: matches!(error, DeliveryError::Refused(_)),
        failing_since: waiting.failing_since.or(Some(now)),
        last_error: Some(error.text().to_owned()),
    })
}

/// A channel that is not declared any more takes nothing.
async fn drop_all(core: &Arc<Core>, name: &ChannelName) -> Result<(), Failure> {
    let waiting: Vec<Waiting> = core
        .outbox
        .inner
        .lock()
        .waiting
        .get(name)
        .map(|waiting| waiting.values().cloned().collect())
        .unwrap_or_default();
    for waiting in waiting {
        let delivery = Delivery {
            at: core.clock.now(),
            channel: name.clone(),
            message: waiting.message.id.clone(),
            event: waiting.message.kind.as_str().to_owned(),
            title: render(&waiting.message, Default::default(), &core.notifier.environment()).title,
            outcome: Outcome::Dropped,
            answer: "the channel is not declared any more".to_owned(),
            attempts: waiting.attempts,
        };
        let batch = Batch::new("controller", "notify.drop", format!("channel/{name}"));
        let batch = batch.delete(Kind::Outbox, key(&waiting.message), Expect::Any);
        let batch = core.outbox.count(batch, name, delivery.outcome);
        core.records.commit(core.outbox.note(batch, &delivery)).await?;
        core.outbox.inner.lock().remove(name, &waiting.message.id);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
