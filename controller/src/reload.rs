//! `controller.yaml` read anew while the controller runs: what can change changes, what can not stays and is named,
//! and a file that is not valid changes nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::telemetry;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::signal::unix::Signal;
use tokio::sync::Notify;

use crate::config::{ControllerConfig, FleetConfig, LimitsConfig, TelemetryConfig};
use crate::core::Core;

/// The configuration in force.
pub struct InForce {
    current: ArcSwap<ControllerConfig>,
    standing: Mutex<Option<Standing>>,
    changed: Notify,
}

/// What came of reading the file anew.
#[derive(Debug, Clone)]
pub struct Standing {
    /// When.
    pub at: Timestamp,
    /// Keys that differ and need a restart, or why all stayed as it was.
    pub outcome: Result<Vec<String>, Failure>,
}

impl InForce {
    /// As it was at the start.
    pub fn new(config: ControllerConfig) -> Self {
        Self { current: ArcSwap::from_pointee(config), standing: Mutex::default(), changed: Notify::new() }
    }

    /// Completes when the file is read anew. Create it before looking at the configuration, so that nothing is missed.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + '_ {
        self.changed.notified()
    }

    /// As it is now.
    pub fn get(&self) -> Arc<ControllerConfig> {
        self.current.load_full()
    }

    /// What came of the last reading; nothing since the start.
    pub fn standing(&self) -> Option<Standing> {
        self.standing.lock().clone()
    }
}

/// Reads the file anew at each hangup, until the controller stops.
pub async fn run(core: Arc<Core>, path: PathBuf, mut hangup: Signal) {
    let stop = core.tasks.token().clone();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            hung_up = hangup.recv() => if hung_up.is_none() { return },
        }
        let file = path.clone();
        let read =
            core.blocking("read the configuration", move || ControllerConfig::load(&file, std::env::vars()));
        reload(&core, read.await);
    }
}

/// Takes over what was read.
pub fn reload(core: &Core, read: Result<ControllerConfig, Failure>) {
    let outcome = read.and_then(|wanted| take_over(core, &wanted));
    match &outcome {
        Ok(waiting) if waiting.is_empty() => tracing::info!("controller.yaml was read anew"),
        Ok(waiting) => {
            let keys = waiting.join(", ");
            tracing::warn!(keys, "controller.yaml was read anew; what these keys say needs a restart");
        }
        Err(failure) => tracing::error!(%failure, "controller.yaml is not taken: what was read before holds"),
    }
    *core.config.standing.lock() = Some(Standing { at: core.clock.now(), outcome });
}

fn take_over(core: &Core, wanted: &ControllerConfig) -> Result<Vec<String>, Failure> {
    let before = core.config.get();
    let next = ControllerConfig {
        limits: LimitsConfig { lease_seconds: before.limits.lease_seconds, ..wanted.limits.clone() },
        telemetry: TelemetryConfig { filter: wanted.telemetry.filter.clone(), ..before.telemetry.clone() },
        fleet: FleetConfig { folder: before.fleet.folder.clone(), ..wanted.fleet.clone() },
        self_backup: wanted.self_backup.clone(),
        notifications: wanted.notifications.clone(),
        ..ControllerConfig::clone(&before)
    };
    telemetry::set_filter(&next.telemetry.filter)
        .map_err(|error| Failure::new(ErrorCode::FileInvalid, format!("`telemetry.filter`: {error}")))?;
    core.runs.limit_active(next.limits.active_runs as usize);
    core.notifier.configure(next.notifications.clone());
    let waiting = different(&next, wanted);
    core.config.current.store(Arc::new(next));
    core.config.changed.notify_waiters();
    Ok(waiting)
}

/// The keys that two configurations have different values of.
fn different(one: &ControllerConfig, other: &ControllerConfig) -> Vec<String> {
    let leaves = |config: &ControllerConfig| {
        let mut leaves = BTreeMap::new();
        collect(String::new(), serde_json::to_value(config).unwrap_or_default(), &mut leaves);
        leaves
    };
    let (one, other) = (leaves(one), leaves(other));
    let mut keys: Vec<String> = one.keys().chain(other.keys()).cloned().collect();
    keys.sort();
    keys.dedup();
    keys.retain(|key| one.get(key) != other.get(key));
    keys
}

fn collect(key: String, value: Value, leaves: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let key = if key.is_empty() { name } else { format!("{key}.{name}") };
                collect(key, value, leaves);
            }
        }
        value => {
            leaves.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_differ_are_named_with_their_place() {
        let one = ControllerConfig::new("/a");
        let mut other = ControllerConfig::new("/b");
        other.tls.names.push("controller.internal".to_owned());
        other.limits.lease_seconds = 60;
        other.fleet.folder = Some("/etc/holdfast/fleet".into());
        assert_eq!(
            different(&one, &other),
            ["data_dir", "fleet.folder", "limits.lease_seconds", "tls.names"]
        );
        assert_eq!(different(&one, &one), Vec::<String>::new());
    }
}
