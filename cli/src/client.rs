//! The controller as the commands see it: one method per call, our own types of error, no word of the transport.
//!
//! Only this module and those below it know gRPC.

mod address;
mod calls;
mod connect;
mod streams;

use std::time::Duration;

use holdfast_model::ErrorCode;
use holdfast_proto::status::from_status;
use holdfast_runtime::telemetry;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

pub(crate) use address::Address;
pub(crate) use streams::Replies;

use crate::contexts::Connection;
use crate::error::{CliError, CliResult};

/// How long one call may take when `--timeout` does not say.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// Largest message that is accepted: a page of a thousand items, with room.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// A connection to one controller. Clones share it.
#[derive(Clone)]
pub(crate) struct Client {
    channel: InterceptedService<Channel, Credentials>,
    address: Address,
    call_timeout: Duration,
}

/// Puts the token and the trace context on every call.
#[derive(Clone)]
struct Credentials {
    authorization: tonic::metadata::AsciiMetadataValue,
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        request.metadata_mut().insert("authorization", self.authorization.clone());
        telemetry::inject_trace_context(&tracing::Span::current(), request.metadata_mut().as_mut());
        Ok(request)
    }
}

impl Client {
    /// Connects to the controller and reads the token.
    ///
    /// # Errors
    /// `HF-4015` when it cannot be reached, `HF-6002` when its certificate is not one of the CA, and those of the CA
    /// file and the token.
    pub(crate) async fn connect(connection: &Connection, timeout: Option<Duration>) -> CliResult<Self> {
        let address: Address = connection.server.parse()?;
        let token = connection.token.read()?;
        let mut authorization: tonic::metadata::AsciiMetadataValue =
            format!("Bearer {}", token.reveal()).parse().map_err(|_| {
                CliError::new(
                    ErrorCode::SecretUnresolvable,
                    "the access token holds characters that no token has",
                )
            })?;
        authorization.set_sensitive(true);
        let channel = connect::channel(&address, &connection.ca_file).await?;
        Ok(Self {
            channel: InterceptedService::new(channel, Credentials { authorization }),
            address,
            call_timeout: timeout.unwrap_or(CALL_TIMEOUT),
        })
    }

    /// The address of the controller.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The same for a call that takes longer than others, unless `--timeout` says something.
    pub(crate) fn patient(&self, timeout: Duration) -> Self {
        let call_timeout = if self.call_timeout == CALL_TIMEOUT { timeout } else { self.call_timeout };
        Self { call_timeout, ..self.clone() }
    }

    /// The error of a call: what the controller said, or that it could not be heard.
    fn error(&self, status: &tonic::Status) -> CliError {
        let mut failure = from_status(status);
        if failure.code == ErrorCode::ControllerUnreachable && status.details().is_empty() {
            let said = std::mem::replace(
                &mut failure.message,
                format!("the connection to the controller at {} broke", self.address),
            );
            failure.why.insert(0, said);
            failure.next.push("holdfast doctor".to_owned());
        }
        CliError::from(failure).of_trace(telemetry::trace_id(&tracing::Span::current()))
    }

    fn overdue(&self) -> CliError {
        CliError::new(
            ErrorCode::WatchTimeout,
            format!(
                "the controller at {} did not answer in {}",
                self.address,
                crate::output::text::duration(self.call_timeout)
            ),
        )
        .at_stake("what was asked for may still happen")
        .then("holdfast run list")
    }
}
