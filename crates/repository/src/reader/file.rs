//! One file of a snapshot as a `Read`, for tools that take a stream.

use std::io::{self, Read};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{BlobOpener, BlobReader, LOCATE_BATCH, plan};
use crate::error::RepositoryError;
use crate::id::{BlobId, BlobType};

/// Requests that are in flight ahead of the reader, of at most 4 MiB each.
const AHEAD_READS: usize = 4;
/// Opened blobs that wait for the reader, mostly of 1–8 MiB.
const AHEAD_BLOBS: usize = 4;

/// The content of a file, read from its beginning to its end. Blobs are fetched, opened and verified ahead of the
/// reader by a thread of its own, which ends with the value; at most about 64 MiB are held.
///
/// Reading blocks: use it on a thread that may. An error of kind `Other` holds a [`RepositoryError`]; after it the
/// reader gives nothing more.
#[derive(Debug)]
pub struct FileReader {
    blobs: Option<Receiver<Result<Vec<u8>, RepositoryError>>>,
    current: Vec<u8>,
    position: usize,
    cancelled: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl FileReader {
    /// A reader of the blobs of a file, in order. `handle` is the runtime on which the source works.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new(reader: BlobReader, content: Vec<BlobId>, handle: Handle) -> io::Result<Self> {
        let cancelled = CancellationToken::new();
        let token = cancelled.clone();
        let (sender, receiver) = bounded(AHEAD_BLOBS);
        let thread = std::thread::Builder::new().name("holdfast-file-reader".into()).spawn(move || {
            let work = read_ahead(&reader, &content, &sender);
            if let Some(Err(error)) = handle.block_on(token.run_until_cancelled(work)) {
                // Nobody listens any more when this fails.
                let _ = sender.send(Err(error));
            }
        })?;
        Ok(Self { blobs: Some(receiver), current: Vec::new(), position: 0, cancelled, thread: Some(thread) })
    }
}

/// Sends the opened blobs in order, until all are sent or the reader is gone.
async fn read_ahead(
    reader: &BlobReader,
    content: &[BlobId],
    sender: &Sender<Result<Vec<u8>, RepositoryError>>,
) -> Result<(), RepositoryError> {
    let mut opener = BlobOpener::new(Arc::clone(reader.sealer()))?;
    for ids in content.chunks(LOCATE_BATCH) {
        let places = reader.locate(ids, BlobType::Data).await?;
        let reads = plan::coalesce(&places);
        let fetched = futures::stream::iter(&reads).map(|read| async move {
            (read, reader.source().read(read.pack, read.offset, read.length).await)
        });
        let mut fetched = std::pin::pin!(fetched.buffered(AHEAD_READS));
        while let Some((read, bytes)) = fetched.next().await {
            let bytes = bytes?;
            for member in read.members.clone() {
                opener.open(&ids[member], &places[member], read.part(&bytes, &places[member]))?;
                if sender.send(Ok(opener.take_content())).is_err() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.current.len() {
            let Some(blobs) = &self.blobs else { return Ok(0) };
            match blobs.recv() {
                Ok(Ok(content)) => (self.current, self.position) = (content, 0),
                Ok(Err(error)) => {
                    self.blobs = None;
                    return Err(io::Error::other(error));
                }
                // All was sent. A thread that panicked must not look like the end of the file.
                Err(_) => {
                    self.blobs = None;
                    if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
                        return Err(io::Error::other(RepositoryError::Pipeline("reading ahead")));
                    }
                    return Ok(0);
                }
            }
        }
        let count = buffer.len().min(self.current.len() - self.position);
        buffer[..count].copy_from_slice(&self.current[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}

impl Drop for FileReader {
    fn drop(&mut self) {
        self.cancelled.cancel();
        // The thread may wait for room in the queue, or for an answer: both end now.
        self.blobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported where the content was expected; here nobody reads on.
            let _ = thread.join();
        }
    }
}
