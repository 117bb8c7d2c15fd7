//! Where objects are kept: one small trait, kept by a folder and by S3-compatible stores.
//!
//! A storage knows names and bytes, nothing of the format. What every implementation promises is written at
//! [`ObjectStore`]; one conformance suite (`storage/conformance.rs`) holds all of them to it.
//!
//! | law | consequence |
//! |---|---|
//! | create-only | an object that exists is never replaced; of racing writers exactly one wins |
//! | all or nothing | a name becomes visible with all of its bytes, or not at all |
//! | durable when `Ok` | after [`ObjectStore::put`] returned `Ok`, a power cut does not lose the object |

mod error;
pub mod fs;
pub mod location;
pub mod s3;

#[cfg(test)]
pub(crate) mod conformance;
#[cfg(any(test, feature = "test-util"))]
pub mod faulty;
#[cfg(any(test, feature = "test-util"))]
pub mod memory;
#[cfg(any(test, feature = "test-util"))]
pub mod recording;
#[cfg(test)]
pub(crate) mod weed;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use error::{StorageError, StorageErrorKind};

use crate::format::{ObjectKind, ObjectName};

/// The largest object that [`ObjectStore::get`] loads, in bytes. Larger ones are read by range.
pub const OBJECT_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// A stream of the objects of one kind: name and size in bytes, in no order.
pub type ObjectList<'a> = BoxStream<'a, Result<(ObjectName, u64), StorageError>>;

/// A storage for objects. Cheap to share behind an `Arc`; every method may be called concurrently.
///
/// Errors of every method, by kind: `Denied` when the storage refuses the credentials or the permission,
/// `Unreachable` when it cannot be asked (after the retries that the implementation makes), `Other` for anything
/// unexpected. Further kinds are named at each method. [`StorageError::is_transient`] says what may pass by itself.
///
/// Dropping the future of a method leaves nothing half-visible: a `put` that was dropped has stored the whole object
/// or none of it.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// Stores a new object. Atomic, create-only, durable and visible to every reader when it returns `Ok`.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken: what is there stays as it is. `Full` when there is no space.
    /// `FsyncFailed` when the bytes could not be made durable: the attempt is over and must begin again with the data.
    /// After `Unreachable` the object may or may not exist, as with any lost answer.
    async fn put(&self, name: &ObjectName, data: Bytes) -> Result<(), StorageError>;

    /// Begins to store a new object of exactly `length` bytes that arrives in pieces.
    ///
    /// The promises of [`Self::put`] hold for [`ObjectUpload::finish`]. An upload that is dropped before that leaves
    /// nothing visible. Memory: a piece at a time for a folder, up to 64 MiB for S3.
    ///
    /// # Errors
    /// As [`Self::put`]; `AlreadyExists` may come now or from `finish`.
    async fn begin_put(&self, name: &ObjectName, length: u64) -> Result<Box<dyn ObjectUpload>, StorageError>;

    /// Loads a whole object of at most [`OBJECT_BYTES_MAX`].
    ///
    /// # Errors
    /// `NotFound`; `Damaged` when it is larger than that bound.
    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError>;

    /// Loads exactly `length` bytes from `offset` on.
    ///
    /// # Errors
    /// `NotFound`; `Damaged` when the object ends before the range does.
    async fn get_range(&self, name: &ObjectName, offset: u64, length: u64) -> Result<Bytes, StorageError>;

    /// The size of an object in bytes.
    ///
    /// # Errors
    /// `NotFound`.
    async fn size(&self, name: &ObjectName) -> Result<u64, StorageError>;

    /// Lists the objects of one kind. What is not named as an object of that kind (temporary and foreign files) is
    /// left out. An object created or deleted during the listing may or may not be in it.
    ///
    /// Memory is bounded by one folder (one page of a listing on S3), not by the number of objects.
    ///
    /// # Errors
    /// The stream ends after its first error.
    async fn list(&self, kind: ObjectKind) -> Result<ObjectList<'_>, StorageError>;

    /// Removes an object.
    ///
    /// # Errors
    /// `NotFound` when there is none; S3-compatible stores answer `Ok` to that, as they do not tell.
    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError>;

    /// Gives an object another name. Durable when it returns `Ok`; a crash on the way leaves it under one of the names,
    /// or under both, whole each time. When the new name is taken, the old one is removed: names stand for contents.
    ///
    /// # Errors
    /// `NotFound` when there is none of the old name; those of [`Self::put`].
    async fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<(), StorageError>;

    /// Tries the storage: writes, reads and removes a small object of its own, and tests whether create-only is kept.
    ///
    /// # Errors
    /// The kinds of the calls it makes.
    async fn probe(&self) -> Result<StorageProbe, StorageError>;
}

/// An object that is being stored piece by piece.
#[async_trait]
pub trait ObjectUpload: Send {
    /// Adds the next bytes.
    ///
    /// # Errors
    /// As [`ObjectStore::put`]; `Damaged` when more bytes come than were announced. The upload is over after an error.
    async fn write(&mut self, data: Bytes) -> Result<(), StorageError>;

    /// Makes the object durable and visible.
    ///
    /// # Errors
    /// As [`ObjectStore::put`]; `Damaged` when fewer bytes came than were announced.
    async fn finish(self: Box<Self>) -> Result<(), StorageError>;
}

/// Who keeps the promise that an existing object is never replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateOnly {
    /// The storage itself, tested: a second write to a name was refused.
    Kept,
    /// The storage does not. We ask before each write, so two writers of one name at the same moment may both succeed.
    AskedBefore,
}

/// What [`ObjectStore::probe`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageProbe {
    /// Bytes that can still be written, where the storage tells.
    pub free_bytes: Option<u64>,
    /// Bytes that there are in all, whoever uses them, where the storage has an end and tells.
    pub total_bytes: Option<u64>,
    /// Who keeps create-only.
    pub create_only: CreateOnly,
    /// How long it took to store one small object durably.
    pub write_latency: Duration,
    /// How long it took to read it.
    pub read_latency: Duration,
    /// Temporary files older than a day: remains of writers that died. They hold space and are otherwise harmless.
    pub stale_temporary_files: u64,
    /// The bytes in them.
    pub stale_temporary_bytes: u64,
}
