//! A fleet of real processes, which a test may hold at named places and kill at any moment.
//!
//! Both programs are built with fail points ([`holdfast_runtime::fail_point`]): they write down every named place they
//! come to, and wait at those that the test holds.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use holdfast_model::secret::Secret;
use holdfast_proto::v1;
use holdfast_runtime::fail_point;
use holdfast_runtime::tls::install_crypto_provider;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::fleet::{Operator, REPOSITORY_PASSWORD};
use crate::wait::{PATIENCE, until_async};
use crate::{Process, Proxy, Restic, run, test_port, workspace};

/// How long a lease lasts that no test should see end, however busy the machine is.
pub const LONG_LEASE: Duration = Duration::from_secs(60);

/// How long a lease lasts whose end a test waits for.
pub const SHORT_LEASE: Duration = Duration::from_secs(5);

/// How long a run may take from the restart of what was killed: its lease and half a minute, as is promised, on a machine
/// where a backup `usually` takes no time. Where it does, some more of it fits in.
pub fn recovery_limit(lease: Duration, usually: Duration) -> Duration {
    lease + Duration::from_secs(30) + 20 * usually
}

/// One of the two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The one that decides.
    Controller,
    /// The one that works.
    Agent,
}

impl Program {
    /// Which program it is that comes to this place. A place that both come to is the controller's, and the agent's as
    /// `agent:PLACE`.
    pub fn at(place: &str) -> Self {
        if place.starts_with("agent") { Program::Agent } else { Program::Controller }
    }

    fn name(self) -> &'static str {
        match self {
            Program::Controller => "controller",
            Program::Agent => "agent",
        }
    }
}

/// A controller and an agent `a1` that may restore in place and below the fleet's folder.
pub struct ProcessFleet {
    controller: Process,
    agent: Process,
    operator: Operator,
    places: Vec<&'static str>,
    network: Option<Proxy>,
    dir: TempDir,
}

impl std::ops::Deref for ProcessFleet {
    type Target = Operator;

    fn deref(&self) -> &Operator {
        &self.operator
    }
}

/// The name of a place in the program that comes to it.
fn bare(place: &str) -> &str {
    place.strip_prefix("agent:").unwrap_or(place)
}

/// Holds a program at a place for as long as it exists.
#[derive(Debug)]
pub struct Hold {
    file: PathBuf,
    place: &'static str,
    /// How often a program had been at the place before.
    before: usize,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

impl ProcessFleet {
    /// Starts both, with a repository `main` in [`ProcessFleet::repository`]. `places` are those that the test may
    /// hold them at.
    pub async fn start(lease: Duration, places: impl IntoIterator<Item = &'static str>) -> Self {
        Self::build(lease, places.into_iter().collect(), false).await
    }

    /// As [`ProcessFleet::start`], with a network between the two that the test may cut.
    pub async fn start_apart(lease: Duration, places: impl IntoIterator<Item = &'static str>) -> Self {
        Self::build(lease, places.into_iter().collect(), true).await
    }

    async fn build(lease: Duration, places: Vec<&'static str>, apart: bool) -> Self {
        install_crypto_provider();
        let dir = crate::temp_dir("processes");
        let path = dir.path();
        std::fs::create_dir(path.join("hold")).expect("the folder is ours");
        let port = test_port::reserve();
        let lease = lease.as_secs();
        write(
            &path.join("controller.yaml"),
            &format!(
                "api: holdfast/v1\ngrpc: {{ listen: \"127.0.0.1:{port}\" }}\ndata_dir: {}/controller\nlimits: {{ lease_seconds: {lease} }}\n",
                path.display()
            ),
        );
        write(&path.join("password"), REPOSITORY_PASSWORD);
        let mut init = Command::new(workspace::binary("holdfast-controller"));
        init.arg("init").arg("--config").arg(path.join("controller.yaml"));
        init.arg("--token-file").arg(path.join("token")).arg("--ca-file").arg(path.join("ca.pem"));
        drop(run(&mut init, PATIENCE).expect_success());
        let controller = start(Program::Controller, path, &places);
        let read = |name: &str| std::fs::read_to_string(path.join(name)).expect("init wrote it");
        let operator = Operator {
            address: format!("https://127.0.0.1:{port}"),
            token: Secret::new(read("token").trim()),
            ca_pem: read("ca.pem"),
        };
        let token = until_async("the controller to answer", PATIENCE, async || {
            let request = v1::CreateEnrollmentTokenRequest { agent: "a1".to_owned(), ttl_seconds: 60 };
            Some(operator.fleet().create_enrollment_token(request).await.ok()?.into_inner())
        })
        .await;
        let agent_yaml = format!(
            "api: holdfast/v1\ndata_dir: {0}/agent\nallow: {{ restore_paths: [{0}], restore_in_place: true }}\n",
            path.display()
        );
        write(&path.join("agent.yaml"), &agent_yaml);
        let network = if apart { Some(Proxy::start(port).await) } else { None };
        let dialled = format!("https://127.0.0.1:{}", network.as_ref().map_or(port, Proxy::port));
        let mut enroll = Command::new(workspace::binary("holdfast-agent"));
        enroll.args(["enroll", "--name", "a1", "--controller", &dialled, "--ca-pin", &token.ca_pin]);
        enroll.arg("--data-dir").arg(path.join("agent")).env("HOLDFAST_ENROLL_TOKEN", &token.token);
        drop(run(&mut enroll, PATIENCE).expect_success());
        let agent = start(Program::Agent, path, &places);
        let fleet = Self { controller, agent, operator, places, network, dir };
        let yaml = format!(
            "repositories:\n  main: {{ url: \"file://{}\", encryption: {{ key: {{ file: {} }} }} }}\n",
            fleet.repository().display(),
            fleet.password_file().display()
        );
        fleet.apply(&yaml).await.expect("the definition is good");
        let request = v1::InitRepositoryRequest { name: "main".to_owned() };
        fleet.repositories().init(request).await.expect("the repository is made");
        fleet
    }

    /// The folder that everything of this fleet lies in.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The folder of the repository `main`.
    pub fn repository(&self) -> PathBuf {
        self.path().join("repository")
    }

    /// The file with the password of the repository.
    pub fn password_file(&self) -> PathBuf {
        self.path().join("password")
    }

    /// The independent reader of the repository `main`.
    pub fn restic(&self) -> Restic {
        Restic::new(self.repository().display().to_string(), self.password_file())
    }

    /// Declares a source `tree` of this folder.
    pub async fn declare_tree(&self, tree: &Path) {
        let yaml = format!("sources:\n  tree: {{ engine: files, agent: a1, paths: [{}] }}\n", tree.display());
        self.apply(&yaml).await.expect("the source is good");
    }

    /// Adds to the configuration of the agent, and starts it again with that.
    pub fn configure_agent(&mut self, more: &str) {
        self.kill(Program::Agent);
        let file = self.path().join("agent.yaml");
        let text = std::fs::read_to_string(&file).expect("it was written at the start");
        write(&file, &(text + more));
        self.restart(Program::Agent);
    }

    /// The network between agent and controller.
    ///
    /// # Panics
    /// When the fleet was not started with one.
    pub fn network(&self) -> &Proxy {
        self.network.as_ref().expect("the fleet was started apart")
    }

    /// Kills a program with SIGKILL, as it stands.
    pub fn kill(&mut self, program: Program) {
        match program {
            Program::Controller => self.controller.kill(),
            Program::Agent => self.agent.kill(),
        }
    }

    /// Asks a program to stop, as a service manager does, and does not wait for it.
    pub fn ask_to_stop(&mut self, program: Program) {
        match program {
            Program::Controller => self.controller.signal(Signal::TERM),
            Program::Agent => self.agent.signal(Signal::TERM),
        }
    }

    /// Tells a program to read its configuration anew, as a service manager does.
    pub fn hang_up(&mut self, program: Program) {
        match program {
            Program::Controller => self.controller.signal(Signal::HUP),
            Program::Agent => self.agent.signal(Signal::HUP),
        }
    }

    /// What a program has logged.
    pub fn log_of(&self, program: Program) -> String {
        match program {
            Program::Controller => self.controller.log(),
            Program::Agent => self.agent.log(),
        }
    }

    /// Starts a program again that was killed.
    pub fn restart(&mut self, program: Program) {
        let started = start(program, self.dir.path(), &self.places);
        match program {
            Program::Controller => self.controller = started,
            Program::Agent => self.agent = started,
        }
    }

    /// Holds whoever comes to this place from now on.
    ///
    /// # Panics
    /// When the place is not one that the fleet was started with.
    pub fn hold(&self, place: &'static str) -> Hold {
        assert!(self.places.contains(&place), "the programs were not armed for {place}");
        let file = hold_file(self.path(), Program::at(place), place);
        let before = self.times_at(place);
        std::fs::write(&file, b"").expect("the folder is ours");
        Hold { file, place, before }
    }

    /// Waits until a program came to a place that is held.
    ///
    /// # Panics
    /// When none comes in time.
    pub async fn is_held(&self, hold: &Hold) {
        let arrived = async || (self.times_at(hold.place) > hold.before).then_some(());
        until_async(format!("somebody at {}", hold.place), PATIENCE, arrived).await;
    }

    /// Waits until a program came to a place that is held, then holds whoever comes to the next, and so on. Returns the
    /// last hold. The first is taken before anything begins: what begins may be past it at once.
    ///
    /// # Panics
    /// As [`ProcessFleet::is_held`].
    pub async fn lead(&self, mut held: Hold, way: &[&'static str]) -> Hold {
        self.is_held(&held).await;
        for place in way {
            let next = self.hold(place);
            drop(std::mem::replace(&mut held, next));
            self.is_held(&held).await;
        }
        held
    }

    /// How often programs came to this place so far.
    pub fn times_at(&self, place: &str) -> usize {
        let record = std::fs::read_to_string(record_file(self.path(), Program::at(place)));
        record.unwrap_or_default().lines().filter(|line| *line == bare(place)).count()
    }
}

fn start(program: Program, path: &Path, places: &[&'static str]) -> Process {
    let name = program.name();
    let mut command = Command::new(workspace::binary(&format!("holdfast-{name}")));
    command.args(["run", "--config"]).arg(path.join(format!("{name}.yaml")));
    let mut armed = String::new();
    for place in places.iter().filter(|place| Program::at(place) == program) {
        let file = hold_file(path, program, place);
        write!(armed, "{}=pause:{}|", bare(place), file.display())
            .expect("a string takes all that is written");
    }
    command.env(fail_point::ENVIRONMENT_VARIABLE, armed);
    command.env(fail_point::RECORD_VARIABLE, record_file(path, program));
    Process::start(name, &mut command, path)
}

fn hold_file(path: &Path, program: Program, place: &str) -> PathBuf {
    path.join("hold").join(format!("{}.{}", program.name(), bare(place)))
}

fn record_file(path: &Path, program: Program) -> PathBuf {
    path.join(format!("{}.places", program.name()))
}

fn write(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).expect("the folder is ours");
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, private).expect("the file is ours");
}
