//! Requests over HTTP/2 without TLS, each on a connection of its own.

use bytes::Bytes;
use http::uri::{Parts, PathAndQuery, Uri};
use http::{HeaderName, HeaderValue, Method, Request};

use super::{Answer, HttpClient};
use crate::wait::PATIENCE;

/// Sends a request. A header `Host` is sent as the authority.
pub(super) fn request(
    client: &HttpClient,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> anyhow::Result<Answer> {
    let host = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
    let mut parts = Parts::default();
    parts.scheme = Some(http::uri::Scheme::HTTP);
    parts.authority = Some(host.map_or(client.host.as_str(), |(_, host)| host).parse()?);
    parts.path_and_query = Some(path.parse::<PathAndQuery>()?);
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(method.as_bytes())?;
    *request.uri_mut() = Uri::from_parts(parts)?;
    if let Some(token) = &client.token {
        request
            .headers_mut()
            .append(http::header::AUTHORIZATION, HeaderValue::try_from(format!("Bearer {token}"))?);
    }
    for (name, value) in headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")) {
        let name = HeaderName::from_bytes(name.to_lowercase().as_bytes())?;
        request.headers_mut().append(name, HeaderValue::from_bytes(value.as_bytes())?);
    }
    // A thread of its own: this is called from within runtimes, too.
    let (address, body) = (client.address, body.to_owned());
    let asked = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(PATIENCE, ask(address, request, body)).await? })
    });
    asked.join().expect("a request does not panic")
}

async fn ask(address: std::net::SocketAddr, request: Request<()>, body: String) -> anyhow::Result<Answer> {
    let wire = tokio::net::TcpStream::connect(address).await?;
    let (client, connection) = h2::client::handshake(wire).await?;
    let asked = async {
        let mut client = client.ready().await?;
        let (answer, mut stream) = client.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            // A server may answer before all is sent.
            let _ = stream.send_data(Bytes::from(body), true);
        }
        let (head, mut parts) = answer.await?.into_parts();
        let mut body = Vec::new();
        while let Some(part) = parts.data().await {
            let part = part?;
            parts.flow_control().release_capacity(part.len())?;
            body.extend_from_slice(&part);
        }
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value)));
        Ok(Answer {
            status: head.status.as_u16(),
            headers: headers.collect(),
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    };
    tokio::pin!(asked, connection);
    tokio::select! {
        biased;
        answer = &mut asked => answer,
        // What came before the connection ended can still be read.
        _ = &mut connection => asked.await,
    }
}

/// The beginning of a connection, and one request with this header, all in literals.
pub(super) fn raw_request(host: &str, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    let fields: [(&[u8], &[u8]); 5] = [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/ping"),
        (b":authority", host.as_bytes()),
        (name, value),
    ];
    for (name, value) in fields {
        block.push(0);
        for part in [name, value] {
            block.push(u8::try_from(part.len()).expect("fields of tests are short"));
            block.extend_from_slice(part);
        }
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // An empty SETTINGS, then HEADERS that end both headers and stream 1.
    bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    let length = u32::try_from(block.len()).expect("fields of tests are short").to_be_bytes();
    bytes.extend_from_slice(&[length[1], length[2], length[3], 1, 5, 0, 0, 0, 1]);
    bytes.extend_from_slice(&block);
    bytes
}

/// The type of the first frame that answers a request (HEADERS, RST_STREAM) or ends the connection (GOAWAY), and the error
/// in it.
pub(super) fn first_answer(wire: &mut dyn super::Wire) -> (u8, u32) {
    loop {
        let mut head = [0; 9];
        wire.read_exact(&mut head).expect("the server answers");
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        wire.read_exact(&mut payload).expect("a frame is whole");
        let number = |at: usize| {
            let bytes = payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            u32::from_be_bytes(bytes.unwrap_or_default())
        };
        match head[3] {
            1 => return (1, 0),
            3 => return (3, number(0)),
            7 => return (7, number(4)),
            _ => {}
        }
    }
}
