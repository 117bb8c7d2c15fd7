//! The controller: decides what runs when and where, keeps the catalog, relays the bytes.
//!
//! A library with a thin `main.rs`, so that a test or `holdfast demo` runs a whole fleet in one process on port 0.
//!
//! | part | module |
//! |---|---|
//! | what everybody shares | [`core`] |
//! | the calls | [`api`], behind the gate of [`server`] and the table of [`access`], [`refusals`]; [`rest`] on [`http_server`] |
//! | what is declared | [`definitions`], [`fleet_changes`], [`fleet_folder`] |
//! | durable state | [`store`], [`records`], [`agents`], [`run_logs`] |
//! | schedules | [`schedules`], [`scheduler`] |
//! | runs | [`run_lifecycle`], [`dispatcher`], [`reaper`], [`maintenance`], [`verify`], [`verify_due`], [`verify_schedule`], [`snapshot_check`] |
//! | alerts | [`alerts`] judges, [`notify`] tells |
//! | once a day | [`upkeep`] |
//! | how sources stand | [`source_status`], [`health`], [`doctor`] |
//! | its own safety | [`self_backup`], [`recover`] |
//! | metrics, health | [`metrics`] and [`fleet_health`], of what [`run_totals`] counts and all the others know |
//! | agents | [`session`], [`session_registry`], [`pki`] |
//! | repositories | [`repositories`], [`repository_index`], [`pack_readings`], [`data_plane`], [`catalog`], [`contents`], [`export`], [`import`] |

pub mod access;
pub mod agents;
pub mod alerts;
pub mod api;
pub mod backup_plan;
pub mod catalog;
mod check_proof;
pub mod config;
pub mod connection;
pub mod contents;
pub mod copy;
pub mod copy_schedule;
pub mod core;
pub mod data_plane;
pub mod debug_logging;
pub mod definitions;
pub mod discovery;
pub mod dispatcher;
pub mod doctor;
pub mod export;
pub mod fleet_changes;
pub mod fleet_folder;
pub mod fleet_health;
pub mod forget;
pub mod health;
pub mod http_server;
pub mod import;
pub mod maintenance;
pub mod metrics;
pub mod notify;
pub mod other_programs;
pub mod pack_readings;
pub mod pki;
pub mod prune;
pub mod prune_schedule;
pub mod reaper;
pub mod records;
pub mod recover;
pub mod refusals;
pub mod reload;
pub mod reports;
pub mod repositories;
pub mod repository_index;
pub mod repository_uses;
pub mod rest;
pub mod retention;
pub mod run_lifecycle;
pub mod run_logs;
pub mod run_totals;
pub mod scheduler;
pub mod schedules;
pub mod secrets;
pub mod self_backup;
pub mod server;
pub mod session;
pub mod session_registry;
pub mod snapshot_check;
pub mod snapshot_writer;
pub mod source_queue;
pub mod source_status;
pub mod store;
pub mod upkeep;
pub mod verify;
pub mod verify_due;
pub mod verify_schedule;
pub mod work_index;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::secret::Secret;
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::tls::ServerIdentity;
use holdfast_runtime::{OnEnd, SharedClock, Shutdown, StopCause, TaskGroup};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};

use crate::access::Role;
use crate::agents::Agents;
use crate::alerts::Alerts;
use crate::catalog::Catalog;
pub use crate::config::ControllerConfig;
use crate::copy_schedule::Copies;
use crate::core::Core;
use crate::debug_logging::DebugBook;
use crate::definitions::Definitions;
use crate::fleet_folder::FolderState;
use crate::health::HealthBook;
use crate::metrics::MetricsCache;
use crate::notify::Notifier;
use crate::notify::liveness::Liveness;
use crate::notify::outbox::Outbox;
use crate::pki::token::OperatorToken;
use crate::pki::{Authority, PkiError};
use crate::records::{Batch, Records, store_failure};
use crate::refusals::RefusalBook;
use crate::reload::InForce;
use crate::repositories::Repositories;
use crate::rest::Site;
use crate::run_lifecycle::RunLifecycle;
use crate::run_logs::RunLogs;
use crate::schedules::Schedules;
use crate::secrets::Secrets;
use crate::session_registry::SessionRegistry;
use crate::source_queue::SourceQueue;
use crate::source_status::SnapshotCache;
use crate::store::{EmbeddedStore, Expect, Kind, Store, StoreSettings};

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How long calls and tasks may take to end when the controller stops. Agents go on without it.
pub const STOP_GRACE: Duration = Duration::from_secs(10);

/// How long the first operator's token is valid.
const FIRST_TOKEN_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Connections that may wait to be taken: after a restart a whole fleet comes back at once.
const BACKLOG: u32 = 4096;

/// Name of this host, for snapshots and keys.
pub(crate) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The controller, before it runs.
pub struct Controller;

/// What `init` made.
pub struct InitReport {
    /// What agents are told to expect, `sha256:HEX`.
    pub ca_pin: String,
    /// The CA's certificate, PEM; operators trust it.
    pub ca_pem: String,
    /// A token with the role admin, shown once; none when there was an operator's token already.
    pub admin_token: Option<Secret>,
}

/// A controller that runs.
pub struct RunningController {
    core: Arc<Core>,
    shutdown: Shutdown,
    address: SocketAddr,
    http_address: Option<SocketAddr>,
    store: Arc<EmbeddedStore>,
}

/// A controller that is put together and does nothing by itself.
pub struct Assembled {
    /// What its parts share.
    pub core: Arc<Core>,
    shutdown: Shutdown,
    store: Arc<EmbeddedStore>,
}

impl Assembled {
    /// Closes its state.
    ///
    /// # Errors
    /// When that fails.
    pub async fn close(self) -> Result<(), Failure> {
        close(&self.store, &self.shutdown, &self.core.tasks).await
    }
}

impl Controller {
    /// Makes what a controller needs in its data folder: the CA, the state, and the first operator's token. What is
    /// there already stays.
    ///
    /// # Errors
    /// When the folder can not be written, or a running controller holds it.
    pub async fn init(config: &ControllerConfig, clock: SharedClock) -> Result<InitReport, Failure> {
        let shutdown = Shutdown::new();
        let tasks = TaskGroup::new(&shutdown);
        let authority = Authority::open(&config.data_dir.join("pki"), clock.now())
            .map_err(|error| pki_failure(&error))?;
        let store = open_store(&config.data_dir, &clock, &tasks)?;
        work_index::remove_left_over(&work_index::folder(&config.data_dir))?;
        let records = Records::new(store.clone());
        let first = records.all::<OperatorToken>(Kind::OperatorToken, "").await?.is_empty();
        let admin_token = if first {
            let (token, record) = OperatorToken::make("admin", Role::Admin, clock.now(), FIRST_TOKEN_LIFE);
            let batch = Batch::new("init", "token.create", "token/admin");
            records.commit(batch.put(Kind::OperatorToken, token.id(), &record, Expect::Absent)).await?;
            Some(Secret::new(token.expose()))
        } else {
            None
        };
        close(&store, &shutdown, &tasks).await?;
        Ok(InitReport {
            ca_pin: authority.pin().to_string(),
            ca_pem: authority.certificate_pem().to_owned(),
            admin_token,
        })
    }

    /// Puts a controller together that does nothing by itself: its state is open, nobody is served, nothing is scheduled.
    /// For measurements of one part.
    ///
    /// # Errors
    /// When the state can not be opened, or the CA is missing.
    pub async fn assemble(config: &ControllerConfig, clock: &SharedClock) -> Result<Assembled, Failure> {
        let shutdown = Shutdown::new();
        let tasks = TaskGroup::new(&shutdown);
        let authority = Authority::open(&config.data_dir.join("pki"), clock.now())
            .map_err(|error| pki_failure(&error))?;
        let store = open_store(&config.data_dir, clock, &tasks)?;
        work_index::remove_left_over(&work_index::folder(&config.data_dir))?;
        let core = Arc::new(build(config, clock, &tasks, authority, store.clone()).await?);
        Ok(Assembled { core, shutdown, store })
    }

    /// Starts a controller: opens its state, serves, dispatches.
    ///
    /// # Errors
    /// When the state can not be opened, the CA is missing, or the address can not be listened on.
    pub async fn start(config: ControllerConfig, clock: SharedClock) -> Result<RunningController, Failure> {
        let Assembled { core, shutdown, store } = Self::assemble(&config, &clock).await?;
        let tasks = core.tasks.clone();
        let certificate = core
            .authority
            .server_certificate(&config.tls.names, clock.now())
            .map_err(|error| pki_failure(&error))?;
        let identity = ServerIdentity::new(certificate.chain, certificate.key)
            .map_err(|error| Failure::from_error(ErrorCode::CertificateRejected, &error))?;
        let (listener, address) = listen(config.grpc.listen)?;
        let http_address = start_http(&core, &config, &identity).await?;
        let renewed = upkeep::run(core.clone(), identity.clone(), config.tls.names.clone());
        tasks.spawn("upkeep", OnEnd::Essential, renewed);
        let served = core.clone();
        tasks.spawn("server", OnEnd::Essential, async move {
            if let Err(failure) = server::serve(served.clone(), listener, identity).await {
                served
                    .tasks
                    .shutdown()
                    .request(StopCause::Requested(format!("the server failed: {failure}")));
            }
        });
        if let Some(otlp) = config.telemetry.otlp.clone() {
            tasks.spawn("send metrics", OnEnd::Isolated, metrics::otlp::run(core.clone(), otlp));
        }
        tasks.spawn("dispatcher", OnEnd::Essential, dispatcher::run(core.clone()));
        tasks.spawn("reaper", OnEnd::Essential, reaper::run(core.clone()));
        tasks.spawn("self-backup", OnEnd::Essential, self_backup::run(core.clone()));
        tasks.spawn("fleet-folder", OnEnd::Essential, fleet_folder::run(core.clone()));
        tasks.spawn("health", OnEnd::Essential, health::run(core.clone()));
        tasks.spawn("discovery", OnEnd::Essential, discovery::run(core.clone()));
        tasks.spawn("alerts", OnEnd::Essential, alerts::run(core.clone()));
        tasks.spawn("notifications", OnEnd::Essential, notify::outbox::run(core.clone()));
        tasks.spawn("scheduler", OnEnd::Essential, scheduler::run(core.clone()));
        tasks.spawn("reports", OnEnd::Essential, reports::run(core.clone()));
        tasks.spawn("retention", OnEnd::Essential, retention::run(core.clone()));
        tasks.spawn("copies", OnEnd::Essential, copy_schedule::run(core.clone()));
        tasks.spawn("prune schedule", OnEnd::Essential, prune_schedule::run(core.clone()));
        tasks.spawn("snapshot check", OnEnd::Essential, snapshot_check::run(core.clone()));
        tasks.spawn("verify schedule", OnEnd::Essential, verify_schedule::run(core.clone()));
        tracing::info!(%address, version = VERSION, "controller started");
        Ok(RunningController { core, shutdown, address, http_address, store })
    }
}

fn listen(on: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    let open = || {
        let socket = if on.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(on)?;
        socket.listen(BACKLOG)
    };
    let listener = open().map_err(|error| {
        Failure::new(ErrorCode::FileInvalid, format!("{on} can not be listened on"))
            .because(error.to_string())
    })?;
    let address = listener.local_addr().map_err(|error| Failure::from_error(ErrorCode::Internal, &error))?;
    Ok((listener, address))
}

/// Serves HTTP where the configuration says so.
async fn start_http(
    core: &Arc<Core>,
    config: &ControllerConfig,
    identity: &ServerIdentity,
) -> Result<Option<SocketAddr>, Failure> {
    let Some(http) = &config.http else { return Ok(None) };
    let (listener, address) = listen(http.listen)?;
    let site = Site::new(core.clone(), config);
    let (served, identity) = (core.clone(), http.tls.then(|| identity.clone()));
    core.tasks.spawn("http server", OnEnd::Essential, async move {
        if let Err(failure) = http_server::serve(served.clone(), listener, identity, site).await {
            let cause = format!("the HTTP server failed: {failure}");
            served.tasks.shutdown().request(StopCause::Requested(cause));
        }
    });
    tracing::info!(%address, tls = http.tls, "HTTP is served");
    Ok(Some(address))
}

/// Blocks for as long as the state takes to be opened: nothing else happens before that.
fn open_store(
    data_dir: &Path,
    clock: &SharedClock,
    tasks: &TaskGroup,
) -> Result<Arc<EmbeddedStore>, Failure> {
    let settings = StoreSettings::new(data_dir.join("state"));
    EmbeddedStore::open(settings, clock.clone(), tasks).map_err(|error| store_failure(&error))
}

pub(crate) fn pki_failure(error: &PkiError) -> Failure {
    Failure::from_error(error.code(), error)
}

async fn build(
    config: &ControllerConfig,
    clock: &SharedClock,
    tasks: &TaskGroup,
    authority: Authority,
    store: Arc<dyn Store>,
) -> Result<Core, Failure> {
    let records = Records::new(store);
    let limits = &config.limits;
    let runs =
        RunLifecycle::load(records.clone(), clock.clone(), limits.lease(), limits.active_runs as usize)
            .await?;
    Ok(Core {
        clock: clock.clone(),
        tasks: tasks.clone(),
        config: InForce::new(config.clone()),
        runs,
        logs: RunLogs::open(config.data_dir.join("logs"))?,
        sessions: SessionRegistry::default(),
        agents: Agents::new(records.clone()),
        definitions: Definitions::load(records.clone()).await?,
        schedules: Schedules::load(records.clone()).await?,
        debug: DebugBook::load(records.clone()).await?,
        catalog: Catalog::new(records.clone(), clock.clone()),
        repositories: Repositories::new(
            Secrets::from_process(),
            clock.clone(),
            records.clone(),
            config.data_dir.join("blobs"),
            tasks.clone(),
        ),
        liveness: Liveness::new(clock.clone()),
        alerts: Alerts::load(records.clone()).await?,
        outbox: Outbox::load(records.clone()).await?,
        notifier: Notifier::new(Secrets::from_process(), clock.clone(), config.notifications.clone()),
        retention: SourceQueue::default(),
        copies: Copies::default(),
        new_snapshots: SourceQueue::default(),
        holds: tokio::sync::Mutex::default(),
        cleanups: tokio::sync::Mutex::default(),
        authority,
        records,
        metrics: MetricsCache::default(),
        data_dir: config.data_dir.clone(),
        snapshots: SnapshotCache::default(),
        health: HealthBook::default(),
        discovery: discovery::DiscoveryBook::default(),
        fleet_folder: FolderState::default(),
        refusals: RefusalBook::default(),
    })
}

async fn close(store: &Arc<EmbeddedStore>, shutdown: &Shutdown, tasks: &TaskGroup) -> Result<(), Failure> {
    store.close().await.map_err(|error| store_failure(&error))?;
    shutdown.request(StopCause::Requested("done".to_owned()));
    let _ = shutdown.drain(tasks, STOP_GRACE).await;
    Ok(())
}

impl RunningController {
    /// Where gRPC is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where HTTP is served, if it is.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// The CA's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        self.core.authority.certificate_pem()
    }

    /// What the parts share; for tests.
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The switch that stops it; signals may be tied to it.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Ties SIGINT and SIGTERM to the switch.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn stop_on_signals(&self) -> std::io::Result<()> {
        self.shutdown.on_signals(&self.core.tasks)
    }

    /// Reads this file anew at each SIGHUP.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn reload_on_hangup(&self, file: PathBuf) -> std::io::Result<()> {
        let hangup = signal(SignalKind::hangup())?;
        self.core.tasks.spawn("reload", OnEnd::Essential, reload::run(self.core.clone(), file, hangup));
        Ok(())
    }

    /// Waits until it is asked to stop, then stops in order.
    ///
    /// # Errors
    /// When the state could not be closed.
    pub async fn until_stopped(self) -> Result<holdfast_runtime::Ending, Failure> {
        let ending = self.shutdown.drain(&self.core.tasks, STOP_GRACE).await;
        self.core.repositories.close().await;
        self.store.close().await.map_err(|error| store_failure(&error))?;
        Ok(ending)
    }

    /// Stops it in order.
    ///
    /// # Errors
    /// When the state could not be closed.
    pub async fn stop(self) -> Result<(), Failure> {
        self.shutdown.request(StopCause::Requested("stop was called".to_owned()));
        self.until_stopped().await.map(|_| ())
    }
}
