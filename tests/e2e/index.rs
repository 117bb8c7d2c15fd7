//! The controller's index of blobs over restarts: kept, lost, damaged, and behind what another program wrote.

use std::path::{Path, PathBuf};

use holdfast_model::ErrorCode;
use holdfast_proto::v1;
use holdfast_tests::{Fleet, TreeSpec, assert_same_tree};

/// What a backup of data that is all known may store: the trees and the manifest, which carry times.
const NEW_BYTES_MAX: u64 = 64 << 10;
const CHUNK_BYTES: usize = 64 << 10;

async fn fleet_with_backup() -> (Fleet, PathBuf) {
    let fleet = Fleet::start().await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(23).make(&tree);
    write_chunks(&tree.join("much"), 1);
    fleet
        .apply(&format!("sources:\n  tree: {{ engine: files, agent: a1, paths: [{}] }}\n", tree.display()))
        .await
        .unwrap();
    fleet.backup_well("tree", "full").await;
    (fleet, tree)
}

/// Sixteen files that are one chunk each, whoever cuts them.
fn write_chunks(folder: &Path, seed: u64) {
    std::fs::create_dir_all(folder).unwrap();
    for (number, bytes) in incompressible(16 * CHUNK_BYTES, seed).chunks(CHUNK_BYTES).enumerate() {
        std::fs::write(folder.join(number.to_string()), bytes).unwrap();
    }
}

fn incompressible(length: usize, seed: u64) -> Vec<u8> {
    use rand::{RngExt as _, SeedableRng as _};
    let mut bytes = vec![0; length];
    rand::rngs::StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

/// The folder of the only index of the controller.
fn index_folder(fleet: &Fleet) -> PathBuf {
    let all = std::fs::read_dir(fleet.path().join("controller/blobs")).unwrap();
    let [folder] = <[_; 1]>::try_from(all.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()).unwrap();
    folder
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Every blob of the tree is known, and found again.
async fn expect_all_known(fleet: &Fleet, tree: &Path, what: &str) {
    let run = fleet.backup_well("tree", "full").await;
    let progress = run.progress.expect("a backup has counters");
    assert!(progress.bytes_new < NEW_BYTES_MAX, "{what}: {} bytes were sent again", progress.bytes_new);
    let request = v1::PlanRestoreRequest {
        source: "tree".to_owned(),
        to: "latest".to_owned(),
        ..v1::PlanRestoreRequest::default()
    };
    let (_, report) = fleet.restore_well(request).await;
    assert_same_tree(tree, report.targets[0].restored.as_ref());
}

/// Opens the repository, without anything else.
async fn open(fleet: &Fleet) -> v1::Repository {
    let listed = fleet.repositories().list(v1::ListRepositoriesRequest {}).await.unwrap();
    listed.into_inner().repositories.swap_remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_there_is_used_and_only_new_index_objects_are_read() {
    let (mut fleet, tree) = fleet_with_backup().await;
    fleet.stop_controller().await;
    // Whoever reads these finds them damaged.
    let objects = files(&fleet.repository().join("index"));
    let whole: Vec<Vec<u8>> = objects.iter().map(|path| std::fs::read(path).unwrap()).collect();
    let write = |path: &Path, bytes: &[u8]| {
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    objects.iter().zip(&whole).for_each(|(path, bytes)| write(path, &bytes[..bytes.len() / 2]));
    fleet.start_controller().await;
    assert_eq!(open(&fleet).await.state, "open");
    expect_all_known(&fleet, &tree, "after a restart").await;
    fleet.stop_controller().await;
    // Without the index they are needed.
    std::fs::remove_dir_all(index_folder(&fleet)).unwrap();
    fleet.start_controller().await;
    let refused = open(&fleet).await;
    let code = refused.failure.map(|failure| failure.code);
    assert_eq!((refused.state.as_str(), code), ("damaged", Some(ErrorCode::ObjectDamaged.to_string())));
    objects.iter().zip(&whole).for_each(|(path, bytes)| write(path, bytes));
    expect_all_known(&fleet, &tree, "when they are whole again").await;
    fleet.restic().check_all_data();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_lost_or_cut_is_built_anew() {
    let (mut fleet, tree) = fleet_with_backup().await;
    fleet.stop_controller().await;
    let folder = index_folder(&fleet);
    for ending in ["segment", "packs", "indexes"] {
        let found: Vec<PathBuf> = files(&folder);
        let path = found.iter().find(|path| path.to_str().unwrap().ends_with(ending)).expect(ending);
        let bytes = std::fs::read(path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        fleet.start_controller().await;
        expect_all_known(&fleet, &tree, &format!("{ending} cut")).await;
        fleet.stop_controller().await;
    }
    std::fs::remove_dir_all(&folder).unwrap();
    fleet.start_controller().await;
    expect_all_known(&fleet, &tree, "folder gone").await;
    assert_eq!(index_folder(&fleet), folder);
    fleet.restic().check_all_data();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_program_added_or_removed_meanwhile_is_seen() {
    let (mut fleet, tree) = fleet_with_backup().await;
    fleet.stop_controller().await;
    let other = fleet.path().join("other");
    write_chunks(&other.join("foreign"), 2);
    fleet.restic().backup(&other);
    fleet.start_controller().await;
    write_chunks(&tree.join("copied"), 2);
    expect_all_known(&fleet, &tree, "a foreign backup while it was stopped").await;

    write_chunks(&other.join("later"), 3);
    fleet.restic().backup(&other);
    let name = v1::InitRepositoryRequest { name: "main".to_owned() };
    fleet.repositories().init(name).await.unwrap();
    write_chunks(&tree.join("copied too"), 3);
    expect_all_known(&fleet, &tree, "a foreign backup while it ran, then synced").await;

    // Whatever only the foreign snapshots used goes, and every index object with it.
    std::fs::remove_dir_all(tree.join("copied")).unwrap();
    fleet.backup_well("tree", "full").await;
    let ours = fleet.snapshots_of("tree").await[0].id.clone();
    fleet.stop_controller().await;
    let others: Vec<String> = fleet.restic().snapshots().iter().map(|one| one["id"].to_string()).collect();
    let others = others.iter().map(|id| id.trim_matches('"').to_owned()).filter(|id| *id != ours);
    let forget: Vec<String> = ["forget".to_owned(), "--prune".to_owned()].into_iter().chain(others).collect();
    fleet.restic().run(&forget);
    fleet.start_controller().await;
    expect_all_known(&fleet, &tree, "a foreign prune").await;
    write_chunks(&tree.join("copied again"), 2);
    let run = fleet.backup_well("tree", "full").await;
    assert!(run.progress.unwrap().bytes_new > 1 << 19, "what was pruned has to be sent again");
    fleet.restic().check_all_data();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_repository_has_an_index_of_its_own() {
    let (mut fleet, tree) = fleet_with_backup().await;
    let copy = fleet.path().join("copy");
    let copied = std::process::Command::new("cp").arg("-a").arg(fleet.repository()).arg(&copy).status();
    assert!(copied.unwrap().success());
    write_chunks(&tree.join("only in main"), 4);
    fleet.backup_well("tree", "full").await;
    fleet.add_repository("copy", &format!("file://{}", copy.display()), "").await;
    assert_eq!(std::fs::read_dir(fleet.path().join("controller/blobs")).unwrap().count(), 2);
    let sources = format!(
        "sources:\n  twin: {{ engine: files, agent: a1, to: [copy], paths: [{}] }}\n",
        tree.display()
    );
    fleet.apply(&sources).await.unwrap();
    let run = fleet.backup_well("twin", "full").await;
    assert!(run.progress.unwrap().bytes_new > 1 << 19, "what only the first has must be sent to the copy");
    holdfast_tests::Restic::new(copy.display().to_string(), fleet.password_file()).check_all_data();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_check_left_that_died_is_removed_when_the_controller_starts() {
    let mut fleet = Fleet::start().await;
    fleet.stop_controller().await;
    let left = fleet.path().join("controller/work/a-run-1");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("1.segment"), "half of a segment").unwrap();
    fleet.start_controller().await;
    assert!(!left.exists());
    fleet.stop().await;
}
