//! The repositories that this controller holds open: storage, keys and the index of their blobs.
//!
//! What locks what: `open` is held only while a repository is looked up or opened; each repository has a lock on its
//! index in memory, held for moments, and a turn that orders the writing of index objects.

use std::collections::{BTreeSet, HashMap};
use std::str::FromStr as _;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;
use holdfast_model::ids::RepositoryName;
use holdfast_model::repository_spec::RepositorySpec;
use holdfast_model::secret::SecretRef;
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::format::{ObjectKind, ObjectName};
use holdfast_repository::id::{BlobId, IdSet, PackId};
use holdfast_repository::index::{BlobLocation, IndexPack, MemoryIndex};
use holdfast_repository::key_slot::{KeyOrigin, ScryptCost};
use holdfast_repository::pack::PackEntry;
use holdfast_repository::storage::location::{Location, LocationOptions};
use holdfast_repository::storage::{ObjectStore, StorageError, StorageErrorKind};
use holdfast_repository::{CreateOptions, Repository, RepositoryError};
use holdfast_runtime::SharedClock;
use parking_lot::{Mutex, RwLock};

use crate::records::{Batch, Records};
use crate::secrets::Secrets;
use crate::store::{Expect, Kind};

/// Packs that may be durable but in no index object before one is written on the way.
const UNINDEXED_PACKS_MAX: usize = 64;

/// Damaged packs that are remembered over a restart.
const DAMAGED_PACKS_KEPT_MAX: usize = 50_000;

/// The repositories held open.
pub struct Repositories {
    secrets: Secrets,
    clock: SharedClock,
    records: Records,
    open: tokio::sync::Mutex<HashMap<RepositoryName, Arc<OpenRepository>>>,
}

/// One open repository.
pub struct OpenRepository {
    /// Its name.
    pub name: RepositoryName,
    /// As it was declared when it was opened.
    pub spec: RepositorySpec,
    repository: Repository,
    index: RwLock<MemoryIndex>,
    unindexed: Mutex<Vec<IndexPack>>,
    index_turn: tokio::sync::Mutex<()>,
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
    /// No repository is open yet.
    pub fn new(secrets: Secrets, clock: SharedClock, records: Records) -> Self {
        Self { secrets, clock, records, open: tokio::sync::Mutex::default() }
    }

    /// The repository of a definition, opened if it was not. Opening costs the derivation of the key (0.2 s) and the
    /// reading of its index.
    ///
    /// # Errors
    /// Those of secrets, storage and repository: `HF-1006`, `HF-3001`, `HF-3003`, `HF-3008`, …
    pub async fn get(
        &self,
        name: &RepositoryName,
        spec: &RepositorySpec,
    ) -> Result<Arc<OpenRepository>, Failure> {
        let mut open = self.open.lock().await;
        if let Some(found) = open.get(name).filter(|found| found.spec == *spec) {
            return Ok(found.clone());
        }
        let password = self.secrets.resolve(&spec.encryption.key).await?;
        let store = self.location(spec)?.open(&self.options(spec).await?);
        let store = store.map_err(|error| storage_failure(name, &error))?;
        let repository =
            Repository::open(store, &password).await.map_err(|error| repository_failure(name, &error))?;
        let opened = Arc::new(self.load(name, spec, repository).await?);
        open.insert(name.clone(), opened.clone());
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

    /// Forgets an open repository, so that the next use opens it anew.
    pub async fn close(&self, name: &RepositoryName) {
        self.open.lock().await.remove(name);
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

    /// Loads the index, and takes in packs that are durable but in no index object: those of a run that ended early.
    async fn load(
        &self,
        name: &RepositoryName,
        spec: &RepositorySpec,
        repository: Repository,
    ) -> Result<OpenRepository, Failure> {
        let fail = |error: RepositoryError| repository_failure(name, &error);
        let mut present: IdSet<PackId> = IdSet::default();
        {
            let listed = repository.store().list(ObjectKind::Pack).await;
            let mut packs = listed.map_err(|error| storage_failure(name, &error))?;
            while let Some((object, _)) =
                packs.try_next().await.map_err(|error| storage_failure(name, &error))?
            {
                if let ObjectName::Pack(pack) = object {
                    present.insert(pack);
                }
            }
        }
        let damaged = self.damaged_packs(name).await?;
        let is_doubtful = |pack: &PackId| !present.contains(pack) || damaged.contains(pack);
        let mut index = repository.load_index_doubting(is_doubtful).await.map_err(fail)?;
        present.retain(|pack| !index.contains_pack(pack));
        let mut unindexed = Vec::new();
        for pack in present {
            match repository.read_pack_header(pack).await {
                Ok(entries) => {
                    index.insert_pack(pack, &entries);
                    unindexed.push(IndexPack { id: pack, entries });
                }
                // It is garbage until a snapshot needs it, and none does: nothing refers to what is in no index.
                Err(error) => {
                    tracing::warn!(repository = %name, %pack, %error, "a pack outside the index is damaged")
                }
            }
        }
        tracing::info!(repository = %name, blobs = index.len(), adopted = unindexed.len(), "repository opened");
        Ok(OpenRepository {
            name: name.clone(),
            spec: spec.clone(),
            repository,
            index: RwLock::new(index),
            unindexed: Mutex::new(unindexed),
            index_turn: tokio::sync::Mutex::default(),
        })
    }

    async fn damaged_packs(&self, name: &RepositoryName) -> Result<IdSet<PackId>, Failure> {
        let found = self.records.get::<Vec<PackId>>(Kind::DamagedPacks, name.as_str()).await?;
        Ok(found.map(|found| found.value.into_iter().collect()).unwrap_or_default())
    }

    /// Relies no more on packs that a check found damaged, also after a restart: what they hold is stored again by the
    /// next backup that needs it. A check that read everything says which packs are damaged and which are not any more;
    /// one that did not only adds to them.
    ///
    /// # Errors
    /// When the state can not be read or written.
    pub async fn doubt(
        &self,
        repository: &OpenRepository,
        found: &[PackId],
        read_everything: bool,
    ) -> Result<(), Failure> {
        let name = &repository.name;
        let known = self.damaged_packs(name).await?;
        let mut damaged: BTreeSet<PackId> = found.iter().copied().collect();
        if !read_everything {
            damaged.extend(known.iter().copied());
        }
        repository.index.write().doubt_only(damaged.iter().copied());
        if damaged.len() == known.len() && damaged.iter().all(|pack| known.contains(pack)) {
            return Ok(());
        }
        let kept: Vec<PackId> = damaged.into_iter().take(DAMAGED_PACKS_KEPT_MAX).collect();
        let batch = Batch::new("controller", "repository.damaged_packs", format!("repository/{name}"));
        self.records.commit(batch.put(Kind::DamagedPacks, name.as_str(), &kept, Expect::Any)).await?;
        Ok(())
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

    /// Which of these blobs it has, as far as is known in packs that are whole.
    pub fn known(&self, ids: impl Iterator<Item = BlobId>) -> Vec<bool> {
        let index = self.index.read();
        ids.map(|id| index.is_sound(&id)).collect()
    }

    /// Where these blobs are.
    pub fn locate(&self, ids: impl Iterator<Item = BlobId>) -> Vec<Option<BlobLocation>> {
        let index = self.index.read();
        ids.map(|id| index.get(&id)).collect()
    }

    /// The packs that are damaged or gone, as far as is known.
    pub fn doubted(&self) -> Vec<PackId> {
        self.index.read().doubted().collect()
    }

    /// Numbers of packs and blobs.
    pub fn counts(&self) -> (usize, usize) {
        let index = self.index.read();
        (index.packs().len(), index.len())
    }

    /// Begins to take a pack; nothing when it is there already.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn begin_pack(&self, pack: PackId, length: u64) -> Result<Option<PackUpload>, Failure> {
        if self.index.read().contains_pack(&pack) {
            return Ok(None);
        }
        match self.store().begin_put(&ObjectName::Pack(pack), length).await {
            Ok(upload) => Ok(Some(PackUpload { upload, hasher: sha2::Sha256::default() })),
            Err(error) if error.kind() == StorageErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(storage_failure(&self.name, &error)),
        }
    }

    /// Enters a durable pack into the index in memory. On the way, an index object is written now and then, so that a
    /// crash costs little.
    ///
    /// # Errors
    /// Those of the storage, from writing an index object.
    pub async fn pack_is_durable(&self, pack: PackId, entries: Vec<PackEntry>) -> Result<(), Failure> {
        let waiting = {
            let mut index = self.index.write();
            let mut unindexed = self.unindexed.lock();
            if !index.contains_pack(&pack) {
                index.insert_pack(pack, &entries);
                unindexed.push(IndexPack { id: pack, entries });
            }
            unindexed.len()
        };
        if waiting >= UNINDEXED_PACKS_MAX { self.flush_index().await } else { Ok(()) }
    }

    /// Writes index objects for all packs that have none. When it returns, every pack that was durable before the call
    /// is in a durable index object.
    ///
    /// # Errors
    /// Those of the storage; the packs stay to be indexed.
    pub async fn flush_index(&self) -> Result<(), Failure> {
        // Whoever comes second waits for the first, which may have taken his packs.
        let _turn = self.index_turn.lock().await;
        let packs = std::mem::take(&mut *self.unindexed.lock());
        if packs.is_empty() {
            return Ok(());
        }
        holdfast_runtime::fail_point::hit("controller-before-index");
        if let Err(error) = self.repository.save_index(&packs).await {
            self.unindexed.lock().extend(packs);
            return Err(repository_failure(&self.name, &error));
        }
        holdfast_runtime::fail_point::hit("controller-after-index");
        Ok(())
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
