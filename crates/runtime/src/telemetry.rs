//! Logs to standard error, traces to a collector, and the trace context that crosses processes.
//!
//! The trace context travels in the header `traceparent` (W3C Trace Context), which HTTP and gRPC carry alike.

use std::str::FromStr;
use std::sync::OnceLock;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

/// The variable that sets what is logged, such as `info,holdfast_controller=debug`; it wins over the configuration.
pub const FILTER_VARIABLE: &str = "HOLDFAST_LOG";

/// Changes what is logged, once logging is set up.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One line for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The text names no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a log format: text and json are")]
pub struct InvalidLogFormat(String);

impl FromStr for LogFormat {
    type Err = InvalidLogFormat;
    fn from_str(text: &str) -> Result<Self, InvalidLogFormat> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(InvalidLogFormat(other.to_owned())),
        }
    }
}

/// What to log and where to send traces.
#[derive(Debug, Clone)]
pub struct TelemetrySettings {
    /// The name under which traces appear.
    pub service: &'static str,
    /// The version under which traces appear.
    pub version: &'static str,
    /// How logs look.
    pub format: LogFormat,
    /// What is logged where [`FILTER_VARIABLE`] is not set.
    pub filter: String,
    /// The OTLP endpoint (gRPC, such as `http://127.0.0.1:4317`); none sends no traces.
    pub otlp_endpoint: Option<String>,
    /// The share of new traces that is recorded, 0 to 1; a trace begun elsewhere follows its beginning.
    pub sampled_share: f64,
}

impl TelemetrySettings {
    /// Text logs from `info` up, no traces.
    pub fn new(service: &'static str, version: &'static str) -> Self {
        Self {
            service,
            version,
            format: LogFormat::Text,
            filter: "info".to_owned(),
            otlp_endpoint: None,
            sampled_share: 1.0,
        }
    }
}

/// Telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read.
    #[error("the log filter {filter:?} is not valid")]
    Filter {
        /// The text.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The exporter could not be made.
    #[error("the trace exporter for {endpoint} could not be made")]
    Exporter {
        /// The configured endpoint.
        endpoint: String,
        /// Why.
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// Telemetry was set up before in this process.
    #[error("logging is set up already")]
    AlreadyInstalled(#[source] tracing_subscriber::util::TryInitError),
}

/// Sends what is still buffered when it is dropped: keep it until the end of `main`.
#[derive(Debug, Default)]
#[must_use = "traces that are still buffered are lost without it"]
pub struct TelemetryGuard {
    provider: Option<SdkTracerProvider>,
}

impl TelemetryGuard {
    /// A guard that guards nothing, for tests.
    pub fn none() -> Self {
        Self::default()
    }
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take()
            && let Err(error) = provider.shutdown_with_timeout(std::time::Duration::from_secs(3))
        {
            tracing::warn!(%error, "traces that were still buffered are lost");
        }
    }
}

/// Sets up logs and traces for this process, once. With an OTLP endpoint it must be called within a tokio runtime.
///
/// # Errors
/// The filter or the endpoint is not valid, or telemetry was set up before.
pub fn init(settings: &TelemetrySettings) -> Result<TelemetryGuard, TelemetryError> {
    let filter = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| settings.filter.clone());
    let filter = EnvFilter::try_new(&filter)
        .map_err(|source| TelemetryError::Filter { filter: filter.clone(), source })?;
    let provider =
        settings.otlp_endpoint.as_deref().map(|endpoint| trace_provider(settings, endpoint)).transpose()?;
    let traces = provider.as_ref().map(|provider| {
        // The exporter speaks gRPC itself: its own spans must not be exported, or each export begets the next.
        let own = EnvFilter::new("info,h2=off,hyper=off,tonic=off,tower=off,opentelemetry=off");
        tracing_opentelemetry::layer().with_tracer(provider.tracer(settings.service)).with_filter(own)
    });
    let (filter, handle) = reload::Layer::new(filter);
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = match settings.format {
        LogFormat::Text => logs.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        LogFormat::Json => {
            logs.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
        }
    };
    tracing_subscriber::registry()
        .with(logs.with_filter(filter))
        .with(traces)
        .try_init()
        .map_err(TelemetryError::AlreadyInstalled)?;
    // Whoever was first to set it up is the only one.
    let _ = FILTER.set(handle);
    Ok(TelemetryGuard { provider })
}

/// Changes what is logged from now on. Where [`FILTER_VARIABLE`] is set, or nothing was set up, only the text is checked.
///
/// # Errors
/// The filter is not valid; then nothing has changed.
pub fn set_filter(text: &str) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(text)
        .map_err(|source| TelemetryError::Filter { filter: text.to_owned(), source })?;
    if let Some(handle) = FILTER.get().filter(|_| std::env::var_os(FILTER_VARIABLE).is_none()) {
        // Fails only when the subscriber is gone, and then nothing is logged any more.
        let _ = handle.reload(filter);
    }
    Ok(())
}

fn trace_provider(settings: &TelemetrySettings, endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|source| TelemetryError::Exporter { endpoint: endpoint.to_owned(), source })?;
    let resource = Resource::builder()
        .with_service_name(settings.service)
        .with_attribute(opentelemetry::KeyValue::new("service.version", settings.version))
        .build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.sampled_share))))
        .with_resource(resource)
        .build())
}

struct Outgoing<'a>(&'a mut HeaderMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_str(key), HeaderValue::from_str(&value)) {
            self.0.insert(name, value);
        }
    }
}

struct Incoming<'a>(&'a HeaderMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

/// Writes the trace context of a span into the headers of a request. Writes nothing where no trace is recorded.
pub fn inject_trace_context(span: &tracing::Span, headers: &mut HeaderMap) {
    let context = span.context();
    if context.span().span_context().is_valid() {
        TraceContextPropagator::new().inject_context(&context, &mut Outgoing(headers));
    }
}

/// Makes a span, not yet entered, the child of the span whose context came with a request.
///
/// Missing and damaged headers leave the span as it is: a caller must not be able to break a call by them.
pub fn adopt_trace_context(span: &tracing::Span, headers: &HeaderMap) {
    let context = TraceContextPropagator::new().extract(&Incoming(headers));
    if context.span().span_context().is_valid() {
        // Fails only where no traces are recorded, and then there is nothing to connect.
        let _ = span.set_parent(context);
    }
}

/// The trace context of a span as a `traceparent`, to be kept with work that is done later. None where no trace is
/// recorded.
pub fn traceparent(span: &tracing::Span) -> Option<String> {
    let mut headers = HeaderMap::new();
    inject_trace_context(span, &mut headers);
    headers.get("traceparent")?.to_str().ok().map(str::to_owned)
}

/// The id of the trace a span belongs to, as 32 hexadecimal digits, for error messages and events.
pub fn trace_id(span: &tracing::Span) -> Option<String> {
    let context = span.context();
    let id = context.span().span_context().trace_id();
    (id != opentelemetry::trace::TraceId::INVALID).then(|| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_traces<R>(run: impl FnOnce() -> R) -> R {
        let provider = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOn).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), run)
    }

    #[test]
    fn the_trace_id_survives_the_way_through_headers() {
        with_traces(|| {
            let caller = tracing::info_span!("caller");
            let mut headers = HeaderMap::new();
            inject_trace_context(&caller, &mut headers);
            assert!(headers["traceparent"].to_str().unwrap().starts_with("00-"));
            let callee = tracing::info_span!("callee");
            adopt_trace_context(&callee, &headers);
            assert_eq!(trace_id(&callee), trace_id(&caller));
            assert!(trace_id(&caller).is_some());
        });
    }

    #[test]
    fn damaged_headers_start_a_trace_of_their_own() {
        with_traces(|| {
            for bad in
                ["", "00-", "00-0-0-0", "zz", "00-00000000000000000000000000000000-0000000000000000-01"]
            {
                let mut headers = HeaderMap::new();
                headers.insert("traceparent", HeaderValue::from_static(bad));
                let span = tracing::info_span!("callee");
                adopt_trace_context(&span, &headers);
                assert!(trace_id(&span).is_some(), "{bad:?}");
            }
        });
    }

    #[test]
    fn without_traces_no_header_is_written() {
        let mut headers = HeaderMap::new();
        inject_trace_context(&tracing::info_span!("caller"), &mut headers);
        assert!(headers.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn it_is_set_up_once_and_an_unreachable_collector_hinders_nothing() {
        let settings = TelemetrySettings {
            otlp_endpoint: Some("http://127.0.0.1:1".to_owned()),
            format: LogFormat::Json,
            ..TelemetrySettings::new("test", "0")
        };
        let guard = init(&settings).unwrap();
        assert!(matches!(init(&settings), Err(TelemetryError::AlreadyInstalled(_))));
        assert!(!tracing::enabled!(tracing::Level::DEBUG));
        set_filter("debug").unwrap();
        assert!(matches!(set_filter("a=b=c"), Err(TelemetryError::Filter { .. })));
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        set_filter("info").unwrap();
        tracing::info_span!("work").in_scope(|| tracing::info!("done"));
        tokio::task::spawn_blocking(move || drop(guard)).await.unwrap();
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_an_error() {
        let settings =
            TelemetrySettings { filter: "a=b=c".to_owned(), ..TelemetrySettings::new("test", "0") };
        assert!(matches!(init(&settings), Err(TelemetryError::Filter { .. })));
    }
}
