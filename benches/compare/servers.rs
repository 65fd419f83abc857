//! The servers that are compared, each started on a free port with a folder of its own, and ended when dropped.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A server that runs.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) addr: SocketAddr,
    /// Where it serves by TLS, if it does.
    pub(crate) tls_addr: Option<SocketAddr>,
    process: Child,
}

/// A certificate for `localhost` and its key, as files.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// How long a server may take to start, and to end.
const PATIENCE: Duration = Duration::from_mins(1);

/// The mirror that this is all about.
pub(crate) fn cachalot(folder: &Path, upstream: &str, certificate: Option<&Certificate>) -> io::Result<Server> {
    cachalot_with(folder, upstream, certificate, "40GiB")
}

/// The same with so much room.
pub(crate) fn cachalot_with(
    folder: &Path,
    upstream: &str,
    certificate: Option<&Certificate>,
    capacity: &str,
) -> io::Result<Server> {
    fs::create_dir_all(folder)?;
    let addr = free_address()?;
    let mut config = format!(
        "[server]\nlisten = \"{addr}\"\n{}[admin]\nlisten = []\n[storage]\npath = \"{}\"\ncapacity = \"{capacity}\"\nmin_free = \"1MiB\"\n\
         [tags]\nttl = \"1h\"\n[upstreams.\"docker.io\"]\nendpoints = [\"{upstream}\"]\n",
        certificate.map_or_else(String::new, |files| format!(
            "tls = [{{ cert = \"{}\", key = \"{}\" }}]\n",
            files.cert.display(),
            files.key.display()
        )),
        folder.join("data").display(),
    );
    if let Ok(more) = std::env::var("COMPARE_CACHALOT_CONFIG") {
        let _ = write!(config, "{more}");
    }
    let path = folder.join("cachalot.toml");
    fs::write(&path, config)?;
    let program = std::env::var("COMPARE_CACHALOT").unwrap_or_else(|_| env!("CARGO_BIN_EXE_cachalot").to_owned());
    let mut command = Command::new(program);
    command.arg("serve").arg("--config").arg(path);
    let tls_addr = certificate.map(|_| addr);
    Server::start("cachalot", addr, tls_addr, command, folder)
}

/// A static file server that sends with `sendfile`: as fast as it gets.
pub(crate) fn nginx(folder: &Path, root: &Path, certificate: Option<&Certificate>) -> io::Result<Server> {
    fs::create_dir_all(folder)?;
    let addr = free_address()?;
    let tls_addr = certificate.map(|_| free_address()).transpose()?;
    let tls = certificate.zip(tls_addr).map_or_else(String::new, |(files, addr)| {
        let (cert, key) = (files.cert.display(), files.key.display());
        format!("listen {addr} ssl;\nssl_certificate {cert};\nssl_certificate_key {key};\nssl_protocols TLSv1.3;\n")
    });
    let (here, root) = (folder.display(), root.display());
    let config = format!(
        "worker_processes auto;\ndaemon off;\npid {here}/pid;\nerror_log {here}/error.log;\nevents {{ worker_connections 8192; }}\n\
         http {{\naccess_log {here}/access.log combined buffer=256k flush=50ms;\nsendfile on;\ntcp_nopush on;\ntcp_nodelay on;\n\
         keepalive_requests 1000000000;\nkeepalive_timeout 300;\ndefault_type application/octet-stream;\n\
         client_body_temp_path {here}/a;\nproxy_temp_path {here}/b;\nfastcgi_temp_path {here}/c;\nuwsgi_temp_path {here}/d;\n\
         scgi_temp_path {here}/e;\nserver {{ listen {addr};\n{tls}root {root}; }}\n}}\n"
    );
    let path = folder.join("nginx.conf");
    fs::write(&path, config)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(path).arg("-e").arg(folder.join("error.log"));
    if rustix::process::geteuid().is_root() {
        // Or else its workers would be nobody, and could not read what is in a folder for temporary files.
        command.arg("-g").arg("user root;");
    }
    Server::start("nginx", addr, tls_addr, command, folder)
}

/// Debian's docker-registry (distribution) as a pull-through proxy.
pub(crate) fn docker_registry(folder: &Path, upstream: &str) -> io::Result<Server> {
    fs::create_dir_all(folder)?;
    let addr = free_address()?;
    let data = folder.join("data");
    let config = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {addr}\nproxy:\n  remoteurl: {upstream}\n",
        data.display()
    );
    let path = folder.join("config.yml");
    fs::write(&path, config)?;
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(path);
    Server::start("docker-registry", addr, None, command, folder)
}

/// Which of the programs are missing, and how to get them.
pub(crate) fn missing() -> Vec<String> {
    let found = |program: &str| {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders).any(|folder| folder.join(program).is_file())
    };
    [("nginx", "nginx-light"), ("docker-registry", "docker-registry")]
        .into_iter()
        .filter(|(program, _)| !found(program))
        .map(|(program, package)| format!("{program} is not installed; on Debian: apt-get install {package}"))
        .collect()
}

fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

// === impl Server ===

impl Server {
    fn start(
        name: &'static str,
        addr: SocketAddr,
        tls_addr: Option<SocketAddr>,
        mut command: Command,
        folder: &Path,
    ) -> io::Result<Self> {
        let log = fs::File::create(folder.join("output.log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().map_err(|error| io::Error::other(format!("{name} can't be started: {error}")))?;
        let mut server = Self { name, addr, tls_addr, process };
        let start = Instant::now();
        while TcpStream::connect(addr).is_err() {
            if server.process.try_wait()?.is_some() || start.elapsed() > PATIENCE {
                let log = fs::read_to_string(folder.join("output.log")).unwrap_or_default();
                return Err(io::Error::other(format!("{name} does not start: {log}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// The processor time that it has used so far, in seconds, all its processes and threads together.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let mut nanoseconds = 0.0;
        for pid in self.processes() {
            let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for task in tasks.flatten() {
                let used = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
                nanoseconds += used.split(' ').next().and_then(|used| used.parse::<f64>().ok()).unwrap_or(0.0);
            }
        }
        nanoseconds / 1e9
    }

    /// Its memory that is not shared with files, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let kilobytes = |pid: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line =
                status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?.trim().strip_suffix(" kB")?.to_owned();
            line.parse::<u64>().ok()
        };
        self.processes().into_iter().filter_map(kilobytes).sum::<u64>() << 10
    }

    fn processes(&self) -> Vec<u32> {
        let own = self.process.id();
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        std::iter::once(own).chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        let asked = pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
        let start = Instant::now();
        while asked && start.elapsed() < PATIENCE && matches!(self.process.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        // Harmless when it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
