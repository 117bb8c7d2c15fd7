//! The error of a restore.

use std::io;
use std::path::PathBuf;

use holdfast_model::ErrorCode;
use rustix::io::Errno;

use crate::error::RepositoryError;

/// A tree could not be restored. Its cause, where there is one, is its source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExtractError {
    /// The target is in use for something else.
    #[error("the target {} exists and is not an empty folder", .0.display())]
    TargetExists(PathBuf),
    /// The file system of the target refused something.
    #[error("could not {action} {path:?} in the target")]
    Target {
        /// What was to be done, as a verb.
        action: &'static str,
        /// The path within the target, lossily decoded; empty for the target itself.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Content is missing or damaged.
    #[error("the content of {} cannot be restored", files_text(.files, *.more))]
    Content {
        /// The first files that hold it, by their paths in the snapshot, lossily decoded.
        files: Vec<String>,
        /// How many more hold it, of those that were to be restored at the same time.
        more: usize,
        /// Which object, and what is wrong with it.
        #[source]
        source: RepositoryError,
    },
    /// The folders of the snapshot cannot be read.
    #[error("the folder {path:?} of the snapshot cannot be read")]
    Tree {
        /// Where the walk was, lossily decoded.
        path: String,
        /// Which object, and what is wrong with it.
        #[source]
        source: RepositoryError,
    },
    /// The restore was cancelled.
    #[error("the restore was cancelled, the target is incomplete")]
    Cancelled,
    /// A thread ended where it must not.
    #[error("a thread of the restore ended early: {0}")]
    Thread(&'static str),
}

fn files_text(files: &[String], more: usize) -> String {
    let mut text = files.iter().map(|file| format!("{file:?}")).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more files"));
    }
    text
}

impl ExtractError {
    /// The file system refused something about a path in the target.
    pub(super) fn target(action: &'static str, path: &[u8], source: impl Into<io::Error>) -> Self {
        Self::Target { action, path: String::from_utf8_lossy(path).into_owned(), source: source.into() }
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TargetExists(_) => ErrorCode::TargetExists,
            Self::Target { source, .. } => match source.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::NOSPC | Errno::DQUOT) => ErrorCode::TargetNoSpace,
                _ => ErrorCode::RestoreFailed,
            },
            Self::Content { source, .. } | Self::Tree { source, .. } => source.code(),
            Self::Cancelled => ErrorCode::RunCancelled,
            Self::Thread(_) => ErrorCode::Internal,
        }
    }
}
