//! Writing a snapshot's content: entries in, packs out, the id of the root tree at the end.
//!
//! ```text
//!  caller ──jobs──▶ workers: read, cut, hash ──batches──▶ sink thread: known? ──▶ workers: zstd, seal, compare
//!    ▲                 │                                      ▲                                  │
//!    └────contents─────┘                                      └───────────── packs ◀─────────────┘
//!  trees are built by the caller and go the way of the batches
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | `feed` | the caller's side: [`SnapshotWriter`] |
//! | `failed` | how a call of the caller's side fails |
//! | `folders` | open folders, entries that wait for their content, finished trees |
//! | `threads` | starting and joining what runs beside the caller |
//! | `worker` | the threads for processor work |
//! | `fill` | reading into buffers, cutting, hashing |
//! | `encode` | compression, sealing, decode-and-compare |
//! | `in_flight` | which blobs are on their way already |
//! | `sink_thread` | the one thread that talks to the [`BlobSink`](crate::sink::BlobSink) |
//! | `past` | what a folder is compared with |
//! | `parent_trees` | the trees of the parent snapshot, loaded ahead |
//! | `shared` | what all of them share, and how they stop |
//!
//! **Memory.** Content lies in a fixed number of buffers of 8 MiB; packs in a fixed number on their way; nothing grows
//! with the source, except that a folder costs the text of its tree while it is open.
//!
//! **No deadlock.** Workers never wait for the caller: contents they report are as many as jobs the caller may have
//! open. A worker that waits for a buffer encodes meanwhile, and that frees buffers. The sink thread waits for nobody.

mod encode;
mod failed;
mod feed;
mod fill;
mod folders;
mod in_flight;
mod options;
mod parent_trees;
mod past;
mod shared;
mod sink_thread;
mod threads;
mod worker;

#[cfg(test)]
mod tests;

pub use feed::{OwnFile, SnapshotWriter};
pub use options::{
    FileGate, FileIdentity, FilePass, Parent, ReadObserver, StoredContent, TreeSource, UNREADABLE_NAMED_MAX,
    UnreadableFile, WhyRead, WriteContent, WriteCounters, WriteEntry, WriteOptions, WriteTotals,
    WriterContext, Written,
};

pub use parent_trees::ParentTrees;

/// The folder at the root of every snapshot that holds what Holdfast must know of it.
pub const OWN_FOLDER: &[u8] = b".holdfast";
