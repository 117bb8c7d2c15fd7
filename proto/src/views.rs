//! What `-o json` prints and REST answers with, the same in both: fields are added, never renamed or removed.
//!
//! Sizes end in `_bytes`, lengths of time in `_seconds`, moments in `_at` (RFC 3339, UTC). What is not known is `null`.

mod alert;
mod removal;
mod run;
mod snapshot;
mod source;

use jiff::Timestamp;

pub use self::alert::{AlertView, SilenceView};
pub use self::removal::{PrunePlanView, RetentionView};
pub use self::run::{ProgressView, RunView};
pub use self::snapshot::{AnomalyView, CopyView, SnapshotView};
pub use self::source::{ObjectiveView, PlaceView, SourceHealthView, SourceStatusView};
use crate::convert;

/// A moment from the wire; nothing when it is absent or makes no sense.
pub fn moment(at: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    at.and_then(|at| convert::from_timestamp("at", &at).ok())
}

/// A text from the wire; nothing when it is empty.
pub fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// Milliseconds as seconds.
#[expect(clippy::cast_precision_loss, reason = "a run takes less than 285,000 years")]
pub fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}
