//! One agent's stream: handshake, orders out, facts and signs of life in.
//!
//! Facts are applied in order and acknowledged only when they are durable. Orders may be lost; leases make that good.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::ids::{AgentName, Attempt, RunId};
use holdfast_model::run::{LogLevel, LogLine, Run};
use holdfast_model::run_state::{Intent, Phase, RunEvent};
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{from_document, parse, timestamp};
use holdfast_proto::status::to_status;
use holdfast_proto::v1::session_request::Message as FromAgent;
use holdfast_proto::v1::session_response::Message as ToAgent;
use holdfast_proto::{PROTOCOL_VERSION, v1};
use holdfast_runtime::OnEnd;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tonic::{Status, Streaming};

use crate::core::Core;
use crate::records::OutboxPosition;
use crate::run_lifecycle::Outcome;
use crate::session_registry::{ORDERS_MAX, Registration, SessionState};

/// How long an agent may take for its first message.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Facts an agent may not have named as its outbox.
const OUTBOX_ID_BYTES_MAX: usize = 64;

/// Messages to the agent, as the stream of the call.
pub type Outgoing = mpsc::Receiver<Result<v1::SessionResponse, Status>>;

/// Shakes hands with an agent, and serves its stream as a task of its own until either side ends it.
///
/// # Errors
/// When the first message is late or not a Hello, the protocol is unknown, or the agent is revoked.
pub async fn serve(
    core: Arc<Core>,
    agent: AgentName,
    serial: Arc<str>,
    mut incoming: Streaming<v1::SessionRequest>,
) -> Result<Outgoing, Failure> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, incoming.next()).await;
    let Ok(Some(Ok(v1::SessionRequest { message: Some(FromAgent::Hello(hello)) }))) = first else {
        return Err(Failure::new(ErrorCode::UsageInvalid, "the first message of a session must be Hello"));
    };
    check_hello(&hello)?;
    let session = Session::begin(core.clone(), agent, serial, &hello).await?;
    let (out, outgoing) = mpsc::channel(ORDERS_MAX);
    let welcome = session.welcome();
    out.send(Ok(message(ToAgent::Welcome(welcome)))).await.map_err(|_| gone())?;
    let name = format!("session of {}", session.agent);
    core.tasks.spawn(name, OnEnd::Isolated, session.run(hello.runs_in_hand, incoming, out));
    Ok(outgoing)
}

fn check_hello(hello: &v1::Hello) -> Result<(), Failure> {
    if hello.protocol != PROTOCOL_VERSION {
        return Err(Failure::new(
            ErrorCode::Unsupported,
            format!("the agent speaks protocol {}, this controller {PROTOCOL_VERSION}", hello.protocol),
        ));
    }
    if hello.outbox_id.is_empty()
        || hello.outbox_id.len() > OUTBOX_ID_BYTES_MAX
        || hello.runs_in_hand.len() > 1024
    {
        return Err(Failure::new(ErrorCode::UsageInvalid, "the Hello of the agent is out of bounds"));
    }
    Ok(())
}

struct Session {
    core: Arc<Core>,
    agent: AgentName,
    epoch: u64,
    registration: Registration,
    outbox_id: String,
    /// The highest number of a fact that is durable.
    acked: u64,
    /// The attempts that the agent had before this session: what it is given on it cannot be in its Hello yet.
    given_before: Vec<(RunId, Attempt)>,
}

impl Session {
    async fn begin(
        core: Arc<Core>,
        agent: AgentName,
        serial: Arc<str>,
        hello: &v1::Hello,
    ) -> Result<Self, Failure> {
        let now = core.clock.now();
        let epoch = core.agents.begin_session(&agent, &serial, hello, now).await?;
        let position = core.records.outbox(&agent).await?;
        let acked =
            position.filter(|position| position.outbox_id == hello.outbox_id).map_or(0, |known| known.seq);
        let state = SessionState {
            epoch,
            serial,
            slots: hello.slots.clamp(1, 64),
            draining: hello.draining,
            heartbeat: None,
            last_seen_at: now,
            clock_skew_millis: 0,
        };
        tracing::info!(%agent, epoch, version = hello.agent_version, "agent connected");
        let is_given = |run: &Run| run.agent.as_ref() == Some(&agent) && run.state.phase.is_with_agent();
        let given = core.runs.active().into_iter().filter(is_given);
        let given_before = given.map(|run| (run.id, run.state.attempt)).collect();
        let registration = core.sessions.enter(&agent, state);
        let outbox_id = hello.outbox_id.clone();
        Ok(Self { core, agent, epoch, registration, outbox_id, acked, given_before })
    }

    fn welcome(&self) -> v1::Welcome {
        v1::Welcome {
            epoch: self.epoch,
            clock: Some(timestamp(self.core.clock.now())),
            controller_version: crate::VERSION.to_owned(),
            acked_fact_seq: self.acked,
            lease_seconds: self.core.config.get().limits.lease_seconds,
        }
    }

    async fn run(
        mut self,
        in_hand: Vec<v1::RunInHand>,
        mut incoming: Streaming<v1::SessionRequest>,
        out: mpsc::Sender<Result<v1::SessionResponse, Status>>,
    ) {
        let stop = self.core.tasks.token().clone();
        let ended = match self.reconcile(&in_hand).await {
            Ok(()) => loop {
                let next = tokio::select! {
                    biased;
                    () = stop.cancelled() => break Ok(()),
                    () = self.registration.end.cancelled() => break Err(replaced()),
                    order = self.registration.orders.recv() => match order {
                        Some(order) => Next::Order(order),
                        None => break Err(replaced()),
                    },
                    message = incoming.next() => match message {
                        Some(Ok(request)) => Next::Request(request),
                        Some(Err(_)) | None => break Ok(()),
                    },
                };
                let handled = match next {
                    Next::Order(order) => out.try_send(Ok(order)).map_err(|_| gone()),
                    Next::Request(request) => self.receive(request, &out).await,
                };
                if let Err(failure) = handled {
                    break Err(failure);
                }
            },
            Err(failure) => Err(failure),
        };
        match ended {
            Ok(()) => tracing::info!(agent = %self.agent, epoch = self.epoch, "agent disconnected"),
            Err(failure) => {
                tracing::warn!(agent = %self.agent, epoch = self.epoch, %failure, "session ended");
                // The peer may be gone already.
                let _ = out.try_send(Err(to_status(&failure)));
            }
        }
    }

    /// Compares what the agent holds with what it should hold.
    async fn reconcile(&self, in_hand: &[v1::RunInHand]) -> Result<(), Failure> {
        let mut held = Vec::new();
        for run in in_hand {
            let id: RunId = parse("run_id", &run.run_id)?;
            let attempt = Attempt(run.attempt);
            match self.core.runs.fence(id, attempt, &self.agent) {
                Ok(known) => {
                    held.push((id, attempt));
                    if known.state.intent == Intent::Cancel {
                        let cancel = v1::Cancel { run_id: run.run_id.clone(), attempt: run.attempt };
                        self.core.sessions.send(&self.agent, ToAgent::Cancel(cancel))?;
                    }
                }
                Err(reason) => {
                    let abandon = v1::Abandon {
                        run_id: run.run_id.clone(),
                        attempt: run.attempt,
                        reason: Some((&reason).into()),
                    };
                    self.core.sessions.send(&self.agent, ToAgent::Abandon(abandon))?;
                }
            }
        }
        for run in self.core.runs.active() {
            let attempt = (run.id, run.state.attempt);
            let is_given = run.agent.as_ref() == Some(&self.agent) && run.state.phase.is_with_agent();
            if is_given && self.given_before.contains(&attempt) && !held.contains(&attempt) {
                self.core.give_up(&run, false).await?;
            }
        }
        Ok(())
    }

    async fn receive(
        &mut self,
        request: v1::SessionRequest,
        out: &mpsc::Sender<Result<v1::SessionResponse, Status>>,
    ) -> Result<(), Failure> {
        match request.message {
            Some(FromAgent::Heartbeat(heartbeat)) => {
                for run in &heartbeat.runs_in_hand {
                    if let Ok(id) = run.run_id.parse() {
                        // Renews the lease; a stale one is told at the next report.
                        let _ = self.core.runs.fence(id, Attempt(run.attempt), &self.agent);
                    }
                }
                self.core.sessions.heartbeat(&self.agent, self.epoch, heartbeat, self.core.clock.now());
            }
            Some(FromAgent::Fact(fact)) => {
                let seq = fact.seq;
                if seq > self.acked {
                    self.take_fact(fact).await?;
                    self.acked = seq;
                }
                let ack = ToAgent::Ack(v1::Ack { seq: self.acked });
                out.try_send(Ok(message(ack))).map_err(|_| gone())?;
            }
            Some(FromAgent::Progress(report)) => {
                if let (Ok(id), Some(progress)) = (report.run_id.parse(), report.progress) {
                    self.core.runs.progress(id, Attempt(report.attempt), &self.agent, progress.into());
                }
            }
            Some(FromAgent::Answer(answer)) => self.core.sessions.answer(&self.agent, self.epoch, answer),
            Some(FromAgent::Hello(_)) => {
                return Err(Failure::new(ErrorCode::UsageInvalid, "a session has one Hello"));
            }
            // From a newer agent; what we do not know we can not need.
            None => {}
        }
        Ok(())
    }

    /// Makes a fact durable. A fact about a run that is not this agent's, or of an older attempt, is dropped: it is
    /// acknowledged, since sending it again can not make it right.
    async fn take_fact(&self, fact: v1::Fact) -> Result<(), Failure> {
        use v1::fact::Event;
        let id: RunId = parse("run_id", &fact.run_id)?;
        let attempt = Attempt(fact.attempt);
        if let Some(Event::Log(log)) = fact.event {
            return self.take_log(id, log).await;
        }
        let Ok(run) = self.core.runs.fence(id, attempt, &self.agent) else {
            tracing::info!(run = %id, %attempt, agent = %self.agent, "dropped a late fact");
            return Ok(());
        };
        let position =
            OutboxPosition { agent: self.agent.clone(), outbox_id: self.outbox_id.clone(), seq: fact.seq };
        let mut outcome = Outcome { outbox: Some(position), ..Outcome::default() };
        let (mut cut_short, mut rest) = (None, None);
        let event = match fact.event {
            Some(Event::Started(_)) => RunEvent::Started(attempt),
            Some(Event::Finished(finished)) => {
                if !finished.restored_json.is_empty() {
                    outcome.restored = Some(from_document("restored_json", &finished.restored_json)?);
                }
                outcome.progress = finished.progress.map(Into::into);
                RunEvent::Finished { attempt, warnings: finished.warnings }
            }
            Some(Event::Failed(failure)) => {
                let failed = self.core.attempt_failed(&run, failure.into()).await?;
                outcome.snapshot = failed.snapshot;
                rest = failed.rest;
                outcome.rest = rest;
                if let RunEvent::Interrupted { failure, .. } = &failed.event {
                    cut_short = Some(failure.to_string());
                }
                failed.event
            }
            Some(Event::Cancelled(_)) => RunEvent::CancelConfirmed(attempt),
            Some(Event::Log(_)) | None => return Ok(()),
        };
        match self.core.runs.apply(id, &format!("agent:{}", self.agent), event, outcome).await {
            Ok(run) => {
                if let Some(why) = cut_short.filter(|_| run.state.phase == Phase::Queued) {
                    self.note_interruption(&run, &why, rest).await;
                }
                self.core.after_change(&run).await
            }
            Err(failure) if is_stale(&failure) => {
                tracing::info!(run = %id, %failure, "dropped a fact");
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    async fn note_interruption(&self, run: &Run, why: &str, rest: Option<Duration>) {
        let text = match rest {
            Some(rest) => format!("the attempt failed and is tried again in {} s: {why}", rest.as_secs()),
            None => format!("the attempt was cut short and the run is queued again: {why}"),
        };
        self.core.log(run, LogLevel::Warning, vec![text]).await;
    }

    async fn take_log(&self, id: RunId, log: v1::LogLines) -> Result<(), Failure> {
        // Lines of an older attempt are worth keeping; lines of another agent's run are not its to write.
        let run = match self.core.runs.get(id).await {
            Ok(run) if run.agent.as_ref() == Some(&self.agent) => run,
            _ => return Ok(()),
        };
        let lines: Vec<LogLine> =
            log.lines.into_iter().take(100).filter_map(|line| LogLine::try_from(line).ok()).collect();
        let logs = self.core.logs.clone();
        self.core.blocking("append to a log", move || logs.append(run.id, &lines)).await
    }
}

enum Next {
    Order(v1::SessionResponse),
    Request(v1::SessionRequest),
}

fn message(message: ToAgent) -> v1::SessionResponse {
    v1::SessionResponse { message: Some(message) }
}

fn is_stale(failure: &Failure) -> bool {
    matches!(failure.code, ErrorCode::StaleAttempt | ErrorCode::NotFound | ErrorCode::Internal)
}

fn replaced() -> Failure {
    Failure::new(
        ErrorCode::SessionReplaced,
        "a newer session of this agent took over, or the agent was revoked",
    )
}

fn gone() -> Failure {
    Failure::new(ErrorCode::AgentOffline, "the agent does not read its orders")
}
