//! An open repository: a storage, a config and the keys.

use std::sync::Arc;

use futures::TryStreamExt as _;
use holdfast_model::secret::Secret;

use crate::config::Config;
use crate::crypto::{MasterKey, Sealer};
use crate::error::RepositoryError;
use crate::format::{INDEX_BLOBS_MAX, ObjectKind, ObjectName, PACK_TRAILER_BYTES};
use crate::id::{IndexId, KeyId, PackId, SnapshotId};
use crate::index::{IndexPack, MemoryIndex, encode_index, visit_index};
use crate::key_slot::{KeyOrigin, ScryptCost, open_key, seal_key};
use crate::pack::{PackEntry, header_length, parse_header};
use crate::snapshot::SnapshotObject;
use crate::storage::{ObjectStore, StorageErrorKind};
use crate::unpacked::{check_hash, decode_unpacked, encode_unpacked};

/// Bytes read from the end of a pack in the hope that they hold its whole header.
const HEADER_GUESS_BYTES: u64 = 64 << 10;
/// Most keys that are tried when a repository is opened.
const KEYS_TRIED_MAX: usize = 64;

/// An open repository. Cheap to clone; every method may be called concurrently.
#[derive(Clone)]
pub struct Repository {
    store: Arc<dyn ObjectStore>,
    config: Config,
    keys: Arc<MasterKey>,
    sealer: Arc<Sealer>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("id", &self.config.id).finish_non_exhaustive()
    }
}

/// What creating a repository needs besides its password.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// What trying the password costs.
    pub cost: ScryptCost,
    /// Who creates it, written into the key.
    pub origin: KeyOrigin,
}

impl Repository {
    /// Creates a repository: a key under the password, then the config, which makes it exist.
    ///
    /// # Errors
    /// `HF-3002` when a config or key exists already, and those of the storage.
    pub async fn create(
        store: Arc<dyn ObjectStore>,
        password: &Secret,
        options: CreateOptions,
    ) -> Result<Self, RepositoryError> {
        match store.size(&ObjectName::Config).await {
            Ok(_) => return Err(RepositoryError::Exists { object: ObjectName::Config }),
            Err(error) if error.kind() == StorageErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        if let Some((object, _)) = store.list(ObjectKind::Key).await?.try_next().await? {
            return Err(RepositoryError::Exists { object });
        }
        let repository = Self::from_keys(store, Config::generate(), MasterKey::generate());
        repository.add_key(password, options).await?;
        let json = repository.config.to_json();
        let (name, bytes) = encode_unpacked(ObjectKind::Config, &json, &repository.sealer)?;
        match repository.store.put(&name, bytes).await {
            Err(error) if error.kind() == StorageErrorKind::AlreadyExists => {
                Err(RepositoryError::Exists { object: name })
            }
            other => Ok(other.map(|()| repository)?),
        }
    }

    /// Opens a repository with a password, trying its keys one after the other: each takes the time its owner chose
    /// (0.2 seconds with ours), on a thread for blocking work.
    ///
    /// # Errors
    /// `HF-3001` without a config, `HF-3003` for a wrong password, `HF-3004` for another version of the format,
    /// `HF-3005` without a key, `HF-3006` when config or every key is damaged, and those of the storage.
    pub async fn open(store: Arc<dyn ObjectStore>, password: &Secret) -> Result<Self, RepositoryError> {
        let sealed_config = match store.get(&ObjectName::Config).await {
            Err(error) if error.kind() == StorageErrorKind::NotFound => return Err(RepositoryError::Missing),
            other => other?,
        };
        let keys = Self::unlock(store.as_ref(), password).await?;
        let sealer = Sealer::new(&keys);
        let config = Config::from_json(&decode_unpacked(&ObjectName::Config, &sealed_config, &sealer)?)?;
        Ok(Self::from_keys(store, config, keys))
    }

    /// A repository whose config and keys are known already, as an agent is given them. Asks the storage nothing.
    pub fn from_keys(store: Arc<dyn ObjectStore>, config: Config, keys: MasterKey) -> Self {
        let sealer = Arc::new(Sealer::new(&keys));
        Self { store, config, keys: Arc::new(keys), sealer }
    }

    async fn unlock(store: &dyn ObjectStore, password: &Secret) -> Result<MasterKey, RepositoryError> {
        let mut names: Vec<_> =
            store.list(ObjectKind::Key).await?.map_ok(|(name, _)| name).try_collect().await?;
        if names.is_empty() {
            return Err(RepositoryError::KeyMissing);
        }
        names.sort_unstable();
        names.truncate(KEYS_TRIED_MAX);
        let mut last_error = None;
        let mut tried = 0;
        for name in names {
            let data = store.get(&name).await?;
            if let Err(error) = check_hash(&name, &data) {
                last_error = Some(error);
                continue;
            }
            let password = password.clone();
            let opened = tokio::task::spawn_blocking(move || open_key(&name, &data, &password)).await;
            match opened.map_err(|_| RepositoryError::Pipeline("deriving a key"))? {
                Ok(Some(keys)) => return Ok(keys),
                Ok(None) => tried += 1,
                Err(error) => last_error = Some(error),
            }
        }
        match last_error {
            // A key that can be tried says more about the password than one that cannot.
            Some(error) if tried == 0 => Err(error),
            _ => Err(RepositoryError::WrongPassword { keys: tried }),
        }
    }

    /// Adds a key: a further password for the same repository.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn add_key(&self, password: &Secret, options: CreateOptions) -> Result<KeyId, RepositoryError> {
        let (keys, password) = (Arc::clone(&self.keys), password.clone());
        let sealed =
            tokio::task::spawn_blocking(move || seal_key(&keys, &password, options.cost, &options.origin))
                .await;
        let data = sealed.map_err(|_| RepositoryError::Pipeline("deriving a key"))??;
        let id = KeyId::of(&data);
        self.store.put(&ObjectName::Key(id), data.into()).await?;
        Ok(id)
    }

    /// The storage.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The config.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The keys, to be handed to an agent for a run.
    pub fn keys(&self) -> &MasterKey {
        &self.keys
    }

    /// What opens and seals with the keys.
    pub fn sealer(&self) -> &Arc<Sealer> {
        &self.sealer
    }

    /// Names of all objects of a kind, sorted. For snapshots, indexes, locks and keys, of which there are few.
    async fn names(&self, kind: ObjectKind) -> Result<Vec<ObjectName>, RepositoryError> {
        let mut names: Vec<_> = self.store.list(kind).await?.map_ok(|(name, _)| name).try_collect().await?;
        names.sort_unstable();
        Ok(names)
    }

    /// Ids of all snapshots, sorted.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn snapshot_ids(&self) -> Result<Vec<SnapshotId>, RepositoryError> {
        let names = self.names(ObjectKind::Snapshot).await?;
        Ok(names
            .iter()
            .filter_map(|name| name.content_hash())
            .map(|hash| SnapshotId::from_bytes(*hash))
            .collect())
    }

    /// Loads a snapshot.
    ///
    /// # Errors
    /// `HF-3014` when it is not there, `HF-3006` when it is damaged.
    pub async fn snapshot(&self, id: SnapshotId) -> Result<SnapshotObject, RepositoryError> {
        let name = ObjectName::Snapshot(id);
        let json = match self.load_unpacked(&name).await {
            Err(RepositoryError::Storage(error)) if error.kind() == StorageErrorKind::NotFound => {
                return Err(RepositoryError::SnapshotUnknown { id: id.to_hex() });
            }
            other => other?,
        };
        serde_json::from_slice(&json)
            .map_err(|error| RepositoryError::damaged(name, format!("it is no snapshot: {error}")))
    }

    /// Finds the only snapshot whose id begins with these digits.
    ///
    /// # Errors
    /// `HF-3014` when there is none, `HF-3015` when there are several.
    pub async fn find_snapshot(&self, prefix: &str) -> Result<SnapshotId, RepositoryError> {
        let mut ids = self.snapshot_ids().await?;
        ids.retain(|id| !prefix.is_empty() && id.to_hex().starts_with(prefix));
        match ids.as_slice() {
            [id] => Ok(*id),
            [] => Err(RepositoryError::SnapshotUnknown { id: prefix.chars().take(80).collect() }),
            several => {
                Err(RepositoryError::SnapshotAmbiguous { id: prefix.to_owned(), matches: several.len() })
            }
        }
    }

    /// Stores a snapshot. Everything it refers to must be durable and indexed before: this is the commit.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn save_snapshot(&self, snapshot: &SnapshotObject) -> Result<SnapshotId, RepositoryError> {
        let json = serde_json::to_vec(snapshot).expect("numbers and strings always serialise");
        let name = self.save_unpacked(ObjectKind::Snapshot, &json).await?;
        Ok(SnapshotId::from_bytes(*name.content_hash().expect("a snapshot is named by its hash")))
    }

    /// Stores index objects for these packs, as many as the limit of blobs in one demands. A pack is never split.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn save_index(&self, packs: &[IndexPack]) -> Result<Vec<IndexId>, RepositoryError> {
        let mut saved = Vec::new();
        let mut rest = packs;
        while !rest.is_empty() {
            let mut blobs = 0;
            let fits = rest.iter().take_while(|pack| {
                blobs += pack.entries.len();
                blobs <= INDEX_BLOBS_MAX
            });
            let count = fits.count().max(1);
            let (now, later) = rest.split_at(count);
            let name = self.save_unpacked(ObjectKind::Index, &encode_index(now)).await?;
            saved.push(IndexId::from_bytes(*name.content_hash().expect("an index is named by its hash")));
            rest = later;
        }
        Ok(saved)
    }

    /// Ids of all index objects, sorted.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn index_ids(&self) -> Result<Vec<IndexId>, RepositoryError> {
        let names = self.names(ObjectKind::Index).await?;
        Ok(names
            .iter()
            .filter_map(|name| name.content_hash())
            .map(|hash| IndexId::from_bytes(*hash))
            .collect())
    }

    /// Loads one index object and hands over its packs, one after the other.
    ///
    /// # Errors
    /// `HF-3005` when it is not there, `HF-3006` when it is damaged.
    pub async fn visit_index(
        &self,
        id: IndexId,
        visit: impl FnMut(PackId, &[PackEntry]),
    ) -> Result<(), RepositoryError> {
        let name = ObjectName::Index(id);
        let json = self.load_unpacked(&name).await?;
        visit_index(&name, &json, visit)
    }

    /// Loads every index object into memory: 60 bytes per blob.
    ///
    /// # Errors
    /// As [`Self::visit_index`].
    pub async fn load_index(&self) -> Result<MemoryIndex, RepositoryError> {
        let mut index = MemoryIndex::new();
        for id in self.index_ids().await? {
            let visited = self.visit_index(id, |pack, entries| index.insert_pack(pack, entries));
            match visited.await {
                // Another client may have replaced it by a newer one since it was listed.
                Err(RepositoryError::Storage(error)) if error.kind() == StorageErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(index)
    }

    /// Reads what a pack says of itself: at most two ranges from its end.
    ///
    /// # Errors
    /// `HF-3005` when it is not there, `HF-3006` when its header is damaged, `HF-3018` when it is too large.
    pub async fn read_pack_header(&self, pack: PackId) -> Result<Vec<PackEntry>, RepositoryError> {
        let name = ObjectName::Pack(pack);
        let size = self.store.size(&name).await?;
        let guess = size.min(HEADER_GUESS_BYTES);
        let mut tail = self.store.get_range(&name, size - guess, guess).await?;
        let Some(trailer) = tail.last_chunk::<PACK_TRAILER_BYTES>() else {
            return Err(RepositoryError::damaged(name, format!("{size} bytes are no pack")));
        };
        let length = header_length(pack, size, *trailer)?;
        if length + PACK_TRAILER_BYTES > tail.len() {
            let wanted = (length + PACK_TRAILER_BYTES) as u64;
            tail = self.store.get_range(&name, size - wanted, wanted).await?;
        }
        let end = tail.len() - PACK_TRAILER_BYTES;
        parse_header(pack, size, &tail[end - length..end], &self.sealer)
    }

    /// Loads and opens an index, snapshot or lock object. Returns its JSON text.
    ///
    /// # Errors
    /// `HF-3005` when it is not there, `HF-3006` when it is damaged, `HF-3018` when it is too large.
    pub async fn load_unpacked(&self, name: &ObjectName) -> Result<Vec<u8>, RepositoryError> {
        decode_unpacked(name, &self.store.get(name).await?, &self.sealer)
    }

    /// Seals and stores an index, snapshot or lock object.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn save_unpacked(&self, kind: ObjectKind, json: &[u8]) -> Result<ObjectName, RepositoryError> {
        let (name, bytes) = encode_unpacked(kind, json, &self.sealer)?;
        self.store.put(&name, bytes).await?;
        Ok(name)
    }
}
