//! Objects in memory, for tests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use parking_lot::Mutex;

use super::{
    CreateOnly, ObjectList, ObjectStore, ObjectUpload, StorageError, StorageErrorKind, StorageProbe,
};
use crate::format::{ObjectKind, ObjectName};

/// A storage in memory. Clones share the same objects.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    objects: Arc<Mutex<BTreeMap<ObjectName, Bytes>>>,
}

impl MemoryStore {
    /// An empty storage.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts other bytes in the place of an object, as a bad disk does; makes the object if there is none.
    pub fn replace(&self, name: ObjectName, data: impl Into<Bytes>) {
        self.objects.lock().insert(name, data.into());
    }

    /// The number of objects.
    pub fn len(&self) -> usize {
        self.objects.lock().len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.objects.lock().is_empty()
    }

    fn insert(&self, name: ObjectName, data: Bytes) -> Result<(), StorageError> {
        let mut objects = self.objects.lock();
        if objects.contains_key(&name) {
            return Err(StorageError::new(StorageErrorKind::AlreadyExists).object(&name));
        }
        objects.insert(name, data);
        Ok(())
    }

    fn find(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        let found = self.objects.lock().get(name).cloned();
        found.ok_or_else(|| StorageError::new(StorageErrorKind::NotFound).object(name))
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    async fn put(&self, name: &ObjectName, data: Bytes) -> Result<(), StorageError> {
        self.insert(*name, data)
    }

    async fn begin_put(&self, name: &ObjectName, length: u64) -> Result<Box<dyn ObjectUpload>, StorageError> {
        Ok(Box::new(MemoryUpload { store: self.clone(), name: *name, length, data: BytesMut::new() }))
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        self.find(name)
    }

    async fn get_range(&self, name: &ObjectName, offset: u64, length: u64) -> Result<Bytes, StorageError> {
        let data = self.find(name)?;
        let range = offset.checked_add(length).filter(|&end| end <= data.len() as u64);
        match range {
            Some(end) => Ok(data.slice(offset as usize..end as usize)),
            None => Err(StorageError::new(StorageErrorKind::Damaged).object(name)),
        }
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StorageError> {
        Ok(self.find(name)?.len() as u64)
    }

    async fn list(&self, kind: ObjectKind) -> Result<ObjectList<'_>, StorageError> {
        let objects = self.objects.lock();
        let of_kind = objects.iter().filter(|(name, _)| name.kind() == kind);
        let listed: Vec<_> = of_kind.map(|(name, data)| Ok((*name, data.len() as u64))).collect();
        Ok(stream::iter(listed).boxed())
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        let removed = self.objects.lock().remove(name);
        removed.map(|_| ()).ok_or_else(|| StorageError::new(StorageErrorKind::NotFound).object(name))
    }

    async fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<(), StorageError> {
        let mut objects = self.objects.lock();
        let data = objects.remove(from);
        let data = data.ok_or_else(|| StorageError::new(StorageErrorKind::NotFound).object(from))?;
        objects.entry(*to).or_insert(data);
        Ok(())
    }

    async fn probe(&self) -> Result<StorageProbe, StorageError> {
        Ok(StorageProbe {
            free_bytes: None,
            total_bytes: None,
            create_only: CreateOnly::Kept,
            write_latency: Duration::ZERO,
            read_latency: Duration::ZERO,
            stale_temporary_files: 0,
            stale_temporary_bytes: 0,
        })
    }
}

struct MemoryUpload {
    store: MemoryStore,
    name: ObjectName,
    length: u64,
    data: BytesMut,
}

#[async_trait]
impl ObjectUpload for MemoryUpload {
    async fn write(&mut self, data: Bytes) -> Result<(), StorageError> {
        self.data.extend_from_slice(&data);
        if self.data.len() as u64 > self.length {
            return Err(StorageError::new(StorageErrorKind::Damaged).object(&self.name));
        }
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<(), StorageError> {
        if self.data.len() as u64 != self.length {
            return Err(StorageError::new(StorageErrorKind::Damaged).object(&self.name));
        }
        self.store.insert(self.name, self.data.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::conformance;

    #[tokio::test]
    async fn memory_conforms() {
        conformance::run(&MemoryStore::new()).await;
        conformance::racers_have_one_winner(Arc::new(MemoryStore::new())).await;
    }
}
