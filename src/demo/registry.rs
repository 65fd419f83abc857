//! The sample upstream: an in-memory registry over HTTP with a speed limit per connection, which counts what it sends.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::RwLock;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::image::{Content, Image};
use super::pace::Pace;
use crate::oci::Digest;
use crate::oci::media::{OCI_INDEX, OCTET_STREAM};
use crate::oci::range::{self, ByteRange, RangeRequest};
use crate::tasks;

/// How a sample registry runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens. Port 0 takes any free one.
    pub listen: SocketAddr,
    /// How many body bytes a second one connection gets, as content delivery networks limit it. `None` for no limit.
    pub bytes_per_second_per_connection: Option<u64>,
}

/// A running registry. It stops when this is dropped.
#[derive(Debug)]
pub struct SampleRegistry {
    addr: SocketAddr,
    shared: Arc<Shared>,
    running: Option<Running>,
}

/// What was asked of a registry so far, and what it sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// HEADs for manifests, which cost a pull quota nothing.
    pub manifest_heads: u64,
    /// GETs for manifests.
    pub manifest_gets: u64,
    /// HEADs for blobs.
    pub blob_heads: u64,
    /// GETs for blobs, whole or in part.
    pub blob_gets: u64,
    /// Everything else: pings, tag lists, referrers, mistakes.
    pub other: u64,
    /// Body bytes of manifests and blobs, counted as they are handed to the connection.
    pub body_bytes: u64,
}

#[derive(Debug)]
struct Shared {
    bytes_per_second: Option<u64>,
    repositories: RwLock<BTreeMap<String, Repository>>,
    counters: Counters,
}

#[derive(Debug)]
struct Running {
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct Repository {
    tags: BTreeMap<String, Digest>,
    manifests: BTreeMap<Digest, Content>,
    blobs: BTreeMap<Digest, Content>,
}

#[derive(Debug, Default)]
struct Counters {
    manifest_heads: AtomicU64,
    manifest_gets: AtomicU64,
    blob_heads: AtomicU64,
    blob_gets: AtomicU64,
    other: AtomicU64,
    body_bytes: AtomicU64,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Small enough that a speed limit flows evenly, large enough to cost nothing.
const CHUNK_BYTES: usize = 128 * 1024;

/// How long to wait after a connection could not be accepted: descriptors may be short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

// === impl Stats ===

impl Stats {
    /// What came after `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            manifest_heads: self.manifest_heads - before.manifest_heads,
            manifest_gets: self.manifest_gets - before.manifest_gets,
            blob_heads: self.blob_heads - before.blob_heads,
            blob_gets: self.blob_gets - before.blob_gets,
            other: self.other - before.other,
            body_bytes: self.body_bytes - before.body_bytes,
        }
    }
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), bytes_per_second_per_connection: None }
    }
}

// === impl SampleRegistry ===

impl SampleRegistry {
    /// Starts an empty registry. Fails when it can't listen.
    pub async fn start(options: Options) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            bytes_per_second: options.bytes_per_second_per_connection,
            repositories: RwLock::default(),
            counters: Counters::default(),
        });
        let mut registry = Self { addr: options.listen, shared, running: None };
        registry.resume().await?;
        Ok(registry)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Holds an image from now on, under a tag that points at its index.
    pub fn add_image(&self, repository: &str, tag: &str, image: &Image) {
        let mut repositories = self.shared.repositories.write();
        let held = repositories.entry(repository.to_owned()).or_default();
        held.tags.insert(tag.to_owned(), image.index.digest);
        held.manifests.insert(image.index.digest, image.index.clone());
        for part in &image.platforms {
            held.manifests.insert(part.manifest.digest, part.manifest.clone());
            held.blobs.extend(part.blobs().map(|blob| (blob.digest, blob.clone())));
        }
    }

    /// What was asked of it so far, over all its stops and starts.
    pub fn stats(&self) -> Stats {
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            manifest_heads: read(&counters.manifest_heads),
            manifest_gets: read(&counters.manifest_gets),
            blob_heads: read(&counters.blob_heads),
            blob_gets: read(&counters.blob_gets),
            other: read(&counters.other),
            body_bytes: read(&counters.body_bytes),
        }
    }

    /// Stops listening and cuts every connection. Returns when both are done.
    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop.cancel();
            running.tasks.close();
            running.tasks.wait().await;
        }
    }

    /// Starts again at the same address, with the same images, after [`stop`](Self::stop). Does nothing while running.
    pub async fn resume(&mut self) -> io::Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let listener = TcpListener::bind(self.addr).await?;
        self.addr = listener.local_addr()?;
        let running = Running { stop: CancellationToken::new(), tasks: TaskTracker::new() };
        let (shared, stop, tracker) = (Arc::clone(&self.shared), running.stop.clone(), running.tasks.clone());
        let accepting = running.tasks.track_future(async move {
            let accept = accept(listener, shared, stop.clone(), tracker);
            stop.run_until_cancelled(accept).await;
        });
        tasks::spawn("sample registry", accepting);
        self.running = Some(running);
        Ok(())
    }
}

impl Drop for SampleRegistry {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.stop.cancel();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken, tracker: TaskTracker) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (shared, stop) = (Arc::clone(&shared), stop.clone());
                let serving = async move {
                    stop.run_until_cancelled(serve(stream, shared)).await;
                };
                tasks::spawn("sample registry connection", tracker.track_future(serving));
            }
            Err(error) => {
                tracing::warn!(%error, "the sample registry could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    // Without it, the last piece of a paced body waits for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let pace = shared.bytes_per_second.map(|limit| Arc::new(Pace::new(limit)));
    let service = service_fn(move |request| {
        let response = shared.answer(&request, pace.clone());
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to the sample registry ended early");
    }
}

// === impl Shared ===

impl Shared {
    fn answer(self: &Arc<Self>, request: &Request<Incoming>, pace: Option<Arc<Pace>>) -> Response<Body> {
        let head = request.method() == Method::HEAD;
        let counters = &self.counters;
        let count = |on_head: &AtomicU64, on_get: &AtomicU64| {
            (if head { on_head } else { on_get }).fetch_add(1, Ordering::Relaxed);
        };
        if !head && request.method() != Method::GET {
            counters.other.fetch_add(1, Ordering::Relaxed);
            let mut refusal = failed(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "this registry is read-only");
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        let Some(path) = request.uri().path().strip_prefix("/v2/") else {
            counters.other.fetch_add(1, Ordering::Relaxed);
            return failed(StatusCode::NOT_FOUND, "UNSUPPORTED", "there is nothing here but /v2/");
        };
        // From the right: the name may hold slashes, and any word.
        let mut parts = path.rsplitn(3, '/');
        let (last, endpoint, name) = (parts.next(), parts.next(), parts.next());
        let repositories = self.repositories.read();
        let held = name.and_then(|name| repositories.get(name));
        match (endpoint, last, held) {
            (Some("manifests"), Some(reference), Some(held)) => {
                count(&counters.manifest_heads, &counters.manifest_gets);
                match held.manifest(reference) {
                    Some(manifest) => self.content(head, request.headers(), manifest, manifest.media_type, pace),
                    None => failed(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "there is no such manifest"),
                }
            }
            (Some("blobs"), Some(digest), Some(held)) => {
                count(&counters.blob_heads, &counters.blob_gets);
                match digest.parse().ok().and_then(|digest: Digest| held.blobs.get(&digest)) {
                    Some(blob) => self.content(head, request.headers(), blob, OCTET_STREAM, pace),
                    None => failed(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "there is no such blob"),
                }
            }
            (endpoint, last, held) => {
                counters.other.fetch_add(1, Ordering::Relaxed);
                match (endpoint, last, held) {
                    (None, Some(""), _) => answered(StatusCode::OK, "application/json", "{}".into()),
                    (Some("tags"), Some("list"), Some(held)) => {
                        let list = json!({ "name": name, "tags": held.tags.keys().collect::<Vec<_>>() });
                        answered(StatusCode::OK, "application/json", list.to_string())
                    }
                    (Some("referrers"), Some(_), Some(_)) => {
                        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] });
                        answered(StatusCode::OK, OCI_INDEX, index.to_string())
                    }
                    _ => failed(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "there is no such repository"),
                }
            }
        }
    }

    /// A manifest or a blob, or the one range of it that was asked for.
    fn content(
        self: &Arc<Self>,
        head: bool,
        headers: &HeaderMap,
        content: &Content,
        media_type: &'static str,
        pace: Option<Arc<Pace>>,
    ) -> Response<Body> {
        let total = content.bytes.len() as u64;
        let response = Response::builder()
            .header(CONTENT_TYPE, media_type)
            .header(ACCEPT_RANGES, "bytes")
            .header("docker-content-digest", content.digest.to_string());
        let asked = if head { None } else { headers.get(RANGE).map(HeaderValue::as_bytes) };
        // Several ranges are answered with the whole, as S3 does.
        let range = match range::parse(asked) {
            RangeRequest::Single(spec) => Some(spec.resolve(total)),
            RangeRequest::None | RangeRequest::Multiple(_) | RangeRequest::TooMany => None,
        };
        let (response, bytes) = match range {
            None => (response, content.bytes.clone()),
            Some(Some(range)) => {
                let response = response.status(StatusCode::PARTIAL_CONTENT);
                (response.header(CONTENT_RANGE, range.content_range(total)), slice(&content.bytes, range))
            }
            Some(None) => {
                let response = response.status(StatusCode::RANGE_NOT_SATISFIABLE);
                (response.header(CONTENT_RANGE, range::content_range_unsatisfied(total)), Bytes::new())
            }
        };
        let response = response.header(CONTENT_LENGTH, bytes.len());
        let body = if head { Bytes::new() } else { bytes };
        built(response, self.paced(body, pace))
    }

    /// The bytes in chunks, each counted when it is taken and after its time has come.
    fn paced(self: &Arc<Self>, bytes: Bytes, pace: Option<Arc<Pace>>) -> Body {
        let chunks = stream::unfold((bytes, pace, Arc::clone(self)), |(mut rest, pace, shared)| async move {
            if rest.is_empty() {
                return None;
            }
            let chunk = rest.split_to(CHUNK_BYTES.min(rest.len()));
            if let Some(pace) = &pace {
                pace.wait(chunk.len()).await;
            }
            shared.counters.body_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            Some((Ok(Frame::data(chunk)), (rest, pace, shared)))
        });
        StreamBody::new(chunks).boxed_unsync()
    }
}

// === impl Repository ===

impl Repository {
    fn manifest(&self, reference: &str) -> Option<&Content> {
        let digest = self.tags.get(reference).copied().or_else(|| reference.parse().ok())?;
        self.manifests.get(&digest)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a range of bytes in memory fits their address space")]
fn slice(bytes: &Bytes, range: ByteRange) -> Bytes {
    bytes.slice(range.first as usize..=range.last as usize)
}

fn answered(status: StatusCode, media_type: &'static str, text: String) -> Response<Body> {
    built(
        Response::builder().status(status).header(CONTENT_TYPE, media_type),
        http_body_util::Full::from(text).boxed_unsync(),
    )
}

fn failed(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let errors = json!({ "errors": [{ "code": code, "message": message }] });
    answered(status, "application/json", errors.to_string())
}

fn built(response: http::response::Builder, body: Body) -> Response<Body> {
    // All names and values above are legal: they are constants, numbers and digests.
    response.body(body).unwrap_or_else(|_| Response::new(Body::default()))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::super::image::{ImageSpec, PlatformSpec};
    use super::super::tests::ask;
    use super::*;

    async fn started(rate: Option<u64>) -> (SampleRegistry, Image) {
        let image = Image::generate(&ImageSpec {
            seed: 3,
            platforms: vec![PlatformSpec { architecture: "amd64", file_bytes: vec![300_000, 10] }],
        });
        let options = Options { bytes_per_second_per_connection: rate, ..Options::default() };
        let registry = SampleRegistry::start(options).await.unwrap();
        registry.add_image("team/app", "1.0", &image);
        (registry, image)
    }

    #[tokio::test]
    async fn content_is_served_by_tag_and_digest_and_counted() {
        let (registry, image) = started(None).await;
        let (head, body) = ask(registry.addr(), "HEAD", "/v2/team/app/manifests/1.0", "").await;
        assert!(head.starts_with("HTTP/1.1 200") && body.is_empty(), "{head}");
        assert!(head.contains(&format!("docker-content-digest: {}", image.index.digest)), "{head}");
        assert!(head.contains(&format!("content-length: {}", image.index.bytes.len())), "{head}");
        let index = format!("/v2/team/app/manifests/{}", image.index.digest);
        assert_eq!(ask(registry.addr(), "GET", &index, "").await.1, image.index.bytes);
        let layer = &image.platforms[0].layers[0];
        let blob = format!("/v2/team/app/blobs/{}", layer.digest);
        assert_eq!(ask(registry.addr(), "GET", &blob, "").await.1, layer.bytes);
        let body_bytes = (image.index.bytes.len() + layer.bytes.len()) as u64;
        let expected = Stats { manifest_heads: 1, manifest_gets: 1, blob_gets: 1, body_bytes, ..Stats::default() };
        assert_eq!(registry.stats(), expected);
    }

    #[tokio::test]
    async fn ranges_are_exact_and_what_is_unknown_is_an_oci_error() {
        let (registry, image) = started(None).await;
        let layer = &image.platforms[0].layers[0];
        let blob = format!("/v2/team/app/blobs/{}", layer.digest);
        for (range, status, expected) in [
            ("bytes=5-9", "206", &layer.bytes[5..10]),
            ("bytes=300000-", "206", &layer.bytes[300_000..]),
            ("bytes=0-99999999", "206", &layer.bytes[..]),
            ("bytes=9-5", "416", &[]),
            ("bytes=99999999-", "416", &[]),
            ("lines=1-2", "200", &layer.bytes[..]),
            ("bytes=-4", "206", &layer.bytes[layer.bytes.len() - 4..]),
            ("bytes=0-1,5-6", "200", &layer.bytes[..]),
        ] {
            let (head, body) = ask(registry.addr(), "GET", &blob, &format!("range: {range}\r\n")).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{range}: {head}");
            assert_eq!(body, expected, "{range}");
        }
        for (method, path, status) in [
            ("GET", "/v2/", "200"),
            ("GET", "/v2/team/app/tags/list", "200"),
            ("GET", "/v2/team/app/referrers/sha256:x", "200"),
            ("GET", "/v2/team/app/manifests/2.0", "404"),
            ("GET", "/v2/team/app/blobs/sha256:x", "404"),
            ("GET", "/v2/other/manifests/1.0", "404"),
            ("GET", "/", "404"),
            ("PUT", "/v2/team/app/manifests/1.0", "405"),
        ] {
            let (head, body) = ask(registry.addr(), method, path, "").await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{method} {path}: {head}");
            assert!(serde_json::from_slice::<serde_json::Value>(&body).is_ok(), "{method} {path}");
        }
    }

    #[tokio::test]
    async fn a_connection_is_no_faster_than_its_limit() {
        let (registry, image) = started(Some(2_000_000)).await;
        let layer = &image.platforms[0].layers[0];
        let begin = Instant::now();
        let (_, body) = ask(registry.addr(), "GET", &format!("/v2/team/app/blobs/{}", layer.digest), "").await;
        assert_eq!(body, layer.bytes);
        assert!(begin.elapsed() >= Duration::from_millis(100), "{:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn a_stopped_registry_refuses_connections_until_it_resumes_at_its_address() {
        let (mut registry, image) = started(None).await;
        let addr = registry.addr();
        registry.stop().await;
        assert!(TcpStream::connect(addr).await.is_err());
        registry.resume().await.unwrap();
        assert_eq!(registry.addr(), addr);
        let (_, body) = ask(addr, "GET", "/v2/team/app/manifests/1.0", "").await;
        assert_eq!(body, image.index.bytes);
    }
}
