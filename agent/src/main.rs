//! `holdfast-agent`: enrols this host, runs the agent, tests its configuration.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use holdfast_agent::agent::Agent;
use holdfast_agent::config::{self, AgentConfig};
use holdfast_agent::dial::Link;
use holdfast_agent::engines;
use holdfast_agent::enroll::{EnrollOptions, TokenSource};
use holdfast_agent::identity::Identity;
use holdfast_agent::{ControllerAddress, host};
use holdfast_model::ids::AgentName;
use holdfast_model::{Category, ErrorCode, Failure};
use holdfast_runtime::tls::CaPin;
use holdfast_runtime::{Ending, Shutdown, StopCause, SystemClock, telemetry};
use sd_notify::NotifyState;

/// How long threads that block may take to end after everything else.
const THREADS_GRACE: Duration = Duration::from_secs(2);

/// The Holdfast agent: backs up and restores what is on this host, as its controller asks.
#[derive(Debug, Parser)]
#[command(name = "holdfast-agent", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the agent until it is told to stop (SIGTERM). It then finishes what runs; a second signal ends it at once.
    Run {
        /// The configuration.
        #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Makes this host known to a controller. The token comes from --token-file, or from HOLDFAST_ENROLL_TOKEN.
    Enroll {
        /// The controller, such as https://backup.example.com:7443.
        #[arg(long, value_name = "URL")]
        controller: ControllerAddress,
        /// The name that the token was made for.
        #[arg(long, value_name = "NAME")]
        name: AgentName,
        /// Which CA the controller must show: sha256: and 64 hexadecimal digits.
        #[arg(long, value_name = "PIN")]
        ca_pin: CaPin,
        /// Where the agent keeps its key and certificate; `data_dir` of its configuration.
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// A file with the token; - is the standard input.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Reads the configuration, and reaches the controller as `run` would. Changes nothing.
    Test {
        /// The configuration.
        #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Prints the version.
    Version,
}

fn main() -> ExitCode {
    holdfast_runtime::allocator::limit_arenas();
    let arguments = Arguments::parse();
    holdfast_runtime::tls::install_crypto_provider();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let failure =
                Failure::new(ErrorCode::Internal, "no threads can be started").because(error.to_string());
            return report(&failure);
        }
    };
    let outcome = runtime.block_on(execute(arguments.command));
    // A thread that blocks in the operating system must not keep the process.
    runtime.shutdown_timeout(THREADS_GRACE);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

async fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run { config } => run(config).await,
        Command::Enroll { controller, name, ca_pin, data_dir, token_file } => {
            let source = token_file.map_or(TokenSource::Environment, TokenSource::File);
            let token = source.read()?;
            let done =
                format!("enrolled as {name} at {controller}; the identity is in {}", data_dir.display());
            Agent::enroll(EnrollOptions { controller, name, ca_pin, data_dir, token }).await?;
            print(&done)
        }
        Command::Test { config } => test(AgentConfig::load(&config)?).await,
        Command::Version => print(&format!("holdfast-agent {}", env!("CARGO_PKG_VERSION"))),
    }
}

async fn run(file: PathBuf) -> Result<(), Failure> {
    let config = AgentConfig::load(&file)?;
    let _telemetry = telemetry::init(&config.telemetry.settings())
        .map_err(|error| Failure::from_error(ErrorCode::FileInvalid, &error))?;
    let shutdown = Shutdown::new();
    let agent =
        Agent::start_with(config, SystemClock::shared(), engines::drivers(), shutdown.clone()).await?;
    let handled = shutdown.on_signals(agent.tasks()).and_then(|()| agent.reload_on_hangup(file));
    handled.map_err(|error| {
        Failure::new(ErrorCode::Internal, "signals cannot be handled").because(error.to_string())
    })?;
    notify(NotifyState::Ready);
    let stopping = shutdown.token().clone();
    let ended = agent.ended();
    let ended = async {
        let mut ended = std::pin::pin!(ended);
        tokio::select! {
            ending = &mut ended => return ending,
            () = stopping.cancelled() => notify(NotifyState::Stopping),
        }
        ended.await
    };
    match ended.await {
        Ending::CutShort { cause, blocked_by } => {
            tracing::warn!(%cause, ?blocked_by, "the agent ended before everything was finished");
            as_result(&cause)
        }
        Ending::Drained(cause) => {
            tracing::info!(%cause, "the agent ended");
            as_result(&cause)
        }
    }
}

fn as_result(cause: &StopCause) -> Result<(), Failure> {
    if cause.is_failure() { Err(Failure::new(ErrorCode::Internal, cause.to_string())) } else { Ok(()) }
}

/// Tells the service manager, if there is one.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

async fn test(config: AgentConfig) -> Result<(), Failure> {
    print("configuration  ok")?;
    let identity = Identity::load(&config.data_dir)?;
    let not_after = identity.validity().not_after;
    print(&format!("identity       {} of {}, valid until {not_after}", identity.name(), host::hostname()))?;
    let address = config.controller.unwrap_or_else(|| identity.controller().clone());
    let link = Link::new(address, std::sync::Arc::new(identity));
    link.connect().await?;
    print(&format!("controller     {} answers", link.address()))
}

fn print(line: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{line}").map_err(|error| {
        Failure::new(ErrorCode::OutputFailed, "the output could not be written").because(error.to_string())
    })
}

/// Says on standard error what went wrong, and gives the exit status that stands for it.
fn report(failure: &Failure) -> ExitCode {
    let mut text = format!("error[{}]: {}\n", failure.code, failure.message);
    failure.why.iter().for_each(|why| text.push_str(&format!("  why   {why}\n")));
    failure.now.iter().for_each(|now| text.push_str(&format!("  now   {now}\n")));
    failure.next.iter().for_each(|next| text.push_str(&format!("  next  {next}\n")));
    // There is nowhere left to say that this failed.
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::from(match failure.code.category() {
        Category::Failed => 1,
        Category::Usage => 2,
        Category::Partial => 3,
        Category::NotFound => 4,
        Category::Denied => 5,
        Category::Conflict => 6,
        Category::Unreachable => 7,
        Category::Timeout => 8,
        Category::NeedsConfirmation => 9,
        Category::DataBad => 10,
    })
}
