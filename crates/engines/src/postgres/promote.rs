//! Swaps restored databases into the place of live ones by rename, and drops what is no longer wanted.
//!
//! All renames are one transaction: after an error, a lost connection or the death of this process at any moment, all
//! databases have their old names and take connections. `ALTER DATABASE … RENAME` itself keeps new sessions waiting
//! from the moment it locks the database, and waits up to five seconds for the old ones to go; a second session ends
//! those meanwhile. `ALLOW_CONNECTIONS false` would have to be committed first, and would leave the live database
//! closed if this process died before the swap. See `docs/adr/0007-databases-swap-in-one-transaction.md`.

use std::time::Duration;

use holdfast_model::ErrorCode;
use holdfast_model::restore::RestoredTarget;
use holdfast_model::source::PostgresConfig;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use super::catalog::database_exists;
use super::connect::{Server, ServerSays, Session};
use super::quote::{identifier, printable, suffixed};
use crate::{EngineContext, EngineError};

/// How often sessions that came up meanwhile are ended.
const CLEARING_PERIOD: Duration = Duration::from_millis(50);
/// How many sessions an error names.
const SESSIONS_NAMED_MAX: i64 = 5;

/// One database that changes its name.
struct Rename {
    from: String,
    to: String,
}

/// Swaps all targets, or none.
pub(crate) async fn promote(
    config: &PostgresConfig,
    targets: &[RestoredTarget],
    stamp: &str,
    context: &EngineContext,
) -> Result<Vec<RestoredTarget>, EngineError> {
    let cancel = &context.cancel;
    for target in targets {
        require_promotable(target)?;
    }
    let server = Server::resolve(&config.connect, context).await?;
    let involved: Vec<&str> =
        targets.iter().flat_map(|target| [target.restored.as_str(), target.live.as_str()]).collect();
    let renaming = server.maintenance(&involved, cancel).await?;
    let clearing = server.maintenance(&involved, cancel).await?;

    let mut renames = Vec::new();
    let mut promoted = Vec::new();
    let mut cleared = Vec::new();
    let mut incoming = Vec::new();
    for target in targets {
        let restored = database_oid(&renaming, &target.restored, cancel).await?;
        incoming.push((
            target.live.clone(),
            restored.ok_or_else(|| {
                in_use(format!("database {} does not exist any more", printable(&target.restored)))
            })?,
        ));
        let mut target = target.clone();
        if let Some(live) = database_oid(&renaming, &target.live, cancel).await? {
            let kept = suffixed(&target.live, &format!("_before_{stamp}"));
            if database_exists(&renaming, &kept, cancel).await? {
                let message = format!("database {} exists already", printable(&kept));
                return Err(EngineError::new(ErrorCode::TargetExists, message));
            }
            cleared.push(live);
            renames.push(Rename { from: target.live.clone(), to: kept.clone() });
            target.kept = Some(kept);
        }
        renames.push(Rename { from: target.restored.clone(), to: target.live.clone() });
        promoted.push(target);
    }
    require_no_prepared(&renaming, &involved, cancel).await?;

    let swapped = tokio::select! {
        swapped = swap(&renaming, &renames) => swapped,
        () = end_sessions(&clearing, &cleared) => unreachable!("it goes on until it is dropped"),
    };
    // Dropping the session rolls back what was not committed, and the names are free for the look that follows.
    drop(renaming);
    match swapped {
        Ok(()) => Ok(promoted),
        // The connection may have broken after the commit.
        Err(_) if is_swapped(&clearing, &incoming).await => Ok(promoted),
        Err(error) => Err(explain(&clearing, error, &involved).await),
    }
}

/// The OID of each restored database, which stays its own whatever it is called.
pub(crate) async fn marks(
    config: &PostgresConfig,
    targets: &[RestoredTarget],
    context: &EngineContext,
) -> Result<Vec<String>, EngineError> {
    let server = Server::resolve(&config.connect, context).await?;
    let involved: Vec<&str> = targets.iter().map(|target| target.restored.as_str()).collect();
    let session = server.maintenance(&involved, &context.cancel).await?;
    let mut marks = Vec::new();
    for name in involved {
        let oid = database_oid(&session, name, &context.cancel).await?;
        let oid =
            oid.ok_or_else(|| in_use(format!("database {} does not exist any more", printable(name))))?;
        marks.push(oid.to_string());
    }
    Ok(marks)
}

/// Finds out whether the transaction of [`promote`] was committed.
pub(crate) async fn settle(
    config: &PostgresConfig,
    targets: &[RestoredTarget],
    marks: &[String],
    stamp: &str,
    context: &EngineContext,
) -> Result<Option<Vec<RestoredTarget>>, EngineError> {
    let server = Server::resolve(&config.connect, context).await?;
    let involved: Vec<&str> = targets.iter().map(|target| target.live.as_str()).collect();
    let session = server.maintenance(&involved, &context.cancel).await?;
    let mut promoted = Vec::new();
    for (target, mark) in targets.iter().zip(marks) {
        let live = database_oid(&session, &target.live, &context.cancel).await?;
        if live.map(|oid| oid.to_string()).as_ref() != Some(mark) {
            return Ok(None);
        }
        let kept = suffixed(&target.live, &format!("_before_{stamp}"));
        let is_kept = database_exists(&session, &kept, &context.cancel).await?;
        promoted.push(RestoredTarget { kept: is_kept.then_some(kept), ..target.clone() });
    }
    Ok(Some(promoted))
}

fn require_promotable(target: &RestoredTarget) -> Result<(), EngineError> {
    let restored = printable(&target.restored);
    let message = if target.live.is_empty() {
        format!("{restored} holds some tables only and cannot take the place of a database")
    } else if target.kept.is_some() || target.live == target.restored {
        format!("{restored} has been promoted already")
    } else {
        return Ok(());
    };
    Err(EngineError::new(ErrorCode::Unsupported, message))
}

async fn swap(session: &Session, renames: &[Rename]) -> Result<(), tokio_postgres::Error> {
    session.client.batch_execute("BEGIN; SET LOCAL lock_timeout = '10s'").await?;
    for rename in renames {
        let sql = format!("ALTER DATABASE {} RENAME TO {}", identifier(&rename.from), identifier(&rename.to));
        session.client.batch_execute(&sql).await?;
    }
    session.client.batch_execute("COMMIT").await
}

/// Ends the sessions of these databases again and again. By OID: after the swap the names mean other databases.
async fn end_sessions(session: &Session, databases: &[u32]) {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE datid = ANY($1) AND pid <> pg_backend_pid()";
    loop {
        if let Err(error) = session.client.query(sql, &[&databases]).await {
            // The rename then finds the database in use and says so.
            tracing::debug!(error = %ServerSays::from(error), "a session could not be ended");
        }
        tokio::time::sleep(CLEARING_PERIOD).await;
    }
}

/// A prepared transaction holds its database like a session, and ends with none.
async fn require_no_prepared(
    session: &Session,
    databases: &[&str],
    cancel: &CancellationToken,
) -> Result<(), EngineError> {
    let sql = "SELECT gid, database::text FROM pg_prepared_xacts WHERE database::text = ANY($1) LIMIT 1";
    match session.query(sql, &[&databases], cancel).await?.first() {
        None => Ok(()),
        Some(row) => Err(in_use(format!(
            "database {} has the prepared transaction {}",
            printable(row.get(1)),
            printable(row.get(0))
        ))),
    }
}

async fn is_swapped(session: &Session, incoming: &[(String, u32)]) -> bool {
    let cancel = CancellationToken::new();
    for (live, oid) in incoming {
        if !matches!(database_oid(session, live, &cancel).await, Ok(Some(found)) if found == *oid) {
            return false;
        }
    }
    true
}

/// Says who is in the way.
async fn explain(session: &Session, error: tokio_postgres::Error, databases: &[&str]) -> EngineError {
    let denied = error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
    let said = ServerSays::from(error);
    if denied {
        return EngineError::new(
            ErrorCode::SourcePermissionMissing,
            "the login may not rename the databases",
        )
        .caused_by(said);
    }
    let sql = format!(
        "SELECT format('%s of %s in %s (process %s)', coalesce(nullif(application_name, ''), 'a session'), \
         usename, datname, pid) FROM pg_stat_activity WHERE datname = ANY($1) AND pid <> pg_backend_pid() \
         LIMIT {SESSIONS_NAMED_MAX}"
    );
    let sessions = session.client.query(&sql, &[&databases]).await.unwrap_or_default();
    let named: Vec<_> = sessions.iter().map(|row| printable(row.get(0))).collect();
    let names = databases.iter().map(|name| printable(name)).collect::<Vec<_>>().join(", ");
    let message = match named.is_empty() {
        true => format!("nothing was changed: {names} could not be renamed or dropped"),
        false => format!("nothing was changed: {names} in use by {}", named.join(", ")),
    };
    in_use(message).caused_by(said)
}

fn in_use(message: String) -> EngineError {
    EngineError::new(ErrorCode::TargetInUse, message)
}

async fn database_oid(
    session: &Session,
    name: &str,
    cancel: &CancellationToken,
) -> Result<Option<u32>, EngineError> {
    let rows =
        session.query("SELECT oid FROM pg_database WHERE datname::text = $1", &[&name], cancel).await?;
    Ok(rows.first().map(|row| row.get(0)))
}

/// Drops what a promotion kept, or what a restore made and nobody promoted. What is gone already is no error.
pub(crate) async fn discard(
    config: &PostgresConfig,
    targets: &[RestoredTarget],
    context: &EngineContext,
) -> Result<(), EngineError> {
    let doomed: Vec<&str> =
        targets.iter().map(|target| target.kept.as_deref().unwrap_or(&target.restored)).collect();
    for name in &doomed {
        if name.is_empty() || targets.iter().any(|target| target.live == *name) {
            return Err(EngineError::new(
                ErrorCode::PathInvalid,
                format!("database {} is live and is not dropped", printable(name)),
            ));
        }
    }
    let server = Server::resolve(&config.connect, context).await?;
    let session = server.maintenance(&doomed, &context.cancel).await?;
    for name in doomed {
        let sql = format!("DROP DATABASE IF EXISTS {}", identifier(name));
        if let Err(error) = session.client.batch_execute(&sql).await {
            return Err(explain(&session, error, &[name]).await);
        }
        context.log.info(&format!("dropped database {}", printable(name)));
    }
    Ok(())
}
