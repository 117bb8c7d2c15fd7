//! What looks wrong about a snapshot beside the one before it: tables that lost or gained many rows, a source that shrank,
//! a sudden rewrite of most of it. Pure: two snapshots in, anomalies out.
//!
//! A backup that succeeds of a database that somebody emptied is a success of the wrong thing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::alert::Severity;
use crate::manifest::Manifest;
use crate::policy::{TableWatch, Watch, WatchLimits};
use crate::snapshot::SnapshotRecord;
use crate::text::{count, size};

/// How many anomalies of one snapshot are kept, the worst first.
pub const ANOMALIES_MAX: usize = 100;

/// Below this size in bytes nothing is said of changes of size: an empty database grows by leaps.
const SIZE_AT_LEAST: u64 = 1 << 20;

/// Something that looks wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anomaly {
    /// How serious it is.
    pub severity: Severity,
    /// What it is.
    #[serde(flatten)]
    pub kind: AnomalyKind,
}

/// What looks wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AnomalyKind {
    /// A table has many more or fewer rows.
    Rows {
        /// `DATABASE.TABLE`.
        table: String,
        /// Rows in the snapshot before.
        before: u64,
        /// Rows now.
        after: u64,
    },
    /// A table is gone.
    TableGone {
        /// `DATABASE.TABLE`.
        table: String,
        /// Rows in the snapshot before.
        before: u64,
    },
    /// The source is much larger or smaller.
    Size {
        /// Bytes in the snapshot before.
        before: u64,
        /// Bytes now.
        after: u64,
    },
    /// Most of the source was written anew, as a program that encrypts files does.
    Rewrite {
        /// Bytes that had to be stored.
        stored: u64,
        /// Bytes of the source.
        logical: u64,
    },
}

impl AnomalyKind {
    /// The word used in output: `rows`, `table_gone`, `size` or `rewrite`.
    pub fn name(&self) -> &'static str {
        match self {
            AnomalyKind::Rows { .. } => "rows",
            AnomalyKind::TableGone { .. } => "table_gone",
            AnomalyKind::Size { .. } => "size",
            AnomalyKind::Rewrite { .. } => "rewrite",
        }
    }
}

impl fmt::Display for AnomalyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AnomalyKind::Rows { table, before, after } => {
                let (verb, change) = change(*before, *after);
                let (before, after) = (count(*before), count(*after));
                write!(f, "table {table} {verb} {change} of its rows: {before} → {after}")
            }
            AnomalyKind::TableGone { table, before } => {
                write!(f, "table {table} is gone, it had {} rows", count(*before))
            }
            AnomalyKind::Size { before, after } => {
                let (verb, change) = change(*before, *after);
                write!(f, "the source {verb} {change} of its size: {} → {}", size(*before), size(*after))
            }
            AnomalyKind::Rewrite { stored, logical } => write!(
                f,
                "{} of {} had to be stored anew: most of the source was rewritten",
                size(*stored),
                size(*logical)
            ),
        }
    }
}

fn change(before: u64, after: u64) -> (&'static str, String) {
    let percent = ratio(before, after) * 100.0;
    (if after < before { "lost" } else { "gained" }, format!("{percent:.0}%"))
}

/// The change as a share of what was.
fn ratio(before: u64, after: u64) -> f64 {
    before.abs_diff(after) as f64 / before.max(1) as f64
}

fn severity(limits: &WatchLimits, before: u64, after: u64) -> Option<Severity> {
    let change = ratio(before, after);
    if change > limits.critical.ratio() {
        Some(Severity::Critical)
    } else if change > limits.warning.ratio() {
        Some(Severity::Warning)
    } else {
        None
    }
}

/// What looks wrong about a snapshot beside the one before it of the same source, the worst first.
pub fn compare(rules: &Watch, before: &SnapshotRecord, now: &SnapshotRecord) -> Vec<Anomaly> {
    let mut found = Vec::new();
    if let (Some(before), Some(now)) = (&before.manifest, &now.manifest) {
        found.extend(tables(rules, before, now));
    }
    if before.logical_bytes >= SIZE_AT_LEAST
        && let Some(severity) = severity(&rules.size, before.logical_bytes, now.logical_bytes)
    {
        let kind = AnomalyKind::Size { before: before.logical_bytes, after: now.logical_bytes };
        found.push(Anomaly { severity, kind });
    }
    // What was stored is compressed: of a normal source it is a fraction even when all of it is new.
    let stored = now.stored_bytes as f64 / now.logical_bytes.max(1) as f64;
    if now.logical_bytes >= SIZE_AT_LEAST && stored > rules.rewrite.ratio() {
        let kind = AnomalyKind::Rewrite { stored: now.stored_bytes, logical: now.logical_bytes };
        found.push(Anomaly { severity: Severity::Critical, kind });
    }
    found.sort_by_key(|anomaly| std::cmp::Reverse(anomaly.severity));
    found.truncate(ANOMALIES_MAX);
    found
}

fn tables(rules: &Watch, before: &Manifest, now: &Manifest) -> Vec<Anomaly> {
    let mut found = Vec::new();
    for database in &before.databases {
        // A database that is not captured any more is a change of the definition, or its size tells.
        let Some(after) = now.databases.iter().find(|other| other.name == database.name) else { continue };
        for (name, table) in &database.tables {
            let full_name = format!("{}.{name}", database.name);
            let own = rules.tables.get(&full_name).or_else(|| rules.tables.get(name));
            let limits = match own {
                Some(TableWatch::Ignore) => continue,
                Some(TableWatch::Limits(limits)) => limits,
                None => &rules.rows,
            };
            let rows_after = after.tables.get(name).map(|table| table.rows);
            let most = table.rows.max(rows_after.unwrap_or(0));
            if most < u64::from(rules.at_least_rows.get()) {
                continue;
            }
            match rows_after {
                None => found.push(Anomaly {
                    severity: Severity::Critical,
                    kind: AnomalyKind::TableGone { table: full_name, before: table.rows },
                }),
                Some(rows) => {
                    if let Some(severity) = severity(limits, table.rows, rows) {
                        let kind = AnomalyKind::Rows { table: full_name, before: table.rows, after: rows };
                        found.push(Anomaly { severity, kind });
                    }
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(rows: &[(&str, u64)], logical: u64, stored: u64) -> SnapshotRecord {
        let tables: serde_json::Map<_, _> = rows
            .iter()
            .map(|(name, rows)| ((*name).to_owned(), serde_json::json!({ "rows": rows })))
            .collect();
        serde_json::from_value(serde_json::json!({
            "id": "00".repeat(32), "repository": "main", "source": "pg", "agent": null, "engine": "postgres",
            "snapshot_type": "incremental", "milestone": null, "committed_at": "2026-06-01T00:00:00Z", "run": null,
            "tree": "", "paths": [], "hostname": "", "logical_bytes": logical, "files": 1, "stored_bytes": stored,
            "duration_millis": 1, "unreadable": 0, "proof": {},
            "manifest": {
                "version": 1, "engine": "postgres", "engine_version": "15", "captured_at": "2026-06-01T00:00:00Z",
                "logical_bytes": logical,
                "databases": [{
                    "name": "shop", "path": "shop.dump", "tables": tables, "schema_hash": "", "logical_bytes": 1
                }],
            },
        }))
        .unwrap()
    }

    fn found(rules: &str, before: &[(&str, u64)], now: &[(&str, u64)]) -> Vec<String> {
        let rules: Watch = serde_json::from_str(rules).unwrap();
        let anomalies = compare(&rules, &snapshot(before, 100 << 20, 0), &snapshot(now, 100 << 20, 0));
        anomalies.iter().map(|found| format!("{}: {}", found.severity.as_str(), found.kind)).collect()
    }

    #[test]
    fn rows_are_held_against_the_snapshot_before() {
        let before = [("public.orders", 1000)];
        let orders = |rows| found("{}", &before, &[("public.orders", rows)]);
        assert_eq!(orders(1100), Vec::<String>::new(), "at the limit");
        assert_eq!(orders(1101), ["warning: table shop.public.orders gained 10% of its rows: 1,000 → 1,101"]);
        assert_eq!(orders(899), ["warning: table shop.public.orders lost 10% of its rows: 1,000 → 899"]);
        assert_eq!(orders(700), ["critical: table shop.public.orders lost 30% of its rows: 1,000 → 700"]);
        assert_eq!(orders(0), ["critical: table shop.public.orders lost 100% of its rows: 1,000 → 0"]);
        assert_eq!(
            orders(2000),
            ["critical: table shop.public.orders gained 100% of its rows: 1,000 → 2,000"]
        );
        let gone = found("{}", &before, &[]);
        assert_eq!(gone, ["critical: table shop.public.orders is gone, it had 1,000 rows"]);
    }

    #[test]
    fn small_tables_and_those_that_are_left_out_say_nothing() {
        assert!(found("{}", &[("t", 3)], &[("t", 99)]).is_empty());
        assert_eq!(found("{}", &[("t", 3)], &[("t", 100)]).len(), 1);
        let rules = r#"{"tables": {"shop.t": "ignore", "u": {"warning": "50%", "critical": "90%"}}}"#;
        assert!(found(rules, &[("t", 1000), ("u", 1000)], &[("t", 1), ("u", 600)]).is_empty());
        assert_eq!(found(rules, &[("u", 1000)], &[("u", 400)]).len(), 1);
    }

    #[test]
    fn size_and_rewrites_are_watched() {
        let rules = Watch::default();
        let of = |before: u64, after: u64, stored: u64| {
            let anomalies = compare(&rules, &snapshot(&[], before, 0), &snapshot(&[], after, stored));
            anomalies
                .iter()
                .map(|found| format!("{}: {}", found.severity.as_str(), found.kind))
                .collect::<Vec<_>>()
        };
        let mib = 1 << 20;
        assert!(of(100 * mib, 110 * mib, 10 * mib).is_empty());
        assert_eq!(
            of(100 * mib, 60 * mib, 0),
            ["warning: the source lost 40% of its size: 100.0 MiB → 60.0 MiB"]
        );
        assert_eq!(of(100 * mib, 30 * mib, 0).len(), 1);
        assert_eq!(
            of(100 * mib, 100 * mib, 95 * mib),
            ["critical: 95.0 MiB of 100.0 MiB had to be stored anew: most of the source was rewritten"]
        );
        assert!(of(1000, 100_000, 90_000).is_empty(), "too small to say anything");
    }

    #[test]
    fn the_worst_come_first_and_not_too_many() {
        let before: Vec<(String, u64)> = (0..300).map(|n| (format!("t{n}"), 1000)).collect();
        let after: Vec<(String, u64)> = before
            .iter()
            .enumerate()
            .map(|(n, (name, _))| (name.clone(), if n % 2 == 0 { 850 } else { 1 }))
            .collect();
        fn borrowed(tables: &[(String, u64)]) -> Vec<(&str, u64)> {
            tables.iter().map(|(name, rows)| (name.as_str(), *rows)).collect()
        }
        let anomalies = found("{}", &borrowed(&before), &borrowed(&after));
        assert_eq!(anomalies.len(), ANOMALIES_MAX);
        assert!(anomalies.iter().all(|text| text.starts_with("critical")));
    }
}
