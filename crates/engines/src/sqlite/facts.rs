//! What one view of a database holds: its tables with exact counts, its schema, its health.

use std::collections::BTreeMap;

use holdfast_model::manifest::TableManifest;
use holdfast_model::text::counted;
use rusqlite::Connection;
use sha2::{Digest as _, Sha256};

use super::connect::{is_busy, is_damage, quote};

/// How many findings an integrity check stops at.
const FINDINGS_MAX: u32 = 100;

/// What a view holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) tables: BTreeMap<String, TableManifest>,
    pub(crate) schema_hash: String,
    pub(crate) sequences: BTreeMap<String, Option<i64>>,
    pub(crate) encoding: String,
    pub(crate) settings: BTreeMap<String, String>,
}

/// Whether a view is sound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Health {
    /// What is wrong with the file.
    pub(crate) damage: Vec<String>,
    /// What is wrong with the data only, or could not be checked.
    pub(crate) warnings: Vec<String>,
}

/// Counts and names everything, in the read transaction that the connection is in. Each table is read, or its
/// smallest index.
pub(crate) fn collect(sqlite: &Connection, warnings: &mut Vec<String>) -> rusqlite::Result<Facts> {
    let mut tables = BTreeMap::new();
    for (name, kind) in table_list(sqlite)? {
        let counted = count(sqlite, &name);
        match counted {
            Ok(rows) => {
                tables.insert(name, TableManifest { rows });
            }
            // The module of a virtual table may be missing here, or keep no rows: its shadow tables hold the data.
            Err(error) if kind == "virtual" && !is_busy(&error) && !is_damage(&error) => {
                warnings.push(format!("the virtual table {name} was saved, but its rows cannot be counted"));
            }
            Err(error) => return Err(error),
        }
    }
    let pragma = |name: &str| -> rusqlite::Result<rusqlite::types::Value> {
        sqlite.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
    };
    let mut settings = BTreeMap::new();
    for name in ["application_id", "auto_vacuum", "journal_mode", "page_size", "user_version"] {
        let text = match pragma(name)? {
            rusqlite::types::Value::Integer(number) => number.to_string(),
            rusqlite::types::Value::Text(text) => text,
            other => format!("{other:?}"),
        };
        settings.insert(name.to_owned(), text);
    }
    Ok(Facts {
        tables,
        schema_hash: schema_hash(sqlite)?,
        sequences: sequences(sqlite)?,
        encoding: sqlite.query_row("PRAGMA encoding", [], |row| row.get(0))?,
        settings,
    })
}

/// Ordinary and virtual tables. Shadow tables are the inside of virtual ones, and what begins with `sqlite_` belongs
/// to SQLite.
fn table_list(sqlite: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    let mut statement = sqlite.prepare(
        "SELECT name, type FROM pragma_table_list \
         WHERE schema = 'main' AND type IN ('table', 'virtual') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
         ORDER BY name",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// Exact number of rows of a table.
pub(crate) fn count(sqlite: &Connection, table: &str) -> rusqlite::Result<u64> {
    let sql = format!("SELECT count(*) FROM main.{}", quote(table));
    sqlite.query_row(&sql, [], |row| Ok(row.get::<_, i64>(0)?.unsigned_abs()))
}

fn sequences(sqlite: &Connection) -> rusqlite::Result<BTreeMap<String, Option<i64>>> {
    let exists: bool = sqlite.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.sqlite_schema WHERE name = 'sqlite_sequence')",
        [],
        |row| row.get(0),
    )?;
    if !exists {
        return Ok(BTreeMap::new());
    }
    let mut statement = sqlite.prepare("SELECT name, seq FROM main.sqlite_sequence")?;
    let rows = statement.query_map([], |row| {
        // An application may have written anything there.
        Ok((row.get::<_, Option<String>>(0)?, row.get_ref(1)?.as_i64().ok()))
    })?;
    rows.filter_map(|row| row.map(|(name, last)| name.map(|name| (name, last))).transpose()).collect()
}

/// SHA-256 over the definitions in the schema, each as type, name, table and SQL, in the order of these, with their
/// lengths in front. White space outside quotes counts as one space.
fn schema_hash(sqlite: &Connection) -> rusqlite::Result<String> {
    let mut statement = sqlite.prepare(
        "SELECT type, name, tbl_name, sql FROM main.sqlite_schema \
         WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
    )?;
    let rows = statement.query_map([], |row| {
        let sql: String = row.get(3)?;
        Ok([row.get(0)?, row.get(1)?, row.get(2)?, normalise_sql(&sql)])
    })?;
    let mut definitions = rows.collect::<rusqlite::Result<Vec<[String; 4]>>>()?;
    definitions.sort();
    let mut hasher = Sha256::new();
    for text in definitions.iter().flatten() {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    Ok(hex::encode(hasher.finalize()))
}

/// Takes white space together, except in quotes, brackets and comments.
fn normalise_sql(sql: &str) -> String {
    let mut normal = String::with_capacity(sql.len());
    let mut characters = sql.trim().trim_end_matches(';').chars().peekable();
    while let Some(character) = characters.next() {
        // A doubled quote ends one quotation and begins the next, which comes to the same.
        let (begin, end) = match (character, characters.peek()) {
            ('\'', _) => ("'", "'"),
            ('"', _) => ("\"", "\""),
            ('`', _) => ("`", "`"),
            ('[', _) => ("[", "]"),
            ('-', Some('-')) => ("--", "\n"),
            ('/', Some('*')) => ("/*", "*/"),
            (c, _) => {
                if !c.is_whitespace() {
                    normal.push(c);
                } else if !normal.ends_with(' ') {
                    normal.push(' ');
                }
                continue;
            }
        };
        normal.push_str(begin);
        if begin.len() == 2 {
            characters.next();
        }
        let start = normal.len();
        for inner in characters.by_ref() {
            normal.push(inner);
            if normal[start..].ends_with(end) {
                break;
            }
        }
    }
    normal.trim_end().to_owned()
}

/// Checks the whole view: `PRAGMA integrity_check`, and foreign keys.
pub(crate) fn check(sqlite: &Connection) -> rusqlite::Result<Health> {
    let mut health = Health::default();
    match integrity_lines(sqlite) {
        Ok(lines) => {
            for line in lines {
                if concerns_data_only(&line) {
                    health.warnings.push(format!("integrity_check: {line}"));
                } else {
                    health.damage.push(line);
                }
            }
        }
        Err(error) if is_damage(&error) => health.damage.push(error.to_string()),
        // A collation or function of the application that the schema names is not known here.
        Err(error) if is_generic(&error) => {
            health.warnings.push(format!("the integrity of the database could not be checked: {error}"));
        }
        Err(error) => return Err(error),
    }
    if health.damage.is_empty() {
        match foreign_key_violations(sqlite) {
            Ok(0) => {}
            Ok(rows) => health.warnings.push(format!("a foreign key is broken by {}", counted(rows, "row"))),
            Err(error) if is_generic(&error) => {
                health.warnings.push(format!("foreign keys could not be checked: {error}"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(health)
}

fn integrity_lines(sqlite: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = sqlite.prepare(&format!("PRAGMA integrity_check({FINDINGS_MAX})"))?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    // One row may hold several lines.
    let lines = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(lines.iter().flat_map(|row| row.lines()).filter(|line| *line != "ok").map(str::to_owned).collect())
}

/// Rows that break a rule of the schema are data that the application put there; the file is sound.
fn concerns_data_only(line: &str) -> bool {
    let is_value = ["NULL", "TEXT", "NUMERIC", "non-"].iter().any(|kind| line.starts_with(kind));
    (is_value && line.contains(" value in "))
        || line.starts_with("CHECK constraint failed in ")
        || line.starts_with("unable to validate ")
}

fn foreign_key_violations(sqlite: &Connection) -> rusqlite::Result<u64> {
    sqlite.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| {
        Ok(row.get::<_, i64>(0)?.unsigned_abs())
    })
}

fn is_generic(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::Unknown))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(sql: &str) -> Facts {
        let sqlite = Connection::open_in_memory().unwrap();
        sqlite.execute_batch(sql).unwrap();
        collect(&sqlite, &mut Vec::new()).unwrap()
    }

    #[test]
    fn every_kind_of_table_is_counted_once() {
        let facts = facts(
            "CREATE TABLE plain(a);
             INSERT INTO plain VALUES (1), (NULL), (3);
             CREATE TABLE \"without rowid\"(k TEXT PRIMARY KEY) WITHOUT ROWID;
             INSERT INTO \"without rowid\" VALUES ('x');
             CREATE TABLE \"it's \"\"odd\"\"
             名\"(a);
             CREATE TABLE counted(id INTEGER PRIMARY KEY AUTOINCREMENT);
             INSERT INTO counted VALUES (41), (42);
             DELETE FROM counted WHERE id = 42;
             CREATE VIEW seen AS SELECT * FROM plain;
             CREATE VIRTUAL TABLE notes USING fts5(body);
             INSERT INTO notes VALUES ('one'), ('two');
             CREATE VIRTUAL TABLE places USING rtree(id, x0, x1);
             INSERT INTO places VALUES (1, 0.0, 1.0);",
        );
        let rows: Vec<(&str, u64)> =
            facts.tables.iter().map(|(name, table)| (name.as_str(), table.rows)).collect();
        let expected = [
            ("counted", 1),
            ("it's \"odd\"\n             名", 0),
            ("notes", 2),
            ("places", 1),
            ("plain", 3),
            ("without rowid", 1),
        ];
        assert_eq!(rows, expected);
        assert_eq!(facts.sequences, BTreeMap::from([("counted".to_owned(), Some(42))]));
        assert_eq!(facts.encoding, "UTF-8");
        assert_eq!(facts.settings["page_size"], "4096");
    }

    #[test]
    fn the_schema_hash_follows_the_definitions_and_nothing_else() {
        let one = facts("CREATE TABLE a(x INTEGER); CREATE INDEX i ON a(x);");
        let reordered_and_filled = facts(
            "CREATE TABLE z(x); DROP TABLE z; CREATE TABLE a(x   INTEGER);
             CREATE INDEX i\n ON a(x); INSERT INTO a VALUES (1); ANALYZE;",
        );
        assert_eq!(one.schema_hash, reordered_and_filled.schema_hash);
        let other = facts("CREATE TABLE a(x INTEGER); CREATE INDEX i ON a(x DESC);");
        assert_ne!(one.schema_hash, other.schema_hash);
    }

    #[test]
    fn white_space_in_quotes_and_comments_counts() {
        assert_eq!(
            normalise_sql(" CREATE  TABLE\n t(a DEFAULT 'x  ''  y', \"b  c\", [d  e], f); "),
            "CREATE TABLE t(a DEFAULT 'x  ''  y', \"b  c\", [d  e], f)"
        );
        assert_eq!(normalise_sql("a -- x  y\n  b /* p  q */  c"), "a -- x  y\n b /* p  q */ c");
        assert_eq!(normalise_sql("a 'open  end"), "a 'open  end");
    }

    #[test]
    fn rows_that_break_rules_are_warnings_and_not_damage() {
        let sqlite = Connection::open_in_memory().unwrap();
        sqlite
            .execute_batch(
                "PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON;
                 CREATE TABLE parent(id INTEGER PRIMARY KEY);
                 CREATE TABLE child(p REFERENCES parent(id), n CHECK (n > 0));
                 INSERT INTO child VALUES (7, -1);
                 PRAGMA ignore_check_constraints = OFF;",
            )
            .unwrap();
        let health = check(&sqlite).unwrap();
        assert_eq!(health.damage, Vec::<String>::new());
        assert_eq!(
            health.warnings,
            ["integrity_check: CHECK constraint failed in child", "a foreign key is broken by 1 row"]
        );
    }
}
