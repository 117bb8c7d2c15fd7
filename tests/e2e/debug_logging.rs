//! Debug logging of one source: switched on and off while everything runs, for runs that are active too.

use holdfast_agent::config::Hook;
use holdfast_model::ErrorCode;
use holdfast_model::ids::HookName;
use holdfast_proto::status::from_status;
use holdfast_proto::v1;
use holdfast_tests::wait::{PATIENCE, until_async};
use holdfast_tests::{Fleet, SkewedClock};
use jiff::{SignedDuration, Timestamp};

/// A fleet with the sources `shop` and `other` over one tree; a backup of `shop` begins with a hook that ends when the
/// file `go` is there.
async fn fleet(clock: &SkewedClock) -> Fleet {
    let mut fleet = Fleet::controller_at(clock.shared()).await;
    let go = fleet.path().join("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done", go.display());
    let wait = Hook { command: ["sh", "-c", &script].map(str::to_owned).to_vec(), timeout: 5 * PATIENCE };
    fleet.enroll_agent("a1").await;
    fleet.configure_agent("a1", |config| {
        config.hooks.insert(HookName::new("wait").unwrap(), wait);
    });
    fleet.start_agent_at("a1", clock.shared()).await;
    fleet.until_connected("a1").await;
    fleet.add_repository("main", &format!("file://{}", fleet.repository().display()), "").await;
    let tree = fleet.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    for name in ["grows", "stays", "left.tmp"] {
        std::fs::write(tree.join(name), name).unwrap();
    }
    let source = |name: &str, more: &str| {
        let tree = tree.display();
        format!(
            "  {name}: {{ engine: files, agent: a1, paths: [{tree}], exclude: [\"*.tmp\"], to: [main]{more} }}\n"
        )
    };
    let yaml = format!("sources:\n{}{}", source("shop", ", hooks: { before: wait }"), source("other", ""));
    fleet.apply(&yaml).await.unwrap();
    fleet
}

async fn debug(
    fleet: &Fleet,
    source: &str,
    for_seconds: u32,
) -> Result<v1::DebugSourceResponse, holdfast_model::Failure> {
    let request = v1::DebugSourceRequest { source: source.to_owned(), for_seconds };
    let reply = fleet.fleet().debug_source(request).await.map_err(|status| from_status(&status))?;
    Ok(reply.into_inner())
}

/// The debug lines of a run.
async fn debug_lines(fleet: &Fleet, run: &v1::Run) -> Vec<String> {
    let request = v1::RunLogsRequest { run_id: run.id.clone(), follow: false };
    let mut parts = fleet.runs().logs(request).await.unwrap().into_inner();
    let mut lines = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        let found = part.lines.into_iter().filter(|line| line.level() == v1::LogLevel::Debug);
        lines.extend(found.map(|line| line.text));
    }
    lines
}

async fn status_of(fleet: &Fleet, source: &str) -> v1::SourceStatus {
    let request = v1::FleetStatusRequest { source: source.to_owned() };
    fleet.status().fleet(request).await.unwrap().into_inner().sources.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_runs_writes_debug_lines_from_the_moment_somebody_asks_for_them() {
    let clock = SkewedClock::default();
    let mut fleet = fleet(&clock).await;
    let run = fleet.start_backup("shop", "full").await.unwrap();
    until_async("the hook to begin", PATIENCE, async || {
        fleet.log(&run).await.contains("hook wait begins").then_some(())
    })
    .await;
    assert_eq!(debug_lines(&fleet, &run).await, Vec::<String>::new());
    let reply = debug(&fleet, "shop", 1800).await.unwrap();
    assert!(!reply.was_on);
    std::fs::write(fleet.path().join("go"), "").unwrap();
    let run = fleet.ended(&run).await;
    assert_eq!((run.phase.as_str(), run.warnings), ("succeeded", 0), "debug lines are no warnings");
    let lines = debug_lines(&fleet, &run).await;
    let left_out = format!("{} is left out by the patterns", fleet.path().join("tree/left.tmp").display());
    for expected in ["capturing", &left_out, "committing"] {
        assert!(lines.iter().any(|line| line == expected), "{expected} is not in {lines:#?}");
    }
    assert!(lines.iter().any(|line| line.starts_with("stored pack ")), "{lines:#?}");

    // It outlives a restart, says why a file is read again, and concerns this source alone.
    fleet.stop_controller().await;
    fleet.start_controller().await;
    fleet.until_connected("a1").await;
    std::fs::write(fleet.path().join("tree/grows"), "longer than before").unwrap();
    let run = fleet.backup_well("shop", "incremental").await;
    let lines = debug_lines(&fleet, &run).await;
    assert!(lines[0].starts_with("assigned to agent a1 "), "{lines:#?}");
    let read: Vec<&String> = lines.iter().filter(|line| line.starts_with("reads ")).collect();
    let grows = format!("reads {}: its size differs", fleet.path().join("tree/grows").display());
    assert_eq!(read, [&grows], "{lines:#?}");
    let other = fleet.backup_well("other", "full").await;
    assert_eq!(debug_lines(&fleet, &other).await, Vec::<String>::new());

    // It ends by itself, and is shown until then.
    let shown = status_of(&fleet, "shop").await.debug.unwrap();
    assert_eq!(shown.by, "token:admin");
    assert_eq!(status_of(&fleet, "other").await.debug, None);
    let until = shown.until.unwrap();
    let until = Timestamp::new(until.seconds, until.nanos).unwrap();
    clock.jump(until.duration_since(holdfast_runtime::Clock::now(&clock)) + SignedDuration::from_secs(1));
    assert_eq!(status_of(&fleet, "shop").await.debug, None);
    let run = fleet.backup_well("shop", "incremental").await;
    assert_eq!(debug_lines(&fleet, &run).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn debug_logging_is_ended_audited_and_asked_for_exactly() {
    let fleet = fleet(&SkewedClock::default()).await;
    std::fs::write(fleet.path().join("go"), "").unwrap();
    assert!(!debug(&fleet, "shop", 0).await.unwrap().was_on);
    assert!(!debug(&fleet, "shop", 604_800).await.unwrap().was_on);
    assert!(debug(&fleet, "shop", 60).await.unwrap().was_on);
    let off = debug(&fleet, "shop", 0).await.unwrap();
    assert_eq!((off.was_on, off.debug), (true, None));
    let run = fleet.backup_well("shop", "full").await;
    assert_eq!(debug_lines(&fleet, &run).await, Vec::<String>::new());

    let unknown = debug(&fleet, "shed", 60).await.unwrap_err();
    assert_eq!((unknown.code, unknown.message.as_str()), (ErrorCode::NotFound, "there is no source shed"));
    let long = debug(&fleet, "shop", 604_801).await.unwrap_err();
    assert_eq!(
        (long.code, long.message.as_str()),
        (ErrorCode::UsageInvalid, "field for_seconds: is more than a week")
    );

    let mut parts = fleet.status().audit(v1::AuditRequest::default()).await.unwrap().into_inner();
    let mut actions = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        let of_debug = part.entries.into_iter().filter(|entry| entry.action.starts_with("source.debug"));
        actions.extend(of_debug.map(|entry| format!("{} {} {}", entry.actor, entry.action, entry.target)));
    }
    let expected =
        ["debug", "debug", "debug_end"].map(|action| format!("token:admin source.{action} source/shop"));
    assert_eq!(actions, expected);
}
