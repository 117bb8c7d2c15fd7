//! A collector of traces and metrics: takes what programs export over OTLP/gRPC and keeps it.

use std::net::SocketAddr;
use std::sync::Arc;

use holdfast_runtime::{OnEnd, Shutdown, StopCause, TaskGroup};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{Metric, NumberDataPoint};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// One span as it was exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectedSpan {
    /// The program that exported it, by its `service.name`.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its attributes that are texts.
    pub attributes: Vec<(String, String)>,
    /// The trace it belongs to.
    pub trace: Vec<u8>,
    /// Its id.
    pub id: Vec<u8>,
    /// The id of the span above it; empty for the first of a trace.
    pub parent: Vec<u8>,
}

impl CollectedSpan {
    /// The value of an attribute; empty when it has none.
    pub fn attribute(&self, key: &str) -> &str {
        self.attributes.iter().find(|(name, _)| name == key).map_or("", |(_, value)| value)
    }
}

/// A collector; it stops when it is dropped.
#[derive(Debug)]
pub struct OtlpSink {
    address: SocketAddr,
    spans: Spans,
    metrics: Exports,
    shutdown: Shutdown,
}

/// One value as it was exported; of a histogram its count.
#[derive(Debug, Clone, PartialEq)]
pub struct CollectedValue {
    /// The program that exported it, by its `service.name`.
    pub service: String,
    /// The name that it has in Prometheus.
    pub name: String,
    /// Its attributes that are texts, in the order in which they came.
    pub attributes: Vec<(String, String)>,
    /// The value.
    pub value: f64,
}

/// What came with each export.
#[derive(Debug, Clone, Default)]
struct Exports(Arc<Mutex<Vec<Vec<CollectedValue>>>>);

#[derive(Debug, Clone, Default)]
struct Spans(Arc<Mutex<Vec<CollectedSpan>>>);

impl OtlpSink {
    /// Starts a collector on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("there are free ports");
        let address = listener.local_addr().expect("a listener has an address");
        let (spans, metrics, shutdown) = (Spans::default(), Exports::default(), Shutdown::new());
        let tasks = TaskGroup::new(&shutdown);
        let stop = tasks.token().clone().cancelled_owned();
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(spans.clone()))
            .add_service(MetricsServiceServer::new(metrics.clone()))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop);
        drop(tasks.spawn("otlp sink", OnEnd::Isolated, server));
        Self { address, spans, metrics, shutdown }
    }

    /// The values of each export of metrics that came so far.
    pub fn metrics(&self) -> Vec<Vec<CollectedValue>> {
        self.metrics.0.lock().clone()
    }

    /// Where programs send their traces and metrics.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What came so far.
    pub fn spans(&self) -> Vec<CollectedSpan> {
        self.spans.0.lock().clone()
    }
}

impl Drop for OtlpSink {
    fn drop(&mut self) {
        self.shutdown.request(StopCause::Requested("the sink was dropped".to_owned()));
    }
}

#[tonic::async_trait]
impl TraceService for Spans {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock();
        for resource in request.into_inner().resource_spans {
            let of_program = texts(&resource.resource.unwrap_or_default().attributes);
            let service = of_program.into_iter().find(|(key, _)| key == "service.name");
            let service = service.map(|(_, name)| name).unwrap_or_default();
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push(CollectedSpan {
                    service: service.clone(),
                    attributes: texts(&span.attributes),
                    name: span.name,
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Exports {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let mut values = Vec::new();
        for resource in request.into_inner().resource_metrics {
            let of_program = texts(&resource.resource.unwrap_or_default().attributes);
            let service = of_program.into_iter().find(|(key, _)| key == "service.name");
            let service = service.map(|(_, name)| name).unwrap_or_default();
            for metric in resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                values.extend(values_of(&service, metric));
            }
        }
        self.0.lock().push(values);
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn values_of(service: &str, metric: Metric) -> Vec<CollectedValue> {
    let unit = match metric.unit.as_str() {
        "s" => "_seconds",
        "By" => "_bytes",
        "1" => "_ratio",
        _ => "",
    };
    let name = format!("{}{unit}", metric.name.replace('.', "_"));
    let collected = |name: String, attributes: &[KeyValue], value: f64| CollectedValue {
        service: service.to_owned(),
        name,
        attributes: texts(attributes),
        value,
    };
    let number = |point: &NumberDataPoint| match point.value {
        Some(Value::AsDouble(value)) => value,
        _ => f64::NAN,
    };
    match metric.data {
        Some(Data::Gauge(gauge)) => gauge
            .data_points
            .iter()
            .map(|point| collected(name.clone(), &point.attributes, number(point)))
            .collect(),
        Some(Data::Sum(sum)) if sum.is_monotonic => {
            let name = format!("{name}_total");
            sum.data_points
                .iter()
                .map(|point| collected(name.clone(), &point.attributes, number(point)))
                .collect()
        }
        Some(Data::Histogram(histogram)) => {
            let name = format!("{name}_count");
            let points = histogram.data_points.iter();
            points.map(|point| collected(name.clone(), &point.attributes, point.count as f64)).collect()
        }
        _ => Vec::new(),
    }
}

fn texts(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some((attribute.key.clone(), text.clone())),
        _ => None,
    };
    attributes.iter().filter_map(text).collect()
}
