//! The error of the storage.

use std::error::Error;
use std::fmt;
use std::io;

use holdfast_model::ErrorCode;
use rustix::io::Errno;

use crate::format::ObjectName;

/// What kind of failure a [`StorageError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StorageErrorKind {
    /// There is no such object.
    NotFound,
    /// The name is taken and is never overwritten.
    AlreadyExists,
    /// The credentials or the permissions do not suffice.
    Denied,
    /// The storage did not answer, or its folder is not there.
    Unreachable,
    /// No space, or a quota is used up.
    Full,
    /// The bytes were written, but making them durable failed. Never tried again on the same file.
    FsyncFailed,
    /// The object is not what it must be: too short, too long.
    Damaged,
    /// Anything else.
    Other,
}

/// A storage could not do what it was asked.
#[derive(Debug)]
pub struct StorageError {
    kind: StorageErrorKind,
    object: Option<Box<ObjectName>>,
    detail: Option<String>,
    transient: bool,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl StorageError {
    /// An error of a kind, with nothing else known yet.
    pub fn new(kind: StorageErrorKind) -> Self {
        let transient = kind == StorageErrorKind::Unreachable;
        Self { kind, object: None, detail: None, transient, source: None }
    }

    /// Names the object that it concerns.
    #[must_use]
    pub fn object(mut self, name: &ObjectName) -> Self {
        self.object = Some(Box::new(*name));
        self
    }

    /// Adds a particular, as half a sentence.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says whether trying again later may help, where the kind alone does not tell.
    #[must_use]
    pub fn transient(mut self, transient: bool) -> Self {
        self.transient = transient;
        self
    }

    /// Takes the error of a file system call; the kind follows the error number.
    pub fn from_io(error: io::Error) -> Self {
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        let kind = match errno {
            Some(Errno::NOENT) => StorageErrorKind::NotFound,
            Some(Errno::EXIST) => StorageErrorKind::AlreadyExists,
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => StorageErrorKind::Full,
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => StorageErrorKind::Denied,
            Some(
                Errno::STALE
                | Errno::NOTCONN
                | Errno::TIMEDOUT
                | Errno::HOSTUNREACH
                | Errno::HOSTDOWN
                | Errno::NETUNREACH
                | Errno::CONNREFUSED
                | Errno::CONNRESET,
            ) => StorageErrorKind::Unreachable,
            _ => StorageErrorKind::Other,
        };
        let busy = matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN));
        Self::new(kind).transient(busy || kind == StorageErrorKind::Unreachable).caused_by(error)
    }

    /// The kind of failure.
    pub fn kind(&self) -> StorageErrorKind {
        self.kind
    }

    /// The object that it concerns, if it concerns one.
    pub fn object_name(&self) -> Option<&ObjectName> {
        self.object.as_deref()
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        self.transient
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        match self.kind {
            StorageErrorKind::NotFound => ErrorCode::ObjectMissing,
            StorageErrorKind::AlreadyExists => ErrorCode::ObjectExists,
            StorageErrorKind::Denied => ErrorCode::StorageDenied,
            StorageErrorKind::Unreachable => ErrorCode::StorageUnreachable,
            StorageErrorKind::Full => ErrorCode::StorageFull,
            StorageErrorKind::FsyncFailed => ErrorCode::StorageFsyncFailed,
            StorageErrorKind::Damaged => ErrorCode::ObjectDamaged,
            StorageErrorKind::Other => ErrorCode::StorageFailed,
        }
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.object {
            Some(object) => write!(f, "object {object}: ")?,
            None => f.write_str("storage: ")?,
        }
        f.write_str(match self.kind {
            StorageErrorKind::NotFound => "not found",
            StorageErrorKind::AlreadyExists => "it exists already and is never overwritten",
            StorageErrorKind::Denied => "access denied",
            StorageErrorKind::Unreachable => "the storage cannot be reached",
            StorageErrorKind::Full => "no space is left",
            StorageErrorKind::FsyncFailed => "its bytes could not be made durable",
            StorageErrorKind::Damaged => "it is damaged",
            StorageErrorKind::Other => "the storage failed",
        })?;
        match &self.detail {
            Some(detail) => write!(f, ", {detail}"),
            None => Ok(()),
        }
    }
}

impl Error for StorageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_numbers_become_kinds_and_codes() {
        let cases = [
            (Errno::NOSPC, StorageErrorKind::Full, "HF-3010", false),
            (Errno::DQUOT, StorageErrorKind::Full, "HF-3010", false),
            (Errno::ROFS, StorageErrorKind::Denied, "HF-3009", false),
            (Errno::NOENT, StorageErrorKind::NotFound, "HF-3005", false),
            (Errno::STALE, StorageErrorKind::Unreachable, "HF-3008", true),
            (Errno::IO, StorageErrorKind::Other, "HF-3011", false),
            (Errno::MFILE, StorageErrorKind::Other, "HF-3011", true),
        ];
        for (errno, kind, code, transient) in cases {
            let error = StorageError::from_io(io::Error::from(errno));
            assert_eq!(error.kind(), kind, "{errno:?}");
            assert_eq!(error.code().to_string(), code, "{errno:?}");
            assert_eq!(error.is_transient(), transient, "{errno:?}");
        }
    }

    #[test]
    fn display_does_not_print_the_source() {
        let error = StorageError::from_io(io::Error::from(Errno::IO)).detail("while writing");
        assert_eq!(error.to_string(), "storage: the storage failed, while writing");
        assert!(error.source().is_some());
    }
}
