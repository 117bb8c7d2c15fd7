//! What `backup run --dry-run` says is what would happen, and nothing happens.

use holdfast_proto::v1;
use holdfast_tests::process::Finished;
use holdfast_tests::wait::{PATIENCE, until};
use holdfast_tests::{Fleet, TreeSpec, run};
use serde_json::{Value, json};

/// A fleet with a source `tree` of files, with more in its definition.
async fn fleet_with(policy: &str, more: &str) -> Fleet {
    let fleet = Fleet::start().await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(3).make(&tree);
    let text = format!(
        "policies:\n  p: {{ {policy} }}\nsources:\n  tree: {{ engine: files, agent: a1, policy: p, paths: [{}]{more} }}\n",
        tree.display()
    );
    fleet.apply(&text).await.unwrap();
    fleet
}

fn ask(fleet: &Fleet, arguments: &[&str]) -> Finished {
    run(fleet.cli().args(["backup", "run", "tree", "--dry-run"]).args(arguments), PATIENCE)
}

fn planned(fleet: &Fleet, arguments: &[&str]) -> Value {
    let finished = ask(fleet, &[arguments, &["-o", "json"]].concat());
    let listed: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{finished:?}"));
    listed["items"][0].clone()
}

async fn runs(fleet: &Fleet) -> usize {
    fleet.runs().list(v1::ListRunsRequest::default()).await.unwrap().into_inner().runs.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plan_names_the_base_and_estimates_from_what_was_before() {
    let fleet = fleet_with("keep: { last: 5 }", ", hooks: { before: stop-app }").await;
    let first = planned(&fleet, &[]);
    assert_eq!(
        (&first["snapshot_type"], &first["reads_everything"], &first["base_snapshot_id"]),
        (&json!("incremental"), &json!(true), &Value::Null)
    );
    assert_eq!((&first["logical_bytes"], &first["estimated_seconds"]), (&json!(0), &Value::Null));
    assert_eq!((&first["policy"], &first["hook_before"]), (&json!("p"), &json!("stop-app")));
    assert_eq!((&first["waits_for"], &first["agent_online"]), (&Value::Null, &json!(true)));
    assert_eq!(runs(&fleet).await, 0);

    let tree = fleet.path().join("data");
    fleet
        .apply(&format!(
            "sources:\n  tree: {{ engine: files, agent: a1, policy: p, paths: [{}] }}\n",
            tree.display()
        ))
        .await
        .unwrap();
    let made = fleet.backup_well("tree", "full").await;
    let then = planned(&fleet, &["--type", "incremental"]);
    assert_eq!(
        (&then["base_snapshot_id"], &then["reads_everything"]),
        (&json!(made.snapshot_id), &json!(false))
    );
    assert_eq!((&then["estimated_from"], &then["estimated_seconds"]), (&json!(0), &Value::Null));
    let full = planned(&fleet, &["--type", "full"]);
    assert_eq!((&full["base_snapshot_id"], &full["estimated_from"]), (&Value::Null, &json!(1)));
    let snapshots = fleet.snapshots_of("tree").await;
    assert_eq!(full["logical_bytes"], json!(snapshots[0].logical_bytes));
    assert_eq!(full["estimated_stored_bytes"], json!(snapshots[0].stored_bytes));
    let differential = planned(&fleet, &["--type", "differential"]);
    assert_eq!(differential["base_snapshot_id"], json!(made.snapshot_id));
    let shown = ask(&fleet, &[]).expect_success().stdout;
    for part in ["incremental backup of tree to main", "a1 (connected)", "at once", &made.snapshot_id[..8]] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    assert_eq!(runs(&fleet).await, 1, "nothing was begun");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_fails_as_the_backup_would() {
    let mut fleet = fleet_with("keep: { last: 5 }", "").await;
    let refusal = |arguments: &[&str], status: i32, code: &str, message: &str| {
        let finished = ask(&fleet, arguments).expect_code(status);
        assert!(finished.stderr.contains(code) && finished.stderr.contains(message), "{finished:?}");
    };
    refusal(&["--repo", "other"], 2, "HF-1008", "source tree is not backed up to repository other");
    std::fs::rename(fleet.path().join("data"), fleet.path().join("away")).unwrap();
    refusal(&[], 4, "HF-2010", "data");
    std::fs::rename(fleet.path().join("away"), fleet.path().join("data")).unwrap();
    drop(ask(&fleet, &[]).expect_success());

    fleet.stop_agent("a1").await;
    let away = planned(&fleet, &[]);
    assert_eq!((&away["agent_online"], &away["waits_for"]), (&json!(false), &json!("agent a1 to connect")));
    // Waits as it was foreseen; a second one is refused.
    let waiting = fleet.start_backup("tree", "full").await.unwrap();
    let finished = ask(&fleet, &[]).expect_code(6);
    assert!(
        finished.stderr.contains("HF-4005") && finished.stderr.contains("nothing was begun"),
        "{finished:?}"
    );
    fleet.configure_agent("a1", |config| config.allow.sources.paths = Some(vec!["/nowhere".into()]));
    fleet.start_agent("a1").await;
    let ended = fleet.ended(&waiting).await;
    let finished = ask(&fleet, &[]).expect_code(5);
    assert_eq!(ended.failure.unwrap().code, "HF-5001");
    assert!(
        finished.stderr.contains("HF-5001") && finished.stderr.contains("may not be read"),
        "{finished:?}"
    );
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_host_is_foreseen_with_what_the_policy_does_about_it() {
    let fleet = fleet_with("keep: { last: 5 }, resources: { memory: 1%, wait: 5m, then: skip }", "").await;
    let busy = until("a heartbeat", PATIENCE, || {
        let plan = planned(&fleet, &[]);
        plan["busy"].is_string().then_some(plan)
    });
    let text = busy["busy"].as_str().unwrap();
    assert!(text.starts_with("memory ") && text.ends_with("in use, at most 1% is allowed"), "{text}");
    assert_eq!(busy["when_busy"], "it waits for 5m, then it is left out");
    assert_eq!(busy["failures"], json!([]));
    fleet.stop().await;
}
