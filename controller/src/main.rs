//! `holdfast-controller`: arguments, configuration, logging, run, exit status.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use holdfast_controller::Controller;
use holdfast_controller::config::{ControllerConfig, ENVIRONMENT_PREFIX};
use holdfast_model::repository_spec::{Encryption, PruneSettings, RepositorySpec, StorageCredentials};
use holdfast_model::secret::SecretRef;
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
    /// Bring the state of a controller that is gone back from its copy in a repository, into an empty data folder.
    #[command(after_help = RECOVER_HELP)]
    Recover(Box<RecoverArguments>),
    /// Print the alert rules for Prometheus.
    Rules,
    /// Read the configuration, say what is wrong with it, and end.
    CheckConfig {
        /// The configuration file.
        #[arg(long, default_value = "/etc/holdfast/controller.yaml")]
        config: PathBuf,
    },
}

const RECOVER_HELP: &str = "\
Examples:
  holdfast-controller recover --from file:///var/lib/holdfast/main --key-file /etc/holdfast/main.key
  holdfast-controller recover --from s3://bucket/prefix --region eu-central-1 --key-env REPO_KEY \\
      --access-key-env S3_ACCESS_KEY --secret-key-env S3_SECRET_KEY

Fleet, policies, holds, tokens, enrolled agents, schedules and the catalog come back, and the certificate authority with \
them, so that agents find their controller at its old address. Secrets are references: put their files back first.";

/// `recover`
#[derive(clap::Args)]
struct RecoverArguments {
    /// The configuration file.
    #[arg(long, default_value = "/etc/holdfast/controller.yaml")]
    config: PathBuf,
    /// The repository that holds the copy: file:///ABSOLUTE/PATH or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "URL")]
    from: String,
    /// Take this copy, by the beginning of its snapshot's id; without it the newest.
    #[arg(long, value_name = "ID")]
    snapshot: Option<String>,
    /// File with the password of the repository.
    #[arg(long, value_name = "FILE", group = "key", required_unless_present_any = ["key_env", "key_credential"])]
    key_file: Option<PathBuf>,
    /// Environment variable with the password of the repository.
    #[arg(long, value_name = "VARIABLE", group = "key")]
    key_env: Option<String>,
    /// systemd credential with the password of the repository.
    #[arg(long, value_name = "NAME", group = "key")]
    key_credential: Option<String>,
    /// s3: region of the bucket.
    #[arg(long)]
    region: Option<String>,
    /// s3: address of a compatible server.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// s3: environment variable with the access key.
    #[arg(long, value_name = "VARIABLE", requires = "secret_key_env")]
    access_key_env: Option<String>,
    /// s3: environment variable with the secret key.
    #[arg(long, value_name = "VARIABLE", requires = "access_key_env")]
    secret_key_env: Option<String>,
}

impl RecoverArguments {
    fn repository(&self) -> RepositorySpec {
        let key = [
            self.key_file.clone().map(SecretRef::File),
            self.key_env.clone().map(SecretRef::Env),
            self.key_credential.clone().map(SecretRef::Credential),
        ];
        let credentials = self.access_key_env.clone().zip(self.secret_key_env.clone());
        RepositorySpec {
            url: self.from.clone(),
            region: self.region.clone(),
            endpoint: self.endpoint.clone(),
            credentials: credentials.map(|(access, secret)| StorageCredentials {
                access_key: SecretRef::Env(access),
                secret_key: SecretRef::Env(secret),
            }),
            // One of them is required.
            encryption: Encryption {
                key: key.into_iter().flatten().next().unwrap_or(SecretRef::Env(String::new())),
            },
            compression_level: 3,
            prune: PruneSettings::default(),
        }
    }
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

#[expect(clippy::print_stdout, reason = "init, rules and check-config print their result")]
async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    install_crypto_provider();
    match arguments.command {
        Command::Rules => print!("{}", include_str!("../../deploy/monitoring/alerts.yaml")),
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
        Command::Recover(arguments) => return recover(&arguments).await,
        Command::Run { config } => return serve(config).await,
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "recover prints its result")]
async fn recover(arguments: &RecoverArguments) -> anyhow::Result<ExitCode> {
    let config = load(&arguments.config)?;
    let wanted = arguments.snapshot.as_deref();
    let report = holdfast_controller::recover::recover(
        &config,
        &arguments.repository(),
        wanted,
        SystemClock::shared(),
    )
    .await?;
    println!(
        "snapshot {}   of {}, by controller {}",
        report.snapshot, report.head.at, report.head.controller
    );
    for (kind, count) in report.records.iter().filter(|(_, count)| *count > 0) {
        println!("records  {kind:<16} {count:>8}");
    }
    println!("ca pin   {}", report.ca_pin);
    let mut code = ExitCode::SUCCESS;
    for (name, synced) in &report.synced {
        match synced {
            Ok(snapshots) => println!("catalog  {:<16} {snapshots:>8} snapshots", name.as_str()),
            Err(failure) => {
                println!("catalog  {:<16} can not be read yet: {failure}", name.as_str());
                code = ExitCode::from(3);
            }
        }
    }
    println!("next     holdfast-controller run --config {}", arguments.config.display());
    Ok(code)
}

async fn serve(file: PathBuf) -> anyhow::Result<ExitCode> {
    let config = load(&file)?;
    let _telemetry = telemetry::init(&config.telemetry.settings()).context("set up logging")?;
    let controller = Controller::start(config, SystemClock::shared()).await?;
    controller.stop_on_signals().context("handle signals")?;
    controller.reload_on_hangup(file).context("handle signals")?;
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let ending = controller.until_stopped().await?;
    tracing::info!(?ending, "controller stopped");
    Ok(if ending.cause().is_failure() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
