//! File trees: backed up through controller and agent, read back by `restic` and by ourselves.

use std::os::unix::fs::MetadataExt as _;

use holdfast_proto::v1::{DiscardRestoreRequest, PlanRestoreRequest};
use holdfast_tests::{Fleet, TreeSpec, assert_same_tree};

fn latest(source: &str) -> PlanRestoreRequest {
    PlanRestoreRequest { source: source.to_owned(), to: "latest".to_owned(), ..PlanRestoreRequest::default() }
}

async fn fleet_with_tree() -> (Fleet, std::path::PathBuf) {
    let fleet = Fleet::start().await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).expect("the folder of the fleet is ours");
    TreeSpec::small(7).make(&tree);
    fleet
        .apply(&format!("sources:\n  tree: {{ engine: files, agent: a1, paths: [{}] }}\n", tree.display()))
        .await
        .expect("the source is good");
    (fleet, tree)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_comes_back_bit_exact_by_restic_and_by_ourselves() {
    let (fleet, tree) = fleet_with_tree().await;
    let run = fleet.backup_well("tree", "full").await;
    let restic = fleet.restic();
    restic.check_all_data();
    let by_restic = fleet.path().join("by-restic");
    restic.restore(&run.snapshot_id, &by_restic);
    assert_same_tree(&tree, &by_restic.join(tree.strip_prefix("/").expect("the path is absolute")));
    let (_, report) = fleet.restore_well(latest("tree")).await;
    assert_eq!(report.targets.len(), 1);
    assert_same_tree(&tree, report.targets[0].restored.as_ref());
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incremental_backup_stores_what_changed_and_nothing_else() {
    let (fleet, tree) = fleet_with_tree().await;
    let full = fleet.backup_well("tree", "full").await;
    let unchanged = fleet.backup_well("tree", "incremental").await;
    let progress = |run: &holdfast_proto::v1::Run| run.progress.clone().expect("a backup has counters");
    assert!(progress(&unchanged).bytes_new * 20 < progress(&full).bytes_new, "{unchanged:?}");
    assert!(progress(&unchanged).files_unchanged > 0);
    std::fs::write(tree.join("new file"), "x".repeat(10_000)).expect("the tree is ours");
    let changed = fleet.backup_well("tree", "incremental").await;
    let (_, report) = fleet.restore_well(latest("tree")).await;
    assert_same_tree(&tree, report.targets[0].restored.as_ref());
    assert_eq!(fleet.snapshots_of("tree").await.len(), 3);
    assert_ne!(changed.snapshot_id, unchanged.snapshot_id);
    fleet.restic().check_all_data();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_restore_repairs_what_differs_and_keeps_what_makes_way() {
    let (mut fleet, tree) = fleet_with_tree().await;
    fleet.stop_agent("a1").await;
    fleet.configure_agent("a1", |config| config.allow.restore_in_place = true);
    fleet.start_agent("a1").await;
    for (name, text) in [("wrong", "right"), ("gone", "here"), ("kept", "as it was")] {
        std::fs::write(tree.join(name), text.repeat(5000)).expect("the tree is ours");
    }
    fleet.backup_well("tree", "full").await;
    let (_, beside) = fleet.restore_well(latest("tree")).await;
    std::fs::write(tree.join("wrong"), "damaged").expect("the tree is ours");
    std::fs::remove_file(tree.join("gone")).expect("the tree is ours");
    std::fs::create_dir(tree.join("later")).expect("the tree is ours");
    std::fs::write(tree.join("later/file"), "not in the snapshot").expect("the tree is ours");
    let untouched = std::fs::metadata(tree.join("kept")).expect("it is there").ino();

    let delta = PlanRestoreRequest { in_place: true, delta: true, ..latest("tree") };
    let plan = fleet.plan(delta.clone()).await.expect("it can be planned");
    assert_eq!((plan.confirm_with.as_str(), plan.obstacles.len()), ("tree", 0), "{plan:?}");
    assert!(plan.preview_json.contains("move what differs, and what the snapshot lacks, to"), "{plan:?}");
    assert_eq!(std::fs::read_to_string(tree.join("wrong")).expect("a plan touches nothing"), "damaged");
    let (run, report) = fleet.restore_well(delta).await;
    assert_same_tree(beside.targets[0].restored.as_ref(), &tree);
    assert_eq!(std::fs::metadata(tree.join("kept")).expect("it is there").ino(), untouched);
    assert!(report.bytes_unchanged > report.bytes_written, "{report:?}");

    let kept = std::path::PathBuf::from(report.targets[0].kept.clone().expect("what makes way is kept"));
    assert_eq!(std::fs::read_to_string(kept.join("wrong")).expect("it is kept"), "damaged");
    assert_eq!(std::fs::read_to_string(kept.join("later/file")).expect("it is kept"), "not in the snapshot");
    assert!(!kept.join("kept").exists());
    let discard = DiscardRestoreRequest {
        run_id: run.id.clone(),
        confirm: "tree".to_owned(),
        idempotency_key: String::new(),
    };
    let discarded = fleet.restores().discard(discard).await.expect("it can be removed").into_inner();
    let ended = fleet.ended(&discarded.run.expect("it is a run")).await;
    assert_eq!(ended.phase, "succeeded", "{ended:?}");
    assert!(!kept.exists() && tree.join("wrong").exists());
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_restore_of_a_database_is_refused() {
    let mut fleet = Fleet::start().await;
    fleet.stop_agent("a1").await;
    fleet.configure_agent("a1", |config| config.allow.restore_in_place = true);
    fleet.start_agent("a1").await;
    let file = fleet.path().join("shop.db");
    rusqlite::Connection::open(&file)
        .and_then(|database| database.execute_batch("CREATE TABLE orders (id INTEGER)"))
        .expect("a database can be made");
    fleet
        .apply(&format!("sources:\n  shop: {{ engine: sqlite, agent: a1, path: {} }}\n", file.display()))
        .await
        .expect("the source is good");
    fleet.backup_well("shop", "full").await;
    let delta = PlanRestoreRequest { in_place: true, delta: true, ..latest("shop") };
    let failure = fleet.plan(delta).await.expect_err("a database is restored whole");
    assert_eq!(
        (failure.code.to_string().as_str(), failure.message.as_str()),
        ("HF-4020", "a SQLite database is restored whole: a delta restore is for trees of files")
    );
    let beside = PlanRestoreRequest { delta: true, ..latest("shop") };
    let failure = fleet.plan(beside).await.expect_err("a delta has something to be compared with");
    assert_eq!(
        (failure.code.to_string().as_str(), failure.message.as_str()),
        ("HF-1001", "field delta: goes with in_place only")
    );
    fleet.stop().await;
}
