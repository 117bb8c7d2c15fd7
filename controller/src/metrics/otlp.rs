//! The same metrics to a collector that speaks OTLP (gRPC), at an interval. What is sent is what `/metrics` shows at that
//! moment: there is no second count of anything.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::metrics::{MetricFamily, MetricKind, Sample};
use holdfast_model::{ErrorCode, Failure};
use jiff::Timestamp;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use tonic::transport::{Channel, Endpoint};

use crate::config::OtlpConfig;
use crate::core::Core;

/// How long a collector may take to accept what is sent.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Sends until the controller stops. A collector that is away misses what was sent meanwhile, and nothing else does.
pub(crate) async fn run(core: Arc<Core>, config: OtlpConfig) {
    let every = Duration::from_secs(u64::from(config.metrics_every_seconds));
    let endpoint = match Endpoint::from_shared(config.endpoint.clone()) {
        Ok(endpoint) => endpoint.timeout(TIMEOUT).connect_timeout(TIMEOUT),
        Err(error) => {
            tracing::error!(endpoint = config.endpoint, %error, "metrics can not be sent there");
            return;
        }
    };
    let mut client = MetricsServiceClient::new(endpoint.connect_lazy());
    let stop = core.tasks.token().clone();
    let mut was_sent = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = core.clock.sleep(every) => {}
        }
        let sent = stop.run_until_cancelled(send(&core, &mut client)).await;
        if let Some(Err(failure)) = &sent
            && was_sent
        {
            tracing::warn!(endpoint = config.endpoint, %failure, "metrics could not be sent");
        }
        was_sent = matches!(sent, Some(Ok(())));
    }
}

async fn send(core: &Arc<Core>, client: &mut MetricsServiceClient<Channel>) -> Result<(), Failure> {
    let families = super::collect(core).await?;
    let request = request(&families, core.clock.now());
    let sent = client.export(request).await;
    sent.map(|_| ()).map_err(|status| Failure::new(ErrorCode::WatchTimeout, status.message()))
}

fn request(families: &[MetricFamily], now: Timestamp) -> ExportMetricsServiceRequest {
    let nanos = u64::try_from(now.as_nanosecond()).unwrap_or(0);
    let of_program =
        [attribute("service.name", "holdfast-controller"), attribute("service.version", crate::VERSION)];
    let scope = InstrumentationScope {
        name: "holdfast".to_owned(),
        version: crate::VERSION.to_owned(),
        ..InstrumentationScope::default()
    };
    let metrics = ScopeMetrics {
        scope: Some(scope),
        metrics: families.iter().map(|family| metric(family, nanos)).collect(),
        ..ScopeMetrics::default()
    };
    let resource = ResourceMetrics {
        resource: Some(Resource { attributes: of_program.to_vec(), ..Resource::default() }),
        scope_metrics: vec![metrics],
        ..ResourceMetrics::default()
    };
    ExportMetricsServiceRequest { resource_metrics: vec![resource] }
}

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn attributes(sample: &Sample) -> Vec<KeyValue> {
    let labels = sample.labels.iter().filter(|(name, _)| *name != "le");
    labels.map(|(name, value)| attribute(name, value)).collect()
}

/// The name and the unit that become the family's name again when a collector hands them on to Prometheus.
fn name_and_unit(family: &MetricFamily) -> (String, &'static str) {
    let name = family.name.strip_prefix("holdfast_").unwrap_or(family.name);
    let name = match family.kind {
        MetricKind::Counter => name.strip_suffix("_total").unwrap_or(name),
        MetricKind::Gauge | MetricKind::Histogram => name,
    };
    let units = [("_seconds", "s"), ("_bytes", "By"), ("_ratio", "1")];
    let found = units.iter().find_map(|(suffix, unit)| Some((name.strip_suffix(suffix)?, *unit)));
    let (name, unit) = found.unwrap_or((name, ""));
    (format!("holdfast.{name}"), unit)
}

fn metric(family: &MetricFamily, nanos: u64) -> Metric {
    let points = || family.samples.iter().map(|sample| point(sample, nanos)).collect();
    let data = match family.kind {
        MetricKind::Gauge => Data::Gauge(Gauge { data_points: points() }),
        MetricKind::Counter => Data::Sum(Sum {
            data_points: points(),
            aggregation_temporality: AggregationTemporality::Cumulative.into(),
            is_monotonic: true,
        }),
        MetricKind::Histogram => Data::Histogram(Histogram {
            data_points: histogram_points(&family.samples, nanos),
            aggregation_temporality: AggregationTemporality::Cumulative.into(),
        }),
    };
    let (name, unit) = name_and_unit(family);
    Metric {
        name,
        description: family.help.to_owned(),
        unit: unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

fn point(sample: &Sample, nanos: u64) -> NumberDataPoint {
    NumberDataPoint {
        attributes: attributes(sample),
        time_unix_nano: nanos,
        value: Some(Value::AsDouble(sample.value)),
        ..NumberDataPoint::default()
    }
}

/// The samples of histograms come in order: the buckets of one, the last without an end, its sum, its count.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts are whole and not negative"
)]
fn histogram_points(samples: &[Sample], nanos: u64) -> Vec<HistogramDataPoint> {
    let mut points = Vec::new();
    let mut point = HistogramDataPoint::default();
    let mut within = 0;
    for sample in samples {
        match sample.suffix {
            "_bucket" => {
                let count = sample.value as u64;
                point.bucket_counts.push(count.saturating_sub(within));
                within = count;
                point
                    .explicit_bounds
                    .extend(sample.label("le").parse::<f64>().ok().filter(|end| end.is_finite()));
            }
            "_sum" => point.sum = Some(sample.value),
            _ => {
                point.count = sample.value as u64;
                point.attributes = attributes(sample);
                point.time_unix_nano = nanos;
                points.push(std::mem::take(&mut point));
                within = 0;
            }
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use holdfast_model::metrics::catalogue::CATALOGUE;

    use super::*;

    /// What a collector makes of a name and a unit for Prometheus.
    fn translated(name: &str, unit: &str, kind: MetricKind) -> String {
        let unit = match (unit, kind) {
            ("s", _) => "_seconds",
            ("By", _) => "_bytes",
            ("1", MetricKind::Gauge) => "_ratio",
            _ => "",
        };
        let total = if kind == MetricKind::Counter { "_total" } else { "" };
        format!("{}{unit}{total}", name.replace('.', "_"))
    }

    #[test]
    fn every_name_comes_back_when_a_collector_translates_it() {
        for row in CATALOGUE {
            let family = MetricFamily { name: row.name, help: row.help, kind: row.kind, samples: Vec::new() };
            let (name, unit) = name_and_unit(&family);
            assert_eq!(translated(&name, unit, row.kind), row.name);
        }
    }

    #[test]
    fn the_buckets_of_a_histogram_are_counted_apart() {
        let sample = |suffix, le: Option<&str>, value| Sample {
            suffix,
            labels: [("kind", "backup")]
                .into_iter()
                .chain(le.map(|le| ("le", le)))
                .map(|(name, value)| (name, value.to_owned()))
                .collect(),
            value,
        };
        let one = [
            sample("_bucket", Some("1"), 2.0),
            sample("_bucket", Some("5"), 5.0),
            sample("_bucket", Some("+Inf"), 6.0),
            sample("_sum", None, 30.5),
            sample("_count", None, 6.0),
        ];
        let points = histogram_points(&[one.clone(), one].concat(), 7);
        assert_eq!(points.len(), 2);
        for point in points {
            assert_eq!((point.explicit_bounds, point.bucket_counts), (vec![1.0, 5.0], vec![2, 3, 1]));
            assert_eq!((point.sum, point.count, point.time_unix_nano), (Some(30.5), 6, 7));
            assert_eq!(point.attributes, [attribute("kind", "backup")]);
        }
    }
}
