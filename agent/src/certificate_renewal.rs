//! Certificates live a day at most; each is renewed on the live connection once two thirds of its life are over.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::Failure;
use holdfast_proto::v1;
use holdfast_proto::v1::agent_service_client::AgentServiceClient;
use holdfast_runtime::SharedClock;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::dial::{self, Link};
use crate::identity::Identity;

/// The wall clock may be set: look again this often.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long the controller may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits until the certificate is due, and renews it over this connection. Ends when it was renewed; a failure is
/// logged and tried again.
pub async fn renew_when_due(
    identity: &Arc<Identity>,
    link: &Link,
    channel: Channel,
    clock: &SharedClock,
    stop: &CancellationToken,
) {
    loop {
        let due = clock.now() >= identity.validity().renew_at();
        if due {
            match renew(identity, link, channel.clone()).await {
                Ok(()) => {
                    tracing::info!(not_after = %identity.validity().not_after, "the certificate was renewed");
                    return;
                }
                Err(failure) => {
                    let not_after = identity.validity().not_after;
                    tracing::warn!(%failure, %not_after, "the certificate could not be renewed yet");
                }
            }
        }
        if stop.run_until_cancelled(clock.sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
    }
}

async fn renew(identity: &Arc<Identity>, link: &Link, channel: Channel) -> Result<(), Failure> {
    let csr_pem = identity.signing_request()?;
    let mut request = tonic::Request::new(v1::RenewCertificateRequest { csr_pem });
    request.set_timeout(ANSWER_TIMEOUT);
    let answer = AgentServiceClient::new(channel)
        .renew_certificate(request)
        .await
        .map_err(|status| dial::failure_of(link.address(), &status))?
        .into_inner();
    identity.renew(answer.certificate_pem)?;
    link.renew_data();
    Ok(())
}
