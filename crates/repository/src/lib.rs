//! The repository: an encrypted, deduplicated store in the restic format, version 2, in one storage.

pub mod format;
pub mod id;
