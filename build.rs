//! What `--version` says: the commit and what it was built for.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    let variable = |name: &str| env::var(name).unwrap_or_default();
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CACHALOT_COMMIT");
    let (version, profile) = (variable("CARGO_PKG_VERSION"), variable("PROFILE"));
    // Where there is no repository, as in a container's build, it is told. Builds for development don't ask: each commit
    // would build them anew.
    let told = variable("CACHALOT_COMMIT");
    let mut commit = told.trim();
    let asked;
    if commit.is_empty() && profile == "release" && Path::new(".git").exists() {
        for changed in [".git/HEAD", ".git/refs/heads"].iter().filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={changed}");
        }
        let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok();
        asked = output.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
        commit = asked.trim();
    }
    let commit = if commit.is_empty() { "unknown commit" } else { commit };
    println!("cargo::rustc-env=CACHALOT_VERSION={version} ({commit}, {}, {profile})", variable("TARGET"));
}
