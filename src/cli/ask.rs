//! One question over a plain connection, for commands that need no more of HTTP.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::nodes::MirrorUrl;
use crate::upstream;

/// The most that is read of an answer.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// What was said to a question.
pub(super) struct Answer {
    /// The status line.
    pub(super) line: String,
    /// What comes after the head.
    pub(super) body: String,
}

/// Asks for a path over a connection, and reads the answer as far as it is short. By HTTP/1.0, whose bodies are as they are.
/// `head` is further lines for the question, each with its end.
pub(super) fn exchange(address: &str, path: &str, head: &str, mut stream: impl Read + Write) -> io::Result<Answer> {
    // In one piece: who has read a part of it may answer and hang up.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n{head}\r\n").as_bytes())?;
    stream.flush()?;
    let mut answer = Vec::new();
    match stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer) {
        // The connection's end need not be announced.
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof || answer.is_empty() => Err(error),
        _ => {
            let text = String::from_utf8_lossy(&answer);
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
            let line = head.lines().next().unwrap_or_default();
            Ok(Answer { line: line.to_owned(), body: body.to_owned() })
        }
    }
}

/// TLS over a connection to `address`, a host and a port.
pub(super) fn secured(
    address: &str,
    settings: ClientConfig,
    stream: TcpStream,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(io::Error::other)?;
    let session = ClientConnection::new(Arc::new(settings), name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(session, stream))
}

/// Asks for something there. Returns how long it took to dial, and the answer. Whose certificate it shows doesn't matter: clients
/// look at that, each by its own rules, and nothing is told.
pub(super) fn get(from: &MirrorUrl, path: &str, patience: Duration) -> io::Result<(Duration, Answer)> {
    let place = if from.name.contains(':') {
        format!("[{}]:{}", from.name, from.port)
    } else {
        format!("{}:{}", from.name, from.port)
    };
    let begun = Instant::now();
    let stream = connect(&place, patience)?;
    let dialled = begun.elapsed();
    let answer = if from.is_plain {
        exchange(&from.host, path, "", stream)
    } else {
        let settings = upstream::tls_settings_for_anyone().map_err(io::Error::other)?;
        exchange(&from.host, path, "", secured(&place, settings, stream)?)
    };
    answer.map(|answer| (dialled, answer))
}

/// Asks a mirror whether it is one. Returns how long it took to dial.
pub(super) fn ask_mirror(mirror: &MirrorUrl, patience: Duration) -> Result<Duration, String> {
    let (dialled, answer) = get(mirror, "/v2/", patience).map_err(|error| error.to_string())?;
    // A mirror with [access] asks who it is, which is an answer too.
    if [Some(200), Some(401)].contains(&answer.status()) {
        Ok(dialled)
    } else {
        Err(format!("it says {:?} to /v2/, which no registry does", answer.line))
    }
}

/// Connects to an address, or to a name: each of its addresses is tried. Each may take so long, and so may each read and write
/// afterwards.
pub(super) fn connect(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let nothing = io::Error::new(io::ErrorKind::NotFound, "this name has no address");
    let mut connected = Err(nothing);
    for address in address.to_socket_addrs()? {
        connected = TcpStream::connect_timeout(&address, timeout);
        if connected.is_ok() {
            break;
        }
    }
    let stream = connected?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    Ok(stream)
}

// === impl Answer ===

impl Answer {
    /// The status, if this is HTTP.
    pub(super) fn status(&self) -> Option<u16> {
        self.line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);

    #[test]
    fn a_server_is_found_by_name_too() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        connect(&format!("localhost:{port}"), PATIENCE).unwrap();
        connect(&format!("127.0.0.1:{port}"), PATIENCE).unwrap();
        assert!(connect("localhost", PATIENCE).is_err(), "no port");
    }
}
