//! What several tests of this package need: a controller that keeps everything in memory and speaks real gRPC over
//! real TLS, and an engine whose source is a list of texts.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use holdfast_runtime::tls::TlsConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

pub(crate) mod controller;
pub(crate) mod data_service;
pub(crate) mod engine;

/// A TLS connection as tonic's server takes it, which breaks when a token is cancelled.
pub(crate) struct Breakable {
    connection: TlsConnection,
    broken: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Breakable {
    pub(crate) fn new(connection: TlsConnection, token: &CancellationToken) -> Self {
        Self { connection, broken: Box::pin(token.clone().cancelled_owned()) }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.broken.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl Connected for Breakable {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Breakable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.connection).poll_read(context, buffer)
    }
}

impl AsyncWrite for Breakable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}
