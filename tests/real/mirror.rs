//! The program under test: the built `cachalot`, serving one upstream under the name docker.io.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::http;
use crate::image::{By, Image};
use crate::process::{Process, free_port, tool, wait_until};
use crate::upstream::Upstream;

/// A running mirror with a data folder of its own.
pub(crate) struct Mirror {
    pub(crate) port: u16,
    admin: u16,
    process: Process,
    folder: TempDir,
    storage: PathBuf,
    before: Vec<String>,
}

// === impl Mirror ===

impl Mirror {
    /// A mirror that holds nothing and asks upstream whether a tag has moved each time it is pulled.
    pub(crate) fn start(upstream: &Upstream) -> Mirror {
        Mirror::start_where(&upstream_section(upstream), &[])
    }

    /// The same over this folder, of which so much must stay free.
    pub(crate) fn start_on(upstream: &Upstream, storage: &Path, min_free: &str) -> Mirror {
        Mirror::build(&upstream_section(upstream), &[], Some(storage), min_free)
    }

    /// The same with upstreams as configured, and with this in front of the program: variables for its environment, or a
    /// program that starts it.
    pub(crate) fn start_where(upstreams: &str, before: &[&str]) -> Mirror {
        Mirror::build(upstreams, before, None, "1MiB")
    }

    fn build(upstreams: &str, before: &[&str], storage: Option<&Path>, min_free: &str) -> Mirror {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (port, admin) = (free_port(), free_port());
        let storage = storage.map_or_else(|| folder.path().join("data"), Path::to_owned);
        let config = format!(
            "[server]\nlisten = \"127.0.0.1:{port}\"\n\
             [admin]\nlisten = \"127.0.0.1:{admin}\"\n\
             [storage]\npath = \"{}\"\nmin_free = \"{min_free}\"\n\
             [tags]\nttl = \"0s\"\n{upstreams}",
            storage.display()
        );
        fs::write(folder.path().join("cachalot.toml"), config).expect("the configuration can be written");
        let before: Vec<String> = before.iter().map(|&word| word.to_owned()).collect();
        let process = serve(folder.path(), port, &before);
        Mirror { port, admin, process, folder, storage, before }
    }

    /// Kills the mirror with SIGKILL, at whatever it is doing.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts a killed mirror again over what it left on disk.
    pub(crate) fn restart(&mut self) {
        self.process = serve(self.folder.path(), self.port, &self.before);
    }

    /// `127.0.0.1:PORT/docker.io/library/x:1`: the image for a client that names the upstream in the path.
    pub(crate) fn path_name(&self, image: &Image, by: By) -> String {
        format!("127.0.0.1:{}/docker.io/{}", self.port, image.name(by))
    }

    /// A command on its store, while it doesn't run.
    pub(crate) fn command(&self, name: &str) -> Command {
        self.command_by(name, &[])
    }

    /// The same, started by something else.
    pub(crate) fn command_by(&self, name: &str, before: &[String]) -> Command {
        let mut command = tool("env");
        command.args(before).arg(env!("CARGO_BIN_EXE_cachalot"));
        command.arg(name).arg("--config").arg(self.folder.path().join("cachalot.toml"));
        command
    }

    /// What it has logged so far.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }

    /// The data folder.
    pub(crate) fn storage(&self) -> PathBuf {
        self.storage.clone()
    }

    /// What `/readyz` says.
    pub(crate) fn standing(&self) -> (u16, String) {
        self.ask_admin("/readyz")
    }

    /// Waits until all that was served is on disk.
    pub(crate) fn settle(&self) {
        let rests = ["cachalot_store_backlog 0", "cachalot_fills_in_flight 0"];
        wait_until("everything is on disk", || {
            let (_, metrics) = self.ask_admin("/metrics");
            rests.iter().all(|rest| metrics.lines().any(|line| line == *rest))
        });
    }

    /// The body bytes sent to clients so far.
    pub(crate) fn sent_bytes(&self) -> u64 {
        let (_, metrics) = self.ask_admin("/metrics");
        let sums = metrics.lines().filter_map(|line| line.strip_prefix("cachalot_response_bytes_total{"));
        sums.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    fn ask_admin(&self, target: &str) -> (u16, String) {
        let answer = http::request("GET", self.admin, target, "", b"").expect("the admin listener answers");
        (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
    }
}

fn upstream_section(upstream: &Upstream) -> String {
    format!("[upstreams.\"docker.io\"]\nendpoints = [\"http://127.0.0.1:{}\"]\n", upstream.port)
}

fn serve(folder: &Path, port: u16, before: &[String]) -> Process {
    let config = folder.join("cachalot.toml");
    let mut arguments: Vec<&OsStr> = before.iter().map(OsStr::new).collect();
    let rest = [env!("CARGO_BIN_EXE_cachalot"), "serve", "--config"];
    arguments.extend(rest.map(OsStr::new));
    arguments.push(config.as_ref());
    // `env` becomes the program that it starts, and so must that.
    let mut process = Process::start("cachalot", "env", &arguments, folder.join("log"));
    process.wait_until_ready(|| http::is_registry(port));
    process
}
