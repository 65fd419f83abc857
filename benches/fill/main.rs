//! What fills must show, measured side by side in one run: `cargo bench --bench fill -- all`, or the names of some.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the report")]
#![expect(clippy::cast_precision_loss, reason = "for a report")]
#![expect(clippy::format_push_string, reason = "nothing here is in a hurry")]

mod broken;
mod client;
mod lazy;
mod mirror;
mod readers;
mod report;
mod source;
mod speed;
mod upstream;

use std::path::Path;
use std::process::ExitCode;

use report::Line;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One proof, and what it may use.
struct Proof<'a> {
    /// A folder for whatever it needs, which goes when it ends.
    work: &'a Path,
    /// How many pairs are measured where two things are compared.
    pairs: usize,
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Name, what it shows, and the proof.
type Named = (&'static str, &'static str, fn(&Proof<'_>) -> Result<Vec<Line>>);

const PROOFS: [Named; 9] = [
    ("limited", "a cold 1 GiB where upstream limits each connection (30 s a pair)", speed::limited),
    ("unlimited", "a cold 1 GiB from an unlimited upstream", speed::unlimited),
    ("first-byte", "the first byte of 50 cold blobs", speed::first_byte),
    ("cuts", "an upstream that cuts each connection after 10 MB", broken::cuts),
    ("kill", "kill -9 in the middle of a fill, and the same pull after the restart", broken::kill),
    ("ranges", "200 small ranges of a cold 2 GiB blob", lazy::ranges),
    ("probes", "500 probes of cold 1 GiB blobs", lazy::probes),
    ("random", "100 readers of random ranges over one cold blob", readers::random),
    ("thousand", "the memory of 1 000 readers of one fill", readers::thousand),
];

// === impl Proof ===

impl Proof<'_> {
    /// What was seen on the way.
    #[expect(clippy::unused_self, reason = "reads as what it is: a proof says something")]
    fn say(&self, text: &str) {
        println!("  {text}");
    }
}

fn main() -> ExitCode {
    let mut names = Vec::new();
    let mut pairs = 7;
    for argument in std::env::args().skip(1) {
        match argument.strip_prefix("--pairs=") {
            Some(number) => pairs = number.parse().unwrap_or(pairs),
            // Cargo's own.
            None if argument == "--bench" => {}
            None => names.push(argument),
        }
    }
    let all = names.iter().any(|name| name == "all");
    let chosen: Vec<_> = PROOFS.iter().filter(|(name, ..)| all || names.iter().any(|n| n == name)).collect();
    if chosen.is_empty() {
        println!("usage: cargo bench --bench fill -- [--pairs=7] all | NAME…");
        for (name, what, _) in PROOFS {
            println!("  {name:<12} {what}");
        }
        return ExitCode::SUCCESS;
    }
    let mut lines = Vec::new();
    let mut failed = false;
    for (name, what, proof) in chosen {
        println!("{name}: {what}");
        match run(*proof, pairs) {
            Ok(new) => lines.extend(new),
            Err(error) => {
                failed = true;
                eprintln!("  FAILED: {error}");
            }
        }
    }
    println!();
    for line in &lines {
        println!("{line}");
    }
    if failed || lines.iter().any(|line| !line.met) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn run(proof: fn(&Proof<'_>) -> Result<Vec<Line>>, pairs: usize) -> Result<Vec<Line>> {
    let work = tempfile::Builder::new().prefix("cachalot-fill-").tempdir()?;
    proof(&Proof { work: work.path(), pairs })
}

/// The path of a blob at the mirror.
fn blob_path(digest: &str) -> String {
    format!("/v2/docker.io/bench/app/blobs/{digest}")
}

/// The same at upstream.
fn upstream_path(digest: &str) -> String {
    format!("/v2/bench/app/blobs/{digest}")
}

/// A number that looks random, and is the same in every run.
fn noise_number(seed: u64) -> u64 {
    let mut word = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
