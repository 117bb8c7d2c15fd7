//! Whole runs: a fake source, a controller in memory, and everything between them as it is.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use holdfast_model::ErrorCode;
use holdfast_model::ids::{HookName, RunId};
use holdfast_model::manifest::Manifest;
use holdfast_model::restore::RestoreReport;
use holdfast_proto::v1;
use holdfast_proto::v1::fact::Event;
use holdfast_proto::v1::session_response::Message as ToAgent;
use holdfast_runtime::{Ending, Shutdown, SystemClock};
use tempfile::TempDir;

use crate::agent::{Agent, RunningAgent};
use crate::config::{AgentConfig, Hook};
use crate::testing::controller::FakeController;
use crate::testing::engine::World;

struct Fixture {
    controller: FakeController,
    world: Arc<World>,
    agent: RunningAgent,
    folder: TempDir,
}

/// An agent with the hooks `stop` and `start`, which write their names into a file; `stop` fails if told so.
async fn fixture(entries: &[(&str, Vec<u8>)]) -> Fixture {
    let (controller, folder) = (FakeController::start().await, tempfile::tempdir().unwrap());
    controller.enroll(folder.path());
    let mut config = AgentConfig::new(folder.path());
    config.allow.restore_paths = vec!["/srv".into()];
    for name in ["stop", "start"] {
        let path = folder.path().join(name);
        let (log, fail) = (folder.path().join("hooks"), folder.path().join("fail"));
        let text =
            format!("#!/bin/sh\necho {name} >> {}\ntest ! -e {}-{name}\n", log.display(), fail.display());
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let hook =
            Hook { command: vec![path.display().to_string()], timeout: std::time::Duration::from_secs(120) };
        config.hooks.insert(HookName::new(name).unwrap(), hook);
    }
    let world = World::with(entries);
    let agent =
        Agent::start_with(config, SystemClock::shared(), world.factory(), Shutdown::new()).await.unwrap();
    controller.until(&controller.conversations.hellos, |hellos| !hellos.is_empty()).await;
    Fixture { controller, world, agent, folder }
}

fn id(n: u8) -> String {
    RunId::at(1_000 + u64::from(n), [n; 10]).to_string()
}

impl Fixture {
    async fn run(&self, n: u8, spec: serde_json::Value) -> Event {
        self.run_with(n, spec, String::new()).await
    }

    async fn run_with(&self, n: u8, spec: serde_json::Value, manifest_json: String) -> Event {
        let source = serde_json::json!({
            "engine": "files", "agent": "db1", "paths": ["/srv"], "hooks": { "before": "stop", "after": "start" }
        });
        self.controller
            .say(ToAgent::Assign(v1::Assign {
                run_id: id(n),
                attempt: 1,
                spec_json: spec.to_string(),
                source_json: source.to_string(),
                traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
                manifest_json,
                ..v1::Assign::default()
            }))
            .await;
        self.controller.end_of(&id(n)).await
    }

    async fn backup(&self, n: u8) -> Event {
        self.run(
            n,
            serde_json::json!({
                "kind": "backup", "source": "shop", "repository": "main", "snapshot_type": "incremental",
                "milestone": null
            }),
        )
        .await
    }

    async fn restore(&self, n: u8, placement: serde_json::Value, manifest: &Manifest) -> Event {
        let spec = serde_json::json!({
            "kind": "restore", "source": "shop", "repository": "main", "snapshot": "01".repeat(32), "agent": "db1",
            "placement": placement, "only": []
        });
        self.run_with(n, spec, serde_json::to_string(manifest).unwrap()).await
    }

    async fn of_restore(&self, n: u8, kind: &str, restore: u8, targets: &RestoreReport) -> Event {
        let spec = serde_json::json!({
            "kind": kind, "source": "shop", "agent": "db1", "restore": uuid(restore), "targets": targets.targets
        });
        self.run(n, spec).await
    }

    fn committed(&self) -> Vec<v1::CommitSnapshotRequest> {
        self.controller.repository.state.lock().committed.clone()
    }

    fn hooks_that_ran(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("hooks")).unwrap_or_default().replace('\n', " ")
    }

    fn let_fail(&self, hook: &str) {
        std::fs::write(self.folder.path().join(format!("fail-{hook}")), "").unwrap();
    }

    fn log_lines(&self, n: u8) -> Vec<String> {
        let facts = self.controller.conversations.facts.borrow();
        let of_run = facts.values().filter(|fact| fact.run_id == id(n));
        let lines = of_run.filter_map(|fact| match &fact.event {
            Some(Event::Log(log)) => Some(log.lines.iter().map(|line| line.text.clone())),
            _ => None,
        });
        lines.flatten().collect()
    }

    async fn stop(self) {
        assert!(matches!(self.agent.stop().await, Ending::Drained(_)));
        let scratch = self.folder.path().join("scratch");
        assert_eq!(std::fs::read_dir(scratch).unwrap().count(), 0, "scratch files were left");
    }
}

fn uuid(n: u8) -> serde_json::Value {
    serde_json::to_value(id(n).parse::<RunId>().unwrap()).unwrap()
}

fn texts() -> Vec<(&'static str, Vec<u8>)> {
    let long = (0..5_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    vec![("a", b"first".to_vec()), ("b", long), ("c", Vec::new())]
}

fn finished(event: Event) -> v1::Finished {
    match event {
        Event::Finished(finished) => finished,
        other => panic!("{other:?}"),
    }
}

fn report(event: Event) -> RestoreReport {
    serde_json::from_str(&finished(event).restored_json).unwrap()
}

fn failed(event: Event) -> String {
    match event {
        Event::Failed(failure) => format!("{} {}", failure.code, failure.message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_backed_up_is_restored_beside_and_discarded() {
    let fixture = fixture(&texts()).await;
    let backup = finished(fixture.backup(1).await);
    assert_eq!((backup.warnings, backup.restored_json.as_str()), (0, ""));
    assert_eq!(backup.progress.unwrap().bytes_done, 5_000_005);
    let committed = fixture.committed();
    assert_eq!(committed.len(), 1);
    assert_eq!((committed[0].files, committed[0].logical_bytes), (3, 5_000_005));
    assert_eq!(committed[0].paths, ["/srv"]);
    assert_eq!(fixture.hooks_that_ran(), "stop start ");
    let manifest: Manifest = serde_json::from_str(&committed[0].manifest_json).unwrap();

    let restored = report(fixture.restore(2, "beside".into(), &manifest).await);
    assert_eq!(fixture.world.beside.lock()["shop_restored"], *fixture.world.live.lock());
    assert_eq!(restored.bytes_written, 5_000_005);
    finished(fixture.of_restore(3, "discard", 2, &restored).await);
    assert!(fixture.world.beside.lock().is_empty());
    // A second time it is not this agent's any more.
    let again = failed(fixture.of_restore(4, "discard", 2, &restored).await);
    assert!(again.starts_with("HF-5001 shop_restored is not something that restore "), "{again}");
    assert_eq!(fixture.hooks_that_ran(), "stop start ", "hooks ran around a restore beside");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_backup_sends_only_what_is_new() {
    let fixture = fixture(&texts()).await;
    finished(fixture.backup(1).await);
    fixture.world.live.lock().insert("d".to_owned(), b"new".to_vec());
    let second = finished(fixture.backup(2).await).progress.unwrap();
    assert!(second.bytes_new < 10_000, "{second:?}");
    assert_eq!(fixture.committed().len(), 2);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_in_place_keeps_the_former_and_runs_the_hooks_around_the_swap() {
    let fixture = fixture(&texts()).await;
    finished(fixture.backup(1).await);
    let manifest: Manifest = serde_json::from_str(&fixture.committed()[0].manifest_json).unwrap();
    let snapshot = fixture.world.live.lock().clone();
    fixture.world.live.lock().remove("b");
    let accident = fixture.world.live.lock().clone();
    let restored = report(fixture.restore(2, "in_place".into(), &manifest).await);
    assert_eq!(*fixture.world.live.lock(), snapshot);
    let kept = restored.targets[0].kept.clone().unwrap();
    assert!(kept.starts_with("shop_before_20") && kept.ends_with('Z') && kept.len() == 28, "{kept}");
    assert_eq!(fixture.world.beside.lock()[&kept], accident);
    assert_eq!(fixture.hooks_that_ran(), "stop start stop start ");
    assert_eq!(*fixture.world.events.lock(), ["captured", "finished", "restored", "promoted"]);
    finished(fixture.of_restore(3, "discard", 2, &restored).await);
    assert!(fixture.world.beside.lock().is_empty());
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_beside_can_be_promoted_later_and_only_what_it_made() {
    let fixture = fixture(&texts()).await;
    finished(fixture.backup(1).await);
    let manifest: Manifest = serde_json::from_str(&fixture.committed()[0].manifest_json).unwrap();
    let restored = report(fixture.restore(2, "beside".into(), &manifest).await);
    let mut foreign = restored.clone();
    foreign.targets[0].restored = "payroll".to_owned();
    assert!(failed(fixture.of_restore(3, "promote", 2, &foreign).await).starts_with("HF-5001 "));
    assert!(failed(fixture.of_restore(4, "promote", 9, &restored).await).starts_with("HF-5001 "));
    let promoted = report(fixture.of_restore(5, "promote", 2, &restored).await);
    assert!(promoted.targets[0].kept.is_some());
    finished(fixture.of_restore(6, "discard", 2, &promoted).await);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_before_that_fails_keeps_the_capture_from_being_opened() {
    let fixture = fixture(&texts()).await;
    fixture.let_fail("stop");
    assert_eq!(failed(fixture.backup(1).await), "HF-5002 hook stop failed");
    assert!(fixture.world.events.lock().is_empty());
    assert!(fixture.committed().is_empty());
    assert_eq!(fixture.hooks_that_ran(), "stop start ", "what it may have stopped is started");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hook_after_runs_also_when_a_defect_ends_the_capture() {
    let fixture = fixture(&texts()).await;
    *fixture.world.capture_panics.lock() = true;
    assert_eq!(failed(fixture.backup(1).await), "HF-4017 the run ended by a defect");
    assert_eq!(fixture.hooks_that_ran(), "stop start ");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_after_that_fails_makes_the_backup_partial_and_nothing_worse() {
    let fixture = fixture(&texts()).await;
    fixture.let_fail("start");
    assert_eq!(finished(fixture.backup(1).await).warnings, 1);
    assert_eq!(fixture.committed().len(), 1);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_that_does_not_count_commits_nothing_and_the_hook_after_runs() {
    let fixture = fixture(&texts()).await;
    *fixture.world.capture_fails.lock() =
        Some((ErrorCode::CaptureIncomplete, "the dump has no end marker".to_owned()));
    assert_eq!(failed(fixture.backup(1).await), "HF-2007 the dump has no end marker");
    assert!(fixture.committed().is_empty());
    assert_eq!(fixture.hooks_that_ran(), "stop start ");
    assert!(fixture.log_lines(1).contains(&"[HF-2007] the dump has no end marker".to_owned()));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_whose_stream_hangs_can_be_cancelled() {
    let fixture = fixture(&texts()).await;
    *fixture.world.hangs.lock() = true;
    let cancel = async {
        let facts = &fixture.controller.conversations.facts;
        fixture.controller.until(facts, |facts| !facts.is_empty()).await;
        fixture.controller.say(ToAgent::Cancel(v1::Cancel { run_id: id(1), attempt: 1 })).await;
    };
    let (event, ()) = futures::join!(fixture.backup(1), cancel);
    assert!(matches!(event, Event::Cancelled(_)), "{event:?}");
    assert!(fixture.committed().is_empty());
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_restarts_in_the_middle_of_a_backup_does_not_end_it() {
    let fixture = fixture(&texts()).await;
    let connections = fixture.controller.connections();
    *fixture.controller.repository.break_at.lock() = Some((1000, connections.clone()));
    let restart = async {
        connections.cancelled().await;
        fixture.controller.restart().await;
    };
    let (event, ()) = futures::join!(fixture.backup(1), restart);
    finished(event);
    assert_eq!(fixture.committed().len(), 1);
    let manifest: Manifest = serde_json::from_str(&fixture.committed()[0].manifest_json).unwrap();
    report(fixture.restore(2, "beside".into(), &manifest).await);
    assert_eq!(fixture.world.beside.lock()["shop_restored"], *fixture.world.live.lock());
    fixture.stop().await;
}
