//! A plain HTTP client that sends exactly what it is told; over HTTP/1.1 also what no library would send.

mod http2;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::wait::PATIENCE;

/// A client of one server. Every request has a connection of its own.
#[derive(Clone)]
pub struct HttpClient {
    address: SocketAddr,
    host: String,
    token: Option<String>,
    tls: Option<Arc<ClientConfig>>,
    is_http2: bool,
}

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

/// Both directions of a connection.
pub trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

impl HttpClient {
    /// A client without TLS and without a token.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, host: address.to_string(), token: None, tls: None, is_http2: false }
    }

    /// With a bearer token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// Without a token.
    #[must_use]
    pub fn without_token(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    /// With TLS, trusting one CA, calling the server `localhost`.
    #[must_use]
    pub fn with_tls(&self, ca_pem: &str) -> Self {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect("the CA is in PEM form");
        roots.add(ca).expect("the CA is one");
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Self { tls: Some(Arc::new(config)), host: "localhost".to_owned(), ..self.clone() }
    }

    /// Over HTTP/2 from now on, without TLS; what [`HttpClient::raw`] and [`HttpClient::open`] send stays as it is.
    #[must_use]
    pub fn over_http2(&self) -> Self {
        Self { is_http2: true, ..self.clone() }
    }

    /// The version of HTTP that requests are made in.
    pub fn version(&self) -> &'static str {
        if self.is_http2 { "HTTP/2" } else { "HTTP/1.1" }
    }

    /// Asks for a path.
    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], "")
    }

    /// Sends JSON.
    pub fn post(&self, path: &str, body: &str) -> Answer {
        self.request("POST", path, &[("Content-Type", "application/json")], body)
    }

    /// Sends a request with these headers besides host, token and length.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        if self.is_http2 {
            let answer = http2::request(self, method, path, headers, body);
            return answer.unwrap_or_else(|error| panic!("{method} {path} was not answered: {error}"));
        }
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str(&format!("Host: {}\r\n", self.host));
        }
        if let Some(token) = &self.token {
            head.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        let answer = self.raw(format!("{head}Connection: close\r\n\r\n{body}").as_bytes());
        answer.unwrap_or_else(|| panic!("{method} {path} was not answered"))
    }

    /// Sends these bytes; nothing when the server closes the connection without an answer.
    pub fn raw(&self, bytes: &[u8]) -> Option<Answer> {
        let mut wire = BufReader::new(self.open(bytes));
        let (status, headers) = read_head(&mut wire)?;
        let mut body = Vec::new();
        // A server that refuses what is still being sent may reset the connection after its answer.
        let _ = wire.read_to_end(&mut body);
        let is_chunked =
            headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        let body = String::from_utf8_lossy(&body).into_owned();
        Some(Answer { status, headers, body: if is_chunked { joined(&body) } else { body } })
    }

    /// Sends a request over HTTP/2 with a header that no client would send; gives the type of the frame that answers on its
    /// stream or ends the connection, and the error in it: (3, 1) resets the stream for a breach of the protocol.
    pub fn raw_http2(&self, name: &[u8], value: &[u8]) -> (u8, u32) {
        let mut wire = self.open(&http2::raw_request(&self.host, name, value));
        http2::first_answer(&mut wire)
    }

    /// Connects, sends these bytes and gives the connection.
    pub fn open(&self, bytes: &[u8]) -> Box<dyn Wire> {
        let stream = TcpStream::connect(self.address).expect("the server takes connections");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket has a timeout");
        let mut wire: Box<dyn Wire> = match &self.tls {
            None => Box::new(stream),
            Some(config) => {
                let name = ServerName::try_from("localhost").expect("localhost is a name");
                let connection =
                    ClientConnection::new(config.clone(), name).expect("the configuration is good");
                Box::new(StreamOwned::new(connection, stream))
            }
        };
        // A server may answer before all is sent.
        let _ = wire.write_all(bytes);
        let _ = wire.flush();
        wire
    }

    /// Opens a stream of events, with further headers.
    ///
    /// # Panics
    /// When it is not opened.
    pub fn events(&self, path: &str, headers: &str) -> Events {
        let token = self.token.as_deref().unwrap_or_default();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n{headers}\r\n",
            self.host
        );
        let mut wire = BufReader::new(self.open(head.as_bytes()));
        let (status, headers) = read_head(&mut wire).expect("the stream is answered");
        assert_eq!(status, 200, "{headers:?}");
        Events(wire)
    }
}

/// A stream of events.
pub struct Events(BufReader<Box<dyn Wire>>);

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerEvent {
    /// Its id.
    pub id: u64,
    /// Its type.
    pub event: String,
    /// Its data.
    pub data: Value,
}

impl Iterator for Events {
    type Item = ServerEvent;

    /// The next event; nothing when the stream has ended.
    fn next(&mut self) -> Option<ServerEvent> {
        let (mut id, mut event, mut data) = (0, String::new(), None);
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).expect("the stream can be read") == 0 || line == "0\r\n" {
                return None;
            }
            let (name, value) = line.trim_end().split_once(": ").unwrap_or_default();
            match name {
                "id" => id = value.parse().expect("the id of an event is a number"),
                "event" => event = value.to_owned(),
                "data" => data = Some(serde_json::from_str(value).expect("the data of an event is JSON")),
                // An empty line ends an event; those between the chunks of the transfer say nothing.
                _ => {}
            }
            if !event.is_empty()
                && id > 0
                && let Some(data) = data.take()
            {
                return Some(ServerEvent { id, event, data });
            }
        }
    }
}

fn read_head(wire: &mut impl BufRead) -> Option<(u16, Vec<(String, String)>)> {
    let mut line = String::new();
    wire.read_line(&mut line).ok()?;
    let status = line.split_whitespace().nth(1)?.parse().ok()?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        wire.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_lowercase(), value.trim().to_owned())),
            None => return Some((status, headers)),
        }
    }
}

fn joined(chunks: &str) -> String {
    let (mut rest, mut text) = (chunks, String::new());
    while let Some((length, after)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap_or(0);
        if length == 0 || length > after.len() {
            break;
        }
        text.push_str(&after[..length]);
        rest = after[length..].trim_start_matches("\r\n");
    }
    text
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The items of a good answer.
    ///
    /// # Panics
    /// When it is none.
    pub fn items(&self) -> Vec<Value> {
        assert!((200..300).contains(&self.status), "{self:?}");
        self.json()["items"].as_array().unwrap_or_else(|| panic!("{self:?}")).clone()
    }

    /// The status, code and message of a refusal.
    pub fn error(&self) -> (u16, String, String) {
        let error = &self.json()["error"];
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        (self.status, text("code"), text("message"))
    }
}
