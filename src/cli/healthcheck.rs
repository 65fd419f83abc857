//! `cachalot healthcheck`: asks a running server whether it's ready, for containers that have no other tool.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use super::{Settings, fail, fail_config};

/// Arguments of `healthcheck`.
#[derive(Debug, clap::Args)]
pub(super) struct Healthcheck {
    /// Address or name of the admin listener; by default the address in the configuration
    #[arg(long, value_name = "ADDRESS:PORT")]
    address: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

/// How long connecting to each address of a name, sending and each read may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The most that is read of an answer.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;

/// Asks, and maps the answer to an exit code: 0 when the server can serve clients, 1 when not.
pub(super) fn run(healthcheck: &Healthcheck) -> ExitCode {
    let address = match &healthcheck.address {
        Some(address) => address.clone(),
        None => match healthcheck.settings.load() {
            Ok(config) => match config.admin.listen.first() {
                Some(address) => super::serve::reachable(*address).to_string(),
                None => return fail("the admin listener is off, so there is nobody to ask"),
            },
            Err(errors) => return fail_config(&errors),
        },
    };
    match ask(&address) {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => ExitCode::SUCCESS,
        Ok(answer) => {
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body.trim());
            fail(&format!("{address} is not ready: {body}"))
        }
        Err(error) => fail(&format!("{address} does not answer: {error}")),
    }
}

/// Asks at an address, or at a name: each of its addresses is tried.
fn ask(address: &str) -> io::Result<String> {
    let mut stream = connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let nothing = io::Error::new(io::ErrorKind::NotFound, "this name has no address");
    let mut connected = Err(nothing);
    for address in address.to_socket_addrs()? {
        connected = TcpStream::connect_timeout(&address, TIMEOUT);
        if connected.is_ok() {
            break;
        }
    }
    connected
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_server_is_found_by_name_too() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        connect(&format!("localhost:{port}")).unwrap();
        connect(&format!("127.0.0.1:{port}")).unwrap();
        assert!(connect("localhost").is_err(), "no port");
    }
}
