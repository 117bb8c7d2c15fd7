//! What can go wrong with the state.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use holdfast_model::ErrorCode;
use holdfast_model::text::{count, counted};

use super::record::{Expect, Kind, Sequence};

/// What went wrong with the state.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A precondition of a batch does not hold; nothing of it was applied.
    #[error("the {kind} {key:?} {}", describe(.expected, .found))]
    Conflict {
        /// The kind of the record.
        kind: Kind,
        /// Its key.
        key: String,
        /// What was required.
        expected: Expect,
        /// The version that was found, if any.
        found: Option<Sequence>,
    },
    /// The batch, or a part of it, is larger than the format allows; nothing was applied.
    #[error("a {what} of {} cannot be stored: 1 to {} can", counted(*bytes as u64, "byte"), count(*bytes_max as u64))]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The largest size.
        bytes_max: usize,
    },
    /// A record does not read as its type.
    #[error("the {kind} {key:?} cannot be read")]
    Undecodable {
        /// The kind of the record.
        kind: Kind,
        /// Its key.
        key: String,
        /// What is wrong with the JSON.
        source: serde_json::Error,
    },
    /// The state could not be written, and is not written any more until the controller starts again.
    #[error("the state can no longer be written: {what}")]
    Failed {
        /// What was being done when it failed first.
        what: &'static str,
        /// The first failure, which later refusals repeat.
        source: Arc<io::Error>,
    },
    /// The store was closed, in order.
    #[error("the state is closed")]
    Closed,
    /// The state could not be read or opened.
    #[error("{what} failed at {}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process has the state open.
    #[error("another process holds the state in {}", folder.display())]
    Locked {
        /// The data folder.
        folder: PathBuf,
    },
    /// What is on the disk is not what was written.
    #[error("the state is damaged: {}, byte {offset}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// A newer version wrote the state.
    #[error("{} was written by a newer version", path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
    },
    /// The view of the journal failed; the journal has everything.
    #[error("the view of the state failed")]
    View(#[source] sled::Error),
    /// The journal no longer reaches back to this commit.
    #[error("the journal begins after commit {after}: it reaches back to {oldest}")]
    HistoryGone {
        /// What was asked for.
        after: Sequence,
        /// The oldest commit that is kept.
        oldest: Sequence,
    },
}

fn describe(expected: &Expect, found: &Option<Sequence>) -> String {
    match (expected, found) {
        (Expect::Absent, Some(_)) => "exists already".to_owned(),
        (Expect::Version(version), Some(found)) => {
            format!("changed meanwhile: version {found}, not {version}")
        }
        (_, None) => "does not exist".to_owned(),
        (_, Some(found)) => format!("is of version {found}"),
    }
}

impl StoreError {
    /// Its stable code.
    pub fn code(&self) -> ErrorCode {
        match self {
            StoreError::Conflict { expected: Expect::Absent, .. } => ErrorCode::AlreadyExists,
            StoreError::Conflict { found: None, expected: Expect::Present, .. } => ErrorCode::NotFound,
            StoreError::Conflict { .. } => ErrorCode::VersionConflict,
            StoreError::TooLarge { .. } => ErrorCode::RecordTooLarge,
            StoreError::Failed { .. } | StoreError::Closed | StoreError::Io { .. } | StoreError::View(_) => {
                ErrorCode::StateUnavailable
            }
            StoreError::Locked { .. } => ErrorCode::StateLocked,
            StoreError::Undecodable { .. } | StoreError::Damaged { .. } => ErrorCode::StateDamaged,
            StoreError::TooNew { .. } => ErrorCode::Unsupported,
            StoreError::HistoryGone { .. } => ErrorCode::VersionConflict,
        }
    }

    /// Wraps an error of the file system.
    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| StoreError::Io { what, path, source }
    }
}
