//! podman through the mirror: registries.conf maps docker.io to a path of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::fixture::FIXTURE;
use crate::image::{By, Image, sha256_of_file, text};
use crate::mirror::Mirror;
use crate::process::{run, tool};
use crate::pulls::{self, Client};

/// `podman pull` into a store that holds nothing yet.
struct Podman;

// === impl Podman ===

impl Client for Podman {
    fn pull(&self, mirror: &Mirror, image: &Image, by: By) -> BTreeSet<String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path();
        // The registry's own location is the mirror as well, so that nothing else is ever asked.
        let location = format!("127.0.0.1:{}/docker.io", mirror.port);
        let text = format!(
            "short-name-mode = \"disabled\"\n[[registry]]\nprefix = \"docker.io\"\nlocation = \"{location}\"\n\
             insecure = true\n[[registry.mirror]]\nlocation = \"{location}\"\ninsecure = true\n"
        );
        let registries = path.join("registries.conf");
        fs::write(&registries, text).expect("the folder can be written");
        let podman = |arguments: &[&str]| {
            let mut command = tool("podman");
            command.env("CONTAINERS_REGISTRIES_CONF", &registries);
            command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
            for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
                command.arg(option).arg(path.join(name));
            }
            command.args(arguments);
            command
        };
        let name = format!("docker.io/{}", image.name(by));
        run(podman(&["pull", "--quiet", "--signature-policy"]).arg(&FIXTURE.policy).arg(&name));
        let digests = run(&mut podman(&["image", "inspect", "--format", "{{.RepoDigests}}", &name]));
        let digests = String::from_utf8(digests).expect("podman prints text");
        assert!(digests.contains(&image.digest), "podman knows {name} by upstream's digest: {digests}");
        held(&path.join("root"))
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
    pulls::cold_warm_and_without_upstream(&Podman, &FIXTURE.busybox);
}

#[test]
fn podman_pulls_a_big_image_cold_warm_and_without_upstream() {
    pulls::cold_warm_and_without_upstream(&Podman, &FIXTURE.big);
}

#[test]
fn podman_pulls_one_platform_of_an_index_cold_warm_and_without_upstream() {
    pulls::cold_warm_and_without_upstream(&Podman, &FIXTURE.multi);
}
