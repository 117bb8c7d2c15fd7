//! PostgreSQL clusters that a test makes and removes, run by a user without rights.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast_runtime::test_port;
use tempfile::TempDir;

use crate::process::{Finished, Process, run};
use crate::wait::PATIENCE;

/// A running cluster on loopback and a Unix socket; stopped at once and removed when dropped.
///
/// Its superuser is `postgres`. Connections over the socket and over TCP both need [`PostgresCluster::PASSWORD`].
#[derive(Debug)]
pub struct PostgresCluster {
    process: Option<Process>,
    port: u16,
    folder: TempDir,
    tools: PathBuf,
    password_file: PathBuf,
}

impl PostgresCluster {
    /// The password of the superuser.
    pub const PASSWORD: &'static str = "test-superuser-password";

    /// Makes and starts a cluster of the newest installed version.
    ///
    /// # Panics
    /// When it is not ready within two minutes; shows its log.
    pub fn start() -> Self {
        let folder = crate::temp_dir("postgres");
        let password_file = folder.path().join("pgpass");
        let initial = folder.path().join("initial-password");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))
            .expect("the folder is ours");
        let mut cluster =
            Self { process: None, port: test_port::reserve(), folder, tools: newest_tools(), password_file };
        write_private(&initial, &format!("{}\n", Self::PASSWORD));
        write_private(&cluster.password_file, &format!("*:*:*:*:{}\n", Self::PASSWORD));
        for name in ["data", "socket"] {
            std::fs::create_dir(cluster.folder.path().join(name)).expect("the folder is ours");
        }
        if let Some((user, group)) = unprivileged() {
            for name in ["", "data", "socket", "initial-password"] {
                chown(cluster.folder.path().join(name), Some(user), Some(group))
                    .expect("root may change owners");
            }
        }
        let mut initdb = cluster.as_server_user("initdb");
        initdb
            .args(["--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"])
            .args(["--no-sync", "--data-checksums"])
            .arg(format!("--pwfile={}", initial.display()))
            .arg("--pgdata")
            .arg(cluster.data());
        drop(run(&mut initdb, PATIENCE).expect_success());
        cluster.restart();
        cluster
    }

    /// Starts the server again after [`PostgresCluster::stop_immediately`].
    ///
    /// # Panics
    /// When it is not ready within two minutes.
    pub fn restart(&mut self) {
        let mut server = self.as_server_user("postgres");
        server.arg("-D").arg(self.data()).args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]);
        server.args(["-c", &format!("port={}", self.port)]);
        server.args(["-c", &format!("unix_socket_directories={}", self.socket_dir().display())]);
        let mut process = Process::start("postgres", &mut server, self.folder.path());
        process.wait_until("an answer", PATIENCE, |_| {
            let finished = self.try_psql("postgres", "select 1");
            finished.status.success().then_some(())
        });
        self.process = Some(process);
    }

    /// Ends the server as `pg_ctl stop -m immediate` does: without a checkpoint, every connection cut.
    pub fn stop_immediately(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(rustix::process::Signal::QUIT);
            process.wait(PATIENCE);
        }
    }

    /// The definition of the source `pg`, databases of this cluster that agent `a1` backs up as superuser: in YAML, the
    /// databases too. The password goes into a file in `folder`.
    pub fn source(&self, folder: &Path, databases: &str) -> String {
        let password = folder.join("postgres.pass");
        write_private(&password, Self::PASSWORD);
        format!(
            "sources:\n  pg: {{ engine: postgres, agent: a1, connect: {{ host: 127.0.0.1, port: {}, user: postgres, password: {{ file: {} }} }}, databases: [{databases}] }}\n",
            self.port,
            password.display()
        )
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the Unix socket, usable as a host name.
    pub fn socket_dir(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The folder of the client tools of the same version.
    pub fn tools(&self) -> &Path {
        &self.tools
    }

    /// A client tool of the same version, told how to reach the cluster by its environment.
    pub fn client(&self, tool: &str) -> Command {
        let mut command = Command::new(self.tools.join(tool));
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGPASSFILE", &self.password_file)
            .env("PGCONNECT_TIMEOUT", "10");
        command
    }

    /// Runs SQL in a database and returns the rows, columns separated by `|`.
    ///
    /// # Panics
    /// When the server refuses a statement.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        self.try_psql(database, sql).expect_success().stdout.trim_end().to_owned()
    }

    /// As [`PostgresCluster::psql`], for a database of any name, which `psql` would else take for a connection string.
    ///
    /// # Panics
    /// When the server refuses a statement.
    pub fn psql_exactly(&self, database: &str, sql: &str) -> String {
        let value = database.replace('\\', "\\\\").replace('\'', "\\'");
        self.psql(&format!("dbname='{value}'"), sql)
    }

    /// As [`PostgresCluster::psql`], for statements that may fail.
    pub fn try_psql(&self, database: &str, sql: &str) -> Finished {
        let mut psql = self.client("psql");
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]);
        psql.args(["--dbname", database, "--command", sql]);
        run(&mut psql, PATIENCE)
    }

    fn as_server_user(&self, tool: &str) -> Command {
        let mut command = Command::new(self.tools.join(tool));
        command.current_dir(self.folder.path());
        if let Some((user, group)) = unprivileged() {
            command.uid(user).gid(group);
        }
        command
    }
}

impl Drop for PostgresCluster {
    fn drop(&mut self) {
        // Before the folder goes, and without the minute that an orderly stop may take.
        self.process.take();
    }
}

/// User and group `postgres`, when the test runs as root: the server refuses to.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").expect("the machine has a list of users");
    let line = users
        .lines()
        .find(|line| line.starts_with("postgres:"))
        .expect("user postgres exists: run `make setup`");
    let mut fields = line.split(':').skip(2);
    let mut number =
        || fields.next().and_then(|field| field.parse().ok()).expect("a user has a number and a group");
    Some((number(), number()))
}

/// The folder of the newest version that Debian's packages installed.
fn newest_tools() -> PathBuf {
    let versions =
        std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed: run `make setup`");
    let newest = versions
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|version| Path::new(&format!("/usr/lib/postgresql/{version}/bin/postgres")).is_file())
        .max();
    let version = newest.expect("a PostgreSQL server is installed: run `make setup`");
    PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"))
}

fn write_private(path: &Path, text: &str) {
    std::fs::write(path, text).expect("the folder is ours");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("the file is ours");
}
