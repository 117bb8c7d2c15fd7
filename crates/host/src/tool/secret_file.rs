//! Secrets on their way into a tool.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use holdfast_model::ErrorCode;

use crate::HostError;

/// A file of mode 0600 in the scratch folder of a run, such as a `pgpass` file. Dropping it removes it.
#[derive(Debug)]
pub struct SecretFile {
    path: PathBuf,
}

impl SecretFile {
    /// Writes a new file. Its bytes are not flushed to the disk: nothing needs them after a crash.
    ///
    /// # Errors
    /// `HF-1006` when it exists already or cannot be written. `name` must be a plain file name.
    pub fn create(scratch: &Path, name: &str, content: &str) -> Result<Self, HostError> {
        let failed = |path: &Path, error: io::Error| {
            HostError::new(
                ErrorCode::SecretUnresolvable,
                format!("the secret file {} cannot be written", path.display()),
            )
            .caused_by(error)
        };
        let path = scratch.join(name);
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(failed(&path, io::Error::from(io::ErrorKind::InvalidInput)));
        }
        // Create-new does not follow a symbolic link that somebody may have put there.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| failed(&path, error))?;
        let secret_file = Self { path };
        file.write_all(content.as_bytes()).map_err(|error| failed(&secret_file.path, error))?;
        Ok(secret_file)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        // The scratch folder is removed after the run in any case.
        let _ = std::fs::remove_file(&self.path);
    }
}
