//! Brings a swap to an end whose process died: all targets are swapped, or none.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::Path;

use holdfast_model::ErrorCode;
use holdfast_model::restore::RestoredTarget;
use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::{kept_name, open_parent, utf8};
use crate::{EngineError, blocking};

/// What tells restored data from any other on this host, whatever its name is: device and inode.
///
/// # Errors
/// When it is not there.
pub(crate) fn mark(target: &RestoredTarget) -> Result<String, EngineError> {
    let path = Path::new(&target.restored);
    let (folder, name) = open_parent(path)?;
    identity(&folder, name).map_err(|error| failed(path, error))?.ok_or_else(|| failed(path, Errno::NOENT))
}

/// The marks of all targets, found on a thread that may block.
///
/// # Errors
/// As [`mark`].
pub(crate) async fn mark_all(targets: &[RestoredTarget]) -> Result<Vec<String>, EngineError> {
    let targets = targets.to_vec();
    blocking(move || targets.iter().map(mark).collect()).await
}

fn identity(folder: &OwnedFd, name: &OsStr) -> Result<Option<String>, Errno> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(format!("{}:{}", stat.st_dev, stat.st_ino))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// One target of a swap that was cut, as it is found.
struct Found<'a> {
    target: &'a RestoredTarget,
    restored: Place<'a>,
    live: Place<'a>,
    kept: Place<'a>,
    /// The restored data has the live name.
    is_swapped: bool,
}

struct Place<'a> {
    path: &'a Path,
    folder: OwnedFd,
    name: OsString,
}

impl Place<'_> {
    fn exists(&self) -> Result<bool, EngineError> {
        Ok(identity(&self.folder, &self.name).map_err(|error| failed(self.path, error))?.is_some())
    }

    fn with(&self, suffix: &str) -> Result<Self, EngineError> {
        let mut name = self.name.clone();
        name.push(suffix);
        let folder = rustix::io::fcntl_dupfd_cloexec(&self.folder, 0);
        Ok(Self { path: self.path, folder: folder.map_err(|error| failed(self.path, error))?, name })
    }

    fn rename(&self, to: &Place<'_>, flags: RenameFlags) -> Result<(), EngineError> {
        rustix::fs::renameat_with(&self.folder, &self.name, &to.folder, &to.name, flags)
            .map_err(|error| failed(self.path, error))
    }
}

/// Finds out how far [`super::swap::swap_all`] got, and ends it: forwards when every target was swapped, backwards
/// otherwise. Returns the targets when they are swapped.
///
/// # Errors
/// When what is found is not what a swap leaves behind, or cannot be renamed.
pub(crate) async fn settle_all(
    targets: &[RestoredTarget],
    marks: &[String],
    stamp: &str,
    sidecars: &'static [&'static str],
) -> Result<Option<Vec<RestoredTarget>>, EngineError> {
    let (targets, marks, stamp) = (targets.to_vec(), marks.to_vec(), stamp.to_owned());
    blocking(move || settle_blocking(&targets, &marks, &stamp, sidecars)).await
}

fn settle_blocking(
    targets: &[RestoredTarget],
    marks: &[String],
    stamp: &str,
    sidecars: &[&'static str],
) -> Result<Option<Vec<RestoredTarget>>, EngineError> {
    let found = targets.iter().zip(marks).map(|(target, mark)| find(target, mark, stamp));
    let found = found.collect::<Result<Vec<_>, _>>()?;
    let outcome = if found.iter().all(|found| found.is_swapped) {
        found.iter().map(|found| finish(found, sidecars)).collect::<Result<Vec<_>, _>>().map(Some)
    } else {
        found.iter().try_for_each(|found| take_back(found, sidecars)).map(|()| None)
    };
    for place in found.iter().flat_map(|found| [&found.restored, &found.live]) {
        rustix::fs::fsync(&place.folder).map_err(|error| failed(place.path, error))?;
    }
    outcome
}

fn find<'a>(target: &'a RestoredTarget, mark: &str, stamp: &str) -> Result<Found<'a>, EngineError> {
    let place = |path: &'a str| -> Result<Place<'a>, EngineError> {
        let path = Path::new(path);
        let (folder, name) = open_parent(path)?;
        Ok(Place { path, folder, name: name.to_owned() })
    };
    let (restored, live) = (place(&target.restored)?, place(&target.live)?);
    let kept = Place { name: kept_name(&live.name, stamp)?, ..place(&target.live)? };
    let marked = |place: &Place<'_>| {
        let found = identity(&place.folder, &place.name).map_err(|error| failed(place.path, error));
        Ok::<_, EngineError>(found?.as_deref() == Some(mark))
    };
    let is_swapped = marked(&live)?;
    if !is_swapped && !marked(&restored)? {
        let message = format!("neither {} nor {} is what was restored", target.live, target.restored);
        return Err(EngineError::new(ErrorCode::RestoreFailed, message));
    }
    Ok(Found { target, restored, live, kept, is_swapped })
}

/// Gives the former data its name, when the swap ended before that.
fn finish(found: &Found<'_>, sidecars: &[&'static str]) -> Result<RestoredTarget, EngineError> {
    if found.restored.exists()? {
        found.restored.rename(&found.kept, RenameFlags::NOREPLACE)?;
    }
    let mut is_kept = found.kept.exists()?;
    for suffix in sidecars {
        is_kept |= found.kept.with(suffix)?.exists()?;
    }
    let path = Path::new(&found.target.live).with_file_name(&found.kept.name);
    let kept = if is_kept { Some(utf8(&path)?) } else { None };
    Ok(RestoredTarget { kept, ..found.target.clone() })
}

/// Gives everything the name that it had before.
fn take_back(found: &Found<'_>, sidecars: &[&'static str]) -> Result<(), EngineError> {
    if found.is_swapped {
        let former = if found.restored.exists()? { &found.restored } else { &found.kept };
        if former.exists()? {
            former.rename(&found.live, RenameFlags::EXCHANGE)?;
            if former.name == found.kept.name {
                found.kept.rename(&found.restored, RenameFlags::NOREPLACE)?;
            }
        } else {
            found.live.rename(&found.restored, RenameFlags::NOREPLACE)?;
        }
    } else if !found.live.exists()? && found.kept.exists()? {
        found.kept.rename(&found.live, RenameFlags::NOREPLACE)?;
    }
    for suffix in sidecars {
        let kept = found.kept.with(suffix)?;
        if kept.exists()? {
            kept.rename(&found.live.with(suffix)?, RenameFlags::NOREPLACE)?;
        }
    }
    Ok(())
}

fn failed(path: &Path, error: Errno) -> EngineError {
    let message = format!("the swap of {} was cut and cannot be brought to an end", path.display());
    EngineError::new(ErrorCode::RestoreFailed, message).caused_by(std::io::Error::from(error))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;

    const SIDECARS: [&str; 1] = ["-wal"];

    /// Two targets `a` and `b` of which `b` was not there before; `a` has a sidecar.
    fn scene() -> (tempfile::TempDir, PathBuf, [RestoredTarget; 2], Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        for (name, text) in [("a", "old a"), ("a-wal", "wal"), ("a_r", "new a"), ("b_r", "new b")] {
            std::fs::write(base.join(name), text).unwrap();
        }
        let target = |live: &str, restored: &str| RestoredTarget {
            part: live.to_owned(),
            restored: base.join(restored).to_str().unwrap().to_owned(),
            live: base.join(live).to_str().unwrap().to_owned(),
            kept: None,
        };
        let targets = [target("a", "a_r"), target("b", "b_r")];
        let marks = targets.iter().map(|target| mark(target).unwrap()).collect();
        (folder, base, targets, marks)
    }

    fn contents(folder: &Path) -> BTreeMap<String, String> {
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        files
            .map(|file| {
                (file.file_name().into_string().unwrap(), std::fs::read_to_string(file.path()).unwrap())
            })
            .collect()
    }

    fn exchange(base: &Path, one: &str, other: &str) {
        let cwd = rustix::fs::CWD;
        rustix::fs::renameat_with(cwd, base.join(one), cwd, base.join(other), RenameFlags::EXCHANGE).unwrap();
    }

    /// Takes the steps of a swap, as many as are given: with and without an exchange.
    fn steps(base: &Path, exchanges: bool, count: usize) {
        let rename =
            |from: &str, to: &str| std::fs::rename(base.join(from), base.join(to)).expect("a step of a swap");
        for step in 0..count {
            match (step, exchanges) {
                (0, _) => rename("a-wal", "a_before_T1-wal"),
                (1, true) => exchange(base, "a", "a_r"),
                (1, false) => rename("a", "a_before_T1"),
                (2, true) => rename("a_r", "a_before_T1"),
                (2, false) => rename("a_r", "a"),
                _ => rename("b_r", "b"),
            }
        }
    }

    #[test]
    fn a_swap_that_was_cut_at_any_step_is_taken_back_and_one_that_was_done_stays() {
        for exchanges in [true, false] {
            for count in 0..=3 {
                let (_guard, base, targets, marks) = scene();
                let before = contents(&base);
                steps(&base, exchanges, count);
                let settled = settle_blocking(&targets, &marks, "T1", &SIDECARS).unwrap();
                assert_eq!((settled, contents(&base)), (None, before), "{count} steps, {exchanges}");
            }
            let (_guard, base, targets, marks) = scene();
            steps(&base, exchanges, 4);
            let after = contents(&base);
            for _ in 0..2 {
                let settled = settle_blocking(&targets, &marks, "T1", &SIDECARS).unwrap().unwrap();
                assert_eq!(settled[0].kept.as_deref(), base.join("a_before_T1").to_str());
                assert_eq!((settled[1].kept.as_ref(), contents(&base)), (None, after.clone()));
            }
        }
    }

    #[test]
    fn the_former_data_gets_its_name_when_the_last_swap_was_cut_before_that() {
        let (_guard, base, targets, marks) = scene();
        exchange(&base, "a", "a_r");
        let settled = settle_blocking(&targets[..1], &marks[..1], "T1", &[]).unwrap().unwrap();
        assert_eq!(settled[0].kept.as_deref(), base.join("a_before_T1").to_str());
        let found = contents(&base);
        assert_eq!((found["a"].as_str(), found["a_before_T1"].as_str()), ("new a", "old a"));
        assert!(!found.contains_key("a_r"));
    }

    #[test]
    fn what_no_swap_leaves_behind_is_not_touched() {
        let (_guard, base, targets, marks) = scene();
        std::fs::rename(base.join("a_r"), base.join("moved")).unwrap();
        let before = contents(&base);
        let error = settle_blocking(&targets, &marks, "T1", &SIDECARS).unwrap_err();
        let message = format!("neither {0}/a nor {0}/a_r is what was restored", base.display());
        assert_eq!((error.code(), error.to_string()), (ErrorCode::RestoreFailed, message));
        assert_eq!(contents(&base), before);
    }
}
