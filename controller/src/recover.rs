//! Starts from nothing: brings the state of a controller back from the copy of it in a repository.
//!
//! Everything is made in a folder beside, and moved into place at the end: what ends early leaves no half state behind.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use holdfast_model::ids::RepositoryName;
use holdfast_model::repository_spec::RepositorySpec;
use holdfast_model::run::Run;
use holdfast_model::run_state::Phase;
use holdfast_model::snapshot::SnapshotRecord;
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::id::{BlobId, SnapshotId};
use holdfast_repository::reader::{BlobReader, FileReader};
use holdfast_repository::snapshot::SnapshotObject;
use holdfast_runtime::durable_file::{self, Access};
use holdfast_runtime::{SharedClock, Shutdown, TaskGroup, fail_point};
use jiff::Timestamp;

use crate::catalog::{Catalog, Tags};
use crate::config::ControllerConfig;
use crate::definitions::Definitions;
use crate::records::{Batch, Records};
use crate::repositories::{OpenRepository, Repositories, repository_failure};
use crate::secrets::Secrets;
use crate::self_backup::{COPIED, FORMAT, HEAD, SOURCE, StateHead, StateLine, file_of};
use crate::store::{Expect, Kind};
use crate::{Authority, close, contents, open_store, pki_failure};

/// Bytes of records in one commit.
const COMMIT_BYTES: usize = 1 << 20;

/// What was brought back.
#[derive(Debug)]
pub struct RecoverReport {
    /// The snapshot that it was read from.
    pub snapshot: String,
    /// What the snapshot says of itself.
    pub head: StateHead,
    /// What agents are told to expect of the authority.
    pub ca_pin: String,
    /// Records brought back, by kind.
    pub records: Vec<(&'static str, u64)>,
    /// Repositories that the catalog was brought into step with, and how many snapshots they hold.
    pub synced: Vec<(RepositoryName, Result<usize, Failure>)>,
}

/// Recovers the state into the empty data folder of a configuration, from the newest copy in a repository, or the one
/// whose id begins so.
///
/// # Errors
/// `HF-4002` when there is a state already, `HF-3014` when the repository holds no copy, those of secrets, storage and
/// repository, and `HF-3006` when the copy is damaged.
pub async fn recover(
    config: &ControllerConfig,
    from: &RepositorySpec,
    snapshot: Option<&str>,
    clock: SharedClock,
) -> Result<RecoverReport, Failure> {
    let data_dir = &config.data_dir;
    let beside = data_dir.join("recovering");
    let has_state = data_dir.join("state").exists();
    // Where one ended before its last rename, what was moved already is of that recovery: a state is moved last.
    let is_unfinished = beside.exists() && !has_state;
    if has_state || data_dir.join("pki").exists() && !is_unfinished {
        return Err(Failure::new(
            ErrorCode::AlreadyExists,
            format!("{} holds the state of a controller already", data_dir.display()),
        )
        .because("recovering would replace it"));
    }
    let io = |error: std::io::Error| Failure::from_error(ErrorCode::StateUnavailable, &error);
    match std::fs::remove_dir_all(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        _ => durable_file::create_folders(&beside).map_err(io)?,
    }
    let shutdown = Shutdown::new();
    let tasks = TaskGroup::new(&shutdown);
    let store = open_store(&beside, &clock, &tasks)?;
    let records = Records::new(store.clone());
    let repositories = Repositories::new(
        Secrets::from_process(),
        clock.clone(),
        records.clone(),
        beside.join("blobs"),
        tasks.clone(),
    );
    let recovery = Recovery { records, repositories, clock, folder: &beside };
    let done = recovery.perform(from, snapshot).await;
    recovery.repositories.close().await;
    close(&store, &shutdown, &tasks).await?;
    let report = done?;
    fail_point::hit("recover-before-authority");
    for name in ["blobs", "pki"] {
        replace_folder(&beside.join(name), &data_dir.join(name)).map_err(io)?;
    }
    fail_point::hit("recover-before-state");
    // The state last, and after the authority is durable in its place: a state without it would get another authority.
    durable_file::sync_folder(data_dir).map_err(io)?;
    std::fs::rename(beside.join("state"), data_dir.join("state")).map_err(io)?;
    durable_file::sync_folder(data_dir).map_err(io)?;
    std::fs::remove_dir_all(&beside).map_err(io)?;
    Ok(report)
}

/// Moves a folder into place, instead of what an earlier recovery moved there. Nothing, where there is none to move.
fn replace_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    if !from.exists() {
        return Ok(());
    }
    match std::fs::remove_dir_all(to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::fs::rename(from, to),
    }
}

struct Recovery<'a> {
    records: Records,
    repositories: Repositories,
    clock: SharedClock,
    folder: &'a Path,
}

impl Recovery<'_> {
    async fn perform(&self, from: &RepositorySpec, wanted: Option<&str>) -> Result<RecoverReport, Failure> {
        let name = RepositoryName::new("recovery")
            .map_err(|error| Failure::from_error(ErrorCode::Internal, &error))?;
        let repository = self.repositories.get(&name, from).await?;
        repository.update_index().await?;
        let (id, object) = newest_copy(&repository, wanted).await?;
        let copy =
            Copy { repository: repository.clone(), reader: contents::reader(&repository), tree: object.tree };
        let head: StateHead = serde_json::from_slice(&copy.bytes(&format!(".holdfast/{HEAD}")).await?)
            .map_err(|error| damaged("its description is not one", &error))?;
        if head.format != FORMAT || head.version != 1 {
            return Err(Failure::new(
                ErrorCode::Unsupported,
                format!("the copy has version {} of the format {:?}", head.version, head.format),
            ));
        }
        let ca_pin = self.authority(&copy).await?;
        let mut brought = Vec::new();
        for kind in COPIED {
            brought.push((kind.as_str(), self.records_of(&copy, kind).await?));
        }
        let target = format!("snapshot/{id}");
        self.records.commit(Batch::new("recover", "state.recover", target)).await?;
        let definitions = Definitions::load(self.records.clone()).await?;
        let catalog = Catalog::new(self.records.clone(), self.clock.clone());
        let mut synced = Vec::new();
        for (name, spec) in &definitions.current().fleet.repositories {
            let found = async {
                let repository = self.repositories.get(name, spec).await?;
                catalog.sync(&repository).await.map(|synced| synced.snapshots)
            };
            synced.push((name.clone(), found.await));
        }
        Ok(RecoverReport { snapshot: id.to_string(), head, ca_pin, records: brought, synced })
    }

    /// The files of the authority, which have to fit each other.
    async fn authority(&self, copy: &Copy) -> Result<String, Failure> {
        let folder = self.folder.join("pki");
        let io = |error: std::io::Error| Failure::from_error(ErrorCode::StateUnavailable, &error);
        durable_file::create_folders(&folder).map_err(io)?;
        for (name, access) in [("ca.key", Access::Owner), ("ca.pem", Access::Everyone)] {
            let bytes = copy.bytes(&format!("pki/{name}")).await?;
            durable_file::replace(&folder.join(name), &bytes, access).map_err(io)?;
        }
        let authority = Authority::open(&folder, self.clock.now()).map_err(|error| pki_failure(&error))?;
        Ok(authority.pin().to_string())
    }

    async fn records_of(&self, copy: &Copy, kind: Kind) -> Result<u64, Failure> {
        let mut lines = match copy.lines(&file_of(kind)).await? {
            Some(lines) => lines,
            // Of a version that did not know this kind.
            None => return Ok(0),
        };
        let mut count = 0;
        loop {
            let (page, rest) = tokio::task::block_in_place(|| next_page(lines))?;
            if page.is_empty() {
                return Ok(count);
            }
            lines = rest;
            count += page.len() as u64;
            let mut batch = Batch::new("recover", "state.recover", kind.as_str());
            for line in page {
                batch = self.enter(batch, kind, line)?;
            }
            self.records.commit(batch).await?;
        }
    }

    fn enter(&self, batch: Batch, kind: Kind, line: StateLine) -> Result<Batch, Failure> {
        let read = |error: serde_json::Error| damaged("a record of it is not understood", &error);
        if kind == Kind::Snapshot {
            let record: SnapshotRecord = serde_json::from_str(line.value.get()).map_err(read)?;
            return Ok(batch.put_snapshot(&record));
        }
        if kind == Kind::Run && line.key.starts_with("run/") {
            let run: Run = serde_json::from_str(line.value.get()).map_err(read)?;
            return Ok(batch.put(kind, line.key, &ended(run, self.clock.now()), Expect::Any));
        }
        Ok(batch.put(kind, line.key, &line.value, Expect::Any))
    }
}

/// A run as it stands after its controller was lost.
fn ended(mut run: Run, now: Timestamp) -> Run {
    if !run.state.phase.is_terminal() {
        run.state.phase = Phase::Failed(
            Failure::new(ErrorCode::AgentLost, "the controller was lost while the run was under way")
                .because("its state was recovered from a copy"),
        );
        run.ended_at = Some(now);
    }
    run
}

/// A copy of the state in a repository.
struct Copy {
    repository: Arc<OpenRepository>,
    reader: BlobReader,
    tree: BlobId,
}

type Lines = BufReader<FileReader>;

impl Copy {
    async fn open(&self, path: &str) -> Result<Option<FileReader>, Failure> {
        use holdfast_repository::RepositoryError;
        let fail = |error| repository_failure(&self.repository.name, &error);
        let node = match self.reader.find(self.tree, path.as_bytes()).await {
            Ok(node) => node,
            Err(RepositoryError::PathNotInSnapshot { .. }) => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        let handle = tokio::runtime::Handle::current();
        FileReader::new(self.reader.clone(), node.content, handle)
            .map(Some)
            .map_err(|error| Failure::from_error(ErrorCode::Internal, &error))
    }

    async fn lines(&self, path: &str) -> Result<Option<Lines>, Failure> {
        Ok(self.open(path).await?.map(BufReader::new))
    }

    /// A small file as a whole.
    async fn bytes(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let missing =
            || Failure::new(ErrorCode::ObjectDamaged, format!("the copy of the state lacks {path}"));
        let mut file = self.open(path).await?.ok_or_else(missing)?.take(1 << 20);
        let mut bytes = Vec::new();
        tokio::task::block_in_place(|| file.read_to_end(&mut bytes))
            .map_err(|error| damaged("a file of it can not be read", &error))?;
        Ok(bytes)
    }
}

/// The next records, up to the size of a commit; none at the end.
fn next_page(mut lines: Lines) -> Result<(Vec<StateLine>, Lines), Failure> {
    let (mut page, mut bytes) = (Vec::new(), 0);
    let mut line = String::new();
    while bytes < COMMIT_BYTES {
        line.clear();
        let length =
            lines.read_line(&mut line).map_err(|error| damaged("a file of it can not be read", &error))?;
        if length == 0 {
            break;
        }
        bytes += length;
        let read: StateLine = serde_json::from_str(&line)
            .map_err(|error| damaged("a record of it is not understood", &error))?;
        page.push(read);
    }
    Ok((page, lines))
}

fn damaged(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(ErrorCode::ObjectDamaged, format!("the copy of the state is damaged: {what}"))
        .because(error.to_string())
        .then("holdfast-controller recover --snapshot ID    # an older copy")
}

async fn newest_copy(
    repository: &Arc<OpenRepository>,
    wanted: Option<&str>,
) -> Result<(SnapshotId, SnapshotObject), Failure> {
    let fail = |error| repository_failure(&repository.name, &error);
    let mut newest: Option<(Timestamp, SnapshotId, SnapshotObject)> = None;
    for id in repository.repository().snapshot_ids().await.map_err(fail)? {
        if wanted.is_some_and(|wanted| !id.to_string().starts_with(&wanted.to_lowercase())) {
            continue;
        }
        // A damaged snapshot object must not keep an older copy from being found.
        let Ok(object) = repository.repository().snapshot(id).await else { continue };
        let is_copy = Tags::read(&object.tags).source.is_some_and(|source| source.as_str() == SOURCE);
        let Ok(at) = object.time.parse::<Timestamp>() else { continue };
        if is_copy && newest.as_ref().is_none_or(|(newest, ..)| at > *newest) {
            newest = Some((at, id, object));
        }
    }
    newest.map(|(_, id, object)| (id, object)).ok_or_else(|| {
        let what = wanted.map_or_else(String::new, |wanted| format!(" whose id begins with {wanted:?}"));
        Failure::new(
            ErrorCode::SnapshotUnknown,
            format!("the repository holds no copy of a controller's state{what}"),
        )
        .because("copies are made by `self_backup` of controller.yaml")
    })
}
