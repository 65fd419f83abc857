//! Answers, and all the ways in which they can go wrong on their way out.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Interval;

use super::gate::Gate;
use super::record::Seen;
use super::script::Fault;

/// An answer as it will go out.
#[derive(Debug)]
pub(super) struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
    to_head: bool,
    length: Length,
    head_gates: Vec<Gate>,
    stalls: Vec<(u64, Gate)>,
    end: End,
    bytes_per_tick: Option<usize>,
}

/// What a request is to be answered with, before anything goes wrong.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    /// The whole content; a 206 sends `range` of it.
    pub(super) content: Bytes,
    /// The inclusive range that was asked for and can be had.
    pub(super) range: Option<(usize, usize)>,
}

/// What becomes of the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    KeepOpen,
    Close,
}

#[derive(Debug, PartialEq, Eq)]
enum Length {
    True,
    Said(u64),
    Unsaid,
    Chunked,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Whole,
    Cut(u64),
    Reset(u64),
    HangUp,
}

/// How often a limited answer sends a piece.
const TICK: Duration = Duration::from_millis(10);

/// The largest piece handed to the kernel at once, so that what was written is known to about as much.
const PIECE_BYTES: usize = 64 * 1024;

// === impl Reply ===

impl Reply {
    pub(super) fn new(status: u16, media_type: &str, content: impl Into<Bytes>) -> Self {
        let headers = vec![("Content-Type", media_type.to_owned())];
        Self { status, headers, content: content.into(), range: None }
    }

    /// An error as registries write it.
    pub(super) fn error(status: u16, code: &str, message: &str) -> Self {
        let body = serde_json::json!({ "errors": [{ "code": code, "message": message, "detail": null }] });
        Self::new(status, "application/json; charset=utf-8", body.to_string())
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

// === impl Answer ===

impl Answer {
    /// The answer that `reply` becomes after `faults`.
    pub(super) fn new(mut reply: Reply, to_head: bool, rate: Option<u64>, faults: &[Fault]) -> Self {
        for fault in faults {
            spoil(&mut reply, fault);
        }
        let mut body = reply.content.clone();
        if let Some((first, last)) = reply.range {
            reply.status = 206;
            reply.headers.push(("Content-Range", format!("bytes {first}-{last}/{}", body.len())));
            body = body.slice(first..=last);
        }
        let mut answer = Self {
            status: reply.status,
            headers: reply.headers,
            body,
            to_head,
            length: Length::True,
            head_gates: Vec::new(),
            stalls: Vec::new(),
            end: End::Whole,
            bytes_per_tick: rate.map(|rate| usize::try_from(rate / 100).unwrap().max(1)),
        };
        for fault in faults {
            answer.suffer(fault);
        }
        answer.stalls.sort_by_key(|(after, _)| *after);
        answer
    }

    /// What befalls the body as sent, and the way it is sent.
    fn suffer(&mut self, fault: &Fault) {
        match fault {
            Fault::Cut(after) => self.end = End::Cut(*after),
            Fault::Reset(after) => self.end = End::Reset(*after),
            Fault::HangUp => self.end = End::HangUp,
            Fault::Stall(after, gate) => self.stalls.push((*after, gate.clone())),
            Fault::SlowHead(gate) => self.head_gates.push(gate.clone()),
            Fault::Drip(bytes) => self.bytes_per_tick = Some(*bytes),
            Fault::ContentLength(said) => self.length = Length::Said(*said),
            Fault::NoLength => self.length = Length::Unsaid,
            Fault::Chunked => self.length = Length::Chunked,
            Fault::Overlong(extra) => {
                self.body = [self.body.as_ref(), &vec![b'x'; *extra]].concat().into();
            }
            Fault::Without(name) if name.eq_ignore_ascii_case("content-length") => self.length = Length::Unsaid,
            Fault::Without(name) => self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name)),
            Fault::With(name, value) => {
                self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
                self.headers.push((name, value.clone()));
            }
            Fault::Corrupt(_)
            | Fault::Body(_)
            | Fault::IgnoreRange
            | Fault::Html
            | Fault::Gzip
            | Fault::Status(..)
            | Fault::ForeignStatus(_) => {}
        }
    }

    /// Sends the answer, and says what becomes of the connection.
    pub(super) async fn send(self, stream: &mut TcpStream, seen: &Seen) -> io::Result<Next> {
        for gate in &self.head_gates {
            gate.pass().await;
        }
        if self.end == End::HangUp {
            return Ok(Next::Close);
        }
        stream.write_all(self.head().as_bytes()).await?;
        if self.to_head {
            seen.finish();
            return Ok(Next::KeepOpen);
        }
        let mut ticks = tokio::time::interval(TICK);
        let mut at = 0;
        for (after, gate) in &self.stalls {
            let stop = usize::try_from(*after).unwrap().min(self.body.len()).max(at);
            if self.last_byte().is_some_and(|last| last < stop) {
                break;
            }
            self.write(stream, seen, at..stop, &mut ticks).await?;
            at = stop;
            gate.pass().await;
        }
        let last = self.last_byte().unwrap_or(self.body.len()).max(at);
        self.write(stream, seen, at..last, &mut ticks).await?;
        if self.length == Length::Chunked && self.end == End::Whole {
            stream.write_all(b"0\r\n\r\n").await?;
        }
        seen.finish();
        match self.end {
            End::Whole if matches!(self.length, Length::True | Length::Chunked) => return Ok(Next::KeepOpen),
            End::Reset(_) => socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO))?,
            End::Whole | End::Cut(_) | End::HangUp => stream.shutdown().await?,
        }
        Ok(Next::Close)
    }

    /// Where the body is to end before its time.
    fn last_byte(&self) -> Option<usize> {
        match self.end {
            End::Cut(after) | End::Reset(after) => Some(usize::try_from(after).unwrap().min(self.body.len())),
            End::Whole | End::HangUp => None,
        }
    }

    async fn write(
        &self,
        stream: &mut TcpStream,
        seen: &Seen,
        range: std::ops::Range<usize>,
        ticks: &mut Interval,
    ) -> io::Result<()> {
        for piece in self.body[range].chunks(self.bytes_per_tick.unwrap_or(PIECE_BYTES)) {
            if self.bytes_per_tick.is_some() {
                ticks.tick().await;
            }
            if self.length == Length::Chunked {
                stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
            }
            stream.write_all(piece).await?;
            if self.length == Length::Chunked {
                stream.write_all(b"\r\n").await?;
            }
            seen.wrote(piece.len());
        }
        Ok(())
    }

    fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} As-Scripted\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match self.length {
            Length::True => head.push_str(&format!("Content-Length: {}\r\n", self.body.len())),
            Length::Said(said) => head.push_str(&format!("Content-Length: {said}\r\nConnection: close\r\n")),
            Length::Unsaid => head.push_str("Connection: close\r\n"),
            Length::Chunked => head.push_str("Transfer-Encoding: chunked\r\n"),
        }
        head.push_str("\r\n");
        head
    }
}

/// What befalls the content before a range of it is taken.
fn spoil(reply: &mut Reply, fault: &Fault) {
    match fault {
        Fault::Corrupt(at) if reply.status == 200 => {
            let mut bytes = reply.content.to_vec();
            bytes[usize::try_from(*at).unwrap()] ^= 0xff;
            reply.content = bytes.into();
        }
        Fault::Body(bytes) => reply.content = Bytes::from_static(bytes),
        Fault::IgnoreRange => reply.range = None,
        Fault::Html => *reply = Reply::new(200, "text/html; charset=utf-8", "<!doctype html><title>Log in</title>"),
        Fault::Gzip => {
            reply.range = None;
            reply.content = gzip(&reply.content).into();
            reply.headers.push(("Content-Encoding", "gzip".to_owned()));
        }
        Fault::Status(status, headers) => {
            let code = match status {
                401 => "UNAUTHORIZED",
                403 => "DENIED",
                404 => "MANIFEST_UNKNOWN",
                429 => "TOOMANYREQUESTS",
                _ => "UNKNOWN",
            };
            *reply = Reply::error(*status, code, "as scripted");
            reply.headers.extend(headers.iter().cloned());
        }
        Fault::ForeignStatus(status) => *reply = Reply::new(*status, "text/html", "<h1>as scripted</h1>"),
        _ => {}
    }
}

/// `bytes` in gzip's format, stored without compression.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut blocks = bytes.chunks(0xffff).peekable();
    while let Some(block) = blocks.next() {
        let len = u16::try_from(block.len()).unwrap();
        out.push(u8::from(blocks.peek().is_none()));
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&(!len).to_le_bytes());
        out.extend_from_slice(block);
    }
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    out.extend_from_slice(&(!crc).to_le_bytes());
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_le_bytes());
    out
}
