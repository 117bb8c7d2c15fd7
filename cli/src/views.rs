//! What commands print, in the form that scripts may rely on: fields are added, never renamed or removed.
//!
//! Sizes end in `_bytes`, lengths of time in `_seconds`, moments in `_at` (RFC 3339, UTC). What is not known is `null`.

pub(crate) mod alert;
pub(crate) mod backup_plan;
pub(crate) mod discovery;
pub(crate) mod fleet;
pub(crate) mod local;
pub(crate) mod plan;
pub(crate) mod policy;
pub(crate) mod report;
pub(crate) mod repository;
pub(crate) mod run;
pub(crate) mod snapshot;
pub(crate) mod status;

pub(crate) use holdfast_proto::views::{filled, moment, seconds};

/// A text for a cell that may be empty.
pub(crate) fn dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned()
}
