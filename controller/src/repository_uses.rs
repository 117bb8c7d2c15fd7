//! What works with a repository without being a run: imports and exports. A prune waits for those that began before it
//! condemned packs, as it does for runs.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

/// The uses of a repository under way.
#[derive(Debug, Default)]
pub struct RepositoryUses {
    inner: Arc<Mutex<Uses>>,
}

#[derive(Debug, Default)]
struct Uses {
    next: u64,
    active: BTreeSet<u64>,
    disturbances: u64,
}

/// A use that is under way until this is dropped.
#[derive(Debug)]
pub struct RepositoryUse {
    inner: Arc<Mutex<Uses>>,
    number: u64,
    relied_since: u64,
}

impl RepositoryUse {
    /// How often the repository had been disturbed when it began.
    pub fn relied_since(&self) -> u64 {
        self.relied_since
    }
}

impl Drop for RepositoryUse {
    fn drop(&mut self) {
        self.inner.lock().active.remove(&self.number);
    }
}

impl RepositoryUses {
    /// Begins a use.
    pub fn begin(&self) -> RepositoryUse {
        let mut uses = self.inner.lock();
        let number = uses.next;
        uses.next += 1;
        uses.active.insert(number);
        RepositoryUse { inner: self.inner.clone(), number, relied_since: uses.disturbances }
    }

    /// The number that the next use gets: all that are under way have lower ones.
    pub fn next(&self) -> u64 {
        self.inner.lock().next
    }

    /// Another program was found to have taken something away: what was known until now may be gone.
    pub fn disturb(&self) {
        self.inner.lock().disturbances += 1;
    }

    /// How often that was so since the repository was opened.
    pub fn disturbances(&self) -> u64 {
        self.inner.lock().disturbances
    }

    /// How many of the uses with lower numbers are under way.
    pub fn before(&self, number: u64) -> usize {
        self.inner.lock().active.range(..number).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_began_before_is_waited_for() {
        let uses = RepositoryUses::default();
        let first = uses.begin();
        let now = uses.next();
        let second = uses.begin();
        assert_eq!(uses.before(now), 1);
        drop(first);
        assert_eq!(uses.before(now), 0);
        assert_eq!(uses.before(uses.next()), 1);
        drop(second);
        assert_eq!(uses.before(uses.next()), 0);
    }
}
