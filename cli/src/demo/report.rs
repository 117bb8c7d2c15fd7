//! What the demo prints.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::home::Home;
use crate::output::text::{count, duration, shell_word, size};
use crate::output::{Column, Record, Tone};

/// One step with how long it took and how it ended.
pub(super) fn step_line(label: &str, text: &str, took: Duration, outcome: &str) -> String {
    format!("  {label:<11}  {text:<80}  {:>6}  {outcome}\n", duration(took))
}

/// One backup of the story.
#[derive(Debug, Clone, Serialize)]
pub(super) struct BackupView {
    pub(super) snapshot_type: String,
    pub(super) snapshot_id: String,
    pub(super) logical_bytes: u64,
    pub(super) stored_bytes: u64,
    pub(super) rows: u64,
    pub(super) duration_seconds: f64,
}

/// One table, captured and restored.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TableView {
    pub(super) table: String,
    pub(super) captured_rows: Option<u64>,
    pub(super) restored_rows: Option<u64>,
}

impl TableView {
    pub(super) fn is_equal(&self) -> bool {
        self.captured_rows.is_some() && self.captured_rows == self.restored_rows
    }
}

/// What the demo did.
#[derive(Debug, Clone, Serialize)]
pub(super) struct DemoView {
    /// Where everything lies.
    pub(super) folder: PathBuf,
    /// Address of the controller.
    pub(super) server: String,
    /// The backups, in order.
    pub(super) backups: Vec<BackupView>,
    /// Rows that the accident took.
    pub(super) deleted_rows: u64,
    /// The restored database.
    pub(super) restored_to: PathBuf,
    /// How long plan and restore took.
    pub(super) restore_seconds: f64,
    /// Table by table.
    pub(super) tables: Vec<TableView>,
    /// Rows in the manifest.
    pub(super) captured_rows: u64,
    /// Rows counted in the restored database.
    pub(super) restored_rows: u64,
    /// Whether they agree, table by table.
    pub(super) equal: bool,
    /// From nothing to the proof.
    pub(super) duration_seconds: f64,
}

impl DemoView {
    #[expect(
        clippy::too_many_arguments,
        reason = "one value per line of the report, each named where it is made"
    )]
    pub(super) fn new(
        home: &Home,
        server: String,
        backups: Vec<BackupView>,
        deleted_rows: u64,
        restored_to: PathBuf,
        restore_took: Duration,
        tables: Vec<TableView>,
        took: Duration,
    ) -> Self {
        Self {
            folder: home.path().to_owned(),
            server,
            backups,
            deleted_rows,
            restored_to,
            restore_seconds: restore_took.as_secs_f64(),
            captured_rows: tables.iter().filter_map(|table| table.captured_rows).sum(),
            restored_rows: tables.iter().filter_map(|table| table.restored_rows).sum(),
            // Nothing compared is nothing proven.
            equal: !tables.is_empty() && tables.iter().all(TableView::is_equal),
            tables,
            duration_seconds: took.as_secs_f64(),
        }
    }
}

impl Record for DemoView {
    const KIND: &'static str = "Demo";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("VERDICT", |demo, _| {
                if demo.equal { "equal" } else { "DIFFERENT" }.to_owned()
            })
            .toned(|demo| if demo.equal { Tone::Good } else { Tone::Bad }),
            Column::<Self>::right("CAPTURED", |demo, _| count(demo.captured_rows)),
            Column::<Self>::right("RESTORED", |demo, _| count(demo.restored_rows)),
            Column::<Self>::left("FOLDER", |demo, _| demo.folder.display().to_string()),
        ]
    }

    fn name(&self) -> String {
        self.restored_to.display().to_string()
    }
}

/// The verdict, and how to check it without us.
pub(super) fn closing(view: &DemoView, home: &Home) -> String {
    let mut text = String::from("\n");
    for table in &view.tables {
        let rows = |rows: Option<u64>| rows.map_or_else(|| "none".to_owned(), count);
        let sign = if table.is_equal() { "=" } else { "BUT" };
        text.push_str(&format!(
            "  {:<11}  {:>9} restored {sign} {:>9} captured\n",
            table.table,
            rows(table.restored_rows),
            rows(table.captured_rows)
        ));
    }
    if let [full, incremental] = view.backups.as_slice() {
        let share = incremental.stored_bytes as f64 * 100.0 / full.stored_bytes.max(1) as f64;
        text.push_str(&format!(
            "\n  the second backup added {} where the first added {} ({share:.1} %); from nothing to the proof {:.1}s\n",
            size(incremental.stored_bytes),
            size(full.stored_bytes),
            view.duration_seconds
        ));
    }
    if home.is_kept() {
        text.push_str(&format!(
            "  kept in {}; a reader that is not ours agrees:\n    {}\n",
            home.path().display(),
            restic(home)
        ));
    }
    let (captured, restored) = (count(view.captured_rows), count(view.restored_rows));
    text.push_str(&if view.equal {
        format!("\nrows restored = rows captured   {restored} = {captured}\n")
    } else {
        format!("\nrows restored DIFFER from rows captured   {restored} restored, {captured} captured\n")
    });
    text
}

fn restic(home: &Home) -> String {
    format!(
        "restic -r {} -p {} check --read-data",
        shell_word(&home.repository().display().to_string()),
        shell_word(&home.repository_key().display().to_string())
    )
}

/// What to try while the demo is up.
pub(super) fn look_around(home: &Home) -> String {
    let ending = if home.is_kept() { "stops it" } else { "stops it and removes everything" };
    let mut text = format!(
        "\nlook around, in another terminal:\n  export {}={}\n",
        crate::contexts::FILE_VARIABLE,
        shell_word(&home.contexts_file().display().to_string())
    );
    for command in [
        "holdfast status",
        "holdfast backup list shop",
        "holdfast backup show shop@latest",
        "holdfast restore plan shop --to latest~1",
        "holdfast repo check main --read-data",
        "holdfast audit list",
    ] {
        text.push_str(&format!("  {command}\n"));
    }
    text.push_str(&format!("  {}\n\nCtrl-C {ending}\n", restic(home)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(captured: Option<u64>, restored: Option<u64>) -> TableView {
        TableView { table: "orders".to_owned(), captured_rows: captured, restored_rows: restored }
    }

    fn view(tables: Vec<TableView>, home: &Home) -> DemoView {
        let path = PathBuf::from("/x");
        DemoView::new(home, String::new(), Vec::new(), 1, path, Duration::ZERO, tables, Duration::ZERO)
    }

    #[test]
    fn equal_counts_are_the_verdict_of_the_last_line() {
        let home = Home::create(None).unwrap();
        let view = view(vec![table(Some(100_000), Some(100_000))], &home);
        assert!(view.equal);
        assert_eq!(
            closing(&view, &home).lines().last(),
            Some("rows restored = rows captured   100,000 = 100,000")
        );
    }

    #[test]
    fn a_missing_table_or_no_table_proves_nothing() {
        let home = Home::create(None).unwrap();
        assert!(!view(vec![table(Some(0), None)], &home).equal);
        assert!(!view(vec![table(None, Some(0))], &home).equal);
        assert!(!view(Vec::new(), &home).equal);
        let different = view(vec![table(Some(2), Some(1))], &home);
        assert!(closing(&different, &home).contains("1 restored BUT         2 captured"));
    }
}
