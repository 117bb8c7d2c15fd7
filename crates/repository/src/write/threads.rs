//! The threads behind a writer: workers that read, cut and seal, and the one that talks to the sink.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::options::WriterContext;
use super::shared::{Batch, Shared, Stopped};
use super::sink_thread::SinkThread;
use super::worker::{Job, JobContents, Worker, WorkerChannels, send_pack};
use crate::error::RepositoryError;
use crate::id::BlobType;
use crate::pack::SealedPack;

/// The running threads of one writer. Dropping them stops them and waits for their end.
pub(super) struct Threads {
    shared: Arc<Shared>,
    jobs: Option<Sender<Job>>,
    ask: Option<mpsc::Sender<Batch>>,
    packs: Option<mpsc::Sender<SealedPack>>,
    workers: Vec<JoinHandle<()>>,
    sink: Option<JoinHandle<()>>,
    /// Cancelled when the writer is given up: the sink is not waited for then. Whoever drops the writer may be what the
    /// sink needs to go on, such as the only thread of a runtime.
    given_up: CancellationToken,
}

impl Threads {
    /// Starts them, and gives what workers answer to jobs.
    pub(super) fn start(
        shared: &Arc<Shared>,
        context: WriterContext,
    ) -> Result<(Self, Receiver<JobContents>), RepositoryError> {
        let (jobs, jobs_end) = bounded(shared.jobs_max());
        let (contents_end, contents) = bounded(shared.jobs_max());
        let (ask, asked) = mpsc::channel(shared.batches_max());
        let (answered_end, answered) = bounded(shared.batches_max());
        let (packs, packs_end) = mpsc::channel(1);
        let channels = WorkerChannels {
            jobs: jobs_end,
            contents: contents_end,
            answered,
            ask: ask.clone(),
            packs: packs.clone(),
        };
        let given_up = context.cancel.child_token();
        let sink = SinkThread {
            shared: Arc::clone(shared),
            sink: context.sink,
            cancel: given_up.clone(),
            asked,
            answered: answered_end,
            packs: packs_end,
        };
        let mut threads = Self {
            shared: Arc::clone(shared),
            jobs: Some(jobs),
            ask: Some(ask),
            packs: Some(packs),
            workers: Vec::new(),
            sink: None,
            given_up,
        };
        let runtime = context.runtime;
        threads.sink = Some(spawn("write-sink", move || runtime.block_on(sink.run()))?);
        for _ in 0..shared.options.threads {
            let worker = Worker::new(Arc::clone(shared), channels.clone())?;
            threads.workers.push(spawn("write-worker", move || worker.run())?);
        }
        Ok((threads, contents))
    }

    /// Gives files to the workers. There must be fewer open jobs than can wait.
    pub(super) fn send_job(&self, job: Job) -> Result<(), Stopped> {
        self.jobs.as_ref().and_then(|jobs| jobs.try_send(job).ok()).ok_or(Stopped)
    }

    /// Asks the sink which blobs of a batch are new.
    pub(super) fn send_batch(&self, batch: Batch) -> Result<(), Stopped> {
        // The channel has room for every batch that can exist.
        self.ask.as_ref().and_then(|ask| ask.try_send(batch).ok()).ok_or(Stopped)
    }

    /// Lets the threads end, in the order in which they depend on each other, and waits for them.
    pub(super) fn join(&mut self, abandon: bool) -> Result<(), RepositoryError> {
        if abandon {
            self.shared.fail(RepositoryError::Cancelled);
            self.given_up.cancel();
        }
        self.jobs = None;
        self.ask = None;
        let mut panicked = false;
        for worker in self.workers.drain(..) {
            panicked |= worker.join().is_err();
        }
        if let Some(packs) = self.packs.take() {
            for blob_type in BlobType::ALL {
                if let Some(pack) =
                    self.shared.take_open_pack(blob_type).filter(|_| self.shared.check().is_ok())
                {
                    // That the sink thread is gone has its reason in `shared`.
                    let _ = send_pack(&self.shared, &packs, pack);
                }
            }
        }
        if let Some(sink) = self.sink.take() {
            panicked |= sink.join().is_err();
        }
        if panicked {
            return Err(RepositoryError::Pipeline("a thread panicked"));
        }
        self.shared.check().map_err(|Stopped| self.shared.take_failure())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if self.sink.is_some() {
            // Why they are given up is known to whoever drops them.
            let _ = self.join(true);
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, RepositoryError> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    spawned.map_err(|source| RepositoryError::Local { path: PathBuf::from("/proc/self/task"), source })
}
