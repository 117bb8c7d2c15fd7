use std::fs;

use holdfast_model::ErrorCode;
use holdfast_model::manifest::TableManifest;
use holdfast_model::restore::{CheckOutcome, Placement};
use rusqlite::Connection;

use super::{Shop, add_order, damage, rows, snapshot};
use crate::sqlite::connect::quote;
use crate::{Engine as _, RestoreOrder, SnapshotContents as _};

fn order(placement: Placement, only: &[&str]) -> RestoreOrder {
    RestoreOrder {
        placement,
        only: only.iter().map(|&name| name.to_owned()).collect(),
        stamp: "20261121T120000Z".to_owned(),
        snapshot_short: "1a2b3c4d".to_owned(),
        allowed_paths: Vec::new(),
    }
}

#[tokio::test]
async fn odd_names_of_files_and_tables_round_trip() {
    for name in ["-rf it's \"odd\"\n名.db", " ", "a'b;--", "?mode=memory", "file:x", "%41"] {
        let shop = Shop::new(name, "wal");
        for table in ["-t", "it's", "a \"b\"", "new\nline", "名", "select", "a.b"] {
            let sql = format!("CREATE TABLE {0}(x); INSERT INTO {0} VALUES (1), (2)", quote(table));
            shop.connect().execute_batch(&sql).unwrap();
        }
        let (_stored, contents) = snapshot(&shop).await.unwrap();
        assert_eq!(contents.manifest().databases[0].tables["new\nline"], TableManifest { rows: 2 });
        let report = shop
            .engine()
            .restore(&order(Placement::Beside, &[]), contents.clone(), &shop.context())
            .await
            .unwrap();
        assert_eq!(report.rows, Some(1014));
        let report = shop
            .engine()
            .restore(
                &order(
                    Placement::Into(shop.base.join("part.db").to_str().unwrap().into()),
                    &["a \"b\"", "a.b"],
                ),
                contents,
                &shop.context(),
            )
            .await
            .unwrap();
        assert_eq!(report.rows, Some(4));
        assert_eq!(rows(&shop.base.join("part.db"), "a \"b\""), 2);
    }
}

#[tokio::test]
async fn a_restore_goes_beside_the_original_and_can_be_discarded() {
    let shop = Shop::new("shop.db", "wal");
    let (_stored, contents) = snapshot(&shop).await.unwrap();
    shop.connect().execute_batch("DELETE FROM ledger; DELETE FROM orders").unwrap();
    let (engine, order) = (shop.engine(), order(Placement::Beside, &[]));
    let preview = engine.preview_restore(&order, contents.manifest(), &shop.context()).await.unwrap();
    assert!(preview.checks.iter().all(|check| check.outcome == CheckOutcome::Ok), "{:?}", preview.checks);
    let report = engine.restore(&order, contents.clone(), &shop.context()).await.unwrap();
    assert_eq!((report.rows, report.rows_expected), (Some(1000), Some(1000)));
    assert_eq!(report.targets, preview.targets);
    assert_eq!(shop.names(), ["shop.db", "shop_restored_1a2b3c4d.db"]);
    assert_eq!(rows(&shop.base.join("shop_restored_1a2b3c4d.db"), "orders"), 500);
    assert_eq!(rows(&shop.path, "orders"), 0);

    let error = engine.restore(&order, contents, &shop.context()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TargetExists);
    let open = Connection::open(&report.targets[0].restored).unwrap();
    open.query_row("SELECT 1 FROM orders", [], |_| Ok(())).unwrap();
    let error = engine.discard(&report.targets, &shop.context()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TargetInUse);
    drop(open);
    engine.discard(&report.targets, &shop.context()).await.unwrap();
    assert_eq!(shop.names(), ["shop.db"]);
}

#[tokio::test]
async fn in_place_keeps_the_old_database_with_everything_that_was_in_its_log() {
    let shop = Shop::new("shop.db", "wal");
    let (_stored, contents) = snapshot(&shop).await.unwrap();
    // An application that was killed: its last commits are in the log only.
    let application = shop.connect();
    add_order(&application);
    for name in ["shop.db", "shop.db-wal"] {
        fs::copy(shop.base.join(name), shop.base.join("scratch").join(name)).unwrap();
    }
    drop(application);
    for name in ["shop.db", "shop.db-wal"] {
        fs::rename(shop.base.join("scratch").join(name), shop.base.join(name)).unwrap();
    }
    let (engine, order) = (shop.engine(), order(Placement::InPlace, &[]));
    let report = engine.restore(&order, contents, &shop.context()).await.unwrap();
    let promoted = engine.promote(&report.targets, "20261121T081500Z", &shop.context()).await.unwrap();
    let kept = shop.base.join("shop.db_before_20261121T081500Z");
    assert_eq!(promoted[0].kept.as_deref(), kept.to_str());
    assert_eq!(shop.names(), ["shop.db", "shop.db_before_20261121T081500Z"]);
    assert_eq!((rows(&shop.path, "orders"), rows(&kept, "orders")), (500, 501));
    engine.discard(&promoted, &shop.context()).await.unwrap();
    assert_eq!(shop.names(), ["shop.db"]);
}

#[tokio::test]
async fn a_database_in_use_is_not_replaced() {
    for journal_mode in ["wal", "delete"] {
        let shop = Shop::new("shop.db", journal_mode);
        let (_stored, contents) = snapshot(&shop).await.unwrap();
        let engine = shop.engine();
        let report =
            engine.restore(&order(Placement::InPlace, &[]), contents.clone(), &shop.context()).await.unwrap();
        // Idle: with a rollback journal it holds no lock.
        let application = shop.connect();
        application.query_row("SELECT 1 FROM orders", [], |_| Ok(())).unwrap();
        let before = shop.names();
        let error = engine.promote(&report.targets, "T1", &shop.context()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::TargetInUse);
        let pid = std::process::id();
        let beginning = format!("the database {} is open in ", shop.path.display());
        let message = error.to_string();
        assert!(message.starts_with(&beginning) && message.ends_with(&format!("(pid {pid})")), "{message}");
        assert_eq!(shop.names(), before);
        let mut order = order(Placement::InPlace, &[]);
        order.snapshot_short = "2b3c4d5e".to_owned();
        let preview = engine.preview_restore(&order, contents.manifest(), &shop.context()).await.unwrap();
        let check = preview.checks.iter().find(|check| check.name == "in use").unwrap();
        assert_eq!(check.outcome, CheckOutcome::Warning);
        add_order(&application);
        drop(application);
        engine.promote(&report.targets, "T1", &shop.context()).await.unwrap();
        assert_eq!(rows(&shop.path, "orders"), 500);
    }
}

#[tokio::test]
async fn a_damaged_live_database_is_replaced_and_kept_with_its_log() {
    let shop = Shop::new("shop.db", "wal");
    let (_stored, contents) = snapshot(&shop).await.unwrap();
    for (round, content) in ["overwritten by something else", ""].into_iter().enumerate() {
        fs::write(&shop.path, content).unwrap();
        fs::write(shop.base.join("shop.db-wal"), "and this, too").unwrap();
        let engine = shop.engine();
        let mut order = order(Placement::InPlace, &[]);
        order.snapshot_short = format!("{round:08}");
        let report = engine.restore(&order, contents.clone(), &shop.context()).await.unwrap();
        engine.promote(&report.targets, &format!("T{round}"), &shop.context()).await.unwrap();
        assert_eq!(rows(&shop.path, "orders"), 500);
        let kept =
            |suffix| fs::read_to_string(shop.base.join(format!("shop.db_before_T{round}{suffix}"))).unwrap();
        assert_eq!((kept(""), kept("-wal")), (content.to_owned(), "and this, too".to_owned()));
    }
}

#[tokio::test]
async fn single_tables_come_with_rows_row_numbers_indexes_triggers_and_sequences() {
    let shop = Shop::new("shop.db", "wal");
    shop.connect()
        .execute_batch(
            "PRAGMA user_version = 7;
             CREATE TABLE log(message TEXT, loud TEXT AS (upper(message)) STORED);
             INSERT INTO log(message) VALUES ('a'), ('b'), ('c');
             DELETE FROM log WHERE message = 'a';
             CREATE TRIGGER t AFTER INSERT ON log BEGIN INSERT INTO orders(note) VALUES (new.message); END;
             CREATE TABLE keyed(k TEXT PRIMARY KEY, v) WITHOUT ROWID;
             INSERT INTO keyed VALUES ('x', 1);
             CREATE VIRTUAL TABLE notes USING fts5(body);
             INSERT INTO notes VALUES ('one');
             DELETE FROM ledger WHERE order_id = 500; DELETE FROM orders WHERE id = 500;",
        )
        .unwrap();
    let (_stored, contents) = snapshot(&shop).await.unwrap();
    let (engine, context) = (shop.engine(), shop.context());
    let into = shop.base.join("part.db");
    let placement = Placement::Into(into.to_str().unwrap().to_owned());
    let only = ["orders", "main.log", "shop.db/keyed"];
    let report = engine.restore(&order(placement.clone(), &only), contents.clone(), &context).await.unwrap();
    assert_eq!((report.rows, report.rows_expected), (Some(502), Some(502)));
    let part = Connection::open(&into).unwrap();
    let text = |sql: &str| part.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(text("SELECT group_concat(rowid || loud) FROM log"), "2B,3C");
    assert_eq!(
        text(
            "SELECT group_concat(name) FROM (SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite%' ORDER BY 1)"
        ),
        "keyed,log,orders,t"
    );
    assert_eq!(text("SELECT seq || '' FROM sqlite_sequence"), "500");
    let version: i64 = part.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, 7);
    drop(part);
    assert!(fs::read_dir(shop.base.join("scratch")).unwrap().next().is_none(), "nothing stays in scratch");

    let fails = |placement: Placement, only: &str| {
        let (engine, context, contents) = (engine.clone(), context.clone(), contents.clone());
        let order = order(placement, &[only]);
        async move {
            let error = engine.restore(&order, contents, &context).await.unwrap_err();
            (error.code(), error.to_string())
        }
    };
    let elsewhere = Placement::Into(shop.base.join("other.db").to_str().unwrap().to_owned());
    assert_eq!(
        fails(elsewhere.clone(), "missing").await,
        (
            ErrorCode::PathNotInSnapshot,
            "the snapshot has no table missing, only keyed, ledger, log, notes, orders".to_owned()
        )
    );
    assert_eq!(
        fails(elsewhere, "notes").await,
        (
            ErrorCode::Unsupported,
            "the table notes is virtual and cannot be restored alone: restore the whole database".to_owned()
        )
    );
    assert!(!shop.base.join("other.db").exists());
    assert_eq!(fails(Placement::InPlace, "orders").await.0, ErrorCode::Unsupported);
}

#[tokio::test]
async fn a_restored_database_that_is_not_what_was_captured_is_removed() {
    let shop = Shop::new("shop.db", "wal");
    let (stored, contents) = snapshot(&shop).await.unwrap();
    let stored = stored.path().join("shop.db");
    let beside = shop.base.join("shop_restored_1a2b3c4d.db");
    let (engine, order) = (shop.engine(), order(Placement::Beside, &[]));

    let sqlite = Connection::open(&stored).unwrap();
    sqlite.execute_batch("PRAGMA journal_mode = DELETE; DELETE FROM ledger WHERE order_id = 3").unwrap();
    drop(sqlite);
    let error = engine.restore(&order, contents.clone(), &shop.context()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RestoreMismatch);
    assert_eq!(
        error.to_string(),
        format!("the restored {} has 499 rows in ledger, but the manifest says 500", beside.display())
    );
    assert_eq!(shop.names(), ["shop.db"]);

    damage(&stored);
    let error = engine.restore(&order, contents, &shop.context()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RestoreMismatch);
    let message = error.to_string();
    let beginning = format!("the restored {} is damaged: ", beside.display());
    assert!(message.starts_with(&beginning), "{message}");
    assert_eq!(shop.names(), ["shop.db"]);
}
