//! `agent.yaml`: what this agent is, and what it may be asked to do. The controller can change none of it.
//!
//! Every key can be overridden by the environment: `HOLDFAST_AGENT__DATA_DIR=/srv/holdfast`,
//! `HOLDFAST_AGENT__ALLOW__RESTORE_PATHS='[/srv, /home]'`. A value is YAML.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_host::guarded_file::{self, Guard};
use holdfast_model::fleet::{self, FILE_BYTES_MAX, FleetError};
use holdfast_model::ids::{AgentName, HookName};
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::telemetry::{LogFormat, TelemetrySettings};
use jiff::SignedDuration;
use serde::{Deserialize, Deserializer};

use crate::address::ControllerAddress;
use crate::allow_list::AllowList;

#[cfg(test)]
mod tests;

/// Where the configuration lies unless another file is named.
pub const DEFAULT_PATH: &str = "/etc/holdfast/agent.yaml";

/// Prefix of environment variables that override keys of the file, such as `HOLDFAST_AGENT__DATA_DIR`.
const ENVIRONMENT_PREFIX: &str = "HOLDFAST_AGENT__";

/// How long a hook may take unless its definition says otherwise.
pub const HOOK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// How long running work may take to finish when the agent stops.
pub const DRAIN_GRACE_DEFAULT: Duration = Duration::from_secs(600);
/// How long one run may take.
pub const RUN_DEADLINE_DEFAULT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The configuration of one agent.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Its controller; without it the one it enrolled at.
    pub controller: Option<ControllerAddress>,
    /// Its name; without it the one it enrolled with.
    pub name: Option<AgentName>,
    /// Where it keeps its identity, facts that wait, and scratch files.
    pub data_dir: PathBuf,
    /// How many runs it takes at once.
    pub slots: u32,
    /// Threads of a backup's pipeline; without it one for each processor.
    pub work_threads: Option<usize>,
    /// Open again and compare what was compressed and sealed before it is sent. Off only to measure its cost.
    pub verify_encoding: bool,
    /// How long running work may take to finish when the agent stops.
    pub drain_grace: Duration,
    /// How long one run may take.
    pub run_deadline: Duration,
    /// What it may be asked to do.
    pub allow: AllowList,
    /// What the names of hooks stand for.
    pub hooks: BTreeMap<HookName, Hook>,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

/// One hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Program, an absolute path or the bare name of a program of the system, and its arguments. There is no shell.
    pub command: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// Logs and traces.
#[derive(Debug, Clone, PartialEq)]
pub struct TelemetryConfig {
    /// How logs look: `text` or `json`.
    pub format: LogFormat,
    /// What is logged, such as `info,holdfast_agent=debug`.
    pub filter: String,
    /// Where traces go by OTLP; none are made without it.
    pub otlp_endpoint: Option<String>,
    /// The share of traces begun here that is recorded, 0 to 1.
    pub sampled_share: f64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        let settings = TelemetrySettings::new("", "");
        Self {
            format: settings.format,
            filter: settings.filter,
            otlp_endpoint: None,
            sampled_share: settings.sampled_share,
        }
    }
}

impl TelemetryConfig {
    /// As the runtime takes it.
    pub fn settings(&self) -> TelemetrySettings {
        TelemetrySettings {
            format: self.format,
            filter: self.filter.clone(),
            otlp_endpoint: self.otlp_endpoint.clone(),
            sampled_share: self.sampled_share,
            ..TelemetrySettings::new("holdfast-agent", env!("CARGO_PKG_VERSION"))
        }
    }
}

impl AgentConfig {
    /// The defaults, with a data folder: no hooks, no restores to paths.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            controller: None,
            name: None,
            data_dir: data_dir.into(),
            slots: 2,
            work_threads: None,
            verify_encoding: true,
            drain_grace: DRAIN_GRACE_DEFAULT,
            run_deadline: RUN_DEADLINE_DEFAULT,
            allow: AllowList::default(),
            hooks: BTreeMap::new(),
            telemetry: TelemetryConfig::default(),
        }
    }

    /// Reads a file, with what the environment of this process overrides.
    ///
    /// # Errors
    /// `HF-1002`, `HF-1003` or `HF-1004` with file, line and column; `HF-1002` too when others may write it.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let text = guarded_file::read_text(path, Guard::Configuration, FILE_BYTES_MAX)?;
        Self::read(&path.display().to_string(), &text, std::env::vars())
            .map_err(|error| Failure::from(&error))
    }

    /// Reads a text, with what an environment overrides. `file` is its name in messages.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn read(
        file: &str,
        text: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, FleetError> {
        let document: AgentDocument =
            fleet::read_with_environment(file, text, ENVIRONMENT_PREFIX, variables)?;
        document.check().map_err(|message| invalid(file, message))
    }
}

fn invalid(file: &str, message: String) -> FleetError {
    FleetError { code: ErrorCode::FileInvalid, file: file.to_owned(), position: None, message }
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentDocument {
    api: String,
    #[serde(default)]
    controller: Option<ControllerAddress>,
    #[serde(default)]
    name: Option<AgentName>,
    #[serde(default)]
    data_dir: Option<PathBuf>,
    #[serde(default)]
    slots: Option<u32>,
    #[serde(default)]
    work_threads: Option<usize>,
    #[serde(default)]
    verify_encoding: Option<bool>,
    #[serde(default, deserialize_with = "duration")]
    drain_grace: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    run_deadline: Option<Duration>,
    #[serde(default)]
    allow: AllowList,
    #[serde(default)]
    hooks: BTreeMap<HookName, HookDocument>,
    #[serde(default)]
    telemetry: TelemetryDocument,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HookDocument {
    command: Vec<String>,
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TelemetryDocument {
    format: Option<String>,
    filter: Option<String>,
    otlp_endpoint: Option<String>,
    sampled_share: Option<f64>,
}

/// A duration as people write it: `60s`, `10m`, `1h 30m`.
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong = || serde::de::Error::custom(format!("{text:?} is no duration: 90s, 10m and 1h 30m are"));
    let signed: SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(signed).ok().filter(|duration| !duration.is_zero()).map(Some).ok_or_else(wrong)
}

impl AgentDocument {
    fn check(self) -> Result<AgentConfig, String> {
        if self.api != fleet::API {
            return Err(format!("`api` is {:?}, this version reads {:?}", self.api, fleet::API));
        }
        let data_dir = self.data_dir.ok_or("`data_dir` is missing")?;
        if !data_dir.is_absolute() {
            return Err(format!("`data_dir` is {}, an absolute path is needed", data_dir.display()));
        }
        let slots = self.slots.unwrap_or(2);
        if !(1..=64).contains(&slots) {
            return Err(format!("`slots` is {slots}, 1 to 64 are allowed"));
        }
        if let Some(threads @ (0 | 257..)) = self.work_threads {
            return Err(format!("`work_threads` is {threads}, 1 to 256 are allowed"));
        }
        self.allow.check()?;
        let hooks = self.hooks.into_iter().map(|(name, hook)| Ok((name.clone(), hook.check(&name)?)));
        Ok(AgentConfig {
            controller: self.controller,
            name: self.name,
            data_dir,
            slots,
            work_threads: self.work_threads,
            verify_encoding: self.verify_encoding.unwrap_or(true),
            drain_grace: self.drain_grace.unwrap_or(DRAIN_GRACE_DEFAULT),
            run_deadline: self.run_deadline.unwrap_or(RUN_DEADLINE_DEFAULT),
            allow: self.allow,
            hooks: hooks.collect::<Result<_, String>>()?,
            telemetry: self.telemetry.check()?,
        })
    }
}

impl HookDocument {
    fn check(self, name: &HookName) -> Result<Hook, String> {
        let program = self.command.first().ok_or_else(|| format!("hook {name}: `command` is empty"))?;
        if program.is_empty() || (program.contains('/') && !Path::new(program).is_absolute()) {
            return Err(format!(
                "hook {name}: the program {program:?} is neither a bare name nor an absolute path"
            ));
        }
        Ok(Hook { command: self.command, timeout: self.timeout.unwrap_or(HOOK_TIMEOUT_DEFAULT) })
    }
}

impl TelemetryDocument {
    fn check(self) -> Result<TelemetryConfig, String> {
        let default = TelemetryConfig::default();
        let format = self.format.map(|text| text.parse()).transpose();
        let sampled_share = self.sampled_share.unwrap_or(default.sampled_share);
        if !(0.0..=1.0).contains(&sampled_share) {
            return Err(format!("`telemetry.sampled_share` is {sampled_share}, 0 to 1 are allowed"));
        }
        Ok(TelemetryConfig {
            format: format.map_err(|error| format!("`telemetry.format`: {error}"))?.unwrap_or(default.format),
            filter: self.filter.unwrap_or(default.filter),
            otlp_endpoint: self.otlp_endpoint,
            sampled_share,
        })
    }
}
