//! Following runs until they end. The work is the fleet's; the command line only looks on.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::{BoxStream, SelectAll, select_all};
use holdfast_model::ErrorCode;
use holdfast_proto::v1;
use holdfast_runtime::SharedClock;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::App;
use crate::client::{Client, Replies};
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::output::progress::{self, ProgressBoard};
use crate::output::text::{duration, short_run};
use crate::views::run::{RunView, error_of, exit_status};

/// How long after the first Ctrl-C a second one asks the runs to stop.
const SECOND_INTERRUPT_WITHIN: Duration = Duration::from_secs(3);

/// A controller that restarts is back sooner.
const RECONNECT_FOR: Duration = Duration::from_secs(120);

/// Between two attempts to reach it.
const RECONNECT_EVERY: Duration = Duration::from_secs(1);

/// How often lines and bars are looked at when nothing happens.
const TICK: Duration = Duration::from_secs(1);

/// What is heard of a run.
enum News {
    State(Box<RunView>),
    /// The controller cannot be heard; it is tried again.
    Lost(CliError),
    /// Given up.
    Failed(CliError),
}

/// Waits until all runs have ended and returns them as they ended, in the order given.
///
/// Ctrl-C detaches and says how to come back; a second one within three seconds asks the runs to stop.
///
/// # Errors
/// `HF-4016` when `--timeout` is over, an interruption after Ctrl-C, and what the controller answered.
pub(crate) async fn until_ended(
    app: &mut App,
    client: &Client,
    runs: Vec<RunView>,
) -> CliResult<Vec<RunView>> {
    let mut runs = runs;
    let mut board = app.progress();
    let outcome = follow(app, client, &mut runs, &mut board).await;
    board.clear();
    match outcome? {
        Ended::All => Ok(runs),
        Ended::Interrupted(signal) => Err(detach(app, client, &runs, signal).await),
        Ended::TimeOver => {
            let active: Vec<&RunView> = runs.iter().filter(|run| !run.is_ended()).collect();
            let patience = duration(app.patience().unwrap_or_default());
            let mut error = CliError::new(
                ErrorCode::WatchTimeout,
                format!("{} not ended after {patience}", these(active.len())),
            )
            .at_stake("what was begun goes on");
            for run in active {
                error = error.then(format!("holdfast run watch {}", short_run(&run.id)));
            }
            Err(error)
        }
    }
}

enum Ended {
    All,
    Interrupted(Signal),
    TimeOver,
}

async fn follow(
    app: &mut App,
    client: &Client,
    runs: &mut [RunView],
    board: &mut ProgressBoard,
) -> CliResult<Ended> {
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut ask = listen(SignalKind::user_defined1())?;
    let deadline = app.patience().map(|patience| app.clock.monotonic() + patience);
    let mut news: SelectAll<BoxStream<'static, (usize, News)>> = select_all(
        runs.iter()
            .enumerate()
            .filter(|(_, run)| !run.is_ended())
            .map(|(index, run)| hear(client.clone(), app.clock.clone(), run.id.clone(), index)),
    );
    loop {
        let now = app.clock.monotonic();
        if deadline.is_some_and(|deadline| now >= deadline) {
            return Ok(Ended::TimeOver);
        }
        let pause = deadline.map_or(TICK, |deadline| TICK.min(deadline - now));
        tokio::select! {
            item = news.next() => match item {
                None => return Ok(Ended::All),
                Some((_, News::Failed(error))) => return Err(error),
                Some((_, News::Lost(error))) => {
                    board.note(&format!("{}; trying again", error.failure().message), &mut app.output);
                }
                Some((index, News::State(run))) => {
                    let at = app.clock.monotonic();
                    if run.is_ended() {
                        board.end(&run, at, &mut app.output);
                    } else {
                        board.update(&run, at, &mut app.output);
                    }
                    runs[index] = *run;
                }
            },
            Some(()) = interrupt.recv() => return Ok(Ended::Interrupted(interrupt)),
            Some(()) = ask.recv() => answer(app, runs),
            () = app.clock.sleep(pause) => {
                let at = app.clock.monotonic();
                for run in runs.iter().filter(|run| !run.is_ended()) {
                    board.update(run, at, &mut app.output);
                }
            }
        }
    }
}

pub(crate) fn listen(kind: SignalKind) -> CliResult<Signal> {
    signal(kind).map_err(|error| {
        CliError::new(ErrorCode::Internal, "signals cannot be listened to").because(error.to_string())
    })
}

/// SIGUSR1: one line per run, whatever the mode.
fn answer(app: &mut App, runs: &[RunView]) {
    for run in runs.iter().filter(|run| !run.is_ended()) {
        let since = run.started_at.map_or(Duration::ZERO, |start| {
            Duration::try_from(app.clock.now().duration_since(start)).unwrap_or_default()
        });
        app.output.error_line(&format!("{}   {}", short_run(&run.id), progress::line(run, since)));
    }
}

async fn detach(app: &mut App, client: &Client, runs: &[RunView], mut interrupt: Signal) -> CliError {
    let active: Vec<&RunView> = runs.iter().filter(|run| !run.is_ended()).collect();
    app.output.error_line(&format!("{} on without you; come back with", goes(active.len())));
    for run in &active {
        app.output.error_line(&format!("  holdfast run watch {}", short_run(&run.id)));
    }
    app.output.error_line("Ctrl-C again within 3 s asks to stop it");
    let again = tokio::time::timeout(SECOND_INTERRUPT_WITHIN, interrupt.recv()).await.is_ok();
    if again {
        for run in active {
            let request = v1::CancelRunRequest { run_id: run.id.clone() };
            match client.cancel_run(request).await {
                Ok(_) => app.output.error_line(&format!("{} was asked to stop", short_run(&run.id))),
                Err(error) => app.output.error_line(&format!("{}: {error}", short_run(&run.id))),
            }
        }
    }
    CliError::interrupted("interrupted")
}

fn these(runs: usize) -> String {
    if runs == 1 { "the run has".to_owned() } else { format!("{runs} runs have") }
}

fn goes(runs: usize) -> String {
    if runs == 1 { "the run goes".to_owned() } else { format!("{runs} runs go") }
}

/// Everything that is heard of one run until it ends. Survives a restart of the controller.
fn hear(client: Client, clock: SharedClock, id: String, index: usize) -> BoxStream<'static, (usize, News)> {
    let listener = Listener { client, clock, id, stream: None, silent_since: None, done: false };
    futures::stream::unfold(listener, move |mut listener| async move {
        let news = listener.next().await?;
        Some(((index, news), listener))
    })
    .boxed()
}

struct Listener {
    client: Client,
    clock: SharedClock,
    id: String,
    stream: Option<Replies<v1::WatchRunResponse>>,
    /// Since when the controller cannot be heard.
    silent_since: Option<Instant>,
    done: bool,
}

impl Listener {
    async fn next(&mut self) -> Option<News> {
        while !self.done {
            let heard = match &mut self.stream {
                None => match self.client.watch_run(v1::WatchRunRequest { run_id: self.id.clone() }).await {
                    Ok(stream) => {
                        self.stream = Some(stream);
                        continue;
                    }
                    Err(error) => Err(error),
                },
                Some(stream) => stream.next().await,
            };
            match heard {
                Ok(Some(v1::WatchRunResponse { run: Some(run) })) => {
                    let run = RunView::from(run);
                    self.silent_since = None;
                    self.done = run.is_ended();
                    return Some(News::State(Box::new(run)));
                }
                Ok(Some(v1::WatchRunResponse { run: None })) => {}
                // The stream ended before the run did: the controller stops.
                Ok(None) => self.pause().await,
                Err(error) if error.code() == ErrorCode::ControllerUnreachable => {
                    let first = self.silent_since.is_none();
                    let since = *self.silent_since.get_or_insert_with(|| self.clock.monotonic());
                    if self.clock.monotonic().saturating_duration_since(since) >= RECONNECT_FOR {
                        self.done = true;
                        let watch = format!("holdfast run watch {}", short_run(&self.id));
                        return Some(News::Failed(error.at_stake("the run may go on").then(watch)));
                    }
                    self.pause().await;
                    if first {
                        return Some(News::Lost(error));
                    }
                }
                Err(error) => {
                    self.done = true;
                    return Some(News::Failed(error));
                }
            }
        }
        None
    }

    async fn pause(&mut self) {
        self.stream = None;
        self.clock.sleep(RECONNECT_EVERY).await;
    }
}

/// The exit status of runs that have ended. The error of a single run is returned; those of several are told here.
///
/// # Errors
/// That of the run, when there is only one and it did not do its work.
pub(crate) fn verdict(app: &mut App, runs: &[RunView]) -> CliResult {
    if let [run] = runs {
        return error_of(run).map_or_else(|| Ok(exit_status(run)), Err);
    }
    for error in runs.iter().filter_map(error_of) {
        let text = crate::error_report::render(&error, app.output.error_palette());
        app.output.error_text(&text);
    }
    Ok(ExitStatus::of_all(&runs.iter().map(exit_status).collect::<Vec<_>>()))
}
