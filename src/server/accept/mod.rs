//! The accept loop: limits on connections, patience when descriptors run out, and the drain at the end.

mod places;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderValue, StatusCode, header};
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{self, ConnectionInfo, ConnectionLimits, End};
use super::error::ErrorResponse;
use super::router::{CACHE_STATUS, insert};
use super::stream::{Clock, Clocks};
use super::tls::Tls;
use super::wire::Wire;
use crate::metrics::Metrics;
use crate::mirror::Outcome;
use crate::oci::error::ErrorCode;
use crate::shutdown::Shutdown;
use crate::tasks;

pub use places::{PlaceLimits, Places};

use places::Place;

/// What a listener admits.
///
/// A connection for which there is no place gets its first request answered with 503 and `Retry-After`, and is closed:
/// clients then go to their next host at once, where a connection left in the backlog would cost them 30 s or more.
/// Of those, there are `refusals_max` at a time; a connection beyond that is closed unheard.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The places for connections, which other listeners may share.
    pub places: Places,
    /// How many connections are being told 503 at a time.
    pub refusals_max: usize,
    /// How long to wait when accept fails for want of descriptors or memory.
    pub accept_pause: Duration,
    /// What each connection may use.
    pub connection: ConnectionLimits,
}

/// What the end of a listener cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still busy when the grace period ended.
    pub connections_cut: usize,
}

/// How soon a client that was refused may come back.
const REFUSED_RETRY_AFTER: Duration = Duration::from_secs(5);

/// Between log lines about failing accepts.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);

/// Where connections come from: a listener, or a test's script.
trait Incoming {
    type Stream: Wire;
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, ConnectionInfo)>> + Send;
}

/// Everything that the connections of one listener share.
struct Acceptor {
    tls: Option<TlsAcceptor>,
    app: Router,
    refusal: Router,
    limits: Limits,
    metrics: Arc<Metrics>,
    draining: CancellationToken,
    /// Cancelled when the grace period ends.
    cut: CancellationToken,
    refusal_places: Arc<Semaphore>,
    tracker: TaskTracker,
}

/// What lets a connection be: a place, or one of the few for those who are told that there is none.
enum Held {
    Place { _place: Place },
    Refusal { _permit: OwnedSemaphorePermit },
}

/// Counts a connection as long as it lives.
struct Counted {
    metrics: Arc<Metrics>,
    _place: Held,
}

/// Serves `app` on `listener`, by TLS if there is `tls`, until shutdown: then nothing more is accepted, idle connections are closed, busy ones
/// finish their response, and what is left when the grace period ends is cut.
pub async fn serve(
    listener: TcpListener,
    tls: Option<&Tls>,
    app: Router,
    limits: Limits,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
) -> Drained {
    serve_incoming(listener, tls.map(Tls::acceptor), app, limits, metrics, shutdown).await
}

async fn serve_incoming(
    incoming: impl Incoming,
    tls: Option<TlsAcceptor>,
    app: Router,
    limits: Limits,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
) -> Drained {
    let acceptor = Acceptor {
        tls,
        app,
        refusal: Router::new().fallback(refuse),
        metrics,
        draining: shutdown.draining_token(),
        cut: CancellationToken::new(),
        refusal_places: Arc::new(Semaphore::new(limits.refusals_max)),
        limits,
        tracker: TaskTracker::new(),
    };
    tokio::select! {
        () = shutdown.draining() => {}
        () = acceptor.accept_all(&incoming) => {}
    }
    // New clients are refused by the kernel from here on, and try their next host.
    drop(incoming);
    acceptor.drain(&shutdown).await
}

async fn refuse() -> Response {
    let message = "this mirror serves as many connections as it is allowed to; try again later or use another host";
    let mut response = ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::TooManyRequests, message)
        .retry_after(REFUSED_RETRY_AFTER)
        .into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    insert(response.headers_mut(), CACHE_STATUS, &Outcome::Refused.to_string());
    response
}

/// A handshake counts as waiting for the first byte: until it's over, nothing was asked.
async fn shake_hands<T: Wire>(
    tls: &TlsAcceptor,
    stream: T,
    deadline: Duration,
    draining: &CancellationToken,
) -> Result<TlsStream<T>, End> {
    tokio::select! {
        shaken = tokio::time::timeout(deadline, tls.accept(stream)) => match shaken {
            Ok(stream) => stream.map_err(|error| {
                tracing::debug!(%error, "a TLS handshake failed");
                End::Failed
            }),
            Err(_elapsed) => Err(End::Expired(Clock::FirstByte)),
        },
        () = draining.cancelled() => Err(End::Failed),
    }
}

/// Whether an accept failed for the one connection that it was about, so that the next may be tried at once. Linux
/// reports errors that a new connection has already met in accept.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::CONNABORTED
                | Errno::CONNRESET
                | Errno::INTR
                | Errno::PERM
                | Errno::PROTO
                | Errno::NETDOWN
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
                | Errno::NETUNREACH
                | Errno::OPNOTSUPP
        )
    )
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            places: Places::new(PlaceLimits { connections_max: 16_384, per_address_max: None }),
            refusals_max: 512,
            accept_pause: Duration::from_millis(75),
            connection: ConnectionLimits {
                clocks: Clocks {
                    first_byte: Duration::from_secs(30),
                    head: Duration::from_secs(30),
                    idle: Duration::from_secs(90),
                    stall: Duration::from_mins(10),
                },
                head_bytes_max: 128 << 10,
                linger: Duration::from_secs(5),
                linger_bytes_max: 1 << 20,
            },
        }
    }
}

// === impl Acceptor ===

impl Acceptor {
    /// Never returns.
    async fn accept_all(&self, incoming: &impl Incoming) {
        let mut complained: Option<Instant> = None;
        loop {
            match incoming.accept().await {
                Ok((stream, info)) => self.admit(stream, info),
                Err(error) if concerns_one_connection(&error) => {
                    tracing::debug!(%error, "a connection broke before it was accepted");
                }
                Err(error) => {
                    // EMFILE, ENFILE, ENOMEM and the like leave the connection in the backlog, so that asking again
                    // at once would spin.
                    self.metrics.connections_shed.inc();
                    if complained.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL) {
                        complained = Some(Instant::now());
                        tracing::warn!(
                            %error,
                            "cannot accept connections; if descriptors ran out, raise the limit of open files"
                        );
                    }
                    tokio::time::sleep(self.limits.accept_pause).await;
                }
            }
        }
    }

    fn admit(&self, stream: impl Wire, info: ConnectionInfo) {
        let mut limits = self.limits.connection;
        let (place, app) = if let Some(place) = self.limits.places.take(info.peer.ip()) {
            (Held::Place { _place: place }, self.app.clone())
        } else {
            self.metrics.connections_shed.inc();
            let Ok(permit) = self.refusal_places.clone().try_acquire_owned() else {
                return;
            };
            limits.clocks.first_byte = limits.clocks.first_byte.min(REFUSED_RETRY_AFTER);
            limits.clocks.head = limits.clocks.head.min(REFUSED_RETRY_AFTER);
            (Held::Refusal { _permit: permit }, self.refusal.clone())
        };
        let counted = Counted::new(self.metrics.clone(), place);
        let (draining, cut) = (self.draining.clone(), self.cut.clone());
        // Each in a box of its own size: a future of both would take that of TLS, ten times as much, for as long as a plain
        // connection idles.
        let serving: BoxFuture<'static, End> = match self.tls.clone() {
            None => connection::serve(stream, info, app, limits, draining).boxed(),
            Some(tls) => async move {
                match shake_hands(&tls, stream, limits.clocks.first_byte, &draining).await {
                    Ok(stream) => connection::serve(stream, info, app, limits, draining).await,
                    Err(end) => end,
                }
            }
            .boxed(),
        };
        let task = async move {
            let _counted = counted;
            tokio::select! {
                end = serving => {
                    tracing::debug!(client = %info.peer, ?end, "connection ended");
                }
                () = cut.cancelled() => tracing::debug!(client = %info.peer, "connection cut at shutdown"),
            }
        };
        tasks::spawn("connection", self.tracker.track_future(task));
    }

    async fn drain(&self, shutdown: &Shutdown) -> Drained {
        self.tracker.close();
        let connections_cut = tokio::select! {
            () = self.tracker.wait() => 0,
            () = shutdown.expired() => self.tracker.len(),
        };
        self.cut.cancel();
        self.tracker.wait().await;
        Drained { connections_cut }
    }
}

// === impl Counted ===

impl Counted {
    fn new(metrics: Arc<Metrics>, place: Held) -> Self {
        metrics.connections.inc();
        Self { metrics, _place: place }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

// === impl TcpListener ===

impl Incoming for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, ConnectionInfo)> {
        let (stream, peer): (TcpStream, SocketAddr) = TcpListener::accept(self).await?;
        // The client may have left already; then the first read says so.
        let _ = stream.set_nodelay(true);
        let local = stream.local_addr().unwrap_or(peer);
        Ok((stream, ConnectionInfo { peer, local }))
    }
}

#[cfg(test)]
mod tests;
