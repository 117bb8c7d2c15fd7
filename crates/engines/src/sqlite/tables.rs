//! Single tables of a snapshot, copied into a new database.

use std::collections::BTreeMap;
use std::path::Path;

use holdfast_model::ErrorCode;
use holdfast_model::manifest::{DatabaseManifest, TableManifest};
use rusqlite::{Connection, params};

use super::connect::{harden, quote};
use super::facts::{self, Facts};
use crate::EngineError;

/// The tables that are meant by `only`; `None` for all. A table is named as it is, with `main.` in front, or with the
/// name of the database and a `/`.
///
/// # Errors
/// `HF-3016` names the first that the snapshot lacks.
pub(crate) fn select(
    only: &[String],
    database: &DatabaseManifest,
) -> Result<Option<BTreeMap<String, TableManifest>>, EngineError> {
    if only.is_empty() {
        return Ok(None);
    }
    let find = |given: &str| {
        let in_database = given
            .strip_prefix(database.name.as_str())
            .and_then(|rest| rest.strip_prefix('/'))
            .unwrap_or(given);
        [given, in_database, in_database.strip_prefix("main.").unwrap_or(in_database)]
            .into_iter()
            .find_map(|name| database.tables.get_key_value(name))
    };
    let mut chosen = BTreeMap::new();
    for given in only {
        let Some((name, table)) = find(given) else {
            let tables: Vec<&str> = database.tables.keys().map(String::as_str).collect();
            return Err(EngineError::new(
                ErrorCode::PathNotInSnapshot,
                format!("the snapshot has no table {given}, only {}", tables.join(", ")),
            ));
        };
        chosen.insert(name.clone(), table.clone());
    }
    Ok(Some(chosen))
}

/// Copies tables with their rows, indexes, triggers and sequences into a new database at `target`, which is then as
/// durable as SQLite makes it. Returns how many rows there are.
///
/// # Errors
/// `HF-4020` for a virtual table, `HF-2014` when SQLite refuses something, `HF-2015` when a count is not that of the
/// manifest.
pub(crate) fn copy(
    whole: &Path,
    target: &Path,
    chosen: &BTreeMap<String, TableManifest>,
    facts: &Facts,
) -> Result<u64, EngineError> {
    let failed = |error: rusqlite::Error| {
        EngineError::new(
            ErrorCode::RestoreFailed,
            format!("the tables could not be copied into {}", target.display()),
        )
        .caused_by(error)
    };
    let mut sqlite = Connection::open(target).map_err(failed)?;
    prepare(&sqlite, whole, facts).map_err(failed)?;
    let copying = sqlite.transaction().map_err(failed)?;
    for name in chosen.keys() {
        let kind: String = copying
            .query_row(
                "SELECT type FROM pragma_table_list WHERE schema = 'whole' AND name = ?1",
                [name],
                |row| row.get(0),
            )
            .map_err(failed)?;
        if kind == "virtual" {
            let message = format!(
                "the table {name} is virtual and cannot be restored alone: restore the whole database"
            );
            return Err(EngineError::new(ErrorCode::Unsupported, message));
        }
        copy_table(&copying, name).map_err(failed)?;
    }
    // Triggers of one table may name another: they come when all tables are there.
    for name in chosen.keys() {
        define(&copying, name, &["index", "trigger"]).map_err(failed)?;
    }
    copying.commit().map_err(failed)?;
    let mut rows = 0;
    for (name, table) in chosen {
        let restored = facts::count(&sqlite, name).map_err(failed)?;
        if restored != table.rows {
            let message =
                format!("{restored} rows of {name} were restored, but the manifest says {}", table.rows);
            return Err(EngineError::new(ErrorCode::RestoreMismatch, message));
        }
        rows += restored;
    }
    sqlite.execute_batch("DETACH whole").map_err(failed)?;
    sqlite.close().map_err(|(_, error)| failed(error))?;
    Ok(rows)
}

/// Gives the new database the settings of the captured one and attaches that.
fn prepare(sqlite: &Connection, whole: &Path, facts: &Facts) -> rusqlite::Result<()> {
    harden(sqlite)?;
    for name in ["page_size", "auto_vacuum", "application_id", "user_version"] {
        if let Some(Ok(number)) = facts.settings.get(name).map(|text| text.parse::<i64>()) {
            sqlite.execute_batch(&format!("PRAGMA {name} = {number}"))?;
        }
    }
    // The encodings are names that SQLite gave.
    sqlite.pragma_update(None, "encoding", &facts.encoding)?;
    sqlite.execute("ATTACH ?1 AS whole", params![whole.as_os_str().to_string_lossy()])?;
    Ok(())
}

/// Defines what the captured schema has of these types for a table.
fn define(sqlite: &Connection, table: &str, types: &[&str]) -> rusqlite::Result<()> {
    let mut statement = sqlite.prepare(
        "SELECT type, sql FROM whole.sqlite_schema WHERE tbl_name = ?1 COLLATE NOCASE AND sql IS NOT NULL ORDER BY rowid",
    )?;
    let definitions = statement
        .query_map([table], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    for (_, sql) in definitions.iter().filter(|(kind, _)| types.contains(&kind.as_str())) {
        sqlite.execute_batch(sql)?;
    }
    Ok(())
}

fn copy_table(sqlite: &Connection, table: &str) -> rusqlite::Result<()> {
    define(sqlite, table, &["table"])?;
    let mut columns: Vec<String> = stored_columns(sqlite, table)?.iter().map(|name| quote(name)).collect();
    columns.extend(hidden_rowid(sqlite, table)?.map(str::to_owned));
    let (columns, name) = (columns.join(", "), quote(table));
    sqlite.execute(&format!("INSERT INTO main.{name} ({columns}) SELECT {columns} FROM whole.{name}"), [])?;
    let has_sequence: bool = sqlite.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.sqlite_schema WHERE name = 'sqlite_sequence')",
        [],
        |row| row.get(0),
    )?;
    if has_sequence {
        sqlite.execute("DELETE FROM main.sqlite_sequence WHERE name = ?1", [table])?;
        sqlite.execute(
            "INSERT INTO main.sqlite_sequence (name, seq) SELECT name, seq FROM whole.sqlite_sequence WHERE name = ?1",
            [table],
        )?;
    }
    Ok(())
}

/// Columns that hold values of their own; generated ones compute theirs.
fn stored_columns(sqlite: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement =
        sqlite.prepare("SELECT name FROM pragma_table_xinfo(?1, 'whole') WHERE hidden = 0 ORDER BY cid")?;
    statement.query_map([table], |row| row.get(0))?.collect()
}

/// A name for the row number of a table whose columns do not show it, so that it stays what it was.
fn hidden_rowid(sqlite: &Connection, table: &str) -> rusqlite::Result<Option<&'static str>> {
    let mut statement = sqlite.prepare("SELECT lower(name) FROM pragma_table_xinfo(?1, 'whole')")?;
    let columns =
        statement.query_map([table], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
    let has_row_numbers = |name: &&str| {
        // A table without row numbers has no such column.
        sqlite.prepare(&format!("SELECT {name} FROM whole.{}", quote(table))).is_ok()
    };
    let is_shown: bool = sqlite.query_row(
        "SELECT EXISTS (SELECT 1 FROM pragma_table_xinfo(?1, 'whole') WHERE pk = 1 AND upper(type) = 'INTEGER') \
         AND (SELECT count(*) FROM pragma_table_xinfo(?1, 'whole') WHERE pk > 0) = 1",
        [table],
        |row| row.get(0),
    )?;
    if is_shown {
        return Ok(None);
    }
    Ok(["rowid", "_rowid_", "oid"]
        .into_iter()
        .filter(|name| !columns.iter().any(|column| column == name))
        .find(has_row_numbers))
}
