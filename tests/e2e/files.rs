//! File trees: backed up through controller and agent, read back by `restic` and by ourselves.

use holdfast_proto::v1::PlanRestoreRequest;
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
