//! The controller's own state as a snapshot in a repository: what operators declared, and what is known of it. A controller
//! that lost its machine starts from it, see [`crate::recover`].
//!
//! A reconciler: every few minutes it looks whether the state has changed, and writes it as files that anybody can read:
//!
//! | path | what it is |
//! |---|---|
//! | `fleet.yaml` | the declared fleet, as `holdfast export` prints it |
//! | `records/KIND.jsonl` | the records of a kind, one `{"key":…,"value":…}` a line, in the order of their keys |
//! | `audit.jsonl` | the audit log with its hashes, one entry a line |
//! | `pki/ca.key`, `pki/ca.pem` | the certificate authority: without it every agent would have to be enrolled again |
//! | `.holdfast/state.json` | [`StateHead`] |
//!
//! So who can open that repository can become the controller of this fleet; they can read all of its backups anyway.

mod state_files;

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::fleet::to_yaml;
use holdfast_model::ids::{RepositoryName, SnapshotId, SourceName};
use holdfast_model::policy::{Keep, Policy};
use holdfast_model::units::Count;
use holdfast_model::{ErrorCode, Failure};
use holdfast_repository::tree::{FileTime, NodeMetadata, NodeType};
use holdfast_repository::write::{OwnFile, SnapshotWriter, WriteContent, WriteEntry};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use self::state_files::{AuditEntries, Entries, Lines};
use crate::catalog::{Tags, describe};
use crate::core::Core;
use crate::records::Batch;
use crate::repositories::{OpenRepository, repository_failure};
use crate::snapshot_writer::{self, Unpublished};
use crate::store::{Expect, Kind, Sequence};

pub use self::state_files::{COPIED, StateLine, file_of};

/// The source that these snapshots are of. No source of a fleet may have this name.
pub const SOURCE: &str = holdfast_model::ids::CONTROLLER_SOURCE;

/// The name of the description within the folder of Holdfast's own files.
pub const HEAD: &str = "state.json";

/// What the description says that it is.
pub const FORMAT: &str = "holdfast-controller-state";

/// Under which key the last copy is remembered.
const LAST: &str = "self-backup";

/// How often a copy is made although nothing changed: so an old one says that something is wrong.
const AT_LEAST_EVERY: Duration = Duration::from_secs(12 * 3600);

/// How old the newest copy may be.
pub const AGE_MAX: SignedDuration = SignedDuration::from_hours(24);

/// How soon a copy that failed is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// Describes a copy of the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHead {
    /// [`FORMAT`].
    pub format: String,
    /// Of the format.
    pub version: u32,
    /// The number of the last commit that is surely in it; later ones may be.
    pub sequence: Sequence,
    /// When it was made.
    pub at: Timestamp,
    /// Version of the controller.
    pub controller: String,
}

/// The last copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCopy {
    /// When it was made.
    pub at: Timestamp,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// In which repository.
    pub repository: RepositoryName,
}

/// Runs until the controller stops.
pub async fn run(core: Arc<Core>) {
    let stop = core.tasks.token().clone();
    let (mut copied, mut copied_at): (Option<(RepositoryName, Sequence)>, _) = (None, core.clock.monotonic());
    let mut configured = core.config.changed();
    let mut wait = core.config.get().self_backup.every();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = configured => {}
            () = core.clock.sleep(wait) => {}
        }
        configured = core.config.changed();
        wait = core.config.get().self_backup.every();
        let Ok(Some(repository)) = destination(&core) else { continue };
        let age = core.clock.monotonic().saturating_duration_since(copied_at);
        if copied == Some((repository.clone(), core.records.store().sequence())) && age < AT_LEAST_EVERY {
            continue;
        }
        match copy(&core, &repository).await {
            Ok(sequence) => {
                copied = Some((repository, sequence));
                copied_at = core.clock.monotonic();
            }
            Err(failure) => {
                tracing::error!(%repository, %failure, "the controller's own state could not be copied");
                wait = AGAIN.min(wait);
            }
        }
    }
}

/// Where copies go: to the repository of the configuration, or to the only one there is. Nowhere when there is none.
///
/// # Errors
/// `HF-1008` when the configuration names one that is not declared, or none and there are several: which of them the
/// authority's key may go to is not guessed.
pub fn destination(core: &Core) -> Result<Option<RepositoryName>, Failure> {
    let current = core.definitions.current();
    let repositories = &current.fleet.repositories;
    match (&core.config.get().self_backup.to, repositories.len()) {
        (Some(name), _) if repositories.contains_key(name) => Ok(Some(name.clone())),
        (Some(name), 1..) => Err(Failure::new(
            ErrorCode::ReferenceUnknown,
            format!("`self_backup.to` names repository {name}, which does not exist"),
        )),
        (_, 0) => Ok(None),
        (None, 1) => Ok(repositories.keys().next().cloned()),
        (None, _) => Err(Failure::new(
            ErrorCode::ReferenceUnknown,
            "`self_backup.to` names no repository, and there is more than one",
        )),
    }
}

/// What is kept of the copies: the newest ten, and one for each of the last hours and days.
pub fn policy() -> Policy {
    let keep = Keep {
        last: Some(Count::new(10)),
        hourly: Some(Count::new(24)),
        daily: Some(Count::new(30)),
        ..Keep::default()
    };
    Policy { keep: Some(keep), ..Policy::default() }
}

/// The last copy that was made.
///
/// # Errors
/// When the state can not be read.
pub async fn last_copy(core: &Core) -> Result<Option<LastCopy>, Failure> {
    Ok(core.records.get(Kind::Setting, LAST).await?.map(|found| found.value))
}

/// Copies the state now. Returns the number of the commit that remembers it.
///
/// # Errors
/// Those of the repository and the state.
pub async fn copy(core: &Arc<Core>, repository: &RepositoryName) -> Result<Sequence, Failure> {
    let repository = core.repository(repository).await?;
    repository.update_index().await?;
    let in_use = repository.index().uses.begin();
    let head = StateHead {
        format: FORMAT.to_owned(),
        version: 1,
        sequence: core.records.store().sequence(),
        at: core.clock.now(),
        controller: crate::VERSION.to_owned(),
    };
    let (owner, target, at) = (core.clone(), repository.clone(), head.at);
    let cancel = core.tasks.token().child_token();
    let written =
        core.blocking("copy the controller's state", move || write(&owner, &target, &head, cancel)).await?;
    let (id, object) = snapshot_writer::publish(&repository, &in_use, written, at).await?;
    let record = describe(id, &repository.name, &object, None);
    let last = LastCopy { at, snapshot: id, repository: repository.name.clone() };
    let batch = Batch::new("controller", "state.copy", format!("snapshot/{id}")).put_snapshot(&record);
    core.records.commit(batch.put(Kind::Setting, LAST, &last, Expect::Any)).await
}

/// Writes all files. Blocks.
fn write(
    core: &Arc<Core>,
    repository: &Arc<OpenRepository>,
    head: &StateHead,
    cancel: CancellationToken,
) -> Result<Unpublished, Failure> {
    let fail = |error| repository_failure(&repository.name, &error);
    let time =
        FileTime { seconds: head.at.as_second(), nanoseconds: head.at.subsec_nanosecond().unsigned_abs() };
    let mut writer = snapshot_writer::open(repository, cancel)?;
    let mut tree = Tree { writer: &mut writer, time };
    let handle = tokio::runtime::Handle::current();
    let store = core.records.store().clone();
    let mut add = |path: &str, content: Box<dyn std::io::Read + Send>| tree.file(path, content).map_err(fail);
    add("audit.jsonl", Box::new(Lines::of(AuditEntries::new(store.clone(), handle.clone(), head.sequence))))?;
    let yaml = to_yaml(&core.definitions.current().fleet).into_bytes();
    add("fleet.yaml", Box::new(std::io::Cursor::new(yaml)))?;
    tree.folder("pki").map_err(fail)?;
    for name in ["ca.key", "ca.pem"] {
        let bytes = std::fs::read(core.data_dir.join("pki").join(name)).map_err(|error| {
            Failure::new(ErrorCode::StateUnavailable, format!("pki/{name} can not be read"))
                .because(error.to_string())
        })?;
        tree.file(&format!("pki/{name}"), Box::new(std::io::Cursor::new(bytes))).map_err(fail)?;
    }
    tree.folder("records").map_err(fail)?;
    let mut kinds: Vec<(String, Kind)> = COPIED.iter().map(|kind| (file_of(*kind), *kind)).collect();
    kinds.sort();
    for (path, kind) in kinds {
        let lines = Lines::of(Entries::new(store.clone(), handle.clone(), kind));
        tree.file(&path, Box::new(lines)).map_err(fail)?;
    }
    let bytes =
        serde_json::to_vec_pretty(head).map_err(|error| Failure::from_error(ErrorCode::Internal, &error))?;
    let (tree, written) =
        writer.finish(vec![OwnFile { name: HEAD.to_owned(), bytes }], time).map_err(fail)?;
    let source = SourceName::new(SOURCE).map_err(|error| Failure::from_error(ErrorCode::Internal, &error))?;
    let tags = Tags { ours: true, source: Some(source), ..Tags::default() };
    let paths = vec!["/".to_owned()];
    Ok(Unpublished { tree, written, paths, hostname: crate::hostname(), tags })
}

/// The tree under construction.
struct Tree<'a> {
    writer: &'a mut SnapshotWriter,
    time: FileTime,
}

impl Tree<'_> {
    fn folder(&mut self, path: &str) -> Result<(), holdfast_repository::RepositoryError> {
        self.add(path, NodeType::Directory, 0o700, WriteContent::None)
    }

    fn file(
        &mut self,
        path: &str,
        content: Box<dyn std::io::Read + Send>,
    ) -> Result<(), holdfast_repository::RepositoryError> {
        self.add(path, NodeType::File, 0o600, WriteContent::Stream(content))
    }

    fn add(
        &mut self,
        path: &str,
        node_type: NodeType,
        mode: u32,
        content: WriteContent,
    ) -> Result<(), holdfast_repository::RepositoryError> {
        let metadata = NodeMetadata::plain(node_type, mode, self.time);
        self.writer.add(WriteEntry { path: path.as_bytes().to_vec(), metadata, content })
    }
}

#[cfg(test)]
mod tests {
    use holdfast_model::fleet::FleetFile;
    use holdfast_model::units::Span;
    use holdfast_runtime::{ManualClock, OnEnd};

    use super::*;
    use crate::fleet_changes::{self, Authorship, Confirmed};
    use crate::{Controller, ControllerConfig, reload};

    #[tokio::test(flavor = "multi_thread")]
    async fn where_copies_go_and_how_often_changes_with_the_configuration_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        guarded_key(&key);
        let mut config = ControllerConfig::new(folder.path().join("controller"));
        config.self_backup.every = Span::from_hours(24);
        // No time passes: what happens is because of the configuration.
        let clock = ManualClock::at("2026-06-01T12:00:00Z".parse().unwrap());
        let controller = Controller::assemble(&config, &clock.shared()).await.unwrap();
        let core = &controller.core;
        let mut text = "api: holdfast/v1\nrepositories:\n".to_owned();
        for name in ["one", "two"] {
            let place = folder.path().join(name);
            let (place, key) = (place.display(), key.display());
            text.push_str(&format!(
                "  {name}: {{ url: \"file://{place}\", encryption: {{ key: {{ file: {key} }} }} }}\n"
            ));
        }
        let files = [FleetFile { name: "fleet.yaml".to_owned(), text }];
        let authorship = Authorship { owner: None, prune: false, take_over: false };
        let plan = fleet_changes::plan(&core.definitions.current(), &files, &authorship).unwrap();
        let confirmed = Confirmed::default();
        fleet_changes::apply(core, "test", &plan, &authorship, &confirmed, |batch, _| batch).await.unwrap();
        for name in ["one", "two"].map(|name| name.parse().unwrap()) {
            let spec = core.definitions.repository(&name).unwrap();
            core.repositories.init(&name, &spec).await.unwrap();
        }

        let running = core.tasks.spawn("self-backup", OnEnd::Isolated, run(core.clone()));
        for name in ["one", "two"] {
            config.self_backup.to = Some(name.parse().unwrap());
            let copied = async {
                loop {
                    // It may be about to wait: then it hears of the next.
                    reload::reload(core, Ok(config.clone()));
                    let last = last_copy(core).await.unwrap();
                    if last.is_some_and(|last| last.repository.as_str() == name) {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), copied).await.expect("a copy in time");
        }
        drop(running);
        controller.close().await.unwrap();
    }

    fn guarded_key(path: &std::path::Path) {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(path, "a key of the test").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}
