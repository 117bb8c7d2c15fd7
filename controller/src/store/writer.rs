//! The one thread that commits.
//!
//! It takes the batches that wait, judges each against the view and those before it in the group, writes all accepted
//! ones with one `fdatasync`, applies them to the view, tells the feed, and only then answers. After the first error
//! of the journal it answers nothing but that error, and tells the process to stop.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, OnceLock};

use holdfast_runtime::{SharedClock, Shutdown, StopCause, fail_point};
use jiff::Timestamp;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::StoreError;
use super::feed::Change;
use super::frame::{self, Frame};
use super::journal::Journal;
use super::record::{Batch, Committed, Kind, Operation, Sequence};
use super::segment::Position;
use super::view::View;

/// Batches that wait for the writer; further callers wait for a place.
pub(super) const QUEUE_BATCHES_MAX: usize = 1_024;
/// One group: batches with one `fdatasync` for all.
const GROUP_BATCHES_MAX: usize = 512;
/// One group is not extended beyond this many bytes.
const GROUP_BYTES: usize = 8 << 20;

/// A batch and where its answer goes.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) batch: Batch,
    pub(super) reply: oneshot::Sender<Result<Committed, StoreError>>,
}

/// What the writer tells all others.
#[derive(Debug)]
pub(super) struct Published {
    /// The last acknowledged commit.
    pub(super) durable: Arc<AtomicU64>,
    /// The first failure; nothing is written after it.
    pub(super) failure: OnceLock<(&'static str, Arc<io::Error>)>,
    pub(super) feed: broadcast::Sender<Arc<Change>>,
}

impl Published {
    pub(super) fn failed(&self) -> Option<StoreError> {
        let (what, source) = self.failure.get()?;
        Some(StoreError::Failed { what, source: source.clone() })
    }
}

/// The writing side of the store.
pub(super) struct Writer {
    pub(super) journal: Journal,
    pub(super) view: View,
    pub(super) published: Arc<Published>,
    pub(super) clock: SharedClock,
    pub(super) shutdown: Shutdown,
    /// Told when a segment is complete.
    pub(super) segment_complete: SyncSender<()>,
}

type Reply = (oneshot::Sender<Result<Committed, StoreError>>, Result<Committed, StoreError>);

impl Writer {
    /// Commits what is submitted until nobody can submit any more.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Submission>) {
        while let Some(first) = queue.blocking_recv() {
            let mut group = vec![first];
            let mut bytes = operations_bytes(&group[0].batch.operations);
            while group.len() < GROUP_BATCHES_MAX
                && bytes < GROUP_BYTES
                && let Ok(next) = queue.try_recv()
            {
                bytes += operations_bytes(&next.batch.operations);
                group.push(next);
            }
            self.commit_group(group);
        }
    }

    fn commit_group(&mut self, group: Vec<Submission>) {
        if self.published.failure.get().is_some() {
            return self.refuse(group.into_iter().map(|submission| submission.reply));
        }
        let now = frame::whole_microseconds(self.clock.now());
        let mut open = OpenGroup::new(self.journal.end(), now);
        let mut replies: Vec<Reply> = Vec::with_capacity(group.len());
        for Submission { batch, reply } in group {
            let outcome = open.judge(&self.view, &batch).map(|()| open.add(batch));
            replies.push((reply, outcome));
        }
        if !open.frames.is_empty()
            && let Err((what, error)) = self.make_durable(&open)
        {
            self.fail(what, error);
            return self.refuse(replies.into_iter().map(|(reply, _)| reply));
        }
        for (reply, outcome) in replies {
            // Whoever no longer waits for the answer does not need it.
            let _ = reply.send(outcome);
        }
    }

    fn make_durable(&mut self, open: &OpenGroup) -> Result<(), (&'static str, io::Error)> {
        let appended = self.journal.append(&open.bytes, open.end, open.now);
        let begun_new = appended.map_err(|error| ("writing the journal", error))?;
        fail_point::hit_io("store-before-apply")
            .map_err(|error| ("applying the journal to its view", error))?;
        self.view
            .apply(open.frames.iter(), open.end)
            .map_err(|error| ("applying the journal to its view", io::Error::other(error)))?;
        self.published.durable.store(open.end.sequence, Ordering::Release);
        for frame in &open.frames {
            // No receiver is no error.
            let _ = self.published.feed.send(Arc::new(Change::from(frame)));
        }
        fail_point::hit("store-before-acknowledge");
        if begun_new {
            // Full means that it will look anyway.
            let _ = self.segment_complete.try_send(());
        }
        Ok(())
    }

    fn fail(&self, what: &'static str, error: io::Error) {
        tracing::error!(%error, "{what} failed: nothing more is written, the process must stop");
        self.shutdown.request(StopCause::Broken(format!("{what} failed: {error}")));
        let _ = self.published.failure.set((what, Arc::new(error)));
    }

    fn refuse(&self, replies: impl Iterator<Item = oneshot::Sender<Result<Committed, StoreError>>>) {
        for reply in replies {
            let _ = reply.send(Err(self.published.failed().unwrap_or(StoreError::Closed)));
        }
    }
}

/// The bytes of the keys and values.
pub(super) fn operations_bytes(operations: &[Operation]) -> usize {
    let bytes = |operation: &Operation| match operation {
        Operation::Put { key, value, .. } => key.len() + value.len(),
        Operation::Delete { key, .. } => key.len(),
    };
    operations.iter().map(bytes).sum()
}

/// A group in the making: accepted frames, encoded, and the versions they would leave.
struct OpenGroup {
    now: Timestamp,
    durable: Sequence,
    end: Position,
    bytes: Vec<u8>,
    frames: Vec<Frame>,
    versions: HashMap<(Kind, String), Option<Sequence>>,
}

impl OpenGroup {
    fn new(end: Position, now: Timestamp) -> Self {
        Self {
            now,
            durable: end.sequence,
            end,
            bytes: Vec::new(),
            frames: Vec::new(),
            versions: HashMap::new(),
        }
    }

    fn judge(&self, view: &View, batch: &Batch) -> Result<(), StoreError> {
        for (kind, key, expected) in &batch.conditions {
            let found = match self.versions.get(&(*kind, key.clone())) {
                Some(found) => *found,
                None => view.version(*kind, key)?,
            };
            if !expected.holds(found) {
                return Err(StoreError::Conflict {
                    kind: *kind,
                    key: key.clone(),
                    expected: *expected,
                    found,
                });
            }
        }
        Ok(())
    }

    fn add(&mut self, batch: Batch) -> Committed {
        let sequence = self.end.sequence + 1;
        for operation in &batch.operations {
            let (kind, key) = operation.target();
            let written = matches!(operation, Operation::Put { .. });
            self.versions.insert((kind, key.to_owned()), written.then_some(sequence));
        }
        let frame = Frame {
            sequence,
            durable: self.durable,
            previous: self.end.hash,
            time: self.now,
            audit: batch.audit,
            operations: batch.operations,
        };
        let hash = frame::encode(&frame, &mut self.bytes);
        self.end = Position { sequence, hash };
        self.frames.push(frame);
        Committed { sequence, time: self.now }
    }
}
