//! A storage that fails on a plan: by a seed, or at a chosen call.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::recording::Verb;
use super::{ObjectList, ObjectStore, ObjectUpload, StorageError, StorageErrorKind, StorageProbe};
use crate::format::{ObjectKind, ObjectName};

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails and does nothing.
    Fail(StorageErrorKind),
    /// The call does its work and then fails: the answer was lost.
    LoseAnswer,
    /// The call is late by this much, then does its work.
    Delay(Duration),
    /// Bytes read end early: half of them come. A `get_range` fails then, as the trait promises whole ranges.
    Truncate,
    /// One bit of the bytes read is wrong.
    Flip,
}

/// Which calls a rule concerns, and what happens to them.
#[derive(Debug, Clone, Copy)]
struct Rule {
    verb: Verb,
    kind: Option<ObjectKind>,
    /// How many calls that fit still pass.
    passes: u64,
    /// How many fail after that.
    fails: u64,
    fault: Fault,
}

/// What goes wrong, and when.
#[derive(Debug, Clone, Default)]
pub struct FaultPlan {
    rules: Vec<Rule>,
    random: Option<Random>,
}

#[derive(Debug, Clone)]
struct Random {
    state: u64,
    per_mille: u64,
    faults: Vec<Fault>,
}

impl FaultPlan {
    /// Nothing goes wrong yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Of the calls of a verb on a kind of object (or on any), the one numbered `nth` (from 1) meets the fault.
    #[must_use]
    pub fn at(self, verb: Verb, kind: Option<ObjectKind>, nth: u64, fault: Fault) -> Self {
        self.rule(Rule { verb, kind, passes: nth.saturating_sub(1), fails: 1, fault })
    }

    /// Every call of a verb on a kind of object (or on any) meets the fault.
    #[must_use]
    pub fn always(self, verb: Verb, kind: Option<ObjectKind>, fault: Fault) -> Self {
        self.rule(Rule { verb, kind, passes: 0, fails: u64::MAX, fault })
    }

    /// About `per_mille` of a thousand calls meet one of the faults; which, follows from the seed and the order of calls.
    #[must_use]
    pub fn seeded(mut self, seed: u64, per_mille: u64, faults: &[Fault]) -> Self {
        self.random = Some(Random { state: seed, per_mille, faults: faults.to_vec() });
        self
    }

    fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// What happens to the next call.
    fn next(&mut self, verb: Verb, kind: Option<ObjectKind>) -> Option<Fault> {
        let fits = |rule: &&mut Rule| rule.verb == verb && (rule.kind.is_none() || rule.kind == kind);
        for rule in self.rules.iter_mut().filter(fits) {
            if rule.passes > 0 {
                rule.passes -= 1;
            } else if rule.fails > 0 {
                rule.fails -= 1;
                return Some(rule.fault);
            }
        }
        self.random.as_mut().and_then(Random::next)
    }
}

impl Random {
    fn draw(&mut self) -> u64 {
        // SplitMix64: any seed will do, and the sequence is the same everywhere.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn next(&mut self) -> Option<Fault> {
        let (hit, which) = (self.draw() % 1000 < self.per_mille, self.draw());
        if !hit || self.faults.is_empty() {
            return None;
        }
        Some(self.faults[(which % self.faults.len() as u64) as usize])
    }
}

/// Passes calls on, but for those that the plan spoils. Clones share the plan.
#[derive(Clone)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    plan: Arc<Mutex<FaultPlan>>,
    injected: Arc<Mutex<Vec<(Verb, Fault)>>>,
}

impl FaultyStore {
    /// Spoils calls to this storage.
    pub fn new(inner: Arc<dyn ObjectStore>, plan: FaultPlan) -> Self {
        Self { inner, plan: Arc::new(Mutex::new(plan)), injected: Arc::default() }
    }

    /// What went wrong so far: a test whose faults never came has not tested them.
    pub fn injected(&self) -> Vec<(Verb, Fault)> {
        self.injected.lock().clone()
    }

    /// Takes another plan from now on.
    pub fn set_plan(&self, plan: FaultPlan) {
        *self.plan.lock() = plan;
    }

    /// Applies what comes before the work; gives what is to be done after it.
    async fn before(&self, verb: Verb, kind: Option<ObjectKind>) -> Result<Option<Fault>, StorageError> {
        let fault = self.plan.lock().next(verb, kind);
        if let Some(fault) = fault {
            self.injected.lock().push((verb, fault));
        }
        match fault {
            Some(Fault::Fail(kind)) => Err(injected(kind)),
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(None)
            }
            other => Ok(other),
        }
    }
}

fn injected(kind: StorageErrorKind) -> StorageError {
    StorageError::new(kind).detail("injected by the test")
}

fn lose_answer<T>(fault: Option<Fault>, result: Result<T, StorageError>) -> Result<T, StorageError> {
    match (fault, result) {
        (Some(Fault::LoseAnswer), Ok(_)) => Err(injected(StorageErrorKind::Unreachable)),
        (_, result) => result,
    }
}

fn spoil(fault: Option<Fault>, data: Bytes) -> Bytes {
    match fault {
        Some(Fault::Truncate) => data.slice(..data.len() / 2),
        Some(Fault::Flip) if !data.is_empty() => {
            let mut spoilt = data.to_vec();
            let middle = spoilt.len() / 2;
            spoilt[middle] ^= 0x10;
            spoilt.into()
        }
        _ => data,
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put(&self, name: &ObjectName, data: Bytes) -> Result<(), StorageError> {
        let fault = self.before(Verb::Put, Some(name.kind())).await.map_err(|error| error.object(name))?;
        lose_answer(fault, self.inner.put(name, data).await)
    }

    async fn begin_put(&self, name: &ObjectName, length: u64) -> Result<Box<dyn ObjectUpload>, StorageError> {
        let fault = self.before(Verb::Put, Some(name.kind())).await.map_err(|error| error.object(name))?;
        let inner = self.inner.begin_put(name, length).await?;
        Ok(Box::new(FaultyUpload { inner, fault }))
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        let fault = self.before(Verb::Get, Some(name.kind())).await.map_err(|error| error.object(name))?;
        let data = lose_answer(fault, self.inner.get(name).await)?;
        Ok(spoil(fault, data))
    }

    async fn get_range(&self, name: &ObjectName, offset: u64, length: u64) -> Result<Bytes, StorageError> {
        let fault =
            self.before(Verb::GetRange, Some(name.kind())).await.map_err(|error| error.object(name))?;
        if fault == Some(Fault::Truncate) {
            return Err(injected(StorageErrorKind::Damaged).object(name));
        }
        let data = lose_answer(fault, self.inner.get_range(name, offset, length).await)?;
        Ok(spoil(fault, data))
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StorageError> {
        let fault = self.before(Verb::Size, Some(name.kind())).await.map_err(|error| error.object(name))?;
        lose_answer(fault, self.inner.size(name).await)
    }

    async fn list(&self, kind: ObjectKind) -> Result<ObjectList<'_>, StorageError> {
        let fault = self.before(Verb::List, Some(kind)).await?;
        lose_answer(fault, self.inner.list(kind).await)
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        let fault = self.before(Verb::Delete, Some(name.kind())).await.map_err(|error| error.object(name))?;
        lose_answer(fault, self.inner.delete(name).await)
    }

    async fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<(), StorageError> {
        let fault = self.before(Verb::Rename, Some(from.kind())).await.map_err(|error| error.object(from))?;
        lose_answer(fault, self.inner.rename(from, to).await)
    }

    async fn probe(&self) -> Result<StorageProbe, StorageError> {
        let fault = self.before(Verb::Probe, None).await?;
        lose_answer(fault, self.inner.probe().await)
    }
}

struct FaultyUpload {
    inner: Box<dyn ObjectUpload>,
    fault: Option<Fault>,
}

#[async_trait]
impl ObjectUpload for FaultyUpload {
    async fn write(&mut self, data: Bytes) -> Result<(), StorageError> {
        self.inner.write(data).await
    }

    async fn finish(self: Box<Self>) -> Result<(), StorageError> {
        lose_answer(self.fault, self.inner.finish().await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{conformance, memory::MemoryStore};

    fn name() -> ObjectName {
        ObjectName::new(ObjectKind::Pack, [3; 32])
    }

    fn store(plan: FaultPlan) -> FaultyStore {
        let memory = MemoryStore::new();
        memory.replace(name(), Bytes::from_static(b"0123456789"));
        FaultyStore::new(Arc::new(memory), plan)
    }

    #[tokio::test]
    async fn the_chosen_call_fails_and_no_other() {
        let fault = Fault::Fail(StorageErrorKind::Full);
        let store = store(FaultPlan::new().at(Verb::Get, Some(ObjectKind::Pack), 2, fault));
        assert!(store.get(&name()).await.is_ok());
        assert_eq!(store.get(&name()).await.unwrap_err().kind(), StorageErrorKind::Full);
        assert!(store.get(&name()).await.is_ok());
        assert_eq!(store.injected(), [(Verb::Get, fault)]);
    }

    #[tokio::test]
    async fn a_lost_answer_leaves_the_work_done() {
        let store = store(FaultPlan::new().at(Verb::Put, None, 1, Fault::LoseAnswer));
        let other = ObjectName::new(ObjectKind::Pack, [4; 32]);
        let error = store.put(&other, Bytes::from_static(b"x")).await.unwrap_err();
        assert!(error.is_transient());
        assert_eq!(store.get(&other).await.unwrap(), "x");
    }

    #[tokio::test]
    async fn bytes_are_spoilt_as_planned() {
        let plan =
            FaultPlan::new().at(Verb::Get, None, 1, Fault::Truncate).at(Verb::Get, None, 1, Fault::Flip);
        let store = store(plan);
        assert_eq!(store.get(&name()).await.unwrap(), "01234");
        assert_eq!(store.get(&name()).await.unwrap(), "01234%6789");
        assert_eq!(store.get(&name()).await.unwrap(), "0123456789");
    }

    #[tokio::test]
    async fn the_same_seed_spoils_the_same_calls() {
        let mut outcomes = Vec::new();
        for _ in 0..2 {
            let faults = [Fault::Fail(StorageErrorKind::Unreachable), Fault::LoseAnswer];
            let store = store(FaultPlan::new().seeded(42, 300, &faults));
            let mut outcome = Vec::new();
            for _ in 0..100 {
                outcome.push(store.get(&name()).await.is_ok());
            }
            outcomes.push(outcome);
        }
        assert_eq!(outcomes[0], outcomes[1]);
        let failed = outcomes[0].iter().filter(|ok| !**ok).count();
        assert!((15..45).contains(&failed), "{failed} of 100 failed");
    }

    #[tokio::test]
    async fn without_faults_it_conforms() {
        conformance::run(&FaultyStore::new(Arc::new(MemoryStore::new()), FaultPlan::new())).await;
    }
}
