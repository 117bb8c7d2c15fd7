//! What is said within one session.

use std::time::{Duration, Instant};

use holdfast_model::ids::{Attempt, RunId};
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::convert::{parse, timestamp};
use holdfast_proto::v1;
use holdfast_proto::v1::session_request::Message as Outgoing;
use holdfast_proto::v1::session_response::Message as Incoming;
use holdfast_runtime::OnEnd;
use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;

use super::{Ended, SessionParts, runs_in_hand};
use crate::certificate_renewal::renew_when_due;
use crate::dial;
use crate::executor::Assignment;
use crate::host::{CpuTimes, HostLoad};
use crate::outbox::OutboxError;
use crate::progress_reporter::{self, ProgressReporter};

/// How often a sign of life is sent, or oftener where leases are short; each renews the leases of the runs in hand.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Facts on their way that are not acknowledged yet.
const FACTS_IN_FLIGHT_MAX: u64 = 16;
/// Places in the queue of messages that facts and progress leave to heartbeats and answers.
const PLACES_KEPT: usize = 24;
/// Answers that wait to be sent.
const ANSWERS_MAX: usize = 16;

pub(super) struct Conversation<'a> {
    parts: &'a SessionParts,
    channel: Channel,
    outgoing: mpsc::Sender<v1::SessionRequest>,
    incoming: super::Incoming,
    answers: (mpsc::Sender<v1::Answer>, mpsc::Receiver<v1::Answer>),
    /// Number of the last fact that was sent on this session.
    sent: u64,
    acked: u64,
    progress: ProgressReporter,
    said_draining: bool,
    /// At the heartbeat before.
    cpu_times: Option<CpuTimes>,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(
        parts: &'a SessionParts,
        channel: Channel,
        outgoing: mpsc::Sender<v1::SessionRequest>,
        incoming: super::Incoming,
        acked: u64,
        said_draining: bool,
    ) -> Self {
        let answers = mpsc::channel(ANSWERS_MAX);
        let progress = ProgressReporter::default();
        let cpu_times = CpuTimes::now();
        Self {
            parts,
            channel,
            outgoing,
            incoming,
            answers,
            sent: acked,
            acked,
            progress,
            said_draining,
            cpu_times,
        }
    }

    pub(super) async fn run(mut self) -> Ended {
        let parts = self.parts;
        let clock = &parts.clock;
        let mut facts = parts.outbox.watch_last_seq();
        facts.mark_changed();
        let mut draining = parts.executor.watch_draining();
        let renewal = renew_when_due(&parts.identity, &parts.link, self.channel.clone(), clock, &parts.stop);
        let mut renewal = std::pin::pin!(renewal);
        let heartbeat_interval = HEARTBEAT_INTERVAL.min(parts.third_of_lease());
        let mut heartbeat_due = clock.monotonic();
        let mut progress_due = heartbeat_due + progress_reporter::INTERVAL;
        loop {
            let tick = clock.sleep_until(heartbeat_due.min(progress_due));
            tokio::select! {
                () = parts.stop.cancelled() => return Ended::Stopped,
                () = &mut renewal => {
                    return if parts.stop.is_cancelled() { Ended::Stopped } else { Ended::Renewed("the certificate is new") };
                }
                () = become_true(&mut draining), if !self.said_draining => {
                    return Ended::Renewed("the agent drains");
                }
                message = self.incoming.message() => match message {
                    Ok(Some(message)) => if let Err(ended) = self.take(message).await { return ended },
                    Ok(None) => return Ended::Lost(ended_by_controller()),
                    Err(status) => return Ended::Lost(dial::failure_of(parts.link.address(), &status)),
                },
                _ = facts.changed() => if let Err(error) = self.send_facts().await { return Ended::Lost(error.into()) },
                Some(answer) = self.answers.1.recv() => self.say(Outgoing::Answer(answer), 0),
                () = tick => {
                    let now = clock.monotonic();
                    if now >= heartbeat_due {
                        heartbeat_due = next_due(heartbeat_due, now, heartbeat_interval);
                        self.heartbeat();
                        if let Err(error) = self.send_facts().await { return Ended::Lost(error.into()) }
                    }
                    if now >= progress_due {
                        progress_due = next_due(progress_due, now, progress_reporter::INTERVAL);
                        self.report_progress();
                    }
                }
            }
        }
    }

    /// Queues a message if more than so many places are free. What may not be lost is sent again by its owner.
    fn say(&self, message: Outgoing, places_kept: usize) {
        if self.outgoing.capacity() > places_kept {
            let _ = self.outgoing.try_send(v1::SessionRequest { message: Some(message) });
        }
    }

    fn heartbeat(&mut self) {
        let load = HostLoad::now(&self.parts.data_dir);
        let before = std::mem::replace(&mut self.cpu_times, CpuTimes::now());
        let cpu_used = self.cpu_times.zip(before).and_then(|(now, before)| now.share_since(before));
        let heartbeat = v1::Heartbeat {
            runs_in_hand: runs_in_hand(&self.parts.executor),
            load: load.load,
            memory_available_bytes: load.memory_available_bytes,
            disk_free_bytes: load.disk_free_bytes,
            clock: Some(timestamp(self.parts.clock.now())),
            resident_bytes: load.resident_bytes,
            memory_total_bytes: load.memory_total_bytes,
            disk_total_bytes: load.disk_total_bytes,
            cpu_used,
        };
        self.say(Outgoing::Heartbeat(heartbeat), 0);
    }

    fn report_progress(&mut self) {
        for report in self.progress.changed(self.parts.executor.progress()) {
            self.say(Outgoing::Progress(report), PLACES_KEPT);
        }
    }

    /// Sends the next facts, as far as the window and the queue have room.
    async fn send_facts(&mut self) -> Result<(), OutboxError> {
        loop {
            let window = FACTS_IN_FLIGHT_MAX.saturating_sub(self.sent - self.acked);
            let places = self.outgoing.capacity().saturating_sub(PLACES_KEPT);
            let count = places.min(usize::try_from(window).unwrap_or(0));
            if count == 0 || self.sent >= self.parts.outbox.last_seq() {
                return Ok(());
            }
            let facts = self.parts.outbox.read_after(self.sent, count).await?;
            if facts.is_empty() {
                return Ok(());
            }
            for fact in facts {
                self.sent = fact.seq;
                self.say(Outgoing::Fact(fact), 0);
            }
        }
    }

    async fn take(&mut self, message: v1::SessionResponse) -> Result<(), Ended> {
        let executor = &self.parts.executor;
        match message.message {
            Some(Incoming::Assign(assign)) => self.assign(&assign).await,
            Some(Incoming::Ack(ack)) => {
                self.acked = self.acked.max(ack.seq.min(self.sent));
                let taken = async {
                    self.parts.outbox.acknowledge(self.acked).await?;
                    self.send_facts().await
                };
                taken.await.map_err(|error| Ended::Lost(error.into()))?;
            }
            Some(Incoming::Cancel(cancel)) => {
                if let Some((run, attempt)) = run_of(&cancel.run_id, cancel.attempt) {
                    executor.cancel(run, attempt);
                }
            }
            Some(Incoming::Abandon(abandon)) => {
                if let Some((run, attempt)) = run_of(&abandon.run_id, abandon.attempt) {
                    executor.abandon(run, attempt);
                }
            }
            Some(Incoming::Drain(v1::Drain {})) => {
                tracing::info!("the controller asks this agent to drain");
                executor.drain();
            }
            Some(Incoming::Inquiry(inquiry)) => self.inquire(inquiry),
            Some(Incoming::DebugRuns(debug)) => match parse("source", &debug.source) {
                Ok(source) => executor.debug(&source, Duration::from_secs(u64::from(debug.seconds))),
                Err(error) => tracing::warn!(%error, "a message that names no source was left alone"),
            },
            Some(Incoming::Welcome(_)) => {
                return Err(Ended::Lost(ended_by_controller().because("a second welcome")));
            }
            None => tracing::debug!("a message of a newer protocol was left alone"),
        }
        Ok(())
    }

    async fn assign(&self, assign: &v1::Assign) {
        let incomprehensible = match Assignment::read(assign) {
            Ok(Ok(assignment)) => return self.parts.executor.assign(assignment),
            Ok(Err(incomprehensible)) => incomprehensible,
            Err(error) => {
                tracing::warn!(%error, "an assignment that names no run was left alone");
                return;
            }
        };
        let (run, attempt) = (incomprehensible.run, incomprehensible.attempt);
        if self.parts.executor.in_hand().contains(&(run, attempt)) {
            return;
        }
        let failed = v1::fact::Event::Failed((&incomprehensible.failure).into());
        if let Err(error) = self.parts.outbox.append(run, attempt, failed).await {
            tracing::error!(%error, %run, "the refusal of a run cannot be recorded");
        }
    }

    fn inquire(&self, inquiry: v1::Inquiry) {
        let (inquirer, answers) = (self.parts.inquirer.clone(), self.answers.0.clone());
        drop(self.parts.tasks.spawn("inquiry", OnEnd::Isolated, async move {
            let answer = inquirer.answer(inquiry).await;
            // The session may have ended meanwhile; the question is then asked again.
            let _ = answers.send(answer).await;
        }));
    }
}

/// Completes once it is true; never when it cannot become true any more.
async fn become_true(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|&is_true| is_true).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn ended_by_controller() -> Failure {
    Failure::new(ErrorCode::ControllerUnreachable, "the controller ended the session")
}

fn run_of(run_id: &str, attempt: u32) -> Option<(RunId, Attempt)> {
    match parse("run_id", run_id) {
        Ok(run) => Some((run, Attempt(attempt))),
        Err(error) => {
            tracing::warn!(%error, "a message that names no run was left alone");
            None
        }
    }
}

/// The next moment of a rhythm; moments that were missed are not made up for.
fn next_due(due: Instant, now: Instant, interval: Duration) -> Instant {
    let next = due + interval;
    if next > now { next } else { now + interval }
}
