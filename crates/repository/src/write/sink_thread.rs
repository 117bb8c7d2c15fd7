//! The one thread that talks to the sink: asks what is known, hands over packs, watches for cancel.

use std::sync::Arc;

use crossbeam_channel::Sender;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::options::WriteCounters;
use super::shared::{Batch, Shared};
use crate::error::RepositoryError;
use crate::id::{BlobId, BlobType};
use crate::pack::SealedPack;
use crate::sink::BlobSink;

pub(super) struct SinkThread {
    pub(super) shared: Arc<Shared>,
    pub(super) sink: Arc<dyn BlobSink>,
    pub(super) cancel: CancellationToken,
    /// Batches to be asked for; their end means that there will be no more.
    pub(super) asked: mpsc::Receiver<Batch>,
    /// Where answered batches go. It has room for all batches there can be.
    pub(super) answered: Sender<Batch>,
    /// Packs to be stored; their end means that there will be no more.
    pub(super) packs: mpsc::Receiver<SealedPack>,
}

impl SinkThread {
    /// Runs until there is nothing more to ask and to store, or something fails.
    pub(super) async fn run(self) {
        let Self { shared, sink, cancel, mut asked, answered, mut packs } = self;
        let packs_in_flight = shared.options.packs_in_flight.max(1);
        let mut questions = FuturesUnordered::new();
        let mut uploads = FuturesUnordered::new();
        let mut answered = Some(answered);
        let (mut asking, mut storing) = (true, true);
        loop {
            if !asking && questions.is_empty() {
                // The workers end when they have worked off what was answered.
                answered = None;
            }
            if answered.is_none() && !storing && uploads.is_empty() {
                return;
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => return shared.fail(RepositoryError::Cancelled),
                Some(answer) = questions.next(), if !questions.is_empty() => match answer {
                    Ok(batch) => {
                        let sent = answered.as_ref().map(|answered| answered.try_send(batch));
                        if !matches!(sent, Some(Ok(()))) {
                            return shared.fail(RepositoryError::Pipeline("the workers are gone"));
                        }
                    }
                    Err(error) => return shared.fail(error),
                },
                Some(stored) = uploads.next(), if !uploads.is_empty() => match stored {
                    Ok(blobs) => {
                        WriteCounters::add(&shared.counters.packs_stored, 1);
                        shared.in_flight.lock().durable(blobs);
                        shared.pack_done();
                    }
                    Err(error) => return shared.fail(error),
                },
                batch = asked.recv(), if asking => match batch {
                    Some(batch) => questions.push(ask(&shared, sink.as_ref(), batch)),
                    None => asking = false,
                },
                pack = packs.recv(), if storing && uploads.len() < packs_in_flight => match pack {
                    Some(pack) => uploads.push(store(sink.as_ref(), pack)),
                    None => storing = false,
                },
            }
        }
    }
}

async fn ask(shared: &Shared, sink: &dyn BlobSink, mut batch: Batch) -> Result<Batch, RepositoryError> {
    batch.question = shared.in_flight.lock().ask();
    let ids: Vec<BlobId> = batch.chunks.iter().map(|chunk| chunk.id).collect();
    let known = sink.known(batch.blob_type, &ids).await?;
    if known.len() != ids.len() {
        return Err(RepositoryError::Pipeline("the sink answered for another number of blobs"));
    }
    for (chunk, known) in batch.chunks.iter_mut().zip(known) {
        chunk.known = known;
    }
    Ok(batch)
}

async fn store(sink: &dyn BlobSink, pack: SealedPack) -> Result<Vec<(BlobId, BlobType)>, RepositoryError> {
    let blobs = pack.entries.iter().map(|entry| (entry.id, entry.blob_type)).collect();
    sink.put_pack(pack).await?;
    Ok(blobs)
}
