//! Snapshots in a second repository: copied by hand and by policy, healed from, restored from.

mod processes;

use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast_model::ErrorCode;
use holdfast_model::Failure;
use holdfast_proto::status::from_status;
use holdfast_proto::v1;
use holdfast_tests::fleet::Operator;
use holdfast_tests::packs::largest_pack;
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{Fleet, Restic, S3Server, assert_same_tree, run};

const FILES: usize = 6;

/// Replaces some files, each with bytes of its own.
fn change(tree: &Path, files: impl IntoIterator<Item = usize>, seed: u64) {
    use rand::{RngExt as _, SeedableRng as _};
    std::fs::create_dir_all(tree.join("below")).unwrap();
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    for file in files {
        let mut bytes = vec![0; 200_000];
        random.fill(&mut bytes[..]);
        let text = format!("{seed} ").repeat(20_000);
        std::fs::write(tree.join(format!("below/{file}")), [&bytes, text.as_bytes()].concat()).unwrap();
    }
}

/// A fleet with repositories `main` and `offsite`, and a source `tree` that goes to the first.
async fn fleet_with_two(snapshots: u64) -> (Fleet, PathBuf, Vec<String>) {
    let mut fleet = Fleet::start().await;
    let offsite = offsite_url(fleet.path());
    fleet.add_repository("offsite", &offsite, ", prune: { grace: 1s, approve_above: 100% }").await;
    let tree = fleet.path().join("data");
    change(&tree, 0..FILES, 1);
    declare(&fleet, &tree, "").await;
    let mut made = Vec::new();
    for round in 0..snapshots {
        change(&tree, (0..2).map(|file| (file + round as usize) % FILES), 10 + round);
        made.push(fleet.backup_well("tree", "incremental").await.snapshot_id);
    }
    (fleet, tree, made)
}

fn offsite_url(path: &Path) -> String {
    format!("file://{}", path.join("offsite").display())
}

async fn declare(operator: &Operator, tree: &Path, policy: &str) {
    let text = format!(
        "api: holdfast/v1\npolicies:\n  p: {{ to: [main]{policy} }}\nsources:\n  tree: {{ engine: files, agent: a1, policy: p, paths: [{}] }}\n",
        tree.display()
    );
    let request = v1::ApplyRequest {
        files: vec![v1::FleetFile { name: "test.yaml".to_owned(), text }],
        confirm: vec!["policies.p".to_owned()],
        reason: "a test".to_owned(),
        ..Default::default()
    };
    operator.fleet().apply(request).await.unwrap();
}

fn request(from: &str, to: &str) -> v1::CopySnapshotsRequest {
    v1::CopySnapshotsRequest { from: from.to_owned(), to: to.to_owned(), ..Default::default() }
}

async fn start(operator: &Operator, request: v1::CopySnapshotsRequest) -> Result<v1::Run, Failure> {
    let reply = operator.repositories().copy(request).await.map_err(|status| from_status(&status))?;
    Ok(reply.into_inner().run.unwrap())
}

async fn copied(operator: &Operator, request: v1::CopySnapshotsRequest) -> v1::Run {
    operator.ended(&start(operator, request).await.unwrap()).await
}

async fn copy_well(operator: &Operator, from: &str, to: &str) -> v1::Run {
    let run = copied(operator, request(from, to)).await;
    assert_eq!(run.phase, "succeeded", "{run:?}\n{}", operator.log(&run).await);
    run
}

async fn snapshots_in(operator: &Operator, repository: &str) -> Vec<v1::Snapshot> {
    let request = v1::ListSnapshotsRequest { repository: repository.to_owned(), ..Default::default() };
    operator.snapshots().list(request).await.unwrap().into_inner().snapshots
}

fn restic_of(path: &Path, password: PathBuf) -> Restic {
    Restic::new(path.join("offsite").display().to_string(), password)
}

/// `restic` restores the tree from a snapshot of a repository.
fn assert_restic_restores(restic: &Restic, id: &str, tree: &Path, into: &Path) {
    restic.restore(id, into);
    assert_same_tree(tree, &into.join(tree.strip_prefix("/").unwrap()));
    std::fs::remove_dir_all(into).unwrap();
}

async fn expect_refused(fleet: &Fleet, request: v1::CopySnapshotsRequest, code: ErrorCode, message: &str) {
    for dry_run in [true, false] {
        let request = v1::CopySnapshotsRequest { dry_run, ..request.clone() };
        let refused = start(fleet, request).await.unwrap_err();
        assert_eq!((refused.code, refused.message.as_str()), (code, message));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_a_snapshot_of_its_own_that_restores_alike_and_a_second_one_sends_nothing() {
    let (fleet, tree, made) = fleet_with_two(3).await;
    let plan = v1::CopySnapshotsRequest { dry_run: true, ..request("main", "offsite") };
    let planned = fleet.repositories().copy(plan.clone()).await.unwrap().into_inner().plan.unwrap();
    assert_eq!((planned.snapshots.len(), planned.already), (3, 0));
    let first = copy_well(&fleet, "main", "offsite").await;
    let progress = first.progress.as_ref().unwrap();
    assert_eq!((progress.blobs_new, progress.bytes_stored), (planned.blobs, planned.stored_bytes));
    assert_eq!((first.kind.as_str(), first.repository.as_str()), ("copy", "offsite"));
    let again = copy_well(&fleet, "main", "offsite").await;
    assert_eq!(again.progress.as_ref().unwrap().blobs_new, 0);
    assert!(fleet.log(&again).await.contains("0 snapshots copied, 3 were there"));
    let planned = fleet.repositories().copy(plan).await.unwrap().into_inner().plan.unwrap();
    assert_eq!((planned.snapshots.len(), planned.already, planned.blobs), (0, 3, 0));

    let copies = snapshots_in(&fleet, "offsite").await;
    let origins: Vec<_> = copies.iter().rev().map(|copy| copy.copy_of.clone()).collect();
    assert_eq!(origins, made);
    let shown = v1::ShowSnapshotRequest { id: made[2].clone() };
    let shown = fleet.snapshots().show(shown).await.unwrap().into_inner();
    let places: Vec<_> = shown.copies.iter().map(|copy| (&*copy.repository, &*copy.id)).collect();
    assert_eq!(places, [("main", &*made[2]), ("offsite", &*copies[0].id)]);
    // The newest of the source is the origin, not its copy.
    assert_eq!(fleet.snapshots_of("tree").await[0].id, made[2]);

    let restic = restic_of(fleet.path(), fleet.password_file());
    restic.check_all_data();
    assert_restic_restores(&restic, &copies[0].id, &tree, &fleet.path().join("by-restic"));
    let listed = restic.snapshots();
    assert!(listed.iter().all(|one| made.iter().any(|id| one["original"] == **id)), "{listed:?}");
    let plan =
        v1::PlanRestoreRequest { source: "tree".to_owned(), to: copies[0].id.clone(), ..Default::default() };
    let (_, report) = fleet.restore_well(plan).await;
    assert_same_tree(&tree, report.targets[0].restored.as_ref());
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_copied_is_refused_exactly() {
    let (fleet, _, made) = fleet_with_two(1).await;
    let refused = [
        (request("main", "main"), ErrorCode::CopyToItself, "repository main is named twice"),
        (request("main", "none"), ErrorCode::NotFound, "there is no repository none"),
        (request("none", "main"), ErrorCode::NotFound, "there is no repository none"),
    ];
    for (request, code, message) in refused {
        expect_refused(&fleet, request, code, message).await;
    }
    let of = v1::CopySnapshotsRequest { source: "nobody".to_owned(), ..request("main", "offsite") };
    expect_refused(&fleet, of, ErrorCode::NotFound, "there is no source nobody").await;
    let elsewhere =
        v1::CopySnapshotsRequest { snapshots: vec![made[0].clone()], ..request("offsite", "main") };
    let message = format!("repository offsite has no snapshot {}", &made[0][..8]);
    expect_refused(&fleet, elsewhere, ErrorCode::SnapshotUnknown, &message).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_was_copied_as_a_folder_has_the_snapshots_already() {
    let (mut fleet, _, _) = fleet_with_two(2).await;
    let clone = fleet.path().join("clone");
    drop(run(Command::new("cp").arg("-a").arg(fleet.repository()).arg(&clone), PATIENCE).expect_success());
    fleet.add_repository("clone", &format!("file://{}", clone.display()), "").await;
    let copied = copy_well(&fleet, "main", "clone").await;
    assert_eq!(copied.progress.as_ref().unwrap().blobs_new, 0);
    assert!(fleet.log(&copied).await.contains("0 snapshots copied, 2 were there"));
    fleet.stop().await;
}

/// Changes bytes all over an object; a new file in its place needs no right to change it.
fn damage(object: &Path) {
    let mut bytes = std::fs::read(object).unwrap();
    bytes.iter_mut().skip(100).step_by(10_000).for_each(|byte| *byte ^= 1);
    let beside = object.with_extension("new");
    std::fs::write(&beside, bytes).unwrap();
    std::fs::rename(beside, object).unwrap();
}

async fn checked(operator: &Operator, repository: &str) -> v1::Run {
    let check = v1::StartCheck { repository: repository.to_owned(), read_data: true };
    operator.ended(&operator.start_run(v1::start_request::What::Check(check)).await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_named_and_not_copied_and_the_others_are() {
    let (fleet, tree, made) = fleet_with_two(1).await;
    let pack = largest_pack(&fleet.repository());
    damage(&pack);
    change(&tree, 0..FILES, 99);
    let whole = fleet.backup_well("tree", "full").await.snapshot_id;
    let failed = copied(&fleet, request("main", "offsite")).await;
    let failure = failed.failure.clone().unwrap();
    assert_eq!(failure.code, ErrorCode::CopyIncomplete.to_string(), "{failure:?}");
    let named = format!(
        "1 snapshot of repository main is damaged and not copied; the first: snapshot {}: ",
        &made[0][..8]
    );
    assert!(failure.message.starts_with(&named), "{}", failure.message);
    let object = pack.strip_prefix(fleet.repository()).unwrap().display().to_string();
    assert!(failed.findings[0].contains(&format!("in {object} is damaged")), "{:?}", failed.findings);
    let copies = snapshots_in(&fleet, "offsite").await;
    assert_eq!(copies.iter().map(|copy| &copy.copy_of).collect::<Vec<_>>(), [&whole]);
    let of_main = snapshots_in(&fleet, "main").await;
    assert_eq!((&*of_main[1].id, &*of_main[1].proof), (&*made[0], "damaged"));
    restic_of(fleet.path(), fleet.password_file()).check_all_data();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_repository_is_healed_from_its_copies() {
    let (fleet, tree, made) = fleet_with_two(2).await;
    copy_well(&fleet, "main", "offsite").await;
    damage(&largest_pack(&fleet.repository()));
    assert_eq!(checked(&fleet, "main").await.phase, "failed");
    assert!(snapshots_in(&fleet, "main").await.iter().any(|snapshot| snapshot.proof == "damaged"));
    let heal = v1::CopySnapshotsRequest { heal: true, ..request("offsite", "main") };
    let healed = copied(&fleet, heal).await;
    let log = fleet.log(&healed).await;
    assert_eq!(healed.phase, "succeeded", "{healed:?}\n{log}");
    assert!(
        log.contains("is whole again") && log.contains("left until the next prune: 1 damaged pack"),
        "{log}"
    );
    assert!(snapshots_in(&fleet, "main").await.iter().all(|snapshot| snapshot.proof != "damaged"));
    let prune = v1::PruneRepositoryRequest {
        name: "main".to_owned(),
        confirm: "main".to_owned(),
        reason: "a test".to_owned(),
        ..Default::default()
    };
    let pruned = fleet.repositories().prune(prune).await.unwrap().into_inner().run.unwrap();
    assert_eq!(fleet.ended(&pruned).await.phase, "succeeded");
    let clean = checked(&fleet, "main").await;
    assert_eq!(clean.phase, "succeeded", "{:?}", clean.findings);
    fleet.restic().check_all_data();
    assert_restic_restores(&fleet.restic(), &made[1], &tree, &fleet.path().join("by-restic"));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_object_is_damaged_is_never_called_whole_and_its_copy_is_made_anew() {
    let (fleet, tree, made) = fleet_with_two(1).await;
    copy_well(&fleet, "main", "offsite").await;
    let first = snapshots_in(&fleet, "offsite").await.remove(0);
    let object = fleet.path().join("offsite/snapshots").join(&first.id);
    damage(&object);
    let heal = v1::CopySnapshotsRequest { heal: true, ..request("main", "offsite") };
    let failure = copied(&fleet, heal).await.failure.unwrap();
    assert_eq!(failure.code, ErrorCode::HealIncomplete.to_string(), "{failure:?}");
    let named = format!("snapshot {}: [HF-3006] snapshots/{}", &first.id[..8], &first.id);
    assert!(failure.message.contains(&named), "{}", failure.message);
    let anew = "holdfast repo copy main offsite   # copies anew what has no readable object";
    assert!(failure.next.iter().any(|next| next == anew), "{failure:?}");
    assert_eq!(snapshots_in(&fleet, "offsite").await[0].proof, "damaged");

    copy_well(&fleet, "main", "offsite").await;
    let copies = snapshots_in(&fleet, "offsite").await;
    assert!(copies.iter().all(|copy| copy.copy_of == made[0]), "{copies:?}");
    let (damaged, sound): (Vec<_>, Vec<_>) = copies.iter().partition(|copy| copy.proof == "damaged");
    assert_eq!(damaged.iter().map(|copy| &copy.id).collect::<Vec<_>>(), [&first.id]);
    let again = copy_well(&fleet, "main", "offsite").await;
    assert!(fleet.log(&again).await.contains("0 snapshots copied, 1 were there"));
    std::fs::remove_file(object).unwrap();
    let restic = restic_of(fleet.path(), fleet.password_file());
    restic.check_all_data();
    assert_restic_restores(&restic, &sound[0].id, &tree, &fleet.path().join("by-restic"));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_its_repository_fails_names_the_copy_that_can_be_restored() {
    let (fleet, tree, made) = fleet_with_two(1).await;
    copy_well(&fleet, "main", "offsite").await;
    let copy = snapshots_in(&fleet, "offsite").await.remove(0);
    damage(&largest_pack(&fleet.repository()));
    let restore = |to: &str| v1::PlanRestoreRequest {
        source: "tree".to_owned(),
        to: to.to_owned(),
        ..Default::default()
    };
    let failed = fleet.restore(restore(&made[0])).await.unwrap();
    let failure = failed.failure.clone().unwrap_or_else(|| panic!("{failed:?}"));
    assert_eq!(failure.code, ErrorCode::ObjectDamaged.to_string(), "{failure:?}");
    let command = format!("holdfast restore plan tree --to {}", &copy.id[..8]);
    let named = failure.next.iter().find(|next| next.starts_with(&command));
    assert!(named.is_some_and(|next| next.ends_with("# its copy in offsite")), "{failure:?}");
    let (_, report) = fleet.restore_well(restore(&copy.id[..8])).await;
    assert_same_tree(&tree, report.targets[0].restored.as_ref());
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_copy_has_is_named_by_a_heal() {
    let (fleet, _, made) = fleet_with_two(1).await;
    damage(&largest_pack(&fleet.repository()));
    assert_eq!(checked(&fleet, "main").await.phase, "failed");
    let heal = v1::CopySnapshotsRequest { heal: true, ..request("offsite", "main") };
    let failure = copied(&fleet, heal).await.failure.unwrap();
    assert_eq!(failure.code, ErrorCode::HealIncomplete.to_string(), "{failure:?}");
    let named = format!(
        "1 snapshot of repository main lack what repository offsite does not have either; the first: snapshot {}",
        &made[0][..8]
    );
    assert!(failure.message.starts_with(&named), "{}", failure.message);
    assert_eq!(snapshots_in(&fleet, "main").await[0].proof, "damaged");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_go_to_a_bucket_and_back_to_a_folder() {
    let server = S3Server::start("holdfast");
    let (mut fleet, tree, made) = fleet_with_two(2).await;
    let secret = |name: &str, value: &str| {
        let path = fleet.path().join(name);
        std::fs::write(&path, value).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    let more = format!(
        ", region: {}, endpoint: \"{}\", credentials: {{ access_key: {{ file: {} }}, secret_key: {{ file: {} }} }}",
        S3Server::REGION,
        server.endpoint(),
        secret("access", S3Server::ACCESS_KEY),
        secret("secret", S3Server::SECRET_KEY),
    );
    fleet.add_repository("bucket", &format!("s3://{}/fleet", server.bucket()), &more).await;
    copy_well(&fleet, "main", "bucket").await;
    // A copy of a copy is one of the first.
    copy_well(&fleet, "bucket", "offsite").await;
    let copies = snapshots_in(&fleet, "offsite").await;
    let origins: Vec<_> = copies.iter().rev().map(|copy| copy.copy_of.clone()).collect();
    assert_eq!(origins, made);
    let none = copy_well(&fleet, "main", "offsite").await;
    assert_eq!(none.progress.unwrap().blobs_new, 0);
    let in_bucket = Restic::new(server.restic_url("fleet"), fleet.password_file())
        .with_env("AWS_ACCESS_KEY_ID", S3Server::ACCESS_KEY)
        .with_env("AWS_SECRET_ACCESS_KEY", S3Server::SECRET_KEY);
    in_bucket.check_all_data();
    assert_eq!(in_bucket.snapshots().len(), 2);
    let restic = restic_of(fleet.path(), fleet.password_file());
    restic.check_all_data();
    assert_restic_restores(&restic, &copies[0].id, &tree, &fleet.path().join("by-restic"));
    fleet.stop().await;
}

/// The snapshots of `main` that have a sound copy in `offsite`, newest first.
async fn copied_to_offsite(operator: &Operator) -> Vec<String> {
    snapshots_in(operator, "offsite").await.into_iter().map(|copy| copy.copy_of).collect()
}

async fn until_copied(operator: &Operator, expected: &[&String]) -> Vec<v1::Snapshot> {
    let what = format!("copies of {expected:?}");
    until_async(what, PATIENCE, async || {
        let there = copied_to_offsite(operator).await;
        (there.iter().collect::<Vec<_>>() == expected).then_some(())
    })
    .await;
    snapshots_in(operator, "offsite").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_copies_what_its_rules_would_keep_there_and_milestones_for_ever() {
    let (fleet, tree, made) = fleet_with_two(3).await;
    let milestone = v1::StartBackup {
        source: "tree".to_owned(),
        snapshot_type: "full".to_owned(),
        milestone: "v1".to_owned(),
        ..Default::default()
    };
    let named = fleet.start_run(v1::start_request::What::Backup(milestone)).await.unwrap();
    let named = fleet.ended(&named).await.snapshot_id;
    change(&tree, 0..1, 50);
    let after = fleet.backup_well("tree", "incremental").await.snapshot_id;
    let last = fleet.backup_well("tree", "incremental").await.snapshot_id;
    let hold = v1::HoldRequest { id: made[0].clone(), reason: "an audit".to_owned() };
    fleet.snapshots().hold(hold).await.unwrap();
    declare(&fleet, &tree, ", copy_to: [offsite], keep: { last: 2 }").await;
    // Two by the rule, and what is held; of the rest nothing would stay there.
    let copies = until_copied(&fleet, &[&last, &after, &named, &made[0]]).await;
    let held: Vec<_> = copies.iter().map(|copy| &*copy.held_because).collect();
    assert_eq!(held, ["", "", "milestone v1 of tree", "an audit"]);
    assert_eq!(copies[2].milestone, "v1");
    let refused = v1::ForgetSnapshotsRequest {
        ids: vec![copies[2].id.clone()],
        confirm: vec!["tree".to_owned()],
        reason: "a test".to_owned(),
        dry_run: false,
    };
    let refused = from_status(&fleet.snapshots().forget(refused).await.unwrap_err());
    assert_eq!(refused.code, ErrorCode::SnapshotHeld);
    // A new one takes the place of the older in both.
    let newest = fleet.backup_well("tree", "incremental").await.snapshot_id;
    until_copied(&fleet, &[&newest, &last, &named, &made[0]]).await;
    let in_main = async || {
        let there = snapshots_in(&fleet, "main").await;
        (there.len() == 4).then_some(there)
    };
    until_async("main to keep as many", PATIENCE, in_main).await;
    restic_of(fleet.path(), fleet.password_file()).check_all_data();
    fleet.stop().await;
}

async fn status_of(fleet: &Fleet) -> v1::SourceStatus {
    let request = v1::FleetStatusRequest::default();
    fleet.status().fleet(request).await.unwrap().into_inner().sources.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_does_not_open_is_behind_visibly_and_gets_its_copies_later() {
    let (mut fleet, tree, _) = fleet_with_two(0).await;
    let key = fleet.path().join("offsite.key");
    std::fs::copy(fleet.password_file(), &key).unwrap();
    let offsite = format!(
        "repositories:\n  offsite: {{ url: \"{}\", encryption: {{ key: {{ file: {} }} }} }}\n",
        offsite_url(fleet.path()),
        key.display()
    );
    fleet.apply(&offsite).await.unwrap();
    declare(&fleet, &tree, ", copy_to: [offsite]").await;
    let first = fleet.backup_well("tree", "full").await.snapshot_id;
    until_copied(&fleet, &[&first]).await;
    fleet.stop_controller().await;
    std::fs::write(&key, "the password of another repository").unwrap();
    fleet.start_controller().await;
    fleet.until_connected("a1").await;
    change(&tree, 0..1, 2);
    let second = fleet.backup_well("tree", "incremental").await.snapshot_id;
    let failing = async || {
        let status = status_of(&fleet).await;
        let copy = status.places.iter().find(|place| place.repository == "offsite").unwrap().clone();
        (!copy.problem.is_empty()).then_some((status, copy))
    };
    let (behind, copy) = until_async("the copy to fail", PATIENCE, failing).await;
    assert_eq!(behind.state, "at_risk");
    assert!(behind.problem.starts_with("its copy to offsite fails: [HF-3003] "), "{}", behind.problem);
    assert_eq!(behind.remedy, "holdfast repo copy main offsite --source tree");
    assert!(copy.is_copy && copy.behind_seconds.is_some(), "{copy:?}");
    let shown = run(fleet.cli().args(["status", "tree"]), PATIENCE).stdout;
    assert!(shown.contains("main up to date, offsite (copy) ") && shown.contains(" behind"), "{shown}");
    std::fs::copy(fleet.password_file(), &key).unwrap();
    until_copied(&fleet, &[&second, &first]).await;
    let well = async || Some(status_of(&fleet).await).filter(|status| status.state == "protected");
    let well = until_async("the source to be protected", PATIENCE, well).await;
    let places: Vec<_> =
        well.places.iter().map(|place| (&*place.repository, place.behind_seconds, &*place.problem)).collect();
    assert_eq!(places, [("main", Some(0), ""), ("offsite", Some(0), "")]);
    restic_of(fleet.path(), fleet.password_file()).check_all_data();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_and_holds_come_back_from_the_repositories_alone() {
    let (mut fleet, _, made) = fleet_with_two(2).await;
    let hold = v1::HoldRequest { id: made[0].clone(), reason: "an audit".to_owned() };
    fleet.snapshots().hold(hold).await.unwrap();
    // As another program copies.
    let password = fleet.password_file().display().to_string();
    let from = fleet.repository().display().to_string();
    let restic = restic_of(fleet.path(), fleet.password_file());
    restic.run(&["copy", "--from-repo", &from, "--from-password-file", &password]);
    let synced = fleet.repositories().init(v1::InitRepositoryRequest { name: "offsite".to_owned() }).await;
    assert_eq!(synced.unwrap().into_inner().snapshots, 2);
    let copies = snapshots_in(&fleet, "offsite").await;
    let seen: Vec<_> = copies.iter().map(|copy| (&copy.copy_of, &*copy.held_because)).collect();
    assert_eq!(seen, [(&made[1], ""), (&made[0], "an audit")]);
    assert_eq!(copy_well(&fleet, "main", "offsite").await.progress.unwrap().blobs_new, 0);
    fleet.stop_controller().await;
    fleet.start_controller().await;
    assert_eq!(snapshots_in(&fleet, "offsite").await, copies);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_copies_shows_the_plan_and_where_a_snapshot_is() {
    let (fleet, _, made) = fleet_with_two(2).await;
    let holdfast = |arguments: &[&str]| run(fleet.cli().args(arguments), PATIENCE);
    let planned = holdfast(&["repo", "copy", "main", "offsite", "--dry-run"]).expect_success().stdout;
    assert!(planned.starts_with("copy from main to offsite\n"), "{planned}");
    assert!(planned.contains("2 snapshots, 0 are there") && planned.contains(&made[0][..8]), "{planned}");
    let json =
        holdfast(&["repo", "copy", "main", "offsite", "--dry-run", "-o", "json"]).expect_success().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["items"][0]["snapshots"].as_array().unwrap().len(), 2);
    drop(holdfast(&["repo", "copy", "main", "offsite", "--source", "tree"]).expect_success());
    let shown = holdfast(&["backup", "show", &made[1][..8]]).expect_success().stdout;
    let copy = snapshots_in(&fleet, "offsite").await.remove(0);
    let line = format!("    offsite          {}   ", &copy.id[..8]);
    assert!(shown.contains("  where it is\n") && shown.contains(&line), "{shown}");
    let listed = holdfast(&["backup", "list", "--repo", "offsite"]).expect_success().stdout;
    assert!(listed.contains("COPY OF") && listed.contains(&made[1][..8]), "{listed}");
    let runs = holdfast(&["run", "list", "--kind", "copy"]).expect_success().stdout;
    assert!(runs.contains("copy") && runs.contains("offsite"), "{runs}");
    let refused = holdfast(&["repo", "copy", "main", "main"]).expect_code(2);
    assert!(refused.stderr.contains("error[HF-4037]: repository main is named twice"), "{}", refused.stderr);
    let rest = fleet.rest().get(&format!("/api/v1/backups/{}", copy.id)).items().remove(0);
    let json = holdfast(&["backup", "show", &copy.id[..8], "-o", "json"]).expect_success().stdout;
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let shown = &mut json["items"][0];
    assert_eq!((&shown["copies"], &shown["copy_of"]), (&rest["copies"], &rest["copy_of"]));
    assert_eq!(rest["copies"].as_array().unwrap().len(), 2);
    fleet.stop().await;
}
