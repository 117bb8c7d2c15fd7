//! `controller.yaml`: process bootstrap, read once at start, every key overridable by environment.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_host::guarded_file::{self, Guard};
use holdfast_model::fleet::{API, FILE_BYTES_MAX, FleetError, read_with_environment};
use holdfast_model::ids::RepositoryName;
use holdfast_model::units::Span;
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::telemetry::{LogFormat, TelemetrySettings};
use serde::{Deserialize, Serialize};

use crate::notify::Network;

/// Beginning of the environment variables that override keys: `HOLDFAST_CONTROLLER__GRPC__LISTEN`.
pub const ENVIRONMENT_PREFIX: &str = "HOLDFAST_CONTROLLER__";

/// What `controller.yaml` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerConfig {
    /// Always `holdfast/v1`.
    pub api: String,
    /// Where gRPC is served: agents, the command line.
    #[serde(default)]
    pub grpc: GrpcConfig,
    /// Where REST, health and metrics are served; nowhere unless it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpConfig>,
    /// The names by which the controller is called.
    #[serde(default)]
    pub tls: TlsConfig,
    /// Where the controller keeps its state.
    pub data_dir: PathBuf,
    /// Logs and traces.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// Limits.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Where the fleet is declared, when a folder of this host does.
    #[serde(default)]
    pub fleet: FleetConfig,
    /// How the controller's own state is copied to a repository.
    #[serde(default)]
    pub self_backup: SelfBackupConfig,
    /// How people are told.
    #[serde(default)]
    pub notifications: NotificationsConfig,
}

/// How people are told; whom and of what is declared with the fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NotificationsConfig {
    /// The environment that messages name when the label `env` of a source does not.
    pub environment: String,
    /// Addresses that are not public and may be sent to all the same, such as `10.1.0.0/16`.
    pub allow_addresses: Vec<Network>,
}

/// Where gRPC is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpcConfig {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([0, 0, 0, 0], 7443)) }
    }
}

/// Where REST, health and metrics are served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whether with TLS, by the certificate that gRPC shows; without it, only a loopback address is possible.
    #[serde(default = "yes")]
    pub tls: bool,
}

fn yes() -> bool {
    true
}

/// The names by which the controller is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Host names and addresses that go into the server certificate.
    pub names: Vec<String>,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self { names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()] }
    }
}

/// Logs and traces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// How logs look.
    pub logs: LogsFormat,
    /// What is logged, such as `info,holdfast_controller=debug`.
    pub filter: String,
    /// Which share of the traces that begin here is recorded, 0 to 1. Those that begin elsewhere are recorded when they
    /// are there.
    pub sampled_share: f64,
    /// Where traces and metrics go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp: Option<OtlpConfig>,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        let settings = TelemetrySettings::new("holdfast-controller", crate::VERSION);
        Self {
            logs: LogsFormat::default(),
            filter: settings.filter,
            sampled_share: settings.sampled_share,
            otlp: None,
        }
    }
}

impl TelemetryConfig {
    /// As the runtime takes them.
    pub fn settings(&self) -> TelemetrySettings {
        TelemetrySettings {
            format: match self.logs {
                LogsFormat::Text => LogFormat::Text,
                LogsFormat::Json => LogFormat::Json,
            },
            filter: self.filter.clone(),
            otlp_endpoint: self.otlp.as_ref().map(|otlp| otlp.endpoint.clone()),
            sampled_share: self.sampled_share,
            ..TelemetrySettings::new("holdfast-controller", crate::VERSION)
        }
    }
}

/// How logs look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogsFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where traces and metrics go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtlpConfig {
    /// Such as `http://127.0.0.1:4317`.
    pub endpoint: String,
    /// How often metrics are sent there, in seconds.
    #[serde(default = "a_minute")]
    pub metrics_every_seconds: u32,
}

fn a_minute() -> u32 {
    60
}

/// Where the fleet is declared, when a folder of this host does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FleetConfig {
    /// The folder with the fleet files; the fleet is made what they say whenever they change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// What the folder declared before and does not any more is removed, after a person confirmed it.
    pub prune: bool,
    /// How often the folder is looked at.
    pub every: Span,
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self { folder: None, prune: true, every: Span::from_secs(5) }
    }
}

impl FleetConfig {
    /// How often.
    pub fn every(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.every.secs()).unwrap_or(u64::MAX))
    }
}

/// How the controller's own state is copied to a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelfBackupConfig {
    /// Which repository; without it the only one that is declared. Who can open it can become this controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<RepositoryName>,
    /// How often it is looked whether something has changed.
    pub every: Span,
}

impl Default for SelfBackupConfig {
    fn default() -> Self {
        Self { to: None, every: Span::from_mins(5) }
    }
}

impl SelfBackupConfig {
    /// How often.
    pub fn every(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.every.secs()).unwrap_or(u64::MAX))
    }
}

/// Limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Runs that are under way at a time, wherever.
    pub runs: u32,
    /// Runs that write to or read from one repository at a time.
    pub runs_per_repository: u32,
    /// Runs that may wait or run in all.
    pub active_runs: u32,
    /// Seconds without a sign of life after which a run's lease ends.
    pub lease_seconds: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self { runs: 256, runs_per_repository: 8, active_runs: 10_000, lease_seconds: 30 }
    }
}

impl LimitsConfig {
    /// How long a lease lasts without a sign of life.
    pub fn lease(&self) -> Duration {
        Duration::from_secs(u64::from(self.lease_seconds))
    }
}

impl ControllerConfig {
    /// A configuration with defaults and nothing else.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            api: API.to_owned(),
            grpc: GrpcConfig::default(),
            http: None,
            tls: TlsConfig::default(),
            data_dir: data_dir.into(),
            telemetry: TelemetryConfig::default(),
            limits: LimitsConfig::default(),
            fleet: FleetConfig::default(),
            self_backup: SelfBackupConfig::default(),
            notifications: NotificationsConfig::default(),
        }
    }

    /// Reads the file and applies overrides.
    ///
    /// # Errors
    /// `HF-1002` and its like with file, line and column, `HF-1002` too when others may write the file; the name of an
    /// override that fits no key.
    pub fn load(
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Failure> {
        let text = guarded_file::read_text(path, Guard::Configuration, FILE_BYTES_MAX)?;
        Self::parse(&path.display().to_string(), &text, environment)
    }

    fn parse(
        file: &str,
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Failure> {
        let as_failure = |error: FleetError| Failure::from(&error);
        let config: Self =
            read_with_environment(file, text, ENVIRONMENT_PREFIX, environment).map_err(as_failure)?;
        if config.api != API {
            return Err(Failure::new(
                ErrorCode::FileInvalid,
                format!("{file}: `api` is {:?}, this version reads {API:?}", config.api),
            ));
        }
        if !(5..=3600).contains(&config.limits.lease_seconds) {
            return Err(Failure::new(
                ErrorCode::FileInvalid,
                format!(
                    "{file}: `limits.lease_seconds` is {}, 5 to 3600 are possible",
                    config.limits.lease_seconds
                ),
            ));
        }
        if let Some(http) = config.http.as_ref().filter(|http| !http.tls && !http.listen.ip().is_loopback()) {
            return Err(Failure::new(
                ErrorCode::FileInvalid,
                format!(
                    "{file}: `http.tls` is false, so tokens would cross the network in plain text: `http.listen` is \
                     {}, a loopback address is needed",
                    http.listen
                ),
            ));
        }
        let every = config.telemetry.otlp.as_ref().map_or(60, |otlp| otlp.metrics_every_seconds);
        if !(1..=3600).contains(&every) {
            return Err(Failure::new(
                ErrorCode::FileInvalid,
                format!("{file}: `telemetry.otlp.metrics_every_seconds` is {every}, 1 to 3600 are possible"),
            ));
        }
        let share = config.telemetry.sampled_share;
        if !(0.0..=1.0).contains(&share) {
            return Err(Failure::new(
                ErrorCode::FileInvalid,
                format!("{file}: `telemetry.sampled_share` is {share}, 0 to 1 are possible"),
            ));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str =
        "api: holdfast/v1\ndata_dir: /var/lib/holdfast\ngrpc: { listen: \"127.0.0.1:7443\" }\n";

    fn parse(text: &str, environment: &[(&str, &str)]) -> Result<ControllerConfig, Failure> {
        let environment = environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        ControllerConfig::parse("controller.yaml", text, environment)
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let config =
            parse(FILE, &[("HOLDFAST_CONTROLLER__GRPC__LISTEN", "0.0.0.0:1"), ("HOME", "/root")]).unwrap();
        assert_eq!(config.grpc.listen.port(), 1);
        assert_eq!(config.limits, LimitsConfig::default());
    }

    #[test]
    fn an_override_of_no_key_is_refused_by_name() {
        let failure = parse(FILE, &[("HOLDFAST_CONTROLLER__GRPC__LISTN", "x")]).unwrap_err();
        assert_eq!(failure.code, ErrorCode::FileUnknownKey);
        assert!(
            failure
                .message
                .starts_with("environment variable HOLDFAST_CONTROLLER__GRPC__LISTN: unknown field `listn`"),
            "{failure}"
        );
    }

    #[test]
    fn plain_http_stays_on_the_machine() {
        let with = |http: &str| parse(&format!("{FILE}http: {http}\n"), &[]);
        let plain = with("{ listen: \"127.0.0.1:0\", tls: false }").unwrap();
        assert!(plain.http.is_some_and(|http| !http.tls));
        assert!(with("{ listen: \"0.0.0.0:7480\" }").unwrap().http.is_some_and(|http| http.tls));
        let failure = with("{ listen: \"0.0.0.0:7480\", tls: false }").unwrap_err();
        assert_eq!(failure.code, ErrorCode::FileInvalid);
        assert_eq!(
            failure.message,
            "controller.yaml: `http.tls` is false, so tokens would cross the network in plain text: `http.listen` is \
             0.0.0.0:7480, a loopback address is needed"
        );
        let given = parse(FILE, &[("HOLDFAST_CONTROLLER__HTTP__LISTEN", "\"[::1]:1\"")]).unwrap();
        assert_eq!(given.http.unwrap().listen.port(), 1);
    }

    #[test]
    fn an_unknown_key_has_its_place() {
        let failure = parse("api: holdfast/v1\ndata_dirr: /x\n", &[]).unwrap_err();
        assert_eq!(failure.code, ErrorCode::FileUnknownKey);
        assert!(failure.message.starts_with("controller.yaml:2:1: "), "{failure}");
    }
}
