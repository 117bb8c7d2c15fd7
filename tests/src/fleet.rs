//! A whole fleet in this process: a controller on a free port, agents that enrolled with it, and a client with the
//! first operator's token.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use holdfast_agent::{Agent, AgentConfig, EnrollOptions, RunningAgent};
use holdfast_controller::access::Role;
use holdfast_controller::config::HttpConfig;
use holdfast_controller::pki::token::OperatorToken;
use holdfast_controller::records::Batch;
use holdfast_controller::store::{Expect, Kind};
use holdfast_controller::{Controller, ControllerConfig, RunningController};
use holdfast_model::Failure;
use holdfast_model::ids::AgentName;
use holdfast_model::restore::RestoreReport;
use holdfast_model::secret::Secret;
use holdfast_proto::status::from_status;
use holdfast_proto::v1;
use holdfast_proto::v1::alert_service_client::AlertServiceClient;
use holdfast_proto::v1::fleet_service_client::FleetServiceClient;
use holdfast_proto::v1::notify_service_client::NotifyServiceClient;
use holdfast_proto::v1::policy_service_client::PolicyServiceClient;
use holdfast_proto::v1::report_service_client::ReportServiceClient;
use holdfast_proto::v1::repository_service_client::RepositoryServiceClient;
use holdfast_proto::v1::restore_service_client::RestoreServiceClient;
use holdfast_proto::v1::run_service_client::RunServiceClient;
use holdfast_proto::v1::snapshot_service_client::SnapshotServiceClient;
use holdfast_proto::v1::status_service_client::StatusServiceClient;
use holdfast_runtime::tls::install_crypto_provider;
use holdfast_runtime::{Ending, SharedClock, SystemClock, test_port};
use tempfile::TempDir;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::wait::{PATIENCE, until_async};
use crate::{HttpClient, Restic};

/// The password of the repositories of tests.
pub const REPOSITORY_PASSWORD: &str = "test-repository-password";

/// The channel of an operator.
pub type OperatorChannel = InterceptedService<Channel, Bearer>;

/// Adds the token to each call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// A controller with its agents.
pub struct Fleet {
    dir: TempDir,
    config: ControllerConfig,
    clock: SharedClock,
    controller: Option<RunningController>,
    agents: BTreeMap<String, (AgentConfig, Option<RunningAgent>)>,
    ca_pin: String,
    operator: Operator,
}

impl std::ops::Deref for Fleet {
    type Target = Operator;

    fn deref(&self) -> &Operator {
        &self.operator
    }
}

impl Fleet {
    /// A controller with one agent `a1` that may restore below the fleet's folder, and a repository `main` in
    /// [`Fleet::repository`].
    pub async fn start() -> Self {
        let mut fleet = Self::controller_alone().await;
        fleet.add_agent("a1").await;
        fleet.add_repository("main", &format!("file://{}", fleet.repository().display()), "").await;
        fleet
    }

    /// A controller without agents or repositories.
    pub async fn controller_alone() -> Self {
        Self::controller_at(SystemClock::shared()).await
    }

    /// As [`Fleet::controller_alone`], with a clock of the controller's own. Its agents have the machine's.
    pub async fn controller_at(clock: SharedClock) -> Self {
        install_crypto_provider();
        let dir = crate::temp_dir("fleet");
        let mut config = ControllerConfig::new(dir.path().join("controller"));
        // A restart must come back at the same address.
        let port = test_port::reserve();
        config.grpc.listen = ([127, 0, 0, 1], port).into();
        config.http = Some(HttpConfig { listen: ([127, 0, 0, 1], 0).into(), tls: false });
        let made = Controller::init(&config, clock.clone()).await.expect("init succeeds in an empty folder");
        let controller =
            Controller::start(config.clone(), clock.clone()).await.expect("the controller starts");
        let password = dir.path().join("password");
        std::fs::write(&password, REPOSITORY_PASSWORD).expect("the folder is writable");
        set_mode(&password, 0o600);
        Self {
            dir,
            config,
            clock,
            controller: Some(controller),
            agents: BTreeMap::new(),
            ca_pin: made.ca_pin,
            operator: Operator {
                address: format!("https://127.0.0.1:{port}"),
                token: made.admin_token.expect("the first init makes a token"),
                ca_pem: made.ca_pem,
            },
        }
    }

    /// REST, with the first operator's token.
    pub fn rest(&self) -> HttpClient {
        let address = self.controller().http_address().expect("HTTP is served");
        HttpClient::new(address).with_token(self.token.reveal())
    }

    /// A token with a role.
    pub async fn token_of(&self, role: Role, lifetime: Duration) -> String {
        let (token, record) = OperatorToken::make(role.as_str(), role, self.clock.now(), lifetime);
        let batch = Batch::new("test", "token.create", format!("token/{}", role.as_str()));
        let batch = batch.put(Kind::OperatorToken, token.id(), &record, Expect::Absent);
        self.controller().core().records.commit(batch).await.expect("the token is stored");
        token.expose().to_owned()
    }

    /// The folder that everything of this fleet lies in.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The folder of the repository `main`.
    pub fn repository(&self) -> PathBuf {
        self.path().join("repository")
    }

    /// The file with the password of every repository.
    pub fn password_file(&self) -> PathBuf {
        self.path().join("password")
    }

    /// The independent reader of the repository `main`.
    pub fn restic(&self) -> Restic {
        Restic::new(self.repository().display().to_string(), self.password_file())
    }

    /// The controller.
    pub fn controller(&self) -> &RunningController {
        self.controller.as_ref().expect("the controller runs")
    }

    /// Enrols an agent and starts it; returns when it is connected.
    pub async fn add_agent(&mut self, name: &str) {
        self.enroll_agent(name).await;
        self.start_agent(name).await;
    }

    /// Enrols an agent and does not start it.
    pub async fn enroll_agent(&mut self, name: &str) {
        let request = v1::CreateEnrollmentTokenRequest { agent: name.to_owned(), ttl_seconds: 60 };
        let token =
            self.fleet().create_enrollment_token(request).await.expect("a token is made").into_inner();
        assert_eq!(token.ca_pin, self.ca_pin);
        let mut config = AgentConfig::new(self.path().join(format!("agent-{name}")));
        config.allow.restore_paths = vec![self.path().to_owned()];
        let options = EnrollOptions {
            controller: self.address.parse().expect("the address of a controller is one"),
            name: AgentName::new(name).expect("tests use good names"),
            ca_pin: token.ca_pin.parse().expect("the pin of a controller is one"),
            data_dir: config.data_dir.clone(),
            token: Secret::new(token.token),
        };
        Agent::enroll(options).await.expect("a fresh token enrols");
        self.agents.insert(name.to_owned(), (config, None));
    }

    /// Starts an agent that was stopped.
    pub async fn start_agent(&mut self, name: &str) {
        self.start_agent_at(name, SystemClock::shared()).await;
    }

    /// As [`Fleet::start_agent`], with a clock of its own.
    pub async fn start_agent_at(&mut self, name: &str, clock: SharedClock) {
        let (config, running) = self.agents.get_mut(name).expect("the agent was added");
        let agent = Agent::start(config.clone(), clock).await.expect("the agent starts");
        let connected = async || agent.is_connected().then_some(());
        until_async("the agent to connect", PATIENCE, connected).await;
        *running = Some(agent);
    }

    /// Waits until the controller has a session with an agent.
    pub async fn until_connected(&self, name: &str) {
        let connected = async || (self.epoch(name).await? > 0).then_some(());
        until_async("the controller to see the agent", PATIENCE, connected).await;
    }

    /// The epoch of an agent's session; nought without one, or without such an agent.
    async fn epoch(&self, name: &str) -> Option<u64> {
        let listed = self.fleet().list_agents(v1::ListAgentsRequest {}).await.ok()?.into_inner().agents;
        Some(listed.into_iter().find(|agent| agent.name == name).map_or(0, |agent| agent.epoch))
    }

    /// The program of an agent that was stopped, on its data folder, to be started as a process of its own.
    pub fn agent_program(&self, name: &str) -> Command {
        let config = self.path().join("agent.yaml");
        let data_dir = self.agent_config(name).data_dir.display();
        std::fs::write(&config, format!("api: holdfast/v1\ndata_dir: {data_dir}\n"))
            .expect("the folder is ours");
        let mut command = Command::new(crate::workspace::binary("holdfast-agent"));
        command.args(["run", "--config"]).arg(config);
        command
    }

    /// Changes the configuration that an agent has at its next start.
    pub fn configure_agent(&mut self, name: &str, change: impl FnOnce(&mut AgentConfig)) {
        change(&mut self.agents.get_mut(name).expect("the agent was added").0);
    }

    /// The configuration that an agent has at its next start.
    pub fn agent_config(&self, name: &str) -> &AgentConfig {
        &self.agents.get(name).expect("the agent was added").0
    }

    /// Stops an agent in order; returns when the controller, if it runs, has seen it go.
    pub async fn stop_agent(&mut self, name: &str) {
        let running = self.agents.get_mut(name).and_then(|(_, running)| running.take());
        let _ = running.expect("the agent runs").stop().await;
        if self.controller.is_none() {
            return;
        }
        let gone = async || (self.epoch(name).await? == 0).then_some(());
        until_async("the controller to see the agent go", PATIENCE, gone).await;
    }

    /// Changes the configuration that the controller has at its next start.
    pub fn configure_controller(&mut self, change: impl FnOnce(&mut ControllerConfig)) {
        change(&mut self.config);
    }

    /// Waits until the controller stops by itself, and says why.
    pub async fn controller_ended(&mut self) -> Result<Ending, Failure> {
        let running = self.controller.take().expect("the controller runs");
        let ended = tokio::time::timeout(PATIENCE, running.until_stopped()).await;
        ended.expect("the controller stops in time")
    }

    /// Stops the controller in order.
    pub async fn stop_controller(&mut self) {
        self.controller.take().expect("the controller runs").stop().await.expect("it stops in order");
    }

    /// Starts the controller again, at the same address.
    pub async fn start_controller(&mut self) {
        let started = Controller::start(self.config.clone(), self.clock.clone()).await;
        self.controller = Some(started.expect("the controller starts again"));
    }

    /// Declares a repository and creates it. `more` are further keys of its definition, as YAML.
    pub async fn add_repository(&mut self, name: &str, url: &str, more: &str) {
        let password = self.password_file();
        self.apply(&format!(
            "repositories:\n  {name}: {{ url: \"{url}\", encryption: {{ key: {{ file: {} }} }}{more} }}\n",
            password.display()
        ))
        .await
        .expect("the definition is good");
        let made = self.repositories().init(v1::InitRepositoryRequest { name: name.to_owned() }).await;
        made.expect("the repository is made");
    }

    /// The command line, with the first operator's token.
    pub fn cli(&self) -> Command {
        let (token, ca) = (self.path().join("token"), self.path().join("ca.pem"));
        std::fs::write(&token, self.token.reveal()).expect("the folder is writable");
        set_mode(&token, 0o600);
        std::fs::write(&ca, &self.ca_pem).expect("the folder is writable");
        let mut command = Command::new(crate::workspace::binary("holdfast"));
        command.args(["--server", &self.address]).arg("--token-file").arg(token).arg("--ca-file").arg(ca);
        command
    }

    /// Stops everything in order.
    pub async fn stop(mut self) {
        for (_, running) in self.agents.values_mut() {
            if let Some(agent) = running.take() {
                let _ = agent.stop().await;
            }
        }
        if self.controller.is_some() {
            self.stop_controller().await;
        }
    }
}

/// An operator with a token: typed calls, and the few sequences of calls that tests make again and again.
pub struct Operator {
    /// Where the controller is.
    pub address: String,
    /// The bearer token.
    pub token: Secret,
    /// The CA to trust, PEM.
    pub ca_pem: String,
}

impl Operator {
    fn channel(&self) -> OperatorChannel {
        self.channel_with(self.token.reveal())
    }

    /// A channel with this token.
    pub fn channel_with(&self, token: &str) -> OperatorChannel {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca_pem))
            .domain_name("localhost");
        let endpoint = Endpoint::from_shared(self.address.clone()).expect("the address is one");
        let channel = endpoint.tls_config(tls).expect("the CA is one").connect_lazy();
        InterceptedService::new(channel, Bearer(format!("Bearer {token}").parse().expect("a token is ASCII")))
    }

    /// Calls about definitions and agents.
    pub fn fleet(&self) -> FleetServiceClient<OperatorChannel> {
        FleetServiceClient::new(self.channel())
    }

    /// Calls about alerts.
    pub fn alerts(&self) -> AlertServiceClient<OperatorChannel> {
        AlertServiceClient::new(self.channel())
    }

    /// Calls about notifications.
    pub fn notifications(&self) -> NotifyServiceClient<OperatorChannel> {
        NotifyServiceClient::new(self.channel())
    }

    /// Calls about reports.
    pub fn reports(&self) -> ReportServiceClient<OperatorChannel> {
        ReportServiceClient::new(self.channel())
    }

    /// Calls about what policies do.
    pub fn policies(&self) -> PolicyServiceClient<OperatorChannel> {
        PolicyServiceClient::new(self.channel())
    }

    /// Calls about runs.
    pub fn runs(&self) -> RunServiceClient<OperatorChannel> {
        RunServiceClient::new(self.channel())
    }

    /// Calls about restores.
    pub fn restores(&self) -> RestoreServiceClient<OperatorChannel> {
        RestoreServiceClient::new(self.channel())
    }

    /// Calls about snapshots.
    pub fn snapshots(&self) -> SnapshotServiceClient<OperatorChannel> {
        SnapshotServiceClient::new(self.channel())
    }

    /// Calls about repositories.
    pub fn repositories(&self) -> RepositoryServiceClient<OperatorChannel> {
        RepositoryServiceClient::new(self.channel())
    }

    /// Calls about the state of things.
    pub fn status(&self) -> StatusServiceClient<OperatorChannel> {
        StatusServiceClient::new(self.channel())
    }

    /// Applies definitions, given without their first line.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn apply(&self, yaml: &str) -> Result<Vec<v1::Change>, Failure> {
        let text = format!("api: holdfast/v1\n{yaml}");
        let file = v1::FleetFile { name: "test.yaml".to_owned(), text };
        let request = v1::ApplyRequest { files: vec![file], ..v1::ApplyRequest::default() };
        let reply = self.fleet().apply(request).await.map_err(|status| from_status(&status))?;
        Ok(reply.into_inner().changes)
    }

    /// Queues a backup.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn start_backup(&self, source: &str, snapshot_type: &str) -> Result<v1::Run, Failure> {
        let backup = v1::StartBackup {
            source: source.to_owned(),
            snapshot_type: snapshot_type.to_owned(),
            ..v1::StartBackup::default()
        };
        self.start_run(v1::start_request::What::Backup(backup)).await
    }

    /// Queues a run.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn start_run(&self, what: v1::start_request::What) -> Result<v1::Run, Failure> {
        let request = v1::StartRequest { idempotency_key: String::new(), what: Some(what) };
        let reply = self.runs().start(request).await.map_err(|status| from_status(&status))?;
        Ok(reply.into_inner().runs.swap_remove(0))
    }

    /// Waits until a run has ended.
    pub async fn ended(&self, run: &v1::Run) -> v1::Run {
        let waiting = async {
            loop {
                let request = v1::WatchRunRequest { run_id: run.id.clone() };
                // The controller may be restarting.
                let Ok(changes) = self.runs().watch(request).await else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let mut changes = changes.into_inner();
                while let Ok(Some(change)) = changes.message().await {
                    let run = change.run.expect("a change has its run");
                    if matches!(run.phase.as_str(), "succeeded" | "failed" | "cancelled" | "skipped") {
                        return run;
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .unwrap_or_else(|_| panic!("run {} does not end", run.id))
    }

    /// Backs a source up and waits for the end.
    pub async fn backup(&self, source: &str, snapshot_type: &str) -> v1::Run {
        let run = self.start_backup(source, snapshot_type).await.expect("the backup is queued");
        self.ended(&run).await
    }

    /// Backs a source up; it must succeed.
    pub async fn backup_well(&self, source: &str, snapshot_type: &str) -> v1::Run {
        let run = self.backup(source, snapshot_type).await;
        if run.phase != "succeeded" || run.warnings > 0 {
            panic!("{:?}\n{}", run, self.log(&run).await);
        }
        run
    }

    /// Plans a restore.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn plan(&self, request: v1::PlanRestoreRequest) -> Result<v1::PlanRestoreResponse, Failure> {
        self.restores()
            .plan(request)
            .await
            .map(tonic::Response::into_inner)
            .map_err(|status| from_status(&status))
    }

    /// Plans a restore and queues it.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn start_restore(&self, request: v1::PlanRestoreRequest) -> Result<v1::Run, Failure> {
        let plan = self.plan(request).await?;
        let request = v1::RunRestoreRequest {
            idempotency_key: String::new(),
            plan_id: plan.plan_id,
            confirm: plan.confirm_with.clone(),
            reason: "a test".to_owned(),
        };
        let reply = self.restores().run(request).await.map_err(|status| from_status(&status))?;
        Ok(reply.into_inner().run.expect("a reply has its run"))
    }

    /// Plans a restore, runs the plan and waits for the end.
    ///
    /// # Errors
    /// What the controller says before the run is queued.
    pub async fn restore(&self, request: v1::PlanRestoreRequest) -> Result<v1::Run, Failure> {
        Ok(self.ended(&self.start_restore(request).await?).await)
    }

    /// Restores; it must succeed.
    pub async fn restore_well(&self, request: v1::PlanRestoreRequest) -> (v1::Run, RestoreReport) {
        let run = self.restore(request).await.expect("the restore is queued");
        if run.phase != "succeeded" {
            panic!("{:?}\n{}", run, self.log(&run).await);
        }
        let report = serde_json::from_str(&run.restored_json).expect("a restore has a report");
        (run, report)
    }

    /// The log of a run as text.
    pub async fn log(&self, run: &v1::Run) -> String {
        let request = v1::RunLogsRequest { run_id: run.id.clone(), follow: false };
        let mut parts = self.runs().logs(request).await.expect("a run has a log").into_inner();
        let mut text = String::new();
        while let Ok(Some(part)) = parts.message().await {
            for line in part.lines {
                text.push_str(&line.text);
                text.push('\n');
            }
        }
        text
    }

    /// Snapshots of a source, newest first.
    pub async fn snapshots_of(&self, source: &str) -> Vec<v1::Snapshot> {
        let request =
            v1::ListSnapshotsRequest { source: source.to_owned(), ..v1::ListSnapshotsRequest::default() };
        self.snapshots().list(request).await.expect("snapshots are listed").into_inner().snapshots
    }
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("the file is ours");
}
