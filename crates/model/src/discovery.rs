//! What agents see on their hosts without a secret, and which source covers it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fleet::Fleet;
use crate::ids::{AgentName, PolicyName, SourceName};
use crate::source::{EngineConfig, PostgresConnect, Source};

/// Databases that one answer names at most.
pub const FOUND_MAX: usize = 1_000;

/// A kind of database that is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatabaseKind {
    /// PostgreSQL.
    Postgres,
    /// MariaDB or MySQL.
    Mariadb,
    /// Redis, or what speaks like it.
    Redis,
    /// A SQLite file.
    Sqlite,
}

impl DatabaseKind {
    /// The word of output.
    pub fn as_str(self) -> &'static str {
        match self {
            DatabaseKind::Postgres => "postgres",
            DatabaseKind::Mariadb => "mariadb",
            DatabaseKind::Redis => "redis",
            DatabaseKind::Sqlite => "sqlite",
        }
    }
}

/// Where a database is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A server that listens.
    Server {
        /// On this TCP port.
        port: Option<u16>,
        /// On this socket.
        socket: Option<PathBuf>,
    },
    /// The data folder of a server that does not run.
    Folder(PathBuf),
    /// A database in a file.
    File(PathBuf),
    /// A database of a server that a source is on.
    Database {
        /// Such a source.
        server: SourceName,
        /// The name of the database.
        name: String,
    },
}

impl Place {
    /// In a few characters.
    pub fn describe(&self) -> String {
        match self {
            Place::Server { port: Some(port), .. } => format!("port {port}"),
            Place::Server { port: None, socket } => {
                socket.as_deref().map_or_else(|| "a server".to_owned(), |path| path.display().to_string())
            }
            Place::Folder(path) => format!("{} (does not run)", path.display()),
            Place::File(path) => path.display().to_string(),
            Place::Database { server, name } => format!("database {name:?} beside {server}"),
        }
    }
}

/// A database that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Found {
    /// What it is.
    pub kind: DatabaseKind,
    /// Where it is.
    pub place: Place,
}

/// What an agent sees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Discovery {
    /// In order, each once.
    pub found: Vec<Found>,
    /// What was not looked at, and why.
    pub unseen: Vec<String>,
}

/// A source that covers what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cover {
    /// The source.
    pub source: SourceName,
    /// Its policy; without one nothing is backed up by itself.
    pub policy: Option<PolicyName>,
}

/// Finds the sources that cover databases: of many databases, each is compared with the sources of its host only.
pub struct Covers<'a> {
    fleet: &'a Fleet,
    by_agent: BTreeMap<&'a AgentName, Vec<(&'a SourceName, &'a Source)>>,
}

impl<'a> Covers<'a> {
    /// By the sources of a fleet.
    pub fn new(fleet: &'a Fleet) -> Self {
        let mut by_agent: BTreeMap<&AgentName, Vec<(&SourceName, &Source)>> = BTreeMap::new();
        for (name, source) in &fleet.sources {
            by_agent.entry(&source.agent).or_default().push((name, source));
        }
        Self { fleet, by_agent }
    }

    /// The sources of the host of an agent.
    fn here(&self, agent: &AgentName) -> &[(&'a SourceName, &'a Source)] {
        self.by_agent.get(agent).map_or(&[], Vec::as_slice)
    }

    /// The source that covers what was found on the host of an agent; one that is under a policy, when there are several.
    pub fn of(&self, agent: &AgentName, found: &Found) -> Option<Cover> {
        let covering = self.here(agent).iter().filter(|(_, source)| covers(self.fleet, source, found));
        let (name, source) = covering.min_by_key(|(name, source)| (source.policy.is_none(), *name))?;
        Some(Cover { source: (*name).clone(), policy: source.policy.clone() })
    }
}

fn covers(fleet: &Fleet, source: &Source, found: &Found) -> bool {
    match (&source.engine, &found.place) {
        (EngineConfig::Postgres(postgres), Place::Server { port, socket }) => {
            found.kind == DatabaseKind::Postgres
                && is_local(&postgres.connect)
                && (*port == Some(postgres.connect.port)
                    || socket.as_ref().is_some_and(|path| is_socket_of(&postgres.connect, path)))
        }
        (EngineConfig::Postgres(postgres), Place::Database { server, name }) => {
            let beside = fleet.sources.get(server).map(|source| &source.engine);
            let is_same = matches!(beside, Some(EngineConfig::Postgres(other))
                if same_server(&other.connect, &postgres.connect));
            is_same && (postgres.databases.is_empty() || postgres.databases.contains(name))
        }
        (EngineConfig::Sqlite(sqlite), Place::File(path)) => sqlite.path == *path,
        (EngineConfig::Files(files), Place::File(path) | Place::Folder(path)) => {
            files.paths.iter().any(|folder| path.starts_with(folder))
        }
        _ => false,
    }
}

/// Whether two connections lead to one server.
pub fn same_server(one: &PostgresConnect, other: &PostgresConnect) -> bool {
    one.port == other.port && (one.host == other.host || is_local(one) && is_local(other))
}

/// Whether a connection leads to the host that it begins at.
fn is_local(connect: &PostgresConnect) -> bool {
    let host = connect.host.as_str();
    let is_loopback = || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    host.starts_with('/') || host == "localhost" || is_loopback()
}

fn is_socket_of(connect: &PostgresConnect, socket: &Path) -> bool {
    Path::new(&connect.host).join(format!(".s.PGSQL.{}", connect.port)) == socket
}

/// Writes definitions that can be pasted into a fleet file, each with a name of its own.
pub struct Definitions<'a> {
    fleet: &'a Fleet,
    taken: BTreeSet<String>,
}

impl<'a> Definitions<'a> {
    /// Beside what a fleet declares.
    pub fn new(fleet: &'a Fleet) -> Self {
        Self { fleet, taken: fleet.sources.keys().map(ToString::to_string).collect() }
    }

    /// A line of `sources:` that protects what was found on the host of an agent; nothing when this version has no
    /// engine for it.
    pub fn line(&mut self, agent: &AgentName, found: &Found, policy: Option<&PolicyName>) -> Option<String> {
        let policy = policy.map(|name| format!(", policy: {name}")).unwrap_or_default();
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let (name, definition) = match (found.kind, &found.place) {
            (DatabaseKind::Sqlite, Place::File(path)) => {
                let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
                let definition = format!("engine: sqlite, agent: {agent}, path: {}", quoted(path.to_str()?));
                (stem.unwrap_or_default(), definition)
            }
            (DatabaseKind::Postgres, Place::Server { port, socket }) => {
                let folder = socket.as_deref().and_then(Path::parent).and_then(Path::to_str);
                let host = folder.map_or_else(|| "127.0.0.1".to_owned(), quoted);
                let port = port.unwrap_or(5432);
                let password = "password: { file: /etc/holdfast/pg.pass }";
                let connect =
                    format!("connect: {{ host: {host}, port: {port}, user: holdfast, {password} }}");
                (format!("pg-{port}"), format!("engine: postgres, agent: {agent}, {connect}"))
            }
            (DatabaseKind::Postgres, Place::Database { server, name }) => {
                let mut source = self.fleet.sources.get(server)?.clone();
                let EngineConfig::Postgres(postgres) = &mut source.engine else { return None };
                postgres.databases = vec![name.clone()];
                source.policy = None;
                // JSON is YAML, too.
                let json = serde_json::to_string(&source).ok()?;
                (format!("{server}-{name}"), json.strip_prefix('{')?.strip_suffix('}')?.to_owned())
            }
            _ => return None,
        };
        Some(format!("  {}: {{ {definition}{policy} }}", self.free_name(&name)))
    }

    /// A name that nothing else has, as near as it can be to one that is wished for.
    fn free_name(&mut self, wished: &str) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let plain: String = wished.chars().map(plain).take(40).collect();
        let plain = plain.trim_matches('-');
        let base = if plain.is_empty() { "database" } else { plain };
        let numbered = (2..).map(|number| format!("{base}-{number}"));
        let mut names = std::iter::once(base.to_owned()).chain(numbered);
        let free = names.find(|name| !self.taken.contains(name)).unwrap_or_default();
        self.taken.insert(free.clone());
        free
    }
}

/// Numbers of databases by what becomes of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unprotected {
    /// Those that were found.
    pub found: usize,
    /// Those of them that no source under a policy covers.
    pub unprotected: usize,
}

/// How many databases no policy covers.
pub fn unprotected<'a>(
    fleet: &Fleet,
    seen: impl IntoIterator<Item = (&'a AgentName, &'a Discovery)>,
) -> Unprotected {
    let mut numbers = Unprotected::default();
    let covers = Covers::new(fleet);
    for (agent, discovery) in seen {
        for found in &discovery.found {
            numbers.found += 1;
            let is_covered = covers.of(agent, found).is_some_and(|cover| cover.policy.is_some());
            numbers.unprotected += usize::from(!is_covered);
        }
    }
    numbers
}

/// Joins the names of several findings about one thing: a port and a socket of one server are one server.
pub fn merged(found: impl IntoIterator<Item = Found>) -> Vec<Found> {
    let mut servers: BTreeMap<(DatabaseKind, u16), Option<PathBuf>> = BTreeMap::new();
    let mut others = BTreeSet::new();
    for one in found {
        match one.place {
            Place::Server { port: Some(port), socket } => {
                let known = servers.entry((one.kind, port)).or_default();
                *known = known.take().or(socket);
            }
            place => {
                others.insert(Found { kind: one.kind, place });
            }
        }
    }
    let servers = servers
        .into_iter()
        .map(|((kind, port), socket)| Found { kind, place: Place::Server { port: Some(port), socket } });
    servers.chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{FleetFile, read_fleet};

    fn fleet(sources: &str) -> Fleet {
        let text =
            format!("api: holdfast/v1\npolicies:\n  p: {{ keep: {{ last: 3 }} }}\nsources:\n{sources}");
        read_fleet(&[FleetFile { name: "fleet.yaml".to_owned(), text }]).unwrap()
    }

    fn a1() -> AgentName {
        "a1".parse().unwrap()
    }

    fn server(port: Option<u16>, socket: Option<&str>) -> Found {
        Found {
            kind: DatabaseKind::Postgres,
            place: Place::Server { port, socket: socket.map(PathBuf::from) },
        }
    }

    fn file(path: &str) -> Found {
        Found { kind: DatabaseKind::Sqlite, place: Place::File(path.into()) }
    }

    #[test]
    fn what_a_source_is_on_is_covered_and_what_only_looks_so_is_not() {
        let fleet = fleet(
            "  pg: { engine: postgres, agent: a1, policy: p, databases: [shop], connect: { host: 127.0.0.1, port: 5438, user: u } }
  sock: { engine: postgres, agent: a1, connect: { host: /run/pg, port: 5440, user: u } }
  far: { engine: postgres, agent: a1, connect: { host: db.example.com, port: 5432, user: u } }
  app: { engine: sqlite, agent: a1, path: /srv/app.db }
  tree: { engine: files, agent: a1, policy: p, paths: [/srv/tree] }
",
        );
        let covers = Covers::new(&fleet);
        let covered = |found: &Found| covers.of(&a1(), found).map(|cover| cover.source.to_string());
        assert_eq!(covered(&server(Some(5438), None)).as_deref(), Some("pg"));
        assert_eq!(covered(&server(Some(5440), Some("/run/pg/.s.PGSQL.5440"))).as_deref(), Some("sock"));
        assert_eq!(covered(&server(None, Some("/run/pg/.s.PGSQL.5440"))).as_deref(), Some("sock"));
        assert_eq!(covered(&server(Some(5432), None)), None, "that one is on another host");
        assert_eq!(covered(&file("/srv/app.db")).as_deref(), Some("app"));
        assert_eq!(covered(&file("/srv/app.db2")), None);
        assert_eq!(covered(&file("/srv/tree/a/b.db")).as_deref(), Some("tree"));
        assert_eq!(covered(&file("/srv/tree2/b.db")), None);
        let database = |name: &str| {
            let place = Place::Database { server: "pg".parse().unwrap(), name: name.to_owned() };
            Found { kind: DatabaseKind::Postgres, place }
        };
        assert_eq!(covered(&database("shop")).as_deref(), Some("pg"));
        assert_eq!(covered(&database("payroll")), None);
        assert_eq!(covers.of(&"a2".parse().unwrap(), &file("/srv/app.db")), None, "another host");
        let redis =
            Found { kind: DatabaseKind::Redis, place: Place::Server { port: Some(5438), socket: None } };
        assert_eq!(covered(&redis), None);
        let seen =
            Discovery { found: vec![file("/srv/app.db"), file("/srv/tree/b.db"), redis], unseen: vec![] };
        // The source of the first is under no policy.
        let numbers = unprotected(&fleet, [(&a1(), &seen)]);
        assert_eq!(numbers, Unprotected { found: 3, unprotected: 2 });
    }

    #[test]
    fn what_was_found_is_compared_with_the_sources_of_its_host_only() {
        let mut sources = String::new();
        for number in 0..300 {
            sources.push_str(&format!(
                "  s{number}: {{ engine: sqlite, agent: a{}, policy: p, path: /srv/{number}.db }}\n",
                number % 100
            ));
        }
        let fleet = fleet(&sources);
        let covers = Covers::new(&fleet);
        let here: Vec<&str> = covers.here(&a1()).iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(here, ["s1", "s101", "s201"]);
        assert_eq!(covers.of(&a1(), &file("/srv/101.db")).unwrap().source.as_str(), "s101");
        assert_eq!(covers.of(&a1(), &file("/srv/102.db")), None);
        assert!(covers.here(&"none".parse().unwrap()).is_empty());
    }

    #[test]
    fn a_port_and_a_socket_of_one_server_are_one_server() {
        let one = merged([
            server(Some(5432), None),
            server(Some(5432), Some("/run/pg/.s.PGSQL.5432")),
            server(Some(5433), None),
            file("/a"),
            file("/a"),
        ]);
        assert_eq!(
            one,
            [server(Some(5432), Some("/run/pg/.s.PGSQL.5432")), server(Some(5433), None), file("/a")]
        );
    }

    #[test]
    fn what_is_offered_for_pasting_is_a_definition_with_a_free_name() {
        let policy: PolicyName = "p".parse().unwrap();
        let declared = fleet(
            "  app: { engine: sqlite, agent: a1, path: /srv/app.db }
  pg: { engine: postgres, agent: a1, policy: p, databases: [shop], connect: { port: 5438, user: u } }
",
        );
        let database = Place::Database { server: "pg".parse().unwrap(), name: "Pay Roll\"".to_owned() };
        let (mut text, mut definitions) = (String::new(), Definitions::new(&declared));
        for found in [
            file("/srv/other/App.db"),
            file("/srv/another/app.db"),
            file("/srv/\u{fc} \"x\".db"),
            server(Some(5433), Some("/run/pg/.s.PGSQL.5433")),
            server(Some(5434), None),
            Found { kind: DatabaseKind::Postgres, place: database },
        ] {
            text.push_str(&definitions.line(&a1(), &found, Some(&policy)).unwrap());
            text.push('\n');
        }
        let read = fleet(&text);
        let names: Vec<String> = read.sources.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["app-2", "app-3", "pg-5433", "pg-5434", "pg-pay-roll", "x"]);
        assert!(read.sources.values().all(|source| source.policy.as_ref() == Some(&policy)));
        let redis =
            Found { kind: DatabaseKind::Redis, place: Place::Server { port: Some(6379), socket: None } };
        assert_eq!(definitions.line(&a1(), &redis, None), None);
    }
}
