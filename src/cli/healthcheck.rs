//! `cachalot healthcheck`: asks a running server whether it's ready, for containers that have no other tool.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use super::ask::{Answer, connect, exchange, secured};
use super::{Settings, fail, fail_config};
use crate::server::listen;
use crate::upstream;

/// Arguments of `healthcheck`.
#[derive(Debug, clap::Args)]
pub(super) struct Healthcheck {
    /// Address or name of the admin listener, with https:// before it if it speaks TLS; by default as in the configuration
    #[arg(long, value_name = "ADDRESS:PORT")]
    address: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

/// The listener to ask.
struct Target {
    /// Host and port.
    address: String,
    tls: bool,
}

/// How long connecting to each address of a name, sending and each read may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// What is asked.
const PATH: &str = "/readyz";

/// Asks, and maps the answer to an exit code: 0 when the server can serve clients, 1 when not.
pub(super) fn run(healthcheck: &Healthcheck) -> ExitCode {
    let target = match &healthcheck.address {
        Some(address) => Target::of(address),
        None => match healthcheck.settings.load() {
            Ok(config) => match config.admin.listen.first() {
                Some(address) => {
                    let address = listen::reachable(*address).to_string();
                    Target { address, tls: !config.admin.tls.is_empty() }
                }
                None => return fail("the admin listener is off, so there is nobody to ask"),
            },
            Err(errors) => return fail_config(&errors),
        },
    };
    let address = &target.address;
    match target.ask() {
        Ok(answer) if answer.status() == Some(200) => ExitCode::SUCCESS,
        Ok(answer) => fail(&format!("{address} is not ready: {}", answer.body.trim())),
        Err(error) => fail(&format!("{address} does not answer: {error}")),
    }
}

// === impl Target ===

impl Target {
    fn of(text: &str) -> Self {
        let (address, tls) = match text.split_once("://") {
            Some((scheme, rest)) => (rest.trim_end_matches('/'), scheme.eq_ignore_ascii_case("https")),
            None => (text, false),
        };
        Self { address: address.to_owned(), tls }
    }

    /// Asks at an address, or at a name: each of its addresses is tried.
    fn ask(&self) -> io::Result<Answer> {
        let stream = connect(&self.address, TIMEOUT)?;
        if !self.tls {
            return exchange(&self.address, PATH, "", stream);
        }
        // It is asked how it is, and told nothing: whose certificate it shows doesn't matter.
        let settings = upstream::tls_settings_for_anyone().map_err(io::Error::other)?;
        exchange(&self.address, PATH, "", secured(&self.address, settings, stream)?)
    }
}
