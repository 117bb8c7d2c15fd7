//! Databases that agents see on their hosts: each once, with the source that covers it, or with what would.

use holdfast_model::ErrorCode;
use holdfast_proto::status::from_status;
use holdfast_proto::v1;
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{Fleet, PostgresCluster, run};
use rusqlite::Connection;
use serde_json::{Value, json};

/// A fleet whose agent may look into `data`, beside a server with the databases shop, payroll and postgres, of which a
/// source under a policy has shop.
async fn fleet_beside(cluster: &PostgresCluster) -> Fleet {
    cluster.psql("postgres", "CREATE DATABASE shop");
    cluster.psql("postgres", "CREATE DATABASE payroll");
    let mut fleet = Fleet::start().await;
    let data = fleet.path().join("data");
    std::fs::create_dir(&data).unwrap();
    for name in ["app.db", "other.db"] {
        Connection::open(data.join(name)).unwrap().execute_batch("CREATE TABLE t (a); VACUUM").unwrap();
    }
    std::fs::create_dir(fleet.path().join("hidden")).unwrap();
    std::fs::rename(data.join("other.db"), fleet.path().join("hidden/other.db")).unwrap();
    std::os::unix::fs::symlink(fleet.path().join("hidden"), data.join("link")).unwrap();
    fleet.stop_agent("a1").await;
    fleet.configure_agent("a1", |config| config.allow.sources.paths = Some(vec![data]));
    fleet.start_agent("a1").await;
    let source = cluster.source(fleet.path(), "shop").replace("agent: a1,", "agent: a1, policy: p,");
    fleet.apply(&format!("policies:\n  p: {{ keep: {{ last: 3 }} }}\n{source}")).await.unwrap();
    fleet
}

/// What is found of the test's own: others may run servers on this machine.
fn found(fleet: &Fleet, cluster: &PostgresCluster) -> Vec<Value> {
    let asked = run(fleet.cli().args(["source", "discover", "--agent", "a1", "-o", "json"]), PATIENCE);
    let listed: Value = serde_json::from_str(&asked.expect_success().stdout).unwrap();
    let port = format!("port {}", cluster.port());
    let items = listed["items"].as_array().unwrap().clone();
    let own = |item: &Value| {
        let place = item["place"].as_str().unwrap();
        place == port || place.starts_with("database ") || item["kind"] == "sqlite"
    };
    items.into_iter().filter(own).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_source_covers_is_found_and_what_is_printed_protects_it() {
    let cluster = PostgresCluster::start();
    let fleet = fleet_beside(&cluster).await;
    let file = fleet.path().join("data/app.db").display().to_string();
    let brief = |items: &[Value]| -> Vec<Value> {
        items.iter().map(|one| json!([one["kind"], one["place"], one["source"], one["policy"]])).collect()
    };
    let first = found(&fleet, &cluster);
    assert_eq!(
        brief(&first),
        [
            json!(["postgres", format!("port {}", cluster.port()), "pg", "p"]),
            json!(["sqlite", file, null, null]),
            json!(["postgres", "database \"payroll\" beside pg", null, null]),
            json!(["postgres", "database \"postgres\" beside pg", null, null]),
            json!(["postgres", "database \"shop\" beside pg", "pg", "p"]),
        ]
    );
    let status = fleet.status().fleet(v1::FleetStatusRequest::default()).await.unwrap().into_inner();
    assert!(status.databases_unprotected >= 3 && status.databases_found >= 5, "{status:?}");
    let count = format!("{} of {} databases", status.databases_unprotected, status.databases_found);
    let shown = run(fleet.cli().arg("status"), PATIENCE).expect_success().stdout;
    assert!(shown.contains(&count) && shown.contains("holdfast source discover"), "{shown}");
    let doctor = fleet.status().doctor(v1::DoctorRequest {}).await.unwrap().into_inner().findings;
    let finding = doctor.iter().find(|finding| finding.message.contains("seen on hosts")).unwrap();
    assert_eq!((finding.outcome.as_str(), finding.remedy.as_str()), ("warning", "holdfast source discover"));
    assert!(finding.message.starts_with(&count), "{finding:?}");

    let lines: Vec<&str> = first.iter().filter_map(|one| one["definition"].as_str()).collect();
    assert_eq!(lines.len(), 3);
    fleet.apply(&format!("sources:\n{}\n", lines.join("\n"))).await.unwrap();
    let then = found(&fleet, &cluster);
    assert!(then.iter().all(|one| one["policy"] == "p" && one["definition"].is_null()), "{then:?}");
    fleet.backup_well("pg-payroll", "full").await;
    fleet.backup_well("app", "full").await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_says_no_more_than_its_own_configuration_allows() {
    let cluster = PostgresCluster::start();
    let mut fleet = fleet_beside(&cluster).await;
    let shown = run(fleet.cli().args(["source", "discover"]), PATIENCE).expect_success();
    let all = format!("{}{}", shown.stdout, shown.stderr);
    assert!(all.contains("  app: { engine: sqlite") && !all.contains("hidden"), "{all}");
    assert!(!all.contains(PostgresCluster::PASSWORD), "{all}");

    fleet.stop_agent("a1").await;
    fleet.configure_agent("a1", |config| {
        config.allow.sources.paths = None;
        config.allow.sources.databases = Some(vec!["sh*".to_owned()]);
    });
    fleet.start_agent("a1").await;
    let places: Vec<String> =
        found(&fleet, &cluster).iter().map(|one| one["place"].as_str().unwrap().to_owned()).collect();
    assert_eq!(places, [format!("port {}", cluster.port()), "database \"shop\" beside pg".to_owned()]);
    let said = run(fleet.cli().args(["source", "discover"]), PATIENCE).expect_success().stderr;
    assert!(said.contains("not looked at: a1: files: `allow.sources.paths`"), "{said}");

    fleet.stop_agent("a1").await;
    fleet.configure_agent("a1", |config| config.allow.discovery = false);
    fleet.start_agent("a1").await;
    let request = || v1::DiscoverRequest { agent: "a1".to_owned(), ..Default::default() };
    let refused = from_status(&fleet.fleet().discover(request()).await.unwrap_err());
    assert_eq!(refused.code, ErrorCode::NotAllowedHere);
    assert_eq!(refused.message, "the databases of this host may not be listed");
    fleet.stop_agent("a1").await;
    let away = until_async("the agent to be away", PATIENCE, async || {
        fleet.fleet().discover(request()).await.err().map(|status| from_status(&status))
    });
    assert_eq!(away.await.code, ErrorCode::AgentOffline);
    let nobody = v1::DiscoverRequest { agent: "a9".to_owned(), ..Default::default() };
    assert_eq!(from_status(&fleet.fleet().discover(nobody).await.unwrap_err()).code, ErrorCode::NotFound);
    let unknown = v1::DiscoverRequest { policy: "gold".to_owned(), ..Default::default() };
    assert_eq!(from_status(&fleet.fleet().discover(unknown).await.unwrap_err()).code, ErrorCode::NotFound);
    fleet.stop().await;
}
