//! The controller's machine is lost: its state comes back from a repository.

use std::os::unix::process::ExitStatusExt as _;

use holdfast_controller::config::SelfBackupConfig;
use holdfast_controller::recover::recover;
use holdfast_controller::self_backup;
use holdfast_model::ErrorCode;
use holdfast_model::repository_spec::RepositorySpec;
use holdfast_model::units::Span;
use holdfast_proto::v1;
use holdfast_runtime::{SystemClock, fail_point};
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{Fleet, TreeSpec, run, workspace};

async fn listed(fleet: &Fleet) -> (String, Vec<v1::Snapshot>, Vec<v1::Agent>) {
    let yaml = fleet.fleet().export(v1::ExportRequest::default()).await.unwrap().into_inner().yaml;
    let snapshots = v1::ListSnapshotsRequest::default();
    let snapshots = fleet.snapshots().list(snapshots).await.unwrap().into_inner().snapshots;
    let agents = fleet.fleet().list_agents(v1::ListAgentsRequest {}).await.unwrap().into_inner().agents;
    (yaml, snapshots, agents)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_lost_everything_comes_back_from_its_repository() {
    let mut fleet = Fleet::start().await;
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(3).make(&tree);
    let yaml = format!(
        "policies:\n  yearly: {{ schedule: {{ full: {{ cron: \"0 2 1 1 *\" }} }}, keep: {{ last: 5 }} }}\nsources:\n  tree: {{ engine: files, agent: a1, paths: [{}], policy: yearly }}\n",
        tree.display()
    );
    fleet.apply(&yaml).await.unwrap();
    let held = fleet.backup_well("tree", "full").await;
    fleet.backup_well("tree", "incremental").await;
    let hold = v1::HoldRequest { id: held.snapshot_id.clone(), reason: "the auditors".to_owned() };
    fleet.snapshots().hold(hold).await.unwrap();
    let pause =
        v1::PauseSourceRequest { source: "tree".to_owned(), reason: "moving".to_owned(), for_seconds: 0 };
    until_async("the schedule to be taken over", PATIENCE, async || {
        fleet.policies().pause(pause.clone()).await.ok()
    })
    .await;
    let before = listed(&fleet).await;
    let core = fleet.controller().core().clone();
    let repository = self_backup::destination(&core).unwrap().expect("the only repository");
    self_backup::copy(&core, &repository).await.unwrap();
    drop(core);

    fleet.stop_controller().await;
    let data_dir = fleet.path().join("controller");
    std::fs::remove_dir_all(&data_dir).unwrap();
    let config = fleet.path().join("controller.yaml");
    std::fs::write(&config, format!("api: holdfast/v1\ndata_dir: {}\n", data_dir.display())).unwrap();
    let mut program = std::process::Command::new(workspace::binary("holdfast-controller"));
    program.args(["recover", "--config"]).arg(&config).arg("--key-file").arg(fleet.password_file());
    program.arg("--from").arg(format!("file://{}", fleet.repository().display()));
    // Killed before any of it is in place, and before the last of it, it is done again.
    for place in ["recover-before-authority", "recover-before-state"] {
        program.env(fail_point::ENVIRONMENT_VARIABLE, format!("{place}=kill"));
        let killed = run(&mut program, PATIENCE);
        assert_eq!(killed.status.signal(), Some(9), "{killed:?}");
        assert!(!data_dir.join("state").exists(), "{place}");
    }
    assert!(data_dir.join("pki/ca.key").exists(), "the authority was in its place already");
    program.env_remove(fail_point::ENVIRONMENT_VARIABLE);
    let said = run(&mut program, PATIENCE).expect_success().stdout;
    let line = |words: [&str; 3]| said.lines().any(|line| line.split_whitespace().take(3).eq(words));
    assert!(line(["records", "definition", "3"]) && line(["records", "hold", "1"]), "{said}");
    assert!(line(["catalog", "main", "3"]), "{said}");
    let again = run(&mut program, PATIENCE);
    assert!(
        !again.status.success() && again.stderr.contains("holds the state of a controller already"),
        "{again:?}"
    );

    fleet.start_controller().await;
    fleet.until_connected("a1").await;
    let after = listed(&fleet).await;
    assert_eq!(after.0, before.0, "the declared fleet");
    assert_eq!(after.1, before.1, "the snapshots, with their holds and proofs");
    assert_eq!(after.1.iter().filter(|snapshot| snapshot.held_because == "the auditors").count(), 1);
    assert_eq!(after.2[0].enrolled_at, before.2[0].enrolled_at, "the agent is the one that was enrolled");
    let next = v1::NextRunsRequest { source: "tree".to_owned(), ..v1::NextRunsRequest::default() };
    let schedule = until_async("the schedule to be there", PATIENCE, async || {
        fleet.policies().next(next.clone()).await.ok()
    })
    .await
    .into_inner();
    assert_eq!(schedule.sources[0].pause.as_ref().unwrap().reason, "moving");
    fleet.backup_well("tree", "incremental").await;
    assert_eq!(fleet.snapshots_of("holdfast-controller").await.len(), 1, "listed when asked for");
    fleet.restic().check_all_data();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_is_copied_when_it_changed_and_not_again() {
    let mut fleet = Fleet::controller_alone().await;
    fleet.configure_controller(|config| {
        config.self_backup = SelfBackupConfig { to: None, every: Span::from_secs(1) };
    });
    fleet.stop_controller().await;
    fleet.start_controller().await;
    fleet.add_repository("main", &format!("file://{}", fleet.repository().display()), "").await;
    let copies = async || {
        let copies = fleet.snapshots_of("holdfast-controller").await.len();
        (copies >= 1).then_some(copies)
    };
    until_async("a copy of the state", PATIENCE, copies).await;
    let restic = fleet.restic();
    let newest = restic.snapshots().last().unwrap()["id"].as_str().unwrap().to_owned();
    let restored = fleet.path().join("restored");
    restic.restore(&newest, &restored);
    let state = std::fs::read_to_string(restored.join("records/definition.jsonl")).unwrap();
    assert!(state.starts_with("{\"key\":\"repositories/main\","), "{state}");
    let doctor = fleet.status().doctor(v1::DoctorRequest {}).await.unwrap().into_inner().findings;
    let finding = doctor.iter().find(|finding| finding.object == "state").unwrap();
    assert_eq!(finding.outcome, "ok", "{finding:?}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recovering_says_what_is_missing_and_leaves_nothing() {
    let fleet = Fleet::start().await;
    let mut config = holdfast_controller::ControllerConfig::new(fleet.path().join("empty"));
    config.grpc.listen = ([127, 0, 0, 1], 0).into();
    let spec = |url: String, key: &std::path::Path| -> RepositorySpec {
        let yaml = format!("url: \"{url}\"\nencryption: {{ key: {{ file: {} }} }}\n", key.display());
        holdfast_model::fleet::read_yaml("test", &yaml).unwrap()
    };
    let url = format!("file://{}", fleet.repository().display());
    let attempt = async |spec: &RepositorySpec, snapshot: Option<&str>| {
        recover(&config, spec, snapshot, SystemClock::shared()).await.unwrap_err()
    };
    let none = attempt(&spec(url.clone(), &fleet.password_file()), None).await;
    assert_eq!(none.code, ErrorCode::SnapshotUnknown);
    assert_eq!(none.message, "the repository holds no copy of a controller's state");
    let other = fleet.path().join("other");
    std::fs::write(&other, "another password").unwrap();
    std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let locked = attempt(&spec(url, &other), None).await;
    assert_eq!(locked.code, ErrorCode::RepositoryWrongPassword);
    let nowhere = attempt(&spec(format!("file://{}/nowhere", fleet.path().display()), &other), None).await;
    assert_eq!(nowhere.code, ErrorCode::StorageUnreachable);
    let left: Vec<_> = std::fs::read_dir(fleet.path().join("empty"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["recovering"], "nothing that a controller would take for its state");
    fleet.stop().await;
}
