//! One HTTP/1.1 request at a time over a plain socket: enough to ask a server whether it is there, and to push by hand.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// An answer, read to its end.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    head: String,
}

// === impl Answer ===

impl Answer {
    /// The value of a header, whatever the case of its name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// Sends one request to `port` on loopback. `headers` are whole lines, each ended by CRLF.
pub(crate) fn request(method: &str, port: u16, target: &str, headers: &str, body: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    let length = body.len();
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\
         Content-Length: {length}\r\n{headers}\r\n"
    )?;
    stream.write_all(body)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let answer = Answer { status, body: bytes[end + 4..].to_vec(), head };
    let promised = answer.header("content-length").and_then(|value| value.parse().ok());
    if promised.is_some_and(|bytes: usize| bytes != answer.body.len()) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
}

/// Whether a registry on `port` answers its ping, be it that it wants to know who asks.
pub(crate) fn is_registry(port: u16) -> bool {
    request("GET", port, "/v2/", "", b"").is_ok_and(|answer| matches!(answer.status, 200 | 401))
}
