//! The upstream of every mirror that is compared: a registry that serves a tree of files, may be slow, and counts.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use cachalot::oci::Digest;

/// A running registry. Stops accepting when it is dropped.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    blob_bytes: AtomicU64,
    blob_gets: AtomicU64,
    /// Bytes a second in all; 0 for no limit.
    bytes_per_second: AtomicU64,
    /// Until when the limit is used up.
    busy_until: Mutex<Instant>,
    stopped: AtomicBool,
}

/// Who fetches nothing for so long has ended.
const QUIET: Duration = Duration::from_millis(300);

/// So long is waited for that.
const SETTLE_MAX: Duration = Duration::from_secs(20);

/// How much is sent at a time.
const SEND_BYTES: u64 = 256 << 10;

// === impl Upstream ===

impl Upstream {
    pub(crate) fn start(root: PathBuf) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            root,
            blob_bytes: AtomicU64::new(0),
            blob_gets: AtomicU64::new(0),
            bytes_per_second: AtomicU64::new(0),
            busy_until: Mutex::new(Instant::now()),
            stopped: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if accepting.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let shared = accepting.clone();
                // A mirror that hangs up is no failure of ours.
                thread::spawn(move || drop(shared.serve(&stream)));
            }
        });
        Ok(Self { addr, shared })
    }

    /// Limits all connections together; 0 is no limit.
    pub(crate) fn limit(&self, bytes_per_second: u64) {
        self.shared.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// How many bytes of blobs were written since the last call, in answer to how many GETs.
    pub(crate) fn taken(&self) -> (u64, u64) {
        (self.shared.blob_bytes.swap(0, Ordering::Relaxed), self.shared.blob_gets.swap(0, Ordering::Relaxed))
    }

    /// How many bytes of blobs are written until nobody has fetched any for a while: a server may go on after its client has
    /// all.
    pub(crate) fn settle(&self) -> u64 {
        let (mut bytes, start) = (self.taken().0, Instant::now());
        loop {
            thread::sleep(QUIET);
            let more = self.taken().0;
            bytes += more;
            if more == 0 || start.elapsed() > SETTLE_MAX {
                return bytes;
            }
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.addr));
    }
}

// === impl Shared ===

impl Shared {
    fn serve(&self, mut stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut lines = BufReader::new(stream);
        loop {
            let (mut first, mut range) = (String::new(), None);
            if lines.read_line(&mut first)? == 0 {
                return Ok(());
            }
            loop {
                let mut line = String::new();
                lines.read_line(&mut line)?;
                let line = line.trim_end().to_ascii_lowercase();
                if line.is_empty() {
                    break;
                }
                range = line.strip_prefix("range: bytes=").map(str::to_owned).or(range);
            }
            let mut words = first.split(' ');
            let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let path = target.split('?').next().unwrap_or_default();
            if path.trim_end_matches('/') == "/v2" {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")?;
                continue;
            }
            if let Ok(file) = File::open(self.root.join(path.trim_start_matches('/'))) {
                self.answer(stream, &file, path, range.as_deref(), method == "HEAD")?;
                continue;
            }
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#;
            let head = "HTTP/1.1 404 Not Found\r\nContent-Type: application/json";
            let sent = if method == "HEAD" { "" } else { body };
            write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{sent}", body.len())?;
        }
    }

    fn answer(
        &self,
        mut stream: &TcpStream,
        file: &File,
        path: &str,
        range: Option<&str>,
        head_only: bool,
    ) -> io::Result<()> {
        let size = file.metadata()?.len();
        let (first, end) = match range.and_then(|range| range.split_once('-')) {
            Some((first, "")) => (first.parse().unwrap_or(0), size),
            Some((first, last)) => {
                (first.parse().unwrap_or(0), last.parse::<u64>().map_or(size, |last| size.min(last + 1)))
            }
            None => (0, size),
        };
        let is_blob = path.contains("/blobs/");
        let digest = if is_blob {
            path.rsplit('/').next().unwrap_or_default().to_owned()
        } else {
            Digest::sha256(&std::fs::read(self.root.join(path.trim_start_matches('/')))?).to_string()
        };
        let media_type =
            if is_blob { "application/octet-stream" } else { "application/vnd.oci.image.manifest.v1+json" };
        let status = if range.is_some() {
            format!("206 Partial Content\r\nContent-Range: bytes {first}-{}/{size}", end - 1)
        } else {
            "200 OK".to_owned()
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nAccept-Ranges: bytes\r\nDocker-Content-Digest: {digest}\r\n\
             Content-Length: {}\r\n\r\n",
            end - first
        )?;
        if head_only {
            return Ok(());
        }
        if is_blob {
            self.blob_gets.fetch_add(1, Ordering::Relaxed);
        }
        let mut at = first;
        while at < end {
            let len = SEND_BYTES.min(end - at);
            self.wait_for_turn(len);
            let sent = rustix::fs::sendfile(stream, file, Some(&mut at), usize::try_from(len).unwrap_or(0))?;
            if is_blob {
                self.blob_bytes.fetch_add(sent as u64, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn wait_for_turn(&self, bytes: u64) {
        let limit = self.bytes_per_second.load(Ordering::Relaxed);
        if limit == 0 {
            return;
        }
        let turn = {
            let Ok(mut busy_until) = self.busy_until.lock() else { return };
            *busy_until = (*busy_until).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / limit as f64);
            *busy_until
        };
        thread::sleep(turn.saturating_duration_since(Instant::now()));
    }
}
