//! The live stream to the controller, dialled from here and dialled again whenever it ends.
//!
//! Everything on it is either repeated until it is acknowledged (facts) or may be lost (progress, heartbeats): the
//! stream itself may break at any moment. One session lives at a time; the controller ends an older one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::v1::agent_service_client::AgentServiceClient;
use holdfast_proto::{PROTOCOL_VERSION, v1};
use holdfast_runtime::{Backoff, BackoffPolicy, SharedClock, TaskGroup};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

mod conversation;
#[cfg(test)]
mod tests;

use conversation::Conversation;

use crate::dial::{self, Link};
use crate::executor::Executor;
use crate::host;
use crate::identity::{Identity, Validity};
use crate::inquiry::Inquirer;
use crate::outbox::Outbox;

/// Engines that this version drives.
pub const ENGINES: [&str; 3] = ["postgres", "sqlite", "files"];
/// How long the controller may take to welcome an agent.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(20);
/// A session that lived this long before another took its place was a good one: the next is dialled without much
/// waiting.
const GOOD_SESSION: Duration = Duration::from_secs(30);
/// Messages on their way to the connection.
const OUTGOING_MAX: usize = 64;
/// The largest message from the controller: a manifest with very many tables.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// How the session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// There is none; it is being dialled, or will be.
    Disconnected,
    /// It lives, as the number the controller gave it.
    Connected {
        /// Higher than that of any session before.
        epoch: u64,
    },
}

/// What a session works with.
pub struct SessionParts {
    /// The way to the controller.
    pub link: Arc<Link>,
    /// Who this agent is.
    pub identity: Arc<Identity>,
    /// Runs on this host.
    pub executor: Executor,
    /// Facts that wait.
    pub outbox: Outbox,
    /// Answers questions.
    pub inquirer: Inquirer,
    /// The time.
    pub clock: SharedClock,
    /// Owner of tasks.
    pub tasks: TaskGroup,
    /// Where the free space is looked at.
    pub data_dir: PathBuf,
    /// How many runs this agent takes at once.
    pub slots: u32,
    /// Told how the session is.
    pub state: watch::Sender<SessionState>,
    /// Told how long a lease lasts, in seconds.
    pub lease_seconds: Arc<AtomicU32>,
    /// Ends the session for good.
    pub stop: CancellationToken,
}

impl SessionParts {
    /// How often at least an agent must be heard while it has runs in hand.
    fn third_of_lease(&self) -> Duration {
        Duration::from_secs(u64::from(self.lease_seconds.load(Ordering::Relaxed))) / 3
    }
}

/// Why a session ended.
enum Ended {
    /// The agent stops.
    Stopped,
    /// It is to be dialled anew at once, for this reason.
    Renewed(&'static str),
    /// It broke, or did not come to be.
    Lost(Failure),
}

/// Keeps a session until the agent stops.
pub async fn keep_session(parts: SessionParts) {
    let mut backoff = Backoff::new(BackoffPolicy::RECONNECT);
    while !parts.stop.is_cancelled() {
        let began = parts.clock.monotonic();
        let ended = one_session(&parts).await;
        let was = parts.state.send_replace(SessionState::Disconnected);
        let failure = match ended {
            Ended::Stopped => return,
            Ended::Renewed(reason) => {
                tracing::info!(reason, "dialling a new session");
                backoff.reset();
                continue;
            }
            Ended::Lost(failure) => explain(&parts, failure),
        };
        // Two agents with one identity, each of which ends the other's session, must not do so without pause; whatever
        // else ended a session that had come to be, such as restarts of the controller, is no reason to stay away.
        let contested = failure.code == ErrorCode::SessionReplaced
            && parts.clock.monotonic().saturating_duration_since(began) <= GOOD_SESSION;
        if was != SessionState::Disconnected && !contested {
            backoff.reset();
        }
        tracing::warn!(%failure, failures = backoff.failures() + 1, "no session with the controller");
        let mut delay = backoff.next_delay();
        if !parts.executor.in_hand().is_empty() {
            // A controller that is back gives the time of one lease to claim what is in hand.
            delay = delay.min(parts.third_of_lease());
        }
        if parts.stop.run_until_cancelled(parts.clock.sleep(delay)).await.is_none() {
            return;
        }
    }
}

/// A certificate that is not valid now, by the clock of this host, is why no connection comes to be. The controller's
/// refusal often is not heard: it closes the connection while the agent still speaks.
fn explain(parts: &SessionParts, failure: Failure) -> Failure {
    let (validity, now) = (parts.identity.validity(), parts.clock.now());
    if failure.code != ErrorCode::ControllerUnreachable
        || (validity.not_before <= now && now <= validity.not_after)
    {
        return failure;
    }
    let Validity { not_before, not_after } = validity;
    let message = format!(
        "the certificate of this agent is valid from {not_before} to {not_after}, and it is {now:.0} here"
    );
    Failure::new(ErrorCode::CertificateRejected, message).because(failure.message)
}

async fn one_session(parts: &SessionParts) -> Ended {
    let dialled = async {
        let channel = parts.link.connect().await?;
        let draining = *parts.executor.watch_draining().borrow();
        let (sender, receiver) = mpsc::channel(OUTGOING_MAX);
        let hello =
            v1::SessionRequest { message: Some(v1::session_request::Message::Hello(hello(parts, draining))) };
        sender.try_send(hello).expect("the channel is new and has room");
        let (stream, welcome) = open(parts, &channel, receiver).await?;
        Ok((channel, sender, stream, welcome, draining))
    };
    let (channel, sender, stream, welcome, draining) = match parts.stop.run_until_cancelled(dialled).await {
        None => return Ended::Stopped,
        Some(Err(failure)) => return Ended::Lost(failure),
        Some(Ok(opened)) => opened,
    };
    if let Err(ended) = take_welcome(parts, &welcome).await {
        return ended;
    }
    tracing::info!(
        epoch = welcome.epoch,
        controller = welcome.controller_version,
        "connected to the controller"
    );
    parts.state.send_replace(SessionState::Connected { epoch: welcome.epoch });
    Conversation::new(parts, channel, sender, stream, welcome.acked_fact_seq, draining).run().await
}

type Incoming = tonic::Streaming<v1::SessionResponse>;

async fn open(
    parts: &SessionParts,
    channel: &Channel,
    outgoing: mpsc::Receiver<v1::SessionRequest>,
) -> Result<(Incoming, v1::Welcome), Failure> {
    let late = || {
        let message = format!("the controller {} did not welcome this agent", parts.link.address());
        Failure::new(ErrorCode::ControllerUnreachable, message)
    };
    let mut client = AgentServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let opened = async {
        let mut stream = client.session(ReceiverStream::new(outgoing)).await?.into_inner();
        let first = stream.message().await?;
        Ok::<_, tonic::Status>((stream, first.and_then(|response| response.message)))
    };
    tokio::select! {
        opened = opened => match opened {
            Ok((stream, Some(v1::session_response::Message::Welcome(welcome)))) => Ok((stream, welcome)),
            Ok(_) => Err(late()),
            Err(status) => Err(dial::failure_of(parts.link.address(), &status)),
        },
        () = parts.clock.sleep(WELCOME_TIMEOUT) => Err(late()),
    }
}

/// Takes over what the controller knows.
async fn take_welcome(parts: &SessionParts, welcome: &v1::Welcome) -> Result<(), Ended> {
    if welcome.lease_seconds > 0 {
        parts.lease_seconds.store(welcome.lease_seconds, Ordering::Relaxed);
    }
    let lost = |error: crate::outbox::OutboxError| Ended::Lost(error.into());
    if welcome.acked_fact_seq > parts.outbox.last_seq() {
        tracing::warn!(
            "the controller knows more facts of this outbox than it holds: the data folder is an older copy"
        );
        parts.outbox.renew_identity().await.map_err(lost)?;
        return Err(Ended::Renewed("the outbox has a new identity"));
    }
    parts.outbox.acknowledge(welcome.acked_fact_seq).await.map_err(lost)
}

fn hello(parts: &SessionParts, draining: bool) -> v1::Hello {
    v1::Hello {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL_VERSION,
        facts: Some(host::facts()),
        engines: ENGINES.map(str::to_owned).to_vec(),
        runs_in_hand: runs_in_hand(&parts.executor),
        last_fact_seq: parts.outbox.last_seq(),
        slots: parts.slots,
        outbox_id: parts.outbox.id(),
        draining,
    }
}

fn runs_in_hand(executor: &Executor) -> Vec<v1::RunInHand> {
    let in_hand = executor.in_hand().into_iter();
    in_hand.map(|(run, attempt)| v1::RunInHand { run_id: run.to_string(), attempt: attempt.0 }).collect()
}
