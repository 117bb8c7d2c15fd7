//! The fleet as declared: YAML documents with maps of named definitions.
//!
//! Reading is strict: unknown keys, duplicate keys, secrets in plain text and references to nothing are errors, each
//! with its file, line and column.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::alert::{AlertRule, Channel, Route, Routing, Silence};
use crate::error_code::{ErrorCode, Failure};
use crate::ids::{AgentName, ChannelName, PolicyName, ReportName, RepositoryName, RuleName, SourceName};
use crate::policy::Policy;
use crate::report::ReportSchedule;
use crate::repository_spec::RepositorySpec;
use crate::source::{Source, SourceDocument};

mod check;
mod environment;
mod position;
mod yaml;

pub use environment::read_with_environment;
pub use position::locate;
pub use yaml::read_yaml;

/// The value of `api:` in every file.
pub const API: &str = "holdfast/v1";

/// The name of the routes among the notifications.
pub const ROUTES: &str = "routes";

/// The largest file that is read, in bytes.
pub const FILE_BYTES_MAX: usize = 4 << 20;

/// Everything that is declared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fleet {
    /// Repositories by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub repositories: BTreeMap<RepositoryName, RepositorySpec>,
    /// Policies by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub policies: BTreeMap<PolicyName, Policy>,
    /// Sources by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<SourceName, Source>,
    /// What is declared of agents, by name. Enrolment is not declared, it is done.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub agents: BTreeMap<AgentName, AgentSpec>,
    /// Channels of notifications by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub channels: BTreeMap<ChannelName, Channel>,
    /// Who is told of what: under the name [`ROUTES`], or not at all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub notifications: BTreeMap<RuleName, Routing>,
    /// Rules of alerts by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub alerts: BTreeMap<RuleName, AlertRule>,
    /// Reports that are sent by themselves, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reports: BTreeMap<ReportName, ReportSchedule>,
}

/// What is declared of an agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentSpec {
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// One file as it is written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Holdfast fleet")]
pub struct FleetDocument {
    /// Always `holdfast/v1`.
    pub api: String,
    /// Repositories by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub repositories: BTreeMap<RepositoryName, RepositorySpec>,
    /// Policies by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub policies: BTreeMap<PolicyName, Policy>,
    /// Sources by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<SourceName, SourceDocument>")]
    pub sources: BTreeMap<SourceName, Source>,
    /// Agents by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub agents: BTreeMap<AgentName, AgentSpec>,
    /// Who is told of what, and by which way.
    #[serde(default, skip_serializing_if = "Notifications::is_empty")]
    pub notifications: Notifications,
    /// Rules of alerts by name: changes of those that are built in, and one's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub alerts: BTreeMap<RuleName, AlertRule>,
    /// Reports that are sent by themselves, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reports: BTreeMap<ReportName, ReportSchedule>,
}

/// Who is told of what, and by which way, as it is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Notifications {
    /// Channels by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<ChannelName, crate::alert::channel::ChannelDocument>")]
    pub channels: BTreeMap<ChannelName, Channel>,
    /// The first that fits an alert decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Silences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silences: Vec<Silence>,
}

impl Notifications {
    fn is_empty(&self) -> bool {
        self.channels.is_empty() && self.routes.is_empty() && self.silences.is_empty()
    }

    fn routing(&mut self) -> Option<Routing> {
        let routing = Routing {
            routes: std::mem::take(&mut self.routes),
            silences: std::mem::take(&mut self.silences),
        };
        (routing != Routing::default()).then_some(routing)
    }
}

/// A file of the fleet: its name for messages, and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetFile {
    /// Name as the user knows it.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// What is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetError {
    /// Which rule is broken.
    pub code: ErrorCode,
    /// The file.
    pub file: String,
    /// Line and column, from 1, when known.
    pub position: Option<(u64, u64)>,
    /// What is wrong, without the position.
    pub message: String,
}

impl fmt::Display for FleetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some((line, column)) => write!(f, "{}:{line}:{column}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

impl std::error::Error for FleetError {}

impl From<&FleetError> for Failure {
    fn from(error: &FleetError) -> Self {
        Failure::new(error.code, error.to_string())
    }
}

/// Reads and merges the files of a fleet, and checks each definition by itself. References between definitions are
/// checked by [`Fleet::check_references`], since they may point to what the controller has already.
///
/// # Errors
/// Every problem of every file.
pub fn read_fleet(files: &[FleetFile]) -> Result<Fleet, Vec<FleetError>> {
    let mut fleet = Fleet::default();
    let mut origin: BTreeMap<String, String> = BTreeMap::new();
    let mut errors = Vec::new();
    for file in files {
        let document: FleetDocument = match read_yaml(&file.name, &file.text) {
            Ok(document) => document,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        if document.api != API {
            errors.push(FleetError {
                code: ErrorCode::FileInvalid,
                file: file.name.clone(),
                position: None,
                message: format!("`api` is {:?}, this version reads {API:?}", document.api),
            });
            continue;
        }
        let mut take =
            |kind: &str, name: &str| match origin.insert(format!("{kind} {name}"), file.name.clone()) {
                None => true,
                Some(first) => {
                    errors.push(FleetError {
                        code: ErrorCode::FileDuplicateKey,
                        file: file.name.clone(),
                        position: None,
                        message: format!("{kind} {name} is defined in {first} already"),
                    });
                    false
                }
            };
        for (name, spec) in document.repositories {
            if take("repository", name.as_str()) {
                fleet.repositories.insert(name, spec);
            }
        }
        for (name, policy) in document.policies {
            if take("policy", name.as_str()) {
                fleet.policies.insert(name, policy);
            }
        }
        for (name, source) in document.sources {
            if take("source", name.as_str()) {
                fleet.sources.insert(name, source);
            }
        }
        for (name, agent) in document.agents {
            if take("agent", name.as_str()) {
                fleet.agents.insert(name, agent);
            }
        }
        let mut notifications = document.notifications;
        if let (Some(routing), Ok(name)) = (notifications.routing(), RuleName::new(ROUTES))
            && take("the part of notifications:", ROUTES)
        {
            fleet.notifications.insert(name, routing);
        }
        for (name, channel) in notifications.channels {
            if take("channel", name.as_str()) {
                fleet.channels.insert(name, channel);
            }
        }
        for (name, rule) in document.alerts {
            if take("alert", name.as_str()) {
                fleet.alerts.insert(name, rule);
            }
        }
        for (name, report) in document.reports {
            if take("report", name.as_str()) {
                fleet.reports.insert(name, report);
            }
        }
    }
    let mut wrong = fleet.check_definitions();
    locate(&mut wrong, files);
    errors.extend(wrong);
    if errors.is_empty() { Ok(fleet) } else { Err(errors) }
}

impl Fleet {
    /// Routes and silences as declared.
    pub fn routing(&self) -> Option<&Routing> {
        self.notifications.values().next()
    }

    /// The policy that a source is under.
    pub fn policy_of(&self, source: &Source) -> Option<(&PolicyName, &Policy)> {
        self.policies.get_key_value(source.policy.as_ref()?)
    }

    /// One definition as a document of the schema of its kind.
    pub fn get_json(&self, kind: &str, name: &str) -> Option<serde_json::Value> {
        fn find<K: Ord + std::str::FromStr, V: Serialize>(
            map: &BTreeMap<K, V>,
            name: &str,
        ) -> Option<serde_json::Value> {
            serde_json::to_value(map.get(&name.parse().ok()?)?).ok()
        }
        match kind {
            "repositories" => find(&self.repositories, name),
            "policies" => find(&self.policies, name),
            "sources" => find(&self.sources, name),
            "agents" => find(&self.agents, name),
            "channels" => find(&self.channels, name),
            "notifications" => find(&self.notifications, name),
            "alerts" => find(&self.alerts, name),
            "reports" => find(&self.reports, name),
            _ => None,
        }
    }

    /// Enters a definition from its document.
    ///
    /// # Errors
    /// Says what does not fit.
    pub fn insert_json(&mut self, kind: &str, name: &str, spec: serde_json::Value) -> Result<(), String> {
        fn enter<K: Ord + std::str::FromStr<Err: fmt::Display>, V: serde::de::DeserializeOwned>(
            map: &mut BTreeMap<K, V>,
            name: &str,
            spec: serde_json::Value,
        ) -> Result<(), String> {
            let name = name.parse().map_err(|error: K::Err| error.to_string())?;
            map.insert(name, serde_json::from_value(spec).map_err(|error| error.to_string())?);
            Ok(())
        }
        match kind {
            "repositories" => enter(&mut self.repositories, name, spec),
            "policies" => enter(&mut self.policies, name, spec),
            "sources" => enter(&mut self.sources, name, spec),
            "agents" => enter(&mut self.agents, name, spec),
            "channels" => enter(&mut self.channels, name, spec),
            "notifications" => enter(&mut self.notifications, name, spec),
            "alerts" => enter(&mut self.alerts, name, spec),
            "reports" => enter(&mut self.reports, name, spec),
            other => Err(format!("there is no kind {other:?}")),
        }
    }

    /// Takes a definition out.
    pub fn remove(&mut self, kind: &str, name: &str) {
        match kind {
            "repositories" => self.repositories.retain(|key, _| key.as_str() != name),
            "policies" => self.policies.retain(|key, _| key.as_str() != name),
            "sources" => self.sources.retain(|key, _| key.as_str() != name),
            "agents" => self.agents.retain(|key, _| key.as_str() != name),
            "channels" => self.channels.retain(|key, _| key.as_str() != name),
            "notifications" => self.notifications.retain(|key, _| key.as_str() != name),
            "alerts" => self.alerts.retain(|key, _| key.as_str() != name),
            "reports" => self.reports.retain(|key, _| key.as_str() != name),
            _ => {}
        }
    }
}

/// How one definition would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// `repositories.main`, `sources.pg-main`, `agents.db1`.
    pub path: String,
    /// What happens to it.
    pub action: ChangeAction,
    /// `key: old → new`, one line per key.
    pub details: Vec<String>,
    /// Whether protection or data may be lost by it, so that it must be confirmed by name.
    pub dangerous: bool,
}

/// What happens to a definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeAction {
    /// It comes to be.
    Create,
    /// It is changed.
    Update,
    /// It is removed.
    Remove,
}

/// What applying `wanted` over `current` would change; definitions absent from `wanted` are removed only with `prune`.
pub fn diff(current: &Fleet, wanted: &Fleet, prune: bool) -> Vec<Change> {
    let mut changes = Vec::new();
    diff_kind("repositories", &current.repositories, &wanted.repositories, prune, &mut changes);
    diff_kind("policies", &current.policies, &wanted.policies, prune, &mut changes);
    diff_kind("sources", &current.sources, &wanted.sources, prune, &mut changes);
    diff_kind("agents", &current.agents, &wanted.agents, prune, &mut changes);
    diff_kind("channels", &current.channels, &wanted.channels, prune, &mut changes);
    diff_kind("notifications", &current.notifications, &wanted.notifications, prune, &mut changes);
    diff_kind("alerts", &current.alerts, &wanted.alerts, prune, &mut changes);
    diff_kind("reports", &current.reports, &wanted.reports, prune, &mut changes);
    changes
}

/// A definition that may take away protection or data when it changes.
trait Definition: PartialEq + Serialize {
    fn loses_protection(&self, old: &Self) -> bool;
}

impl Definition for RepositorySpec {
    fn loses_protection(&self, old: &Self) -> bool {
        self.url != old.url
    }
}

impl Definition for Policy {
    fn loses_protection(&self, old: &Self) -> bool {
        self.keeps_less_than(old) || self.schedule != old.schedule && self.schedule.by_type().next().is_none()
    }
}

impl Definition for Source {
    fn loses_protection(&self, old: &Self) -> bool {
        old.policy.is_some() && self.policy.is_none()
    }
}

impl Definition for AgentSpec {
    fn loses_protection(&self, _: &Self) -> bool {
        false
    }
}

impl Definition for Channel {
    fn loses_protection(&self, _: &Self) -> bool {
        false
    }
}

impl Definition for Routing {
    fn loses_protection(&self, _: &Self) -> bool {
        false
    }
}

impl Definition for ReportSchedule {
    fn loses_protection(&self, _: &Self) -> bool {
        false
    }
}

impl Definition for AlertRule {
    fn loses_protection(&self, old: &Self) -> bool {
        old.enabled && !self.enabled
    }
}

fn diff_kind<K: Ord + fmt::Display, V: Definition>(
    kind: &str,
    current: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    prune: bool,
    changes: &mut Vec<Change>,
) {
    for (name, value) in wanted {
        let path = format!("{kind}.{name}");
        match current.get(name) {
            None => changes.push(Change {
                path,
                action: ChangeAction::Create,
                details: Vec::new(),
                dangerous: false,
            }),
            Some(old) if old != value => {
                changes.push(Change {
                    path,
                    action: ChangeAction::Update,
                    details: changed_keys(old, value),
                    dangerous: value.loses_protection(old),
                });
            }
            Some(_) => {}
        }
    }
    if prune {
        for name in current.keys().filter(|name| !wanted.contains_key(name)) {
            changes.push(Change {
                path: format!("{kind}.{name}"),
                action: ChangeAction::Remove,
                details: Vec::new(),
                dangerous: kind != "agents",
            });
        }
    }
}

fn changed_keys<V: Serialize>(old: &V, new: &V) -> Vec<String> {
    let as_map = |value: &V| match serde_json::to_value(value) {
        Ok(serde_json::Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    };
    let (old, new) = (as_map(old), as_map(new));
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let show = |value: Option<&serde_json::Value>| value.map_or("(not set)".to_owned(), ToString::to_string);
    keys.into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| format!("{key}: {} → {}", show(old.get(key)), show(new.get(key))))
        .collect()
}

/// A fleet as it is written.
fn document(fleet: &Fleet) -> FleetDocument {
    FleetDocument {
        api: API.to_owned(),
        repositories: fleet.repositories.clone(),
        policies: fleet.policies.clone(),
        sources: fleet.sources.clone(),
        agents: fleet.agents.clone(),
        notifications: Notifications {
            channels: fleet.channels.clone(),
            routes: fleet.routing().map(|routing| routing.routes.clone()).unwrap_or_default(),
            silences: fleet.routing().map(|routing| routing.silences.clone()).unwrap_or_default(),
        },
        alerts: fleet.alerts.clone(),
        reports: fleet.reports.clone(),
    }
}

/// The text of a file that declares this fleet; reading it gives the same fleet again.
pub fn to_yaml(fleet: &Fleet) -> String {
    serde_saphyr::to_string(&document(fleet)).unwrap_or_else(|error| format!("# not written: {error}\n"))
}

/// As [`to_yaml`], with every default written out. Reading it gives a fleet that means the same.
pub fn to_effective_yaml(fleet: &Fleet) -> String {
    let mut document = match serde_json::to_value(document(fleet)) {
        Ok(serde_json::Value::Object(document)) => document,
        _ => return to_yaml(fleet),
    };
    if let Some(serde_json::Value::Object(policies)) = document.get_mut("policies") {
        for (name, policy) in &fleet.policies {
            policies.insert(name.to_string(), policy.effective());
        }
    }
    serde_saphyr::to_string(&document).unwrap_or_else(|error| format!("# not written: {error}\n"))
}

/// The JSON Schema of a fleet file, for editors.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(FleetDocument).to_value()
}

#[cfg(test)]
mod tests;
