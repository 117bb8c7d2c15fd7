//! Facts wait here, on the disk, until the controller has acknowledged them.
//!
//! A fact is made when its frame is synced, and not before. Numbers count without gaps within the identity of the
//! outbox, so the controller knows which facts it has and drops those it has seen. What waits is bounded: a run whose
//! log does not fit fails with `HF-5004`, and room is kept for the fact that says so.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_model::ids::{Attempt, RunId};
use holdfast_model::text::size;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::v1;
use holdfast_runtime::{OnEnd, StopCause, TaskGroup};
use parking_lot::Mutex;
use tokio::sync::watch;

mod file;
#[cfg(test)]
mod tests;

use crate::disk;
use file::OutboxFile;

/// Name of the file within the data folder.
pub const FILE_NAME: &str = "outbox";

/// The outbox could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// What waits takes all the room there is.
    #[error("the facts that wait in {} would take more than {}", path.display(), size(*limit_bytes))]
    Full {
        /// The file.
        path: PathBuf,
        /// The limit that was reached.
        limit_bytes: u64,
    },
    /// The file is not what it was written as.
    #[error("the outbox {} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system could not make the file durable.
    #[error("the outbox {} could not be made durable", path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// An earlier sync failed, and nothing is known of the file since.
    #[error("the outbox {} was given up after an error", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
    },
    /// Any other error of the file system.
    #[error("cannot {doing} the outbox {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

impl OutboxError {
    fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), source }
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        match self {
            OutboxError::Full { .. } => ErrorCode::AgentSpoolFull,
            OutboxError::Io { source, .. } | OutboxError::Sync { source, .. } => disk::error_code(source),
            OutboxError::Broken { .. } => ErrorCode::AgentDiskFailed,
            OutboxError::Damaged { .. } => ErrorCode::AgentStateDamaged,
            OutboxError::Stopping => ErrorCode::AgentDraining,
        }
    }

    /// Whether the agent cannot go on with this outbox.
    fn is_fatal(&self) -> bool {
        matches!(self, OutboxError::Sync { .. } | OutboxError::Broken { .. } | OutboxError::Damaged { .. })
    }
}

impl From<OutboxError> for Failure {
    fn from(error: OutboxError) -> Self {
        let failure = Failure::from_error(error.code(), &error);
        match error {
            OutboxError::Damaged { path, .. } => failure
                .at_stake(
                    "facts that wait in it were not reported; the controller repeats the runs they concern",
                )
                .then(format!("mv {0} {0}.damaged", path.display()))
                .then("systemctl restart holdfast-agent"),
            _ => failure,
        }
    }
}

/// Whether an event ends its attempt.
fn is_end(event: &v1::fact::Event) -> bool {
    use v1::fact::Event;
    matches!(event, Event::Finished(_) | Event::Failed(_) | Event::Cancelled(_))
}

/// The facts that the controller does not have yet. Clones share it.
#[derive(Clone, Debug)]
pub struct Outbox {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    file: Mutex<OutboxFile>,
    last_seq: watch::Sender<u64>,
    is_empty: watch::Sender<bool>,
    tasks: TaskGroup,
}

impl Outbox {
    /// Opens the outbox of a data folder, or makes an empty one. Blocking; reads all of it.
    ///
    /// # Errors
    /// `HF-5006` when the file is damaged other than by a crash.
    pub fn open(data_dir: &Path, tasks: &TaskGroup) -> Result<Self, OutboxError> {
        let file = OutboxFile::open(&data_dir.join(FILE_NAME))?;
        let last_seq = watch::Sender::new(file.last_seq());
        let is_empty = watch::Sender::new(file.is_empty());
        let shared = Shared { file: Mutex::new(file), last_seq, is_empty, tasks: tasks.clone() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Identity of the outbox, within which numbers count.
    pub fn id(&self) -> String {
        self.shared.file.lock().id().to_string()
    }

    /// Number of the last fact that was made, 0 for none.
    pub fn last_seq(&self) -> u64 {
        *self.shared.last_seq.borrow()
    }

    /// Tells of every fact that was made.
    pub fn watch_last_seq(&self) -> watch::Receiver<u64> {
        self.shared.last_seq.subscribe()
    }

    /// Tells whether nothing waits.
    pub fn watch_is_empty(&self) -> watch::Receiver<bool> {
        self.shared.is_empty.subscribe()
    }

    /// Attempts whose last fact waits here: the controller does not know yet how they ended.
    pub fn ended_runs(&self) -> Vec<(RunId, Attempt)> {
        self.shared.file.lock().ended_runs()
    }

    /// Makes a fact; it is on the disk when this returns its number. Made even when the future is dropped.
    ///
    /// # Errors
    /// `HF-5004` when there is no room for it. After a failed sync nothing more is taken, and the agent stops.
    pub async fn append(
        &self,
        run: RunId,
        attempt: Attempt,
        event: v1::fact::Event,
    ) -> Result<u64, OutboxError> {
        self.blocking(move |shared| {
            let seq = shared.file.lock().append(run, attempt, event)?;
            shared.last_seq.send_replace(seq);
            shared.is_empty.send_replace(false);
            Ok(seq)
        })
        .await
    }

    /// The facts after a number that wait, in order, at most `facts_max` of them.
    ///
    /// # Errors
    /// Those of the file system.
    pub async fn read_after(&self, seq: u64, facts_max: usize) -> Result<Vec<v1::Fact>, OutboxError> {
        self.blocking(move |shared| shared.file.lock().read_after(seq, facts_max)).await
    }

    /// Facts up to this number are durable at the controller.
    ///
    /// # Errors
    /// Those of the file system, where the file had to be rewritten.
    pub async fn acknowledge(&self, seq: u64) -> Result<(), OutboxError> {
        self.blocking(move |shared| {
            let mut file = shared.file.lock();
            file.acknowledge(seq)?;
            shared.is_empty.send_replace(file.is_empty());
            Ok(())
        })
        .await
    }

    /// Takes a new identity, within which the facts that wait are numbered anew: for a data folder that was put back
    /// to an older state, whose next numbers the controller has seen already.
    ///
    /// # Errors
    /// Those of the file system.
    pub async fn renew_identity(&self) -> Result<(), OutboxError> {
        self.blocking(move |shared| {
            let mut file = shared.file.lock();
            file.renew_identity()?;
            shared.last_seq.send_replace(file.last_seq());
            Ok(())
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, OutboxError> + Send + 'static,
    ) -> Result<T, OutboxError> {
        let shared = self.shared.clone();
        let done = self.shared.tasks.spawn_blocking("outbox", OnEnd::Finite, move || {
            work(&shared).inspect_err(|error| {
                if error.is_fatal() {
                    tracing::error!(error = %error, "the outbox cannot be used any more");
                    shared.tasks.shutdown().request(StopCause::Broken(error.to_string()));
                }
            })
        });
        done.join().await.unwrap_or(Err(OutboxError::Stopping))
    }
}
