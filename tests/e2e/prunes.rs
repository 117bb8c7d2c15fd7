//! Repositories that are pruned: what goes, what stays, and who may be about meanwhile.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use holdfast_model::ErrorCode;
use holdfast_model::Failure;
use holdfast_proto::status::from_status;
use holdfast_proto::v1;
use holdfast_tests::process_fleet::LONG_LEASE;
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{Fleet, ProcessFleet, SkewedClock, assert_same_tree, run};
use jiff::SignedDuration;

const FILES: usize = 12;
const FILE_BYTES: usize = 300_000;

/// Writes some of the files anew, each with bytes of its own.
fn change(tree: &Path, files: impl IntoIterator<Item = usize>, seed: u64) {
    use rand::{RngExt as _, SeedableRng as _};
    std::fs::create_dir_all(tree).unwrap();
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    for file in files {
        let mut bytes = vec![0; FILE_BYTES];
        random.fill(&mut bytes[..]);
        std::fs::write(tree.join(file.to_string()), bytes).unwrap();
    }
}

/// Bytes of the files below a folder; none when it is not there.
fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.file_type().unwrap().is_dir() {
        true => bytes_below(&entry.path()),
        false => entry.metadata().unwrap().len(),
    };
    entries.map(|entry| size(entry.unwrap())).sum()
}

async fn fleet_with_history(backups: u64) -> (Fleet, PathBuf) {
    let fleet = Fleet::start().await;
    let tree = fleet.path().join("data");
    change(&tree, 0..FILES, 1);
    let source = format!("sources:\n  tree: {{ engine: files, agent: a1, paths: [{}] }}\n", tree.display());
    fleet.apply(&source).await.unwrap();
    fleet.backup_well("tree", "full").await;
    for round in 1..backups {
        change(&tree, (0..FILES).filter(|file| !(*file as u64).is_multiple_of(backups)), round * 100);
        fleet.backup_well("tree", "incremental").await;
    }
    (fleet, tree)
}

/// Forgets all snapshots but the newest, as another program does.
fn forget_by_restic(fleet: &Fleet) {
    fleet.restic().run(&["forget", "--keep-last", "1"]);
}

async fn plan(fleet: &Fleet) -> v1::PrunePlan {
    let request = v1::PruneRepositoryRequest { name: "main".to_owned(), dry_run: true, ..Default::default() };
    fleet.repositories().prune(request).await.unwrap().into_inner().plan.unwrap()
}

async fn start_prune(fleet: &Fleet, approved: bool) -> Result<v1::Run, Failure> {
    let (confirm, reason) = if approved { ("main", "a test") } else { ("", "") };
    let request = v1::PruneRepositoryRequest {
        name: "main".to_owned(),
        confirm: confirm.to_owned(),
        reason: reason.to_owned(),
        ..Default::default()
    };
    let reply = fleet.repositories().prune(request).await.map_err(|status| from_status(&status))?;
    Ok(reply.into_inner().run.unwrap())
}

async fn prune_well(fleet: &Fleet) -> String {
    let run = fleet.ended(&start_prune(fleet, true).await.unwrap()).await;
    let log = fleet.log(&run).await;
    assert_eq!(run.phase, "succeeded", "{run:?}\n{log}");
    log
}

async fn expect_restored(fleet: &Fleet, tree: &Path) {
    let request = v1::PlanRestoreRequest { source: "tree".to_owned(), ..Default::default() };
    let (_, report) = fleet.restore_well(request).await;
    assert_same_tree(tree, report.targets[0].restored.as_ref());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_forgotten_gives_its_room_back_and_the_rest_is_as_it_was() {
    let (fleet, tree) = fleet_with_history(3).await;
    let data = fleet.repository().join("data");
    let before = bytes_below(&data);
    let planned = plan(&fleet).await;
    assert_eq!((planned.snapshots, planned.dead_bytes / 20_000, planned.needs_approval), (3, 0, false));
    forget_by_restic(&fleet);
    let planned = plan(&fleet).await;
    assert_eq!((planned.snapshots, planned.bytes, planned.needs_approval), (1, before, true));
    // Two thirds of the files were changed twice.
    let dead = 2 * FILES / 3 * FILE_BYTES * 2;
    assert!(planned.dead_bytes.abs_diff(dead as u64) < 200_000, "{planned:?}");

    let refused = fleet.ended(&start_prune(&fleet, false).await.unwrap()).await;
    let failure = refused.failure.unwrap();
    assert_eq!(failure.code, ErrorCode::NeedsConfirmation.to_string());
    assert!(failure.message.contains("more than 30% go without a person"), "{}", failure.message);
    assert_eq!(bytes_below(&data), before);

    let log = prune_well(&fleet).await;
    assert!(log.contains("into the trash: "), "{log}");
    let freed = before - bytes_below(&data);
    assert!(freed * 100 >= planned.dead_bytes * 95, "{freed} of {planned:?}\n{log}");
    let trash = bytes_below(&fleet.repository().join("trash"));
    assert!(trash >= freed);
    let request = v1::RepositoryUsageRequest { name: "main".to_owned() };
    let usage = fleet.repositories().usage(request).await.unwrap().into_inner().repository.unwrap();
    assert_eq!((usage.trash_bytes, usage.stored_bytes), (trash, bytes_below(&data)));
    assert!(usage.pruned_at.is_some());
    let left = plan(&fleet).await;
    assert!(left.dead_bytes * 20 <= left.bytes, "{left:?}");
    fleet.restic().check_all_data();
    expect_restored(&fleet, &tree).await;
    assert_eq!(fleet.snapshots_of("tree").await.len(), 1);

    // What stayed is known, and what went is not.
    let again = fleet.backup_well("tree", "full").await;
    assert!(again.progress.unwrap().bytes_new < 20_000);
    change(&tree, 0..FILES, 1);
    let old = fleet.backup_well("tree", "full").await;
    assert!(old.progress.unwrap().bytes_new as usize > 2 * FILES / 3 * FILE_BYTES);
    fleet.restic().check_all_data();
    expect_restored(&fleet, &tree).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trash_is_emptied_after_its_time() {
    let (mut fleet, tree) = fleet_with_history(2).await;
    let url = format!("file://{}", fleet.repository().display());
    fleet.add_repository("main", &url, ", prune: { grace: 1s, approve_above: 100% }").await;
    forget_by_restic(&fleet);
    let trash = fleet.repository().join("trash");
    let emptied = async || {
        let run = fleet.ended(&start_prune(&fleet, false).await.unwrap()).await;
        assert_eq!(run.phase, "succeeded", "{run:?}");
        (bytes_below(&trash) == 0).then_some(())
    };
    until_async("the trash to be emptied", PATIENCE, emptied).await;
    assert_eq!(std::fs::read_dir(&trash).unwrap().count(), 0, "no folder of a moment is left");
    fleet.restic().check_all_data();
    expect_restored(&fleet, &tree).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_waits_for_another_program_that_writes() {
    let (fleet, tree) = fleet_with_history(2).await;
    forget_by_restic(&fleet);
    let mut restic = Command::new("restic")
        .args(["--no-cache", "backup", "--stdin", "--stdin-filename", "foreign", "--repo"])
        .arg(fleet.repository())
        .arg("--password-file")
        .arg(fleet.password_file())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = restic.stdin.take().unwrap();
    input.write_all(b"the first half, ").unwrap();
    let locks = fleet.repository().join("locks");
    let locked = async || (std::fs::read_dir(&locks).unwrap().count() > 0).then_some(());
    until_async("restic to hold the repository", PATIENCE, locked).await;
    let started = start_prune(&fleet, true).await.unwrap();
    let waits = async || {
        let request = v1::GetRunRequest { run_id: started.id.clone() };
        let run = fleet.runs().get(request).await.unwrap().into_inner().run.unwrap();
        assert_eq!(run.phase.as_str().replace("queued", "running").replace("assigned", "running"), "running");
        (run.progress.unwrap().stage == "waiting for another program").then_some(())
    };
    until_async("the prune to wait", PATIENCE, waits).await;
    let log = fleet.log(&started).await;
    assert!(log.contains("waits: the repository is locked by "), "{log}");
    input.write_all(b"and the second").unwrap();
    drop(input);
    assert!(restic.wait().unwrap().success());
    let ended = fleet.ended(&started).await;
    assert_eq!(ended.phase, "succeeded", "{ended:?}");
    assert_eq!(fleet.restic().run(&["dump", "latest", "/foreign"]), "the first half, and the second");
    fleet.restic().check_all_data();
    expect_restored(&fleet, &tree).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_shows_the_plan_and_asks_for_a_name() {
    let (fleet, _) = fleet_with_history(2).await;
    forget_by_restic(&fleet);
    let prune =
        |arguments: &[&str]| run(fleet.cli().args(["repo", "prune", "main"]).args(arguments), PATIENCE);
    let planned = prune(&["--dry-run", "-o", "json"]).expect_success().stdout;
    let planned: serde_json::Value = serde_json::from_str(&planned).unwrap();
    let plan = &planned["items"][0];
    assert_eq!((plan["needs_approval"].as_bool(), plan["snapshots"].as_u64()), (Some(true), Some(1)));
    let shown = prune(&["--dry-run"]).expect_success().stdout;
    assert!(shown.starts_with("prune of main\n") && shown.contains("frees"), "{shown}");
    let refused = prune(&[]).expect_code(9);
    assert!(refused.stderr.contains("HF-1009"), "{}", refused.stderr);
    let asked_for = "repo prune main --confirm main --reason TEXT";
    assert!(refused.stderr.contains(asked_for), "{}", refused.stderr);
    let freed = plan["freed_bytes"].as_u64().unwrap();
    let before = bytes_below(&fleet.repository().join("data"));
    drop(prune(&["--confirm", "main", "--reason", "a test"]).expect_success());
    assert!(before - bytes_below(&fleet.repository().join("data")) >= freed * 95 / 100);
    fleet.restic().check_all_data();
    fleet.stop().await;
}

/// Backs a source up again and again, with new data each time, until told to stop; gives the last runs.
async fn keep_backing_up(fleet: &Fleet, source: &str, tree: &Path, rounds: u64) -> Vec<String> {
    let mut made = Vec::new();
    for round in 0..rounds {
        change(tree, (0..4).map(|file| (file + round as usize) % 6), round * 7 + source.len() as u64 * 1000);
        let kind = if round % 3 == 2 { "full" } else { "incremental" };
        made.push(fleet.backup_well(source, kind).await.snapshot_id);
    }
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_and_removals_beside_prunes_lose_nothing() {
    let mut fleet = Fleet::start().await;
    let url = format!("file://{}", fleet.repository().display());
    fleet.add_repository("main", &url, ", prune: { grace: 1s, approve_above: 100% }").await;
    let trees = ["one", "second"].map(|name| fleet.path().join(name));
    for tree in &trees {
        change(tree, 0..6, 0);
    }
    fleet
        .apply(&format!(
            "sources:\n  one: {{ engine: files, agent: a1, paths: [{}] }}\n  second: {{ engine: files, agent: a1, paths: [{}] }}\n",
            trees[0].display(),
            trees[1].display()
        ))
        .await
        .unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    let backups = async {
        let made = tokio::join!(
            keep_backing_up(&fleet, "one", &trees[0], 8),
            keep_backing_up(&fleet, "second", &trees[1], 8)
        );
        over.store(true, std::sync::atomic::Ordering::Release);
        made
    };
    // Forgets all but the newest two of each source, and prunes.
    let removals = async {
        let mut pruned = 0;
        while !over.load(std::sync::atomic::Ordering::Acquire) {
            for source in ["one", "second"] {
                for snapshot in fleet.snapshots_of(source).await.into_iter().skip(2) {
                    let request = v1::ForgetSnapshotsRequest {
                        ids: vec![snapshot.id],
                        confirm: vec![source.to_owned()],
                        reason: "a test".to_owned(),
                        dry_run: false,
                    };
                    fleet.snapshots().forget(request).await.unwrap();
                }
            }
            let run = fleet.ended(&start_prune(&fleet, false).await.unwrap()).await;
            assert_eq!(run.phase, "succeeded", "{run:?}\n{}", fleet.log(&run).await);
            pruned += 1;
        }
        pruned
    };
    let (_, pruned) = tokio::join!(backups, removals);
    assert!(pruned >= 3, "only {pruned} prunes came to be");
    prune_well(&fleet).await;
    fleet.restic().check_all_data();
    for (source, tree) in ["one", "second"].iter().zip(&trees) {
        let request = v1::PlanRestoreRequest { source: (*source).to_owned(), ..Default::default() };
        let (_, report) = fleet.restore_well(request).await;
        assert_same_tree(tree, report.targets[0].restored.as_ref());
    }
    let left = plan(&fleet).await;
    assert!(left.dead_bytes * 20 <= left.bytes, "{left:?}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_program_is_kept_out_while_a_prune_removes_and_backups_of_ours_go_on() {
    let fleet = ProcessFleet::start(LONG_LEASE, ["prune-after-new-index"]).await;
    let tree = fleet.path().join("data");
    change(&tree, 0..4, 1);
    fleet.declare_tree(&tree).await;
    let first = fleet.backup_well("tree", "full").await.snapshot_id;
    change(&tree, 0..3, 2);
    fleet.backup_well("tree", "incremental").await;
    let request = v1::ForgetSnapshotsRequest {
        ids: vec![first],
        confirm: vec!["tree".to_owned()],
        reason: "a test".to_owned(),
        dry_run: false,
    };
    fleet.snapshots().forget(request).await.unwrap();
    let hold = fleet.hold("prune-after-new-index");
    let request = v1::PruneRepositoryRequest {
        name: "main".to_owned(),
        confirm: "main".to_owned(),
        reason: "a test".to_owned(),
        ..Default::default()
    };
    let pruning = fleet.repositories().prune(request).await.unwrap().into_inner().run.unwrap();
    fleet.is_held(&hold).await;
    let refused = fleet.restic().try_run(&["forget", "--keep-last", "1"]);
    assert!(refused.stderr.contains("repository is already locked exclusively"), "{}", refused.stderr);
    // A snapshot can be taken, and none be removed.
    change(&tree, 1..3, 3);
    let backup = fleet.start_backup("tree", "incremental").await.unwrap();
    let list = fleet.snapshots_of("tree").await;
    let request = v1::ForgetSnapshotsRequest {
        ids: vec![list[0].id.clone()],
        confirm: vec!["tree".to_owned(), list[0].id[..8].to_owned()],
        reason: "a test".to_owned(),
        dry_run: false,
    };
    let busy = fleet.snapshots().forget(request).await.unwrap_err();
    assert_eq!(from_status(&busy).code, ErrorCode::RunAlreadyActive);
    drop(hold);
    for run in [&backup, &pruning] {
        let ended = fleet.ended(run).await;
        assert_eq!(ended.phase, "succeeded", "{ended:?}\n{}", fleet.log(&ended).await);
    }
    fleet.restic().check_all_data();
    let restored = fleet.path().join("restored");
    fleet.restic().restore("latest", &restored);
    assert_same_tree(&tree, &restored.join(tree.strip_prefix("/").unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_pruned_by_itself_when_it_is_due_and_something_is_to_be_gained() {
    let clock = SkewedClock::default();
    let mut fleet = Fleet::controller_at(clock.shared()).await;
    fleet.add_agent("a1").await;
    let url = format!("file://{}", fleet.repository().display());
    fleet.add_repository("main", &url, ", prune: { approve_above: 100% }").await;
    let tree = fleet.path().join("data");
    change(&tree, 0..4, 1);
    let source = format!("sources:\n  tree: {{ engine: files, agent: a1, paths: [{}] }}\n", tree.display());
    fleet.apply(&source).await.unwrap();
    let first = fleet.backup_well("tree", "full").await.snapshot_id;
    change(&tree, 0..3, 2);
    fleet.backup_well("tree", "full").await;
    let request = v1::ForgetSnapshotsRequest {
        ids: vec![first],
        confirm: vec!["tree".to_owned()],
        reason: "a test".to_owned(),
        dry_run: false,
    };
    fleet.snapshots().forget(request).await.unwrap();
    let prunes = async || {
        let request = v1::ListRunsRequest { kind: "prune".to_owned(), ..Default::default() };
        fleet.runs().list(request).await.unwrap().into_inner().runs
    };
    assert_eq!(prunes().await.len(), 0);
    let before = bytes_below(&fleet.repository().join("data"));
    for number in 1..=2 {
        clock.jump(SignedDuration::from_hours(25));
        let done = async || {
            let runs = prunes().await;
            (runs.len() == number && runs[0].phase == "succeeded").then(|| runs[0].clone())
        };
        let run = until_async("a prune to have come by itself", PATIENCE, done).await;
        assert_eq!(run.requested_by, "controller");
        // First into the trash, then out of it.
        let trash = bytes_below(&fleet.repository().join("trash"));
        assert_eq!(trash > 0, number == 1, "{trash} bytes are in the trash");
    }
    assert!(bytes_below(&fleet.repository().join("data")) < before - 2 * FILE_BYTES as u64);
    fleet.restic().check_all_data();
    fleet.stop().await;
}
