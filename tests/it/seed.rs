//! `cachalot seed` and `cachalot have`: images fetched ahead of time, and whether they are there.

use std::process::Output;

use serde_json::{Value, json};

use crate::support::client::{Request, send};
use crate::support::images::{Blob, Image, Index};
use crate::support::mirror::{blob, manifest};
use crate::support::program::{Program, Serving};
use crate::support::registry::{Auth, Bearer, Fault, Kind, On, Registry};
use crate::support::within;

const SIGNATURE: &str = "application/vnd.example.signature";

/// A registry with an index for two platforms, an image that shares a layer with nothing, and signatures of both kinds.
struct World {
    registry: Registry,
    index: Index,
    image: Image,
    /// By the API for referrers, of the index.
    signature: Image,
    /// By cosign's tag, of the image.
    cosign: Image,
}

impl World {
    async fn new() -> Self {
        let registry = Registry::start().await;
        let (index, image) = (Index::new(10, &[2000, 300_000]), Image::new(20, &[5000, 1_500_000]));
        let signature = Image::artifact(30, SIGNATURE, &index.manifest);
        let cosign = Image::new(40, &[700]);
        registry.put_index("library/multi", "v1", &index);
        registry.put_image("library/app", "v1", &image);
        registry.put_untagged("library/multi", &signature);
        registry.put_image("library/app", &format!("{}.sig", image.manifest.fallback_tag()), &cosign);
        Self { registry, index, image, signature, cosign }
    }

    /// Fails unless an offline mirror of this store serves everything, by tag and by digest.
    async fn assert_served_offline(&self, program: &Program, platforms: usize) {
        self.registry.forget_seen();
        program.rewrite("[server]", "offline = true\n[server]");
        let serving = program.serve().await;
        program.rewrite("offline = true\n[server]", "[server]");
        let get = async |path: String, bytes: &[u8]| {
            send(serving.addr, &Request::get(path)).await.assert_ok(bytes);
        };
        let tag = format!("{}.sig", self.image.manifest.fallback_tag());
        for (repository, tag, held) in [
            ("library/multi", "v1", &self.index.manifest),
            ("library/app", "v1", &self.image.manifest),
            ("library/app", tag.as_str(), &self.cosign.manifest),
        ] {
            get(manifest(repository, tag), &held.bytes).await;
            get(manifest(repository, &held.digest), &held.bytes).await;
        }
        let images = self.index.images.iter().take(platforms).map(|image| ("library/multi", image));
        let others = [("library/app", &self.image), ("library/app", &self.cosign), ("library/multi", &self.signature)];
        for (repository, image) in images.chain(others) {
            get(manifest(repository, &image.manifest.digest), &image.manifest.bytes).await;
            for part in image.blobs() {
                get(blob(repository, &part.digest), &part.bytes).await;
            }
        }
        let referrers = format!("/v2/library/multi/referrers/{}?ns=docker.io", self.index.manifest.digest);
        let listed = send(serving.addr, &Request::get(referrers)).await.json();
        assert_eq!(listed["manifests"][0]["digest"], self.signature.manifest.digest);
        let cold = send(serving.addr, &Request::get(manifest("library/never", "v1"))).await;
        assert_eq!((cold.status(), cold.error_code().as_str()), (404, "MANIFEST_UNKNOWN"));
        assert!(cold.text().contains("offline: not seeded: docker.io/library/never:v1"), "{}", cold.text());
        let cold = send(serving.addr, &Request::get(blob("library/app", &Blob::noise(99, 5).digest))).await;
        assert_eq!((cold.status(), cold.error_code().as_str()), (404, "BLOB_UNKNOWN"));
        let ready = send(serving.admin, &Request::get("/readyz")).await;
        assert_eq!(ready.status(), 200, "{}", ready.text());
        let tags = send(serving.addr, &Request::get("/v2/library/app/tags/list?ns=docker.io")).await.json();
        assert!(tags["tags"].as_array().unwrap().contains(&json!("v1")), "{tags}");
        assert_eq!(self.registry.seen(&On::any()).len(), 0, "offline asks nobody");
        serving.kill();
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(output)))
}

/// Fails unless a command has ended well.
fn well(output: &Output) {
    assert!(output.status.success(), "{}", text(output));
}

const BOTH: [&str; 4] = ["multi:v1", "app:v1", "--platform", "all"];

#[tokio::test(flavor = "multi_thread")]
async fn what_was_seeded_is_served_without_upstream_whether_a_server_ran_or_not() {
    for runs in [false, true] {
        let world = World::new().await;
        let program = Program::new(&world.registry, "64MiB");
        let serving: Option<Serving> = if runs { Some(program.serve().await) } else { None };
        assert!(!program.run("have", &BOTH).status.success());
        let seeded = program.run("seed", &[&BOTH[..], &["--pin", "release", "--json"]].concat());
        well(&seeded);
        let report = json_of(&seeded);
        let images = report["images"].as_array().unwrap();
        assert!(images.iter().all(|image| image["state"] == "done" && image["missing"] == json!([])), "{report}");
        assert_eq!(images[0]["digest"], world.index.manifest.digest);
        assert_eq!((&images[0]["referrers"], &images[1]["referrers"]), (&json!(1), &json!(1)));
        for image in images {
            let bytes = |name: &str| image[name].as_u64().unwrap();
            let sum = bytes("fetched_bytes") + bytes("shared_bytes") + bytes("held_bytes");
            assert_eq!((bytes("total_bytes"), bytes("held_bytes")), (sum, 0), "{image}");
        }
        // Again: there is nothing to do.
        world.registry.forget_seen();
        let again = json_of(&program.run("seed", &[&BOTH[..], &["--json"]].concat()));
        assert!(again["images"].as_array().unwrap().iter().all(|image| image["fetched_bytes"] == 0), "{again}");
        assert_eq!(world.registry.count(&On::kind(Kind::Blob)), 0);
        well(&program.run("have", &BOTH));
        assert!(text(&program.run("pin", &[])).contains("docker.io/library/multi:v1"));
        drop(serving);
        world.assert_served_offline(&program, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_platforms_and_referrers_that_were_asked_for_are_fetched() {
    let world = World::new().await;
    let program = Program::new(&world.registry, "64MiB");
    well(&program.run("seed", &["multi:v1", "app:v1", "--platform", "linux/amd64"]));
    let [amd, arm] = &world.index.images[..] else { panic!("two platforms") };
    assert_eq!(world.registry.count(&On::blob(&amd.layers[1].digest)), 1);
    assert_eq!(world.registry.count(&On::blob(&arm.layers[1].digest)), 0);
    well(&program.run("have", &["multi:v1", "--platform", "linux/amd64"]));
    let lacks = program.run("have", &["multi:v1", "--platform", "all"]);
    assert!(!lacks.status.success() && text(&lacks).contains(&arm.manifest.digest), "{}", text(&lacks));
    let strange = program.run("seed", &["multi:v1", "--platform", "linux/s390x"]);
    let told = "has nothing for linux/s390x, only linux/amd64 linux/arm64";
    assert!(!strange.status.success() && text(&strange).contains(told), "{}", text(&strange));
    world.assert_served_offline(&program, 1).await;

    let bare = Program::new(&world.registry, "64MiB");
    world.registry.forget_seen();
    well(&bare.run("seed", &["app:v1", "--no-referrers"]));
    assert_eq!(world.registry.count(&On::blob(&world.cosign.layers[0].digest)), 0);
    assert_eq!(world.registry.count(&On::kind(Kind::Referrers)), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_named_and_everything_else_is_fetched() {
    let world = World::new().await;
    let program = Program::new(&world.registry, "64MiB");
    world.registry.fault(On::blob(&world.image.layers[1].digest), Fault::status(404));
    let seeded = program.run("seed", &["multi:v1", "app:v1", "absent:v9", "quay.example/x:1", "--platform", "all"]);
    let told = text(&seeded);
    assert_eq!(seeded.status.code(), Some(1), "{told}");
    for part in ["1 of 4 images are held", &world.image.layers[1].digest, "absent:v9", "quay.example"] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    well(&program.run("have", &["multi:v1", "--platform", "all"]));
    let lacks = program.run("have", &["app:v1"]);
    assert!(!lacks.status.success() && text(&lacks).contains(&world.image.layers[1].digest), "{}", text(&lacks));
    assert!(text(&program.run("have", &["absent:v9"])).starts_with("absent "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_how_much_there_is_and_fetches_no_blob() {
    let world = World::new().await;
    let program = Program::new(&world.registry, "64MiB");
    well(&program.run("seed", &["app:v1", "--no-referrers"]));
    world.registry.forget_seen();
    let dry = program.run("seed", &[&BOTH[..], &["--dry-run", "--json"]].concat());
    well(&dry);
    let report = json_of(&dry);
    let of = |n: usize, name: &str| report["images"][n][name].as_u64().unwrap();
    let sizes = |images: &[&Image]| {
        let size = |image: &Image| image.manifest.bytes.len() + image.blobs().map(Blob::len).sum::<usize>();
        images.iter().map(|image| size(image) as u64).sum::<u64>()
    };
    let [amd, arm] = &world.index.images[..] else { panic!("two platforms") };
    let all = sizes(&[amd, arm, &world.signature]) + world.index.manifest.bytes.len() as u64;
    // Some parts of what refers to them may be the same.
    assert_eq!(of(0, "fetched_bytes") + of(0, "shared_bytes"), all);
    assert!(of(1, "held_bytes") >= sizes(&[&world.image]) - world.image.manifest.bytes.len() as u64, "{report}");
    assert_eq!(world.registry.count(&On::kind(Kind::Blob)), 0);
    assert!(!program.run("have", &["multi:v1", "--platform", "all"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_manifests_name_what_is_seeded() {
    let world = World::new().await;
    let program = Program::new(&world.registry, "64MiB");
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let list = file("list", "# ours\n\nmulti:v1 linux/arm64   # only there\n");
    std::fs::create_dir(folder.path().join("manifests")).unwrap();
    file(
        "manifests/app.yaml",
        "kind: Deployment\nmetadata: {name: a}\nspec:\n  template:\n    spec:\n      containers: [{image: app:v1, args: [other:v2.1]}]\n",
    );
    file("manifests/README.md", "not: [a manifest");
    let manifests = folder.path().join("manifests").to_str().unwrap().to_owned();
    let seeded = program.run("seed", &["--file", &list, "--from-manifests", &manifests]);
    well(&seeded);
    let told = text(&seeded);
    assert!(told.contains("2 of 2 images are held") && told.contains("other:v2.1  in "), "{told}");
    well(&program.run("have", &["--file", &list, "--from-manifests", &manifests]));
    assert_eq!(world.registry.count(&On::blob(&world.index.images[0].layers[1].digest)), 0, "amd64 was not asked for");

    for (content, wrong) in
        [("UPPER:v1", "list:1: \"UPPER:v1\" names no image"), ("a:1 linux", "list:1: \"linux\" is not a platform")]
    {
        let list = file("list", content);
        let refused = program.run("seed", &["--file", &list]);
        assert!(!refused.status.success() && text(&refused).contains(wrong), "{}", text(&refused));
    }
    let broken = file("broken.yaml", "a: [1,\nb: {");
    let refused = program.run("seed", &["--from-manifests", &broken]);
    assert!(!refused.status.success() && text(&refused).contains("broken.yaml is no YAML"), "{}", text(&refused));
    assert!(text(&program.run("seed", &[])).contains("there is nothing to fetch"));
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_manifests_yield_their_images_and_name_what_only_looks_like_one() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/kubernetes");
    let program = Program::new(&Registry::start().await, "64MiB");
    // From here on there is a store to look into.
    assert!(!program.run("import", &["absent.tar"]).status.success());
    let found = program.run("have", &["--json", "--from-manifests", folder.to_str().unwrap()]);
    assert_eq!(found.status.code(), Some(1), "{}", text(&found));
    let images = json_of(&found);
    let images = images.as_array().unwrap().iter().map(|image| image["image"].as_str().unwrap());
    let mut images: Vec<&str> = images.collect();
    images.sort_unstable();
    assert_eq!(images, include_str!("kubernetes.images").lines().collect::<Vec<_>>());
    let told = String::from_utf8_lossy(&found.stderr).into_owned();
    let mut looks: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("  ")?.split("  in ").next()).collect();
    looks.sort_unstable();
    assert_eq!(looks, include_str!("kubernetes.look-alikes").lines().collect::<Vec<_>>(), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_in_the_server_when_nobody_watches_and_can_be_watched_again() {
    let world = World::new().await;
    let program = Program::new(&world.registry, "64MiB");
    let serving = program.serve().await;
    let gate = world.registry.gate(On::blob(&world.image.layers[1].digest));
    let body = json!({ "images": [{ "image": "app:v1" }] });
    let begin = Request::new("POST", "/api/v1/seeds").header("Content-Type", "application/json");
    let begin = begin.body(body.to_string().as_bytes());
    let begun = send(serving.admin, &begin).await.json();
    let number = begun["number"].as_u64().unwrap();
    gate.arrived().await;
    let path = format!("/api/v1/seeds/{number}");
    let seen = send(serving.admin, &Request::get(&path)).await.json();
    assert_eq!((&seen["running"], &seen["images"][0]["state"]), (&json!(true), &json!("running")));
    gate.open();
    let watched = program.run("seed", &["--watch", &number.to_string()]);
    well(&watched);
    assert!(text(&watched).contains("1 of 1 images are held"), "{}", text(&watched));
    let numbers = send(serving.admin, &Request::get("/api/v1/seeds")).await.json();
    assert_eq!(numbers["numbers"], json!([number]));
    let unknown = send(serving.admin, &Request::get("/api/v1/seeds/99")).await;
    assert_eq!(unknown.status(), 404);
    serving.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_run_is_gone_on_with_and_comes_to_the_same() {
    let world = World::new().await;
    let program = Program::new(&world.registry, "64MiB");
    // The moments at which it may be killed: each is a request that upstream has seen and not answered.
    let moments = [
        On::manifest("v1"),
        On::blob(&world.index.images[0].config.digest),
        On::blob(&world.image.layers[1].digest),
        On::kind(Kind::Referrers),
        On::blob(&world.cosign.layers[0].digest),
    ];
    for moment in moments {
        let gate = world.registry.gate(moment);
        let mut seeding = program.spawn("seed", &BOTH);
        gate.arrived().await;
        seeding.kill().unwrap();
        seeding.wait().unwrap();
        gate.open();
    }
    well(&program.run("seed", &BOTH));
    well(&program.run("have", &BOTH));
    world.assert_served_offline(&program, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offline_lists_of_referrers_show_what_is_held_and_warn_of_the_rest() {
    let world = World::new().await;
    let program = Program::new(&world.registry, "64MiB");
    well(&program.run("seed", &["multi:v1", "--platform", "all"]));
    well(&program.run("seed", &["app:v1", "--no-referrers"]));
    program.rewrite("ttl = \"0s\"", "ttl = \"0s\"\nlist_ttl = \"0s\"");
    // One more signature, which only the list knows.
    let late = Image::artifact(31, SIGNATURE, &world.index.manifest);
    world.registry.put_untagged("library/multi", &late);
    let serving = program.serve().await;
    let referrers = |of: &str, digest: &str| Request::get(format!("/v2/library/{of}/referrers/{digest}?ns=docker.io"));
    let of_index = referrers("multi", &world.index.manifest.digest);
    let digests = |answer: &crate::support::client::Answer| {
        let list = answer.json()["manifests"].as_array().unwrap().clone();
        list.iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(digests(&send(serving.addr, &of_index).await).len(), 2);
    // What clients have got is published a moment later.
    let lists = program.data().join("v1/repositories/docker.io/library/multi/_lists");
    let is_late =
        |file: std::path::PathBuf| std::fs::read_to_string(file).is_ok_and(|text| text.contains(&late.manifest.digest));
    crate::support::until("the list is kept", || {
        std::fs::read_dir(&lists).unwrap().flatten().any(|file| is_late(file.path()))
    })
    .await;
    serving.kill();
    program.rewrite("[server]", "offline = true\n[server]");
    let serving = program.serve().await;
    let held = send(serving.addr, &of_index).await;
    assert_eq!((held.status(), digests(&held)), (200, vec![world.signature.manifest.digest.clone()]));
    assert!(held.header("warning").unwrap().contains("1 of 2 referrers are not held"), "{:?}", held.head);
    let entry = &held.json()["manifests"][0];
    assert_eq!(entry["artifactType"], SIGNATURE);
    let never = send(serving.addr, &referrers("app", &world.image.manifest.digest)).await;
    assert_eq!((never.status(), digests(&never)), (200, vec![]));
    assert!(never.header("warning").unwrap().contains("nobody has asked upstream"), "{:?}", never.head);
    serving.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_kept_warm_and_changes_of_a_list_are_followed() {
    let world = World::new().await;
    let program = Program::new(&world.registry, "64MiB");
    let list = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(list.path(), "app:v1\n").unwrap();
    let section = |more: &str| {
        format!("[warm.release]\nfile = {}\ninterval = \"1h\"\nreferrers = false\n{more}", json!(list.path()))
    };
    program.configure(&section(""));
    let serving = program.serve().await;
    let state = async || send(serving.admin, &Request::get("/api/v1/warm")).await.json()["items"][0].clone();
    let after = async |run: u64| {
        let ended = async {
            loop {
                let state = state().await;
                if state["run"].as_u64() >= Some(run) && state["ended"].is_u64() {
                    return state;
                }
                tokio::task::yield_now().await;
            }
        };
        within("the run ends", ended).await
    };
    let first = after(1).await;
    assert_eq!(
        (&first["name"], &first["complete"], &first["problem"]),
        (&json!("release"), &json!(true), &Value::Null)
    );
    assert_eq!(world.registry.count(&On::blob(&world.image.layers[1].digest)), 1);
    assert!(text(&program.run("pin", &[])).contains("release  docker.io/library/app:v1"));
    let metrics = send(serving.admin, &Request::get("/metrics")).await.text();
    assert!(metrics.contains("cachalot_warm_complete{list=\"release\"} 1"), "{metrics}");

    // A changed list is looked at at once, and what can't be had is told.
    program.rewrite(&section(""), &section("images = [\"multi:v1\", \"absent:v9\"]\nplatforms = [\"linux/amd64\"]\n"));
    assert_eq!(send(serving.admin, &Request::new("POST", "/api/v1/reload")).await.status(), 200);
    let second = after(2).await;
    assert_eq!(second["complete"], json!(false));
    let run = send(serving.admin, &Request::get(format!("/api/v1/seeds/{}", second["run"]))).await.json();
    assert!(run["images"][1]["missing"][0].as_str().unwrap().contains("absent:v9"), "{run}");
    well(&program.run("have", &["multi:v1", "--platform", "linux/amd64"]));
    serving.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_to_all_is_seeded_as_such_although_a_credential_is_configured() {
    let registry = Registry::builder().auth(Auth::Bearer(Bearer::default())).start().await;
    registry.add_user("bot", "secret");
    let (first, second) = (Image::of(1, vec![Blob::noise(5, 9000)]), Image::of(2, vec![Blob::noise(5, 9000)]));
    let private = Image::new(3, &[4000]);
    registry.put_image("library/app", "v1", &first);
    registry.put_image("library/app", "v2", &second);
    registry.put_image("acme/secret", "v1", &private);
    registry.make_private("acme/secret", &["bot"]);
    let program = Program::new(&registry, "64MiB");
    program.rewrite("endpoints", "credentials = [{ username = \"bot\", password = \"secret\" }]\nendpoints");
    well(&program.run("seed", &["app:v1", "app:v2", "acme/secret:v1"]));
    program.rewrite("[server]", "offline = true\n[server]");
    let serving = program.serve().await;
    for (image, tag) in [(&first, "v1"), (&second, "v2")] {
        let tagged = Request::get(manifest("library/app", tag));
        send(serving.addr, &tagged).await.assert_ok(&image.manifest.bytes);
        for part in image.blobs() {
            send(serving.addr, &Request::get(blob("library/app", &part.digest))).await.assert_ok(&part.bytes);
        }
    }
    let denied = send(serving.addr, &Request::get(manifest("acme/secret", "v1"))).await;
    assert_eq!((denied.status(), denied.error_code().as_str()), (403, "DENIED"));
    serving.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_room_is_missing_and_not_fetched_again_and_again() {
    let registry = Registry::start().await;
    let images = [Image::new(1, &[3_000_000]), Image::new(2, &[3_000_000]), Image::new(3, &[20_000_000])];
    for (image, tag) in images.iter().zip(["a", "b", "large"]) {
        registry.put_image("library/app", tag, image);
    }
    let program = Program::new(&registry, "5MiB");
    let large = program.run("seed", &["app:large"]);
    assert!(!large.status.success() && text(&large).contains("can't be kept"), "{}", text(&large));
    assert!(registry.body_bytes(&On::blob(&images[2].layers[0].digest)) < 40_000_000, "not fetched three times");
    // Each finds room, and the first has gone for it when the last is there.
    let both = program.run("seed", &["app:a", "app:b"]);
    assert!(!both.status.success(), "{}", text(&both));
    assert!(!text(&both).contains("2 of 2 images are held"), "{}", text(&both));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_held_only_where_its_repository_has_it() {
    let world = World::new().await;
    let program = Program::new(&world.registry, "64MiB");
    well(&program.run("seed", &["app:v1"]));
    well(&program.run("have", &[&format!("app@{}", world.image.manifest.digest)]));
    let elsewhere = program.run("have", &[&format!("other@{}", world.image.manifest.digest)]);
    assert!(!elsewhere.status.success() && text(&elsewhere).starts_with("absent"), "{}", text(&elsewhere));
    // Docker Hub's official images by any of their names.
    well(&program.run("have", &["docker.io/app:v1", "index.docker.io/app:v1", "index.docker.io/library/app:v1"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_or_a_failure_that_passes_is_waited_for() {
    let world = World::new().await;
    world.registry.fault(On::manifest("v1").once(), Fault::too_many_requests(Some("1")));
    world.registry.fault(On::blob(&world.image.layers[0].digest).once(), Fault::status(503));
    // A registry that lets nobody look for referrers has none to give.
    world.registry.fault(On::kind(Kind::Referrers), Fault::status(403));
    let program = Program::new(&world.registry, "64MiB");
    well(&program.run("seed", &["app:v1"]));
    well(&program.run("have", &["app:v1"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_lasts_for_hours_is_told_and_not_waited_for() {
    let world = World::new().await;
    world.registry.fault(On::manifest("v1"), Fault::too_many_requests(Some("21600")));
    let program = Program::new(&world.registry, "64MiB");
    let limited = program.run("seed", &["app:v1"]);
    assert!(!limited.status.success() && text(&limited).contains("limits our requests"), "{}", text(&limited));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_keeps_what_cosign_keeps_beside_the_image() {
    let world = World::new().await;
    let program = Program::new(&world.registry, "64MiB");
    well(&program.run("seed", &["app:v1", "--pin", "site"]));
    let tag = format!("{}.sig", world.image.manifest.fallback_tag());
    let listed = json_of(&program.run("images", &["--json"]));
    let signature = |image: &&Value| image["image"].as_str().unwrap().ends_with(&tag);
    let signature = listed["images"].as_array().unwrap().iter().find(signature);
    assert_eq!(signature.expect("the signature is listed")["pins"], json!(["site"]));
}
