//! podman through the mirror: registries.conf maps docker.io to a path of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::fixture::FIXTURE;
use crate::image::{By, Image, sha256_of_file, text};
use crate::mirror::Mirror;
use crate::process::{run, tool};
use crate::pulls::{self, Client};

/// `podman pull` into a store that holds nothing yet.
pub(crate) struct Puller;

/// A podman with a store of its own, for which docker.io is at a port of this machine.
pub(crate) struct Podman {
    folder: TempDir,
}

// === impl Puller ===

impl Client for Puller {
    fn pull(&self, mirror: &Mirror, image: &Image, by: By) -> BTreeSet<String> {
        let podman = Podman::new(&format!("127.0.0.1:{}/docker.io", mirror.port));
        let name = format!("docker.io/{}", image.name(by));
        podman.pull(&name);
        let digests = run(&mut podman.command(&["image", "inspect", "--format", "{{.RepoDigests}}", &name]));
        let digests = String::from_utf8(digests).expect("podman prints text");
        assert!(digests.contains(&image.digest), "podman knows {name} by upstream's digest: {digests}");
        held(&podman.folder.path().join("root"))
    }
}

// === impl Podman ===

impl Podman {
    /// The registry's own location is its mirror as well, so that nothing else is ever asked.
    pub(crate) fn new(location: &str) -> Podman {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let text = format!(
            "short-name-mode = \"disabled\"\n[[registry]]\nprefix = \"docker.io\"\nlocation = \"{location}\"\n\
             insecure = true\n[[registry.mirror]]\nlocation = \"{location}\"\ninsecure = true\n"
        );
        fs::write(folder.path().join("registries.conf"), text).expect("the folder can be written");
        Podman { folder }
    }

    /// Where it reads which mirrors there are.
    pub(crate) fn registries(&self) -> PathBuf {
        self.folder.path().join("registries.conf")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let path = self.folder.path();
        let mut command = tool("podman");
        command.env("CONTAINERS_REGISTRIES_CONF", path.join("registries.conf"));
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
        for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(path.join(name));
        }
        command.args(arguments);
        command
    }

    pub(crate) fn pull(&self, name: &str) {
        run(self.command(&["pull", "--quiet", "--signature-policy"]).arg(&FIXTURE.policy).arg(name));
    }
}

/// What podman's store holds: manifests and configurations as files, layers unpacked. Of a layer it notes the digest that it
/// computed over the compressed bytes.
fn held(store: &Path) -> BTreeSet<String> {
    let mut held = BTreeSet::new();
    for image in fs::read_dir(store.join("vfs-images")).expect("podman has a store") {
        let path = image.expect("an entry").path();
        if path.is_dir() {
            let files = fs::read_dir(path).expect("podman keeps the manifest");
            held.extend(files.map(|file| sha256_of_file(&file.expect("an entry").path())));
        }
    }
    let layers = fs::read(store.join("vfs-layers/layers.json")).expect("podman keeps a list of layers");
    let layers: Value = serde_json::from_slice(&layers).expect("podman's list of layers is JSON");
    held.extend(layers.as_array().expect("a list").iter().map(|layer| text(&layer["compressed-diff-digest"])));
    held
}

#[test]
fn podman_pulls_a_small_image_cold_warm_and_without_upstream() {
    pulls::cold_warm_and_without_upstream(&Puller, &FIXTURE.busybox);
}

#[test]
fn podman_pulls_a_big_image_cold_warm_and_without_upstream() {
    pulls::cold_warm_and_without_upstream(&Puller, &FIXTURE.big);
}

#[test]
fn podman_pulls_one_platform_of_an_index_cold_warm_and_without_upstream() {
    pulls::cold_warm_and_without_upstream(&Puller, &FIXTURE.multi);
}
