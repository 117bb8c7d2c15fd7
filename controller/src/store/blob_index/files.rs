//! The folder of an index: its marker and its numbered files.

use std::path::{Path, PathBuf};

use holdfast_runtime::durable_file::{self, Access};
use serde::{Deserialize, Serialize};

use super::BlobIndexError;

/// What is known of an index without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    /// The boot of the machine during which it was open last.
    pub(super) boot_id: Option<String>,
    /// Whether it was closed in order since.
    pub(super) clean: bool,
    /// Whether unknown means absent.
    pub(super) complete: bool,
}

impl Marker {
    /// Writes it durably.
    pub(super) fn write(&self, path: &Path) -> Result<(), BlobIndexError> {
        let bytes = serde_json::to_vec(self).expect("three plain fields can be written as JSON");
        durable_file::replace(path, &bytes, Access::Owner)
            .map_err(BlobIndexError::io("writing the marker of the blob index", path))
    }

    /// Reads it; nothing when it is not there or cannot be read as one.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, BlobIndexError> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(BlobIndexError::io("reading the marker of the blob index", path)(error)),
        }
    }
}

/// The files of this kind, in the order of their numbers.
pub(super) fn numbered(folder: &Path, suffix: &str) -> Result<Vec<(u64, PathBuf)>, BlobIndexError> {
    let failed = || BlobIndexError::io("listing the blob index", folder);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed())? {
        let path = entry.map_err(failed())?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(number) = name.strip_suffix(suffix).and_then(|digits| digits.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Removes files that a crash left unfinished.
pub(super) fn remove_unfinished(folder: &Path) -> Result<(), BlobIndexError> {
    let failed = || BlobIndexError::io("listing the blob index", folder);
    for entry in std::fs::read_dir(folder).map_err(failed())? {
        let path = entry.map_err(failed())?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.ends_with(durable_file::TEMPORARY_SUFFIX)) {
            remove_file(&path)?;
        }
    }
    Ok(())
}

/// Removes a file that may be gone already.
pub(super) fn remove_file(path: &Path) -> Result<(), BlobIndexError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(BlobIndexError::io("removing a file of the blob index", path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes everything but the lock.
pub(super) fn wipe(folder: &Path) -> Result<(), BlobIndexError> {
    // The marker first: what is half wiped must not be trusted.
    durable_file::remove(&folder.join("marker"))
        .map_err(BlobIndexError::io("removing the marker of the blob index", folder))?;
    for suffix in [".segment", ".log"] {
        for (_, path) in numbered(folder, suffix)? {
            remove_file(&path)?;
        }
    }
    remove_file(&folder.join("packs"))?;
    remove_file(&folder.join("removed"))
}

/// The file of this kind with this number.
pub(super) fn file_path(folder: &Path, number: u64, suffix: &str) -> PathBuf {
    folder.join(format!("{number:012}{suffix}"))
}
