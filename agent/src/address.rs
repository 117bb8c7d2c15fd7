//! The address of a controller.

use std::fmt;
use std::str::FromStr;

/// Where a controller listens: `https://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerAddress {
    host: String,
    port: u16,
}

/// The text is not the address of a controller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not the address of a controller: {reason}, such as https://backup.example.com:7443")]
pub struct InvalidAddress {
    /// The text.
    pub text: String,
    /// Which rule it breaks.
    pub reason: &'static str,
}

impl ControllerAddress {
    /// Name or address of the host, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host and port as they stand in a URL.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for ControllerAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = |reason| InvalidAddress { text: text.chars().take(200).collect(), reason };
        let uri: http::Uri = text.parse().map_err(|_| invalid("it must be a URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(invalid("it must begin with https://"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(invalid("it must have no path"));
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(invalid("it must not hold a user or password"));
        }
        let port = uri.port_u16().ok_or_else(|| invalid("it must have a port"))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(invalid("it must have a host"));
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for ControllerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

impl serde::Serialize for ControllerAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for ControllerAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_of_both_kinds_are_read() {
        for (text, host, port) in [
            ("https://backup.example.com:7443", "backup.example.com", 7443),
            ("https://127.0.0.1:1/", "127.0.0.1", 1),
            ("https://[::1]:7443", "::1", 7443),
        ] {
            let address: ControllerAddress = text.parse().unwrap();
            assert_eq!((address.host(), address.port()), (host, port));
            assert_eq!(address.to_string(), text.trim_end_matches('/'));
        }
    }

    #[test]
    fn other_texts_are_refused_with_the_reason() {
        for (text, reason) in [
            ("http://a:1", "it must begin with https://"),
            ("a:1", "it must begin with https://"),
            ("https://a", "it must have a port"),
            ("https://a:1/x", "it must have no path"),
            ("https://u:p@a:1", "it must not hold a user or password"),
            ("", "it must be a URL"),
        ] {
            assert_eq!(text.parse::<ControllerAddress>().unwrap_err().reason, reason, "{text}");
        }
    }
}
