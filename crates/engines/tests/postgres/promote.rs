//! The swap into place, its way back, and what discarding may drop.

use holdfast_engines::postgres::PostgresEngine;
use holdfast_engines::testing::postgres_cluster::PostgresCluster;
use holdfast_engines::{Engine as _, EngineError};
use holdfast_model::ErrorCode;
use holdfast_model::restore::{Placement, RestoredTarget};
use holdfast_model::source::PostgresConfig;

use crate::support::{TestRun, capture, restore};

const STAMP: &str = "20261121T083000Z";

/// Two databases, captured, changed, restored aside.
async fn restored() -> (PostgresCluster, PostgresConfig, Vec<RestoredTarget>) {
    let cluster = PostgresCluster::start();
    for name in ["shop", "log book"] {
        cluster.create_database(name).await;
        cluster.execute(name, "CREATE TABLE orders AS SELECT generate_series(1, 10) AS id").await;
    }
    let source = cluster.source(&["shop", "log book"]);
    let snapshot = capture(&source).await.unwrap();
    for name in ["shop", "log book"] {
        cluster.execute(name, "DELETE FROM orders").await;
    }
    let report = restore(&source, &snapshot, Placement::InPlace, &[]).await.unwrap();
    (cluster, source, report.targets)
}

async fn promote(
    source: &PostgresConfig,
    targets: &[RestoredTarget],
) -> Result<Vec<RestoredTarget>, EngineError> {
    PostgresEngine::new(source.clone()).promote(targets, STAMP, &TestRun::new().context).await
}

async fn discard(source: &PostgresConfig, targets: &[RestoredTarget]) -> Result<(), EngineError> {
    PostgresEngine::new(source.clone()).discard(targets, &TestRun::new().context).await
}

async fn databases(cluster: &PostgresCluster) -> Vec<String> {
    cluster
        .query(
            "postgres",
            "SELECT datname FROM pg_database WHERE NOT datistemplate AND datallowconn ORDER BY 1",
        )
        .await
}

async fn rows(cluster: &PostgresCluster, database: &str) -> String {
    cluster.query(database, "SELECT count(*) FROM orders").await.remove(0)
}

const BEFORE: [&str; 5] =
    ["log book", "log book_restored_0123abcd", "postgres", "shop", "shop_restored_0123abcd"];

#[tokio::test(flavor = "multi_thread")]
async fn the_swap_ends_sessions_keeps_the_old_and_can_be_discarded() {
    let (cluster, source, targets) = restored().await;
    assert_eq!(databases(&cluster).await, BEFORE);
    let in_the_way = cluster.client("shop").await;
    let promoted = promote(&source, &targets).await.unwrap();
    assert!(in_the_way.simple_query("SELECT 1").await.is_err(), "the session was ended");
    let kept = ["log book_before_20261121T083000Z", "shop_before_20261121T083000Z"];
    assert_eq!(promoted.iter().map(|target| target.kept.as_deref().unwrap()).collect::<Vec<_>>(), kept);
    assert_eq!(databases(&cluster).await, ["log book", kept[0], "postgres", "shop", kept[1]]);
    for (name, old) in [("shop", kept[1]), ("log book", kept[0])] {
        assert_eq!(rows(&cluster, name).await, "10");
        assert_eq!(rows(&cluster, old).await, "0");
    }
    assert_eq!(promote(&source, &promoted).await.unwrap_err().code(), ErrorCode::Unsupported);
    discard(&source, &promoted).await.unwrap();
    discard(&source, &promoted).await.unwrap();
    assert_eq!(databases(&cluster).await, ["log book", "postgres", "shop"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_promoted_is_discarded_and_the_live_stays() {
    let (cluster, source, mut targets) = restored().await;
    discard(&source, &targets).await.unwrap();
    assert_eq!(databases(&cluster).await, ["log book", "postgres", "shop"]);
    targets[1].restored = "shop".to_owned();
    let error = discard(&source, &targets).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::PathInvalid);
    assert_eq!(databases(&cluster).await, ["log book", "postgres", "shop"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_in_use_swaps_nothing() {
    let (cluster, source, targets) = restored().await;
    let guest = cluster.client("shop_restored_0123abcd").await;
    let error = promote(&source, &targets).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TargetInUse);
    assert!(error.to_string().contains("of postgres in shop_restored_0123abcd"), "{error}");
    assert_eq!(databases(&cluster).await, BEFORE);
    assert_eq!(rows(&cluster, "log book").await, "0");
    assert_eq!(discard(&source, &targets).await.unwrap_err().code(), ErrorCode::TargetInUse);
    drop(guest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_gone_swaps_nothing() {
    let (cluster, source, targets) = restored().await;
    cluster.execute("postgres", "DROP DATABASE shop_restored_0123abcd").await;
    let error = promote(&source, &targets).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TargetInUse);
    assert_eq!(databases(&cluster).await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_database_that_was_dropped_is_put_back() {
    let (cluster, source, targets) = restored().await;
    cluster.execute("postgres", "DROP DATABASE shop").await;
    let promoted = promote(&source, &targets).await.unwrap();
    let shop = promoted.iter().find(|target| target.live == "shop").unwrap();
    assert_eq!(shop.kept, None);
    assert_eq!(rows(&cluster, "shop").await, "10");
    discard(&source, &promoted).await.unwrap();
    assert_eq!(databases(&cluster).await, ["log book", "postgres", "shop"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_keep_coming_back_do_not_stop_the_swap() {
    let (cluster, source, targets) = restored().await;
    let connect = cluster.connect();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let connect = connect.clone();
        clients.spawn(async move {
            loop {
                let connected = tokio_postgres::Config::new()
                    .host(&connect.host)
                    .port(connect.port)
                    .user(&connect.user)
                    .dbname("shop")
                    .connect(tokio_postgres::NoTls)
                    .await;
                let Ok((client, connection)) = connected else { continue };
                // Driven until somebody ends it.
                let (_ended, _client) = (connection.await, client);
            }
        });
    }
    crate::support::until("the clients are there", async || {
        cluster.query("postgres", "SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop'").await[0]
            == "4"
    })
    .await;
    let promoted = promote(&source, &targets).await.unwrap();
    assert_eq!(promoted.len(), 2);
    clients.shutdown().await;
    assert_eq!(rows(&cluster, "shop").await, "10");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_swaps_nothing() {
    let mut cluster = PostgresCluster::start();
    cluster.create_database("shop").await;
    cluster.execute("postgres", "ALTER SYSTEM SET max_prepared_transactions = 2").await;
    cluster.stop_immediately();
    cluster.restart();
    let source = cluster.source(&["shop"]);
    let snapshot = capture(&source).await.unwrap();
    let targets = restore(&source, &snapshot, Placement::InPlace, &[]).await.unwrap().targets;
    let client = cluster.client("shop").await;
    client.batch_execute("BEGIN; CREATE TABLE t (a int)").await.unwrap();
    client.batch_execute("PREPARE TRANSACTION 'two phase'").await.unwrap();
    let error = promote(&source, &targets).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TargetInUse);
    assert_eq!(error.to_string(), "database shop has the prepared transaction two phase");
    client.batch_execute("ROLLBACK PREPARED 'two phase'").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_that_is_connected_to_first_can_be_swapped_too() {
    let (cluster, mut source, targets) = restored().await;
    source.connect.database = "shop".to_owned();
    promote(&source, &targets).await.unwrap();
    assert_eq!(rows(&cluster, "shop").await, "10");
}

#[tokio::test(flavor = "multi_thread")]
async fn some_tables_are_never_promoted() {
    let cluster = PostgresCluster::start();
    cluster.create_database("shop").await;
    cluster.execute("shop", "CREATE TABLE orders AS SELECT 1 AS id").await;
    let source = cluster.source(&["shop"]);
    let snapshot = capture(&source).await.unwrap();
    let targets = restore(&source, &snapshot, Placement::Beside, &["public.orders"]).await.unwrap().targets;
    assert_eq!(promote(&source, &targets).await.unwrap_err().code(), ErrorCode::Unsupported);
    discard(&source, &targets).await.unwrap();
    assert_eq!(databases(&cluster).await, ["postgres", "shop"]);
}
