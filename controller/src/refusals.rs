//! Calls that were refused to somebody known, in the audit log: one entry of each caller in a while, so that nobody can
//! fill the log, and what else they try in between is in the log of the process.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use holdfast_model::text::cut;
use holdfast_model::{ErrorCode, Failure};
use parking_lot::Mutex;

use crate::access::Caller;
use crate::core::Core;
use crate::records::Batch;

/// How often a caller gets an entry.
const PERIOD: Duration = Duration::from_secs(60);

/// The longest name of a call in an entry, in bytes: it may be anything that somebody asks for.
const CALL_BYTES_MAX: usize = 200;

/// When callers last got an entry.
#[derive(Default)]
pub struct RefusalBook(Mutex<HashMap<String, Instant>>);

impl RefusalBook {
    fn is_due(&self, actor: &str, now: Instant) -> bool {
        let mut noted = self.0.lock();
        noted.retain(|_, at| now.saturating_duration_since(*at) < PERIOD);
        let is_due = !noted.contains_key(actor);
        if is_due {
            noted.insert(actor.to_owned(), now);
        }
        is_due
    }
}

/// Takes the refusal of a call into the audit log; of who is not known, nothing.
pub async fn note(core: &Core, caller: &Caller, call: &str, refused: &Failure) {
    let actor = caller.actor();
    if refused.code != ErrorCode::NotPermitted || !core.refusals.is_due(&actor, core.clock.monotonic()) {
        return;
    }
    let target = format!("call/{}", cut(call, CALL_BYTES_MAX));
    if let Err(failure) = core.records.commit(Batch::refused(actor, "call.make", target, refused.code)).await
    {
        tracing::warn!(%failure, "a refusal could not be written to the audit log");
    }
}

#[cfg(test)]
mod tests {
    use holdfast_runtime::ManualClock;
    use jiff::Timestamp;

    use super::*;
    use crate::access::{self, Role};
    use crate::{Controller, ControllerConfig};

    #[tokio::test]
    async fn of_what_somebody_known_is_refused_one_entry_a_minute_is_in_the_audit_log() {
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::at("2026-06-01T12:00:00Z".parse().unwrap());
        let config = ControllerConfig::new(folder.path());
        let controller = Controller::assemble(&config, &clock.shared()).await.unwrap();
        let core = &controller.core;
        let eve = Caller::Operator { name: "eve".into(), role: Role::Viewer, not_after: Timestamp::MAX };
        let db1 = Caller::Agent { name: "db1".parse().unwrap(), serial: "01".into() };
        let before = core.records.store().sequence();
        let long = format!("/holdfast.v1.FleetService/{}", "x".repeat(10_000));
        for (caller, call) in [
            (&eve, "/holdfast.v1.FleetService/Apply"),
            (&eve, "/holdfast.v1.RestoreService/Run"),
            (&db1, &long),
            (&Caller::Nobody, "/holdfast.v1.FleetService/Apply"),
            (&eve, "/holdfast.v1.RestoreService/Run"),
        ] {
            note(core, caller, call, &access::check(call, caller).unwrap_err()).await;
        }
        clock.advance(PERIOD);
        let call = "POST /api/v1/backups";
        note(core, &eve, call, &access::check(call, &eve).unwrap_err()).await;

        let entries = core.records.store().audit(before, 100).await.unwrap();
        let said: Vec<(String, String, String)> = entries
            .into_iter()
            .map(|entry| (entry.audit.actor, entry.audit.target, entry.audit.result))
            .collect();
        let entry =
            |actor: &str, call: &str| (actor.to_owned(), format!("call/{call}"), "HF-6005".to_owned());
        let cut = format!("{}…", &long[..CALL_BYTES_MAX - '…'.len_utf8()]);
        assert_eq!(
            said,
            [
                entry(&eve.actor(), "/holdfast.v1.FleetService/Apply"),
                entry(&db1.actor(), &cut),
                entry(&eve.actor(), call),
            ]
        );
        controller.close().await.unwrap();
    }
}
