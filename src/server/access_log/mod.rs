//! One log line a request, and the metrics of the same moment.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::{Method, StatusCode, Uri};
use http_body::{Body as _, Frame, SizeHint};

use super::activity::{Activity, Finished};
use super::connection::{AbortHandle, ConnectionInfo};
use crate::clock::Timestamp;
use crate::metrics::{Metrics, OutcomeLabels, RequestLabels};

/// What a handler adds to its request's line and metrics: an extension of the response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The outcome's name.
    pub outcome: &'static str,
    /// The upstream's configured name or pattern, or `-`. Never what a client made up: it is a metric label.
    pub upstream: String,
    /// The repository asked for, or empty.
    pub repository: String,
    /// The tag or digest asked for, or empty.
    pub reference: String,
    /// `manifest`, `blob`, `tags`, `referrers`, `ping`, `write` or `other`.
    pub kind: &'static str,
    /// What went wrong, in full; the client may have been told less.
    pub error: Option<String>,
    /// The name that the client has proven.
    pub user: Option<Arc<str>>,
    /// The client, where a trusted proxy named it.
    pub client: Option<IpAddr>,
}

/// Where finished requests are noted beside the log.
#[derive(Clone, Debug)]
pub struct Recorder {
    /// Their counts.
    pub metrics: Arc<Metrics>,
    /// The last ones.
    pub activity: Activity,
}

/// The outcome of a request whose client left before its response began.
const CLIENT_LEFT: &str = "client-left";

/// The status in the line of a request that got none, as nginx has it.
const STATUS_CLIENT_LEFT: u16 = 499;

/// How much of a path goes into the log. The longest legal one (registry, repository, sha512 digest) is below.
const PATH_BYTES_MAX: usize = 1024;

/// Paths that are asked all day long by machines that keep no mirror busy: their lines are for debugging, and they
/// are not counted.
const PROBES: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// A request's line while it is being written. It is complete when it is dropped: at the end of the response's body,
/// or when the client left before there was one.
struct Line {
    recorder: Recorder,
    start: Instant,
    method: Method,
    path: String,
    namespace: Option<String>,
    client: Option<SocketAddr>,
    abort: Option<AbortHandle>,
    probe: bool,
    status: Option<StatusCode>,
    first_byte: Option<Duration>,
    logged: Logged,
    bytes: u64,
    complete: bool,
}

struct LoggedBody {
    body: Body,
    line: Line,
}

/// The middleware: `axum::middleware::from_fn_with_state(recorder, access_log::record)`, outermost.
pub async fn record(State(recorder): State<Recorder>, request: Request, next: Next) -> Response {
    recorded(recorder, request, |request| next.run(request)).await
}

/// What `answer` says to a request, noted when its body ends. The same as the middleware, for a handler that is alone on its
/// listener: a layer costs several allocations a request.
pub(super) async fn recorded<F>(recorder: Recorder, request: Request, answer: impl FnOnce(Request) -> F) -> Response
where
    F: Future<Output = Response>,
{
    let mut line = Line::new(recorder, &request);
    let mut response = answer(request).await;
    line.answered(&mut response);
    response.map(|body| {
        line.complete = body.is_end_stream() || line.method == Method::HEAD;
        Body::new(LoggedBody { body, line })
    })
}

/// The value of `ns`, as sent. Nothing else of a query is logged: it may hold secrets.
fn namespace(uri: &Uri) -> Option<String> {
    let value = uri.query()?.split('&').find_map(|pair| pair.strip_prefix("ns="))?;
    Some(shortened(value))
}

fn shortened(text: &str) -> String {
    text[..text.floor_char_boundary(PATH_BYTES_MAX)].to_owned()
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn milliseconds(duration: Duration) -> f64 {
    // Microseconds are fine enough, and keep the line short.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

// === impl Logged ===

impl Default for Logged {
    fn default() -> Self {
        Self {
            outcome: "none",
            upstream: "-".to_owned(),
            repository: String::new(),
            reference: String::new(),
            kind: "other",
            error: None,
            user: None,
            client: None,
        }
    }
}

// === impl Line ===

impl Line {
    fn new(recorder: Recorder, request: &Request) -> Self {
        let path = request.uri().path();
        Self {
            recorder,
            start: Instant::now(),
            method: request.method().clone(),
            path: shortened(path),
            namespace: namespace(request.uri()),
            client: request.extensions().get::<ConnectionInfo>().map(|info| info.peer),
            abort: request.extensions().get::<AbortHandle>().cloned(),
            probe: PROBES.contains(&path),
            status: None,
            first_byte: None,
            logged: Logged { outcome: CLIENT_LEFT, ..Logged::default() },
            bytes: 0,
            complete: false,
        }
    }

    fn answered(&mut self, response: &mut Response) {
        self.status = Some(response.status());
        self.first_byte = Some(self.start.elapsed());
        self.logged = response.extensions_mut().remove::<Logged>().unwrap_or_default();
    }

    fn count(&self) {
        let Logged { outcome, ref upstream, kind, .. } = self.logged;
        let labels = RequestLabels { upstream: upstream.clone(), kind, outcome };
        let metrics = &self.recorder.metrics;
        metrics.requests.get_or_create(&labels).inc();
        let labels = OutcomeLabels { upstream: upstream.clone(), outcome };
        metrics.response_bytes.get_or_create(&labels).inc_by(self.bytes);
        if let Some(first_byte) = self.first_byte {
            metrics.first_byte_seconds.observe(first_byte.as_secs_f64());
        }
        if matches!(kind, "manifest" | "blob" | "tags" | "referrers") {
            metrics.client_last_request_timestamp_seconds.set(Timestamp::now().seconds());
        }
    }

    fn client(&self) -> Option<IpAddr> {
        self.logged.client.or_else(|| self.client.map(|client| client.ip().to_canonical()))
    }

    /// The request as it is remembered. Takes what nobody needs after it.
    fn finished(&mut self) -> Finished {
        let aborted = self.abort.as_ref().and_then(AbortHandle::reason);
        let client = self.client();
        let logged = std::mem::take(&mut self.logged);
        Finished {
            id: 0,
            at_ms: Timestamp::now(),
            method: self.method.to_string(),
            kind: logged.kind,
            upstream: logged.upstream,
            repository: logged.repository,
            reference: logged.reference,
            status: self.status.map_or(STATUS_CLIENT_LEFT, |status| status.as_u16()),
            outcome: logged.outcome,
            bytes: self.bytes,
            complete: self.complete,
            ttfb_ms: self.first_byte.map(milliseconds),
            duration_ms: milliseconds(self.start.elapsed()),
            client,
            user: logged.user.map(|user| user.to_string()),
            error: logged.error.or_else(|| aborted.map(|reason| reason.to_string())),
        }
    }

    fn write(&self) {
        let aborted = self.abort.as_ref().and_then(AbortHandle::reason);
        let error = self.logged.error.as_deref().or(aborted.as_deref());
        let status = self.status.map_or(STATUS_CLIENT_LEFT, |status| status.as_u16());
        // The level of an event is part of its call site.
        macro_rules! line {
            ($level:expr) => {
                tracing::event!(
                    target: "cachalot::access",
                    $level,
                    method = %self.method,
                    path = self.path,
                    ns = self.namespace,
                    status,
                    outcome = self.logged.outcome,
                    upstream = self.logged.upstream,
                    repository = non_empty(&self.logged.repository),
                    reference = non_empty(&self.logged.reference),
                    bytes = self.bytes,
                    complete = self.complete,
                    ttfb_ms = self.first_byte.map(milliseconds),
                    duration_ms = milliseconds(self.start.elapsed()),
                    client = self.client().map(tracing::field::display),
                    user = self.logged.user.as_deref(),
                    error,
                    "request"
                )
            };
        }
        if self.probe {
            line!(tracing::Level::DEBUG);
        } else {
            line!(tracing::Level::INFO);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.probe {
            self.count();
        }
        self.write();
        if !self.probe {
            let finished = self.finished();
            self.recorder.activity.finished(finished);
        }
    }
}

// === impl LoggedBody ===

impl http_body::Body for LoggedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                this.line.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                this.line.complete = this.body.is_end_stream();
            }
            Some(Err(error)) => this.line.logged.error = Some(error.to_string()),
            None => this.line.complete = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
