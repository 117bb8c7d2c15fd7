//! Objects in an S3-compatible store, over `opendal`. Nothing outside this file knows that library.
//!
//! Create-only is a promise of the store (`If-None-Match: *`) that some stores advertise and do not keep. So it is
//! tested before the first write: a store that lets the second of two writes win is asked for the name before each
//! write instead, see [`CreateOnly`].

use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use holdfast_model::secret::Secret;
use holdfast_runtime::BackoffPolicy;
use opendal::layers::{ConcurrentLimitLayer, RetryLayer, TimeoutLayer};
use opendal::options::{ListOptions, ReadOptions, WriteOptions};
use opendal::{Buffer, ErrorKind, Operator, services};
use tokio::sync::OnceCell;

use super::{
    CreateOnly, OBJECT_BYTES_MAX, ObjectList, ObjectStore, ObjectUpload, StorageError, StorageErrorKind,
    StorageProbe,
};
use crate::format::{ObjectKind, ObjectName};

/// Objects above this size are sent in parts; smaller ones in one request, so that no unfinished parts can be left.
const WHOLE_BYTES_MAX: u64 = 64 << 20;
/// The size of such a part.
const PART_BYTES: usize = 16 << 20;
/// Parts of one object that travel at the same time.
const PARTS_IN_FLIGHT: usize = 2;

/// How a bucket is reached.
#[derive(Debug, Clone)]
pub struct S3Options {
    /// The bucket.
    pub bucket: String,
    /// The folder of the repository in it, without slashes at its ends; empty for the whole bucket.
    pub prefix: String,
    /// The address of the store; the one of AWS when missing.
    pub endpoint: Option<String>,
    /// The region; `us-east-1` when missing.
    pub region: Option<String>,
    /// Whether the bucket is named in the path (most stores of one's own) instead of the host (OSS, COS).
    pub path_style: bool,
    /// The access key id. Without it, the environment, the profile and the instance's role are asked.
    pub access_key_id: Option<Secret>,
    /// The secret access key.
    pub secret_access_key: Option<Secret>,
    /// The token of temporary credentials.
    pub session_token: Option<Secret>,
    /// Requests at the same time.
    pub requests_max: usize,
    /// How long a request without a body may take.
    pub request_timeout: Duration,
    /// How long sending or receiving one body may take.
    pub transfer_timeout: Duration,
    /// How often a request is tried again after a failure that may pass by itself.
    pub retries_max: u32,
}

impl S3Options {
    /// A bucket and a folder in it, with limits that suit a store across the internet.
    pub fn new(bucket: impl Into<String>, prefix: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: prefix.into(),
            endpoint: None,
            region: None,
            path_style: true,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            requests_max: 16,
            request_timeout: Duration::from_secs(30),
            transfer_timeout: Duration::from_secs(300),
            retries_max: 5,
        }
    }
}

/// Between attempts: 0.2 s growing to 10 s, half of it random.
const RETRY: BackoffPolicy = BackoffPolicy {
    initial: Duration::from_millis(200),
    max: Duration::from_secs(10),
    factor: 2.0,
    jitter: 0.5,
};

/// A storage in a bucket.
#[derive(Debug, Clone)]
pub struct S3Store {
    /// Asks once. Calls that can be tried again are, by [`Self::retry`] and [`Self::put_whole`], which see each failure:
    /// a conditional write that is repeated and finds its own object must not call it taken.
    once: Operator,
    /// Tries again within one call. For lists and uploads in parts, whose middle cannot be repeated from outside.
    patient: Operator,
    retries_max: u32,
    create_only: std::sync::Arc<OnceCell<CreateOnly>>,
}

impl S3Store {
    /// A storage with these options. Sends nothing yet.
    ///
    /// # Errors
    /// `Other` when the options do not fit together.
    pub fn new(options: &S3Options) -> Result<Self, StorageError> {
        // Fails when the binary chose its provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        opendal_http_transport_reqwest::install_default();
        let limit = ConcurrentLimitLayer::new(options.requests_max);
        let timeout = TimeoutLayer::new()
            .with_timeout(options.request_timeout)
            .with_io_timeout(options.transfer_timeout);
        let retry = RetryLayer::new()
            .with_min_delay(RETRY.initial)
            .with_max_delay(RETRY.max)
            .with_factor(2.0)
            .with_max_times(options.retries_max as usize)
            .with_jitter();
        let bare = Operator::new(builder(options)).map_err(|error| from_opendal(error, None))?.layer(timeout);
        Ok(Self {
            once: bare.clone().layer(limit.clone()),
            patient: bare.layer(retry).layer(limit),
            retries_max: options.retries_max,
            create_only: std::sync::Arc::default(),
        })
    }

    /// Makes a call that may be repeated without harm, again while its failure may pass by itself.
    async fn retry<T, F>(&self, call: impl Fn() -> F) -> opendal::Result<T>
    where
        F: Future<Output = opendal::Result<T>>,
    {
        let mut failures = 0;
        loop {
            match call().await {
                Err(error) if error.is_temporary() && failures < self.retries_max => {
                    failures += 1;
                    tokio::time::sleep(RETRY.delay(failures, rand::random())).await;
                }
                result => return result,
            }
        }
    }

    /// Who keeps create-only; finds out by a trial the first time.
    async fn create_only(&self) -> Result<CreateOnly, StorageError> {
        let probe = || async { self.try_twice().await.map(|(create_only, _, _)| create_only) };
        self.create_only.get_or_try_init(probe).await.copied()
    }

    /// Writes a small object of its own twice, create-only both times, and reads what is there then. Also tells how
    /// long the first write and the read took.
    async fn try_twice(&self) -> Result<(CreateOnly, Duration, Duration), StorageError> {
        let key = format!("holdfast-probe-{:016x}", rand::random::<u64>());
        let started = Instant::now();
        let written = self.retry(|| self.once.write(&key, "first")).await;
        written.map_err(|error| from_opendal(error, None))?;
        let write_latency = started.elapsed();
        // A store that does not know the condition may refuse it or pass it over: only this refusal is the right one.
        let second =
            self.retry(|| self.once.write_options(&key, "second", condition(CreateOnly::Kept))).await;
        let refused = second.is_err_and(|error| is_taken(&error));
        let started = Instant::now();
        let content = self.retry(|| self.once.read(&key)).await;
        let read_latency = started.elapsed();
        self.retry(|| self.once.delete(&key)).await.map_err(|error| from_opendal(error, None))?;
        let kept = refused && content.map_err(|error| from_opendal(error, None))?.to_bytes() == "first";
        let create_only = if kept { CreateOnly::Kept } else { CreateOnly::AskedBefore };
        Ok((create_only, write_latency, read_latency))
    }

    /// Stores a new object in one request, tried again while the failure may pass by itself.
    async fn put_whole(&self, name: &ObjectName, data: Buffer) -> Result<(), StorageError> {
        let create_only = self.create_only().await?;
        let key = name.path();
        let mut failures = 0;
        loop {
            let written = match create_only {
                CreateOnly::AskedBefore if self.exists(name).await? => Err(taken()),
                _ => self.once.write_options(&key, data.clone(), condition(create_only)).await,
            };
            let error = match written {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let is_taken = is_taken(&error);
            if is_taken && failures > 0 && self.holds(name, &data).await? {
                // An earlier attempt had stored it, only its answer was lost.
                return Ok(());
            }
            if is_taken || !error.is_temporary() || failures == self.retries_max {
                return Err(from_opendal(error, Some(name)));
            }
            failures += 1;
            tokio::time::sleep(RETRY.delay(failures, rand::random())).await;
        }
    }

    async fn exists(&self, name: &ObjectName) -> Result<bool, StorageError> {
        let key = name.path();
        self.retry(|| self.once.exists(&key)).await.map_err(|error| from_opendal(error, Some(name)))
    }

    async fn holds(&self, name: &ObjectName, data: &Buffer) -> Result<bool, StorageError> {
        Ok(self.size(name).await? == data.len() as u64 && self.get(name).await? == data.to_bytes())
    }
}

fn builder(options: &S3Options) -> services::S3 {
    let region = options.region.as_deref().unwrap_or("us-east-1");
    let root = format!("/{}/", options.prefix.trim_matches('/'));
    let mut builder = services::S3::default().bucket(&options.bucket).root(&root).region(region);
    if let Some(endpoint) = &options.endpoint {
        builder = builder.endpoint(endpoint);
    }
    if !options.path_style {
        builder = builder.enable_virtual_host_style();
    }
    if let (Some(id), Some(key)) = (&options.access_key_id, &options.secret_access_key) {
        let builder_with_keys = builder
            .access_key_id(id.reveal())
            .secret_access_key(key.reveal())
            // Credentials that were given are the only ones that are used.
            .disable_config_load()
            .disable_ec2_metadata();
        builder = match &options.session_token {
            Some(token) => builder_with_keys.session_token(token.reveal()),
            None => builder_with_keys,
        };
    }
    builder
}

fn condition(create_only: CreateOnly) -> WriteOptions {
    WriteOptions { if_not_exists: create_only == CreateOnly::Kept, ..WriteOptions::default() }
}

fn is_taken(error: &opendal::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConditionNotMatch | ErrorKind::AlreadyExists)
}

fn taken() -> opendal::Error {
    opendal::Error::new(ErrorKind::AlreadyExists, "the name is taken")
}

fn damaged(name: &ObjectName, detail: String) -> StorageError {
    StorageError::new(StorageErrorKind::Damaged).object(name).detail(detail)
}

/// Takes an error of the library. It holds the URL of the object and the answer of the store, no credentials: requests
/// are signed in a header.
fn from_opendal(error: opendal::Error, name: Option<&ObjectName>) -> StorageError {
    // Stores have no common word for "full"; these are those of MinIO, Ceph, Azure's gateways and SeaweedFS.
    const FULL: [&str; 4] = ["XMinioStorageFull", "QuotaExceeded", "InsufficientStorage", "no free volumes"];
    let is_full = FULL.iter().any(|word| error.message().contains(word));
    // After its own retries the library calls every failure "persistent": what kind it is must tell then.
    let may_pass =
        matches!(error.kind(), ErrorKind::Unexpected | ErrorKind::RateLimited | ErrorKind::Conflict);
    let passing = error.is_temporary() || (error.is_persistent() && may_pass);
    let kind = match error.kind() {
        _ if is_full => StorageErrorKind::Full,
        ErrorKind::NotFound => StorageErrorKind::NotFound,
        ErrorKind::PermissionDenied => StorageErrorKind::Denied,
        ErrorKind::ConditionNotMatch | ErrorKind::AlreadyExists => StorageErrorKind::AlreadyExists,
        ErrorKind::RangeNotSatisfied => StorageErrorKind::Damaged,
        ErrorKind::RateLimited | ErrorKind::ConfigInvalid => StorageErrorKind::Unreachable,
        _ if passing => StorageErrorKind::Unreachable,
        _ => StorageErrorKind::Other,
    };
    let mut mapped = StorageError::new(kind).transient(passing && !is_full);
    if error.kind() == ErrorKind::ConfigInvalid {
        mapped = mapped.detail("the bucket or the options are not valid");
    }
    if let Some(name) = name {
        mapped = mapped.object(name);
    }
    mapped.caused_by(error)
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn put(&self, name: &ObjectName, data: Bytes) -> Result<(), StorageError> {
        if data.len() as u64 <= WHOLE_BYTES_MAX {
            return self.put_whole(name, Buffer::from(data)).await;
        }
        let mut upload = self.begin_put(name, data.len() as u64).await?;
        upload.write(data).await?;
        upload.finish().await
    }

    async fn begin_put(&self, name: &ObjectName, length: u64) -> Result<Box<dyn ObjectUpload>, StorageError> {
        let create_only = self.create_only().await?;
        let way = if length <= WHOLE_BYTES_MAX {
            Way::Whole(Vec::new())
        } else {
            if create_only == CreateOnly::AskedBefore && self.exists(name).await? {
                return Err(StorageError::new(StorageErrorKind::AlreadyExists).object(name));
            }
            let options = WriteOptions {
                chunk: Some(PART_BYTES),
                concurrent: PARTS_IN_FLIGHT,
                ..condition(create_only)
            };
            let writer = self.patient.writer_options(&name.path(), options).await;
            Way::Parts(Box::new(writer.map_err(|error| from_opendal(error, Some(name)))?))
        };
        Ok(Box::new(S3Upload { store: self.clone(), name: *name, length, written: 0, way }))
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        let size = self.size(name).await?;
        if size > OBJECT_BYTES_MAX {
            return Err(damaged(name, format!("{size} bytes are more than an object may have")));
        }
        self.get_range(name, 0, size).await
    }

    async fn get_range(&self, name: &ObjectName, offset: u64, length: u64) -> Result<Bytes, StorageError> {
        let key = name.path();
        let end = offset.checked_add(length).filter(|_| length > 0);
        let Some(end) = end else {
            // No request can ask for nothing, or for more than there can be: whether the object is there still counts.
            let size = self.size(name).await?;
            return match offset <= size && length == 0 {
                true => Ok(Bytes::new()),
                false => {
                    Err(damaged(name, format!("it has {size} bytes, {length} from {offset} on were wanted")))
                }
            };
        };
        let options = ReadOptions { range: (offset..end).into(), ..ReadOptions::default() };
        match self.retry(|| self.once.read_options(&key, options.clone())).await {
            Ok(data) if data.len() as u64 == length => Ok(data.to_bytes()),
            Ok(data) => Err(damaged(name, format!("{} bytes came, {length} were wanted", data.len()))),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(from_opendal(error, Some(name))),
            Err(error) => {
                // An object that is too short answers in as many ways as there are stores: its size decides.
                let error = from_opendal(error, Some(name));
                match self.size(name).await {
                    Ok(size) if size < end => Err(damaged(
                        name,
                        format!("it has {size} bytes, {length} from {offset} on were wanted"),
                    )),
                    _ => Err(error),
                }
            }
        }
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StorageError> {
        let key = name.path();
        let metadata = self.retry(|| self.once.stat(&key)).await;
        metadata.map(|found| found.content_length()).map_err(|error| from_opendal(error, Some(name)))
    }

    async fn list(&self, kind: ObjectKind) -> Result<ObjectList<'_>, StorageError> {
        if kind == ObjectKind::Config {
            let found = match self.size(&ObjectName::Config).await {
                Ok(size) => Some(Ok((ObjectName::Config, size))),
                Err(error) if error.kind() == StorageErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            return Ok(stream::iter(found).boxed());
        }
        let options = ListOptions { recursive: true, ..ListOptions::default() };
        let lister = self.patient.lister_options(&format!("{}/", kind.folder()), options).await;
        let entries = lister.map_err(|error| from_opendal(error, None))?;
        let listed = entries.filter_map(move |entry| async move {
            match entry {
                Ok(entry) => {
                    let name = ObjectName::parse(entry.path()).filter(|name| name.kind() == kind)?;
                    Some(Ok((name, entry.metadata().content_length())))
                }
                Err(error) => Some(Err(from_opendal(error, None))),
            }
        });
        Ok(listed.boxed())
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        let key = name.path();
        self.retry(|| self.once.delete(&key)).await.map_err(|error| from_opendal(error, Some(name)))
    }

    async fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<(), StorageError> {
        let (old, new) = (from.path(), to.path());
        let copied = self.retry(|| self.once.copy(&old, &new)).await;
        copied.map_err(|error| from_opendal(error, Some(from)))?;
        // A store that says it copied and did not must not cost the object.
        let (copied, there) = (self.size(to).await?, self.size(from).await?);
        if copied != there {
            return Err(damaged(to, format!("the copy has {copied} bytes, the object has {there}")));
        }
        self.delete(from).await
    }

    async fn probe(&self) -> Result<StorageProbe, StorageError> {
        let (create_only, write_latency, read_latency) = self.try_twice().await?;
        // What the first trial of this process found stays in force; a store does not change under us.
        let _ = self.create_only.set(create_only);
        Ok(StorageProbe {
            free_bytes: None,
            total_bytes: None,
            create_only,
            write_latency,
            read_latency,
            stale_temporary_files: 0,
            stale_temporary_bytes: 0,
        })
    }
}

/// An upload: collected and sent at its end, or sent in parts when it is large.
struct S3Upload {
    store: S3Store,
    name: ObjectName,
    length: u64,
    written: u64,
    way: Way,
}

enum Way {
    Whole(Vec<Bytes>),
    Parts(Box<opendal::Writer>),
    /// After an error.
    Over,
}

impl S3Upload {
    fn wrong_length(&self) -> StorageError {
        damaged(&self.name, format!("{} bytes came, {} were announced", self.written, self.length))
    }

    /// Ends a failed upload and removes its parts. Parts of an upload that was dropped, or whose process died, stay
    /// in the store, invisible, until the bucket's own rule for unfinished uploads removes them.
    async fn give_up(&mut self) {
        if let Way::Parts(mut writer) = std::mem::replace(&mut self.way, Way::Over) {
            // The error that led here is the one to report.
            let _ = writer.abort().await;
        }
    }
}

#[async_trait]
impl ObjectUpload for S3Upload {
    async fn write(&mut self, data: Bytes) -> Result<(), StorageError> {
        self.written += data.len() as u64;
        let result = match &mut self.way {
            _ if self.written > self.length => Err(self.wrong_length()),
            Way::Over => Err(StorageError::new(StorageErrorKind::Other).detail("the upload failed before")),
            Way::Whole(pieces) => {
                pieces.push(data);
                Ok(())
            }
            Way::Parts(writer) => {
                writer.write(data).await.map_err(|error| from_opendal(error, Some(&self.name)))
            }
        };
        if result.is_err() {
            self.give_up().await;
        }
        result
    }

    async fn finish(mut self: Box<Self>) -> Result<(), StorageError> {
        if self.written != self.length {
            self.give_up().await;
            return Err(self.wrong_length());
        }
        match std::mem::replace(&mut self.way, Way::Over) {
            Way::Over => Err(StorageError::new(StorageErrorKind::Other).detail("the upload failed before")),
            Way::Whole(pieces) => self.store.put_whole(&self.name, Buffer::from(pieces)).await,
            Way::Parts(mut writer) => {
                let Err(error) = writer.close().await else { return Ok(()) };
                let error = from_opendal(error, Some(&self.name));
                self.way = Way::Parts(writer);
                self.give_up().await;
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests;
