//! Progress: lossy counters, overwritten by newer ones, never a fact.

use serde::{Deserialize, Serialize};

/// What an attempt has done so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// What is being done, one or two words: `capturing`, `uploading`, `checking rows`.
    pub stage: String,
    /// Bytes expected in all, 0 when unknown.
    pub bytes_total: u64,
    /// Bytes of the source dealt with, whether read or known to be unchanged.
    pub bytes_done: u64,
    /// Bytes read from the source, or written to the target.
    pub bytes_read: u64,
    /// Files expected in all, 0 when unknown.
    pub files_total: u64,
    /// Files dealt with.
    pub files_done: u64,
    /// Files that were not read since they are unchanged.
    pub files_unchanged: u64,
    /// Blobs that the repository did not have.
    pub blobs_new: u64,
    /// Their bytes before compression.
    pub bytes_new: u64,
    /// Bytes sent to the repository, compressed and sealed.
    pub bytes_stored: u64,
    /// Items that could not be read.
    pub unreadable: u64,
}
