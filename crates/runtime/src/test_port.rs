//! Ports for the servers that tests start.
//!
//! A port that was free a moment ago may be anybody's by the time a server listens on it, or listens on it again. One
//! that is reserved here is given to no other test of this network namespace, and outside of the range that the kernel
//! takes the ports of connections from, nothing else takes it by chance either.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use parking_lot::Mutex;

/// What ports are taken from, as far as the kernel does not use it for connections.
const PORTS: Range<u16> = 10_000..65_000;
/// A range that leaves fewer ports than this is not worth to be kept to.
const PORTS_MIN: usize = 2_000;

/// What keeps others from the ports: names that last as long as this process, however it ends.
static RESERVED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// A free TCP port of the loopback address that no other test gets until this process ends.
///
/// # Panics
/// When there is none.
pub fn reserve() -> u16 {
    reserve_with(&[])
}

/// As [`reserve`], with the ports that lie so far above it.
///
/// # Panics
/// When there is no such port.
pub fn reserve_with(offsets: &[u16]) -> u16 {
    let range = connection_ports();
    let outside: Vec<u16> = PORTS.filter(|port| !range.contains(port)).collect();
    let candidates = if outside.len() < PORTS_MIN { PORTS.collect() } else { outside };
    let first = rand::random_range(0..candidates.len());
    let in_turn = candidates[first..].iter().chain(&candidates[..first]).copied();
    let fits = |port: &u16| {
        let wanted = [0]
            .iter()
            .chain(offsets)
            .map(|offset| port.checked_add(*offset).filter(|above| candidates.binary_search(above).is_ok()));
        let reserved: Option<Vec<_>> = wanted.map(|above| claim(above?).ok()).collect();
        reserved.map(|reserved| RESERVED.lock().extend(reserved)).is_some()
    };
    in_turn.into_iter().find(fits).expect("a loopback port is free")
}

/// Takes the name of a port, when nobody has it and nobody listens on the port.
fn claim(port: u16) -> io::Result<UnixListener> {
    let name = SocketAddr::from_abstract_name(format!("holdfast-test-port-{port}"))?;
    let name = UnixListener::bind_addr(&name)?;
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    Ok(name)
}

/// The ports that the kernel gives to connections and to whoever asks for any.
fn connection_ports() -> std::ops::RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = text.split_whitespace().filter_map(|bound| bound.parse().ok());
    match (bounds.next(), bounds.next()) {
        (Some(first), Some(last)) => first..=last,
        _ => 32_768..=60_999,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_port_is_given_once_and_can_be_listened_on() {
        let mut ports = BTreeSet::new();
        for _ in 0..20 {
            let port = reserve_with(&[10_000]);
            for port in [port, port + 10_000] {
                TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
                assert!(ports.insert(port), "{port} was given twice");
                assert!(claim(port).is_err());
            }
        }
        assert!(ports.insert(reserve()));
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_not_given() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(claim(taken.local_addr().unwrap().port()).is_err());
    }
}
