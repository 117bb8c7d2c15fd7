//! SQLite: consistent under a writer, restored beside, in place, and after an accident.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use holdfast_model::ErrorCode;
use holdfast_proto::v1::{DiscardRestoreRequest, PlanRestoreRequest, PromoteRestoreRequest};
use holdfast_tests::Fleet;
use holdfast_tests::wait::{PATIENCE, until_true};
use rusqlite::Connection;

const ORDERS: i64 = 20_000;

fn make_shop(path: &Path) {
    let mut shop = Connection::open(path).unwrap();
    shop.execute_batch(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
         CREATE TABLE orders (id INTEGER PRIMARY KEY AUTOINCREMENT, customer INTEGER NOT NULL, total INTEGER NOT NULL);
         CREATE INDEX orders_by_customer ON orders (customer);",
    )
    .unwrap();
    let transaction = shop.transaction().unwrap();
    for id in 0..1000 {
        transaction.execute("INSERT INTO customers VALUES (?1, ?2)", (id, format!("customer {id}"))).unwrap();
    }
    for id in 0..ORDERS {
        transaction
            .execute("INSERT INTO orders (customer, total) VALUES (?1, ?2)", (id % 1000, id * 7919 % 100_003))
            .unwrap();
    }
    transaction.commit().unwrap();
}

fn count(path: &Path, table: &str) -> u64 {
    let shop = Connection::open(path).unwrap();
    let rows: i64 = shop.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
    rows.unsigned_abs()
}

async fn fleet_with_shop() -> (Fleet, PathBuf) {
    let mut fleet = Fleet::start().await;
    fleet.stop_agent("a1").await;
    fleet.configure_agent("a1", |config| config.allow.restore_in_place = true);
    fleet.start_agent("a1").await;
    let path = fleet.path().join("shop.db");
    make_shop(&path);
    fleet
        .apply(&format!("sources:\n  shop: {{ engine: sqlite, agent: a1, path: {} }}\n", path.display()))
        .await
        .expect("the source is good");
    (fleet, path)
}

fn request(to: &str) -> PlanRestoreRequest {
    PlanRestoreRequest { source: "shop".to_owned(), to: to.to_owned(), ..PlanRestoreRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_deleted_by_accident_come_back_beside_the_original() {
    let (fleet, path) = fleet_with_shop().await;
    let before = fleet.backup_well("shop", "full").await;
    Connection::open(&path).unwrap().execute("DELETE FROM orders", []).unwrap();
    fleet.backup_well("shop", "incremental").await;
    let (_, report) = fleet.restore_well(request(&before.snapshot_id)).await;
    assert_eq!(report.rows, report.rows_expected);
    assert_eq!(count(Path::new(&report.targets[0].restored), "orders"), ORDERS as u64);
    assert_eq!(count(&path, "orders"), 0, "the live database is untouched");
    fleet.restic().check_all_data();
    let snapshots = fleet.snapshots_of("shop").await;
    assert_eq!(snapshots.last().unwrap().proof, "restored");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_a_writer_holds_exactly_the_rows_its_manifest_says() {
    let (fleet, path) = fleet_with_shop().await;
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let writer = {
        let (stop, written, path) = (stop.clone(), written.clone(), path.clone());
        std::thread::spawn(move || {
            let shop = Connection::open(path).unwrap();
            shop.busy_timeout(PATIENCE).unwrap();
            while !stop.load(Ordering::Relaxed) {
                shop.execute("INSERT INTO orders (customer, total) VALUES (1, 2)", []).unwrap();
                written.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let started_with = ORDERS as u64 + 1000;
    for _ in 0..3 {
        let earlier = written.load(Ordering::SeqCst);
        until_true("the next row", PATIENCE, || written.load(Ordering::SeqCst) > earlier);
        let at_least = started_with + written.load(Ordering::SeqCst);
        let run = fleet.backup_well("shop", "incremental").await;
        // A row may be committed and not yet counted by the writer.
        let at_most = started_with + written.load(Ordering::SeqCst) + 1;
        let (_, report) = fleet.restore_well(request(&run.snapshot_id)).await;
        assert_eq!(report.rows, report.rows_expected);
        let rows = report.rows.unwrap();
        assert!((at_least..=at_most).contains(&rows), "{at_least} to {at_most}: {report:?}");
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_with_a_rollback_journal_is_backed_up_and_restored() {
    let (fleet, path) = fleet_with_shop().await;
    let mode: String = Connection::open(&path)
        .unwrap()
        .query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0))
        .unwrap();
    assert_eq!(mode, "delete");
    fleet.backup_well("shop", "full").await;
    let (_, report) = fleet.restore_well(request("latest")).await;
    assert_eq!(count(report.targets[0].restored.as_ref(), "orders"), ORDERS as u64);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_in_place_keeps_the_old_until_it_is_discarded() {
    let (fleet, path) = fleet_with_shop().await;
    fleet.backup_well("shop", "full").await;
    Connection::open(&path).unwrap().execute("DELETE FROM orders", []).unwrap();
    let in_place = PlanRestoreRequest { in_place: true, ..request("latest") };
    let plan = fleet.plan(in_place.clone()).await.unwrap();
    assert_eq!(plan.confirm_with, "shop");
    let unconfirmed = holdfast_proto::v1::RunRestoreRequest { plan_id: plan.plan_id, ..Default::default() };
    let refused = fleet.restores().run(unconfirmed).await.unwrap_err();
    assert_eq!(holdfast_proto::status::from_status(&refused).code, ErrorCode::NeedsConfirmation);
    let (run, report) = fleet.restore_well(in_place).await;
    assert_eq!(count(&path, "orders"), ORDERS as u64);
    let kept = PathBuf::from(report.targets[0].kept.clone().expect("the old is kept"));
    assert_eq!(count(&kept, "orders"), 0);
    let discard = DiscardRestoreRequest { run_id: run.id, confirm: "shop".to_owned(), ..Default::default() };
    let discarded = fleet.restores().discard(discard).await.unwrap().into_inner().run.unwrap();
    let discarded = fleet.ended(&discarded).await;
    assert_eq!(discarded.phase, "succeeded", "{discarded:?}");
    assert!(!kept.exists());
    assert_eq!(count(&path, "orders"), ORDERS as u64, "the live database stays");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_beside_can_be_promoted() {
    let (fleet, path) = fleet_with_shop().await;
    fleet.backup_well("shop", "full").await;
    Connection::open(&path).unwrap().execute("DELETE FROM orders", []).unwrap();
    let (run, _) = fleet.restore_well(request("latest")).await;
    let promote = PromoteRestoreRequest {
        run_id: run.id,
        confirm: "shop".to_owned(),
        reason: "a test".to_owned(),
        ..Default::default()
    };
    let promoted = fleet.restores().promote(promote).await.unwrap().into_inner().run.unwrap();
    let promoted = fleet.ended(&promoted).await;
    assert_eq!(promoted.phase, "succeeded", "{promoted:?}");
    assert_eq!(count(&path, "orders"), ORDERS as u64);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_database_is_not_backed_up() {
    let (fleet, path) = fleet_with_shop().await;
    Connection::open(&path).unwrap().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 8192].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let run = fleet.backup("shop", "full").await;
    assert_eq!(run.phase, "failed");
    assert_eq!(run.failure.unwrap().code, ErrorCode::SourceDamaged.to_string());
    assert!(fleet.snapshots_of("shop").await.is_empty(), "nothing was committed");
    fleet.stop().await;
}
