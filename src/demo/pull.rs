//! Pulls an image over HTTP as a container runtime does, and verifies every byte of it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, HOST};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::oci::manifest::{Descriptor, MANIFEST_BYTES_MAX, Manifest};
use crate::oci::media::ACCEPT_MANIFESTS;
use crate::oci::{Digest, Mismatch, Verifier};
use crate::tasks;

/// Where an image is pulled from, and which one.
#[derive(Clone, Debug)]
pub struct Source {
    /// The registry or the mirror.
    pub addr: SocketAddr,
    /// The registry that a mirror is asked to stand in for: the `ns` parameter, as containerd sends it.
    pub namespace: Option<&'static str>,
    /// The repository.
    pub repository: &'static str,
    /// The tag.
    pub tag: &'static str,
    /// The architecture to pull, as OCI names it.
    pub architecture: &'static str,
}

/// What a pull brought. Every body was verified against its digest.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// What the tag pointed at.
    pub digest: Digest,
    /// Body bytes received.
    pub bytes: u64,
    /// The `Cache-Status` with which the tag was answered.
    pub tag_status: Option<String>,
}

/// Why a pull failed. Every text names the request.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No connection, or it broke.
    #[error("{request}: {reason}")]
    Broken {
        /// What was asked.
        request: String,
        /// What happened.
        reason: String,
    },
    /// Nothing came for too long.
    #[error("{request}: nothing came for {} s", WAIT_MAX.as_secs())]
    TimedOut {
        /// What was asked.
        request: String,
    },
    /// Another status than 200.
    #[error("{request}: answered {status} {body}")]
    Status {
        /// What was asked.
        request: String,
        /// The status.
        status: u16,
        /// The beginning of the body.
        body: String,
    },
    /// The bytes are wrong.
    #[error("{request}: wrong bytes: {mismatch}")]
    Mismatch {
        /// What was asked.
        request: String,
        /// What is wrong.
        mismatch: Mismatch,
    },
    /// The answer is complete, but not what a runtime needs.
    #[error("{request}: {reason}")]
    Unusable {
        /// What was asked.
        request: String,
        /// What is missing or wrong.
        reason: String,
    },
}

/// One keep-alive connection.
struct Client {
    source: Source,
    sender: http1::SendRequest<Empty<Bytes>>,
}

/// A digest and how many bytes have it.
#[derive(Clone, Copy)]
struct Wanted {
    digest: Digest,
    size_bytes: u64,
}

/// How many blobs are pulled at once, as containerd does by default.
const PARALLEL_BLOBS: usize = 3;

/// How long any one wait may take: to connect, for a response's head, for the next piece of its body.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Pulls: HEAD of the tag, the index and the platform's manifest by digest, then its blobs, three at a time.
pub async fn pull(source: &Source) -> Result<Pulled, PullError> {
    let mut client = Client::connect(source).await?;
    let (tag, tag_status) = client.resolve().await?;
    let index = client.manifest(tag).await?;
    let architecture = source.architecture;
    let runs_here = |entry: &&Descriptor| {
        entry.platform.as_ref().is_some_and(|platform| platform.os == "linux" && platform.architecture == architecture)
    };
    let parsed = client.parse(&index)?;
    let Some(child) = parsed.manifests.iter().find(runs_here) else {
        return Err(client.unusable(format!("the index has no linux/{architecture}")));
    };
    let manifest = client.manifest(child.into()).await?;

    let mut bytes = (index.len() + manifest.len()) as u64;
    let blobs: VecDeque<Wanted> = client.parse(&manifest)?.descriptors().map(Wanted::from).collect();
    let count = blobs.len();
    let blobs = Arc::new(Mutex::new(blobs));
    let workers: Vec<_> = std::iter::once(Some(client))
        .chain(std::iter::repeat_with(|| None))
        .take(PARALLEL_BLOBS.min(count))
        .map(|client| tasks::spawn("demo pull", pull_blobs(source.clone(), client, Arc::clone(&blobs))))
        .collect();
    for worker in workers {
        // A panic is a bug of the demo itself; it goes on here.
        bytes += worker.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    }
    Ok(Pulled { digest: tag.digest, bytes, tag_status })
}

/// Pulls blobs from the queue until it is empty, over one connection. The result counts their bytes.
async fn pull_blobs(
    source: Source,
    client: Option<Client>,
    queue: Arc<Mutex<VecDeque<Wanted>>>,
) -> Result<u64, PullError> {
    let mut client = match client {
        Some(client) => client,
        None => Client::connect(&source).await?,
    };
    let mut bytes = 0;
    loop {
        let Some(blob) = queue.lock().pop_front() else { return Ok(bytes) };
        client.get("blobs", blob, |_| {}).await?;
        bytes += blob.size_bytes;
    }
}

// === impl Wanted ===

impl From<&Descriptor> for Wanted {
    fn from(descriptor: &Descriptor) -> Self {
        Self { digest: descriptor.digest, size_bytes: descriptor.size_bytes }
    }
}

// === impl Client ===

impl Client {
    async fn connect(source: &Source) -> Result<Self, PullError> {
        let request = format!("connect to {}", source.addr);
        let broken = |reason: &dyn ToString| PullError::Broken { request: request.clone(), reason: reason.to_string() };
        let Ok(stream) = timeout(WAIT_MAX, TcpStream::connect(source.addr)).await else {
            return Err(PullError::TimedOut { request });
        };
        let io = TokioIo::new(stream.map_err(|error| broken(&error))?);
        let (sender, connection) = http1::handshake(io).await.map_err(|error| broken(&error))?;
        tasks::spawn("demo client connection", async {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection of the demo's client ended early");
            }
        });
        Ok(Self { source: source.clone(), sender })
    }

    /// What the tag points at, and how it was answered.
    async fn resolve(&mut self) -> Result<(Wanted, Option<String>), PullError> {
        let tag = self.source.tag;
        let (request, response) = self.send(Method::HEAD, "manifests", tag).await?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let digest = header("docker-content-digest").and_then(|text| text.parse().ok());
        let size_bytes = header(CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok());
        let status = header("cache-status").map(str::to_owned);
        match (digest, size_bytes) {
            (Some(digest), Some(size_bytes)) => Ok((Wanted { digest, size_bytes }, status)),
            _ => Err(PullError::Unusable {
                request,
                reason: "a HEAD of a tag needs Docker-Content-Digest and Content-Length".to_owned(),
            }),
        }
    }

    /// A manifest by digest, verified.
    async fn manifest(&mut self, wanted: Wanted) -> Result<Vec<u8>, PullError> {
        if wanted.size_bytes > MANIFEST_BYTES_MAX as u64 {
            return Err(self.unusable(format!("{} claims to be {} bytes long", wanted.digest, wanted.size_bytes)));
        }
        let mut body = Vec::new();
        self.get("manifests", wanted, |piece| body.extend_from_slice(piece)).await?;
        Ok(body)
    }

    /// Fetches and verifies one body. Nothing beyond the announced size is handed to `sink`.
    async fn get(&mut self, endpoint: &str, wanted: Wanted, mut sink: impl FnMut(&[u8])) -> Result<(), PullError> {
        let (request, mut response) = self.send(Method::GET, endpoint, &wanted.digest.to_string()).await?;
        let mut verifier = Verifier::new(wanted.digest, Some(wanted.size_bytes));
        loop {
            let Ok(frame) = timeout(WAIT_MAX, response.frame()).await else {
                return Err(PullError::TimedOut { request });
            };
            let piece = match frame {
                None => break,
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) => {
                    let reason = format!("the body ended after {} bytes: {error}", verifier.size_bytes());
                    return Err(PullError::Broken { request, reason });
                }
            };
            verifier.update(&piece);
            if verifier.size_bytes() > wanted.size_bytes {
                break;
            }
            sink(&piece);
        }
        verifier.finish().map(|_| ()).map_err(|mismatch| PullError::Mismatch { request, mismatch })
    }

    async fn send(
        &mut self,
        method: Method,
        endpoint: &str,
        reference: &str,
    ) -> Result<(String, Response<Incoming>), PullError> {
        let Source { addr, namespace, repository, .. } = &self.source;
        let query = namespace.map(|name| format!("?ns={name}")).unwrap_or_default();
        let path = format!("/v2/{repository}/{endpoint}/{reference}{query}");
        let text = format!("{method} http://{addr}{path}");
        let broken = |reason: String| PullError::Broken { request: text.clone(), reason };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, addr.to_string())
            .header(ACCEPT, ACCEPT_MANIFESTS)
            .body(Empty::new())
            .map_err(|error| broken(error.to_string()))?;
        let exchange = async {
            self.sender.ready().await?;
            self.sender.send_request(request).await
        };
        let Ok(response) = timeout(WAIT_MAX, exchange).await else {
            return Err(PullError::TimedOut { request: text });
        };
        let mut response = response.map_err(|error| broken(error.to_string()))?;
        let status = response.status().as_u16();
        if status == 200 {
            return Ok((text, response));
        }
        // The first frame says what is wrong; there is no need for the rest.
        let frame = timeout(WAIT_MAX, response.frame()).await.ok().flatten();
        let body = frame.and_then(Result::ok).and_then(|frame| frame.into_data().ok()).unwrap_or_default();
        let body = String::from_utf8_lossy(&body).chars().take(500).collect();
        Err(PullError::Status { request: text, status, body })
    }

    fn parse(&self, body: &[u8]) -> Result<Manifest, PullError> {
        Manifest::parse(body, None).map_err(|error| self.unusable(error.to_string()))
    }

    fn unusable(&self, reason: String) -> PullError {
        let Source { addr, repository, tag, .. } = &self.source;
        PullError::Unusable { request: format!("{repository}:{tag} from {addr}"), reason }
    }
}
