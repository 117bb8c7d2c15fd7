//! Metrics of the channels by which people are told.

use std::sync::Arc;

use holdfast_model::metrics::catalogue::Metric;

use super::{Families, number};
use crate::core::Core;
use crate::notify::outbox::Outcome;

/// Those that take messages; a channel that is not declared any more has no metrics.
pub(super) fn collect(core: &Arc<Core>, families: &mut Families) {
    let totals = core.outbox.totals();
    let current = core.definitions.current();
    for (name, _) in current.fleet.channels.iter().filter(|(_, channel)| channel.takes_messages()) {
        for outcome in Outcome::ALL {
            let count = totals.get(name).and_then(|of| of.get(&outcome)).copied().unwrap_or(0);
            families.set(Metric::Notifications, &[name.as_str(), outcome.as_str()], number(count));
        }
    }
}
