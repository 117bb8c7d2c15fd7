//! Which sources to ask when: the work of a pass is in proportion to what is due, not to what there is.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::ids::SourceName;

/// How far a clock may go back before everything is asked again.
const SETBACK: SignedDuration = SignedDuration::from_secs(60);

/// Sources in the order in which they are to be asked.
#[derive(Debug, Default)]
pub struct WakeQueue {
    order: BTreeSet<(Timestamp, Arc<SourceName>)>,
    wakes: HashMap<Arc<SourceName>, Option<Timestamp>>,
    asked_at: Option<Timestamp>,
}

impl WakeQueue {
    /// Says when a source is to be asked next; with none it waits for [`WakeQueue::set`] to say so.
    pub fn set(&mut self, source: &SourceName, wake: Option<Timestamp>) {
        let (source, old) = match self.wakes.get_key_value(source) {
            Some((source, old)) => (Arc::clone(source), *old),
            None => (Arc::new(source.clone()), None),
        };
        if let Some(old) = old {
            self.order.remove(&(old, Arc::clone(&source)));
        }
        if let Some(wake) = wake {
            self.order.insert((wake, Arc::clone(&source)));
        }
        self.wakes.insert(source, wake);
    }

    /// Forgets a source.
    pub fn remove(&mut self, source: &SourceName) {
        if let Some((source, Some(wake))) = self.wakes.remove_entry(source) {
            self.order.remove(&(wake, source));
        }
    }

    /// When the next source is to be asked.
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.order.first().map(|(wake, _)| *wake)
    }

    /// Takes the sources out that are to be asked at `now`, at most `limit`; each is to be [`WakeQueue::set`] again.
    ///
    /// A clock that went back makes all of them due: what was planned while it was ahead is of no use.
    pub fn take_due(&mut self, now: Timestamp, limit: usize) -> Vec<Arc<SourceName>> {
        if self.asked_at.is_some_and(|asked| now < asked - SETBACK) {
            self.order = self.wakes.keys().map(|source| (now, Arc::clone(source))).collect();
            self.wakes.values_mut().for_each(|wake| *wake = Some(now));
        }
        self.asked_at = Some(now);
        let mut due = Vec::new();
        while due.len() < limit && self.order.first().is_some_and(|(wake, _)| *wake <= now) {
            if let Some((_, source)) = self.order.pop_first() {
                self.wakes.insert(Arc::clone(&source), None);
                due.push(source);
            }
        }
        due
    }

    /// How many sources there are.
    pub fn len(&self) -> usize {
        self.wakes.len()
    }

    /// Whether there is no source.
    pub fn is_empty(&self) -> bool {
        self.wakes.is_empty()
    }
}
