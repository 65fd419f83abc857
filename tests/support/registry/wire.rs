//! Reading requests off the wire.

use std::io;

use bytes::BytesMut;
use percent_encoding::percent_decode_str;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// A request.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) method: String,
    /// As it came.
    pub(super) target: String,
    /// Decoded, without the query.
    pub(super) path: String,
    /// Decoded.
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: Vec<(String, String)>,
    /// As it came, for the few requests that have one.
    pub(super) body: Vec<u8>,
}

/// Reads the next request; `None` when the client has closed.
pub(super) async fn receive(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<Option<Received>> {
    let head = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break buffer.split_to(at + 4);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let mut request = parse(&String::from_utf8_lossy(&head));
    let mut left = request.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0usize);
    while left > 0 {
        if buffer.is_empty() && stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
        let skipped = left.min(buffer.len());
        request.body.extend_from_slice(&buffer.split_to(skipped));
        left -= skipped;
    }
    Ok(Some(request))
}

fn parse(head: &str) -> Received {
    let mut lines = head.trim_end().split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default().to_owned();
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect();
    Received { path: decode(path), query, method, headers, target, body: Vec::new() }
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

// === impl Received ===

impl Received {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// A field of a form that was sent.
    pub(super) fn field(&self, name: &str) -> Option<String> {
        let body = String::from_utf8_lossy(&self.body).replace('+', " ");
        body.split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(n, _)| *n == name)
            .map(|(_, value)| decode(value))
    }

    pub(super) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}
