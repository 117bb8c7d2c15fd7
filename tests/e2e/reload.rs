//! `controller.yaml` read anew while the controller runs: what can change does, the rest is named, and what is not
//! valid changes nothing.

use holdfast_proto::v1;
use holdfast_tests::process_fleet::{LONG_LEASE, Program};
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{ProcessFleet, TreeSpec};

/// What `doctor` says of the file, once it says this.
async fn found(fleet: &ProcessFleet, outcome: &str, part: &str) -> v1::Finding {
    until_async(&format!("doctor to say {part:?}"), PATIENCE, async || {
        let findings = fleet.status().doctor(v1::DoctorRequest {}).await.unwrap().into_inner().findings;
        let is_it = |one: &v1::Finding| {
            one.object == "controller.yaml" && one.outcome == outcome && one.message.contains(part)
        };
        findings.into_iter().find(is_it)
    })
    .await
}

async fn waits_for(fleet: &ProcessFleet, run: &v1::Run) -> String {
    let request = v1::GetRunRequest { run_id: run.id.clone() };
    fleet.runs().get(request).await.unwrap().into_inner().run.unwrap().waiting_for
}

/// A source `tree` of files.
async fn declare(fleet: &ProcessFleet) {
    let tree = fleet.path().join("data");
    std::fs::create_dir(&tree).unwrap();
    TreeSpec::small(3).make(&tree);
    fleet
        .apply(&format!("sources:\n  tree: {{ engine: files, agent: a1, paths: [{}] }}\n", tree.display()))
        .await
        .unwrap();
}

fn read_anew(fleet: &mut ProcessFleet, text: &str) {
    std::fs::write(fleet.path().join("controller.yaml"), text).unwrap();
    fleet.hang_up(Program::Controller);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_holds_after_a_hangup_and_an_invalid_one_changes_nothing() {
    let mut fleet = ProcessFleet::start(LONG_LEASE, []).await;
    declare(&fleet).await;
    let before = std::fs::read_to_string(fleet.path().join("controller.yaml")).unwrap();
    let lease = "limits: { lease_seconds: 60 }";
    assert!(before.contains(lease), "{before}");
    let closed = "limits: { lease_seconds: 30, runs: 0 }";
    let filter = "telemetry: { filter: \"info,holdfast_controller=debug\" }";
    read_anew(&mut fleet, &before.replace(lease, &format!("{closed}\n{filter}")));
    found(&fleet, "warning", "what it says of limits.lease_seconds needs a restart").await;
    let run = fleet.start_backup("tree", "full").await.unwrap();
    let closed = "the controller (0 runs under way)";
    until_async("the run to wait", PATIENCE, async || {
        (waits_for(&fleet, &run).await == closed).then_some(())
    })
    .await;

    for (wrong, why) in [
        (format!("{before}retension: 1\n"), "unknown key `retension`"),
        (before.replace(lease, "telemetry: { filter: \"a=b=c\" }"), "`telemetry.filter`"),
        (before.replace(lease, "limits: { lease_seconds: 1 }"), "5 to 3600 are possible"),
        ("\u{0}".to_owned(), "HF-1002"),
    ] {
        read_anew(&mut fleet, &wrong);
        let finding = found(&fleet, "failed", why).await;
        assert!(finding.message.starts_with("is not taken, what was read before holds: "), "{finding:?}");
        assert_eq!(waits_for(&fleet, &run).await, closed);
    }
    read_anew(&mut fleet, &before);
    found(&fleet, "ok", "is in force as of").await;
    assert_eq!(fleet.ended(&run).await.phase, "succeeded");
    let log = fleet.log_of(Program::Controller);
    assert!(
        log.contains("controller.yaml was read anew") && log.contains("keys=\"limits.lease_seconds\""),
        "{log}"
    );
    assert!(log.contains("controller.yaml is not taken: what was read before holds"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_allows_changes_at_a_hangup_while_it_stays_connected() {
    let mut fleet = ProcessFleet::start(LONG_LEASE, []).await;
    declare(&fleet).await;
    let file = fleet.path().join("agent.yaml");
    let before = std::fs::read_to_string(&file).unwrap();
    let session = async |fleet: &ProcessFleet| {
        let agents = fleet.fleet().list_agents(v1::ListAgentsRequest {}).await.unwrap().into_inner().agents;
        agents[0].epoch
    };
    let first = session(&fleet).await;
    let sources = "allow: { sources: { paths: [/nowhere] },";
    let steps = [
        (before.replace("allow: {", sources), "agent.yaml was read anew\n", Some("HF-5001")),
        (
            format!("{before}slotz: 1\n"),
            "agent.yaml is not taken: what was read before holds",
            Some("HF-5001"),
        ),
        (format!("{before}slots: 5\n"), "what these keys say needs a restart keys=\"slots\"", None),
    ];
    for (step, (text, said, code)) in steps.into_iter().enumerate() {
        std::fs::write(&file, text).unwrap();
        fleet.hang_up(Program::Agent);
        until_async(format!("the agent to say {said:?}"), PATIENCE, async || {
            let log = fleet.log_of(Program::Agent);
            (log.contains(said) && log.matches("agent.yaml").count() > step).then_some(())
        })
        .await;
        let run = fleet.start_backup("tree", "full").await.unwrap();
        let ended = fleet.ended(&run).await;
        assert_eq!(ended.failure.map(|failure| failure.code).as_deref(), code);
    }
    assert_eq!(session(&fleet).await, first);
}
