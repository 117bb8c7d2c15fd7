//! Sources that a reconciler is to look at.

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_model::ids::SourceName;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The sources to look at. Clones share them.
#[derive(Clone, Default)]
pub struct SourceQueue {
    inner: Arc<Waiting>,
}

#[derive(Default)]
struct Waiting {
    sources: Mutex<BTreeSet<SourceName>>,
    changed: Notify,
}

impl SourceQueue {
    /// Something changed for a source.
    pub fn wake(&self, source: &SourceName) {
        self.put_back(source.clone());
        self.inner.changed.notify_one();
    }

    /// One to look at later: nobody who waits is woken.
    pub fn put_back(&self, source: SourceName) {
        self.inner.sources.lock().insert(source);
    }

    /// Takes them out.
    pub fn take(&self) -> BTreeSet<SourceName> {
        std::mem::take(&mut *self.inner.sources.lock())
    }

    /// Completes when there may be one. For one who waits.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + '_ {
        self.inner.changed.notified()
    }
}
