//! `cachalot demo`: shows the mirror at work on this machine, with nothing else installed.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use crate::app;
use crate::config;
use crate::demo::{self, DemoError, Mirror};

use super::{block_on, fail};

/// Shows the mirror at work: an embedded sample registry, cold, concurrent and warm pulls, and their figures.
#[derive(Clone, Debug, clap::Args)]
pub struct Demo {
    /// End after the figures instead of staying up until Ctrl-C
    #[arg(long)]
    once: bool,
    /// How many clients pull the second image at once
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=200))]
    clients: u16,
}

// === impl Demo ===

impl Demo {
    /// Runs the demo. `start` starts a mirror from the text of a configuration file.
    ///
    /// Fails with a sentence when a pull fails, a byte is wrong, or upstream sent anything twice.
    pub async fn run(
        &self,
        start: impl AsyncFnOnce(String) -> Result<Mirror, Box<dyn Error + Send + Sync>>,
    ) -> Result<(), DemoError> {
        let options = demo::Options { once: self.once, clients: usize::from(self.clients), ..demo::Options::default() };
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let until = async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        };
        demo::run(&options, &mut io::stdout(), start, until).await
    }
}

/// Runs the demo with the real mirror and maps its end to an exit code.
pub(super) fn main(demo: &Demo) -> ExitCode {
    block_on(async {
        match demo.run(start).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.to_string()),
        }
    })
}

/// Starts the mirror as `serve` would with a file of this text, but with nothing from the environment.
async fn start(configuration: String) -> Result<Mirror, Box<dyn Error + Send + Sync>> {
    let config = config::load_text(&configuration)?;
    let running = app::start(&config).await?;
    let (Some(&listen), Some(&admin)) = (running.listen.first(), running.admin.first()) else {
        return Err("the mirror listens nowhere".into());
    };
    let stop = Box::pin(async move {
        running.stop().await;
    });
    Ok(Mirror { listen, admin, stop })
}
