//! The way of a Kubernetes node: containerd's CRI plugin pulls by the files that `cachalot node configure` has written to its machine.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use crate::containerd::Version;
use crate::fixture::FIXTURE;
use crate::image::{By, text};
use crate::mirror::Mirror;
use crate::process::{Process, run, tool, wait_until};
use crate::upstream::Upstream;

/// containerd's own file, as its owner has it: it reads hosts.toml files, and knows no mirror.
fn config(version: Version, below: &Path) -> String {
    let below = below.display();
    let places = format!(
        "root = \"{below}/root\"\nstate = \"{below}/state\"\n[grpc]\naddress = \"{below}/socket\"\n[ttrpc]\naddress = \"{below}/ttrpc\"\n"
    );
    let (number, snapshotter, registry) = match version {
        Version::Debian => (2, "io.containerd.grpc.v1.cri\".containerd", "io.containerd.grpc.v1.cri\".registry"),
        Version::Newer => (3, "io.containerd.cri.v1.images\"", "io.containerd.cri.v1.images\".registry"),
    };
    let transfer = match version {
        Version::Debian => "",
        Version::Newer => {
            "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\nplatform = \"linux/amd64\"\nsnapshotter = \"native\"\n"
        }
    };
    format!(
        "version = {number}\n{places}[plugins.\"{snapshotter}]\nsnapshotter = \"native\"\n\
         [plugins.\"{registry}]\nconfig_path = \"/etc/containerd/certs.d\"\n{transfer}"
    )
}

#[test]
fn kubernetes_way_of_pulling_comes_to_the_mirror_with_containerd_1_6() {
    configured_pulled_and_restored(Version::Debian);
}

#[test]
fn kubernetes_way_of_pulling_comes_to_the_mirror_with_containerd_2() {
    configured_pulled_and_restored(Version::Newer);
}

fn configured_pulled_and_restored(version: Version) {
    let upstream = Upstream::start(&FIXTURE.storage);
    let mirror = Mirror::start(&upstream);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let etc = folder.path().join("machine/etc/containerd");
    fs::create_dir_all(&etc).expect("the folder can be written");
    fs::write(etc.join("config.toml"), config(version, folder.path())).expect("the folder can be written");
    // For this containerd alone, the machine's folder is the one that its configuration names.
    let script = format!(
        "mount --bind {} /etc/containerd && exec {} --config /etc/containerd/config.toml",
        etc.display(),
        version.program("containerd")
    );
    let arguments = ["--mount", "sh", "-c", &script].map(OsStr::new);
    let mut containerd = Process::start("containerd", "unshare", &arguments, folder.path().join("log"));
    let socket = folder.path().join("socket");
    let endpoint = format!("unix://{}", socket.display());
    let crictl = |arguments: &[&str]| {
        let mut command = tool("crictl");
        // Without a file of its own, it would read the machine's.
        command.args(["--config", "/dev/null", "--runtime-endpoint", &endpoint, "--image-endpoint", &endpoint]);
        command.args(["--timeout", "120s"]).args(arguments);
        command
    };
    containerd.wait_until_ready(|| crictl(&["images"]).output().is_ok_and(|output| output.status.success()));

    let root = folder.path().join("machine").display().to_string();
    let url = format!("http://127.0.0.1:{}", mirror.port);
    let cachalot = |arguments: &[&str]| {
        let mut command = tool(env!("CARGO_BIN_EXE_cachalot"));
        run(command.args(arguments).args(["--root", &root]))
    };
    cachalot(&["node", "configure", "--mirror", &url]);
    cachalot(&["doctor", "--node", "--mirror", &url]);
    // It runs already, and is not restarted.
    for image in [&FIXTURE.busybox, &FIXTURE.multi] {
        for by in [By::Tag, By::Digest] {
            run(&mut crictl(&["pull", &format!("docker.io/{}", image.name(by))]));
        }
        let inspected = run(&mut crictl(&["inspecti", &format!("docker.io/{}", image.name(By::Tag))]));
        let inspected: serde_json::Value = serde_json::from_slice(&inspected).expect("crictl prints JSON");
        let digests = inspected["status"]["repoDigests"].as_array().expect("an image has digests");
        assert!(digests.iter().any(|known| text(known).ends_with(&image.digest)), "{digests:?}");
        wait_until("the mirror tells of it", || mirror.output().contains(image.repository));
    }
    let bytes = FIXTURE.busybox.blob_bytes() + FIXTURE.multi.blob_bytes();
    wait_until("upstream has sent every blob", || upstream.blob_bytes_sent() >= bytes);
    cachalot(&["node", "restore"]);
    let left: Vec<_> =
        fs::read_dir(&etc).expect("a folder").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(left, ["config.toml"], "what was written is gone");
}
