//! The repository: an encrypted, deduplicated store in the restic format, version 2, in one storage.

pub mod check;
pub mod chunker;
pub mod config;
pub mod copy;
pub mod crypto;
mod error;
pub mod extract;
pub mod forget;
pub mod format;
pub mod id;
pub mod index;
pub mod key_slot;
pub mod lock;
mod marks;
pub mod pack;
mod pack_list;
pub mod polynomial;
pub mod prune;
pub mod prune_apply;
pub mod reader;
mod repository;
pub mod sink;
pub mod snapshot;
pub mod storage;
pub mod tree;
mod tree_cache;
pub mod unpacked;
pub mod write;

pub use error::{RepositoryError, SinkFailure};
pub use repository::{CreateOptions, Repository};
