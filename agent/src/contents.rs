//! The content of a snapshot, as engines see it when they restore, read through the controller.

use std::io::{self, Read};
use std::sync::Arc;

use holdfast_engines::{EngineError, ExtractOrder, ExtractReport, SnapshotContents};
use holdfast_model::ids::RunId;
use holdfast_model::manifest::Manifest;
use holdfast_repository::RepositoryError;
use holdfast_repository::id::BlobId;
use holdfast_repository::reader::{BlobReader, FileReader};
use holdfast_repository::tree::Node;
use holdfast_runtime::SharedClock;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::counters::Counters;
use crate::data_plane;
use crate::executor::RunContext;
use crate::extraction::Extraction;

/// One snapshot in a repository.
pub struct RepositoryContents {
    run: RunId,
    manifest: Manifest,
    reader: BlobReader,
    root: BlobId,
    runtime: Handle,
    cancel: CancellationToken,
    counters: Arc<Counters>,
    clock: SharedClock,
}

impl RepositoryContents {
    /// The snapshot with this root, for one run. Its methods block, and must not be called on a thread of the current
    /// runtime that drives others.
    pub fn new(
        manifest: Manifest,
        reader: BlobReader,
        root: BlobId,
        context: &RunContext,
        clock: SharedClock,
    ) -> Self {
        Self {
            run: context.run,
            manifest,
            reader,
            root,
            runtime: Handle::current(),
            cancel: context.cancel.clone(),
            counters: context.counters.clone(),
            clock,
        }
    }

    fn find(&self, path: &[u8]) -> Result<Node, EngineError> {
        let found = self.cancel.run_until_cancelled(self.reader.find(self.root, path));
        self.runtime
            .block_on(found)
            .unwrap_or(Err(RepositoryError::Cancelled))
            .map_err(|error| engine_error(&error))
    }
}

impl SnapshotContents for RepositoryContents {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn size(&self, path: &str) -> Result<u64, EngineError> {
        self.find(path.as_bytes()).map(|node| node.metadata.size)
    }

    fn open(&self, path: &str) -> Result<Box<dyn Read + Send>, EngineError> {
        let node = self.find(path.as_bytes())?;
        let reader =
            FileReader::new(self.reader.clone(), node.content, self.runtime.clone()).map_err(|error| {
                EngineError::new(holdfast_model::ErrorCode::Internal, "no thread could be started to read")
                    .caused_by(error)
            })?;
        Ok(Box::new(CountedReader { reader, counters: self.counters.clone() }))
    }

    fn extract(&self, order: &ExtractOrder) -> Result<ExtractReport, EngineError> {
        let extraction = Extraction {
            run: self.run,
            reader: &self.reader,
            root: self.root,
            runtime: &self.runtime,
            cancel: &self.cancel,
            counters: &self.counters,
            clock: &self.clock,
        };
        extraction.extract(order)
    }
}

/// An error of the repository as engines pass it on.
pub(crate) fn engine_error(error: &RepositoryError) -> EngineError {
    let failure = data_plane::failure_of(error);
    let engine = EngineError::new(failure.code, failure.message);
    if failure.why.is_empty() { engine } else { engine.caused_by(failure.why.join(": ")) }
}

/// A file that is read, with what was read counted.
struct CountedReader {
    reader: FileReader,
    counters: Arc<Counters>,
}

impl Read for CountedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer).map_err(|error| {
            match error.get_ref().and_then(|inner| inner.downcast_ref::<RepositoryError>()) {
                Some(inner) => io::Error::other(engine_error(inner)),
                None => error,
            }
        })?;
        self.counters.bytes_read.add(read as u64);
        Ok(read)
    }
}
