//! The controller's durable state.
//!
//! [`Store`] is one small contract: records by [`Kind`] and key, ordered scans, a batch commit with preconditions, a
//! feed of changes, leases with fencing numbers ([`lease`]) and an audit log whose entries are chained by hashes.
//! [`EmbeddedStore`] keeps it in one folder: **the journal is the truth, sled is its view** (`docs/adr/0003-journal-is-truth-sled-its-view.md`).
//!
//! In reading order: [`record`] (what is stored), this module (the contract), [`frame`] and [`journal`] (how it
//! becomes durable), [`view`] and [`checkpoint`] (how it is read and rebuilt), [`embedded`] (all together).
//! [`blob_index`] is separate: a cache of the repositories' index objects, without the journal.

pub mod blob_index;
pub mod checkpoint;
pub mod embedded;
pub mod error;
pub mod feed;
pub mod frame;
pub mod journal;
pub mod lease;
pub mod record;
pub mod segment;
pub mod view;
mod writer;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use embedded::{EmbeddedStore, StoreSettings};
pub use error::StoreError;
pub use feed::{Change, Changes};
pub use record::{
    Audit, AuditRecord, Batch, Committed, Expect, Kind, Record, Scan, Sequence, Verdict, Versioned,
};

#[cfg(test)]
#[macro_use]
mod conformance;
#[cfg(test)]
mod tests;

/// What tells this boot of the machine from the next.
pub fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

/// The controller's durable state. Handed around as `Arc<dyn Store>`.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// The record, as of the last acknowledged commit; a caller sees its own commits.
    ///
    /// # Errors
    /// The state cannot be read.
    async fn get(&self, kind: Kind, key: &str) -> Result<Option<Record>, StoreError>;

    /// One page of records of a kind, ordered by the bytes of their keys. Pages of one scan may belong to different
    /// moments; each record is whole.
    ///
    /// # Errors
    /// The state cannot be read.
    async fn scan(&self, kind: Kind, scan: Scan) -> Result<Vec<Record>, StoreError>;

    /// Applies a batch as a whole, or nothing of it. Returns once it is durable and visible.
    ///
    /// Not cancellation-safe: when the future is dropped, the batch may or may not be committed.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a precondition does not hold, [`StoreError::TooLarge`] before anything is
    /// written, [`StoreError::Failed`] when the state can no longer be written: then it is unknown whether this
    /// batch is durable, every later commit fails alike, and the process is told to stop.
    async fn commit(&self, batch: Batch) -> Result<Committed, StoreError>;

    /// The number of the last acknowledged commit; 0 before the first.
    fn sequence(&self) -> Sequence;

    /// Every change after a commit, in order, as long as the store lives. A slow reader misses nothing: what no
    /// longer waits for it in memory is read from the journal.
    ///
    /// # Errors
    /// [`StoreError::HistoryGone`] when the journal no longer reaches back that far: read everything again, and
    /// watch from [`Store::sequence`] as it was before.
    fn watch(&self, after: Sequence) -> Result<Changes, StoreError>;

    /// A page of the audit log: entries after a commit, at most `limit`.
    ///
    /// # Errors
    /// As for [`Store::watch`]; [`StoreError::Damaged`] when the log itself is.
    async fn audit(&self, after: Sequence, limit: usize) -> Result<Vec<AuditRecord>, StoreError>;

    /// Reads the whole audit log and proves its chain of hashes. Costs a read of the whole journal.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] names the first place that does not hold.
    async fn verify_audit(&self) -> Result<Verdict, StoreError>;
}

/// Records with their types. A record that cannot be read as its type is [`StoreError::Undecodable`].
impl dyn Store + '_ {
    /// The record as a value.
    ///
    /// # Errors
    /// As for [`Store::get`].
    pub async fn get_as<T: DeserializeOwned>(
        &self,
        kind: Kind,
        key: &str,
    ) -> Result<Option<Versioned<T>>, StoreError> {
        self.get(kind, key).await?.map(|record| record.decode(kind)).transpose()
    }

    /// One page of records as values.
    ///
    /// # Errors
    /// As for [`Store::scan`].
    pub async fn scan_as<T: DeserializeOwned>(
        &self,
        kind: Kind,
        scan: Scan,
    ) -> Result<Vec<Versioned<T>>, StoreError> {
        self.scan(kind, scan).await?.into_iter().map(|record| record.decode(kind)).collect()
    }

    /// Every record of a kind below a prefix, page by page. Costs memory for all of them: for kinds that are few.
    ///
    /// # Errors
    /// As for [`Store::scan`].
    pub async fn all_as<T: DeserializeOwned>(
        &self,
        kind: Kind,
        prefix: &str,
    ) -> Result<Vec<Versioned<T>>, StoreError> {
        let mut all: Vec<Versioned<T>> = Vec::new();
        loop {
            let after = all.last().map(|last| last.key.clone());
            let page = self.scan_as(kind, Scan { after, ..Scan::below(prefix) }).await?;
            let complete = page.len() < record::PAGE_RECORDS_MAX;
            all.extend(page);
            if complete {
                return Ok(all);
            }
        }
    }

    /// Stores one value: for the many commits that are one record.
    ///
    /// # Errors
    /// As for [`Store::commit`].
    pub async fn put_as<T: Serialize>(
        &self,
        kind: Kind,
        key: &str,
        value: &T,
        expect: Expect,
        audit: Audit,
    ) -> Result<Committed, StoreError> {
        let mut batch = Batch::new(audit);
        batch.put(kind, key, value, expect);
        self.commit(batch).await
    }
}
