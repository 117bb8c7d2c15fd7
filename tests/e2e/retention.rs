//! Snapshots that are removed: by policies as they were simulated, and by people.

use std::path::{Path, PathBuf};

use holdfast_model::ErrorCode;
use holdfast_model::Failure;
use holdfast_proto::status::from_status;
use holdfast_proto::v1;
use holdfast_runtime::{SharedClock, SystemClock};
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{Fleet, SkewedClock, run};
use jiff::SignedDuration;

/// A fleet with a source `tree` that was backed up so often. The snapshots, oldest first.
async fn fleet_with_snapshots(count: usize) -> (Fleet, PathBuf, Vec<String>) {
    fleet_at(SystemClock::shared(), count).await
}

async fn fleet_at(clock: SharedClock, count: usize) -> (Fleet, PathBuf, Vec<String>) {
    let mut fleet = Fleet::controller_at(clock.clone()).await;
    fleet.enroll_agent("a1").await;
    fleet.start_agent_at("a1", clock).await;
    fleet.add_repository("main", &format!("file://{}", fleet.repository().display()), "").await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    declare(&fleet, &tree, "").await.unwrap();
    let mut snapshots = Vec::new();
    for number in 0..count {
        std::fs::write(tree.join("file"), format!("state {number} ").repeat(1000)).unwrap();
        snapshots.push(fleet.backup_well("tree", "incremental").await.snapshot_id);
    }
    (fleet, tree, snapshots)
}

async fn declare(fleet: &Fleet, tree: &Path, policy: &str) -> Result<Vec<v1::Change>, Failure> {
    fleet
        .apply(&format!(
            "policies:\n  p: {{ to: [main], {policy} }}\nsources:\n  tree: {{ engine: files, agent: a1, policy: p, paths: [{}] }}\n",
            tree.display()
        ))
        .await
}

/// Applies a policy that keeps less, which has to be confirmed.
async fn declare_less(fleet: &Fleet, policy: &str) {
    let text = format!("api: holdfast/v1\npolicies:\n  p: {{ to: [main], {policy} }}\n");
    let request = v1::ApplyRequest {
        files: vec![v1::FleetFile { name: "less.yaml".to_owned(), text }],
        confirm: vec!["policies.p".to_owned()],
        reason: "a test".to_owned(),
        ..Default::default()
    };
    fleet.fleet().apply(request).await.unwrap();
}

async fn simulated(fleet: &Fleet, file: Option<&str>) -> v1::RetentionPlan {
    let policy_file = file.map(|policy| v1::FleetFile {
        name: "try.yaml".to_owned(),
        text: format!("api: holdfast/v1\npolicies:\n  p: {{ {policy} }}\n"),
    });
    let request = v1::SimulateRequest { name: "tree".to_owned(), policy_file };
    let plans = fleet.policies().simulate(request).await.unwrap().into_inner().plans;
    let [plan] = <[_; 1]>::try_from(plans).unwrap();
    plan
}

async fn ids(fleet: &Fleet) -> Vec<String> {
    fleet.snapshots_of("tree").await.into_iter().map(|snapshot| snapshot.id).collect()
}

async fn hold(fleet: &Fleet, id: &str) {
    let request = v1::HoldRequest { id: id.to_owned(), reason: "an audit".to_owned() };
    fleet.snapshots().hold(request).await.unwrap();
}

async fn forget(fleet: &Fleet, ids: &[&str], confirm: &[&str]) -> Result<Vec<String>, Failure> {
    let request = v1::ForgetSnapshotsRequest {
        ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        confirm: confirm.iter().map(|name| (*name).to_owned()).collect(),
        reason: "a test".to_owned(),
        dry_run: false,
    };
    let reply = fleet.snapshots().forget(request).await.map_err(|status| from_status(&status))?;
    Ok(reply.into_inner().confirm_with)
}

/// What a policy would keep is what it keeps, and the rest goes from the repository too.
async fn expect_as_simulated(fleet: &Fleet, policy: &str) -> v1::RetentionPlan {
    let plan = simulated(fleet, Some(policy)).await;
    let kept: Vec<String> =
        plan.decisions.iter().filter(|one| one.keep).map(|one| one.snapshot_id.clone()).collect();
    declare_less(fleet, policy).await;
    let done = async || (ids(fleet).await == kept).then_some(());
    until_async("what is not kept to be removed", PATIENCE, done).await;
    let mut there: Vec<String> = fleet
        .restic()
        .snapshots()
        .iter()
        .map(|snapshot| snapshot["id"].as_str().unwrap().to_owned())
        .collect();
    let mut kept = kept;
    kept.sort();
    there.sort();
    assert_eq!(there, kept);
    plan
}

/// Who did what, one line each.
async fn audit(fleet: &Fleet) -> String {
    let mut audit = String::new();
    let mut parts = fleet.status().audit(v1::AuditRequest::default()).await.unwrap().into_inner();
    while let Some(part) = parts.message().await.unwrap() {
        part.entries.iter().for_each(|entry| audit.push_str(&format!("{} {}\n", entry.action, entry.target)));
    }
    audit
}

fn reason_of<'p>(plan: &'p v1::RetentionPlan, id: &str) -> &'p str {
    &plan.decisions.iter().find(|decision| decision.snapshot_id == id).unwrap().reason
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_simulated_is_what_is_removed_and_protected_snapshots_stay() {
    let (fleet, tree, snapshots) = fleet_with_snapshots(6).await;
    hold(&fleet, &snapshots[0]).await;
    let verify = v1::StartVerify { snapshot: snapshots[1].clone() };
    let verify = fleet.start_run(v1::start_request::What::Verify(verify)).await.unwrap();
    assert_eq!(fleet.ended(&verify).await.phase, "succeeded");
    assert!(simulated(&fleet, None).await.decisions.iter().all(|decision| decision.keep));

    let plan = expect_as_simulated(&fleet, "keep: { last: 2 }").await;
    assert_eq!(ids(&fleet).await, [5, 4, 1, 0].map(|number: usize| snapshots[number].clone()));
    assert_eq!(reason_of(&plan, &snapshots[0]), "held: an audit");
    assert_eq!(reason_of(&plan, &snapshots[1]), "the last verified one");
    assert_eq!(reason_of(&plan, &snapshots[2]), "no rule keeps it");
    assert!(reason_of(&plan, &snapshots[5]).starts_with("the last good one; "), "{plan:?}");
    let audit = audit(&fleet).await;
    let entry =
        format!("snapshot.forget snapshot/{} of tree in main: policy p: no rule keeps it", snapshots[2]);
    assert!(audit.contains(&entry), "{audit}");

    // By itself after a backup, and after a hold has ended.
    std::fs::write(tree.join("file"), "newest").unwrap();
    fleet.backup_well("tree", "incremental").await;
    let gone = async |id: &String| (!ids(&fleet).await.contains(id)).then_some(());
    until_async("the third newest to go", PATIENCE, async || gone(&snapshots[4]).await).await;
    let request = v1::ReleaseRequest {
        id: snapshots[0].clone(),
        confirm: snapshots[0][..8].to_owned(),
        reason: "over".to_owned(),
    };
    fleet.snapshots().release(request).await.unwrap();
    until_async("what is not held any more to go", PATIENCE, async || gone(&snapshots[0]).await).await;
    fleet.restic().check_all_data();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_does_not_stand_in_for_the_last_good_one() {
    let (fleet, _, snapshots) = fleet_with_snapshots(3).await;
    // The newest data is in the newest pack of data.
    let packs = std::fs::read_dir(fleet.repository().join("data")).unwrap();
    let packs = packs.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    let mut packs: Vec<_> = packs
        .map(|pack| pack.unwrap())
        .map(|pack| (pack.metadata().unwrap().modified().unwrap(), pack.path()))
        .collect();
    packs.sort();
    let newest = &packs.last().unwrap().1;
    let mut bytes = std::fs::read(newest).unwrap();
    bytes[20] ^= 1;
    std::fs::write(newest, bytes).unwrap();
    let verify = v1::StartVerify { snapshot: snapshots[2].clone() };
    let verify = fleet.start_run(v1::start_request::What::Verify(verify)).await.unwrap();
    assert_eq!(fleet.ended(&verify).await.phase, "failed");

    let plan = expect_as_simulated(&fleet, "keep: { last: 1 }").await;
    assert_eq!(ids(&fleet).await, [snapshots[1].clone()]);
    assert_eq!(reason_of(&plan, &snapshots[1]), "the last good one; the last complete one; last 1 of 1");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_removed_while_the_clock_of_the_controller_is_off() {
    let clock = SkewedClock::default();
    let mut fleet = Fleet::controller_at(clock.shared()).await;
    fleet.add_agent("a1").await;
    fleet.add_repository("main", &format!("file://{}", fleet.repository().display()), "").await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    declare(&fleet, &tree, "").await.unwrap();
    let old = fleet.backup_well("tree", "full").await.snapshot_id;
    let new = fleet.backup_well("tree", "full").await.snapshot_id;
    clock.jump(SignedDuration::from_mins(10));
    let said = async || {
        Some(simulated(&fleet, Some("keep: { last: 1 }")).await.frozen).filter(|why| !why.is_empty())
    };
    let frozen = until_async("the clock to be seen to be off", PATIENCE, said).await;
    assert!(frozen.starts_with("the controller's clock is off by "), "{frozen}");
    declare_less(&fleet, "keep: { last: 1 }").await;
    assert!(simulated(&fleet, None).await.decisions.iter().all(|decision| decision.keep));

    clock.jump(-SignedDuration::from_mins(10));
    let right = async || simulated(&fleet, None).await.frozen.is_empty().then_some(());
    until_async("the clock to be seen to be right", PATIENCE, right).await;
    assert_eq!(ids(&fleet).await, [new.clone(), old]);
    let third = fleet.backup_well("tree", "full").await.snapshot_id;
    let done = async || (ids(&fleet).await == [third.clone()]).then_some(());
    until_async("the old ones to go", PATIENCE, done).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_removed_while_backups_fail() {
    let clock = SkewedClock::default();
    let (fleet, _, snapshots) = fleet_at(clock.shared(), 3).await;
    let request =
        v1::PauseSourceRequest { source: "tree".to_owned(), reason: "a test".to_owned(), for_seconds: 0 };
    fleet.policies().pause(request).await.unwrap();
    clock.jump(SignedDuration::from_hours(72));
    declare_less(&fleet, "schedule: { full: { every: 1d } }, keep: { last: 1 }").await;
    let plan = simulated(&fleet, None).await;
    assert_eq!(plan.frozen, "the newest good one is 3d old, the schedule promises one every 1d12h");
    assert!(plan.decisions.iter().all(|decision| decision.keep));
    let new = fleet.backup_well("tree", "full").await.snapshot_id;
    let done = async || (ids(&fleet).await == [new.clone()]).then_some(());
    until_async("the old ones to go", PATIENCE, done).await;
    // Not before there was a new one.
    let audit = audit(&fleet).await;
    let at = |text: &str| audit.find(text).unwrap_or_else(|| panic!("{text} is not in {audit}"));
    for old in &snapshots {
        assert!(
            at(&format!("snapshot.forget snapshot/{old}")) > at(&format!("snapshot.commit snapshot/{new}"))
        );
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_that_is_too_full_is_cleaned_up_but_for_the_newest() {
    let (fleet, _, snapshots) = fleet_with_snapshots(5).await;
    let plan = expect_as_simulated(&fleet, "keep: { cleanup: { above: 1kB, newest: 2 } }").await;
    assert_eq!(ids(&fleet).await, [4, 3].map(|number: usize| snapshots[number].clone()));
    assert_eq!(reason_of(&plan, &snapshots[0]), "the storage is fuller than 1kB (cleanup)");
    // The file system of the tests is not full to the last percent.
    let plan = simulated(&fleet, Some("keep: { cleanup: { above: 100%, newest: 1 } }")).await;
    assert!(plan.decisions.iter().all(|decision| decision.keep));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_deletes_what_is_not_held_and_confirms_the_last_good_one_apart() {
    let (fleet, _, snapshots) = fleet_with_snapshots(4).await;
    let [first, second, third, last] = [0, 1, 2, 3].map(|number: usize| snapshots[number].as_str());
    hold(&fleet, first).await;
    let refused = forget(&fleet, &[first, second], &["tree"]).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::SnapshotHeld);
    assert_eq!(refused.message, format!("snapshot {} is held for: an audit", &first[..8]));
    for confirm in [&[][..], &["main"]] {
        let refused = forget(&fleet, &[second], confirm).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::NeedsConfirmation, "{refused:?}");
    }
    assert_eq!(ids(&fleet).await.len(), 4);
    forget(&fleet, &[second], &["tree"]).await.unwrap();
    let refused = forget(&fleet, &[third, last], &["tree"]).await.unwrap_err();
    let why = format!("snapshot {}: it is the last good one of tree in main", &last[..8]);
    assert_eq!((refused.code, &refused.why[..]), (ErrorCode::NeedsConfirmation, &[why][..]));
    assert_eq!(ids(&fleet).await, [last, third, first]);
    forget(&fleet, &[third, last], &["tree", &last[..8]]).await.unwrap();
    assert_eq!(ids(&fleet).await, [first]);
    let unknown = forget(&fleet, &[second], &["tree"]).await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::SnapshotUnknown);
    assert_eq!(fleet.restic().snapshots().len(), 1);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_simulates_and_deletes() {
    let (fleet, _, snapshots) = fleet_with_snapshots(3).await;
    let file = fleet.path().join("try.yaml");
    std::fs::write(&file, "api: holdfast/v1\npolicies:\n  p: { keep: { last: 1 } }\n").unwrap();
    let cli = |arguments: &[&str]| run(fleet.cli().args(arguments), PATIENCE);
    let file = file.to_str().unwrap();
    let table = cli(&["policy", "simulate", "p", "--policy-file", file]).expect_success().stdout;
    let line = table.lines().find(|line| line.contains(&snapshots[0][..8])).unwrap();
    assert!(line.contains("remove") && line.contains("no rule keeps it"), "{table}");
    let json = cli(&["policy", "simulate", "tree", "--policy-file", file, "-o", "json"]).expect_success();
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let kept: Vec<bool> =
        json["items"].as_array().unwrap().iter().map(|item| item["keep"].as_bool().unwrap()).collect();
    assert_eq!(kept, [true, false, false]);
    let unknown = cli(&["policy", "simulate", "nobody"]).expect_code(4);
    assert!(unknown.stderr.contains("HF-4001"), "{}", unknown.stderr);

    let (old, last) = (&snapshots[0][..8], &snapshots[2][..8]);
    let planned = cli(&["backup", "delete", last, "--dry-run"]).expect_success();
    assert!(planned.stdout.contains("the last good one of tree in main"), "{}", planned.stdout);
    let refused = cli(&["backup", "delete", last, "--confirm", "tree", "--reason", "a test"]).expect_code(9);
    assert!(refused.stderr.contains("HF-1009"), "{}", refused.stderr);
    drop(cli(&["backup", "delete", old, "--confirm", "tree", "--reason", "a test"]).expect_success());
    assert_eq!(ids(&fleet).await, [snapshots[2].clone(), snapshots[1].clone()]);
    fleet.stop().await;
}
