use std::collections::BTreeMap;

use holdfast_model::manifest::TableManifest;
use holdfast_model::source::EngineKind;

use super::*;

fn manifest(databases: &[(&str, &[&str])]) -> Manifest {
    let database = |(name, tables): &(&str, &[&str])| DatabaseManifest {
        name: (*name).to_owned(),
        path: format!("databases/{name}.dump"),
        tables: tables.iter().map(|table| ((*table).to_owned(), TableManifest { rows: 1 })).collect(),
        schema_hash: String::new(),
        extensions: BTreeMap::new(),
        sequences: BTreeMap::new(),
        large_objects: 0,
        roles: Vec::new(),
        encoding: None,
        settings: BTreeMap::new(),
        logical_bytes: 1,
    };
    Manifest {
        version: 1,
        engine: EngineKind::Postgres,
        engine_version: "15.18".to_owned(),
        tools: BTreeMap::new(),
        captured_at: "2026-11-21T08:00:00Z".parse().unwrap(),
        log_position: None,
        system_id: None,
        databases: databases.iter().map(database).collect(),
        files: None,
        logical_bytes: 1,
        unreadable: Vec::new(),
        unreadable_count: 0,
    }
}

fn order(placement: Placement, only: &[&str]) -> RestoreOrder {
    RestoreOrder {
        placement,
        only: only.iter().map(|&item| item.to_owned()).collect(),
        stamp: "20261121T120000Z".to_owned(),
        snapshot_short: "0123abcd".to_owned(),
        allowed_paths: Vec::new(),
    }
}

fn targets(order: &RestoreOrder, manifest: &Manifest) -> Vec<(String, String)> {
    let parts = select(order, manifest).unwrap();
    parts.iter().map(|part| (part.target.restored.clone(), part.target.live.clone())).collect()
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

#[test]
fn everything_goes_beside_under_a_name_made_of_the_snapshot() {
    let manifest = manifest(&[("shop", &[]), ("a b", &[])]);
    let found = targets(&order(Placement::Beside, &[]), &manifest);
    assert_eq!(found, owned(&[("shop_restored_0123abcd", "shop"), ("a b_restored_0123abcd", "a b")]));
}

#[test]
fn a_new_name_is_the_name_of_one_database_and_the_beginning_of_several() {
    let into = Placement::Into("new".to_owned());
    assert_eq!(targets(&order(into.clone(), &[]), &manifest(&[("shop", &[])])), owned(&[("new", "shop")]));
    let two = manifest(&[("shop", &[]), ("log", &[])]);
    assert_eq!(targets(&order(into.clone(), &[]), &two), owned(&[("new_shop", "shop"), ("new_log", "log")]));
    assert_eq!(targets(&order(into, &["log"]), &two), owned(&[("new", "log")]));
}

#[test]
fn a_name_the_server_would_cut_is_refused() {
    for name in [String::new(), "x".repeat(64), "a\0b".to_owned()] {
        let error = select(&order(Placement::Into(name), &[]), &manifest(&[("shop", &[])])).unwrap_err();
        assert_eq!(error.code(), ErrorCode::PathInvalid);
    }
}

#[test]
fn tables_are_found_with_and_without_their_database() {
    let manifest = manifest(&[
        ("shop", &["public.orders", "public.\"My.Table\""]),
        ("a/b", &["public.orders", "public.only_here"]),
    ]);
    let find = |item: &str| {
        let parts = select(&order(Placement::Beside, &[item]), &manifest).map_err(|error| error.code())?;
        Ok((parts[0].database.name.clone(), parts[0].tables.iter().cloned().collect::<Vec<_>>()))
    };
    let found = |database: &str, table: &str| Ok((database.to_owned(), vec![table.to_owned()]));
    assert_eq!(find("public.only_here"), found("a/b", "public.only_here"));
    assert_eq!(find("public.My.Table"), found("shop", "public.\"My.Table\""));
    assert_eq!(find("shop/public.orders"), found("shop", "public.orders"));
    assert_eq!(find("a/b/public.orders"), found("a/b", "public.orders"));
    assert_eq!(find("a/b"), Ok(("a/b".to_owned(), Vec::new())));
    assert_eq!(find("public.orders"), Err(ErrorCode::PathInvalid));
    assert_eq!(find("public.absent"), Err(ErrorCode::PathNotInSnapshot));
    assert_eq!(find("shop/orders"), Err(ErrorCode::PathNotInSnapshot));
}

#[test]
fn a_whole_database_holds_its_tables_whatever_the_order() {
    let manifest = manifest(&[("shop", &["public.orders"])]);
    for only in [["shop", "public.orders"], ["public.orders", "shop"]] {
        let parts = select(&order(Placement::Beside, &only), &manifest).unwrap();
        assert_eq!(parts.len(), 1);
        assert!(parts[0].is_whole());
    }
}

#[test]
fn tables_never_take_the_place_of_a_database() {
    let manifest = manifest(&[("shop", &["public.orders"])]);
    let error = select(&order(Placement::InPlace, &["public.orders"]), &manifest).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unsupported);
    let beside = targets(&order(Placement::Beside, &["public.orders"]), &manifest);
    assert_eq!(beside, owned(&[("shop_restored_0123abcd", "")]));
}

fn entry(id: i64, kind: &str, schema: &str, tag: &str, dependencies: &[i64]) -> TocEntry {
    TocEntry {
        id,
        kind: kind.to_owned(),
        schema: (!schema.is_empty()).then(|| schema.as_bytes().to_vec()),
        tag: tag.as_bytes().to_vec(),
        dependencies: dependencies.to_vec(),
        ..TocEntry::default()
    }
}

fn shop() -> Vec<TocEntry> {
    vec![
        entry(1, "ENCODING", "", "ENCODING", &[]),
        entry(2, "DATABASE", "", "shop", &[]),
        entry(3, "SCHEMA", "", "sales", &[]),
        entry(4, "SCHEMA", "", "other", &[]),
        entry(5, "TYPE", "sales", "state", &[3]),
        entry(6, "FUNCTION", "other", "touch()", &[4]),
        entry(10, "TABLE", "sales", "customers", &[3]),
        entry(11, "TABLE", "sales", "orders", &[3, 5]),
        entry(12, "SEQUENCE", "sales", "orders_id_seq", &[11, 3]),
        entry(13, "SEQUENCE OWNED BY", "sales", "orders_id_seq", &[12]),
        entry(14, "TABLE", "sales", "bars", &[3]),
        entry(15, "TABLE", "sales", "bars_1", &[3, 14]),
        entry(16, "TABLE ATTACH", "sales", "bars_1", &[15, 14]),
        entry(17, "DEFAULT", "sales", "orders id", &[11, 12]),
        entry(20, "TABLE DATA", "sales", "customers", &[10]),
        entry(21, "TABLE DATA", "sales", "orders", &[11]),
        entry(22, "TABLE DATA", "sales", "bars_1", &[15]),
        entry(23, "SEQUENCE SET", "sales", "orders_id_seq", &[12]),
        entry(30, "CONSTRAINT", "sales", "customers customers_pkey", &[10]),
        entry(31, "CONSTRAINT", "sales", "orders orders_pkey", &[11]),
        entry(32, "FK CONSTRAINT", "sales", "orders orders_customer_fkey", &[11, 30, 10]),
        entry(33, "TRIGGER", "sales", "orders t", &[11, 6]),
        entry(34, "COMMENT", "sales", "CONSTRAINT orders_pkey ON orders", &[31]),
        entry(35, "ACL", "sales", "TABLE customers", &[10]),
    ]
}

fn chosen(wanted: &[&str]) -> TableEntries {
    table_entries(&shop(), &wanted.iter().map(|&key| key.to_owned()).collect()).unwrap()
}

#[test]
fn a_table_comes_with_what_it_needs_and_without_foreign_keys_to_what_is_left_out() {
    let found = chosen(&["sales.orders"]);
    assert_eq!(found.ids, [1, 3, 4, 5, 6, 11, 12, 13, 17, 21, 23, 31, 33, 34]);
    assert_eq!(found.tables, BTreeSet::from(["sales.orders".to_owned()]));
}

#[test]
fn a_foreign_key_comes_when_both_tables_do() {
    let found = chosen(&["sales.orders", "sales.customers"]);
    assert!(found.ids.contains(&32) && found.ids.contains(&35));
    assert!(!found.ids.contains(&14));
}

#[test]
fn a_partitioned_table_comes_with_its_partitions() {
    let found = chosen(&["sales.bars"]);
    assert_eq!(found.ids, [1, 3, 14, 15, 16, 22]);
    assert_eq!(found.tables, BTreeSet::from(["sales.bars_1".to_owned()]));
}

#[test]
fn a_table_that_is_not_in_the_archive_is_named() {
    let error = table_entries(&shop(), &BTreeSet::from(["sales.absent".to_owned()])).unwrap_err();
    assert_eq!(error.code(), ErrorCode::PathNotInSnapshot);
    assert!(error.to_string().contains("sales.absent"));
}
