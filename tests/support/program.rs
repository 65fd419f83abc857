//! The built program as a process of its own: `serve`, which can be killed, and commands that end.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use super::registry::Registry;
use super::until;

/// A folder with a configuration and a data directory, on which the program runs.
#[derive(Debug)]
pub(crate) struct Program {
    folder: TempDir,
}

/// A running `cachalot serve`. It is killed when dropped.
#[derive(Debug)]
pub(crate) struct Serving {
    child: Child,
    pub(crate) addr: SocketAddr,
}

// === impl Program ===

impl Program {
    /// A mirror of `docker.io` from this registry.
    pub(crate) fn new(registry: &Registry, capacity: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = serde_json::json!(folder.path().join("data"));
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[storage]\npath = {data}\n\
             capacity = \"{capacity}\"\nmin_free = \"1MiB\"\n[tags]\nttl = \"0s\"\n\
             [upstreams.\"docker.io\"]\nendpoints = [\"{}\"]\n",
            registry.url()
        );
        std::fs::write(folder.path().join("cachalot.toml"), text).unwrap();
        Self { folder }
    }

    /// The data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("cachalot.toml")
    }

    /// Starts the server, and waits until it serves.
    pub(crate) async fn serve(&self) -> Serving {
        let log = self.folder.path().join("log");
        let output = std::fs::File::create(&log).unwrap();
        let mut child = command("serve", &self.config()).stderr(output).spawn().unwrap();
        let mut addr = None;
        until("the program serves", || {
            assert!(child.try_wait().unwrap().is_none(), "it ended: {}", std::fs::read_to_string(&log).unwrap());
            let text = std::fs::read_to_string(&log).unwrap();
            let rest = text.split_once("serving on http://").map(|(_, rest)| rest.to_owned());
            addr = rest.and_then(|rest| rest.split_once("/v2/").map(|(addr, _)| addr.parse().unwrap()));
            addr.is_some()
        })
        .await;
        Serving { child, addr: addr.unwrap() }
    }

    /// Runs a command on the store of a server that doesn't run.
    pub(crate) fn run(&self, name: &str, arguments: &[&str]) -> Output {
        command(name, &self.config()).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap()
    }
}

/// The program, which the kernel kills when this process is gone.
fn command(name: &str, config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cachalot"));
    command.arg(name).arg("--config").arg(config).env_clear().stdin(Stdio::null()).stdout(Stdio::null());
    command
}

// === impl Serving ===

impl Serving {
    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.end();
    }
}
