//! REST: what tools without gRPC ask. It decides nothing: each route calls what a gRPC service calls.
//!
//! In reading order: [`routes`] (the table from which the router and the OpenAPI document are made), this module (who
//! is let through, and within which limits), `request` (strict reading), `reply` (the form of answers), then one
//! file for each group of routes.

mod alerts;
mod backups;
mod cleanup;
mod configuration;
mod events;
mod monitor;
mod openapi;
mod reply;
mod reports;
mod request;
pub mod routes;
mod views;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{RawPathParams, State};
use axum::routing::{MethodFilter, on};
use bytes::Bytes;
use holdfast_model::secret::Secret;
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::OnEnd;
use holdfast_runtime::telemetry::adopt_trace_context;
use holdfast_runtime::tls::ConnectionInfo;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use rustls::pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt as _;
use tracing::Instrument as _;

use crate::access;
use crate::config::ControllerConfig;
use crate::core::Core;
use crate::refusals;
use crate::rest::reply::{Refusal, Reply};
use crate::rest::request::{Call, Query};
use crate::rest::routes::{ROUTES, Route, Verb};
use crate::server::{bearer, identify};

/// Requests that are answered at a time; further ones are refused.
const REQUESTS_MAX: usize = 128;

/// Streams of events that are open at a time.
const STREAMS_MAX: usize = 64;

/// Bytes of the body of a request.
const BODY_BYTES_MAX: usize = 64 << 10;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an answer may take to begin.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// What every answer carries that does not say otherwise: nothing of it is a page, nothing may be kept, nothing may be
/// shown elsewhere.
const SECURITY_HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// The REST surface, ready to answer. Clones share it.
#[derive(Clone)]
pub struct Site {
    rest: Arc<Rest>,
    router: Router,
}

impl Site {
    /// Over the shared parts. Only requests to one of the names of the controller, or to the address that was connected
    /// to, are answered.
    pub fn new(core: Arc<Core>, config: &ControllerConfig) -> Self {
        let rest = Arc::new(Rest::new(core, config));
        Self { router: router(rest.clone()), rest }
    }

    /// Answers a request, whatever it is.
    pub async fn answer(self, request: Request<Body>) -> Response<Body> {
        let mut response = match tokio::time::timeout(ANSWER_TIMEOUT, self.admit(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(refusal)) => refusal.into_response(),
            Err(_) => Refusal::slow(ANSWER_TIMEOUT).into_response(),
        };
        for (name, value) in SECURITY_HEADERS {
            response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
        }
        response
    }

    async fn admit(self, mut request: Request<Body>) -> Result<Response<Body>, Refusal> {
        let place = self.rest.requests.clone().try_acquire_owned().map_err(|_| {
            Refusal::from(Failure::new(
                ErrorCode::QueueFull,
                format!("{REQUESTS_MAX} requests are being answered already"),
            ))
        })?;
        let place = Place(Arc::new(place));
        request.extensions_mut().insert(place.clone());
        self.rest.check_host(&request)?;
        self.rest.check_origin(&request)?;
        match self.router.oneshot(request).await {
            Ok(response) => Ok(response),
            Err(never) => match never {},
        }
    }
}

/// A place among the requests that are answered. It is taken for as long as somebody waits for the answer or works on it,
/// whichever is longer.
#[derive(Clone)]
struct Place(#[expect(dead_code, reason = "it is given back when it is dropped")] Arc<OwnedSemaphorePermit>);

/// What the routes share.
pub(crate) struct Rest {
    core: Arc<Core>,
    scheme: &'static str,
    names: BTreeSet<String>,
    requests: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl Rest {
    fn new(core: Arc<Core>, config: &ControllerConfig) -> Self {
        let with_tls = config.http.as_ref().is_some_and(|http| http.tls);
        let names = config.tls.names.iter().map(|name| name.to_lowercase()).collect();
        Self {
            core,
            scheme: if with_tls { "https" } else { "http" },
            names,
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        }
    }

    /// A request for another host was sent here by a name that somebody else controls.
    fn check_host(&self, request: &Request<Body>) -> Result<(), Refusal> {
        let local = request.extensions().get::<ConnectionInfo>().map(|info| info.local.ip());
        let name = host_of(request).parse::<http::uri::Authority>();
        let name = name.map(|authority| authority.host().trim_matches(['[', ']']).to_lowercase());
        let is_ours = name.is_ok_and(|name| {
            let address = name.parse::<IpAddr>().ok();
            let is_here = address.is_some() && address == local.map(|ip| ip.to_canonical());
            let is_this_machine =
                name == "localhost" && local.is_some_and(|ip| ip.to_canonical().is_loopback());
            is_here || is_this_machine || self.names.contains(&name)
        });
        if is_ours {
            return Ok(());
        }
        let failure =
            Failure::new(ErrorCode::RequestRefused, "the request names a host that is not this one")
                .because("the names of the controller are `tls.names` of controller.yaml");
        Err(Refusal { status: StatusCode::MISDIRECTED_REQUEST, failure })
    }

    /// A browser says from which page a request comes; no page of another site has a reason to send one.
    fn check_origin(&self, request: &Request<Body>) -> Result<(), Refusal> {
        let Some(origin) = request.headers().get(header::ORIGIN) else { return Ok(()) };
        let own = format!("{}://{}", self.scheme, host_of(request));
        if origin.as_bytes().eq_ignore_ascii_case(own.as_bytes()) {
            return Ok(());
        }
        Err(Failure::new(ErrorCode::RequestRefused, "the request comes from a page of another site").into())
    }
}

/// The host that a request names, and its port; empty when it names none, or several.
fn host_of(request: &Request<Body>) -> &str {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (request.uri().authority(), hosts.next(), hosts.next()) {
        (Some(authority), _, None) => authority.as_str(),
        (None, Some(host), None) => host.to_str().unwrap_or_default(),
        _ => "",
    }
}

fn router(rest: Arc<Rest>) -> Router {
    let mut router: Router<Arc<Rest>> = Router::new();
    for route in ROUTES {
        let filter = match route.verb {
            Verb::Get => MethodFilter::GET,
            Verb::Post => MethodFilter::POST,
        };
        let handler =
            move |State(rest): State<Arc<Rest>>, parameters: RawPathParams, request: Request<Body>| {
                let values: Vec<String> = parameters.iter().map(|(_, value)| value.to_owned()).collect();
                answer_route(rest, route, values, request)
            };
        router = router.route(route.path, on(filter, handler));
    }
    router.method_not_allowed_fallback(wrong_method).fallback(nothing_here).with_state(rest)
}

fn nothing() -> Failure {
    Failure::new(ErrorCode::NotFound, "there is nothing at this path")
}

async fn nothing_here(State(rest): State<Arc<Rest>>, request: Request<Body>) -> Response<Body> {
    let credentials = Credentials::of(&request);
    drop(request);
    // Strangers do not learn what there is.
    let refusal = match credentials.caller(&rest.core).await {
        Err(failure) => failure,
        Ok(caller) => match access::check("", &caller) {
            Err(failure) if failure.code == ErrorCode::NotAuthenticated => failure,
            _ => nothing(),
        },
    };
    Refusal::from(refusal).into_response()
}

async fn wrong_method(State(rest): State<Arc<Rest>>, request: Request<Body>) -> Response<Body> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = nothing_here(State(rest), request).await;
    let allowed = allowed_at(&path);
    if response.status() == StatusCode::NOT_FOUND && !allowed.is_empty() {
        let shown: String = method.as_str().chars().take(16).collect();
        let failure =
            Failure::new(ErrorCode::RequestInvalid, format!("{shown} is not possible here, {allowed} is"));
        response = Refusal { status: StatusCode::METHOD_NOT_ALLOWED, failure }.into_response();
        response.headers_mut().extend(HeaderValue::from_str(&allowed).map(|value| (header::ALLOW, value)));
    }
    response
}

/// The methods of the routes that fit a path, joined by commas.
fn allowed_at(path: &str) -> String {
    let fits = |pattern: &str| {
        let (mut parts, mut patterns) = (path.split('/'), pattern.split('/'));
        loop {
            match (parts.next(), patterns.next()) {
                (None, None) => return true,
                (Some(part), Some(pattern)) if pattern == part || pattern.starts_with('{') => {}
                _ => return false,
            }
        }
    };
    let verbs: Vec<&str> =
        ROUTES.iter().filter(|route| fits(route.path)).map(|route| route.verb.as_str()).collect();
    verbs.join(", ")
}

/// What a request shows of who sends it; taken out of it before anything is awaited, as a body can not be shared
/// between threads.
struct Credentials {
    certificate: Option<CertificateDer<'static>>,
    token: Option<Secret>,
}

impl Credentials {
    fn of(request: &Request<Body>) -> Self {
        let peer = request.extensions().get::<ConnectionInfo>();
        Self {
            certificate: peer.and_then(|info| info.peer_certificates.first().cloned()),
            token: request.headers().get(header::AUTHORIZATION).map(bearer),
        }
    }

    async fn caller(self, core: &Core) -> Result<access::Caller, Failure> {
        identify(core, self.certificate.as_ref(), self.token).await
    }
}

/// Finds out who calls, lets through who may, reads the request strictly and has it answered. What was let through is
/// carried to its end, also when the caller is gone.
async fn answer_route(
    rest: Arc<Rest>,
    route: &'static Route,
    parameters: Vec<String>,
    request: Request<Body>,
) -> Response<Body> {
    let work = async {
        let credentials = Credentials::of(&request);
        let caller = credentials.caller(&rest.core).await?;
        if let Err(refused) = access::check(&route.key(), &caller) {
            refusals::note(&rest.core, &caller, &route.key(), &refused).await;
            return Err(refused.into());
        }
        if parameters.iter().any(String::is_empty) {
            return Err(nothing().into());
        }
        let (mut parts, body) = request.into_parts();
        let place = parts.extensions.remove::<Place>();
        let body = read_body(route, &parts.method, &parts.headers, body).await?;
        let query = Query::read(&parts.uri, route.query)?;
        let span = tracing::info_span!("call", path = route.path, caller = caller.actor());
        adopt_trace_context(&span, &parts.headers);
        let call = Call { rest: rest.clone(), caller, parameters, query, headers: parts.headers, body };
        let handled = (route.handle)(call).instrument(span);
        let handled = async move {
            let _place = place;
            handled.await
        };
        let joined = rest.core.tasks.spawn("rest call", OnEnd::Isolated, handled).join().await;
        joined.map_err(|error| Failure::from_error(ErrorCode::Internal, &error))?
    };
    let answered: Result<Reply, Refusal> = work.await;
    match answered {
        Ok(reply) => reply.into_response(route, rest.core.clock.now()),
        Err(refusal) => {
            tracing::info!(path = route.path, failure = %refusal.failure, "request refused");
            refusal.into_response()
        }
    }
}

async fn read_body(
    route: &Route,
    method: &Method,
    headers: &HeaderMap,
    body: Body,
) -> Result<Bytes, Refusal> {
    let invalid = |status, message: String| Refusal {
        status,
        failure: Failure::new(ErrorCode::RequestInvalid, message),
    };
    let read = tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, BODY_BYTES_MAX)).await;
    let Ok(read) = read else {
        let message = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
        return Err(invalid(StatusCode::REQUEST_TIMEOUT, message));
    };
    let body = read.map_err(|error| {
        if std::error::Error::source(&error).is_some_and(|source| source.to_string().contains("limit")) {
            let message = format!("the body is longer than {BODY_BYTES_MAX} bytes");
            invalid(StatusCode::PAYLOAD_TOO_LARGE, message)
        } else {
            invalid(StatusCode::BAD_REQUEST, "the body did not arrive whole".to_owned())
        }
    })?;
    let takes_body = *method == Method::POST && route.body.is_some();
    if !takes_body && !body.is_empty() {
        return Err(invalid(StatusCode::BAD_REQUEST, "this request takes no body".to_owned()));
    }
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let kind = content_type.and_then(|value| value.split(';').next()).map(str::trim);
    if takes_body && !kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
        let message = "the body must be application/json".to_owned();
        return Err(invalid(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use holdfast_runtime::SystemClock;

    use super::*;
    use crate::access::Role;
    use crate::pki::token::OperatorToken;
    use crate::records::Batch;
    use crate::store::{Expect, Kind};
    use crate::{Controller, ControllerConfig};

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_keeps_its_place_until_it_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let config = ControllerConfig::new(folder.path());
        let controller = Controller::assemble(&config, &SystemClock::shared()).await.unwrap();
        let core = &controller.core;
        let life = Duration::from_secs(3600);
        let (token, record) = OperatorToken::make("t", Role::Viewer, core.clock.now(), life);
        let batch = Batch::new("test", "token.create", "token/t");
        let batch = batch.put(Kind::OperatorToken, token.id(), &record, Expect::Absent);
        core.records.commit(batch).await.unwrap();
        let site = Site::new(core.clone(), &config);
        let answer = || {
            let request = Request::builder()
                .uri("https://localhost/api/v1/alerts")
                .header("host", "localhost")
                .header("authorization", format!("Bearer {}", token.expose()));
            let mut request = request.body(Body::empty()).unwrap();
            let (local, remote) = (([127, 0, 0, 1], 443).into(), ([127, 0, 0, 1], 1024).into());
            let peer_certificates = Vec::new().into();
            request.extensions_mut().insert(ConnectionInfo { remote, local, peer_certificates });
            site.clone().answer(request)
        };
        assert_eq!(answer().await.status(), StatusCode::OK);
        // While this is held, no list of alerts is answered.
        let held = core.alerts.change().await;
        let mut refused = None;
        for _ in 0..100 {
            let impatient = (0..32).map(|_| tokio::time::timeout(Duration::from_millis(200), answer()));
            refused = join_all(impatient).await.into_iter().flatten().next();
            if refused.is_some() {
                break;
            }
        }
        assert_eq!(refused.map(|answer| answer.status()), Some(StatusCode::SERVICE_UNAVAILABLE));
        drop(held);
        let free = site.rest.requests.acquire_many(REQUESTS_MAX as u32).await.unwrap();
        drop(free);
        assert_eq!(answer().await.status(), StatusCode::OK);
        controller.close().await.unwrap();
    }

    #[test]
    fn a_request_names_one_host_whatever_the_version_of_http() {
        let host = |uri: &str, hosts: &[&'static str]| {
            let mut request = Request::builder().uri(uri).body(Body::empty()).unwrap();
            for host in hosts {
                request.headers_mut().append(header::HOST, HeaderValue::from_static(host));
            }
            host_of(&request).to_owned()
        };
        // HTTP/2 names it in the address, HTTP/1.1 in a header.
        assert_eq!(host("https://one:1/x", &[]), "one:1");
        assert_eq!(host("https://one:1/x", &["two"]), "one:1");
        assert_eq!(host("/x", &["one:1"]), "one:1");
        assert_eq!(host("/x", &[]), "");
        assert_eq!(host("/x", &["one", "two"]), "");
        assert_eq!(host("https://one/x", &["one", "two"]), "");
    }

    #[test]
    fn the_methods_of_a_path_are_those_of_its_routes() {
        assert_eq!(allowed_at("/api/v1/backups"), "GET, POST");
        assert_eq!(allowed_at("/api/v1/backups/x"), "GET");
        assert_eq!(allowed_at("/api/v1/backups/x/verify"), "POST");
        assert_eq!(allowed_at("/api/v1/backups/x/y/z"), "");
    }
}
