//! Sessions of a whole agent with a controller in memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_model::ids::RunId;
use holdfast_proto::v1;
use holdfast_proto::v1::fact::Event;
use holdfast_proto::v1::session_response::Message as ToAgent;
use holdfast_runtime::{Ending, OnEnd, Shutdown, SystemClock, TaskGroup};
use tempfile::TempDir;

use crate::agent::{Agent, RunningAgent};
use crate::config::AgentConfig;
use crate::journal::JournalEntry;
use crate::testing::controller::FakeController;
use crate::testing::engine::World;

async fn start(controller: &FakeController, folder: &TempDir, world: &Arc<World>) -> RunningAgent {
    if !folder.path().join(crate::identity::FILE_NAME).exists() {
        controller.enroll(folder.path());
    }
    let config = AgentConfig::new(folder.path());
    Agent::start_with(config, SystemClock::shared(), world.factory(), Shutdown::new()).await.unwrap()
}

fn run(n: u8) -> String {
    RunId::at(1_000 + u64::from(n), [n; 10]).to_string()
}

fn assign(n: u8) -> ToAgent {
    let spec = serde_json::json!({
        "kind": "backup", "source": "shop", "repository": "main", "snapshot_type": "full", "milestone": null
    });
    let source = serde_json::json!({ "engine": "files", "agent": "db1", "paths": ["/srv"] });
    ToAgent::Assign(v1::Assign {
        run_id: run(n),
        attempt: 1,
        spec_json: spec.to_string(),
        source_json: source.to_string(),
        ..v1::Assign::default()
    })
}

async fn hello(controller: &FakeController, count: usize) -> v1::Hello {
    let hellos = controller.until(&controller.conversations.hellos, |hellos| hellos.len() >= count).await;
    hellos[count - 1].clone()
}

/// The hellos of the second agent of a test. The first one said hello once, and perhaps once more when it drained.
async fn hellos_after_restart(controller: &FakeController, count: usize) -> Vec<v1::Hello> {
    let later = |hellos: &[v1::Hello]| -> Vec<v1::Hello> {
        hellos.iter().skip(1).filter(|hello| !hello.draining).cloned().collect()
    };
    let hellos = &controller.conversations.hellos;
    later(&controller.until(hellos, |hellos| later(hellos).len() >= count).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_introduces_itself_and_gives_signs_of_life() {
    let (controller, folder) = (FakeController::start().await, tempfile::tempdir().unwrap());
    let agent = start(&controller, &folder, &World::with(&[])).await;
    let hello = hello(&controller, 1).await;
    assert_eq!((hello.protocol, hello.slots, hello.draining), (holdfast_proto::PROTOCOL_VERSION, 2, false));
    assert_eq!(hello.outbox_id.len(), 32);
    assert!(hello.runs_in_hand.is_empty() && hello.facts.is_some());
    controller.until(&controller.conversations.heartbeats, |&count| count >= 1).await;
    let mut state = agent.watch_session();
    state.wait_for(|state| matches!(state, super::SessionState::Connected { epoch: 1 })).await.unwrap();
    assert!(agent.is_connected());
    assert!(matches!(agent.stop().await, Ending::Drained(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_goes_on_while_the_controller_is_away_and_its_facts_are_delivered_again() {
    let (controller, folder) = (FakeController::start().await, tempfile::tempdir().unwrap());
    let world = World::with(&[("a", vec![7; 3_000_000])]);
    *world.hangs.lock() = true;
    let agent = start(&controller, &folder, &world).await;
    hello(&controller, 1).await;
    controller.conversations.acknowledges.store(false, Ordering::Relaxed);
    controller.say(assign(1)).await;
    controller.until(&controller.conversations.facts, |facts| !facts.is_empty()).await;
    controller.kill();
    controller.restart().await;
    let again = hello(&controller, 2).await;
    assert_eq!(again.runs_in_hand, [v1::RunInHand { run_id: run(1), attempt: 1 }]);
    let deliveries = || controller.conversations.deliveries.lock().get(&1).copied();
    // The fact Started was never acknowledged, so it comes again.
    controller.conversations.acknowledges.store(true, Ordering::Relaxed);
    controller.say(ToAgent::Cancel(v1::Cancel { run_id: run(1), attempt: 1 })).await;
    assert!(matches!(controller.end_of(&run(1)).await, Event::Cancelled(_)));
    assert!(deliveries() >= Some(2), "{:?}", deliveries());
    assert!(matches!(agent.stop().await, Ending::Drained(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_run_survives_a_restart_of_the_agent_and_keeps_it_in_hand() {
    let (controller, folder) = (FakeController::start().await, tempfile::tempdir().unwrap());
    let world = World::with(&[("a", b"text".to_vec())]);
    let agent = start(&controller, &folder, &world).await;
    hello(&controller, 1).await;
    controller.conversations.acknowledges.store(false, Ordering::Relaxed);
    controller.say(assign(1)).await;
    assert!(matches!(controller.end_of(&run(1)).await, Event::Finished(_)));
    assert!(matches!(agent.stop().await, Ending::Drained(_)));
    controller.conversations.acknowledges.store(true, Ordering::Relaxed);
    let agent = start(&controller, &folder, &world).await;
    let hello = &hellos_after_restart(&controller, 1).await[0];
    assert_eq!(hello.runs_in_hand, [v1::RunInHand { run_id: run(1), attempt: 1 }]);
    assert!(hello.last_fact_seq >= 2);
    controller
        .until(&controller.conversations.facts, |facts| facts.len() as u64 >= hello.last_fact_seq)
        .await;
    assert!(matches!(agent.stop().await, Ending::Drained(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_interrupted_restore_left_is_removed_and_the_run_is_not_in_hand() {
    let (controller, folder) = (FakeController::start().await, tempfile::tempdir().unwrap());
    let world = World::with(&[]);
    world.beside.lock().insert("shop_restored".to_owned(), Default::default());
    let tasks = TaskGroup::new(&Shutdown::new());
    let journal = crate::journal::Journal::open(folder.path(), &tasks).unwrap();
    let spec = serde_json::json!({
        "kind": "restore", "source": "shop", "repository": "main", "snapshot": "00".repeat(32), "agent": "db1",
        "placement": "beside", "only": []
    });
    let source = serde_json::json!({ "engine": "files", "agent": "db1", "paths": ["/srv"] });
    let target = serde_json::json!({ "part": "shop", "restored": "shop_restored", "live": "shop" });
    let spec = serde_json::from_value(spec).unwrap();
    let source = serde_json::from_value(source).unwrap();
    let attempt = holdfast_model::ids::Attempt(1);
    let entry = JournalEntry {
        unfinished: vec![serde_json::from_value(target).unwrap()],
        ..JournalEntry::new(run(1).parse().unwrap(), attempt, spec, source)
    };
    journal.begin(entry).await.unwrap();
    std::fs::create_dir_all(folder.path().join("scratch/leftover")).unwrap();
    let agent = start(&controller, &folder, &world).await;
    assert!(hello(&controller, 1).await.runs_in_hand.is_empty());
    assert!(world.beside.lock().is_empty());
    assert_eq!(*world.events.lock(), ["discarded shop_restored"]);
    assert_eq!(std::fs::read_dir(folder.path().join("scratch")).unwrap().count(), 0);
    assert!(matches!(agent.stop().await, Ending::Drained(_)));
    assert!(crate::journal::Journal::open(folder.path(), &tasks).unwrap().runs().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_agent_says_that_it_drains_and_finishes_what_runs() {
    let (controller, folder) = (FakeController::start().await, tempfile::tempdir().unwrap());
    let world = World::with(&[("a", b"text".to_vec())]);
    *world.hangs.lock() = true;
    let agent = start(&controller, &folder, &world).await;
    hello(&controller, 1).await;
    controller.say(assign(1)).await;
    controller.until(&controller.conversations.facts, |facts| !facts.is_empty()).await;
    let tasks = TaskGroup::new(&Shutdown::new());
    let stopping = tasks.spawn("stop", OnEnd::Finite, agent.stop());
    let draining = hello(&controller, 2).await;
    assert!(draining.draining);
    assert_eq!(draining.runs_in_hand.len(), 1);
    controller.say(assign(2)).await;
    let Event::Failed(refused) = controller.end_of(&run(2)).await else { panic!() };
    assert_eq!(refused.code, "HF-5005");
    controller.say(ToAgent::Cancel(v1::Cancel { run_id: run(1), attempt: 1 })).await;
    assert!(matches!(controller.end_of(&run(1)).await, Event::Cancelled(_)));
    assert!(matches!(stopping.join().await.unwrap(), Ending::Drained(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_due_is_renewed_and_a_new_session_dialled_with_it() {
    let (controller, folder) = (FakeController::start().await, tempfile::tempdir().unwrap());
    controller.enroll(folder.path());
    let before = std::fs::read(folder.path().join(crate::identity::FILE_NAME)).unwrap();
    // The certificates of the test live for centuries; the wall clock of this agent is near the end of it.
    let identity = crate::identity::Identity::load(folder.path()).unwrap();
    let clock = holdfast_runtime::ManualClock::at(identity.validity().renew_at());
    let config = AgentConfig::new(folder.path());
    let world = World::with(&[]);
    let agent = Agent::start_with(config, clock.shared(), world.factory(), Shutdown::new()).await.unwrap();
    controller.until(&controller.conversations.renewals, |&count| count >= 1).await;
    hello(&controller, 2).await;
    assert_ne!(std::fs::read(folder.path().join(crate::identity::FILE_NAME)).unwrap(), before);
    assert!(matches!(agent.stop().await, Ending::Drained(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_folder_put_back_to_an_older_state_takes_a_new_outbox() {
    let (controller, folder) = (FakeController::start().await, tempfile::tempdir().unwrap());
    let world = World::with(&[("a", b"text".to_vec())]);
    let agent = start(&controller, &folder, &world).await;
    let first = hello(&controller, 1).await;
    let outbox = folder.path().join(crate::outbox::FILE_NAME);
    let older = std::fs::read(&outbox).unwrap();
    controller.say(assign(1)).await;
    controller.end_of(&run(1)).await;
    assert!(matches!(agent.stop().await, Ending::Drained(_)));
    std::fs::write(&outbox, older).unwrap();
    let agent = start(&controller, &folder, &world).await;
    let hellos = hellos_after_restart(&controller, 2).await;
    assert_eq!(hellos[0].outbox_id, first.outbox_id);
    assert_ne!(hellos[1].outbox_id, first.outbox_id);
    assert!(matches!(agent.stop().await, Ending::Drained(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_is_answered_and_one_about_what_is_not_allowed_is_refused() {
    let (controller, folder) = (FakeController::start().await, tempfile::tempdir().unwrap());
    let agent = start(&controller, &folder, &World::with(&[])).await;
    hello(&controller, 1).await;
    let ask = |id: u64, source: serde_json::Value| {
        ToAgent::Inquiry(v1::Inquiry {
            id,
            source_json: source.to_string(),
            question: Some(v1::inquiry::Question::Probe(v1::ProbeSource {})),
        })
    };
    controller.say(ask(1, serde_json::json!({ "engine": "files", "agent": "db1", "paths": ["/srv"] }))).await;
    let evil = serde_json::json!({
        "engine": "postgres", "agent": "db1",
        "connect": { "user": "u", "password": { "command": ["/bin/sh", "-c", "id"] } }
    });
    controller.say(ask(2, evil)).await;
    let answers = controller.until(&controller.conversations.answers, |answers| answers.len() == 2).await;
    let reply = |id: u64| answers.iter().find(|answer| answer.id == id).unwrap().reply.clone().unwrap();
    let v1::answer::Reply::DocumentJson(report) = reply(1) else { panic!() };
    assert!(report.contains("\"logical_bytes\":7"));
    let v1::answer::Reply::Failure(refused) = reply(2) else { panic!() };
    assert_eq!(refused.code, "HF-5001");
    assert!(matches!(agent.stop().await, Ending::Drained(_)));
}
