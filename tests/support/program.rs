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
    /// Where operators connect.
    pub(crate) admin: SocketAddr,
    log: PathBuf,
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

    /// Adds to the configuration, in front: a section that is there is gone on with.
    pub(crate) fn configure(&self, section: &str) {
        let text = std::fs::read_to_string(self.config()).unwrap();
        let text = match section.split_once('\n') {
            Some((head, keys)) if text.contains(head) => text.replace(head, &format!("{head}\n{keys}")),
            _ => format!("{text}{section}"),
        };
        std::fs::write(self.config(), text).unwrap();
    }

    /// The data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("cachalot.toml")
    }

    /// Replaces a text of the configuration file.
    pub(crate) fn rewrite(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.config()).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        std::fs::write(self.config(), text.replacen(from, to, 1)).unwrap();
    }

    /// Starts the server, and waits until it serves.
    pub(crate) async fn serve(&self) -> Serving {
        self.start(command("serve", &self.config())).await
    }

    /// The same, by a clock that is as far from the real one as a file says (`+3600`), however often that changes. What measures
    /// time that has passed is left alone. Wants Debian's `faketime`.
    pub(crate) async fn serve_by_clock(&self, file: &Path) -> Serving {
        const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
        assert!(Path::new(LIBRARY).exists(), "{LIBRARY} is not there: install faketime");
        let mut command = command("serve", &self.config());
        command.env("LD_PRELOAD", LIBRARY).env("FAKETIME_TIMESTAMP_FILE", file);
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        self.start(command).await
    }

    async fn start(&self, mut command: Command) -> Serving {
        let log = self.folder.path().join("log");
        let output = std::fs::File::create(&log).unwrap();
        let mut child = command.stderr(output).spawn().unwrap();
        let mut told = None;
        until("the program serves", || {
            assert!(child.try_wait().unwrap().is_none(), "it ended: {}", std::fs::read_to_string(&log).unwrap());
            let text = std::fs::read_to_string(&log).unwrap();
            let between = |before: &str, after: &str| {
                let (_, rest) = text.split_once(before)?;
                Some(rest.split_once(after)?.0.parse::<SocketAddr>().unwrap())
            };
            told = between("serving on http://", "/v2/").zip(between("health and metrics on http://", "/readyz"));
            told.is_some()
        })
        .await;
        let (addr, admin) = told.unwrap();
        Serving { child, addr, admin, log }
    }

    /// Starts a command that can be written to, and killed.
    pub(crate) fn start_command(&self, name: &str, arguments: &[&str]) -> Child {
        command(name, &self.config()).args(arguments).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Starts a command, which can be killed.
    pub(crate) fn spawn(&self, name: &str, arguments: &[&str]) -> Child {
        command(name, &self.config()).args(arguments).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Runs a command on the store, or on the server that runs on it.
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

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGHUP.
    pub(crate) fn hang_up(&self) {
        let status = Command::new("kill").args(["-HUP", &self.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// What it has logged.
    pub(crate) fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
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
