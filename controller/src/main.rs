//! `holdfast-controller`: arguments, configuration, logging, run, exit status.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use holdfast_controller::Controller;
use holdfast_controller::config::{ControllerConfig, ENVIRONMENT_PREFIX};
use holdfast_runtime::durable_file::{Access, replace};
use holdfast_runtime::tls::install_crypto_provider;
use holdfast_runtime::{SystemClock, telemetry};

/// The controller of a Holdfast fleet.
#[derive(Parser)]
#[command(name = "holdfast-controller", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the certificate authority, the state and the first token in the data folder.
    Init {
        /// The configuration file.
        #[arg(long, default_value = "/etc/holdfast/controller.yaml")]
        config: PathBuf,
        /// Write the token of the first operator here (mode 0600), instead of printing it.
        #[arg(long)]
        token_file: Option<PathBuf>,
        /// Write the certificate that operators trust here.
        #[arg(long)]
        ca_file: Option<PathBuf>,
    },
    /// Run the controller.
    Run {
        /// The configuration file.
        #[arg(long, default_value = "/etc/holdfast/controller.yaml")]
        config: PathBuf,
    },
    /// Read the configuration, say what is wrong with it, and end.
    CheckConfig {
        /// The configuration file.
        #[arg(long, default_value = "/etc/holdfast/controller.yaml")]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    holdfast_runtime::allocator::limit_arenas();
    work()
}

#[tokio::main]
async fn work() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            #[expect(
                clippy::print_stderr,
                reason = "the last word of the process, logging may not be set up"
            )]
            {
                eprintln!("error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn load(path: &std::path::Path) -> anyhow::Result<ControllerConfig> {
    let environment = std::env::vars().filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX));
    Ok(ControllerConfig::load(path, environment)?)
}

#[expect(clippy::print_stdout, reason = "init and check-config print their result")]
async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    install_crypto_provider();
    match arguments.command {
        Command::CheckConfig { config } => {
            load(&config)?;
            println!("{}: ok", config.display());
        }
        Command::Init { config, token_file, ca_file } => {
            let report = Controller::init(&load(&config)?, SystemClock::shared()).await?;
            if let Some(path) = &ca_file {
                replace(path, report.ca_pem.as_bytes(), Access::Everyone).context("write the CA file")?;
            }
            println!("ca pin   {}", report.ca_pin);
            match (report.admin_token, token_file) {
                (None, _) => println!("token    an operator's token exists already"),
                (Some(token), Some(path)) => {
                    replace(&path, format!("{}\n", token.reveal()).as_bytes(), Access::Owner)
                        .context("write the token file")?;
                    println!("token    written to {}", path.display());
                }
                (Some(token), None) => println!("token    {}   (shown once)", token.reveal()),
            }
            println!("next     holdfast-controller run --config {}", config.display());
        }
        Command::Run { config } => return serve(load(&config)?).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(config: ControllerConfig) -> anyhow::Result<ExitCode> {
    let _telemetry = telemetry::init(&config.telemetry.settings()).context("set up logging")?;
    let controller = Controller::start(config, SystemClock::shared()).await?;
    controller.stop_on_signals().context("handle signals")?;
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let ending = controller.until_stopped().await?;
    tracing::info!(?ending, "controller stopped");
    Ok(if ending.cause().is_failure() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
