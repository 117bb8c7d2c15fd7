//! Reaches a server as a backup would, step by step, and changes nothing.

use std::collections::BTreeMap;

use holdfast_model::health::HealthReport;
use holdfast_model::source::PostgresConfig;
use holdfast_model::text::counted;

use super::catalog::{self, ServerFacts};
use super::connect::Server;
use super::quote::printable;
use super::tools;
use crate::tool::query_version;
use crate::{EngineContext, EngineError, ProbeReport};

/// Tools besides `pg_dump` that captures and restores use.
const OTHER_TOOLS: [&str; 2] = ["pg_dumpall", "pg_restore"];

/// One connection, two small questions.
pub(crate) async fn health(
    config: &PostgresConfig,
    context: &EngineContext,
) -> Result<HealthReport, EngineError> {
    let cancel = &context.cancel;
    let server = Server::resolve(&config.connect, context).await?;
    let session = server.session(server.first_database(), cancel).await?;
    let log_position = catalog::log_position(&session, cancel).await?;
    // Only monitors may look into the folder; others know less and are as well.
    let log = session.query_one("SELECT sum(size)::int8 FROM pg_ls_waldir()", &[], cancel).await.ok();
    Ok(HealthReport {
        response_millis: 0,
        log_bytes: log.and_then(|row| u64::try_from(row.get::<_, Option<i64>>(0)?).ok()),
        log_position: Some(log_position).filter(|position| !position.is_empty()),
    })
}

/// The names of the databases that allow connections.
pub(crate) async fn databases(
    config: &PostgresConfig,
    context: &EngineContext,
) -> Result<Vec<String>, EngineError> {
    let server = Server::resolve(&config.connect, context).await?;
    let session = server.session(server.first_database(), &context.cancel).await?;
    Ok(ServerFacts::read(&session, &context.cancel).await?.databases.into_keys().collect())
}

/// Probes the server.
pub(crate) async fn probe(
    config: &PostgresConfig,
    context: &EngineContext,
) -> Result<ProbeReport, EngineError> {
    let cancel = &context.cancel;
    let mut steps = Vec::new();
    let mut step = |name: &str, result: String| steps.push((name.to_owned(), result));
    let mut warnings = Vec::new();

    let server = Server::resolve(&config.connect, context).await?;
    if let Some(reference) = &config.connect.password {
        step("password", format!("from {reference}"));
    }
    let first = server.session(server.first_database(), cancel).await?;
    let facts = ServerFacts::read(&first, cancel).await?;
    let role = if facts.in_recovery { "standby" } else { "primary" };
    step("connect", format!("{server}, version {}, {role}", facts.version));
    step("login", format!("{}{}", server.user(), if facts.superuser { ", a superuser" } else { "" }));
    if !facts.superuser {
        warnings.push("the login is no superuser: globals.sql will hold roles without passwords".to_owned());
    }

    let databases = facts.select(&server, &config.databases)?;
    step("databases", databases.iter().map(|name| printable(name)).collect::<Vec<_>>().join(", "));
    let mut tables = 0;
    for name in &databases {
        let session = server.session(name, cancel).await?;
        let relations = catalog::relations(&session, cancel).await?;
        catalog::require_readable(&relations, name, server.user())?;
        tables += relations.iter().filter(|relation| relation.counted).count();
    }
    step("permissions", format!("{} readable", counted(tables as u64, "table")));

    let found = tools::find("pg_dump", config.tools.as_deref(), facts.major, cancel).await?;
    let mut versions = BTreeMap::from([("pg_dump".to_owned(), found.version.to_string())]);
    for tool in OTHER_TOOLS {
        versions.insert(tool.to_owned(), query_version(&found.path(tool), cancel).await?.to_string());
    }
    step("tools", format!("pg_dump {} in {}", found.version, found.folder.display()));

    let size = |name: &String| facts.databases.get(name).copied().unwrap_or_default();
    Ok(ProbeReport {
        version: facts.version.clone(),
        logical_bytes: databases.iter().map(size).sum(),
        parts: databases,
        tools: versions,
        steps,
        warnings,
    })
}
