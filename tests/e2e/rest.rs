//! REST: the same as gRPC and the command line say, for those who may, read strictly.

mod events;
mod hostile;
mod removal;

use std::time::Duration;

use holdfast_controller::access::{Access, METHODS, Role};
use holdfast_controller::config::HttpConfig;
use holdfast_tests::promtool::check_metrics;
use holdfast_tests::wait::PATIENCE;
use holdfast_tests::{Fleet, HttpClient, TreeSpec, run};
use serde_json::{Value, json};

/// A fleet with a source `tree` of files.
pub(super) async fn fleet_with_source() -> Fleet {
    let fleet = Fleet::start().await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(3).make(&tree);
    fleet
        .apply(&format!("sources:\n  tree: {{ engine: files, agent: a1, paths: [{}] }}\n", tree.display()))
        .await
        .unwrap();
    fleet
}

fn by_command_line(fleet: &Fleet, arguments: &[&str]) -> Value {
    let finished = run(fleet.cli().args(arguments).args(["-o", "json"]), PATIENCE);
    serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{finished:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rest_says_is_what_the_command_line_says() {
    let fleet = fleet_with_source().await;
    let rest = fleet.rest();
    let run = fleet.backup_well("tree", "full").await;

    let backups = rest.get("/api/v1/backups?source=tree").json();
    let listed = by_command_line(&fleet, &["backup", "list", "tree"]);
    assert_eq!((&backups["api"], &backups["kind"]), (&json!("holdfast/v1"), &json!("SnapshotList")));
    assert_eq!((&backups["items"], &backups["kind"]), (&listed["items"], &listed["kind"]));

    let shown = rest.get(&format!("/api/v1/backups/{}", &run.snapshot_id[..8])).items();
    let by_line = by_command_line(&fleet, &["backup", "show", &run.snapshot_id]);
    assert_eq!(shown, by_line["items"].as_array().unwrap()[..]);

    let runs = rest.get(&format!("/api/v1/runs/{}", run.id)).items();
    let by_line = by_command_line(&fleet, &["run", "show", &run.id]);
    assert_eq!(runs, by_line["items"].as_array().unwrap()[..]);

    // What goes on by itself between the two questions is left out.
    let standing = |mut status: Value| {
        assert!(status["loss_seconds"].is_u64() && status["health"]["state"].is_string(), "{status}");
        status["loss_seconds"] = json!(0);
        status["health"] = json!({});
        status
    };
    let status = rest.get("/api/v1/sources/tree/status").items();
    let by_line = by_command_line(&fleet, &["status", "tree"]);
    assert_eq!(standing(status[0].clone()), standing(by_line["items"][0].clone()));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_and_its_verification_are_begun_once_for_each_key() {
    let fleet = fleet_with_source().await;
    let rest = fleet.rest();
    let keyed = |path: &str, key: &str, body: &str| {
        let mut headers = vec![("Idempotency-Key", key)];
        if !body.is_empty() {
            headers.push(("Content-Type", "application/json"));
        }
        rest.request("POST", path, &headers, body)
    };
    let wanted = r#"{"source":"tree","snapshot_type":"full"}"#;
    let first = keyed("/api/v1/backups", "k1", wanted);
    assert_eq!(first.status, 202, "{first:?}");
    let id = first.items()[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(first.header("location"), Some(format!("/api/v1/runs/{id}").as_str()));
    let ended = holdfast_tests::wait::until("the end of the run", PATIENCE, || {
        let run = rest.get(&format!("/api/v1/runs/{id}")).items().remove(0);
        run["ended_at"].is_string().then_some(run)
    });
    assert_eq!(ended["phase"], "succeeded");
    assert_eq!(keyed("/api/v1/backups", "k1", wanted).items()[0]["id"], id.as_str());
    let other = keyed("/api/v1/backups", "k1", r#"{"source":"tree"}"#).error();
    let message = "field idempotency_key: was used for another request before";
    assert_eq!(other, (400, "HF-1001".to_owned(), message.to_owned()));

    let snapshot = ended["snapshot_id"].as_str().unwrap();
    let verify = keyed(&format!("/api/v1/backups/{snapshot}/verify"), "k2", "");
    assert_eq!(verify.status, 202);
    assert_eq!(verify.items()[0]["kind"], "verify");
    let again = keyed(&format!("/api/v1/backups/{snapshot}/verify"), "k2", "");
    assert_eq!(again.items()[0]["id"], verify.items()[0]["id"]);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_follow_each_other_without_a_gap() {
    let fleet = fleet_with_source().await;
    for kind in ["full", "incremental", "full"] {
        fleet.backup_well("tree", kind).await;
    }
    let rest = fleet.rest();
    let all = rest.get("/api/v1/backups").items();
    let (mut paged, mut path) = (Vec::new(), "/api/v1/backups?limit=2&repository=main".to_owned());
    let mut pages = 0;
    loop {
        let page = rest.get(&path);
        paged.extend(page.items());
        pages += 1;
        match page.json()["next_cursor"].as_str() {
            Some(cursor) => path = format!("/api/v1/backups?limit=2&repository=main&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!((paged, pages), (all, 2));
    fleet.stop().await;
}

/// A request to a route that could be answered, with values that exist.
fn request_to(key: &str, client: &HttpClient, snapshot: &str, run: &str) -> u16 {
    let (method, path) = key.split_once(' ').unwrap();
    let path = path.replace("/runs/{id}", &format!("/runs/{run}"));
    let path = path.replace("/alerts/{id}", "/alerts/1").replace("/silences/{id}", "/silences/1");
    let path = path.replace("/repositories/{name}", "/repositories/main");
    let path = path.replace("{id}", snapshot).replace("{name}", "tree");
    if path == "/api/v1/events" {
        // It does not end by itself.
        return client.request("GET", "/api/v1/events?after=x", &[], "").status;
    }
    match key {
        "POST /api/v1/backups" => client.post(&path, r#"{"source":"nothing"}"#).status,
        "POST /api/v1/silences" => {
            let silence = r#"{"match":{"source":"tree"},"for_seconds":60,"reason":"a test"}"#;
            client.post(&path, silence).status
        }
        "POST /api/v1/cleanup"
        | "POST /api/v1/repositories/{name}/prune"
        | "POST /api/v1/alerts/{id}/ack" => client.post(&path, "{}").status,
        _ => client.request(method, &path, &[], "").status,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_of_the_document_answers_those_who_may_and_nobody_else() {
    let fleet = fleet_with_source().await;
    let run = fleet.backup_well("tree", "full").await;
    let hour = Duration::from_secs(3600);
    let client = |token: &str| fleet.rest().with_token(token);
    let mut tokens = Vec::new();
    for role in Role::ALL {
        tokens.push((role, fleet.token_of(role, hour).await));
    }
    let document = fleet.rest().get("/api/v1/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    let nobody = HttpClient::new(fleet.controller().http_address().unwrap());
    let mut asked = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let key = format!("{} {path}", method.to_uppercase());
            let access = METHODS.iter().find(|(row, _)| *row == key).expect("a route has its row").1;
            let status = request_to(&key, &nobody, &run.snapshot_id, &run.id);
            assert_eq!(status == 401, access != Access::Public, "{key} for nobody: {status}");
            for (role, token) in &tokens {
                let may = match access {
                    Access::Public => true,
                    Access::Roles(roles) => *role == Role::Admin || roles.contains(role),
                    Access::Agent => false,
                };
                let status = request_to(&key, &client(token), &run.snapshot_id, &run.id);
                assert_eq!(status == 403, !may, "{key} for {}: {status}", role.as_str());
                // There is no alert, and no silence that was not ended before.
                let is_absent = key.contains("{id}") && (key.contains("alerts") || key.contains("silences"));
                let is_answered = status < 300
                    || key.ends_with("events")
                    || key == "POST /api/v1/backups"
                    || is_absent && status == 404;
                // A second verification while the first one runs.
                assert!(!may || is_answered || status == 409, "{key} for {}: {status}", role.as_str());
                asked += 1;
            }
        }
    }
    assert!(asked > 100, "{asked}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_what_is_wrong_and_what_to_do() {
    let mut fleet = fleet_with_source().await;
    let rest = fleet.rest();
    // An agent on a busy machine answers late, which is a deduction of its own.
    let scored = |score: f64| {
        holdfast_tests::wait::until(format!("a score of {score}"), PATIENCE, || {
            let health = rest.get("/api/v1/health").items().remove(0);
            (health["health_score"] == json!(score)).then_some(health)
        })
    };
    let before = scored(0.4);
    assert_eq!(before["status"], "critical");
    let reason = &before["deductions"][0];
    assert_eq!(reason["points"], json!(0.6));
    assert_eq!(reason["reason"], "was never backed up");
    assert_eq!(reason["remedy"], "holdfast backup run tree");
    fleet.backup_well("tree", "full").await;
    assert_eq!(scored(1.0)["status"], "healthy");
    fleet.stop_agent("a1").await;
    let away = rest.get("/api/v1/monitor/overview").items().remove(0);
    assert_eq!(away["health"]["status"], "degraded");
    assert_eq!(away["health"]["health_score"], json!(0.6));
    assert_eq!(away["stats"]["agents"], json!({ "online": 0, "total": 1 }));
    assert_eq!(away["stats"]["runs"]["backup"]["success"], 1);
    assert_eq!(away["sources"][0]["state"], "at_risk");
    let quick = rest.get("/api/v1/monitor/quick").items().remove(0);
    assert_eq!(quick["sources"]["at_risk"], 1);
    let performance = rest.get("/api/v1/monitor/performance").items().remove(0);
    assert_eq!(performance["kinds"][0]["kind"], "backup");
    assert_eq!(performance["kinds"][0]["success_ratio"], json!(1.0));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_the_controllers_and_metrics_are_as_prometheus_reads_them() {
    let mut fleet = fleet_with_source().await;
    fleet.backup_well("tree", "full").await;
    fleet.stop_controller().await;
    fleet.configure_controller(|config| {
        config.http = Some(HttpConfig { listen: ([127, 0, 0, 1], 0).into(), tls: true });
    });
    fleet.start_controller().await;
    let plain = fleet.rest();
    assert!(plain.raw(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n").is_none());
    let client = plain.with_tls(&fleet.ca_pem);
    assert_eq!(client.get("/ping").body, "ok\n");
    assert_eq!(client.get("/readyz").status, 200);
    let metrics = client.get("/metrics");
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(metrics.body.contains("holdfast_backup_last_success_timestamp_seconds{source=\"tree\""));
    check_metrics(&metrics.body);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_is_shown_without_where_its_secrets_are() {
    let fleet = fleet_with_source().await;
    let channels = "notifications:
  channels:
    ding: { type: dingtalk, webhook: { file: /run/canary-place }, secret: { env: CANARY_PLACE } }
    hook: { type: webhook, url: \"https://example.com/hook\", signing_key: { command: [canary-place, read] } }
";
    fleet.apply(channels).await.unwrap();
    let answer = fleet.rest().get("/api/v1/config");
    let shown = answer.items().remove(0);
    assert_eq!(shown["fleet"]["repositories"]["main"]["encryption"]["key"], json!({ "file": "***" }));
    assert_eq!(shown["fleet"]["sources"]["tree"]["engine"], "files");
    assert_eq!(shown["controller"]["limits"]["lease_seconds"], 30);
    let channels = &shown["fleet"]["channels"];
    assert_eq!(channels["ding"]["webhook"], json!({ "file": "***" }), "{channels}");
    assert_eq!(channels["hook"]["signing_key"], json!({ "command": "***" }), "{channels}");
    assert_eq!(channels["hook"]["url"], "https://example.com/hook");
    assert!(!answer.body.to_lowercase().replace('_', "-").contains("canary-place"), "{}", answer.body);
    assert!(!answer.body.contains("password"), "{}", answer.body);
    fleet.stop().await;
}
