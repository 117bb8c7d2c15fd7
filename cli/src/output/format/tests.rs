use super::*;
use crate::output::Palette;
use crate::output::testing::look;
use crate::views::snapshot::SnapshotView;

fn snapshots() -> Vec<SnapshotView> {
    let first = SnapshotView {
        id: "3f2a91bc".repeat(8),
        repository: "main".to_owned(),
        source: Some("shop".to_owned()),
        snapshot_type: Some("incremental".to_owned()),
        captured_at: Some("2026-11-21T13:00:07Z".parse().unwrap()),
        logical_bytes: 19_293_798,
        stored_bytes: 70_000,
        files: 1,
        rows: 100_000,
        tables: 5,
        proof: "restored".to_owned(),
        hostname: "app, \"one\"".to_owned(),
        ..SnapshotView::default()
    };
    let second = SnapshotView {
        id: "00aa11bb".repeat(8),
        repository: "main".to_owned(),
        source: None,
        milestone: Some("before|after".to_owned()),
        proof: "uploaded".to_owned(),
        ..SnapshotView::default()
    };
    vec![first, second]
}

#[test]
fn a_table_has_plain_columns() {
    insta::assert_snapshot!(render(OutputFormat::Table, &snapshots(), &look()), @r#"
    SNAPSHOT  SOURCE  CAPTURED  TYPE             SIZE     ADDED     ROWS  PROOF     KEPT AS                 REPOSITORY  COPY OF
    3f2a91bc  shop    41m ago   incremental  18.4 MiB  68.4 KiB  100,000  restored  -                       main        -
    00aa11bb  -       -         -                 0 B       0 B        -  uploaded  milestone before|after  main        -
    "#);
}

#[test]
fn wide_has_more_columns() {
    let narrow = render(OutputFormat::Table, &snapshots(), &look());
    let wide = render(OutputFormat::Wide, &snapshots(), &look());
    assert!(!narrow.contains("FILES") && wide.contains("FILES"));
}

#[test]
fn json_is_one_document_with_its_kind() {
    let text = render(OutputFormat::Json, &snapshots(), &look());
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["api"], "holdfast/v1");
    assert_eq!(value["kind"], "SnapshotList");
    assert_eq!(value["generated_at"], "2026-11-21T13:41:07Z");
    assert_eq!(value["items"][0]["captured_at"], "2026-11-21T13:00:07Z");
    assert_eq!(value["items"][0]["logical_bytes"], 19_293_798);
    assert_eq!(value["items"][1]["source"], Value::Null);
}

#[test]
fn an_empty_list_is_a_document_too() {
    let text = render::<SnapshotView>(OutputFormat::Json, &[], &look());
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["items"], Value::Array(Vec::new()));
}

#[test]
fn jsonl_has_one_object_a_line() {
    let text = render(OutputFormat::Jsonl, &snapshots(), &look());
    let sources: Vec<Value> =
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["source"].clone()).collect();
    assert_eq!(sources, [Value::from("shop"), Value::Null]);
}

#[test]
fn yaml_says_the_same_as_json() {
    let json: Value = serde_json::from_str(&render(OutputFormat::Json, &snapshots(), &look())).unwrap();
    let yaml: Value = serde_saphyr::from_str(&render(OutputFormat::Yaml, &snapshots(), &look())).unwrap();
    assert_eq!(yaml, json);
}

#[test]
fn names_are_what_other_commands_accept() {
    let text = render(OutputFormat::Name, &snapshots(), &look());
    assert_eq!(text, format!("{}\n{}\n", "3f2a91bc".repeat(8), "00aa11bb".repeat(8)));
}

#[test]
fn csv_quotes_what_must_be_quoted() {
    let text = render(OutputFormat::Csv, &snapshots(), &look());
    let lines: Vec<&str> = text.split("\r\n").collect();
    assert!(lines[0].starts_with("id,repository,source,"), "{}", lines[0]);
    assert!(lines[1].contains(r#","app, ""one""","#), "{}", lines[1]);
    assert_eq!(lines.len(), 4);
}

#[test]
fn markdown_escapes_the_bars_of_a_cell() {
    let text = render(OutputFormat::Markdown, &snapshots(), &look());
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("| SNAPSHOT | SOURCE |"));
    assert!(lines[1].starts_with("| --- | --- |"));
    assert!(lines[3].contains(r"| milestone before\|after |"));
}

#[test]
fn a_colour_only_repeats_a_word() {
    let coloured = Look { palette: Palette::new(true), ..look() };
    let text = render(OutputFormat::Table, &snapshots(), &coloured);
    assert!(text.contains("\u{1b}["));
    assert!(text.contains("restored"));
}
