//! What a pass of the scheduler costs: `scheduler_pass FOLDER [SOURCES]`, 100,000 sources without a number.
//!
//! Ten sources at a time become due, under policies of their own; all the others are scheduled and not due. Prints how long
//! it takes to take the schedules over, a pass in which nothing is due, and passes in which ten sources are, each with the
//! commits of their runs on the disk of the folder. Build it optimised.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_controller::fleet_changes::{self, Authorship, Confirmed};
use holdfast_controller::{Controller, ControllerConfig, scheduler};
use holdfast_model::fleet::FleetFile;
use holdfast_runtime::ManualClock;

/// Passes that are measured.
const ROUNDS: usize = 20;
/// Sources that are due in each.
const DUE: usize = 10;
/// Sources declared in one commit.
const DECLARED_AT_ONCE: usize = 2_000;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().context("usage: scheduler_pass FOLDER [SOURCES]")?;
    let sources: usize = arguments.next().map_or(Ok(100_000), |count| count.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(std::path::Path::new(&folder), sources))
}

async fn measure(folder: &std::path::Path, sources: usize) -> anyhow::Result<()> {
    let manual = ManualClock::at("2026-06-01T00:00:30Z".parse()?);
    let clock = manual.shared();
    let config = ControllerConfig::new(folder.join("controller"));
    drop(Controller::init(&config, clock.clone()).await?);
    let assembled = Controller::assemble(&config, &clock).await?;
    let core = &assembled.core;
    let mut yaml = String::from(
        "api: holdfast/v1\nrepositories:\n  main: { url: \"file:///nowhere\", encryption: { key: { env: KEY } } }\npolicies:\n  others: { schedule: { full: { cron: \"0 12 * * *\" } } }\n",
    );
    for round in 0..ROUNDS {
        yaml +=
            &format!("  round-{round}: {{ schedule: {{ full: {{ cron: \"{} 0 * * *\" }} }} }}\n", round + 1);
    }
    declare(core, yaml).await?;
    let names: Vec<usize> = (0..sources).collect();
    for part in names.chunks(DECLARED_AT_ONCE) {
        let mut yaml = String::from("api: holdfast/v1\nsources:\n");
        for number in part {
            let policy = match number / DUE {
                round if round < ROUNDS => format!("round-{round}"),
                _ => "others".to_owned(),
            };
            yaml += &format!(
                "  s{number}: {{ engine: files, agent: a{}, paths: [/srv], policy: {policy} }}\n",
                number % 1000
            );
        }
        declare(core, yaml).await?;
    }
    let mut out = std::io::stdout().lock();
    let began = Instant::now();
    scheduler::pass(core).await?;
    writeln!(out, "{sources} sources taken over in {:.0} ms", millis(began.elapsed()))?;
    let began = Instant::now();
    scheduler::pass(core).await?;
    writeln!(out, "a pass with nothing due: {:.3} ms", millis(began.elapsed()))?;
    let mut passes = Vec::new();
    for _ in 0..ROUNDS {
        manual.advance(Duration::from_secs(60));
        let before = core.runs.active().len();
        let began = Instant::now();
        scheduler::pass(core).await?;
        passes.push(millis(began.elapsed()));
        anyhow::ensure!(core.runs.active().len() == before + DUE, "not all that was due began");
    }
    passes.sort_by(f64::total_cmp);
    writeln!(
        out,
        "a pass with {DUE} due: {:.1} ms median, {:.1} to {:.1} ms of {ROUNDS}",
        passes[ROUNDS / 2],
        passes[0],
        passes[ROUNDS - 1]
    )?;
    assembled.close().await?;
    Ok(())
}

async fn declare(core: &std::sync::Arc<holdfast_controller::core::Core>, text: String) -> anyhow::Result<()> {
    let files = [FleetFile { name: "measured".to_owned(), text }];
    let authorship = Authorship::default();
    let plan = fleet_changes::plan(&core.definitions.current(), &files, &authorship)
        .map_err(|errors| fleet_changes::all_in_one(&errors))?;
    let by_hand = Confirmed::default();
    fleet_changes::apply(core, "measured", &plan, &authorship, &by_hand, |batch, _| batch).await?;
    Ok(())
}

fn millis(length: Duration) -> f64 {
    length.as_secs_f64() * 1000.0
}
