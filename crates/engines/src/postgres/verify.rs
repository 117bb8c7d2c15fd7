//! Compares a restored database with what the manifest says was captured.

use std::collections::BTreeSet;

use holdfast_model::ErrorCode;
use holdfast_model::manifest::DatabaseManifest;
use holdfast_model::restore::{CheckOutcome, RestoreCheck};
use holdfast_model::text::counted;
use tokio_util::sync::CancellationToken;

use super::catalog;
use super::connect::Session;
use super::quote::printable;
use crate::EngineError;

/// How many differences an error or a check names.
const NAMED_MAX: usize = 5;

/// What was found in a restored database.
#[derive(Debug, Default)]
pub(crate) struct Verified {
    /// Rows of its tables, without those of materialised views, which a restore computes anew.
    pub(crate) rows: u64,
    /// Rows that the manifest promises for the same tables.
    pub(crate) rows_expected: u64,
    /// Its size in bytes.
    pub(crate) bytes: u64,
    /// What was compared.
    pub(crate) checks: Vec<RestoreCheck>,
}

/// Builds a check.
pub(crate) fn check(name: &str, outcome: CheckOutcome, detail: impl Into<String>) -> RestoreCheck {
    RestoreCheck { name: name.to_owned(), outcome, detail: detail.into() }
}

/// Counts every row and compares: all of the database, or these tables only. `same_major` tells whether definitions
/// can be compared.
///
/// # Errors
/// `HF-2015` when tables, rows or large objects differ.
pub(crate) async fn verify(
    session: &Session,
    expected: &DatabaseManifest,
    tables: Option<&BTreeSet<String>>,
    same_major: bool,
    cancel: &CancellationToken,
) -> Result<Verified, EngineError> {
    let name = printable(&expected.name);
    let mut verified = Verified::default();
    verify_rows(session, expected, tables, &mut verified, cancel).await?;
    let bytes = session.query_one("SELECT pg_database_size(current_database())", &[], cancel).await?;
    verified.bytes = catalog::unsigned(bytes.get(0));
    if tables.is_some() {
        return Ok(verified);
    }

    let large_objects = catalog::large_objects(session, cancel).await?;
    if large_objects != expected.large_objects {
        return Err(EngineError::new(
            ErrorCode::RestoreMismatch,
            format!("{name}: {large_objects} large objects were restored of {}", expected.large_objects),
        ));
    }
    if large_objects > 0 {
        verified.checks.push(check("large objects", CheckOutcome::Ok, format!("{name}: {large_objects}")));
    }
    verify_sequences(session, expected, &mut verified, cancel).await?;
    let schema_hash = super::schema::hash(session, cancel).await?;
    verified.checks.push(if schema_hash == expected.schema_hash {
        check("schema", CheckOutcome::Ok, format!("{name}: all definitions equal"))
    } else if same_major {
        check("schema", CheckOutcome::Warning, format!("{name}: some definitions differ from those captured"))
    } else {
        let detail =
            format!("{name}: captured by another major version, which prints definitions differently");
        check("schema", CheckOutcome::Unknown, detail)
    });
    Ok(verified)
}

async fn verify_rows(
    session: &Session,
    expected: &DatabaseManifest,
    tables: Option<&BTreeSet<String>>,
    verified: &mut Verified,
    cancel: &CancellationToken,
) -> Result<(), EngineError> {
    let name = printable(&expected.name);
    let mut missing: BTreeSet<&String> = match tables {
        Some(tables) => tables.iter().collect(),
        None => expected.tables.keys().collect(),
    };
    let (mut differences, mut stale, mut tables_counted) = (Vec::new(), Vec::new(), 0);
    for relation in catalog::relations(session, cancel).await?.iter().filter(|relation| relation.counted) {
        let key = relation.key();
        let wanted = missing.remove(&key);
        let promised = expected.tables.get(&key);
        if !wanted && tables.is_some() {
            // Made for what was asked for, without its rows.
            continue;
        }
        let rows = catalog::count_rows(session, relation, cancel).await?.rows;
        let key = printable(&key);
        match promised.map(|table| table.rows) {
            None => differences.push(format!("{key} was not captured")),
            Some(promised) if relation.is_materialized_view() => {
                if promised != rows {
                    stale.push(format!("{key} has {}, had {promised}", counted(rows, "row")));
                }
            }
            Some(promised) => {
                tables_counted += 1;
                verified.rows += rows;
                verified.rows_expected += promised;
                if promised != rows {
                    differences.push(format!("{key} has {} instead of {promised}", counted(rows, "row")));
                }
            }
        }
    }
    differences.extend(missing.into_iter().map(|key| format!("{} is missing", printable(key))));
    if !differences.is_empty() {
        return Err(EngineError::new(
            ErrorCode::RestoreMismatch,
            format!("{name}: {}", shortened(&differences)),
        ));
    }
    let detail = format!(
        "{name}: {} in {}, as captured",
        counted(verified.rows, "row"),
        counted(tables_counted, "table")
    );
    verified.checks.push(check("rows", CheckOutcome::Ok, detail));
    if !stale.is_empty() {
        let detail = format!("{name}: materialised views were computed anew: {}", shortened(&stale));
        verified.checks.push(check("views", CheckOutcome::Warning, detail));
    }
    Ok(())
}

/// Sequences are outside of any snapshot: between the count and the dump they may have gone on, never back.
async fn verify_sequences(
    session: &Session,
    expected: &DatabaseManifest,
    verified: &mut Verified,
    cancel: &CancellationToken,
) -> Result<(), EngineError> {
    let name = printable(&expected.name);
    let found = catalog::sequences(session, cancel).await?;
    let (mut differences, mut moved) = (Vec::new(), 0usize);
    for (key, value) in &expected.sequences {
        match found.get(key) {
            None => differences.push(format!("{} is missing", printable(key))),
            Some(restored) if restored == value => {}
            Some(Some(_)) => moved += 1,
            Some(None) => differences.push(format!("{} lost its value", printable(key))),
        }
    }
    if !expected.sequences.is_empty() {
        verified.checks.push(if !differences.is_empty() {
            check("sequences", CheckOutcome::Warning, format!("{name}: {}", shortened(&differences)))
        } else if moved > 0 {
            let detail =
                format!("{name}: {moved} of {} were used during the capture", expected.sequences.len());
            check("sequences", CheckOutcome::Ok, detail)
        } else {
            let detail = format!("{name}: {} stand where they stood", expected.sequences.len());
            check("sequences", CheckOutcome::Ok, detail)
        });
    }
    Ok(())
}

fn shortened(items: &[String]) -> String {
    let mut named: Vec<_> = items.iter().take(NAMED_MAX).cloned().collect();
    if items.len() > NAMED_MAX {
        named.push(format!("{} more", items.len() - NAMED_MAX));
    }
    named.join("; ")
}
