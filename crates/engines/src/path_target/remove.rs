//! Removes what a restore made or a promotion kept, and nothing else.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use holdfast_model::ErrorCode;
use holdfast_model::restore::RestoredTarget;
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::{invalid, is_beside_name, is_kept_name, open_parent, resolve, with_suffix};
use crate::EngineError;

/// Removes the `kept` of each target that has one, and the `restored` of the others, with files beside them whose
/// names end in one of `sidecars`. What is gone already is fine.
///
/// A `kept` must lie beside `live` under a name that a promotion gives. A `restored` must lie beside `live` under a
/// name that a restore gives, or away from `live` and from every one of `sources`: neither in them nor around them.
/// No symbolic link is followed, on the way there or below.
///
/// # Errors
/// `HF-1012` when a target is not one of those: nothing is removed then. `HF-2014` when something cannot be removed.
pub(crate) fn remove_all(
    targets: &[RestoredTarget],
    sources: &[PathBuf],
    sidecars: &[&'static str],
) -> Result<(), EngineError> {
    let paths = targets.iter().map(|target| removable(target, sources)).collect::<Result<Vec<_>, _>>()?;
    for path in paths {
        for path in sidecars.iter().map(|suffix| with_suffix(&path, suffix)).chain([path.clone()]) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Removes one path that a restore of this moment made.
pub(crate) fn remove(path: &Path) -> Result<(), EngineError> {
    let failed = |error: Errno| {
        EngineError::new(ErrorCode::RestoreFailed, format!("{} cannot be removed", path.display()))
            .caused_by(std::io::Error::from(error))
    };
    if rustix::fs::lstat(path).err() == Some(Errno::NOENT) {
        return Ok(());
    }
    let (parent, name) = open_parent(path)?;
    remove_tree(&parent, name).map_err(failed)?;
    rustix::fs::fsync(&parent).map_err(failed)
}

/// Removes what lies in a folder that a restore of this moment filled; the folder itself was there before.
pub(crate) fn empty(path: &Path) -> Result<(), EngineError> {
    let failed = |error: Errno| {
        EngineError::new(ErrorCode::RestoreFailed, format!("{} cannot be emptied", path.display()))
            .caused_by(std::io::Error::from(error))
    };
    let (parent, name) = open_parent(path)?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let folder = rustix::fs::openat(&parent, name, flags, Mode::empty()).map_err(failed)?;
    for name in names_in(&folder).map_err(failed)? {
        remove_tree(&folder, OsStr::from_bytes(name.to_bytes())).map_err(failed)?;
    }
    Ok(())
}

/// The one path of a target that may be removed.
fn removable(target: &RestoredTarget, sources: &[PathBuf]) -> Result<PathBuf, EngineError> {
    let live = Path::new(&target.live);
    let live_name = live.file_name().unwrap_or_default();
    let path = PathBuf::from(target.kept.as_ref().unwrap_or(&target.restored));
    let name = path.file_name().unwrap_or_default();
    let lies_beside = path.parent().is_some() && path.parent() == live.parent();
    let is_right = match target.kept {
        Some(_) => lies_beside && is_kept_name(live_name, name),
        None if lies_beside && is_beside_name(live_name, name) => true,
        None => {
            let touches = |other: &Path| path.starts_with(other) || other.starts_with(&path);
            !touches(live)
                && sources
                    .iter()
                    .all(|source| !touches(source) && resolve(source).is_ok_and(|source| !touches(&source)))
        }
    };
    if is_right && path != live { Ok(path) } else { Err(invalid(&path, "is not one that a restore made")) }
}

/// One folder on the way down.
struct Level {
    folder: OwnedFd,
    names: Vec<std::ffi::CString>,
}

/// Removes `name` and all below it, through descriptors. One stays open for each level, so trees deeper than the
/// limit of open files are left, with an error.
fn remove_tree(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    let top = std::ffi::CString::new(name.as_encoded_bytes()).map_err(|_| Errno::INVAL)?;
    let mut levels = vec![Level { folder: rustix::io::fcntl_dupfd_cloexec(parent, 0)?, names: vec![top] }];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.last() else {
            levels.pop();
            // The folder whose content is gone is now the last name of the level above.
            if let Some(above) = levels.last_mut()
                && let Some(name) = above.names.pop()
            {
                rustix::fs::unlinkat(&above.folder, &name, AtFlags::REMOVEDIR)?;
            }
            continue;
        };
        match rustix::fs::unlinkat(&level.folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {
                level.names.pop();
            }
            // Linux says ISDIR, others say PERM.
            Err(Errno::ISDIR | Errno::PERM) => {
                let folder = open_to_empty(&level.folder, name)?;
                let names = names_in(&folder)?;
                levels.push(Level { folder, names });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Opens a folder with the permissions that emptying it takes: restored folders have those of the original.
fn open_to_empty(parent: &OwnedFd, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = rustix::fs::openat(parent, name, flags | OFlags::PATH, Mode::empty())?;
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&path)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        // A descriptor of this kind has no `fchmod`; its entry in /proc leads to the very folder, not to its name.
        let entry = format!("/proc/self/fd/{}", path.as_raw_fd());
        rustix::fs::chmod(entry, mode | Mode::RWXU)?;
    }
    rustix::fs::openat(&path, ".", flags | OFlags::RDONLY, Mode::empty())
}

fn names_in(folder: &OwnedFd) -> Result<Vec<std::ffi::CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn target(live: &Path, restored: &Path, kept: Option<&Path>) -> RestoredTarget {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        RestoredTarget { part: text(live), restored: text(restored), live: text(live), kept: kept.map(text) }
    }

    fn base() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("srv/app/sub")).unwrap();
        std::fs::write(base.join("srv/app/sub/file"), "live").unwrap();
        (folder, base)
    }

    #[test]
    fn what_lies_elsewhere_than_a_restore_puts_it_stays() {
        let (_guard, base) = base();
        let live = base.join("srv/app");
        let sources = [live.clone()];
        std::fs::create_dir(base.join("srv/app_before_T1x")).unwrap();
        let wrong = [
            target(&live, &live, None),
            target(&live, &base.join("srv"), None),
            target(&live, &live.join("sub"), None),
            target(&live, Path::new("/"), None),
            target(&base.join("other"), &live, None),
            target(&base.join("other"), &live.join("sub"), None),
            target(&live, &base.join("x"), Some(&live)),
            target(&live, &base.join("x"), Some(&base.join("srv/other_before_T1"))),
            target(&live, &base.join("x"), Some(&base.join("app_before_T1"))),
            target(&live, &base.join("x"), Some(&base.join("srv/app_before_T1/../app"))),
        ];
        for wrong in wrong {
            let error = remove_all(std::slice::from_ref(&wrong), &sources, &[]).unwrap_err();
            assert_eq!(error.code(), ErrorCode::PathInvalid, "{wrong:?}");
            assert!(error.to_string().ends_with(" is not one that a restore made"), "{error}");
        }
        assert_eq!(std::fs::read_to_string(live.join("sub/file")).unwrap(), "live");
    }

    #[test]
    fn restored_and_kept_trees_go_also_when_their_folders_are_read_only() {
        let (_guard, base) = base();
        let live = base.join("srv/app");
        let beside = base.join("srv/app_restored_1a2b3c4d");
        let kept = base.join("srv/app_before_T1");
        let into = base.join("elsewhere");
        for path in [&beside, &kept, &into] {
            std::fs::create_dir_all(path.join("closed/deep")).unwrap();
            std::fs::write(path.join("closed/deep/file"), "x").unwrap();
            std::fs::set_permissions(path.join("closed"), std::fs::Permissions::from_mode(0o000)).unwrap();
        }
        std::fs::write(with_suffix(&kept, "-wal"), "wal").unwrap();
        let targets = [
            target(&live, &beside, None),
            target(&live, &base.join("gone"), Some(&kept)),
            target(&live, &into, None),
        ];
        remove_all(&targets, std::slice::from_ref(&live), &["-wal"]).unwrap();
        let left: Vec<_> =
            std::fs::read_dir(base.join("srv")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["app"]);
        assert!(!into.exists());
        remove_all(&targets, &[live], &["-wal"]).expect("what is gone is fine");
    }

    #[test]
    fn links_lead_nowhere() {
        let (_guard, base) = base();
        let live = base.join("srv/app");
        let beside = base.join("srv/app_restored_1a2b3c4d");
        // A link below, to the live tree: the link goes, the tree stays.
        std::fs::create_dir(&beside).unwrap();
        symlink(&live, beside.join("link")).unwrap();
        remove_all(&[target(&live, &beside, None)], &[], &[]).unwrap();
        // A link in the place of the target itself.
        symlink(&live, &beside).unwrap();
        remove_all(&[target(&live, &beside, None)], &[], &[]).unwrap();
        assert!(std::fs::symlink_metadata(&beside).is_err());
        // A link on the way.
        symlink(base.join("srv"), base.join("way")).unwrap();
        let error =
            remove_all(&[target(&base.join("q"), &base.join("way/app"), None)], &[], &[]).unwrap_err();
        assert_eq!(error.code(), ErrorCode::PathInvalid);
        assert_eq!(std::fs::read_to_string(live.join("sub/file")).unwrap(), "live");
    }
}
