//! Index objects: where each blob is. And an index in memory.

mod json;
mod memory;

pub use json::{IndexPack, encode_index, visit_index};
pub use memory::{BlobLocation, MemoryIndex};
