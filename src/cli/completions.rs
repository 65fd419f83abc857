//! `cachalot completions`: what lets a shell complete this command line.

use std::io;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// The arguments of `completions`.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Which shell
    shell: Shell,
}

/// Runs the command.
pub(super) fn run(completions: &Completions) -> ExitCode {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(completions.shell, &mut command, name, &mut io::stdout());
    ExitCode::SUCCESS
}
