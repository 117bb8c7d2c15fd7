//! The source tree itself: where it is, which packages it holds, which files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::process::run;
use crate::wait::PATIENCE;

/// The root of the source tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package of the tests lies in a folder of the tree")
}

/// The folder that `make setup` fills: `$HOLDFAST_CACHE`, or `~/.cache/holdfast`.
pub fn cache() -> PathBuf {
    match std::env::var_os("HOLDFAST_CACHE") {
        Some(path) => path.into(),
        None => {
            let home = std::env::var_os("HOME").expect("HOME is set");
            Path::new(&home).join(".cache/holdfast")
        }
    }
}

/// A program that `make setup` put into the cache.
///
/// # Panics
/// When it is not there.
pub fn tool(name: &str) -> PathBuf {
    let path = cache().join("tools/bin").join(name);
    assert!(path.is_file(), "{} is missing: run `make setup`", path.display());
    path
}

/// One of our own programs, as built for this test run.
///
/// The test runner builds them before the first end-to-end test and says where (`.config/nextest.toml`); without it,
/// the folder that the test itself was built into is searched.
///
/// # Panics
/// When it is not there.
pub fn binary(name: &str) -> PathBuf {
    let folder = match std::env::var_os("HOLDFAST_TEST_BINARIES") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let test = std::env::current_exe().expect("a running program has a path");
            test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps").to_owned()
        }
    };
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is missing: build it with `cargo build --workspace --bins --all-features`",
        path.display()
    );
    path
}

/// One package of the workspace, as `cargo metadata` tells.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Path of its `Cargo.toml`.
    pub manifest_path: PathBuf,
    /// Everything it depends on, for whatever purpose.
    pub dependencies: Vec<Dependency>,
}

/// One entry of a package's dependencies.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// The name of the package that is used.
    pub name: String,
}

impl Package {
    /// The names of our own packages that this one uses.
    pub fn uses(&self, ours: &BTreeSet<&str>) -> BTreeSet<&str> {
        self.dependencies
            .iter()
            .map(|dependency| dependency.name.as_str())
            .filter(|name| ours.contains(name))
            .collect()
    }
}

/// Every package of the workspace.
pub fn packages() -> Vec<Package> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(["metadata", "--format-version=1", "--no-deps", "--offline"]);
    let output = run(&mut cargo, PATIENCE).expect_success();
    let metadata: Metadata = serde_json::from_str(&output.stdout).expect("cargo metadata prints JSON");
    metadata.packages
}

/// Files of the source tree with this ending, sorted, build output and hidden folders left out.
pub fn files_ending(ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).expect("the source tree is readable");
        for entry in entries {
            let entry = entry.expect("the source tree is readable");
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let kind = entry.file_type().expect("the source tree is readable");
            if kind.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(entry.path());
            } else if kind.is_file() && name.ends_with(ending) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// A path of the source tree, relative to its root, for messages.
pub fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}
