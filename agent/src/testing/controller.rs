//! A controller in memory: real TLS, real gRPC, sessions that a test steers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use holdfast_proto::v1;
use holdfast_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use holdfast_proto::v1::data_service_server::DataServiceServer;
use holdfast_proto::v1::enrollment_service_server::{EnrollmentService, EnrollmentServiceServer};
use holdfast_proto::v1::session_request::Message as FromAgent;
use holdfast_proto::v1::session_response::Message as ToAgent;
use holdfast_runtime::tls::{AcceptLimits, accept_tls, server_config};
use holdfast_runtime::{OnEnd, Shutdown, TaskGroup, test_port};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::Breakable;
use super::data_service::{MemoryDataService, MemoryRepository};
use crate::address::ControllerAddress;
use crate::identity::Identity;
use crate::identity::testing::TestCa;

/// What the agent said, and what is to be said to it.
pub(crate) struct Conversations {
    pub(crate) hellos: watch::Sender<Vec<v1::Hello>>,
    pub(crate) facts: watch::Sender<BTreeMap<u64, v1::Fact>>,
    /// How often each fact came.
    pub(crate) deliveries: Mutex<BTreeMap<u64, usize>>,
    pub(crate) heartbeats: watch::Sender<usize>,
    pub(crate) progress: watch::Sender<Vec<v1::ProgressReport>>,
    pub(crate) answers: watch::Sender<Vec<v1::Answer>>,
    pub(crate) acknowledges: AtomicBool,
    pub(crate) tokens: Mutex<Vec<String>>,
    pub(crate) renewals: watch::Sender<usize>,
    current: Mutex<Option<mpsc::Sender<Result<v1::SessionResponse, Status>>>>,
    acked: Mutex<u64>,
}

/// The controller of a test; it outlives its servers.
#[derive(Clone)]
pub(crate) struct FakeController {
    pub(crate) ca: Arc<TestCa>,
    pub(crate) repository: Arc<MemoryRepository>,
    pub(crate) conversations: Arc<Conversations>,
    tasks: TaskGroup,
    address: SocketAddr,
    connections: Arc<Mutex<CancellationToken>>,
}

/// How long a test waits for something that must come.
const PATIENCE: Duration = Duration::from_secs(120);

impl FakeController {
    pub(crate) async fn start() -> Self {
        // One to come back to: nobody else may take it while the test keeps the controller down.
        let listener = TcpListener::bind(("127.0.0.1", test_port::reserve())).await.unwrap();
        let controller = Self {
            ca: Arc::new(TestCa::new()),
            repository: MemoryRepository::new(),
            conversations: Arc::new(Conversations {
                hellos: watch::Sender::default(),
                facts: watch::Sender::default(),
                deliveries: Mutex::default(),
                heartbeats: watch::Sender::default(),
                progress: watch::Sender::default(),
                answers: watch::Sender::default(),
                acknowledges: AtomicBool::new(true),
                tokens: Mutex::new(vec!["once".to_owned()]),
                renewals: watch::Sender::default(),
                current: Mutex::default(),
                acked: Mutex::default(),
            }),
            tasks: TaskGroup::new(&Shutdown::new()),
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
        };
        controller.serve(listener);
        controller
    }

    pub(crate) fn address(&self) -> ControllerAddress {
        format!("https://{}", self.address).parse().unwrap()
    }

    pub(crate) fn enroll(&self, data_dir: &Path) -> Identity {
        self.ca.enroll(data_dir, &self.address().to_string())
    }

    /// Breaks every connection and listens no more.
    pub(crate) fn kill(&self) {
        self.connections.lock().cancel();
    }

    /// The token that breaks the connections of now.
    pub(crate) fn connections(&self) -> CancellationToken {
        self.connections.lock().clone()
    }

    /// Listens again at the same address.
    pub(crate) async fn restart(&self) {
        *self.connections.lock() = CancellationToken::new();
        let bound = async {
            loop {
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.set_reuseaddr(true).unwrap();
                match socket.bind(self.address).and_then(|()| socket.listen(64)) {
                    Ok(listener) => return listener,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        self.serve(tokio::time::timeout(PATIENCE, bound).await.unwrap());
    }

    fn serve(&self, listener: TcpListener) {
        let token = self.connections();
        let tasks = self.tasks.child();
        let config = server_config(&self.ca.server(), self.ca.certificate.der()).unwrap();
        let incoming = accept_tls(listener, config, AcceptLimits::default(), &tasks);
        let breaking = token.clone();
        let incoming =
            incoming.map(move |connection| connection.map(|inner| Breakable::new(inner, &breaking)));
        let server = tonic::transport::Server::builder()
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(32 << 20)
            .add_service(AgentServiceServer::new(self.clone()))
            .add_service(EnrollmentServiceServer::new(self.clone()))
            .add_service(
                DataServiceServer::new(MemoryDataService(self.repository.clone()))
                    .max_decoding_message_size(16 << 20),
            );
        drop(self.tasks.spawn("server", OnEnd::Isolated, async move {
            let _ = server.serve_with_incoming_shutdown(incoming, token.clone().cancelled_owned()).await;
        }));
        let ending = self.connections();
        drop(self.tasks.spawn("acceptor", OnEnd::Isolated, async move {
            ending.cancelled().await;
            tasks.cancel();
        }));
    }

    /// Says something to the agent that is connected.
    pub(crate) async fn say(&self, message: ToAgent) {
        let current = self.conversations.current.lock().clone().expect("an agent is connected");
        current.send(Ok(v1::SessionResponse { message: Some(message) })).await.expect("the session lives");
    }

    /// Waits for something that must come.
    pub(crate) async fn until<T: Clone>(
        &self,
        what: &watch::Sender<T>,
        is_there: impl FnMut(&T) -> bool,
    ) -> T {
        let mut receiver = what.subscribe();
        let waited = tokio::time::timeout(PATIENCE, receiver.wait_for(is_there)).await;
        waited.expect("what must come did not come in time").unwrap().clone()
    }

    /// Waits for the fact that ends a run.
    pub(crate) async fn end_of(&self, run_id: &str) -> v1::fact::Event {
        let is_end = |fact: &v1::Fact| fact.run_id == run_id && fact.event.as_ref().is_some_and(is_end);
        let facts = self.until(&self.conversations.facts, |facts| facts.values().any(is_end)).await;
        facts.into_values().find(is_end).and_then(|fact| fact.event).unwrap()
    }
}

fn is_end(event: &v1::fact::Event) -> bool {
    use v1::fact::Event;
    matches!(event, Event::Finished(_) | Event::Failed(_) | Event::Cancelled(_))
}

#[tonic::async_trait]
impl EnrollmentService for FakeController {
    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        let request = request.into_inner();
        let mut tokens = self.conversations.tokens.lock();
        let Some(place) = tokens.iter().position(|token| *token == request.token) else {
            let code = holdfast_model::ErrorCode::TokenInvalid;
            let failure = holdfast_model::Failure::new(code, "the token is unknown, used or expired");
            return Err(holdfast_proto::status::to_status(&failure));
        };
        tokens.remove(place);
        Ok(Response::new(v1::EnrollResponse {
            certificate_pem: self.ca.sign(&request.csr_pem),
            ca_pem: self.ca.certificate.pem(),
            not_after: None,
        }))
    }
}

#[tonic::async_trait]
impl AgentService for FakeController {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut incoming = request.into_inner();
        let Some(FromAgent::Hello(hello)) = incoming.message().await?.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (sender, receiver) = mpsc::channel(64);
        let conversations = self.conversations.clone();
        let welcome = v1::Welcome {
            epoch: conversations.hellos.borrow().len() as u64 + 1,
            acked_fact_seq: *conversations.acked.lock(),
            lease_seconds: 30,
            ..v1::Welcome::default()
        };
        sender.try_send(Ok(v1::SessionResponse { message: Some(ToAgent::Welcome(welcome)) })).unwrap();
        *conversations.current.lock() = Some(sender.clone());
        conversations.hellos.send_modify(|hellos| hellos.push(hello));
        drop(self.tasks.spawn("session", OnEnd::Isolated, async move {
            while let Ok(Some(request)) = incoming.message().await {
                conversations.hear(request.message.unwrap(), &sender).await;
            }
        }));
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }

    async fn renew_certificate(
        &self,
        request: Request<v1::RenewCertificateRequest>,
    ) -> Result<Response<v1::RenewCertificateResponse>, Status> {
        self.conversations.renewals.send_modify(|count| *count += 1);
        let certificate_pem = self.ca.sign(&request.into_inner().csr_pem);
        Ok(Response::new(v1::RenewCertificateResponse { certificate_pem, not_after: None }))
    }
}

impl Conversations {
    async fn hear(&self, message: FromAgent, reply: &mpsc::Sender<Result<v1::SessionResponse, Status>>) {
        match message {
            FromAgent::Hello(_) => panic!("a second hello"),
            FromAgent::Heartbeat(_) => self.heartbeats.send_modify(|count| *count += 1),
            FromAgent::Fact(fact) => {
                let seq = fact.seq;
                *self.deliveries.lock().entry(seq).or_default() += 1;
                self.facts.send_modify(|facts| {
                    facts.insert(seq, fact);
                });
                if self.acknowledges.load(Ordering::Relaxed) {
                    *self.acked.lock() = seq;
                    let ack = v1::SessionResponse { message: Some(ToAgent::Ack(v1::Ack { seq })) };
                    let _ = reply.send(Ok(ack)).await;
                }
            }
            FromAgent::Progress(report) => self.progress.send_modify(|reports| reports.push(report)),
            FromAgent::Answer(answer) => self.answers.send_modify(|answers| answers.push(answer)),
        }
    }
}
