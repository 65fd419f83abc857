//! One file per command, and the arguments that they share.

mod ask;
pub mod check_config;
mod completions;
pub mod demo;
pub mod doctor;
mod doctor_node;
mod export;
mod have;
pub mod healthcheck;
mod hosts;
mod images;
mod import;
mod node;
mod pin;
mod seed;
mod seed_report;
pub mod serve;
mod store;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};

use crate::app::ConfigSource;
use crate::config::{Config, ConfigErrors, EXIT_CONFIG, Env as _, Flags, ProcessEnv};

/// A pull-through caching OCI registry mirror that verifies every byte
#[derive(Debug, Parser)]
#[command(name = "cachalot", version = crate::VERSION, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the mirror
    Serve(Settings),
    /// Show what the mirror does, with a sample upstream on this machine
    Demo(demo::Demo),
    /// Print the configuration that would be used, or everything that is wrong with it
    CheckConfig(Settings),
    /// Walk to a real upstream as the mirror would, or look at a node, and say what works and what does not
    Doctor(doctor::Doctor),
    /// Print or write what brings a client to the mirror: containerd, Docker, podman, k3s, Talos and others
    Hosts(hosts::Hosts),
    /// Configure the machine that this runs on, as the chart's DaemonSets do
    Node(node::Node),
    /// Ask a running server whether it's ready; exit code 0 if it is
    Healthcheck(healthcheck::Healthcheck),
    /// Hash again all that is held; exit code 0 if everything is right
    Verify(verify::Verify),
    /// Fetch images ahead of time
    Seed(seed::Seed),
    /// Tell whether images are held to the last byte; exit code 0 if they are
    Have(have::Have),
    /// List the images that are held
    Images(images::Images),
    /// Remove images, and free what only they used
    Rm(images::Rm),
    /// Promise that images stay, whatever else finds no room
    Pin(pin::PinArgs),
    /// Take such a promise back
    Unpin(pin::UnpinArgs),
    /// Write held images into a bundle, to be carried past the network
    Export(export::Export),
    /// Take a bundle in
    Import(import::Import),
    /// Print what lets a shell complete this command line
    Completions(completions::Completions),
}

/// Where the configuration comes from, and what overrides it.
#[derive(Clone, Debug, Default, Args)]
struct Settings {
    /// Configuration file (TOML); also `CACHALOT_CONFIG`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address to serve clients on; may be repeated
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<String>,
    /// Address for health and metrics; may be repeated
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin_listen: Vec<String>,
    /// Data directory
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// How much the data directory may hold, such as 50GiB or 80%
    #[arg(long, value_name = "SIZE")]
    capacity: Option<String>,
    /// Serve what is held and never ask an upstream
    #[arg(long)]
    offline: bool,
    /// Log level, such as info or cachalot=debug
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// Log format: text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

/// A command failed, and has said why.
const EXIT_FAILURE: u8 = 1;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(settings) => serve::run(&settings),
        Command::Demo(demo) => demo::main(&demo),
        Command::CheckConfig(settings) => check_config::main(&settings),
        Command::Doctor(doctor) => doctor::main(&doctor),
        Command::Hosts(args) => hosts::run(&args),
        Command::Node(node) => node::run(&node),
        Command::Healthcheck(healthcheck) => healthcheck::run(&healthcheck),
        Command::Verify(verify) => verify::run(&verify),
        Command::Seed(args) => seed::run(&args),
        Command::Have(args) => have::run(&args),
        Command::Images(images) => images::list(&images),
        Command::Rm(rm) => images::remove(&rm),
        Command::Pin(args) => pin::pin(&args),
        Command::Unpin(args) => pin::unpin(&args),
        Command::Export(args) => export::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Completions(args) => completions::run(&args),
    }
}

/// Runs a command that waits, on a runtime of its own. Runtimes fail to start only when the system is out of threads.
fn block_on(command: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => fail(&format!("could not start the runtime: {error}")),
    }
}

#[expect(clippy::print_stderr, reason = "this is where commands talk to the person who typed them")]
fn fail(message: &str) -> ExitCode {
    eprintln!("cachalot: {message}");
    ExitCode::from(EXIT_FAILURE)
}

#[expect(clippy::print_stderr, reason = "this is where commands talk to the person who typed them")]
fn fail_config(errors: &ConfigErrors) -> ExitCode {
    eprintln!("{errors}");
    ExitCode::from(EXIT_CONFIG)
}

// === impl Settings ===

impl Settings {
    fn flags(&self) -> Flags {
        Flags {
            listen: self.listen.clone(),
            admin_listen: self.admin_listen.clone(),
            data: self.data.clone(),
            capacity: self.capacity.clone(),
            offline: self.offline,
            log: self.log.clone(),
            log_format: self.log_format.clone(),
        }
    }

    /// The same again, whenever it is asked for.
    fn source(&self) -> ConfigSource {
        let file = self.config.clone().or_else(|| ProcessEnv.get("CACHALOT_CONFIG").map(PathBuf::from));
        let (flags, path) = (self.flags(), self.config.clone());
        ConfigSource {
            load: Arc::new(move || crate::config::load(path.as_deref(), &ProcessEnv, &flags)),
            file,
            watch: true,
        }
    }

    fn load(&self) -> Result<Config, ConfigErrors> {
        crate::config::load(self.config.as_deref(), &ProcessEnv, &self.flags())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
