//! Errors of the disk that the agent keeps its own things on, each with the code whose page says what to do.

use std::io;

use holdfast_model::{ErrorCode, Failure};

/// The code of an error in the agent's own data folder.
pub(crate) fn error_code(error: &io::Error) -> ErrorCode {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::AgentSpoolFull,
        io::ErrorKind::PermissionDenied => ErrorCode::AgentFolderDenied,
        io::ErrorKind::ReadOnlyFilesystem => ErrorCode::AgentFolderReadOnly,
        io::ErrorKind::FileTooLarge => ErrorCode::AgentFileTooLarge,
        _ => ErrorCode::AgentDiskFailed,
    }
}

/// What could not be done there, and why.
pub(crate) fn failure(message: impl Into<String>, error: &io::Error) -> Failure {
    Failure::new(error_code(error), message).because(error.to_string())
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn each_error_of_a_disk_has_its_code() {
        let code = |errno: Errno| error_code(&errno.into()).to_string();
        assert_eq!([Errno::NOSPC, Errno::DQUOT].map(code), ["HF-5004", "HF-5004"]);
        assert_eq!([Errno::ACCESS, Errno::PERM].map(code), ["HF-5007", "HF-5007"]);
        assert_eq!(code(Errno::ROFS), "HF-5008");
        assert_eq!([Errno::IO, Errno::STALE, Errno::NODEV].map(code), ["HF-5009", "HF-5009", "HF-5009"]);
        assert_eq!(code(Errno::FBIG), "HF-5010");
    }

    #[test]
    fn a_failure_names_what_was_done_and_what_the_system_said() {
        let failure = failure("the scratch folder cannot be made", &Errno::ROFS.into());
        let text = "[HF-5008] the scratch folder cannot be made: Read-only file system (os error 30)";
        assert_eq!(failure.to_string(), text);
    }
}
