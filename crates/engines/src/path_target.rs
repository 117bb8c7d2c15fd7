//! Restores onto paths: where they go, how they are swapped in, how they are removed again.
//!
//! Paths of targets are resolved once, when a restore is planned: the folder that holds the target is named without
//! symbolic links from then on. Swapping and removing refuse a way that leads through one, so whoever puts a link in
//! the way meanwhile leads nothing astray.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use holdfast_model::ErrorCode;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::EngineError;
use crate::files::roots::normalise;

pub(crate) mod preview;
pub(crate) mod remove;
pub(crate) mod settle;
pub(crate) mod swap;

/// One path that a restore makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathTarget {
    /// What of the snapshot it is.
    pub(crate) part: String,
    /// Where it is restored to, resolved.
    pub(crate) restored: PathBuf,
    /// What it would replace, resolved.
    pub(crate) live: PathBuf,
}

impl PathTarget {
    /// As it is reported.
    ///
    /// # Errors
    /// `HF-1012` when a path is not UTF-8.
    pub(crate) fn to_model(&self) -> Result<holdfast_model::restore::RestoredTarget, EngineError> {
        Ok(holdfast_model::restore::RestoredTarget {
            part: self.part.clone(),
            restored: utf8(&self.restored)?,
            live: utf8(&self.live)?,
            kept: None,
        })
    }
}

fn utf8(path: &Path) -> Result<String, EngineError> {
    path.to_str().map(str::to_owned).ok_or_else(|| invalid(path, "is not UTF-8"))
}

fn invalid(path: &Path, why: &str) -> EngineError {
    EngineError::new(ErrorCode::PathInvalid, format!("the path {} {why}", path.display()))
}

/// The path with the folders on the way resolved, as far as they exist. Its last name is not followed.
///
/// # Errors
/// `HF-1012` when it is not absolute, has `..` in it, or has no last name.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, EngineError> {
    let path = normalise(path)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(invalid(&path, "is the root folder"));
    };
    let mut missing: Vec<&OsStr> = vec![name];
    let mut existing = parent;
    let mut resolved = loop {
        match (std::fs::canonicalize(existing), existing.parent(), existing.file_name()) {
            (Ok(resolved), _, _) => break resolved,
            (Err(_), Some(parent), Some(name)) => {
                missing.push(name);
                existing = parent;
            }
            (Err(_), _, _) => break PathBuf::from("/"),
        }
    };
    resolved.extend(missing.into_iter().rev());
    Ok(resolved)
}

/// Refuses a target outside the folders that the agent's configuration allows; without any, there is no restriction.
///
/// # Errors
/// `HF-5001`.
pub(crate) fn check_allowed(target: &Path, allowed: &[PathBuf]) -> Result<(), EngineError> {
    let is_allowed = allowed.is_empty()
        || allowed.iter().any(|folder| {
            folder == Path::new("/")
                || std::fs::canonicalize(folder)
                    .or_else(|_| resolve(folder))
                    .is_ok_and(|folder| target.starts_with(folder))
        });
    if is_allowed {
        return Ok(());
    }
    let message = format!("the agent's configuration does not allow restores to {}", target.display());
    Err(EngineError::new(ErrorCode::NotAllowedHere, message))
}

/// What lies at a target now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occupant {
    Nothing,
    EmptyFolder,
    Something,
}

pub(crate) fn occupant(target: &Path) -> Occupant {
    match rustix::fs::lstat(target) {
        Err(Errno::NOENT | Errno::NOTDIR) => Occupant::Nothing,
        Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() => {
            match std::fs::read_dir(target).map(|mut entries| entries.next().is_none()) {
                Ok(true) => Occupant::EmptyFolder,
                _ => Occupant::Something,
            }
        }
        _ => Occupant::Something,
    }
}

/// # Errors
/// `HF-2012` unless nothing, or an empty folder, lies there.
pub(crate) fn check_free(target: &Path) -> Result<(), EngineError> {
    match occupant(target) {
        Occupant::Nothing | Occupant::EmptyFolder => Ok(()),
        Occupant::Something => Err(EngineError::new(
            ErrorCode::TargetExists,
            format!("the restore target {} exists already", target.display()),
        )),
    }
}

/// The folder on the way to a target that exists already.
pub(crate) fn nearest_existing(target: &Path) -> &Path {
    target.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("/"))
}

/// Name of what is restored beside `name`: with `keep_extension`, `shop.db` becomes `shop_restored_1a2b3c4d.db`.
pub(crate) fn beside_name(name: &OsStr, short: &str, keep_extension: bool) -> OsString {
    let path = Path::new(name);
    let (stem, extension) = match (path.file_stem(), path.extension()) {
        (Some(stem), Some(extension)) if keep_extension => (stem, Some(extension)),
        _ => (name, None),
    };
    let mut beside = stem.to_owned();
    beside.push("_restored_");
    beside.push(short);
    if let Some(extension) = extension {
        beside.push(".");
        beside.push(extension);
    }
    beside
}

/// Whether `name` is one that [`beside_name`] makes of `live`.
fn is_beside_name(live: &OsStr, name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    let marker = b"_restored_";
    bytes.windows(marker.len()).enumerate().filter(|(_, window)| window == marker).any(|(at, _)| {
        let rest = &bytes[at + marker.len()..];
        let length = rest.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(rest.len());
        let short = str::from_utf8(&rest[..length]).expect("hexadecimal digits are UTF-8");
        !short.is_empty() && [true, false].into_iter().any(|keep| beside_name(live, short, keep) == name)
    })
}

/// Name under which the former content of `live` is kept.
///
/// # Errors
/// `HF-1012` when the stamp has other characters than letters, digits, `-` and `_`.
pub(crate) fn kept_name(live: &OsStr, stamp: &str) -> Result<OsString, EngineError> {
    if stamp.is_empty() || !stamp.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
        return Err(EngineError::new(ErrorCode::PathInvalid, format!("the stamp {stamp:?} is not valid")));
    }
    let mut name = live.to_owned();
    name.push("_before_");
    name.push(stamp);
    Ok(name)
}

fn is_kept_name(live: &OsStr, name: &OsStr) -> bool {
    name.as_bytes()
        .strip_prefix(live.as_bytes())
        .and_then(|rest| rest.strip_prefix(b"_before_"))
        .and_then(|stamp| str::from_utf8(stamp).ok())
        .is_some_and(|stamp| kept_name(live, stamp).is_ok())
}

/// Appends to the last name of a path.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut longer = path.as_os_str().to_owned();
    longer.push(suffix);
    longer.into()
}

/// The folder that a resolved path lies in, opened without passing a symbolic link, and its last name.
///
/// # Errors
/// `HF-1012` when the path is not one that [`resolve`] gives any more.
fn open_parent(path: &Path) -> Result<(OwnedFd, &OsStr), EngineError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(invalid(path, "is the root folder"));
    };
    if normalise(path)?.as_os_str() != path.as_os_str() {
        return Err(invalid(path, "is not in its simplest form"));
    }
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let open = || {
        let mut folder = rustix::fs::openat(CWD, "/", flags | OFlags::PATH, Mode::empty())?;
        for component in parent.components() {
            if let Component::Normal(name) = component {
                folder = rustix::fs::openat(&folder, name, flags | OFlags::PATH, Mode::empty())?;
            }
        }
        rustix::fs::openat(&folder, ".", flags | OFlags::RDONLY, Mode::empty())
    };
    match open() {
        Ok(folder) => Ok((folder, name)),
        Err(error @ (Errno::LOOP | Errno::NOTDIR)) => {
            Err(invalid(path, "leads through something that is not a folder")
                .caused_by(std::io::Error::from(error)))
        }
        Err(error) => Err(EngineError::new(
            ErrorCode::RestoreFailed,
            format!("the folder of {} cannot be opened", path.display()),
        )
        .caused_by(std::io::Error::from(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beside_are_recognised_and_others_are_not() {
        for (live, beside, plain) in [
            ("shop.db", "shop_restored_1a2b3c4d.db", "shop.db_restored_1a2b3c4d"),
            ("app", "app_restored_1a2b3c4d", "app_restored_1a2b3c4d"),
            (".hidden", ".hidden_restored_1a2b3c4d", ".hidden_restored_1a2b3c4d"),
            ("a_restored_b.x", "a_restored_b_restored_1a2b3c4d.x", "a_restored_b.x_restored_1a2b3c4d"),
        ] {
            let live = OsStr::new(live);
            assert_eq!(beside_name(live, "1a2b3c4d", true), beside);
            assert_eq!(beside_name(live, "1a2b3c4d", false), plain);
            assert!(is_beside_name(live, OsStr::new(beside)) && is_beside_name(live, OsStr::new(plain)));
            for other in ["app_restored_", "app_restored_xyz", "shop.db", "other_restored_1a2b3c4d"] {
                assert!(!is_beside_name(live, OsStr::new(other)), "{other}");
            }
        }
    }

    #[test]
    fn names_of_what_is_kept_are_recognised_and_others_are_not() {
        let live = OsStr::new("shop.db");
        let kept = kept_name(live, "20261121T081500Z").unwrap();
        assert_eq!(kept, "shop.db_before_20261121T081500Z");
        assert!(is_kept_name(live, &kept));
        for other in ["shop.db", "shop.db_before_", "shop.db_before_../x", "x_before_20261121T081500Z"] {
            assert!(!is_kept_name(live, OsStr::new(other)), "{other}");
        }
        assert_eq!(kept_name(live, "../x").unwrap_err().code(), ErrorCode::PathInvalid);
    }

    #[test]
    fn folders_on_the_way_are_resolved_and_the_last_name_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("real")).unwrap();
        std::os::unix::fs::symlink("real", base.join("link")).unwrap();
        std::os::unix::fs::symlink("real", base.join("real/last")).unwrap();
        assert_eq!(resolve(&base.join("link/last")).unwrap(), base.join("real/last"));
        assert_eq!(resolve(&base.join("link/new/deeper")).unwrap(), base.join("real/new/deeper"));
        assert_eq!(resolve(Path::new("/")).unwrap_err().to_string(), "the path / is the root folder");
        let error = open_parent(&base.join("link/last")).unwrap_err();
        assert_eq!(error.code(), ErrorCode::PathInvalid);
    }

    #[test]
    fn targets_outside_the_allowed_folders_are_refused_also_through_links() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        for name in ["allowed", "other"] {
            std::fs::create_dir(base.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("../other", base.join("allowed/link")).unwrap();
        let allowed = [base.join("allowed")];
        assert!(check_allowed(&resolve(&base.join("allowed/new")).unwrap(), &allowed).is_ok());
        assert!(check_allowed(&base.join("anything"), &[]).is_ok());
        for path in ["other/new", "allowed/link/new", "allowed2/new"] {
            let target = resolve(&base.join(path)).unwrap();
            let error = check_allowed(&target, &allowed).unwrap_err();
            assert_eq!(error.code(), ErrorCode::NotAllowedHere);
            assert_eq!(
                error.to_string(),
                format!("the agent's configuration does not allow restores to {}", target.display())
            );
        }
    }
}
