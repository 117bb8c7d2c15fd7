//! The pages of a view as a stream.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use holdfast_model::ErrorCode;

use super::connect::{LiveConnection, sqlite_error};
use crate::EngineError;

/// Bytes of one batch between the thread that reads pages and the one that takes them.
const BATCH_BYTES: usize = 1024 * 1024;

/// Batches on their way.
const BATCHES_MAX: usize = 4;

/// Size of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageSize {
    pub(crate) page_bytes: u32,
    pub(crate) pages: u64,
}

impl PageSize {
    /// Asks the connection, in its transaction.
    pub(crate) fn of(sqlite: &rusqlite::Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            page_bytes: sqlite.query_row("PRAGMA page_size", [], |row| row.get(0))?,
            pages: sqlite.query_row("PRAGMA page_count", [], |row| row.get::<_, u32>(0))?.into(),
        })
    }

    pub(crate) fn bytes(self) -> u64 {
        u64::from(self.page_bytes) * self.pages
    }
}

/// Reads pages from a thread that owns the connection. Dropping it ends the thread at its next batch.
pub(crate) struct PageReader {
    batches: Receiver<Result<Vec<u8>, EngineError>>,
    current: Vec<u8>,
    position: usize,
    ended: bool,
}

impl PageReader {
    /// Starts the thread; the view ends with the last page.
    pub(crate) fn start(path: PathBuf, view: LiveConnection, size: PageSize) -> Result<Self, EngineError> {
        let (sender, batches) = sync_channel(BATCHES_MAX);
        let name = path.display().to_string();
        std::thread::Builder::new()
            .name("sqlite-pages".to_owned())
            .spawn(move || {
                let outcome = send_pages(&path, &view, size, &sender);
                drop(view);
                if let Err(error) = outcome {
                    // Nobody may be reading any more.
                    let _ = sender.send(Err(error));
                }
            })
            .map_err(|error| {
                EngineError::new(ErrorCode::CaptureIncomplete, format!("no thread to read {name} with"))
                    .caused_by(error)
            })?;
        Ok(Self { batches, current: Vec::new(), position: 0, ended: false })
    }
}

fn send_pages(
    path: &Path,
    view: &LiveConnection,
    size: PageSize,
    batches: &SyncSender<Result<Vec<u8>, EngineError>>,
) -> Result<(), EngineError> {
    let failed = |error| sqlite_error(path, error);
    let mut statement = view.sqlite.prepare("SELECT data FROM sqlite_dbpage('main')").map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    let mut batch = Vec::with_capacity(BATCH_BYTES);
    let mut pages = 0;
    while let Some(row) = rows.next().map_err(failed)? {
        let page = row.get_ref(0).map_err(failed)?.as_blob().unwrap_or_default();
        if page.len() != size.page_bytes as usize {
            return Err(incomplete(path, &format!("page {} has {} bytes", pages + 1, page.len())));
        }
        pages += 1;
        batch.extend_from_slice(page);
        if batch.len() + page.len() > BATCH_BYTES {
            let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH_BYTES));
            if batches.send(Ok(full)).is_err() {
                return Ok(());
            }
        }
    }
    if pages != size.pages {
        return Err(incomplete(path, &format!("{pages} of {} pages were read", size.pages)));
    }
    if !batch.is_empty() {
        let _ = batches.send(Ok(batch));
    }
    // An empty batch says that this is the end, and not a thread that died.
    let _ = batches.send(Ok(Vec::new()));
    Ok(())
}

fn incomplete(path: &Path, why: &str) -> EngineError {
    EngineError::new(ErrorCode::CaptureIncomplete, format!("reading {} ended early: {why}", path.display()))
}

impl Read for PageReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.current.len() && !self.ended {
            match self.batches.recv() {
                Ok(Ok(batch)) => {
                    self.ended = batch.is_empty();
                    (self.current, self.position) = (batch, 0);
                }
                Ok(Err(error)) => return Err(io::Error::other(error)),
                Err(_) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            }
        }
        let count = buffer.len().min(self.current.len() - self.position);
        buffer[..count].copy_from_slice(&self.current[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}
