//! One question over a plain connection, for commands that need no more of HTTP.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// The most that is read of an answer.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;

/// Asks for a path over a connection, and reads the answer, head and all, as far as it is short.
pub(super) fn exchange(address: &str, path: &str, mut stream: impl Read + Write) -> io::Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    stream.flush()?;
    let mut answer = Vec::new();
    match stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer) {
        // The connection's end need not be announced.
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof || answer.is_empty() => Err(error),
        _ => Ok(String::from_utf8_lossy(&answer).into_owned()),
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
