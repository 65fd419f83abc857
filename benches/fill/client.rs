//! A client over a bare socket that can throw bodies away in the kernel, so that its own work is not what is measured.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;

/// A connection, and what is left of the body under way.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    /// Bytes of the body that came along with its head.
    early: Vec<u8>,
    left: u64,
    scrap: Vec<u8>,
}

/// What a head says.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) length: u64,
}

/// How a download went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Download {
    /// From before the connection was opened to the first byte of the body.
    pub(crate) first_byte: Duration,
    /// To the last byte.
    pub(crate) total: Duration,
    pub(crate) bytes: u64,
}

/// The longest head that is read.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// How much is thrown away at a time.
const SCRAP_BYTES: usize = 1024 * 1024;

/// No server that is measured here is silent for longer.
const PATIENCE: Duration = Duration::from_mins(2);

// === impl Connection ===

impl Connection {
    pub(crate) fn open(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, early: Vec::new(), left: 0, scrap: Vec::new() })
    }

    /// Sends a GET and reads the head of its answer. `range` is what follows `bytes=`.
    pub(crate) fn ask(&mut self, path: &str, range: Option<&str>) -> io::Result<Head> {
        let range = range.map(|range| format!("Range: bytes={range}\r\n")).unwrap_or_default();
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\n{range}\r\n");
        self.stream.write_all(request.as_bytes())?;
        let mut head = Vec::new();
        loop {
            if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                self.early = head.split_off(end + 4);
                let head = parse(&String::from_utf8_lossy(&head))?;
                self.left = head.length;
                return Ok(head);
            }
            if head.len() > HEAD_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut buffer = [0; 4096];
            let count = self.stream.read(&mut buffer)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            head.extend_from_slice(&buffer[..count]);
        }
    }

    /// Throws up to so many bytes of the body away, without copying them. Fails where the body ends short.
    pub(crate) fn discard(&mut self, bytes: u64) -> io::Result<u64> {
        let wanted = bytes.min(self.left);
        let early = self.early.len().min(usize::try_from(wanted).unwrap_or(usize::MAX));
        self.early.drain(..early);
        let mut done = early as u64;
        self.scrap.resize(SCRAP_BYTES, 0);
        while done < wanted {
            let most = self.scrap.len().min(usize::try_from(wanted - done).unwrap_or(usize::MAX));
            let (_, count) = rustix::net::recv(&self.stream, &mut self.scrap[..most], RecvFlags::TRUNC)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done += count as u64;
        }
        self.left -= done;
        Ok(done)
    }

    /// Reads up to so many bytes of the body. Fewer come where the body ends.
    pub(crate) fn read(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        let wanted = bytes.min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut read = self.early.drain(..self.early.len().min(wanted)).collect::<Vec<_>>();
        let early = read.len();
        read.resize(wanted, 0);
        self.stream.read_exact(&mut read[early..])?;
        self.left -= wanted as u64;
        Ok(read)
    }
}

/// Asks for something over a connection of its own and throws it away.
pub(crate) fn download(addr: SocketAddr, path: &str, range: Option<&str>) -> io::Result<Download> {
    let began = Instant::now();
    let mut connection = Connection::open(addr)?;
    let head = connection.ask(path, range)?;
    let expected = if range.is_some() { 206 } else { 200 };
    if head.status != expected {
        return Err(io::Error::other(format!("status {} for {path}", head.status)));
    }
    connection.discard(1)?;
    let first_byte = began.elapsed();
    connection.discard(u64::MAX)?;
    Ok(Download { first_byte, total: began.elapsed(), bytes: head.length })
}

fn parse(head: &str) -> io::Result<Head> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, format!("not a head that is understood: {head:?}"));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).ok_or_else(invalid)?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or_else(invalid)?;
    Ok(Head { status, length })
}
