//! From a request to its handler: the URL is parsed once, the upstream found, and every answer gets its last headers.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HOST, VIA};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use ipnet::IpNet;
use parking_lot::RwLock;
use tokio::time::timeout;

use crate::mirror::{Mirror, Outcome, Target};
use crate::oci::error::ErrorCode;
use crate::oci::route::{self, Endpoint, Route};

use super::access_log::{self, Logged, Recorder};
use super::auth::{Checks, Identity, Readers};
use super::connection::ConnectionInfo;
use super::error::ErrorResponse;
use super::stream::AbortHandle;
use super::{blobs, door, lists, manifests, proxies, range};

/// What handlers need.
#[derive(Clone, Debug)]
pub struct Edge {
    /// Decides what is answered.
    pub mirror: Mirror,
    /// How long a client waits for headers before it's told to come back; the work it asked for goes on.
    pub client_header_timeout: Duration,
    /// Who may read; `None` is everyone.
    pub readers: Option<Arc<Readers>>,
    /// Proves names.
    pub checks: Checks,
    /// Proxies that are believed when they say for whom they ask.
    pub trusted_proxies: Vec<IpNet>,
}

/// What handlers need, once it is there; changed by a reload. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct EdgeCell(Arc<RwLock<Option<Arc<Edge>>>>);

/// One request for something in an upstream's repository.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) mirror: &'a Mirror,
    pub(super) target: &'a Target,
    pub(super) route: &'a Route,
    pub(super) headers: &'a HeaderMap,
    /// Headers only.
    pub(super) head: bool,
    pub(super) abort: AbortHandle,
}

/// When to come back while the server starts.
const STARTING_PAUSE: Duration = Duration::from_secs(5);

/// An answer, and what became of the request.
pub(super) type Answer = Result<(Response, Outcome), ErrorResponse>;

pub(super) const DIGEST_HEADER: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

// === impl EdgeCell ===

impl EdgeCell {
    /// What requests that begin now are answered with; those under way go on with what they began with.
    pub fn set(&self, edge: Edge) {
        *self.0.write() = Some(Arc::new(edge));
    }

    fn get(&self) -> Option<Arc<Edge>> {
        self.0.read().clone()
    }
}

/// The service of the registry listener. Until there is an edge, clients are told so at once and try their next host: left
/// waiting, they would wait for as long as a server that went before holds the data directory.
pub fn router(edge: EdgeCell, recorder: Recorder) -> Router {
    Router::new().fallback(handle).with_state((edge, recorder))
}

async fn handle(State((edge, recorder)): State<(EdgeCell, Recorder)>, request: Request) -> Response {
    access_log::recorded(recorder, request, |request| respond(edge, request)).await
}

async fn respond(edge: EdgeCell, request: Request) -> Response {
    let mut logged = Logged::default();
    // Nothing that is asked here has a body; one that comes all the same is left to the connection.
    let (request, _body) = request.into_parts();
    let head = request.method == Method::HEAD;
    let answer = match edge.get() {
        Some(edge) => answer(&edge, &request, &mut logged).await,
        None => Err(starting()),
    };
    let mut response = match answer {
        Ok((mut response, outcome)) => {
            logged.outcome = outcome.label();
            insert(response.headers_mut(), CACHE_STATUS, &outcome.to_string());
            if range::is_known(&request.headers, response.headers()) {
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                for name in [CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE] {
                    response.headers_mut().remove(name);
                }
                *response.body_mut() = Body::empty();
            }
            response
        }
        Err(error) => {
            let outcome = error.outcome();
            logged.outcome = outcome.label();
            logged.error = Some(error.message.clone());
            // Another mirror tells its client what this one could not do, also where the answer has no body.
            let warning = request.headers.contains_key(VIA).then(|| error.message.clone());
            let mut response = error.into_response();
            insert_warning(response.headers_mut(), warning.as_deref());
            insert(response.headers_mut(), CACHE_STATUS, &outcome.to_string());
            response
        }
    };
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    if head {
        // A HEAD has no body, but its headers are those of the GET, the length among them.
        let body = std::mem::replace(response.body_mut(), Body::empty());
        if let Some(len) = body.size_hint().exact().filter(|_| response.status() != StatusCode::NOT_MODIFIED) {
            response.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(len));
        }
    }
    response.extensions_mut().insert(logged);
    response
}

async fn answer(edge: &Edge, request: &Parts, logged: &mut Logged) -> Answer {
    let route = route::parse(request.uri.path(), request.uri.query())?;
    logged.kind = kind(&route.endpoint);
    if let Some(refused) = refuse_method(&request.method, &route) {
        return refused;
    }
    let info = request.extensions.get::<ConnectionInfo>().copied();
    let client = info.map(|info| proxies::client(&edge.trusted_proxies, info.peer.ip(), &request.headers));
    logged.client = client;
    let reader = door::identify(edge, request, info.zip(client)).await?;
    if let Some(Identity::User(name)) = &reader {
        logged.user = Some(Arc::clone(name));
    }
    if let Endpoint::Ping = route.endpoint {
        door::admit_ping(edge, reader.as_ref(), &request.headers)?;
        // Never asks upstream: clients take a mirror whose ping fails for a dead one.
        return match &route.prefix {
            Some(prefix) if edge.mirror.registry_called(prefix).is_none() => Err(ErrorResponse::new(
                StatusCode::NOT_FOUND,
                ErrorCode::NameUnknown,
                format!("no upstream is called {prefix:?}"),
            )),
            _ => Ok((json(StatusCode::OK, "{}".to_owned()), Outcome::Local)),
        };
    }
    let host = request.headers.get(HOST).and_then(|host| host.to_str().ok());
    let target = edge.mirror.resolve(route.prefix.as_deref(), &route.name, route.namespace.as_deref(), host)?;
    let mut target = edge.mirror.admit(target, &request.headers)?;
    logged.upstream = target.upstream.policy.label.to_string();
    logged.repository = target.repository.to_string();
    door::admit(edge, reader.as_ref(), &mut target)?;
    let ask = Ask {
        mirror: &edge.mirror,
        target: &target,
        route: &route,
        headers: &request.headers,
        head: request.method == Method::HEAD,
        abort: request.extensions.get::<AbortHandle>().cloned().unwrap_or_else(AbortHandle::unattached),
    };
    // Echoed only where it was heeded: a path that names another registry wins over it.
    let heeded =
        |namespace: &&String| edge.mirror.registry_called(namespace).as_ref() == Some(&target.repository.registry);
    let namespace = route.namespace.as_ref().filter(heeded).and_then(|namespace| HeaderValue::from_str(namespace).ok());
    let answered = timeout(edge.client_header_timeout, dispatch(&ask, logged)).await;
    let answer = answered.unwrap_or_else(|_elapsed| {
        Err(ErrorResponse::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::Unavailable,
            format!(
                "{} has not answered for {} within {} s; the mirror goes on waiting for it, so try again",
                target.repository.registry,
                target.repository,
                edge.client_header_timeout.as_secs()
            ),
        ))
    });
    let Some(namespace) = namespace else { return answer };
    match answer {
        Ok((mut response, outcome)) => {
            response.headers_mut().insert(NAMESPACE, namespace);
            Ok((response, outcome))
        }
        Err(error) => Err(error.header(NAMESPACE, namespace)),
    }
}

async fn dispatch(ask: &Ask<'_>, logged: &mut Logged) -> Answer {
    match &ask.route.endpoint {
        Endpoint::Manifest(reference) => {
            logged.reference = reference.to_string();
            manifests::answer(ask, reference).await
        }
        Endpoint::Blob(digest) => {
            logged.reference = digest.to_string();
            blobs::answer(ask, digest).await
        }
        Endpoint::Tags { limit, last } => lists::tags(ask, *limit, last.as_deref()).await,
        Endpoint::Referrers { subject, artifact_types } => {
            logged.reference = subject.to_string();
            lists::referrers(ask, subject, artifact_types).await
        }
        // Answered before an upstream was looked for.
        Endpoint::Ping | Endpoint::Upload | Endpoint::Catalog => Err(unsupported(StatusCode::NOT_FOUND)),
    }
}

fn starting() -> ErrorResponse {
    let message = "the mirror is starting: it opens its data directory; try again in a moment";
    ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message).retry_after(STARTING_PAUSE)
}

/// What a mirror does not do. Writes are 405 and not 400 or 404, which clients take for a success or a missing name.
fn refuse_method(method: &Method, route: &Route) -> Option<Answer> {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match route.endpoint {
        Endpoint::Catalog if reads => Some(Err(unsupported(StatusCode::NOT_FOUND))),
        Endpoint::Upload => Some(Ok(not_allowed())),
        _ if !reads => Some(Ok(not_allowed())),
        _ => None,
    }
}

fn not_allowed() -> (Response, Outcome) {
    let mut response = unsupported(StatusCode::METHOD_NOT_ALLOWED).into_response();
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    (response, Outcome::Refused)
}

fn unsupported(status: StatusCode) -> ErrorResponse {
    ErrorResponse::new(
        status,
        ErrorCode::Unsupported,
        "this is a read-only mirror: it serves manifests, blobs, tags and referrers of its upstreams",
    )
}

fn kind(endpoint: &Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Ping => "ping",
        Endpoint::Manifest(_) => "manifest",
        Endpoint::Blob(_) => "blob",
        Endpoint::Tags { .. } => "tags",
        Endpoint::Referrers { .. } => "referrers",
        Endpoint::Upload => "write",
        Endpoint::Catalog => "other",
    }
}

/// A JSON answer.
pub(super) fn json(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    *response.body_mut() = Body::from(body);
    response
}

/// Sets a header whose value may hold bytes that are not legal there: it's left out then.
pub(super) fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Sets a `Warning` header (RFC 7234; the distribution specification wants code 299 and agent `-`).
pub(super) fn insert_warning(headers: &mut HeaderMap, warning: Option<&str>) {
    /// The specification allows 4096 bytes in all.
    const CHARS_MAX: usize = 1000;
    if let Some(warning) = warning {
        let text: String = warning
            .chars()
            .take(CHARS_MAX)
            .map(|c| match c {
                '"' | '\\' => '\'',
                ' '..='~' => c,
                _ => ' ',
            })
            .collect();
        insert(headers, http::header::WARNING, &format!("299 - \"{text}\""));
    }
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt as _;

    use super::super::activity::Activity;
    use super::*;

    #[tokio::test]
    async fn a_server_that_starts_says_so_at_once() {
        let recorder = Recorder { metrics: Arc::default(), activity: Activity::default() };
        let router = router(EdgeCell::default(), recorder);
        let request = Request::builder().uri("/v2/").body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[http::header::RETRY_AFTER], "5");
        assert_eq!(response.headers()["cache-status"], "cachalot; fwd=miss; detail=failed");
    }
}
