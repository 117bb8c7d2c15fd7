//! Metrics as plain values: what `/metrics` renders and what alert rules are evaluated over.
//!
//! Names and labels follow the Prometheus conventions: base units in the name, moments rather than ages, no ids, times
//! or paths in labels.

pub mod catalogue;

/// Samples of one name.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricFamily {
    /// Such as `holdfast_potential_loss_seconds`.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// How its values behave over time.
    pub kind: MetricKind,
    /// One per combination of labels.
    pub samples: Vec<Sample>,
}

/// How the values of a metric behave over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Samples named `_bucket`, `_sum` and `_count`, given by [`Sample::suffix`].
    Histogram,
}

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Added to the family's name; only histograms have one.
    pub suffix: &'static str,
    /// Labels in the order in which they are shown.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: f64,
}

impl Sample {
    /// The value of a label; empty without it.
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }
}

impl MetricFamily {
    /// A gauge without samples.
    pub fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: MetricKind::Gauge, samples: Vec::new() }
    }

    /// A counter without samples.
    pub fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: MetricKind::Counter, samples: Vec::new() }
    }

    /// Adds a value.
    pub fn add(&mut self, labels: &[(&'static str, &str)], value: f64) {
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.samples.push(Sample { suffix: "", labels, value });
    }
}
