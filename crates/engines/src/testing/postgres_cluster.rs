//! PostgreSQL clusters that a test starts and throws away.
//!
//! `initdb` runs once per machine, version and user; every cluster is a copy of that template, so that a start takes
//! well under a second. The server refuses to run as root: under root it runs as the user `postgres`.

use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_model::source::{PostgresConfig, PostgresConnect, PostgresMethod};
use holdfast_runtime::test_port;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

/// How long a server may take to start or stop.
const DEADLINE: Duration = Duration::from_secs(120);
/// How often a state is looked at while waiting for it.
const POLL: Duration = Duration::from_millis(10);
/// How many ports are tried: something that is no test may take one between the search and the start.
const PORT_ATTEMPTS: usize = 5;
/// Changes whenever a template of an older test run must not be used.
const TEMPLATE_VERSION: u32 = 3;
/// Where folders with sockets lie: paths of sockets hold 107 bytes at most.
const SHORT_FOLDER: &str = "/tmp";
/// Beginning of the names of cluster folders; the id of the process that owns them follows.
const FOLDER_PREFIX: &str = "hfpg-";

/// Settings for speed: a test cluster loses nothing that matters when the machine fails.
const SETTINGS: &str = "\
fsync = off
synchronous_commit = off
full_page_writes = off
shared_buffers = 32MB
max_connections = 60
wal_level = replica
max_wal_size = 1GB
autovacuum_naptime = 60s
log_min_messages = warning
unix_socket_permissions = 0777
";

/// No password over the Unix socket, one over TCP.
const ACCESS: &str = "\
local all all trust
local replication all trust
host all all 127.0.0.1/32 scram-sha-256
";

/// A running cluster. Dropping it stops the server at once and removes its files.
#[derive(Debug)]
pub struct PostgresCluster {
    folder: TempDir,
    tools: PathBuf,
    port: u16,
    server: Option<Child>,
}

impl PostgresCluster {
    /// The superuser, who needs no password over the Unix socket.
    pub const USER: &'static str = "postgres";
    /// The password of the superuser, needed over TCP.
    pub const PASSWORD: &'static str = "test-superuser-password";

    /// Starts a cluster of the version that [`chosen_tools`] finds.
    ///
    /// # Panics
    /// When there is none or it does not start.
    pub fn start() -> Self {
        Self::start_from(&chosen_tools())
    }

    /// Starts a cluster of the version whose programs lie in this folder.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_from(tools: &Path) -> Self {
        reap_orphans();
        let template = template(tools);
        let mut cluster = Self { folder: cluster_folder(), tools: tools.to_owned(), port: 0, server: None };
        run(Command::new("cp").arg("-a").arg("--reflink=auto").arg(&template).arg(cluster.data()));
        cluster.restart();
        cluster
    }

    /// Starts a standby that follows this cluster.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_standby(&self) -> Self {
        let mut standby = Self { folder: cluster_folder(), tools: self.tools.clone(), port: 0, server: None };
        let mut copy = Command::new(self.tools.join("pg_basebackup"));
        copy.args([
            "--checkpoint=fast",
            "--write-recovery-conf",
            "--no-sync",
            "--no-password",
            "-U",
            Self::USER,
        ])
        .args(["-p", &self.port.to_string()])
        .arg("-h")
        .arg(self.socket_folder())
        .arg("-D")
        .arg(standby.data())
        .current_dir(standby.folder.path());
        as_server_user(&mut copy);
        run(&mut copy);
        standby.restart();
        standby
    }

    /// Starts the server again after it was stopped.
    ///
    /// # Panics
    /// When it does not start; shows its log.
    pub fn restart(&mut self) {
        assert!(self.server.is_none(), "the server runs already");
        for _ in 0..PORT_ATTEMPTS {
            if self.port == 0 {
                self.port = test_port::reserve();
            }
            if self.try_start() {
                return;
            }
            self.port = 0;
        }
        panic!("PostgreSQL did not start:\n{}", self.log());
    }

    fn try_start(&mut self) -> bool {
        let log = File::create(self.log_path()).expect("the folder is ours");
        let mut command = Command::new(self.tools.join("postgres"));
        command
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.socket_folder())
            .args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1"])
            .current_dir(self.folder.path())
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .process_group(0);
        as_server_user(&mut command);
        let mut child = command.spawn().expect("the server can be run");
        let begin = Instant::now();
        loop {
            if child.try_wait().expect("a child can be asked").is_some() {
                return false;
            }
            // The last line of the file says `ready` once connections are taken.
            let state = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
            let is_ours = state.lines().next() == Some(child.id().to_string().as_str());
            let ready = |line: &str| matches!(line.trim(), "ready" | "standby");
            if is_ours && state.lines().nth(7).is_some_and(ready) {
                self.server = Some(child);
                return true;
            }
            if begin.elapsed() > DEADLINE {
                drop(child.kill());
                drop(child.wait());
                return false;
            }
            std::thread::sleep(POLL);
        }
    }

    /// Ends the server as `pg_ctl stop -m immediate` does: every connection is cut, nothing is written out.
    pub fn stop_immediately(&mut self) {
        if let Some(mut server) = self.server.take() {
            stop(&mut server, Signal::QUIT);
        }
    }

    /// The folder of the Unix socket, to be used as a host name.
    pub fn socket_folder(&self) -> &Path {
        self.folder.path()
    }

    /// The TCP port on 127.0.0.1, and the number in the name of the Unix socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The folder of the programs.
    pub fn tools(&self) -> &Path {
        &self.tools
    }

    /// What the server logged since its last start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// How a source reaches it: by the Unix socket, as the superuser.
    pub fn connect(&self) -> PostgresConnect {
        PostgresConnect {
            host: self.socket_folder().to_str().expect("made from plain characters").to_owned(),
            port: self.port,
            user: Self::USER.to_owned(),
            database: "postgres".to_owned(),
            password: None,
        }
    }

    /// A source of these databases, with the client tools of the same version; of all when none is named.
    pub fn source(&self, databases: &[&str]) -> PostgresConfig {
        PostgresConfig {
            connect: self.connect(),
            databases: databases.iter().map(|&name| name.to_owned()).collect(),
            method: PostgresMethod::Logical,
            tools: Some(self.tools.clone()),
        }
    }

    /// Connects to a database as the superuser.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn client(&self, database: &str) -> ClusterClient {
        let connect = self.connect();
        let (client, connection) = tokio_postgres::Config::new()
            .host(&connect.host)
            .port(connect.port)
            .user(&connect.user)
            .dbname(database)
            .connect(NoTls)
            .await
            .unwrap_or_else(|error| panic!("connect to {database}: {error:?}"));
        let mut driver = JoinSet::new();
        driver.spawn(async move { drop(connection.await) });
        ClusterClient { client, _driver: driver }
    }

    /// Runs statements in a database.
    ///
    /// # Panics
    /// When the server refuses one.
    pub async fn execute(&self, database: &str, sql: &str) {
        let client = self.client(database).await;
        client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Runs a query in a database and returns its rows as text, columns joined by `|`, null as nothing.
    ///
    /// # Panics
    /// When the server refuses it.
    pub async fn query(&self, database: &str, sql: &str) -> Vec<String> {
        let client = self.client(database).await;
        let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let mut lines = Vec::new();
        for message in messages {
            if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                let fields: Vec<_> = (0..row.len()).map(|at| row.get(at).unwrap_or_default()).collect();
                lines.push(fields.join("|"));
            }
        }
        lines
    }

    /// Makes a database.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn create_database(&self, name: &str) {
        self.execute("postgres", &format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\""))).await;
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }
}

impl Drop for PostgresCluster {
    fn drop(&mut self) {
        self.stop_immediately();
    }
}

/// A connection of a test; closed when dropped.
#[derive(Debug)]
pub struct ClusterClient {
    client: Client,
    _driver: JoinSet<()>,
}

impl Deref for ClusterClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// The folder of programs that `HOLDFAST_TEST_POSTGRES` names, to test other versions; otherwise
/// [`installed_tools`].
///
/// # Panics
/// When there is none.
pub fn chosen_tools() -> PathBuf {
    std::env::var_os("HOLDFAST_TEST_POSTGRES").map_or_else(installed_tools, PathBuf::from)
}

/// The folder of the programs of the newest version that Debian's packages installed.
///
/// # Panics
/// When there is none.
pub fn installed_tools() -> PathBuf {
    let entries = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed: run `make setup`");
    let newest = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|version| Path::new(&format!("/usr/lib/postgresql/{version}/bin/postgres")).is_file())
        .max()
        .expect("a PostgreSQL server is installed: run `make setup`");
    PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin"))
}

/// A folder that the server's user owns.
fn cluster_folder() -> TempDir {
    let folder = tempfile::Builder::new()
        .prefix(&format!("{FOLDER_PREFIX}{}-", std::process::id()))
        .tempdir_in(SHORT_FOLDER)
        .expect("a folder for a cluster");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("the folder is ours");
    if let Some((user, group)) = server_user() {
        chown(folder.path(), Some(user), Some(group)).expect("root may change owners");
    }
    folder
}

/// The data folder that all clusters of this version are copied from; made by the first process that needs it.
fn template(tools: &Path) -> PathBuf {
    let user = server_user().map_or_else(|| rustix::process::getuid().as_raw(), |(user, _)| user);
    let version = tools
        .components()
        .rev()
        .nth(1)
        .map_or_else(String::new, |part| part.as_os_str().to_string_lossy().into_owned());
    let folder =
        Path::new(SHORT_FOLDER).join(format!("holdfast-pg-template-{TEMPLATE_VERSION}-{version}-{user}"));
    let lock_path = folder.with_extension("lock");
    let lock = File::options()
        .create(true)
        .append(true)
        .open(&lock_path)
        .expect("a lock file in the temporary folder");
    lock.lock().expect("the lock of the template");
    // Another user could have put a folder of this name there first.
    let is_ours =
        |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == user);
    let finished = folder.join("data");
    if is_ours(&folder) && is_ours(&finished) {
        return finished;
    }
    drop(fs::remove_dir_all(&folder));
    fs::create_dir(&folder).expect("a folder for the template");
    let password_file = folder.join("password");
    fs::write(&password_file, format!("{}\n", PostgresCluster::PASSWORD)).expect("the folder is ours");
    if let Some((user, group)) = server_user() {
        for path in [&folder, &password_file] {
            chown(path, Some(user), Some(group)).expect("root may change owners");
        }
    }
    let growing = folder.join("growing");
    let mut initdb = Command::new(tools.join("initdb"));
    initdb
        .args(["--username", PostgresCluster::USER, "--encoding=UTF8", "--locale=C.UTF-8", "--auth=trust"])
        .args(["--no-sync", "--data-checksums", "--wal-segsize=1"])
        .arg(format!("--pwfile={}", password_file.display()))
        .arg("-D")
        .arg(&growing)
        .current_dir(&folder);
    as_server_user(&mut initdb);
    run(&mut initdb);
    append(&growing.join("postgresql.conf"), SETTINGS);
    fs::write(growing.join("pg_hba.conf"), ACCESS).expect("the folder is ours");
    // Its name says that it is finished.
    fs::rename(&growing, &finished).expect("the folder is ours");
    finished
}

/// Stops servers whose test process was killed before it could, and removes their files.
fn reap_orphans() {
    let Ok(entries) = fs::read_dir(SHORT_FOLDER) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(FOLDER_PREFIX))
            .and_then(|rest| rest.split('-').next())
            .and_then(|digits| digits.parse::<u32>().ok());
        let Some(owner) = owner else { continue };
        if Path::new(&format!("/proc/{owner}")).exists() {
            continue;
        }
        let folder = entry.path();
        let state = fs::read_to_string(folder.join("data/postmaster.pid")).unwrap_or_default();
        let server = state.lines().next().and_then(|line| line.parse::<i32>().ok());
        if let Some(server) = server {
            let command = fs::read(format!("/proc/{server}/cmdline")).unwrap_or_default();
            // The number may belong to another process by now.
            if String::from_utf8_lossy(&command).contains(&*folder.to_string_lossy()) {
                if let Some(pid) = Pid::from_raw(server) {
                    let _ = kill_process(pid, Signal::QUIT);
                }
                wait_until_gone(server);
            }
        }
        drop(fs::remove_dir_all(&folder));
    }
}

fn wait_until_gone(server: i32) {
    let begin = Instant::now();
    while Path::new(&format!("/proc/{server}")).exists() && begin.elapsed() < DEADLINE {
        std::thread::sleep(POLL);
    }
}

fn stop(server: &mut Child, signal: Signal) {
    let begin = Instant::now();
    let _ = kill_process(Pid::from_child(server), signal);
    while matches!(server.try_wait(), Ok(None)) {
        if begin.elapsed() > DEADLINE {
            drop(server.kill());
            drop(server.wait());
            return;
        }
        std::thread::sleep(POLL);
    }
}

/// User and group `postgres` when the test runs as root.
fn server_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("the machine has a list of users");
    let line = users
        .lines()
        .find(|line| line.starts_with("postgres:"))
        .expect("user postgres exists: run `make setup`");
    let mut fields = line.split(':').skip(2).map(|field| field.parse::<u32>().expect("a number"));
    Some((fields.next().expect("a user has a number"), fields.next().expect("a user has a group")))
}

fn as_server_user(command: &mut Command) {
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group);
    }
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn append(path: &Path, text: &str) {
    let mut file = File::options().append(true).open(path).expect("the folder is ours");
    io::Write::write_all(&mut file, text.as_bytes()).expect("the folder is ours");
}
