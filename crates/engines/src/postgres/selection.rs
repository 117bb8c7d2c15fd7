//! What of a snapshot a restore takes, and under which names.

use std::collections::{BTreeSet, HashMap, HashSet};

use holdfast_model::ErrorCode;
use holdfast_model::manifest::{DatabaseManifest, Manifest};
use holdfast_model::restore::{Placement, RestoredTarget};

use super::archive::TocEntry;
use super::quote::{IDENTIFIER_BYTES_MAX, printable, readable, suffixed};
use crate::{EngineError, RestoreOrder};

/// One database of a snapshot that a restore takes, whole or some of its tables.
#[derive(Debug, Clone)]
pub(crate) struct Part<'a> {
    /// What the manifest says of it.
    pub(crate) database: &'a DatabaseManifest,
    /// Only these tables, by the manifest's names; empty: all of it.
    pub(crate) tables: BTreeSet<String>,
    /// Where it goes.
    pub(crate) target: RestoredTarget,
}

impl Part<'_> {
    /// Whether all of the database is taken.
    pub(crate) fn is_whole(&self) -> bool {
        self.tables.is_empty()
    }
}

/// Finds the databases and tables that the order asks for, and names their targets.
///
/// An item of `only` is a database, or a table as `schema.table` or `database/schema.table`. A table that the manifest
/// does not count (a partitioned table: its partitions are counted) is taken on trust and looked for in the archive.
///
/// # Errors
/// `HF-3016` when something is not in the snapshot, `HF-1012` when an item or a target's name is not acceptable,
/// `HF-4020` for tables in the place of a database.
pub(crate) fn select<'a>(order: &RestoreOrder, manifest: &'a Manifest) -> Result<Vec<Part<'a>>, EngineError> {
    let mut chosen: Vec<(&DatabaseManifest, BTreeSet<String>)> = Vec::new();
    if order.only.is_empty() {
        chosen.extend(manifest.databases.iter().map(|database| (database, BTreeSet::new())));
    }
    for item in &order.only {
        let (database, table) = find(item, manifest)?;
        let at = chosen.iter().position(|(known, _)| known.name == database.name);
        match (at, table) {
            (None, table) => chosen.push((database, table.into_iter().collect())),
            (Some(at), Some(table)) if !chosen[at].1.is_empty() => drop(chosen[at].1.insert(table)),
            // The whole database holds the table too.
            (Some(_), Some(_)) => {}
            (Some(at), None) => chosen[at].1.clear(),
        }
    }
    if chosen.is_empty() {
        return Err(EngineError::new(ErrorCode::PathNotInSnapshot, "the snapshot holds no database"));
    }
    let only_one = chosen.len() == 1;
    let parts = chosen.into_iter().map(|(database, tables)| {
        let target = target(order, database, tables.is_empty(), only_one)?;
        Ok(Part { database, tables, target })
    });
    let parts = parts.collect::<Result<Vec<_>, EngineError>>()?;
    let names: HashSet<_> = parts.iter().map(|part| &part.target.restored).collect();
    if names.len() < parts.len() {
        return Err(EngineError::new(
            ErrorCode::PathInvalid,
            "two databases would be restored under one name",
        ));
    }
    Ok(parts)
}

fn find<'a>(
    item: &str,
    manifest: &'a Manifest,
) -> Result<(&'a DatabaseManifest, Option<String>), EngineError> {
    if let Some(database) = manifest.databases.iter().find(|database| database.name == item) {
        return Ok((database, None));
    }
    let named = manifest.databases.iter().filter_map(|database| {
        let table = item.strip_prefix(database.name.as_str())?.strip_prefix('/')?;
        Some((database, table))
    });
    // The longest name wins: names may hold slashes themselves.
    if let Some((database, table)) = named.max_by_key(|(database, _)| database.name.len()) {
        return Ok((database, Some(table_key(database, table)?)));
    }
    let mut holders = manifest.databases.iter().filter(|database| known_table(database, item).is_some());
    match (holders.next(), holders.next()) {
        (Some(database), None) => Ok((database, Some(table_key(database, item)?))),
        (Some(one), Some(other)) => Err(EngineError::new(
            ErrorCode::PathInvalid,
            format!(
                "databases {} and {} both have a table {}: write DATABASE/SCHEMA.TABLE",
                printable(&one.name),
                printable(&other.name),
                printable(item)
            ),
        )),
        (None, _) => match manifest.databases.as_slice() {
            [database] => Ok((database, Some(table_key(database, item)?))),
            _ => Err(not_in_snapshot(item)),
        },
    }
}

/// The manifest's name of a table, however plainly the item spells it.
fn known_table(database: &DatabaseManifest, item: &str) -> Option<String> {
    if database.tables.contains_key(item) {
        return Some(item.to_owned());
    }
    let splits = item.match_indices('.').map(|(at, _)| readable(&item[..at], &item[at + 1..]));
    splits.into_iter().find(|key| database.tables.contains_key(key))
}

fn table_key(database: &DatabaseManifest, item: &str) -> Result<String, EngineError> {
    if let Some(key) = known_table(database, item) {
        return Ok(key);
    }
    match item.split_once('.') {
        Some((schema, table)) if !schema.is_empty() && !table.is_empty() => {
            Ok(if item.contains('"') { item.to_owned() } else { readable(schema, table) })
        }
        _ => Err(not_in_snapshot(item)),
    }
}

/// The error for a table or database that is not there.
pub(crate) fn not_in_snapshot(item: &str) -> EngineError {
    EngineError::new(
        ErrorCode::PathNotInSnapshot,
        format!("the snapshot holds no database or table {}", printable(item)),
    )
    .caused_by("tables are written as SCHEMA.TABLE or DATABASE/SCHEMA.TABLE")
}

fn target(
    order: &RestoreOrder,
    database: &DatabaseManifest,
    whole: bool,
    only_one: bool,
) -> Result<RestoredTarget, EngineError> {
    let beside = || suffixed(&database.name, &format!("_restored_{}", order.snapshot_short));
    let restored = match &order.placement {
        Placement::Beside => beside(),
        Placement::InPlaceDelta => return Err(crate::no_delta("a PostgreSQL database")),
        Placement::InPlace if whole => beside(),
        Placement::InPlace => {
            return Err(EngineError::new(
                ErrorCode::Unsupported,
                format!("single tables cannot take the place of database {}", printable(&database.name)),
            )
            .caused_by("restore them beside, then copy the rows that are wanted"));
        }
        Placement::Into(name) => {
            if name.is_empty() || name.contains('\0') || name.len() > IDENTIFIER_BYTES_MAX {
                return Err(EngineError::new(
                    ErrorCode::PathInvalid,
                    format!(
                        "{} is no name for a database: 1 to {IDENTIFIER_BYTES_MAX} bytes",
                        printable(name)
                    ),
                ));
            }
            if only_one { name.clone() } else { suffixed(&format!("{name}_{}", database.name), "") }
        }
    };
    // Nothing is replaced by some tables of it: an empty name is refused by every promotion.
    let live = if whole { database.name.clone() } else { String::new() };
    Ok(RestoredTarget { part: database.name.clone(), restored, live, kept: None })
}

/// Entries that every restore needs: they set encoding, quoting and search path.
const ALWAYS: [&str; 3] = ["ENCODING", "STDSTRINGS", "SEARCHPATH"];
/// Kinds of entries that make a relation that can be asked for.
const TABLES: [&str; 2] = ["TABLE", "MATERIALIZED VIEW"];
/// Entries that belong to a table and come with it, with whatever they themselves need.
const PULLING: [&str; 11] = [
    "DEFAULT",
    "CONSTRAINT",
    "CHECK CONSTRAINT",
    "INDEX",
    "STATISTICS",
    "TRIGGER",
    "RULE",
    "POLICY",
    "ROW SECURITY",
    "SEQUENCE",
    "MATERIALIZED VIEW DATA",
];
/// Entries that come only when all they refer to is there anyway: a foreign key must not pull another table in.
const FOLLOWING: [&str; 8] = [
    "FK CONSTRAINT",
    "TABLE ATTACH",
    "INDEX ATTACH",
    "SEQUENCE OWNED BY",
    "SEQUENCE SET",
    "COMMENT",
    "ACL",
    "STATISTICS DATA",
];

/// The entries of an archive that restore some tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableEntries {
    /// Their numbers, in the order of the archive.
    pub(crate) ids: Vec<i64>,
    /// The tables whose rows come along, by the manifest's names: those asked for, and partitions of them.
    pub(crate) tables: BTreeSet<String>,
}

/// Finds what must be restored of an archive so that these tables are there with their rows, sequences, indexes,
/// constraints and triggers: the entries themselves and, by their dependencies, schemas, types, functions and
/// extensions.
///
/// # Errors
/// `HF-3016` names a table that is not in the archive.
pub(crate) fn table_entries(
    entries: &[TocEntry],
    wanted: &BTreeSet<String>,
) -> Result<TableEntries, EngineError> {
    let by_id: HashMap<i64, &TocEntry> = entries.iter().map(|entry| (entry.id, entry)).collect();
    let mut roots = HashSet::new();
    for key in wanted {
        let found = entries.iter().find(|entry| TABLES.contains(&entry.kind.as_str()) && entry.key() == *key);
        roots.insert(found.ok_or_else(|| not_in_snapshot(key))?.id);
    }
    with_partitions(entries, &by_id, &mut roots);

    let mut taken = HashSet::new();
    roots.iter().for_each(|&root| take(root, &by_id, &mut taken));
    // What belongs to what belongs to a table: an index, the constraint on it, a comment on that.
    let mut core = roots.clone();
    loop {
        let before = taken.len();
        for entry in entries.iter().filter(|entry| !entry.dependencies.is_empty()) {
            let kind = entry.kind.as_str();
            let all_there = || {
                let mut needed = entry.dependencies.iter().filter(|id| by_id.contains_key(id)).peekable();
                needed.peek().is_some() && needed.all(|id| taken.contains(id))
            };
            let belongs = || entry.dependencies.iter().any(|id| core.contains(id));
            if PULLING.contains(&kind) && belongs() {
                core.insert(entry.id);
                take(entry.id, &by_id, &mut taken);
            } else if FOLLOWING.contains(&kind) && all_there() {
                taken.insert(entry.id);
            }
        }
        if taken.len() == before {
            break;
        }
    }
    let schemas: HashSet<_> = entries
        .iter()
        .filter(|entry| taken.contains(&entry.id))
        .filter_map(|entry| entry.schema.clone())
        .collect();
    let mut tables = BTreeSet::new();
    for entry in entries {
        let is_data = matches!(entry.kind.as_str(), "TABLE DATA" | "MATERIALIZED VIEW DATA")
            && entry.dependencies.iter().any(|id| roots.contains(id));
        if is_data {
            tables.insert(entry.key());
        }
        if is_data
            || ALWAYS.contains(&entry.kind.as_str())
            || (entry.kind == "SCHEMA" && schemas.contains(&entry.tag))
        {
            taken.insert(entry.id);
        }
    }
    let ids = entries.iter().map(|entry| entry.id).filter(|id| taken.contains(id)).collect();
    Ok(TableEntries { ids, tables })
}

/// Adds the partitions of the roots, and theirs.
fn with_partitions(entries: &[TocEntry], by_id: &HashMap<i64, &TocEntry>, roots: &mut HashSet<i64>) {
    loop {
        let before = roots.len();
        for attach in entries.iter().filter(|entry| entry.kind == "TABLE ATTACH") {
            // It depends on both; the partition is the one it is named after.
            let child = attach.dependencies.iter().find(|id| {
                by_id.get(id).is_some_and(|table| table.tag == attach.tag && table.schema == attach.schema)
            });
            let parent = attach.dependencies.iter().any(|id| Some(id) != child && roots.contains(id));
            roots.extend(child.filter(|_| parent));
        }
        if roots.len() == before {
            return;
        }
    }
}

/// Takes an entry with all that it needs.
fn take(id: i64, by_id: &HashMap<i64, &TocEntry>, taken: &mut HashSet<i64>) {
    let mut open = vec![id];
    while let Some(id) = open.pop() {
        let Some(entry) = by_id.get(&id) else { continue };
        if entry.kind != "DATABASE" && taken.insert(id) {
            open.extend(&entry.dependencies);
        }
    }
}

impl TocEntry {
    /// How manifests name it.
    pub(crate) fn key(&self) -> String {
        readable(
            &String::from_utf8_lossy(self.schema.as_deref().unwrap_or_default()),
            &String::from_utf8_lossy(&self.tag),
        )
    }
}

#[cfg(test)]
mod tests;
