//! A controller, an agent and a writer in this process, and their end in the right order.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use holdfast_agent::{Agent, AgentConfig, EnrollOptions, RunningAgent, SessionState};
use holdfast_controller::{Controller, ControllerConfig, RunningController};
use holdfast_model::fleet::{Fleet, to_yaml};
use holdfast_model::ids::{AgentName, RepositoryName, SourceName};
use holdfast_model::repository_spec::{Encryption, PruneSettings, RepositorySpec};
use holdfast_model::secret::{Secret, SecretRef};
use holdfast_model::source::{EngineConfig, Hooks, Source, SqliteConfig};
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::v1;
use holdfast_runtime::{OnEnd, SharedClock, Shutdown, StopCause, Task, TaskGroup};

use super::home::Home;
use super::shop;
use crate::client::Client;
use crate::contexts::{Connection, TokenPlace};
use crate::error::{CliError, CliResult};

/// Names of the demo.
pub(super) const AGENT: &str = "demo-agent";
pub(super) const REPOSITORY: &str = "main";
pub(super) const SOURCE: &str = "shop";

/// How long the agent may take to connect.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);

/// How long the writer may take to put its pen down.
const WRITER_GRACE: Duration = Duration::from_secs(10);

/// What runs, and is to be stopped whatever happens.
pub(super) struct Stage {
    shutdown: Shutdown,
    tasks: TaskGroup,
    controller: Option<RunningController>,
    agent: Option<RunningAgent>,
    writer: Option<Task<rusqlite::Result<u64>>>,
}

impl Stage {
    /// An empty stage.
    pub(super) fn new() -> Self {
        let shutdown = Shutdown::new();
        let tasks = TaskGroup::new(&shutdown);
        Self { shutdown, tasks, controller: None, agent: None, writer: None }
    }

    /// Runs a blocking function of the database on a thread of its own.
    pub(super) async fn with_database<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> rusqlite::Result<T> + Send + 'static,
    ) -> CliResult<T> {
        let failed = |why: String| {
            CliError::new(ErrorCode::Internal, format!("{what} the shop's database failed")).because(why)
        };
        let outcome = self.tasks.spawn_blocking(what, OnEnd::Isolated, work).join().await;
        outcome.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }

    /// Lets a writer take orders from now on.
    pub(super) fn start_writer(&mut self, database: &Path) {
        let (path, stop) = (database.to_owned(), self.tasks.token().clone());
        let work = move || shop::keep_ordering(&path, &stop);
        self.writer = Some(self.tasks.spawn_blocking("writer", OnEnd::Isolated, work));
    }

    /// Starts a controller on a free port and connects to it as its first operator.
    pub(super) async fn start_controller(&mut self, home: &Home, clock: SharedClock) -> CliResult<Client> {
        let mut config = ControllerConfig::new(home.controller_data());
        config.grpc.listen = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let made = Box::pin(Controller::init(&config, clock.clone())).await?;
        let token = made
            .admin_token
            .ok_or_else(|| CliError::new(ErrorCode::Internal, "the new controller made no token"))?;
        home.write(&home.ca_file(), &made.ca_pem)?;
        home.write(&home.token_file(), &format!("{}\n", token.reveal()))?;
        let controller = Box::pin(Controller::start(config, clock)).await?;
        let server = format!("https://{}", controller.address());
        self.controller = Some(controller);
        home.write_contexts(&server)?;
        let connection = Connection {
            context: Some("demo".to_owned()),
            server,
            ca_file: home.ca_file(),
            token: TokenPlace::File(home.token_file()),
        };
        Client::connect(&connection, None).await
    }

    /// Enrols an agent as on any host, starts it and waits for its session.
    pub(super) async fn start_agent(
        &mut self,
        home: &Home,
        client: &Client,
        clock: SharedClock,
    ) -> CliResult<()> {
        let request = v1::CreateEnrollmentTokenRequest { agent: AGENT.to_owned(), ttl_seconds: 60 };
        let token = client.create_enrollment_token(request).await?;
        let invalid = |error: &dyn std::fmt::Display| CliError::new(ErrorCode::Internal, error.to_string());
        Agent::enroll(EnrollOptions {
            controller: client.address().to_string().parse().map_err(|error| invalid(&error))?,
            name: name(AGENT)?,
            ca_pin: token.ca_pin.parse().map_err(|error| invalid(&error))?,
            data_dir: home.agent_data(),
            token: Secret::new(token.token),
        })
        .await?;
        let mut config = AgentConfig::new(home.agent_data());
        config.allow.restore_paths = vec![home.shop_folder()];
        config.drain_grace = Duration::from_secs(5);
        let agent = Box::pin(Agent::start(config, clock.clone())).await?;
        let mut session = agent.watch_session();
        self.agent = Some(agent);
        let connected = session.wait_for(|state| matches!(state, SessionState::Connected { .. }));
        tokio::select! {
            outcome = connected => match outcome {
                Ok(_) => Ok(()),
                Err(_) => Err(CliError::new(ErrorCode::AgentLost, "the agent ended before it was connected")),
            },
            () = clock.sleep(CONNECT_WITHIN) => {
                Err(CliError::new(ErrorCode::AgentOffline, "the agent did not connect in time"))
            }
        }
    }

    /// Stops writer, agent and controller, in this order.
    pub(super) async fn stop(self) -> CliResult<()> {
        self.shutdown.request(StopCause::Requested("the demo is over".to_owned()));
        let _ = self.shutdown.drain(&self.tasks, WRITER_GRACE).await;
        if let Some(agent) = self.agent {
            let _ = agent.stop().await;
        }
        if let Some(controller) = self.controller {
            controller.stop().await?;
        }
        Ok(())
    }
}

fn name<T: std::str::FromStr<Err = holdfast_model::ids::InvalidName>>(text: &str) -> CliResult<T> {
    text.parse().map_err(|error| Failure::from_error(ErrorCode::NameInvalid, &error).into())
}

/// Declares the repository and the source, as `holdfast apply` would.
pub(super) fn declaration(home: &Home) -> CliResult<String> {
    let repository: RepositoryName = name(REPOSITORY)?;
    let source: SourceName = name(SOURCE)?;
    let agent: AgentName = name(AGENT)?;
    let fleet = Fleet {
        repositories: BTreeMap::from([(
            repository.clone(),
            RepositorySpec {
                url: format!("file://{}", home.repository().display()),
                region: None,
                endpoint: None,
                credentials: None,
                encryption: Encryption { key: SecretRef::File(home.repository_key()) },
                compression_level: 3,
                prune: PruneSettings::default(),
            },
        )]),
        sources: BTreeMap::from([(
            source,
            Source {
                agent,
                policy: None,
                to: vec![repository],
                labels: BTreeMap::new(),
                hooks: Hooks::default(),
                engine: EngineConfig::Sqlite(SqliteConfig { path: home.database() }),
            },
        )]),
        ..Fleet::default()
    };
    Ok(to_yaml(&fleet))
}
