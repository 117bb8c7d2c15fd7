//! The agent as one value: started from a configuration, stopped in order.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use holdfast_engines::SecretResolver;
use holdfast_model::ids::AgentName;
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::durable_file::FolderLock;
use holdfast_runtime::{Ending, OnEnd, SharedClock, Shutdown, StopCause, TaskGroup, tls};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::AgentConfig;
use crate::dial::Link;
use crate::engines::{self, EngineFactory};
use crate::enroll::{self, EnrollOptions};
use crate::executor::{Executor, ExecutorParts};
use crate::identity::Identity;
use crate::inquiry::{Inquirer, InquirerParts};
use crate::journal::Journal;
use crate::outbox::Outbox;
use crate::recovery::Recovery;
use crate::reload::{self, InForce};
use crate::run::RunWorker;
use crate::secrets::AllowedSecrets;
use crate::session::{self, SessionParts, SessionState};
use crate::tree_caches::TreeCaches;

/// How long a lease lasts until the controller says so.
const LEASE_SECONDS_DEFAULT: u32 = 30;
/// How long facts may still be delivered once all runs have ended and the agent stops.
const DELIVERY_GRACE: Duration = Duration::from_secs(5);
/// How long runs may take to stop when their time to finish is over, and all the rest after them.
const STOP_GRACE: Duration = Duration::from_secs(15);

/// How long an agent takes to stop at the most, when runs may take `drain_grace` to finish. Whoever stops it must wait
/// as long, or it is killed in the middle of its work.
pub fn stop_limit(drain_grace: Duration) -> Duration {
    drain_grace + DELIVERY_GRACE + 2 * STOP_GRACE
}

/// The agent.
pub struct Agent;

impl Agent {
    /// Makes this host known to a controller.
    ///
    /// # Errors
    /// As [`enroll::enroll`].
    pub async fn enroll(options: EnrollOptions) -> Result<(), Failure> {
        enroll::enroll(&options).await.map(|_| ())
    }

    /// Starts an enrolled agent. Returns before it is connected: it goes on trying.
    ///
    /// # Errors
    /// `HF-6004` when it has not enrolled, `HF-4014` when another process uses its data folder, `HF-5006` when what it
    /// keeps there is damaged.
    pub async fn start(config: AgentConfig, clock: SharedClock) -> Result<RunningAgent, Failure> {
        Self::start_with(config, clock, engines::drivers(), Shutdown::new()).await
    }

    /// As [`Agent::start`], with other drivers and with a switch that the caller holds.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub async fn start_with(
        config: AgentConfig,
        clock: SharedClock,
        engines: EngineFactory,
        shutdown: Shutdown,
    ) -> Result<RunningAgent, Failure> {
        tls::install_crypto_provider();
        let tasks = TaskGroup::new(&shutdown);
        let lock = enroll::lock_data_dir(&config.data_dir)?;
        let identity = Arc::new(Identity::load(&config.data_dir)?);
        check_name(&config, identity.name())?;
        let outbox = Outbox::open(&config.data_dir, &tasks)?;
        let journal = Journal::open(&config.data_dir, &tasks)?;
        let in_force = InForce::new(config.clone());
        let secrets: Arc<dyn SecretResolver> = Arc::new(AllowedSecrets::new(in_force.clone()));
        let scratch = config.data_dir.join("scratch");
        let recovery = Recovery {
            journal: &journal,
            outbox: &outbox,
            engines: &engines,
            secrets: &secrets,
            hooks: &config.hooks,
            scratch: &scratch,
            clock: &clock,
            tasks: &tasks,
        };
        recovery.clean_up().await?;

        let address = config.controller.clone().unwrap_or_else(|| identity.controller().clone());
        let link = Arc::new(Link::new(address, identity.clone()));
        let lease_seconds = Arc::new(AtomicU32::new(LEASE_SECONDS_DEFAULT));
        let worker = RunWorker {
            link: link.clone(),
            config: in_force.clone(),
            engines: engines.clone(),
            secrets: secrets.clone(),
            journal: journal.clone(),
            tree_caches: TreeCaches::open(&config.data_dir, &*clock),
            clock: clock.clone(),
            pacer: Arc::default(),
            lease_seconds: lease_seconds.clone(),
        };
        let executor = Executor::new(ExecutorParts {
            slots: config.slots,
            deadline: config.run_deadline,
            scratch: scratch.clone(),
            outbox: outbox.clone(),
            journal,
            worker: Arc::new(worker),
            clock: clock.clone(),
            tasks: tasks.clone(),
        });
        let inquirer = Inquirer::new(InquirerParts {
            engines,
            config: in_force.clone(),
            secrets,
            scratch,
            clock: clock.clone(),
            tasks: tasks.clone(),
        });
        let (state, connected) = watch::channel(SessionState::Disconnected);
        let stop_session = CancellationToken::new();
        let parts = SessionParts {
            link,
            identity: identity.clone(),
            executor: executor.clone(),
            outbox: outbox.clone(),
            inquirer,
            clock: clock.clone(),
            tasks: tasks.clone(),
            data_dir: config.data_dir.clone(),
            slots: config.slots,
            state,
            lease_seconds,
            stop: stop_session.clone(),
        };
        drop(tasks.spawn("session", OnEnd::Finite, session::keep_session(parts)));
        let drain = Drain { executor, outbox, clock, stop_session, grace: config.drain_grace };
        drop(tasks.spawn("drain", OnEnd::Finite, drain.when(shutdown.token().clone())));
        tracing::info!(name = %identity.name(), version = env!("CARGO_PKG_VERSION"), "the agent runs");
        Ok(RunningAgent {
            shutdown,
            tasks,
            connected,
            grace: config.drain_grace,
            config: in_force,
            identity,
            _lock: lock,
        })
    }
}

fn check_name(config: &AgentConfig, enrolled: &AgentName) -> Result<(), Failure> {
    match &config.name {
        Some(name) if name != enrolled => Err(Failure::new(
            ErrorCode::FileInvalid,
            format!("the configuration names this agent {name}, it has enrolled as {enrolled}"),
        )),
        _ => Ok(()),
    }
}

/// An agent that runs. Dropping it does not stop it: say [`RunningAgent::stop`].
pub struct RunningAgent {
    shutdown: Shutdown,
    tasks: TaskGroup,
    connected: watch::Receiver<SessionState>,
    grace: Duration,
    config: InForce,
    identity: Arc<Identity>,
    /// Keeps other processes out of the data folder.
    _lock: FolderLock,
}

impl RunningAgent {
    /// The name this agent enrolled with.
    pub fn name(&self) -> &AgentName {
        self.identity.name()
    }

    /// Whether there is a live session.
    pub fn is_connected(&self) -> bool {
        matches!(*self.connected.borrow(), SessionState::Connected { .. })
    }

    /// Tells how the session is.
    pub fn watch_session(&self) -> watch::Receiver<SessionState> {
        self.connected.clone()
    }

    /// Owner of the agent's tasks.
    pub fn tasks(&self) -> &TaskGroup {
        &self.tasks
    }

    /// Reads this file anew at each SIGHUP.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn reload_on_hangup(&self, file: PathBuf) -> std::io::Result<()> {
        let hangup = signal(SignalKind::hangup())?;
        let reloading = reload::run(self.config.clone(), file, hangup, self.tasks.clone());
        drop(self.tasks.spawn("reload", OnEnd::Finite, reloading));
        Ok(())
    }

    /// Takes no new work, lets what runs finish within the configured grace, delivers what is to be told, and ends.
    pub async fn stop(self) -> Ending {
        self.shutdown.request(StopCause::Requested("the agent was asked to stop".to_owned()));
        self.ended().await
    }

    /// Waits until something stops the agent, and for its end.
    pub async fn ended(self) -> Ending {
        self.shutdown.drain(&self.tasks, stop_limit(self.grace)).await
    }
}

/// What happens between the wish to stop and the end.
struct Drain {
    executor: Executor,
    outbox: Outbox,
    clock: SharedClock,
    stop_session: CancellationToken,
    grace: Duration,
}

impl Drain {
    async fn when(self, stopping: CancellationToken) {
        stopping.cancelled().await;
        self.executor.drain();
        if !self.within(self.grace, no_runs(&self.executor)).await {
            tracing::warn!("the time to finish is over, stopping what still runs");
            self.executor.stop_all();
            self.within(STOP_GRACE, no_runs(&self.executor)).await;
        }
        if !self.within(DELIVERY_GRACE, delivered(&self.outbox)).await {
            tracing::info!("some facts are not delivered; they are kept for the next start");
        }
        self.stop_session.cancel();
    }

    async fn within(&self, limit: Duration, done: impl Future<Output = ()>) -> bool {
        tokio::select! {
            () = done => true,
            () = self.clock.sleep(limit) => false,
        }
    }
}

async fn no_runs(executor: &Executor) {
    // The sender lives as long as the executor does.
    let _ = executor.watch_held().wait_for(|&held| held == 0).await;
}

async fn delivered(outbox: &Outbox) {
    let _ = outbox.watch_is_empty().wait_for(|&is_empty| is_empty).await;
}
