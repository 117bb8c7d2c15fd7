//! The error of the repository.

use std::path::PathBuf;

use holdfast_model::ErrorCode;
use holdfast_model::text::size;

use crate::format::ObjectName;
use crate::id::{BlobId, InvalidId};
use crate::storage::StorageError;

/// What a caller's own sink reports: any error with its code.
pub type SinkFailure = Box<dyn std::error::Error + Send + Sync>;

/// A repository could not do what it was asked. Its cause, where there is one, is its source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// There is no config where a repository was to be opened.
    #[error("there is no repository at this place: it has no config object")]
    Missing,
    /// There is a config or a key already where a repository was to be created.
    #[error("there is a repository at this place already: {object} exists")]
    Exists {
        /// What was found.
        object: ObjectName,
    },
    /// No key opens with the password.
    #[error("the password opens none of the {keys} keys of the repository")]
    WrongPassword {
        /// How many were tried.
        keys: usize,
    },
    /// There is a config, and no key that a password could open.
    #[error("the repository has no key object")]
    KeyMissing,
    /// The config names a version of the format that we do not read.
    #[error("the repository has format version {found}, only version {supported} is supported")]
    Unsupported {
        /// What the config says.
        found: u64,
        /// What we read.
        supported: u32,
    },
    /// A blob is referred to and is in no index.
    #[error("blob {blob} is in no index of the repository")]
    BlobMissing {
        /// The blob.
        blob: BlobId,
    },
    /// An object is not what its format or its name demand.
    #[error("{object} is damaged: {reason}")]
    Damaged {
        /// The object, or the blob within one.
        object: String,
        /// What is wrong with it, with the numbers.
        reason: String,
    },
    /// An object claims more than the limits of the format allow.
    #[error("{object} has {actual} {what}, the limit is {limit}")]
    LimitExceeded {
        /// The object.
        object: String,
        /// What is counted, such as `bytes of header`.
        what: &'static str,
        /// How many it has.
        actual: u64,
        /// How many are allowed.
        limit: u64,
    },
    /// A name in a tree cannot be the name of a file.
    #[error("tree {tree} has an entry with the unsafe name {name:?}")]
    UnsafeName {
        /// The tree.
        tree: String,
        /// The name, lossily decoded.
        name: String,
    },
    /// A lock of somebody else stands in the way.
    #[error("the repository is locked{} by {username}@{hostname} (process {pid}) since {since}", if *.exclusive { " exclusively" } else { "" })]
    Locked {
        /// Whether that lock is exclusive.
        exclusive: bool,
        /// Its host.
        hostname: String,
        /// Its user.
        username: String,
        /// Its process.
        pid: u32,
        /// When it was last refreshed.
        since: String,
    },
    /// What was compressed and sealed did not open to what went in.
    #[error(
        "blob {blob} of {size_bytes} bytes did not decode to what was encoded ({stage}); nothing of it was stored"
    )]
    EncodingMismatch {
        /// The blob.
        blob: BlobId,
        /// Its size before encoding.
        size_bytes: usize,
        /// Where the difference showed.
        stage: &'static str,
    },
    /// No snapshot has this id.
    #[error("no snapshot has an id that begins with {id:?}")]
    SnapshotUnknown {
        /// The text that was looked for.
        id: String,
    },
    /// Several snapshots have ids that begin so.
    #[error("{matches} snapshots have ids that begin with {id:?}")]
    SnapshotAmbiguous {
        /// The text that was looked for.
        id: String,
        /// How many there are.
        matches: usize,
    },
    /// A path leads nowhere.
    #[error("the snapshot does not hold {path:?}")]
    PathNotInSnapshot {
        /// The path, lossily decoded.
        path: String,
    },
    /// The text of an id is not one.
    #[error(transparent)]
    InvalidId(#[from] InvalidId),
    /// The storage failed.
    #[error("the storage failed")]
    Storage(#[from] StorageError),
    /// The sink of a writer failed.
    #[error("the packs could not be handed over")]
    Sink {
        /// The stable code of the cause.
        code: ErrorCode,
        /// The cause.
        #[source]
        source: SinkFailure,
    },
    /// A stream broke before its end.
    #[error("the stream {path} broke after {}", size(*read_bytes))]
    StreamBroken {
        /// Its path in the snapshot, lossily decoded.
        path: String,
        /// How many bytes had been read.
        read_bytes: u64,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Entries reached the writer in an order that no tree has.
    #[error("entry {path:?} cannot follow {previous:?}: {reason}")]
    EntryOrder {
        /// The entry, lossily decoded.
        path: String,
        /// The one before it.
        previous: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// A local file that the repository code itself needs could not be read.
    #[error("the file {} could not be read", .path.display())]
    Local {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The operation was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A thread of the pipeline ended where it must not.
    #[error("a thread of the pipeline ended early: {0}")]
    Pipeline(&'static str),
}

impl RepositoryError {
    /// An object that is not what its format or name demand.
    pub fn damaged(object: impl ToString, reason: impl Into<String>) -> Self {
        Self::Damaged { object: object.to_string(), reason: reason.into() }
    }

    /// An error of a sink that is not part of this crate.
    pub fn sink(code: ErrorCode, source: impl Into<SinkFailure>) -> Self {
        Self::Sink { code, source: source.into() }
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Missing => ErrorCode::RepositoryMissing,
            Self::Exists { .. } => ErrorCode::RepositoryExists,
            Self::WrongPassword { .. } => ErrorCode::RepositoryWrongPassword,
            Self::Unsupported { .. } => ErrorCode::RepositoryUnsupported,
            Self::KeyMissing | Self::BlobMissing { .. } => ErrorCode::ObjectMissing,
            Self::Damaged { .. } => ErrorCode::ObjectDamaged,
            Self::LimitExceeded { .. } => ErrorCode::LimitExceeded,
            Self::UnsafeName { .. } => ErrorCode::UnsafePath,
            Self::Locked { .. } => ErrorCode::RepositoryLocked,
            Self::EncodingMismatch { .. } => ErrorCode::EncodingMismatch,
            Self::SnapshotUnknown { .. } => ErrorCode::SnapshotUnknown,
            Self::SnapshotAmbiguous { .. } => ErrorCode::SnapshotAmbiguous,
            Self::PathNotInSnapshot { .. } => ErrorCode::PathNotInSnapshot,
            Self::InvalidId(_) => ErrorCode::SnapshotUnknown,
            Self::Storage(error) => error.code(),
            Self::Sink { code, .. } => *code,
            Self::StreamBroken { .. } => ErrorCode::CaptureIncomplete,
            Self::Local { .. } => ErrorCode::SourceItemUnreadable,
            Self::Cancelled => ErrorCode::RunCancelled,
            Self::EntryOrder { .. } | Self::Pipeline(_) => ErrorCode::Internal,
        }
    }
}
