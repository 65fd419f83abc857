//! Bundles and other tools: what `cachalot export` writes is taken by them, and what they write is taken by `cachalot import`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::containerd::Containerd;
use crate::fixture::FIXTURE;
use crate::http;
use crate::image::{By, Image, sha256_of_file, text};
use crate::mirror::Mirror;
use crate::podman::Podman;
use crate::process::{run, tool};
use crate::skopeo::{self, skopeo};
use crate::upstream::Upstream;

/// A stopped mirror that holds all images of the suite, the artifact that refers to one of them included.
fn filled() -> Mirror {
    let upstream = Upstream::start(&FIXTURE.storage);
    let mut mirror = Mirror::start(&upstream);
    let get = |target: &str| {
        let answer = http::request("GET", mirror.port, target, "", b"").expect("the mirror answers");
        assert_eq!(answer.status, 200, "{target}");
    };
    for image in [&FIXTURE.busybox, &FIXTURE.multi] {
        let target = |kind: &str, reference: &str| format!("/v2/docker.io/{}/{kind}/{reference}", image.repository);
        get(&target("manifests", image.tag));
        for platform in &image.platforms {
            get(&target("manifests", &platform.digest));
            platform.blobs.iter().for_each(|(digest, _)| get(&target("blobs", digest)));
        }
    }
    get(&format!("/v2/docker.io/{}/manifests/{}", FIXTURE.busybox.repository, FIXTURE.artifact));
    let empty = crate::image::sha256(b"{}");
    get(&format!("/v2/docker.io/{}/blobs/{empty}", FIXTURE.busybox.repository));
    mirror.settle();
    mirror.kill();
    mirror
}

fn full_name(image: &Image) -> String {
    format!("docker.io/{}", image.name(By::Tag))
}

fn export(mirror: &Mirror, images: &[&Image], output: &Path) {
    let names: Vec<_> = images.iter().map(|image| full_name(image)).collect();
    run(mirror.command("export").args(names).arg("--output").arg(output));
}

/// A mirror without upstream that took this in.
fn imported(bundle: &Path, arguments: &[&str]) -> Mirror {
    let mut mirror = Mirror::start_where("", &["CACHALOT_OFFLINE=true"]);
    mirror.kill();
    run(mirror.command("import").arg(bundle).args(arguments));
    mirror.restart();
    mirror
}

/// Copies an image out of a mirror into a folder, and returns what is in there.
fn pulled(mirror: &Mirror, name: &str) -> (TempDir, Value) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = format!("docker://127.0.0.1:{}/{name}", mirror.port);
    run(&mut skopeo::copy(&source, "dir", folder.path()));
    let manifest = fs::read(folder.path().join("manifest.json")).expect("skopeo keeps the manifest");
    (folder, serde_json::from_slice(&manifest).expect("a manifest is JSON"))
}

fn scratch(name: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join(name);
    (folder, path)
}

fn bundle_of(images: &[&Image]) -> (TempDir, PathBuf) {
    let (folder, bundle) = scratch("bundle.tar");
    export(&filled(), images, &bundle);
    (folder, bundle)
}

fn convert(source: &str, destination: &str) -> Command {
    let mut command = skopeo();
    command.args(["copy", "--quiet", "--all", "--preserve-digests", source, destination]);
    command
}

#[test]
fn skopeo_takes_each_image_of_a_bundle() {
    let (_folder, bundle) = bundle_of(&[&FIXTURE.busybox, &FIXTURE.multi]);
    let check = |bundle: &Path, name: &str, image: &Image| {
        let (_folder, copy) = scratch("copy");
        let source = format!("oci-archive:{}{name}", bundle.display());
        run(&mut convert(&source, &format!("dir:{}", copy.display())));
        assert_eq!(sha256_of_file(&copy.join("manifest.json")), image.digest);
    };
    // Both have the tag 1, so both are called by their full names.
    check(&bundle, &format!(":{}", full_name(&FIXTURE.multi)), &FIXTURE.multi);
    let (_folder, bundle) = bundle_of(&[&FIXTURE.multi]);
    check(&bundle, "", &FIXTURE.multi);
    check(&bundle, ":1", &FIXTURE.multi);
    // skopeo finds only OCI's own manifests by their names, and this one is Docker's.
    let (_folder, bundle) = bundle_of(&[&FIXTURE.busybox]);
    check(&bundle, "", &FIXTURE.busybox);
}

#[test]
fn skopeo_takes_a_bundle_in_a_folder() {
    let (_folder, bundle) = scratch("bundle/");
    export(&filled(), &[&FIXTURE.multi], &bundle);
    let (_other, copy) = scratch("copy");
    run(&mut convert(&format!("oci:{}:1", bundle.display()), &format!("dir:{}", copy.display())));
    assert_eq!(sha256_of_file(&copy.join("manifest.json")), FIXTURE.multi.digest);
}

#[test]
fn podman_loads_a_bundle_under_its_full_name() {
    // One image by its layout, several by Docker's list.
    for images in [&[&FIXTURE.busybox][..], &[&FIXTURE.multi]] {
        let (_folder, bundle) = bundle_of(images);
        let podman = Podman::new("127.0.0.1:1");
        run(podman
            .command(&["load", "--quiet", "--signature-policy"])
            .arg(&FIXTURE.policy)
            .arg("--input")
            .arg(&bundle));
        for image in images {
            run(&mut podman.command(&["image", "exists", &full_name(image)]));
        }
    }
}

#[test]
fn containerd_imports_a_bundle_under_full_names() {
    let (_folder, bundle) = bundle_of(&[&FIXTURE.busybox, &FIXTURE.multi]);
    let containerd = Containerd::start(&imported(&bundle, &[]));
    run(containerd.ctr(&["images", "import", "--snapshotter", "native"]).arg(&bundle));
    for image in [&FIXTURE.busybox, &FIXTURE.multi] {
        let name = full_name(image);
        let listed = run(containerd.ctr(&["images", "ls"]).arg(format!("name=={name}")));
        assert!(String::from_utf8_lossy(&listed).contains(&image.digest), "{}", String::from_utf8_lossy(&listed));
    }
}

#[test]
fn a_bundle_of_one_platform_of_an_index_is_taken_by_all() {
    let (_folder, bundle) = scratch("amd64.tar");
    let (mirror, image) = (filled(), &FIXTURE.multi);
    let name = full_name(image);
    run(mirror.command("export").args([&name, "--platform", "linux/amd64", "--output"]).arg(&bundle));

    let containerd = Containerd::start(&imported(&bundle, &[]));
    run(containerd.ctr(&["images", "import", "--snapshotter", "native"]).arg(&bundle));
    let listed = run(containerd.ctr(&["images", "ls"]).arg(format!("name=={name}")));
    assert!(String::from_utf8_lossy(&listed).contains(&image.digest), "{}", String::from_utf8_lossy(&listed));
    containerd.run_to_say(&name, "hello");

    let podman = Podman::new("127.0.0.1:1");
    run(podman.command(&["load", "--quiet", "--signature-policy"]).arg(&FIXTURE.policy).arg("--input").arg(&bundle));
    run(&mut podman.command(&["image", "exists", &name]));

    let (_folder, copy) = scratch("copy");
    let source = format!("oci-archive:{}:1", bundle.display());
    run(skopeo().args(["copy", "--quiet", &source, &format!("dir:{}", copy.display())]));
    assert_eq!(sha256_of_file(&copy.join("manifest.json")), image.platforms[0].digest);
}

#[test]
fn a_bundle_is_served_by_another_mirror_without_upstream() {
    let (_folder, bundle) = bundle_of(&[&FIXTURE.busybox, &FIXTURE.multi]);
    let mirror = imported(&bundle, &[]);
    for image in [&FIXTURE.busybox, &FIXTURE.multi] {
        for by in [By::Tag, By::Digest] {
            let source = skopeo::source(&mirror, image, by);
            assert_eq!(run(skopeo().args(["inspect", "--raw", "--tls-verify=false", &source])), image.raw);
        }
    }
    let target = format!("/v2/docker.io/{}/referrers/{}", FIXTURE.busybox.repository, FIXTURE.busybox.digest);
    let referrers = http::request("GET", mirror.port, &target, "", b"").expect("the mirror answers");
    assert!(String::from_utf8_lossy(&referrers.body).contains(&FIXTURE.artifact));
}

#[test]
fn archives_of_skopeo_are_imported() {
    let upstream = Upstream::start(&FIXTURE.storage);
    let image = &FIXTURE.multi;
    let (_folder, archive) = scratch("multi.tar");
    let source = format!("docker://127.0.0.1:{}/{}", upstream.port, image.name(By::Tag));
    let full = full_name(image);
    for (name, arguments) in [(full.as_str(), &[][..]), ("1", &["--as", "docker.io/library/multi"])] {
        fs::remove_file(&archive).ok();
        let destination = format!("oci-archive:{}:{name}", archive.display());
        run(convert(&source, &destination).arg("--src-tls-verify=false"));
        let mirror = imported(&archive, arguments);
        let source = skopeo::source(&mirror, image, By::Tag);
        assert_eq!(run(skopeo().args(["inspect", "--raw", "--tls-verify=false", &source])), image.raw);
        pulled(&mirror, &full);
    }
}

#[test]
fn archives_of_podman_are_imported() {
    let upstream = Upstream::start(&FIXTURE.storage);
    let podman = Podman::new(&format!("127.0.0.1:{}", upstream.port));
    let image = &FIXTURE.busybox;
    let name = full_name(image);
    podman.pull(&name);
    for format in ["oci-archive", "docker-archive"] {
        let (_folder, archive) = scratch("podman.tar");
        run(podman.command(&["save", "--quiet", "--format", format, "--output"]).arg(&archive).arg(&name));
        let mirror = imported(&archive, &[]);
        let (folder, manifest) = pulled(&mirror, &name);
        let layer = text(&manifest["layers"][0]["digest"]);
        let file = folder.path().join(layer.strip_prefix("sha256:").expect("a digest"));
        assert_eq!(sha256_of_file(&file), layer, "{format}");
        // And it can be carried on from there.
        drop(folder);
    }
}

#[test]
fn the_storage_of_a_registry_is_imported() {
    let mirror = imported(&FIXTURE.storage, &["--from", "distribution", "--as", "docker.io"]);
    for image in [&FIXTURE.busybox, &FIXTURE.big, &FIXTURE.multi] {
        let source = skopeo::source(&mirror, image, By::Tag);
        assert_eq!(run(skopeo().args(["inspect", "--raw", "--tls-verify=false", &source])), image.raw);
        pulled(&mirror, &full_name(image));
    }
    let target = format!("/v2/docker.io/{}/referrers/{}", FIXTURE.busybox.repository, FIXTURE.busybox.digest);
    let referrers = http::request("GET", mirror.port, &target, "", b"").expect("the mirror answers");
    assert!(String::from_utf8_lossy(&referrers.body).contains(&FIXTURE.artifact));
}

#[test]
fn the_images_of_containerd_are_imported() {
    let upstream = Upstream::start(&FIXTURE.storage);
    let through = Mirror::start(&upstream);
    let containerd = Containerd::start(&through);
    for image in [&FIXTURE.busybox, &FIXTURE.multi] {
        containerd.pull(image, By::Tag);
    }
    // It goes on running meanwhile.
    let mirror = imported(&containerd.root(), &["--from", "containerd"]);
    for image in [&FIXTURE.busybox, &FIXTURE.multi] {
        let source = skopeo::source(&mirror, image, By::Tag);
        assert_eq!(run(skopeo().args(["inspect", "--raw", "--tls-verify=false", &source])), image.raw);
        pulled(&mirror, &full_name(image));
    }
}

#[test]
fn what_containerd_exports_is_imported() {
    let upstream = Upstream::start(&FIXTURE.storage);
    let through = Mirror::start(&upstream);
    let containerd = Containerd::start(&through);
    let (_folder, archive) = scratch("ctr.tar");
    let names = [&FIXTURE.busybox, &FIXTURE.multi].map(|image| containerd.pull(image, By::Tag));
    run(containerd.ctr(&["images", "export"]).arg(&archive).args(&names));
    let mirror = imported(&archive, &[]);
    for image in [&FIXTURE.busybox, &FIXTURE.multi] {
        let source = skopeo::source(&mirror, image, By::Tag);
        assert_eq!(run(skopeo().args(["inspect", "--raw", "--tls-verify=false", &source])), image.raw);
        pulled(&mirror, &full_name(image));
    }
}

#[test]
fn what_lies_on_a_file_system_with_reflinks_is_taken_over_without_a_second_copy() {
    let (folder, image) = scratch("disk");
    fs::File::create(&image).expect("a file can be made").set_len(1 << 30).expect("a file can be sparse");
    run(tool("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image));
    let disk = LoopMount::of(&image, folder.path().join("mounted"));
    let storage = disk.0.join("registry");
    run(tool("cp").arg("-r").arg(&*FIXTURE.storage).arg(&storage));
    run(&mut tool("sync"));
    let before = disk.used_bytes();

    let upstream = Upstream::start(&FIXTURE.storage);
    let mut mirror = Mirror::start_on(&upstream, &disk.0.join("data"), "1MiB");
    mirror.kill();
    run(mirror.command("import").arg(&storage).args(["--from", "distribution", "--as", "docker.io"]));
    run(&mut tool("sync"));
    let more = disk.used_bytes() - before;
    let all = FIXTURE.big.blob_bytes();
    assert!(more < all / 4, "{more} bytes more are in use for an image of {all}");
    assert!(String::from_utf8_lossy(&run(&mut mirror.command("verify"))).contains("0 are wrong"));
    // The registry goes on writing its files, which are still its own.
    fs::remove_dir_all(&storage).expect("the registry's folder can be removed");
    assert!(String::from_utf8_lossy(&run(&mut mirror.command("verify"))).contains("0 are wrong"));
}

/// A file system in a file, mounted while this lives.
struct LoopMount(PathBuf);

impl LoopMount {
    fn of(image: &Path, at: PathBuf) -> Self {
        fs::create_dir(&at).expect("a folder can be made");
        run(tool("mount").args(["-o", "loop"]).arg(image).arg(&at));
        Self(at)
    }

    fn used_bytes(&self) -> u64 {
        let used = run(tool("df").args(["--output=used", "-B1"]).arg(&self.0));
        String::from_utf8_lossy(&used)
            .lines()
            .nth(1)
            .and_then(|line| line.trim().parse().ok())
            .expect("df prints a number")
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        tool("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}
