//! A storage that remembers every call, so that tests assert what was done instead of how long it took.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{ObjectList, ObjectStore, ObjectUpload, StorageError, StorageProbe};
use crate::format::{ObjectKind, ObjectName};

/// What was asked of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// [`ObjectStore::put`], or an upload that was begun.
    Put,
    /// [`ObjectStore::get`].
    Get,
    /// [`ObjectStore::get_range`].
    GetRange,
    /// [`ObjectStore::size`].
    Size,
    /// [`ObjectStore::list`].
    List,
    /// [`ObjectStore::delete`].
    Delete,
    /// [`ObjectStore::rename`], by its old name.
    Rename,
    /// [`ObjectStore::probe`].
    Probe,
}

/// One call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// What was asked.
    pub verb: Verb,
    /// The kind of the object; `None` for a probe.
    pub kind: Option<ObjectKind>,
    /// The object, where the call names one.
    pub name: Option<ObjectName>,
    /// Bytes sent or wanted: of the object, or of the range. Nought where it is not known beforehand.
    pub bytes: u64,
}

/// Passes calls on and remembers them, whether they succeed or not. Clones share the memory.
#[derive(Clone)]
pub struct RecordingStore {
    inner: Arc<dyn ObjectStore>,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl RecordingStore {
    /// Records the calls to this storage.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, calls: Arc::default() }
    }

    /// Every call since the last [`Self::forget`].
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().clone()
    }

    /// How many calls of a verb concerned a kind of object.
    pub fn count(&self, verb: Verb, kind: ObjectKind) -> usize {
        self.calls.lock().iter().filter(|call| call.verb == verb && call.kind == Some(kind)).count()
    }

    /// Forgets what was recorded.
    pub fn forget(&self) {
        self.calls.lock().clear();
    }

    fn record(&self, verb: Verb, kind: Option<ObjectKind>, name: Option<&ObjectName>, bytes: u64) {
        self.calls.lock().push(Call { verb, kind, name: name.copied(), bytes });
    }

    fn record_object(&self, verb: Verb, name: &ObjectName, bytes: u64) {
        self.record(verb, Some(name.kind()), Some(name), bytes);
    }
}

#[async_trait]
impl ObjectStore for RecordingStore {
    async fn put(&self, name: &ObjectName, data: Bytes) -> Result<(), StorageError> {
        self.record_object(Verb::Put, name, data.len() as u64);
        self.inner.put(name, data).await
    }

    async fn begin_put(&self, name: &ObjectName, length: u64) -> Result<Box<dyn ObjectUpload>, StorageError> {
        self.record_object(Verb::Put, name, length);
        self.inner.begin_put(name, length).await
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        self.record_object(Verb::Get, name, 0);
        self.inner.get(name).await
    }

    async fn get_range(&self, name: &ObjectName, offset: u64, length: u64) -> Result<Bytes, StorageError> {
        self.record_object(Verb::GetRange, name, length);
        self.inner.get_range(name, offset, length).await
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StorageError> {
        self.record_object(Verb::Size, name, 0);
        self.inner.size(name).await
    }

    async fn list(&self, kind: ObjectKind) -> Result<ObjectList<'_>, StorageError> {
        self.record(Verb::List, Some(kind), None, 0);
        self.inner.list(kind).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        self.record_object(Verb::Delete, name, 0);
        self.inner.delete(name).await
    }

    async fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<(), StorageError> {
        self.record_object(Verb::Rename, from, 0);
        self.inner.rename(from, to).await
    }

    async fn probe(&self) -> Result<StorageProbe, StorageError> {
        self.record(Verb::Probe, None, None, 0);
        self.inner.probe().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{conformance, memory::MemoryStore};

    #[tokio::test]
    async fn calls_are_counted_by_verb_and_kind() {
        let store = RecordingStore::new(Arc::new(MemoryStore::new()));
        let name = ObjectName::new(ObjectKind::Snapshot, [7; 32]);
        store.put(&name, Bytes::from_static(b"abc")).await.unwrap();
        store.get(&name).await.unwrap();
        store.get_range(&name, 1, 2).await.unwrap();
        assert_eq!(store.count(Verb::Put, ObjectKind::Snapshot), 1);
        assert_eq!(store.count(Verb::Get, ObjectKind::Pack), 0);
        let bytes: Vec<u64> = store.calls().iter().map(|call| call.bytes).collect();
        assert_eq!(bytes, [3, 0, 2]);
        store.forget();
        assert_eq!(store.calls(), []);
    }

    #[tokio::test]
    async fn a_recording_conforms() {
        conformance::run(&RecordingStore::new(Arc::new(MemoryStore::new()))).await;
    }
}
