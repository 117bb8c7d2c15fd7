//! No space left: in the repository, in the controller's state, in the agent's data folder.

use std::path::Path;
use std::process::Command;

use holdfast_model::ErrorCode;
use holdfast_proto::v1::ExportRequest;
use holdfast_runtime::Ending;
use holdfast_tests::wait::PATIENCE;
use holdfast_tests::{Fleet, Process, Restic, SmallDisk, assert_same_tree, run};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::{add_tree, assert_failed, assert_work_goes_on, latest};

/// A file that cannot be made smaller.
fn write_noise(path: &Path, bytes: usize) {
    let mut noise = vec![0; bytes];
    StdRng::seed_from_u64(1).fill(noise.as_mut_slice());
    std::fs::write(path, noise).unwrap();
}

/// Moves a folder onto a disk, and leaves a link to it in its place.
fn move_onto(disk: &SmallDisk, folder: &Path) {
    let moved = disk.path().join("moved");
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(folder).arg(&moved);
    drop(run(&mut copy, PATIENCE).expect_success());
    std::fs::remove_dir_all(folder).unwrap();
    std::os::unix::fs::symlink(&moved, folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_repository_fails_the_backup_and_holds_what_it_held() {
    let disk = SmallDisk::new(8 << 10);
    let mut fleet = Fleet::controller_alone().await;
    fleet.add_agent("a1").await;
    let folder = disk.path().join("repository");
    fleet.add_repository("main", &format!("file://{}", folder.display()), "").await;
    let restic = Restic::new(folder.display().to_string(), fleet.password_file());
    let tree = add_tree(&fleet, "a1").await;
    let first = fleet.backup_well("tree", "full").await;

    write_noise(&tree.join("noise"), 16 << 20);
    let full = fleet.backup("tree", "incremental").await;
    let failure = full.failure.clone().unwrap();
    assert_eq!((&*full.phase, &failure.code), ("failed", &ErrorCode::StorageFull.to_string()));
    let (object, what) = failure.message.split_once(": ").unwrap();
    assert!(object.starts_with("object data/"), "{failure:?}");
    assert_eq!(what, "no space is left");
    disk.fill();
    std::fs::write(tree.join("noise"), "a new file of a few bytes").unwrap();
    let full = fleet.backup("tree", "incremental").await;
    assert_eq!(full.failure.unwrap().code, ErrorCode::StorageFull.to_string());
    let ids: Vec<String> = fleet.snapshots_of("tree").await.into_iter().map(|snapshot| snapshot.id).collect();
    assert_eq!(ids, [first.snapshot_id], "nothing was committed");
    fleet.restore_well(latest("tree")).await;

    disk.make_room();
    restic.check_all_data();
    fleet.backup_well("tree", "incremental").await;
    let (_, report) = fleet.restore_well(latest("tree")).await;
    assert_same_tree(&tree, report.targets[0].restored.as_ref());
    restic.check_all_data();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_state_stops_the_controller_and_nothing_acknowledged_is_lost() {
    let disk = SmallDisk::new(32 << 10);
    let mut fleet = Fleet::start().await;
    let tree = add_tree(&fleet, "a1").await;
    let first = fleet.backup_well("tree", "full").await;
    fleet.stop_controller().await;
    move_onto(&disk, &fleet.path().join("controller"));
    fleet.start_controller().await;
    // Nothing but the test writes any more: a session of the agent is a change of the state, too.
    fleet.until_connected("a1").await;
    let more = |name: &str, path: &str| {
        format!("sources:\n  {name}: {{ engine: files, agent: a1, paths: [{path}] }}\n")
    };
    let acknowledged = 20;
    for number in 0..acknowledged {
        fleet.apply(&more(&format!("more-{number}"), "/srv")).await.unwrap();
    }
    disk.fill();
    // More than fits into what is left of the last page.
    let refused = fleet.apply(&more("too-much", &format!("/{}", "x/".repeat(2000)))).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::StateUnavailable, "{refused}");
    assert_eq!(refused.message, "the state can no longer be written: writing the journal");
    assert!(refused.why.concat().contains("No space left on device"), "{refused}");
    let cause = match fleet.controller_ended().await.unwrap() {
        Ending::Drained(cause) | Ending::CutShort { cause, .. } => cause.to_string(),
    };
    assert_eq!(cause, "writing the journal failed: No space left on device (os error 28)");
    disk.make_room();
    fleet.start_controller().await;
    let fleet_file = fleet.fleet().export(ExportRequest::default()).await.unwrap().into_inner().yaml;
    for number in 0..acknowledged {
        assert!(fleet_file.contains(&format!("more-{number}:")), "source more-{number} was acknowledged");
    }
    assert_eq!(fleet.snapshots_of("tree").await[0].id, first.snapshot_id);
    assert_work_goes_on(&fleet, &tree).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_on_a_read_only_file_system_does_not_start_and_says_so() {
    let disk = SmallDisk::new(4 << 10);
    let mut fleet = Fleet::start().await;
    let tree = add_tree(&fleet, "a1").await;
    fleet.stop_agent("a1").await;
    let data_dir = fleet.path().join("agent-a1");
    move_onto(&disk, &data_dir);
    disk.set_read_only(true);
    let said = run(&mut fleet.agent_program("a1"), PATIENCE).expect_code(1).stderr;
    let expected = format!("error[HF-5008]: the data folder {} cannot be used\n", data_dir.display());
    assert!(said.contains(&expected), "{said}");
    assert!(said.contains("why   Read-only file system (os error 30)"), "{said}");
    disk.set_read_only(false);
    fleet.start_agent("a1").await;
    assert_work_goes_on(&fleet, &tree).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_data_folder_of_the_agent_fails_the_run_as_soon_as_that_can_be_written() {
    let disk = SmallDisk::new(4 << 10);
    let mut fleet = Fleet::start().await;
    let tree = add_tree(&fleet, "a1").await;
    let first = fleet.backup_well("tree", "full").await;
    fleet.stop_agent("a1").await;
    move_onto(&disk, &fleet.path().join("agent-a1"));
    let mut agent = Process::start("agent", &mut fleet.agent_program("a1"), fleet.path());
    agent.wait_until("a session", PATIENCE, |log| log.contains("connected to the controller").then_some(()));
    disk.fill();
    let started = fleet.start_backup("tree", "full").await.unwrap();
    agent.wait_until("a word about its disk", PATIENCE, |log| log.contains("[HF-5004]").then_some(()));
    disk.make_room();
    let ended = fleet.ended(&started).await;
    let journal = fleet.agent_config("a1").data_dir.join("journal.json");
    let message = format!("the journal {} cannot be read or written", journal.display());
    assert_failed(&ended, ErrorCode::AgentSpoolFull, &message);
    assert_eq!(ended.failure.unwrap().why, ["No space left on device (os error 28)"]);
    let ids: Vec<String> = fleet.snapshots_of("tree").await.into_iter().map(|snapshot| snapshot.id).collect();
    assert_eq!(ids, [first.snapshot_id], "nothing was committed");
    // The same process goes on.
    fleet.backup_well("tree", "incremental").await;
    assert_eq!(agent.terminate(PATIENCE).code(), Some(0));
    fleet.start_agent("a1").await;
    assert_work_goes_on(&fleet, &tree).await;
    fleet.stop().await;
}
