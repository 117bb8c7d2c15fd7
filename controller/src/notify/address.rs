//! Where notifications may go: an address that somebody declares must not lead to what only this host can reach.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::DeliveryError;

/// Addresses with the same beginning: `127.0.0.0/8`, `10.1.2.3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether an address belongs to it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                (network.to_bits() ^ address.to_bits()) & mask == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                (network.to_bits() ^ address.to_bits()) & mask == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a network: write it as 10.0.0.0/8 or 192.168.1.5");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        match bits.unwrap_or(most) {
            bits if bits <= most => Ok(Self { address, bits }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Serialize for Network {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How an address may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// By anybody.
    Public,
    /// Where the controller's own configuration says so.
    Private,
    /// Never: nobody receives notifications there.
    Never,
}

/// The address that is meant where an IPv4 address is written as an IPv6 one.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(six) = address else { return address };
    let [a, b, c, d, e, f, high, low] = six.segments();
    let is_embedded = [a, b, c, d, e, f] == [0x64, 0xff9b, 0, 0, 0, 0];
    match six.to_ipv4_mapped() {
        Some(four) => IpAddr::V4(four),
        None if is_embedded => IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))),
        None if a == 0x2002 => IpAddr::V4(Ipv4Addr::from_bits(u32::from(b) << 16 | u32::from(c))),
        None => address,
    }
}

fn use_of(address: IpAddr) -> Use {
    let within = |networks: &[(Ipv4Addr, u8)], address: Ipv4Addr| {
        networks.iter().any(|(network, bits)| {
            Network { address: IpAddr::V4(*network), bits: *bits }.contains(address.into())
        })
    };
    match plain(address) {
        IpAddr::V4(four) if four.is_unspecified() || four.is_multicast() || four.is_link_local() => {
            Use::Never
        }
        IpAddr::V4(four)
            if within(&[(Ipv4Addr::new(0, 0, 0, 0), 8), (Ipv4Addr::new(240, 0, 0, 0), 4)], four) =>
        {
            Use::Never
        }
        IpAddr::V4(four) => {
            let own = [
                (Ipv4Addr::new(127, 0, 0, 0), 8),
                (Ipv4Addr::new(10, 0, 0, 0), 8),
                (Ipv4Addr::new(172, 16, 0, 0), 12),
                (Ipv4Addr::new(192, 168, 0, 0), 16),
                (Ipv4Addr::new(100, 64, 0, 0), 10),
                (Ipv4Addr::new(192, 0, 0, 0), 24),
                (Ipv4Addr::new(198, 18, 0, 0), 15),
            ];
            if within(&own, four) { Use::Private } else { Use::Public }
        }
        IpAddr::V6(six)
            if six.is_multicast() || six.is_unicast_link_local() || six == Ipv6Addr::UNSPECIFIED =>
        {
            Use::Never
        }
        IpAddr::V6(six) if six == Ipv6Addr::LOCALHOST || six.is_unique_local() => Use::Private,
        // Site-local addresses, deprecated but routed.
        IpAddr::V6(six) if six.segments()[0] & 0xffc0 == 0xfec0 => Use::Private,
        IpAddr::V6(_) => Use::Public,
    }
}

/// Where a request goes: looked up once, so that the name can not lead elsewhere between the check and the connection.
#[derive(Debug)]
pub(super) struct Destination {
    pub(super) url: Url,
    pub(super) addresses: Vec<SocketAddr>,
}

/// Looks an address up and judges it.
///
/// # Errors
/// When it is not one, is not protected, leads where nothing may go, or its name is unknown.
pub(super) async fn destination(text: &str, allowed: &[Network]) -> Result<Destination, DeliveryError> {
    let denied = |why: String| Err(DeliveryError::Denied(why));
    let Ok(url) = Url::parse(text) else {
        return denied("it is not an address such as https://HOST/PATH".to_owned());
    };
    if !matches!(url.scheme(), "https" | "http") {
        return denied(format!("{}: is not possible, https: is", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return denied("it has a name or a password in it".to_owned());
    }
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return denied("it names no host".to_owned());
    };
    let addresses = look_up(host, port).await?;
    for address in &addresses {
        judge(host, address.ip(), allowed)?;
        let is_listed = allowed.iter().any(|network| network.contains(plain(address.ip())));
        if url.scheme() == "http" && !is_listed {
            return denied(format!("http: to {host} is not protected: https: is needed"));
        }
    }
    Ok(Destination { url, addresses })
}

/// The addresses of a host.
///
/// # Errors
/// When its name is unknown.
pub(super) async fn look_up(host: &str, port: u16) -> Result<Vec<SocketAddr>, DeliveryError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let found: Vec<SocketAddr> = match tokio::net::lookup_host((bare, port)).await {
        Ok(found) => found.collect(),
        Err(error) => return Err(DeliveryError::Unreachable(format!("{host} is unknown: {error}"))),
    };
    if found.is_empty() {
        return Err(DeliveryError::Unreachable(format!("{host} has no address")));
    }
    Ok(found)
}

/// Whether something may be sent to an address.
///
/// # Errors
/// Says why not.
pub(super) fn judge(host: &str, address: IpAddr, allowed: &[Network]) -> Result<(), DeliveryError> {
    let is_listed = allowed.iter().any(|network| network.contains(plain(address)));
    match use_of(address) {
        Use::Public => Ok(()),
        Use::Private if is_listed => Ok(()),
        Use::Private => Err(DeliveryError::Denied(format!(
            "{host} leads to {address}, which is not public: the controller's configuration does not list it in \
             `notifications.allow_addresses`"
        ))),
        Use::Never => {
            Err(DeliveryError::Denied(format!("{host} leads to {address}, where nothing may be sent")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn denial(url: &str, allowed: &[&str]) -> String {
        let allowed: Vec<Network> = allowed.iter().map(|text| text.parse().unwrap()).collect();
        match destination(url, &allowed).await {
            Ok(found) => format!("{:?}", found.addresses),
            Err(DeliveryError::Denied(why)) => why,
            Err(other) => panic!("{url}: {other:?}"),
        }
    }

    #[tokio::test]
    async fn addresses_that_only_this_host_can_reach_are_denied() {
        for (url, why) in [
            ("http://169.254.169.254/latest/meta-data", "169.254.169.254, where nothing may be sent"),
            ("https://169.254.169.254/", "169.254.169.254, where nothing may be sent"),
            ("https://[fe80::1]/", "[fe80::1] leads to fe80::1, where nothing may be sent"),
            ("https://[::1]/", "[::1] leads to ::1, which is not public"),
            ("https://0x7f000001/", "127.0.0.1 leads to 127.0.0.1, which is not public"),
            ("https://2130706433/", "127.0.0.1 leads to 127.0.0.1, which is not public"),
            ("https://127.1/", "127.0.0.1 leads to 127.0.0.1, which is not public"),
            ("https://[::ffff:127.0.0.1]/", "which is not public"),
            ("https://[::ffff:a9fe:a9fe]/", "where nothing may be sent"),
            ("https://[64:ff9b::a9fe:a9fe]/", "where nothing may be sent"),
            ("https://[2002:7f00:1::]/", "which is not public"),
            ("https://localhost/", "which is not public"),
            ("https://10.0.0.1/", "which is not public"),
            ("https://100.64.0.1/", "which is not public"),
            ("https://[fd00::1]/", "which is not public"),
            ("https://0.0.0.0/", "where nothing may be sent"),
            ("https://255.255.255.255/", "where nothing may be sent"),
            ("http://198.51.100.7/", "http: to 198.51.100.7 is not protected: https: is needed"),
            ("file:///etc/passwd", "file: is not possible, https: is"),
            ("gopher://127.0.0.1/", "gopher: is not possible, https: is"),
            ("https://user:canary@198.51.100.7/", "it has a name or a password in it"),
            ("nonsense", "it is not an address such as https://HOST/PATH"),
        ] {
            let found = denial(url, &[]).await;
            assert!(found.contains(why), "{url}: {found}");
            assert!(!found.contains("canary"), "{found}");
        }
    }

    #[tokio::test]
    async fn what_the_configuration_lists_is_allowed_and_nothing_beside_it() {
        assert_eq!(denial("http://127.0.0.1:8080/", &["127.0.0.0/8"]).await, "[127.0.0.1:8080]");
        assert_eq!(denial("https://[::1]/", &["::1"]).await, "[[::1]:443]");
        assert_eq!(denial("https://198.51.100.7/", &[]).await, "[198.51.100.7:443]");
        assert!(denial("https://10.1.0.1/", &["10.0.0.0/16"]).await.contains("not public"));
        let metadata = denial("https://169.254.169.254/", &["0.0.0.0/0"]).await;
        assert!(metadata.contains("where nothing may be sent"), "{metadata}");
    }

    #[test]
    fn networks_are_read_and_written() {
        for text in ["127.0.0.0/8", "10.1.2.3/32", "fd00::/8", "0.0.0.0/0", "::/0"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        for text in ["", "x", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
