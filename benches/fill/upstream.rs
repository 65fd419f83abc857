//! The upstream: a registry that sends from files with `sendfile(2)`, as slowly and as badly as it is told, and counts.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;

use crate::source::{Part, digest_of};

/// A registry with one repository, `bench/app`. It stops when this is dropped.
pub(crate) struct Upstream {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

/// How it behaves.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manner {
    /// What one connection gets, as content delivery networks limit it.
    pub(crate) bytes_per_second: Option<u64>,
    /// Each connection ends after so many bytes of bodies.
    pub(crate) cut_after: Option<u64>,
    /// How long each answer takes to begin: a round trip.
    pub(crate) delay: Duration,
}

struct Shared {
    manner: Manner,
    blobs: Mutex<HashMap<String, Part>>,
    manifests: Mutex<HashMap<String, Vec<u8>>>,
    sent: AtomicU64,
    blob_gets: AtomicU64,
    stopped: AtomicBool,
}

/// What is sent at a time by a connection with a limit.
const PACED_BYTES: u64 = 128 * 1024;

/// What is sent at a time by one without.
const BURST_BYTES: u64 = 4 * 1024 * 1024;

/// How much lateness a limited connection may make up for.
const CATCH_UP: Duration = Duration::from_millis(50);

// === impl Upstream ===

impl Upstream {
    pub(crate) fn start(manner: Manner) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            manner,
            blobs: Mutex::default(),
            manifests: Mutex::default(),
            sent: AtomicU64::new(0),
            blob_gets: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                // A client that leaves is no failure.
                thread::spawn(move || shared.serve(&stream).is_ok());
            }
        });
        Ok(Self { addr, shared })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Holds a blob, and an image under `tag` that lists it.
    pub(crate) fn put(&self, tag: &str, digest: &str, part: Part) {
        let config = br"{}";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest_of(config), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": part.len,
            }],
        });
        let manifest = manifest.to_string().into_bytes();
        self.shared.blobs.lock().insert(digest.to_owned(), part);
        let mut manifests = self.shared.manifests.lock();
        manifests.insert(digest_of(&manifest), manifest.clone());
        manifests.insert(tag.to_owned(), manifest);
    }

    /// How many bytes of blobs were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// How many requests for blobs there were.
    pub(crate) fn blob_gets(&self) -> u64 {
        self.shared.blob_gets.load(Ordering::Relaxed)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // The one that is waiting for a connection gets its last.
        drop(TcpStream::connect(self.addr));
    }
}

/// A connection and what it may still send.
struct Connection<'a> {
    stream: &'a TcpStream,
    /// When the next bytes are due.
    next: Instant,
    left: u64,
}

// === impl Shared ===

impl Shared {
    fn serve(&self, mut stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let left = self.manner.cut_after.unwrap_or(u64::MAX);
        let mut connection = Connection { stream, next: Instant::now(), left };
        let mut input = Vec::new();
        loop {
            let end = loop {
                if let Some(at) = input.windows(4).position(|window| window == b"\r\n\r\n") {
                    break at + 4;
                }
                let mut buffer = [0; 4096];
                let count = stream.read(&mut buffer)?;
                if count == 0 || self.stopped.load(Ordering::Relaxed) {
                    return Ok(());
                }
                input.extend_from_slice(&buffer[..count]);
            };
            let request = String::from_utf8_lossy(&input[..end]).into_owned();
            input.drain(..end);
            thread::sleep(self.manner.delay);
            self.answer(&request, &mut connection)?;
        }
    }

    fn answer(&self, request: &str, connection: &mut Connection<'_>) -> io::Result<()> {
        let mut words = request.split(' ');
        let to_head = words.next() == Some("HEAD");
        let path = words.next().unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default();
        if let Some(name) = path.strip_prefix("/v2/bench/app/manifests/") {
            let manifest = self.manifests.lock().get(name).cloned();
            return match manifest {
                Some(manifest) => {
                    let digest = digest_of(&manifest);
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n\
                         Docker-Content-Digest: {digest}\r\nContent-Length: {}\r\n\r\n",
                        manifest.len()
                    );
                    connection.write(&[head.as_bytes(), if to_head { b"" } else { &manifest }].concat())
                }
                None => connection.not_found(),
            };
        }
        let digest = path.strip_prefix("/v2/bench/app/blobs/").unwrap_or_default();
        let part = self.blobs.lock().get(digest).cloned();
        match part {
            Some(part) => self.send_blob(&part, range(request, part.len), to_head, connection),
            None => connection.not_found(),
        }
    }

    fn send_blob(
        &self,
        part: &Part,
        range: Option<(u64, u64)>,
        to_head: bool,
        connection: &mut Connection<'_>,
    ) -> io::Result<()> {
        self.blob_gets.fetch_add(1, Ordering::Relaxed);
        let (first, last) = range.unwrap_or((0, part.len - 1));
        let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
        let mut head =
            format!("HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nAccept-Ranges: bytes\r\n");
        if range.is_some() {
            head.push_str("Content-Range: bytes ");
            head.push_str(&format!("{first}-{last}/{}\r\n", part.len));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", last + 1 - first));
        connection.write(head.as_bytes())?;
        if to_head { Ok(()) } else { self.send(&part.file, part.start + first, last + 1 - first, connection) }
    }

    fn send(&self, file: &File, mut at: u64, mut len: u64, connection: &mut Connection<'_>) -> io::Result<()> {
        while len > 0 {
            let mut most = len.min(connection.left).min(BURST_BYTES);
            if let Some(rate) = self.manner.bytes_per_second {
                most = most.min(PACED_BYTES);
                let now = Instant::now();
                let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
                connection.next = connection.next.max(earliest) + Duration::from_nanos(most * 1_000_000_000 / rate);
                thread::sleep(connection.next.saturating_duration_since(now));
            }
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            let count = rustix::fs::sendfile(connection.stream, file, Some(&mut at), most)? as u64;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            len -= count;
            connection.left -= count;
            self.sent.fetch_add(count, Ordering::Relaxed);
            if connection.left == 0 {
                connection.stream.shutdown(Shutdown::Write)?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        Ok(())
    }
}

// === impl Connection ===

impl Connection<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    fn not_found(&mut self) -> io::Result<()> {
        let body = r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"not here"}]}"#;
        self.write(
            format!(
                "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        )
    }
}

/// The first and last byte of the single range that a request asks for.
fn range(request: &str, size: u64) -> Option<(u64, u64)> {
    let header = request.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = header.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("range"))?;
    let (first, last) = value.trim().strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let last = last.parse().map_or(size - 1, |last: u64| last.min(size - 1));
    (first <= last).then_some((first, last))
}
