//! Where a controller is.

use std::fmt;
use std::str::FromStr;

use crate::error::CliError;

/// The port of a controller when the address names none.
pub(super) const DEFAULT_PORT: u16 = 7443;

/// Host and port of a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl FromStr for Address {
    type Err = CliError;

    /// Reads `https://HOST[:PORT]` or `HOST[:PORT]`; an IPv6 address stands in brackets.
    fn from_str(text: &str) -> Result<Self, CliError> {
        let wrong = |why: &str| {
            CliError::usage(format!("{text:?} is not the address of a controller")).because(why.to_owned())
        };
        if text.starts_with("http://") {
            return Err(wrong("a token is never sent without TLS: write https://"));
        }
        let rest = text.strip_prefix("https://").unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(inner) => {
                let (host, after) = inner.split_once(']').ok_or_else(|| wrong("a ] is missing"))?;
                let port = match after {
                    "" => None,
                    after => {
                        Some(after.strip_prefix(':').ok_or_else(|| wrong("after ] only :PORT is possible"))?)
                    }
                };
                (host, port)
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(is_host) {
            return Err(wrong("https://HOST:PORT is needed"));
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => port
                .parse()
                .ok()
                .filter(|&port| port != 0)
                .ok_or_else(|| wrong("the port must be a number from 1 to 65535"))?,
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "https://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "https://{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, shown) in [
            ("https://backup.example.com:7443", "https://backup.example.com:7443"),
            ("backup", "https://backup:7443"),
            ("127.0.0.1:9", "https://127.0.0.1:9"),
            ("https://[::1]:7443/", "https://[::1]:7443"),
            ("[::1]", "https://[::1]:7443"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["", "http://x:1", "https://", "x:0", "x:y", "x:70000", "a b", "[::1", "https://x/y", "x@y"]
        {
            assert!(text.parse::<Address>().is_err(), "{text:?} was accepted");
        }
    }
}
