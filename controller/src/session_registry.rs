//! Which agents are connected, in which epoch, and how to reach them. A handle, not a map: nobody passes raw senders.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_model::ids::AgentName;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::v1;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Orders that may wait for one agent; a session that does not take them is ended.
pub const ORDERS_MAX: usize = 256;

/// How long an agent may take to answer an inquiry.
pub const INQUIRY_TIMEOUT: Duration = Duration::from_secs(60);

/// The connected agents. Clones share it.
#[derive(Clone, Default)]
pub struct SessionRegistry {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    sessions: Mutex<BTreeMap<AgentName, Entry>>,
    changed: Notify,
    inquiries: AtomicU64,
}

struct Entry {
    state: SessionState,
    orders: mpsc::Sender<v1::SessionResponse>,
    end: CancellationToken,
    answers: HashMap<u64, oneshot::Sender<v1::answer::Reply>>,
}

/// What is known of a live session.
#[derive(Debug, Clone)]
pub struct SessionState {
    /// Its number, higher than any before of the same agent.
    pub epoch: u64,
    /// Serial number of the certificate it came with.
    pub serial: Arc<str>,
    /// Runs it takes at once.
    pub slots: u32,
    /// Takes no new work.
    pub draining: bool,
    /// The last sign of life.
    pub heartbeat: Option<v1::Heartbeat>,
    /// When it was.
    pub last_seen_at: Timestamp,
    /// How far its clock is ahead of ours, in milliseconds.
    pub clock_skew_millis: i64,
}

/// A session's own end of its registration; leaves when dropped.
pub struct Registration {
    registry: SessionRegistry,
    agent: AgentName,
    epoch: u64,
    /// Orders for the agent.
    pub orders: mpsc::Receiver<v1::SessionResponse>,
    /// Fires when the session must end: a newer one took over, or the agent was revoked.
    pub end: CancellationToken,
}

impl SessionRegistry {
    /// Enters a session, ending an older one of the same agent.
    pub fn enter(&self, agent: &AgentName, state: SessionState) -> Registration {
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        let end = CancellationToken::new();
        let epoch = state.epoch;
        let entry = Entry { state, orders: sender, end: end.clone(), answers: HashMap::new() };
        if let Some(older) = self.inner.sessions.lock().insert(agent.clone(), entry) {
            older.end.cancel();
        }
        self.inner.changed.notify_waiters();
        Registration { registry: self.clone(), agent: agent.clone(), epoch, orders, end }
    }

    /// Ends the session of an agent, if there is one.
    pub fn end(&self, agent: &AgentName) {
        if let Some(entry) = self.inner.sessions.lock().remove(agent) {
            entry.end.cancel();
        }
        self.inner.changed.notify_waiters();
    }

    /// The state of an agent's session.
    pub fn state(&self, agent: &AgentName) -> Option<SessionState> {
        self.inner.sessions.lock().get(agent).map(|entry| entry.state.clone())
    }

    /// The states of all sessions.
    pub fn states(&self) -> BTreeMap<AgentName, SessionState> {
        self.inner.sessions.lock().iter().map(|(agent, entry)| (agent.clone(), entry.state.clone())).collect()
    }

    /// How far our own clock is off, judged by those of the agents that are connected: by the middle one, so that no
    /// single one decides. Of two, the one that is nearer to ours.
    pub fn clock_error(&self) -> Option<SignedDuration> {
        let sessions = self.inner.sessions.lock();
        let heard = sessions.values().filter(|entry| entry.state.heartbeat.is_some());
        let mut ahead: Vec<i64> = heard.map(|entry| entry.state.clock_skew_millis).collect();
        drop(sessions);
        ahead.sort_unstable();
        let upper = *ahead.get(ahead.len() / 2)?;
        let lower = *ahead.get((ahead.len() - 1) / 2)?;
        let middle = if lower.abs() < upper.abs() { lower } else { upper };
        Some(SignedDuration::from_millis(middle.saturating_neg()))
    }

    /// Takes a sign of life.
    pub fn heartbeat(&self, agent: &AgentName, epoch: u64, heartbeat: v1::Heartbeat, now: Timestamp) {
        let mut sessions = self.inner.sessions.lock();
        if let Some(entry) = sessions.get_mut(agent).filter(|entry| entry.state.epoch == epoch) {
            if let Some(clock) = heartbeat.clock.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok()) {
                entry.state.clock_skew_millis = clock.as_millisecond().saturating_sub(now.as_millisecond());
            }
            entry.state.heartbeat = Some(heartbeat);
            entry.state.last_seen_at = now;
        }
    }

    /// Sends an order. The agent gets it at most once; a lost one is made good by leases.
    ///
    /// # Errors
    /// `HF-4008` when the agent is not connected, or does not take its orders; then its session is ended.
    pub fn send(&self, agent: &AgentName, message: v1::session_response::Message) -> Result<(), Failure> {
        let mut sessions = self.inner.sessions.lock();
        let entry = sessions.get(agent).ok_or_else(|| offline(agent))?;
        if entry.orders.try_send(v1::SessionResponse { message: Some(message) }).is_ok() {
            return Ok(());
        }
        if let Some(entry) = sessions.remove(agent) {
            entry.end.cancel();
        }
        Err(offline(agent))
    }

    /// Asks an agent something that changes nothing, and waits for the answer.
    ///
    /// # Errors
    /// `HF-4008` when the agent is not connected or does not answer in time; otherwise what the agent says.
    pub async fn ask(
        &self,
        agent: &AgentName,
        source_json: String,
        question: v1::inquiry::Question,
    ) -> Result<String, Failure> {
        let id = self.inner.inquiries.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, receiver) = oneshot::channel();
        match self.inner.sessions.lock().get_mut(agent) {
            Some(entry) => entry.answers.insert(id, sender),
            None => return Err(offline(agent)),
        };
        let inquiry = v1::Inquiry { id, source_json, question: Some(question) };
        self.send(agent, v1::session_response::Message::Inquiry(inquiry))?;
        let answer = tokio::time::timeout(INQUIRY_TIMEOUT, receiver).await;
        if let Some(entry) = self.inner.sessions.lock().get_mut(agent) {
            entry.answers.remove(&id);
        }
        match answer {
            Ok(Ok(v1::answer::Reply::DocumentJson(document))) => Ok(document),
            Ok(Ok(v1::answer::Reply::Failure(failure))) => Err(failure.into()),
            Ok(Err(_)) => Err(offline(agent).because("the session ended before the answer came")),
            Err(_) => {
                Err(offline(agent).because(format!("no answer within {} s", INQUIRY_TIMEOUT.as_secs())))
            }
        }
    }

    /// Hands an answer to who asked.
    pub fn answer(&self, agent: &AgentName, epoch: u64, answer: v1::Answer) {
        let waiting = {
            let mut sessions = self.inner.sessions.lock();
            let entry = sessions.get_mut(agent).filter(|entry| entry.state.epoch == epoch);
            entry.and_then(|entry| entry.answers.remove(&answer.id))
        };
        if let (Some(waiting), Some(reply)) = (waiting, answer.reply) {
            // Who asked may have given up.
            let _ = waiting.send(reply);
        }
    }

    /// Completes when a session begins or ends. Create it before looking at the sessions.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + '_ {
        self.inner.changed.notified()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut sessions = self.registry.inner.sessions.lock();
        if sessions.get(&self.agent).is_some_and(|entry| entry.state.epoch == self.epoch) {
            sessions.remove(&self.agent);
        }
        drop(sessions);
        self.registry.inner.changed.notify_waiters();
    }
}

fn offline(agent: &AgentName) -> Failure {
    Failure::new(ErrorCode::AgentOffline, format!("agent {agent} is not connected"))
        .then("holdfast agent list")
}
