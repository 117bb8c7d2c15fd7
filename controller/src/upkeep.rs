//! What is due once a day: the controller's own certificate, enrolment tokens that nobody used, and indexes of
//! repositories that nobody opens any more. A reconciler: it takes no input.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::tls::ServerIdentity;

use crate::core::Core;
use crate::pki::token::expired_enrollments;
use crate::pki_failure;
use crate::records::{Batch, store_failure};
use crate::store::{Expect, Kind};

/// How often it looks. A certificate is exchanged thirty days before its end.
const PERIOD: Duration = Duration::from_secs(24 * 3600);

/// How long the index of a repository is kept that is not opened.
const INDEX_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Runs until the controller stops.
pub async fn run(core: Arc<Core>, identity: ServerIdentity, names: Vec<String>) {
    let stop = core.tasks.token().clone();
    loop {
        let done = [
            renew_certificate(&core, &identity, &names).await,
            remove_expired_tokens(&core).await,
            remove_unused_indexes(&core).await,
        ];
        for failure in done.into_iter().filter_map(Result::err) {
            tracing::error!(%failure, "a part of the daily upkeep failed");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = core.clock.sleep(PERIOD) => {}
        }
    }
}

/// Open connections keep the certificate that they began with.
async fn renew_certificate(
    core: &Arc<Core>,
    identity: &ServerIdentity,
    names: &[String],
) -> Result<(), Failure> {
    let (owner, names, now) = (core.clone(), names.to_vec(), core.clock.now());
    let issue = move || owner.authority.server_certificate(&names, now).map_err(|error| pki_failure(&error));
    let certificate = core.blocking("renew the certificate", issue).await?;
    let (is_new, not_after) = (certificate.is_new, certificate.not_after);
    let replaced = identity.replace(certificate.chain, certificate.key);
    replaced.map_err(|error| Failure::from_error(ErrorCode::CertificateRejected, &error))?;
    if is_new {
        tracing::info!(%not_after, "the certificate of the controller was renewed");
    }
    Ok(())
}

async fn remove_expired_tokens(core: &Core) -> Result<(), Failure> {
    let ended = expired_enrollments(&**core.records.store(), core.clock.now()).await;
    for id in ended.map_err(|error| store_failure(&error))? {
        let batch = Batch::new("controller", "enrollment.expire", format!("enrollment/{id}"));
        core.records.commit(batch.delete(Kind::EnrollmentToken, id, Expect::Any)).await?;
    }
    Ok(())
}

async fn remove_unused_indexes(core: &Arc<Core>) -> Result<(), Failure> {
    let owner = core.clone();
    core.blocking("remove unused indexes", move || {
        let before = owner.clock.now().as_second() - INDEX_KEPT.as_secs().cast_signed();
        owner.repositories.remove_unused_indexes(before)
    })
    .await
}
