//! The packs of a repository in a folder, as files.

use std::path::{Path, PathBuf};

/// The packs of a repository, the largest last: it holds contents, no folders.
///
/// # Panics
/// When the repository can not be read.
pub fn packs(repository: &Path) -> Vec<PathBuf> {
    let read = |folder: &Path| std::fs::read_dir(folder).expect("the repository is ours");
    let mut packs = Vec::new();
    for folder in read(&repository.join("data")) {
        for pack in read(&folder.expect("the repository is ours").path()) {
            let pack = pack.expect("the repository is ours");
            packs.push((pack.metadata().expect("nobody removes it").len(), pack.path()));
        }
    }
    packs.sort();
    packs.into_iter().map(|(_, path)| path).collect()
}

/// The largest of them.
///
/// # Panics
/// When there is none.
pub fn largest_pack(repository: &Path) -> PathBuf {
    packs(repository).pop().expect("a backup stored packs")
}
