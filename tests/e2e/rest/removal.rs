//! What removes and what keeps quiet: the same as the command line, decided by the controller.

use holdfast_tests::http::Answer;
use holdfast_tests::wait::{PATIENCE, until};
use holdfast_tests::{Fleet, HttpClient, SkewedClock, run};
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{by_command_line, fleet_with_source};

/// A fleet whose source `tree` has three snapshots, of which its policy does not keep two; the controller looks only
/// hourly.
async fn fleet_with_old_snapshots() -> (Fleet, SkewedClock, Vec<String>) {
    let clock = SkewedClock::default();
    let mut fleet = Fleet::controller_at(clock.shared()).await;
    // The agent has the same clock: with another one nothing would be removed.
    fleet.enroll_agent("a1").await;
    fleet.start_agent_at("a1", clock.shared()).await;
    fleet.add_repository("main", &format!("file://{}", fleet.repository().display()), "").await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    let source = format!(
        "policies:\n  p: {{ keep: {{ within: 1d }} }}\nsources:\n  tree: {{ engine: files, agent: a1, policy: p, paths: [{}] }}\n",
        tree.display()
    );
    fleet.apply(&source).await.unwrap();
    let mut snapshots = Vec::new();
    for number in 0..3_u8 {
        // Bytes that are not in the state before, of which a prune frees more than may go without a person.
        let state: Vec<u8> = (0..200_000_u32)
            .flat_map(|at| (at ^ u32::from(number)).wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        std::fs::write(tree.join("file"), state).unwrap();
        snapshots.push(fleet.backup_well("tree", "full").await.snapshot_id);
    }
    // What has been woken before has looked by now: it takes turns with what is asked for.
    assert!(clean_up(&fleet.rest(), "{\"dry_run\":false}").iter().all(|one| one["keep"] == true));
    clock.jump(SignedDuration::from_hours(48));
    // A sign of life that was under way meanwhile makes the clock look wrong until the next one.
    let rest = fleet.rest();
    until("two snapshots to be too old", PATIENCE, || {
        let goes = clean_up(&rest, "{}").iter().filter(|one| one["keep"] == false).count();
        (goes == 2).then_some(())
    });
    (fleet, clock, snapshots)
}

fn clean_up(rest: &HttpClient, body: &str) -> Vec<Value> {
    rest.post("/api/v1/cleanup", body).items()
}

fn listed(rest: &HttpClient) -> Vec<String> {
    let items = rest.get("/api/v1/backups").items();
    items.iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

fn refused(answer: &Answer, status: u16, code: &str, message: &str) {
    assert_eq!(answer.error(), (status, code.to_owned(), message.to_owned()));
}

fn ended(rest: &HttpClient, answer: &Answer) -> Value {
    assert_eq!(answer.status, 202, "{answer:?}");
    let path = answer.header("location").unwrap().to_owned();
    until("the end of the run", PATIENCE, || {
        let run = rest.get(&path).items().remove(0);
        run["ended_at"].is_string().then_some(run)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn cleaning_up_removes_what_was_simulated_and_only_when_told_to() {
    let (fleet, _, snapshots) = fleet_with_old_snapshots().await;
    let rest = fleet.rest();
    let simulated = by_command_line(&fleet, &["policy", "simulate", "tree"]);
    let dry = by_command_line(&fleet, &["policy", "cleanup", "--dry-run"]);
    assert_eq!(dry["items"], simulated["items"]);
    for body in ["{}", r#"{"name":"tree"}"#, r#"{"name":"p","dry_run":true}"#] {
        assert_eq!(json!(clean_up(&rest, body)), simulated["items"], "{body}");
    }
    let kept: Vec<bool> =
        simulated["items"].as_array().unwrap().iter().map(|one| one["keep"].as_bool().unwrap()).collect();
    assert_eq!(kept, [true, false, false], "{simulated}");
    assert_eq!(listed(&rest).len(), 3);
    let unconfirmed = run(fleet.cli().args(["policy", "cleanup", "tree"]), PATIENCE).expect_code(9);
    assert!(unconfirmed.stderr.contains("HF-1009"), "{unconfirmed:?}");
    refused(
        &rest.post("/api/v1/cleanup", r#"{"name":"nobody","dry_run":false}"#),
        404,
        "HF-4001",
        "there is no policy nobody",
    );
    assert_eq!(listed(&rest).len(), 3);

    let removed = clean_up(&rest, r#"{"name":"tree","dry_run":false}"#);
    assert_eq!(json!(removed), simulated["items"]);
    assert_eq!(listed(&rest), [snapshots[2].clone()]);
    assert_eq!(fleet.restic().snapshots().len(), 1);
    let again = clean_up(&rest, r#"{"dry_run":false}"#);
    assert_eq!((again.len(), &again[0]["keep"]), (1, &json!(true)));
    let audit = run(fleet.cli().args(["audit", "list"]), PATIENCE).expect_success().stdout;
    let line = audit.lines().find(|line| line.contains(&snapshots[0])).unwrap();
    assert!(audit.contains("policy p: no rule keeps it") && audit.contains("token:admin"), "{line}\n{audit}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_cleans_up_what_a_person_agreed_to() {
    let (fleet, _, snapshots) = fleet_with_old_snapshots().await;
    let done = run(fleet.cli().args(["policy", "cleanup", "p", "--yes"]), PATIENCE).expect_success();
    assert_eq!(done.stdout.matches("no rule keeps it").count(), 2, "{done:?}");
    assert_eq!(listed(&fleet.rest()), [snapshots[2].clone()]);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_is_planned_approved_and_begun_once_for_each_key() {
    let (fleet, _, _) = fleet_with_old_snapshots().await;
    let rest = fleet.rest();
    let path = "/api/v1/repositories/main/prune";
    clean_up(&rest, r#"{"dry_run":false}"#);
    let planned = rest.post(path, "{}");
    assert_eq!((planned.status, &planned.json()["kind"]), (200, &json!("PrunePlanList")));
    let by_line = by_command_line(&fleet, &["repo", "prune", "main", "--dry-run"]);
    assert_eq!(json!(planned.items()), by_line["items"]);
    assert_eq!(planned.items()[0]["needs_approval"], true);

    let unapproved = ended(&rest, &rest.post(path, r#"{"dry_run":false}"#));
    assert_eq!((&unapproved["phase"], &unapproved["failure"]["code"]), (&json!("failed"), &json!("HF-1009")));
    let message = "the prune of repository main is confirmed by its name, and with a reason";
    for body in [
        r#"{"dry_run":false,"confirm":"mian","reason":"a test"}"#,
        r#"{"dry_run":false,"confirm":"main"}"#,
        r#"{"dry_run":false,"confirm":"main","reason":" "}"#,
    ] {
        refused(&rest.post(path, body), 428, "HF-1009", message);
    }
    refused(
        &rest.post("/api/v1/repositories/mian/prune", "{}"),
        404,
        "HF-4001",
        "there is no repository mian",
    );
    assert_eq!(json!(rest.post(path, "{}").items()), by_line["items"], "nothing went");

    let approved = || {
        let headers = [("Idempotency-Key", "k"), ("Content-Type", "application/json")];
        rest.request("POST", path, &headers, r#"{"dry_run":false,"confirm":"main","reason":"a test"}"#)
    };
    let run = ended(&rest, &approved());
    assert_eq!((&run["kind"], &run["phase"]), (&json!("prune"), &json!("succeeded")), "{run}");
    assert_eq!(approved().items()[0]["id"], run["id"]);
    let freed = rest.post(path, "{}").items().remove(0);
    assert!(freed["stored_bytes"].as_u64() < planned.items()[0]["stored_bytes"].as_u64(), "{freed}");
    fleet.restic().check_all_data();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_are_shown_acknowledged_and_silenced_as_by_the_command_line() {
    let fleet = fleet_with_source().await;
    let rest = fleet.rest();
    let rule =
        "alerts:\n  mine: { expr: 'holdfast_agent_up == 1', severity: warning, message: \"it is up\" }\n";
    fleet.apply(rule).await.unwrap();
    let mine = until("the alert", PATIENCE, || {
        let failing = |one: &Value| one["rule"] == "mine" && one["state"] == "failing";
        rest.get("/api/v1/alerts").items().into_iter().find(failing)
    });
    let id = mine["id"].as_u64().unwrap();
    let path = format!("/api/v1/alerts/{id}");
    let shown = || {
        let by_rest = rest.get(&path).items();
        assert_eq!(json!(by_rest), by_command_line(&fleet, &["alert", "show", &id.to_string()])["items"]);
        by_rest[0].clone()
    };
    assert!(shown()["acknowledged_by"].is_null());
    assert_eq!(
        json!(rest.get("/api/v1/alerts?all=true").items()),
        by_command_line(&fleet, &["alert", "list", "--all"])["items"]
    );
    let keyed = |path: &str, body: &str| {
        let headers = [("Idempotency-Key", "k"), ("Content-Type", "application/json")];
        rest.request("POST", path, &headers[..if body.is_empty() { 1 } else { 2 }], body)
    };
    let acknowledged = rest.post(&format!("{path}/ack"), r#"{"reason":"Ann is on it"}"#);
    assert_eq!(acknowledged.items(), [shown()]);
    assert_eq!(shown()["acknowledged_reason"], "Ann is on it");

    let wanted = r#"{"match":{"reason":"mine"},"for_seconds":3600,"reason":"a test"}"#;
    let placed = keyed("/api/v1/silences", wanted).items();
    let silences = || by_command_line(&fleet, &["alert", "list", "--silences"])["items"].clone();
    assert_eq!(json!(placed), silences());
    assert_eq!((rest.get("/api/v1/silences").items(), placed.len()), (placed.clone(), 1));
    assert_eq!(keyed("/api/v1/silences", wanted).items(), placed);
    assert_eq!(shown()["silenced_until_at"], placed[0]["until_at"]);
    let end = format!("/api/v1/silences/{}/end", placed[0]["id"]);
    assert_eq!(rest.request("POST", &end, &[], "").items(), Vec::<Value>::new());
    assert_eq!(silences(), json!([]));
    refused(&rest.request("POST", &end, &[], ""), 404, "HF-4001", "there is no silence 1");
    fleet.stop().await;
}
