//! What `cachalot hosts` writes is what the real clients read: they pull through the mirror by it, and by nothing else.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::containerd::{Containerd, Version};
use crate::fixture::FIXTURE;
use crate::image::{By, Image};
use crate::mirror::Mirror;
use crate::podman::Podman;
use crate::process::{run, tool, wait_until};
use crate::upstream::Upstream;

/// Pulls an image by a client's configuration.
type Pull<'a> = &'a dyn Fn(&Path);

/// `cachalot hosts CLIENT`, which leaves no way round the mirror: there is no Docker Hub here.
fn hosts(mirror: &Mirror, client: &str) -> Command {
    let mut command = tool(env!("CARGO_BIN_EXE_cachalot"));
    let url = format!("http://127.0.0.1:{}", mirror.port);
    command.args(["hosts", client, "--registry", "docker.io", "--strict", "--mirror", &url]);
    command
}

fn name(image: &Image) -> String {
    format!("docker.io/{}", image.name(By::Tag))
}

/// Waits until upstream has sent all of an image, which it sends only to the mirror.
fn came_through(upstream: &Upstream, image: &Image) {
    wait_until("upstream has sent every blob", || upstream.blob_bytes_sent() >= image.blob_bytes());
}

#[test]
fn containerd_pulls_by_what_is_written_and_gets_its_own_file_back() {
    pulls_by_what_is_written(Version::Debian);
}

#[test]
fn containerd_2_pulls_by_what_is_written_and_gets_its_own_file_back() {
    pulls_by_what_is_written(Version::Newer);
}

fn pulls_by_what_is_written(version: Version) {
    let upstream = Upstream::start(&FIXTURE.storage);
    let (mirror, other) = (Mirror::start(&upstream), Mirror::start(&upstream));
    // Its own file names another mirror.
    let containerd = Containerd::start_version(version, other.port, None);
    let file = containerd.hosts().join("docker.io/hosts.toml");
    let before = fs::read(&file).expect("the fixture writes it");
    run(hosts(&mirror, "containerd").arg("--write").arg(containerd.hosts()));
    assert_ne!(fs::read(&file).expect("it is written"), before);
    containerd.pull(&FIXTURE.busybox, By::Tag);
    came_through(&upstream, &FIXTURE.busybox);
    wait_until("the mirror tells of it", || mirror.output().contains(FIXTURE.busybox.repository));
    assert!(!other.output().contains(FIXTURE.busybox.repository), "{}", other.output());
    let undo = ["hosts", "containerd", "--undo"];
    run(tool(env!("CARGO_BIN_EXE_cachalot")).args(undo).arg(containerd.hosts()));
    assert_eq!(fs::read(&file).expect("it is back"), before);
    assert_eq!(fs::read_dir(containerd.hosts()).expect("a folder").count(), 1, "nothing of ours is left");
}

#[test]
fn podman_skopeo_and_buildah_pull_by_what_is_printed() {
    let upstream = Upstream::start(&FIXTURE.storage);
    let image = &FIXTURE.busybox;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path();
    let clients: [(&str, Pull<'_>); 3] = [
        ("podman", &|config| {
            let podman = Podman::new("127.0.0.1:1");
            fs::copy(config, podman.registries()).expect("the folder can be written");
            podman.pull(&name(image));
        }),
        ("skopeo", &|config| {
            let destination = format!("dir:{}", path.join("copy").display());
            let mut skopeo = tool("skopeo");
            skopeo.args(["--insecure-policy", "--registries-conf"]).arg(config).args(["copy", "--quiet"]);
            run(skopeo.args([&format!("docker://{}", name(image)), &destination]));
        }),
        ("buildah", &|config| {
            let mut buildah = tool("buildah");
            buildah.args(["--registries-conf"]).arg(config).args(["--storage-driver", "vfs", "--root"]);
            buildah.arg(path.join("root")).arg("--runroot").arg(path.join("run"));
            run(buildah.args(["pull", "--quiet", "--signature-policy"]).arg(&FIXTURE.policy).arg(name(image)));
        }),
    ];
    for (client, pull) in clients {
        let mirror = Mirror::start(&upstream);
        let config = path.join(format!("{client}.conf"));
        fs::write(&config, run(&mut hosts(&mirror, "podman"))).expect("the folder can be written");
        pull(&config);
        wait_until(&format!("{client} has come through the mirror"), || mirror.output().contains(image.repository));
    }
    came_through(&upstream, image);
}

/// A port of this machine that drops packets instead of refusing them: its queue of connections is full.
struct BlackHole {
    port: u16,
    _listener: Socket,
    _waiting: Vec<Socket>,
}

impl BlackHole {
    fn new() -> BlackHole {
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let listener = socket();
        let address: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        listener.bind(&address.into()).expect("any port");
        listener.listen(0).expect("it can listen");
        let address = listener.local_addr().expect("it has an address");
        let port = address.as_socket_ipv4().expect("it is an IPv4 address").port();
        let is_full = || {
            let one = socket();
            let connected = one.connect_timeout(&address, Duration::from_millis(200));
            (connected.is_err(), one)
        };
        let mut waiting = Vec::new();
        wait_until("the queue of the black hole is full", || {
            let (full, one) = is_full();
            waiting.push(one);
            full
        });
        BlackHole { port, _listener: listener, _waiting: waiting }
    }
}

#[test]
fn containerd_2_ends_a_pull_past_a_mirror_that_drops_its_packets() {
    pull_past_a_black_hole(Version::Newer);
}

#[test]
#[ignore = "takes two minutes: this version waits 30 s for each connection. Part of .ci/long"]
fn containerd_1_6_ends_a_pull_past_a_mirror_that_drops_its_packets() {
    pull_past_a_black_hole(Version::Debian);
}

/// Six blobs, by the files that are written for a mirror that is gone and one that is there.
fn pull_past_a_black_hole(version: Version) {
    let upstream = Upstream::start(&FIXTURE.storage);
    let (mirror, hole) = (Mirror::start(&upstream), BlackHole::new());
    let containerd = Containerd::start_version(version, 1, None);
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let mut hosts = tool(env!("CARGO_BIN_EXE_cachalot"));
    hosts.args(["hosts", "containerd", "--registry", "docker.io", "--strict"]);
    hosts.args(["--mirror", &url(hole.port), "--mirror", &url(mirror.port), "--write"]);
    run(hosts.arg(containerd.hosts()));
    let begun = Instant::now();
    containerd.pull(&FIXTURE.big, By::Tag);
    eprintln!("{version:?}: a pull of six blobs past a black hole took {:.1?}", begun.elapsed());
    came_through(&upstream, &FIXTURE.big);
}
