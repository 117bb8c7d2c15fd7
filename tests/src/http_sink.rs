//! A receiver of HTTP requests: keeps what comes, and answers as it is told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use holdfast_runtime::{OnEnd, Shutdown, StopCause, TaskGroup, test_port};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::wait::{PATIENCE, until_async};

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Received {
    /// Path and query.
    pub target: String,
    /// Headers, by their names in small letters.
    pub headers: BTreeMap<String, String>,
    /// The body as it came.
    pub body: String,
}

impl Received {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// The value of a header; empty without it.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// A receiver on a port of its own; it stops when it is dropped.
#[derive(Debug)]
pub struct HttpSink {
    port: u16,
    shared: Shared,
    running: Option<(Shutdown, TaskGroup)>,
}

#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    received: Vec<Received>,
    answers: BTreeMap<String, VecDeque<(u16, String)>>,
}

impl HttpSink {
    /// Starts a receiver.
    pub async fn start() -> Self {
        let mut sink = Self { port: test_port::reserve(), shared: Shared::default(), running: None };
        sink.listen().await;
        sink
    }

    /// Listens again after [`HttpSink::go_away`].
    pub async fn listen(&mut self) {
        let address = ([127, 0, 0, 1], self.port);
        let bind = async || TcpListener::bind(std::net::SocketAddr::from(address)).await.ok();
        let listener = until_async("the port of the sink to be free", PATIENCE, bind).await;
        let router = Router::new().fallback(take).with_state(self.shared.clone());
        let shutdown = Shutdown::new();
        let tasks = TaskGroup::new(&shutdown);
        let stop = tasks.token().clone();
        drop(tasks.spawn("http sink", OnEnd::Isolated, async move {
            let served = axum::serve(listener, router).into_future();
            drop(stop.run_until_cancelled(served).await);
        }));
        self.running = Some((shutdown, tasks));
    }

    /// Stops listening: whoever calls is refused.
    pub async fn go_away(&mut self) {
        if let Some((shutdown, tasks)) = self.running.take() {
            shutdown.request(StopCause::Requested("the sink goes away".to_owned()));
            drop(shutdown.drain(&tasks, PATIENCE).await);
        }
    }

    /// The address of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The next requests to a path are answered so, each once; then 200 and `ok` again.
    pub fn answer(&self, path: &str, status: u16, body: &str) {
        let mut inner = self.shared.0.lock();
        inner.answers.entry(path.to_owned()).or_default().push_back((status, body.to_owned()));
    }

    /// What came to a path so far.
    pub fn received(&self, path: &str) -> Vec<Received> {
        let of_path = |request: &&Received| request.target.split('?').next() == Some(path);
        self.shared.0.lock().received.iter().filter(of_path).cloned().collect()
    }
}

impl Drop for HttpSink {
    fn drop(&mut self) {
        if let Some((shutdown, _)) = &self.running {
            shutdown.request(StopCause::Requested("the sink was dropped".to_owned()));
        }
    }
}

async fn take(
    State(shared): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    let text = |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut inner = shared.0.lock();
    inner.received.push(Received {
        target: uri.to_string(),
        headers: headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect(),
        body: String::from_utf8_lossy(&body).into_owned(),
    });
    let answer = inner.answers.get_mut(uri.path()).and_then(VecDeque::pop_front);
    // What DingTalk says when all is well; the others read the status.
    let (status, body) = answer.unwrap_or((200, "{\"errcode\":0,\"errmsg\":\"ok\"}".to_owned()));
    (StatusCode::from_u16(status).expect("tests use real statuses"), body)
}
