//! What the threads of a writer share, and how they stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use parking_lot::Mutex;

use super::in_flight::InFlight;
use super::options::{FileGate, WriteCounters, WriteOptions, WriterContext};
use crate::chunker::Chunker;
use crate::crypto::Sealer;
use crate::error::RepositoryError;
use crate::id::{BlobId, BlobType};
use crate::pack::PackBuilder;

/// Bytes of one buffer: a chunk of the greatest length fits.
pub(super) const BUFFER_BYTES: usize = crate::chunker::CHUNK_BYTES_MAX;
/// Buffers beyond one per thread: one for the caller's stream, the rest so that questions can be in flight.
const BUFFERS_EXTRA: usize = 4;
/// Jobs that may be open per thread.
const JOBS_PER_THREAD: usize = 4;
/// Batches of trees that may be in flight; what they hold is not in the buffers.
const TREE_BATCHES: usize = 8;

/// Packs that are being filled: one of data, one of trees.
const OPEN_PACKS: usize = 2;

/// The writer is stopping; why is in [`Shared::failure`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopped;

/// A full-length buffer with content in its front part.
pub(super) type Buffer = Box<[u8]>;

/// Chunks on their way through `known?` to the encoder.
pub(super) struct Batch {
    pub(super) blob_type: BlobType,
    pub(super) content: BatchContent,
    pub(super) chunks: Vec<Chunk>,
    /// The number of its question, once asked.
    pub(super) question: u64,
}

pub(super) enum BatchContent {
    /// Chunks are ranges of one buffer of the pool.
    Buffer(Buffer),
    /// Each chunk is one text: trees.
    Texts(Vec<Vec<u8>>),
}

pub(super) struct Chunk {
    pub(super) id: BlobId,
    pub(super) start: usize,
    pub(super) length: usize,
    pub(super) known: bool,
}

impl Batch {
    pub(super) fn bytes_of(&self, index: usize) -> &[u8] {
        let chunk = &self.chunks[index];
        match &self.content {
            BatchContent::Buffer(buffer) => &buffer[chunk.start..chunk.start + chunk.length],
            BatchContent::Texts(texts) => &texts[index],
        }
    }
}

/// A channel that never carries anything and whose end means: stop.
type StopSender = Sender<std::convert::Infallible>;
pub(super) type StopReceiver = Receiver<std::convert::Infallible>;

pub(super) struct Shared {
    pub(super) sealer: Arc<Sealer>,
    pub(super) chunker: Chunker,
    pub(super) counters: Arc<WriteCounters>,
    pub(super) options: WriteOptions,
    pub(super) gate: Option<Arc<dyn FileGate>>,
    pub(super) in_flight: Mutex<InFlight>,
    pub(super) buffers: Receiver<Buffer>,
    free_buffers: Sender<Buffer>,
    pub(super) tree_permits: Receiver<()>,
    free_tree_permits: Sender<()>,
    pack_permits: Receiver<()>,
    free_pack_permits: Sender<()>,
    open_data_pack: Mutex<PackBuilder>,
    open_tree_pack: Mutex<PackBuilder>,
    pub(super) stop: StopReceiver,
    stop_sender: Mutex<Option<StopSender>>,
    stopped: AtomicBool,
    failure: Mutex<Option<RepositoryError>>,
}

impl Shared {
    pub(super) fn new(context: &WriterContext, options: WriteOptions) -> Self {
        let count = options.threads + BUFFERS_EXTRA;
        // Zeroed pages come from the system when they are first touched.
        let (free_buffers, buffers) = filled(count, || vec![0; BUFFER_BYTES].into_boxed_slice());
        let (free_tree_permits, tree_permits) = filled(TREE_BATCHES, || ());
        let (free_pack_permits, pack_permits) = filled(options.packs_in_flight.max(1) + OPEN_PACKS, || ());
        let (stop_sender, stop) = bounded(0);
        Self {
            sealer: Arc::clone(&context.sealer),
            chunker: context.chunker.clone(),
            counters: Arc::clone(&context.counters),
            options,
            gate: context.gate.clone(),
            in_flight: Mutex::default(),
            buffers,
            free_buffers,
            tree_permits,
            free_tree_permits,
            pack_permits,
            free_pack_permits,
            open_data_pack: Mutex::new(PackBuilder::new(BlobType::Data, 0)),
            open_tree_pack: Mutex::new(PackBuilder::new(BlobType::Tree, 0)),
            stop,
            stop_sender: Mutex::new(Some(stop_sender)),
            stopped: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    /// How many jobs the caller may have open; workers can report that many contents without waiting.
    pub(super) fn jobs_max(&self) -> usize {
        self.options.threads * JOBS_PER_THREAD
    }

    /// How many batches can exist at a time.
    pub(super) fn batches_max(&self) -> usize {
        self.options.threads + BUFFERS_EXTRA + TREE_BATCHES
    }

    /// Stops everything; the first reason counts.
    pub(super) fn fail(&self, error: RepositoryError) {
        self.failure.lock().get_or_insert(error);
        self.stopped.store(true, Ordering::Release);
        self.stop_sender.lock().take();
    }

    pub(super) fn check(&self) -> Result<(), Stopped> {
        if self.stopped.load(Ordering::Acquire) { Err(Stopped) } else { Ok(()) }
    }

    /// Why the writer stopped.
    pub(super) fn take_failure(&self) -> RepositoryError {
        self.failure.lock().take().unwrap_or(RepositoryError::Cancelled)
    }

    /// Gives back what a batch held.
    pub(super) fn recycle(&self, content: BatchContent) {
        // Both channels have room for everything there is, so neither can be full.
        match content {
            BatchContent::Buffer(buffer) => drop(self.free_buffers.try_send(buffer)),
            BatchContent::Texts(_) => drop(self.free_tree_permits.try_send(())),
        }
    }

    /// A pack is durable, or given up: another may be opened.
    pub(super) fn pack_done(&self) {
        // There are never more permits out than the channel holds.
        let _ = self.free_pack_permits.try_send(());
    }

    /// Adds a sealed blob to the open pack of its type, and returns that pack when it is full.
    ///
    /// Opening another waits, with the lock held, until a pack that is on its way has arrived: then storage is what
    /// limits, and every worker may as well wait. The sink thread, which frees permits, never takes this lock.
    pub(super) fn push_blob(
        &self,
        blob_type: BlobType,
        id: BlobId,
        sealed: &[u8],
        uncompressed_length: Option<u32>,
    ) -> Result<Option<PackBuilder>, Stopped> {
        let mut open = self.open_pack(blob_type).lock();
        if open.is_empty() {
            select! {
                recv(self.pack_permits) -> _ => {}
                recv(self.stop) -> _ => return Err(Stopped),
            }
            if blob_type == BlobType::Data {
                // Room for the blob that overshoots the target, so that the pack is not copied when that comes.
                *open = PackBuilder::new(blob_type, self.options.pack_bytes_target + (1 << 20));
            }
        }
        open.push(id, sealed, uncompressed_length);
        let full = open.len() >= self.options.pack_bytes_target || open.entries_full();
        Ok(full.then(|| std::mem::replace(&mut *open, PackBuilder::new(blob_type, 0))))
    }

    /// Takes the open pack of a type, if anything is in it.
    pub(super) fn take_open_pack(&self, blob_type: BlobType) -> Option<PackBuilder> {
        let mut open = self.open_pack(blob_type).lock();
        (!open.is_empty()).then(|| std::mem::replace(&mut *open, PackBuilder::new(blob_type, 0)))
    }

    fn open_pack(&self, blob_type: BlobType) -> &Mutex<PackBuilder> {
        match blob_type {
            BlobType::Data => &self.open_data_pack,
            BlobType::Tree => &self.open_tree_pack,
        }
    }
}

/// A pool: a channel that holds `count` things from the beginning and has room for no more.
fn filled<T>(count: usize, mut make: impl FnMut() -> T) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = bounded(count);
    for _ in 0..count {
        let sent = sender.try_send(make());
        assert!(sent.is_ok(), "the channel holds them all");
    }
    (sender, receiver)
}
