//! The commands that work on the store of a server that doesn't run.

use serde_json::Value;

use crate::support::client::Request;
use crate::support::images::{Image, sha256};
use crate::support::mirror::{blob, manifest};
use crate::support::program::Program;
use crate::support::registry::Registry;

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A stopped mirror that holds two images, which share nothing.
async fn world() -> (Program, [Image; 2]) {
    let registry = Registry::start().await;
    let images = [Image::new(1, &[2000, 300_000]), Image::new(2, &[5000])];
    let program = Program::new(&registry, "64MiB");
    let serving = program.serve().await;
    for (image, tag) in images.iter().zip(["one", "two"]) {
        registry.put_image("library/app", tag, image);
        for path in [manifest("library/app", tag), manifest("library/app", &image.manifest.digest)] {
            crate::support::client::send(serving.addr, &Request::get(path)).await.assert_ok(&image.manifest.bytes);
        }
        for part in image.blobs() {
            let path = blob("library/app", &part.digest);
            crate::support::client::send(serving.addr, &Request::get(path)).await.assert_ok(&part.bytes);
        }
    }
    let refused = program.run("images", &[]);
    assert!(!refused.status.success() && text(&refused).contains("is in use by process"), "{}", text(&refused));
    // What clients have got is published a moment later.
    let mut held: Vec<_> = images.iter().flat_map(Image::blobs).map(|part| file(&program, &part.digest)).collect();
    let tags = program.data().join("v1/repositories/docker.io/library/app/_tags");
    held.extend(["one.json", "two.json"].map(|tag| tags.join(tag)));
    crate::support::until("all is held", || held.iter().all(|file| file.exists())).await;
    serving.kill();
    (program, images)
}

fn file(program: &Program, digest: &str) -> std::path::PathBuf {
    let hex = digest.strip_prefix("sha256:").unwrap();
    program.data().join("v1/blobs/sha256").join(&hex[..2]).join(hex)
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_listed_pinned_and_removed() {
    let (program, images) = world().await;
    let listed = program.run("images", &["--json", "--layers", "1"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap_or_else(|_| panic!("{}", text(&listed)));
    let names: Vec<_> = listed["images"].as_array().unwrap().iter().map(|row| row["image"].as_str().unwrap()).collect();
    assert_eq!(names, ["docker.io/library/app:one", "docker.io/library/app:two"]);
    assert_eq!(listed["images"][0]["complete"], true);
    assert_eq!(listed["layers"][0]["size_bytes"], 300_000);
    let table = text(&program.run("images", &[]));
    assert!(table.starts_with("IMAGE") && table.contains("docker.io/library/app:two"), "{table}");

    assert!(program.run("pin", &["release", "app:one"]).status.success());
    assert!(text(&program.run("pin", &[])).contains("release  docker.io/library/app:one"));
    assert!(text(&program.run("images", &[])).contains("pinned by release"));
    let refused = program.run("rm", &["app:one"]);
    assert!(!refused.status.success() && text(&refused).contains("kept by the pin release"), "{}", text(&refused));
    assert!(program.run("unpin", &["release"]).status.success());
    assert!(!program.run("unpin", &["release"]).status.success());
    let removed = program.run("rm", &["app:one"]);
    assert!(removed.status.success() && text(&removed).contains("4 blobs"), "{}", text(&removed));
    assert!(images[0].blobs().all(|part| !file(&program, &part.digest).exists()));
    assert!(images[1].blobs().all(|part| file(&program, &part.digest).exists()));
    assert!(!program.run("rm", &["app:one"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_what_rotted_and_repairs_it_when_told_to() {
    let (program, images) = world().await;
    let clean = program.run("verify", &[]);
    assert!(clean.status.success(), "{}", text(&clean));
    let digest = images[0].layers[1].digest.clone();
    let path = file(&program, &digest);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[123_456] ^= 4;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    assert_ne!(sha256(&bytes), digest);

    let found = program.run("verify", &["--json"]);
    assert!(!found.status.success());
    let report: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(report["wrong"][0]["digest"], digest.as_str());
    assert!(path.exists(), "without --repair nothing changes");
    let repaired = program.run("verify", &["--repair"]);
    assert!(!repaired.status.success() && text(&repaired).contains("in quarantine now"), "{}", text(&repaired));
    assert!(!path.exists());
    assert!(program.data().join("v1/quarantine").join(digest.replace(':', "-")).exists());
    assert!(program.run("verify", &[]).status.success());
}
