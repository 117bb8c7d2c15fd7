//! How a call of the caller's side fails.

use super::shared::Stopped;
use crate::error::RepositoryError;

/// Why a call of the caller's side ended.
pub(super) enum Failed {
    /// With this error.
    Here(RepositoryError),
    /// Because another thread stopped the writer.
    Elsewhere,
}

impl From<RepositoryError> for Failed {
    fn from(error: RepositoryError) -> Self {
        Failed::Here(error)
    }
}

impl From<Stopped> for Failed {
    fn from(_: Stopped) -> Self {
        Failed::Elsewhere
    }
}

pub(super) fn out_of_order(path: &[u8], previous: &[u8], reason: &'static str) -> Failed {
    Failed::Here(RepositoryError::EntryOrder {
        path: String::from_utf8_lossy(path).into_owned(),
        previous: String::from_utf8_lossy(previous).into_owned(),
        reason,
    })
}
