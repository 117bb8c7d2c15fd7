//! What the controller knows, as metrics: for `/metrics`, for alert rules, for OTLP.
//!
//! Everything is read from the state, so that values survive a restart. The work of one collection grows with what is
//! declared, never with what has happened: runs are counted when they end ([`crate::run_totals`]), and of a source's
//! snapshots only the newest are looked at, again only when they changed.

mod agents;
mod channels;
pub(crate) mod otlp;
mod repositories;
mod runs;
mod sources;
pub mod text;

use std::sync::Arc;

use holdfast_model::Failure;
use holdfast_model::metrics::catalogue::{CATALOGUE, Definition, Metric};
use holdfast_model::metrics::{MetricFamily, Sample};
use jiff::Timestamp;

use crate::core::Core;
use crate::self_backup;

/// What is kept between two collections.
#[derive(Default)]
pub struct MetricsCache {
    repositories: repositories::Measures,
}

/// All metrics now, in the order of the [`CATALOGUE`]; those without a sample are left out.
///
/// # Errors
/// When the state can not be read.
pub async fn collect(core: &Arc<Core>) -> Result<Vec<MetricFamily>, Failure> {
    let mut families = Families::new();
    families.set(Metric::BuildInfo, &[crate::VERSION], 1.0);
    let certificate = seconds(Some(core.authority.not_after()));
    families.set(Metric::CaCertificateExpiry, &[], certificate);
    let copied = self_backup::last_copy(core).await?.map(|copy| copy.at);
    families.set(Metric::SelfBackup, &[], seconds(copied));
    repositories::measure(core).await;
    sources::collect(core, &mut families).await?;
    runs::collect(core, &mut families).await?;
    repositories::collect(core, &mut families).await?;
    agents::collect(core, &mut families).await?;
    channels::collect(core, &mut families);
    Ok(families.finish())
}

/// Families under construction, one for each row of the [`CATALOGUE`].
struct Families(Vec<MetricFamily>);

impl Families {
    fn new() -> Self {
        let family = |row: &Definition| MetricFamily {
            name: row.name,
            help: row.help,
            kind: row.kind,
            samples: Vec::new(),
        };
        Self(CATALOGUE.iter().map(family).collect())
    }

    /// Adds a sample; the values of its labels in the order of the catalogue.
    fn set(&mut self, metric: Metric, labels: &[&str], value: f64) {
        self.add(metric, "", labels, None, value);
    }

    /// Adds a histogram: how many were at most so much, for each end of a bucket and in all, and their sum.
    fn histogram(&mut self, metric: Metric, labels: &[&str], buckets: &[(u32, u64)], sum: f64, count: u64) {
        for (end, within) in buckets {
            self.add(metric, "_bucket", labels, Some(end.to_string()), number(*within));
        }
        self.add(metric, "_bucket", labels, Some("+Inf".to_owned()), number(count));
        self.add(metric, "_sum", labels, None, sum);
        self.add(metric, "_count", labels, None, number(count));
    }

    fn add(&mut self, metric: Metric, suffix: &'static str, labels: &[&str], le: Option<String>, value: f64) {
        let names = CATALOGUE[metric as usize].labels;
        debug_assert_eq!(names.len(), labels.len(), "the labels of {}", CATALOGUE[metric as usize].name);
        let mut labels: Vec<_> =
            names.iter().zip(labels).map(|(name, value)| (*name, (*value).to_owned())).collect();
        labels.extend(le.map(|end| ("le", end)));
        self.0[metric as usize].samples.push(Sample { suffix, labels, value });
    }

    fn finish(self) -> Vec<MetricFamily> {
        self.0.into_iter().filter(|family| !family.samples.is_empty()).collect()
    }
}

/// A moment as a value; 0 for never.
fn seconds(at: Option<Timestamp>) -> f64 {
    at.map_or(0.0, |at| at.as_duration().as_secs_f64())
}

/// A count as a value; exact up to 2⁵³.
#[expect(clippy::cast_precision_loss, reason = "beyond 9 × 10¹⁵ the last digits do not matter")]
fn number(count: u64) -> f64 {
    count as f64
}

/// 1 or 0.
fn flag(is: bool) -> f64 {
    if is { 1.0 } else { 0.0 }
}
