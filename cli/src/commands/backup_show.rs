//! `holdfast backup show`

use holdfast_model::manifest::{DatabaseManifest, Manifest};
use holdfast_proto::v1;

use super::details;
use crate::app::App;
use crate::args::backup::BackupShowArgs;
use crate::client::Client;
use crate::error::CliResult;
use crate::exit_status::ExitStatus;
use crate::output::text::{count, counted, duration, plain, short_run, short_snapshot, size};
use crate::output::{Align, Look, OutputFormat, Tone, format};
use crate::references::SnapshotReference;
use crate::views::snapshot::{CopyView, SnapshotView, TreeItemView, proof_text};

/// How many tables of a database people are shown without `-o wide`.
const TABLES_SHOWN_MAX: usize = 40;

/// How many unreadable items people are shown.
const UNREADABLE_SHOWN_MAX: usize = 20;

pub(super) async fn show(app: &mut App, args: BackupShowArgs) -> CliResult {
    let reference: SnapshotReference = args.snapshot.parse()?;
    let client = app.connect().await?;
    let id = app.snapshot_id(&client, &reference).await?;
    if let Some(path) = args.files {
        return files(app, &client, id, path, args.recursive).await;
    }
    let reply = client.show_snapshot(v1::ShowSnapshotRequest { id }).await?;
    let mut view = SnapshotView::from(reply.snapshot.unwrap_or_default());
    view.manifest = serde_json::from_str(&reply.manifest_json).ok();
    view.copies = reply.copies.into_iter().map(CopyView::from).collect();
    let wide = app.output.format() == OutputFormat::Wide;
    app.output.show(&view, |look| describe(&view, look, wide))?;
    if let Some(source) = &view.source {
        let short = short_snapshot(&view.id);
        app.output.next(&[
            format!("holdfast backup verify {short}"),
            format!("holdfast restore plan {source} --to {short}"),
        ]);
    }
    Ok(ExitStatus::Ok)
}

async fn files(app: &mut App, client: &Client, id: String, path: String, recursive: bool) -> CliResult {
    let mut replies = client.snapshot_tree(v1::TreeRequest { id, path, recursive }).await?;
    let streamed = matches!(app.output.format(), OutputFormat::Jsonl | OutputFormat::Name);
    let mut items: Vec<TreeItemView> = Vec::new();
    while let Some(reply) = replies.next().await? {
        let page: Vec<TreeItemView> = reply.items.into_iter().map(TreeItemView::from).collect();
        if streamed {
            let text = format::render(app.output.format(), &page, app.output.look());
            app.output.write(&text)?;
        } else {
            items.extend(page);
        }
    }
    if !streamed {
        app.output.list(&items, "the folder is empty")?;
    }
    Ok(ExitStatus::Ok)
}

fn describe(view: &SnapshotView, look: &Look, wide: bool) -> String {
    let head = format!(
        "snapshot {}   {}   {}\n",
        short_snapshot(&view.id),
        plain(view.source.as_deref().unwrap_or("of another program")),
        view.snapshot_type.as_deref().unwrap_or("-"),
    );
    let manifest = view.manifest.as_ref();
    let rows = if view.tables > 0 {
        format!("{} in {}", counted(view.rows, "row"), counted(view.tables, "table"))
    } else {
        String::new()
    };
    let took =
        std::time::Duration::try_from_secs_f64(view.duration_seconds).map(duration).unwrap_or_default();
    let mut text = head;
    text.push_str(&details(&[
        ("id", view.id.clone()),
        ("captured", view.moment().map(|at| look.both_times(at)).unwrap_or_default()),
        ("repository", view.repository.clone()),
        ("agent", plain(view.agent.as_deref().unwrap_or("-"))),
        ("engine", engine(view, manifest)),
        (
            "size",
            format!(
                "{} in {}, added {}",
                size(view.logical_bytes),
                counted(view.files, "file"),
                size(view.stored_bytes)
            ),
        ),
        ("rows", rows),
        ("position", manifest.and_then(|manifest| manifest.log_position.clone()).unwrap_or_default()),
        ("run", view.run_id.as_deref().map(|run| format!("{} ({took})", short_run(run))).unwrap_or_default()),
        ("proof", format!("{}, {}", proof_text(view), look.time_or(view.proven_at, "never proven"))),
        ("checked", look.time_or(view.checked_at, "")),
        ("read", look.time_or(view.read_at, "")),
        ("restored", look.time_or(view.restored_at, "")),
        ("damage", view.damage.as_deref().map(|damage| look.palette.bad(&plain(damage))).unwrap_or_default()),
        ("milestone", view.milestone.clone().unwrap_or_default()),
        ("held", view.held_because.as_deref().map(plain).unwrap_or_default()),
        ("paths", plain(&view.paths.join(" "))),
    ]));
    if view.copies.len() > 1 {
        text.push_str("  where it is\n");
        let places = view.copies.iter().map(|copy| place(copy, look));
        places.for_each(|place| text.push_str(&place));
    }
    if !view.anomalies.is_empty() {
        text.push_str("  beside the snapshot before\n");
    }
    for found in &view.anomalies {
        let line = format!(
            "    {}  {}",
            if found.severity == "critical" { "XX" } else { "!!" },
            plain(&found.message)
        );
        let painted = match found.severity.as_str() {
            "critical" => look.palette.bad(&line),
            _ => look.palette.warning(&line),
        };
        text.push_str(&painted);
        text.push('\n');
    }
    if let Some(manifest) = manifest {
        for database in &manifest.databases {
            text.push_str(&describe_database(database, look, wide));
        }
        text.push_str(&unreadable(manifest, look));
    }
    text
}

/// A line about one of the repositories that have the snapshot.
fn place(copy: &CopyView, look: &Look) -> String {
    let held = if copy.held_because.is_some() { ", held" } else { "" };
    let proven = look.time_or(copy.proven_at, "never proven");
    let proof = match &copy.damage {
        Some(damage) => look.palette.bad(&format!("{}: {}", copy.proof, plain(damage))),
        None => format!("{}, {proven}", copy.proof),
    };
    format!("    {:<16} {}   {proof}{held}\n", plain(&copy.repository), short_snapshot(&copy.id))
}

fn engine(view: &SnapshotView, manifest: Option<&Manifest>) -> String {
    let Some(manifest) = manifest else { return view.engine.clone().unwrap_or_default() };
    let tools: Vec<String> =
        manifest.tools.iter().map(|(tool, version)| format!("{tool} {version}")).collect();
    let tools = if tools.is_empty() { String::new() } else { format!(" by {}", tools.join(", ")) };
    plain(&format!("{} {}{tools}", manifest.engine, manifest.engine_version))
}

fn describe_database(database: &DatabaseManifest, look: &Look, wide: bool) -> String {
    let mut facts = vec![
        counted(database.rows(), "row"),
        counted(database.tables.len() as u64, "table"),
        size(database.logical_bytes),
    ];
    if database.large_objects > 0 {
        facts.push(counted(database.large_objects, "large object"));
    }
    if let Some(encoding) = &database.encoding {
        facts.push(encoding.clone());
    }
    let extensions: Vec<String> =
        database.extensions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    if !extensions.is_empty() {
        facts.push(format!("extensions {}", extensions.join(" ")));
    }
    let schema = database.schema_hash.get(..12).unwrap_or(&database.schema_hash);
    facts.push(format!("schema {schema}"));
    let mut text =
        format!("\n  {}   {}\n", look.palette.strong(&plain(&database.name)), plain(&facts.join("   ")));
    let shown = if wide { usize::MAX } else { TABLES_SHOWN_MAX };
    let rows: Vec<Vec<(String, Tone)>> = database
        .tables
        .iter()
        .take(shown)
        .map(|(name, table)| {
            vec![(format!("    {}", plain(name)), Tone::Plain), (count(table.rows), Tone::Plain)]
        })
        .collect();
    text.push_str(&format::grid(&[("    TABLE", Align::Left), ("ROWS", Align::Right)], &rows, look));
    if database.tables.len() > rows.len() {
        text.push_str(&format!(
            "    and {} (-o wide)\n",
            counted((database.tables.len() - rows.len()) as u64, "more table")
        ));
    }
    text
}

fn unreadable(manifest: &Manifest, look: &Look) -> String {
    if manifest.unreadable_count == 0 {
        return String::new();
    }
    let title = format!("{} could not be read", counted(manifest.unreadable_count, "item"));
    let mut text = format!("\n  {}\n", look.palette.warning(&title));
    for item in manifest.unreadable.iter().take(UNREADABLE_SHOWN_MAX) {
        text.push_str(&format!("    {}: {}\n", plain(&item.path), plain(&item.reason)));
    }
    let more = manifest.unreadable_count.saturating_sub(UNREADABLE_SHOWN_MAX as u64);
    if more > 0 {
        text.push_str(&format!("    and {} more (-o json)\n", count(more)));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::output::testing::look;
    use holdfast_model::manifest::TableManifest;
    use holdfast_model::source::EngineKind;

    #[test]
    fn the_manifest_is_shown_with_tables_and_rows() {
        let look = look();
        let captured_at = "2026-11-21T13:00:07Z".parse().unwrap();
        let database = DatabaseManifest {
            name: "shop.db".to_owned(),
            path: "shop.db".to_owned(),
            tables: BTreeMap::from([
                ("customers".to_owned(), TableManifest { rows: 20_000 }),
                ("orders".to_owned(), TableManifest { rows: 100_000 }),
            ]),
            schema_hash: "9f2c11e19f2c11e1".to_owned(),
            extensions: BTreeMap::new(),
            sequences: BTreeMap::new(),
            large_objects: 0,
            roles: Vec::new(),
            encoding: Some("UTF-8".to_owned()),
            settings: BTreeMap::new(),
            logical_bytes: 19_293_798,
        };
        let view = SnapshotView {
            id: "3f2a91bc".repeat(8),
            repository: "main".to_owned(),
            source: Some("shop".to_owned()),
            agent: Some("app1".to_owned()),
            snapshot_type: Some("full".to_owned()),
            captured_at: Some(captured_at),
            logical_bytes: 19_293_798,
            stored_bytes: 5_000_000,
            files: 1,
            rows: 120_000,
            tables: 2,
            duration_seconds: 0.64,
            proof: "uploaded".to_owned(),
            run_id: Some("018f00000000700080000000deadbeef".to_owned()),
            manifest: Some(Manifest {
                version: 1,
                engine: EngineKind::Sqlite,
                engine_version: "3.50.4".to_owned(),
                tools: BTreeMap::new(),
                captured_at,
                log_position: None,
                system_id: None,
                databases: vec![database],
                files: None,
                logical_bytes: 19_293_798,
                unreadable: Vec::new(),
                unreadable_count: 0,
            }),
            ..SnapshotView::default()
        };
        insta::assert_snapshot!(describe(&view, &look, false), @r#"
        snapshot 3f2a91bc   shop   full
          id           3f2a91bc3f2a91bc3f2a91bc3f2a91bc3f2a91bc3f2a91bc3f2a91bc3f2a91bc
          captured     2026-11-21T13:00:07Z
          repository   main
          agent        app1
          engine       sqlite 3.50.4
          size         18.4 MiB in 1 file, added 4.8 MiB
          rows         120,000 rows in 2 tables
          run          deadbeef (0.6s)
          proof        uploaded, never proven

          shop.db   120,000 rows   2 tables   18.4 MiB   UTF-8   schema 9f2c11e19f2c
            TABLE         ROWS
            customers   20,000
            orders     100,000
        "#);
    }
}
