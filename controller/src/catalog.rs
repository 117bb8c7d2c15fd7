//! The catalog: what is known of snapshots. A cache of the repositories, kept in step by [`Catalog::sync`].

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_model::ids::{AgentName, MilestoneName, RepositoryName, RunId, SnapshotId, SourceName};
use holdfast_model::manifest::Manifest;
use holdfast_model::run::{Run, SnapshotType};
use holdfast_model::snapshot::{Hold, Proof, SnapshotRecord};
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::snapshot::SnapshotObject;
use holdfast_runtime::SharedClock;
use jiff::Timestamp;

use crate::contents;
use crate::records::{Batch, Records};
use crate::repositories::{OpenRepository, repository_failure};
use crate::store::{Expect, Kind};

/// The tag that every snapshot of ours carries.
pub const TAG: &str = "holdfast";

/// The catalog. Clones share it.
#[derive(Clone)]
pub struct Catalog {
    records: Records,
    clock: SharedClock,
}

/// What the tags of a snapshot say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// Whether it is ours.
    pub ours: bool,
    /// `source:NAME`.
    pub source: Option<SourceName>,
    /// `type:WORD`.
    pub snapshot_type: Option<SnapshotType>,
    /// `milestone:NAME`.
    pub milestone: Option<MilestoneName>,
    /// `run:ID`.
    pub run: Option<RunId>,
    /// `agent:NAME`.
    pub agent: Option<AgentName>,
}

impl Tags {
    /// Reads tags; those of others are passed over.
    pub fn read(tags: &[String]) -> Self {
        let mut read = Self::default();
        for tag in tags {
            match tag.split_once(':') {
                None => read.ours |= tag == TAG,
                Some(("source", name)) => read.source = name.parse().ok(),
                Some(("type", word)) => read.snapshot_type = SnapshotType::parse(word),
                Some(("milestone", name)) => read.milestone = name.parse().ok(),
                Some(("run", id)) => read.run = id.parse().ok(),
                Some(("agent", name)) => read.agent = name.parse().ok(),
                Some(_) => {}
            }
        }
        if read.ours { read } else { Self::default() }
    }

    /// Writes them.
    pub fn write(&self) -> Vec<String> {
        let mut tags = vec![TAG.to_owned()];
        let mut add =
            |key: &str, value: Option<String>| tags.extend(value.map(|value| format!("{key}:{value}")));
        add("source", self.source.as_ref().map(ToString::to_string));
        add("type", self.snapshot_type.map(|kind| kind.to_string()));
        add("milestone", self.milestone.as_ref().map(ToString::to_string));
        add("agent", self.agent.as_ref().map(ToString::to_string));
        add("run", self.run.map(|id| id.to_string()));
        tags
    }
}

/// What a sync found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Synced {
    /// Snapshots in the repository.
    pub snapshots: usize,
    /// That the catalog did not know.
    pub added: usize,
    /// That the catalog knew and the repository has no more.
    pub removed: usize,
}

impl Catalog {
    /// The catalog in these records.
    pub fn new(records: Records, clock: SharedClock) -> Self {
        Self { records, clock }
    }

    /// The manifest of a snapshot.
    ///
    /// # Errors
    /// `HF-3014` when the catalog does not know the snapshot in this repository.
    pub async fn manifest(
        &self,
        repository: &RepositoryName,
        id: SnapshotId,
    ) -> Result<Option<Manifest>, Failure> {
        let record = self.records.snapshot(id).await?.filter(|record| record.repository == *repository);
        record.map(|record| record.manifest).ok_or_else(|| {
            Failure::new(
                ErrorCode::SnapshotUnknown,
                format!("repository {repository} has no snapshot {}", id.short()),
            )
        })
    }

    /// The newest snapshot of a source in a repository, of one type when asked.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn latest(
        &self,
        source: &SourceName,
        repository: Option<&RepositoryName>,
        accept: impl Fn(&SnapshotRecord) -> bool,
    ) -> Result<Option<SnapshotRecord>, Failure> {
        let mut before: Option<String> = None;
        loop {
            let page = self.records.snapshots_before(Some(source.as_str()), before.as_deref(), 100).await?;
            let Some((_, last)) = page.last() else { return Ok(None) };
            before = Some(last.clone());
            let found = page
                .into_iter()
                .map(|(record, _)| record)
                .find(|record| repository.is_none_or(|name| record.repository == *name) && accept(record));
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    /// Changes what is proven of a snapshot; again, when somebody else changed it meanwhile. Nothing, when it is not in the
    /// catalog any more.
    ///
    /// # Errors
    /// When the state can not be read or written.
    pub async fn prove(
        &self,
        id: SnapshotId,
        action: &str,
        change: impl Fn(&mut Proof),
    ) -> Result<(), Failure> {
        loop {
            let Some(found) = self.records.versioned_snapshot(id).await? else { return Ok(()) };
            let mut record = found.value;
            change(&mut record.proof);
            let batch = Batch::new("controller", action, format!("snapshot/{id}"));
            match self.records.commit(batch.replace_snapshot(&record, found.version)).await {
                Err(failure) if failure.code == ErrorCode::VersionConflict => {}
                done => return done.map(drop),
            }
        }
    }

    /// Brings the catalog into step with a repository: enters what it does not know, takes out what is gone.
    ///
    /// # Errors
    /// Those of the repository and the state. A damaged snapshot object is left out and logged.
    pub async fn sync(&self, repository: &Arc<OpenRepository>) -> Result<Synced, Failure> {
        let fail = |error: holdfast_repository::RepositoryError| repository_failure(&repository.name, &error);
        if let Err(failure) = repository.update_index().await {
            // The catalog does not need it; whoever asks for blobs is told.
            tracing::warn!(repository = %repository.name, %failure, "the index could not be brought up to date");
        }
        let ids = repository.repository().snapshot_ids().await.map_err(fail)?;
        let mut synced = Synced { snapshots: ids.len(), ..Synced::default() };
        let present: BTreeSet<SnapshotId> = ids.iter().map(|id| SnapshotId(*id.as_bytes())).collect();
        for &id in &present {
            if self.records.snapshot(id).await?.is_some() {
                continue;
            }
            match repository
                .repository()
                .snapshot(holdfast_repository::id::SnapshotId::from_bytes(id.0))
                .await
            {
                Ok(object) => {
                    let manifest = contents::load_manifest(repository, &object).await;
                    let mut record = describe(id, &repository.name, &object, manifest);
                    record.entered_at = Some(self.clock.now());
                    let batch = Batch::new("controller", "catalog.add", format!("snapshot/{id}"));
                    let mut batch = batch.put_snapshot(&record);
                    if let Some(original) = record.original {
                        batch = self.inherit_hold(batch, &record, original).await?;
                    }
                    self.records.commit(batch).await?;
                    synced.added += 1;
                }
                Err(error) => {
                    tracing::warn!(repository = %repository.name, snapshot = %id, %error, "not readable")
                }
            }
        }
        synced.removed = self.remove_gone(repository, &present).await?;
        if synced.added + synced.removed > 0 {
            tracing::info!(repository = %repository.name, ?synced, "catalog synced");
        }
        Ok(synced)
    }

    /// Places the hold on a snapshot on its copy, too, when there is one.
    ///
    /// # Errors
    /// When the state can not be read.
    pub async fn inherit_hold(
        &self,
        batch: Batch,
        copy: &SnapshotRecord,
        of: SnapshotId,
    ) -> Result<Batch, Failure> {
        let Some(hold) = self.records.hold(of).await? else { return Ok(batch) };
        let hold = Hold { snapshot: copy.id, repository: copy.repository.clone(), ..hold.value };
        Ok(batch.put(Kind::Hold, copy.id.to_string(), &hold, Expect::Any))
    }

    /// Takes out what is not among the snapshots that were `present` when they were listed, and is not there now.
    async fn remove_gone(
        &self,
        repository: &OpenRepository,
        present: &BTreeSet<SnapshotId>,
    ) -> Result<usize, Failure> {
        let mut removed = 0;
        let mut before: Option<String> = None;
        loop {
            let page = self.records.snapshots_before(None, before.as_deref(), 500).await?;
            let Some((_, last)) = page.last() else { return Ok(removed) };
            before = Some(last.clone());
            for (record, _) in &page {
                if record.repository == repository.name && !present.contains(&record.id) {
                    let id = holdfast_repository::id::SnapshotId::from_bytes(record.id.0);
                    if repository.repository().snapshot(id).await.is_ok() {
                        // Committed since.
                        continue;
                    }
                    let batch = Batch::new("controller", "catalog.remove", format!("snapshot/{}", record.id));
                    self.records.commit(batch.delete_snapshot(record)).await?;
                    removed += 1;
                }
            }
        }
    }

    /// The snapshot that a run committed with whichever attempt, as its repository knows it.
    ///
    /// # Errors
    /// Those of the repository and the state.
    pub async fn committed_by(
        &self,
        repository: &Arc<OpenRepository>,
        run: &Run,
    ) -> Result<Option<SnapshotRecord>, Failure> {
        self.sync(repository).await?;
        self.of_run(&repository.name, run).await
    }

    /// The snapshot of a run that the catalog knows. Its time says nothing: clocks may have jumped since.
    async fn of_run(
        &self,
        repository: &RepositoryName,
        run: &Run,
    ) -> Result<Option<SnapshotRecord>, Failure> {
        match run.spec.source() {
            Some(source) => self.latest(source, Some(repository), |record| record.run == Some(run.id)).await,
            None => Ok(None),
        }
    }
}

/// What the catalog keeps of a snapshot object.
pub fn describe(
    id: SnapshotId,
    repository: &RepositoryName,
    object: &SnapshotObject,
    manifest: Option<Manifest>,
) -> SnapshotRecord {
    let tags = Tags::read(&object.tags);
    let summary = object.summary.clone().unwrap_or_default();
    let span = |from: &str, to: &str| -> Option<u64> {
        let (from, to) = (from.parse::<Timestamp>().ok()?, to.parse::<Timestamp>().ok()?);
        u64::try_from(to.as_millisecond() - from.as_millisecond()).ok()
    };
    SnapshotRecord {
        id,
        repository: repository.clone(),
        source: tags.source,
        agent: tags.agent,
        engine: manifest.as_ref().map(|manifest| manifest.engine),
        snapshot_type: tags.snapshot_type,
        milestone: tags.milestone,
        committed_at: object.time.parse().unwrap_or(Timestamp::UNIX_EPOCH),
        entered_at: None,
        run: tags.run,
        original: object.original.map(|id| SnapshotId(*id.as_bytes())),
        tree: object.tree.to_string(),
        paths: object.paths.clone(),
        hostname: object.hostname.clone(),
        logical_bytes: summary.total_bytes_processed,
        files: summary.total_files_processed,
        stored_bytes: summary.data_added_packed,
        duration_millis: span(&summary.backup_start, &summary.backup_end).unwrap_or(0),
        unreadable: manifest.as_ref().map_or(0, |manifest| manifest.unreadable_count),
        manifest,
        proof: Proof::default(),
        anomalies: Vec::new(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use holdfast_runtime::{Clock as _, ManualClock, Shutdown, TaskGroup};
    use jiff::SignedDuration;

    use super::*;
    use crate::run_lifecycle::{NewRun, RunLifecycle};
    use crate::store::{EmbeddedStore, StoreSettings};

    #[test]
    fn tags_read_back_as_written() {
        let tags = Tags {
            ours: true,
            source: Some(SourceName::new("pg-main").unwrap()),
            snapshot_type: Some(SnapshotType::Full),
            milestone: Some(MilestoneName::new("phase2_complete").unwrap()),
            run: Some(RunId::at(5, [1; 10])),
            agent: Some(AgentName::new("db1").unwrap()),
        };
        assert_eq!(Tags::read(&tags.write()), tags);
    }

    /// A snapshot of source `shop` in repository `main`.
    pub(crate) fn snapshot(number: u16, run: Option<RunId>, committed_at: Timestamp) -> SnapshotRecord {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&number.to_be_bytes());
        let tags = Tags { ours: true, source: Some("shop".parse().unwrap()), run, ..Tags::default() };
        let object = serde_json::json!({
            "time": committed_at, "tree": "00".repeat(32), "paths": ["/srv"], "hostname": "db1", "tags": tags.write()
        });
        let object: SnapshotObject = serde_json::from_value(object).unwrap();
        describe(SnapshotId(id), &"main".parse().unwrap(), &object, None)
    }

    #[tokio::test]
    async fn the_snapshot_of_a_run_is_found_among_many_with_a_later_time() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = TaskGroup::new(&Shutdown::new());
        let clock = ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap());
        let settings = StoreSettings::new(folder.path());
        let records = Records::new(EmbeddedStore::open(settings, clock.shared(), &tasks).unwrap());
        let mut batch = Batch::new("test", "test", "test");
        // Of a clock that was a day ahead.
        for number in 0..700 {
            let run = RunId::at(u64::from(number), [1; 10]);
            let at = clock.now() + SignedDuration::from_hours(24) + SignedDuration::from_secs(number.into());
            batch = batch.put_snapshot(&snapshot(number, Some(run), at));
        }
        let spec = serde_json::json!({
            "kind": "backup", "source": "shop", "repository": "main", "snapshot_type": "full", "milestone": null
        });
        let lifecycle =
            RunLifecycle::load(records.clone(), clock.shared(), Duration::from_secs(30), 10).await.unwrap();
        let new = NewRun {
            spec: serde_json::from_value(spec).unwrap(),
            agent: None,
            requested_by: "test".to_owned(),
            traceparent: None,
            retry_of: None,
            slot: None,
        };
        let batch_of_run = Batch::new("test", "test", "test");
        let run = lifecycle.queue(vec![new], batch_of_run, |batch, _| batch).await.unwrap().0.remove(0);
        let committed = snapshot(700, Some(run.id), clock.now());
        // Another repository may hold a copy of it.
        let copy = SnapshotRecord {
            repository: "copies".parse().unwrap(),
            ..snapshot(701, Some(run.id), clock.now() + SignedDuration::from_secs(1))
        };
        records.commit(batch.put_snapshot(&copy)).await.unwrap();
        let catalog = Catalog::new(records.clone(), clock.shared());
        let repository = "main".parse().unwrap();
        assert_eq!(catalog.of_run(&repository, &run).await.unwrap(), None);
        records.commit(Batch::new("test", "test", "test").put_snapshot(&committed)).await.unwrap();
        assert_eq!(catalog.of_run(&repository, &run).await.unwrap(), Some(committed));
    }

    #[tokio::test]
    async fn a_copy_is_found_by_its_origin_counts_as_older_and_is_held_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = TaskGroup::new(&Shutdown::new());
        let clock = ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap());
        let settings = StoreSettings::new(folder.path());
        let records = Records::new(EmbeddedStore::open(settings, clock.shared(), &tasks).unwrap());
        let catalog = Catalog::new(records.clone(), clock.shared());
        let origin = snapshot(1, None, clock.now());
        // Higher ids: only that they are copies puts them behind.
        let copies = [2, 3].map(|number| SnapshotRecord {
            repository: format!("copies-{number}").parse().unwrap(),
            original: Some(origin.id),
            ..snapshot(number, None, clock.now())
        });
        let hold = Hold {
            snapshot: origin.id,
            repository: origin.repository.clone(),
            reason: "an audit".to_owned(),
            by: "test".to_owned(),
            at: clock.now(),
        };
        let batch = Batch::new("test", "test", "test").put_snapshot(&origin).put_snapshot(&copies[0]);
        let batch = batch.put(Kind::Hold, origin.id.to_string(), &hold, Expect::Any);
        records.commit(batch).await.unwrap();
        let batch = Batch::new("test", "test", "test").put_snapshot(&copies[1]);
        let batch = catalog.inherit_hold(batch, &copies[1], origin.id).await.unwrap();
        records.commit(batch).await.unwrap();
        let source = "shop".parse().unwrap();
        assert_eq!(catalog.latest(&source, None, |_| true).await.unwrap(), Some(origin.clone()));
        let page = records.snapshots_before(Some("shop"), None, 1).await.unwrap();
        let rest = records.snapshots_before(Some("shop"), Some(&page[0].1), 10).await.unwrap();
        assert_eq!(rest.iter().map(|(record, _)| record.id.0[1]).collect::<Vec<_>>(), [3, 2]);
        let all = [&origin, &copies[0], &copies[1]];
        for one in all {
            let found = records.copies(one).await.unwrap();
            assert_eq!(found.iter().collect::<Vec<_>>(), all);
        }
        let inherited = records.hold(copies[1].id).await.unwrap().unwrap().value;
        assert_eq!((inherited.reason, inherited.repository), (hold.reason, copies[1].repository.clone()));
        let batch = Batch::new("test", "test", "test").delete_snapshot(&origin).delete_snapshot(&copies[0]);
        records.commit(batch).await.unwrap();
        // What is left knows its origin, which is gone.
        assert_eq!(records.copies(&copies[1]).await.unwrap(), [copies[1].clone()]);
        assert_eq!(records.snapshots_before(Some("shop"), None, 10).await.unwrap().len(), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_two_prove_of_a_snapshot_at_once_is_kept_and_one_that_was_forgotten_stays_so() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = TaskGroup::new(&Shutdown::new());
        let clock = ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap());
        let settings = StoreSettings::new(folder.path());
        let records = Records::new(EmbeddedStore::open(settings, clock.shared(), &tasks).unwrap());
        let catalog = Catalog::new(records.clone(), clock.shared());
        let now = clock.now();
        let restored = |proof: &mut Proof| proof.restored_at = Some(now);
        let damaged = |proof: &mut Proof| proof.damage = Some("broken".to_owned());
        for number in 0..20 {
            let record = snapshot(number, None, now);
            records.commit(Batch::new("test", "test", "test").put_snapshot(&record)).await.unwrap();
            let both =
                (catalog.prove(record.id, "test", restored), catalog.prove(record.id, "test", damaged));
            let (first, second) = futures::join!(both.0, both.1);
            first.and(second).unwrap();
            let proof = records.snapshot(record.id).await.unwrap().unwrap().proof;
            assert_eq!((proof.restored_at, proof.damage.as_deref()), (Some(now), Some("broken")));
            let delete = records.commit(Batch::new("test", "test", "test").delete_snapshot(&record));
            let (proven, deleted) = futures::join!(catalog.prove(record.id, "test", restored), delete);
            proven.and(deleted.map(drop)).unwrap();
            assert_eq!(records.snapshot(record.id).await.unwrap(), None, "its record is back");
        }
        assert_eq!(records.snapshots_before(None, None, 10).await.unwrap().len(), 0);
    }

    #[test]
    fn tags_of_other_programs_say_nothing() {
        assert_eq!(Tags::read(&["source:x".to_owned(), "nightly".to_owned()]), Tags::default());
    }
}
