//! The folder of the demo: everything it makes lies here.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use holdfast_model::ErrorCode;
use holdfast_runtime::durable_file::{self, Access};

use crate::contexts::{self, Context, Contexts};
use crate::error::{CliError, CliResult};

/// The folder, removed at the end unless it is kept.
pub(super) struct Home {
    path: PathBuf,
    temporary: Option<tempfile::TempDir>,
}

impl Home {
    /// Makes a temporary folder, or takes the one that is named: it must be empty or not exist.
    pub(super) fn create(keep: Option<&Path>) -> CliResult<Self> {
        let home = match keep {
            None => {
                let folder = tempfile::Builder::new()
                    .prefix("holdfast-demo-")
                    .permissions(std::fs::Permissions::from_mode(0o700))
                    .tempdir()
                    .map_err(|error| CliError::file("making a folder in", &std::env::temp_dir(), &error))?;
                Self { path: absolute(folder.path())?, temporary: Some(folder) }
            }
            Some(path) => {
                make_empty(path)?;
                Self { path: absolute(path)?, temporary: None }
            }
        };
        for folder in ["shop", "controller", "agent"] {
            private_folder(&home.path.join(folder))?;
        }
        Ok(home)
    }

    /// The folder itself.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it stays.
    pub(super) fn is_kept(&self) -> bool {
        self.temporary.is_none()
    }

    pub(super) fn shop_folder(&self) -> PathBuf {
        self.path.join("shop")
    }

    pub(super) fn database(&self) -> PathBuf {
        self.path.join("shop/shop.db")
    }

    pub(super) fn repository(&self) -> PathBuf {
        self.path.join("repository")
    }

    pub(super) fn repository_key(&self) -> PathBuf {
        self.path.join("repository.key")
    }

    pub(super) fn controller_data(&self) -> PathBuf {
        self.path.join("controller")
    }

    pub(super) fn agent_data(&self) -> PathBuf {
        self.path.join("agent")
    }

    pub(super) fn ca_file(&self) -> PathBuf {
        self.path.join("ca.pem")
    }

    pub(super) fn token_file(&self) -> PathBuf {
        self.path.join("operator.token")
    }

    pub(super) fn contexts_file(&self) -> PathBuf {
        self.path.join("contexts.yaml")
    }

    /// Writes a file that only its owner may read.
    pub(super) fn write(&self, path: &Path, text: &str) -> CliResult<()> {
        durable_file::replace(path, text.as_bytes(), Access::Owner)
            .map_err(|error| CliError::file("writing", path, &error))
    }

    /// Writes the contexts that other terminals use.
    pub(super) fn write_contexts(&self, server: &str) -> CliResult<()> {
        let context = Context {
            server: server.to_owned(),
            ca_file: self.ca_file(),
            token_file: Some(self.token_file()),
        };
        let contexts =
            Contexts { current: Some("demo".to_owned()), contexts: [("demo".to_owned(), context)].into() };
        contexts::save(&self.contexts_file(), &contexts)
    }

    /// Removes the folder, unless it is kept.
    pub(super) fn leave(self) -> CliResult<()> {
        match self.temporary {
            Some(folder) => {
                let path = self.path;
                folder.close().map_err(|error| CliError::file("removing", &path, &error))
            }
            None => Ok(()),
        }
    }
}

fn absolute(path: &Path) -> CliResult<PathBuf> {
    path.canonicalize().map_err(|error| CliError::file("opening", path, &error))
}

fn private_folder(path: &Path) -> CliResult<()> {
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(|error| CliError::file("making", path, &error))
}

fn make_empty(path: &Path) -> CliResult<()> {
    match std::fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => {
                Err(CliError::new(ErrorCode::TargetExists, format!("{} is not empty", path.display()))
                    .then("holdfast demo --keep DIR    # an empty folder, or one that does not exist"))
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| CliError::file("making", path, &error)),
        Err(error) => Err(CliError::file("opening", path, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_home_is_private_and_goes() {
        let home = Home::create(None).unwrap();
        let path = home.path().to_owned();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        home.leave().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_kept_home_must_be_empty_and_stays() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let home = Home::create(Some(&path)).unwrap();
        assert!(home.is_kept());
        home.leave().unwrap();
        assert!(path.exists());
        let error = Home::create(Some(&path)).err().unwrap();
        assert_eq!(error.code(), ErrorCode::TargetExists);
    }
}
