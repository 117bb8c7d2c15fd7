//! Repositories that are read again as their policies say: everything in time, what is damaged found and stored again.

use std::path::{Path, PathBuf};

use holdfast_model::ErrorCode;
use holdfast_model::snapshot::Proof;
use holdfast_proto::v1;
use holdfast_runtime::Clock as _;
use holdfast_tests::packs::{largest_pack, packs};
use holdfast_tests::process_fleet::{Program, SHORT_LEASE};
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{Fleet, ProcessFleet, SkewedClock, run};
use jiff::{SignedDuration, Timestamp};

/// Everything is read again every four seconds, what is new within one.
const HASTY: &str = "objectives: { verify_every: 1h }, verify: { full: 4s }";

/// Writes some files, each with bytes of its own.
fn fill(tree: &Path, files: std::ops::Range<u64>, seed: u64) {
    use rand::{RngExt as _, SeedableRng as _};
    std::fs::create_dir_all(tree).unwrap();
    for file in files {
        let mut bytes = vec![0; 200_000];
        rand::rngs::StdRng::seed_from_u64(seed * 1000 + file).fill(&mut bytes[..]);
        std::fs::write(tree.join(file.to_string()), bytes).unwrap();
    }
}

async fn declare(fleet: &Fleet, tree: &Path, policy: &str) {
    let yaml = format!(
        "policies:\n  p: {{ to: [main], {policy} }}\nsources:\n  tree: {{ engine: files, agent: a1, policy: p, paths: [{}] }}\n",
        tree.display()
    );
    fleet.apply(&yaml).await.unwrap();
}

async fn fleet_under(policy: &str) -> (Fleet, PathBuf) {
    let fleet = Fleet::start().await;
    let tree = fleet.path().join("data");
    fill(&tree, 0..4, 1);
    declare(&fleet, &tree, policy).await;
    (fleet, tree)
}

async fn standing(fleet: &Fleet) -> v1::SourceStatus {
    let request = v1::FleetStatusRequest::default();
    fleet.status().fleet(request).await.unwrap().into_inner().sources.swap_remove(0)
}

fn verify_age(standing: &v1::SourceStatus) -> (&str, Option<i64>) {
    let found = standing.objectives.iter().find(|objective| objective.name == "verify_age").unwrap();
    (&found.state, found.actual)
}

/// The checks so far, newest first.
async fn checks(fleet: &holdfast_tests::fleet::Operator) -> Vec<v1::Run> {
    let request = v1::ListRunsRequest { kind: "check".to_owned(), page_size: 1000, ..Default::default() };
    fleet.runs().list(request).await.unwrap().into_inner().runs
}

/// Whether a run checks the structure of a repository, and no data.
fn is_of_structure(run: &v1::Run) -> bool {
    run.requested_by == "controller" && run.spec_json.contains("\"read_data\":false")
}

async fn snapshot(fleet: &Fleet, id: &str) -> v1::Snapshot {
    fleet.snapshots_of("tree").await.into_iter().find(|snapshot| snapshot.id == id).unwrap()
}

async fn until_proof(fleet: &Fleet, id: &str, proof: &str) {
    let what = format!("snapshot {id} to be {proof}");
    until_async(&what, PATIENCE, async || (snapshot(fleet, id).await.proof == proof).then_some(())).await;
}

fn flip(pack: &Path) {
    let mut bytes = std::fs::read(pack).unwrap();
    bytes[100] ^= 1;
    std::fs::write(pack, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schedule_finds_a_flipped_byte_and_the_next_backup_heals_it() {
    let (fleet, _) = fleet_under(HASTY).await;
    let first = fleet.backup_well("tree", "full").await.snapshot_id;
    until_proof(&fleet, &first, "read").await;
    assert_eq!(verify_age(&standing(&fleet).await).0, "met");
    let sound = checks(&fleet).await;
    assert!(sound.iter().all(|run| run.requested_by == "controller"), "{sound:?}");

    let pack = packs(&fleet.repository()).pop().unwrap();
    flip(&pack);
    until_proof(&fleet, &first, "damaged").await;
    let is_failed = async || checks(&fleet).await.into_iter().find(|run| run.phase == "failed");
    let found = until_async("the check to end", PATIENCE, is_failed).await;
    assert_eq!(found.failure.unwrap().code, ErrorCode::ObjectDamaged.to_string());
    let name = pack.file_name().unwrap().to_str().unwrap();
    let names_both = |finding: &String| finding.contains(name) && finding.contains(&first[..8]);
    assert!(found.findings.iter().any(names_both), "{:?}", found.findings);
    let at_risk = standing(&fleet).await;
    assert_eq!((at_risk.state.as_str(), at_risk.problem.contains("damaged")), ("not_restorable", true));

    let healed = fleet.backup_well("tree", "incremental").await.snapshot_id;
    assert_eq!(standing(&fleet).await.state, "protected");
    until_proof(&fleet, &healed, "read").await;
    assert_eq!(standing(&fleet).await.state, "protected");
    let failed = checks(&fleet).await.into_iter().filter(|run| run.phase == "failed").count();
    assert_eq!(failed, 1, "what is known to be damaged is not told again and again");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_reads_its_share_of_each_day_and_all_in_the_end() {
    let clock = SkewedClock::default();
    let mut fleet = Fleet::controller_at(clock.shared()).await;
    fleet.add_agent("a1").await;
    fleet.add_repository("main", &format!("file://{}", fleet.repository().display()), "").await;
    let tree = fleet.path().join("data");
    declare(&fleet, &tree, "objectives: { verify_every: 30d }, verify: { full: 30d }").await;
    let mut last = String::new();
    for round in 0..3 {
        fill(&tree, round * 3..round * 3 + 3, 1);
        last = fleet.backup_well("tree", "incremental").await.snapshot_id;
    }
    // Just after midnight little of the share of the day is due.
    let day = SignedDuration::from_hours(24);
    let into_day = SignedDuration::from_secs(clock.now().as_second().rem_euclid(day.as_secs()));
    clock.jump(day - into_day);
    declare(&fleet, &tree, "objectives: { verify_every: 30d }, verify: { sample: 50%/day }").await;
    let all: u64 = packs(&fleet.repository()).iter().map(|pack| pack.metadata().unwrap().len()).sum();
    let read_by = async |number: usize| {
        let done = async || {
            let runs = checks(&fleet).await;
            (runs.len() >= number && runs.iter().all(|run| run.phase == "succeeded")).then_some(runs)
        };
        let runs = until_async("the portion to be read", PATIENCE, done).await;
        runs.iter().map(|run| run.progress.as_ref().unwrap().bytes_read).sum::<u64>()
    };
    let read = read_by(1).await;
    assert!(read > 0 && read < all / 2, "{read} of {all} bytes");
    // One unread pack, and nothing is proven.
    assert_eq!(verify_age(&standing(&fleet).await), ("unknown", None));
    clock.jump(SignedDuration::from_hours(23));
    let read = read_by(2).await;
    assert!(read >= all / 2 && read < all, "{read} of {all} bytes");
    assert_eq!(verify_age(&standing(&fleet).await), ("unknown", None));
    clock.jump(day);
    until_proof(&fleet, &last, "read").await;
    let met = standing(&fleet).await;
    let (state, age) = verify_age(&met);
    assert_eq!(state, "met");
    let oldest = age.unwrap();
    assert!(
        (day.as_secs()..=2 * day.as_secs()).contains(&oldest),
        "the first portion was read {oldest} s ago"
    );
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_before_it_remembers_reads_again() {
    let mut fleet = ProcessFleet::start(SHORT_LEASE, ["verify-before-remember"]).await;
    let tree = fleet.path().join("data");
    fill(&tree, 0..4, 1);
    let yaml = format!(
        "policies:\n  p: {{ to: [main], {HASTY} }}\nsources:\n  tree: {{ engine: files, agent: a1, policy: p, paths: [{}] }}\n",
        tree.display()
    );
    let hold = fleet.hold("verify-before-remember");
    fleet.apply(&yaml).await.unwrap();
    fleet.backup_well("tree", "full").await;
    fleet.is_held(&hold).await;
    let [interrupted] = <[v1::Run; 1]>::try_from(checks(&fleet).await).unwrap();
    fleet.kill(Program::Controller);
    drop(hold);
    fleet.restart(Program::Controller);
    let read = async || {
        let request = v1::ListSnapshotsRequest { source: "tree".to_owned(), ..Default::default() };
        let snapshots = fleet.snapshots().list(request).await.ok()?.into_inner().snapshots;
        (snapshots[0].proof == "read").then_some(())
    };
    until_async("the snapshot to be read", PATIENCE, read).await;
    let ended = fleet.ended(&interrupted).await;
    assert_eq!((ended.phase.as_str(), ended.attempt), ("succeeded", 2), "{ended:?}");
}

async fn reading(fleet: &Fleet) -> v1::RepositoryReading {
    let request = v1::RepositoryUsageRequest { name: "main".to_owned() };
    let usage = fleet.repositories().usage(request).await.unwrap().into_inner();
    usage.repository.unwrap().reading.unwrap()
}

/// Waits until every pack was read, and says how many there are.
async fn until_all_read(fleet: &Fleet) -> u64 {
    let all_read = async || {
        let reading = reading(fleet).await;
        (reading.packs > 0 && reading.unread_packs == 0).then_some(reading.packs)
    };
    until_async("every pack to be read", PATIENCE, all_read).await
}

fn moment(at: Option<holdfast_proto::WireTimestamp>) -> Timestamp {
    let at = at.unwrap();
    Timestamp::new(at.seconds, at.nanos).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_prune_moved_is_read_again_before_anything_new_is_proven() {
    let (fleet, tree) = fleet_under(HASTY).await;
    let first = fleet.backup_well("tree", "full").await.snapshot_id;
    fill(&tree, 0..2, 2);
    let second = fleet.backup_well("tree", "incremental").await.snapshot_id;
    until_proof(&fleet, &second, "read").await;
    let request = v1::ForgetSnapshotsRequest {
        ids: vec![first],
        confirm: vec!["tree".to_owned()],
        reason: "a test".to_owned(),
        dry_run: false,
    };
    fleet.snapshots().forget(request).await.unwrap();
    let before: Vec<PathBuf> = packs(&fleet.repository());
    let request = v1::PruneRepositoryRequest {
        name: "main".to_owned(),
        confirm: "main".to_owned(),
        reason: "a test".to_owned(),
        ..Default::default()
    };
    let prune = fleet.repositories().prune(request).await.unwrap().into_inner().run.unwrap();
    let pruned = fleet.ended(&prune).await;
    assert_eq!(pruned.phase, "succeeded", "{pruned:?}");
    let after = packs(&fleet.repository());
    assert!(after.iter().any(|pack| !before.contains(pack)), "the prune moved nothing");
    let proven_again = async || {
        let snapshot = snapshot(&fleet, &second).await;
        (moment(snapshot.read_at) > moment(pruned.ended_at)).then_some(())
    };
    until_async("the snapshot to be read again", PATIENCE, proven_again).await;
    assert_eq!(until_all_read(&fleet).await, after.len() as u64);
    assert!(checks(&fleet).await.iter().all(|run| run.phase != "failed"));
    fleet.restic().check_all_data();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_memory_the_controller_reads_everything_again_and_forgets_no_proof() {
    let (mut fleet, tree) = fleet_under(HASTY).await;
    let made = fleet.backup_well("tree", "full").await.snapshot_id;
    until_proof(&fleet, &made, "read").await;
    for damage in [None, Some(b"nonsense")] {
        // So slowly that no portion comes between the start of the controller and the look.
        declare(&fleet, &tree, "objectives: { verify_every: 365d }, verify: { full: 365d }").await;
        until_all_read(&fleet).await;
        let idle = async || checks(&fleet).await.iter().all(|run| run.phase == "succeeded").then_some(());
        until_async("the last portion to end", PATIENCE, idle).await;
        fleet.stop_controller().await;
        let indexes = std::fs::read_dir(fleet.path().join("controller/blobs")).unwrap();
        for index in indexes {
            let file = index.unwrap().path().join("readings");
            match damage {
                None => std::fs::remove_file(file).unwrap(),
                Some(bytes) => std::fs::write(file, bytes).unwrap(),
            }
        }
        fleet.start_controller().await;
        fleet.until_connected("a1").await;
        let lost = async || {
            let reading = reading(&fleet).await;
            (reading.packs > 0).then_some(reading)
        };
        let lost = until_async("the packs to be looked at", PATIENCE, lost).await;
        assert_eq!((lost.unread_packs, lost.read_packs), (lost.packs, 0), "nothing is believed");
        assert_eq!(snapshot(&fleet, &made).await.proof, "read", "that it was read stays true");
        assert_eq!(verify_age(&standing(&fleet).await).0, "met");
        declare(&fleet, &tree, HASTY).await;
        until_all_read(&fleet).await;
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_snapshot_is_checked_and_one_that_lacks_a_pack_is_damaged_and_healed() {
    let (fleet, tree) = fleet_under("verify: { after_backup: true }").await;
    let first = fleet.backup_well("tree", "full").await.snapshot_id;
    until_proof(&fleet, &first, "checked").await;
    assert!(snapshot(&fleet, &first).await.checked_at.is_some());
    // A pack that the controller knows is gone from the storage; what is new needs it.
    std::fs::remove_file(packs(&fleet.repository()).pop().unwrap()).unwrap();
    std::fs::rename(tree.join("0"), tree.join("moved")).unwrap();
    let second = fleet.backup_well("tree", "incremental").await.snapshot_id;
    until_proof(&fleet, &second, "damaged").await;
    let damaged = snapshot(&fleet, &second).await;
    assert!(damaged.damage.starts_with("[HF-3005] "), "{}", damaged.damage);
    assert!(standing(&fleet).await.problem.contains("is damaged"), "{}", standing(&fleet).await.problem);
    // The next backup does not rely on it any more.
    let third = fleet.backup_well("tree", "incremental").await.snapshot_id;
    until_proof(&fleet, &third, "checked").await;
    assert_eq!(standing(&fleet).await.state, "protected");
    let shown = run(fleet.cli().args(["backup", "show", &third]), PATIENCE).expect_success().stdout;
    assert!(shown.contains("\n  checked "), "{shown}");
    let usage = run(fleet.cli().args(["repo", "usage", "main"]), PATIENCE).expect_success().stdout;
    assert!(usage.contains("no policy has it read again"), "{usage}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_went_while_the_controller_was_away_names_its_snapshots_at_once() {
    let (mut fleet, _) = fleet_under("objectives: { verify_every: 1h }, verify: { full: 1h }").await;
    let made = fleet.backup_well("tree", "full").await.snapshot_id;
    until_proof(&fleet, &made, "checked").await;
    fleet.stop_controller().await;
    let pack = packs(&fleet.repository()).pop().unwrap();
    std::fs::remove_file(&pack).unwrap();
    fleet.start_controller().await;
    // Nothing else is due for most of an hour.
    until_proof(&fleet, &made, "damaged").await;
    let is_failed = async || checks(&fleet).await.into_iter().find(|run| run.phase == "failed");
    let found = until_async("the check to end", PATIENCE, is_failed).await;
    let name = pack.file_name().unwrap().to_str().unwrap();
    assert!(found.findings.iter().any(|finding| finding.contains(name)), "{:?}", found.findings);
    fleet.until_connected("a1").await;
    fleet.backup_well("tree", "incremental").await;
    assert_eq!(standing(&fleet).await.state, "protected");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_can_not_be_read_keeps_no_damage_of_another_from_being_found() {
    let (fleet, _) = fleet_under(HASTY).await;
    let made = fleet.backup_well("tree", "full").await.snapshot_id;
    until_proof(&fleet, &made, "read").await;
    // Neither missing nor damaged: the file system refuses to open it.
    let refused = largest_pack(&fleet.repository());
    let flipped = packs(&fleet.repository()).into_iter().find(|pack| *pack != refused).unwrap();
    flip(&flipped);
    std::fs::rename(&refused, refused.with_extension("away")).unwrap();
    std::os::unix::fs::symlink(refused.with_extension("away"), &refused).unwrap();
    until_proof(&fleet, &made, "damaged").await;
    let name = flipped.file_name().unwrap().to_str().unwrap();
    let names_it = |run: &v1::Run| run.findings.iter().any(|finding| finding.contains(name));
    let found = async || checks(&fleet).await.into_iter().find(names_it);
    until_async("the damaged pack to be named", PATIENCE, found).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_nobody_checked_is_checked_before_it_counts_as_read() {
    let (fleet, _) = fleet_under("verify: { after_backup: false, full: 4s }").await;
    let made = fleet.backup_well("tree", "full").await.snapshot_id;
    until_proof(&fleet, &made, "read").await;
    let proven = snapshot(&fleet, &made).await;
    let checked = checks(&fleet).await.into_iter().find(is_of_structure).expect("the structure was checked");
    assert!(moment(proven.checked_at) >= moment(checked.started_at), "{proven:?}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_that_another_program_removed_have_the_structure_checked_before_anything_is_proven() {
    let (fleet, tree) = fleet_under(HASTY).await;
    let first = fleet.backup_well("tree", "full").await.snapshot_id;
    fill(&tree, 0..4, 2);
    let second = fleet.backup_well("tree", "incremental").await.snapshot_id;
    until_proof(&fleet, &second, "read").await;
    assert!(!checks(&fleet).await.iter().any(is_of_structure));
    fleet.restic().run(&["forget", &first, "--prune"]);
    let checked =
        async || checks(&fleet).await.into_iter().find(|run| is_of_structure(run) && run.ended_at.is_some());
    let checked = until_async("the structure to be checked", PATIENCE, checked).await;
    assert_eq!(checked.phase, "succeeded", "{checked:?}");
    let since = moment(checked.started_at);
    let proven_again = async || (moment(snapshot(&fleet, &second).await.read_at) > since).then_some(());
    until_async("the snapshot to be read again", PATIENCE, proven_again).await;
    let failed = checks(&fleet).await.into_iter().find(|run| run.phase == "failed");
    assert_eq!(failed, None);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_newest_snapshot_is_an_alert_of_its_source() {
    let (fleet, _) = fleet_under("verify: { after_backup: true }").await;
    let made = fleet.backup_well("tree", "full").await.snapshot_id;
    until_proof(&fleet, &made, "checked").await;
    let damage = |proof: &mut Proof| proof.damage = Some("blob 12 is in no index".to_owned());
    let core = fleet.controller().core();
    core.catalog.prove(made.parse().unwrap(), "test", damage).await.unwrap();
    let told = async || {
        let listed = fleet.alerts().list(v1::ListAlertsRequest::default()).await.unwrap().into_inner().alerts;
        listed.into_iter().find(|alert| alert.reason == "snapshot-damaged")
    };
    let alert = until_async("the alert", PATIENCE, told).await;
    let said = (alert.severity.as_str(), alert.object.as_str(), alert.summary.as_str(), alert.why.as_str());
    assert_eq!(said, ("critical", "tree", "has a newest snapshot that is damaged", "blob 12 is in no index"));
    fleet.backup_well("tree", "full").await;
    let is_over = async || told().await.is_none_or(|alert| alert.recovered_at.is_some()).then_some(());
    until_async("the alert to end", PATIENCE, is_over).await;
    fleet.stop().await;
}
