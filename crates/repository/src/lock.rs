//! Locks of the format, so that other clients and ours stay out of each other's way.
//!
//! | lock | tolerates | held while |
//! |---|---|---|
//! | shared | other shared ones | something is written |
//! | exclusive | none | objects are deleted |
//!
//! A lock is an object with a time. One whose time is older than 30 minutes counts for nothing, nor does one of this
//! host whose process is gone; a holder therefore refreshes it every five minutes by storing a newer one and removing
//! the old. Locks of one owner go together, whatever they demand: a process orders its own work itself. Two clients that lock at the same moment see each other when they look again after storing theirs.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::RepositoryError;
use crate::format::{ObjectKind, ObjectName};
use crate::repository::Repository;
use crate::storage::StorageErrorKind;

/// A lock whose time is older counts for nothing.
pub const LOCK_STALE_AFTER: Duration = Duration::from_secs(30 * 60);
/// How often a holder refreshes its lock.
pub const LOCK_REFRESH_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// How often locks are listed again since one that was listed is gone.
const LISTINGS_MAX: usize = 10;
/// How long to wait before looking for locks that were stored at the same moment.
const LOCK_SETTLE: Duration = Duration::from_millis(200);

/// Who locks. All three of host, user and process the same is the same owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockOwner {
    /// This host.
    pub hostname: String,
    /// The user of this process.
    pub username: String,
    /// This process.
    pub pid: u32,
    /// Its user, as a number.
    pub uid: u32,
    /// Its group, as a number.
    pub gid: u32,
}

/// What a lock demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Others may hold shared locks too.
    Shared,
    /// Nobody else may hold any.
    Exclusive,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct LockJson {
    time: String,
    exclusive: bool,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    pid: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    uid: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    gid: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A lock that we hold. Dropping it does not remove the object: call [`HeldLock::release`]. What is left behind by a
/// crash counts for nothing after 30 minutes.
#[derive(Debug)]
pub struct HeldLock {
    repository: Repository,
    owner: LockOwner,
    mode: LockMode,
    name: ObjectName,
}

impl HeldLock {
    /// Takes a lock, or says who holds one that does not go with it.
    ///
    /// `now` is the caller's clock. Waits 0.2 seconds between storing the lock and looking again.
    ///
    /// # Errors
    /// `HF-3007` when somebody else holds the repository, and those of the storage.
    pub async fn acquire(
        repository: &Repository,
        owner: LockOwner,
        mode: LockMode,
        now: Timestamp,
    ) -> Result<Self, RepositoryError> {
        refuse_conflicts(repository, &owner, mode, now, None).await?;
        let name = store_lock(repository, &owner, mode, now).await?;
        let held = Self { repository: repository.clone(), owner, mode, name };
        tokio::time::sleep(LOCK_SETTLE).await;
        match refuse_conflicts(repository, &held.owner, mode, now, Some(&held.name)).await {
            Ok(()) => Ok(held),
            Err(conflict) => {
                held.release().await?;
                Err(conflict)
            }
        }
    }

    /// Stores the lock anew with this time. Call it every [`LOCK_REFRESH_INTERVAL`].
    ///
    /// # Errors
    /// Those of the storage. A holder whose lock has not been refreshed for [`LOCK_STALE_AFTER`] must stop.
    pub async fn refresh(&mut self, now: Timestamp) -> Result<(), RepositoryError> {
        let newer = store_lock(&self.repository, &self.owner, self.mode, now).await?;
        let older = std::mem::replace(&mut self.name, newer);
        remove(&self.repository, &older).await
    }

    /// Removes the lock.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn release(self) -> Result<(), RepositoryError> {
        remove(&self.repository, &self.name).await
    }
}

/// Says who holds an exclusive lock, when that is somebody else: it may be removing objects.
///
/// # Errors
/// `HF-3007` with the holder, and those of the storage.
pub async fn refuse_exclusive(
    repository: &Repository,
    owner: &LockOwner,
    now: Timestamp,
) -> Result<(), RepositoryError> {
    refuse_conflicts(repository, owner, LockMode::Shared, now, None).await
}

/// Removes the locks that count for nothing: those of holders that died. Says how many there were.
///
/// # Errors
/// Those of the storage. A lock that can not be read is left where it is.
pub async fn remove_stale_locks(
    repository: &Repository,
    owner: &LockOwner,
    now: Timestamp,
) -> Result<usize, RepositoryError> {
    let mut removed = 0;
    for name in lock_names(repository).await? {
        let Ok(json) = repository.load_unpacked(&name).await else { continue };
        let Ok(lock) = serde_json::from_slice::<LockJson>(&json) else { continue };
        if is_stale(&lock, owner, now) {
            remove(repository, &name).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

async fn lock_names(repository: &Repository) -> Result<Vec<ObjectName>, RepositoryError> {
    use futures::TryStreamExt as _;
    let listed = repository.store().list(ObjectKind::Lock).await?;
    Ok(listed.map_ok(|(name, _)| name).try_collect().await?)
}

async fn store_lock(
    repository: &Repository,
    owner: &LockOwner,
    mode: LockMode,
    now: Timestamp,
) -> Result<ObjectName, RepositoryError> {
    let lock = LockJson {
        time: now.to_string(),
        exclusive: mode == LockMode::Exclusive,
        hostname: owner.hostname.clone(),
        username: owner.username.clone(),
        pid: owner.pid,
        uid: owner.uid,
        gid: owner.gid,
    };
    let json = serde_json::to_vec(&lock).expect("numbers and strings always serialise");
    repository.save_unpacked(ObjectKind::Lock, &json).await
}

async fn remove(repository: &Repository, name: &ObjectName) -> Result<(), RepositoryError> {
    match repository.store().delete(name).await {
        Err(error) if error.kind() != StorageErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Looks at every lock but our own. Those that count for nothing are left where they are: `restic unlock` and
/// [`remove_stale_locks`] remove them.
async fn refuse_conflicts(
    repository: &Repository,
    owner: &LockOwner,
    mode: LockMode,
    now: Timestamp,
    own: Option<&ObjectName>,
) -> Result<(), RepositoryError> {
    let is_ours = |lock: &LockJson| {
        (&lock.hostname, &lock.username, lock.pid) == (&owner.hostname, &owner.username, owner.pid)
    };
    let mut listings = 1;
    let mut names = lock_names(repository).await?;
    while let Some(name) = names.pop() {
        if Some(&name) == own {
            continue;
        }
        let json = match repository.load_unpacked(&name).await {
            // Released since it was listed, or refreshed: restic stores the same lock under a new name first.
            Err(RepositoryError::Storage(error))
                if error.kind() == StorageErrorKind::NotFound && listings < LISTINGS_MAX =>
            {
                listings += 1;
                names = lock_names(repository).await?;
                continue;
            }
            other => other?,
        };
        let lock: LockJson = serde_json::from_slice(&json)
            .map_err(|error| RepositoryError::damaged(name, format!("it is no lock: {error}")))?;
        let conflicts = lock.exclusive || mode == LockMode::Exclusive;
        if conflicts && !is_ours(&lock) && !is_stale(&lock, owner, now) {
            return Err(RepositoryError::Locked {
                exclusive: lock.exclusive,
                hostname: lock.hostname,
                username: lock.username,
                pid: lock.pid,
                since: lock.time,
            });
        }
    }
    Ok(())
}

fn is_stale(lock: &LockJson, owner: &LockOwner, now: Timestamp) -> bool {
    // A time that cannot be read is no reason to ignore a lock.
    let too_old = lock.time.parse::<Timestamp>().is_ok_and(|time| {
        now.duration_since(time)
            > jiff::SignedDuration::try_from(LOCK_STALE_AFTER).unwrap_or(jiff::SignedDuration::MAX)
    });
    too_old || (lock.hostname == owner.hostname && lock.pid != owner.pid && !process_exists(lock.pid))
}

fn process_exists(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else { return false };
    // A process of another user answers with a refusal, and exists.
    !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use bytes::Bytes;
    use futures::{StreamExt as _, TryStreamExt as _};
    use parking_lot::Mutex;

    use super::*;
    use crate::config::Config;
    use crate::crypto::MasterKey;
    use crate::storage::memory::MemoryStore;
    use crate::storage::{ObjectList, ObjectStore, ObjectUpload, StorageError, StorageProbe};

    /// A storage in which another program refreshes its lock right after locks were listed, as long as there are newer
    /// ones: it stores the next, then removes the old.
    struct Refreshing {
        inner: MemoryStore,
        newer: Mutex<Vec<(ObjectName, Bytes)>>,
    }

    #[async_trait]
    impl ObjectStore for Refreshing {
        async fn put(&self, name: &ObjectName, data: Bytes) -> Result<(), StorageError> {
            self.inner.put(name, data).await
        }

        async fn begin_put(
            &self,
            name: &ObjectName,
            length: u64,
        ) -> Result<Box<dyn ObjectUpload>, StorageError> {
            self.inner.begin_put(name, length).await
        }

        async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
            self.inner.get(name).await
        }

        async fn get_range(
            &self,
            name: &ObjectName,
            offset: u64,
            length: u64,
        ) -> Result<Bytes, StorageError> {
            self.inner.get_range(name, offset, length).await
        }

        async fn size(&self, name: &ObjectName) -> Result<u64, StorageError> {
            self.inner.size(name).await
        }

        async fn list(&self, kind: ObjectKind) -> Result<ObjectList<'_>, StorageError> {
            let listed: Vec<_> = self.inner.list(kind).await?.try_collect().await?;
            let newer = self.newer.lock().pop();
            if let Some((name, bytes)) = newer {
                self.inner.put(&name, bytes).await?;
                self.inner.delete(&listed[0].0).await?;
            }
            Ok(futures::stream::iter(listed.into_iter().map(Ok)).boxed())
        }

        async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
            self.inner.delete(name).await
        }

        async fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<(), StorageError> {
            self.inner.rename(from, to).await
        }

        async fn probe(&self) -> Result<StorageProbe, StorageError> {
            self.inner.probe().await
        }
    }

    #[tokio::test]
    async fn a_lock_that_is_refreshed_between_listing_and_reading_still_counts() {
        for refreshes in [0, 1, 3] {
            let store = Arc::new(Refreshing { inner: MemoryStore::new(), newer: Mutex::default() });
            let repository =
                Repository::from_keys(Arc::clone(&store) as _, Config::generate(), MasterKey::generate());
            let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
            let mut locks = Vec::new();
            for second in 0..=refreshes {
                let json = serde_json::json!({
                    "time": (now + jiff::SignedDuration::from_secs(second)).to_string(), "exclusive": true,
                    "hostname": "other", "username": "restic", "pid": 7, "uid": 0, "gid": 0
                });
                let text = json.to_string();
                let name = repository.save_unpacked(ObjectKind::Lock, text.as_bytes()).await.unwrap();
                locks.push((name, store.inner.get(&name).await.unwrap()));
                if second > 0 {
                    store.inner.delete(&name).await.unwrap();
                }
            }
            *store.newer.lock() = locks.split_off(1);
            let owner =
                LockOwner { hostname: "here".into(), username: "holdfast".into(), pid: 1, uid: 0, gid: 0 };
            let refused =
                refuse_conflicts(&repository, &owner, LockMode::Shared, now, None).await.unwrap_err();
            assert!(matches!(refused, RepositoryError::Locked { exclusive: true, .. }), "{refused}");
        }
    }
}
