//! What a restore would do, found out without touching anything.

use std::path::Path;

use holdfast_model::manifest::Manifest;
use holdfast_model::restore::{CheckOutcome, Placement, RestoreCheck, RestorePreview};
use holdfast_model::source::PostgresConfig;
use holdfast_model::text::{counted, size};
use tokio_util::sync::CancellationToken;

use super::GLOBALS_FILE;
use super::catalog::{self, ServerFacts};
use super::connect::{Server, Session};
use super::quote::{literal, printable};
use super::restore::{ownership, require_server, restore_tools};
use super::selection::{self, Part};
use super::verify::check;
use crate::{EngineContext, EngineError, RestoreOrder};

/// Previews a restore.
pub(crate) async fn preview(
    config: &PostgresConfig,
    order: &RestoreOrder,
    manifest: &Manifest,
    context: &EngineContext,
) -> Result<RestorePreview, EngineError> {
    let cancel = &context.cancel;
    let parts = selection::select(order, manifest)?;
    let server = Server::resolve(&config.connect, context).await?;
    let session = server.maintenance(&[], cancel).await?;
    let facts = ServerFacts::read(&session, cancel).await?;

    let mut preview = RestorePreview {
        bytes_needed: parts.iter().map(|part| part.database.logical_bytes).sum(),
        ..RestorePreview::default()
    };
    preview.checks.push(match require_server(&facts, manifest) {
        Ok(()) => {
            let detail = format!("{server} has {}, the snapshot {}", facts.version, manifest.engine_version);
            check("version", CheckOutcome::Ok, detail)
        }
        Err(error) => check("version", CheckOutcome::Failed, error.to_string()),
    });
    preview.checks.push(match restore_tools(config, &facts, manifest, cancel).await {
        Ok(tools) => {
            let detail = format!("pg_restore {} in {}", tools.version, tools.folder.display());
            check("tools", CheckOutcome::Ok, detail)
        }
        Err(error) => check("tools", CheckOutcome::Failed, error.to_string()),
    });
    preview.checks.push(permission(&session, &server, &facts, cancel).await?);
    let (space, free) = space(&session, &server, preview.bytes_needed, cancel).await;
    preview.bytes_free = free;
    preview.checks.push(space);
    for part in &parts {
        part_checks(part, order, &session, &facts, &mut preview, cancel).await?;
        steps(part, order, &mut preview.steps);
        preview.targets.push(part.target.clone());
    }
    preview.steps.push(format!(
        "roles and tablespaces are left as they are: {GLOBALS_FILE} of the snapshot is not applied (get it with \
         `holdfast backup export`, apply it with `psql -f {GLOBALS_FILE}`)"
    ));
    Ok(preview)
}

async fn permission(
    session: &Session,
    server: &Server,
    facts: &ServerFacts,
    cancel: &CancellationToken,
) -> Result<RestoreCheck, EngineError> {
    let sql = "SELECT rolcreatedb FROM pg_roles WHERE rolname = current_user";
    let allowed = facts.superuser || session.query_one(sql, &[], cancel).await?.get(0);
    let user = server.user();
    Ok(if allowed {
        check("permission", CheckOutcome::Ok, format!("{user} may make databases"))
    } else {
        let detail =
            format!("{user} may not make databases: ALTER ROLE {} CREATEDB;", super::quote::identifier(user));
        check("permission", CheckOutcome::Failed, detail)
    })
}

/// The disk of the server can be looked at only when it runs on this host and says where its data lies.
async fn space(
    session: &Session,
    server: &Server,
    needed: u64,
    cancel: &CancellationToken,
) -> (RestoreCheck, Option<u64>) {
    let folder = match server.is_local() {
        true => session.texts("SELECT current_setting('data_directory')", cancel).await.unwrap_or_default(),
        false => Vec::new(),
    };
    let free = folder.first().and_then(|folder| rustix::fs::statvfs(Path::new(folder)).ok());
    let needs = format!("needs about {}", size(needed));
    match free.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)) {
        Some(free) => {
            let outcome = if free > needed { CheckOutcome::Ok } else { CheckOutcome::Failed };
            (check("space", outcome, format!("{needs}, {} free", size(free))), Some(free))
        }
        None => {
            let detail = format!("{needs}; what is free on the server's disk is not known");
            (check("space", CheckOutcome::Unknown, detail), None)
        }
    }
}

async fn part_checks(
    part: &Part<'_>,
    order: &RestoreOrder,
    session: &Session,
    facts: &ServerFacts,
    preview: &mut RestorePreview,
    cancel: &CancellationToken,
) -> Result<(), EngineError> {
    let name = printable(&part.database.name);
    let target = printable(&part.target.restored);
    preview.checks.push(if catalog::database_exists(session, &part.target.restored, cancel).await? {
        check("target", CheckOutcome::Failed, format!("database {target} exists already"))
    } else {
        check("target", CheckOutcome::Ok, format!("database {target} does not exist yet"))
    });
    let roles = ownership(session, facts, &part.database.roles, cancel).await?;
    preview.checks.push(roles.check(&part.database.name).unwrap_or_else(|| {
        check(
            "roles",
            CheckOutcome::Ok,
            format!("{name}: none of {} is missing", counted(part.database.roles.len() as u64, "role")),
        )
    }));
    let available = session.texts("SELECT name::text FROM pg_available_extensions", cancel).await?;
    let missing: Vec<_> =
        part.database.extensions.keys().filter(|name| !available.contains(name)).cloned().collect();
    preview.checks.push(if missing.is_empty() {
        check("extensions", CheckOutcome::Ok, format!("{name}: all are available"))
    } else {
        // Single tables may do without them.
        let outcome = if part.is_whole() { CheckOutcome::Failed } else { CheckOutcome::Warning };
        check("extensions", outcome, format!("{name}: not installed on the server: {}", missing.join(", ")))
    });
    let uncounted: Vec<_> =
        part.tables.iter().filter(|key| !part.database.tables.contains_key(*key)).cloned().collect();
    if !uncounted.is_empty() {
        let detail = format!(
            "{name}: {} is not among the tables counted; if it is partitioned, its partitions are taken",
            uncounted.join(", ")
        );
        preview.checks.push(check("tables", CheckOutcome::Unknown, detail));
    }
    if order.placement == Placement::InPlace
        && catalog::database_exists(session, &part.target.live, cancel).await?
    {
        preview.replaces = true;
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = {} AND pid <> pg_backend_pid()",
            literal(&part.target.live)
        );
        let sessions: i64 = session.query_one(&sql, &[], cancel).await?.get(0);
        let outcome = if sessions == 0 { CheckOutcome::Ok } else { CheckOutcome::Warning };
        let detail = format!(
            "{name}: {} now; the swap ends those it finds",
            counted(sessions.unsigned_abs(), "session")
        );
        preview.checks.push(check("sessions", outcome, detail));
    }
    Ok(())
}

fn steps(part: &Part<'_>, order: &RestoreOrder, steps: &mut Vec<String>) {
    let name = printable(&part.database.name);
    let target = printable(&part.target.restored);
    steps.push(format!("make database {target} with the encoding and locale of {name}"));
    if part.is_whole() {
        let tables = counted(part.database.tables.len() as u64, "table");
        steps.push(format!("restore {tables} with {} into it", counted(part.database.rows(), "row")));
    } else {
        let tables: Vec<_> = part.tables.iter().map(|table| printable(table)).collect();
        steps.push(format!("restore {} into it, with what they need", tables.join(", ")));
    }
    steps
        .push(format!("count its rows and compare them with the manifest; drop {target} should they differ"));
    if order.placement == Placement::InPlace {
        let live = printable(&part.target.live);
        steps.push(format!(
            "end the sessions of {live}, rename it to {live}_before_…, rename {target} to {live}"
        ));
    }
}
