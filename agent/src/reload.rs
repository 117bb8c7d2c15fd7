//! `agent.yaml` read anew while the agent runs: what can change holds from the next run or question on, what can not is
//! named, and a file that is not valid changes nothing.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::{OnEnd, TaskGroup, telemetry};
use tokio::signal::unix::Signal;

use crate::config::{AgentConfig, TelemetryConfig};

/// The configuration in force. Clones share it.
#[derive(Debug, Clone)]
pub struct InForce(Arc<ArcSwap<AgentConfig>>);

impl InForce {
    /// As it was at the start.
    pub fn new(config: AgentConfig) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(config)))
    }

    /// As it is now.
    pub fn get(&self) -> Arc<AgentConfig> {
        self.0.load_full()
    }

    /// Takes over what can change; names the keys that differ and need a restart.
    ///
    /// # Errors
    /// `HF-1002` when the log filter is not valid; then nothing has changed.
    fn take_over(&self, wanted: AgentConfig) -> Result<Vec<&'static str>, Failure> {
        let before = self.get();
        telemetry::set_filter(&wanted.telemetry.filter)
            .map_err(|error| Failure::new(ErrorCode::FileInvalid, format!("`telemetry.filter`: {error}")))?;
        let logs_alike =
            TelemetryConfig { filter: before.telemetry.filter.clone(), ..wanted.telemetry.clone() };
        let waiting = [
            ("controller", before.controller != wanted.controller),
            ("name", before.name != wanted.name),
            ("data_dir", before.data_dir != wanted.data_dir),
            ("slots", before.slots != wanted.slots),
            ("drain_grace", before.drain_grace != wanted.drain_grace),
            ("run_deadline", before.run_deadline != wanted.run_deadline),
            ("telemetry", before.telemetry != logs_alike),
        ];
        let next = AgentConfig {
            work_threads: wanted.work_threads,
            verify_encoding: wanted.verify_encoding,
            allow: wanted.allow,
            hooks: wanted.hooks,
            ..AgentConfig::clone(&before)
        };
        self.0.store(Arc::new(next));
        Ok(waiting.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect())
    }
}

/// Reads the file anew at each hangup, until the agent stops.
pub(crate) async fn run(config: InForce, path: PathBuf, mut hangup: Signal, tasks: TaskGroup) {
    let stop = tasks.token().clone();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            hung_up = hangup.recv() => if hung_up.is_none() { return },
        }
        let file = path.clone();
        let reading =
            tasks.spawn_blocking("read the configuration", OnEnd::Isolated, move || AgentConfig::load(&file));
        let Ok(read) = reading.join().await else { continue };
        match read.and_then(|wanted| config.take_over(wanted)) {
            Ok(waiting) if waiting.is_empty() => tracing::info!("agent.yaml was read anew"),
            Ok(waiting) => {
                let keys = waiting.join(", ");
                tracing::warn!(keys, "agent.yaml was read anew; what these keys say needs a restart");
            }
            Err(failure) => tracing::error!(%failure, "agent.yaml is not taken: what was read before holds"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_asked_for_changes_at_once_and_what_can_not_change_is_named() {
        let config = InForce::new(AgentConfig::new("/var/lib/a"));
        let shared = config.clone();
        let mut wanted = AgentConfig::new("/var/lib/b");
        wanted.slots = 7;
        wanted.allow.restore_paths = vec!["/srv".into()];
        wanted.telemetry.filter = "warn".to_owned();
        assert_eq!(config.take_over(wanted.clone()).unwrap(), ["data_dir", "slots"]);
        assert_eq!(shared.get().allow.restore_paths, wanted.allow.restore_paths);
        assert_eq!((shared.get().slots, shared.get().data_dir.as_path()), (2, "/var/lib/a".as_ref()));
        wanted.allow.restore_paths.clear();
        wanted.telemetry.filter = "a=b=c".to_owned();
        assert_eq!(config.take_over(wanted).unwrap_err().code, ErrorCode::FileInvalid);
        assert_eq!(shared.get().allow.restore_paths.len(), 1, "nothing has changed");
    }
}
