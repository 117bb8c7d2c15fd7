//! Sources: what is protected, by which agent, and how the engine reaches it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{AgentName, HookName, PolicyName, RepositoryName};
use crate::secret::SecretRef;

/// One thing that is protected, as declared in the fleet files. Its name is its key there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SourceDocument", into = "SourceDocument")]
pub struct Source {
    /// The agent beside it.
    pub agent: AgentName,
    /// The policy that it is under; without one it is backed up by hand.
    pub policy: Option<PolicyName>,
    /// Repositories to back up to; with none given, the only repository there is.
    pub to: Vec<RepositoryName>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Hooks of the agent's configuration that run around a backup or a restore in place.
    pub hooks: Hooks,
    /// What is protected, by its engine.
    pub engine: EngineConfig,
}

/// A source as it is written: one flat map, in which each engine has keys of its own.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Source")]
pub struct SourceDocument {
    /// `postgres`, `sqlite` or `files`.
    pub engine: EngineKind,
    /// The agent beside it.
    pub agent: AgentName,
    /// The policy that it is under; without one it is backed up by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    /// Repositories to back up to; with none given, the only repository there is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<RepositoryName>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Hooks of the agent's configuration that run around a backup or a restore in place.
    #[serde(default, skip_serializing_if = "Hooks::is_empty")]
    pub hooks: Hooks,
    /// postgres: how to connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<PostgresConnect>,
    /// postgres: databases to capture, in one snapshot; without it every database that allows connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub databases: Option<Vec<String>>,
    /// postgres: how it is captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<PostgresMethod>,
    /// postgres: folder of the client tools; without it the newest installed that fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<PathBuf>,
    /// sqlite: the database file, absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// files: absolute paths of the trees or files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<PathBuf>>,
    /// files: patterns of what to leave out, as in `.gitignore`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude: Option<Vec<String>>,
    /// files: when given, only files that match one of these patterns are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include: Option<Vec<String>>,
    /// files: do not cross into other mounted file systems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_file_system: Option<bool>,
}

/// A source whose keys do not fit its engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSource {
    /// A key that the engine needs is missing.
    #[error("a source with engine {engine} needs `{key}`")]
    Missing {
        /// The engine.
        engine: EngineKind,
        /// The key.
        key: &'static str,
    },
    /// A key belongs to another engine.
    #[error("`{key}` does not apply to a source with engine {engine}")]
    Foreign {
        /// The engine.
        engine: EngineKind,
        /// The key.
        key: &'static str,
    },
    /// A path is relative, empty, or has `..` or a zero byte in it.
    #[error("`{key}` has the path {path:?}: absolute paths without `..` are needed")]
    Path {
        /// The key.
        key: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// A list or a text that must not be empty is.
    #[error("`{0}` is empty")]
    Empty(&'static str),
}

fn absolute(key: &'static str, path: PathBuf) -> Result<PathBuf, InvalidSource> {
    let plain = path.is_absolute() && path.components().all(|part| !matches!(part, Component::ParentDir));
    let plain = plain && !path.as_os_str().as_encoded_bytes().contains(&0);
    if plain { Ok(path) } else { Err(InvalidSource::Path { key, path }) }
}

impl TryFrom<SourceDocument> for Source {
    type Error = InvalidSource;

    fn try_from(document: SourceDocument) -> Result<Self, InvalidSource> {
        let kind = document.engine;
        let foreign: [(&'static str, bool, EngineKind); 9] = [
            ("connect", document.connect.is_some(), EngineKind::Postgres),
            ("databases", document.databases.is_some(), EngineKind::Postgres),
            ("method", document.method.is_some(), EngineKind::Postgres),
            ("tools", document.tools.is_some(), EngineKind::Postgres),
            ("path", document.path.is_some(), EngineKind::Sqlite),
            ("paths", document.paths.is_some(), EngineKind::Files),
            ("exclude", document.exclude.is_some(), EngineKind::Files),
            ("include", document.include.is_some(), EngineKind::Files),
            ("one_file_system", document.one_file_system.is_some(), EngineKind::Files),
        ];
        if let Some((key, ..)) = foreign.into_iter().find(|&(_, given, of)| given && of != kind) {
            return Err(InvalidSource::Foreign { engine: kind, key });
        }
        let missing = |key| InvalidSource::Missing { engine: kind, key };
        let engine = match kind {
            EngineKind::Postgres => {
                let databases = document.databases.unwrap_or_default();
                if databases.iter().any(String::is_empty) {
                    return Err(InvalidSource::Empty("databases"));
                }
                EngineConfig::Postgres(PostgresConfig {
                    connect: document.connect.ok_or_else(|| missing("connect"))?,
                    databases,
                    method: document.method.unwrap_or_default(),
                    tools: document.tools.map(|path| absolute("tools", path)).transpose()?,
                })
            }
            EngineKind::Sqlite => EngineConfig::Sqlite(SqliteConfig {
                path: absolute("path", document.path.ok_or_else(|| missing("path"))?)?,
            }),
            EngineKind::Files => {
                let paths = document.paths.ok_or_else(|| missing("paths"))?;
                if paths.is_empty() {
                    return Err(InvalidSource::Empty("paths"));
                }
                EngineConfig::Files(FilesConfig {
                    paths: paths.into_iter().map(|path| absolute("paths", path)).collect::<Result<_, _>>()?,
                    exclude: document.exclude.unwrap_or_default(),
                    include: document.include.unwrap_or_default(),
                    one_file_system: document.one_file_system.unwrap_or_default(),
                })
            }
        };
        Ok(Source {
            agent: document.agent,
            policy: document.policy,
            to: document.to,
            labels: document.labels,
            hooks: document.hooks,
            engine,
        })
    }
}

impl From<Source> for SourceDocument {
    fn from(source: Source) -> Self {
        let mut document = SourceDocument {
            engine: source.engine.kind(),
            agent: source.agent,
            policy: source.policy,
            to: source.to,
            labels: source.labels,
            hooks: source.hooks,
            connect: None,
            databases: None,
            method: None,
            tools: None,
            path: None,
            paths: None,
            exclude: None,
            include: None,
            one_file_system: None,
        };
        match source.engine {
            EngineConfig::Postgres(config) => {
                document.connect = Some(config.connect);
                document.databases = Some(config.databases).filter(|databases| !databases.is_empty());
                document.method = Some(config.method);
                document.tools = config.tools;
            }
            EngineConfig::Sqlite(config) => document.path = Some(config.path),
            EngineConfig::Files(config) => {
                document.paths = Some(config.paths);
                document.exclude = Some(config.exclude).filter(|patterns| !patterns.is_empty());
                document.include = Some(config.include).filter(|patterns| !patterns.is_empty());
                document.one_file_system = Some(config.one_file_system).filter(|&only| only);
            }
        }
        document
    }
}

/// Names of hooks; what they run is in the agent's own configuration only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    /// Runs before the capture or before the swap of a restore in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<HookName>,
    /// Runs after it, whatever the outcome of either; an agent that died in between runs it at its next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<HookName>,
}

impl Hooks {
    /// Whether no hook is named.
    pub fn is_empty(&self) -> bool {
        self.before.is_none() && self.after.is_none()
    }
}

/// The engine of a source, without its particulars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// A PostgreSQL server.
    Postgres,
    /// A SQLite database file.
    Sqlite,
    /// File trees.
    Files,
}

impl EngineKind {
    /// The word used in files and output.
    pub fn as_str(self) -> &'static str {
        match self {
            EngineKind::Postgres => "postgres",
            EngineKind::Sqlite => "sqlite",
            EngineKind::Files => "files",
        }
    }

    /// Whether the log of the database can be archived between backups.
    pub fn archives_log(self) -> bool {
        match self {
            EngineKind::Postgres | EngineKind::Sqlite | EngineKind::Files => false,
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How an engine reaches what it protects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineConfig {
    /// A PostgreSQL server.
    Postgres(PostgresConfig),
    /// A SQLite database file.
    Sqlite(SqliteConfig),
    /// File trees.
    Files(FilesConfig),
}

impl EngineConfig {
    /// Which engine it is.
    pub fn kind(&self) -> EngineKind {
        match self {
            EngineConfig::Postgres(_) => EngineKind::Postgres,
            EngineConfig::Sqlite(_) => EngineKind::Sqlite,
            EngineConfig::Files(_) => EngineKind::Files,
        }
    }
}

/// A PostgreSQL server, dumped logically.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresConfig {
    /// How to connect.
    pub connect: PostgresConnect,
    /// Databases to capture, in one snapshot; empty: every database that allows connections, except templates.
    pub databases: Vec<String>,
    /// How it is captured.
    pub method: PostgresMethod,
    /// Folder of the client tools (`pg_dump`, `pg_restore`, …); without it the newest installed that fits is taken.
    pub tools: Option<PathBuf>,
}

/// How a PostgreSQL server is captured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PostgresMethod {
    /// `pg_dump` of each database inside an exported snapshot.
    #[default]
    Logical,
}

/// How to connect to a PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresConnect {
    /// Host name, address, or the folder of a Unix socket.
    #[serde(default = "default_postgres_host")]
    pub host: String,
    /// Port.
    #[serde(default = "default_postgres_port")]
    pub port: u16,
    /// User.
    pub user: String,
    /// The database to connect to first.
    #[serde(default = "default_postgres_database")]
    pub database: String,
    /// The password, by reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
}

fn default_postgres_host() -> String {
    "/var/run/postgresql".to_owned()
}

fn default_postgres_port() -> u16 {
    5432
}

fn default_postgres_database() -> String {
    "postgres".to_owned()
}

/// A SQLite database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteConfig {
    /// The database file, absolute.
    pub path: PathBuf,
}

/// File trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesConfig {
    /// Absolute paths of the trees or files.
    pub paths: Vec<PathBuf>,
    /// Patterns of what to leave out, as in `.gitignore`: without a `/` they match a name anywhere, with one they are
    /// anchored at each of `paths`.
    pub exclude: Vec<String>,
    /// When given, only files that match one of these patterns are taken.
    pub include: Vec<String>,
    /// Do not cross into other mounted file systems.
    pub one_file_system: bool,
}
