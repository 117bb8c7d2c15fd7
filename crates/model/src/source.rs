//! Sources: what is protected, by which agent, and how the engine reaches it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{AgentName, HookName, PolicyName, RepositoryName};
use crate::secret::SecretRef;

/// One thing that is protected, as declared in the fleet files. Its name is its key there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Source {
    /// The agent beside it.
    pub agent: AgentName,
    /// Repositories to back up to; with none given, those of the policy, or the only repository there is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<RepositoryName>,
    /// The standing rule that applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Hooks of the agent's configuration that run around a backup or a restore.
    #[serde(default, skip_serializing_if = "Hooks::is_empty")]
    pub hooks: Hooks,
    /// What is protected, by its engine.
    #[serde(flatten)]
    pub engine: EngineConfig,
}

/// Names of hooks; what they run is in the agent's own configuration only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    /// Runs before the capture or before the swap of a restore in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<HookName>,
    /// Runs after it, whatever the outcome.
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
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How an engine reaches what it protects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "engine", rename_all = "snake_case")]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PostgresConfig {
    /// How to connect.
    pub connect: PostgresConnect,
    /// Databases to capture, in one snapshot; empty: every database that allows connections, except templates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<String>,
    /// How it is captured.
    #[serde(default)]
    pub method: PostgresMethod,
    /// Folder of the client tools (`pg_dump`, `pg_restore`, …); without it the newest installed that fits is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SqliteConfig {
    /// The database file, absolute.
    pub path: PathBuf,
}

/// File trees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FilesConfig {
    /// Absolute paths of the trees or files.
    pub paths: Vec<PathBuf>,
    /// Patterns of what to leave out, as in `.gitignore`: without a `/` they match a name anywhere, with one they are
    /// anchored at each of `paths`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// When given, only files that match one of these patterns are taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Do not cross into other mounted file systems.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_file_system: bool,
}
