//! Upstreams against a scripted server on the loopback: each test says what it answers, and looks at what it was asked.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;
use crate::oci::{Digest, Reference};
use crate::tasks;

mod auth;
mod bodies;
mod lists;
mod locations;
mod places;
mod tls;

/// A request as it came.
#[derive(Clone, Debug)]
struct Seen {
    method: String,
    /// Path and query.
    target: String,
    headers: HashMap<String, String>,
}

/// What is answered: raw bytes, and whether the connection then goes on, ends or hangs.
struct Reply {
    bytes: Vec<u8>,
    then: Then,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    KeepAlive,
    Close,
    Stall,
}

/// A server that answers what its script says.
struct Script {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Requests are answered while this is `true`.
    gate: watch::Sender<bool>,
}

type Answers = dyn Fn(&Seen) -> Reply + Send + Sync;

// === impl Seen ===

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn authorization(&self) -> Option<&str> {
        self.header("authorization")
    }

    fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    fn query(&self, name: &str) -> Vec<String> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs.filter(|(key, _)| key == name).map(|(_, value)| value.into_owned()).collect()
    }
}

// === impl Reply ===

impl Reply {
    fn new(status: u16, headers: &[(&str, &str)], body: &str) -> Self {
        let mut head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        Self { bytes: format!("{head}\r\n{body}").into_bytes(), then: Then::KeepAlive }
    }

    fn ok(body: &str) -> Self {
        Self::new(200, &[], body)
    }

    /// The head of an answer with a body of `length`, without the body.
    fn head(length: usize, headers: &[(&str, &str)]) -> Self {
        let mut reply = Self::new(200, headers, "");
        let text = String::from_utf8(reply.bytes).unwrap();
        reply.bytes = text.replace("content-length: 0", &format!("content-length: {length}")).into_bytes();
        reply
    }

    fn raw(text: &str, then: Then) -> Self {
        Self { bytes: text.as_bytes().to_vec(), then }
    }

    fn redirect(status: u16, location: &str) -> Self {
        Self::new(status, &[("location", location)], "")
    }

    fn challenge(challenge: &str) -> Self {
        Self::new(401, &[("www-authenticate", challenge)], r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#)
    }

    fn not_found() -> Self {
        Self::new(404, &[], r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"x"}]}"#)
    }
}

// === impl Script ===

impl Script {
    async fn start(answers: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, answers).await
    }

    async fn start_at(address: Ipv4Addr, answers: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (gate, opened) = watch::channel(true);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (answers, log): (Arc<Answers>, _) = (Arc::new(answers), Arc::clone(&seen));
        tasks::spawn("script", async move {
            while let Ok((stream, _)) = listener.accept().await {
                tasks::spawn("connection", serve(stream, Arc::clone(&answers), Arc::clone(&log), opened.clone()));
            }
        });
        Self { address, seen, gate }
    }

    fn url(&self) -> Url {
        format!("http://{}", self.address).parse().unwrap()
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// What was asked, as `GET /v2/… authorization`.
    fn story(&self) -> Vec<String> {
        let line = |seen: Seen| format!("{} {} {}", seen.method, seen.path(), seen.authorization().unwrap_or("-"));
        self.seen().into_iter().map(line).collect()
    }

    fn upstream(&self) -> Upstream {
        Upstream::new(options(vec![self.url()]), Arc::new(Metrics::new()))
    }

    fn upstream_with_credential(&self) -> Upstream {
        Upstream::new(with_credential(options(vec![self.url()])), Arc::new(Metrics::new()))
    }
}

async fn serve(
    mut stream: TcpStream,
    answers: Arc<Answers>,
    log: Arc<Mutex<Vec<Seen>>>,
    mut gate: watch::Receiver<bool>,
) {
    while let Some(seen) = read_head(&mut stream).await {
        log.lock().push(seen.clone());
        if gate.wait_for(|open| *open).await.is_err() {
            return;
        }
        let mut reply = answers(&seen);
        if seen.method == "HEAD" {
            let end = reply.bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
            reply.bytes.truncate(end);
        }
        if stream.write_all(&reply.bytes).await.is_err() || reply.then == Then::Close {
            return;
        }
        if reply.then == Then::Stall {
            // Until the other side has had enough.
            let _ = stream.read_u8().await;
            return;
        }
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<Seen> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let mut request = lines.next().unwrap().split(' ');
    let (method, target) = (request.next().unwrap().to_owned(), request.next().unwrap().to_owned());
    let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    Some(Seen { method, target, headers: lines.filter_map(header).collect() })
}

fn options(endpoints: Vec<Url>) -> Options {
    Options {
        name: "corp".to_owned(),
        endpoints: endpoints.into_iter().map(EndpointOptions::at).collect(),
        credentials: Vec::new(),
        ca_file: None,
        insecure_skip_verify: false,
        client_cert: None,
        proxy: Proxy::Direct,
        public_only: false,
        connect_timeout: Duration::from_secs(10),
        header_timeout: Duration::from_secs(30),
        read_idle_timeout: Duration::from_secs(30),
        max_connections: 200,
        redirect_hosts: Vec::new(),
        paces: Vec::new(),
        instance: Instance::random(),
    }
}

fn with_credential(mut options: Options) -> Options {
    options.credentials = vec![CredentialSource::Password(Credential {
        scope: "corp".to_owned(),
        username: "bot".to_owned(),
        password: crate::secret::Secret::new("hunter2"),
        password_file: None,
    })];
    options
}

fn app() -> Repository {
    repository("team/app")
}

fn repository(name: &str) -> Repository {
    Repository { registry: "corp".parse().unwrap(), name: name.parse().unwrap() }
}

fn latest() -> Reference {
    "latest".parse().unwrap()
}

async fn get(upstream: &Upstream) -> Result<ManifestBody, UpstreamError> {
    upstream.get_manifest(&app(), &latest(), Access::Configured).await
}

async fn blob(upstream: &Upstream, range: Option<BlobRange>) -> Result<BlobStream, UpstreamError> {
    upstream.get_blob(&app(), &Digest::sha256(b"blob"), range, Lane::Foreground).await
}

async fn read(stream: BlobStream) -> Result<Vec<u8>, UpstreamError> {
    stream.body.map_ok(|piece| piece.to_vec()).try_concat().await
}

const MANIFEST: &str = "/v2/team/app/manifests/latest";
