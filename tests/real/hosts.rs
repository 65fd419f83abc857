//! What `cachalot hosts` writes is what the real clients read: they pull through the mirror by it, and by nothing else.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::containerd::Containerd;
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
    let upstream = Upstream::start(&FIXTURE.storage);
    let (mirror, other) = (Mirror::start(&upstream), Mirror::start(&upstream));
    // Its own file names another mirror.
    let containerd = Containerd::start(&other);
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
