//! Starts the programs that the tests run, and sees to it that none outlives its test.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may take until it is ready, and how long any condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server of a test's own: killed when dropped, or when the thread of the test ends in any other way.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

// === impl Process ===

impl Process {
    /// Starts `program` with its output appended to the file `log`.
    pub(crate) fn start(name: &'static str, program: impl AsRef<OsStr>, arguments: &[&OsStr], log: PathBuf) -> Process {
        let output = File::options().create(true).append(true).open(&log).expect("the log of a server can be written");
        let child = bound_to_this_thread(program.as_ref())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a file handle can be cloned"))
            .stderr(output)
            .spawn()
            .expect("setpriv (util-linux) can be started");
        Process { name, child, log }
    }

    /// Waits until `ready` says yes; a process that ends before has failed its test.
    pub(crate) fn wait_until_ready(&mut self, mut ready: impl FnMut() -> bool) {
        let (name, child) = (self.name, &mut self.child);
        wait_until(&format!("{name} is ready"), || {
            if let Some(status) = child.try_wait().expect("a child can be asked for its status") {
                panic!("{name} ended before it was ready: {status}");
            }
            ready()
        });
    }

    /// What the process has printed so far.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Ends the process with SIGKILL, as a power cut or the kernel would, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a killed child can be waited for");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when the process has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
        if thread::panicking() {
            let output = self.output();
            let lines: Vec<_> = output.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            eprintln!("--- the last lines of {}:\n{}", self.name, last.join("\n"));
        }
    }
}

/// A command that ends with its test, and after three minutes at the latest. For [`run`].
pub(crate) fn tool(program: &str) -> Command {
    let mut command = bound_to_this_thread(OsStr::new("timeout"));
    // `timeout` is the parent of the program, so the program has to be bound to it in turn.
    command.args(["--kill-after=5", "180", "setpriv", "--pdeathsig", "KILL", "--", program]);
    command.stdin(Stdio::null());
    command
}

/// Runs a command that must succeed and returns what it printed.
pub(crate) fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("setpriv (util-linux) can be started");
    assert!(
        output.status.success(),
        "{command:?} failed ({}; 127 means that it is not installed: see .ci/run)\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    output.stdout
}

/// Waits until `condition` says yes, and fails the test when it never does.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "gave up waiting until {what}");
        // The other side is another program, which has no gate to wait at.
        thread::sleep(Duration::from_millis(20));
    }
}

/// A loopback port for a server of this run: below the range from which the kernel takes the ports of outgoing connections, so
/// that nobody else gets it in the meantime, and each one only once.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let run = u16::try_from(std::process::id() % 100).expect("below 100");
    loop {
        let port = 20_000 + run * 100 + NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(port < 32_000, "a run needs fewer ports than this");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// A command that the kernel kills when the thread that started it is gone, even if the test runner itself is killed.
fn bound_to_this_thread(program: &OsStr) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}
