//! Where the caches of trees lie: one file for each source and repository, in `trees` of the agent's folder. They may
//! be deleted at any time; the next backup then reads the trees of its parent from the repository.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_model::ids::SourceName;
use holdfast_repository::id::RepositoryId;
use holdfast_runtime::{Clock, durable_file};

/// A cache that no backup has used for so long belongs to a source that is gone.
const UNUSED_MAX: Duration = Duration::from_secs(90 * 24 * 3600);

/// The folder of the caches.
#[derive(Debug, Clone)]
pub struct TreeCaches {
    folder: PathBuf,
}

impl TreeCaches {
    /// Opens the folder and removes what no backup will use again. Caches are never worth a failure: without the
    /// folder backups do without them.
    pub fn open(data_dir: &Path, clock: &dyn Clock) -> Self {
        let folder = data_dir.join("trees");
        let opened = durable_file::create_folders(&folder).and_then(|()| remove_unused(&folder, clock));
        if let Err(error) = opened {
            tracing::warn!(folder = %folder.display(), %error, "the caches of trees cannot be tidied up");
        }
        Self { folder }
    }

    /// Where the cache of a source in a repository lies.
    pub fn path(&self, repository: &RepositoryId, source: &SourceName) -> PathBuf {
        self.folder.join(format!("{source}@{repository}"))
    }
}

fn remove_unused(folder: &Path, clock: &dyn Clock) -> io::Result<()> {
    let now = clock.now().as_second();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let changed = entry.metadata()?.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let unused = u64::try_from(now).unwrap_or(0).saturating_sub(changed.as_secs());
        let is_leftover = !entry.file_name().to_string_lossy().contains('@');
        if is_leftover || unused > UNUSED_MAX.as_secs() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use holdfast_runtime::ManualClock;

    use super::*;

    #[test]
    fn leftovers_and_caches_without_use_are_removed() {
        let data_dir = tempfile::tempdir().unwrap();
        let now = ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap());
        let caches = TreeCaches::open(data_dir.path(), &now);
        let kept = caches.path(&RepositoryId::from_bytes([7; 32]), &SourceName::new("shop").unwrap());
        fs::write(&kept, b"kept").unwrap();
        let (leftover, old) = (caches.folder.join(".tmpAbCdEf"), caches.folder.join("gone@1234"));
        for (path, days) in [(&kept, 89), (&leftover, 0), (&old, 91)] {
            let file = fs::File::create(path).unwrap();
            let changed = now.now().as_second() - days * 24 * 3600;
            file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(changed.unsigned_abs())).unwrap();
        }
        TreeCaches::open(data_dir.path(), &now);
        assert_eq!([&kept, &leftover, &old].map(|path| path.exists()), [true, false, false]);
    }
}
