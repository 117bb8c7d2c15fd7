//! Connections to the server, and what its refusals mean.
//!
//! The engine's own connections are without TLS: use a Unix socket or a loopback or otherwise trusted network, as a
//! server that demands TLS refuses them with `HF-2002`. The client tools connect by themselves with libpq's
//! `sslmode=prefer`: they take TLS where the server offers it, do not verify its certificate, and go on without it
//! where it does not.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use holdfast_model::ErrorCode;
use holdfast_model::secret::Secret;
use holdfast_model::source::PostgresConnect;
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, Config, NoTls};
use tokio_util::sync::CancellationToken;

use super::quote::{conninfo, passfile_line, printable};
use crate::tool::{SecretFile, ToolCommand};
use crate::{EngineContext, EngineError};

/// How long one attempt to connect may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Where libpq looks for passwords when none is configured: nothing can be there, so it finds none and says nothing.
const NO_PASSFILE: &str = "/dev/null/no-password-file";

/// What every connection of the engine sets first: no time limit of the server ends it, and definitions are printed
/// the same way whatever the server's settings are.
const SESSION_SETTINGS: &str = "SET statement_timeout = 0; SET lock_timeout = 0; \
     SET idle_in_transaction_session_timeout = 0; SET row_security = off; SET search_path = ''; \
     SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; SET extra_float_digits = 3; \
     SET quote_all_identifiers = off; SET max_parallel_workers_per_gather = 0; SET jit = off; \
     SET client_min_messages = warning";

/// What newer servers know besides: a backend whose client is gone ends within two seconds instead of counting on.
const SESSION_SETTINGS_14: &str = "SET client_connection_check_interval = '2s'; SET idle_session_timeout = 0";
/// The limit that PostgreSQL 17 added.
const SESSION_SETTINGS_17: &str = "SET transaction_timeout = 0";

/// A server and the login to it, with the password resolved.
#[derive(Clone)]
pub(crate) struct Server {
    connect: PostgresConnect,
    password: Option<Secret>,
}

impl Server {
    /// Resolves the password.
    pub(crate) async fn resolve(
        connect: &PostgresConnect,
        context: &EngineContext,
    ) -> Result<Self, EngineError> {
        let password = match &connect.password {
            Some(reference) => Some(context.secrets.resolve(reference).await?),
            None => None,
        };
        Ok(Self { connect: connect.clone(), password })
    }

    /// The user of the login.
    pub(crate) fn user(&self) -> &str {
        &self.connect.user
    }

    /// The database to connect to first.
    pub(crate) fn first_database(&self) -> &str {
        &self.connect.database
    }

    /// Whether it is reached through a Unix socket, hence runs on this host.
    pub(crate) fn is_local(&self) -> bool {
        self.connect.host.starts_with('/')
    }

    /// Connects to a database.
    pub(crate) async fn session(
        &self,
        database: &str,
        cancel: &CancellationToken,
    ) -> Result<Session, EngineError> {
        let mut config = Config::new();
        config
            .host(&self.connect.host)
            .port(self.connect.port)
            .user(&self.connect.user)
            .dbname(database)
            .application_name("holdfast")
            .connect_timeout(CONNECT_DEADLINE);
        if let Some(password) = &self.password {
            config.password(password.reveal());
        }
        let connecting = tokio::time::timeout(CONNECT_DEADLINE, config.connect(NoTls));
        let (client, connection) = match or_cancelled(cancel, connecting).await? {
            Ok(connected) => connected.map_err(|error| self.refused(database, error))?,
            Err(_) => {
                return Err(EngineError::new(
                    ErrorCode::SourceUnreachable,
                    format!("{self} did not answer within {} s", CONNECT_DEADLINE.as_secs()),
                ));
            }
        };
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to PostgreSQL ended");
            }
        });
        let session = Session { client, database: database.to_owned(), _driver: driver };
        session.prepare(cancel).await?;
        Ok(session)
    }

    /// Connects to a database from which others can be made, renamed and dropped: the first of the configured one,
    /// `postgres` and `template1` that exists and is not among those to avoid.
    pub(crate) async fn maintenance(
        &self,
        avoid: &[&str],
        cancel: &CancellationToken,
    ) -> Result<Session, EngineError> {
        let mut refused = None;
        for database in [self.first_database(), "postgres", "template1"] {
            if avoid.contains(&database) {
                continue;
            }
            match self.session(database, cancel).await {
                Err(error) if error.code() == ErrorCode::SourceMissing => refused = Some(error),
                result => return result,
            }
        }
        Err(refused.unwrap_or_else(|| {
            EngineError::new(
                ErrorCode::TargetInUse,
                format!("{self} has no other database to connect to meanwhile"),
            )
        }))
    }

    /// What a client tool is told to reach a database, or the server when none is named. The password is not in it.
    pub(crate) fn conninfo(&self, database: Option<&str>) -> String {
        let port = self.connect.port.to_string();
        let mut pairs =
            vec![("host", self.connect.host.as_str()), ("port", &port), ("user", &self.connect.user)];
        pairs.extend(database.map(|database| ("dbname", database)));
        conninfo(&pairs)
    }

    /// Writes the password where client tools read it; the file goes with the guard.
    pub(crate) fn passfile(
        &self,
        context: &EngineContext,
        name: &str,
    ) -> Result<Option<SecretFile>, EngineError> {
        let Some(password) = &self.password else { return Ok(None) };
        let line = passfile_line(password.reveal()).ok_or_else(|| {
            EngineError::new(
                ErrorCode::SecretUnresolvable,
                format!("the password of {} holds a line break, which a password file cannot", self.user()),
            )
        })?;
        SecretFile::create(&context.scratch, name, &line).map(Some)
    }

    fn refused(&self, database: &str, error: tokio_postgres::Error) -> EngineError {
        let state = error.code().cloned();
        let database = printable(database);
        let (code, message) = match &state {
            Some(state)
                if *state == SqlState::INVALID_PASSWORD
                    || *state == SqlState::INVALID_AUTHORIZATION_SPECIFICATION =>
            {
                let message =
                    format!("{self} refused the login of {} (SQLSTATE {})", self.user(), state.code());
                (ErrorCode::SourceLoginRefused, message)
            }
            Some(state) if *state == SqlState::INVALID_CATALOG_NAME => {
                (ErrorCode::SourceMissing, format!("{self} has no database {database}"))
            }
            Some(state) if *state == SqlState::INSUFFICIENT_PRIVILEGE => (
                ErrorCode::SourcePermissionMissing,
                format!("{} may not connect to database {database}", self.user()),
            ),
            Some(state) => (
                ErrorCode::SourceUnreachable,
                format!("{self} takes no connection now (SQLSTATE {})", state.code()),
            ),
            // The server asked for a password and none is configured: the driver notices before the server refuses.
            None if self.password.is_none() && asks_for_password(&error) => (
                ErrorCode::SourceLoginRefused,
                format!("{self} asks for a password of {}, and none is configured", self.user()),
            ),
            None => (ErrorCode::SourceUnreachable, format!("{self} cannot be reached")),
        };
        EngineError::new(code, message).caused_by(ServerSays::from(error))
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL at {}:{}", self.connect.host, self.connect.port)
    }
}

/// A connection to one database. Dropping it closes the connection, which rolls its transaction back.
pub(crate) struct Session {
    /// The client.
    pub(crate) client: Client,
    /// The database.
    pub(crate) database: String,
    _driver: JoinSet<()>,
}

impl Session {
    async fn prepare(&self, cancel: &CancellationToken) -> Result<(), EngineError> {
        self.run(SESSION_SETTINGS, cancel).await?;
        let sql = "SELECT current_setting('server_version_num')::int4, getdatabaseencoding()::text";
        let row = self.query_one(sql, &[], cancel).await?;
        let version: i32 = row.get(0);
        if row.get::<_, &str>(1) == "SQL_ASCII" {
            // The server would check what it sends to be UTF-8, and refuse what is not.
            self.run("SET client_encoding = 'SQL_ASCII'", cancel).await?;
        }
        if version >= 14_00_00 {
            self.run(SESSION_SETTINGS_14, cancel).await?;
        }
        if version >= 17_00_00 {
            self.run(SESSION_SETTINGS_17, cancel).await?;
        }
        Ok(())
    }

    /// Runs statements without results.
    pub(crate) async fn run(&self, sql: &str, cancel: &CancellationToken) -> Result<(), EngineError> {
        or_cancelled(cancel, self.client.batch_execute(sql)).await?.map_err(|error| self.failed(error))
    }

    /// Runs a query.
    pub(crate) async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
        cancel: &CancellationToken,
    ) -> Result<Vec<tokio_postgres::Row>, EngineError> {
        or_cancelled(cancel, self.client.query(sql, parameters)).await?.map_err(|error| self.failed(error))
    }

    /// Runs a query that gives one row.
    pub(crate) async fn query_one(
        &self,
        sql: &str,
        parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
        cancel: &CancellationToken,
    ) -> Result<tokio_postgres::Row, EngineError> {
        or_cancelled(cancel, self.client.query_one(sql, parameters))
            .await?
            .map_err(|error| self.failed(error))
    }

    /// Runs a query whose rows are one text each.
    pub(crate) async fn texts(
        &self,
        sql: &str,
        cancel: &CancellationToken,
    ) -> Result<Vec<String>, EngineError> {
        let rows = self.query(sql, &[], cancel).await?;
        rows.iter().map(|row| self.text(row, 0)).collect()
    }

    /// A text of a row.
    pub(crate) fn text(&self, row: &tokio_postgres::Row, column: usize) -> Result<String, EngineError> {
        row.try_get(column).map(|Lossy(text)| text).map_err(|error| self.failed(error))
    }

    /// What an error in this session means for a capture or a check.
    pub(crate) fn failed(&self, error: tokio_postgres::Error) -> EngineError {
        let database = printable(&self.database);
        let (code, message) = match error.code() {
            Some(state) if *state == SqlState::INSUFFICIENT_PRIVILEGE => (
                ErrorCode::SourcePermissionMissing,
                format!("a permission is missing in database {database}"),
            ),
            Some(state) if *state == SqlState::INDEX_CORRUPTED || *state == SqlState::DATA_CORRUPTED => {
                (ErrorCode::SourceDamaged, format!("database {database} is damaged"))
            }
            Some(state) if is_shutdown(state) => (
                ErrorCode::CaptureIncomplete,
                format!("the server ended the session with database {database}"),
            ),
            None if error.is_closed() => {
                (ErrorCode::CaptureIncomplete, format!("the connection to database {database} broke"))
            }
            _ => (ErrorCode::CaptureIncomplete, format!("a query of database {database} failed")),
        };
        EngineError::new(code, message).caused_by(ServerSays::from(error))
    }
}

fn asks_for_password(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|cause| cause.to_string() == "password missing")
}

/// Whether a state says that the server stops or its session was ended.
fn is_shutdown(state: &SqlState) -> bool {
    [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW].contains(state)
}

/// What the server, or the driver, said: one line, without the row values that a detail may hold.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ServerSays(String);

impl From<tokio_postgres::Error> for ServerSays {
    fn from(error: tokio_postgres::Error) -> Self {
        Self(match error.as_db_error() {
            Some(said) => {
                format!("{}: {} (SQLSTATE {})", said.severity(), said.message(), said.code().code())
            }
            None => {
                let mut text = error.to_string();
                let mut cause = std::error::Error::source(&error);
                while let Some(inner) = cause {
                    let inner_text = inner.to_string();
                    if !text.contains(&inner_text) {
                        text = format!("{text}: {inner_text}");
                    }
                    cause = inner.source();
                }
                text
            }
        })
    }
}

/// Text of the server. In a database without an encoding (`SQL_ASCII`) names and definitions may hold any bytes.
struct Lossy(String);

impl<'a> FromSql<'a> for Lossy {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(String::from_utf8_lossy(raw).into_owned()))
    }

    fn accepts(type_: &Type) -> bool {
        <&str as FromSql<'_>>::accepts(type_)
    }
}

/// Waits for a future, or for the end of the run.
///
/// # Errors
/// `HF-4010` when the run is cancelled first.
pub(crate) async fn or_cancelled<T>(
    cancel: &CancellationToken,
    future: impl Future<Output = T>,
) -> Result<T, EngineError> {
    cancel
        .run_until_cancelled(future)
        .await
        .ok_or_else(|| EngineError::new(ErrorCode::RunCancelled, "the run was cancelled"))
}

/// A client tool with the environment that all of them get: messages in English, the password by file.
pub(crate) fn client_tool(
    path: std::path::PathBuf,
    passfile: Option<&SecretFile>,
) -> Result<ToolCommand, EngineError> {
    let passfile = passfile.map_or(NO_PASSFILE.as_ref(), |file| file.path());
    Ok(ToolCommand::new(path)?
        .env("LC_ALL", "C")
        .env("PGAPPNAME", "holdfast")
        .env("PGCONNECT_TIMEOUT", CONNECT_DEADLINE.as_secs().to_string())
        .env("PGPASSFILE", passfile)
        .arg("--no-password"))
}
