//! Calls with many replies, and the one with many requests.

use std::future::pending;
use std::path::Path;

use futures::StreamExt as _;
use holdfast_proto::{DATA_PART_BYTES_MAX, v1};
use tokio::io::AsyncReadExt as _;
use tokio::sync::oneshot;
use v1::run_service_client::RunServiceClient;
use v1::snapshot_service_client::SnapshotServiceClient;
use v1::status_service_client::StatusServiceClient;

use super::{Client, MESSAGE_BYTES_MAX};
use crate::error::{CliError, CliResult};

/// The replies to one call, in order.
pub(crate) struct Replies<T> {
    client: Client,
    stream: tonic::Streaming<T>,
}

impl<T> Replies<T> {
    /// The next reply, or nothing after the last. Cancellation-safe.
    ///
    /// # Errors
    /// What the controller said, or that the connection broke.
    pub(crate) async fn next(&mut self) -> CliResult<Option<T>> {
        self.stream.message().await.map_err(|status| self.client.error(&status))
    }
}

macro_rules! streams {
    ($($service:ident { $($(#[$doc:meta])* $name:ident = $method:ident($request:ident) -> $response:ident;)* })*) => {
        impl Client {$($(
            $(#[$doc])*
            ///
            /// # Errors
            /// What the controller answered, or that it could not be reached or did not begin to answer in time.
            pub(crate) async fn $name(&self, request: v1::$request) -> CliResult<Replies<v1::$response>> {
                let mut service =
                    $service::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
                match tokio::time::timeout(self.call_timeout, service.$method(request)).await {
                    Ok(Ok(response)) => Ok(Replies { client: self.clone(), stream: response.into_inner() }),
                    Ok(Err(status)) => Err(self.error(&status)),
                    Err(_) => Err(self.overdue()),
                }
            }
        )*)*}
    };
}

streams! {
    RunServiceClient {
        /// The run now and at each change, until it ends.
        watch_run = watch(WatchRunRequest) -> WatchRunResponse;
        /// The log of a run.
        run_logs = logs(RunLogsRequest) -> RunLogsResponse;
    }
    SnapshotServiceClient {
        /// What is in a folder of a snapshot.
        snapshot_tree = tree(TreeRequest) -> TreeResponse;
        /// A snapshot as one file.
        export_snapshot = export(ExportSnapshotRequest) -> ExportSnapshotResponse;
    }
    StatusServiceClient {
        /// Entries of the audit log.
        audit = audit(AuditRequest) -> AuditResponse;
    }
}

impl Client {
    /// Sends a file into a repository. It takes as long as it takes.
    ///
    /// # Errors
    /// When the file cannot be read to its end, nothing is imported; and what the controller answered.
    pub(crate) async fn import_snapshot(
        &self,
        header: v1::ImportHeader,
        path: &Path,
    ) -> CliResult<v1::ImportSnapshotResponse> {
        let file =
            tokio::fs::File::open(path).await.map_err(|error| CliError::file("opening", path, &error))?;
        let (report, broken) = oneshot::channel();
        let first =
            v1::ImportSnapshotRequest { part: Some(v1::import_snapshot_request::Part::Header(header)) };
        let parts = futures::stream::unfold((file, Some(report)), |(mut file, mut report)| async move {
            let mut data = Vec::with_capacity(DATA_PART_BYTES_MAX);
            match (&mut file).take(DATA_PART_BYTES_MAX as u64).read_to_end(&mut data).await {
                Ok(0) => None,
                Ok(_) => {
                    let part = Some(v1::import_snapshot_request::Part::Data(data));
                    Some((v1::ImportSnapshotRequest { part }, (file, report)))
                }
                Err(error) => {
                    if let Some(report) = report.take() {
                        // Nobody listens any more when the call has ended, and then it does not matter.
                        let _ = report.send(error);
                    }
                    // An end of the stream would look like the end of the file: the call is given up instead.
                    pending().await
                }
            }
        });
        let mut service =
            SnapshotServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let call = service.import(futures::stream::iter([first]).chain(parts));
        tokio::select! {
            outcome = call => outcome.map(tonic::Response::into_inner).map_err(|status| self.error(&status)),
            Ok(error) = broken => Err(CliError::file("reading", path, &error).at_stake("nothing was imported")),
        }
    }
}
