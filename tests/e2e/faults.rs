//! Faults of what Holdfast stands on: each ends with its exact error, commits nothing, loses nothing, and is over when
//! its cause is.

mod closed_output;
mod full_disk;
mod identity;
mod odd_names;
mod repository;

use std::path::PathBuf;

use holdfast_model::ErrorCode;
use holdfast_proto::v1;
use holdfast_proto::v1::PlanRestoreRequest;
use holdfast_tests::{Fleet, TreeSpec, assert_same_tree};

/// A source `tree` of this agent, with a small tree.
async fn add_tree(fleet: &Fleet, agent: &str) -> PathBuf {
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(5).make(&tree);
    let yaml =
        format!("sources:\n  tree: {{ engine: files, agent: {agent}, paths: [{}] }}\n", tree.display());
    fleet.apply(&yaml).await.unwrap();
    tree
}

fn latest(source: &str) -> PlanRestoreRequest {
    PlanRestoreRequest { source: source.to_owned(), to: "latest".to_owned(), ..Default::default() }
}

async fn check(fleet: &Fleet, read_data: bool) -> v1::Run {
    let check = v1::StartCheck { repository: "main".to_owned(), read_data };
    let run = fleet.start_run(v1::start_request::What::Check(check)).await.unwrap();
    fleet.ended(&run).await
}

#[track_caller]
fn assert_failed(run: &v1::Run, code: ErrorCode, message: &str) {
    assert_eq!(run.phase, "failed", "{run:?}");
    let failure = run.failure.as_ref().expect("a run that failed says why");
    assert_eq!((failure.code.as_str(), failure.message.as_str()), (code.to_string().as_str(), message));
}

/// Backs the source `tree` up, restores it, and lets the independent reader look at everything.
async fn assert_work_goes_on(fleet: &Fleet, tree: &std::path::Path) {
    fleet.backup_well("tree", "incremental").await;
    let (_, report) = fleet.restore_well(latest("tree")).await;
    assert_same_tree(tree, report.targets[0].restored.as_ref());
    fleet.restic().check_all_data();
}
