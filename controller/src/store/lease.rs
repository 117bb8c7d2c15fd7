//! Leases with fencing numbers: who may do periodic work, until when, and how the loser is kept from writing.
//!
//! The fencing number is the number of the commit that took the lease, so it only ever rises. Work under a lease adds
//! [`Lease::fence`] to its batches: the commit of a holder that was replaced meanwhile is refused, however late it
//! wakes up.

use std::time::Duration;

use holdfast_runtime::Clock;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::record::{Audit, Batch, Expect, Kind, Sequence, Versioned};
use super::{Store, StoreError};

/// How far the clocks of two controllers may differ: another's lease is taken only so long after its end.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5);

/// A lease as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LeaseRecord {
    holder: String,
    expires_at: Timestamp,
}

/// A lease that was taken. It proves nothing by itself: batches prove it with [`Lease::fence`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    name: String,
    holder: String,
    number: Sequence,
    version: Sequence,
    expires_at: Timestamp,
}

impl Lease {
    /// The fencing number: higher than that of every earlier holder.
    pub fn number(&self) -> Sequence {
        self.number
    }

    /// Until when it holds without renewal.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// Makes a batch fail once somebody else has taken the lease.
    pub fn fence(&self, batch: &mut Batch) {
        batch.require(Kind::Lease, fence_key(&self.name), Expect::Version(self.number));
    }
}

fn lease_key(name: &str) -> String {
    format!("lease/{name}")
}

fn fence_key(name: &str) -> String {
    format!("fence/{name}")
}

fn deadline(now: Timestamp, duration: Duration) -> Timestamp {
    let span = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    now.checked_add(span).unwrap_or(Timestamp::MAX)
}

/// Takes the lease, unless somebody else holds it: then nothing.
///
/// # Errors
/// Those of the store, but no conflict: losing a race is the answer `None`.
pub async fn take(
    store: &dyn Store,
    clock: &dyn Clock,
    name: &str,
    holder: &str,
    duration: Duration,
) -> Result<Option<Lease>, StoreError> {
    let current: Option<Versioned<LeaseRecord>> = store.get_as(Kind::Lease, &lease_key(name)).await?;
    let now = clock.now();
    let expect = match &current {
        None => Expect::Absent,
        Some(lease) => {
            let held = lease.value.holder != holder && now < deadline(lease.value.expires_at, CLOCK_SKEW_MAX);
            if held {
                return Ok(None);
            }
            Expect::Version(lease.version)
        }
    };
    let expires_at = deadline(now, duration);
    let record = LeaseRecord { holder: holder.to_owned(), expires_at };
    let mut batch = Batch::new(Audit::by_controller("lease.take", format!("lease/{name}")));
    batch.put(Kind::Lease, lease_key(name), &record, expect);
    batch.put(Kind::Lease, fence_key(name), &holder, Expect::Any);
    match store.commit(batch).await {
        Ok(committed) => Ok(Some(Lease {
            name: name.to_owned(),
            holder: holder.to_owned(),
            number: committed.sequence,
            version: committed.sequence,
            expires_at,
        })),
        Err(StoreError::Conflict { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Prolongs a lease. `false` says that somebody else has it, or that it was given up.
///
/// # Errors
/// Those of the store, but no conflict.
pub async fn renew(
    store: &dyn Store,
    clock: &dyn Clock,
    lease: &mut Lease,
    duration: Duration,
) -> Result<bool, StoreError> {
    let expires_at = deadline(clock.now(), duration);
    let record = LeaseRecord { holder: lease.holder.clone(), expires_at };
    let mut batch = Batch::new(Audit::by_controller("lease.renew", format!("lease/{}", lease.name)));
    lease.fence(&mut batch);
    batch.put(Kind::Lease, lease_key(&lease.name), &record, Expect::Version(lease.version));
    match store.commit(batch).await {
        Ok(committed) => {
            (lease.version, lease.expires_at) = (committed.sequence, expires_at);
            Ok(true)
        }
        Err(StoreError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives a lease up, so that the next holder need not wait for its end. Giving up a lost lease is no error.
///
/// # Errors
/// Those of the store, but no conflict.
pub async fn give_up(store: &dyn Store, lease: Lease) -> Result<(), StoreError> {
    let mut batch = Batch::new(Audit::by_controller("lease.give-up", format!("lease/{}", lease.name)));
    lease.fence(&mut batch);
    batch.delete(Kind::Lease, lease_key(&lease.name), Expect::Version(lease.version));
    match store.commit(batch).await {
        Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
