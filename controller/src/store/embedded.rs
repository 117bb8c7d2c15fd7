//! The store in one folder of one machine.
//!
//! ```text
//! lock                     held while the store is open
//! journal/N.journal        segments; N is the first commit
//! checkpoints/N.checkpoint all records as of commit N; the newest two
//! view/                    sled: a cache of the journal
//! view.marker              whether the view can be trusted
//! ```

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_runtime::durable_file::{self, FolderLock};
use holdfast_runtime::{OnEnd, SharedClock, TaskGroup};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::feed::{self, Changes};
use super::frame::Frame;
use super::journal::{Cursor, Journal, LastStop, Segments};
use super::record::{AuditRecord, Batch, Committed, Kind, PAGE_RECORDS_MAX, Record, Scan, Sequence, Verdict};
use super::segment::{Position, damaged};
use super::view::{Marker, View};
use super::writer::{Published, QUEUE_BATCHES_MAX, Submission, Writer};
use super::{Store, StoreError, checkpoint};

/// Frames that are applied to the view at a time while it is made anew.
const REPLAY_FRAMES: usize = 1_000;
/// Bytes of records that are put into the view at a time.
const LOAD_BYTES: usize = 1 << 20;

/// Where the state is and how large its parts become.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// The folder; made if it is not there.
    pub folder: PathBuf,
    /// A segment of the journal is complete at this size, and a checkpoint is made.
    pub segment_bytes_max: u64,
    /// Memory for the view's cache.
    pub cache_bytes: u64,
    /// How long the journal, which is the audit log, is kept.
    pub journal_kept: Duration,
    /// What tells one boot of the machine from the next; nothing makes the view anew after every crash.
    pub boot_id: Option<String>,
}

impl StoreSettings {
    /// 64 MiB segments, 64 MiB of cache, 400 days of journal, and the boot id of this machine.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            segment_bytes_max: 64 << 20,
            cache_bytes: 64 << 20,
            journal_kept: Duration::from_secs(400 * 24 * 3600),
            boot_id: super::boot_id(),
        }
    }

    fn journal(&self) -> PathBuf {
        self.folder.join("journal")
    }

    fn checkpoints(&self) -> PathBuf {
        self.folder.join("checkpoints")
    }

    fn view(&self) -> PathBuf {
        self.folder.join("view")
    }

    fn marker(&self) -> PathBuf {
        self.folder.join("view.marker")
    }
}

/// The store in one folder. Close it with [`EmbeddedStore::close`], or drop it, which waits for the disk.
#[derive(Debug)]
pub struct EmbeddedStore {
    settings: StoreSettings,
    tasks: TaskGroup,
    published: Arc<Published>,
    segments: Arc<Segments>,
    queue: Mutex<Option<mpsc::Sender<Submission>>>,
    view: RwLock<Option<View>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    _lock: FolderLock,
}

impl EmbeddedStore {
    /// Opens the state, or begins an empty one. Blocks: after a crash it reads the journal since the last checkpoint,
    /// and after a loss of power it makes the view anew.
    ///
    /// `tasks` runs reads of the journal, and its process is told to stop when the journal fails.
    ///
    /// # Errors
    /// [`StoreError::Locked`] while another process has it open, [`StoreError::Damaged`] with the place,
    /// [`StoreError::TooNew`], and those of the file system.
    pub fn open(
        settings: StoreSettings,
        clock: SharedClock,
        tasks: &TaskGroup,
    ) -> Result<Arc<Self>, StoreError> {
        let folder = &settings.folder;
        durable_file::create_folders(folder).map_err(StoreError::io("making the data folder", folder))?;
        let lock = FolderLock::take(folder).map_err(|source| match source.kind() {
            std::io::ErrorKind::WouldBlock => StoreError::Locked { folder: folder.clone() },
            _ => StoreError::io("locking the data folder", folder)(source),
        })?;
        let (view, journal) = Opening { settings: &settings, clock: &clock }.run()?;
        let (feed, _) = broadcast::channel(feed::FEED_CHANGES_MAX);
        let published = Arc::new(Published {
            durable: Arc::new(AtomicU64::new(journal.end().sequence)),
            failure: Default::default(),
            feed,
        });
        let segments = journal.segments().clone();
        let (queue, submissions) = mpsc::channel(QUEUE_BATCHES_MAX);
        let (segment_complete, wake) = std_mpsc::sync_channel(1);
        // The process before us may have died between a complete segment and its checkpoint.
        segment_complete.try_send(()).expect("the channel is new and has a place");
        let writer = Writer {
            journal,
            view: view.clone(),
            published: published.clone(),
            clock: clock.clone(),
            shutdown: tasks.shutdown().clone(),
            segment_complete,
        };
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(work);
            spawned.map_err(StoreError::io("starting a thread", folder))
        };
        let keeper = Keeper { settings: settings.clone(), clock, segments: segments.clone() };
        let threads = vec![
            spawn("store-writer", Box::new(move || writer.run(submissions)))?,
            spawn("store-checkpoints", Box::new(move || keeper.run(&wake)))?,
        ];
        Ok(Arc::new(Self {
            settings,
            tasks: tasks.clone(),
            published,
            segments,
            queue: Mutex::new(Some(queue)),
            view: RwLock::new(Some(view)),
            threads: Mutex::new(threads),
            _lock: lock,
        }))
    }

    /// Takes no more commits, finishes those that wait, and makes the view durable, so that the next start need not
    /// read the journal. Later calls of anything fail with [`StoreError::Closed`].
    ///
    /// # Errors
    /// The view could not be made durable: no harm, it will be made anew.
    pub async fn close(self: &Arc<Self>) -> Result<(), StoreError> {
        let store = self.clone();
        let closing = self.tasks.spawn_blocking("close-store", OnEnd::Isolated, move || store.close_now());
        closing.join().await.map_err(|_| StoreError::Closed)?
    }

    fn close_now(&self) -> Result<(), StoreError> {
        drop(self.queue.lock().take());
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
        let Some(view) = self.view.write().take() else { return Ok(()) };
        if self.published.failure.get().is_some() {
            // The view may lack what the journal has, or the journal what the view has: let the next start find out.
            drop(view);
            return durable_file::remove(&self.settings.marker())
                .map_err(StoreError::io("removing the marker of the view", self.settings.marker()));
        }
        view.close(&self.settings.view())?;
        let marker = Marker {
            boot_id: self.settings.boot_id.clone().unwrap_or_default(),
            clean_end: Some(self.published.durable.load(Ordering::Acquire)),
        };
        marker.write(&self.settings.marker())
    }

    fn with_view<T>(&self, read: impl FnOnce(&View) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.view.read().as_ref().map_or(Err(StoreError::Closed), read)
    }

    async fn read_journal<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let reading = self.tasks.spawn_blocking("read-journal", OnEnd::Isolated, read);
        reading.join().await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        if let Err(error) = self.close_now() {
            tracing::warn!(error = %error, "the state was not closed in order; the next start takes longer");
        }
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, kind: Kind, key: &str) -> Result<Option<Record>, StoreError> {
        self.with_view(|view| view.get(kind, key))
    }

    async fn scan(&self, kind: Kind, scan: Scan) -> Result<Vec<Record>, StoreError> {
        self.with_view(|view| view.scan(kind, &scan))
    }

    async fn commit(&self, batch: Batch) -> Result<Committed, StoreError> {
        batch.check_limits()?;
        if let Some(failed) = self.published.failed() {
            return Err(failed);
        }
        let (reply, answer) = oneshot::channel();
        let queue = self.queue.lock().clone().ok_or(StoreError::Closed)?;
        queue.send(Submission { batch, reply }).await.map_err(|_| StoreError::Closed)?;
        drop(queue);
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    fn sequence(&self) -> Sequence {
        self.published.durable.load(Ordering::Acquire)
    }

    fn watch(&self, after: Sequence) -> Result<Changes, StoreError> {
        let receiver = self.published.feed.subscribe();
        let reader = feed::Reader {
            receiver,
            durable: self.published.durable.clone(),
            cursor: Some(Cursor::after(self.segments.clone(), after)?),
            segments: self.segments.clone(),
            tasks: self.tasks.clone(),
            after,
            behind: VecDeque::new(),
        };
        Ok(reader.into_changes())
    }

    async fn audit(&self, after: Sequence, limit: usize) -> Result<Vec<AuditRecord>, StoreError> {
        let (segments, durable) = (self.segments.clone(), self.sequence());
        self.read_journal(move || {
            let mut cursor = Cursor::after(segments, after)?;
            let mut found = Vec::new();
            while found.len() < limit.min(PAGE_RECORDS_MAX)
                && let Some((frame, position)) = cursor.next_commit(durable)?
            {
                found.push(audit_record(frame, position));
            }
            Ok(found)
        })
        .await
    }

    async fn verify_audit(&self) -> Result<Verdict, StoreError> {
        let (segments, durable) = (self.segments.clone(), self.sequence());
        self.read_journal(move || {
            loop {
                let oldest = segments.oldest();
                match verdict(&segments, durable) {
                    // The keeper let a segment go while it was read: what is left is judged from its own beginning.
                    Err(_) if segments.oldest() > oldest => {}
                    judged => return judged,
                }
            }
        })
        .await
    }
}

/// Reads the kept journal from its beginning to commit `durable`, and says what its chain proves.
fn verdict(segments: &Arc<Segments>, durable: Sequence) -> Result<Verdict, StoreError> {
    let anchor = Cursor::anchor(segments)?;
    let mut cursor = Cursor::after(Arc::clone(segments), anchor.sequence)?;
    let mut end = anchor;
    while let Some((_, position)) = cursor.next_commit(durable)? {
        end = position;
    }
    let (first, last) = (anchor.sequence + 1, end.sequence);
    Ok(Verdict { first, anchor: anchor.hash, last, head: end.hash })
}

fn audit_record(frame: Frame, position: Position) -> AuditRecord {
    let changed = frame.operations.iter().map(|operation| {
        let (kind, key) = operation.target();
        (kind, key.to_owned())
    });
    let changed = changed.collect();
    AuditRecord {
        sequence: frame.sequence,
        time: frame.time,
        audit: frame.audit,
        changed,
        hash: position.hash,
    }
}

/// Opens view and journal, so that the view shows exactly what the journal says.
struct Opening<'a> {
    settings: &'a StoreSettings,
    clock: &'a SharedClock,
}

impl Opening<'_> {
    fn run(&self) -> Result<(View, Journal), StoreError> {
        let marker_path = self.settings.marker();
        let marker = Marker::read(&marker_path)?;
        let clean_end = marker.as_ref().and_then(|marker| marker.clean_end);
        let last_stop = if clean_end.is_some() { LastStop::Clean } else { LastStop::Crash };
        let boot_id = self.settings.boot_id.clone();
        let same_boot =
            boot_id.is_some() && marker.as_ref().map(|marker| &marker.boot_id) == boot_id.as_ref();
        let open_now = Marker { boot_id: boot_id.unwrap_or_default(), clean_end: None };
        let trusted = if clean_end.is_some() || same_boot { self.trusted_view()? } else { None };
        let (view, journal) = match trusted {
            Some((view, applied)) => {
                let journal = self.replay(&view, applied, last_stop)?;
                // Before the first write: from now on the view is ahead of what is durable of it.
                open_now.write(&marker_path)?;
                (view, journal)
            }
            None => {
                let opened = self.make_view_anew(last_stop)?;
                open_now.write(&marker_path)?;
                opened
            }
        };
        if let Some(expected) = clean_end
            && journal.end().sequence != expected
        {
            let reason = format!("it ends with commit {}, not {expected}", journal.end().sequence);
            return Err(damaged(&self.settings.journal(), 0, reason));
        }
        Ok((view, journal))
    }

    /// The view that is there, if it opens and the journal reaches back to it.
    fn trusted_view(&self) -> Result<Option<(View, Position)>, StoreError> {
        let folder = self.settings.view();
        let opened = View::open(&folder, self.settings.cache_bytes);
        match opened.and_then(|view| view.applied().map(|applied| (view, applied))) {
            Ok((view, applied)) => {
                let journal = self.settings.journal();
                let segments =
                    if journal.is_dir() { super::segment::list_segments(&journal)? } else { Vec::new() };
                let reaches = segments.first().is_some_and(|(first, _)| *first <= applied.sequence + 1);
                Ok(reaches.then_some((view, applied)))
            }
            Err(error) => {
                tracing::warn!(%error, "the view of the state does not open and is made anew");
                Ok(None)
            }
        }
    }

    fn make_view_anew(&self, last_stop: LastStop) -> Result<(View, Journal), StoreError> {
        let marker = self.settings.marker();
        durable_file::remove(&marker).map_err(StoreError::io("removing the marker of the view", &marker))?;
        let mut checkpoints = checkpoint::list(&self.settings.checkpoints())?;
        loop {
            let newest = checkpoints.pop();
            match self.load(newest.as_ref().map(|(_, path)| path.as_path())) {
                Ok((view, loaded)) => {
                    let journal = self.replay(&view, loaded, last_stop)?;
                    return Ok((view, journal));
                }
                // The one before, with more of the journal, tells the same.
                Err(error @ StoreError::Damaged { .. }) if newest.is_some() => {
                    tracing::warn!(%error, "a checkpoint is damaged; the one before is used");
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn load(&self, checkpoint: Option<&Path>) -> Result<(View, Position), StoreError> {
        let folder = self.settings.view();
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::io("removing the old view", &folder)(error));
            }
            _ => {}
        }
        let view = View::open(&folder, self.settings.cache_bytes)?;
        let Some(path) = checkpoint else { return Ok((view, Position::START)) };
        let mut reader = checkpoint::Reader::open(path)?;
        let mut records = Vec::new();
        let mut bytes = 0;
        while let Some((kind, record)) = reader.next_record()? {
            bytes += record.value.len();
            records.push((kind, record));
            if bytes >= LOAD_BYTES || records.len() >= REPLAY_FRAMES {
                view.load(&records)?;
                (records, bytes) = (Vec::new(), 0);
            }
        }
        view.load(&records)?;
        view.apply(std::iter::empty(), reader.end())?;
        Ok((view, reader.end()))
    }

    /// Opens the journal and applies what the view lacks.
    fn replay(&self, view: &View, from: Position, last_stop: LastStop) -> Result<Journal, StoreError> {
        let mut waiting: Vec<Frame> = Vec::new();
        let mut waiting_bytes = 0;
        let mut end = from;
        let visit = &mut |frame: Frame, position| {
            waiting_bytes += super::writer::operations_bytes(&frame.operations);
            waiting.push(frame);
            end = position;
            if waiting.len() >= REPLAY_FRAMES || waiting_bytes >= LOAD_BYTES {
                view.apply(waiting.iter(), end)?;
                waiting.clear();
                waiting_bytes = 0;
            }
            Ok(())
        };
        let settings = self.settings;
        let now = self.clock.now();
        let journal =
            Journal::open(&settings.journal(), from, last_stop, settings.segment_bytes_max, now, visit)?;
        view.apply(waiting.iter(), end)?;
        Ok(journal)
    }
}

/// Makes checkpoints of complete segments, and lets go of the oldest ones.
struct Keeper {
    settings: StoreSettings,
    clock: SharedClock,
    segments: Arc<Segments>,
}

impl Keeper {
    fn run(self, wake: &std_mpsc::Receiver<()>) {
        while let Ok(()) = wake.recv() {
            if let Err(error) = self.work() {
                // A checkpoint only saves time: the journal since the last one is still there.
                tracing::error!(error = %error, "no checkpoint could be made; it is tried again with the next segment");
            }
        }
    }

    fn work(&self) -> Result<(), StoreError> {
        let folder = self.settings.checkpoints();
        while self.next_checkpoint(&folder)? {}
        let kept = checkpoint::list(&folder)?;
        let Some((oldest_kept, _)) = kept.first() else { return Ok(()) };
        let now = self.clock.now();
        let before = now.checked_sub(self.settings.journal_kept).unwrap_or(now);
        // Both checkpoints must be usable without what is removed; one alone is not enough to remove anything.
        if kept.len() > 1 {
            self.segments.remove_older(*oldest_kept, before)?;
        }
        Ok(())
    }

    /// Makes the checkpoint at the end of the first complete segment without one; `false` when there is none.
    fn next_checkpoint(&self, folder: &Path) -> Result<bool, StoreError> {
        let mut bases = checkpoint::list(folder)?;
        loop {
            let base = bases.pop();
            let covered = base.as_ref().map_or(0, |(sequence, _)| *sequence);
            let Some((first, _)) = self.segments.holding(covered + 1) else { return Ok(false) };
            let Some((next_first, _)) = self.segments.following(first) else { return Ok(false) };
            let mut cursor = Cursor::after(self.segments.clone(), covered)?;
            let mut delta = checkpoint::Delta::default();
            let mut end = None;
            while let Some((frame, position)) = cursor.next_commit(next_first - 1)? {
                delta.add(frame);
                end = Some(position);
            }
            let Some(end) = end else { return Ok(false) };
            let base_path = base.as_ref().map(|(_, path)| path.as_path());
            match checkpoint::write(folder, base_path, delta, end, self.clock.now()) {
                Ok(_) => return Ok(true),
                Err(error @ StoreError::Damaged { .. }) if base.is_some() => {
                    tracing::error!(%error, "a checkpoint is damaged; the one before is used");
                }
                Err(error) => return Err(error),
            }
        }
    }
}
