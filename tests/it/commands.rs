//! The commands that look after a store, whether or not a server runs on it.

use serde_json::{Value, json};

use crate::support::client::Request;
use crate::support::images::{Image, sha256};
use crate::support::mirror::{blob, manifest};
use crate::support::program::{Program, Serving};
use crate::support::registry::Registry;

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A mirror that holds two images, which share nothing. It runs, or is killed.
async fn world(runs: bool) -> (Program, [Image; 2], Option<Serving>) {
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
    // What clients have got is published a moment later.
    let mut held: Vec<_> = images.iter().flat_map(Image::blobs).map(|part| file(&program, &part.digest)).collect();
    let tags = program.data().join("v1/repositories/docker.io/library/app/_tags");
    held.extend(["one.json", "two.json"].map(|tag| tags.join(tag)));
    crate::support::until("all is held", || held.iter().all(|file| file.exists())).await;
    let serving = if runs {
        Some(serving)
    } else {
        serving.kill();
        None
    };
    (program, images, serving)
}

fn file(program: &Program, digest: &str) -> std::path::PathBuf {
    let hex = digest.strip_prefix("sha256:").unwrap();
    program.data().join("v1/blobs/sha256").join(&hex[..2]).join(hex)
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_listed_pinned_and_removed() {
    for runs in [false, true] {
        look_after_images(runs).await;
    }
}

async fn look_after_images(runs: bool) {
    let (program, images, serving) = world(runs).await;
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
    drop(serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_what_rotted_and_repairs_it_when_told_to() {
    for runs in [false, true] {
        look_for_rot(runs).await;
    }
}

async fn look_for_rot(runs: bool) {
    let (program, images, serving) = world(runs).await;
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
    // A server serves nothing that it knows to be wrong; else nothing changes without the order.
    assert_eq!(path.exists(), !runs);
    if !runs {
        let repaired = program.run("verify", &["--repair"]);
        assert!(!repaired.status.success() && text(&repaired).contains("in quarantine now"), "{}", text(&repaired));
    }
    assert!(!path.exists());
    assert!(program.data().join("v1/quarantine").join(digest.replace(':', "-")).exists());
    assert!(program.run("verify", &[]).status.success());
    drop(serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_knows_its_admins_obeys_only_them() {
    let registry = Registry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = |name: &str| folder.path().join(name);
    std::fs::write(token("tokens"), "ann:admin-0123456789\nbob:reader-0123456789\n").unwrap();
    std::fs::write(token("ann"), "admin-0123456789\n").unwrap();
    std::fs::write(token("bob"), "reader-0123456789\n").unwrap();
    let program = Program::new(&registry, "64MiB");
    program.configure(&format!("[admin]\ntokens_file = {}\nadmins = [\"ann\"]\n", json!(token("tokens"))));
    let serving = program.serve().await;
    let run = |name: &str, arguments: &[&str], who: Option<&str>| {
        let file = who.map(|who| token(who).display().to_string());
        let mut all: Vec<&str> = file.iter().flat_map(|file| ["--token-file", file]).collect();
        all.extend(arguments);
        program.run(name, &all)
    };
    let stranger = run("images", &[], None);
    assert!(!stranger.status.success() && text(&stranger).contains("--token-file"), "{}", text(&stranger));
    assert!(run("images", &[], Some("bob")).status.success());
    for (name, arguments) in [("pin", &["p", "app:one"][..]), ("rm", &["app:one"]), ("verify", &["--repair"])] {
        let refused = run(name, arguments, Some("bob"));
        assert!(!refused.status.success() && text(&refused).contains("admin.admins"), "{name}: {}", text(&refused));
    }
    assert!(run("pin", &["p", "app:one"], Some("ann")).status.success());
    assert!(text(&run("pin", &["--json"], Some("bob"))).contains("docker.io/library/app:one"));
    drop(serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_store_none_is_made_by_looking() {
    let program = Program::new(&Registry::start().await, "64MiB");
    for (name, arguments) in
        [("images", &[][..]), ("verify", &[]), ("have", &["app:v1"]), ("rm", &["app:v1"]), ("pin", &[])]
    {
        let told = program.run(name, arguments);
        assert!(!told.status.success() && text(&told).contains("there is no store in "), "{name}: {}", text(&told));
        assert!(!program.data().exists(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_meant_by_the_names_of_their_registries_and_never_by_chance() {
    for runs in [false, true] {
        let (program, _, mut serving) = world(runs).await;
        program.configure(
            "[upstreams.\"registry.corp\"]\naliases = [\"corp\", \"hub.corp\"]\nendpoints = [\"http://127.0.0.1:1\"]\n",
        );
        if runs {
            drop(serving.take());
            serving = Some(program.serve().await);
        }
        for (image, wrong) in [
            ("corp/team/app:1", "as in registry.corp/team/app"),
            ("nosuch.corp/x:1", "\"nosuch.corp\" is not configured"),
        ] {
            let refused = program.run("pin", &["p", image]);
            assert!(!refused.status.success() && text(&refused).contains(wrong), "{}", text(&refused));
        }
        assert!(program.run("pin", &["p", "hub.corp/team/app:1"]).status.success());
        assert!(text(&program.run("pin", &[])).contains("registry.corp/team/app:1"));
        // What is held of a registry that is configured no longer can go.
        let absent = program.run("rm", &["nosuch.corp/x:1"]);
        assert!(text(&absent).contains("nosuch.corp/x:1 is not held"), "{}", text(&absent));
        drop(serving);
    }
}
