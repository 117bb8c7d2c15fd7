//! The feed of changes: every commit in order, from memory while the reader keeps up, else from the journal.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt as _;
use futures::stream::BoxStream;
use holdfast_runtime::{OnEnd, TaskGroup};
use jiff::Timestamp;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::StoreError;
use super::frame::Frame;
use super::journal::{Cursor, Segments};
use super::record::{Kind, Operation, Sequence};

/// Changes that wait in memory for slow readers; older ones are read from the journal.
pub(super) const FEED_CHANGES_MAX: usize = 1_024;
/// Changes read from the journal at a time.
const CATCH_UP_CHANGES: usize = 256;

/// What one commit changed. Values are not carried: whoever is woken reads the world anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The number of the commit.
    pub sequence: Sequence,
    /// When, by the controller's clock.
    pub time: Timestamp,
    /// Which records, in the order of the batch.
    pub changed: Vec<Changed>,
}

/// One record of a [`Change`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Its kind.
    pub kind: Kind,
    /// Its key.
    pub key: String,
    /// Whether it was removed, not written.
    pub removed: bool,
}

impl From<&Frame> for Change {
    fn from(frame: &Frame) -> Self {
        let changed = frame.operations.iter().map(|operation| {
            let (kind, key) = operation.target();
            Changed { kind, key: key.to_owned(), removed: matches!(operation, Operation::Delete { .. }) }
        });
        Self { sequence: frame.sequence, time: frame.time, changed: changed.collect() }
    }
}

impl Change {
    /// Whether a record of this kind was written or removed.
    pub fn touches(&self, kind: Kind) -> bool {
        self.changed.iter().any(|changed| changed.kind == kind)
    }
}

/// Changes in order, without gaps.
pub struct Changes {
    stream: BoxStream<'static, Result<Arc<Change>, StoreError>>,
}

impl Changes {
    /// Wraps the stream of an implementation.
    pub fn new(stream: BoxStream<'static, Result<Arc<Change>, StoreError>>) -> Self {
        Self { stream }
    }

    /// The next change, once there is one; nothing when the store was closed. Cancellation-safe.
    ///
    /// # Errors
    /// The journal cannot be read, or no longer reaches back to where this reader is.
    pub async fn next(&mut self) -> Result<Option<Arc<Change>>, StoreError> {
        self.stream.next().await.transpose()
    }

    /// Waits until something of one of these kinds changes, and says up to which commit was looked; nothing when the
    /// store was closed. Cancellation-safe: what was looked at and did not count is not seen again.
    ///
    /// # Errors
    /// As for [`Changes::next`].
    pub async fn until_touched(&mut self, kinds: &[Kind]) -> Result<Option<Sequence>, StoreError> {
        while let Some(change) = self.next().await? {
            if kinds.iter().any(|&kind| change.touches(kind)) {
                return Ok(Some(change.sequence));
            }
        }
        Ok(None)
    }
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

/// One reader of the embedded store's feed.
pub(super) struct Reader {
    pub(super) receiver: broadcast::Receiver<Arc<Change>>,
    pub(super) durable: Arc<AtomicU64>,
    pub(super) segments: Arc<Segments>,
    pub(super) tasks: TaskGroup,
    /// The last change that was handed out or waits in `behind`.
    pub(super) after: Sequence,
    pub(super) behind: VecDeque<Arc<Change>>,
    pub(super) cursor: Option<Cursor>,
}

impl Reader {
    pub(super) fn into_changes(self) -> Changes {
        let stream = futures::stream::unfold(Some(self), |reader| async {
            let mut reader = reader?;
            match reader.next().await {
                Ok(Some(change)) => Some((Ok(change), Some(reader))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        Changes::new(stream.boxed())
    }

    async fn next(&mut self) -> Result<Option<Arc<Change>>, StoreError> {
        loop {
            if let Some(change) = self.behind.pop_front() {
                return Ok(Some(change));
            }
            // A reader that starts in the past, or fell behind, finds in memory only what is too new.
            let missing = match self.receiver.try_recv() {
                Ok(change) if change.sequence == self.after + 1 => {
                    self.after = change.sequence;
                    self.cursor = None;
                    return Ok(Some(change));
                }
                Ok(change) => change.sequence > self.after,
                Err(broadcast::error::TryRecvError::Lagged(_)) => true,
                Err(_) => self.after < self.durable.load(Ordering::Acquire),
            };
            if missing {
                self.catch_up().await?;
                continue;
            }
            match self.receiver.recv().await {
                Ok(change) if change.sequence == self.after + 1 => {
                    self.after = change.sequence;
                    return Ok(Some(change));
                }
                Ok(_) | Err(RecvError::Lagged(_)) => self.catch_up().await?,
                Err(RecvError::Closed) => return Ok(None),
            }
        }
    }

    async fn catch_up(&mut self) -> Result<(), StoreError> {
        let limit = self.durable.load(Ordering::Acquire);
        if limit <= self.after {
            return Ok(());
        }
        let mut cursor = match self.cursor.take() {
            Some(cursor) => cursor,
            None => Cursor::after(self.segments.clone(), self.after)?,
        };
        let read = move || {
            let mut found = VecDeque::new();
            while found.len() < CATCH_UP_CHANGES
                && let Some((frame, _)) = cursor.next_commit(limit)?
            {
                found.push_back(Arc::new(Change::from(&frame)));
            }
            Ok::<_, StoreError>((found, cursor))
        };
        let read = self.tasks.spawn_blocking("read-journal", OnEnd::Isolated, read).join().await;
        let (found, cursor) = read.map_err(|_| StoreError::Closed)??;
        self.after = found.back().map_or(self.after, |last| last.sequence);
        self.behind = found;
        self.cursor = Some(cursor);
        Ok(())
    }
}
