//! `cachalot healthcheck`: asks a running server whether it's ready, for containers that have no other tool.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use super::{Settings, fail, fail_config};

/// Arguments of `healthcheck`.
#[derive(Debug, clap::Args)]
pub(super) struct Healthcheck {
    /// Address of the admin listener; by default the one in the configuration
    #[arg(long, value_name = "ADDRESS:PORT")]
    address: Option<SocketAddr>,
    #[command(flatten)]
    settings: Settings,
}

/// How long connecting, sending and each read may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The most that is read of an answer.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;

/// Asks, and maps the answer to an exit code: 0 when the server can serve clients, 1 when not.
pub(super) fn run(healthcheck: &Healthcheck) -> ExitCode {
    let address = match healthcheck.address {
        Some(address) => address,
        None => match healthcheck.settings.load() {
            Ok(config) => match config.admin.listen.first() {
                Some(address) => super::serve::reachable(*address),
                None => return fail("the admin listener is off, so there is nobody to ask"),
            },
            Err(errors) => return fail_config(&errors),
        },
    };
    match ask(address) {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => ExitCode::SUCCESS,
        Ok(answer) => {
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body.trim());
            fail(&format!("{address} is not ready: {body}"))
        }
        Err(error) => fail(&format!("{address} does not answer: {error}")),
    }
}

fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
