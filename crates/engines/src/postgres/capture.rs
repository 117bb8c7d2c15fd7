//! One capture: snapshots of all databases, counts, and the dumps inside those snapshots.
//!
//! Each database has one session that exports its snapshot and then counts rows in it, while `pg_dump` reads the same
//! snapshot over its own connections. A session lives until its database is both dumped and counted, so that no
//! snapshot holds the server's clean-up back longer than needed. Why the rows are counted twice, once by the server
//! and once in the archive: `docs/adr/0006-rows-are-counted-twice.md`.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use holdfast_model::ErrorCode;
use holdfast_model::manifest::{DatabaseManifest, Manifest, TableManifest};
use holdfast_model::source::{EngineKind, PostgresConfig};
use holdfast_model::text::counted;
use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::archive::ArchiveSummary;
use super::catalog::{self, Inventory, Relation, ServerFacts};
use super::connect::{Server, Session, client_tool, or_cancelled};
use super::dump::{DumpProgress, DumpReader, dump_failed};
use super::quote::{file_name, printable};
use super::tools::{self, Tools};
use super::{DATABASES_FOLDER, GLOBALS_FILE};
use crate::tool::{SecretFile, ToolInput, ToolOutput, query_version};
use crate::{
    Capture, Content, EngineContext, EngineError, Entry, FileTime, FileType, Metadata, RunLog, StoredSummary,
};

/// Longest list of roles and tablespaces that is taken.
const GLOBALS_BYTES_MAX: usize = 64 << 20;
/// How long `pg_dumpall` may take for it.
const GLOBALS_DEADLINE: Duration = Duration::from_secs(300);
/// How long `pg_dump` waits for a table that somebody has locked exclusively.
const LOCK_WAIT: Duration = Duration::from_secs(300);
/// What stands near the end of a complete list of roles and tablespaces.
const GLOBALS_END: &str = "-- PostgreSQL database cluster dump complete";

type Counts = BTreeMap<String, TableManifest>;

/// One database of a capture.
struct DatabaseCapture {
    name: String,
    path: String,
    snapshot: String,
    inventory: Inventory,
    /// Keeps the snapshot alive until the dump is over.
    session: Option<Arc<Session>>,
    progress: Arc<DumpProgress>,
}

#[derive(Clone, Copy)]
enum Next {
    Folder,
    Database(usize),
    Globals,
    End,
}

/// One consistent view of a server's databases.
pub(crate) struct PostgresCapture {
    server: Server,
    context: EngineContext,
    tools: Tools,
    tool_versions: BTreeMap<String, String>,
    facts: ServerFacts,
    captured_at: Timestamp,
    log_position: String,
    databases: Vec<DatabaseCapture>,
    globals: Arc<[u8]>,
    next: Next,
    /// One task, which counts one table at a time.
    counting: JoinSet<Result<Vec<Counts>, EngineError>>,
    passfile: Option<SecretFile>,
}

/// Opens a capture.
pub(crate) async fn open(
    config: &PostgresConfig,
    context: &EngineContext,
) -> Result<PostgresCapture, EngineError> {
    let cancel = &context.cancel;
    let server = Server::resolve(&config.connect, context).await?;
    let first = server.session(server.first_database(), cancel).await?;
    let facts = ServerFacts::read(&first, cancel).await?;
    let names = facts.select(&server, &config.databases)?;
    let log = &context.log;
    let rights = if facts.superuser { "a superuser" } else { "no superuser" };
    log.debug(format_args!("{server} has version {}; {} is {rights}", facts.version, server.user()));
    log.debug(format_args!("databases: {}", printable(&names.join(", "))));
    let tools = tools::find("pg_dump", config.tools.as_deref(), facts.major, cancel).await?;
    let dumpall = query_version(&tools.path("pg_dumpall"), cancel).await?;
    let passfile = server.passfile(context, "pgpass-capture")?;
    let globals = read_globals(&server, &tools, &facts, passfile.as_ref(), context).await?;

    let captured_at = context.clock.now();
    let log_position = catalog::log_position(&first, cancel).await?;
    drop(first);
    log.debug(format_args!("the log of the server is at {log_position}"));
    let mut databases = export_snapshots(&server, names, cancel).await?;
    for database in &mut databases {
        let session = database.session.as_ref().expect("it was opened just now and nothing was dumped yet");
        database.inventory = Inventory::read(session, cancel).await?;
        let relations = &database.inventory.relations;
        catalog::require_readable(relations, &database.name, server.user())?;
        log.debug(format_args!(
            "database {}: snapshot {}, {}",
            printable(&database.name),
            database.snapshot,
            counted(relations.len() as u64, "relation")
        ));
    }
    // The order in which the tree holds their files.
    databases.sort_by(|a, b| a.path.cmp(&b.path));

    let mut counting = JoinSet::new();
    counting.spawn(count_all(counting_work(&databases, log), cancel.clone()));
    let tool_versions = BTreeMap::from([
        ("pg_dump".to_owned(), tools.version.to_string()),
        ("pg_dumpall".to_owned(), dumpall.to_string()),
    ]);
    Ok(PostgresCapture {
        server,
        context: context.clone(),
        tools,
        tool_versions,
        facts,
        captured_at,
        log_position,
        databases,
        globals,
        next: Next::Folder,
        counting,
        passfile,
    })
}

/// Opens one session per database, in a short row, so that their snapshots are as close in time as can be.
async fn export_snapshots(
    server: &Server,
    names: Vec<String>,
    cancel: &CancellationToken,
) -> Result<Vec<DatabaseCapture>, EngineError> {
    let mut sessions = Vec::with_capacity(names.len());
    for name in names {
        sessions.push((server.session(&name, cancel).await?, name));
    }
    let mut databases = Vec::with_capacity(sessions.len());
    for (session, name) in sessions {
        session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", cancel).await?;
        let snapshot = session.query_one("SELECT pg_export_snapshot()", &[], cancel).await?.get(0);
        databases.push(DatabaseCapture {
            path: format!("{DATABASES_FOLDER}/{}.dump", file_name(&name)),
            name,
            snapshot,
            inventory: Inventory::default(),
            session: Some(Arc::new(session)),
            progress: Arc::default(),
        });
    }
    Ok(databases)
}

/// One database whose rows are to be counted while it is dumped.
struct CountingWork {
    database: String,
    session: Arc<Session>,
    relations: Vec<Relation>,
    progress: Arc<DumpProgress>,
    log: Arc<dyn RunLog>,
}

fn counting_work(databases: &[DatabaseCapture], log: &Arc<dyn RunLog>) -> Vec<CountingWork> {
    let work = databases.iter().filter_map(|database| {
        let counted = database.inventory.relations.iter().filter(|relation| relation.counted);
        Some(CountingWork {
            database: database.name.clone(),
            session: Arc::clone(database.session.as_ref()?),
            relations: counted.cloned().collect(),
            progress: Arc::clone(&database.progress),
            log: Arc::clone(log),
        })
    });
    work.collect()
}

async fn count_all(work: Vec<CountingWork>, cancel: CancellationToken) -> Result<Vec<Counts>, EngineError> {
    let mut counts = Vec::with_capacity(work.len());
    for work in work {
        counts.push(work.count(&cancel).await?);
    }
    Ok(counts)
}

impl CountingWork {
    /// Counts from the moment the dump has its locks on, in the order of the dump: counting reads ahead what it will
    /// read.
    ///
    /// Tables that somebody changed before those locks make the dump itself wrong. Tables changed after the dump, while
    /// counting goes on, are left out: their dump is right, only the count is not.
    async fn count(self, cancel: &CancellationToken) -> Result<Counts, EngineError> {
        or_cancelled(cancel, self.progress.started.notified()).await?;
        let changed = catalog::changed_tables(&self.session, cancel).await?;
        if let Some(table) = changed.first() {
            return Err(EngineError::new(
                ErrorCode::CaptureIncomplete,
                format!(
                    "table {} of database {} was changed between the snapshot and its dump",
                    printable(table),
                    printable(&self.database)
                ),
            )
            .caused_by(
                "a table that is truncated, rewritten, renamed or dropped is gone from older snapshots too",
            ));
        }
        let mut tables = Counts::new();
        for relation in &self.relations {
            let (began, table) = (Instant::now(), relation.key());
            if let Some(rows) = catalog::count_rows_in_passing(&self.session, relation, cancel).await? {
                let millis = began.elapsed().as_millis();
                let name = printable(&table);
                self.log.debug(format_args!("table {name}: {} rows, counted in {millis} ms", rows.rows));
                tables.insert(table, rows);
            }
        }
        for table in catalog::changed_tables(&self.session, cancel).await? {
            tables.remove(&table);
        }
        Ok(tables)
    }
}

async fn read_globals(
    server: &Server,
    tools: &Tools,
    facts: &ServerFacts,
    passfile: Option<&SecretFile>,
    context: &EngineContext,
) -> Result<Arc<[u8]>, EngineError> {
    let mut command = client_tool(tools.path("pg_dumpall"), passfile)?
        .arg("--globals-only")
        .arg(format!("--dbname={}", server.conninfo(None)))
        .arg(format!("--database={}", server.conninfo(Some(server.first_database()))))
        .deadline(GLOBALS_DEADLINE);
    if !facts.superuser {
        context.log.info("globals.sql holds roles without their passwords: only a superuser may read those");
        command = command.arg("--no-role-passwords");
    }
    let output = ToolOutput::Captured { bytes_max: GLOBALS_BYTES_MAX };
    context.log.debug(format_args!("runs {command}"));
    let exit = command.spawn(ToolInput::Empty, output, &context.cancel)?.wait().await?;
    context.log.debug(format_args!("{exit} after {:.1} s", exit.elapsed.as_secs_f64()));
    if !exit.is_success() {
        return Err(dump_failed(&exit, "roles and tablespaces"));
    }
    if !String::from_utf8_lossy(&exit.stdout).contains(GLOBALS_END) {
        return Err(EngineError::new(
            ErrorCode::CaptureIncomplete,
            "pg_dumpall ended without the mark of a complete list of roles and tablespaces",
        ));
    }
    Ok(exit.stdout.into())
}

#[async_trait]
impl Capture for PostgresCapture {
    fn next_entry(&mut self) -> Result<Option<Entry>, EngineError> {
        match self.next {
            Next::Folder => {
                self.next = if self.databases.is_empty() { Next::Globals } else { Next::Database(0) };
                Ok(Some(self.entry(DATABASES_FOLDER, FileType::Directory, 0, Content::None)))
            }
            Next::Database(at) => {
                self.finish_dump_before(at)?;
                let reader = self.start_dump(at)?;
                self.next =
                    if at + 1 < self.databases.len() { Next::Database(at + 1) } else { Next::Globals };
                let path = self.databases[at].path.clone();
                Ok(Some(self.entry(&path, FileType::File, 0, Content::Stream(Box::new(reader)))))
            }
            Next::Globals => {
                self.finish_dump_before(self.databases.len())?;
                self.next = Next::End;
                let content = Content::Stream(Box::new(Cursor::new(Arc::clone(&self.globals))));
                Ok(Some(self.entry(GLOBALS_FILE, FileType::File, 0, content)))
            }
            Next::End => Ok(None),
        }
    }

    async fn finish(mut self: Box<Self>, stored: StoredSummary) -> Result<Manifest, EngineError> {
        self.finish_dump_before(self.databases.len())?;
        let counted = self.counting.join_next().await.expect("the one task is there until it is joined here");
        let counted = counted.map_err(|error| {
            EngineError::new(ErrorCode::CaptureIncomplete, "counting rows ended early").caused_by(error)
        })??;
        let mut databases = Vec::with_capacity(self.databases.len());
        for (database, mut tables) in self.databases.iter().zip(counted) {
            let summary = database.progress.outcome.lock().take().ok_or_else(|| not_read(&database.name))?;
            require_stored(&stored, &database.path, summary.bytes)?;
            compare(database, &summary, &mut tables, self.context.log.as_ref())?;
            databases.push(database_manifest(database, tables));
        }
        require_stored(&stored, GLOBALS_FILE, self.globals.len() as u64)?;
        Ok(Manifest {
            version: 1,
            engine: EngineKind::Postgres,
            engine_version: self.facts.version.clone(),
            tools: self.tool_versions.clone(),
            captured_at: self.captured_at,
            log_position: Some(self.log_position.clone()),
            system_id: self.facts.system_id.clone(),
            logical_bytes: databases.iter().map(|database| database.logical_bytes).sum(),
            databases,
            files: None,
            unreadable: Vec::new(),
            unreadable_count: 0,
        })
    }
}

impl PostgresCapture {
    /// Requires that the dump before this one was read to its end, and gives its snapshot up.
    fn finish_dump_before(&mut self, at: usize) -> Result<(), EngineError> {
        let Some(before) = at.checked_sub(1).and_then(|before| self.databases.get_mut(before)) else {
            return Ok(());
        };
        if before.progress.outcome.lock().is_none() {
            return Err(not_read(&before.name));
        }
        before.session = None;
        Ok(())
    }

    fn start_dump(&self, at: usize) -> Result<DumpReader, EngineError> {
        let database = &self.databases[at];
        let command = client_tool(self.tools.path("pg_dump"), self.passfile.as_ref())?
            .args(["--format=custom", "--compress=0"])
            .arg(format!("--lock-wait-timeout={}", LOCK_WAIT.as_millis()))
            .arg(format!("--snapshot={}", database.snapshot))
            .arg(format!("--dbname={}", self.server.conninfo(Some(&database.name))));
        self.context.log.info(&format!("dumping database {}", printable(&database.name)));
        self.context.log.debug(format_args!("runs {command}"));
        let tool = command.spawn(ToolInput::Empty, ToolOutput::Piped, &self.context.cancel)?;
        Ok(DumpReader::new(
            &database.name,
            tool,
            Arc::clone(&database.progress),
            Arc::clone(&self.context.log),
        ))
    }

    fn entry(&self, path: &str, file_type: FileType, size: u64, content: Content) -> Entry {
        let time = FileTime {
            seconds: self.captured_at.as_second(),
            nanoseconds: u32::try_from(self.captured_at.subsec_nanosecond()).unwrap_or_default(),
        };
        let mode = if file_type == FileType::Directory { 0o700 } else { 0o600 };
        Entry {
            path: path.as_bytes().to_vec(),
            metadata: Metadata {
                file_type,
                mode,
                uid: 0,
                gid: 0,
                user: None,
                group: None,
                size,
                mtime: time,
                ctime: time,
                atime: time,
                inode: 0,
                device_id: 0,
                links: 1,
                link_target: None,
                device: 0,
                xattrs: Vec::new(),
            },
            content,
        }
    }
}

fn not_read(database: &str) -> EngineError {
    EngineError::new(
        ErrorCode::CaptureIncomplete,
        format!("the dump of database {} was not read to its end", printable(database)),
    )
}

/// What the pipeline read must be what passed by here.
fn require_stored(stored: &StoredSummary, path: &str, bytes: u64) -> Result<(), EngineError> {
    match stored.streams.get(path.as_bytes()) {
        Some(&read) if read == bytes => Ok(()),
        read => Err(EngineError::new(
            ErrorCode::CaptureIncomplete,
            format!("{bytes} bytes of {path} were given, {} were stored", read.copied().unwrap_or_default()),
        )),
    }
}

fn database_manifest(database: &DatabaseCapture, tables: Counts) -> DatabaseManifest {
    let inventory = &database.inventory;
    DatabaseManifest {
        name: database.name.clone(),
        path: database.path.clone(),
        tables,
        schema_hash: inventory.schema_hash.clone(),
        extensions: inventory.extensions.clone(),
        sequences: inventory.sequences.clone(),
        large_objects: inventory.large_objects,
        roles: inventory.roles.clone(),
        encoding: Some(inventory.encoding.clone()),
        settings: BTreeMap::new(),
        logical_bytes: inventory.logical_bytes,
    }
}

/// The archive must hold exactly the tables, rows and large objects that the server counted.
fn compare(
    database: &DatabaseCapture,
    summary: &ArchiveSummary,
    counted: &mut Counts,
    log: &dyn RunLog,
) -> Result<(), EngineError> {
    let name = printable(&database.name);
    let differs = |what: String| Err(EngineError::new(ErrorCode::CaptureInconsistent, what));
    let mut dumped: BTreeMap<(&[u8], &[u8]), u64> = summary
        .tables
        .iter()
        .map(|table| ((table.schema.as_slice(), table.name.as_slice()), table.rows))
        .collect();
    let mut of_extensions = std::collections::HashSet::new();
    for relation in &database.inventory.relations {
        let raw = (relation.raw_schema.as_slice(), relation.raw_name.as_slice());
        if !relation.dumped {
            of_extensions.insert(raw);
            continue;
        }
        let key = relation.key();
        let rows = counted.get(&key).map(|table| table.rows);
        match (dumped.remove(&raw), rows) {
            (Some(found), Some(rows)) if found == rows => {}
            (Some(found), None) => {
                log.info(&format!(
                    "table {} of database {name} was changed after its dump: its {found} rows are counted there only",
                    printable(&key)
                ));
                counted.insert(key, TableManifest { rows: found });
            }
            (Some(found), Some(rows)) => {
                return differs(format!(
                    "table {} of database {name} has {rows} rows, its dump {found}",
                    printable(&key)
                ));
            }
            (None, _) => {
                return differs(format!("the dump of database {name} lacks table {}", printable(&key)));
            }
        }
    }
    // An extension may have its own tables dumped, as far as users filled them.
    if let Some((schema, table)) = dumped.keys().find(|raw| !of_extensions.contains(*raw)) {
        let key = super::quote::readable(&String::from_utf8_lossy(schema), &String::from_utf8_lossy(table));
        return differs(format!(
            "the dump of database {name} has table {}, the catalog has not",
            printable(&key)
        ));
    }
    if summary.large_objects != database.inventory.large_objects {
        return differs(format!(
            "database {name} has {} large objects, its dump {}",
            database.inventory.large_objects, summary.large_objects
        ));
    }
    Ok(())
}
