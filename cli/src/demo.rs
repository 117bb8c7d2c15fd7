//! `holdfast demo`: a whole fleet in one process, one accident, and the proof that nothing was lost.
//!
//! The commands of the story are the real ones, sent to a real controller over TLS; only the processes are threads.

mod fleet;
mod home;
mod report;
mod shop;
mod story;

use tokio::signal::unix::{Signal, SignalKind};

use crate::app::App;
use crate::args::demo::DemoArgs;
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::watch::listen;
use fleet::Stage;
use home::Home;

/// Plays the story and, without `--once`, stays up for a look around.
///
/// # Errors
/// With exit status 1 when a step failed, 10 when what was restored is not what was captured.
pub(crate) async fn demo(app: &mut App, args: DemoArgs) -> CliResult {
    let mut signals =
        Signals { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? };
    let home = Home::create(args.keep.as_deref())?;
    let mut stage = Stage::new();
    let outcome = tokio::select! {
        outcome = Box::pin(play(app, &args, &home, &mut stage)) => outcome,
        () = asked_to_stop(&mut signals) => Err(CliError::interrupted("interrupted")),
    };
    // Without --once the end of the story is not the end of the demo.
    if !args.once && outcome.is_ok() {
        asked_to_stop(&mut signals).await;
    }
    let stopped = Box::pin(stage.stop()).await;
    let removed = home.leave();
    let status = outcome.map_err(|error| verdict_of(error, &args))?;
    stopped?;
    removed?;
    Ok(status)
}

/// A demo has two bad ends: it did not work, or it worked and the data is wrong.
fn verdict_of(error: CliError, args: &DemoArgs) -> CliError {
    if error.is_interruption() {
        return error;
    }
    let status = match error.exit_status() {
        ExitStatus::DataBad => ExitStatus::DataBad,
        _ => ExitStatus::Failed,
    };
    let error = error.exiting_with(status);
    if args.keep.is_some() {
        error
    } else {
        error.then("holdfast demo --once --keep DIR -v    # keeps everything, tells more")
    }
}

async fn play(app: &mut App, args: &DemoArgs, home: &Home, stage: &mut Stage) -> CliResult {
    let view = story::tell(app, home, stage).await?;
    if !app.output.is_human() {
        app.output.list(std::slice::from_ref(&view), "")?;
    }
    let status = if view.equal { ExitStatus::Ok } else { ExitStatus::DataBad };
    if app.output.is_human() {
        app.output.write(&report::closing(&view, home))?;
        if !args.once {
            app.output.write(&report::look_around(home))?;
        }
    }
    app.output.finish()?;
    Ok(status)
}

/// What ends a demo from outside.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// Until Ctrl-C or SIGTERM.
async fn asked_to_stop(signals: &mut Signals) {
    tokio::select! {
        _ = signals.interrupt.recv() => {}
        _ = signals.terminate.recv() => {}
    }
}
