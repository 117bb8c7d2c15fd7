//! `kill -9` of an agent between the hooks of a run: what the first one stopped is started again, in any case, and after
//! everything that the agent puts right.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use holdfast_proto::v1;
use holdfast_tests::ProcessFleet;
use holdfast_tests::process_fleet::{Hold, LONG_LEASE, Program};
use holdfast_tests::wait::{PATIENCE, until_async, until_true};

const PLACES: [&str; 5] = [
    "agent-after-hook-before",
    "agent-after-hook-after",
    "agent-after-owed-hook",
    "agent-before-promote",
    "agent-after-promote",
];

/// An application that serves `site/data`, and hooks that stop and start it.
struct Application {
    fleet: ProcessFleet,
    data: PathBuf,
}

impl Application {
    async fn start() -> Self {
        let mut fleet = ProcessFleet::start(LONG_LEASE, PLACES).await;
        let (folder, data) = (fleet.path().join("app"), fleet.path().join("site/data"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("page"), "as it was backed up").unwrap();
        let page = data.join("page");
        let hook = |name: &str, more: String| {
            let program = folder.join(name);
            let history = folder.join("history");
            std::fs::write(&program, format!("#!/bin/sh\necho {name}{more} >> {}\n", history.display()))
                .unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
            format!("  {name}: {{ command: [{}], timeout: 120s }}\n", program.display())
        };
        let hooks = hook("stop", String::new()) + &hook("start", format!(" with $(cat {})", page.display()));
        fleet.configure_agent(&format!("hooks:\n{hooks}"));
        let yaml = format!(
            "sources:\n  tree: {{ engine: files, agent: a1, paths: [{}], hooks: {{ before: stop, after: start }} }}\n",
            data.display()
        );
        fleet.apply(&yaml).await.expect("the source is good");
        Self { fleet, data }
    }

    /// What the hooks did since the last call.
    fn history(&self) -> Vec<String> {
        let file = self.file();
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let _ = std::fs::remove_file(file);
        text.lines().map(str::to_owned).collect()
    }

    fn file(&self) -> PathBuf {
        self.fleet.path().join("app/history")
    }

    fn last(&self) -> Option<String> {
        std::fs::read_to_string(self.file()).unwrap_or_default().lines().last().map(str::to_owned)
    }

    fn page(&self) -> PathBuf {
        self.data.join("page")
    }

    /// Kills the agent where it is held.
    async fn kill_at(&mut self, hold: Hold) {
        self.fleet.is_held(&hold).await;
        self.fleet.kill(Program::Agent);
        drop(hold);
    }

    async fn ended(&self, run: &v1::Run) -> v1::Run {
        let ended = tokio::time::timeout(PATIENCE, self.fleet.ended(run)).await;
        ended.expect("the run ends soon after its lease")
    }

    async fn restore_in_place(&self) -> v1::Run {
        let request = v1::PlanRestoreRequest {
            source: "tree".to_owned(),
            to: "latest".to_owned(),
            in_place: true,
            ..v1::PlanRestoreRequest::default()
        };
        self.fleet.start_restore(request).await.unwrap()
    }
}

fn write(page: &Path, text: &str) {
    // Another file: what was backed up is not changed under the run.
    std::fs::remove_file(page).unwrap();
    std::fs::write(page, text).unwrap();
}

const START: &str = "start with as it was backed up";
const LINE: &str = "the agent ended before it ran the hook start, which is run now";

#[tokio::test(flavor = "multi_thread")]
async fn the_hook_after_a_backup_runs_when_the_agent_starts_again() {
    let mut app = Application::start().await;
    let hold = app.fleet.hold("agent-after-hook-before");
    let run = app.fleet.start_backup("tree", "full").await.unwrap();
    app.kill_at(hold).await;
    assert_eq!(app.last().as_deref(), Some("stop"), "the application is stopped when the agent dies");
    app.fleet.restart(Program::Agent);
    until_true("the application to be started", PATIENCE, || app.last().as_deref() == Some(START));
    let ended = app.ended(&run).await;
    let log = app.fleet.log(&ended).await;
    assert_eq!((&*ended.phase, ended.attempt), ("succeeded", 2), "{ended:?}\n{log}");
    assert_eq!(app.history(), ["stop", START, "stop", START], "{log}");
    assert!(log.contains(LINE), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hook_after_a_backup_runs_again_when_its_end_was_not_noted() {
    let mut app = Application::start().await;
    let hold = app.fleet.hold("agent-after-hook-after");
    let run = app.fleet.start_backup("tree", "full").await.unwrap();
    app.kill_at(hold).await;
    let again = app.fleet.hold("agent-after-owed-hook");
    app.fleet.restart(Program::Agent);
    app.fleet.is_held(&again).await;
    app.fleet.kill(Program::Agent);
    drop(again);
    assert_eq!(app.history(), ["stop", START, START]);
    app.fleet.restart(Program::Agent);
    let ended = app.ended(&run).await;
    assert_eq!(ended.phase, "succeeded", "{ended:?}");
    assert_eq!(app.history(), [START, "stop", START]);
    app.fleet.backup_well("tree", "full").await;
    assert_eq!(app.history(), ["stop", START], "what was run is not run again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hook_after_a_swap_runs_when_the_swap_is_brought_to_its_end() {
    let mut app = Application::start().await;
    app.fleet.backup_well("tree", "full").await;
    for (place, phase, page) in [
        ("agent-after-promote", "succeeded", "as it was backed up"),
        ("agent-before-promote", "failed", "overwritten by mistake"),
    ] {
        app.history();
        write(&app.page(), "overwritten by mistake");
        let hold = app.fleet.hold(place);
        let run = app.restore_in_place().await;
        app.kill_at(hold).await;
        assert_eq!(app.history(), ["stop"]);
        app.fleet.restart(Program::Agent);
        let ended = app.ended(&run).await;
        assert_eq!(ended.phase, phase, "{place}: {ended:?}");
        // The log of an attempt that was given up comes after the end of its run.
        let logged = async || app.fleet.log(&ended).await.contains(LINE).then_some(());
        until_async("the log of the hook", PATIENCE, logged).await;
        assert_eq!(app.history(), [format!("start with {page}")], "{place}");
        assert_eq!(std::fs::read_to_string(app.page()).unwrap(), page);
    }
}
