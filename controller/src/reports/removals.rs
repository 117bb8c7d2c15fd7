//! How many snapshots were removed, by the hour: counted in the commit that takes a snapshot out of the catalog.

use std::collections::BTreeMap;

use holdfast_model::Failure;
use holdfast_model::ids::RepositoryName;
use holdfast_model::report::Period;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::records::{Batch, Records};
use crate::store::{Expect, Kind};

/// Hours that are remembered: a week, and a day for what is late.
const HOURS_KEPT: i64 = 8 * 24;

/// Snapshots removed from a repository, by the hour since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Removals(BTreeMap<i64, Removed>);

/// How many snapshots were removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// By retention.
    pub by_retention: u64,
    /// By people.
    pub by_hand: u64,
}

fn key(repository: &RepositoryName) -> String {
    format!("removed/{repository}")
}

fn hour(at: Timestamp) -> i64 {
    at.as_second().div_euclid(3600)
}

async fn stored(records: &Records, repository: &RepositoryName) -> Result<Removals, Failure> {
    let found = records.get::<Removals>(Kind::Report, &key(repository)).await?;
    Ok(found.map(|found| found.value).unwrap_or_default())
}

/// Adds to the batch that removes a snapshot what counts it. Two such batches must not be made and committed at the same
/// time.
///
/// # Errors
/// When the state can not be read.
pub async fn count(
    records: &Records,
    batch: Batch,
    repository: &RepositoryName,
    by_retention: bool,
    now: Timestamp,
) -> Result<Batch, Failure> {
    let mut removals = stored(records, repository).await?;
    let now = hour(now);
    removals.0.retain(|hour, _| (now - HOURS_KEPT..=now).contains(hour));
    let removed = removals.0.entry(now).or_default();
    if by_retention {
        removed.by_retention += 1;
    } else {
        removed.by_hand += 1;
    }
    Ok(batch.put(Kind::Report, key(repository), &removals, Expect::Any))
}

/// How many snapshots of a repository were removed in a period, to the hour.
///
/// # Errors
/// When the state can not be read.
pub async fn within(
    records: &Records,
    repository: &RepositoryName,
    period: &Period,
) -> Result<Removed, Failure> {
    let removals = stored(records, repository).await?;
    let mut sum = Removed::default();
    for removed in removals.0.range(hour(period.from)..=hour(period.until)).map(|(_, removed)| removed) {
        sum.by_retention += removed.by_retention;
        sum.by_hand += removed.by_hand;
    }
    Ok(sum)
}
