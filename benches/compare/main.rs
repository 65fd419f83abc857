//! Cachalot beside nginx and docker-registry: the same files, the same client, one run, in turns.
//!
//! `cargo bench --bench compare`, or with `-- --short` for a look, or with names of workloads for a few of them. Prints a
//! table of medians and of ratios, which are what travels from machine to machine; `--svg FILE` draws a picture.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the report is what this is for")]
#![expect(clippy::cast_precision_loss, reason = "no figure here needs more than fifty bits")]

mod claims;
mod client;
mod content;
mod report;
mod servers;
mod tls;
mod upstream;
mod workloads;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use workloads::{Scale, World};

/// What to run.
struct Options {
    scale: Scale,
    /// All if empty.
    names: Vec<String>,
    svg: Option<PathBuf>,
}

/// Every workload there is; what is claimed of Cachalot alone comes last.
fn all() -> impl Iterator<Item = (&'static str, workloads::Workload)> {
    workloads::ALL.into_iter().chain(claims::ALL)
}

fn options() -> Result<Options, String> {
    let mut options = Options { scale: Scale::FULL, names: Vec::new(), svg: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // From `cargo bench`.
            "--bench" => {}
            "--short" => options.scale = Scale::SHORT,
            "--svg" => options.svg = Some(args.next().ok_or("--svg needs a file name")?.into()),
            name if all().any(|(known, _)| known == name) => options.names.push(arg),
            _ => {
                let names: Vec<_> = all().map(|(name, _)| name).collect();
                return Err(format!("{arg} is none of --short, --svg FILE, {}", names.join(", ")));
            }
        }
    }
    Ok(options)
}

fn run(options: &Options) -> io::Result<()> {
    let mut world = World::new(options.scale)?;
    let mut rows = Vec::new();
    for (name, workload) in all() {
        let by_default = workloads::ALL.iter().any(|(known, _)| *known == name);
        if options.names.iter().any(|wanted| wanted == name) || (by_default && options.names.is_empty()) {
            eprintln!("{name} …");
            rows.extend(workload(&mut world)?);
        }
    }
    let caption = machine();
    println!("{}\n{caption}", report::table(&rows));
    if let Some(path) = &options.svg {
        std::fs::write(path, report::picture(&rows, &caption))?;
    }
    Ok(())
}

/// The machine and its system, in a line.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned()));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{cores} cores ({}), Linux {}, loopback",
        cpu.unwrap_or_else(|| "?".to_owned()),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(64);
        }
    };
    let missing = servers::missing();
    if !missing.is_empty() {
        eprintln!("{}", missing.join("\n"));
        return ExitCode::FAILURE;
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
