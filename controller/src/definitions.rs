//! What operators declared, in memory and in the store. Read often, changed seldom: readers get one consistent fleet.

use std::sync::Arc;

use arc_swap::ArcSwap;
use holdfast_model::fleet::{Change, ChangeAction, Fleet};
use holdfast_model::ids::{PolicyName, RepositoryName, SourceName};
use holdfast_model::policy::Policy;
use holdfast_model::repository_spec::RepositorySpec;
use holdfast_model::source::Source;
use holdfast_model::{ErrorCode, Failure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::records::{Batch, Records};
use crate::store::{Expect, Kind};

/// The declared fleet.
pub struct Definitions {
    records: Records,
    current: ArcSwap<Declared>,
    /// Orders changes: the version of each definition is checked again by the store.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
}

/// One moment of the fleet.
#[derive(Default)]
pub struct Declared {
    /// The definitions.
    pub fleet: Fleet,
    /// When and by whom each was changed, by its path.
    pub stamps: std::collections::BTreeMap<String, Stamp>,
}

/// When, by whom, and as which version a definition was stored.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// Version of the record.
    pub version: u64,
    /// When.
    pub at: Timestamp,
    /// By whom.
    pub by: String,
    /// Who manages it; nobody: it is changed by hand.
    pub owner: Option<String>,
}

impl Declared {
    /// Who manages a definition, such as `sources.pg-main`.
    pub fn owner_of(&self, path: &str) -> Option<&String> {
        self.stamps.get(path)?.owner.as_ref()
    }
}

#[derive(Serialize, Deserialize)]
struct StoredDefinition {
    spec: serde_json::Value,
    at: Timestamp,
    by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
}

impl Definitions {
    /// Loads what is declared.
    ///
    /// # Errors
    /// When the state can not be read, or holds a definition that this version does not understand.
    pub async fn load(records: Records) -> Result<Self, Failure> {
        let mut declared = Declared::default();
        for found in records.all::<StoredDefinition>(Kind::Definition, "").await? {
            let StoredDefinition { at, by, owner, .. } = &found.value;
            let stamp = Stamp { version: found.version, at: *at, by: by.clone(), owner: owner.clone() };
            let (kind, name) = found.key.split_once('/').unwrap_or((&found.key, ""));
            declared.fleet.insert_json(kind, name, found.value.spec).map_err(|reason| {
                Failure::new(ErrorCode::StateDamaged, format!("definition {} is not understood", found.key))
                    .because(reason)
            })?;
            declared.stamps.insert(format!("{kind}.{name}"), stamp);
        }
        let current = ArcSwap::from_pointee(declared);
        Ok(Self { records, current, turn: tokio::sync::Mutex::default(), changed: Notify::new() })
    }

    /// Completes at the next change. Create it before looking at the fleet, so that no change is missed.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + '_ {
        self.changed.notified()
    }

    /// The fleet now.
    pub fn current(&self) -> Arc<Declared> {
        self.current.load_full()
    }

    /// A source.
    ///
    /// # Errors
    /// `HF-4001` when there is none of this name.
    pub fn source(&self, name: &SourceName) -> Result<Source, Failure> {
        self.current.load().fleet.sources.get(name).cloned().ok_or_else(|| {
            Failure::new(ErrorCode::NotFound, format!("there is no source {name}"))
                .then("holdfast source list")
        })
    }

    /// A source as an agent is to back it up: what it leaves open is as its policy says.
    ///
    /// # Errors
    /// `HF-4001` when there is none of this name.
    pub fn effective_source(&self, name: &SourceName) -> Result<Source, Failure> {
        let mut source = self.source(name)?;
        if source.hooks.is_empty()
            && let Some((_, policy)) = self.policy_of(&source)
        {
            source.hooks = policy.hooks;
        }
        Ok(source)
    }

    /// A policy.
    ///
    /// # Errors
    /// `HF-4001` when there is none of this name.
    pub fn policy(&self, name: &PolicyName) -> Result<Policy, Failure> {
        self.current.load().fleet.policies.get(name).cloned().ok_or_else(|| {
            Failure::new(ErrorCode::NotFound, format!("there is no policy {name}"))
                .then("holdfast policy list")
        })
    }

    /// The policy that a source is under.
    pub fn policy_of(&self, source: &Source) -> Option<(PolicyName, Policy)> {
        let current = self.current.load();
        current.fleet.policy_of(source).map(|(name, policy)| (name.clone(), policy.clone()))
    }

    /// A repository.
    ///
    /// # Errors
    /// `HF-4001` when there is none of this name.
    pub fn repository(&self, name: &RepositoryName) -> Result<RepositorySpec, Failure> {
        self.current.load().fleet.repositories.get(name).cloned().ok_or_else(|| {
            Failure::new(ErrorCode::NotFound, format!("there is no repository {name}"))
                .then("holdfast repo list")
        })
    }

    /// The repositories a source is backed up to: those it names, or those of its policy, or the only one there is.
    ///
    /// # Errors
    /// `HF-1008` when it names none and there is none or more than one.
    pub fn repositories_of(
        &self,
        name: &SourceName,
        source: &Source,
    ) -> Result<Vec<RepositoryName>, Failure> {
        if !source.to.is_empty() {
            return Ok(source.to.clone());
        }
        if let Some((_, policy)) = self.policy_of(source).filter(|(_, policy)| !policy.to.is_empty()) {
            return Ok(policy.to);
        }
        let current = self.current.load();
        let mut names = current.fleet.repositories.keys();
        match (names.next(), names.next()) {
            (Some(only), None) => Ok(vec![only.clone()]),
            (None, _) => Err(Failure::new(ErrorCode::ReferenceUnknown, "there is no repository to back up to")
                .then("holdfast repo add main --url file:///var/lib/holdfast/repo --key-file /etc/holdfast/main.key")),
            _ => Err(Failure::new(
                ErrorCode::ReferenceUnknown,
                format!("source {name} names no repository, and there is more than one"),
            )
            .then("holdfast repo list")),
        }
    }

    /// Stores changes with what else is in the batch, all or none, and makes them current. What is created or updated is
    /// managed by `owner` from then on.
    ///
    /// # Errors
    /// When one of the definitions changed meanwhile, or the state can not be written.
    pub async fn apply(
        &self,
        wanted: &Fleet,
        changes: &[Change],
        mut batch: Batch,
        by: &str,
        owner: Option<&str>,
        now: Timestamp,
    ) -> Result<(), Failure> {
        let owner = owner.map(str::to_owned);
        if changes.is_empty() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        let before = self.current();
        for change in changes {
            let (kind, name) = change.path.split_once('.').unwrap_or((&change.path, ""));
            let key = format!("{kind}/{name}");
            let expect = before
                .stamps
                .get(&change.path)
                .map_or(Expect::Absent, |stamp| Expect::Version(stamp.version));
            batch = match change.action {
                ChangeAction::Remove => batch.delete(Kind::Definition, key, expect),
                ChangeAction::Create | ChangeAction::Update => {
                    let spec = wanted.get_json(kind, name).unwrap_or_default();
                    let stored = StoredDefinition { spec, at: now, by: by.to_owned(), owner: owner.clone() };
                    batch.put(Kind::Definition, key, &stored, expect)
                }
            };
        }
        let version = self.records.commit(batch).await?;
        let mut after = Declared { fleet: before.fleet.clone(), stamps: before.stamps.clone() };
        for change in changes {
            let (kind, name) = change.path.split_once('.').unwrap_or((&change.path, ""));
            if change.action == ChangeAction::Remove {
                after.fleet.remove(kind, name);
                after.stamps.remove(&change.path);
            } else {
                let spec = wanted.get_json(kind, name).unwrap_or_default();
                after
                    .fleet
                    .insert_json(kind, name, spec)
                    .map_err(|why| Failure::new(ErrorCode::Internal, why))?;
                let stamp = Stamp { version, at: now, by: by.to_owned(), owner: owner.clone() };
                after.stamps.insert(change.path.clone(), stamp);
            }
        }
        self.current.store(Arc::new(after));
        self.changed.notify_waiters();
        Ok(())
    }
}
