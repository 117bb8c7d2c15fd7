//! Prune: packs that no snapshot needs any more give their space back. A plan first, which can be printed, then its
//! steps, of which each but the last only adds:
//!
//! ```text
//! survey ─▶ plan ─▶ repack: live blobs into new packs, indexed ─▶ the caller keeps others from the packs that go
//!        ─▶ survey again ─▶ rescue what is needed now ─▶ new index objects, old ones removed ─▶ trash ─▶ delete
//! ```
//!
//! What deletes is in [`crate::prune_apply`]. A crash between any two steps leaves garbage, never a loss. What others do
//! meanwhile is the caller's affair: between the two surveys nobody may forget a snapshot, nobody who began before the
//! packs were condemned may go on after the second, and other programs are kept out by an exclusive lock from the
//! second survey on.
//!
//! | module | what it does |
//! |---|---|
//! | `survey` | which packs there are, and which blobs the snapshots need |
//! | `plan` | which packs go, which are repacked, which stay; and what must be rescued |
//! | `repack` | live blobs go into new packs |
//!
//! Memory: for each blob 8 bytes and four bits, for each pack 64 bytes, for each folder that waits 32, and the largest
//! index object.

mod plan;
mod repack;
mod survey;

#[cfg(test)]
mod tests;

pub use plan::{DoubtfulPack, PlannedPack, PruneNumbers, PruneOptions, PrunePlan};
pub use repack::{Repacked, repack};
pub use survey::{PruneProgress, Survey, SurveyOptions, survey};
