//! Definitions, changes, problems, agents.

use std::collections::BTreeMap;

use holdfast_model::fleet as model;
use holdfast_model::source::{EngineConfig, Source};
use holdfast_proto::v1;
use jiff::Timestamp;
use serde::Serialize;

use super::{dash, filled, moment};
use crate::output::text::size;
use crate::output::{Column, Record, Tone};

/// One source as declared.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SourceView {
    /// Its name.
    pub name: String,
    /// Its definition, as in a fleet file.
    pub definition: serde_json::Value,
    /// Changes with every update.
    pub version: u64,
    /// When it was changed.
    pub updated_at: Option<Timestamp>,
    /// By whom.
    pub updated_by: String,
    /// Who manages it; null: it is changed by hand.
    pub owner: Option<String>,
    #[serde(skip)]
    source: Option<Source>,
}

impl From<v1::Definition> for SourceView {
    fn from(definition: v1::Definition) -> Self {
        Self {
            name: definition.name,
            definition: serde_json::from_str(&definition.spec_json).unwrap_or_default(),
            version: definition.version,
            updated_at: moment(definition.updated_at),
            updated_by: definition.updated_by,
            owner: filled(definition.owner),
            source: serde_json::from_str(&definition.spec_json).ok(),
        }
    }
}

impl SourceView {
    /// The definition, when this version understands it.
    pub(crate) fn source(&self) -> Option<&Source> {
        self.source.as_ref()
    }

    fn place(&self) -> String {
        let Some(source) = &self.source else { return "-".to_owned() };
        match &source.engine {
            EngineConfig::Sqlite(config) => config.path.display().to_string(),
            EngineConfig::Files(config) => {
                config.paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
            }
            EngineConfig::Postgres(config) => {
                let databases = if config.databases.is_empty() {
                    "all databases".to_owned()
                } else {
                    config.databases.join(" ")
                };
                format!("{}:{} {databases}", config.connect.host, config.connect.port)
            }
        }
    }
}

impl Record for SourceView {
    const KIND: &'static str = "Source";

    fn columns() -> Vec<Column<Self>> {
        fn of(view: &SourceView, text: impl Fn(&Source) -> String) -> String {
            view.source.as_ref().map_or_else(|| "-".to_owned(), text)
        }
        vec![
            Column::<Self>::left("SOURCE", |view, _| view.name.clone()),
            Column::<Self>::left("ENGINE", |view, _| of(view, |source| source.engine.kind().to_string())),
            Column::<Self>::left("AGENT", |view, _| of(view, |source| source.agent.to_string())),
            Column::<Self>::left("TO", |view, _| {
                of(view, |source| {
                    let names: Vec<&str> = source.to.iter().map(AsRef::as_ref).collect();
                    if names.is_empty() { "(the only one)".to_owned() } else { names.join(" ") }
                })
            }),
            Column::<Self>::left("WHAT", |view, _| view.place()),
            Column::<Self>::left("LABELS", |view, _| {
                of(view, |source| {
                    let labels: Vec<String> =
                        source.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                    dash(Some(&labels.join(" ")))
                })
            })
            .only_wide(),
            Column::<Self>::left("CHANGED", |view, look| look.time_or(view.updated_at, "-")).only_wide(),
            Column::<Self>::left("BY", |view, _| view.updated_by.clone()).only_wide(),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// One definition that would change or has changed.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ChangeView {
    /// Such as `sources.pg-main`.
    pub path: String,
    /// create, update or remove.
    pub action: String,
    /// `key: old → new`.
    pub details: Vec<String>,
    /// Must be confirmed by name.
    pub dangerous: bool,
}

impl From<v1::Change> for ChangeView {
    fn from(change: v1::Change) -> Self {
        Self {
            path: change.path,
            action: change.action,
            details: change.details,
            dangerous: change.dangerous,
        }
    }
}

impl From<model::Change> for ChangeView {
    fn from(change: model::Change) -> Self {
        let action = match change.action {
            model::ChangeAction::Create => "create",
            model::ChangeAction::Update => "update",
            model::ChangeAction::Remove => "remove",
        };
        Self {
            path: change.path,
            action: action.to_owned(),
            details: change.details,
            dangerous: change.dangerous,
        }
    }
}

impl ChangeView {
    /// The sign of the action.
    pub(crate) fn sign(&self) -> &'static str {
        match self.action.as_str() {
            "create" => "+",
            "remove" => "-",
            _ => "~",
        }
    }
}

impl Record for ChangeView {
    const KIND: &'static str = "Change";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("", |change, _| change.sign().to_owned()),
            Column::<Self>::left("DEFINITION", |change, _| change.path.clone()),
            Column::<Self>::left("ACTION", |change, _| change.action.clone()),
            Column::<Self>::left("CONFIRM", |change, _| {
                if change.dangerous { "by name" } else { "-" }.to_owned()
            })
            .toned(|change| if change.dangerous { Tone::Warning } else { Tone::Plain }),
            Column::<Self>::left("DETAILS", |change, _| dash(Some(&change.details.join("; ")))),
        ]
    }

    fn name(&self) -> String {
        self.path.clone()
    }
}

/// What is wrong with a fleet file.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ProblemView {
    /// The broken rule.
    pub code: String,
    /// The file, or the path of a definition.
    pub file: String,
    /// From 1.
    pub line: Option<u64>,
    /// From 1.
    pub column: Option<u64>,
    /// What is wrong.
    pub message: String,
}

impl From<v1::FileProblem> for ProblemView {
    fn from(problem: v1::FileProblem) -> Self {
        Self {
            code: problem.code,
            file: problem.file,
            line: (problem.line > 0).then_some(problem.line),
            column: (problem.column > 0).then_some(problem.column),
            message: problem.message,
        }
    }
}

impl From<&model::FleetError> for ProblemView {
    fn from(error: &model::FleetError) -> Self {
        Self {
            code: error.code.to_string(),
            file: error.file.clone(),
            line: error.position.map(|(line, _)| line),
            column: error.position.map(|(_, column)| column),
            message: error.message.clone(),
        }
    }
}

impl ProblemView {
    /// `fleet/gold.yaml:12:3: what is wrong`, as editors understand it.
    pub(crate) fn line(&self) -> String {
        let position: String =
            [self.line, self.column].iter().flatten().map(|number| format!(":{number}")).collect();
        format!("{}{position}: {} [{}]", self.file, self.message, self.code)
    }
}

impl Record for ProblemView {
    const KIND: &'static str = "Problem";

    fn columns() -> Vec<Column<Self>> {
        vec![Column::<Self>::left("PROBLEM", |problem, _| problem.line())]
    }

    fn name(&self) -> String {
        self.file.clone()
    }
}

/// One agent.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AgentView {
    /// Its name.
    pub name: String,
    /// online, offline, draining or revoked.
    pub state: String,
    /// Its version.
    pub version: String,
    /// Its host name.
    pub hostname: String,
    /// Its operating system.
    pub os: String,
    /// Its processor architecture.
    pub arch: String,
    /// Its processors.
    pub cpus: u32,
    /// Its memory.
    pub memory_bytes: u64,
    /// Labels as declared.
    pub labels: BTreeMap<String, String>,
    /// When it was enrolled.
    pub enrolled_at: Option<Timestamp>,
    /// When it was last heard of.
    pub last_seen_at: Option<Timestamp>,
    /// When its certificate ends.
    pub certificate_not_after: Option<Timestamp>,
    /// How far its clock is ahead of the controller's.
    pub clock_skew_seconds: f64,
    /// Number of its session; 0 while offline.
    pub epoch: u64,
}

impl From<v1::Agent> for AgentView {
    fn from(agent: v1::Agent) -> Self {
        let facts = agent.facts.unwrap_or_default();
        Self {
            name: agent.name,
            state: agent.state,
            version: agent.version,
            hostname: facts.hostname,
            os: facts.os,
            arch: facts.arch,
            cpus: facts.cpus,
            memory_bytes: facts.memory_bytes,
            labels: agent.labels.into_iter().collect(),
            enrolled_at: moment(agent.enrolled_at),
            last_seen_at: moment(agent.last_seen_at),
            certificate_not_after: moment(agent.certificate_not_after),
            clock_skew_seconds: agent.clock_skew_millis as f64 / 1000.0,
            epoch: agent.epoch,
        }
    }
}

impl Record for AgentView {
    const KIND: &'static str = "Agent";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("AGENT", |agent, _| agent.name.clone()),
            Column::<Self>::left("STATE", |agent, _| agent.state.clone()).toned(|agent| {
                match agent.state.as_str() {
                    "online" => Tone::Good,
                    "draining" => Tone::Warning,
                    _ => Tone::Bad,
                }
            }),
            Column::<Self>::left("HOST", |agent, _| dash(Some(&agent.hostname))),
            Column::<Self>::left("VERSION", |agent, _| dash(Some(&agent.version))),
            Column::<Self>::left("LAST SEEN", |agent, look| look.time_or(agent.last_seen_at, "never")),
            Column::<Self>::left("CERTIFICATE ENDS", |agent, look| {
                look.time_or(agent.certificate_not_after, "-")
            }),
            Column::<Self>::left("SYSTEM", |agent, _| {
                format!("{} {}, {} CPUs, {}", agent.os, agent.arch, agent.cpus, size(agent.memory_bytes))
            })
            .only_wide(),
            Column::<Self>::right("CLOCK SKEW", |agent, _| format!("{:.2}s", agent.clock_skew_seconds))
                .only_wide(),
            Column::<Self>::left("ENROLLED", |agent, look| look.time_or(agent.enrolled_at, "-")).only_wide(),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// A token for a new agent. It is shown once and opens one enrolment.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct EnrollmentView {
    /// Name that the agent will have.
    pub agent: String,
    /// The token.
    pub token: String,
    /// What tells the agent that it speaks to the right controller.
    pub ca_pin: String,
    /// Address of the controller.
    pub server: String,
    /// Until when the token can be used.
    pub not_after: Option<Timestamp>,
    /// What to run on the agent's host.
    pub command: String,
}

impl Record for EnrollmentView {
    const KIND: &'static str = "EnrollmentToken";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("AGENT", |view, _| view.agent.clone()),
            Column::<Self>::left("VALID", |view, look| look.time_or(view.not_after, "-")),
            Column::<Self>::left("COMMAND", |view, _| view.command.clone()),
        ]
    }

    fn name(&self) -> String {
        self.agent.clone()
    }
}
