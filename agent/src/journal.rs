//! Which runs are under way, on the disk, so that a restarted agent knows what it left behind.
//!
//! Two small files, each replaced as a whole. `journal.json`: runs that began and did not end. `restored.json`: what
//! restores made on this host, and what promotions kept; only that may be discarded or promoted later, whatever the
//! controller asks for.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_model::ids::{Attempt, HookName, RunId};
use holdfast_model::restore::{RestoreReport, RestoredTarget};
use holdfast_model::run::RunSpec;
use holdfast_model::source::Source;
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::durable_file::{self, Access};
use holdfast_runtime::{OnEnd, StopCause, TaskGroup, fail_point};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::disk;

const JOURNAL_FILE: &str = "journal.json";
const RESTORED_FILE: &str = "restored.json";
/// How many restores are remembered for a later promotion or removal; the oldest is forgotten first.
const RESTORES_MAX: usize = 10_000;

/// The journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file is not what it was written as.
    #[error("the journal {} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// An error of the file system.
    #[error("the journal {} cannot be read or written", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

impl JournalError {
    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        match self {
            JournalError::Io { source, .. } => disk::error_code(source),
            JournalError::Damaged { .. } => ErrorCode::AgentStateDamaged,
            JournalError::Stopping => ErrorCode::AgentDraining,
        }
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        let failure = Failure::from_error(error.code(), &error);
        match error {
            JournalError::Damaged { path, .. } => failure
                .at_stake("what runs left behind when the agent stopped is not cleaned up by itself")
                .then(format!("mv {0} {0}.damaged", path.display()))
                .then("systemctl restart holdfast-agent"),
            _ => failure,
        }
    }
}

/// A run that began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// Which run.
    pub run: RunId,
    /// Which attempt.
    pub attempt: Attempt,
    /// What it does.
    pub spec: RunSpec,
    /// The source it concerns.
    pub source: Source,
    /// What a restore is about to make and has not reported yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfinished: Vec<RestoredTarget>,
    /// What is about to take the place of live data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion: Option<Promotion>,
    /// The hook that is still to be run, since the one before it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_hook: Option<HookName>,
}

impl JournalEntry {
    /// What is known when a run begins.
    pub fn new(run: RunId, attempt: Attempt, spec: RunSpec, source: Source) -> Self {
        Self { run, attempt, spec, source, unfinished: Vec::new(), promotion: None, after_hook: None }
    }
}

/// A promotion, as it is written down before the first rename: enough to bring it to an end whatever happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// The restore that made what is promoted.
    pub restore: RunId,
    /// What the run reports when all is swapped, but for the names under which the former data is kept.
    pub report: RestoreReport,
    /// What tells the restored data of each target.
    pub marks: Vec<String>,
    /// The end of the names under which the former data is kept.
    pub stamp: String,
}

/// What one restore made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Restored {
    restore: RunId,
    targets: Vec<RestoredTarget>,
}

/// The durable memory of this agent. Clones share it.
#[derive(Debug, Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    state: Mutex<State>,
    tasks: TaskGroup,
}

#[derive(Debug, Default)]
struct State {
    runs: BTreeMap<RunId, JournalEntry>,
    restored: Vec<Restored>,
}

impl Journal {
    /// Opens the journal of a data folder. Blocking. What it lists was under way when the agent ended.
    ///
    /// # Errors
    /// `HF-5006` when a file is damaged.
    pub fn open(data_dir: &Path, tasks: &TaskGroup) -> Result<Self, JournalError> {
        let runs: Vec<JournalEntry> = read(&data_dir.join(JOURNAL_FILE))?;
        let restored = read(&data_dir.join(RESTORED_FILE))?;
        let runs = runs.into_iter().map(|entry| (entry.run, entry)).collect();
        Ok(Self {
            shared: Arc::new(Shared {
                folder: data_dir.to_owned(),
                state: Mutex::new(State { runs, restored }),
                tasks: tasks.clone(),
            }),
        })
    }

    /// The runs that began and did not end.
    pub fn runs(&self) -> Vec<JournalEntry> {
        self.shared.state.lock().runs.values().cloned().collect()
    }

    /// A run begins. Durable when this returns.
    ///
    /// # Errors
    /// Those of the file system.
    pub async fn begin(&self, entry: JournalEntry) -> Result<(), JournalError> {
        fail_point::hit("agent-journal-before-begin");
        self.change_runs(move |runs| {
            runs.insert(entry.run, entry);
        })
        .await?;
        fail_point::hit("agent-journal-after-begin");
        Ok(())
    }

    /// A restore is about to make these; after a crash they are removed. Durable when this returns.
    ///
    /// # Errors
    /// Those of the file system.
    pub async fn expect(&self, run: RunId, unfinished: Vec<RestoredTarget>) -> Result<(), JournalError> {
        self.change_runs(move |runs| {
            if let Some(entry) = runs.get_mut(&run) {
                entry.unfinished = unfinished;
            }
        })
        .await
    }

    /// A run is about to swap; after a crash the swap is brought to an end. Durable when this returns.
    ///
    /// # Errors
    /// Those of the file system.
    pub async fn promoting(&self, run: RunId, promotion: Promotion) -> Result<(), JournalError> {
        self.change_runs(move |runs| {
            if let Some(entry) = runs.get_mut(&run) {
                entry.promotion = Some(promotion);
            }
        })
        .await
    }

    /// The hook that a run has to run whatever becomes of it; none when it has. Durable when this returns.
    ///
    /// # Errors
    /// Those of the file system.
    pub async fn owe_hook(&self, run: RunId, hook: Option<HookName>) -> Result<(), JournalError> {
        self.change_runs(move |runs| {
            if let Some(entry) = runs.get_mut(&run) {
                entry.after_hook = hook;
            }
        })
        .await
    }

    /// A run has ended and left nothing behind that is not accounted for.
    ///
    /// # Errors
    /// Those of the file system.
    pub async fn end(&self, run: RunId, attempt: Attempt) -> Result<(), JournalError> {
        fail_point::hit("agent-journal-before-end");
        self.change_runs(move |runs| {
            if runs.get(&run).is_some_and(|entry| entry.attempt == attempt) {
                runs.remove(&run);
            }
        })
        .await
    }

    /// Remembers what a restore made, or how it changed. Durable when this returns.
    ///
    /// # Errors
    /// Those of the file system.
    pub async fn remember(&self, restore: RunId, targets: Vec<RestoredTarget>) -> Result<(), JournalError> {
        self.change_restored(move |restored| {
            restored.retain(|known| known.restore != restore);
            if !targets.is_empty() {
                restored.push(Restored { restore, targets });
            }
            let excess = restored.len().saturating_sub(RESTORES_MAX);
            restored.drain(..excess);
        })
        .await
    }

    /// Remembers how targets of a restore changed by a promotion; its other targets stay as they are.
    ///
    /// # Errors
    /// Those of the file system.
    pub async fn promoted(&self, restore: RunId, targets: &[RestoredTarget]) -> Result<(), JournalError> {
        let is_other = |known: &RestoredTarget| {
            !targets.iter().any(|target| target.restored == known.restored && target.live == known.live)
        };
        let others = self.restored(restore).into_iter().filter(is_other);
        let all = others.chain(targets.iter().cloned()).collect();
        self.remember(restore, all).await
    }

    /// What a restore made on this host, as far as it is still there.
    pub fn restored(&self, restore: RunId) -> Vec<RestoredTarget> {
        let state = self.shared.state.lock();
        let found = state.restored.iter().find(|known| known.restore == restore);
        found.map(|known| known.targets.clone()).unwrap_or_default()
    }

    async fn change_runs(
        &self,
        change: impl FnOnce(&mut BTreeMap<RunId, JournalEntry>) + Send + 'static,
    ) -> Result<(), JournalError> {
        self.blocking(move |shared| {
            let mut state = shared.state.lock();
            change(&mut state.runs);
            let runs: Vec<&JournalEntry> = state.runs.values().collect();
            write(&shared.folder.join(JOURNAL_FILE), &runs)
        })
        .await
    }

    async fn change_restored(
        &self,
        change: impl FnOnce(&mut Vec<Restored>) + Send + 'static,
    ) -> Result<(), JournalError> {
        self.blocking(move |shared| {
            let mut state = shared.state.lock();
            change(&mut state.restored);
            write(&shared.folder.join(RESTORED_FILE), &state.restored)
        })
        .await
    }

    async fn blocking(
        &self,
        work: impl FnOnce(&Shared) -> Result<(), JournalError> + Send + 'static,
    ) -> Result<(), JournalError> {
        let shared = self.shared.clone();
        let done = self.shared.tasks.spawn_blocking("journal", OnEnd::Finite, move || {
            work(&shared).inspect_err(|error| {
                // What the disk holds is not known now, and a journal that is behind would clean up the wrong things.
                if error.code() != ErrorCode::AgentSpoolFull {
                    tracing::error!(error = %error, "the journal cannot be used any more");
                    shared.tasks.shutdown().request(StopCause::Broken(error.to_string()));
                }
            })
        });
        done.join().await.unwrap_or(Err(JournalError::Stopping))
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, JournalError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|source| JournalError::Damaged { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(JournalError::Io { path: path.to_owned(), source }),
    }
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), JournalError> {
    let bytes = serde_json::to_vec(value).expect("model types have text keys only, so they always serialise");
    fail_point::hit_io("agent-journal-write")
        .and_then(|()| durable_file::replace(path, &bytes, Access::Owner))
        .map_err(|source| JournalError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use holdfast_runtime::Shutdown;

    use super::*;

    fn entry(n: u8) -> JournalEntry {
        let spec = serde_json::json!({
            "kind": "backup", "source": "shop", "repository": "main", "snapshot_type": "full", "milestone": null
        });
        let source = serde_json::json!({ "engine": "files", "agent": "a", "paths": ["/srv"] });
        let spec = serde_json::from_value(spec).unwrap();
        let source = serde_json::from_value(source).unwrap();
        JournalEntry::new(RunId::at(u64::from(n), [n; 10]), Attempt(1), spec, source)
    }

    fn target(name: &str) -> RestoredTarget {
        RestoredTarget { part: "shop".into(), restored: name.into(), live: "shop".into(), kept: None }
    }

    #[tokio::test]
    async fn a_run_that_did_not_end_is_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = TaskGroup::new(&Shutdown::new());
        let journal = Journal::open(folder.path(), &tasks).unwrap();
        journal.begin(entry(1)).await.unwrap();
        journal.begin(entry(2)).await.unwrap();
        journal.expect(entry(2).run, vec![target("shop_restored")]).await.unwrap();
        journal.end(entry(1).run, Attempt(1)).await.unwrap();
        drop(journal);
        let journal = Journal::open(folder.path(), &tasks).unwrap();
        let expected = JournalEntry { unfinished: vec![target("shop_restored")], ..entry(2) };
        assert_eq!(journal.runs(), [expected]);
    }

    #[tokio::test]
    async fn the_end_of_an_old_attempt_does_not_end_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = TaskGroup::new(&Shutdown::new());
        let journal = Journal::open(folder.path(), &tasks).unwrap();
        journal.begin(JournalEntry { attempt: Attempt(2), ..entry(1) }).await.unwrap();
        journal.end(entry(1).run, Attempt(1)).await.unwrap();
        assert_eq!(journal.runs().len(), 1);
    }

    #[tokio::test]
    async fn what_a_restore_made_is_remembered_until_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = TaskGroup::new(&Shutdown::new());
        let journal = Journal::open(folder.path(), &tasks).unwrap();
        let restore = entry(1).run;
        journal.remember(restore, vec![target("a"), target("b")]).await.unwrap();
        let journal = Journal::open(folder.path(), &tasks).unwrap();
        assert_eq!(journal.restored(restore), [target("a"), target("b")]);
        journal.remember(restore, Vec::new()).await.unwrap();
        assert_eq!(Journal::open(folder.path(), &tasks).unwrap().restored(restore), []);
    }

    #[test]
    fn a_damaged_journal_is_an_error_that_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(JOURNAL_FILE), b"[{").unwrap();
        let tasks = TaskGroup::new(&Shutdown::new());
        let failure = Failure::from(Journal::open(folder.path(), &tasks).unwrap_err());
        assert_eq!(failure.code, ErrorCode::AgentStateDamaged);
        assert!(failure.next[0].starts_with("mv "), "{failure:?}");
    }
}
