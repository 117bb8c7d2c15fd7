//! The threads for processor work: they read files into batches, and encode what the repository lacks.

use std::path::PathBuf;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, never, select};
use tokio::sync::mpsc;

use super::encode::Encoder;
use super::fill::{Cutting, Fill, Pipeline, ReadContent, ReadFailed};
use super::folders::Ticket;
use super::options::{FileIdentity, WriteCounters};
use super::shared::{Batch, Buffer, Shared, Stopped};
use crate::error::RepositoryError;
use crate::id::BlobType;
use crate::pack::{PackBuilder, SealedPack};

/// How much the threads for processor work stand back: a third of the share of a thread that does not.
const NICENESS: i32 = 5;

/// Files to be read, one after the other.
pub(super) type Job = Vec<FileJob>;

pub(super) struct FileJob {
    pub(super) ticket: Ticket,
    pub(super) file: FileToRead,
}

pub(super) struct FileToRead {
    pub(super) path: PathBuf,
    /// Which file it was when its metadata were read; `None` when those are of another file, of which it is a copy.
    pub(super) identity: Option<FileIdentity>,
    pub(super) cutting: Cutting,
}

/// What came of the files of one job.
pub(super) type JobContents = Vec<(Ticket, Result<ReadContent, String>)>;

pub(super) struct Worker {
    shared: Arc<Shared>,
    encoder: Encoder,
    jobs: Receiver<Job>,
    contents: Sender<JobContents>,
    answered: Receiver<Batch>,
    /// Taken when there are no more jobs: the sink thread then sees that no more questions come.
    ask: Option<mpsc::Sender<Batch>>,
    packs: mpsc::Sender<SealedPack>,
}

/// The ends of the channels that a worker holds.
#[derive(Clone)]
pub(super) struct WorkerChannels {
    pub(super) jobs: Receiver<Job>,
    pub(super) contents: Sender<JobContents>,
    pub(super) answered: Receiver<Batch>,
    pub(super) ask: mpsc::Sender<Batch>,
    pub(super) packs: mpsc::Sender<SealedPack>,
}

/// Stops the writer when its thread panics, so that nobody waits for it.
struct PanicGuard(Arc<Shared>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(RepositoryError::Pipeline("a worker panicked"));
        }
    }
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, channels: WorkerChannels) -> Result<Self, RepositoryError> {
        let encoder = Encoder::new(Arc::clone(&shared.sealer), &shared.options)?;
        let WorkerChannels { jobs, contents, answered, ask, packs } = channels;
        Ok(Self { shared, encoder, jobs, contents, answered, ask: Some(ask), packs })
    }

    /// Works until there is nothing left to do, or the writer stops.
    pub(super) fn run(mut self) {
        let _guard = PanicGuard(Arc::clone(&self.shared));
        // Counts of this thread alone on Linux. What feeds the workers, and the database beside which they run, goes
        // first. A system that does not allow it loses only that.
        let _ = rustix::process::nice(NICENESS);
        // What stopped the writer is kept in `shared`.
        let _ = self.work();
    }

    fn work(&mut self) -> Result<(), Stopped> {
        loop {
            self.shared.check()?;
            // Encoding first: it frees buffers.
            if let Ok(batch) = self.answered.try_recv() {
                self.encode(batch)?;
                continue;
            }
            select! {
                recv(self.answered) -> batch => match batch {
                    Ok(batch) => self.encode(batch)?,
                    Err(_) => return Ok(()),
                },
                recv(self.jobs) -> job => match job {
                    Ok(job) => self.read(job)?,
                    Err(_) => {
                        self.ask = None;
                        self.jobs = never();
                    }
                },
                recv(self.shared.stop) -> _ => return Err(Stopped),
            }
        }
    }

    fn read(&mut self, job: Job) -> Result<(), Stopped> {
        let mut fill = Fill::new(self)?;
        let mut contents = Vec::with_capacity(job.len());
        for file in job {
            let content = match fill.read_file(&file.file, self) {
                Ok(content) => Ok(content),
                Err(ReadFailed::Source(error)) => Err(error.to_string()),
                Err(ReadFailed::Stopped) => return Err(Stopped),
            };
            contents.push((file.ticket, content));
        }
        fill.finish(self)?;
        // The channel has room for the contents of every job that can be open.
        self.contents.try_send(contents).map_err(|_| Stopped)
    }

    fn encode(&mut self, batch: Batch) -> Result<(), Stopped> {
        for (index, chunk) in batch.chunks.iter().enumerate() {
            if chunk.known || !self.shared.in_flight.lock().claim(chunk.id, batch.blob_type) {
                continue;
            }
            self.shared.check()?;
            let content = batch.bytes_of(index);
            let encoded = self.encoder.encode(chunk.id, content).map_err(|error| {
                self.shared.fail(error);
                Stopped
            })?;
            let counters = &self.shared.counters;
            WriteCounters::add(
                match batch.blob_type {
                    BlobType::Data => &counters.data_blobs_new,
                    BlobType::Tree => &counters.tree_blobs_new,
                },
                1,
            );
            WriteCounters::add(&counters.bytes_new, content.len() as u64);
            WriteCounters::add(&counters.bytes_stored, encoded.sealed.len() as u64);
            let full = self.shared.push_blob(
                batch.blob_type,
                chunk.id,
                encoded.sealed,
                encoded.uncompressed_length,
            )?;
            if let Some(full) = full {
                send_pack(&self.shared, &self.packs, full)?;
            }
        }
        self.shared.in_flight.lock().done(batch.question);
        self.shared.recycle(batch.content);
        Ok(())
    }
}

impl Pipeline for Worker {
    fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Encodes while it waits, which frees buffers.
    fn take_buffer(&mut self) -> Result<Buffer, Stopped> {
        loop {
            if let Ok(buffer) = self.shared.buffers.try_recv() {
                return Ok(buffer);
            }
            select! {
                recv(self.shared.buffers) -> buffer => return buffer.map_err(|_| Stopped),
                recv(self.answered) -> batch => self.encode(batch.map_err(|_| Stopped)?)?,
                recv(self.shared.stop) -> _ => return Err(Stopped),
            }
        }
    }

    fn send_batch(&mut self, batch: Batch) -> Result<(), Stopped> {
        // The channel has room for every batch that can exist.
        let ask = self.ask.as_ref().expect("jobs are read only while questions may be asked");
        ask.try_send(batch).map_err(|_| Stopped)
    }
}

/// Finishes a pack and hands it to the sink thread; waits while as many are on their way as may be.
pub(super) fn send_pack(
    shared: &Shared,
    packs: &mpsc::Sender<SealedPack>,
    pack: PackBuilder,
) -> Result<(), Stopped> {
    let pack = pack.finish(&shared.sealer);
    packs.blocking_send(pack).map_err(|_| Stopped)
}
