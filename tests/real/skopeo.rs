//! skopeo through the mirror: the upstream is named by the first segment of the path.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::fixture::FIXTURE;
use crate::image::{By, Image, sha256, sha256_of_file};
use crate::mirror::Mirror;
use crate::process::{run, tool};
use crate::pulls::{self, Client};
use crate::upstream::Upstream;

/// Reads what the tag names (`inspect --raw`), then copies the image for this machine into a folder.
pub(crate) struct Skopeo;

// === impl Skopeo ===

impl Client for Skopeo {
    fn pull(&self, mirror: &Mirror, image: &Image, by: By) -> BTreeSet<String> {
        let source = source(mirror, image, by);
        let raw = run(skopeo().args(["inspect", "--raw", "--tls-verify=false", &source]));
        assert_eq!(raw, image.raw, "{source}: the manifest is upstream's, byte for byte");
        let folder = tempfile::tempdir().expect("a temporary folder");
        run(&mut copy(&source, "dir", folder.path()));
        let mut held: BTreeSet<_> = files_of(folder.path()).collect();
        held.insert(sha256(&raw));
        held
    }
}

pub(crate) fn skopeo() -> Command {
    let mut command = tool("skopeo");
    command.arg("--insecure-policy");
    command
}

/// `skopeo copy` that fails rather than change a digest.
pub(crate) fn copy(source: &str, transport: &str, folder: &Path) -> Command {
    let mut command = skopeo();
    command.args(["copy", "--quiet", "--preserve-digests", "--src-tls-verify=false", source]);
    command.arg(format!("{transport}:{}", folder.display()));
    command
}

pub(crate) fn source(mirror: &Mirror, image: &Image, by: By) -> String {
    format!("docker://{}", mirror.path_name(image, by))
}

/// The digests of the files in a folder, from their bytes and not from their names.
fn files_of(folder: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(folder).expect("skopeo made the folder").map(|entry| sha256_of_file(&entry.expect("an entry").path()))
}

#[test]
fn skopeo_pulls_a_small_image_cold_warm_and_without_upstream() {
    pulls::cold_warm_and_without_upstream(&Skopeo, &FIXTURE.busybox);
}

#[test]
fn skopeo_pulls_a_big_image_cold_warm_and_without_upstream() {
    pulls::cold_warm_and_without_upstream(&Skopeo, &FIXTURE.big);
}

#[test]
fn skopeo_pulls_one_platform_of_an_index_cold_warm_and_without_upstream() {
    pulls::cold_warm_and_without_upstream(&Skopeo, &FIXTURE.multi);
}

#[test]
fn skopeo_copies_a_whole_index_into_an_oci_layout() {
    let mut upstream = Upstream::start(&FIXTURE.storage);
    let mirror = Mirror::start(&upstream);
    let image = &FIXTURE.multi;
    let expected: BTreeSet<_> = image
        .platforms
        .iter()
        .flat_map(|platform| platform.blobs.iter().map(|(digest, _)| digest).chain([&platform.digest]))
        .chain([&image.digest])
        .cloned()
        .collect();
    let check = |by| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        run(copy(&source(&mirror, image, by), "oci", folder.path()).arg("--all"));
        let held: BTreeSet<_> = files_of(&folder.path().join("blobs/sha256")).collect();
        assert_eq!(held, expected, "by {by:?}");
    };
    check(By::Tag);
    check(By::Digest);
    upstream.stop();
    check(By::Tag);
    check(By::Digest);
}

#[test]
fn skopeo_inspects_and_lists_what_upstream_has() {
    let mut upstream = Upstream::start(&FIXTURE.storage);
    let mirror = Mirror::start(&upstream);
    let image = &FIXTURE.big;
    let check = || {
        for by in [By::Tag, By::Digest] {
            let inspected = run(skopeo().args(["inspect", "--tls-verify=false", &source(&mirror, image, by)]));
            let inspected: Value = serde_json::from_slice(&inspected).expect("skopeo inspect prints JSON");
            assert_eq!(inspected["Digest"], image.digest.as_str());
            let layers: Vec<_> = image.platforms[0].blobs[1..].iter().map(|(digest, _)| digest.as_str()).collect();
            assert_eq!(inspected["Layers"], Value::from(layers));
        }
        let repository = format!("docker://127.0.0.1:{}/docker.io/{}", mirror.port, image.repository);
        let listed = run(skopeo().args(["list-tags", "--tls-verify=false", &repository]));
        let listed: Value = serde_json::from_slice(&listed).expect("skopeo list-tags prints JSON");
        assert_eq!(listed["Tags"], Value::from(vec![image.tag]));
    };
    check();
    check();
    upstream.stop();
    check();
}
