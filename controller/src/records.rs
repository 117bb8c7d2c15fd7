//! Which records there are, under which keys: the one place that knows both the store and the domain.
//!
//! | kind | keys |
//! |---|---|
//! | definition | `KIND/NAME`, such as `repositories/NAME`, `sources/NAME`, `channels/NAME` |
//! | run | `run/ID`; `active/ID` for those that have not ended; `last-backup/SOURCE`, `last-success/SOURCE/TYPE` |
//! | run | `last-clean-check/REPOSITORY`, `last-clean-read/REPOSITORY`; [`crate::run_totals`] |
//! | run | `last-prune/REPOSITORY`, `garbage/REPOSITORY` |
//! | snapshot | `id/ID` the record; `all/TIME/ID` and `source/NAME/TIME/ID` for order |
//! | agent | `NAME` |
//! | session | `NAME`: which fact of which outbox was taken last |
//! | hold | snapshot id |
//! | plan | plan id |
//! | slot, pause, debug | `SOURCE` |
//! | alert | `alert/ID`, `silence/ID`, `head` |
//! | outbox | `CHANNEL/MESSAGE` |
//! | delivery | `TIME-NUMBER` |
//! | report | `slot/NAME`, `size/REPOSITORY`, `removed/REPOSITORY`, `messages/CHANNEL` |
//! | idempotency key | `CALLER/KEY`: the ids of what the first request made |

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_model::ids::{AgentName, RepositoryName, RunId, SnapshotId, SourceName};
use holdfast_model::run::{Run, RunSpec, SnapshotType};
use holdfast_model::run_state::Phase;
use holdfast_model::snapshot::{Hold, SnapshotRecord};
use holdfast_model::{ErrorCode, Failure};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::pki::token::Redeemable;
use crate::store::{self, Audit, Expect, Kind, Scan, Store, StoreError, Versioned};

/// The records of the controller. Clones share the store.
#[derive(Clone)]
pub struct Records {
    store: Arc<dyn Store>,
}

/// Which fact of an agent was taken last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxPosition {
    /// The agent.
    pub agent: AgentName,
    /// Identity of its outbox.
    pub outbox_id: String,
    /// Number of the fact.
    pub seq: u64,
}

/// The answer given to an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// Hash of the request, so that a key is not used for two.
    pub request: String,
    /// Ids of what it made.
    pub ids: Vec<String>,
}

/// Copies of one snapshot that are looked at.
const COPIES_MAX: usize = 1000;

/// What to store together, with the entry of the audit log that says why.
pub struct Batch {
    inner: store::Batch,
}

impl Batch {
    /// A batch on behalf of an actor.
    pub fn new(actor: impl Into<String>, action: impl Into<String>, target: impl Into<String>) -> Self {
        Self { inner: store::Batch::new(Audit::done(actor, action, target)) }
    }

    /// That something was refused to an actor: nothing but the entry of the audit log.
    pub fn refused(
        actor: impl Into<String>,
        action: impl Into<String>,
        target: impl Into<String>,
        code: ErrorCode,
    ) -> Self {
        Self { inner: store::Batch::new(Audit::refused(actor, action, target, code)) }
    }

    /// Writes a value.
    #[must_use]
    pub fn put<T: Serialize>(
        mut self,
        kind: Kind,
        key: impl Into<String>,
        value: &T,
        expect: Expect,
    ) -> Self {
        self.inner.put(kind, key, value, expect);
        self
    }

    /// Uses an enrolment token up: of all batches that do so, one can be committed.
    #[must_use]
    pub fn consume(mut self, token: &Redeemable) -> Self {
        token.consume(&mut self.inner);
        self
    }

    /// How much it writes, in bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.inner.bytes()
    }

    /// Removes a record.
    #[must_use]
    pub fn delete(mut self, kind: Kind, key: impl Into<String>, expect: Expect) -> Self {
        self.inner.delete(kind, key, expect);
        self
    }

    /// Writes a run that did not exist.
    #[must_use]
    pub fn put_new_run(self, run: &Run) -> Self {
        self.put(Kind::Run, run_key(run.id), run, Expect::Absent).put(
            Kind::Run,
            active_key(run.id),
            &(),
            Expect::Absent,
        )
    }

    /// Writes a changed run, and takes it from the active ones when it has ended.
    #[must_use]
    pub fn put_run(self, run: &Run, version: u64) -> Self {
        let batch = self.put(Kind::Run, run_key(run.id), run, Expect::Version(version));
        if !run.state.phase.is_terminal() {
            return batch;
        }
        let batch = batch.delete(Kind::Run, active_key(run.id), Expect::Any);
        match (&run.spec, run.spec.repository()) {
            (RunSpec::Backup { .. }, _) if matches!(run.state.phase, Phase::Skipped(_)) => batch,
            (RunSpec::Backup { source, repository, snapshot_type, .. }, _) => {
                let batch = batch.put(Kind::Run, format!("last-backup/{source}"), &run.id, Expect::Any);
                // What it stored and no snapshot needs is garbage.
                let batch = if run.snapshot.is_none() { batch.garbage(repository) } else { batch };
                match run.state.phase {
                    Phase::Succeeded { .. } => {
                        let key = format!("last-success/{source}/{snapshot_type}");
                        batch.put(Kind::Run, key, &run.ended_at, Expect::Any)
                    }
                    _ => batch,
                }
            }
            (RunSpec::Prune { .. }, Some(repository)) => {
                batch.put(Kind::Run, format!("last-prune/{repository}"), &run.ended_at, Expect::Any)
            }
            // What it stored and no copy needs is garbage.
            (RunSpec::Copy { .. }, Some(repository))
                if !matches!(run.state.phase, Phase::Succeeded { .. }) =>
            {
                batch.garbage(repository)
            }
            (RunSpec::Check { read_data, only_due: false, .. }, Some(repository)) if run.is_clean() => {
                let put = |batch: Self, key: String| batch.put(Kind::Run, key, &run.ended_at, Expect::Any);
                let batch = put(batch, format!("last-clean-check/{repository}"));
                if *read_data { put(batch, format!("last-clean-read/{repository}")) } else { batch }
            }
            _ => batch,
        }
    }

    /// Remembers which fact was taken.
    #[must_use]
    pub fn put_outbox(self, position: &OutboxPosition) -> Self {
        self.put(Kind::Session, position.agent.as_str(), position, Expect::Any)
    }

    /// Enters a snapshot into the catalog.
    #[must_use]
    pub fn put_snapshot(self, record: &SnapshotRecord) -> Self {
        self.put_snapshot_if(record, Expect::Any)
    }

    /// Puts a snapshot in place of what was read of it; refused when that is not what is there any more.
    #[must_use]
    pub fn replace_snapshot(self, record: &SnapshotRecord, version: u64) -> Self {
        self.put_snapshot_if(record, Expect::Version(version))
    }

    fn put_snapshot_if(self, record: &SnapshotRecord, expect: Expect) -> Self {
        let order = order_key(record);
        let source = record.source.as_ref().map_or("-", |name| name.as_str());
        self.put(Kind::Snapshot, snapshot_key(record.id), record, expect)
            .put(Kind::Snapshot, format!("all/{order}"), &(), Expect::Any)
            .put(Kind::Snapshot, format!("source/{source}/{order}"), &(), Expect::Any)
            .note_copy(record, |batch, key| batch.put(Kind::Snapshot, key, &(), Expect::Any))
    }

    fn note_copy(self, record: &SnapshotRecord, note: impl FnOnce(Self, String) -> Self) -> Self {
        match record.original {
            Some(original) => note(self, format!("copy/{original}/{}", record.id)),
            None => self,
        }
    }

    /// Takes a snapshot out of the catalog.
    #[must_use]
    pub fn delete_snapshot(self, record: &SnapshotRecord) -> Self {
        let order = order_key(record);
        let source = record.source.as_ref().map_or("-", |name| name.as_str());
        self.delete(Kind::Snapshot, snapshot_key(record.id), Expect::Any)
            .delete(Kind::Snapshot, format!("all/{order}"), Expect::Any)
            .delete(Kind::Snapshot, format!("source/{source}/{order}"), Expect::Any)
            .note_copy(record, |batch, key| batch.delete(Kind::Snapshot, key, Expect::Any))
            .garbage(&record.repository)
    }

    /// Remembers that a repository holds something that no snapshot needs any more.
    #[must_use]
    pub fn garbage(self, repository: &RepositoryName) -> Self {
        self.put(Kind::Run, format!("garbage/{repository}"), &(), Expect::Any)
    }
}

fn run_key(id: RunId) -> String {
    format!("run/{id}")
}

fn active_key(id: RunId) -> String {
    format!("active/{id}")
}

fn snapshot_key(id: SnapshotId) -> String {
    format!("id/{id}")
}

/// Sorts by time; hexadecimal digits of fixed width sort like the numbers. A copy has the time of its origin, and
/// counts as older.
fn order_key(record: &SnapshotRecord) -> String {
    let mark = if record.original.is_some() { "!" } else { "" };
    format!("{}{mark}/{}", time_key(record.committed_at), record.id)
}

/// The beginning of the keys of snapshots that were committed at this moment, copies first.
fn time_key(at: Timestamp) -> String {
    format!("{:016x}", u64::try_from(at.as_millisecond()).unwrap_or(0))
}

/// A store's error as the failure that callers see.
pub fn store_failure(error: &StoreError) -> Failure {
    Failure::from_error(error.code(), error)
}

impl Records {
    /// The records in this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// The store itself, for what has no domain type: the audit log.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Stores a batch; its number is the version of every record in it.
    ///
    /// # Errors
    /// When a precondition does not hold, or the state can not be written.
    pub async fn commit(&self, batch: Batch) -> Result<u64, Failure> {
        self.store.commit(batch.inner).await.map(|done| done.sequence).map_err(|error| store_failure(&error))
    }

    /// One record.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn get<T: DeserializeOwned>(
        &self,
        kind: Kind,
        key: &str,
    ) -> Result<Option<Versioned<T>>, Failure> {
        self.store.get_as(kind, key).await.map_err(|error| store_failure(&error))
    }

    /// Every record below a prefix; for kinds that are few.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn all<T: DeserializeOwned>(
        &self,
        kind: Kind,
        prefix: &str,
    ) -> Result<Vec<Versioned<T>>, Failure> {
        self.store.all_as(kind, prefix).await.map_err(|error| store_failure(&error))
    }

    async fn keys(&self, kind: Kind, scan: Scan) -> Result<Vec<String>, Failure> {
        let records = self.store.scan(kind, scan).await.map_err(|error| store_failure(&error))?;
        Ok(records.into_iter().map(|record| record.key).collect())
    }

    /// A run with its version.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn run(&self, id: RunId) -> Result<Option<(Run, u64)>, Failure> {
        Ok(self.get(Kind::Run, &run_key(id)).await?.map(|found| (found.value, found.version)))
    }

    /// The runs that have not ended.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn active_runs(&self) -> Result<Vec<(Run, u64)>, Failure> {
        let mut runs = Vec::new();
        for marker in self.all::<()>(Kind::Run, "active/").await? {
            let id = marker.key.trim_start_matches("active/").parse::<RunId>();
            if let Ok(id) = id
                && let Some(found) = self.run(id).await?
            {
                runs.push(found);
            }
        }
        Ok(runs)
    }

    /// Runs from the newest to older ones, after a run.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn runs_before(&self, before: Option<RunId>, limit: usize) -> Result<Vec<Run>, Failure> {
        let scan = Scan { after: before.map(run_key), limit, descending: true, ..Scan::below("run/") };
        let found = self.store.scan_as(Kind::Run, scan).await.map_err(|error| store_failure(&error))?;
        Ok(found.into_iter().map(|found| found.value).collect())
    }

    /// The backup run of a source that ended last.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn last_backup(&self, source: &SourceName) -> Result<Option<Run>, Failure> {
        match self.get::<RunId>(Kind::Run, &format!("last-backup/{source}")).await? {
            None => Ok(None),
            Some(found) => Ok(self.run(found.value).await?.map(|(run, _)| run)),
        }
    }

    /// When backups of a source last succeeded, by type.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn last_successes(
        &self,
        source: &SourceName,
    ) -> Result<BTreeMap<SnapshotType, Timestamp>, Failure> {
        let prefix = format!("last-success/{source}/");
        let mut successes = BTreeMap::new();
        for found in self.all::<Option<Timestamp>>(Kind::Run, &prefix).await? {
            let snapshot_type = SnapshotType::parse(found.key.trim_start_matches(&prefix));
            if let (Some(snapshot_type), Some(at)) = (snapshot_type, found.value) {
                successes.insert(snapshot_type, at);
            }
        }
        Ok(successes)
    }

    /// When a check of a repository last ended without a finding.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn last_clean_check(&self, repository: &RepositoryName) -> Result<Option<Timestamp>, Failure> {
        let found =
            self.get::<Option<Timestamp>>(Kind::Run, &format!("last-clean-check/{repository}")).await?;
        Ok(found.and_then(|found| found.value))
    }

    /// When a check of a repository with all its data last ended without a finding.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn last_clean_read(&self, repository: &RepositoryName) -> Result<Option<Timestamp>, Failure> {
        let found =
            self.get::<Option<Timestamp>>(Kind::Run, &format!("last-clean-read/{repository}")).await?;
        Ok(found.and_then(|found| found.value))
    }

    /// When the last prune of a repository ended, and whether anything became garbage since.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn last_prune(
        &self,
        repository: &RepositoryName,
    ) -> Result<(Option<Timestamp>, bool), Failure> {
        let prune = self.get::<Option<Timestamp>>(Kind::Run, &format!("last-prune/{repository}")).await?;
        let garbage = self.get::<()>(Kind::Run, &format!("garbage/{repository}")).await?;
        let pruned = prune.as_ref().map_or(0, |prune| prune.version);
        Ok((prune.and_then(|prune| prune.value), garbage.is_some_and(|garbage| garbage.version > pruned)))
    }

    /// The last fact taken from an agent.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn outbox(&self, agent: &AgentName) -> Result<Option<OutboxPosition>, Failure> {
        Ok(self.get(Kind::Session, agent.as_str()).await?.map(|found| found.value))
    }

    /// A snapshot of the catalog.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn snapshot(&self, id: SnapshotId) -> Result<Option<SnapshotRecord>, Failure> {
        Ok(self.versioned_snapshot(id).await?.map(|found| found.value))
    }

    /// A snapshot of the catalog, with the version that [`Batch::replace_snapshot`] asks for.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn versioned_snapshot(
        &self,
        id: SnapshotId,
    ) -> Result<Option<Versioned<SnapshotRecord>>, Failure> {
        self.get(Kind::Snapshot, &snapshot_key(id)).await
    }

    /// A snapshot and all its copies that the catalog knows, the origin first.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn copies(&self, record: &SnapshotRecord) -> Result<Vec<SnapshotRecord>, Failure> {
        let origin = record.origin();
        let mut copies: Vec<SnapshotRecord> = self.snapshot(origin).await?.into_iter().collect();
        let prefix = format!("copy/{origin}/");
        for key in self.keys(Kind::Snapshot, Scan { limit: COPIES_MAX, ..Scan::below(&prefix) }).await? {
            if let Ok(id) = key[prefix.len()..].parse::<SnapshotId>()
                && id != origin
            {
                copies.extend(self.snapshot(id).await?);
            }
        }
        Ok(copies)
    }

    /// The snapshot whose id begins so.
    ///
    /// # Errors
    /// `HF-3014` when there is none, `HF-3015` when there are several.
    pub async fn snapshot_by_prefix(&self, prefix: &str) -> Result<SnapshotRecord, Failure> {
        let plain = (4..=64).contains(&prefix.len()) && prefix.bytes().all(|b| b.is_ascii_hexdigit());
        let unknown = || {
            let shown: String = prefix.chars().take(64).collect();
            Failure::new(
                ErrorCode::SnapshotUnknown,
                format!("no snapshot has an id that begins with {shown:?}"),
            )
            .then("holdfast backup list")
        };
        if !plain {
            return Err(unknown().because("an id has 64 hexadecimal digits, of which at least 4 are needed"));
        }
        let scan = Scan { limit: 2, ..Scan::below(format!("id/{}", prefix.to_lowercase())) };
        let mut found =
            self.store.scan_as(Kind::Snapshot, scan).await.map_err(|error| store_failure(&error))?;
        match found.len() {
            1 => Ok(found.swap_remove(0).value),
            0 => Err(unknown()),
            _ => Err(Failure::new(
                ErrorCode::SnapshotAmbiguous,
                format!("more than one snapshot has an id that begins with {prefix:?}"),
            )
            .then("holdfast backup list -o wide")),
        }
    }

    /// Snapshots from the newest to older ones: of one source, or of all; after the place `before`, which is the second
    /// part of what was returned with each.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn snapshots_before(
        &self,
        source: Option<&str>,
        before: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(SnapshotRecord, String)>, Failure> {
        let prefix = source.map_or("all/".to_owned(), |name| format!("source/{name}/"));
        let after = before.map(|place| format!("{prefix}{place}"));
        let scan = Scan { after, limit, descending: true, ..Scan::below(prefix.clone()) };
        let mut snapshots = Vec::new();
        for key in self.keys(Kind::Snapshot, scan).await? {
            let place = key[prefix.len()..].to_owned();
            let id = place.split_once('/').and_then(|(_, id)| id.parse::<SnapshotId>().ok());
            if let Some(id) = id
                && let Some(record) = self.snapshot(id).await?
            {
                snapshots.push((record, place));
            }
        }
        Ok(snapshots)
    }

    /// The newest snapshot of a source that was committed before a moment.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn snapshot_before(
        &self,
        source: &SourceName,
        at: Timestamp,
    ) -> Result<Option<SnapshotRecord>, Failure> {
        let page = self.snapshots_before(Some(source.as_str()), Some(&time_key(at)), 1).await?;
        Ok(page.into_iter().next().map(|(record, _)| record))
    }

    /// The oldest snapshot of a source that was committed at a moment or after it.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn snapshot_since(
        &self,
        source: &SourceName,
        at: Timestamp,
    ) -> Result<Option<SnapshotRecord>, Failure> {
        let prefix = format!("source/{source}/");
        let scan = Scan {
            after: Some(format!("{prefix}{}", time_key(at))),
            limit: 1,
            ..Scan::below(prefix.clone())
        };
        let found = self.keys(Kind::Snapshot, scan).await?;
        let id = found.first().and_then(|key| key.rsplit('/').next()?.parse::<SnapshotId>().ok());
        match id {
            Some(id) => self.snapshot(id).await,
            None => Ok(None),
        }
    }

    /// A mark that changes whenever one of the newest snapshots of a source does, up to a limit.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn snapshots_mark(&self, source: &SourceName, limit: usize) -> Result<u64, Failure> {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let scan = Scan { limit, descending: true, ..Scan::below(format!("source/{source}/")) };
        let found = self.store.scan(Kind::Snapshot, scan).await.map_err(|error| store_failure(&error))?;
        let mut mark = DefaultHasher::new();
        for record in found {
            (record.key, record.version).hash(&mut mark);
        }
        Ok(mark.finish())
    }

    /// The hold on a snapshot.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn hold(&self, id: SnapshotId) -> Result<Option<Versioned<Hold>>, Failure> {
        self.get(Kind::Hold, &id.to_string()).await
    }
}
