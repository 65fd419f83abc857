//! One HTTP exchange: the client it goes through, its deadlines, its metrics.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::{Request, Response};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout, timeout_at};

use super::error::{Failure, Phase, UpstreamErrorKind};
use super::pace::Pace;
use super::proxy::Proxy;
use super::quota::Quota;
use super::resolver::Resolver;
use super::roots::{self, ClientCertificate};
use crate::metrics::{Counter, Metrics, UpstreamLabels};
use crate::tasks::Pool;

/// What a client is made from.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) ca_file: Option<PathBuf>,
    pub(super) skip_verify: bool,
    pub(super) client_cert: Option<ClientCertificate>,
    pub(super) proxy: Proxy,
    /// What bodies keep to: the upstream's own cap, and that of all.
    pub(super) paces: Vec<Pace>,
    pub(super) connect_timeout: Duration,
    pub(super) header_timeout: Duration,
    pub(super) read_idle_timeout: Duration,
    pub(super) max_connections: usize,
}

/// Sends requests to an upstream's endpoints and to where these point.
pub(super) struct Client {
    upstream: String,
    pub(super) settings: Settings,
    resolver: Resolver,
    metrics: Arc<Metrics>,
    pub(super) quota: Quota,
    built: OnceCell<reqwest::Client>,
}

const USER_AGENT: &str = concat!("cachalot/", env!("CARGO_PKG_VERSION"));
/// Shorter than what load balancers commonly grant an idle connection.
const POOL_IDLE: Duration = Duration::from_secs(30);
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// An answer that nobody wants is read to its end when it is no longer than this, so that its connection can be reused.
const DRAINED_BYTES_MAX: u64 = 64 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

// === impl Client ===

impl Client {
    pub(super) fn new(upstream: String, settings: Settings, resolver: Resolver, metrics: Arc<Metrics>) -> Self {
        Self { upstream, settings, resolver, metrics, quota: Quota::default(), built: OnceCell::new() }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Counts the body bytes that arrive.
    pub(super) fn byte_counter(&self) -> Counter {
        self.metrics.upstream_bytes.get_or_create_owned(&UpstreamLabels { upstream: self.upstream.clone() })
    }

    /// The HTTP client, built when it is first needed: nothing that is wrong with it may keep the server from starting.
    pub(super) async fn http(&self) -> Result<&reqwest::Client, Failure> {
        self.built.get_or_try_init(|| self.build()).await
    }

    async fn build(&self) -> Result<reqwest::Client, Failure> {
        let unusable = |cause: String| Failure { cause: Some(cause), ..UpstreamErrorKind::Tls.into() };
        let Settings { ca_file, skip_verify, client_cert, .. } = &self.settings;
        let (ca_file, skip_verify, own) = (ca_file.clone(), *skip_verify, client_cert.clone());
        // Certificates are read from files, which takes a while; the thread ends with the pool.
        let pool = Pool::new("tls-roots", 1).map_err(|error| unusable(error.to_string()))?;
        let tls = pool
            .run(move || roots::settings(ca_file.as_deref(), skip_verify, own.as_ref()))
            .await
            .map_err(|error| unusable(error.to_string()))?;
        let builder = self.settings.proxy.lay_on(reqwest::Client::builder())?;
        builder
            .tls_backend_preconfigured(tls)
            .dns_resolver(self.resolver.clone())
            .user_agent(USER_AGENT)
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(self.settings.connect_timeout)
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(self.settings.max_connections)
            .tcp_keepalive(TCP_KEEPALIVE)
            .build()
            .map_err(|error| unusable(error.without_url().to_string()))
    }

    /// Sends a request and waits for the head of its answer. A request whose connection broke before that is sent once
    /// more: registries close idle connections at any moment, and what we send changes nothing.
    pub(super) async fn send(&self, kind: &'static str, request: Request) -> Result<Response, Failure> {
        let again = request.try_clone();
        match (self.send_once(kind, request).await, again) {
            (Err(Failure { kind: UpstreamErrorKind::Broken, .. }), Some(again)) => self.send_once(kind, again).await,
            (result, _) => result,
        }
    }

    async fn send_once(&self, kind: &'static str, request: Request) -> Result<Response, Failure> {
        let http = self.http().await?;
        let start = Instant::now();
        let result = match timeout(self.settings.header_timeout, http.execute(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Failure::of_exchange(&error)),
            Err(_) => Err(Failure::timeout(Phase::Header)),
        };
        let status = match &result {
            Ok(response) => response.status().as_str().to_owned(),
            Err(failure) => failure.metric_status().to_owned(),
        };
        self.metrics.upstream_answered(&self.upstream, kind, &status, start.elapsed());
        if let Ok(response) = &result {
            self.note_quota(response);
        }
        result
    }

    fn note_quota(&self, response: &Response) {
        if let Some(remaining) = self.quota.heard(response.status(), response.headers(), Instant::now()) {
            let labels = UpstreamLabels { upstream: self.upstream.clone() };
            self.metrics.upstream_ratelimit_remaining.get_or_create(&labels).set(remaining);
        }
    }

    /// A whole small body: not longer than `bytes_max`, each piece in time, and all of it within the header timeout.
    pub(super) async fn collect(&self, mut response: Response, bytes_max: usize) -> Result<Bytes, Failure> {
        let too_large = || Failure::protocol(format!("its body is longer than {bytes_max} bytes"));
        if response.content_length().is_some_and(|length| length > bytes_max as u64) {
            return Err(too_large());
        }
        let count = self.byte_counter();
        let deadline = Instant::now() + self.settings.header_timeout.max(self.settings.read_idle_timeout);
        let mut body = BytesMut::new();
        loop {
            let piece = timeout(self.settings.read_idle_timeout, response.chunk());
            let piece = match timeout_at(deadline, piece).await {
                Ok(Ok(Ok(Some(piece)))) => piece,
                Ok(Ok(Ok(None))) => return Ok(body.freeze()),
                Ok(Ok(Err(error))) => return Err(Failure::of_exchange(&error)),
                Ok(Err(_)) | Err(_) => return Err(Failure::timeout(Phase::Body)),
            };
            count.inc_by(piece.len() as u64);
            if body.len() + piece.len() > bytes_max {
                return Err(too_large());
            }
            body.extend_from_slice(&piece);
        }
    }

    /// Reads the rest of an unwanted answer if that is cheap, so that the next request need not connect again.
    pub(super) async fn drain(&self, mut response: Response) {
        if response.content_length().is_some_and(|length| length <= DRAINED_BYTES_MAX) {
            let count = self.byte_counter();
            let rest = async {
                while let Ok(Some(piece)) = response.chunk().await {
                    count.inc_by(piece.len() as u64);
                }
            };
            // Whatever comes of it, the answer is dropped.
            let _ = timeout(DRAIN_TIMEOUT, rest).await;
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}
