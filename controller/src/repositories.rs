//! The repositories that this controller holds open: storage, keys and the index of their blobs.
//!
//! What locks what: a `Slot` is held only while its repository is looked up or opened; what guards the index is in
//! [`crate::repository_index`].

mod doubts;

use std::collections::HashMap;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;
use holdfast_model::ids::RepositoryName;
use holdfast_model::repository_spec::RepositorySpec;
use holdfast_model::secret::SecretRef;
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::format::{ObjectKind, ObjectName};
use holdfast_repository::id::{BlobId, BlobType, IdSet, PackId};
use holdfast_repository::index::BlobLocation;
use holdfast_repository::key_slot::{KeyOrigin, ScryptCost};
use holdfast_repository::pack::PackEntry;
use holdfast_repository::storage::location::{Location, LocationOptions};
use holdfast_repository::storage::{ObjectStore, StorageError, StorageErrorKind};
use holdfast_repository::{CreateOptions, Repository, RepositoryError};
use holdfast_runtime::{SharedClock, TaskGroup};
use parking_lot::Mutex;

use crate::records::Records;
use crate::repository_index::RepositoryIndex;
use crate::secrets::Secrets;

/// The repositories held open.
pub struct Repositories {
    secrets: Secrets,
    clock: SharedClock,
    records: Records,
    index_folder: PathBuf,
    tasks: TaskGroup,
    open: Mutex<HashMap<RepositoryName, Slot>>,
    /// By the name of their folder.
    indexes: Mutex<HashMap<String, Arc<RepositoryIndex>>>,
    /// Held by whoever changes which packs are not relied on.
    doubting: tokio::sync::Mutex<()>,
}

/// An open repository, or the turn of the one who opens it: one that does not answer delays no other.
type Slot = Arc<tokio::sync::Mutex<Option<Arc<OpenRepository>>>>;

/// One open repository.
pub struct OpenRepository {
    /// Its name.
    pub name: RepositoryName,
    /// As it was declared when it was opened.
    pub spec: RepositorySpec,
    repository: Repository,
    index: Arc<RepositoryIndex>,
}

/// The error of a repository as callers see it.
pub fn repository_failure(name: &RepositoryName, error: &RepositoryError) -> Failure {
    Failure::from_error(error.code(), error).then(format!("holdfast repo check {name}"))
}

/// The error of a storage as callers see it.
pub fn storage_failure(name: &RepositoryName, error: &StorageError) -> Failure {
    Failure::from_error(error.code(), error).then(format!("holdfast repo check {name}"))
}

impl Repositories {
    /// No repository is open yet. Their indexes are kept in a folder.
    pub fn new(
        secrets: Secrets,
        clock: SharedClock,
        records: Records,
        index_folder: PathBuf,
        tasks: TaskGroup,
    ) -> Self {
        let (open, indexes) = (Mutex::default(), Mutex::default());
        let doubting = tokio::sync::Mutex::default();
        Self { secrets, clock, records, index_folder, tasks, open, indexes, doubting }
    }

    /// The repository of a definition, opened if it was not. Opening costs the derivation of the key (0.2 s), two
    /// listings, and the reading of the index objects that are not known yet.
    ///
    /// # Errors
    /// Those of secrets, storage and repository: `HF-1006`, `HF-3001`, `HF-3003`, `HF-3008`, …
    pub async fn get(
        &self,
        name: &RepositoryName,
        spec: &RepositorySpec,
    ) -> Result<Arc<OpenRepository>, Failure> {
        let slot = self.open.lock().entry(name.clone()).or_default().clone();
        let mut open = slot.lock().await;
        if let Some(found) = open.as_ref().filter(|found| found.spec == *spec) {
            return Ok(found.clone());
        }
        let password = self.secrets.resolve(&spec.encryption.key).await?;
        let store = self.location(spec)?.open(&self.options(spec).await?);
        let store = store.map_err(|error| storage_failure(name, &error))?;
        let repository =
            Repository::open(store, &password).await.map_err(|error| repository_failure(name, &error))?;
        let opened = Arc::new(self.load(name, spec, repository).await?);
        *open = Some(opened.clone());
        Ok(opened)
    }

    /// Creates the repository of a definition, or opens the one that is there. Says whether it was created.
    ///
    /// # Errors
    /// As for [`Repositories::get`], except `HF-3001`.
    pub async fn init(
        &self,
        name: &RepositoryName,
        spec: &RepositorySpec,
    ) -> Result<(Arc<OpenRepository>, bool), Failure> {
        let password = self.secrets.resolve(&spec.encryption.key).await?;
        let options = self.options(spec).await?;
        let store =
            self.location(spec)?.create(&options).await.map_err(|error| storage_failure(name, &error))?;
        match self.get(name, spec).await {
            Ok(found) => return Ok((found, false)),
            Err(failure) if failure.code == ErrorCode::RepositoryMissing => {}
            Err(failure) => return Err(failure),
        }
        let options = CreateOptions {
            cost: ScryptCost::default(),
            origin: KeyOrigin {
                created: self.clock.now(),
                hostname: crate::hostname(),
                username: "holdfast-controller".to_owned(),
            },
        };
        let created = Repository::create(store, &password, options).await;
        created.map_err(|error| repository_failure(name, &error))?;
        Ok((self.get(name, spec).await?, true))
    }

    /// Closes every index, so that it need not be built anew when the machine starts again. Called at the end.
    pub async fn close(&self) {
        let indexes = std::mem::take(&mut *self.indexes.lock());
        for (folder, index) in indexes {
            if let Err(failure) = index.close().await {
                tracing::warn!(folder, %failure, "the index of a repository was not closed in order");
            }
        }
    }

    /// Removes the folders of indexes that are not open and were last opened or closed before a time, in seconds since
    /// 1970. Blocks.
    ///
    /// # Errors
    /// `HF-4004`.
    pub fn remove_unused_indexes(&self, before: i64) -> Result<(), Failure> {
        use std::os::unix::fs::MetadataExt as _;
        let failed = |error: std::io::Error| Failure::from_error(ErrorCode::StateUnavailable, &error);
        // Held, so that none of them is opened meanwhile.
        let open = self.indexes.lock();
        let folders = match std::fs::read_dir(&self.index_folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed)?,
        };
        for folder in folders {
            let folder = folder.map_err(failed)?;
            let is_open = folder.file_name().to_str().is_some_and(|name| open.contains_key(name));
            let used = std::fs::metadata(folder.path().join("marker")).or_else(|_| folder.metadata());
            if !is_open && used.map_err(failed)?.mtime() < before {
                std::fs::remove_dir_all(folder.path()).map_err(failed)?;
                tracing::info!(folder = %folder.path().display(), "removed the index of a repository not in use");
            }
        }
        Ok(())
    }

    fn location(&self, spec: &RepositorySpec) -> Result<Location, Failure> {
        Location::from_str(&spec.url).map_err(|error| Failure::from_error(error.code(), &error))
    }

    async fn options(&self, spec: &RepositorySpec) -> Result<LocationOptions, Failure> {
        let mut options = LocationOptions {
            endpoint: spec.endpoint.clone(),
            region: spec.region.clone(),
            ..LocationOptions::default()
        };
        if let Some(credentials) = &spec.credentials {
            options.access_key_id = Some(self.secrets.resolve(&credentials.access_key).await?);
            options.secret_access_key = Some(self.secrets.resolve(&credentials.secret_key).await?);
        }
        Ok(options)
    }

    /// Brings the index up to date. The first time, packs that are durable but in no index object are taken in: those of a
    /// run that ended early.
    async fn load(
        &self,
        name: &RepositoryName,
        spec: &RepositorySpec,
        repository: Repository,
    ) -> Result<OpenRepository, Failure> {
        let index = self.index(spec, &repository)?;
        let opened = OpenRepository { name: name.clone(), spec: spec.clone(), repository, index };
        let read = opened.update_index().await?;
        opened.index.doubt(self.damaged_packs(name).await?.packs.into_iter().collect());
        let adopted = opened.index.adopt_once(opened.adopt_packs()).await?;
        self.doubt(&opened, &opened.doubted()).await?;
        let (packs, blobs) = opened.counts();
        tracing::info!(repository = %name, packs, blobs, index_objects_read = read, adopted, "repository opened");
        Ok(opened)
    }

    /// The index of a repository in its place. A copy of a repository has the same id but not the same packs, so the
    /// place counts too.
    fn index(&self, spec: &RepositorySpec, repository: &Repository) -> Result<Arc<RepositoryIndex>, Failure> {
        use sha2::Digest as _;
        let place = sha2::Sha256::new()
            .chain_update(&spec.url)
            .chain_update([0])
            .chain_update(spec.endpoint.as_deref().unwrap_or_default())
            .finalize();
        let id = repository.config().id.to_string();
        let folder = format!("{}-{}", &id[..16], hex::encode(&place[..4]));
        let mut indexes = self.indexes.lock();
        if let Some(index) = indexes.get(&folder) {
            return Ok(index.clone());
        }
        let index = RepositoryIndex::open(self.index_folder.join(&folder), self.clock.clone(), &self.tasks)?;
        let index = Arc::new(index);
        indexes.insert(folder, index.clone());
        Ok(index)
    }

    /// Resolves a secret of a definition; for doctor.
    ///
    /// # Errors
    /// `HF-1006`.
    pub async fn probe_secret(&self, reference: &SecretRef) -> Result<(), Failure> {
        self.secrets.resolve(reference).await.map(|_| ())
    }
}

impl OpenRepository {
    /// The repository itself.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Its storage.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        self.repository.store()
    }

    /// Which of these blobs of one type it has, as far as is known in packs that are whole.
    ///
    /// # Errors
    /// When the index can not be read.
    pub async fn known(&self, blob_type: BlobType, ids: &[BlobId]) -> Result<Vec<bool>, Failure> {
        self.index.known(self, blob_type, ids).await
    }

    /// Where these blobs of one type are.
    ///
    /// # Errors
    /// When the index can not be read.
    pub async fn locate(
        &self,
        blob_type: BlobType,
        ids: &[BlobId],
    ) -> Result<Vec<Option<BlobLocation>>, Failure> {
        self.index.locate(self, blob_type, ids).await
    }

    /// The packs that are damaged or gone, as far as is known.
    pub fn doubted(&self) -> Vec<PackId> {
        self.index.doubted()
    }

    /// How many objects of a kind its storage holds, and their bytes. Costs a listing.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn stored(&self, kind: ObjectKind) -> Result<(u64, u64), Failure> {
        let failed = |error| storage_failure(&self.name, &error);
        let mut objects = self.store().list(kind).await.map_err(failed)?;
        let (mut count, mut bytes) = (0, 0);
        while let Some((_, length)) = objects.try_next().await.map_err(failed)? {
            count += 1;
            bytes += length;
        }
        Ok((count, bytes))
    }

    /// Its index.
    pub fn index(&self) -> &RepositoryIndex {
        &self.index
    }

    /// Numbers of packs and blobs; a blob counts for each pack that it is in.
    pub fn counts(&self) -> (usize, u64) {
        self.index.counts()
    }

    /// Reads the index objects that another program has added, and builds the index anew when it has removed some. Says
    /// how many were read.
    ///
    /// # Errors
    /// Those of the storage and of the state; `HF-3006` when an index object is damaged.
    pub async fn update_index(&self) -> Result<usize, Failure> {
        self.index.update(self).await
    }

    /// Takes in packs that are in no index object, and doubts those that the index knows and the storage lacks. Says how
    /// many were taken in.
    async fn adopt_packs(&self) -> Result<usize, Failure> {
        let failed = |error: StorageError| storage_failure(&self.name, &error);
        let mut orphans = Vec::new();
        let mut gone: IdSet<PackId> = self.index.packs().into_iter().collect();
        let mut packs = self.store().list(ObjectKind::Pack).await.map_err(failed)?;
        while let Some((object, _)) = packs.try_next().await.map_err(failed)? {
            if let ObjectName::Pack(pack) = object
                && !gone.remove(&pack)
                && !self.index.contains_pack(&pack)
            {
                orphans.push(pack);
            }
        }
        self.index.doubt(gone);
        let mut adopted = 0;
        for pack in orphans {
            match self.repository.read_pack_header(pack).await {
                Ok(entries) => match self.index.add(self, pack, entries).await {
                    // Too many wait for another program: the rest is garbage until it is stored again.
                    Err(failure) if failure.code == ErrorCode::RepositoryLocked => break,
                    added => {
                        added?;
                        adopted += 1;
                    }
                },
                // It is garbage until a snapshot needs it, and none does: nothing refers to what is in no index.
                Err(error) => {
                    tracing::warn!(repository = %self.name, %pack, %error, "a pack outside the index is damaged");
                }
            }
        }
        Ok(adopted)
    }

    /// Begins to take a pack; nothing when it is there already.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn begin_pack(&self, pack: PackId, length: u64) -> Result<Option<PackUpload>, Failure> {
        if self.index.contains_pack(&pack) {
            return Ok(None);
        }
        match self.store().begin_put(&ObjectName::Pack(pack), length).await {
            Ok(upload) => Ok(Some(PackUpload { upload, hasher: sha2::Sha256::default() })),
            Err(error) if error.kind() == StorageErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(storage_failure(&self.name, &error)),
        }
    }

    /// Enters a durable pack. On the way, an index object is written now and then, so that a crash costs little.
    ///
    /// # Errors
    /// As for [`OpenRepository::flush_index`].
    pub async fn pack_is_durable(&self, pack: PackId, entries: Vec<PackEntry>) -> Result<(), Failure> {
        self.index.add(self, pack, entries).await
    }

    /// Writes index objects for all packs that have none. When it returns, every pack that was durable before the call
    /// is in a durable index object.
    ///
    /// # Errors
    /// Those of the storage and of the state; the packs stay to be indexed.
    pub async fn flush_index(&self) -> Result<(), Failure> {
        self.index.flush(self).await
    }
}

/// A pack on its way to the storage, hashed as it passes.
pub struct PackUpload {
    upload: Box<dyn holdfast_repository::storage::ObjectUpload>,
    hasher: sha2::Sha256,
}

impl PackUpload {
    /// Adds the next bytes.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn write(&mut self, name: &RepositoryName, data: Bytes) -> Result<(), Failure> {
        use sha2::Digest as _;
        self.hasher.update(&data);
        self.upload.write(data).await.map_err(|error| storage_failure(name, &error))
    }

    /// Makes the pack durable, if its bytes are what its name says.
    ///
    /// # Errors
    /// `HF-3006` when they are not; those of the storage.
    pub async fn finish(self, name: &RepositoryName, pack: PackId) -> Result<(), Failure> {
        use sha2::Digest as _;
        let found: [u8; 32] = self.hasher.finalize().into();
        if PackId::from_bytes(found) != pack {
            return Err(Failure::new(
                ErrorCode::ObjectDamaged,
                format!("the bytes of pack {pack} do not have its hash: they were damaged on the way"),
            ));
        }
        match self.upload.finish().await {
            // The name is the hash of the bytes: whoever stored it stored the same.
            Err(error) if error.kind() == StorageErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(|error| storage_failure(name, &error)),
        }
    }
}
