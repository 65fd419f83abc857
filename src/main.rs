//! The `cachalot` program: parse arguments, hand over to a command, map the outcome to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    cachalot::cli::main()
}
