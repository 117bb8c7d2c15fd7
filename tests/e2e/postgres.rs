//! PostgreSQL: dumped in one snapshot, restored under a new name and in place, nothing committed when the server dies.

use std::path::Path;

use holdfast_model::ErrorCode;
use holdfast_proto::v1;
use holdfast_proto::v1::PlanRestoreRequest;
use holdfast_tests::fleet::Operator;
use holdfast_tests::process_fleet::LONG_LEASE;
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{Fleet, PostgresCluster, ProcessFleet};

async fn fleet_with(cluster: &PostgresCluster) -> Fleet {
    let mut fleet = Fleet::start().await;
    fleet.stop_agent("a1").await;
    fleet.configure_agent("a1", |config| config.allow.restore_in_place = true);
    fleet.start_agent("a1").await;
    declare(&fleet, fleet.path(), cluster).await;
    fleet
}

async fn declare(operator: &Operator, folder: &Path, cluster: &PostgresCluster) {
    operator.apply(&cluster.source(folder, "shop")).await.expect("the source is good");
}

fn make_shop(cluster: &PostgresCluster) {
    cluster.psql("postgres", "CREATE DATABASE shop");
    cluster.psql(
        "shop",
        "CREATE TABLE orders (id bigserial PRIMARY KEY, total integer NOT NULL);
         INSERT INTO orders (total) SELECT n * 7919 % 100003 FROM generate_series(1, 20000) n;
         CREATE TABLE customers (id integer PRIMARY KEY, name text);
         INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 500) n;",
    );
}

fn latest() -> PlanRestoreRequest {
    PlanRestoreRequest { source: "pg".to_owned(), to: "latest".to_owned(), ..PlanRestoreRequest::default() }
}

fn rows(cluster: &PostgresCluster, database: &str, table: &str) -> String {
    cluster.psql(database, &format!("SELECT count(*) FROM {table}")).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_comes_back_under_a_new_name_with_equal_rows() {
    let cluster = PostgresCluster::start();
    make_shop(&cluster);
    let fleet = fleet_with(&cluster).await;
    fleet.backup_well("pg", "full").await;
    cluster.psql("shop", "DELETE FROM orders");
    let into = PlanRestoreRequest { into: "shop_rescue".to_owned(), ..latest() };
    let (_, report) = fleet.restore_well(into).await;
    assert_eq!(report.rows, report.rows_expected);
    assert_eq!(report.rows, Some(20_500));
    assert_eq!(rows(&cluster, "shop_rescue", "orders"), "20000");
    assert_eq!(rows(&cluster, "shop", "orders"), "0", "the live database is untouched");
    fleet.restic().check_all_data();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_in_place_swaps_by_rename_and_keeps_the_old() {
    let cluster = PostgresCluster::start();
    make_shop(&cluster);
    let fleet = fleet_with(&cluster).await;
    fleet.backup_well("pg", "full").await;
    cluster.psql("shop", "DELETE FROM orders");
    let (_, report) = fleet.restore_well(PlanRestoreRequest { in_place: true, ..latest() }).await;
    assert_eq!(rows(&cluster, "shop", "orders"), "20000");
    let kept = report.targets[0].kept.clone().expect("the old is kept");
    assert!(kept.starts_with("shop_before_"), "{kept}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_table_comes_back_alone() {
    let cluster = PostgresCluster::start();
    make_shop(&cluster);
    let fleet = fleet_with(&cluster).await;
    fleet.backup_well("pg", "full").await;
    let only =
        PlanRestoreRequest { only: vec!["public.orders".to_owned()], into: "one".to_owned(), ..latest() };
    fleet.restore_well(only).await;
    assert_eq!(rows(&cluster, "one", "orders"), "20000");
    assert_eq!(rows(&cluster, "one", "pg_class WHERE relname = 'customers'"), "0");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_or_refuses_the_login_commits_nothing() {
    let mut cluster = PostgresCluster::start();
    make_shop(&cluster);
    let fleet = fleet_with(&cluster).await;
    cluster.psql("postgres", "ALTER ROLE postgres PASSWORD 'another'");
    let refused = fleet.backup("pg", "full").await;
    assert_eq!(refused.failure.unwrap().code, ErrorCode::SourceLoginRefused.to_string());
    cluster.stop_immediately();
    let down = fleet.backup("pg", "full").await;
    assert_eq!(down.failure.unwrap().code, ErrorCode::SourceUnreachable.to_string());
    assert!(fleet.snapshots_of("pg").await.is_empty());
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_in_the_middle_of_a_dump_commits_nothing_and_the_next_backup_succeeds() {
    let mut cluster = PostgresCluster::start();
    make_shop(&cluster);
    // More than lies anywhere between the server and the repository, and nothing that could be made smaller.
    cluster.psql(
        "shop",
        "CREATE TABLE noise AS SELECT string_agg(md5(n::text || m::text), '') AS text \
         FROM generate_series(1, 6000) n, generate_series(1, 500) m GROUP BY n",
    );
    let fleet = ProcessFleet::start(LONG_LEASE, ["agent-before-put-pack"]).await;
    declare(&fleet, fleet.path(), &cluster).await;
    let hold = fleet.hold("agent-before-put-pack");
    let started = fleet.start_backup("pg", "full").await.unwrap();
    // The first pack is full: the dump is under way, and can not end before it is stored.
    fleet.is_held(&hold).await;
    cluster.stop_immediately();
    drop(hold);
    let ended = fleet.ended(&started).await;
    let failure = ended.failure.clone().expect("the backup fails");
    assert_eq!(failure.code, ErrorCode::CaptureIncomplete.to_string());
    assert_eq!(failure.message, "the server ended the dump: shop");
    assert!(ended.snapshot_id.is_empty() && fleet.snapshots_of("pg").await.is_empty());
    cluster.restart();
    let next = fleet.backup_well("pg", "full").await;
    let restic = fleet.restic();
    restic.check_all_data();
    assert_eq!(restic.snapshots().len(), 1);
    assert_eq!(restic.snapshots()[0]["id"], next.snapshot_id.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_table_that_lost_its_rows_says_so() {
    let cluster = PostgresCluster::start();
    make_shop(&cluster);
    let fleet = fleet_with(&cluster).await;
    fleet.backup_well("pg", "full").await;
    cluster.psql("shop", "DELETE FROM orders WHERE id % 3 = 0; DELETE FROM customers WHERE id <= 60");
    fleet.backup_well("pg", "incremental").await;
    let newest = fleet.snapshots_of("pg").await.swap_remove(0);
    let found: Vec<(&str, &str)> =
        newest.anomalies.iter().map(|found| (found.severity.as_str(), found.message.as_str())).collect();
    assert_eq!(
        found,
        [
            ("critical", "table shop.public.orders lost 33% of its rows: 20,000 → 13,334"),
            ("warning", "table shop.public.customers lost 12% of its rows: 500 → 440"),
        ]
    );
    let status = fleet.status().fleet(v1::FleetStatusRequest::default()).await.unwrap().into_inner();
    assert_eq!(status.sources[0].state, "at_risk");
    assert!(
        status.sources[0].problem.contains("looks wrong: table shop.public.orders lost 33%"),
        "{status:?}"
    );
    fleet.backup_well("pg", "incremental").await;
    assert!(fleet.snapshots_of("pg").await[0].anomalies.is_empty(), "the next is as the one before");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_is_critical_after_three_times_and_well_when_it_does_again() {
    let mut cluster = PostgresCluster::start();
    make_shop(&cluster);
    let fleet = fleet_with(&cluster).await;
    fleet.backup_well("pg", "full").await;
    let source = cluster.source(fleet.path(), "shop").replace("agent: a1", "agent: a1, policy: watched");
    let policy = "policies:\n  watched: { objectives: { rpo: 2s }, schedule: { full: { every: 1d } }, health: { every: 1s } }\n";
    let refused = fleet.apply(&format!("{policy}{source}")).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::PromiseImpossible, "a schedule of a day cannot keep two seconds");
    let policy = policy.replace("rpo: 2s", "rpo: 2d");
    fleet.apply(&format!("{policy}{source}")).await.unwrap();
    let status = async || {
        let reply = fleet.status().fleet(v1::FleetStatusRequest::default()).await.unwrap();
        reply.into_inner().sources.swap_remove(0)
    };
    let until = async |what: &str, state: &str| {
        let state = state.to_owned();
        until_async(what, PATIENCE, async || {
            let status = status().await;
            (status.health.as_ref()?.state == state).then_some(status)
        })
        .await
    };
    let well = until("the server to be asked", "ok").await;
    let health = well.health.unwrap();
    assert!(health.response_millis.is_some() && health.log_bytes.unwrap() >= 16 << 20, "{health:?}");
    cluster.stop_immediately();
    let down = until("three failures in a row", "critical").await;
    assert_eq!(down.state, "at_risk");
    assert!(
        down.problem.starts_with("does not answer since ") && down.problem.contains("[HF-2001]"),
        "{down:?}"
    );
    cluster.restart();
    let again = until("the server to answer again", "ok").await;
    assert_eq!(again.state, "protected", "{again:?}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_server_loses_nothing_however_old_its_backup_is() {
    let cluster = PostgresCluster::start();
    make_shop(&cluster);
    let fleet = fleet_with(&cluster).await;
    let source = cluster.source(fleet.path(), "shop").replace("agent: a1", "agent: a1, policy: watched");
    let policy = "policies:\n  watched: { schedule: { full: { every: 1d } }, health: { every: 1s } }\n";
    fleet.apply(&format!("{policy}{source}")).await.unwrap();
    let loss = async || {
        let reply = fleet.status().fleet(v1::FleetStatusRequest::default()).await.unwrap();
        reply.into_inner().sources.swap_remove(0).loss_seconds
    };
    // The server's own work settles after the last change; then a backup shows what it is, and it stays so.
    until_async("a backup of a server that does nothing more", PATIENCE, async || {
        cluster.psql("postgres", "CHECKPOINT");
        let before = cluster.psql("postgres", "SELECT pg_current_wal_lsn()");
        fleet.backup_well("pg", "full").await;
        let captured = fleet.snapshots_of("pg").await.swap_remove(0).captured_at.unwrap();
        let is_idle = cluster.psql("postgres", "SELECT pg_current_wal_lsn()") == before;
        let unchanged = async || {
            let now = holdfast_runtime::Clock::now(&holdfast_runtime::SystemClock).as_second();
            let age = now - captured.seconds;
            (age >= 4).then_some(())
        };
        until_async("some time to pass", PATIENCE, unchanged).await;
        (is_idle && loss().await < 3).then_some(())
    })
    .await;
    cluster.psql("shop", "INSERT INTO customers VALUES (1000, 'new')");
    until_async("the loss to be counted from the backup", PATIENCE, async || {
        (loss().await >= 4).then_some(())
    })
    .await;
    fleet.stop().await;
}
