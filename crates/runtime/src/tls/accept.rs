//! The accept loop: handshakes with a limit of time, connections with a limit per peer and in all.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

use crate::task_group::{OnEnd, TaskGroup};

/// What one listener takes at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptLimits {
    /// A peer that has not finished its handshake by then is dropped.
    pub handshake_timeout: Duration,
    /// Open connections in all, handshakes included; further ones wait in the backlog of the operating system.
    pub connections_max: usize,
    /// Open connections of one address, handshakes included; further ones are dropped.
    pub connections_per_peer_max: usize,
}

impl Default for AcceptLimits {
    /// 10 s; 16,384 connections, enough for 10,000 agents; 4,096 of one address, as a fleet behind one gateway has.
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            connections_max: 16_384,
            connections_per_peer_max: 4_096,
        }
    }
}

/// Finished handshakes that wait for the server to take them.
const HANDED_OVER_MAX: usize = 64;
/// How long to wait when the operating system cannot accept (out of descriptors, mostly).
const ACCEPT_FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// The address the peer calls from.
    pub remote: SocketAddr,
    /// The address it called.
    pub local: SocketAddr,
    /// The certificates the peer has shown, its own first; verified against our CA. Empty when it showed none.
    pub peer_certificates: Arc<[CertificateDer<'static>]>,
}

/// An accepted connection. Its place among the limited ones is free again when it is dropped.
#[derive(Debug)]
pub struct Accepted<S> {
    stream: S,
    info: ConnectionInfo,
    _place: Place,
}

/// A connection after its TLS handshake.
pub type TlsConnection = Accepted<TlsStream<TcpStream>>;

/// A connection without TLS.
pub type PlainConnection = Accepted<TcpStream>;

impl<S> Accepted<S> {
    /// Who is at the other end.
    pub fn info(&self) -> &ConnectionInfo {
        &self.info
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Accepted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Accepted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Accepts connections until the group is cancelled; handshakes run as tasks of the group.
///
/// The stream yields finished handshakes only (failed ones are logged), never an error, and ends with the group.
pub fn accept_tls(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    limits: AcceptLimits,
    tasks: &TaskGroup,
) -> ReceiverStream<io::Result<TlsConnection>> {
    let tls = TlsAcceptor::from(config);
    let shake_hands = move |stream: TcpStream| {
        let tls = tls.clone();
        let shaking: Shaking<TlsStream<TcpStream>> = Box::pin(async move {
            let stream = tls.accept(stream).await?;
            let shown = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
            Ok((stream, shown))
        });
        shaking
    };
    accept(listener, Arc::new(shake_hands), limits, tasks)
}

/// As [`accept_tls`], without TLS: for connections that do not leave the machine.
pub fn accept_plain(
    listener: TcpListener,
    limits: AcceptLimits,
    tasks: &TaskGroup,
) -> ReceiverStream<io::Result<PlainConnection>> {
    let shake_hands = |stream| {
        let shaking: Shaking<TcpStream> = Box::pin(async move { Ok((stream, Vec::new())) });
        shaking
    };
    accept(listener, Arc::new(shake_hands), limits, tasks)
}

fn accept<S: Send + 'static>(
    listener: TcpListener,
    shake_hands: ShakeHands<S>,
    limits: AcceptLimits,
    tasks: &TaskGroup,
) -> ReceiverStream<io::Result<Accepted<S>>> {
    let (sender, receiver) = mpsc::channel(HANDED_OVER_MAX);
    let acceptor = Acceptor {
        listener,
        shake_hands,
        limits,
        places: Arc::new(Semaphore::new(limits.connections_max)),
        peers: Arc::default(),
        tasks: tasks.clone(),
        sender,
    };
    let token = tasks.token().clone();
    drop(tasks.spawn("accept", OnEnd::Essential, async move {
        token.run_until_cancelled(acceptor.run()).await;
    }));
    ReceiverStream::new(receiver)
}

/// A handshake under way: it yields the stream and the certificates that the peer has shown.
type Shaking<S> = Pin<Box<dyn Future<Output = io::Result<(S, Vec<CertificateDer<'static>>)>> + Send>>;

/// Turns what was accepted into a connection.
type ShakeHands<S> = Arc<dyn Fn(TcpStream) -> Shaking<S> + Send + Sync>;

struct Acceptor<S> {
    listener: TcpListener,
    shake_hands: ShakeHands<S>,
    limits: AcceptLimits,
    places: Arc<Semaphore>,
    peers: Arc<Mutex<HashMap<IpAddr, usize>>>,
    tasks: TaskGroup,
    sender: mpsc::Sender<io::Result<Accepted<S>>>,
}

impl<S: Send + 'static> Acceptor<S> {
    async fn run(self) {
        loop {
            let permit = self.places.clone().acquire_owned().await.expect("the semaphore is never closed");
            let (stream, remote) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_FAILURE_PAUSE).await;
                    continue;
                }
            };
            let Some(place) = self.place(remote.ip(), permit) else {
                tracing::warn!(%remote, "too many connections from this address");
                continue;
            };
            let handshake = self.handshake(stream, remote, place);
            drop(self.tasks.spawn("handshake", OnEnd::Isolated, handshake));
        }
    }

    fn place(&self, peer: IpAddr, permit: OwnedSemaphorePermit) -> Option<Place> {
        let mut peers = self.peers.lock();
        let open = peers.entry(peer).or_default();
        if *open >= self.limits.connections_per_peer_max {
            return None;
        }
        *open += 1;
        Some(Place { peers: self.peers.clone(), peer, _permit: permit })
    }

    fn handshake(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
        place: Place,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (shake_hands, sender) = (self.shake_hands.clone(), self.sender.clone());
        let limit = self.limits.handshake_timeout;
        let token = self.tasks.token().clone();
        async move {
            // Without it, small answers wait for acknowledgements of earlier ones.
            let _ = stream.set_nodelay(true);
            let work = async {
                let Ok(local) = stream.local_addr() else { return };
                let (stream, shown) = match tokio::time::timeout(limit, shake_hands(stream)).await {
                    Ok(Ok(shaken)) => shaken,
                    Ok(Err(error)) => return tracing::debug!(%remote, %error, "a TLS handshake failed"),
                    Err(_) => return tracing::debug!(%remote, "a TLS handshake took too long"),
                };
                let info = ConnectionInfo { remote, local, peer_certificates: shown.into() };
                // The receiver is gone only when the server stops.
                let _ = sender.send(Ok(Accepted { stream, info, _place: place })).await;
            };
            token.run_until_cancelled(work).await;
        }
    }
}

/// One connection's place among those of its peer and in all.
#[derive(Debug)]
struct Place {
    peers: Arc<Mutex<HashMap<IpAddr, usize>>>,
    peer: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = self.peers.lock();
        if let Some(open) = peers.get_mut(&self.peer) {
            *open -= 1;
            if *open == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}
