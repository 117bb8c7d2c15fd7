//! `restic` as an independent reader and writer of our repositories.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::process::{Finished, run};
use crate::wait::PATIENCE;

/// `restic` with a repository and its password; it uses no cache, so it reads what is stored and nothing else.
#[derive(Debug, Clone)]
pub struct Restic {
    repository: String,
    password_file: PathBuf,
    environment: Vec<(String, String)>,
}

impl Restic {
    /// For the repository at this place (a path, or `s3:http://…`), whose password is in this file.
    pub fn new(repository: impl Into<String>, password_file: impl Into<PathBuf>) -> Self {
        Self { repository: repository.into(), password_file: password_file.into(), environment: Vec::new() }
    }

    /// Adds an environment variable, such as a storage credential.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs it with these arguments behind the repository and password.
    pub fn try_run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Finished {
        run(&mut self.command(arguments), PATIENCE)
    }

    /// As [`Restic::try_run`]; gives the standard output.
    ///
    /// # Panics
    /// When it fails; shows all it printed.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> String {
        self.try_run(arguments).expect_success().stdout
    }

    /// Makes the repository, in format version 2.
    pub fn init(&self) {
        self.run(&["init", "--repository-version=2"]);
    }

    /// Backs up a folder by the name `.` from within it, so that the tree of the snapshot begins with its entries.
    pub fn backup(&self, folder: &Path) {
        let mut command = self.command(&["backup", "--quiet", "."]);
        drop(run(command.current_dir(folder), PATIENCE).expect_success());
    }

    /// Restores a snapshot into a folder.
    pub fn restore(&self, snapshot: &str, target: &Path) {
        self.run(&[OsStr::new("restore"), OsStr::new(snapshot), OsStr::new("--target"), target.as_os_str()]);
    }

    /// Reads every byte of the repository and checks it.
    ///
    /// # Panics
    /// When `restic` finds anything to say against it.
    pub fn check_all_data(&self) {
        let finished = self.try_run(&["check", "--read-data"]).expect_success();
        assert!(finished.stdout.contains("no errors were found"), "{}", finished.stdout);
    }

    /// The snapshots, as `restic snapshots --json` lists them.
    pub fn snapshots(&self) -> Vec<Value> {
        serde_json::from_str(&self.run(&["snapshots", "--json"])).expect("restic prints JSON")
    }

    fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new("restic");
        command
            .arg("--no-cache")
            .arg("--repo")
            .arg(&self.repository)
            .arg("--password-file")
            .arg(&self.password_file)
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}
