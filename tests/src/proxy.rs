//! The network between an agent and its controller, which a test may cut.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use holdfast_runtime::{OnEnd, Shutdown, TaskGroup};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Bytes read at a time.
const PART_BYTES: usize = 64 << 10;

/// What the network does.
#[derive(Debug, Clone, Copy)]
struct Network {
    /// Bytes arrive; otherwise they wait where they are, as packets do that are sent again and again.
    flows: bool,
    /// How often all connections were reset.
    resets: u64,
    /// How often the controller's ends were closed without a word to the agent's.
    halves: u64,
}

/// Forwards connections on a loopback port to another one.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    network: watch::Sender<Network>,
    tasks: TaskGroup,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

impl Proxy {
    /// Forwards to this port of the loopback address from now on.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start(to: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a loopback port is free");
        let address = listener.local_addr().expect("a bound listener has an address");
        let network = watch::Sender::new(Network { flows: true, resets: 0, halves: 0 });
        let tasks = TaskGroup::new(&Shutdown::new());
        let (group, state) = (tasks.clone(), network.subscribe());
        let accepting = async move {
            let stop = group.token().clone();
            while let Some(Ok((agent, _))) = stop.run_until_cancelled(listener.accept()).await {
                let (stop, state) = (stop.clone(), state.clone());
                let forwarding = async move { stop.run_until_cancelled(forward(agent, to, state)).await };
                drop(group.spawn("a connection", OnEnd::Isolated, forwarding));
            }
        };
        drop(tasks.spawn("proxy", OnEnd::Isolated, accepting));
        Self { address, network, tasks }
    }

    /// Its own port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Nothing arrives any more on either side, and nobody is told.
    pub fn cut(&self) {
        self.network.send_modify(|network| network.flows = false);
    }

    /// What was sent meanwhile arrives, and everything after it.
    pub fn heal(&self) {
        self.network.send_modify(|network| network.flows = true);
    }

    /// Resets every connection, on both sides. New ones are forwarded.
    pub fn reset(&self) {
        self.network.send_modify(|network| network.resets += 1);
    }

    /// Closes the controller's end of every connection; the agent's stays open, and nothing comes from it. New ones are
    /// forwarded.
    pub fn halve(&self) {
        self.network.send_modify(|network| network.halves += 1);
    }
}

async fn forward(mut agent: TcpStream, to: u16, mut network: watch::Receiver<Network>) {
    let Ok(mut controller) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await else {
        return reset(&agent);
    };
    // A frame at a time is what both sides ask of their own ends.
    let _ = (agent.set_nodelay(true), controller.set_nodelay(true));
    let before = *network.borrow_and_update();
    let pumping = async {
        let ((from_agent, to_agent), (from_controller, to_controller)) = (agent.split(), controller.split());
        tokio::select! {
            () = pump(from_agent, to_controller, network.clone()) => {}
            () = pump(from_controller, to_agent, network.clone()) => {}
        }
    };
    let mut changes = network.clone();
    let changed = changes.wait_for(|now| now.resets != before.resets || now.halves != before.halves);
    let halved = tokio::select! {
        () = pumping => return,
        changed = changed => changed.is_ok_and(|now| now.halves != before.halves),
    };
    if halved {
        drop(controller);
        // The agent hears nothing; that it went away would show as an end of what it sends.
        let mut sink = vec![0; PART_BYTES];
        while !matches!(agent.read(&mut sink).await, Ok(0) | Err(_)) {}
        return;
    }
    reset(&agent);
    reset(&controller);
}

/// Lets the stream end with a reset when it is dropped.
fn reset(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

/// Carries bytes one way until either end is closed.
async fn pump(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut network: watch::Receiver<Network>) {
    let mut part = vec![0; PART_BYTES];
    loop {
        let count = match from.read(&mut part).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        if network.wait_for(|network| network.flows).await.is_err() {
            return;
        }
        if to.write_all(&part[..count]).await.is_err() {
            return;
        }
    }
}
