//! The program under test: the built `cachalot`, in front of one upstream, with a data folder of its own.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::client::Connection;
use crate::upstream::Upstream;

/// A running mirror. It is killed when this is dropped, and its data goes with it.
pub(crate) struct Mirror {
    addr: SocketAddr,
    admin: SocketAddr,
    child: Child,
    folder: TempDir,
}

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_mins(1);

// === impl Mirror ===

impl Mirror {
    /// A mirror of `upstream` that holds nothing.
    pub(crate) fn start(upstream: &Upstream, work: &Path, capacity: &str) -> io::Result<Self> {
        let folder = tempfile::tempdir_in(work)?;
        let (addr, admin) = (free_address()?, free_address()?);
        let config = format!(
            "[server]\nlisten = \"{addr}\"\n[admin]\nlisten = \"{admin}\"\n\
             [storage]\npath = \"{}\"\ncapacity = \"{capacity}\"\nmin_free = \"1MiB\"\n\
             [upstreams.\"docker.io\"]\nendpoints = [\"http://{}\"]\n",
            folder.path().join("data").display(),
            upstream.addr()
        );
        fs::write(folder.path().join("cachalot.toml"), config)?;
        let child = serve(folder.path(), addr)?;
        Ok(Self { addr, admin, child, folder })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Has it know the image, as any client does before it asks for layers.
    pub(crate) fn announce(&self, tag: &str) -> io::Result<()> {
        let mut connection = Connection::open(self.addr)?;
        let head = connection.ask(&format!("/v2/docker.io/bench/app/manifests/{tag}"), None)?;
        connection.discard(u64::MAX)?;
        if head.status == 200 { Ok(()) } else { Err(io::Error::other(format!("status {} for {tag}", head.status))) }
    }

    /// The process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// As the kernel would, or a power cut.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Starts again over what is there, after it was killed.
    pub(crate) fn restart(&mut self) -> io::Result<()> {
        self.child = serve(self.folder.path(), self.addr)?;
        Ok(())
    }

    /// Its memory in bytes, without what it has mapped of files, which the page cache holds in any case.
    pub(crate) fn memory(&self) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("the kernel doesn't say how much memory it takes"))
    }

    /// A counter or gauge, summed over all its labels.
    pub(crate) fn metric(&self, name: &str) -> io::Result<f64> {
        let mut connection = Connection::open(self.admin)?;
        connection.ask("/metrics", None)?;
        let text = String::from_utf8_lossy(&connection.read(usize::MAX)?).into_owned();
        let lines =
            text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.kill();
    }
}

fn serve(folder: &Path, addr: SocketAddr) -> io::Result<Child> {
    let log = File::options().create(true).append(true).open(folder.join("log"))?;
    // Another build than this one's may be measured as well.
    let program = std::env::var_os("CACHALOT").unwrap_or_else(|| env!("CARGO_BIN_EXE_cachalot").into());
    let mut child = Command::new(program)
        .args(["serve", "--config"])
        .arg(folder.join("cachalot.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let began = Instant::now();
    loop {
        let answer = Connection::open(addr).and_then(|mut connection| connection.ask("/v2/", None));
        if answer.is_ok_and(|head| head.status == 200) {
            return Ok(child);
        }
        if child.try_wait()?.is_some() || began.elapsed() > PATIENCE {
            let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
            return Err(io::Error::other(format!("the mirror doesn't start: {log}")));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}
