//! Mail: text and HTML, one thread for each alert.

use std::time::Duration;

use holdfast_model::alert::channel::{Smtp, SmtpTls};
use holdfast_model::alert::render::render;
use holdfast_model::alert::{Channel, Message, MessageKind};
use holdfast_model::secret::Secret;
use lettre::message::header::{Header, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor};

use super::DeliveryError;
use super::address::{Network, judge, look_up};
use super::body::{message_html, message_text};

/// How long one answer of the server may take, and all of them together.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(30);

/// The largest file of certificates, in bytes.
const CA_BYTES_MAX: u64 = 1 << 20;

/// Says that no person has written it, so that no robot answers.
#[derive(Debug, Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}

/// A mail as it is sent.
///
/// # Errors
/// When it can not be written, such as for an address that mail does not know.
pub(super) fn mail(
    message: &Message,
    channel: &Channel,
    to: &[String],
    from: Option<&str>,
    environment: &str,
) -> Result<lettre::Message, DeliveryError> {
    let wrong = |error: &dyn std::fmt::Display| {
        DeliveryError::Refused(format!("the mail can not be written: {error}"))
    };
    let host = crate::hostname();
    let mailbox = |address: &str| address.parse::<Mailbox>().map_err(|error| wrong(&error));
    let default = format!("holdfast@{host}");
    let rendered = render(message, channel.language, environment);
    let mut builder = lettre::Message::builder()
        .from(mailbox(from.unwrap_or(&default))?)
        .subject(rendered.title.clone())
        .message_id(Some(format!("<{}.{}@{host}>", message.id, message.channel)))
        .header(AutoSubmitted);
    for address in to {
        builder = builder.to(mailbox(address)?);
    }
    if !matches!(message.kind, MessageKind::Test | MessageKind::Report) {
        // What speaks of the same alert belongs to the same thread.
        for alert in message.alerts.iter().take(20) {
            builder = builder.references(format!("<alert-{}@{host}>", alert.id));
        }
    }
    let text = message_text(message, &rendered, channel.language);
    let html = message_html(message, &rendered, channel.language);
    builder.multipart(MultiPart::alternative_plain_html(text, html)).map_err(|error| wrong(&error))
}

/// Sends a mail, and gives the server's answer.
///
/// # Errors
/// When the server can not be reached, does not protect the connection, or does not take the mail.
pub(super) async fn send(
    mail: lettre::Message,
    smtp: &Smtp,
    password: Option<&Secret>,
    allowed: &[Network],
) -> Result<String, DeliveryError> {
    let sent = tokio::time::timeout(DEADLINE, send_inner(mail, smtp, password, allowed)).await;
    sent.unwrap_or_else(|_| Err(DeliveryError::Unreachable("the mail server takes too long".to_owned())))
}

async fn send_inner(
    mail: lettre::Message,
    smtp: &Smtp,
    password: Option<&Secret>,
    allowed: &[Network],
) -> Result<String, DeliveryError> {
    let port = smtp.port.unwrap_or(if smtp.tls == SmtpTls::Implicit { 465 } else { 587 });
    let addresses = look_up(&smtp.host, port).await?;
    // Mail servers are often one's own: of addresses that are not public, only those that are never right are refused.
    let any = ["0.0.0.0/0", "::/0"].iter().filter_map(|network| network.parse().ok());
    let allowed: Vec<Network> = allowed.iter().copied().chain(any).collect();
    for address in &addresses {
        judge(&smtp.host, address.ip(), &allowed)?;
    }
    let is_here = addresses.iter().all(|address| address.ip().is_loopback());
    let tls = match smtp.tls {
        SmtpTls::None if is_here => Tls::None,
        SmtpTls::None => {
            return Err(DeliveryError::Denied(format!(
                "{} is not this host: `smtp.tls` is needed",
                smtp.host
            )));
        }
        SmtpTls::Required => Tls::Required(parameters(smtp).await?),
        SmtpTls::Implicit => Tls::Wrapper(parameters(smtp).await?),
    };
    let address = addresses[0].ip().to_string();
    let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(address)
        .port(port)
        .tls(tls)
        .hello_name(ClientId::Domain(crate::hostname()))
        .timeout(Some(ANSWER_DEADLINE));
    if let (Some(user), Some(password)) = (&smtp.user, password) {
        transport = transport.credentials(Credentials::new(user.clone(), password.reveal().to_owned()));
    }
    let answer = transport.build::<Tokio1Executor>().send(mail).await;
    let answer = answer.map_err(|error| failure(&error))?;
    let words: Vec<&str> = answer.message().collect();
    Ok(format!("{} {}", answer.code(), words.join(" ")))
}

async fn parameters(smtp: &Smtp) -> Result<TlsParameters, DeliveryError> {
    let mut builder = TlsParameters::builder(smtp.host.clone());
    if let Some(path) = &smtp.ca {
        let wrong = |why: String| DeliveryError::Unreachable(format!("{}: {why}", path.display()));
        let about = tokio::fs::metadata(path).await.map_err(|error| wrong(error.to_string()))?;
        if !about.is_file() || about.len() > CA_BYTES_MAX {
            return Err(wrong("is no file of certificates".to_owned()));
        }
        let pem = tokio::fs::read(path).await.map_err(|error| wrong(error.to_string()))?;
        let certificate = Certificate::from_pem(&pem).map_err(|error| wrong(error.to_string()))?;
        builder = builder.certificate_store(CertificateStore::None).add_root_certificate(certificate);
    }
    builder.build_rustls().map_err(|error| DeliveryError::Unreachable(chain(&error)))
}

/// What a server says of the mail, it says for ever; of all else, later may be better.
fn failure(error: &lettre::transport::smtp::Error) -> DeliveryError {
    let is_login = error.status().is_some_and(|code| matches!(u16::from(code), 530 | 534 | 535 | 538));
    if error.is_permanent() && !is_login {
        return DeliveryError::Refused(chain(error));
    }
    DeliveryError::Unreachable(chain(error))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}
