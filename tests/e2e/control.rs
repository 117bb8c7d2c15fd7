//! The control plane: enrolment, tokens, restarts, cancellation, what is refused.

use holdfast_model::ErrorCode;
use holdfast_proto::status::from_status;
use holdfast_proto::v1;
use holdfast_proto::v1::run_service_client::RunServiceClient;
use holdfast_runtime::{Clock as _, SystemClock};
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{Fleet, TreeSpec};

async fn with_tree(fleet: &Fleet) {
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(3).make(&tree);
    fleet
        .apply(&format!("sources:\n  tree: {{ engine: files, agent: a1, paths: [{}] }}\n", tree.display()))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_token_is_good_once_and_for_its_name_only() {
    let fleet = Fleet::controller_alone().await;
    let request = v1::CreateEnrollmentTokenRequest { agent: "a1".to_owned(), ttl_seconds: 60 };
    let token = fleet.fleet().create_enrollment_token(request).await.unwrap().into_inner();
    let options = |name: &str, pin: &str| holdfast_agent::EnrollOptions {
        controller: fleet.address.parse().unwrap(),
        name: name.parse().unwrap(),
        ca_pin: pin.parse().unwrap(),
        data_dir: fleet.path().join(format!("agent-{}-{name}", &pin[7..11])),
        token: holdfast_model::secret::Secret::new(token.token.clone()),
    };
    let wrong_pin = format!("sha256:{}", "0".repeat(64));
    let wrong = holdfast_agent::Agent::enroll(options("a1", &wrong_pin)).await.unwrap_err();
    assert_eq!(wrong.code, ErrorCode::CaPinMismatch, "{wrong}");
    let other = holdfast_agent::Agent::enroll(options("a2", &token.ca_pin)).await.unwrap_err();
    assert_eq!(other.code, ErrorCode::TokenInvalid, "{other}");
    holdfast_agent::Agent::enroll(options("a1", &token.ca_pin)).await.unwrap();
    let mut again = options("a1", &token.ca_pin);
    again.data_dir = fleet.path().join("elsewhere");
    let reused = holdfast_agent::Agent::enroll(again).await.unwrap_err();
    assert_eq!(reused.code, ErrorCode::TokenInvalid, "{reused}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_or_none_is_refused() {
    let fleet = Fleet::controller_alone().await;
    for token in ["nonsense", "hft_0000"] {
        let mut runs = RunServiceClient::new(fleet.channel_with(token));
        let refused = runs.list(v1::ListRunsRequest::default()).await.unwrap_err();
        assert_eq!(from_status(&refused).code, ErrorCode::NotAuthenticated);
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn state_and_definitions_survive_a_restart_and_the_agent_comes_back() {
    let mut fleet = Fleet::start().await;
    with_tree(&fleet).await;
    let first = fleet.backup_well("tree", "full").await;
    fleet.stop_controller().await;
    fleet.start_controller().await;
    let second = fleet.backup_well("tree", "incremental").await;
    let ids: Vec<String> = fleet.snapshots_of("tree").await.into_iter().map(|snapshot| snapshot.id).collect();
    assert_eq!(ids, [second.snapshot_id, first.snapshot_id]);
    fleet.restic().check_all_data();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_an_agent_that_is_away_waits_for_it_and_says_so() {
    let mut fleet = Fleet::start().await;
    with_tree(&fleet).await;
    fleet.stop_agent("a1").await;
    let run = fleet.start_backup("tree", "full").await.unwrap();
    let waiting = until_async("the run to say what it waits for", PATIENCE, async || {
        let now = run_now(&fleet, &run).await;
        (!now.waiting_for.is_empty()).then_some(now)
    })
    .await;
    assert_eq!((waiting.phase.as_str(), waiting.waiting_for.as_str()), ("queued", "agent a1 to connect"));
    let second = fleet.start_backup("tree", "full").await.unwrap_err();
    assert_eq!(second.code, ErrorCode::RunAlreadyActive);
    fleet.start_agent("a1").await;
    assert_eq!(fleet.ended(&run).await.phase, "succeeded");
    fleet.stop().await;
}

/// Lasts longer than any test waits for anything.
const HANGS: &[&str] = &["sleep", "600"];

fn gate(program: &[&str]) -> holdfast_agent::config::Hook {
    let command = program.iter().map(ToString::to_string).collect();
    holdfast_agent::config::Hook { command, timeout: 5 * PATIENCE }
}

/// Declares the tree with a hook before its backups, and starts the agent with what the hook runs.
async fn with_gated_tree(fleet: &mut Fleet, program: &[&str]) {
    let paths = fleet.path().join("data").display().to_string();
    fleet
        .apply(&format!(
            "sources:\n  tree: {{ engine: files, agent: a1, paths: [{paths}], hooks: {{ before: gate }} }}\n"
        ))
        .await
        .unwrap();
    fleet.stop_agent("a1").await;
    fleet.configure_agent("a1", |config| {
        config.hooks.insert("gate".parse().unwrap(), gate(program));
        config.drain_grace = std::time::Duration::from_millis(100);
    });
    fleet.start_agent("a1").await;
}

async fn run_now(fleet: &Fleet, run: &v1::Run) -> v1::Run {
    let request = v1::GetRunRequest { run_id: run.id.clone() };
    fleet.runs().get(request).await.unwrap().into_inner().run.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_expected_to_be_as_large_as_the_last() {
    let mut fleet = Fleet::start().await;
    with_tree(&fleet).await;
    fleet.backup_well("tree", "full").await;
    let last = fleet.snapshots_of("tree").await.swap_remove(0);
    with_gated_tree(&mut fleet, HANGS).await;
    let run = fleet.start_backup("tree", "full").await.unwrap();
    let totals = until_async("counters of the run", PATIENCE, async || {
        let progress = run_now(&fleet, &run).await.progress?;
        (progress.bytes_total > 0).then_some((progress.bytes_total, progress.files_total))
    })
    .await;
    assert_eq!(totals, (last.logical_bytes, last.files));
    fleet.runs().cancel(v1::CancelRunRequest { run_id: run.id.clone() }).await.unwrap();
    assert_eq!(fleet.ended(&run).await.phase, "cancelled");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_is_told_who_he_is_and_until_when() {
    let fleet = Fleet::controller_alone().await;
    let told = fleet.status().whoami(v1::WhoamiRequest {}).await.unwrap().into_inner();
    assert_eq!((told.name.as_str(), told.role.as_str()), ("admin", "admin"));
    let left = told.not_after.unwrap().seconds - SystemClock.now().as_second();
    let year = 365 * 24 * 3600;
    assert!((year - 60..=year).contains(&left), "the first token is good for a year, {left} s are left");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_agent_stops_in_the_middle_is_done_when_it_is_back() {
    let mut fleet = Fleet::start().await;
    with_tree(&fleet).await;
    with_gated_tree(&mut fleet, HANGS).await;
    let run = fleet.start_backup("tree", "full").await.unwrap();
    let begun = async || (run_now(&fleet, &run).await.phase == "running").then_some(());
    until_async("the run to begin", PATIENCE, begun).await;
    fleet.stop_agent("a1").await;
    let queued = async || Some(run_now(&fleet, &run).await).filter(|run| run.phase == "queued");
    let waiting = until_async("the run to be queued again", PATIENCE, queued).await;
    assert_eq!(waiting.attempt, 1, "{waiting:?}");
    fleet.configure_agent("a1", |config| drop(config.hooks.insert("gate".parse().unwrap(), gate(&["true"]))));
    fleet.start_agent("a1").await;
    let ended = fleet.ended(&run).await;
    assert_eq!((ended.phase.as_str(), ended.attempt), ("succeeded", 2), "{ended:?}");
    let told = "the attempt was cut short and the run is queued again: \
                [HF-5005] the agent is stopping and does not finish the run";
    assert!(fleet.log(&ended).await.contains(told), "{}", fleet.log(&ended).await);
    assert_eq!(fleet.snapshots_of("tree").await.len(), 1);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_run_is_cancelled_at_once() {
    let mut fleet = Fleet::start().await;
    with_tree(&fleet).await;
    fleet.stop_agent("a1").await;
    let run = fleet.start_backup("tree", "full").await.unwrap();
    let cancel = v1::CancelRunRequest { run_id: run.id.clone() };
    let cancelled = fleet.runs().cancel(cancel).await.unwrap().into_inner().run.unwrap();
    assert_eq!(cancelled.phase, "cancelled");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_is_cut_off_and_can_not_come_back() {
    let fleet = Fleet::start().await;
    let revoke = v1::RevokeAgentRequest { name: "a1".to_owned(), reason: "stolen".to_owned() };
    fleet.fleet().revoke_agent(revoke).await.unwrap();
    let agents = fleet.fleet().list_agents(v1::ListAgentsRequest {}).await.unwrap().into_inner().agents;
    assert_eq!(agents[0].state, "revoked");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_gives_the_same_run_again() {
    let fleet = Fleet::start().await;
    with_tree(&fleet).await;
    let backup = v1::StartBackup { source: "tree".to_owned(), ..Default::default() };
    let request = v1::StartRequest {
        idempotency_key: "nightly-1".to_owned(),
        what: Some(v1::start_request::What::Backup(backup)),
    };
    let first = fleet.runs().start(request.clone()).await.unwrap().into_inner().runs.swap_remove(0);
    fleet.ended(&first).await;
    let second = fleet.runs().start(request).await.unwrap().into_inner().runs.swap_remove(0);
    assert_eq!(second.id, first.id);
    assert_eq!(fleet.snapshots_of("tree").await.len(), 1);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_milestone_is_held_from_the_start() {
    let fleet = Fleet::start().await;
    with_tree(&fleet).await;
    let backup = v1::StartBackup {
        source: "tree".to_owned(),
        milestone: "phase2_complete".to_owned(),
        ..Default::default()
    };
    let run = fleet.start_run(v1::start_request::What::Backup(backup)).await.unwrap();
    assert_eq!(fleet.ended(&run).await.phase, "succeeded");
    let snapshot = &fleet.snapshots_of("tree").await[0];
    assert_eq!(snapshot.milestone, "phase2_complete");
    assert_eq!(snapshot.held_because, "milestone phase2_complete of tree");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_names_who_did_what_and_its_chain_holds() {
    let fleet = Fleet::start().await;
    with_tree(&fleet).await;
    fleet.backup_well("tree", "full").await;
    let request = v1::AuditRequest { verify: true, ..Default::default() };
    let mut parts = fleet.status().audit(request).await.unwrap().into_inner();
    let mut actions = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        actions.extend(part.entries.into_iter().map(|entry| format!("{} {}", entry.actor, entry.action)));
    }
    for expected in [
        "token:admin fleet.apply",
        "token:admin run.start",
        "agent:a1 agent.enroll",
        "agent:a1 snapshot.commit",
    ] {
        assert!(actions.iter().any(|action| action == expected), "{expected} is not in {actions:?}");
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_comes_back_from_the_repository_alone() {
    let fleet = Fleet::start().await;
    with_tree(&fleet).await;
    let run = fleet.backup_well("tree", "full").await;
    let repository = fleet.repository();
    let mut other = Fleet::controller_alone().await;
    other.add_repository("found", &format!("file://{}", repository.display()), "").await;
    let found = other.snapshots_of("tree").await;
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].id.as_str(), found[0].repository.as_str()), (run.snapshot_id.as_str(), "found"));
    assert_eq!(found[0].rows, 0);
    assert_eq!(found[0].engine, "files");
    other.stop().await;
    fleet.stop().await;
}
