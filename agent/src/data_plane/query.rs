//! Questions about blobs: one long-lived stream, many questions under way on it, answers in their order. When the
//! stream breaks, the questions that wait are asked again on a new one.

use std::collections::VecDeque;

use bytes::Bytes;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::v1;
use holdfast_repository::id::{BlobId, BlobType};
use holdfast_runtime::OnEnd;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::patience::Patience;
use super::{DataClient, DataPlane, joined};

/// Questions under way on the stream.
const IN_FLIGHT_MAX: usize = 16;
/// Questions that wait to be asked.
const WAITING_MAX: usize = 16;

/// One kind of question.
pub(super) trait Query: Send + 'static {
    /// What goes to the controller.
    type Request: Send + 'static;
    /// What comes back.
    type Response: Send + 'static;
    /// What the answer means.
    type Answer: Send + 'static;

    fn request(run: Option<v1::RunRef>, trees: bool, ids: Bytes) -> Self::Request;

    fn open(
        client: DataClient,
        requests: ReceiverStream<Self::Request>,
    ) -> impl Future<Output = Result<Streaming<Self::Response>, Status>> + Send;

    /// Takes the answer for `count` ids.
    fn answer(response: Self::Response, count: usize) -> Result<Self::Answer, Failure>;
}

struct Question<Q: Query> {
    trees: bool,
    ids: Bytes,
    count: usize,
    reply: oneshot::Sender<Result<Q::Answer, Failure>>,
}

/// Where questions are asked. The stream ends when this is dropped.
pub(super) struct QueryStream<Q: Query> {
    questions: mpsc::Sender<Question<Q>>,
}

impl<Q: Query> QueryStream<Q> {
    /// Begins; the stream is opened with the first question.
    pub(super) fn start(plane: &DataPlane, name: &'static str) -> Self {
        let (questions, receiver) = mpsc::channel(WAITING_MAX);
        let talk = Talk::<Q> { plane: plane.clone(), questions: receiver, waiting: VecDeque::new() };
        drop(plane.shared.tasks.spawn(name, OnEnd::Isolated, talk.keep_asking()));
        Self { questions }
    }

    /// Asks about blobs of one type, at most [`holdfast_proto::LOOKUP_IDS_MAX`].
    pub(super) async fn ask(&self, blob_type: BlobType, ids: &[BlobId]) -> Result<Q::Answer, Failure> {
        let (reply, answer) = oneshot::channel();
        let ended = || Failure::new(ErrorCode::RunCancelled, "the stream of questions has ended");
        let question =
            Question { trees: blob_type == BlobType::Tree, count: ids.len(), ids: joined(ids), reply };
        self.questions.send(question).await.map_err(|_| ended())?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }
}

struct Talk<Q: Query> {
    plane: DataPlane,
    questions: mpsc::Receiver<Question<Q>>,
    /// Asked and not answered, or about to be asked again.
    waiting: VecDeque<Question<Q>>,
}

impl<Q: Query> Talk<Q> {
    async fn keep_asking(mut self) {
        let mut patience = self.plane.patience();
        let cancel = self.plane.shared.cancel.clone();
        loop {
            if self.waiting.is_empty() {
                // A stream that broke while nothing was asked is no trouble.
                patience.restore();
                match cancel.run_until_cancelled(self.questions.recv()).await.flatten() {
                    Some(question) => self.waiting.push_back(question),
                    None => return,
                }
            }
            let outcome = cancel.run_until_cancelled(self.converse(&mut patience)).await;
            let failure = match outcome {
                None => super::patience::cancelled(),
                Some(Ok(())) => return,
                Some(Err(status)) => match patience.wait_after(&status).await {
                    Ok(()) => continue,
                    Err(failure) => failure,
                },
            };
            return self.give_up(&failure);
        }
    }

    /// Asks on one stream until it breaks, or until nobody can ask any more.
    async fn converse(&mut self, patience: &mut Patience) -> Result<(), Status> {
        let (sender, receiver) = mpsc::channel(IN_FLIGHT_MAX);
        let mut run = Some(self.plane.run_ref());
        let mut asked = 0;
        // Before the call: a server may answer it only once it has seen a question.
        while let Some(question) = self.waiting.get(asked)
            && sender.try_send(Q::request(run.take(), question.trees, question.ids.clone())).is_ok()
        {
            asked += 1;
        }
        let mut answers = Q::open(self.plane.client(), ReceiverStream::new(receiver)).await?;
        let mut closed = false;
        while !(closed && self.waiting.is_empty()) {
            let may_take = asked == self.waiting.len() && asked < IN_FLIGHT_MAX && !closed;
            tokio::select! {
                question = self.questions.recv(), if may_take => match question {
                    Some(question) => self.waiting.push_back(question),
                    None => closed = true,
                },
                permit = sender.reserve(), if asked < self.waiting.len() => {
                    let permit = permit.map_err(|_| broken())?;
                    let question = &self.waiting[asked];
                    permit.send(Q::request(run.take(), question.trees, question.ids.clone()));
                    asked += 1;
                }
                answer = answers.message() => {
                    let answer = answer?.ok_or_else(broken)?;
                    let question = self.waiting.pop_front().filter(|_| asked > 0).ok_or_else(broken)?;
                    asked -= 1;
                    patience.restore();
                    // Whoever asked may have gone; then nobody wants to know.
                    let _ = question.reply.send(Q::answer(answer, question.count));
                }
            }
        }
        Ok(())
    }

    fn give_up(mut self, failure: &Failure) {
        self.questions.close();
        while let Ok(question) = self.questions.try_recv() {
            self.waiting.push_back(question);
        }
        for question in self.waiting {
            let _ = question.reply.send(Err(failure.clone()));
        }
    }
}

fn broken() -> Status {
    Status::unavailable("the controller ended the stream of questions")
}
