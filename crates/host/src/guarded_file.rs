//! Files of which it matters who else may read or write them: secrets, and what says what a process may do.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use holdfast_model::ErrorCode;
use holdfast_model::text::shell_word;
use rustix::fs::StatVfsMountFlags;

use crate::HostError;

/// Who may have a hand in a file. Symbolic links are followed: what they lead to is what is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// It belongs to this process's user or to root, and nobody else may use it: secrets.
    Owner,
    /// It belongs to this process's user or to root, and not everybody may write it: what a process may do.
    Configuration,
    /// Not everybody may write it: what somebody else keeps up to date.
    Shared,
    /// Somebody else sees to it, as systemd to its credentials.
    None,
}

/// Why a file is not taken.
#[derive(Debug)]
pub(crate) struct Refused {
    /// A part of a sentence about the file.
    pub(crate) why: String,
    /// The cause.
    pub(crate) source: Option<io::Error>,
    /// A command against it.
    pub(crate) fix: Option<String>,
}

impl Refused {
    fn because(why: impl Into<String>) -> Self {
        Self { why: why.into(), source: None, fix: None }
    }

    fn by(why: &str, source: io::Error) -> Self {
        Self { source: Some(source), ..Self::because(why) }
    }
}

/// The text of a file, of `limit` bytes at most.
///
/// # Errors
/// `HF-1002` with the reason, and a command where one helps.
pub fn read_text(path: &Path, guard: Guard, limit: usize) -> Result<String, HostError> {
    let failed = || HostError::new(ErrorCode::FileInvalid, format!("{} cannot be read", path.display()));
    let bytes = read(path, guard, limit).map_err(|refused| {
        let error = match (refused.source, refused.why) {
            (Some(source), _) => failed().caused_by(source),
            (None, why) => failed().caused_by(why),
        };
        refused.fix.into_iter().fold(error, HostError::then)
    })?;
    if bytes.len() > limit {
        return Err(failed().caused_by(format!("it has more than {limit} bytes")));
    }
    let not_text = "it is not UTF-8 text; save it as UTF-8";
    String::from_utf8(bytes).map_err(|_| failed().caused_by(not_text))
}

/// That not everybody may write a folder: they could put files into it, and others in the place of those that are there.
///
/// # Errors
/// `HF-1002` with the reason, and a command where one helps.
pub fn check_folder(path: &Path) -> Result<(), HostError> {
    let failed = || HostError::new(ErrorCode::FileInvalid, format!("{} cannot be read", path.display()));
    let metadata = std::fs::metadata(path).map_err(|error| failed().caused_by(error))?;
    // What is mounted so that it can only be read has its mode from whoever fills it.
    let is_read_only =
        rustix::fs::statvfs(path).is_ok_and(|of| of.f_flag.contains(StatVfsMountFlags::RDONLY));
    if is_read_only {
        return Ok(());
    }
    check(Guard::Shared, path, metadata.mode() & 0o7777, metadata.uid())
        .map_err(|refused| refused.fix.into_iter().fold(failed().caused_by(refused.why), HostError::then))
}

/// The bytes of a file, one more than `limit` at most.
pub(crate) fn read(path: &Path, guard: Guard, limit: usize) -> Result<Vec<u8>, Refused> {
    // Without NONBLOCK, opening a pipe that somebody put in its place would never return.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).expect("open flags fit an int");
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)
        .map_err(|error| Refused::by("it cannot be opened", error))?;
    let metadata = file.metadata().map_err(|error| Refused::by("it cannot be looked at", error))?;
    if !metadata.is_file() {
        return Err(Refused::because("it is not a regular file"));
    }
    check(guard, path, metadata.mode() & 0o7777, metadata.uid())?;
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Refused::by("it cannot be read", error))?;
    Ok(bytes)
}

fn check(guard: Guard, path: &Path, mode: u32, owner: u32) -> Result<(), Refused> {
    let refused = |why: String, fix: &str| {
        Err(Refused {
            fix: Some(format!("chmod {fix} {}", shell_word(&path.display().to_string()))),
            ..Refused::because(why)
        })
    };
    match guard {
        Guard::Owner if mode & 0o077 != 0 => {
            return refused(format!("others than its owner may use it (mode {mode:04o})"), "600");
        }
        Guard::Configuration | Guard::Shared if mode & 0o002 != 0 => {
            return refused(format!("everybody may write it (mode {mode:04o})"), "o-w");
        }
        _ => {}
    }
    let needs_owner = matches!(guard, Guard::Owner | Guard::Configuration);
    if needs_owner && owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(Refused::because(format!("it belongs to another user (uid {owner})")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use holdfast_model::Failure;

    use super::*;

    fn file(folder: &Path, content: &[u8], mode: u32) -> PathBuf {
        let path = folder.join("agent.yaml");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn refused(path: &Path, guard: Guard) -> Failure {
        let failure = Failure::from(read_text(path, guard, 64).unwrap_err());
        assert_eq!(failure.code, ErrorCode::FileInvalid);
        assert_eq!(failure.message, format!("{} cannot be read", path.display()));
        failure
    }

    #[test]
    fn what_everybody_may_write_says_nothing_of_what_a_process_may_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), b"api: holdfast/v1\n", 0o666);
        for guard in [Guard::Configuration, Guard::Shared] {
            let failure = refused(&path, guard);
            assert_eq!(failure.why, ["everybody may write it (mode 0666)"]);
            assert_eq!(failure.next, [format!("chmod o-w {}", path.display())]);
        }
        for mode in [0o600, 0o644, 0o664, 0o640] {
            let path = file(folder.path(), b"api: holdfast/v1\n", mode);
            assert_eq!(read_text(&path, Guard::Configuration, 64).unwrap(), "api: holdfast/v1\n");
        }
    }

    #[test]
    fn a_folder_that_everybody_may_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let set = |mode: u32| {
            std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            check_folder(folder.path())
        };
        for mode in [0o777, 0o1777, 0o702] {
            let failure = Failure::from(set(mode).unwrap_err());
            assert_eq!(failure.code, ErrorCode::FileInvalid);
            assert_eq!(failure.message, format!("{} cannot be read", folder.path().display()));
            assert_eq!(failure.why, [format!("everybody may write it (mode {mode:04o})")]);
            assert_eq!(failure.next, [format!("chmod o-w {}", folder.path().display())]);
        }
        for mode in [0o700, 0o755, 0o2775] {
            set(mode).unwrap();
        }
        let missing = Failure::from(check_folder(&folder.path().join("missing")).unwrap_err());
        assert_eq!(missing.why, ["No such file or directory (os error 2)"]);
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        let path = Path::new("/etc/holdfast/agent.yaml");
        let other = rustix::process::geteuid().as_raw() + 1;
        for guard in [Guard::Configuration, Guard::Owner] {
            let error = check(guard, path, 0o600, other).unwrap_err();
            assert_eq!(error.why, format!("it belongs to another user (uid {other})"));
            check(guard, path, 0o600, 0).unwrap();
            check(guard, path, 0o600, other - 1).unwrap();
        }
        check(Guard::Shared, path, 0o644, other).unwrap();
        check(Guard::None, path, 0o666, other).unwrap();
    }

    #[test]
    fn what_is_no_text_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let utf16: Vec<u8> = "\u{feff}api: holdfast/v1".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for content in [&utf16[..], b"api: \xe4"] {
            let failure = refused(&file(folder.path(), content, 0o600), Guard::Configuration);
            assert_eq!(failure.why, ["it is not UTF-8 text; save it as UTF-8"]);
        }
        let failure = refused(&file(folder.path(), &[b'x'; 65], 0o600), Guard::Configuration);
        assert_eq!(failure.why, ["it has more than 64 bytes"]);
        assert_eq!(refused(folder.path(), Guard::Shared).why, ["it is not a regular file"]);
        let missing = refused(&folder.path().join("missing"), Guard::Shared);
        assert_eq!(missing.why, ["No such file or directory (os error 2)"]);
    }
}
