//! Restores databases of a snapshot into new databases, and checks them.
//!
//! Nothing that exists is touched: every target is a database made here, and dropped again when anything fails.
//! Should this process die on the way, the unfinished database stays under its `_restored_` name.

use std::collections::BTreeSet;
use std::io::{self, PipeWriter, Read, Write};
use std::sync::Arc;

use holdfast_model::ErrorCode;
use holdfast_model::manifest::Manifest;
use holdfast_model::restore::{CheckOutcome, RestoreCheck, RestoreReport};
use holdfast_model::source::PostgresConfig;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use super::archive::{ArchiveError, ArchiveWalker, Keep, TocEntry};
use super::catalog::{self, ServerFacts};
use super::connect::{Server, ServerSays, Session, client_tool};
use super::database_sql::statements_for;
use super::quote::{identifier, literal, printable};
use super::selection::{self, Part};
use super::tools::{self, Tools};
use super::verify::{Verified, check, verify};
use crate::tool::{SecretFile, ToolEnding, ToolExit, ToolInput, ToolOutput, ToolVersion};
use crate::{EngineContext, EngineError, RestoreOrder, SnapshotContents, blocking};

/// How much is handed to `pg_restore` at once.
const COPY_BYTES: usize = 256 * 1024;

/// What every part of one restore shares.
struct Restore<'a> {
    server: Server,
    maintenance: Session,
    facts: ServerFacts,
    tools: Tools,
    passfile: Option<SecretFile>,
    same_major: bool,
    contents: Arc<dyn SnapshotContents>,
    context: &'a EngineContext,
}

/// Restores what the order asks for.
pub(crate) async fn restore(
    config: &PostgresConfig,
    order: &RestoreOrder,
    contents: Arc<dyn SnapshotContents>,
    context: &EngineContext,
) -> Result<RestoreReport, EngineError> {
    let manifest = contents.manifest().clone();
    let parts = selection::select(order, &manifest)?;
    let server = Server::resolve(&config.connect, context).await?;
    let maintenance = server.maintenance(&[], &context.cancel).await?;
    let facts = ServerFacts::read(&maintenance, &context.cancel).await?;
    require_server(&facts, &manifest)?;
    for part in &parts {
        require_free(&maintenance, &part.target.restored, &context.cancel).await?;
    }
    let tools = restore_tools(config, &facts, &manifest, &context.cancel).await?;
    let passfile = server.passfile(context, "pgpass-restore")?;
    let same_major = source_major(&manifest) == Some(facts.major);
    let restore = Restore { server, maintenance, facts, tools, passfile, same_major, contents, context };

    let mut made = Vec::new();
    match restore.parts(&parts, &mut made).await {
        Ok(report) => Ok(report),
        Err(error) => Err(restore.undo(made, error).await),
    }
}

/// The major version of the server that was captured.
pub(crate) fn source_major(manifest: &Manifest) -> Option<u32> {
    ToolVersion::parse(&manifest.engine_version).map(|version| version.major)
}

/// Refuses a server that is older than the one captured, or a standby.
///
/// # Errors
/// `HF-2014`.
pub(crate) fn require_server(facts: &ServerFacts, manifest: &Manifest) -> Result<(), EngineError> {
    let refused = |message: String| Err(EngineError::new(ErrorCode::RestoreFailed, message));
    if source_major(manifest).is_some_and(|major| facts.major < major) {
        return refused(format!(
            "the server has version {}, older than {} of the snapshot",
            facts.version, manifest.engine_version
        ));
    }
    if facts.in_recovery {
        return refused("the server is a standby, which takes no changes".to_owned());
    }
    Ok(())
}

/// The tools of the server's version; where those are missing, any that can read the archive.
pub(crate) async fn restore_tools(
    config: &PostgresConfig,
    facts: &ServerFacts,
    manifest: &Manifest,
    cancel: &CancellationToken,
) -> Result<Tools, EngineError> {
    let dumped_by = manifest.tools.get("pg_dump").and_then(|version| ToolVersion::parse(version));
    let archive_major = dumped_by.map_or(facts.major, |version| version.major);
    let best =
        tools::find("pg_restore", config.tools.as_deref(), archive_major.max(facts.major), cancel).await;
    match best {
        Err(error) if error.code() == ErrorCode::ToolTooOld && archive_major < facts.major => {
            tools::find("pg_restore", config.tools.as_deref(), archive_major, cancel).await
        }
        result => result,
    }
}

async fn require_free(session: &Session, name: &str, cancel: &CancellationToken) -> Result<(), EngineError> {
    if catalog::database_exists(session, name, cancel).await? { Err(exists(name)) } else { Ok(()) }
}

fn exists(name: &str) -> EngineError {
    EngineError::new(ErrorCode::TargetExists, format!("database {} exists already", printable(name)))
}

impl Restore<'_> {
    async fn parts(&self, parts: &[Part<'_>], made: &mut Vec<String>) -> Result<RestoreReport, EngineError> {
        let mut report = RestoreReport { rows: Some(0), rows_expected: Some(0), ..RestoreReport::default() };
        for part in parts {
            let (verified, checks) = self.part(part, made).await?;
            report.bytes_written += verified.bytes;
            report.items += 1;
            report.rows = report.rows.map(|rows| rows + verified.rows);
            report.rows_expected = report.rows_expected.map(|rows| rows + verified.rows_expected);
            report.checks.extend(checks);
            report.checks.extend(verified.checks);
            report.targets.push(part.target.clone());
        }
        Ok(report)
    }

    async fn part(
        &self,
        part: &Part<'_>,
        made: &mut Vec<String>,
    ) -> Result<(Verified, Vec<RestoreCheck>), EngineError> {
        let cancel = &self.context.cancel;
        let target = &part.target.restored;
        let entries = self.table_of_contents(&part.database.path).await?;
        let entries = self.in_utf8(entries, part.database.encoding.as_deref()).await?;
        let chosen = match part.is_whole() {
            true => None,
            false => Some(selection::table_entries(&entries, &part.tables)?),
        };
        let mut checks = Vec::new();
        self.create_database(part, &entries, &mut checks).await?;
        made.push(target.clone());
        self.context.log.info(&format!(
            "restoring {} into {}",
            printable(&part.database.name),
            printable(target)
        ));
        let ownership = ownership(&self.maintenance, &self.facts, &part.database.roles, cancel).await?;
        checks.extend(ownership.check(&part.database.name));
        self.run_tool(part, chosen.as_ref().map(|chosen| chosen.ids.as_slice()), &ownership).await?;
        self.context.log.debug(format_args!("applies what belongs to the database, and counts its rows"));
        if part.is_whole() {
            self.apply_database_sql(part, &entries, &ownership, &mut checks).await?;
        }
        let session = self.server.session(target, cancel).await?;
        session.run("ANALYZE", cancel).await?;
        let tables: Option<&BTreeSet<String>> = chosen.as_ref().map(|chosen| &chosen.tables);
        let verified = verify(&session, part.database, tables, self.same_major, cancel).await?;
        Ok((verified, checks))
    }

    /// Reads the archive up to the end of its table of contents.
    async fn table_of_contents(&self, path: &str) -> Result<Vec<TocEntry>, EngineError> {
        let contents = Arc::clone(&self.contents);
        let path = path.to_owned();
        blocking(move || {
            let mut archive = contents.open(&path)?;
            let mut walker = ArchiveWalker::new(Keep::All);
            let mut buffer = vec![0; COPY_BYTES];
            let not_whole = |error: ArchiveError| {
                EngineError::new(ErrorCode::RestoreFailed, format!("{path} is not a whole archive"))
                    .caused_by(error)
            };
            while !walker.toc_complete() {
                let count = archive.read(&mut buffer).map_err(|error| read_failed(&path, error))?;
                if count == 0 {
                    break;
                }
                walker.feed(&buffer[..count]).map_err(not_whole)?;
            }
            walker.into_entries().map_err(not_whole)
        })
        .await
    }

    /// Names in an archive are in the encoding of its database; the server knows how to read them.
    async fn in_utf8(
        &self,
        mut entries: Vec<TocEntry>,
        encoding: Option<&str>,
    ) -> Result<Vec<TocEntry>, EngineError> {
        let Some(encoding) = encoding.filter(|encoding| !matches!(*encoding, "UTF8" | "SQL_ASCII")) else {
            return Ok(entries);
        };
        let mut texts: Vec<&mut Vec<u8>> =
            entries.iter_mut().flat_map(TocEntry::texts).filter(|text| !text.is_ascii()).collect();
        let raw: Vec<&[u8]> = texts.iter().map(|text| text.as_slice()).collect();
        let sql =
            "SELECT convert_from(b, $2) FROM unnest($1::bytea[]) WITH ORDINALITY AS t (b, n) ORDER BY n";
        let converted = self.maintenance.query(sql, &[&raw, &encoding], &self.context.cancel).await?;
        for (text, row) in texts.iter_mut().zip(&converted) {
            **text = row.get::<_, String>(0).into_bytes();
        }
        Ok(entries)
    }

    /// Makes the target as the original was made: same encoding, locale and provider, from `template0`.
    async fn create_database(
        &self,
        part: &Part<'_>,
        entries: &[TocEntry],
        checks: &mut Vec<RestoreCheck>,
    ) -> Result<(), EngineError> {
        let target = &part.target.restored;
        let definition = entries.iter().find(|entry| entry.kind == "DATABASE");
        let as_dumped = definition.and_then(|entry| {
            let sql = String::from_utf8_lossy(entry.definition.as_deref()?).into_owned();
            let statement = statements_for(&sql, &part.database.name, target).into_iter().next()?;
            statement.starts_with(&format!("CREATE DATABASE {} ", identifier(target))).then_some(statement)
        });
        if let Some(statement) = as_dumped {
            match self.try_create(target, &statement).await? {
                Ok(()) => return Ok(()),
                Err(refusal) => checks.push(check(
                    "locale",
                    CheckOutcome::Warning,
                    format!("{}: the server's own locale is used: {refusal}", printable(&part.database.name)),
                )),
            }
        }
        let encoding = part.database.encoding.as_deref().unwrap_or("UTF8");
        let plain = format!(
            "CREATE DATABASE {} WITH TEMPLATE = template0 ENCODING = {}",
            identifier(target),
            literal(encoding)
        );
        self.try_create(target, &plain).await?.map_err(|refusal| {
            EngineError::new(
                ErrorCode::RestoreFailed,
                format!("the server cannot make database {} with encoding {encoding}", printable(target)),
            )
            .caused_by(refusal)
        })
    }

    /// Makes a database; the inner error is a locale, encoding or option that this server lacks.
    ///
    /// Not given up half-way when the run is cancelled: a database made by then would not be known as ours.
    async fn try_create(&self, target: &str, sql: &str) -> Result<Result<(), ServerSays>, EngineError> {
        let Err(error) = self.maintenance.client.batch_execute(sql).await else { return Ok(Ok(())) };
        match error.code() {
            Some(state) if *state == SqlState::DUPLICATE_DATABASE => Err(exists(target)),
            Some(state)
                if [
                    SqlState::INVALID_PARAMETER_VALUE,
                    SqlState::UNDEFINED_OBJECT,
                    SqlState::WRONG_OBJECT_TYPE,
                    SqlState::SYNTAX_ERROR,
                ]
                .contains(state) =>
            {
                Ok(Err(ServerSays::from(error)))
            }
            Some(state) if *state == SqlState::INSUFFICIENT_PRIVILEGE => Err(EngineError::new(
                ErrorCode::SourcePermissionMissing,
                format!("{} may not make databases", self.server.user()),
            )
            .caused_by(ServerSays::from(error))),
            _ => Err(EngineError::new(
                ErrorCode::RestoreFailed,
                format!("database {} could not be made", printable(target)),
            )
            .caused_by(ServerSays::from(error))),
        }
    }

    async fn run_tool(
        &self,
        part: &Part<'_>,
        ids: Option<&[i64]>,
        ownership: &Ownership,
    ) -> Result<(), EngineError> {
        let list = ids.map(|ids| self.use_list(&part.target.restored, ids)).transpose()?;
        let mut command = client_tool(self.tools.path("pg_restore"), self.passfile.as_ref())?
            .args(["--format=custom", "--exit-on-error"])
            .args(ownership.arguments())
            .arg(format!("--dbname={}", self.server.conninfo(Some(&part.target.restored))));
        if let Some(list) = &list {
            let mut argument = std::ffi::OsString::from("--use-list=");
            argument.push(list.path());
            command = command.arg(argument);
        }
        let contents = Arc::clone(&self.contents);
        let path = part.database.path.clone();
        self.context.log.debug(format_args!("runs {command}"));
        let mut tool = command.spawn(ToolInput::Piped, ToolOutput::Discarded, &self.context.cancel)?;
        let stdin = tool.take_stdin().expect("the tool was started with its input piped");
        // When this future is dropped the tool is killed, and the thread ends with its next write.
        let feeding = blocking(move || feed(contents.as_ref(), &path, stdin));
        let (fed, exit) = tokio::join!(feeding, tool.wait());
        // What could not be read explains whatever the tool says of it.
        fed?;
        let exit = exit?;
        self.context.log.debug(format_args!("{exit} after {:.1} s", exit.elapsed.as_secs_f64()));
        if exit.is_success() { Ok(()) } else { Err(restore_failed(&exit, &part.database.name)) }
    }

    /// Writes the list of entries to restore; only the number at the beginning of a line is read.
    fn use_list(&self, target: &str, ids: &[i64]) -> Result<tempfile::NamedTempFile, EngineError> {
        let failed = |error: io::Error| {
            EngineError::new(
                ErrorCode::RestoreFailed,
                format!("no list of entries for {}", printable(target)),
            )
            .caused_by(error)
        };
        let mut file =
            tempfile::Builder::new().prefix("entries-").tempfile_in(&self.context.scratch).map_err(failed)?;
        for id in ids {
            writeln!(file, "{id};").map_err(failed)?;
        }
        file.flush().map_err(failed)?;
        Ok(file)
    }

    /// Settings, grants, owner and comment of the database itself. None is worth failing a restore for.
    async fn apply_database_sql(
        &self,
        part: &Part<'_>,
        entries: &[TocEntry],
        ownership: &Ownership,
        checks: &mut Vec<RestoreCheck>,
    ) -> Result<(), EngineError> {
        let target = &part.target.restored;
        let mut statements = Vec::new();
        for entry in entries.iter().filter(|entry| entry.concerns_database()) {
            let owner = String::from_utf8_lossy(&entry.owner);
            if entry.kind == "DATABASE" {
                if matches!(ownership, Ownership::Kept) && !owner.is_empty() {
                    statements.push(format!(
                        "ALTER DATABASE {} OWNER TO {}",
                        identifier(target),
                        identifier(&owner)
                    ));
                }
            } else if let Some(sql) = &entry.definition {
                let sql = String::from_utf8_lossy(sql);
                statements.extend(statements_for(&sql, &part.database.name, target));
            }
        }
        for statement in statements {
            if let Err(error) = self.maintenance.client.batch_execute(&statement).await {
                if error.is_closed() {
                    return Err(self.maintenance.failed(error));
                }
                let detail = format!(
                    "{}: not applied: {}: {}",
                    printable(&part.database.name),
                    printable(&statement),
                    ServerSays::from(error)
                );
                checks.push(check("settings", CheckOutcome::Warning, detail));
            }
        }
        Ok(())
    }

    /// Drops what was made so far; what cannot be dropped is named in the error.
    async fn undo(&self, made: Vec<String>, error: EngineError) -> EngineError {
        // The run may be cancelled: cleaning up must go on.
        let cancel = CancellationToken::new();
        let mut error = error;
        for name in made {
            let force = if self.facts.major >= 13 { " WITH (FORCE)" } else { "" };
            let sql = format!("DROP DATABASE IF EXISTS {}{force}", identifier(&name));
            let mut dropped = self.maintenance.run(&sql, &cancel).await;
            if dropped.is_err() {
                // The session may have ended with the server that was restored to.
                dropped = match self.server.maintenance(&[&name], &cancel).await {
                    Ok(session) => session.run(&sql, &cancel).await,
                    Err(error) => Err(error),
                };
            }
            if let Err(remains) = dropped {
                self.context
                    .log
                    .warn(&format!("unfinished database {} remains: {remains}", printable(&name)));
                error = error.then(format!("dropdb {}", catalog::shell_word(&name)));
            }
        }
        error
    }
}

/// Whether restored objects get their former owners.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// They do.
    Kept,
    /// These roles do not exist here: owners and grants are left out.
    RolesMissing(Vec<String>),
    /// The login is no member of these roles: owners are left out.
    NotMember(Vec<String>),
}

/// Finds out whether owners can be restored.
pub(crate) async fn ownership(
    session: &Session,
    facts: &ServerFacts,
    roles: &[String],
    cancel: &CancellationToken,
) -> Result<Ownership, EngineError> {
    let missing = catalog::missing_roles(session, roles, cancel).await?;
    if !missing.is_empty() {
        return Ok(Ownership::RolesMissing(missing));
    }
    if facts.superuser {
        return Ok(Ownership::Kept);
    }
    let sql = "SELECT r FROM unnest($1::text[]) r WHERE NOT pg_has_role(r, 'MEMBER')";
    let strangers = session.query(sql, &[&roles], cancel).await?;
    let strangers: Vec<String> = strangers.iter().map(|row| row.get(0)).collect();
    Ok(if strangers.is_empty() { Ownership::Kept } else { Ownership::NotMember(strangers) })
}

impl Ownership {
    fn arguments(&self) -> &'static [&'static str] {
        match self {
            Ownership::Kept => &[],
            Ownership::RolesMissing(_) => &["--no-owner", "--no-privileges"],
            Ownership::NotMember(_) => &["--no-owner"],
        }
    }

    /// What a preview or report says of it, when it deserves a word.
    pub(crate) fn check(&self, database: &str) -> Option<RestoreCheck> {
        let listed =
            |roles: &[String]| roles.iter().map(|role| printable(role)).collect::<Vec<_>>().join(", ");
        let database = printable(database);
        let detail = match self {
            Ownership::Kept => return None,
            Ownership::RolesMissing(roles) => {
                let create: Vec<_> =
                    roles.iter().map(|role| format!("CREATE ROLE {};", identifier(role))).collect();
                format!(
                    "{database}: roles {} do not exist here, so owners and grants are left out; to keep them: {}",
                    listed(roles),
                    create.join(" ")
                )
            }
            Ownership::NotMember(roles) => {
                format!("{database}: the login is no member of {}, so owners are left out", listed(roles))
            }
        };
        Some(check("roles", CheckOutcome::Warning, detail))
    }
}

/// Hands an archive to `pg_restore`, which may stop reading when it has all it wants.
fn feed(contents: &dyn SnapshotContents, path: &str, mut to: PipeWriter) -> Result<(), EngineError> {
    let mut from = contents.open(path)?;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let count = from.read(&mut buffer).map_err(|error| read_failed(path, error))?;
        if count == 0 {
            return Ok(());
        }
        match to.write_all(&buffer[..count]) {
            Ok(()) => {}
            // Its exit status says whether that was too early.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => {
                return Err(EngineError::new(ErrorCode::RestoreFailed, "pg_restore took no more input")
                    .caused_by(error));
            }
        }
    }
}

/// The error inside a read error, where there is one: it knows what is damaged.
fn read_failed(path: &str, error: io::Error) -> EngineError {
    match error.downcast::<EngineError>() {
        Ok(inner) => inner,
        Err(error) => {
            EngineError::new(ErrorCode::RestoreFailed, format!("{path} could not be read")).caused_by(error)
        }
    }
}

/// What the end of `pg_restore` means, told from what it said in English.
fn restore_failed(exit: &ToolExit, database: &str) -> EngineError {
    let plain = exit.to_error();
    if exit.ending == ToolEnding::Cancelled {
        return plain;
    }
    let said = exit.stderr.text();
    let (code, what) = if said.contains("No space left on device") {
        (ErrorCode::TargetNoSpace, "the server has no space left for")
    } else {
        (ErrorCode::RestoreFailed, "pg_restore could not restore")
    };
    EngineError::new(code, format!("{what} database {}", printable(database))).caused_by(plain)
}
