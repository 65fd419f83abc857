//! The program under test: the built `cachalot`, serving one upstream under the name docker.io.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::http;
use crate::image::{By, Image};
use crate::process::{Process, free_port};
use crate::upstream::Upstream;

/// A running mirror with a data folder of its own.
pub(crate) struct Mirror {
    pub(crate) port: u16,
    process: Process,
    folder: TempDir,
    before: Vec<String>,
}

// === impl Mirror ===

impl Mirror {
    /// A mirror that holds nothing and asks upstream whether a tag has moved each time it is pulled.
    pub(crate) fn start(upstream: &Upstream) -> Mirror {
        let endpoint = format!("endpoints = [\"http://127.0.0.1:{}\"]", upstream.port);
        Mirror::start_where(&format!("[upstreams.\"docker.io\"]\n{endpoint}\n"), &[])
    }

    /// The same with upstreams as configured, and with this in front of the program: variables for its environment, or a
    /// program that starts it.
    pub(crate) fn start_where(upstreams: &str, before: &[&str]) -> Mirror {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (port, admin) = (free_port(), free_port());
        let storage = data(folder.path());
        let config = format!(
            "[server]\nlisten = \"127.0.0.1:{port}\"\n\
             [admin]\nlisten = \"127.0.0.1:{admin}\"\n\
             [storage]\npath = \"{}\"\nmin_free = \"1MiB\"\n\
             [tags]\nttl = \"0s\"\n{upstreams}",
            storage.display()
        );
        fs::write(folder.path().join("cachalot.toml"), config).expect("the configuration can be written");
        let before: Vec<String> = before.iter().map(|&word| word.to_owned()).collect();
        let process = serve(folder.path(), port, &before);
        Mirror { port, process, folder, before }
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

    /// What it has logged so far.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }

    /// The data folder.
    pub(crate) fn storage(&self) -> PathBuf {
        data(self.folder.path())
    }
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

fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}
