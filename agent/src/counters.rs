//! The counters of one run: written by its threads, read once a second.

use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_model::progress::Progress;
use parking_lot::Mutex;

/// Lossy counters; every field only grows.
#[derive(Debug, Default)]
pub struct Counters {
    stage: Mutex<&'static str>,
    /// Bytes expected in all.
    pub bytes_total: Counter,
    /// Bytes of the source dealt with.
    pub bytes_done: Counter,
    /// Bytes read from the source, or written to the target.
    pub bytes_read: Counter,
    /// Files expected in all.
    pub files_total: Counter,
    /// Files dealt with.
    pub files_done: Counter,
    /// Files that were not read since they are unchanged.
    pub files_unchanged: Counter,
    /// Blobs that the repository did not have.
    pub blobs_new: Counter,
    /// Their bytes before compression.
    pub bytes_new: Counter,
    /// Bytes sent to the repository.
    pub bytes_stored: Counter,
    /// Items that could not be read.
    pub unreadable: Counter,
}

/// One counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Sets it, when something else counts.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    /// Says what is being done, in one or two words.
    pub fn enter(&self, stage: &'static str) {
        *self.stage.lock() = stage;
    }

    /// The counters as they are now.
    pub fn snapshot(&self) -> Progress {
        Progress {
            stage: (*self.stage.lock()).to_owned(),
            bytes_total: self.bytes_total.get(),
            bytes_done: self.bytes_done.get(),
            bytes_read: self.bytes_read.get(),
            files_total: self.files_total.get(),
            files_done: self.files_done.get(),
            files_unchanged: self.files_unchanged.get(),
            blobs_new: self.blobs_new.get(),
            bytes_new: self.bytes_new.get(),
            bytes_stored: self.bytes_stored.get(),
            unreadable: self.unreadable.get(),
        }
    }
}
