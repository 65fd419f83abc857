//! containerd through the mirror: a certs.d `hosts.toml` points docker.io at it, and every request carries `?ns=docker.io`.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::fixture::FIXTURE;
use crate::image::{By, Image, sha256_of_file};
use crate::mirror::Mirror;
use crate::process::{Process, run, tool};
use crate::pulls::{self, Client};
use crate::upstream::Upstream;

/// `ctr images pull` with a containerd that holds nothing yet.
pub(crate) struct Ctr;

/// A containerd of a test's own, and the folder with its root, state, socket and hosts.
pub(crate) struct Containerd {
    // Dropped in this order: the process ends before its folder goes.
    _process: Process,
    mounts: Mounts,
    folder: TempDir,
    version: Version,
}

/// Which containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Debian's, 1.6.
    Debian,
    /// 2.2, from the folder that `CONTAINERD2` names.
    Newer,
}

/// Whatever a failed test leaves mounted or running below a folder goes before the folder does.
struct Mounts(PathBuf);

// === impl Ctr ===

impl Client for Ctr {
    fn pull(&self, mirror: &Mirror, image: &Image, by: By) -> BTreeSet<String> {
        let containerd = Containerd::start(mirror);
        let name = containerd.pull(image, by);
        let listed = String::from_utf8(run(containerd.ctr(&["images", "ls"]).arg(format!("name=={name}"))))
            .expect("ctr prints text");
        assert!(listed.contains(&image.digest), "containerd knows {name} by upstream's digest:\n{listed}");
        let blobs = containerd.folder.path().join("root/io.containerd.content.v1.content/blobs/sha256");
        let entries = fs::read_dir(blobs).expect("containerd has a content store");
        entries.map(|entry| sha256_of_file(&entry.expect("an entry").path())).collect()
    }
}

// === impl Containerd ===

impl Containerd {
    pub(crate) fn start(mirror: &Mirror) -> Containerd {
        Containerd::start_as(mirror, None)
    }

    /// The mirror is also the `server`, so that nothing else is ever asked. With an `Authorization` for both.
    pub(crate) fn start_as(mirror: &Mirror, authorization: Option<&str>) -> Containerd {
        Containerd::start_at(mirror.port, authorization)
    }

    /// The same for whatever answers at that port.
    pub(crate) fn start_at(port: u16, authorization: Option<&str>) -> Containerd {
        Containerd::start_version(Version::Debian, port, authorization)
    }

    /// The same of another version.
    pub(crate) fn start_version(version: Version, port: u16, authorization: Option<&str>) -> Containerd {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path();
        let hosts = path.join("hosts/docker.io");
        fs::create_dir_all(&hosts).expect("the folder can be written");
        let url = format!("http://127.0.0.1:{port}");
        let header = |section: &str| {
            let line = |value: &str| format!("[{section}]\nauthorization = \"{value}\"\n");
            authorization.map(line).unwrap_or_default()
        };
        let text = format!(
            "server = \"{url}\"\n{}[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n{}",
            header("header"),
            header(&format!("host.\"{url}\".header"))
        );
        fs::write(hosts.join("hosts.toml"), text).expect("the folder can be written");
        let below = path.display();
        let mut text = format!(
            "version = 2\nroot = \"{below}/root\"\nstate = \"{below}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{below}/socket\"\n[ttrpc]\naddress = \"{below}/ttrpc\"\n\
             [plugins.\"io.containerd.metadata.v1.bolt\"]\ncontent_sharing_policy = \"isolated\"\n"
        );
        if version == Version::Newer {
            // Its transfer service unpacks by what the server is told, not by what the client wishes.
            text.push_str(
                "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\nplatform = \"linux/amd64\"\n",
            );
            text.push_str("snapshotter = \"native\"\n");
        }
        let config = path.join("config.toml");
        fs::write(&config, text).expect("the folder can be written");
        let arguments: [&OsStr; 2] = ["--config".as_ref(), config.as_ref()];
        let mut process = Process::start("containerd", version.program("containerd"), &arguments, path.join("log"));
        let socket = path.join("socket");
        process.wait_until_ready(|| std::os::unix::net::UnixStream::connect(&socket).is_ok());
        Containerd { _process: process, mounts: Mounts(path.into()), folder, version }
    }

    /// Pulls and unpacks; returns the name under which containerd knows the image.
    pub(crate) fn pull(&self, image: &Image, by: By) -> String {
        let (name, mut command) = self.pulling(image, by);
        run(&mut command);
        name
    }

    /// The same, still to be run.
    pub(crate) fn pulling(&self, image: &Image, by: By) -> (String, Command) {
        let name = format!("docker.io/{}", image.name(by));
        let hosts = self.folder.path().join("hosts");
        let mut command = self.ctr(&["images", "pull", "--snapshotter", "native", "--hosts-dir"]);
        command.arg(hosts).arg(&name);
        (name, command)
    }

    /// Where it reads which mirrors there are.
    pub(crate) fn hosts(&self) -> PathBuf {
        self.folder.path().join("hosts")
    }

    /// Where it keeps what it holds.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Runs a container of an image that it holds, which says `word` and ends.
    pub(crate) fn run_to_say(&self, name: &str, word: &str) {
        let said =
            run(&mut self.ctr(&["run", "--rm", "--snapshotter", "native", name, "one", "/bin/busybox", "echo", word]));
        assert_eq!(String::from_utf8_lossy(&said), format!("{word}\n"));
    }

    pub(crate) fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = tool(&self.version.program("ctr"));
        command.arg("--address").arg(self.mounts.0.join("socket")).args(arguments);
        command
    }
}

// === impl Version ===

impl Version {
    /// One of its programs.
    pub(crate) fn program(self, name: &str) -> String {
        match self {
            Version::Debian => name.to_owned(),
            Version::Newer => {
                let folder =
                    std::env::var("CONTAINERD2").expect("CONTAINERD2 names a folder with containerd 2: see .ci/run");
                format!("{folder}/{name}")
            }
        }
    }
}

// === impl Mounts ===

impl Drop for Mounts {
    fn drop(&mut self) {
        for process in shims_of(&self.0) {
            tool("kill").args(["-KILL", &process]).status().ok();
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|path| Path::new(path).starts_with(&self.0));
        for path in below.collect::<Vec<_>>().into_iter().rev() {
            tool("umount").args(["--lazy", path]).status().ok();
        }
    }
}

/// The ids of the processes that containerd started for containers and that were told to report to the socket in `folder`.
fn shims_of(folder: &Path) -> Vec<String> {
    let socket = folder.join("socket").display().to_string();
    let mut ids = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|byte| *byte == 0);
        let is_shim = arguments.next().is_some_and(|program| program.ends_with(b"containerd-shim-runc-v2"));
        if is_shim && arguments.any(|argument| argument == socket.as_bytes()) {
            ids.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    ids
}

#[test]
fn containerd_pulls_a_small_image_cold_warm_and_without_upstream() {
    pulls::cold_warm_and_without_upstream(&Ctr, &FIXTURE.busybox);
}

#[test]
fn containerd_pulls_a_big_image_cold_warm_and_without_upstream() {
    pulls::cold_warm_and_without_upstream(&Ctr, &FIXTURE.big);
}

#[test]
fn containerd_pulls_one_platform_of_an_index_cold_warm_and_without_upstream() {
    pulls::cold_warm_and_without_upstream(&Ctr, &FIXTURE.multi);
}

#[test]
fn containerd_runs_an_image_that_it_pulled_through_the_mirror() {
    let upstream = Upstream::start(&FIXTURE.storage);
    let mirror = Mirror::start(&upstream);
    let containerd = Containerd::start(&mirror);
    let name = containerd.pull(&FIXTURE.busybox, By::Tag);
    containerd.run_to_say(&name, "from a container");
}
