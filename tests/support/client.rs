//! A raw HTTP/1.1 client: requests go out verbatim, and answers say how their body ended.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::within;

/// A request as it goes over the wire.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// All that the head announced has arrived.
    Complete,
    /// The head announced no length; the connection's end was the end.
    Closed,
    /// FIN before the announced end.
    Short,
    /// The connection broke in another way: RST.
    Reset,
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
}

/// An answer that was read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) head: Head,
    pub(crate) body: Bytes,
    pub(crate) end: End,
}

/// A connection. Dropping it leaves, whatever is under way.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
    asked: std::collections::VecDeque<bool>,
    body: Framing,
}

/// What is left of the body under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    /// Chunked; the bytes left in the current chunk.
    Chunked(u64),
    UntilClosed,
    Ended(End),
}

// === impl Request ===

impl Request {
    pub(crate) fn new(method: &str, target: impl Into<String>) -> Self {
        Self { method: method.to_owned(), target: target.into(), headers: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn get(target: impl Into<String>) -> Self {
        Self::new("GET", target)
    }

    pub(crate) fn head(target: impl Into<String>) -> Self {
        Self::new("HEAD", target)
    }

    /// Adds a header. A `Host` given here replaces the usual one.
    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn range(self, value: impl Into<String>) -> Self {
        self.header("Range", value)
    }

    pub(crate) fn body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self
    }

    fn to_bytes(&self, addr: SocketAddr) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            text.push_str(&format!("Host: {addr}\r\n"));
        }
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() {
            text.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        text.push_str("\r\n");
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

// === impl Head ===

impl Head {
    /// The value of a header that is there once; `None` when absent, a failure when repeated.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str());
        let first = values.next();
        assert!(values.next().is_none(), "{name} is there more than once: {self:?}");
        first
    }

    fn framing(&self, to_head: bool) -> Framing {
        let chunked = self.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked"));
        if to_head || matches!(self.status, 100..=199 | 204 | 304) {
            Framing::Ended(End::Complete)
        } else if chunked {
            Framing::Chunked(0)
        } else if let Some(length) = self.header("content-length") {
            Framing::Length(length.parse().expect("Content-Length is a number"))
        } else {
            Framing::UntilClosed
        }
    }
}

// === impl Answer ===

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.head.status
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// The code of the first error in an OCI error body.
    pub(crate) fn error_code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap_or_else(|| panic!("no error code: {self:?}")).to_owned()
    }

    /// The message of the first error in an OCI error body.
    pub(crate) fn error_message(&self) -> String {
        self.json()["errors"][0]["message"].as_str().unwrap_or_else(|| panic!("no message: {self:?}")).to_owned()
    }

    /// Fails unless this is a complete 200 with exactly these bytes.
    #[track_caller]
    pub(crate) fn assert_ok(&self, bytes: &[u8]) {
        assert_eq!(self.status(), 200, "{} {:?}", self.text().chars().take(500).collect::<String>(), self.head);
        assert_eq!(self.end, End::Complete, "{:?}", self.head);
        assert_eq!(self.body.len(), bytes.len(), "{:?}", self.head);
        assert!(self.body == bytes, "the bytes differ: {:?}", self.head);
    }
}

// === impl Connection ===

/// Sends one request over a connection of its own and reads the whole answer.
pub(crate) async fn send(addr: SocketAddr, request: &Request) -> Answer {
    Connection::open(addr).await.exchange(request).await
}

impl Connection {
    pub(crate) async fn open(addr: SocketAddr) -> Self {
        Self::open_with(addr, None).await
    }

    /// A connection whose receive buffer is small, so that the sender soon notices a slow reader.
    pub(crate) async fn open_narrow(addr: SocketAddr) -> Self {
        Self::open_with(addr, Some(64 * 1024)).await
    }

    async fn open_with(addr: SocketAddr, receive_buffer: Option<u32>) -> Self {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        let stream = within("connect", socket.connect(addr)).await.unwrap_or_else(|error| panic!("{addr}: {error}"));
        stream.set_nodelay(true).unwrap();
        let body = Framing::Ended(End::Complete);
        Self { stream, buffer: BytesMut::new(), asked: std::collections::VecDeque::new(), body }
    }

    /// One request to a server that may be killed at any moment: its head, if one came, and what came of the body.
    pub(crate) async fn attempt(addr: SocketAddr, request: &Request) -> Option<Answer> {
        let stream = TcpStream::connect(addr).await.ok()?;
        let body = Framing::Ended(End::Complete);
        let mut connection = Self { stream, buffer: BytesMut::new(), asked: std::collections::VecDeque::new(), body };
        connection.stream.write_all(&request.to_bytes(addr)).await.ok()?;
        connection.asked.push_back(request.method == "HEAD");
        let head = connection.try_head().await?;
        let (body, end) = connection.rest().await;
        Some(Answer { head, body, end })
    }

    /// Sends a request without waiting for its answer. Several in a row are pipelined.
    pub(crate) async fn send(&mut self, request: &Request) {
        let bytes = request.to_bytes(self.stream.peer_addr().unwrap());
        self.send_raw(&bytes).await;
        self.asked.push_back(request.method == "HEAD");
    }

    /// Sends bytes as they are.
    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) {
        within("send a request", self.stream.write_all(bytes)).await.unwrap();
    }

    /// Sends a request and reads its answer to the end.
    pub(crate) async fn exchange(&mut self, request: &Request) -> Answer {
        self.send(request).await;
        self.answer().await
    }

    /// Reads the next answer to its end.
    pub(crate) async fn answer(&mut self) -> Answer {
        let head = self.head().await;
        let (body, end) = self.rest().await;
        Answer { head, body, end }
    }

    /// Reads the head of the next answer.
    pub(crate) async fn head(&mut self) -> Head {
        let head = self.try_head().await;
        head.unwrap_or_else(|| panic!("the connection ended before a head: {:?}", self.buffer))
    }

    /// Reads the head of the next answer; `None` when the connection ends instead.
    pub(crate) async fn try_head(&mut self) -> Option<Head> {
        loop {
            let text = self.until(b"\r\n\r\n").await?;
            let head = parse_head(&text);
            if head.status >= 200 {
                self.body = head.framing(self.asked.pop_front().unwrap_or(false));
                return Some(head);
            }
        }
    }

    /// Reads the rest of the body under way.
    pub(crate) async fn rest(&mut self) -> (Bytes, End) {
        let mut body = BytesMut::new();
        loop {
            match self.some(usize::MAX).await {
                Ok(piece) => body.extend_from_slice(&piece),
                Err(end) => return (body.freeze(), end),
            }
        }
    }

    /// Reads exactly `count` bytes of the body under way.
    pub(crate) async fn take(&mut self, count: usize) -> Bytes {
        let mut body = BytesMut::new();
        while body.len() < count {
            match self.some(count - body.len()).await {
                Ok(piece) => body.extend_from_slice(&piece),
                Err(end) => panic!("the body ended ({end:?}) after {} of {count} bytes", body.len()),
            }
        }
        body.freeze()
    }

    /// Reads `count` bytes of the body, at most `bytes` of them `every` so often.
    pub(crate) async fn take_slowly(&mut self, count: usize, bytes: usize, every: Duration) -> Bytes {
        let mut body = BytesMut::new();
        let mut ticks = tokio::time::interval(every);
        while body.len() < count {
            ticks.tick().await;
            body.extend_from_slice(&self.take(bytes.min(count - body.len())).await);
        }
        body.freeze()
    }

    /// Waits until the peer has closed, and says how.
    pub(crate) async fn closed(&mut self) -> End {
        while self.fill().await.is_ok_and(|count| count > 0) {}
        match self.fill().await {
            Ok(_) => End::Short,
            Err(_) => End::Reset,
        }
    }

    /// Some bytes of the body, at most `max`; or how it ended.
    async fn some(&mut self, max: usize) -> Result<Bytes, End> {
        loop {
            let available = match self.body {
                Framing::Ended(end) => return Err(end),
                Framing::Length(0) => {
                    self.body = Framing::Ended(End::Complete);
                    continue;
                }
                Framing::Chunked(0) => {
                    self.next_chunk().await;
                    continue;
                }
                Framing::Length(left) | Framing::Chunked(left) => usize::try_from(left).unwrap(),
                Framing::UntilClosed => usize::MAX,
            };
            if self.buffer.is_empty() {
                match self.fill().await {
                    Ok(0) if self.body == Framing::UntilClosed => self.body = Framing::Ended(End::Closed),
                    Ok(0) => self.body = Framing::Ended(End::Short),
                    Ok(_) => {}
                    Err(_) => self.body = Framing::Ended(End::Reset),
                }
                continue;
            }
            let piece = self.buffer.split_to(available.min(max).min(self.buffer.len())).freeze();
            match &mut self.body {
                Framing::Length(left) => *left -= piece.len() as u64,
                Framing::Chunked(left) => {
                    *left -= piece.len() as u64;
                    if *left == 0 {
                        self.until(b"\r\n").await;
                    }
                }
                Framing::UntilClosed | Framing::Ended(_) => {}
            }
            return Ok(piece);
        }
    }

    async fn next_chunk(&mut self) {
        let Some(line) = self.until(b"\r\n").await else {
            self.body = Framing::Ended(End::Short);
            return;
        };
        let size = u64::from_str_radix(line.split(';').next().unwrap().trim(), 16).expect("a chunk size");
        self.body = if size == 0 {
            self.until(b"\r\n").await;
            Framing::Ended(End::Complete)
        } else {
            Framing::Chunked(size)
        };
    }

    /// Reads up to and including `mark`; `None` when the connection ends before.
    async fn until(&mut self, mark: &[u8]) -> Option<String> {
        loop {
            if let Some(at) = self.buffer.windows(mark.len()).position(|window| window == mark) {
                let bytes = self.buffer.split_to(at + mark.len());
                return Some(String::from_utf8_lossy(&bytes).into_owned());
            }
            if self.fill().await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(64 * 1024);
        within("bytes from the peer", self.stream.read_buf(&mut self.buffer)).await
    }
}

fn parse_head(text: &str) -> Head {
    let mut lines = text.trim_end().split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
    let headers = lines
        .map(|line| line.split_once(':').unwrap_or_else(|| panic!("not a header: {line:?}")))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    Head { status: status.unwrap_or_else(|| panic!("not a status line: {first:?}")), headers }
}
