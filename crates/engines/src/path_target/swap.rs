//! Swaps what was restored into the place of what is live: all targets or none.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use holdfast_model::ErrorCode;
use holdfast_model::restore::RestoredTarget;
use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::{kept_name, open_parent, with_suffix};
use crate::EngineError;

/// One target, its folders opened and everything found as it must be.
struct Swap {
    target: RestoredTarget,
    restored: PathBuf,
    restored_folder: OwnedFd,
    restored_name: OsString,
    live_folder: OwnedFd,
    live_name: OsString,
    live_exists: bool,
    /// The name for the old content.
    kept_name: OsString,
    /// Suffixes of files that go with the live one.
    sidecars: Vec<&'static str>,
}

/// What was renamed, to be undone in reverse order.
enum Done<'a> {
    Moved { from: (&'a OwnedFd, OsString), to: (&'a OwnedFd, OsString) },
    Exchanged { a: (&'a OwnedFd, OsString), b: (&'a OwnedFd, OsString) },
}

/// Puts each `restored` in the place of its `live`, and what was there under `NAME_before_STAMP`, by renames. Files
/// beside the live one whose names end in one of `sidecars` go with it, before anything else is renamed.
///
/// The folders are flushed to the disk before it returns. What `check` finds when everything is renamed decides
/// whether it stays.
///
/// # Errors
/// After which nothing is renamed: `HF-2012` when the name to keep the old under is taken, `HF-2014` when a target is
/// gone or lies on another file system than what it replaces, `HF-2017` when one is in use, and those of `check`.
pub(crate) fn swap_all(
    targets: &[RestoredTarget],
    stamp: &str,
    sidecars: &[&'static str],
    check: impl FnOnce(&[RestoredTarget]) -> Result<(), EngineError>,
) -> Result<Vec<RestoredTarget>, EngineError> {
    let swaps =
        targets.iter().map(|target| prepare(target, stamp, sidecars)).collect::<Result<Vec<_>, _>>()?;
    let promoted: Vec<RestoredTarget> = swaps.iter().map(|swap| swap.target.clone()).collect();
    // What takes the place of live data must be on the disk before its name is.
    for swap in &swaps {
        rustix::fs::syncfs(&swap.restored_folder).map_err(|error| failed(&swap.restored, error))?;
    }
    let mut done = Vec::new();
    let outcome = swaps
        .iter()
        .try_for_each(|swap| swap_one(swap, &mut done))
        .and_then(|()| swaps.iter().try_for_each(flush))
        .and_then(|()| check(&promoted));
    match outcome {
        Ok(()) => Ok(promoted),
        Err(error) => Err(undo(done, error)),
    }
}

fn prepare(target: &RestoredTarget, stamp: &str, sidecars: &[&'static str]) -> Result<Swap, EngineError> {
    let (restored, live) = (PathBuf::from(&target.restored), PathBuf::from(&target.live));
    if restored.starts_with(&live) || live.starts_with(&restored) {
        return Err(EngineError::new(
            ErrorCode::PathInvalid,
            format!("{} cannot take the place of {}", target.restored, target.live),
        ));
    }
    let (restored_folder, restored_name) = open_parent(&restored)?;
    let (live_folder, live_name) = open_parent(&live)?;
    if !exists(&restored_folder, restored_name, &restored)? {
        return Err(gone(&restored));
    }
    let kept_name = kept_name(live_name, stamp)?;
    let kept_path = live.with_file_name(&kept_name);
    let mut taken = vec![(kept_name.clone(), kept_path.clone())];
    let mut present = Vec::new();
    for &suffix in sidecars {
        let mut name = live_name.to_owned();
        name.push(suffix);
        if exists(&live_folder, &name, &with_suffix(&live, suffix))? {
            present.push(suffix);
        }
        let mut name = kept_name.clone();
        name.push(suffix);
        taken.push((name, with_suffix(&kept_path, suffix)));
    }
    for (name, path) in &taken {
        if exists(&live_folder, name, path)? {
            return Err(EngineError::new(
                ErrorCode::TargetExists,
                format!("{} exists already", path.display()),
            ));
        }
    }
    let live_exists = exists(&live_folder, live_name, &live)?;
    let mut target = target.clone();
    // A write-ahead log whose database is gone must not be taken for the log of the new one.
    target.kept = if live_exists || !present.is_empty() { Some(super::utf8(&kept_path)?) } else { None };
    Ok(Swap {
        target,
        restored_name: restored_name.to_owned(),
        live_name: live_name.to_owned(),
        restored,
        restored_folder,
        live_folder,
        live_exists,
        kept_name,
        sidecars: present,
    })
}

fn exists(folder: &OwnedFd, name: &OsStr, path: &Path) -> Result<bool, EngineError> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(failed(path, error)),
    }
}

fn swap_one<'a>(swap: &'a Swap, done: &mut Vec<Done<'a>>) -> Result<(), EngineError> {
    let restored = (&swap.restored_folder, swap.restored_name.clone());
    let live = (&swap.live_folder, swap.live_name.clone());
    let path = Path::new(&swap.target.live);
    for suffix in &swap.sidecars {
        let named = |name: &OsStr| {
            let mut name = name.to_owned();
            name.push(suffix);
            (&swap.live_folder, name)
        };
        rename(named(&swap.live_name), named(&swap.kept_name), done).map_err(|error| failed(path, error))?;
    }
    if !swap.live_exists {
        return rename(restored, live, done).map_err(|error| failed(&swap.restored, error));
    }
    let kept = (&swap.live_folder, swap.kept_name.clone());
    // An exchange leaves no moment without a live one. Not every file system can.
    match rustix::fs::renameat_with(restored.0, &restored.1, live.0, &live.1, RenameFlags::EXCHANGE) {
        Ok(()) => {
            done.push(Done::Exchanged { a: restored.clone(), b: live });
            rename(restored, kept, done)
        }
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            rename(live.clone(), kept, done).and_then(|()| rename(restored, live, done))
        }
        Err(error) => Err(error),
    }
    .map_err(|error| failed(path, error))
}

/// Renames without replacing anything.
fn rename<'a>(
    from: (&'a OwnedFd, OsString),
    to: (&'a OwnedFd, OsString),
    done: &mut Vec<Done<'a>>,
) -> Result<(), Errno> {
    match rustix::fs::renameat_with(from.0, &from.1, to.0, &to.1, RenameFlags::NOREPLACE) {
        // That nothing is there was looked at before.
        Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(from.0, &from.1, to.0, &to.1)?,
        outcome => outcome?,
    }
    done.push(Done::Moved { from, to });
    Ok(())
}

fn flush(swap: &Swap) -> Result<(), EngineError> {
    for folder in [&swap.restored_folder, &swap.live_folder] {
        rustix::fs::fsync(folder).map_err(|error| failed(Path::new(&swap.target.live), error))?;
    }
    Ok(())
}

/// Undoes everything; names in the error what could not be undone.
fn undo(done: Vec<Done<'_>>, error: EngineError) -> EngineError {
    let mut stuck = Vec::new();
    for step in done.into_iter().rev() {
        let (outcome, name) = match step {
            Done::Moved { from, to } => {
                (rustix::fs::renameat_with(to.0, &to.1, from.0, &from.1, RenameFlags::NOREPLACE), to.1)
            }
            Done::Exchanged { a, b } => {
                (rustix::fs::renameat_with(a.0, &a.1, b.0, &b.1, RenameFlags::EXCHANGE), b.1)
            }
        };
        if let Err(errno) = outcome {
            stuck.push(format!("{}: {errno}", name.display()));
        }
    }
    if stuck.is_empty() {
        return error;
    }
    EngineError::new(
        ErrorCode::RestoreFailed,
        format!("the swap failed and could not be undone ({})", stuck.join("; ")),
    )
    .caused_by(error)
}

fn gone(path: &Path) -> EngineError {
    EngineError::new(ErrorCode::RestoreFailed, format!("the restored {} is gone", path.display()))
}

fn failed(path: &Path, error: Errno) -> EngineError {
    let path = path.display();
    match error {
        Errno::BUSY => {
            EngineError::new(ErrorCode::TargetInUse, format!("{path} is in use, or a mount point"))
        }
        Errno::NOENT => EngineError::new(ErrorCode::RestoreFailed, format!("{path} is gone")),
        Errno::XDEV => EngineError::new(
            ErrorCode::RestoreFailed,
            format!("what was restored lies on another file system than {path}"),
        ),
        _ => EngineError::new(ErrorCode::RestoreFailed, format!("{path} cannot be swapped")),
    }
    .caused_by(std::io::Error::from(error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn target(folder: &Path, live: &str, restored: &str) -> RestoredTarget {
        RestoredTarget {
            part: live.to_owned(),
            restored: folder.join(restored).to_str().unwrap().to_owned(),
            live: folder.join(live).to_str().unwrap().to_owned(),
            kept: None,
        }
    }

    fn folder_with(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        for (name, content) in files {
            std::fs::write(base.join(name), content).unwrap();
        }
        (folder, base)
    }

    fn contents(folder: &Path) -> Vec<(String, String)> {
        let mut found: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                let content = std::fs::read_to_string(entry.path()).unwrap_or_else(|_| "folder".into());
                (entry.file_name().into_string().unwrap(), content)
            })
            .collect();
        found.sort();
        found
    }

    fn swap(targets: &[RestoredTarget]) -> Result<Vec<RestoredTarget>, EngineError> {
        swap_all(targets, "T1", &["-wal"], |_| Ok(()))
    }

    #[test]
    fn the_old_is_kept_and_its_sidecar_goes_with_it() {
        let (_guard, base) = folder_with(&[
            ("a", "old"),
            ("a-wal", "wal"),
            ("a_r", "new"),
            ("b_r", "new b"),
            ("c-wal", "stale"),
            ("c_r", "new c"),
        ]);
        let targets = [target(&base, "a", "a_r"), target(&base, "b", "b_r"), target(&base, "c", "c_r")];
        let promoted = swap(&targets).unwrap();
        let expected = [
            ("a", "new"),
            ("a_before_T1", "old"),
            ("a_before_T1-wal", "wal"),
            ("b", "new b"),
            ("c", "new c"),
            ("c_before_T1-wal", "stale"),
        ];
        assert_eq!(contents(&base), expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
        assert_eq!(promoted[0].kept.as_deref(), base.join("a_before_T1").to_str());
        assert_eq!(promoted[1].kept, None);
    }

    /// A folder on another file system than this one, wherever temporary folders of this machine lie.
    fn on_another_file_system(folder: &Path) -> tempfile::TempDir {
        let device = |path: &Path| std::fs::metadata(path).unwrap().dev();
        let folders = ["/dev/shm", "/var/tmp", "/tmp"].map(tempfile::tempdir_in);
        let mut others = folders.into_iter().flatten().filter(|other| device(other.path()) != device(folder));
        others.next().expect("the machine has a second file system to write to")
    }

    #[test]
    fn when_one_target_fails_none_is_swapped() {
        let (_guard, base) = folder_with(&[("a", "old"), ("a-wal", "wal"), ("a_r", "new"), ("b", "old b")]);
        let before = contents(&base);
        // Another file system: found out only when the rename is tried, after the first target was swapped.
        let elsewhere = on_another_file_system(&base);
        std::fs::write(elsewhere.path().join("b_r"), "new b").unwrap();
        let mut far = target(&base, "b", "b_r");
        far.restored = elsewhere.path().join("b_r").to_str().unwrap().to_owned();
        let error = swap(&[target(&base, "a", "a_r"), far]).unwrap_err();
        assert_eq!(error.code(), ErrorCode::RestoreFailed);
        assert_eq!(
            error.to_string(),
            format!("what was restored lies on another file system than {}", base.join("b").display())
        );
        assert_eq!(contents(&base), before);
    }

    #[test]
    fn what_the_last_check_refuses_is_undone() {
        let (_guard, base) = folder_with(&[("a", "old"), ("a_r", "new")]);
        let before = contents(&base);
        let refuse = |_: &[RestoredTarget]| Err(EngineError::new(ErrorCode::TargetInUse, "refused"));
        let error = swap_all(&[target(&base, "a", "a_r")], "T1", &[], refuse).unwrap_err();
        assert_eq!(error.to_string(), "refused");
        assert_eq!(contents(&base), before);
    }

    #[test]
    fn a_name_that_is_taken_or_a_target_that_is_gone_stops_everything() {
        let (_guard, base) = folder_with(&[("a", "old"), ("a_r", "new"), ("a_before_T1", "older")]);
        let before = contents(&base);
        let error = swap(&[target(&base, "a", "a_r")]).unwrap_err();
        let message = format!("{} exists already", base.join("a_before_T1").display());
        assert_eq!((error.code(), error.to_string()), (ErrorCode::TargetExists, message));
        let error = swap(&[target(&base, "a", "missing")]).unwrap_err();
        let message = format!("the restored {} is gone", base.join("missing").display());
        assert_eq!((error.code(), error.to_string()), (ErrorCode::RestoreFailed, message));
        let error = swap(&[target(&base, "a", "a/inside")]).unwrap_err();
        assert_eq!(error.code(), ErrorCode::PathInvalid);
        assert_eq!(contents(&base), before);
    }
}
